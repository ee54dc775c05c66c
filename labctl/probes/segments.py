"""TCP segments: from the captures of all hosts to what was sent, what arrived and what was lost.

A capture sees a segment where it leaves and where it arrives; the two are paired by addresses,
numbers and flags, in order. What left and never arrived was lost (or, at the very end, is in
flight). A segment that no host of the lab sent was injected.

What a host loses on purpose it reports itself: captures see it come in before it is lost, and do
not see it at all where it is lost on its way out.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

FLAG_BITS = {"SYN": 0x02, "FIN": 0x01, "RST": 0x04, "PSH": 0x08, "ACK": 0x10, "URG": 0x20}
"""RFC 9293, section 3.1, in the order in which they are told."""
MODULUS = 1 << 32
FILE_HEADER = bytes.fromhex("4d3cb2a102000400000000000000000000000400") + bytes([1, 0, 0, 0])
"""pcap-savefile(5): little-endian, times in nanoseconds, Ethernet."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A segment as one host's capture has it. `at` is CLOCK_REALTIME in seconds; `mark` are the
    packet's IPv4 identification and TCP timestamp (RFC 7323), by which a retransmission differs
    from what it repeats; `timestamps` are TSval and TSecr, where it has them."""

    host: str
    at: float
    source: str
    target: str
    seq: int
    ack: int
    flags: tuple[str, ...]
    length: int
    window: int
    mark: tuple[int, int] = (0, 0)
    timestamps: tuple[int, int] | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others on its way."""
        return (
            *(self.source, self.target, self.seq, self.ack, self.flags, self.length, self.window),
            self.mark,
        )

    @property
    def span(self) -> int:
        """The sequence numbers that it takes: its data, and one each for SYN and FIN."""
        return self.length + ("SYN" in self.flags) + ("FIN" in self.flags)


@dataclass(frozen=True, slots=True)
class Loss:
    """A segment that a host lost, coming in or going out, by the drop of a step."""

    drop: int
    observation: Observation


@dataclass(frozen=True, slots=True)
class Injection:
    """A segment that a host was made to send, and its numbers in the connection it is meant for."""

    seq: int
    ack: int
    observation: Observation


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment, from the host that sent it to the one that it was for.

    `t` is when it left and `arrived` when it came, in seconds of the run; either is None where no
    capture saw it. `seq` and `ack` count from the connection's first ones, as Wireshark shows them.
    `base` is what they count from. `dropped` is the index of the step that lost it; what is
    `forged`, a step sent.
    """

    t: float | None
    arrived: float | None
    sender: str | None
    receiver: str | None
    source: str
    target: str
    seq: int
    ack: int
    flags: tuple[str, ...]
    length: int
    window: int
    retransmitted: bool = False
    duplicate_ack: bool = False
    zero_window: bool = False
    probe: bool = False
    dropped: int | None = None
    forged: bool = False
    base: tuple[int, int] = (0, 0)
    timestamps: tuple[int, int] | None = None

    @property
    def injected(self) -> bool:
        """Whether a step sent it, or nobody in the lab."""
        return self.forged or self.t is None

    @property
    def lost(self) -> bool:
        """Whether it left and never came."""
        return self.t is not None and self.arrived is None

    @property
    def time(self) -> float:
        """When it was first seen."""
        return self.t if self.t is not None else self.arrived or 0.0

    @property
    def summary(self) -> str:
        """`FIN ACK seq 1 ack 12 len 5`, and what is special about it."""
        words = [*self.flags, f"seq {self.seq}"]
        words += [f"ack {self.ack}"] if "ACK" in self.flags else []
        words += [f"len {self.length}"] if self.length else []
        marks = {
            "retransmitted": self.retransmitted,
            "duplicate ACK": self.duplicate_ack,
            "zero window": self.zero_window,
            "window probe": self.probe,
            "lost": self.lost,
            "injected": self.injected,
        }
        return " ".join(words + [f"[{mark}]" for mark, present in marks.items() if present])


class Captures:
    """The captures of a run: pcap records by host, read when somebody asks."""

    def __init__(self) -> None:
        self._unread: dict[str, bytearray] = defaultdict(bytearray)
        self._read: list[Observation] = []
        self._segments: list[Segment] | None = None
        self._extra: tuple[int, int] | None = None

    @classmethod
    def load(cls, folder: Path) -> Captures:
        """The captures of a run directory. Raises OSError."""
        found = cls()
        for path in sorted(folder.glob("*.pcap")):
            found.add(path.stem, path.read_bytes()[len(FILE_HEADER) :])
        return found

    def add(self, host: str, records: bytes) -> None:
        """Takes in more of a host's capture: whole records."""
        self._unread[host] += records
        self._segments = None

    def segments(
        self,
        owners: Mapping[str, str],
        origin: float,
        losses: Sequence[Loss] = (),
        injections: Sequence[Injection] = (),
    ) -> list[Segment]:
        """See `match`. Losses and injections are added to, never exchanged."""
        extra = len(losses), len(injections)
        if self._segments is None or extra != self._extra:
            from labctl.probes.packets import read_packets

            for host in [*self._unread]:
                self._read += read_packets(host, bytes(self._unread.pop(host)))
            self._segments = match(self._read, owners, origin, losses, injections)
            self._extra = extra
        return self._segments


