"""A history by other clocks: what else may have been, as far as the clocks of several machines are
known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from labctl.probes.observations import Segment
from labctl.probes.packed import Segments
from labctl.probes.sockets import Ends
from labctl.probes.traffic import Chosen
from labctl.record.events import ClockEvent, Event, LabEvent, StepEvent
from labctl.record.history import History


def extremes(history: History) -> Iterator[History]:
    """The same history by clocks that are as far off as they may be: each machine's beside those of
    the others, and all of them beside the lab's own. None if its hosts are on one machine.

    No segment arrives before it has left. So where two machines have sent each other some, that
    tells more of their clocks than the bounds do."""
    machines = {host: clock.machine for host, clock in history.clocks.items()}
    bounds = {clock.machine: clock.bound for clock in history.clocks.values()}
    if len(bounds) < 2:
        return
    flights = _fastest(history.segments(), machines)
    least, most = min(bounds.values()), sum(sorted(bounds.values())[-2:])
    ways = [dict.fromkeys(machines, least), dict.fromkeys(machines, -least)]
    for machine in sorted(bounds):
        for way, flight in zip((1.0, -1.0), flights[machine], strict=True):
            own = [host for host, its in machines.items() if its == machine]
            ways.append(dict.fromkeys(own, way * min(most, flight)))
    yield from (_Moved(history, later) for later in ways if any(later.values()))


def _fastest(
    segments: Iterable[Segment], machines: Mapping[str, str]
) -> Mapping[str, tuple[float, float]]:
    """How long the fastest segment from each machine to another was under way, and the fastest to
    it."""
    found = dict.fromkeys(machines.values(), (math.inf, math.inf))
    for segment in segments:
        here, there = (machines.get(h or "") for h in (segment.sender, segment.receiver))
        if here and there and here != there and segment.t is not None and segment.arrived:
            flight = max(0.0, segment.flight)
            found[here] = min(found[here][0], flight), found[here][1]
            found[there] = found[there][0], min(found[there][1], flight)
    return found


class _Moved(History):
    """What happened at each host is so many seconds later. Captures are as they were, and shared:
    what they tell is moved."""

    def __init__(self, history: History, later: Mapping[str, float]) -> None:
        self._later = later
        moved = sorted(map(self._event, history.events), key=lambda event: event.t)
        super().__init__(sorted(moved, key=_begins), history.captures)
        self.know(moved)
        self.reach(history.now)

    def segments(self, chosen: Chosen | None = None, whole: bool = False) -> Segments:
        """See `History`."""
        return Segments(
            s._replace(t=self._at(s.t, s.sender), arrived=self._at(s.arrived, s.receiver))
            for s in super().segments(chosen, whole)
        )

    def syns(self, host: str, ends: Ends) -> list[tuple[float, int]]:
        """See `History`."""
        return [(t + self._later.get(host, 0.0), seq) for t, seq in super().syns(host, ends)]

    def _event(self, event: Event) -> Event:
        host = getattr(event, "host", None)
        match event:
            case ClockEvent():
                return event
            case StepEvent():  # by our own clock
                return replace(event, moment=self._at(event.moment, host))
        return replace(event, t=event.t + self._later.get(host or "", 0.0))

    def _at(self, t: float | None, host: str | None) -> float | None:
        return None if t is None else t + self._later.get(host or "", 0.0)


def _begins(event: Event) -> bool:
    return not isinstance(event, LabEvent)
