"""The tracers of a lab, one for each machine: what the kernel's tracepoint reports of the sockets
there, or why it can't."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from labctl.backends import Channel, Message
from labctl.backends.capabilities import Lack
from labctl.backends.protocol import (
    TRACER,
    Broken,
    Done,
    Fate,
    FlushTrace,
    Hello,
    Refused,
    Reset,
    State,
    Trouble,
    Watch,
)
from labctl.backends.wire import Command, Failed, asked
from labctl.lab.clocks import Clock
from labctl.lab.happened import happened, owner
from labctl.lab.messaging import ANSWER_DEADLINE, Inbox, Source
from labctl.record.events import AddressEvent, Event, TroubleEvent

NAME = "the tracer"
HINT = "use a kernel and an engine that allow it"


class Tracers:
    """Listens to the tracers of all machines. `emit` takes their events. While the lab is not
    `closing`, none has a reason to end."""

    def __init__(self, inbox: Inbox, clock: Clock, emit: Callable[[Event], None]) -> None:
        self._inbox, self._clock, self._emit = inbox, clock, emit
        self._all: dict[str, Tracer] = {}  # by machine
        self._heard: dict[Channel, Tracer] = {}
        self._machines: Mapping[str, str] = {}

    def start(
        self,
        channels: Mapping[str, Channel | Lack],
        names: Mapping[str, str],
        machines: Mapping[str, str],
    ) -> Lack | None:
        """Makes the tracer of each machine report the sockets of its hosts, by the names of their
        addresses; returns why one can't, if so."""
        self._machines = machines
        lacks = []
        for machine, channel in channels.items():
            mine = {n: a for n, a in names.items() if machines[n.partition(".")[0]] == machine}
            found = self._all[machine] = Tracer(self._inbox, self._clock, self._emit)
            if not isinstance(channel, Lack):
                self._heard[channel] = found
            lacks.append(found.start(channel, mine))
        return next(filter(None, lacks), None)

    @property
    def trace(self) -> bool:
        """Whether any of them can."""
        return not all(tracer.lack for tracer in self._all.values())

    def begin(self) -> None:
        """The record begins: from now on it says what they miss; everything, if one can't trace."""
        for tracer in self._all.values():
            tracer.begin()

    def flush(self, patience: float) -> None:
        """Makes them send what they have, and how much they missed, each within `patience` s."""
        for tracer in self._all.values():
            tracer.flush(patience)

    def watch_too(self, event: AddressEvent) -> None:
        """Makes one of them report the sockets of one more address."""
        self._all[self._machines.get(event.host, "")].watch_too(event)

    def hears(self, source: Source) -> bool:
        """Whether a message comes from one of them."""
        return source.channel in self._heard

    def take(self, source: Source, message: Message | None, closing: bool) -> None:
        """Takes in a message, or a tracer's end. Raises NoMessage."""
        self._heard[source.channel].take(message, closing)


class Tracer:
    """Listens to the tracer of one machine."""

    def __init__(self, inbox: Inbox, clock: Clock, emit: Callable[[Event], None]) -> None:
        self._inbox, self._clock, self._emit = inbox, clock, emit
        self.lack: Lack | None = None  # why it can't trace
        self._channel: Channel | None = None
        self._hello = False  # whether its first message has come
        self._refused = ""
        self._owners: dict[str, str] = {}
        self._hosts: list[str] = []
        self._told = False  # whether the record says what it misses

    def start(self, channel: Channel | Lack, names: Mapping[str, str]) -> Lack | None:
        """Makes it report the sockets of these addresses, by name; returns why it can't, if so."""
        self._owners = {address: name.partition(".")[0] for name, address in names.items()}
        self._hosts = [*dict.fromkeys(self._owners.values())]
        if isinstance(channel, Lack):
            self.lack = channel
            return channel
        self._channel = channel
        self._inbox.listen(Source(NAME, self._hosts[0], channel))
        self._inbox.expect(lambda: self._hello, "the tracer's first word")
        if not self._refused:
            self._ask(Watch([*names.values()]))
        if self._refused:
            self._channel = None
            self.lack = Lack(self._refused, HINT)
        return self.lack

    def begin(self) -> None:
        """The record begins: from now on it says what the tracer misses; everything, if there is no
        tracer."""
        self._told = True
        if self.lack:
            self._blind(self._clock.now(), f"{self.lack.reason}; {self.lack.hint}")
        elif not self._channel:
            self._blind(self._clock.now(), "the tracer ended before")

    def flush(self, patience: float) -> None:
        """Makes it send what it has, and how much it missed."""
        if self._channel:
            self._ask(FlushTrace(), patience)

    def watch_too(self, event: AddressEvent) -> None:
        """Makes it report the sockets of one more address."""
        self._owners[event.address] = event.host
        self._hosts = [*dict.fromkeys([*self._hosts, event.host])]
        if self._channel:
            self._inbox.post(self._channel, Watch([*self._owners]))

    def take(self, message: Message | None, closing: bool) -> None:
        """Takes in a message, or the tracer's end. Raises NoMessage."""
        if message is None:
            if not closing and self._channel and not self._refused:
                self._channel = None
                self._blind(self._clock.now(), "the tracer ended")
            return
        if (number := asked(message)) is not None:
            self._inbox.take_reply(number, message)
            return
        said = TRACER.heard(message)
        t = self._clock.of(self._hosts[0], said.t)
        match said:
            case State() | Reset() | Fate() if self._told:
                self._emit(happened(said, t, host=owner(said, self._owners)))
            case Trouble() if self._told:
                self._blind(t, said.text)
            case Hello():
                self._hello = True
            case Refused():
                self._hello, self._refused = True, said.reason
            case Broken():
                self._channel = None
                self._blind(self._clock.now(), f"the tracer broke: {said.text}")

    def _ask(self, command: Command[Done], patience: float = ANSWER_DEADLINE) -> None:
        """Makes it do something. If it can't, or ends, the record says so."""
        assert self._channel
        number = self._inbox.post(self._channel, command)
        self._inbox.expect(
            lambda: self._inbox.answered(number) or not self._channel,
            "the tracer's answer",
            patience,
        )
        said = self._inbox.reply(number)
        if said and isinstance(answer := command.answered(said), Failed):
            self._blind(self._clock.now(), answer.error)

    def _blind(self, t: float, text: str) -> None:
        """Records that it missed transitions up to `t`, or will from now on, on any host."""
        if not self._told:
            self._hello, self._refused = True, text
            return
        for host in self._hosts:
            self._emit(TroubleEvent(t, host, "trace", text))
