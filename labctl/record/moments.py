"""When something happened, as exactly as labctl knows."""

from __future__ import annotations

from dataclasses import field

from labctl.ground.data import dataclass

VAGUE = 0.1
"""Seconds from which on it matters that nobody knows when something happened."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When something happened, in seconds since the run began: between two times, or exactly then
    if the kernel reported it.

    `guess` is when it probably happened, by its likely cause; `seen` is the time of the look that
    showed it first. Without both, only the kernel reported it."""

    earliest: float
    latest: float
    guess: float | None = field(default=None, compare=False)
    seen: float | None = field(default=None, compare=False)

    @property
    def at(self) -> float:
        """The best single time for it, never outside of the bounds."""
        best = self.seen if self.guess is None else self.guess
        return self.latest if best is None else min(max(best, self.earliest), self.latest)

    def within(self, earliest: float, latest: float) -> Moment:
        """The same between these times."""
        return Moment(earliest, latest, self.guess, self.seen)

    def give_or_take(self, seconds: float) -> Moment:
        """The same by a clock that may be off by so many seconds."""
        return self.within(self.earliest - seconds, self.latest + seconds)

    @property
    def exact(self) -> bool:
        """Whether it is known exactly."""
        return self.earliest == self.latest

    def __str__(self) -> str:
        if self.exact:
            return f"{self.earliest:.6f}"
        digits = 3 if self.latest - self.earliest > 0.001 else 6
        return f"{self.earliest:.{digits}f}..{self.latest:.{digits}f}"
