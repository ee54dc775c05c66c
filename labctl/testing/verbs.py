"""The verbs of the language as methods. docs/language.md says what each does."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from typing import (
    Literal,
    ParamSpec,
    TypedDict,
    TypeVar,
    Unpack,
    get_args,
    get_type_hints,
)

from labctl.ground.errors import Mistake, ScenarioError
from labctl.language.from_python import caller, demand, given, misused
from labctl.language.steps import modifiers
from labctl.language.values import unknown
from labctl.record.events import Event, ExecEvent

__tracebackhide__ = True
"""See recording.py."""

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
Number = int | str
"""A number, or a comparison such as `">=1"`."""
Counters = Mapping[str, Mapping[str, Number]]
"""By host and by name."""
Path = Mapping[str, Sequence[str]]
"""By host: states, in order."""


class Step(TypedDict, total=False):
    """What every step takes: the label of its moment, and where to do it."""

    as_: str
    when: Fields


class ExecStep(Step, total=False):
    """`status` is the wanted status, by default 0; `output` a regular expression."""

    status: int | Literal["any"]
    output: str


class DropStep(Step, total=False):
    """Which segments, how many of them, and where they are lost."""

    from_: str
    to: str
    flags: Flags
    bare: bool
    count: int
    at_most: int
    injected: bool
    at: str


class RejectStep(DropStep, total=False):
    """How they are refused: `rst`, or by which ICMP error."""

    with_: str


class InjectStep(Step, total=False):
    """Who sends the segment to whom, what is in it, and in which connection; or which ICMP
    error."""

    from_: str
    to: str
    flags: Flags
    seq: int | str
    ack: int | str
    absolute: bool
    payload: str
    window: int
    options: Fields
    ecn: Mapping[str, bool]
    icmp: str
    mtu: int
    connection: int


class Claim(Step, total=False):
    """What is claimed, and what to show if it does not hold."""

    sockets: Sockets
    process: Processes
    counters: Counters
    segments: Fields
    lasted: Fields
    path: Path
    hint: str


class WaitStep(Claim, total=False):
    """How long it may take, and from which label on."""

    within: Duration
    since: str


class Pattern(TypedDict, total=False):
    """Which segments; see `segments` in docs/language.md."""

    from_: str
    to: str
    flags: Flags
    bare: bool
    data: bool
    seq: Number
    ack: Number
    length: Number
    window: Number
    tsval: Number
    tsecr: Number
    ecn: Mapping[str, bool]
    options: Mapping[str, bool]
    payload: str
    retransmitted: bool
    keepalive: bool
    probe: bool
    lost: bool
    injected: bool
    then: Fields
    since: str
    since_first: Flags


@cache
def parameters(method: Callable[..., object]) -> tuple[str, ...]:
    """The names of all that a method takes, its keywords too."""
    found: list[str] = []
    for parameter in [*inspect.signature(method).parameters.values()][1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            (keywords,) = get_args(get_type_hints(method)[parameter.name])
            found += get_type_hints(keywords)
        else:
            found.append(parameter.name)
    return tuple(found)


def checked(method: Callable[Args, Result]) -> Callable[Args, Result]:
    """Turns Python's complaint about a call's arguments into a UsageError in the caller's line."""
    signature = inspect.signature(method)

    @wraps(method)
    def act(*args: Args.args, **keywords: Args.kwargs) -> Result:
        names = parameters(method)
        if strange := [word for word in keywords if word not in names]:
            place = caller()
            message = f"{method.__name__.strip('_')}: {unknown('key', strange[0], names)}"
            raise ScenarioError([Mistake(place.file, place.line, message)])
        try:
            signature.bind(*args, **keywords)
        except TypeError as exc:
            raise misused(f"{method.__name__.strip('_')}: {exc}") from None
        return method(*args, **keywords)

    return act


class Claims(ABC):
    """The verbs that only look: a method for each, which does that step.

    The keys below `wait` and `expect` are keywords, or one mapping. `as_` and `when` are modifiers
    of every step: the label of its moment, and where to do it. Names that Python reserves have an
    underscore.

    Each raises UsageError for a mistake, before it does anything; NotPassed if its claim does not
    hold or can't be decided; LabError if the lab fails.
    """

    @abstractmethod
    def do(self, step: Fields) -> None:
        """Does one step, written as in the language: `{"kill": "server", "as": "killed"}`."""

    @abstractmethod
    def events(self, kind: type[KindOfEvent]) -> tuple[KindOfEvent, ...]:
        """The events so far of one kind."""

    @checked
    def snapshot(self, caption: str, **step: Unpack[Step]) -> None:
        """Records `ss` of every host, under a caption."""
        self.do({"snapshot": caption, **given(**step)})

    @checked
    def wait(
        self,
        claim: Fields | None = None,
        **step: Unpack[WaitStep],
    ) -> None:
        """Waits until a claim holds: 5 s, or as long as `within` says, from now on or from the
        label `since`. `"4.5s..7s"` also says how long it must take. If it does not hold, `hint` is
        shown."""
        self.do(_below("wait", claim, given(**step)))

    @checked
    def expect(
        self,
        claim: Fields | None = None,
        **step: Unpack[Claim],
    ) -> None:
        """Judges a claim now, once segments on their way have arrived. If it does not hold, `hint`
        is shown."""
        self.do(_below("expect", claim, given(**step)))

    @checked
    def sleep(self, duration: Duration, **step: Unpack[Step]) -> None:
        """Lets time pass."""
        self.do({"sleep": duration, **given(**step)})

    @checked
    def note(self, text: str, **step: Unpack[Step]) -> None:
        """Puts a remark into the record."""
        self.do({"note": text, **given(**step)})


