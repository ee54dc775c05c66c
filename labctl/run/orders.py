"""How to run cases, and who watches: what a command passes on to the code that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import field
from pathlib import Path
from typing import Protocol

from labctl.ground.crash import netted
from labctl.ground.data import dataclass
from labctl.ground.errors import LabctlError
from labctl.judge.result import RunResult, unperformed
from labctl.language.scenario import Scenario
from labctl.run.runner import Interrupted, Watcher
from labctl.run.workers import Board


class Display(Protocol):
    """Shows people how runs go on."""

    def say(self, line: str) -> None:
        """Shows the progress of long work."""

    def case(self, case: Scenario) -> AbstractContextManager[Watcher]:
        """Shows one case while it runs."""

    def cases(self, cases: Sequence[Scenario]) -> AbstractContextManager[Board]:
        """Shows several cases that run at once."""


@dataclass(frozen=True)
class Orders:
    """`jobs` cases at once at most, or as many as suit the machine; `out`: the folder to record
    them in; `keep`: each lab stays until it is interrupted; `sets`: the params that were set."""

    display: Display
    out: Path | None = None
    jobs: int | None = None
    keep: bool = False
    sets: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False


def one_by_one(cases: Iterable[Scenario], run: Callable[[Scenario], RunResult]) -> list[RunResult]:
    """The results of cases, one after the other. Raises Interrupted, and what `run` raises for the
    first case; what it raises later must not lose the results so far."""
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
                results.append(unperformed(case, "error", exc, backend, folder))
    except KeyboardInterrupt as exc:
        last = exc.results if isinstance(exc, Interrupted) else []
        raise Interrupted([*results, *last]) from exc
    return results
