"""Running one scenario: up, its steps one by one, down, judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from labctl.backends import Backend
from labctl.check import Verdict, check, explain, overall
from labctl.errors import LabError, Unavailable
from labctl.history import Event, History, StepEvent
from labctl.lab import Lab, MissingHere
from labctl.scenario import Scenario
from labctl.steps import StepFailed
from labctl.store import RunFolder


class Watcher(Protocol):
    """Somebody who is shown a run as it happens."""

    def event(self, event: Event, history: History) -> None:
        """Called after every event, from the thread that runs the scenario."""

    def up(self, lab: Lab) -> None:
        """Called when the lab is up."""

    def done(self, lab: Lab) -> None:
        """Called when the steps are done and the lab is still up."""


@dataclass(frozen=True)
class RunResult:
    """What came of one case. `seconds` is wall time, `lab_seconds` time by the lab's clock."""

    scenario: Scenario
    result: str
    reason: str | None
    backend: str
    environment: Mapping[str, Any]
    started: str
    seconds: float
    lab_seconds: float
    folder: Path
    verdicts: tuple[Verdict, ...]
    why: tuple[str, ...]
    history: History = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """As the result document has it."""
        reason = {"reason": self.reason} if self.reason else {}
        return {
            "scenario": self.scenario.name,
            "source": self.scenario.source,
            "title": self.scenario.title,
            "variant": dict(self.scenario.variant),
            "result": self.result,
            **reason,
            "backend": self.backend,
            "environment": dict(self.environment),
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "lab_seconds": round(self.lab_seconds, 3),
            "dir": str(self.folder),
            "verdicts": [verdict.as_json() for verdict in self.verdicts],
            "why": list(self.why),
        }


def document(runs: list[RunResult]) -> dict[str, Any]:
    """The result document, version 1."""
    return {
        "version": "1",
        "result": overall(run.result for run in runs),
        "runs": [run.as_json() for run in runs],
    }


@dataclass(frozen=True)
class Ended:
    """How the steps of a case ended. `result` is empty where its verdicts decide; `seconds` are of
    the clock where it ran, `lab_seconds` of the lab's."""

    result: str
    reason: str | None
    environment: Mapping[str, Any]
    started: str
    seconds: float
    lab_seconds: float
    interrupted: KeyboardInterrupt | None = None


def run(scenario: Scenario, backend: Backend, folder: RunFolder, watcher: Watcher) -> RunResult:
    """Runs one case. Lab failures and missing capabilities become its result; only
    KeyboardInterrupt comes out, after the evidence has been saved and everything taken down."""
    history = History()

    def record(event: Event) -> None:
        folder.add(event)
        watcher.event(event, history)

    ended = perform(scenario, backend, history, record, folder.add_packets, watcher)
    return conclude(scenario, backend.name, history, ended, folder)


def perform(
    scenario: Scenario,
    backend: Backend,
    history: History,
    record: Callable[[Event], None],
    record_packets: Callable[[str, bytes], None],
    watcher: Watcher,
) -> Ended:
    """Brings the lab up, does the steps, and takes it down; judges nothing. No exception of the
    lab's comes out."""
    began = time.monotonic()
    result, reason = "", None
    interrupted: KeyboardInterrupt | None = None
    started = now()
    try:
        for need in sorted(scenario.needs & backend.lacks().keys()):
            raise MissingHere(backend.lacks()[need])
        with Lab(scenario, backend, history, record, record_packets) as lab:
            watcher.up(lab)
            _steps(scenario, lab, backend.name, record, history)
            for predicate in scenario.expect:
                lab.settle(predicate)
            lab.look()
            lab.flush()
            watcher.done(lab)
    except (MissingHere, Unavailable) as exc:
        result, reason = "skip", str(exc)
    except LabError as exc:
        result, reason = "error", str(exc)
    except KeyboardInterrupt as exc:
        interrupted = exc
        result, reason = "error", "interrupted"
    environment = history.lab.environment if history.lab else backend.environment()
    seconds = time.monotonic() - began
    return Ended(result, reason, environment, started, seconds, history.now, interrupted)


def conclude(
    scenario: Scenario, backend: str, history: History, ended: Ended, folder: RunFolder
) -> RunResult:
    """Judges what was recorded, and writes the result. Raises what interrupted the case."""
    skipped = ended.result == "skip"
    verdicts = [] if skipped else check(scenario, history.events, history.captures)
    found = RunResult(
        scenario=scenario,
        result=ended.result or overall(v.result for v in verdicts),
        reason=ended.reason,
        backend=backend,
        environment=ended.environment,
        started=ended.started,
        seconds=ended.seconds,
        lab_seconds=ended.lab_seconds,
        folder=folder.path,
        verdicts=tuple(verdicts),
        why=tuple(explain(history.events)),
        history=history,
    )
    folder.finish(document([found]))
    if ended.interrupted:
        raise ended.interrupted
    return found


def now() -> str:
    """The wall clock, as results have it (RFC 3339)."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _steps(scenario: Scenario, lab: Lab, backend: str, record: Any, history: History) -> None:
    kernel = str(history.lab.environment.get("kernel")) if history.lab else ""

    def tell(event: StepEvent) -> None:
        history.add(event)
        record(event)

    for index, step in enumerate(scenario.steps):
        text, begun = str(step), lab.now()
        tell(StepEvent(begun, index, "begin", text))
        lacking = step.when and step.when.lacking(kernel, backend, dict(scenario.variant))
        if lacking:
            tell(StepEvent(lab.now(), index, "end", text, outcome="skipped", detail=lacking))
            continue
        try:
            outcome = step.act(lab) or "done"
            lab.blame()
        except StepFailed as exc:
            detail = f"{exc.expected}; saw {exc.actual}"
            tell(StepEvent(lab.now(), index, "end", text, outcome="failed", detail=detail))
            return
        moment = max(begun, history.now) if outcome == "held" else lab.now()
        tell(StepEvent(moment, index, "end", text, label=step.as_, outcome=outcome))
        if outcome == "timeout":
            return