def match(
    observations: Iterable[Observation],
    owners: Mapping[str, str],
    origin: float,
    losses: Iterable[Loss] = (),
    injections: Iterable[Injection] = (),
) -> list[Segment]:
    """Segments in order of time. `owners` tells the host of each address, `origin` is the run's
    beginning in CLOCK_REALTIME."""
    seen = list(observations)
    drops = _place(losses, seen)
    forged = _place(injections, seen)
    waiting: dict[tuple[Any, ...], deque[_Passage]] = {}  # what is under way
    found: list[_Passage] = []
    for index in sorted(range(len(seen)), key=lambda i: seen[i].at):
        each = seen[index]
        drop = drops[index].drop if index in drops else None
        sent = _owner(each.source, owners) == each.host
        at, key = each.at - origin, each.key
        if sent:
            found.append(_Passage(each, at, None, drop, forged.get(index)))
            if drop is None:
                waiting.setdefault(key, deque()).append(found[-1])
        elif like := waiting.get(key):
            passage = like.popleft()
            passage.arrived, passage.drop = None if drop is not None else at, drop
            if not like:
                del waiting[key]
        else:
            found.append(_Passage(each, None, at, drop))
    return list(_mark(found, owners))


Reported = TypeVar("Reported", Loss, Injection)


def _place(reports: Iterable[Reported], seen: list[Observation]) -> dict[int, Reported]:
    """Which observation each report is about, by its index: what the same host captured at about
    that time, and else the report itself, which joins the observations."""
    placed: dict[int, Reported] = {}
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    reports = list(reports)
    for index, each in enumerate(seen) if reports else ():
        alike[each.host, each.key].append(index)
    for report in reports:
        told = report.observation
        candidates = [i for i in alike[told.host, told.key] if i not in placed]
        if candidates:
            index = min(candidates, key=lambda i: abs(seen[i].at - told.at))
        else:
            index = len(seen)
            seen.append(told)
        placed[index] = report
    return placed


@dataclass(slots=True)
class _Passage:
    """A segment on its way: when it left and arrived, in seconds of the run, and what a step had to
    do with that."""

    seen: Observation
    sent: float | None
    arrived: float | None
    drop: int | None
    injection: Injection | None = None


@dataclass(slots=True)
class _Flow:
    """What one end of a connection has sent so far."""

    first: int
    following: int
    last_ack: tuple[int, int] | None = None
    peer_window: int | None = None


def _mark(found: Iterable[_Passage], owners: Mapping[str, str]) -> Iterator[Segment]:
    """Segments with relative numbers and what is special about each (as Wireshark's analysis:
    retransmission, duplicate ACK, zero window, zero window probe)."""
    flows: dict[tuple[str, str], _Flow] = {}
    for passage in found:
        seen = passage.seen
        if passage.injection:
            yield _forged(passage, passage.injection, owners)
            continue
        there, back = (seen.source, seen.target), (seen.target, seen.source)
        flow = flows.get(there)
        if flow is None or ("SYN" in seen.flags and seen.seq != flow.first):
            # A new connection, perhaps with the addresses of an old one.
            first = seen.seq if "SYN" in seen.flags else (seen.seq - 1) % MODULUS
            flow = flows[there] = _Flow(first, seen.seq)
            if "ACK" not in seen.flags:
                flows.pop(back, None)
        other = flows.get(back)
        if other is None and "ACK" in seen.flags and "RST" not in seen.flags:
            other = flows[back] = _Flow(seen.ack - 1, seen.ack)
        behind = _before(seen.seq, flow.following)
        just_behind = behind and (flow.following - seen.seq) % MODULUS == 1
        probe = just_behind and seen.length <= 1 and flow.peer_window == 0 and not _closes(seen)
        bare = not seen.span and seen.flags == ("ACK",)
        position = (seen.ack, seen.window)
        yield Segment(
            t=passage.sent,
            arrived=passage.arrived,
            sender=_owner(seen.source, owners),
            receiver=_owner(seen.target, owners),
            source=seen.source,
            target=seen.target,
            seq=(seen.seq - flow.first) % MODULUS,
            ack=(seen.ack - other.first) % MODULUS if other and "ACK" in seen.flags else 0,
            flags=seen.flags,
            length=seen.length,
            window=seen.window,
            retransmitted=bool(seen.span) and behind and not probe and passage.sent is not None,
            duplicate_ack=bare and position == flow.last_ack,
            zero_window=seen.window == 0 and "RST" not in seen.flags and "SYN" not in seen.flags,
            probe=probe,
            dropped=passage.drop,
            base=(flow.first, other.first if other else 0),
            timestamps=seen.timestamps,
        )
        end = (seen.seq + seen.span) % MODULUS
        if not probe and _before(flow.following, end):
            flow.following = end
        flow.last_ack = position if bare else None
        if other is not None and "ACK" in seen.flags:
            other.peer_window = seen.window


def _forged(passage: _Passage, injection: Injection, owners: Mapping[str, str]) -> Segment:
    """An injected segment: it is no part of what its connection's ends have sent."""
    seen = passage.seen
    return Segment(
        t=passage.sent,
        arrived=passage.arrived,
        sender=_owner(seen.source, owners),
        receiver=_owner(seen.target, owners),
        source=seen.source,
        target=seen.target,
        seq=injection.seq,
        ack=injection.ack,
        flags=seen.flags,
        length=seen.length,
        window=seen.window,
        dropped=passage.drop,
        forged=True,
        timestamps=seen.timestamps,
    )


def _closes(seen: Observation) -> bool:
    return "FIN" in seen.flags or "SYN" in seen.flags or "RST" in seen.flags


def _before(a: int, b: int) -> bool:
    """Whether sequence number a is before b (RFC 9293, section 3.4)."""
    return 0 < (b - a) % MODULUS < MODULUS // 2


def _owner(endpoint: str, owners: Mapping[str, str]) -> str | None:
    return owners.get(endpoint.rpartition(":")[0].strip("[]"))
