"""Pairs of moments: which of some came of which."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 40_000
"""Cells of a table of equal segments: larger tables are paired simply in their order."""


def align(
    before: Sequence[float], after: Sequence[float], early: float, late: float
) -> list[tuple[int, int]]:
    """Pairs of two sorted lists of moments, in their order, in which the second is up to `early`
    seconds before the first and up to `late` after it: as many pairs as possible, with the least
    sum of squared differences."""

    def fits(i: int, j: int) -> bool:
        return -early <= after[j] - before[i] <= late

    if len(before) == len(after) and all(fits(i, i) for i in range(len(before))):
        return [(i, i) for i in range(len(before))]
    if len(before) * len(after) > MOST:
        return _in_turn(before, after, early, late)
    # The best of each pair of beginnings: how many pairs it has, and minus their cost.
    best = [[(0, 0.0)] * (len(after) + 1) for _ in range(len(before) + 1)]
    for i in range(len(before)):
        for j in range(len(after)):
            best[i + 1][j + 1] = max(best[i][j + 1], best[i + 1][j])
            if fits(i, j):
                count, cost = best[i][j]
                paired = count + 1, cost - (after[j] - before[i]) ** 2
                best[i + 1][j + 1] = max(best[i + 1][j + 1], paired)
    found = []
    i, j = len(before), len(after)
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            found.append((i, j))
    return found[::-1]


def _in_turn(
    before: Sequence[float], after: Sequence[float], early: float, late: float
) -> list[tuple[int, int]]:
    """To each of the second list, from the last one on, the latest of the first that is left."""
    found = []
    i = len(before) - 1
    for j in reversed(range(len(after))):
        while i >= 0 and after[j] - before[i] < -early:
            i -= 1
        if i >= 0 and after[j] - before[i] <= late:
            found.append((i, j))
            i -= 1
    return found[::-1]
