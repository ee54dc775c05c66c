"""How far two clocks are apart, by what hosts sent each other.

A segment arrives after it has left. So what goes one way bounds from above how far the other clock
is ahead, and what goes back bounds it from below. Two clocks of the same day drift evenly: of all
lines between the bounds this takes the one that is farthest from them, and its error is no larger
than the distance to any other line between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from labctl.ground.data import dataclass

DRIFT = 2 * 500e-6
"""So much a clock gains or loses of another at most: NTP disciplines neither of them if it gains or
loses more than half of that (RFC 5905, MAXFREQ)."""
TELLING = 100e-6
"""The drift is told if it is known as exactly as this."""
STEPS = 100
"""Thirds to cut away: (2/3)^100 of DRIFT is nothing."""

Point = tuple[float, float]
"""When something passed by one clock, and by how much the other clock then showed more."""


@dataclass(frozen=True)
class Clock:
    """A clock beside another one, the reference. It is `offset` seconds ahead at `at`, by its own
    time, and gains `drift` seconds a second; None if the exchange was too short to tell. `bound`
    is how far any time by it may be off, in seconds: infinite if nothing ever went back. `early` is
    by how much something arrived before it had left all the same: no even clock showed all that."""

    at: float = 0.0
    offset: float = 0.0
    drift: float | None = 0.0
    bound: float = 0.0
    early: float = 0.0

    def ahead(self, t: float) -> float:
        """By how much it is ahead when it shows `t`."""
        return self.offset + (self.drift or 0.0) * (t - self.at)

    def __str__(self) -> str:
        way = "ahead" if self.offset >= 0 else "behind"
        gains = (
            "for too short a time to tell its drift" if self.drift is None
            else f"gaining {self.drift * 1e6:.1f} ppm" if self.drift >= 0
            else f"losing {-self.drift * 1e6:.1f} ppm"
        )  # fmt: skip
        known = f"give or take {self.bound:.6f} s"
        bound = "nobody knows how exactly" if self.bound == math.inf else known
        return f"{abs(self.offset):.6f} s {way}, {bound}, {gains}"


def compare(
    there: Sequence[Point], back: Sequence[Point], span: tuple[float, float] | None = None
) -> Clock:
    """The clock that shows what arrives in `there` and what leaves in `back`. Points have its own
    time, and by how much it then showed more than the other clock did at the other end of the same
    segment. It is bounded for their time, and for all of `span`, if that is given: its drift goes
    on when nothing is exchanged any more. Raises ValueError if both are empty."""
    every = [*there, *back]
    begin, end = min(t for t, _ in every), max(t for t, _ in every)
    above = _hull([(t - begin, d) for t, d in there], 1)
    below = _hull([(t - begin, d) for t, d in back], -1)
    if not above or not below:
        offset = min((d for _, d in there), default=max((d for _, d in back), default=0.0))
        return Clock(begin, offset, None, math.inf)

    def high(drift: float) -> float:
        return min(d - drift * t for t, d in above)

    def low(drift: float) -> float:
        return max(d - drift * t for t, d in below)

    def room(drift: float) -> float:
        return high(drift) - low(drift)

    best = _best(room, -DRIFT, DRIFT)
    least, most = _edge(room, best, -DRIFT), _edge(room, best, DRIFT)
    known = most - least <= TELLING
    drift = best if known else 0.0
    offset = (high(drift) + low(drift)) / 2
    bound = early = max(0.0, -room(best))
    for t in (0.0, end - begin, *(t - begin for t in span or ())):
        here = offset + drift * t
        top = _best(lambda r, t=t: high(r) + r * t, least, most)  # type: ignore[misc]
        bottom = _best(lambda r, t=t: -low(r) - r * t, least, most)  # type: ignore[misc]
        bound = max(bound, high(top) + top * t - here, here - low(bottom) - bottom * t)
    return Clock(begin, offset, drift if known else None, bound, early / 2)


def _best(of: Callable[[float], float], low: float, high: float) -> float:
    """Where a concave function is greatest."""
    for _ in range(STEPS):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if of(a) < of(b) else (low, b)
    return (low + high) / 2


def _edge(room: Callable[[float], float], inside: float, outside: float) -> float:
    """How far from `inside`, towards `outside`, there is room for a line."""
    if room(outside) >= 0:
        return outside
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if room(middle) >= 0 else (inside, middle)
    return inside


def _hull(points: Sequence[Point], side: int) -> list[Point]:
    """Those of the points that bound a line from above (1) or from below (-1)."""
    found: list[Point] = []
    for t, d in sorted(points, key=lambda p: (p[0], side * p[1])):
        while (
            len(found) > 1
            and side
            * (
                (found[-1][0] - found[-2][0]) * (d - found[-2][1])
                - (found[-1][1] - found[-2][1]) * (t - found[-2][0])
            )
            <= 0
        ):
            found.pop()
        found.append((t, d))
    return found
