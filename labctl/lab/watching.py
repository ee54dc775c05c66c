"""Watching what runs already. What the watchers report becomes events, as in a lab; but nothing is
brought up, and nothing is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from datetime import UTC, datetime
from typing import Any, Self

from labctl.backends import Channel, Message, address_names, protocol
from labctl.backends.watched import Watched
from labctl.backends.wire import Said, asked
from labctl.ground.crash import netted
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, UsageError
from labctl.lab.attaching import Attaching
from labctl.lab.happened import happened
from labctl.lab.messaging import Source, surely
from labctl.lab.observing import Observing
from labctl.lab.probing import probes
from labctl.record.events import (
    VERSION,
    AddressEvent,
    CallEvent,
    CountersEvent,
    Event,
    FateEvent,
    LabEvent,
    ResetEvent,
    StateEvent,
    TroubleEvent,
)
from labctl.record.history import SINCE, WATCH, History

LONGEST_REST = 1.0
"""Seconds between two polls of a host where no segment passes."""
NO_CALLS = "processes and their calls are not recorded: what ran already was only watched"
INSIDE = "127.0.0.1"


@dataclass(eq=False)
class _Attached:
    """A watcher, and what it said. `shift`: what hosts of this name have counted before it."""

    host: str
    channel: Channel
    hello: protocol.AgentHello | None = None
    ready: protocol.Ready | None = None
    addresses: list[str] = field(default_factory=list)
    shift: Mapping[str, int] = field(default_factory=dict)


class Watching(Observing):
    """Used in a `with`: attaches to what runs, and leaves it alone in the end.

    From each `begin` on, a record and a history take in what happens. What is started again is
    watched on. With `calls`, processes are attached to and their calls are recorded. Methods raise
    LabError; entering it raises UsageError if two hosts can't be told apart."""

    def __init__(self, watched: Watched, calls: bool = False) -> None:
        super().__init__(History(), lambda: watched.why() or None)
        self._watched = watched
        self._record_packets: Callable[[str, bytes], None] | None = None
        self._ports = {str(port) for port in watched.ports}
        self._attached: dict[Channel, _Attached] = {}
        self._hosts: dict[str, _Attached] = {}
        self._counters: dict[str, dict[str, int]] = {}
        self._restarted: list[str] = []
        self._recorded: set[str] = set()  # the hosts of this record
        self._since: str | None = None  # when the first record began
        attaching = Attaching(watched, self._inbox, self._clock, self.emit)
        self._calls = attaching if calls else None
        self._blaming: set[int] = set()

    @netted()
    def __enter__(self) -> Self:
        try:
            for name in self._watched.names:
                self._use(self._attach(name))
            self._hello([*self._hosts.values()])
            self._clock.synchronize(dict.fromkeys(self._hosts, ""), self._time_at)
            self._set_up([*self._hosts])
            names = self._names()
            self._tracer.start({"": self._watched.trace()}, names, dict.fromkeys(self._hosts, ""))
        except BaseException:
            self._watched.down()
            raise
        return self

    @netted()
    def __exit__(self, *_: object) -> None:
        self._closing = True
        surely(self._watched.down)

    def begin(
        self,
        history: History,
        record: Callable[[Event], None],
        record_packets: Callable[[str, bytes], None],
    ) -> None:
        """Begins a record; the one before is over."""
        self._clock.begin()
        self._recorded = {*self._hosts}
        self.history = history
        self._record, self._record_packets = record, record_packets
        ready = {name: at.ready for name, at in self._hosts.items() if at.ready}
        read = {name: (at.hello.t, at.hello.wall) for name, at in self._hosts.items() if at.hello}
        started = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        environment = {
            **self._watched.environment(),
            "probes": probes(ready, self._tracer.trace),
            **({SINCE: self._since} if self._since else {}),
        }
        self._since = self._since or started
        epoch = next(iter(self._clock.epochs(read).values()))
        self.emit(LabEvent(0.0, started, WATCH, environment, self._names(), epoch, VERSION))
        for name, answer in ready.items():
            self.emit(CountersEvent(self.now(), name, dict(self._counters[name])))
            if answer.capture:
                self.emit(TroubleEvent(self.now(), name, "capture", answer.capture))
            if self._calls is None:
                self.emit(TroubleEvent(self.now(), name, "calls", NO_CALLS))
        self._tracer.begin()
        if self._calls:
            for name in ready:
                self._calls.begin(name)
        self.look()

    def end(self) -> None:
        """Takes in the last look, and what is still under way."""
        if self._calls:
            self._calls.flush()
        self.look()
        self.flush()

    def look(self, hosts: Iterable[str] | None = None, caption: str | None = None) -> None:
        self._follow(sure=True)  # what was started again has another network
        super().look(hosts, caption)

    def pump(self, patience: float) -> None:
        self._follow()
        super().pump(patience)

    def next(self, patience: float) -> bool:
        self._follow()
        return super().next(patience)

    def restarted(self) -> list[str]:
        """The hosts that were started again since the last call."""
        found, self._restarted = self._restarted, []
        return found

    def _follow(self, sure: bool = False) -> None:
        """Attaches anew to what was started again. What has ended by then may be started once
        more."""
        for name in self._watched.again(sure):
            before = self._hosts[name]
            try:
                new = self._attach(name)
                self._hello([new])
            except LabError as exc:
                self._missed(name, "capture", str(exc))
                continue
            self._use(new)
            self._restarted.append(name)
            self._set_up([name])
            self._watched.detach(before.channel)
            text = f"it was started again: not all that it did until {self.now():.3f} s is recorded"
            for probe in ("capture", "loopback", "trace"):
                self._missed(name, probe, text)
            if self._calls and name in self._recorded:
                self._calls.again(name)

    def _missed(self, name: str, probe: str, text: str) -> None:
        if name in self._recorded:
            self.emit(TroubleEvent(self.now(), name, probe, text))

    def joined(self) -> list[str]:
        """Attaches to what has come since the last call. It is a part of the next record."""
        found = []
        for name in self._watched.added():
            try:
                new = self._attach(name)
                self._hello([new])
            except LabError:  # it has ended by now
                self._watched.forget(name)
                continue
            self._use(new)
            self._set_up([name])
            for address in new.addresses:
                self._tracer.watch_too(AddressEvent(self.now(), name, address))
            found.append(name)
        return found

    def over(self) -> bool:
        """Whether nothing is left to watch."""
        return self._watched.over()

    def _attach(self, name: str) -> _Attached:
        channel = self._watched.attach(name)
        found = self._attached[channel] = _Attached(name, channel)
        self._inbox.listen(Source(f"the watcher of {name}", name, channel))
        return found

    def _use(self, attached: _Attached) -> None:
        self._hosts[attached.host] = attached
        self._agents[attached.host] = attached.channel

    def _hello(self, attached: list[_Attached]) -> None:
        """Waits for the first words of watchers. What a host of the name has counted before stays
        counted."""

        def ended(at: _Attached) -> bool:
            return at.channel not in self._attached

        self._inbox.expect(
            lambda: all(at.hello or ended(at) for at in attached), "a watcher's first word"
        )
        for at in attached:
            if not at.hello:
                raise self._end_of(at)
            before = self._counters.get(at.host, {})
            at.shift = {
                name: before[name] - value
                for name, value in at.hello.counters.items()
                if name in before
            }
            self._counters[at.host] = self._shifted(at, at.hello.counters)

    def _set_up(self, hosts: list[str]) -> None:
        """Makes watchers begin. They tell their addresses before they answer."""
        command = protocol.SetUp(LONGEST_REST, len(self._hosts), bound=False)
        for name, answer in self._ask_all(dict.fromkeys(hosts, command)).items():
            self._hosts[name].ready = answer

    def _names(self) -> dict[str, str]:
        """The address behind each name. Raises UsageError if two hosts have the same one."""
        owners: dict[str, str] = {}
        families: dict[str, tuple[list[str], list[str]]] = {}
        for name, at in self._hosts.items():
            mine = list(dict.fromkeys(at.addresses)) or [INSIDE]
            for address in mine:
                if (other := owners.setdefault(address, name)) != name:
                    raise UsageError(
                        f"{other} and {name} both have the address {address}",
                        "watch one of them: perhaps they share a network",
                    )
            families[name] = [a for a in mine if ":" not in a], [a for a in mine if ":" in a]
        return address_names(families)

    def _take_traced(self, event: Event) -> None:
        """A tracer knows no ports."""
        if getattr(event, "host", None) not in self._recorded:
            return  # it came in this record
        if isinstance(event, StateEvent | ResetEvent | FateEvent) and self._ports:
            if {end.rpartition(":")[2] for end in (event.local, event.remote)} & self._ports:
                self.emit(event)
        else:
            self.emit(event)

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, CallEvent):
            watcher = self._agents[event.host]
            self._inbox.post(watcher, protocol.Wake())
            if event.errno == "EADDRINUSE" and event.phase == "done":
                self._blaming.add(self._inbox.post(watcher, protocol.Look(event.call)))

    def _hear(self, source: Source, message: Message | None) -> None:
        if self._calls and self._calls.hears(source):
            self._calls.take(source, message, self._closing)
            return
        at = self._attached[source.channel]
        if message is None:
            del self._attached[source.channel]
            if not self._closing and self._hosts.get(at.host) is at:
                raise self._end_of(at)
        elif (number := asked(message)) is not None:
            if number in self._blaming:
                self._blaming.remove(number)
            else:
                self._inbox.take_reply(number, message)
        else:
            self._told(at, protocol.WATCHER.heard(message))

    def _end_of(self, at: _Attached) -> LabError:
        why = self._watched.why()
        return LabError(f"the watcher of {at.host} ended" + (f": {why}" if why else ""))

    def _told(self, at: _Attached, said: Said) -> None:
        t = max(0.0, self._clock.of(at.host, said.t))
        if isinstance(said, protocol.AgentHello):
            at.hello = said
        elif isinstance(said, protocol.Address):
            at.addresses.append(said.address)
            if at.host not in self._recorded:
                return
            if self.history.lab and self.history.owners.get(said.address) != at.host:
                event = AddressEvent(t, at.host, said.address)
                self.emit(event)
                self._tracer.watch_too(event)
        elif isinstance(said, protocol.Packets):
            if self._record_packets and at.host in self._recorded:
                self.history.add_packets(t, at.host, said.records)
                self._record_packets(at.host, said.records)
        else:
            self._happen(at, said, t)

    def _happen(self, at: _Attached, said: Said, t: float) -> None:
        more: dict[str, Any] = {"host": at.host}
        if isinstance(said, protocol.Sockets):
            more["counters"] = self._shifted(at, said.counters)
            self._counters.setdefault(at.host, {}).update(more["counters"])
        elif isinstance(said, protocol.Counters):
            more["values"] = self._shifted(at, said.values)
            self._counters.setdefault(at.host, {}).update(more["values"])
        elif isinstance(said, protocol.Holders):
            more["process"] = at.host
            if self._calls:
                self._calls.holding(at.host, {int(pid) for pid in said.sockets})
        if self.history.lab and at.host in self._recorded:
            self.emit(happened(said, t, **more))

    @staticmethod
    def _shifted(at: _Attached, values: Mapping[str, int]) -> dict[str, int]:
        return {name: value + at.shift.get(name, 0) for name, value in values.items()}
