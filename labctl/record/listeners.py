"""Each listener of a host, by the tracepoint; without it by looks, calls and ends of processes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence

from labctl.ground.data import dataclass
from labctl.probes.sockets import Ends, State
from labctl.probes.traffic import Chosen
from labctl.record.ends import ends_of
from labctl.record.events import CallEvent, ProcessEvent
from labctl.record.history import History
from labctl.record.looks import SAMPLING, Looks, Sighting
from labctl.record.moments import Moment
from labctl.record.timelines import Span, Timeline
from labctl.record.traced import traced_beside


def listeners(history: History, host: str, chosen: Chosen | None = None) -> list[Timeline]:
    """Every listener of a host, in order of appearance. Several on one port and address count as
    one, which lasts as long as any of them. What is `chosen` has all listeners; a caller who asks
    for timelines too gives the same."""
    lives: dict[Ends, list[tuple[float, float]]] = defaultdict(list)
    for life in traced_beside(history, host, chosen).listeners:
        begin = life[0].t if life[0].new == State.LISTEN else 0.0
        lives[ends_of(life[0])].append((begin, life[-1].t if life.over else math.inf))
    looks = Looks(history, host, lambda ends: not ends[1])
    causes = _Causes(history, host)
    found: list[Timeline] = []
    for ends in dict.fromkeys([*lives, *looks.listening]):
        if ends in lives:
            spans = list(_told(lives[ends]))
        else:
            spans = list(_seen(looks.listening[ends], looks, causes))
        found += [
            Timeline(*ends, number, (span,), ends in lives) for number, span in enumerate(spans, 1)
        ]
    return sorted(found, key=lambda timeline: timeline.spans[0].begin.at)


def _told(lives: Sequence[tuple[float, float]]) -> Iterator[Span]:
    ordered = sorted(lives)
    while ordered:
        begin, end = ordered.pop(0)
        while ordered and ordered[0][0] <= end:
            end = max(end, ordered.pop(0)[1])
        yield Span(
            State.LISTEN, Moment(begin, begin), None if end == math.inf else Moment(end, end)
        )


@dataclass
class _Run:
    """The looks with these numbers showed a listener, as sockets with these inodes."""

    first: int
    last: int
    inodes: set[int]

    def goes_on(self, later: _Run) -> bool:
        """Whether `later` is the same listener, seen again."""
        same = not self.inodes or not later.inodes or self.inodes & later.inodes
        return later.first <= self.last or bool(later.first == self.last + 1 and same)

    def go_on(self, later: _Run) -> None:
        """Takes in that it was seen again."""
        if later.last > self.last:
            self.last, self.inodes = later.last, later.inodes or self.inodes
        elif later.last == self.last:
            self.inodes |= later.inodes


def _runs(sightings: Sequence[Sighting]) -> Iterator[_Run]:
    run: _Run | None = None
    for each in sightings:
        there = _Run(each.look, each.last, {each.socket.inode} if each.socket.inode else set())
        if run and run.goes_on(there):
            run.go_on(there)
            continue
        if run:
            yield run
        run = there
    if run:
        yield run


def _seen(sightings: Sequence[Sighting], looks: Looks, causes: _Causes) -> Iterator[Span]:
    after = 0.0
    for run in _runs(sightings):
        begin = _noticed(run.first, looks, causes.listens, after)
        end = None
        if run.last + 1 < len(looks.times):
            end = _noticed(run.last + 1, looks, causes.ends, begin.at)
            after = end.at
        yield Span(State.LISTEN, begin, end)


def _noticed(look: int, looks: Looks, causes: Sequence[float], after: float) -> Moment:
    """When the change happened that a look is the first to show: at the first cause between the
    look before it and the look after it, and later than `after`."""
    t, limit = looks.times[look], looks.time(look + 1)
    index = bisect_right(causes, after)
    guess = causes[index] if index < len(causes) and causes[index] < limit else t
    return Moment(looks.before(look), t + SAMPLING, max(guess, after), t)


class _Causes:
    """When processes called listen(), and when they ended."""

    def __init__(self, history: History, host: str) -> None:
        events = history.events
        listens = events.of(CallEvent, host=host, name="listen", phase="done")
        self.listens = sorted(event.t for event in listens)
        self.ends = sorted(
            event.t for event in events.of(ProcessEvent)
            if event.host == host and event.phase != "start"
        )  # fmt: skip
