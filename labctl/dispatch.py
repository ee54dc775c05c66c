"""Where the cases of a command run: one after the other, side by side, or on another kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path

from labctl import jobs as side_by_side
from labctl import workflow
from labctl.backends import Progress, backend_class
from labctl.crash import netted
from labctl.errors import LabctlError, LabError, Unavailable, UsageError
from labctl.jobs import Pace, pace
from labctl.reports.progress import Keeping, board, progress
from labctl.runner import Interrupted, RunResult, Watcher, unperformed
from labctl.scenario import Scenario
from labctl.store import default_folder

IDLE_BY = 2.0
"""Seconds after which a lab is up and mostly waits."""


def guest(
    kernel: str | None, virtual_time: bool, backend: str, keep: bool, jobs: int | None
) -> str | None:
    """The kernel to run on in a guest, if any. Raises UsageError for what does not go together."""
    if not kernel and not virtual_time:
        return None
    option = "--kernel" if kernel else "--virtual-time"
    if backend == "docker":
        raise UsageError(f"{option} runs on namespaces in a guest; leave --backend docker out")
    if keep:
        raise UsageError(f"{option} has no lab to keep: the guest ends with the run")
    if (jobs or 1) > 1:
        raise UsageError(f"{option} runs one case at a time in its guest; leave --jobs {jobs} out")
    if not kernel:
        raise UsageError("--virtual-time needs a guest; choose its kernel: --kernel NAME")
    return kernel


def run_here(
    cases: list[Scenario],
    backend: str,
    os: str,
    keep: bool,
    jobs: int | None,
    out: Path | None,
    say: Progress,
) -> list[RunResult]:
    """Runs cases on this machine's kernel: one after the other, or so many at once. Raises
    UsageError, LabError and Interrupted. Where several want an engine that can't be had, that is
    what comes of each."""
    pace = _pace(jobs, keep, len(cases), backend)
    _sweep(backend, say)
    if backend == "docker" and len(cases) > 1:
        from labctl.backends.docker import build_images

        try:  # once, or not at all: a registry may be slow to give no answer
            build_images(os, say)
        except LabError as exc:
            result = "skip" if isinstance(exc, Unavailable) else "error"
            folder = out or default_folder()
            return [unperformed(case, result, str(exc), backend, folder) for case in cases]
    if pace.at_once > 1:
        results = _run_many(cases, pace, backend, os, out)
        _sweep(backend, say)
        return results
    with _warming_up():
        return one_by_one(cases, lambda case: _run_one(case, backend, os, keep, out, say))


def one_by_one(cases: Iterable[Scenario], run: Callable[[Scenario], RunResult]) -> list[RunResult]:
    """What came of cases, one after the other. Raises Interrupted, and what `run` raises for the
    first; what it raises later is no reason to lose what there is."""
    results: list[RunResult] = []
    try:
        for case in cases:
            try:
                with netted():
                    results.append(run(case))
            except LabctlError as exc:
                if not results:
                    raise
                backend, folder = results[0].backend, results[0].folder.parent
                results.append(unperformed(case, "error", str(exc), backend, folder))
    except KeyboardInterrupt as exc:
        last = exc.results if isinstance(exc, Interrupted) else []
        raise Interrupted([*results, *last]) from exc
    return results


def _run_one(
    case: Scenario, backend: str, os: str, keep: bool, out: Path | None, say: Progress
) -> RunResult:
    with progress(case) as shown:
        watcher: Watcher = Keeping(shown, workflow.keep) if keep else shown
        return workflow.run_case(case, backend, watcher, say, out, os)


@contextmanager
def _warming_up() -> Iterator[None]:
    """Meanwhile imports what judges and shows results, unless they are there before: a lab that is
    up mostly waits."""

    def work() -> None:
        with suppress(OSError):  # of a limit others tell
            import_module("labctl.reports.terminal")
            import_module("labctl.probes.packets")

    timer = threading.Timer(IDLE_BY, work)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _run_many(
    cases: list[Scenario], pace: Pace, backend: str, os: str, out: Path | None
) -> list[RunResult]:
    work = partial(workflow.run_in, backend=backend, os=os)
    import_module("labctl.probes.packets")  # once for all workers, before any of them measures
    backend_class(backend).share()
    with board(cases) as shown:
        return side_by_side.run_all(
            cases, pace, backend, lambda case: workflow.place(case, out), work, shown
        )


def _pace(jobs: int | None, keep: bool, cases: int, backend: str) -> Pace:
    if keep and (jobs or 1) > 1:
        raise UsageError(f"--keep keeps one lab at a time, so it can't go with --jobs {jobs}")
    return pace(backend, cases, 1 if keep else jobs)


def _sweep(backend: str, say: Progress) -> None:
    if backend == "docker":
        for line in workflow.sweep():
            say(f"removed what a run that was killed left: {line}")
