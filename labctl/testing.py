"""Labs for people's own tests: the steps of the language from Python, one by one.

    with labctl.Lab(hosts={...}) as lab:
        lab.start("server")
        lab.expect(sockets={"server": "LISTEN"})

It is a run like any other: recorded in a directory, judged by the same code. Its scenario.yaml
grows with every step, so `labctl run` can repeat it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from unittest import SkipTest

import yaml

from labctl import reports, workflow
from labctl.backends import MissingHere, choose
from labctl.check import NotPassed, Verdict, check_step, check_whole
from labctl.document import CORE, Document
from labctl.errors import LabError, Mistake, ScenarioError, Unavailable, UsageError
from labctl.explain import explain
from labctl.history import Event, ExecEvent
from labctl.invoked import command
from labctl.output import tell
from labctl.params import Given
from labctl.probes.segments import Segment
from labctl.probes.sockets import Socket
from labctl.reports import recorded
from labctl.runner import Session, Silent
from labctl.scenario import Scenario, load_document, with_step
from labctl.steps import STEPS
from labctl.values import unknown
from labctl.written import Float, Int

__tracebackhide__ = True
"""pytest shows the line of a test that failed, and none of ours."""

KindOfEvent = TypeVar("KindOfEvent", bound=Event)
OWN_CODE = ("labctl", "contextlib")


class Lab:
    """A lab in a `with`. Every verb of the language is a method:

        lab.kill("server", as_="killed")             {kill: server, as: killed}
        lab.wait(sockets={"server": "none"},         {wait: {sockets: {server: none}},
                 since="killed", within="1s..2s")     since: killed, within: 1s..2s}
        lab.sysctl("server", {...})                  {sysctl: {server: {...}}}

    A name that Python keeps for itself takes an underscore at its end: `as_`, `from_`.

    `hosts` is what stands below `hosts` in a scenario. Or `scenario` is a whole one: the path of a
    file, a YAML text or a mapping, whose own steps are done first, and whose `expect` is judged at
    the end. `sets` overrides params, as `--set` does. `backend`, `os` and `out` are as for
    `labctl run`, and `os` is Docker's alone.

    A claim that does not hold, or can't be decided, raises NotPassed, an AssertionError. Whatever
    exception leaves the `with`, a note at it shows the ladder. What can't run here raises SkipTest.
    A mistake raises ScenarioError before anything is done; a lab that fails, LabError.
    """

    def __init__(
        self,
        scenario: Path | str | Mapping[str, Any] | None = None,
        *,
        hosts: Mapping[str, Any] | None = None,
        sets: Mapping[str, str] | None = None,
        backend: str = "auto",
        os: str | None = None,
        out: Path | None = None,
    ) -> None:
        if (scenario is None) == (hosts is None):
            raise UsageError(f"{_caller()}: a lab takes a scenario or hosts, one of them")
        self._backend, self._os, self._out = backend, os, out
        self._session: Session | None = None
        self._is_up = False
        self._context = self._running()
        try:
            document, name = _document({"hosts": hosts} if scenario is None else scenario)
            cases = load_document(document, document.text, name, sets or {})
            choices = Given(document).choices(sets or {})
        except ScenarioError as exc:
            raise exc if isinstance(scenario, Path | str) else _here(exc) from None
        if len(cases) != 1:
            labels = ", ".join(case.label for case in cases)
            raise UsageError(f"{document.file}: a lab is of one variant, not {labels}; use sets")
        (case,) = cases
        self._params = choices[0].params
        data = document.expand(None).data
        data |= {"params": dict(self._params)} if self._params else {}
        if case.variant:
            data["variants"] = [{name: self._params[name] for name in case.variant}]
        self._data = data  # the scenario as it is so far, for the record
        self._case = replace(case, text=_dump(data))

    def __enter__(self) -> Self:
        if self._session is not None:
            raise UsageError(f"{_caller()}: a lab is brought up once, and this one has been")
        self._context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return self._context.__exit__(kind, exc, trace)

    def do(self, step: Mapping[str, Any]) -> None:
        """Does one step, as the language writes it: `{"kill": "server", "as": "killed"}`."""
        session = self._up
        session.scenario = self._with(step)
        self._data["steps"].append(_plain(step))
        session.folder.write_scenario(_dump(self._data))
        self._do(len(session.scenario.steps) - 1)

    def __getattr__(self, verb: str) -> Callable[..., None]:
        if verb not in STEPS:
            raise AttributeError(unknown("verb", verb, STEPS))
        fields = STEPS[verb].model_fields
        modifiers = {field.alias or name for name, field in fields.items()} - {verb}

        def act(*subject: Any, **words: Any) -> None:
            words = _words(words)
            if len(subject) > 2:
                raise TypeError(f"{verb} takes a subject, or a name and a value for it")
            if subject:
                value = subject[0] if len(subject) == 1 else {subject[0]: subject[1]}
                self.do({verb: value, **words})
            else:
                beside = {word: words.pop(word) for word in [*words] if word in modifiers}
                self.do({verb: words, **beside})

        return act

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *STEPS]

    def exec(self, host: str, command: str) -> ExecEvent:
        """The step `exec`; what came of it has `exit` and `output`."""
        self.do({"exec": {host: command}})
        return self.events(ExecEvent)[-1]

    def sockets(self, host: str) -> tuple[Socket, ...]:
        """The TCP sockets of a host, as they are now."""
        session = self._up
        if host not in session.scenario.hosts:
            raise UsageError(f"{_caller()}: {unknown('host', host, session.scenario.hosts)}")
        session.lab.look([host])
        return session.history.sockets[host].sockets

    def segments(self, **pattern: Any) -> tuple[Segment, ...]:
        """The segments so far that match what stands below `segments` in the language. Raises
        NotPassed where not all were captured."""
        session = self._up
        claim = self._with({"expect": {"segments": _words(pattern)}}).steps[-1].claim
        assert claim
        assert claim.segments
        session.lab.flush()
        found = claim.segments.judge(session.history)
        if found.result == "unknown":
            raise NotPassed(f"{_caller()}: {found.expected}: unknown: {found.actual}")
        return tuple(claim.segments.found(session.history))

    def events(self, kind: type[KindOfEvent]) -> tuple[KindOfEvent, ...]:
        """What has happened so far, of one kind: a class of `labctl.history`."""
        return tuple(event for event in self._begun.history.events if isinstance(event, kind))

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self._begun.folder.path

    @property
    def _begun(self) -> Session:
        if self._session is None:
            raise UsageError(f"{_caller()}: the lab has not been up yet; use it in a `with`")
        return self._session

    @property
    def _up(self) -> Session:
        if not self._is_up:
            raise UsageError(f"{_caller()}: the lab is not up; use it in a `with`")
        return self._begun

    @contextmanager
    def _running(self) -> Iterator[None]:
        """All of the lab's life."""
        backend = ready(self._backend, self._os)
        os = self._os or workflow.DEFAULT_OS
        try:
            folder = workflow.place(self._case, self._out)
            with workflow.session(folder, self._case, Silent(), tell, backend, os) as session:
                with _explained(session), session.up():
                    self._session, self._is_up = session, True
                    try:
                        for index in range(len(self._case.steps)):
                            self._do(index)
                        yield
                    except Exception:
                        with suppress(LabError):
                            session.lab.flush()
                        raise
                    session.last_look()
                    self._demand(check_whole(session.scenario, session.history))
        except (MissingHere, Unavailable) as exc:
            raise SkipTest(str(exc)) from exc
        finally:
            self._is_up = False

    def _do(self, index: int) -> None:
        session = self._up
        begin, end = session.do(index)
        self._demand(check_step(session.scenario, end, session.history, begin.t))

    def _demand(self, verdicts: Iterable[Verdict]) -> None:
        if wrong := [v for v in verdicts if v.result in ("fail", "unknown")]:
            raise NotPassed(told(wrong, explain(self._up.history.events), self.folder))

    def _with(self, step: Mapping[str, Any]) -> Scenario:
        """The scenario with one more step."""
        place = _caller()
        try:
            document = Document(place.file, _dump({"steps": [_plain(step)]}))
            return with_step(self._up.scenario, document, self._params, str(place))
        except ScenarioError as exc:
            raise _here(exc) from None


