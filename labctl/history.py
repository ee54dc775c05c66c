"""The history of a run: what happened, in order, on one clock.

Events are written to `history.jsonl` as they arrive, and a History folds them into what is true
now: the last look at every host's sockets, the state of every process, labels, counters. Judging a
recorded run is the same fold, event by event.

`t` is in seconds since the run began, by the lab's monotonic clock.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from sys import intern
from typing import Annotated, Any, ClassVar, Literal

from labctl.errors import UsageError
from labctl.probes.output import Output
from labctl.probes.owners import Owners
from labctl.probes.segments import FLIGHT, Captures, Injection, Loss, Observation, Segment
from labctl.probes.sockets import RESOLVER, Socket, State, canonical, lab_sockets, parse_ss
from labctl.reading import Checked, loads, typed

LOCALHOST = {"127.0.0.1", "::1"}
"""What that name stands for on every host (hosts(5))."""


def _environment(found: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in found.items():
        words = value if name == "probes" else [value or ""]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{name} is a text, and probes a list of them")
    return found


Environment = Annotated[Mapping[str, Any], Checked(_environment)]
"""Where a lab runs: `kernel`, `os`, `engine`, each a text or None, and the list `probes`."""
StateName = Annotated[str, Checked(lambda name: str(State(name)))]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at `t`."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    kind: ClassVar[str]
    t: float

    def to_json(self) -> str:
        """One line of history.jsonl."""
        return json.dumps({"t": self.t, "kind": self.kind, **_payload(self)})


@dataclass(frozen=True, slots=True)
class LabEvent(Event):
    """The lab is up: where it runs, since when (RFC 3339), and the address behind each name.

    `epoch` is the run's beginning by CLOCK_REALTIME, the clock of captures."""

    kind = "lab"
    started: str
    backend: str
    environment: Environment
    addresses: Mapping[str, str]
    epoch: float = 0.0


@dataclass(frozen=True, slots=True)
class StepEvent(Event):
    """A step begins, or ends with an outcome.

    `moment` is what its label names: when it began to act, or when what it waited for came."""

    kind = "step"
    index: int
    phase: Literal["begin", "end"]
    text: str
    label: str | None = None
    outcome: Literal["done", "held", "timeout", "failed", "skipped"] | None = None
    detail: str | None = None
    moment: float | None = None


@dataclass(frozen=True, slots=True)
class ProcessEvent(Event):
    """A process starts, its main process exits, or all of it is gone. `left`: what it started lives
    on. `start` says of which start it is, from 1 on, where that is not the latest."""

    kind = "process"
    process: str
    host: str
    phase: Literal["start", "exit", "gone"]
    pid: int | None = None
    exit: int | None = None
    signal: str | None = None
    left: bool | None = None
    start: int | None = None


@dataclass(frozen=True, slots=True)
class CallEvent(Event):
    """A process enters a socket call, or is done with it."""

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
    start: int | None = None


@dataclass(frozen=True, slots=True)
class OutputEvent(Event):
    """A program wrote something; before it came `left_out` bytes that are not recorded."""

    kind = "output"
    process: str
    host: str
    text: str
    left_out: int | None = None
    start: int | None = None


MANY = 100_000
"""How long a look's text is, in characters, where the memory for what is parsed of it is worth more
than parsing it again: about a thousand sockets."""


def _sockets(text: str) -> tuple[Socket, ...]:
    sockets = parse_ss(text)
    return lab_sockets(sockets) if RESOLVER in text else sockets


_latest = lru_cache(4)(_sockets)


@dataclass(frozen=True)
class SocketsEvent(Event):
    """What `ss` said on a host, as it said it, and the counters that changed since the last time.

    `cause` is `change` where the agent noticed something, `look` where the controller asked.
    `since` is when the counters were read before."""

    kind = "sockets"
    host: str
    cause: Literal["change", "look"]
    text: str
    counters: Mapping[str, int] = field(default_factory=dict)
    caption: str | None = None
    since: float | None = None

    @property
    def sockets(self) -> tuple[Socket, ...]:
        """The sockets in `text`, without the engine's own. Raises SsParseError."""
        return _latest(self.text) if len(self.text) > MANY else self._kept

    @cached_property
    def _kept(self) -> tuple[Socket, ...]:
        return _sockets(self.text)


