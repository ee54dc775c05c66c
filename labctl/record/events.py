"""What happens in a run: the events, in order, on one clock, as `history.jsonl` has them.

`t` is in seconds since the run began, by the lab's monotonic clock. The first event, that of the
lab, has the version of the history.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property, lru_cache
from typing import Annotated, Any, ClassVar, Literal

from labctl.backends import Router
from labctl.ground.data import dataclass
from labctl.ground.reading import Checked
from labctl.probes.holders import Number
from labctl.probes.listings import LONG
from labctl.probes.observations import Observation
from labctl.probes.sockets import RESOLVER, Socket, StateName, aged, lab_sockets, parse_ss
from labctl.record.counts import as_json, packed

VERSION = 9
"""Raise it when an older labctl can't read the history. 1: before histories had a version;
3: resets; 4: calls of programs, and holders of sockets, and what became of segments;
5: captures from elsewhere, and looks as differences; 6: clocks of several machines;
7: how services are stopped; 8: several networks; 9: calls told as one event."""
READS = range(1, VERSION + 1)


def _environment(found: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in found.items():
        words = value if name == "probes" else [value or ""]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{name} is a text, and probes a list of them")
    return found


Environment = Annotated[Mapping[str, Any], Checked(_environment)]
"""Where a lab runs: `kernel`, `os`, `engine`, each a text or None, and the list `probes`; on
namespaces also the `folder` in which programs start."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at `t`."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    kind: ClassVar[str]
    t: float

    def to_json(self) -> str:
        """One line of history.jsonl."""
        return as_json({"t": self.t, "kind": self.kind, **_payload(self)})


@dataclass(frozen=True, slots=True)
class LabEvent(Event):
    """The lab is up: where it runs, since when (RFC 3339), and the address behind each name.

    `epoch` is the run's beginning by CLOCK_REALTIME, the clock of captures; `version` is the
    version of the history. With several `networks`: the hosts in each, and which of them are
    routers, `plain` or `nat`."""

    kind = "lab"
    started: str
    backend: str
    environment: Environment
    addresses: Mapping[str, str]
    epoch: float = 0.0
    version: int = 1
    networks: Mapping[str, list[str]] | None = None
    routers: Mapping[str, Router] | None = None


@dataclass(frozen=True, slots=True)
class StepEvent(Event):
    """A step begins, or ends with an outcome.

    Its label names the `moment`: when it began to act, by the clock of a `host` if that one told,
    or when its predicate came true. `text` is the whole step in words, `detail` why it was skipped.
    If it failed, `expected` and `actual` say how."""

    kind = "step"
    index: int
    phase: Literal["begin", "end"]
    text: str
    label: str | None = None
    outcome: Literal["done", "held", "timeout", "failed", "skipped"] | None = None
    detail: str | None = None
    moment: float | None = None
    host: str | None = None
    verb: str | None = None
    expected: str | None = None
    actual: str | None = None

    @property
    def why(self) -> str:
        """Why it was not done, in words; empty if nothing says so."""
        told = f"{self.expected}; saw {self.actual}" if self.outcome == "failed" else ""
        return self.detail or (told if self.expected else "")


@dataclass(frozen=True, slots=True)
class ProcessEvent(Event):
    """A process starts, its main process exits, or all of it is gone. `left`: something that it
    started lives on. `start` is the number of the start, from 1 on, if it is not the latest.
    `watch`: its calls are told although it is any program; `io`: also what it reads and writes.
    `stop`: the signal that asks it to end, if not TERM, and `grace`: the seconds that it may take
    then."""

    kind = "process"
    process: str
    host: str
    phase: Literal["start", "exit", "gone"]
    pid: int | None = None
    exit: int | None = None
    signal: str | None = None
    left: bool | None = None
    start: int | None = None
    watch: Literal["calls", "io"] | None = None
    stop: str | None = None
    grace: float | None = None


@dataclass(frozen=True, slots=True)
class UnseenEvent(Event):
    """From now on not all calls of a program are recorded, and why. `but` are the names of those
    that are."""

    kind = "unseen"
    process: str
    host: str
    text: str
    but: list[str] = field(default_factory=list)
    start: int | None = None


