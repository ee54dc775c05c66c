"""Running one scenario: up, its steps one by one, down, judge."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from labctl.backends import Backend
from labctl.ground.crash import netted
from labctl.ground.data import dataclass
from labctl.ground.errors import LabctlError, LabError, MissingHere, Unavailable, located
from labctl.judge.accounts import accounts, reasons
from labctl.judge.check import NotKnown, NotPassed, Verdict, check, left_undone, overall, unreached
from labctl.judge.result import RunResult, document, now
from labctl.lab.lab import Lab
from labctl.lab.observing import Observing
from labctl.language.predicates.held import held_at
from labctl.language.scenario import Scenario
from labctl.language.steps import Outcome, Step, StepFailed, Wait
from labctl.language.steps.waiting import settle
from labctl.probes.segments import Captures
from labctl.record.events import Event, StepEvent
from labctl.record.history import History
from labctl.record.store import RunFolder, writing

if TYPE_CHECKING:
    from labctl.judge.causes.cause import Cause

WAS_INTERRUPTED = "interrupted"
"""The reason of a case that Ctrl-C or a signal ended."""
LAST_WORDS = 3.0
"""Seconds in which tracers, and then hosts, send what they have, where a run is broken off."""


class Watcher(Protocol):
    """Somebody who watches a run as it happens."""

    def event(self, event: Event, history: History) -> None:
        """Called after every event, from the thread that runs the scenario."""

    def up(self, lab: Lab) -> None:
        """Called when the lab is up."""

    def done(self, lab: Lab) -> None:
        """Called when the steps are done and the lab is still up."""


class Interrupted(KeyboardInterrupt):
    """An interruption, with the results of the cases so far; those under way were interrupted."""

    def __init__(self, results: Sequence[RunResult]) -> None:
        super().__init__()
        self.results = list(results)


class Silent:
    """A watcher that does nothing."""

    def event(self, event: Event, history: History) -> None:
        """See `Watcher`."""

    def up(self, lab: Lab) -> None:
        """See `Watcher`."""

    def done(self, lab: Lab) -> None:
        """See `Watcher`."""


class Records(Protocol):
    """Records everything that happens: a run's folder, or somebody who passes it on to one. A
    history reads `captures` from there."""

    captures: Captures

    def add(self, event: Event) -> None:
        """Takes one event."""

    def add_packets(self, host: str, records: bytes) -> None:
        """Takes the next packets that a host captured."""


@dataclass(frozen=True)
class Ended:
    """How the steps of a case ended. `result` is empty if the verdicts decide; if it has a `reason`
    nevertheless, they can't be good. `hint` says what to do about the reason. `seconds` are by the
    clock where it ran, `lab_seconds` by the lab's."""

    result: str
    reason: str | None
    hint: str | None
    environment: Mapping[str, Any]
    started: str
    seconds: float
    lab_seconds: float

    def broken_by(self, exc: LabctlError) -> Ended:
        """The same after judging it, or writing the result, failed. An earlier reason stays."""
        reason, hint = (self.reason, self.hint) if self.reason else (str(exc), exc.hint)
        return replace(self, result="error", reason=reason, hint=hint)


def conclude(
    scenario: Scenario, backend: str, history: History, ended: Ended, folder: RunFolder
) -> RunResult:
    """Judges the record, and writes the result. If either fails, the result is an error."""
    from labctl.judge import annotated  # progress.py imports these while the lab waits
    from labctl.judge.causes.rules import causes
    from labctl.judge.explain import beside, counted

    verdicts: list[Verdict] = []
    found_out: list[Cause] = []
    others: list[str] = []
    try:
        with netted():
            if ended.result == "skip":
                why_not = ended.reason or ""
                verdicts = left_undone(scenario, history.events, history.captures, why_not)
                ended = replace(ended, result="", reason=None, hint=None) if verdicts else ended
            else:
                verdicts = check(scenario, history.events, history.captures)
            found_out = causes(history, scenario)
            others = beside(history, found_out)
    except LabctlError as exc:
        ended = ended.broken_by(exc)
    result, reason = ended.result or overall(v.result for v in verdicts), ended.reason
    if not ended.result and reason:  # a claim ended it: its own has a verdict
        result, reason = (result, None) if result in ("fail", "unknown") else ("fail", reason)
    processes = accounts(scenario, history) if result == "error" and history.lab else ()
    known = [*(account for verdict in verdicts for account in verdict.processes), *processes]
    left_out = verdicts[0].actual if result == "skip" and verdicts else None
    found = RunResult.of(
        scenario,
        result=result,
        reason=reason or left_out,
        hint=ended.hint if reason else None,
        backend=backend,
        environment=ended.environment,
        started=ended.started,
        seconds=ended.seconds,
        lab_seconds=ended.lab_seconds,
        folder=folder.path,
        verdicts=tuple(verdicts),
        causes=tuple(found_out),
        beside=tuple(dict.fromkeys([*others, *reasons(known)])),
        counted=counted(history),
        history=history,
        processes=processes,
    )
    try:
        with writing(folder.path):
            annotated.write(found)
        folder.finish(document([found]))
    except LabctlError as exc:
        ended = ended.broken_by(exc)
        return replace(found, result="error", reason=ended.reason, hint=ended.hint)
    return found


