"""Judging a recorded run again: by the scenario as it is now, from what is left of the record.

A step of the scenario is a step of the record if both have the same text. What the record has no
moment for, or has lost, is unknown; and the end of the run counts like a claim.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

from labctl.ground.errors import UsageError
from labctl.judge.check import Verdict, check, not_done, verdict
from labctl.judge.recorded import load, spoilt
from labctl.judge.result import RunResult
from labctl.language.predicates import Predicate
from labctl.language.predicates.finding import Claimed
from labctl.language.scenario import Scenario
from labctl.language.scenario import load as load_scenario
from labctl.record.events import Event, LabEvent, LossEvent, StepEvent, TallyEvent, TroubleEvent
from labctl.record.history import History

MOST = 1_000_000
"""How many pairs of steps to compare at most, after a scenario and its record begin to differ."""


def judge(folder: Path, claims: Path | None = None) -> list[Verdict]:
    """The verdicts on a recorded run, from its folder alone, by this version; on the claims of
    another scenario than the folder's, if that is given.

    Raises UsageError for a folder that is no run, and for a scenario that this version can't
    read."""
    run = load(folder)
    scenario = _scenario(run, claims)
    ending = _ending(run, scenario)
    if run.result == "skip":
        return ending
    history, bounds = run.history, _Bounds(run, scenario)
    events = _placed(run, scenario, history.events)
    found = check(scenario, events, history.captures, history.events)
    steps = [*_placed(run, scenario, history.events.of(StepEvent))]
    return [*map(bounds.within, found), *_not_done(run, scenario, steps), *ending]


def _scenario(run: RunResult, claims: Path | None) -> Scenario:
    """The case, as the folder's scenario says now, or another one."""
    path = claims or run.folder / "scenario.yaml"
    cases = load_scenario(path, {} if claims else run.sets)
    if claims and len(cases) == 1:
        return cases[0]
    found = next((case for case in cases if case.case == run.case), None)
    if found is None and claims:
        raise UsageError(f"{path}: {len(cases)} cases, and none is the run's", "leave one of them")
    if found is None:
        raise UsageError(f"{run.folder}: {path.name} has no variant {run.case!r}")
    return found


# --- Steps ----------------------------------------------------------------------------------------


def _texts(history: History) -> dict[int, str]:
    """The steps of a record, by their indexes."""
    return {event.index: event.text for event in history.events.of(StepEvent)}


def _matched(old: Mapping[int, str], new: Sequence[str]) -> dict[int, int]:
    """Which step of a scenario each step of a record is: all before the first difference, and after
    it those with the same text in the same order."""
    indexes, texts = list(old), list(old.values())
    same = next(
        (n for n, (one, other) in enumerate(zip(texts, new, strict=False)) if one != other),
        min(len(texts), len(new)),
    )
    found = {indexes[n]: n for n in range(same)}
    if (len(texts) - same) * (len(new) - same) <= MOST:
        blocks = SequenceMatcher(None, texts[same:], new[same:], autojunk=False)
        for a, b, size in blocks.get_matching_blocks():
            found |= {indexes[same + a + n]: same + b + n for n in range(size)}
    return found


def _placed(run: RunResult, scenario: Scenario, events: Iterable[Event]) -> Iterator[Event]:
    """Events of a record, with the indexes that their steps have in the scenario now, and with the
    losses of the captures. If the scenario no longer has a step, its moment stays; so does that of
    a step which counts from a label that the record lacks, unless the step that sets it was left
    out: so was this one then."""
    steps = _matched(_texts(run.history), [str(step) for step in scenario.steps])
    labels: set[str | None] = {None}
    for event in events:
        if isinstance(event, StepEvent):
            index = steps.get(event.index)
            step = None if index is None else scenario.steps[index]
            if index is None or step is None or getattr(step, "since", None) not in labels:
                yield replace(event, index=-1, phase="begin", label=None, outcome=None)
            else:
                label = event.label if event.label == step.as_ else None
                labels.add(step.as_ if event.outcome == "skipped" else label)
                yield replace(event, index=index, label=label)
        elif isinstance(event, LossEvent | TallyEvent):
            yield replace(event, drop=steps.get(event.drop, -1 - event.drop))
        else:
            yield event
        if isinstance(event, LabEvent):
            lost = ((host, _damage(run, f"{host}.pcap")) for host in run.hosts)
            yield from (TroubleEvent(event.t, h, "capture", text) for h, text in lost if text)