@dataclass(frozen=True, slots=True)
class CallEvent(Event):
    """A process begins a socket call, or ends it. Of a program that labctl has not written there
    is `fd` too, the descriptor, and the `thread`, if it is not the first. `value` is what `get` and
    `poll` found. Of a call that was over before anything told that it began, `done` tells that too:
    it began at `since`."""

    kind = "call"
    process: str
    host: str
    pid: int
    phase: Literal["enter", "done"]
    call: str
    name: str
    errno: str | None = None
    error: str | None = None
    result: int | None = None
    local: str | None = None
    peer: str | None = None
    eof: bool | None = None
    data: str | None = None
    value: str | None = None
    start: int | None = None
    fd: int | None = None
    thread: int | None = None
    since: float | None = None

    @property
    def both(self) -> tuple[CallEvent, ...]:
        """How it began and how it ended, if it tells of both; or what it tells of."""
        if self.since is None:
            return (self,)
        only: dict[str, Any] = dict.fromkeys(("since", "errno", "error", "result", "eof"))
        enter = replace(self, t=self.since, phase="enter", **only)
        return enter, replace(self, since=None)

    @property
    def task(self) -> int:
        """What makes the call: a thread or a process."""
        return self.thread or self.pid


@dataclass(frozen=True, slots=True)
class OutputEvent(Event):
    """A program wrote something; `left_out` bytes before it are not recorded."""

    kind = "output"
    process: str
    host: str
    text: str
    left_out: int | None = None
    start: int | None = None


@dataclass(frozen=True, slots=True)
class HoldersEvent(Event):
    """What everything in a process has open, says its supervisor: by pid the command, and by pid
    and descriptor the inode of each socket, as `ss` shows it. It may not read the descriptors of
    the pids in `unread`, and told nothing of `left_out` processes and descriptors more."""

    kind = "holders"
    process: str
    host: str
    commands: Mapping[Number, str]
    sockets: Mapping[Number, Mapping[Number, int]]
    unread: Sequence[int]
    left_out: int | None = None
    start: int | None = None


@dataclass(frozen=True)
class SocketsEvent(Event):
    """The output of `ss` on a host, and the counters that changed since the last time.

    `cause` is `change` if the agent noticed something, `look` if the controller asked. `since` is
    when the counters were read before.

    Of hundreds of sockets the difference to the look before is recorded: `text` has those that came
    or changed, and `gone` the numbers of those that went or changed. The sockets of a whole look
    have numbers from 0 on, and later ones the next. A timer that only went on is no change."""

    kind = "sockets"
    host: str
    cause: Literal["change", "look"]
    text: str
    counters: Mapping[str, int] = field(default_factory=dict)
    caption: str | None = None
    since: float | None = None
    gone: list[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "counters", packed(self.counters))

    @property
    def sockets(self) -> tuple[Socket, ...]:
        """The sockets that were there, without the engine's own. Raises SsParseError."""
        return self.came if self.gone is None else _put_together(self)

    @property
    def came(self) -> tuple[Socket, ...]:
        """The same of those in `text`: in a whole look all, else those that came or changed."""
        return (_few if len(self.text) < LONG else _many)(self.text)

    def follow(self, before: SocketsEvent | None) -> None:
        """Tells a difference which look was the one before."""
        if self.gone is not None:
            self.__dict__.setdefault("_before", before)


def _sockets(text: str) -> tuple[Socket, ...]:
    sockets = parse_ss(text)
    return lab_sockets(sockets) if RESOLVER in text else sockets


# To keep all takes too much memory.
_few, _many = lru_cache(64)(_sockets), lru_cache(4)(_sockets)


class Shown:
    """The sockets that a host's looks show, or those to `keep`, by their numbers. It follows one
    look after the other."""

    def __init__(self, keep: Callable[[Socket], bool] | None = None) -> None:
        self._keep = keep
        self._following = 0
        self.there: dict[int, tuple[float, Socket]] = {}
        """When each was recorded, and what it was then."""

    def follow(self, look: SocketsEvent) -> None:
        """Takes in the next look. Raises SsParseError."""
        came = look.came
        if look.gone is None:
            self.there, self._following = {}, 0
        for number in look.gone or ():
            self.there.pop(number, None)
        for number, socket in enumerate(came, self._following):
            if self._keep is None or self._keep(socket):
                self.there[number] = look.t, socket
        self._following += len(came)

    def sockets(self, t: float) -> Iterator[Socket]:
        """What they were at `t`."""
        return (aged(socket, t - at) for at, socket in self.there.values())


_LATEST: dict[str, tuple[SocketsEvent, Shown, tuple[Socket, ...]]] = {}
"""The look of each host that was put together last; the next is mostly the one after it."""


def _put_together(look: SocketsEvent) -> tuple[Socket, ...]:
    last, shown, found = _LATEST.get(look.host, (None, Shown(), ()))
    if last is look:
        return found
    path: list[SocketsEvent] = []
    each: SocketsEvent | None = look
    while each and each is not last:
        path.append(each)
        each = None if each.gone is None else each.__dict__.get("_before")
    _LATEST.pop(look.host, None)  # in case one can't be parsed
    if each is None:
        shown = Shown()
    for each in reversed(path):
        shown.follow(each)
    found = tuple(shown.sockets(look.t))
    _LATEST[look.host] = look, shown, found
    return found


