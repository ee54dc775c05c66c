"""Causes: why connections, binds and listeners came to what they did. Pure: rules over a history.

A rule that finds nothing for certain says nothing, or says that it is not certain: a wrong cause is
worse than none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from labctl.judge.causes import binds, listeners, lives, ports, resets, silence, stops
from labctl.judge.causes.cause import Cause, Scene
from labctl.record.history import History

RULES: tuple[Callable[[Scene], Iterator[Cause]], ...] = (
    binds.causes,
    ports.causes,
    listeners.causes,
    resets.causes,
    silence.causes,
    stops.causes,
    lives.causes,
)
"""One module a family, in the order in which people ask."""


def causes(history: History) -> list[Cause]:
    """All that is known, those of one rule together."""
    scene = Scene(history)
    return [cause for rule in RULES for cause in rule(scene)]
