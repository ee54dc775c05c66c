"""A run as it was recorded: everything that a report needs, from its folder alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from labctl.accounts import Account
from labctl.check import Verdict, of_another
from labctl.document import MAX_BYTES
from labctl.errors import UsageError
from labctl.history import Environment, Event, History, read_events
from labctl.probes.packets import torn_at
from labctl.probes.segments import FILE_HEADER, Captures
from labctl.reading import MAX_RECORD, MAX_RESULT, loads, open_file, read_file, typed
from labctl.reports import names
from labctl.reports.ladder import Ladder, rows
from labctl.scenario import Scenario
from labctl.scenario import load as load_scenario
from labctl.written import variant_words

if TYPE_CHECKING:
    from labctl.runner import RunResult

MEND = "give a folder that `labctl run` recorded (its last line names it; --out DIR chooses it)"


@dataclass(frozen=True)
class RecordedRun:
    """One recorded case. `seconds` is wall time, `lab_seconds` time by the lab's clock; `started`
    is RFC 3339. `about`, `refs` and `others` (the steps of other variants, by number) are empty
    where the scenario can no longer be read. `files` are the sizes that the files of the record
    had in the end, in bytes, as far as they are known."""

    folder: Path
    scenario: str
    title: str
    about: str
    refs: tuple[str, ...]
    source: str
    text: str
    variant: Mapping[str, Any]
    case: str
    sets: Mapping[str, str]
    result: str
    reason: str | None
    backend: str
    environment: Mapping[str, Any]
    started: str
    seconds: float
    lab_seconds: float
    verdicts: tuple[Verdict, ...]
    processes: tuple[Account, ...]
    why: tuple[str, ...]
    hosts: tuple[str, ...]
    files: Mapping[str, int]
    history: History = field(repr=False)
    name: str = ""
    others: frozenset[int] = frozenset()

    @property
    def label(self) -> str:
        """`so_reuseaddr (old plain, new both)`, or the `name` that it has among others."""
        return self.name or (f"{self.scenario} ({self.case})" if self.case else self.scenario)

    @property
    def place(self) -> str:
        """Where it ran: the backend, the kernel, the operating system, the engine."""
        known = self.environment
        kernel = f"kernel {known['kernel']}" if known.get("kernel") else None
        words = (self.backend, kernel, known.get("os"), known.get("engine"))
        return ", ".join(str(word) for word in words if word)

    @cached_property
    def spoilt(self) -> Mapping[str, str]:
        """What is wrong with what captures hold, by the names of their files. One whose length is
        not known may have been cut short while its last record was written."""
        found = {}
        for path in self.folder.glob("*.pcap"):
            content = read_file(path, MAX_RECORD)
            if not FILE_HEADER.startswith(content[: len(FILE_HEADER)]):
                found[path.name] = f"{path.name} is no capture of labctl"
            elif path.name in self.files:
                torn = torn_at(content[len(FILE_HEADER) :])
                if torn is not None:
                    at = len(FILE_HEADER) + torn
                    found[path.name] = f"{path.name} holds no packet at byte {at}"
        return found

    @cached_property
    def ladder(self) -> Ladder:
        """What happened, as one picture."""
        return rows(self.history, self.hosts, self.verdicts, self.others)


@dataclass(frozen=True)
class Run:
    """What a result document says of a run; None where it does not."""

    result: Literal["pass", "fail", "unknown", "skip", "error"]
    scenario: str | None = None
    source: str | None = None
    title: str | None = None
    variant: dict[str, Any] = field(default_factory=dict)
    case: str | None = None
    sets: dict[str, str] = field(default_factory=dict)
    reason: str | None = None
    backend: str | None = None
    environment: Environment | None = None
    started: str | None = None
    seconds: float | None = None
    lab_seconds: float | None = None
    verdicts: tuple[Verdict, ...] = ()
    processes: tuple[Account, ...] = ()
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """What a run's result.json says."""

    runs: tuple[Run, ...]
    files: dict[str, int] = field(default_factory=dict)


CUT_SHORT = {"runs": [{"result": "error", "reason": "the run was cut short: it left no result"}]}


