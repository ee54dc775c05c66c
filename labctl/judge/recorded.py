"""A recorded run: everything that a report needs, from its folder alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace
from functools import lru_cache
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from labctl.ground import names
from labctl.ground.data import dataclass
from labctl.ground.errors import UsageError
from labctl.ground.reading import (
    MAX_RECORD,
    MAX_RESULT,
    Checked,
    loads,
    of_version,
    open_file,
    read_file,
    typed,
)
from labctl.ground.written import variant_words
from labctl.judge.accounts import Account
from labctl.judge.causes.cause import Cause
from labctl.judge.check import Verdict
from labctl.judge.result import READS, RunResult, others
from labctl.language.document import MAX_BYTES
from labctl.language.scenario import Scenario
from labctl.language.scenario import load as load_scenario
from labctl.probes.packets import torn_at
from labctl.probes.segments import FILE_HEADER, Captures
from labctl.record.events import Environment, Event
from labctl.record.history import History
from labctl.record.lines import read_events

HINT = "give a folder that `labctl run` recorded (its last line names it; --out DIR chooses it)"


Result = Literal["pass", "fail", "unknown", "skip", "error"]


@dataclass(frozen=True)
class Run:
    """What a result document says about a run; None if it does not."""

    result: Result
    scenario: str | None = None
    source: str | None = None
    title: str | None = None
    variant: dict[str, Any] = field(default_factory=dict)
    case: str | None = None
    sets: dict[str, str] = field(default_factory=dict)
    reason: str | None = None
    hint: str | None = None
    backend: str | None = None
    environment: Environment | None = None
    started: str | None = None
    seconds: float | None = None
    lab_seconds: float | None = None
    dir: str | None = None
    verdicts: tuple[Verdict, ...] = ()
    processes: tuple[Account, ...] = ()
    causes: tuple[Cause, ...] = ()
    why: tuple[str, ...] = ()
    counted: dict[str, dict[str, int]] | None = None


@dataclass(frozen=True)
class Document:
    """A result document, as `labctl run --format json` prints it. A run's result.json also has the
    `files` of its record, with their sizes in bytes."""

    runs: tuple[Run, ...]
    version: Annotated[str, Checked(lambda text: str(int(text)), pattern=r"^\d+$")] = "1"
    result: Result | None = None
    reason: str | None = None
    files: dict[str, int] = field(default_factory=dict)


CUT_SHORT = {"runs": [{"result": "error", "reason": "the run was cut short: it left no result"}]}


def load(folder: Path) -> RunResult:
    """Reads a run directory. A run that was cut short has no result.json; its result is `error`.

    Raises UsageError for a folder that is no run, with what to do."""
    try:
        with _history(folder) as lines:
            captures = Captures.load(folder)
            text = read_file(folder / "scenario.yaml", MAX_BYTES).decode()
            named: dict[str, int] = {}
            history = History(_events(folder, lines, named), captures)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise UsageError(f"{folder}: no recorded run: {_lack(folder)}", HINT) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{folder}: can't be read: {exc}") from exc
    try:
        result = read_result(folder / "result.json")
    except FileNotFoundError:
        result = CUT_SHORT
        for event in history.ends_early():
            history.add(event)
    document, case = typed(Document, result), case_of(result["runs"][0])
    found = document.runs[0]
    scenario = _scenario(folder, found.sets, case)
    lab, hosts = history.lab, _hosts(history, scenario)
    for host, line in named.items():
        if host not in hosts:
            known = ", ".join(hosts) or "none"
            raise UsageError(
                f"{folder}: history.jsonl:{line}: unknown host {host[:60]!r}",
                f"this lab has: {known}",
            )
    return RunResult(
        folder=folder,
        scenario=found.scenario or folder.name,
        title=found.title or (scenario.title if scenario else folder.name),
        theme=scenario.theme if scenario else "",
        about=scenario.about if scenario else "",
        refs=scenario.refs if scenario else (),
        source=found.source or "scenario.yaml",
        text=text,
        variant=found.variant,
        case=case,
        sets=found.sets,
        result=found.result,
        reason=found.reason,
        hint=found.hint,
        backend=found.backend or (lab.backend if lab else ""),
        environment=found.environment or (lab.environment if lab else {}),
        started=found.started or (lab.started if lab else ""),
        seconds=history.now if found.seconds is None else found.seconds,
        lab_seconds=history.now if found.lab_seconds is None else found.lab_seconds,
        verdicts=found.verdicts,
        processes=found.processes,
        causes=found.causes,
        beside=_beside(found),
        counted=found.counted,
        hosts=hosts,
        files=document.files,
        history=history,
        others=others(scenario) if scenario and scenario.case == case else frozenset(),
    )


def read_result(path: Path) -> dict[str, Any]:
    """A result.json, with one run or more. Every key that a `Document` has is of its type. Raises
    UsageError, and FileNotFoundError."""
    try:
        found: dict[str, Any] = loads(read_file(path, MAX_RESULT).decode())
        if isinstance(found, dict):
            of_version(str(path), "result", found.get("version", "1"), READS)
        if not typed(Document, found).runs:
            raise ValueError("it has no run")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as exc:
        raise UsageError(f"{path}: no result document: {exc}") from exc
    return found


def reloaded(found: RunResult) -> RunResult:
    """A run that has just ended, as its folder has it. If there is no folder, or it lacks
    something, what is known of the run."""
    try:
        again = load(found.folder)
        return replace(again, result=found.result, reason=found.reason, hint=found.hint)
    except UsageError:
        return found


@lru_cache(1)  # asked for each claim
def spoilt(run: RunResult) -> dict[str, str]:
    """What is wrong with the contents of captures, by the names of their files. If the length of a
    file is not known, it may have been cut short in its last record."""
    found = {}
    for path in run.folder.glob("*.pcap"):
        content = read_file(path, MAX_RECORD)
        if not FILE_HEADER.startswith(content[: len(FILE_HEADER)]):
            found[path.name] = f"{path.name} is no capture of labctl"
        elif path.name in run.files:
            torn = torn_at(memoryview(content)[len(FILE_HEADER) :])
            if torn is not None:
                at = len(FILE_HEADER) + torn
                found[path.name] = f"{path.name} holds no packet at byte {at}"
    return found


def told_apart(runs: Iterable[RunResult]) -> list[RunResult]:
    """The same runs, each with a label of its own: if several share one, it gets their files, what
    of their --set differs, when they began, or their folders."""
    found = list(runs)
    sets = defaultdict(list)
    for run in found:
        sets[run.label].append(run.sets)
    words = [
        (run.label, run.source, _apart(run.sets, sets[run.label]), run.started, run.folder.name)
        for run in found
    ]
    return [replace(r, name=n) for r, n in zip(found, names.told_apart(words), strict=True)]


def _apart(mine: Mapping[str, str], sets: Iterable[Mapping[str, str]]) -> str:
    """`port=9100`: what was set for one run, and not alike for all."""
    names = {name for each in sets for name in mine if each.get(name) != mine[name]}
    return ", ".join(f"{name}={mine[name]}" for name in mine if name in names) or "defaults"


def _beside(found: Run) -> tuple[str, ...]:
    """The sentences that no cause has."""
    known = {cause.sentence for cause in found.causes}
    return tuple(sentence for sentence in found.why if sentence not in known)


def case_of(run: Mapping[str, Any]) -> str:
    """The case of a run in a result document; older documents only have its variant."""
    return str(run.get("case", variant_words(run.get("variant", {}))))


def _lack(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    below = sorted(path.parent.name for path in folder.glob("*/history.jsonl"))
    if below:
        return f"it holds {len(below)}, such as {below[0]}"
    missing = [n for n in ("history.jsonl", "scenario.yaml") if not (folder / n).is_file()]
    return f"no {' and no '.join(missing)} in it"


def _history(folder: Path) -> IO[bytes]:
    """The lines of a run's history; none if the run has a result and has lost its history."""
    try:
        return open_file(folder / "history.jsonl", MAX_RECORD)
    except FileNotFoundError:
        if not (folder / "result.json").exists():
            raise
        return BytesIO()


def _events(folder: Path, lines: Iterable[bytes], named: dict[str, int]) -> Iterator[Event]:
    """The events of a history; `named` gets the line that names each host first."""
    # The last line may have been cut short while it was written.
    whole = takewhile(lambda line: line.endswith(b"\n"), lines)
    try:
        for number, event in enumerate(read_events(whole), 1):
            if (host := getattr(event, "host", None)) is not None and host not in named:
                named[host] = number
            yield event
    except UsageError as exc:
        raise UsageError(f"{folder}: {exc}") from exc


def scenario_of(run: RunResult) -> Scenario | None:
    """The case that was run, as far as this version can read it."""
    return _scenario(run.folder, run.sets, run.case)


def _scenario(folder: Path, sets: Mapping[str, str], case: str) -> Scenario | None:
    try:
        cases = load_scenario(folder / "scenario.yaml", sets)
    except UsageError:
        return None
    return next((found for found in cases if found.case == case), cases[0])


def _hosts(history: History, scenario: Scenario | None) -> tuple[str, ...]:
    if history.lab:
        return tuple(dict.fromkeys(name.partition(".")[0] for name in history.lab.addresses))
    return tuple(scenario.hosts) if scenario else ()
