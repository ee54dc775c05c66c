"""TCP segments: from the captures of all hosts to what was sent, what arrived and what was lost.

Captures see a segment where it leaves and where it arrives; `pairing.py` puts the two together. A
segment that left and did not arrive was lost, or is still under way. A segment that no host of the
lab sent was injected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path

from labctl.ground.data import dataclass
from labctl.ground.reading import MAX_RECORD, open_file
from labctl.probes.observations import (
    MODULUS,
    UNKNOWN,
    Injection,
    Known,
    Observation,
    Origin,
    Segment,
)
from labctl.probes.packed import Segments
from labctl.probes.pairing import Passage, passages
from labctl.probes.traffic import Chosen, Traffic

FILE_HEADER = bytes.fromhex("4d3cb2a102000400000000000000000000000400") + bytes([1, 0, 0, 0])
"""pcap-savefile(5): little-endian, times in nanoseconds, Ethernet."""


AHEAD = 1000
"""Segments after a SYN, at most, among which the next one of its end tells what it began."""


class Captures:
    """The captures of a run, read when somebody asks."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self._whole: Matched | None = None
        self._some: Matched | None = None

    @classmethod
    def load(cls, folder: Path) -> Captures:
        """The captures of a run directory. Raises OSError and UsageError."""
        found = cls()
        for path in sorted(folder.glob("*.pcap")):
            with open_file(path, MAX_RECORD) as file:
                if path.stat().st_size > len(FILE_HEADER):
                    content = mmap(file.fileno(), 0, access=ACCESS_READ)
                    found.traffic.map(path.stem, content, len(FILE_HEADER))
        return found

    def add(self, host: str, records: bytes | memoryview) -> None:
        """Takes in more of a host's capture: whole records."""
        self.traffic.add(host, records)

    def segments(self, known: Known, chosen: Chosen | None = None) -> Matched:
        """The segments in order of time (see `pairing.passages`), or those of the connections that
        are `chosen`. Losses and injections may only become more."""
        extra = len(known.losses), len(known.injections), known.flight, known.watched
        key = self.traffic.size, extra, dict(known.owners), chosen
        found = self._some if chosen else self._whole
        if found is None or found.key != key:
            found = Matched(key, self._match(known, chosen), known.flight)
            if chosen:
                self._some = found
            else:
                self._whole = found
        return found

    def _match(self, known: Known, chosen: Chosen | None) -> Iterable[Segment]:
        traffic = self.traffic
        if traffic.forwarded(known.owners):
            if not chosen:
                return match(traffic.observations(), known)
            return [s for s in self.segments(known).segments if chosen((s.source, s.target))]
        if chosen:
            return match(traffic.observations(chosen), known.about(chosen))
        batches = traffic.batches()
        return (s for some, seen in batches for s in match(seen, known.about(some)))


class Matched:
    """Segments, in order of time, and by what they were found. `late` has the numbers of those that
    were under way longer than any should be."""

    def __init__(self, key: object, segments: Iterable[Segment], flight: float) -> None:
        self.key, self.segments, self.flight = key, Segments(segments), flight
        self.late = self.segments.late(flight)

    @cached_property
    def whole(self) -> Matched:
        """The same from end to end: what a NAT passes on is one segment."""
        if not self.segments.ways:
            return self
        whole = (segment.whole for segment in self.segments if not segment.follows)
        return Matched(self.key, whole, self.flight)


def match(observations: Iterable[Observation], known: Known) -> list[Segment]:
    """Segments in order of time; see `pairing.passages`."""
    found = list(_mark(passages(observations, known), known))
    for number in _overtaken(found):
        found[number] = found[number]._replace(overtaken=True)
    return found


LEAST = 0xFFFF
"""A window that no end's is smaller than when all is well: what begins in it fits."""


@dataclass(slots=True)
class _Flow:
    """What one end of a connection has sent so far. `syn`: its SYN was captured, which has a window
    scale and a timestamp or not; `made`: a step sent that. `forged`: what follows the last number
    that a step sent in its name and that fitted. `origin` is that of what it sends to
    `peer`, as soon as both have sent a SYN."""

    first: int
    following: int
    last_ack: tuple[int, int] | None = None
    peer_window: int | None = None
    acked: int | None = None
    syn: bool = False
    scale: int | None = None
    stamp: int | None = None
    made: bool = False
    peer: _Flow | None = None
    origin: Origin = UNKNOWN
    forged: int | None = None

    def opens(self, seen: Observation) -> None:
        """Takes in its SYN."""
        self.syn, self.scale, self.peer = True, seen.header.scale, None
        self.stamp = seen.timestamps[0] if seen.timestamps else None

    def forge(self, seen: Observation, other: _Flow | None) -> None:
        """Takes in what a step sent in its name: the other end takes that for its own, if its
        numbers fit (RFC 9293, section 3.10.7.4)."""
        due = self.following if self.forged is None else self.forged
        if "RST" in seen.flags or (seen.seq - due) % MODULUS > LEAST:
            return
        if seen.seq == due:
            self.forged = (seen.seq + seen.span) % MODULUS
        acks = other and "ACK" in seen.flags and not _before(other.following, seen.ack)
        if other and acks and (other.acked is None or not _before(seen.ack, other.acked)):
            other.peer_window, other.acked = seen.window, seen.ack