def _not_done(run: RunResult, scenario: Scenario, events: Sequence[Event]) -> Iterator[Verdict]:
    """A verdict for each step that is unknown because the record does not have its end."""
    told = [event for event in events if isinstance(event, StepEvent) and event.index >= 0]
    begun = {event.index for event in told}
    done = {event.index for event in told if event.phase == "end"}
    last = max(begun, default=-1)
    lab = run.history.lab
    kernel = str(lab.environment.get("kernel")) if lab else ""
    for index, step in enumerate(scenario.steps):
        lacking = step.when and step.when.lacking(kernel, run.backend, dict(scenario.variant))
        if index in done or lacking:
            continue
        if index in begun:
            why = "it was not over when the record ended"
        elif index > last and _stopped(run):
            where = f"at {scenario.step_sources[last]}" if last >= 0 else "before the first one"
            why = f"not reached: the steps ended {where}"
        else:
            why = "the record has no moment for it"
        yield not_done(scenario, index, why, run.history.now)


# --- What is left of the record -------------------------------------------------------------------


def _stopped(run: RunResult) -> bool:
    """Whether the run may have had more steps than the record."""
    last = next(run.history.events.latest(StepEvent), None)
    return last is None or last.outcome in (None, "failed", "timeout") or _early(run)


def _early(run: RunResult) -> bool:
    """Whether something other than the verdicts ended a run."""
    return run.result in ("error", "skip") or (run.result != "pass" and run.reason is not None)


def _ending(run: RunResult, scenario: Scenario) -> list[Verdict]:
    """The verdict on how a run ended, if something else than its verdicts ended it."""
    if not _early(run):
        return []
    reason, at, source = run.reason or "it says no reason", run.history.now, f"{scenario.source}:1"
    if run.result == "fail":
        claimed = Claimed("the test", "no failure of its own", text="the test")
        return [verdict("fail", claimed, reason, at, source)]
    actual = reason if run.result == "error" else f"{run.result}: {reason}"
    claimed = Claimed("the run", "a whole one", text="the run")
    return [verdict("unknown", claimed, actual, at, source)]


class _Bounds:
    """The claims that a record can't support, whatever their verdicts."""

    def __init__(self, run: RunResult, scenario: Scenario) -> None:
        self._run, self._scenario = run, scenario
        self._damage = _damage(run, "history.jsonl")
        self._whole = {*scenario.expect_sources}
        self._claims: dict[str, list[Predicate]] = defaultdict(list)
        for source, step in zip(scenario.step_sources, scenario.steps, strict=True):
            self._claims[source] += [step.claim] if step.claim else []
        for source, predicate in zip(scenario.expect_sources, scenario.expect, strict=True):
            self._claims[source].append(predicate)

    def within(self, verdict: Verdict) -> Verdict:
        """A verdict, unknown if the record can't support it."""
        decided = verdict.result in ("pass", "fail")
        why = self._beyond(verdict) if decided else self._lacking(verdict)
        return replace(verdict, result="unknown", actual=why) if why else verdict

    def _lacking(self, verdict: Verdict) -> str:
        """Why it could not be decided at all, if it is unknown and that needs a reason."""
        if verdict.result != "unknown":
            return ""
        return f"{verdict.actual}, but {self._damage}" if self._damage else self._stranger(verdict)

    def _stranger(self, verdict: Verdict) -> str:
        """Says that a claim is about a host that the record lacks, if it is."""
        for claim in self._claims[verdict.source] if self._run.history.lab else ():
            if others := self._hosts(claim) - {*self._run.hosts}:
                return f"the record has no host {min(others)}"
        return ""

    def _beyond(self, verdict: Verdict) -> str:
        run, source = self._run, verdict.source
        if self._damage:
            return f"{verdict.actual}, but {self._damage}"
        if stranger := self._stranger(verdict):
            return stranger
        for claim in self._claims[source] if run.history.lab else ():
            files = [f"{host}.ss" for host in claim.hosts]
            files += [f"{host}.pcap" for host in run.hosts] if claim.segments else []
            if damage := next(filter(None, (_damage(run, name) for name in files)), ""):
                return damage
        if source in self._whole and _early(run):
            return f"{verdict.actual}, but the run ended before its time"
        return ""

    def _hosts(self, claim: Predicate) -> set[str]:
        """All hosts that a claim is about."""
        ends = (claim.segments.from_, claim.segments.to) if claim.segments else ()
        owners = (self._scenario.processes[name].host for name in claim.process or ())
        return {*claim.hosts, *filter(None, ends), *owners}


def _damage(run: RunResult, name: str) -> str:
    """What is wrong with a file of a record. result.json has the length of each."""
    path, size = run.folder / name, run.files.get(name)
    if not path.is_file():
        return f"{name} is missing" if size or _was_written(run, path) else ""
    have = path.stat().st_size
    if size and have < size:
        return f"{name} is cut short, to {have} of {size} bytes"
    return spoilt(run).get(name, "") if path.suffix == ".pcap" else ""


def _was_written(run: RunResult, path: Path) -> bool:
    """Whether a file must have been there, if nothing says how long it was."""
    lab = run.history.lab
    if path.suffix == ".pcap":
        return lab is not None and "capture" in lab.environment.get("probes", ())
    if path.suffix == ".ss":  # older runs with a result have none
        return path.stem in run.history.sockets and not (run.folder / "result.json").exists()
    return True
