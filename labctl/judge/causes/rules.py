"""Causes: why connections, binds and listeners came to what they did. Pure: rules over a history.

A rule that finds nothing for certain says nothing, or says that it is not certain: a wrong cause is
worse than none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from labctl.judge.causes import (
    binds,
    cuts,
    listeners,
    nats,
    ports,
    refusals,
    resets,
    silence,
    states,
    stops,
    windows,
)
from labctl.judge.causes.cause import Cause, Scene
from labctl.language.scenario import Scenario
from labctl.record.history import History
from labctl.record.moved import extremes

RULES: tuple[Callable[[Scene], Iterator[Cause]], ...] = (
    binds.causes,
    ports.causes,
    listeners.causes,
    resets.causes,
    refusals.causes,
    nats.causes,
    windows.causes,
    cuts.causes,
    silence.causes,
    stops.causes,
    states.causes,
)
"""One module a family, in the order in which people ask."""


MOST = 20
"""Causes of one kind at one host, at most: the first are enough."""


def causes(history: History, scenario: Scenario | None = None) -> list[Cause]:
    """All that is known, those of one rule together, and at most MOST of one kind at one host. The
    scenario tells what sysctls were set, and the users of processes. With clocks of several
    machines only that is known which is so wherever these may be."""
    found = _by_these_clocks(history, scenario)
    for other in extremes(history):
        if found:
            also = {*map(_finding, _by_these_clocks(other, scenario))}
            found = [cause for cause in found if _finding(cause) in also]
    return found


def _finding(cause: Cause) -> tuple[str, str, str | None, bool]:
    """What it finds, without moments and durations."""
    return cause.id, cause.host, cause.connection, cause.certain


def _by_these_clocks(history: History, scenario: Scenario | None) -> list[Cause]:
    scene = Scene(history, scenario)
    told: Counter[tuple[str, str]] = Counter()
    found = []
    every = [cause for rule in RULES for cause in rule(scene)]
    sure = {(c.id, c.host, c.connection) for c in every if c.certain and c.connection}
    for cause in every:
        if not cause.certain and (cause.id, cause.host, cause.connection) in sure:
            continue  # a call tells what its segments make likely
        told[cause.host, cause.id] += 1
        if told[cause.host, cause.id] <= MOST:
            found.append(cause)
    return found