NOBODY = _Flow(0, 0)
"""An end of which nothing is known."""


def _mark(found: Sequence[Passage], lab: Known) -> Iterator[Segment]:
    """Segments with relative numbers and what is special about each (like Wireshark's analysis:
    retransmission, duplicate ACK, zero window, zero window probe, keepalive).

    A retransmission has numbers that the same host has sent before. Segments that nobody in the lab
    sent do not count there, and neither do RSTs (RFC 9293, section 3.10.7.4). An injected SYN tells
    where the numbers of an end begin that has sent none itself."""
    flows: dict[tuple[str, str, str], _Flow] = {}
    for number, passage in enumerate(found):
        seen = passage.seen
        there = (seen.scope, seen.source, seen.target)
        back = (seen.scope, seen.target, seen.source)
        known, theirs = flows.get(there), flows.get(back)
        if passage.injection:
            if "SYN" in seen.flags and _silent(known):
                known = flows[there] = _Flow(seen.seq, seen.seq, made=True)
                known.opens(seen)
            if known and passage.arrived is not None:
                known.forge(seen, theirs)
            yield _forged(passage, passage.injection, _origin(seen, known, theirs))
            continue
        unseen = _unseen(passage, lab)
        sent = passage.sent is not None or unseen
        flow, other = known, theirs
        opens = "SYN" in seen.flags
        stray = opens and sent and known is not None and _begins_nothing(found, number, known)
        opens = opens and not stray
        if flow is None or (opens and seen.seq != flow.first):
            # A new connection, perhaps with the addresses of an old one.
            first = seen.seq if "SYN" in seen.flags else (seen.seq - 1) % MODULUS
            flow = _Flow(first, seen.seq)
            other = theirs if "ACK" in seen.flags else None
        if other is None and "ACK" in seen.flags and "RST" not in seen.flags:
            other = _Flow((seen.ack - 1) % MODULUS, seen.ack)
        if sent:
            flows[there] = flow
            if other is not None:
                flows[back] = other
            elif theirs is not None and not _asking(theirs):
                del flows[back]
        if opens:
            flow.opens(seen)
        origin = _origin(seen, flow, other)
        behind = _before(seen.seq, flow.following)
        just_behind = (flow.following - seen.seq) % MODULUS == 1
        asks = just_behind and seen.length <= 1 and not _closes(seen)
        probe = asks and flow.peer_window == 0
        idle = not seen.length and flow.acked == flow.following
        keepalive = asks and not probe and idle
        bare = not seen.span and seen.flags == ("ACK",)
        position = (seen.ack, seen.window)
        yield Segment(
            t=passage.sent,
            arrived=passage.arrived,
            sender=passage.sender,
            receiver=passage.receiver,
            source=seen.source,
            target=seen.target,
            seq=(seen.seq - flow.first) % MODULUS,
            ack=(seen.ack - other.first) % MODULUS if other and "ACK" in seen.flags else 0,
            flags=seen.flags,
            length=seen.length,
            window=seen.window,
            retransmitted=bool(seen.span) and behind and not probe and sent,
            duplicate_ack=bare and position == flow.last_ack and not keepalive,
            zero_window=seen.window == 0 and "RST" not in seen.flags and "SYN" not in seen.flags,
            probe=probe,
            dropped=passage.drop,
            timestamps=seen.timestamps,
            scope=seen.scope,
            unseen=unseen,
            keepalive=keepalive,
            header=seen.header,
            origin=origin,
            data=seen.data,
            follows=passage.follows,
            passed_on=passage.passed_on,
            way=passage.way,
        )
        if not sent:
            continue
        end = (seen.seq + seen.span) % MODULUS
        if not stray and "RST" not in seen.flags and _before(flow.following, end):
            flow.following = end
        flow.last_ack = position if bare else None
        if other is not None and "ACK" in seen.flags:
            other.peer_window, other.acked = seen.window, seen.ack


