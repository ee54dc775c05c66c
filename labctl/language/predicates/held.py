"""Since when a predicate holds: this judges waits, while a lab is up and afterwards."""

from __future__ import annotations

from collections import deque

from labctl.language.predicates import Predicate
from labctl.record.events import InjectEvent, LossEvent
from labctl.record.history import History
from labctl.record.log import OTHERS
from labctl.record.moments import Moment


def held_at(predicate: Predicate, past: History, start: float, begun: float = 0.0) -> Moment | None:
    """When, from `start` on, a predicate came to hold for the last time, if it holds at the end or
    did at some time after `begun`. So a wait that comes late still measures what happened."""
    history = History(captures=past.captures, again=past.events)
    history.losses, history.injected = past.losses, past.injected  # captures are known to the end
    turns = deque(predicate.turns(past))
    since: Moment | None = None
    found: Moment | None = None

    def judge(at: float, earliest: float) -> None:
        nonlocal since, found
        if not predicate.holds(history):
            since = None
            return
        since = since or Moment(min(max(start, earliest), max(start, at)), max(start, at))
        looks = [history.sockets[host].t for host in predicate.hosts if host in history.sockets]
        if min([at, *looks]) >= begun:  # and not only by earlier looks
            found = since

    started = False
    # There are thousands of transitions, and each would have every look parsed again.
    for event in past.events if predicate.traced else past.events.of(*OTHERS):
        while turns and turns[0] < event.t:
            turn = turns.popleft()
            if turn >= start:
                history.reach(turn)
                judge(turn, turn)
                started = True
        if isinstance(event, LossEvent | InjectEvent):
            continue
        history.add(event)
        if event.t < start and not started:
            continue
        if started and not predicate.heeds(event):
            continue
        started = True
        judge(event.t, predicate.earliest(event))
    return since or found
