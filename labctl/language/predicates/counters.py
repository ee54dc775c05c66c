"""`counters: {HOST: {NAME: N}}`: how much the kernel's counters grew, by their nstat(8) names."""

from __future__ import annotations

from labctl.language.facts import Facts, Range
from labctl.language.predicates.finding import Claimed, Finding, decided
from labctl.language.values import Comparison
from labctl.record.history import History


def judge_counter(host: str, counter: str, wanted: Comparison, history: History) -> Finding:
    """The finding for one counter of one host."""
    claimed = Claimed(host, f"{counter} grew by {wanted}", (host,), Facts(count=wanted.bounds))
    growth = history.growth(host, counter)
    if growth is None:
        actual = f"this kernel has no counter {counter}"
        if history.imported:
            actual = "a capture has no counters"
        return Finding("unknown", claimed, actual)
    measured = Facts(count=Range(growth, growth))
    return decided(wanted.holds(growth), claimed, str(growth), measured)