def tell_early_end(history: History, record: Callable[[Event], None]) -> None:
    """Adds to a history and to its record that they end early, if that can be."""
    with suppress(Exception):
        for event in history.ends_early():
            history.add(event)
            record(event)


class UnderWay(ABC):
    """One case under way: what it observes, and its steps one by one. This records it, and does not
    judge. `backend` is the name of what it runs on.

    `scenario` may get more steps meanwhile; `ended` is set when all is down.
    """

    lab: Observing
    ended: Ended

    def __init__(self, scenario: Scenario, backend: str, records: Records) -> None:
        self.scenario = scenario
        self.backend = backend
        self.history = History(captures=records.captures)
        self._records = records

    @abstractmethod
    def _observed(self) -> AbstractContextManager[Observing]:
        """What it observes, up during a `with`. Raises LabError, UsageError."""

    @abstractmethod
    def _environment(self) -> Mapping[str, Any]:
        """See `Backend`."""

    @abstractmethod
    def _perform(self, step: Step) -> Outcome | None:
        """Does a step. Raises StepFailed, LabError."""

    @contextmanager
    def up(self) -> Iterator[None]:
        """It is up during a `with`. Whatever ends the `with`, everything goes down."""
        began, started = time.monotonic(), now()
        cause: BaseException | None = None
        try:
            with netted():
                for step in self.scenario.steps:
                    step.load()
            with self._observed() as self.lab, self._taken_in():
                yield
        except BaseException as exc:
            cause = exc
            raise
        finally:
            history, seconds = self.history, time.monotonic() - began
            environment = history.lab.environment if history.lab else self._environment()
            self.ended = Ended(*outcome(cause), environment, started, seconds, history.now)

    @contextmanager
    def _taken_in(self) -> Iterator[None]:
        """If the `with` is broken off, the record gets all that was captured until then, or says
        that it may lack some of it."""
        try:
            yield
        except GeneratorExit:  # nobody is there any more who would wait
            tell_early_end(self.history, self._record)
            raise
        except BaseException:
            try:
                self.lab.flush(LAST_WORDS)
            except (Exception, KeyboardInterrupt):  # what broke it off is what matters
                tell_early_end(self.history, self._record)
            raise

    def do(self, index: int) -> tuple[StepEvent, StepEvent]:
        """Does a step of the scenario; returns how it began and how it ended."""
        step, lab = self.scenario.steps[index], self.lab
        step.load()
        begin = StepEvent(lab.now(), index, "begin", str(step), verb=step.verb)
        self._tell(begin)
        end = self._act(step, begin)
        self._tell(end)
        return begin, end

    def last_look(self) -> None:
        """Gives claims about the whole history the time to come true, and takes in what is still
        under way."""
        self.lab.look()
        late = [claim for claim in self.scenario.expect if not claim.holds(self.history)]
        for claim in late:
            settle(self.lab, claim)
        if late:
            self.lab.look()
        self.lab.flush()
        self.lab.compare_clocks()

    def _act(self, step: Step, begin: StepEvent) -> StepEvent:
        lab, backend = self.lab, self.backend
        kernel = str(self.history.lab.environment.get("kernel")) if self.history.lab else ""
        lacking = step.when and step.when.lacking(kernel, backend, dict(self.scenario.variant))
        for label in sorted(step.labels):
            if not lacking and (missed := unreached(label, self.scenario, self.history)):
                _, lacking = missed
        if lacking:
            return replace(begin, t=lab.now(), phase="end", outcome="skipped", detail=lacking)
        try:
            with located(self.scenario.step_sources[begin.index]):
                outcome = self._perform(step) or "done"
        except StepFailed as exc:
            failed = replace(begin, t=lab.now(), phase="end", outcome="failed")
            return replace(failed, expected=exc.expected, actual=exc.actual)
        t = max(begin.t, self.history.now) if outcome == "held" else lab.now()
        ended = replace(begin, t=t, phase="end", outcome=outcome, label=step.as_)
        if not step.as_:
            return ended
        host, moment = self._moment(step, begin.t)
        return replace(ended, moment=moment, host=host)

    def _moment(self, step: Step, begun: float) -> tuple[str | None, float]:
        """The moment that the label of a finished step names: when it began to act, and by which
        host's clock, or when its predicate came true."""
        if isinstance(step, Wait):
            start = self.history.labels[step.since] if step.since else begun
            if held := held_at(step.wait, self.history, start, begun):
                return None, held.latest
        return self.lab.acted or (None, begun)

    def _tell(self, event: StepEvent) -> None:
        self.history.add(event)
        self._record(event)

    def _record(self, event: Event) -> None:
        self._records.add(event)