@dataclass(frozen=True, slots=True)
class CountersEvent(Event):
    """The counters of a host: all of them when the run began, and then those that changed after
    `since`, when they were read before."""

    kind = "counters"
    host: str
    values: Mapping[str, int]
    since: float | None = None


@dataclass(frozen=True, slots=True)
class ExecEvent(Event):
    """A command that ran on a host; at the end of its output `left_out` bytes are not recorded."""

    kind = "exec"
    host: str
    command: str
    exit: int
    output: str
    left_out: int | None = None


@dataclass(frozen=True, slots=True)
class StateEvent(Event):
    """A full socket went from one state to another, as the kernel's tracepoint has it.

    `old` and `new` are spelled as `ss` does; CLOSED is `UNCONN`."""

    kind = "state"
    host: str
    local: str
    remote: str
    old: StateName
    new: StateName


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
    """How many segments a host has lost so far to the drop of a step, as the kernel counted."""

    kind = "tally"
    host: str
    drop: int
    lost: int


@dataclass(frozen=True)
class InjectEvent(PacketEvent):
    """A host was made to send a segment, whose numbers count from its connection's first ones."""

    kind = "inject"
    seq: int
    ack: int


@dataclass(frozen=True, slots=True)
class NetEvent(Event):
    """What a host sends is slowed down, by up to `delay` seconds."""

    kind = "net"
    host: str
    delay: float


@dataclass(frozen=True, slots=True)
class AddressEvent(Event):
    """A host has an address more than the lab gave it."""

    kind = "address"
    host: str
    address: str


@dataclass(frozen=True, slots=True)
class TroubleEvent(Event):
    """A probe that could not see: what it says is incomplete from here on."""

    kind = "trouble"
    host: str
    probe: str
    text: str


KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        LabEvent,
        StepEvent,
        ProcessEvent,
        CallEvent,
        OutputEvent,
        SocketsEvent,
        CountersEvent,
        ExecEvent,
        StateEvent,
        LossEvent,
        TallyEvent,
        InjectEvent,
        NetEvent,
        AddressEvent,
        TroubleEvent,
    )
}


def _payload(event: Event) -> dict[str, Any]:
    found = ((name, default, getattr(event, name)) for name, default in _FIELDS[event.kind])
    return {name: value for name, default, value in found if value is not None or value != default}


_FIELDS = {
    name: [(field.name, field.default) for field in dataclasses.fields(kind) if field.name != "t"]
    for name, kind in KINDS.items()
}


