"""Labs for people's own tests: the steps of the language from Python, one by one.

    with labctl.Lab(hosts={...}) as lab:
        lab.start("server")
        lab.expect(sockets={"server": "LISTEN"})

It is a run like any other: recorded in a directory, judged by the same code. Its scenario.yaml
grows with every step, so `labctl run` can repeat it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from unittest import SkipTest

from labctl.backends import choose
from labctl.ground.errors import LabError, ScenarioError, Unavailable, UsageError
from labctl.ground.invoked import command
from labctl.ground.output import tell
from labctl.ground.plain import plain_lines
from labctl.judge import accounts, recorded
from labctl.judge.accounts import Account
from labctl.judge.causes.cause import Cause
from labctl.judge.causes.rules import causes
from labctl.judge.check import NotKnown, NotPassed, Verdict, check_step, check_whole
from labctl.judge.explain import FOREMOST, beside, foremost
from labctl.language.document import Document
from labctl.language.from_python import (
    caller,
    demand,
    dump,
    given,
    here,
    misused,
    plain,
    shown,
    thread,
)
from labctl.language.from_python import document as as_document
from labctl.language.models import TWO_HOSTS
from labctl.language.params import Given
from labctl.language.scenario import Scenario, load_document, with_step
from labctl.language.services import check_services
from labctl.language.values import unknown
from labctl.probes.observations import Segment
from labctl.probes.sockets import Socket
from labctl.record.events import Event
from labctl.reports.ladder_text import picture
from labctl.reports.rows import behind
from labctl.run import workflow
from labctl.run.places import Place
from labctl.run.runner import Session, Silent
from labctl.testing.verbs import Fields, KindOfEvent, Pattern, Verbs, checked

__tracebackhide__ = True
"""pytest shows the line of a test that failed, and none of ours."""


class Where(TypedDict, total=False):
    """Where a lab runs, and where it is recorded."""

    backend: str
    os: str | None
    out: Path | None


class Lab(Verbs):
    """A lab in a `with`. Every verb of the language is a method, see Verbs:

        lab.kill("server", as_="killed")             {kill: server, as: killed}
        lab.wait(sockets={"server": "none"},         {wait: {sockets: {server: none}},
                 since="killed", within="1s..2s")     since: killed, within: 1s..2s}
        lab.sysctl("server", {...})                  {sysctl: {server: {...}}}

    `hosts` is what stands below `hosts` in a scenario. Or `scenario` is a whole one: the path of a
    file, a YAML text or a mapping, whose own steps are done first, and whose `expect` is judged at
    the end. `sets` overrides params, as `--set` does. `backend`, `os` and `out` are as for
    `labctl run`, and `os` is Docker's alone.

    A claim that does not hold, or can't be decided, raises NotPassed, an AssertionError. If an
    exception leaves the `with`, the record has it, and the exception gets the ladder as a note. A
    lab that can't run here raises SkipTest. A mistake raises UsageError before anything is done; a
    lab that fails raises LabError.

    A lab belongs to the thread that brought it up. In another one its verbs raise UsageError, and
    so does the end of the `with`: nobody judged what the test wanted there.
    """

    @checked
    def __init__(
        self,
        scenario: Path | str | Mapping[str, Any] | None = None,
        *,
        hosts: Mapping[str, Any] | None = None,
        sets: Mapping[str, str] | None = None,
        **place: Unpack[Where],
    ) -> None:
        if (scenario is None) == (hosts is None):
            raise misused("a lab takes a scenario or hosts, one of them")
        demand("scenario", scenario, (Path, str, Mapping, None), "a path, a text or a mapping")
        demand("hosts", hosts, (Mapping, None), "a mapping of hosts, by name")
        if hosts is not None and len(hosts) < 2:
            raise misused(TWO_HOSTS)
        backend, os, out = place.get("backend", "auto"), place.get("os"), place.get("out")
        demand("backend", backend, (str,), "auto, docker or netns")
        demand("os", os, (str, None), "a text, the name of an image,")
        demand("out", out, (Path, str, None), "a path")
        demand("sets", sets, (Mapping, None), "a mapping of texts, by the names of params,")
        for name, value in (sets or {}).items():
            demand("sets: each name", name, (str,), "a text")
            demand(f"sets: {name}", value, (str,), "a text, as --set takes it,")
        self._backend, self._os, self._out = backend, os, None if out is None else Path(out)
        self._session: Session | None = None
        self._owner: tuple[int, int] | None = None
        self._refused: list[UsageError] = []
        self._is_up = False
        self._context = self._running()
        try:
            document, name = as_document({"hosts": hosts} if scenario is None else scenario)
            cases = check_services(load_document(document, document.text, name, sets or {}))
            choices = Given(document).choices(sets or {})
        except ScenarioError as exc:
            raise exc if isinstance(scenario, Path | str) else here(exc) from None
        if len(cases) != 1:
            labels = ", ".join(case.label for case in cases)
            raise UsageError(f"{document.file}: a lab is of one variant, not {labels}", "use sets")
        (case,) = cases
        self._params = choices[0].params
        data = document.expand(None).data
        data |= {"params": dict(self._params)} if self._params else {}
        if case.variant:
            data["variants"] = [{name: self._params[name] for name in case.variant}]
        self._data = data  # the scenario as it is so far, for the record
        self._case = replace(case, text=dump(data))

    def __enter__(self) -> Self:
        if self._owner is not None:
            raise misused("a lab is brought up once, and this one has been")
        self._owner = thread()
        self._context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if self._owner is None:
            raise misused("the lab has not been up yet", "use it in a `with`")
        return self._context.__exit__(kind, exc, trace)

    @checked
    def do(self, step: Fields) -> None:
        """Does one step, written as in the language: `{"kill": "server", "as": "killed"}`."""
        session = self._up
        demand("step", step, (Mapping,), "a mapping with one verb")
        session.scenario = self._with(step)
        self._data["steps"].append(plain(step))
        session.folder.write_scenario(dump(self._data))
        self._do(len(session.scenario.steps) - 1)

    @checked
    def sockets(self, host: str) -> tuple[Socket, ...]:
        """The TCP sockets of a host, as they are now."""
        session = self._up
        demand("host", host, (str,), "the name of a host")
        if host not in session.scenario.hosts:
            raise misused(unknown("host", host, session.scenario.hosts))
        session.lab.look([host])
        if trouble := session.history.trouble.get((host, "ss")):
            words = f"{caller()}: the sockets of {host}: unknown: {trouble.text}"
            raise NotKnown(plain_lines(words))
        return session.history.sockets[host].sockets

    @checked
    def segments(self, **pattern: Unpack[Pattern]) -> tuple[Segment, ...]:
        """The segments so far that match; see `segments` in docs/language.md. Their number is a
        claim, for `expect`. Raises NotPassed if not all were captured."""
        session = self._up
        claim = self._with({"expect": {"segments": given(**pattern)}}).steps[-1].claim
        assert claim
        assert claim.segments
        session.lab.flush()
        found = claim.segments.judge(session.history)
        if found.result == "unknown":
            words = f"{caller()}: {found.expected}: unknown: {found.actual}"
            raise NotKnown(plain_lines(words))
        return tuple(claim.segments.found(session.history))

    @checked
    def events(self, kind: type[KindOfEvent]) -> tuple[KindOfEvent, ...]:
        """The events so far of one kind: a class such as `labctl.CallEvent`."""
        if not is_kind(kind):
            raise misused(f"a class of events is wanted, such as CallEvent, not {shown(kind)}")
        return tuple(event for event in self._begun.history.events if isinstance(event, kind))

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self._begun.folder.path

    @property
    def _begun(self) -> Session:
        if self._session is None:
            raise misused("the lab has not been up yet", "use it in a `with`")
        return self._session

    @property
    def _up(self) -> Session:
        if not self._is_up:
            raise misused("the lab is not up", "use it in a `with`")
        if self._owner != thread():
            message = "a lab is of the thread that brought it up"
            self._refused.append(misused(message, "use it there, or a lab for each"))
            raise self._refused[-1]
        return self._begun

    @contextmanager
    def _running(self) -> Iterator[None]:
        """The whole life of the lab."""
        place = Place(ready(self._backend, self._os), self._os or "")
        try:
            folder = workflow.new_run(self._case, self._out)
            with workflow.session(folder, self._case, Silent(), tell, place) as session:
                with _explained(session), session.up():
                    self._session, self._is_up = session, True
                    try:
                        for index in range(len(self._case.steps)):
                            self._do(index)
                        yield
                    except (KeyboardInterrupt, GeneratorExit):
                        raise
                    except BaseException:
                        with suppress(LabError):
                            session.lab.flush()
                        raise
                    if self._refused:
                        raise self._refused[0]
                    session.last_look()
                    self._demand(check_whole(session.scenario, session.history))
        except Unavailable as exc:
            raise SkipTest(str(exc)) from exc
        finally:
            self._is_up = False

    def _do(self, index: int) -> None:
        session = self._up
        begin, end = session.do(index)
        self._demand(check_step(session.scenario, end, session.history, begin.t))

    def _demand(self, verdicts: Iterable[Verdict]) -> None:
        if wrong := [v for v in verdicts if v.result in ("fail", "unknown")]:
            history = self._up.history
            found = causes(history, self._up.scenario)
            others = beside(history, found)
            others += accounts.reasons(a for verdict in wrong for a in verdict.processes)
            why = why_lines(foremost(found, wrong, history), others, self.folder)
            raise NotPassed(failure_text(wrong, why, self.folder), wrong)

    def _with(self, step: Mapping[str, Any]) -> Scenario:
        """The scenario with one more step."""
        place = caller()
        try:
            document = Document(place.file, dump({"steps": [plain(step)]}))
            return with_step(self._up.scenario, document, self._params, str(place))
        except ScenarioError as exc:
            raise here(exc) from None


def is_kind(value: object) -> bool:
    """Whether this is a class of events."""
    return isinstance(value, type) and issubclass(value, Event)


@contextmanager
def _explained(session: Session) -> Iterator[None]:
    """Adds the ladder of a run, and where to see more, to the exception that ends it. If Python
    would end without a message, reports it."""
    try:
        yield
    except (Unavailable, GeneratorExit):
        raise
    except BaseException as exc:
        folder = session.folder.path
        with suppress(Exception):  # this one is what matters
            where = "" if isinstance(exc, NotPassed) else f"\n{seen_at(folder)}"
            exc.add_note(ladder(folder) + where)
            if isinstance(exc, SystemExit):
                tell("\n".join(exc.__notes__))
        raise


def ladder(folder: Path) -> str:
    """What happened in a run, as `labctl report` draws it."""
    run = recorded.load(folder)
    return picture(replace(run, causes=tuple(causes(run.history, recorded.scenario_of(run)))))


def failure_text(
    verdicts: Iterable[Verdict],
    why: Iterable[str],
    folder: Path,
    processes: Sequence[Account] = (),
) -> str:
    """What did not pass, what processes did last, why (`why_lines`), and where to see more."""
    lines = []
    for verdict, found in behind(verdicts):
        if verdict.result in ("fail", "unknown"):
            lines += [str(verdict), *(f"    {line}" for line in found)]
    lines += [f"    {line}" for line in accounts.account_lines(processes)]
    return plain_lines("\n".join([*lines, *why, seen_at(folder)]))


def why_lines(
    causes: Sequence[tuple[int, Cause]], others: Iterable[str], folder: Path
) -> list[str]:
    """The first causes with their cures, by the numbers that they have in the ladder, and where to
    see the others; and what is beside them."""
    lines = []
    for number, cause in causes[:FOREMOST]:
        lines += [
            f"Why [{number}]: {cause.text}",
            *([f"    do: {cause.cure}"] if cause.cure else []),
        ]
    if more := len(causes) - FOREMOST:
        lines += [f"    {more} more: {command()} explain {folder}"] if more > 0 else []
    return [*lines, *(f"Why: {sentence}" for sentence in dict.fromkeys(others))]


def seen_at(folder: Path) -> str:
    """Where to see more of a run."""
    return f"recorded; see it all: {command()} report {folder}"


@cache
def ready(backend: str, os: str | None) -> str:
    """The backend of a name. Once in each process, this removes what killed runs left in an engine.
    Raises UsageError."""
    chosen = choose(backend, os)
    if chosen == "docker":
        workflow.sweep()
    return chosen
