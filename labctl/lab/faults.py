"""Faults as a host's agent (images/host/faults.py) takes them. Pure: from a step to text, and from
the agent's answers to events.

A drop is an nftables table of its own, so that it comes and goes as one. Its rules count the lost
packets, and make the kernel report each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from labctl.ground.data import dataclass
from labctl.probes.observations import FLAG_BITS
from labctl.record.events import TallyEvent, TroubleEvent
from labctl.record.history import History

LOG_GROUP = 7
"""The group of nfnetlink_log; each namespace has groups of its own."""
LOOPBACK = {4: "127.0.0.0/8", 6: "::1"}
SNAP = 128
"""How many bytes of a lost packet to report: IPv6 and TCP headers, with all options of TCP."""
ALL_FLAGS = 0x3F
FORGED_ID, FORGED_HOPS = 0x1AB, 255
"""The identification of injected segments (in IPv6 the flow label), and how many hosts may forward
them: so captures and rules can tell them from what kernels send, from 64 on."""
FORGED = {4: f"ip id {FORGED_ID} ip ttl > 200", 6: f"ip6 flowlabel {FORGED_ID} ip6 hoplimit > 200"}
DATA_OFFSETS = range(5, 16)
"""How many words a TCP header can have (RFC 9293, section 3.1)."""

LONGEST_QUEUE = 60.0
"""How many seconds to wait for a segment at most."""


@dataclass(frozen=True)
class End:
    """One side of the segments that a fault is about: some addresses, and a port or all. If it is
    the `whole` host that loses them, its addresses need not be known."""

    addresses: tuple[str, ...]
    port: int | None = None
    whole: bool = False

    def covers(self, end: str) -> bool:
        """Whether an end of a connection is one of these."""
        host, port = address_of(end)
        return host in self.addresses and self.port in (None, port)


@dataclass(frozen=True)
class Drop:
    """Segments to lose: at the hook `input` of their receiver, `output` of their sender, or
    `forward` of a router; there maybe only those that come or leave by one `device`.

    With `count` the first so many of them, else all. `bare` ones have no payload, and no flag but
    `flags`. If `injected` says so, only those that a step sent, or only others. `answer` has the
    rules that refuse them instead; without any they are lost without a word."""

    source: End | None
    target: End | None
    hook: str
    flags: frozenset[str] = frozenset()
    bare: bool = False
    count: int | None = None
    injected: bool | None = None
    answer: Sequence[str] = ()
    device: str = ""

    def log(self, number: int) -> str:
        """The statement that reports lost packets; a kernel that can't report has rules without."""
        return f'log prefix "{number}" group {LOG_GROUP} snaplen {SNAP} '

    def rules(self, number: int) -> str:
        """The table, as `nft -f` reads it."""
        limit = f"limit rate 1/day burst {self.count} packets " if self.count else ""
        sized = "data" in self.flags or self.bare
        verdict = "jump sized" if sized else "jump lose"
        matches = [f"{words} {verdict}" for words in self._matches()]
        if self.injected is False:
            matches = [*(f"{forged} return" for forged in FORGED.values()), *matches]
        end = "jump refuse" if self.answer else "drop"
        return "\n".join(
            [
                f"table inet labctl_drop_{number} {{",
                "  counter lost { }",
                *(_chain("refuse", self.answer) if self.answer else ()),
                *_chain("lose", [f"{limit}counter name lost {self.log(number)}{end}"]),
                *(_chain("sized", _sizes("==" if self.bare else ">")) if sized else ()),
                *_chain("match", [f"type filter hook {self.hook} priority 0", *matches]),
                "}\n",
            ]
        )

    def _matches(self) -> Iterable[str]:
        for family in (4, 6):
            sides = [
                _side(word, end, family)
                for word, end in (("s", self.source), ("d", self.target))
                if end is not None
            ]
            if None not in sides:
                words = [side for side in sides if side is not None]
                forged = [FORGED[family]] if self.injected else []
                for link in self._links:
                    yield " ".join([*link, *words, *forged, *self._flags()])

    @property
    def _links(self) -> list[list[str]]:
        ways = ("iifname", "oifname")
        return [[way, f'"{self.device}"'] for way in ways] if self.device else [[]]

    def _flags(self) -> Iterable[str]:
        wanted = sum(FLAG_BITS[flag] for flag in self.flags - {"data"})
        among = ALL_FLAGS if self.bare else wanted
        yield f"tcp flags & {among:#x} == {wanted:#x}"


