"""The history of a run: what happened, in order, on one clock.

labctl writes events to `history.jsonl` as they arrive, and a History folds them into what is true
now: the last look at every host's sockets, the state of every process, labels, counters. To judge a
recorded run is the same fold, event by event.

`t` is in seconds since the run began, by the lab's monotonic clock.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import lru_cache
from typing import Any

from labctl.backends.networks import Networks
from labctl.ground.data import dataclass
from labctl.probes.observations import FLIGHT, Injection, Known, Loss, Observation, Segment
from labctl.probes.outputs import Output
from labctl.probes.owners import Owners
from labctl.probes.packed import Segments
from labctl.probes.segments import Captures
from labctl.probes.sockets import RESOLVER, Ends, canonical
from labctl.probes.traffic import Chosen
from labctl.record.events import (
    AddressEvent,
    CallEvent,
    CaptureEvent,
    ClockEvent,
    CountersEvent,
    Event,
    InjectEvent,
    LabEvent,
    LossEvent,
    NetEvent,
    OutputEvent,
    PacketEvent,
    ProcessEvent,
    SocketsEvent,
    StateEvent,
    StepEvent,
    TallyEvent,
    TroubleEvent,
    UnseenEvent,
)
from labctl.record.log import Log, Some

WATCH = "watch"
"""The backend of what was only watched."""
SINCE = "watched since"
"""In the environment of a record of a watch that is not its first: when that began (RFC 3339)."""
END = "end"
"""The probe whose trouble is that a record ends early."""
LATEST = 8
"""How many calls of each process are at hand."""
LOCALHOST = {"127.0.0.1", "::1"}
"""The addresses of that name on every host (hosts(5))."""


@dataclass
class ProcessState:
    """A process as it is now: everything since it was last started."""

    host: str
    calls: Some[CallEvent]
    latest: deque[CallEvent] = field(default_factory=lambda: deque(maxlen=LATEST))
    running: bool = False
    exit: int | None = None
    signal: str | None = None
    last: dict[str, CallEvent] = field(default_factory=dict)  # of each name
    received: int = 0
    entered: CallEvent | None = None
    under_way: dict[int, CallEvent] = field(default_factory=dict)  # by task
    repeats: dict[int, CallEvent] = field(default_factory=dict)  # by task: the calls in it come too
    watch: str | None = None
    unseen: UnseenEvent | None = None
    joined: bool = False  # whether it ran before its calls were seen
    obeys: bool = False
    written: Output = field(default_factory=Output)
    left: bool = False
    stop: str | None = None
    grace: float | None = None

    @property
    def output(self) -> str:
        """What it has written, as far as the record has it."""
        return self.written.text

    @property
    def awaits(self) -> bool:
        """Whether it is ready for a call: in `await`, where no call is under way."""
        busy = any(call.name != "await" for call in self.under_way.values())
        return self.running and self.obeys and not busy

    @property
    def condition(self) -> str:
        """What it does, in a few words for somebody who needs it in `await`."""
        if self.running:
            return "it runs, but not in await"
        return f"it ended by SIG{self.signal}" if self.signal else f"it ended with {self.exit}"

    def apply(self, event: ProcessEvent | CallEvent | UnseenEvent | OutputEvent) -> None:
        """Takes in one event of this process."""
        if isinstance(event, OutputEvent):
            self.written.add(event.text, event.left_out)
        elif isinstance(event, CallEvent):
            if event.name == "repeat":
                self.repeats[event.task] = event
                if event.phase == "done":
                    del self.repeats[event.task]
            self.entered = event if event.phase == "enter" else self.repeats.get(event.task)
            if self.entered:
                self.under_way[event.task] = self.entered
            else:
                self.under_way.pop(event.task, None)
            self.obeys |= event.name == "await"
            if event.phase == "done":
                self.calls.append(event)
                self.latest.append(event)
                self.last[event.name] = event
                self.received += (event.result or 0) if event.name == "recv" else 0
        elif isinstance(event, UnseenEvent):
            but = [name for name in event.but if self.unseen is None or name in self.unseen.but]
            self.unseen = dataclasses.replace(event, but=but)
        elif event.phase == "exit" or (event.phase == "gone" and self.running):
            self.running, self.exit, self.signal = False, event.exit, event.signal
            self.left = bool(event.left)


class History:
    """All events so far, and what they add up to."""

    def __init__(
        self,
        events: Iterable[Event] = (),
        captures: Captures | None = None,
        again: Log | None = None,
    ) -> None:
        self.events = Log(again=again)
        self.captures = Captures() if captures is None else captures
        self.lab: LabEvent | None = None
        self.owners = Owners()
        self.networks = Networks([])  # if there are several
        self._behind: dict[str, set[str]] = {}  # the addresses behind each name
        self.labels: dict[str, float] = {}
        self.whose: dict[str, str] = {}  # the hosts by whose clocks labels are
        self.sockets: dict[str, SocketsEvent] = {}
        self.processes: dict[str, ProcessState] = {}
        self.orphans: dict[tuple[str, int], ProcessState] = {}
        """Starts whose main process has ended while a process that it started lives on."""
        self.trouble: dict[tuple[str, str], TroubleEvent] = {}
        self.losses: list[LossEvent] = []
        self.injected: list[InjectEvent] = []
        self.tallies: dict[tuple[str, int], int] = {}
        self.inward: set[str] = set()  # hosts that calls or the trace saw connect to themselves
        self.imported: dict[str, CaptureEvent] = {}
        """The captures from elsewhere, by host; none in a lab, whose hosts are all captured."""
        self.clocks: dict[str, ClockEvent] = {}
        """The clock of each host, with the widest bound told so far, if there are several."""
        self.slowed: dict[str, float] = {}  # how many seconds longer each host's packets may take
        self.derived: dict[str, tuple[Any, Any]] = {}  # results of others, and up to where
        self.step = -1  # the index of the last one that began
        self._starts: Counter[str] = Counter()
        self.now = 0.0
        """The time of the latest event, or of the latest packets."""
        self._baseline: dict[str, Mapping[str, int]] = {}
        self._counters: dict[str, dict[str, int]] = {}
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Takes in the next event."""
        self.reach(event.t)  # a trace may be told later than what came after it
        if isinstance(event, CallEvent):
            if event.peer:
                self._notice(event.host, event.peer)
            for each in event.both:
                self.events.append(each)
                self._apply(each)
            return
        self.events.append(event)
        if isinstance(event, StateEvent):
            self._notice(event.host, event.remote)
            return  # Most are, and it would be the last case.
        match event:
            case LabEvent():
                self.lab = event
                self.owners = Owners({a: n.partition(".")[0] for n, a in event.addresses.items()})
                self.networks = Networks.recorded(event.networks or {}, event.routers or {})
                self._behind.clear()
            case StepEvent(phase="begin"):
                self.step = event.index
            case StepEvent(phase="end", label=str(label)):
                self.labels[label] = event.t if event.moment is None else event.moment
                if event.host:
                    self.whose[label] = event.host
            case ProcessEvent(phase="start"):
                joined = self.lab is not None and self.lab.backend == WATCH
                self.processes[event.process] = ProcessState(
                    event.host, self.events.none(CallEvent), running=True, watch=event.watch,
                    joined=joined, stop=event.stop, grace=event.grace,
                )  # fmt: skip
                self._starts[event.process] += 1
            case ProcessEvent() | UnseenEvent() | OutputEvent():
                self._apply(event)
                if isinstance(event, ProcessEvent):
                    self._leave(event, self.processes.get(event.process))
            case SocketsEvent():
                event.follow(self.sockets.get(event.host))
                self.sockets[event.host] = event
                self._count(event.host, event.counters)
            case CountersEvent():
                if event.host not in self._baseline:
                    self._baseline[event.host] = dict(event.values.items())
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
            case ClockEvent():
                self.know([event])
            case CaptureEvent():
                self.imported[event.host] = event
            case TroubleEvent():
                self.trouble[event.host, event.probe] = event

    def _apply(self, event: ProcessEvent | CallEvent | UnseenEvent | OutputEvent) -> None:
        if (state := self.processes.get(event.process)) and event.start is None:
            state.apply(event)

    def _count(self, host: str, values: Mapping[str, int]) -> None:
        self._counters.setdefault(host, {}).update(values.items())

    def know(self, events: Iterable[Event]) -> None:
        """Takes the clocks of hosts from these events: what drifted concerns all of a run."""
        for event in events:
            if isinstance(event, ClockEvent):
                known = self.clocks.get(event.host, event)
                self.clocks[event.host] = max(known, event, key=lambda clock: clock.bound)

    def apart(self, hosts: Collection[str | None] | None = None) -> float:
        """By how many seconds moments of these hosts, or of any, may be off beside one another.
        Other names stand for the lab's own clock."""
        names = self.clocks if hosts is None else hosts
        clocks = [clock for name in names if (clock := self.clocks.get(name or ""))]
        bounds = {clock.machine: clock.bound for clock in clocks}
        if len(clocks) < len(names):
            bounds[""] = 0.0
        return sum(sorted(bounds.values())[-2:]) if len(bounds) > 1 else 0.0

    def reach(self, t: float) -> None:
        """It is `t` now, at least: everything captured before has happened."""
        if t > self.now:
            self.now = t

    def _leave(self, event: ProcessEvent, state: ProcessState | None) -> None:
        start = event.process, event.start or self._starts[event.process]
        if event.phase == "gone":
            self.orphans.pop(start, None)
        elif state and event.left and event.start is None:
            self.orphans[start] = state

    def add_packets(self, t: float, host: str, records: bytes) -> None:
        """Takes in the packets that a host captured up to `t`, as pcap records."""
        self.captures.add(host, records)
        self.reach(t)

    def _notice(self, host: str, peer: str) -> None:
        if host not in self.inward:
            address, loopback = _address(peer.rpartition(":")[0])
            if loopback or self.owners.get(address) == host:
                self.inward.add(host)

    def segments(self, chosen: Chosen | None = None, whole: bool = False) -> Segments:
        """The segments of the lab's connections up to now, or of those that are `chosen`, in order;
        in named networks those that a NAT passes on are `whole`, or else one under each of their
        addresses. A segment that left a moment ago and has not arrived is still under way."""
        if self.lab is None:
            return Segments()
        owners, epoch, now = self.owners, self.lab.epoch, self.now
        losses = [Loss(e.drop, o) for e in self.losses if (o := _since(e, epoch))]
        injected = [Injection(e.seq, e.ack, o) for e in self.injected if (o := _since(e, epoch))]
        known = Known(
            owners, epoch, losses, injected, self.flight, self._windows, self.apart(),
            named=bool(self.networks.hosts),
        )  # fmt: skip
        matched = self.captures.segments(known, chosen)
        matched = matched.whole if whole and self.networks.hosts else matched
        every, changed = matched.segments, dict[int, Segment]()
        count = every.until(now)
        for number in range(every.until(now - self.flight), count):
            each = every[number]
            came = each.arrived is not None and each.arrived <= now
            if not came and each.t is not None and each.dropped is None and not each.unseen:
                changed[number] = each._replace(arrived=None, pending=True)
        for number in matched.late:
            each = changed.get(number) or every[number]
            if number < count and (each.arrived or 0.0) > now:
                changed[number] = each._replace(arrived=None)
        return every.first(count, changed)

    def legs(self, segment: Segment) -> list[Segment]:
        """A whole segment from host to host, as far as it came; in named networks alone."""
        if not self.networks.hosts:
            return [segment]
        onward = segment.receiver
        if segment.lost and segment.sender:
            hops = segment.way.hops if segment.way else ()
            last = hops[-1].host if hops else segment.sender
            onward = next(iter(self.networks.path(last, segment.receiver)), onward)
        return [*segment.legs(onward)]

    def first_captured(self) -> Iterator[tuple[float, Ends]]:
        """The source and the target of everything that was captured, and when it first was."""
        if self.lab is not None:
            for at, ends in self.captures.traffic.first():
                yield at - self.lab.epoch, ends

    def captured_without(self, host: str, chosen: Chosen) -> Sequence[float]:
        """When a host captured something that is not of `chosen` connections, in order."""
        epoch = self.lab.epoch if self.lab else 0.0
        return array("d", (at - epoch for at in self.captures.traffic.moments(host, chosen)))

    def syns(self, host: str, ends: Ends) -> list[tuple[float, int]]:
        """When SYNs left a host for a connection, and their numbers."""
        epoch = self.lab.epoch if self.lab else 0.0
        found = [(at - epoch, seq) for at, seq in self.captures.traffic.syns(host, ends)]
        lost = (e.observation for e in self.losses if e.host == host)  # no capture saw those
        found += [
            (o.at, o.seq)
            for o in lost
            if o and o.flags == ("SYN",) and (o.source, o.target) == ends
        ]
        return sorted(found)

    @property
    def flight(self) -> float:
        """How many seconds a segment may be under way here."""
        return FLIGHT + sum(self.slowed.values()) + self.apart()

    @property
    def hosts(self) -> list[str]:
        """The hosts of the lab."""
        return list(dict.fromkeys(self.owners.values()))

    @property
    def _windows(self) -> Mapping[str, tuple[float, float]] | None:
        """From when to when each host was captured; None in a lab, where all are, unless its record
        ends early. Beside what is watched there are others."""
        if self.imported:
            return {host: (event.since, event.t) for host, event in self.imported.items()}
        watched = self.lab is not None and self.lab.backend == WATCH
        ends = [event.t for (_, probe), event in self.trouble.items() if probe == END]
        if not watched and not ends:
            return None
        gaps = {host: event.t for (host, probe), event in self.trouble.items()
                if watched and probe in ("capture", "loopback")}  # fmt: skip
        until = min(ends) - self.flight if ends else math.inf
        return {host: (gaps.get(host, 0.0), until) for host in self.hosts}

    @property
    def without_calls(self) -> str:
        """Why the record has nothing of processes and their calls, if so."""
        if self.imported:
            return "a capture does not show what processes do; import their calls (--strace)"
        return next((e.text for (_, probe), e in self.trouble.items() if probe == "calls"), "")

    def misses_inside(self, host: str) -> bool:
        """Whether a host has connections to itself whose segments were not all captured."""
        probes = self.lab.environment.get("probes", ()) if self.lab else ()
        troubled = (host, "loopback") in self.trouble
        return troubled or (host in self.inward and "loopback" not in probes)

    def ends_early(self) -> list[TroubleEvent]:
        """What to add to a record that ends before all captures were taken in: of what was sent
        last one host may have told, and the other one not."""
        text = "the record ends early: the last segments may be missing"
        return [TroubleEvent(self.now, host, END, text) for host in self.hosts]

    def captured(self, host: str) -> bool:
        """Whether all segments of a host's link were captured."""
        everywhere = self.watched_by("capture") and (host, "capture") not in self.trouble
        return everywhere and (not self.imported or host in self.imported)

    def growth(self, host: str, counter: str) -> int | None:
        """How much a counter has grown since the run began; None if the kernel has no such counter.
        (/proc may leave out a counter that never grew, too.)"""
        if counter not in self._baseline.get(host, {}):
            return None
        return self._counters[host][counter] - self._baseline[host][counter]

    def watched_by(self, probe: str) -> bool:
        """Whether a probe watched all of the run (`environment` of the result)."""
        return self.lab is not None and probe in self.lab.environment.get("probes", ())

    def addresses(self, name: str) -> set[str]:
        """The addresses that a name stands for. A host's bare name stands for all of them, also
        those that it got later."""
        if not self._behind and self.lab:
            names = {name: {address} for name, address in self.lab.addresses.items()}
            hosts: dict[str, set[str]] = {host: set() for host in self.owners.values()}
            for address, host in self.owners.items():
                hosts[host].add(address)
            self._behind = {**names, **hosts, "localhost": LOCALHOST}
        return self._behind.get(name, set())


@lru_cache(1 << 10)
def _address(host: str) -> tuple[str, bool]:
    """An address as owners have it, and whether it never leaves its host."""
    address = canonical(host.strip("[]"))
    loopback = address == "::1" or address.startswith("127.")
    return address, loopback and address != RESOLVER


def _since(event: PacketEvent, epoch: float) -> Observation | None:
    """The segment of an event, with the time by the clock of captures."""
    seen = event.observation
    return dataclasses.replace(seen, at=seen.at + epoch) if seen else None
