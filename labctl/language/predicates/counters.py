"""`counters: {HOST: {NAME: N}}`: by how much the kernel's counters grew, named as nstat(8) does."""

from __future__ import annotations

from labctl.language.predicates.finding import Finding, finding
from labctl.language.values import Comparison
from labctl.record.history import History


def judge_counter(host: str, counter: str, wanted: Comparison, history: History) -> Finding:
    """The finding for one counter of one host."""
    expected = f"{counter} grew by {wanted}"
    what = f"{host}: {expected}"
    growth = history.growth(host, counter)
    if growth is None:
        actual = f"this kernel has no counter {counter}"
        return Finding("unknown", what, expected, actual)
    return finding(wanted.holds(growth), what, expected, str(growth))
