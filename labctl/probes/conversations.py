"""Connections by their captured segments: the numbers that the next segment of one would have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from labctl.probes.observations import MODULUS, Segment


@dataclass
class Direction:
    """What one end has sent so far. Numbers are the wire's own; `following` is what it would send
    next, `window` and `timestamps` (TSval and TSecr, RFC 7323) are its latest."""

    first: int
    following: int
    window: int = 0
    timestamps: tuple[int, int] | None = None


@dataclass
class Conversation:
    """One connection: what each of its ends has sent, by address. A SYN that repeats no other
    begins a new connection between the same addresses and ports."""

    ends: tuple[str, str]
    sent: dict[str, Direction] = field(default_factory=dict)


def conversations(segments: Iterable[Segment]) -> list[Conversation]:
    """All connections, in order of their first segments. Injected segments belong to none."""
    found: list[Conversation] = []
    latest: dict[frozenset[str], Conversation] = {}
    for segment in segments:
        if segment.injected:
            continue
        ends = segment.source, segment.target
        known = latest.get(frozenset(ends))
        mine = known.sent.get(segment.source) if known else None
        opens = "SYN" in segment.flags and "ACK" not in segment.flags
        if known is None or (opens and (mine is None or mine.first != segment.origin.seq)):
            known = latest[frozenset(ends)] = Conversation(ends)
            found.append(known)
        _follow(known.sent, segment)
    return found


def _follow(sent: dict[str, Direction], segment: Segment) -> None:
    first = segment.origin.seq
    mine = sent.setdefault(segment.source, Direction(first, first))
    span = segment.length + ("SYN" in segment.flags) + ("FIN" in segment.flags)
    end = (segment.seq + span) % MODULUS
    if 0 < (end - (mine.following - first)) % MODULUS < MODULUS // 2:
        mine.following = (first + end) % MODULUS
    if "RST" not in segment.flags:
        mine.window = segment.window
        mine.timestamps = segment.timestamps or mine.timestamps
