"""Faults as a host's agent (images/host/faults.py) takes them: pure, from what a step says to text,
and from what they answer to events.

A drop is an nftables table of its own, so that it comes and goes as one. Its rules count what they
lose, and have the kernel report each lost packet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from labctl.history import History, TallyEvent, TroubleEvent

LOG_GROUP = 7
"""Of nfnetlink_log; each namespace has groups of its own."""
SNAP = 128
"""Bytes of a lost packet that are reported: IPv6 and TCP headers, with all options of TCP."""
FLAG_BITS = {"FIN": 0x01, "SYN": 0x02, "RST": 0x04, "PSH": 0x08, "ACK": 0x10, "URG": 0x20}
ALL_FLAGS = 0x3F
DATA_OFFSETS = range(5, 16)
"""How many words a TCP header can have (RFC 9293, section 3.1)."""

MENDS = {
    "nft": "install the package nftables, on a kernel with nf_tables",
}
"""How to mend the lack of what only a host in place can tell about."""


@dataclass(frozen=True)
class End:
    """One side of the segments that a fault is about: some addresses, and a port or all."""

    addresses: tuple[str, ...]
    port: int | None = None


@dataclass(frozen=True)
class Drop:
    """Segments to lose: at the hook `input` of whom they are for, or `output` of who sends them.

    With `count` the first so many of them, else all. `bare` ones have no payload, and no flag but
    `flags`."""

    source: End | None
    target: End | None
    hook: str
    flags: frozenset[str] = frozenset()
    bare: bool = False
    count: int | None = None

    def log(self, number: int) -> str:
        """The statement that reports lost packets. Where the kernel can't, rules do without it."""
        return f'log prefix "{number}" group {LOG_GROUP} snaplen {SNAP} '

    def rules(self, number: int) -> str:
        """The table, as `nft -f` reads it."""
        limit = f"limit rate 1/day burst {self.count} packets " if self.count else ""
        sized = "data" in self.flags or self.bare
        verdict = "jump sized" if sized else "jump lose"
        matches = [f"{words} {verdict}" for words in self._matches()]
        return "\n".join(
            [
                f"table inet labctl_drop_{number} {{",
                "  counter lost { }",
                *_chain("lose", [f"{limit}counter name lost {self.log(number)}drop"]),
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
                yield " ".join([*words, *self._flags()])

    def _flags(self) -> Iterable[str]:
        wanted = sum(FLAG_BITS[flag] for flag in self.flags - {"data"})
        among = ALL_FLAGS if self.bare else wanted
        yield f"tcp flags & {among:#x} == {wanted:#x}"


def _side(word: str, end: End, family: int) -> str | None:
    """A match of the `s`ource or `d`estination, or None where it has no address of a family."""
    addresses = [a for a in end.addresses if (":" in a) == (family == 6)]
    if not addresses:
        return None
    name = "ip" if family == 4 else "ip6"
    port = f" tcp {word}port {end.port}" if end.port is not None else ""
    return f"{name} {word}addr {{ {', '.join(addresses)} }}{port}"


def _sizes(compare: str) -> list[str]:
    """Rules that go on to lose what has a payload of `compare` 0 bytes. nft can't subtract, so
    there is one for each length of the TCP header, after an IP header without options."""
    return [
        f"tcp doff {words} {field} {compare} {before + 4 * words} jump lose"
        for field, before in (("ip length", 20), ("ip6 length", 0))
        for words in DATA_OFFSETS
    ]


def _chain(name: str, rules: Sequence[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {rule}" for rule in rules), "  }"]


def tallied(
    history: History, t: float, host: str, counts: Mapping[str, int]
) -> Iterator[TallyEvent | TroubleEvent]:
    """What to record when a host has counted, by drop, the segments that it lost. The counter is
    right, whatever was reported."""
    for drop, lost in ((int(number), lost) for number, lost in counts.items()):
        if history.tallies.get((host, drop)) == lost:
            continue
        yield TallyEvent(t, host, drop, lost)
        reported = sum((loss.host, loss.drop) == (host, drop) for loss in history.losses)
        if reported < lost:
            text = f"{lost - reported} of {lost} lost segments were not reported"
            yield TroubleEvent(t, host, "capture", text)
