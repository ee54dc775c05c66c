"""The lab's one clock, and how far the clocks of its machines are from it.

A machine that is asked for its time answers at some moment between question and answer. So half of
that time bounds the error, and the fastest of many answers tells most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from labctl.ground.data import dataclass
from labctl.record.events import ClockEvent

TRIPS, ASKING = 20, 2.0
"""How often to ask a machine at most, and for how many seconds."""

NANO = 9
"""Decimal places of the lab's times: clocks have nanoseconds."""
Trip = tuple[float, float, float]
"""When we asked, what a machine's clock showed, and when we had its answer."""


@dataclass(frozen=True)
class Offset:
    """A machine's clock is `ahead` of ours, in seconds, give or take `bound`."""

    ahead: float = 0.0
    bound: float = 0.0

    @property
    def nothing(self) -> bool:
        """Whether the clocks may be one and the same."""
        return abs(self.ahead) <= self.bound

    def kept_until(self, later: Offset) -> Offset:
        """The same for all times up to a later measurement. What a clock gained or lost meanwhile,
        at whatever moment, is part of the bound."""
        drift = abs(later.ahead - self.ahead)
        return replace(self, bound=max(self.bound, drift + later.bound))


def fastest(trips: Iterable[Trip]) -> Offset:
    """What the fastest of these trips tells."""
    before, theirs, after = min(trips, key=lambda trip: trip[2] - trip[0])
    return Offset(theirs - (before + after) / 2, (after - before) / 2)


class Clock:
    """The lab's clock, in seconds since the run began. It is the clock of this machine; if all
    hosts are on one other machine (the engine is elsewhere), it is that one's.

    Each host has the clock of its machine. Before `synchronize` all of them count as ours."""

    def __init__(self) -> None:
        self.origin = time.monotonic()
        self._machines: dict[str, str] = {}
        self._offsets: dict[str, Offset] = {}

    def now(self) -> float:
        """Seconds since the run began."""
        return round(time.monotonic() - self.origin, NANO)

    def of(self, host: str, t: float) -> float:
        """What this clock showed when that of a host showed `t`."""
        return round(t - self._offset(host).ahead - self.origin, NANO)

    def begin(self) -> None:
        """The run begins now."""
        self.origin = time.monotonic()

    def synchronize(self, machines: Mapping[str, str], tell: Callable[[str], float]) -> None:
        """Compares the clocks of all machines to ours, and begins the run. `machines` has the
        machine of each host; `tell` asks a host for its time.

        A single machine has no bound: no two clocks are compared in its record. If its difference
        may come from the time that asking took, it counts as nothing."""
        self._machines = dict(machines)
        if len({*machines.values()}) == 1:
            found = _measured(tell, next(iter(machines)), lambda offset: offset.nothing)
            self._offsets = dict.fromkeys(
                machines.values(), Offset() if found.nothing else Offset(found.ahead)
            )
        else:
            self._offsets = self._compared(tell)
        self.begin()

    def compare_again(self, tell: Callable[[str], float]) -> None:
        """Takes into the bounds what the clocks of several machines gained or lost since then."""
        if self._several:
            later = self._compared(tell)
            self._offsets = {m: o.kept_until(later[m]) for m, o in self._offsets.items()}

    def epochs(self, read: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """When the run began by the wall clock of each host, which its captures have: `read` has
        what both clocks of a host showed at one moment."""
        firsts = {
            machine: read[host][1] - self.of(host, read[host][0])
            for machine, host in self._firsts.items()
        }
        return {host: firsts[machine] for host, machine in self._machines.items()}

    def told(self) -> list[ClockEvent]:
        """For the record: the clocks of all hosts, if these are on several machines."""
        return [
            ClockEvent(self.now(), host, machine, offset.ahead, offset.bound)
            for host, machine in self._machines.items()
            if self._several and (offset := self._offsets[machine])
        ]

    @property
    def _several(self) -> bool:
        return len(self._offsets) > 1

    def _offset(self, host: str) -> Offset:
        return self._offsets.get(self._machines.get(host, ""), Offset())

    @property
    def _firsts(self) -> dict[str, str]:
        """The first host of each machine."""
        return {machine: host for host, machine in reversed(self._machines.items())}

    def _compared(self, tell: Callable[[str], float]) -> dict[str, Offset]:
        return {machine: _measured(tell, host) for machine, host in self._firsts.items()}


def _measured(
    tell: Callable[[str], float], host: str, enough: Callable[[Offset], bool] = lambda _: False
) -> Offset:
    trips: list[Trip] = []
    until = time.monotonic() + ASKING
    while not trips or (len(trips) < TRIPS and time.monotonic() < until):
        before = time.monotonic()
        trips.append((before, tell(host), time.monotonic()))
        if enough(fastest(trips[-1:])):
            break
    return fastest(trips)
