"""One segment: as a host's capture shows it, and as it went from one host to another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from labctl.ground.data import dataclass
from labctl.probes.sockets import Ends

FLAG_BITS = {"SYN": 0x02, "FIN": 0x01, "RST": 0x04, "PSH": 0x08, "ACK": 0x10, "URG": 0x20}
"""The flags of RFC 9293, section 3.1, in the order in which they are shown."""
MODULUS = 1 << 32
MARKS = (
    "retransmitted", "duplicate ACK", "zero window", "window probe", "keepalive", "out of order",
    "lost", "under way", "injected",
)  # fmt: skip
"""What may be special about a segment, in the order of its summary."""
FLIGHT = 0.25
"""Seconds that a segment may be under way if no step slows it down: far more than it takes on a
busy machine, and less than a kernel waits before it repeats one."""
ECN_FLAGS = ("ECE", "CWR", "AE")
"""Flags of TCP's header for congestion (RFC 3168; RFC 9768 for AE)."""
ECN_FIELDS = ("", "ECT1", "ECT0", "CE")
"""What the two bits in IP's header say (RFC 3168, section 5)."""
OPTIONS = {
    2: "mss", 3: "wscale", 4: "sack", 5: "sack", 8: "timestamps", 19: "md5", 29: "ao", 30: "mptcp",
    34: "fastopen", 172: "accecn", 174: "accecn",
}  # fmt: skip
"""Options of TCP by their kind (IANA, TCP Option Kind Numbers)."""
INSIDE = ("127.", "[::1]:")
"""How the endpoints begin whose segments never leave a host."""
Key = tuple[Any, ...]


@lru_cache(1 << 12)
def stays_inside(source: str, target: str) -> bool:
    """Whether segments between two ends never leave their host: several hosts may have the same
    address."""
    return source.startswith(INSIDE) or target.startswith(INSIDE) or _selfsame(source, target)


@lru_cache(1 << 12)
def _selfsame(source: str, target: str) -> bool:
    return source.rpartition(":")[0] == target.rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class Header:
    """What else the headers of a segment say: which bits of congestion are set, of ECN_FLAGS and
    ECN_FIELDS, which OPTIONS there are, None if the capture cut them off, and the shift of its
    window scale (RFC 7323). Equal ones share memory."""

    ecn: tuple[str, ...] = ()
    options: tuple[str, ...] | None = ()
    scale: int | None = None


PLAIN = Header()


class Origin(NamedTuple):
    """Where a segment's numbers begin: the sequence numbers of its sender's and its receiver's SYN,
    their first timestamps if these have some, and by how much its window is shifted, None if nobody
    knows. `guessed` are those of `seq` and `ack` that no captured SYN tells."""

    seq: int = 0
    ack: int = 0
    tsval: int | None = None
    tsecr: int | None = None
    scale: int | None = None
    guessed: tuple[str, ...] = ()


UNKNOWN = Origin()


@dataclass(frozen=True, slots=True)
class Observation:
    """A segment as one host's capture shows it. `at` is CLOCK_REALTIME in seconds; `mark` are the
    packet's IPv4 identification and TCP timestamp (RFC 7323), by which a retransmission differs
    from what it repeats; `timestamps` are TSval and TSecr, if it has them; `data` is as much of its
    data as was captured."""

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
    header: Header = PLAIN
    data: bytes = b""

    @property
    def body(self) -> tuple[Any, ...]:
        """Everything that does not change on its way, even if its addresses do."""
        return (self.seq, self.ack, self.flags, self.length, self.window, self.mark)

    @property
    def scope(self) -> str:
        """The host within which its addresses are valid; empty if that is the whole lab."""
        return self.host if stays_inside(self.source, self.target) else ""

    @property
    def selfsame(self) -> bool:
        """Whether it is from an address to itself."""
        return _selfsame(self.source, self.target)

    @property
    def key(self) -> Key:
        """What distinguishes it from others on its way."""
        return (self.scope, self.source, self.target, *self.body)

    @property
    def span(self) -> int:
        """How many sequence numbers it takes: its data, and one each for SYN and FIN."""
        return self.length + ("SYN" in self.flags) + ("FIN" in self.flags)


@dataclass(frozen=True, slots=True)
class Loss:
    """A segment that a host lost, coming in or going out, by the drop of a step."""

    drop: int
    observation: Observation


@dataclass(frozen=True, slots=True)
class Injection:
    """A segment that a step made a host send, and its numbers in its connection."""

    seq: int
    ack: int
    observation: Observation


@dataclass(frozen=True)
class Known:
    """What is known of a lab beside its captures: the host of each address, when the run began
    (CLOCK_REALTIME, in seconds), the segments that steps lost and injected, and how many seconds a
    segment may be under way at most. `watched` says from when to when each host was captured, if
    not all were all the time. `apart` is how far clocks of two hosts may be apart, in seconds."""

    owners: Mapping[str, str]
    origin: float
    losses: Sequence[Loss] = ()
    injections: Sequence[Injection] = ()
    flight: float = FLIGHT
    watched: Mapping[str, tuple[float, float]] | None = None
    apart: float = 0.0
    named: bool = False

    def watches(self, host: str | None, begin: float, end: float) -> bool:
        """Whether a host was captured all that time."""
        if self.watched is None:
            return True
        since, until = self.watched.get(host or "", (math.inf, -math.inf))
        return since <= begin and end <= until

    def about(self, chosen: Callable[[Ends], bool]) -> Known:
        """The same, with no more than what concerns the `chosen` connections."""

        def concerns(report: Loss | Injection) -> bool:
            return chosen((report.observation.source, report.observation.target))

        return replace(
            self,
            losses=[loss for loss in self.losses if concerns(loss)],
            injections=[injection for injection in self.injections if concerns(injection)],
        )


