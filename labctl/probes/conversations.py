"""Connections by their captured segments: the numbers that the next segment of one would have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field

from labctl.ground.data import dataclass
from labctl.probes.observations import MODULUS, Segment

START = 1_000_000
"""The first number of an end that has sent nothing, if nothing else tells it."""
WINDOW = 65535


@dataclass
class Direction:
    """What one end has sent so far. Numbers are the wire's own; `following` is what it would send
    next, `window` and `timestamps` (TSval and TSecr, RFC 7323) are its latest, `stamp` is its first
    TSval. `acked` are the other's first number and what it has acknowledged of that."""

    first: int
    following: int
    window: int = 0
    timestamps: tuple[int, int] | None = None
    stamp: int | None = None
    acked: tuple[int, int] | None = None
    last: Segment | None = None


@dataclass
class Conversation:
    """One connection: what each of its ends has sent, by address, and what steps have sent in the
    name of an end that is silent. A SYN that repeats no other begins a new connection between the
    same addresses and ports."""

    ends: tuple[str, str]
    sent: dict[str, Direction] = field(default_factory=dict)
    made: dict[str, Direction] = field(default_factory=dict)

    def other(self, end: str) -> str:
        """The other end."""
        return self.ends[0] if end == self.ends[1] else self.ends[1]

    def of(self, end: str) -> Direction:
        """What an end has sent; of one that has sent nothing, what the other has acknowledged."""
        found = self.sent.get(end) or self.made.get(end)
        theirs = self.sent.get(self.other(end))
        if found is None and theirs and theirs.acked:
            found = Direction(*theirs.acked, window=WINDOW)
        return found or Direction(START, START, WINDOW)


def conversations(segments: Iterable[Segment]) -> list[Conversation]:
    """All connections, in order of their first segments. What a step sent into one changes nothing
    of it, unless it speaks for an end that is silent but for RSTs. Then the other's SYN ACK begins
    another one, if its number is another."""
    found: list[Conversation] = []
    latest: dict[frozenset[str], Conversation] = {}
    for segment in segments:
        if segment.injected and not segment.crafted:
            continue
        ends = segment.source, segment.target
        known = latest.get(frozenset(ends))
        mine = known.sent.get(segment.source) if known else None
        opens = "SYN" in segment.flags and not segment.crafted
        if known and "ACK" in segment.flags:  # it answers a SYN that a step sent
            opens &= mine is not None and segment.target not in known.sent
        if known is None or (opens and (mine is None or mine.first != segment.origin.seq)):
            known = latest[frozenset(ends)] = Conversation(ends)
            found.append(known)
        if segment.crafted:
            if segment.source not in known.sent:
                _follow(known.made, segment)
        elif "RST" not in segment.flags or segment.source not in known.made:
            _follow(known.sent, segment)
    return found


def _follow(sent: dict[str, Direction], segment: Segment) -> None:
    origin, resets = segment.origin, "RST" in segment.flags
    if resets and (mine := sent.get(segment.source)):
        mine.last = segment  # and nothing else: its number may be anything
        return
    mine = sent.setdefault(segment.source, Direction(origin.seq, origin.seq))
    first = mine.first
    span = segment.length + ("SYN" in segment.flags) + ("FIN" in segment.flags)
    end = (segment.seq + span) % MODULUS
    if 0 < (end - (mine.following - first)) % MODULUS < MODULUS // 2:
        mine.following = (first + end) % MODULUS
    mine.last = segment
    if resets:
        return
    mine.window = segment.window
    mine.timestamps = segment.timestamps or mine.timestamps
    mine.stamp = origin.tsval
    if "ACK" in segment.flags:
        mine.acked = origin.ack, (origin.ack + segment.ack) % MODULUS