def load(folder: Path) -> RecordedRun:
    """Reads a run directory. A run that was cut short has no result.json; its result is `error`.

    Raises UsageError for a folder that is no run, with what to do."""
    try:
        with _history(folder) as lines:
            captures = Captures.load(folder)
            text = read_file(folder / "scenario.yaml", MAX_BYTES).decode()
            history = History(_events(folder, lines), captures)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise UsageError(f"{folder}: no recorded run: {_lack(folder)}; {MEND}") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{folder}: can't be read: {exc}") from exc
    try:
        result = read_result(folder / "result.json")
    except FileNotFoundError:
        result = CUT_SHORT
    document, case = typed(Document, result), case_of(result["runs"][0])
    found = document.runs[0]
    scenario = _scenario(folder / "scenario.yaml", found.sets, case)
    lab, hosts = history.lab, _hosts(history, scenario)
    for line, event in enumerate(history.events, 1):
        if (host := getattr(event, "host", None)) is not None and host not in hosts:
            known = ", ".join(hosts) or "none"
            raise UsageError(
                f"{folder}: history.jsonl:{line}: unknown host {host[:60]!r}; this lab has: {known}"
            )
    return RecordedRun(
        folder=folder,
        scenario=found.scenario or folder.name,
        title=found.title or (scenario.title if scenario else folder.name),
        about=scenario.about if scenario else "",
        refs=scenario.refs if scenario else (),
        source=found.source or "scenario.yaml",
        text=text,
        variant=found.variant,
        case=case,
        sets=found.sets,
        result=found.result,
        reason=found.reason,
        backend=found.backend or (lab.backend if lab else ""),
        environment=found.environment or (lab.environment if lab else {}),
        started=found.started or (lab.started if lab else ""),
        seconds=history.now if found.seconds is None else found.seconds,
        lab_seconds=history.now if found.lab_seconds is None else found.lab_seconds,
        verdicts=found.verdicts,
        processes=found.processes,
        why=found.why,
        hosts=hosts,
        files=document.files,
        history=history,
        others=_others(scenario, case),
    )


def read_result(path: Path) -> dict[str, Any]:
    """A result.json, with one run or more: whatever it says of what a `Document` has, is of its
    type. Raises UsageError, and FileNotFoundError."""
    try:
        found: dict[str, Any] = loads(read_file(path, MAX_RESULT).decode())
        if not typed(Document, found).runs:
            raise ValueError("it has no run")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as exc:
        raise UsageError(f"{path}: no result document: {exc}") from exc
    return found


def reloaded(found: RunResult) -> RecordedRun:
    """A run that has just ended, as its folder has it; as far as it is known where that has not
    taken all of it, or there is none."""
    try:
        return replace(load(found.folder), result=found.result, reason=found.reason)
    except UsageError:
        case = found.scenario
        return RecordedRun(
            folder=found.folder,
            scenario=case.name,
            title=case.title,
            about=case.about,
            refs=case.refs,
            source=case.source,
            text=case.text,
            variant=case.variant,
            case=case.case,
            sets=case.sets,
            result=found.result,
            reason=found.reason,
            backend=found.backend,
            environment=found.environment,
            started=found.started,
            seconds=found.seconds,
            lab_seconds=found.lab_seconds,
            verdicts=found.verdicts,
            processes=found.processes,
            why=found.why,
            hosts=tuple(case.hosts),
            files={},
            history=found.history,
        )


def told_apart(runs: Iterable[RecordedRun]) -> list[RecordedRun]:
    """The same runs, each with a label of its own: where several have one, with their files, or
    their folders."""
    found = list(runs)
    words = [(run.label, run.source, run.folder.name) for run in found]
    return [replace(r, name=n) for r, n in zip(found, names.told_apart(words), strict=True)]


def case_of(run: Mapping[str, Any]) -> str:
    """The case of a run in a result document; older ones have its variant alone."""
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
    """The lines of a run's history: none where that has a result, and has lost it."""
    try:
        return open_file(folder / "history.jsonl", MAX_RECORD)
    except FileNotFoundError:
        if not (folder / "result.json").exists():
            raise
        return BytesIO()


def _events(folder: Path, lines: Iterable[bytes]) -> Iterator[Event]:
    # The last one may have been cut short while it was written.
    whole = takewhile(lambda line: line.endswith(b"\n"), lines)
    try:
        yield from read_events(whole)
    except UsageError as exc:
        raise UsageError(f"{folder}: {exc}") from exc


def _scenario(path: Path, sets: Mapping[str, str], case: str) -> Scenario | None:
    """The case that was run, as far as this version can read it."""
    try:
        cases = load_scenario(path, sets)
    except UsageError:
        return None
    return next((found for found in cases if found.case == case), cases[0])


def _others(scenario: Scenario | None, case: str) -> frozenset[int]:
    """The steps that are of other variants only."""
    if scenario is None or scenario.case != case:
        return frozenset()
    return frozenset(n for n in range(len(scenario.steps)) if of_another(scenario, n))


def _hosts(history: History, scenario: Scenario | None) -> tuple[str, ...]:
    if history.lab:
        return tuple(dict.fromkeys(name.partition(".")[0] for name in history.lab.addresses))
    return tuple(scenario.hosts) if scenario else ()
