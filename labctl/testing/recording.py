"""What labs and watches of people's own tests share: a record in a `with`, and claims on it, one by
one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar, Unpack
from unittest import SkipTest

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
from labctl.language.document import Document, Params
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
from labctl.language.scenario import Scenario, with_step
from labctl.language.values import unknown
from labctl.probes.observations import Segment
from labctl.probes.sockets import Socket
from labctl.record.events import Event
from labctl.reports.ladder_text import picture
from labctl.reports.rows import behind
from labctl.run.runner import Judged
from labctl.testing.verbs import Claims, Fields, KindOfEvent, Pattern, checked

__tracebackhide__ = True
"""pytest shows the line of a test that failed, and none of ours."""

Used = TypeVar("Used", bound=Judged)


class Recording(Claims, Generic[Used]):
    """A record in a `with`. A subclass says what is recorded."""

    _what: ClassVar[str]
    """What it is, in messages."""

    def __init__(self) -> None:
        self._session: Used | None = None
        self._owner: tuple[int, int] | None = None
        self._refused: list[UsageError] = []
        self._is_up = False
        self._params: Params = {}
        self._data: dict[str, Any] = {}  # the scenario as it is so far, for the record
        self._context = self._running()

    @abstractmethod
    def _opened(self) -> AbstractContextManager[Used]:
        """A case that is ready to run. Its scenario is what `_data` says, by `_params`. Raises
        UsageError, LabError."""

    def __enter__(self) -> Self:
        if self._owner is not None:
            raise misused(f"a {self._what} is brought up once, and this one has been")
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
            raise misused(f"the {self._what} has not been up yet", "use it in a `with`")
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
        session = self._of(host)
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
    def _begun(self) -> Used:
        if self._session is None:
            raise misused(f"the {self._what} has not been up yet", "use it in a `with`")
        return self._session

    @property
    def _up(self) -> Used:
        if not self._is_up:
            raise misused(f"the {self._what} is not up", "use it in a `with`")
        if self._owner != thread():
            message = f"a {self._what} is of the thread that brought it up"
            self._refused.append(misused(message, f"use it there, or a {self._what} for each"))
            raise self._refused[-1]
        return self._begun

    def _of(self, host: str) -> Used:
        """The session, if it has a host of this name."""
        session = self._up
        demand("host", host, (str,), "the name of a host")
        if host not in session.scenario.hosts:
            raise misused(unknown("host", host, session.scenario.hosts))
        return session

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Its whole life."""
        try:
            with self._opened() as session:
                with _explained(session), session.up():
                    self._session, self._is_up = session, True
                    for index in range(len(session.scenario.steps)):
                        self._do(index)
                    yield
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
            with suppress(LabError):
                self._up.lab.flush()
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
def _explained(session: Judged) -> Iterator[None]:
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
    for number, cause in sorted(causes[:FOREMOST], key=itemgetter(0)):
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