def _begins_nothing(found: Sequence[Passage], number: int, flow: _Flow) -> bool:
    """Whether a SYN that has other numbers than its end's connection begins no other one: the end
    goes on in the numbers that it had. Somebody else sent it in that end's name."""
    syn = found[number].seen
    if flow.acked is None or syn.seq == flow.first:
        return False
    for passage in found[number + 1 : number + AHEAD]:
        seen = passage.seen
        if (seen.scope, seen.source, seen.target) != (syn.scope, syn.source, syn.target):
            continue
        again = "SYN" in seen.flags and seen.seq == syn.seq
        if passage.injection or "RST" in seen.flags or again:
            continue
        return seen.seq in (flow.following, (flow.following - 1) % MODULUS, flow.acked)
    return False


def _asking(flow: _Flow) -> bool:
    """Whether an end's SYN has no answer yet, so that one of the other end may cross it."""
    return flow.made or (flow.syn and flow.acked is None)


def _silent(flow: _Flow | None) -> bool:
    """Whether an end has no SYN yet, of its own or one that was answered, so that an injected one
    begins its numbers."""
    return flow is None or not flow.syn or (flow.made and flow.acked is None)


def _origin(seen: Observation, flow: _Flow | None, other: _Flow | None) -> Origin:
    """Where a segment's numbers begin. Window scales count if both SYNs have one, and never in a
    SYN (RFC 7323, section 2.2)."""
    opens = "SYN" in seen.flags
    if flow and other and flow.peer is other and not opens:
        return flow.origin
    flow, other = flow or NOBODY, other or NOBODY
    known = flow.syn and other.syn
    scale = None if other.scale is None else flow.scale
    acks = "ACK" in seen.flags and not other.syn
    origin = Origin(
        flow.first,
        other.first,
        flow.stamp,
        other.stamp,
        0 if opens else (scale or 0) if known else None,
        (*([] if flow.syn else ["seq"]), *(["ack"] if acks else [])),
    )
    if known and not opens:
        flow.peer, flow.origin = other, origin
    return origin


def _overtaken(found: Sequence[Segment]) -> Iterator[int]:
    """The numbers of those segments that arrived after what their end had sent later."""
    latest: dict[tuple[str, str, str], float] = {}
    for _, sent, number in sorted(
        (s.arrived, s.t, n)
        for n, s in enumerate(found)
        if s.t is not None and s.arrived is not None
    ):
        segment = found[number]
        way = segment.scope, segment.source, segment.target
        before = latest.get(way, -math.inf)
        if sent < before and (segment.length or {"SYN", "FIN"} & {*segment.flags}):
            yield number
        latest[way] = max(before, sent)


def _unseen(passage: Passage, known: Known) -> bool:
    """Whether it may have left, or arrived, where nobody captured it then."""
    if passage.sent is None:
        arrived = passage.arrived or 0.0
        return not known.watches(passage.sender, arrived - known.flight, arrived)
    lone = passage.arrived is None and passage.drop is None
    sent = passage.sent
    return lone and not known.watches(passage.receiver, sent, sent + known.flight)


def _forged(passage: Passage, injection: Injection, origin: Origin) -> Segment:
    """An injected segment: it does not count as sent by its connection's ends."""
    seen = passage.seen
    acked = (seen.ack - injection.ack) % MODULUS if "ACK" in seen.flags else 0
    return Segment(
        t=passage.sent,
        arrived=passage.arrived,
        sender=passage.sender,
        receiver=passage.receiver,
        source=seen.source,
        target=seen.target,
        seq=_plain(injection.seq),
        ack=_plain(injection.ack),
        flags=seen.flags,
        length=seen.length,
        window=seen.window,
        dropped=passage.drop,
        crafted=True,
        timestamps=seen.timestamps,
        scope=seen.scope,
        header=seen.header,
        origin=origin._replace(seq=(seen.seq - injection.seq) % MODULUS, ack=acked, guessed=()),
        data=seen.data,
        passed_on=passage.passed_on,
        way=passage.way,
    )


def _plain(number: int) -> int:
    """A relative number as a record has it, or what it comes to if it can't be one."""
    return number if abs(number) < MODULUS else number % MODULUS


def _closes(seen: Observation) -> bool:
    return "FIN" in seen.flags or "SYN" in seen.flags or "RST" in seen.flags


def _before(a: int, b: int) -> bool:
    """Whether sequence number a is before b (RFC 9293, section 3.4)."""
    return 0 < (b - a) % MODULUS < MODULUS // 2
