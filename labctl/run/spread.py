"""Many cases over several engines: each whole on the one that is least full."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from labctl.backends import EngineAt, Progress
from labctl.backends.docker.room import Room, answers
from labctl.ground.crash import netted
from labctl.ground.errors import LabctlError, Unavailable
from labctl.judge.result import RunResult, document
from labctl.language.scenario import Scenario
from labctl.record.store import RunFolder
from labctl.run import workflow
from labctl.run.places import Place
from labctl.run.workers import CHEAP, MOST, Pace, Work


class Spread:
    """Says where each case runs, by its number, and again elsewhere if its engine was lost. A case
    whose hosts name engines has all of them."""

    def __init__(self, place: Place, rooms: Mapping[EngineAt, Room], say: Progress) -> None:
        self._place, self._rooms, self._say = place, rooms, say
        self._running: dict[int, tuple[EngineAt, ...]] = {}
        self._lost: dict[int, tuple[EngineAt, RunResult]] = {}
        """The engines of cases that run again, and what became of these there."""
        self._gone: set[EngineAt] = set()

    @classmethod
    def over(cls, place: Place, say: Progress) -> Spread:
        """Over the engines of a place, by their room. Raises Unavailable, LabError, UsageError."""
        return cls(place, {at: Room.of(at) for at in place.engines}, say)

    def demand_one_kernel(self) -> None:
        """Raises Unavailable if the engines have several."""
        kernels = {room.kernel: at.name for at, room in self._rooms.items()}
        if len(kernels) > 1:
            told = ", ".join(f"{name} has {kernel}" for kernel, name in kernels.items())
            why = f"engines of one place have one kernel, but {told}"
            raise Unavailable(why, "compare each with the others in a call of its own: --engine")

    def pace(self, cases: int, wanted: int | None) -> Pace:
        """The pace for so many cases: `wanted` at once, or as many as the engines have room for.
        This machine, too, is busy while labs come up."""
        rooms, cores = self._rooms.values(), os.cpu_count() or 1
        most = wanted or min(max(1, sum(room.free for room in rooms)), MOST)
        starting = min(sum(room.cores for room in rooms), CHEAP["netns"].starting * cores)
        return Pace(min(most, cases), starting)

    def begin(self, number: int, case: Scenario) -> Work:
        """What to do with a case that begins."""
        named = any(host.engine for host in case.spec.hosts)
        open = self._open or list(self._rooms)
        at = self._place.engines if named else (min(open, key=self._fullness),)
        self._running[number] = at
        return partial(workflow.run_in, place=replace(self._place, engines=at))

    def ended(self, number: int, found: RunResult) -> RunResult | None:
        """The result of a case that is over; None if it is to run again."""
        at, *more = self._running.pop(number)
        if number in self._lost:
            return _told(*self._lost.pop(number), found)
        if more or found.result not in ("error", "skip") or self._answers(at) or not self._open:
            return found
        self._lost[number] = at, found
        return None

    @property
    def _open(self) -> list[EngineAt]:
        return [at for at in self._rooms if at not in self._gone]

    def _fullness(self, at: EngineAt) -> float:
        ours = sum(at in engines for engines in self._running.values())
        return self._rooms[at].share(ours + 1)

    def _answers(self, at: EngineAt) -> bool:
        if at not in self._gone:
            if answers(at):
                return True
            self._gone.add(at)
            then = "its cases run again elsewhere" if self._open else "no other is left"
            self._say(f"the engine {at.name} does not answer any more: {then}")
        return False


def _told(lost: EngineAt, first: RunResult, found: RunResult) -> RunResult:
    """The result of a second run, which says so, in its folder too."""
    why = f"a second run, as the engine {lost.name} was lost; of the first there is {first.folder}"
    told = replace(found, beside=(why, *found.beside))
    with suppress(LabctlError), netted(), RunFolder(found.folder, found.text) as folder:
        folder.finish(document([told]))
    return told
