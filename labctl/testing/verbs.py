"""The verbs of the language as methods. docs/language.md says what each does."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Literal, ParamSpec, TypeVar

from labctl.ground.errors import Mistake, ScenarioError
from labctl.language.from_python import caller, demand, given, misused
from labctl.language.values import unknown
from labctl.record.events import Event, ExecEvent

__tracebackhide__ = True
"""See lab.py."""

Args = ParamSpec("Args")
Result = TypeVar("Result")
KindOfEvent = TypeVar("KindOfEvent", bound=Event)
Fields = Mapping[str, object]
"""A mapping of the language, by its keys."""
Duration = str | float
"""`"50ms"`, `"1.5s"`, or a number of seconds."""
Flags = str | Sequence[str]
"""`"FIN"`, `"SYN ACK"` or `["SYN", "ACK"]`."""
Sockets = Mapping[str, str | Fields | Sequence[str | Fields]]
"""By host: a state, `none`, a mapping, or a list of these."""
Processes = Mapping[str, str | Fields]
"""By process: `running`, `exited`, `ok`, an errno, or a mapping."""
Counters = Mapping[str, Mapping[str, int | str]]
"""By host and by name: a number, or a comparison such as `">=1"`."""
Path = Mapping[str, Sequence[str]]
"""By host: states, in order."""


def checked(method: Callable[Args, Result]) -> Callable[Args, Result]:
    """Has what Python would complain of in a call be a UsageError in the caller's line."""
    signature = inspect.signature(method)
    names = [*signature.parameters][1:]

    @wraps(method)
    def act(*args: Args.args, **keywords: Args.kwargs) -> Result:
        if strange := [word for word in keywords if word not in names]:
            place = caller()
            message = f"{method.__name__}: {unknown('key', strange[0], names)}"
            raise ScenarioError([Mistake(place.file, place.line, message)])
        try:
            signature.bind(*args, **keywords)
        except TypeError as exc:
            raise misused(f"{method.__name__}: {exc}") from None
        return method(*args, **keywords)

    return act