class Performance(UnderWay):
    """A case under way in a lab."""

    lab: Lab

    def __init__(
        self, scenario: Scenario, backend: Backend, records: Records, watcher: Watcher
    ) -> None:
        super().__init__(scenario, backend.name, records)
        self._backend = backend
        self._watcher = watcher

    def perform(self) -> None:
        """Does all steps. `ended` has lab failures and missing capabilities; this raises only
        KeyboardInterrupt, after everything is down."""
        try:
            with self.up(), netted():
                for index in range(len(self.scenario.steps)):
                    if self.do(index)[-1].outcome in ("failed", "timeout"):
                        break
                self.last_look()
        except LabError:
            pass  # `ended` has it

    @contextmanager
    def _observed(self) -> Iterator[Lab]:
        with netted():
            lacks = self._backend.lacks()
        for need in sorted(self.scenario.needs & lacks.keys()):
            raise MissingHere(*lacks[need])
        add_packets = self._records.add_packets
        with Lab(self.scenario.spec, self._backend, self.history, self._record, add_packets) as lab:
            self._watcher.up(lab)
            yield lab
            with netted():
                self._watcher.done(lab)

    def _environment(self) -> Mapping[str, Any]:
        return self._backend.environment()

    def _perform(self, step: Step) -> Outcome | None:
        with self.lab.marked() if step.as_ else nullcontext():
            outcome = step.act(self.lab)
        self.lab.blame()
        return outcome

    def _record(self, event: Event) -> None:
        super()._record(event)
        self._watcher.event(event, self.history)


class Judged(UnderWay):
    """A case under way on this machine: in the end it is judged, and its folder has the result.

    `result` is set when all is down.
    """

    result: RunResult
    folder: RunFolder

    @contextmanager
    def up(self) -> Iterator[None]:
        """See `UnderWay`; then this writes the result."""
        try:
            with super().up():
                yield
        finally:
            self.result = self._concluded()

    def _concluded(self) -> RunResult:
        return conclude(self.scenario, self.backend, self.history, self.ended, self.folder)


class Session(Judged, Performance):
    """A case under way in a lab of this machine."""

    def __init__(
        self, scenario: Scenario, backend: Backend, folder: RunFolder, watcher: Watcher
    ) -> None:
        super().__init__(scenario, backend, folder, watcher)
        self.folder = folder

    def run(self) -> RunResult:
        """Does all steps; see `perform`."""
        self.perform()
        return self.result


OUTCOMES = {
    "builtins.AssertionError": "fail",
    "builtins.Failed": "fail",
    "builtins.Skipped": "skip",
    "unittest.case.SkipTest": "skip",
}
"""The results that tests' exceptions mean, by the names of their classes, which need not be
installed. Those of pytest claim to be Python's own."""


def outcome(cause: BaseException | None) -> tuple[str, str | None, str | None]:
    """The result, the reason and the hint that an exception gives a run; no result if the verdicts
    decide."""
    return *_outcome(cause), (cause.hint if isinstance(cause, LabctlError) else None)


def _outcome(cause: BaseException | None) -> tuple[str, str | None]:
    kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(cause).__mro__]
    result = next((OUTCOMES[kind] for kind in kinds if kind in OUTCOMES), "error")
    match cause:
        case None:
            return "", None
        case NotKnown():
            return "unknown", first_line(cause)
        case NotPassed():  # of this lab, or of another one in the same test
            return "", first_line(cause)
        case Unavailable():
            return "skip", str(cause)
        case KeyboardInterrupt():
            return "error", WAS_INTERRUPTED
        case LabError():
            return "error", str(cause)
    if result == "skip":
        return result, first_line(cause) or "skipped by its test"
    return result, f"{type(cause).__name__}: {first_line(cause)}".removesuffix(": ")


def first_line(cause: object) -> str:
    """The first line of an exception's message, whoever wrote it."""
    try:
        return str(cause).strip().partition("\n")[0]
    except Exception:
        return "it can't be shown"
