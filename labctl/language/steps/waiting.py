"""Waiting for a predicate: by when a thing happened, and not by when this program came to hear of
it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from labctl.lab.lab import SETTLING
from labctl.language.predicates import Predicate
from labctl.language.predicates.held import held_at
from labctl.language.values import Within

if TYPE_CHECKING:
    from labctl.lab.lab import Lab

COUNTER_PERIOD = 0.03


def wait(
    lab: Lab, predicate: Predicate, within: Within, since: str | None
) -> Literal["held", "timeout"]:
    """Polls until a predicate holds; the upper bound counts from a label, or from now. It is over
    only when all have been heard that can tell of the time before its end."""
    begun = lab.now()
    start = begun if since is None else lab.history.labels[since]
    deadline = start + within.high
    lab.look(predicate.hosts)
    while not _holds(lab, predicate):
        if lab.now() >= deadline:
            _hear(lab, predicate)
            held = _holds(lab, predicate) or held_at(predicate, lab.history, start, begun)
            return "held" if held else "timeout"
        if predicate.counters:
            lab.pump(min(deadline - lab.now(), COUNTER_PERIOD))
            lab.look(predicate.counters)
        elif predicate.segments:
            lab.pump(deadline - lab.now())
        else:  # one by one: what holds now may not hold any more after the next
            lab.next(deadline - lab.now())
    return "held"


def settle(lab: Lab, predicate: Predicate) -> None:
    """Looks, and gives what is still in flight SETTLING seconds to make a predicate true."""
    wait(lab, predicate, Within(0.0, SETTLING), None)


def _holds(lab: Lab, predicate: Predicate) -> bool:
    """Whether a predicate holds. Of what probes tell by and by it has to hold when all have told
    what they have by now, and what they have lost."""
    if not predicate.holds(lab.history):
        return False
    if predicate.segments or predicate.traced:
        lab.flush()
        return predicate.holds(lab.history)
    return True


def _hear(lab: Lab, predicate: Predicate) -> None:
    """Takes in all that was said, up to now, by those who can tell of a predicate."""
    if predicate.segments or predicate.traced:
        lab.flush()
    lab.look(predicate.hosts)
    lab.hear(predicate.process or ())