class Verbs(Claims):
    """The other verbs.

    A verb for one process or host takes its name. A verb that sets something for it also takes a
    mapping, `{name: value}`, for several at once. The keys below the other verbs are keywords, or
    one mapping.

    Each raises NotPassed also if the step is impossible.
    """

    @checked
    def start(self, process: str, **step: Unpack[Step]) -> None:
        """Runs a process, beside what an earlier start of it has left."""
        self.do({"start": process, **given(**step)})

    @checked
    def restart(self, process: str, **step: Unpack[Step]) -> None:
        """Runs a process again on its host. If anything of it still runs, kills that first."""
        self.do({"restart": process, **given(**step)})

    @checked
    def kill(self, process: str, **step: Unpack[Step]) -> None:
        """Sends SIGKILL to everything in a process."""
        self.do({"kill": process, **given(**step)})

    @checked
    def stop(self, process: str, **step: Unpack[Step]) -> None:
        """Sends SIGTERM to the main process; when it has ended, or after 10 s, sends SIGKILL to all
        that is left."""
        self.do({"stop": process, **given(**step)})

    @checked
    def signal(
        self,
        process: str | Mapping[str, str | int],
        name: str | int | None = None,
        **step: Unpack[Step],
    ) -> None:
        """Sends a signal, `"TERM"`, to the main process alone: its children live on."""
        self.do({"signal": _each(process, name), **given(**step)})

    @checked
    def pause(self, process: str, **step: Unpack[Step]) -> None:
        """Freezes everything in a process."""
        self.do({"pause": process, **given(**step)})

    @checked
    def resume(self, process: str, **step: Unpack[Step]) -> None:
        """Thaws a process."""
        self.do({"resume": process, **given(**step)})

    @checked
    def call(
        self,
        process: str | Mapping[str, str],
        calls: str | None = None,
        **step: Unpack[Step],
    ) -> None:
        """Makes a process in `await` do more socket calls: `"send 5; shutdown wr"`."""
        self.do({"call": _each(process, calls), **given(**step)})

    @checked
    def exec(
        self,
        host: str,
        command: str,
        **step: Unpack[ExecStep],
    ) -> ExecEvent:
        """Runs a command in a host's shell; the result has `exit` and `output`. If it fails, that
        is a failed claim, unless `status` says which status is wanted. `output` is a regular
        expression for what it writes."""
        before = len(self.events(ExecEvent))
        self.do({"exec": _each(host, command), **given(**step)})
        done = self.events(ExecEvent)[before:]
        if not done:
            raise misused("this was left out here, so nothing came of it")
        return done[-1]

    @checked
    def sysctl(
        self,
        host: str | Mapping[str, Mapping[str, str | int]],
        values: Mapping[str, str | int] | None = None,
        **step: Unpack[Step],
    ) -> None:
        """Sets sysctls of a host: `{"net.ipv4.tcp_fin_timeout": 7}`."""
        self.do({"sysctl": _each(host, values), **given(**step)})

    @checked
    def drop(
        self,
        pattern: Fields | None = None,
        **step: Unpack[DropStep],
    ) -> None:
        """Loses the segments that match, until it is healed or has lost `count` of them. `from_`
        and `to` are `HOST` or `HOST:PORT`; at least one is required. It claims that it lost some,
        which is judged when the lab ends."""
        self.do(_below("drop", pattern, given(**step)))

    @checked
    def reject(
        self,
        pattern: Fields | None = None,
        **step: Unpack[RejectStep],
    ) -> None:
        """Refuses the segments that match, as `drop` loses them: their sender gets an RST or an
        ICMP error, as `with_` says."""
        self.do(_below("reject", pattern, given(**step)))

    @checked
    def heal(self, label: str, **step: Unpack[Step]) -> None:
        """Ends a drop or a rejection, by its label; with `"all"`, ends all of these and the effects
        of `net`."""
        self.do({"heal": label, **given(**step)})

    @checked
    def net(
        self,
        host: str | Mapping[str, Fields],
        link: Fields | None = None,
        **step: Unpack[Step],
    ) -> None:
        """Makes links slow or unreliable: `{"delay": "50ms", "loss": "1%"}`; of a host, one of them
        (`"gate.outside"`), or of a network. An empty mapping ends that."""
        self.do({"net": _each(host, link), **given(**step)})

    @checked
    def cut(self, host: str, **step: Unpack[Step]) -> None:
        """Takes links down: those of a host, one, or those of a network. What others send there is
        lost."""
        self.do({"cut": host, **given(**step)})

    @checked
    def join(self, host: str, **step: Unpack[Step]) -> None:
        """Takes links up again."""
        self.do({"join": host, **given(**step)})

    @checked
    def inject(
        self,
        pattern: Fields | None = None,
        **step: Unpack[InjectStep],
    ) -> None:
        """Makes the host `from_` send one segment, without its own TCP knowing of it, in a
        connection with `to`: the latest one, or number `connection`, from 1 on. `seq` and `ack` are
        `"next"`, `"next+5"`, or count from the connection's first number. With `icmp` it sends an
        ICMP error about what `to` has sent last."""
        self.do(_below("inject", pattern, given(**step)))


def _each(name: object, value: object) -> object:
    """A mapping from a name and a value, or one of several names as it is."""
    if value is None:
        return name
    demand("the first of two arguments", name, (str,), "a name")
    return {name: value}


def _below(verb: str, whole: object, keys: Fields) -> Fields:
    """A step whose pattern or claim is given as one value, or by keywords."""
    beside = {key: value for key, value in keys.items() if key in modifiers()}
    below = {key: value for key, value in keys.items() if key not in beside}
    if whole is not None and below:
        raise misused(f"a mapping and the keyword {next(iter(below))!r} beside it", "keep one")
    return {verb: below if whole is None else whole, **beside}
