"""The lines of the benchmark's table."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A line of the table: samples in seconds, in pairs, and how a pair is compared."""

    what: str
    ours: Sequence[float]
    theirs: Sequence[float]
    goal: float | None  # None: for comparison alone
    compare: Callable[[float, float], float] = operator.truediv
    unit: str = "s"

    def cells(self) -> list[str]:
        values = [self.compare(a, b) for a, b in zip(self.ours, self.theirs, strict=True)]
        value = statistics.median(values)
        form = "{:.2f}" if self.compare is operator.truediv else "{:+.2f} s"
        return [
            self.what,
            str(len(values)),
            f"{statistics.median(self.ours):.2f} {self.unit}",
            f"{statistics.median(self.theirs):.2f} {self.unit}",
            form.format(value),
            f"{min(values):.2f}..{max(values):.2f}",
            *self.reached(value),
        ]

    def reached(self, value: float) -> tuple[str, str]:
        if self.goal is None:
            return "", ""
        met = value <= self.goal
        return f"≤ {self.goal:.2f}", "[green]met[/]" if met else "[red]missed[/]"


Rows = Iterator[Row]