@contextmanager
def _explained(session: Session) -> Iterator[None]:
    """Adds the ladder of a run to what ends it."""
    try:
        yield
    except (MissingHere, Unavailable, UsageError):
        raise
    except Exception as exc:
        exc.add_note(ladder(session.folder.path))
        raise


def ladder(folder: Path) -> str:
    """What happened in a run, as `labctl report` shows it."""
    return reports.render("ladder", [recorded.load(folder)])


def told(verdicts: Iterable[Verdict], why: Iterable[str], folder: Path) -> str:
    """What did not pass, why, and where to see more."""
    lines = []
    for verdict in verdicts:
        if verdict.result in ("fail", "unknown"):
            lines += [str(verdict), *(f"    {line}" for line in verdict.evidence)]
    lines += [f"Why: {sentence}" for sentence in why]
    return "\n".join([*lines, f"recorded; see it all: {command()} report {folder}"])


@cache
def ready(backend: str, os: str | None) -> str:
    """The backend that a name stands for, once a process: what killed runs left in an engine is
    removed then. Raises UsageError."""
    chosen = choose(backend, os)
    if chosen == "docker":
        workflow.sweep()
    return chosen


# --- From Python to what a file would say ---------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A line of somebody's code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def _caller() -> _Place:
    """The line outside of labctl that brought us here."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in OWN_CODE and frame.f_back:
        frame = frame.f_back
    file, here = Path(frame.f_code.co_filename), Path.cwd()
    shown = file.relative_to(here) if file.is_relative_to(here) else file
    return _Place(str(shown), frame.f_lineno, frame.f_code.co_name)


def _here(exc: ScenarioError) -> ScenarioError:
    """The same mistakes, in the line that gave what they are in: it stands in no file."""
    place = _caller()
    return ScenarioError(Mistake(place.file, place.line, m.message) for m in exc.mistakes)


def _document(scenario: Path | str | Mapping[str, Any]) -> tuple[Document, str]:
    """A scenario, however it is given, and its name."""
    if isinstance(scenario, Path):
        return Document.read(scenario), scenario.stem
    place = _caller()
    name = Path(place.file).stem if place.function.startswith("<") else place.function
    if isinstance(scenario, str):
        return Document(f"<scenario of {name}>", scenario), name
    data = _plain(scenario)
    data = {"title": name, **data, "steps": data.get("steps", [])}
    return Document(place.file, _dump(data)), name


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Data as YAML has it. Raises UsageError for what is no data."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(data))
    except (TypeError, ValueError) as exc:
        raise UsageError(
            f"{_caller()}: texts, numbers, lists and mappings are wanted: {exc}"
        ) from exc
    return found


def _words(words: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords by the names that they have in the language."""
    return {word.removesuffix("_"): value for word, value in words.items()}


class _Dumper(yaml.SafeDumper):
    """Writes numbers and params as they were written."""


_Dumper.add_multi_representer(yaml.Node, lambda _, node: node)
_Dumper.add_representer(Int, lambda dumper, n: dumper.represent_scalar(CORE + "int", n.written))
_Dumper.add_representer(Float, lambda dumper, n: dumper.represent_scalar(CORE + "float", n.written))


def _dump(data: Mapping[str, Any]) -> str:
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None
    )
    return text
