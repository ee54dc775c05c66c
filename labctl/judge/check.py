"""Judging: from a scenario and its history to verdicts, without a lab."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field, replace
from typing import Any

from labctl.ground.data import dataclass
from labctl.ground.errors import LabctlError
from labctl.judge.accounts import Account, accounts, halted_first
from labctl.language.facts import AWAITING, NO_FACTS, Facts, Range, seconds_range
from labctl.language.predicates import Finding, Result
from labctl.language.predicates.finding import Claimed
from labctl.language.predicates.held import held_at
from labctl.language.scenario import Scenario
from labctl.language.steps import Call, Wait
from labctl.probes.segments import Captures
from labctl.record.events import ClockEvent, Event, StepEvent
from labctl.record.history import History
from labctl.record.log import Log

TOLD = 0.05
"""Show a moment as one time if it is known to within so many seconds."""


@dataclass(frozen=True)
class Verdict:
    """One claim, judged. `at` is in seconds since the run began, `source` is file:line. If it did
    not pass, `processes` says what the processes that it is about did last.

    Words are for people. Programs read `subject`, the host or process that it is about; `about`,
    the hosts and processes that it names; `wanted` and `measured`. These are empty in a result that
    an older version wrote."""

    result: Result
    what: str
    expected: str
    actual: str
    at: float
    source: str
    evidence: tuple[str, ...] = field(default=())
    processes: tuple[Account, ...] = field(default=())
    subject: str = ""
    about: tuple[str, ...] = ()
    wanted: Facts = NO_FACTS
    measured: Facts = NO_FACTS

    @property
    def claimed(self) -> Claimed:
        """What it is a verdict on."""
        return Claimed(self.subject, self.expected, self.about, self.wanted, self.what)

    def __str__(self) -> str:
        saw = "unknown:" if self.result == "unknown" else "saw"
        who = self.subject or self.what
        return f"{self.source}: {who}: expected {self.expected}, {saw} {self.actual}"

    def as_json(self) -> dict[str, Any]:
        """As the result document has it."""
        return {
            "result": self.result,
            "what": self.what,
            "expected": self.expected,
            "actual": self.actual,
            "at": round(self.at, 3),
            "source": self.source,
            "evidence": list(self.evidence),
            "subject": self.subject,
            "about": list(self.about),
            "wanted": self.wanted.as_json(),
            "measured": self.measured.as_json(),
            **({"processes": [a.as_json() for a in self.processes]} if self.processes else {}),
        }


def verdict(result: Result, claimed: Claimed, actual: str, at: float, source: str) -> Verdict:
    """The verdict on a claim for which nothing was measured."""
    return Verdict(
        result, claimed.what, claimed.expected, actual, at, source,
        subject=claimed.subject, about=claimed.about, wanted=claimed.wanted,
    )  # fmt: skip


class NotPassed(LabctlError, AssertionError):
    """Claims that did not pass; the message says which, and why."""

    exit_status = 1

    def __init__(self, message: str, verdicts: Iterable[Verdict] = ()) -> None:
        super().__init__(message)
        self.verdicts = tuple(verdicts)


class NotKnown(NotPassed):
    """A question to a lab that nobody can answer."""

    exit_status = 3


def check(
    scenario: Scenario,
    events: Iterable[Event],
    captures: Captures | None = None,
    past: Log | None = None,
) -> list[Verdict]:
    """Replays the events and judges each claim at the moment when it was made. `past` are the same
    events, as they were recorded."""
    verdicts, history = _replayed(scenario, events, captures, past)
    return verdicts + check_whole(scenario, history)


def left_undone(
    scenario: Scenario, events: Sequence[Event], captures: Captures, why: str
) -> list[Verdict]:
    """The verdicts of a run that could not go on because of `why`. If no claim had failed by then,
    the run is skipped and has none. Otherwise it has all, since a failure stays one, and a verdict
    on what was not done."""
    verdicts, history = _replayed(scenario, events, captures)
    if all(verdict.result != "fail" for verdict in verdicts):
        return []
    step = next(event for event in reversed(events) if isinstance(event, StepEvent))
    undone = not_done(scenario, step.index, why, history.now)
    return [*verdicts, *check_whole(scenario, history), undone]


def not_done(scenario: Scenario, index: int, why: str, at: float) -> Verdict:
    """The verdict on a step that was not done: nobody knows what it would have shown."""
    step, source = scenario.steps[index], scenario.step_sources[index]
    claimed = Claimed(str(step), "to be done", step.about, text=str(step))
    return verdict("unknown", claimed, why, at, source)


def _replayed(
    scenario: Scenario,
    events: Iterable[Event],
    captures: Captures | None,
    past: Log | None = None,
) -> tuple[list[Verdict], History]:
    """The verdicts of all steps, and the history at their end."""
    if past is None:
        past = events = events if isinstance(events, Log) else Log(events)
    history = History(captures=captures, again=past)
    history.know(past.of(ClockEvent))
    verdicts: list[Verdict] = []
    begun = 0.0
    for event in events:
        history.add(event)
        if not isinstance(event, StepEvent):
            continue
        if event.phase == "begin":
            begun = event.t
        else:
            verdicts += check_step(scenario, event, history, begun)
    return verdicts, history


def check_whole(scenario: Scenario, history: History) -> list[Verdict]:
    """The verdicts on what a scenario, and each of its steps, claims about the whole history."""
    return _accounted(_check_whole(scenario, history), scenario, history)


def _check_whole(scenario: Scenario, history: History) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for event in history.events.of(StepEvent):
        if event.phase == "end":
            verdicts += _check_in_the_end(scenario, event, history)
    for predicate, source in zip(scenario.expect, scenario.expect_sources, strict=True):
        found = predicate.judge(history)
        for label in predicate.labels:
            if missed := unreached(label, scenario, history):
                result, why = missed
                about = predicate.counted(label, history)
                if of_another(scenario, _named(label, scenario)):
                    found = [f for f in found if f not in about]
                found = [
                    replace(f, result=result, actual=why, measured=NO_FACTS) if f in about else f
                    for f in found
                ]
        verdicts += [_verdict(finding, history.now, source) for finding in found]
    if history.lab is None:  # without a lab nothing is known, not even what it lacks
        verdicts = [
            verdict("unknown", v.claimed, "no lab came up", v.at, v.source) for v in verdicts
        ]
    return verdicts


def check_step(
    scenario: Scenario, event: StepEvent, history: History, begun: float
) -> list[Verdict]:
    """The verdicts of a step that began at `begun` and has just ended with `event`, at the end of
    `history`. A claim of another variant is no claim of this one."""
    found = _accounted(_check_step(scenario, event, history, begun), scenario, history)
    if event.outcome != "timeout":
        return found
    ends = [halted_first(each.processes, each.claimed, each.measured) for each in found]
    return [
        replace(each, actual=f"{end}; {each.actual}") if end else each
        for each, end in zip(found, ends, strict=True)
    ]


def _accounted(verdicts: list[Verdict], scenario: Scenario, history: History) -> list[Verdict]:
    """The verdicts; those that did not pass get what their processes did last."""
    return [
        replace(each, processes=accounts(scenario, history, each.claimed))
        if each.result in ("fail", "unknown") and history.lab
        and (history.processes or not history.without_calls)
        else each
        for each in verdicts
    ]  # fmt: skip


def _check_step(
    scenario: Scenario, event: StepEvent, history: History, begun: float
) -> list[Verdict]:
    step, source = scenario.steps[event.index], scenario.step_sources[event.index]
    if of_another(scenario, event.index):
        return []
    claims = step.judge(history)
    if event.outcome == "skipped":
        return [verdict("skip", f.claimed, event.why, event.t, source) for f in claims]
    if event.outcome == "failed":
        wanted = Facts(process=AWAITING) if isinstance(step, Call) else NO_FACTS
        expected, actual = event.expected or "to be done", event.actual or event.why
        claimed = Claimed(event.text, expected, step.about, wanted, event.text)
        return [verdict("fail", claimed, actual, event.t, source)]
    if not isinstance(step, Wait):
        return [_verdict(finding, event.t, source) for finding in claims]
    start = _start(scenario, step, history, begun)
    hosts = tuple(history.hosts)
    whose = (name for finding in claims for name in finding.claimed.about or hosts)
    start = replace(start, about=(*start.about, *whose))  # all of them came to hold at one moment
    found = [
        _verdict(_waited(step, finding, event, history, start), event.t, source)
        for finding in claims
    ]
    if event.outcome == "timeout" and all(each.result == "pass" for each in found):
        # The steps ended here, so nobody knows what the others would have shown.
        late = "only seen when the wait was over"
        found = [replace(v, result="unknown", actual=f"{v.actual}, {late}") for v in found]
    return found


def of_another(scenario: Scenario, index: int) -> bool:
    """Whether a step is for other variants only, or counts from such a step."""
    if index < 0:
        return False
    step = scenario.steps[index]
    return step.of_another(scenario.variant) or any(
        of_another(scenario, _named(label, scenario)) for label in step.labels
    )


def _named(label: str, scenario: Scenario) -> int:
    """The index of the step that sets a label; -1 for none."""
    return next((i for i, step in enumerate(scenario.steps) if step.as_ == label), -1)


def unreached(label: str, scenario: Scenario, history: History) -> tuple[Result, str] | None:
    """The result of a claim that counts from a label which no step set, and why; else None.

    The claim is not to blame: another verdict already says why the step was not done."""
    if label in history.labels:
        return None
    index = _named(label, scenario)
    ends = [event for event in history.events.of(StepEvent) if event.phase == "end"]
    for event in ends:
        if event.index == index and event.outcome == "skipped":
            return "skip", f"{label!r} was left out: {event.why}"
    if any(event.index > index for event in ends):  # `labctl check`, and a step added since
        return "unknown", f"the record has no moment for {label!r}"
    last = f", at {scenario.step_sources[ends[-1].index]}" if ends else ""
    return "unknown", f"{label!r} was not reached: the steps ended before{last}"


def _check_in_the_end(scenario: Scenario, event: StepEvent, history: History) -> list[Verdict]:
    """The verdicts on what a step that has ended claims about the whole run."""
    step = scenario.steps[event.index]
    claim = step.in_the_end(event.index)
    if claim is None or event.outcome == "failed" or of_another(scenario, event.index):
        return []
    source = scenario.step_sources[event.index]
    found = [_verdict(finding, history.now, source) for finding in claim.judge(history)]
    if event.outcome == "skipped":
        found = [verdict("skip", v.claimed, event.why, v.at, source) for v in found]
    return found


@dataclass(frozen=True)
class _Start:
    """From when on the time of a wait counts. `about`: it and what is waited for are moments of
    these hosts and processes, or of the lab's own clock. `begun` is when it began to wait."""

    t: float
    about: tuple[str, ...]
    begun: float