@dataclass(frozen=True, slots=True)
class CountersEvent(Event):
    """The counters of a host: all of them when the run began, and later those that changed since
    they were read at `since`."""

    kind = "counters"
    host: str
    values: Mapping[str, int]
    since: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", packed(self.values))


@dataclass(frozen=True, slots=True)
class ExecEvent(Event):
    """A command ran on a host; `left_out` bytes at the end of its output are not recorded."""

    kind = "exec"
    host: str
    command: str
    exit: int
    output: str
    left_out: int | None = None


@dataclass(frozen=True, slots=True)
class StateEvent(Event):
    """A full socket went from one state to another, says the kernel's tracepoint.

    `old` and `new` have the spelling of `ss`; CLOSED is `UNCONN`."""

    kind = "state"
    host: str
    local: str
    remote: str
    old: StateName
    new: StateName


@dataclass(frozen=True, slots=True)
class ResetEvent(Event):
    """The kernel sent an RST, and why, as it says itself: `NO_SOCKET`, `TCP_ABORT_ON_CLOSE`
    (include/net/rstreason.h, since Linux 6.10)."""

    kind = "reset"
    host: str
    local: str
    remote: str
    reason: str


@dataclass(frozen=True, slots=True)
class FateEvent(Event):
    """What the kernel did with a segment, as it says itself: it discarded one that it had received,
    and why (`TCP_INVALID_SEQUENCE`: include/net/dropreason-core.h), or took the reset in it; or it
    sent one again, and by which error that failed, if it did (`EPERM`)."""

    kind = "fate"
    host: str
    local: str
    remote: str
    did: Literal["discard", "reset", "retransmit"]
    reason: str | None = None


@dataclass(frozen=True)
class PacketEvent(Event):
    """What a host did with a packet. `data` is the packet or its head, from the IP header on, in
    base64."""

    host: str
    data: str

    @cached_property
    def observation(self) -> Observation | None:
        """The TCP segment in it, at `t`."""
        from labctl.probes.packets import read_packet

        return read_packet(self.host, self.t, base64.b64decode(self.data))


@dataclass(frozen=True)
class LossEvent(PacketEvent):
    """A host lost a segment on purpose, by the drop of that step."""

    kind = "loss"
    drop: int


@dataclass(frozen=True)
class TallyEvent(Event):
    """How many segments a host has lost so far to the drop of a step, by the kernel's count."""

    kind = "tally"
    host: str
    drop: int
    lost: int


@dataclass(frozen=True)
class InjectEvent(PacketEvent):
    """A host had to send a segment. Its numbers count from the first ones of its connection."""

    kind = "inject"
    seq: int
    ack: int


@dataclass(frozen=True, slots=True)
class NetEvent(Event):
    """Everything that a host sends takes up to `delay` seconds longer."""

    kind = "net"
    host: str
    delay: float


@dataclass(frozen=True, slots=True)
class AddressEvent(Event):
    """A host has one more address than the lab gave it."""

    kind = "address"
    host: str
    address: str


@dataclass(frozen=True, slots=True)
class CaptureEvent(Event):
    """A capture from elsewhere ends: since when it has all that its host saw, and the `file` that
    it was. Times in the file were `ahead` seconds later at `since`, and gained `drift` seconds a
    second, which is None if nothing tells; so they are right to within `bound` seconds, or nobody
    knows."""

    kind = "capture"
    host: str
    file: str
    since: float
    ahead: float = 0.0
    drift: float | None = None
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class ClockEvent(Event):
    """The clock of a host, where a lab has several machines: it was `ahead` seconds beside the
    lab's one clock, which is taken away from all times. So these are right to within `bound`
    seconds, beside those of another `machine`. One more at the end has what it gained or lost."""

    kind = "clock"
    host: str
    machine: str
    ahead: float
    bound: float


@dataclass(frozen=True, slots=True)
class TroubleEvent(Event):
    """A probe could not see: what it reports is incomplete from here on."""

    kind = "trouble"
    host: str
    probe: str
    text: str


KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        LabEvent, StepEvent, ProcessEvent, CallEvent, UnseenEvent, OutputEvent,
        HoldersEvent, SocketsEvent, CountersEvent, ExecEvent, StateEvent, ResetEvent,
        FateEvent, LossEvent, TallyEvent, InjectEvent, NetEvent, AddressEvent, CaptureEvent,
        ClockEvent, TroubleEvent,
    )
}  # fmt: skip


def _payload(event: Event) -> dict[str, Any]:
    fields = _FIELDS[event.kind]
    return {n: v for n, d in fields if (v := getattr(event, n)) is not None or d is not None}


_FIELDS = {
    name: [(field.name, field.default) for field in dataclasses.fields(kind) if field.name != "t"]
    for name, kind in KINDS.items()
}