def _side(word: str, end: End, family: int) -> str | None:
    """A match of the `s`ource or `d`estination, or None if it has no address of a family."""
    addresses = [a for a in end.addresses if (":" in a) == (family == 6)]
    name = "ip" if family == 4 else "ip6"
    port = f" tcp {word}port {end.port}" if end.port is not None else ""
    if end.whole:
        return f"{name} {word}addr != {LOOPBACK[family]}{port}"
    return f"{name} {word}addr {{ {', '.join(addresses)} }}{port}" if addresses else None


def _sizes(compare: str) -> list[str]:
    """Rules that go on to lose packets whose payload is `compare` 0 bytes. nft can't subtract, so
    there is one for each length of the TCP header, after an IP header without options."""
    return [
        f"tcp doff {words} {field} {compare} {before + 4 * words} jump lose"
        for field, before in (("ip length", 20), ("ip6 length", 0))
        for words in DATA_OFFSETS
    ]


def _chain(name: str, rules: Sequence[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {rule}" for rule in rules), "  }"]


def address_of(end: str) -> tuple[str, int]:
    """The address and the port of an end of a connection."""
    host, _, port = end.rpartition(":")
    return host.strip("[]"), int(port)


@dataclass(frozen=True)
class Netem:
    """What a link does to everything that its host sends, by tc-netem(8). `delay` is in seconds,
    `rate` in the words of tc, the others are percentages."""

    delay: float | None = None
    loss: float | None = None
    rate: str | None = None
    reorder: float | None = None
    duplicate: float | None = None

    @property
    def words(self) -> list[str]:
        """For tc; none for a link without faults."""
        found = [] if self.delay is None else ["delay", f"{self.delay * 1e6:.0f}us"]
        for name in ("loss", "duplicate", "reorder"):
            value = getattr(self, name)
            found += [] if value is None else [name, f"{value:g}%"]
        return found + ([] if self.rate is None else ["rate", self.rate])

    @property
    def slowest(self) -> float:
        """How many seconds later a segment may come. With a rate, add the time of a full queue:
        1000 packets (tc-netem(8), limit) of 1500 bytes."""
        match = re.match(r"([\d.]+)([kmgt]?)(i?)(bit|bps)", self.rate or "")
        queue = 0.0
        if match:
            number, scale, binary, unit = match.groups()
            each = (1024 if binary else 1000) ** " kmgt".index(scale or " ")
            bits = float(number) * each * (8 if unit == "bps" else 1)
            queue = 1000 * 1500 * 8 / bits if bits else LONGEST_QUEUE
        return (self.delay or 0.0) + min(queue, LONGEST_QUEUE)

    def __str__(self) -> str:
        return " ".join(self.words) or "as it was"


def tallied(
    history: History, t: float, host: str, counts: Mapping[str, int]
) -> Iterator[TallyEvent | TroubleEvent]:
    """What to record when a host has counted the segments that it lost, by drop. The counter is
    right even if the kernel did not report all of them."""
    for drop, lost in ((int(number), lost) for number, lost in counts.items()):
        if history.tallies.get((host, drop)) == lost:
            continue
        yield TallyEvent(t, host, drop, lost)
        reported = sum((loss.host, loss.drop) == (host, drop) for loss in history.losses)
        if reported < lost:
            text = f"{lost - reported} of {lost} lost segments were not reported"
            yield TroubleEvent(t, host, "capture", text)