def _start(scenario: Scenario, step: Wait, history: History, begun: float) -> _Start:
    if step.since is None:
        return _Start(begun, ("",), begun)
    labelled = scenario.steps[_named(step.since, scenario)]
    about: tuple[str, ...] = (history.whose.get(step.since, ""),)
    if isinstance(labelled, Wait):
        found = labelled.judge(history)
        about = tuple(n for each in found for n in each.claimed.about) or tuple(history.hosts)
    return _Start(history.labels[step.since], about, begun)


def _apart(names: Iterable[str], history: History) -> float:
    """By how much moments of some hosts and processes may be off beside one another."""
    known = history.processes
    return history.apart([known[name].host if name in known else name for name in names])


def _waited(
    step: Wait, finding: Finding, event: StepEvent, history: History, since: _Start
) -> Finding:
    """What a wait's claim comes to: how long it took belongs to it."""
    start = since.t
    of = f" of {step.since}" if step.since else ""
    claimed = replace(
        finding.claimed,
        expected=f"{finding.expected} within {step.within}{of}",
        text=finding.what,
        wanted=replace(
            finding.claimed.wanted,
            after_seconds=Range(step.within.low, step.within.high),
            since=step.since,
        ),
    )
    result, measured = finding.result, finding.measured
    until = event.t - start
    after, waited = f" until {until:.3f} s", replace(measured, until_seconds=round(until, 6))
    held = None if event.outcome == "timeout" else held_at(step.wait, history, start, since.begun)
    if held is not None:
        held = held.give_or_take(_apart(since.about, history))
        early, late = max(0.0, held.earliest - start), max(0.0, held.latest - start)
        fits = {step.within.low <= moment <= step.within.high for moment in (early, late)}
        result = "unknown" if len(fits) > 1 else "pass" if True in fits else "fail"
        after = f" after {f'{early:.3f}..' if late - early > TOLD else ''}{late:.3f} s"
        waited = replace(measured, after_seconds=seconds_range(early, late))
    elif event.outcome == "timeout" and result == "pass":
        after, waited = "", measured
    return Finding(result, claimed, f"{finding.actual}{after}", finding.evidence, waited)


def _verdict(finding: Finding, at: float, source: str) -> Verdict:
    found = verdict(finding.result, finding.claimed, finding.actual, at, source)
    return replace(found, evidence=finding.evidence, measured=finding.measured)


def overall(results: Iterable[str]) -> str:
    """The worst of some results: error, fail, unknown, pass; skip if there is nothing else."""
    found = set(results)
    for result in ("error", "fail", "unknown", "pass", "skip"):
        if result in found:
            return result
    return "pass"
