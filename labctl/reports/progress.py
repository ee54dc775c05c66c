"""What a run shows while it goes on, for logs and for those who keep its lab."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING

from labctl.ground.names import told_apart
from labctl.ground.output import tell
from labctl.judge.accounts import ended_meanwhile
from labctl.judge.result import RunResult
from labctl.language.scenario import Scenario
from labctl.record.events import Event, StepEvent
from labctl.record.history import History

IDLE_BY = 2.0
"""Seconds after which a lab is up and mostly waits."""

if TYPE_CHECKING:
    from labctl.lab.lab import Lab
    from labctl.reports.terminal import LiveBoard, LiveProgress
    from labctl.run.workers import Doing


class Screen:
    """A Display on stderr: live if that is a terminal, otherwise plain lines."""

    def say(self, line: str) -> None:
        """See `Display`."""
        tell(line)

    def case(self, case: Scenario) -> PlainProgress | LiveProgress:
        """See `Display`."""
        if not _on_terminal():
            return PlainProgress(case)
        from labctl.reports.tables import console
        from labctl.reports.terminal import LiveProgress

        return LiveProgress(case, console(stderr=True))

    def cases(self, cases: Sequence[Scenario]) -> PlainBoard | LiveBoard:
        """See `Display`."""
        if not _on_terminal():
            return PlainBoard(cases)
        from labctl.reports.tables import console
        from labctl.reports.terminal import LiveBoard

        return LiveBoard(cases, console(stderr=True))


@contextmanager
def alongside(names: Sequence[str]) -> Iterator[Callable[[str, str], None]]:
    """Shows what several commands say, by name: the last line of each, or all lines if stderr is no
    terminal."""
    if not _on_terminal():
        yield lambda name, line: tell(line if line.startswith(name) else f"{name}: {line}")
        return
    from labctl.reports.tables import console
    from labctl.reports.terminal import LastLines

    with LastLines(names, console(stderr=True)) as shown:
        yield shown.say


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _prepare() -> None:
    """Imports what explains and shows results, while the lab mostly waits."""
    with suppress(OSError):  # of a limit others tell
        for module in ("judge.annotated", "judge.causes.rules", "reports.terminal"):
            import_module(f"labctl.{module}")


class PlainProgress:
    """A line for each step on stderr, for logs."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._name = scenario.label
        self._steps = len(scenario.steps)
        self._idle = threading.Timer(IDLE_BY, _prepare)
        self._idle.daemon = True

    def __enter__(self) -> PlainProgress:
        with suppress(RuntimeError):  # no more threads: the import can wait
            self._idle.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._idle.cancel()

    def event(self, event: Event, history: History) -> None:
        """See `Watcher`."""
        if isinstance(event, StepEvent) and event.phase == "end":
            outcome = "" if event.outcome in ("done", "held") else f": {event.outcome}"
            text = f"{self._name}: {event.t:8.3f} s  {event.index + 1}/{self._steps} {event.text}"
            tell(text + outcome)
        if ended := ended_meanwhile(self._scenario, history):
            tell(f"{self._name}: {event.t:8.3f} s  {ended}")

    def up(self, lab: Lab) -> None:
        """See `Watcher`."""

    def done(self, lab: Lab) -> None:
        """See `Watcher`."""


class PlainBoard:
    """A line for each finished case on stderr, for logs. See `Board`."""

    def __init__(self, cases: Sequence[Scenario]) -> None:
        self._names = told_apart((case.label, case.source) for case in cases)

    def __enter__(self) -> PlainBoard:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begun(self, number: int) -> None:
        pass

    def doing(self, number: int, step: Doing) -> None:
        pass

    def say(self, line: str) -> None:
        tell(line)

    def ended(self, number: int, result: RunResult) -> None:
        reason = f": {result.reason}" if result.reason else ""
        self.say(f"{result.result:7} {self._names[number]}  {result.seconds:.1f} s{reason}")

    def tick(self) -> None:
        pass