@dataclass(frozen=True, slots=True)
class Hop:
    """A host that forwards a segment: when it came there, and when it left again, if it did."""

    host: str
    came: float
    left: float | None


@dataclass(frozen=True, slots=True)
class Way:
    """How a segment went on through other hosts, maybe under other addresses, `names`: where it was
    to come to in the end, when it arrived there, and which step lost it on its way."""

    hops: tuple[Hop, ...]
    names: tuple[Ends, ...]
    receiver: str | None
    arrived: float | None
    dropped: int | None


def first_seen(sent: float | None, arrived: float | None) -> float:
    """When a segment was first seen. By clocks of two machines it may seem to arrive before it
    left, and so after its answer: what arrived in time keeps them in order."""
    return min((t for t in (sent, arrived) if t is not None), default=0.0)


class Segment(NamedTuple):
    """One segment, from its sender to its receiver.

    `t` is when it left and `arrived` when it arrived, in seconds of the run; either is None if no
    capture saw it. `seq` and `ack` count from the connection's first ones, as Wireshark shows them;
    `origin` has those. `dropped` is the index of the step that lost it. `crafted`: a step sent it.
    `pending`: it may still arrive. `unseen`: one of its ends was not captured then, so nobody knows
    when it left, or whether it arrived. `overtaken`: what was sent later came first. `scope` is the
    host within which its addresses are valid, if that is not the whole lab. `data` is as much of
    its data as was captured. What a NAT passes on has other addresses: the segment is `passed_on`,
    and another one `follows` it; the `way` of the first leads to the end.
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
    crafted: bool = False
    timestamps: tuple[int, int] | None = None
    pending: bool = False
    scope: str = ""
    unseen: bool = False
    keepalive: bool = False
    overtaken: bool = False
    header: Header = PLAIN
    origin: Origin = UNKNOWN
    data: bytes = b""
    follows: bool = False
    passed_on: bool = False
    way: Way | None = None

    def only_through(self, host: str) -> bool:
        """Whether a host that sent it, or got it, is a NAT that did so for others."""
        return (self.follows and self.sender == host) or (self.passed_on and self.receiver == host)

    @property
    def whole(self) -> Segment:
        """The segment from end to end, also if a NAT lies between."""
        way = self.way
        if way is None:
            return self
        return self._replace(receiver=way.receiver, arrived=way.arrived, dropped=way.dropped)

    def legs(self, onward: str | None) -> Iterator[Segment]:
        """A whole segment from each host that has it to the next one; `onward` is the host that
        the last one was to pass it on to."""
        sender, sent = self.sender, self.t
        for hop in self.way.hops if self.way else ():
            yield self._replace(t=sent, sender=sender, receiver=hop.host, arrived=hop.came,
                                dropped=None, pending=False)  # fmt: skip
            sender, sent = hop.host, hop.came if hop.left is None else hop.left
        yield self._replace(t=sent, sender=sender, receiver=onward)

    @property
    def base(self) -> tuple[int, int]:
        """The numbers of the SYNs of its sender and its receiver."""
        return self.origin.seq, self.origin.ack

    @property
    def injected(self) -> bool:
        """Whether a step sent it, or nobody in the lab."""
        return self.crafted or (self.t is None and not self.unseen)

    @property
    def lost(self) -> bool:
        """Whether it left and never arrived."""
        return self.t is not None and self.arrived is None and not self.pending and not self.unseen

    @property
    def flight(self) -> float:
        """How many seconds it was under way, if it arrived."""
        return 0.0 if self.t is None or self.arrived is None else self.arrived - self.t

    @property
    def inside(self) -> bool:
        """Whether it stayed inside its host."""
        return self.sender is not None and self.sender == self.receiver

    @property
    def time(self) -> float:
        """When it was first seen."""
        return first_seen(self.t, self.arrived)

    @property
    def numbers(self) -> str:
        """`seq 1 ack 12 len 5`."""
        words = [f"seq {self.seq}"]
        words += [f"ack {self.ack}"] if "ACK" in self.flags else []
        words += [f"len {self.length}"] if self.length else []
        return " ".join(words)

    @property
    def summary(self) -> str:
        """`FIN ACK seq 1 ack 12 len 5`, and anything special about it."""
        return " ".join([*self.flags, self.numbers, *(f"[{mark}]" for mark in self.marks)])

    @property
    def marks(self) -> tuple[str, ...]:
        """Those of MARKS that it has."""
        has = (
            self.retransmitted, self.duplicate_ack, self.zero_window, self.probe, self.keepalive,
            self.overtaken, self.lost, self.pending, self.injected,
        )  # fmt: skip
        return tuple(mark for mark, present in zip(MARKS, has, strict=True) if present)


def begins(segment: Segment) -> bool:
    """Whether it asks for a connection."""
    return "SYN" in segment.flags and "ACK" not in segment.flags


def is_another(syn: Segment, before: Segment) -> bool:
    """Whether a SYN asks for another connection than that of which its sender had sent something
    before: it has a number of its own."""
    same = before.source == syn.source and not before.crafted and not syn.crafted
    return same and begins(syn) and before.base[0] != syn.base[0]


def connections(found: Iterable[Segment]) -> tuple[Ends, ...]:
    """The connections of some segments, each once, in the direction of its first segment."""
    return tuple(dict.fromkeys((segment.source, segment.target) for segment in found))