class Verbs(ABC):
    """A method for every verb, which does that step.

    What is about one process or host takes its name. What sets something for one of them takes a
    mapping too, `{name: value}`, for several at once. What stands below the other verbs is a
    keyword each, or one mapping. `as_` and `when` are modifiers of every step: the label of its
    moment, and where it is done. A name that Python keeps for itself takes an underscore.

    Each raises UsageError for a mistake, before anything is done; NotPassed where the step can't
    be done, or its claim does not hold or can't be decided; LabError where the lab fails.
    """

    @abstractmethod
    def do(self, step: Fields) -> None:
        """Does one step, as the language writes it: `{"kill": "server", "as": "killed"}`."""

    @abstractmethod
    def events(self, kind: type[KindOfEvent]) -> tuple[KindOfEvent, ...]:
        """What has happened so far, of one kind."""

    @checked
    def start(self, process: str, *, as_: str | None = None, when: Fields | None = None) -> None:
        """Runs a process, beside what an earlier start of it has left."""
        self.do({"start": process, **given(as_=as_, when=when)})

    @checked
    def restart(self, process: str, *, as_: str | None = None, when: Fields | None = None) -> None:
        """Runs a process again on its host. If anything of it still runs, kills that first."""
        self.do({"restart": process, **given(as_=as_, when=when)})

    @checked
    def kill(self, process: str, *, as_: str | None = None, when: Fields | None = None) -> None:
        """Sends SIGKILL to everything in a process."""
        self.do({"kill": process, **given(as_=as_, when=when)})

    @checked
    def stop(self, process: str, *, as_: str | None = None, when: Fields | None = None) -> None:
        """Sends SIGTERM to the main process, and SIGKILL to all that is there when that has ended,
        or after 10 s."""
        self.do({"stop": process, **given(as_=as_, when=when)})

    @checked
    def signal(
        self,
        process: str | Mapping[str, str | int],
        name: str | int | None = None,
        *,
        as_: str | None = None,
        when: Fields | None = None,
    ) -> None:
        """Sends a signal, `"TERM"`, to the main process alone: its children live on."""
        self.do({"signal": _each(process, name), **given(as_=as_, when=when)})

    @checked
    def pause(self, process: str, *, as_: str | None = None, when: Fields | None = None) -> None:
        """Freezes everything in a process."""
        self.do({"pause": process, **given(as_=as_, when=when)})

    @checked
    def resume(self, process: str, *, as_: str | None = None, when: Fields | None = None) -> None:
        """Thaws a process."""
        self.do({"resume": process, **given(as_=as_, when=when)})

    @checked
    def call(
        self,
        process: str | Mapping[str, str],
        calls: str | None = None,
        *,
        as_: str | None = None,
        when: Fields | None = None,
    ) -> None:
        """Has a process that is in `await` do socket calls more: `"send 5; shutdown wr"`."""
        self.do({"call": _each(process, calls), **given(as_=as_, when=when)})

    @checked
    def exec(
        self,
        host: str,
        command: str,
        *,
        status: int | Literal["any"] | None = None,
        output: str | None = None,
        as_: str | None = None,
        when: Fields | None = None,
    ) -> ExecEvent:
        """Runs a command on a host, by its shell; what came of it has `exit` and `output`. One that
        fails is a failed claim, unless `status` says which is wanted. `output` is a regular
        expression for what it writes."""
        before = len(self.events(ExecEvent))
        modifiers = given(status=status, output=output, as_=as_, when=when)
        self.do({"exec": _each(host, command), **modifiers})
        done = self.events(ExecEvent)[before:]
        if not done:
            raise misused("this was left out here, so nothing came of it")
        return done[-1]

    @checked
    def sysctl(
        self,
        host: str | Mapping[str, Mapping[str, str | int]],
        values: Mapping[str, str | int] | None = None,
        *,
        as_: str | None = None,
        when: Fields | None = None,
    ) -> None:
        """Sets sysctls of a host: `{"net.ipv4.tcp_fin_timeout": 7}`."""
        self.do({"sysctl": _each(host, values), **given(as_=as_, when=when)})

    @checked
    def drop(
        self,
        pattern: Fields | None = None,
        *,
        from_: str | None = None,
        to: str | None = None,
        flags: Flags | None = None,
        bare: bool | None = None,
        count: int | None = None,
        at: Literal["sender", "receiver"] | None = None,
        as_: str | None = None,
        when: Fields | None = None,
    ) -> None:
        """Loses the segments that match, until it is healed or has lost `count` of them. `from_`
        and `to` are `HOST` or `HOST:PORT`; one of the two is needed. That it lost some is a claim,
        judged when the lab ends."""
        keys = given(from_=from_, to=to, flags=flags, bare=bare, count=count, at=at)
        self.do({"drop": _below(pattern, keys), **given(as_=as_, when=when)})

    @checked
    def heal(self, label: str, *, as_: str | None = None, when: Fields | None = None) -> None:
        """Ends a drop, by its label; with `"all"`, ends all drops and links are as they were."""
        self.do({"heal": label, **given(as_=as_, when=when)})

    @checked
    def net(
        self,
        host: str | Mapping[str, Fields],
        link: Fields | None = None,
        *,
        as_: str | None = None,
        when: Fields | None = None,
    ) -> None:
        """Makes a host's link slow or unreliable: `{"delay": "50ms", "loss": "1%"}`. An empty
        mapping makes it as it was."""
        self.do({"net": _each(host, link), **given(as_=as_, when=when)})

    @checked
    def cut(self, host: str, *, as_: str | None = None, when: Fields | None = None) -> None:
        """Takes the link of a host down. What others send to it is lost."""
        self.do({"cut": host, **given(as_=as_, when=when)})

    @checked
    def join(self, host: str, *, as_: str | None = None, when: Fields | None = None) -> None:
        """Takes the link of a host up again."""
        self.do({"join": host, **given(as_=as_, when=when)})

    @checked
    def inject(
        self,
        pattern: Fields | None = None,
        *,
        from_: str | None = None,
        to: str | None = None,
        flags: Flags | None = None,
        seq: int | str | None = None,
        ack: int | str | None = None,
        payload: str | None = None,
        connection: int | None = None,
        as_: str | None = None,
        when: Fields | None = None,
    ) -> None:
        """Has the host `from_` send one segment that its own TCP knows nothing of, in a connection
        with `to`: the latest one, or number `connection`, from 1 on. `seq` and `ack` are `"next"`,
        `"next+5"`, or count from the connection's first number."""
        keys = given(
            from_=from_, to=to, flags=flags, seq=seq, ack=ack, payload=payload,
            connection=connection,
        )  # fmt: skip
        self.do({"inject": _below(pattern, keys), **given(as_=as_, when=when)})

    @checked
    def snapshot(self, caption: str, *, as_: str | None = None, when: Fields | None = None) -> None:
        """Takes down what `ss` says on every host, under a caption."""
        self.do({"snapshot": caption, **given(as_=as_, when=when)})

    @checked
    def wait(
        self,
        claim: Fields | None = None,
        *,
        sockets: Sockets | None = None,
        process: Processes | None = None,
        counters: Counters | None = None,
        segments: Fields | None = None,
        lasted: Fields | None = None,
        path: Path | None = None,
        within: Duration | None = None,
        since: str | None = None,
        hint: str | None = None,
        as_: str | None = None,
        when: Fields | None = None,
    ) -> None:
        """Waits until a claim holds: 5 s, or as long as `within` says, from now on or from the
        label `since`. `"4.5s..7s"` says how long it must take, too. `hint` is shown where it does
        not hold."""
        keys = given(
            sockets=sockets, process=process, counters=counters, segments=segments, lasted=lasted,
            path=path,
        )  # fmt: skip
        modifiers = given(within=within, since=since, hint=hint, as_=as_, when=when)
        self.do({"wait": _below(claim, keys), **modifiers})

    @checked
    def expect(
        self,
        claim: Fields | None = None,
        *,
        sockets: Sockets | None = None,
        process: Processes | None = None,
        counters: Counters | None = None,
        segments: Fields | None = None,
        lasted: Fields | None = None,
        path: Path | None = None,
        hint: str | None = None,
        as_: str | None = None,
        when: Fields | None = None,
    ) -> None:
        """Judges a claim now, once what is in flight has arrived. `hint` is shown where it does
        not hold."""
        keys = given(
            sockets=sockets, process=process, counters=counters, segments=segments, lasted=lasted,
            path=path,
        )  # fmt: skip
        self.do({"expect": _below(claim, keys), **given(hint=hint, as_=as_, when=when)})

    @checked
    def sleep(
        self, duration: Duration, *, as_: str | None = None, when: Fields | None = None
    ) -> None:
        """Lets time pass."""
        self.do({"sleep": duration, **given(as_=as_, when=when)})

    @checked
    def note(self, text: str, *, as_: str | None = None, when: Fields | None = None) -> None:
        """Puts a remark into the record."""
        self.do({"note": text, **given(as_=as_, when=when)})


def _each(name: object, value: object) -> object:
    """What a name and a value mean, or a mapping of several."""
    if value is None:
        return name
    demand("the first of two arguments", name, (str,), "a name")
    return {name: value}


def _below(whole: object, keys: Fields) -> object:
    """What stands below a verb: given as it is, or by keywords."""
    if whole is not None and keys:
        raise misused(f"a mapping and the keyword {next(iter(keys))!r} beside it", "keep one")
    return keys if whole is None else whole
