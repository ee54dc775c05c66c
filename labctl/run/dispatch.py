"""Where the cases of a command run: one after the other, side by side, or on another kernel."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from labctl.backends import EngineAt, Progress, backend_class
from labctl.ground.errors import LabError, Unavailable, UsageError
from labctl.ground.invoked import command
from labctl.ground.resources import default_folder
from labctl.judge.result import RunResult, unperformed
from labctl.lab.lab import Lab
from labctl.language.scenario import Scenario
from labctl.language.values import unknown
from labctl.run import workers, workflow
from labctl.run.orders import Orders, one_by_one
from labctl.run.places import Place
from labctl.run.runner import Watcher
from labctl.run.workers import Task, Work

if TYPE_CHECKING:
    from labctl.run.spread import Spread


def run(cases: list[Scenario], place: Place, orders: Orders) -> list[RunResult]:
    """Runs cases at a place. Raises UsageError, LabError and Interrupted."""
    _check_engines(cases, place)
    if not place.kernel:
        return _run_here(cases, place, orders)
    if orders.keep:
        raise UsageError("--kernel has no lab to keep: the guest ends with the run")
    from labctl.run.guests.runs import located, run_all

    place = located(place)
    _sweep(place, orders.display.say)
    return run_all(cases, place, orders)


def _check_engines(cases: list[Scenario], place: Place) -> None:
    """Raises UsageError for a host of an engine that is not there, if there are several."""
    names = [at.name for at in place.engines]
    for case in cases if len(names) > 1 else ():
        for host in case.spec.hosts:
            if host.engine is not None and host.engine not in names:
                raise UsageError(
                    f"{case.label}: host {host.name}: {unknown('engine', host.engine, names)}",
                    f"--engine {host.engine}=WHERE",
                )


def _run_here(cases: list[Scenario], place: Place, orders: Orders) -> list[RunResult]:
    """Runs cases on this machine's kernel: one after the other, or several at once. If several need
    an engine and there is none, each has that as its result."""
    if orders.keep and (orders.jobs or 1) > 1:
        raise UsageError(
            f"--keep keeps one lab at a time, so it can't go with --jobs {orders.jobs}"
        )
    _sweep(place, orders.display.say)
    try:
        spread = _spread(place, orders, len(cases))
    except LabError as exc:
        if len(cases) == 1:
            raise
        result = "skip" if isinstance(exc, Unavailable) else "error"
        folder = orders.out or default_folder()
        return [unperformed(case, result, str(exc), place.backend, folder) for case in cases]
    work, wanted = partial(workflow.run_in, place=place), 1 if orders.keep else orders.jobs
    pace = (spread.pace if spread else partial(workers.pace, place.backend))(len(cases), wanted)
    alone = pace.at_once == 1 and not (spread and len(place.engines) > 1)
    if orders.keep or alone:
        begin = partial(spread.begin, 0) if spread else lambda _: work
        return one_by_one(cases, lambda case: _run_one(case, begin(case), orders))
    backend_class(place.backend).share()
    with orders.display.cases(cases) as board:
        task = Task(work, place.backend, lambda case: workflow.new_run(case, orders.out), spread)
        results = workers.run_all(cases, task, pace, board)
    _sweep(place, orders.display.say)
    return results


def _spread(place: Place, orders: Orders, cases: int) -> Spread | None:
    """Has the images that several cases need, and finds the engines' room if each is on one of
    them. Raises LabError."""
    say = orders.display.say
    if place.backend == "docker" and cases > 1:
        from labctl.backends.docker.backend import build_images

        for at in place.engines or (EngineAt(),):  # only once: a registry may be slow
            build_images(place.system, say, at.where)
    if not place.engines or (cases == 1 and not orders.whole):
        return None
    from labctl.run.spread import Spread

    spread = Spread.over(place, say)
    if orders.whole:
        spread.demand_one_kernel()
    return spread


def _run_one(case: Scenario, work: Work, orders: Orders) -> RunResult:
    say = orders.display.say
    with orders.display.case(case) as shown:
        watcher: Watcher = _Keeping(shown, say) if orders.keep else shown
        return work(workflow.new_run(case, orders.out), case, watcher, say)


class _Keeping:
    """A watcher that keeps the lab when its steps are done."""

    def __init__(self, watcher: Watcher, say: Progress) -> None:
        self._say = say
        self.event, self.up = watcher.event, watcher.up

    def done(self, lab: Lab) -> None:
        """Says how to enter the lab, and keeps it until it is interrupted."""
        hosts = " or ".join(f"{command()} shell {host}" for host in lab.hosts)
        self._say(f"The lab stays until Ctrl-C. Enter with {hosts}.")
        workflow.keep(lab)


def _sweep(place: Place, say: Progress) -> None:
    if place.backend == "docker":
        for line in workflow.sweep(place.engines):
            say(f"removed what a run that was killed left: {line}")
