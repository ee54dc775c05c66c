"""TCP segments: from the captures of all hosts to what was sent, what arrived and what was lost.

Captures see a segment where it leaves and where it arrives; `pairing.py` puts the two together. A
segment that left and did not arrive was lost, or is still under way. A segment that no host of the
lab sent was injected.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labctl.ground.reading import MAX_RECORD, read_file
from labctl.probes.observations import MODULUS, Injection, Known, Observation, Segment
from labctl.probes.packets import read_packets
from labctl.probes.pairing import Passage, passages

FILE_HEADER = bytes.fromhex("4d3cb2a102000400000000000000000000000400") + bytes([1, 0, 0, 0])
"""pcap-savefile(5): little-endian, times in nanoseconds, Ethernet."""


class Captures:
    """The captures of a run: pcap records by host, read when somebody asks."""

    def __init__(self) -> None:
        self._unread: dict[str, bytearray] = defaultdict(bytearray)
        self._read: list[Observation] = []
        self._segments: list[Segment] | None = None
        self.late: list[int] = []
        """The numbers of those segments that were under way longer than any should be."""
        self._extra: tuple[object, ...] | None = None
        self._owners: Mapping[str, str] = {}

    @classmethod
    def load(cls, folder: Path) -> Captures:
        """The captures of a run directory. Raises OSError and UsageError."""
        found = cls()
        for path in sorted(folder.glob("*.pcap")):
            found.add(path.stem, read_file(path, MAX_RECORD)[len(FILE_HEADER) :])
        return found

    def add(self, host: str, records: bytes) -> None:
        """Takes in more of a host's capture: whole records."""
        self._unread[host] += records
        self._segments = None

    def segments(self, known: Known) -> list[Segment]:
        """See `match`. Losses and injections may only become more."""
        extra = len(known.losses), len(known.injections), known.flight, known.watched
        if self._segments is None or extra != self._extra or known.owners != self._owners:
            for host in [*self._unread]:
                self._read += read_packets(host, bytes(self._unread.pop(host)))
            self._segments = found = match(self._read, known)
            self._extra, self._owners = extra, dict(known.owners)
            self.late = [n for n, segment in enumerate(found) if segment.flight > known.flight]
        return self._segments


def match(observations: Iterable[Observation], known: Known) -> list[Segment]:
    """Segments in order of time; see `pairing.passages`."""
    found = list(_mark(passages(observations, known), known))
    for number in _overtaken(found):
        found[number] = replace(found[number], overtaken=True)
    return found


@dataclass(slots=True)
class _Flow:
    """What one end of a connection has sent so far."""

    first: int
    following: int
    last_ack: tuple[int, int] | None = None
    peer_window: int | None = None
    acked: int | None = None


def _mark(found: Iterable[Passage], lab: Known) -> Iterator[Segment]:
    """Segments with relative numbers and what is special about each (like Wireshark's analysis:
    retransmission, duplicate ACK, zero window, zero window probe, keepalive).

    A retransmission has numbers that the same host has sent before. Segments that nobody in the lab
    sent do not count there, and neither do RSTs (RFC 9293, section 3.10.7.4)."""
    flows: dict[tuple[str, str, str], _Flow] = {}
    for passage in found:
        seen = passage.seen
        if passage.injection:
            yield _forged(passage, passage.injection)
            continue
        unseen = _unseen(passage, lab)
        sent = passage.sent is not None or unseen
        there = (seen.scope, seen.source, seen.target)
        back = (seen.scope, seen.target, seen.source)
        known, theirs = flows.get(there), flows.get(back)
        flow, other = known, theirs
        if flow is None or ("SYN" in seen.flags and seen.seq != flow.first):
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
            elif theirs is not None and flow is not known:
                del flows[back]
        behind = _before(seen.seq, flow.following)
        just_behind = behind and (flow.following - seen.seq) % MODULUS == 1
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
            retransmitted=bool(seen.span) and behind and not (probe or keepalive) and sent,
            duplicate_ack=bare and position == flow.last_ack and not keepalive,
            zero_window=seen.window == 0 and "RST" not in seen.flags and "SYN" not in seen.flags,
            probe=probe,
            dropped=passage.drop,
            base=(flow.first, other.first if other else 0),
            timestamps=seen.timestamps,
            scope=seen.scope,
            unseen=unseen,
            keepalive=keepalive,
        )
        if not sent:
            continue
        end = (seen.seq + seen.span) % MODULUS
        if "RST" not in seen.flags and _before(flow.following, end):
            flow.following = end
        flow.last_ack = position if bare else None
        if other is not None and "ACK" in seen.flags:
            other.peer_window, other.acked = seen.window, seen.ack


def _overtaken(found: Sequence[Segment]) -> Iterator[int]:
    """The numbers of those segments that arrived after what their end had sent later."""
    latest: dict[tuple[str, str, str], float] = {}
    for number in sorted(
        (n for n, s in enumerate(found) if s.t is not None and s.arrived is not None),
        key=lambda n: found[n].arrived or 0.0,
    ):
        segment = found[number]
        way = segment.scope, segment.source, segment.target
        before, sent = latest.get(way, -1.0), segment.t or 0.0
        if sent < before and (segment.length or {"SYN", "FIN"} & {*segment.flags}):
            yield number
        latest[way] = max(before, sent)


def _unseen(passage: Passage, known: Known) -> bool:
    """Whether it may have left, or arrived, where nobody captured it then."""
    if passage.sent is None:
        return not known.watches(passage.sender, (passage.arrived or 0.0) - known.flight)
    lone = passage.arrived is None and passage.drop is None
    return lone and not known.watches(passage.receiver, passage.sent + known.flight)


def _forged(passage: Passage, injection: Injection) -> Segment:
    """An injected segment: it does not count as sent by its connection's ends."""
    seen = passage.seen
    return Segment(
        t=passage.sent,
        arrived=passage.arrived,
        sender=passage.sender,
        receiver=passage.receiver,
        source=seen.source,
        target=seen.target,
        seq=injection.seq,
        ack=injection.ack,
        flags=seen.flags,
        length=seen.length,
        window=seen.window,
        dropped=passage.drop,
        crafted=True,
        timestamps=seen.timestamps,
        scope=seen.scope,
    )


def _closes(seen: Observation) -> bool:
    return "FIN" in seen.flags or "SYN" in seen.flags or "RST" in seen.flags


def _before(a: int, b: int) -> bool:
    """Whether sequence number a is before b (RFC 9293, section 3.4)."""
    return 0 < (b - a) % MODULUS < MODULUS // 2