def shared(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with short texts once in memory: a connection's eight transitions have the same
    addresses, and there may be thousands of connections."""
    return {
        key: intern(value) if isinstance(value, str) and len(value) < 64 else value
        for key, value in data.items()
    }


def read_events(lines: Iterable[str | bytes]) -> Iterator[Event]:
    """The events of a history.jsonl. Raises UsageError for a line that is none."""
    for number, line in enumerate(lines, 1):
        try:
            yield read_event(loads(line if isinstance(line, str) else line.decode()))
        except ValueError as exc:
            raise UsageError(f"history.jsonl:{number}: no event: {exc}") from exc


def read_event(data: Any) -> Event:
    """The event that a JSON object is: all of it can be believed to be of its type. Raises
    ValueError."""
    if not isinstance(data, dict):
        raise ValueError("it is no object")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"its kind is {str(kind)[:40]!r}; there are {', '.join(KINDS)}")
    event = typed(KINDS[kind], shared({k: v for k, v in data.items() if k != "kind"}))
    match event:
        case SocketsEvent():
            _ = event.sockets
        case PacketEvent():
            _ = event.observation
    return event


@dataclass
class ProcessState:
    """A process as it is now: everything since it was last started."""

    host: str
    running: bool = False
    exit: int | None = None
    signal: str | None = None
    calls: list[CallEvent] = field(default_factory=list)
    entered: CallEvent | None = None
    under_way: dict[int, CallEvent] = field(default_factory=dict)  # by pid
    obeys: bool = False
    written: Output = field(default_factory=Output)
    left: bool = False

    @property
    def output(self) -> str:
        """What it has written, as far as it is recorded."""
        return self.written.text

    @property
    def condition(self) -> str:
        """How it is, in a few words for somebody who wants it in `await`."""
        if self.running:
            return "it runs, but not in await"
        return f"it ended by SIG{self.signal}" if self.signal else f"it ended with {self.exit}"

    def apply(self, event: ProcessEvent | CallEvent | OutputEvent) -> None:
        """Takes in one event of this process."""
        if isinstance(event, OutputEvent):
            self.written.add(event.text, event.left_out)
        elif isinstance(event, CallEvent):
            self.entered = event if event.phase == "enter" else None
            if event.phase == "enter":
                self.under_way[event.pid] = event
            else:
                self.under_way.pop(event.pid, None)
            self.obeys |= event.name == "await"
            if event.phase == "done":
                self.calls.append(event)
        elif event.phase == "exit" or (event.phase == "gone" and self.running):
            self.running, self.exit, self.signal = False, event.exit, event.signal
            self.left = bool(event.left)


class History:
    """All events so far, and what they add up to."""

    def __init__(self, events: Iterable[Event] = (), captures: Captures | None = None) -> None:
        self.events: list[Event] = []
        self.captures = Captures() if captures is None else captures
        self.lab: LabEvent | None = None
        self.owners = Owners()
        self._behind: dict[str, set[str]] = {}  # the addresses behind each name
        self.labels: dict[str, float] = {}
        self.sockets: dict[str, SocketsEvent] = {}
        self.processes: dict[str, ProcessState] = {}
        self.orphans: dict[tuple[str, int], ProcessState] = {}
        """Starts whose main process has ended while something that it had started lives on."""
        self.trouble: dict[tuple[str, str], TroubleEvent] = {}
        self.losses: list[LossEvent] = []
        self.injected: list[InjectEvent] = []
        self.tallies: dict[tuple[str, int], int] = {}
        self.inward: set[str] = set()  # hosts that calls or the trace saw connect to themselves
        self.slowed: dict[str, float] = {}  # by how many seconds at most, what each host sends
        self.derived: dict[str, tuple[Any, Any]] = {}  # what was found out, and up to where
        self.step = -1  # the index of the last one that began
        self._starts: Counter[str] = Counter()
        self._captured = 0.0
        self._baseline: dict[str, Mapping[str, int]] = {}
        self._counters: dict[str, dict[str, int]] = {}
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Takes in the next event."""
        self.events.append(event)
        if isinstance(event, StateEvent):
            self._notice(event.host, event.remote)
            return  # Most are, and it would be the last case.
        match event:
            case LabEvent():
                self.lab = event
                self.owners = Owners({a: n.partition(".")[0] for n, a in event.addresses.items()})
                self._behind.clear()
            case StepEvent(phase="begin"):
                self.step = event.index
            case StepEvent(phase="end", label=str(label)):
                self.labels[label] = event.t if event.moment is None else event.moment
            case ProcessEvent(phase="start"):
                self.processes[event.process] = ProcessState(event.host, running=True)
                self._starts[event.process] += 1
            case ProcessEvent() | CallEvent() | OutputEvent():
                if isinstance(event, CallEvent) and event.peer:
                    self._notice(event.host, event.peer)
                if (state := self.processes.get(event.process)) and event.start is None:
                    state.apply(event)
                if isinstance(event, ProcessEvent):
                    self._leave(event, state)
            case SocketsEvent():
                self.sockets[event.host] = event
                self._count(event.host, event.counters)
            case CountersEvent():
                self._baseline.setdefault(event.host, event.values)
                self._count(event.host, event.values)
            case LossEvent():
                self.losses.append(event)
            case InjectEvent():
                self.injected.append(event)
            case TallyEvent():
                self.tallies[event.host, event.drop] = event.lost
            case NetEvent():
                self.slowed[event.host] = max(event.delay, self.slowed.get(event.host, 0.0))
            case AddressEvent():
                self.owners = self.owners.moved(event.address, event.host, event.t)
                self._behind.clear()
            case TroubleEvent():
                self.trouble[event.host, event.probe] = event

    def _count(self, host: str, values: Mapping[str, int]) -> None:
        self._counters.setdefault(host, {}).update(values)

    def reach(self, t: float) -> None:
        """It is `t` now, at least: all that was captured before has happened."""
        self._captured = max(self._captured, t)

    def _leave(self, event: ProcessEvent, state: ProcessState | None) -> None:
        start = event.process, event.start or self._starts[event.process]
        if event.phase == "gone":
            self.orphans.pop(start, None)
        elif state and event.left and event.start is None:
            self.orphans[start] = state

    def add_packets(self, t: float, host: str, records: bytes) -> None:
        """Takes in what a host captured up to `t`, as pcap records."""
        self.captures.add(host, records)
        self.reach(t)

    @property
    def now(self) -> float:
        """The time of the latest event, or of the latest packets."""
        return max(self.events[-1].t if self.events else 0.0, self._captured)

    def _notice(self, host: str, peer: str) -> None:
        if host not in self.inward:
            address = canonical(peer.rpartition(":")[0].strip("[]"))
            loopback = address == "::1" or address.startswith("127.")
            if (loopback and address != RESOLVER) or self.owners.get(address) == host:
                self.inward.add(host)

    def segments(self) -> list[Segment]:
        """The segments of the lab's connections up to now, in order. What left a moment ago and has
        not arrived is still under way."""
        if self.lab is None:
            return []
        owners, epoch, now = self.owners, self.lab.epoch, self.now
        losses = [Loss(e.drop, o) for e in self.losses if (o := _since(e, epoch))]
        injected = [Injection(e.seq, e.ack, o) for e in self.injected if (o := _since(e, epoch))]
        whole = self.captures.segments(owners, epoch, losses, injected, self.flight)
        found = whole[: bisect_right(whole, now, key=lambda segment: segment.time)]
        for index in range(
            bisect_right(whole, now - self.flight, key=lambda s: s.time), len(found)
        ):
            each = found[index]
            came = each.arrived is not None and each.arrived <= now
            if not came and each.t is not None and each.dropped is None:
                found[index] = dataclasses.replace(each, arrived=None, pending=True)
        for index in self.captures.late:
            if index < len(found) and (found[index].arrived or 0.0) > now:
                found[index] = dataclasses.replace(found[index], arrived=None)
        return found

    @property
    def flight(self) -> float:
        """How many seconds a segment may be under way here."""
        return FLIGHT + sum(self.slowed.values())

    @property
    def hosts(self) -> list[str]:
        """The hosts of the lab."""
        return list(dict.fromkeys(self.owners.values()))

    def misses_inside(self, host: str) -> bool:
        """Whether a host has connections to itself whose segments were not all captured."""
        probes = self.lab.environment.get("probes", ()) if self.lab else ()
        troubled = (host, "loopback") in self.trouble
        return troubled or (host in self.inward and "loopback" not in probes)

    def growth(self, host: str, counter: str) -> int | None:
        """By how much a counter grew since the run began; None where the kernel has none so named
        (a counter that was never touched may be missing from /proc too)."""
        if counter not in self._baseline.get(host, {}):
            return None
        return self._counters[host][counter] - self._baseline[host][counter]

    def counter_names(self, host: str) -> list[str]:
        """The counters of a host."""
        return list(self._baseline.get(host, {}))

    def watched_by(self, probe: str) -> bool:
        """Whether all of the run was watched with a probe (`environment` of the result)."""
        return self.lab is not None and probe in self.lab.environment.get("probes", ())

    def addresses(self, name: str) -> set[str]:
        """The addresses that a name stands for: a host's bare name for all of them, those too that
        it was given later."""
        if not self._behind and self.lab:
            names = {name: {address} for name, address in self.lab.addresses.items()}
            hosts: dict[str, set[str]] = {host: set() for host in self.owners.values()}
            for address, host in self.owners.items():
                hosts[host].add(address)
            self._behind = {**names, **hosts, "localhost": LOCALHOST}
        return self._behind.get(name, set())


def _since(event: PacketEvent, epoch: float) -> Observation | None:
    """The segment of an event, dated as captures date theirs."""
    seen = event.observation
    return dataclasses.replace(seen, at=seen.at + epoch) if seen else None
