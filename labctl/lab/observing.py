"""Hosts that are observed, of a lab or of what runs already: each has an agent, and what that
reports becomes events of a history."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

from labctl.backends import Channel, Message, protocol
from labctl.backends.wire import A, Command
from labctl.ground.errors import LabError
from labctl.ground.limits import explained
from labctl.lab.clocks import Clock
from labctl.lab.faults import tallied
from labctl.lab.happened import uncaptured
from labctl.lab.messaging import ANSWER_DEADLINE, Inbox, Source
from labctl.lab.tracing import Tracers
from labctl.record.events import Event
from labctl.record.history import History

SETTLING = 0.25
"""What "now" means to an expectation: an acknowledgement may be delayed by 200 ms (TCP_DELACK_MAX
in include/net/tcp.h; RFC 9293, section 3.8.6.3 allows 500), and a state may depend on it."""


class Observing(ABC):
    """What waits and expectations need of a lab, or of a watch. Methods raise LabError."""

    acted: tuple[str, float] | None = None
    """Whose clock says when the latest marked step began to act, and what it says; None if that is
    only known by the lab's own."""

    def __init__(self, history: History, stopped: Callable[[], str | None]) -> None:
        self.history = history
        self._record: Callable[[Event], None] | None = None
        self._clock = Clock()
        self._inbox = Inbox(self._clock, self._take, stopped)
        self._tracer = Tracers(self._inbox, self._clock, self._take_traced)
        self._agents: dict[str, Channel] = {}
        self._closing = False

    def now(self) -> float:
        """Seconds since the run began, by the lab's clock."""
        return self._clock.now()

    def look(self, hosts: Iterable[str] | None = None, caption: str | None = None) -> None:
        """Makes every host report its sockets and counters now, and every process what it holds.
        With `hosts`, only these, and only those where something has happened since the last
        report."""
        self.count(self._agents if hosts is None else hosts, caption, fresh=hosts is None)

    def count(self, hosts: Iterable[str], caption: str | None = None, fresh: bool = False) -> None:
        """The same of these hosts alone, without what processes of a lab hold."""
        known = () if fresh else self.history.sockets
        self._ask_all({host: protocol.Look(caption, fresh=host not in known) for host in hosts})

    def flush(self, patience: float = ANSWER_DEADLINE) -> None:
        """Takes in the rest of every capture and of the trace, and how much they missed."""
        self._tracer.flush(patience)
        asked = dict.fromkeys(self._agents, protocol.Flush())
        for host, answer in self._ask_all(asked, patience).items():
            for missed in uncaptured(answer, self.now(), host):
                self.emit(missed)
            for event in tallied(self.history, self.now(), host, answer.lost):
                self.emit(event)

    def compare_clocks(self) -> None:
        """Compares the clocks of several machines again: they may have drifted."""
        self._clock.compare_again(self._time_at)
        self._tell_clocks()

    def hear(self, processes: Iterable[str]) -> None:
        """Takes in everything that some processes have said up to now."""
        self.pump(0.0)

    def pump(self, patience: float) -> None:
        """See `Inbox.pump`."""
        self._inbox.pump(patience)

    def next(self, patience: float) -> bool:
        """See `Inbox.next`."""
        return self._inbox.next(patience)

    def pump_until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """See `Inbox.pump_until`."""
        return self._inbox.pump_until(condition, deadline)

    def emit(self, event: Event) -> None:
        """Takes in an event, and records it."""
        self.history.add(event)
        if self._record:
            self._record(event)

    def _take_traced(self, event: Event) -> None:
        """Takes in an event of the tracer."""
        self.emit(event)

    def _time_at(self, host: str) -> float:
        return self._ask_all({host: protocol.TellTime()})[host].t

    def _tell_clocks(self) -> None:
        for event in self._clock.told():
            self.emit(event)

    @abstractmethod
    def _hear(self, source: Source, message: Message | None) -> None:
        """Takes in a message of an agent or of a process, or its end."""

    def _ask_all(
        self, commands: Mapping[str, Command[A]], patience: float = ANSWER_DEADLINE
    ) -> dict[str, A]:
        """Makes each host's agent do something and returns their answers."""
        return self._inbox.ask(self._agents, commands, patience)

    def _take(self, source: Source, message: Message | None) -> None:
        if self._tracer.hears(source):
            self._tracer.take(source, message, self._closing)
        elif message and message["kind"] == protocol.Broken.kind:
            raise LabError(f"{source} broke: {explained(protocol.Broken.of(message).text)}")
        else:
            self._hear(source, message)
