"""Waiting for a predicate: what counts is when a thing happened, and not when this program heard of
it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from labctl.lab.observing import SETTLING
from labctl.language.predicates import Predicate
from labctl.language.predicates.called import STILL
from labctl.language.predicates.held import held_at
from labctl.language.values import Within

if TYPE_CHECKING:
    from labctl.lab.observing import Observing

COUNTER_PERIOD = 0.03


def wait(
    lab: Observing, predicate: Predicate, within: Within, since: str | None
) -> Literal["held", "timeout"]:
    """Polls until a predicate holds; the upper bound counts from a label, or from now. It times out
    only after hearing every program that can report on the time before."""
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
            lab.count(predicate.counters)
        elif predicate.blocks:
            lab.pump(min(deadline - lab.now(), STILL / 4))
            lab.hear(predicate.process or ())
            lab.history.reach(lab.now())
        elif predicate.segments:
            lab.pump(deadline - lab.now())
        else:  # one by one: after the next event it may not hold any more
            lab.next(deadline - lab.now())
    return "held"


def settle(lab: Observing, predicate: Predicate) -> None:
    """Looks, and gives segments on their way SETTLING seconds to make a predicate true."""
    wait(lab, predicate, Within(0.0, SETTLING), None)


def _holds(lab: Observing, predicate: Predicate) -> bool:
    """Whether a predicate holds. Some probes report little by little: such a predicate must hold
    when all have reported what they have by now, and what they have lost."""
    if not predicate.holds(lab.history):
        return False
    if predicate.segments or predicate.traced:
        lab.flush()
        return predicate.holds(lab.history)
    return True


def _hear(lab: Observing, predicate: Predicate) -> None:
    """Takes in everything, up to now, from the programs that can report on a predicate."""
    if predicate.segments or predicate.traced:
        lab.flush()
    lab.look(predicate.hosts)
    lab.hear(predicate.process or ())
