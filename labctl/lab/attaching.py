"""The calls of programs that ran before anybody watched: for each host something attaches to them
and tells (images/peer/attach.py)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import field

from labctl.backends import Channel, Message
from labctl.backends.capabilities import Lack
from labctl.backends.protocol import (
    ATTACHER,
    Attach,
    Done,
    FlushCalls,
    Hello,
    Process,
    TellHeld,
    Unseen,
)
from labctl.backends.watched import Watched
from labctl.backends.wire import Command, asked
from labctl.ground.data import dataclass
from labctl.lab.clocks import Clock
from labctl.lab.happened import happened
from labctl.lab.messaging import Inbox, Source
from labctl.record.events import Event, ProcessEvent, TroubleEvent, UnseenEvent

SINCE = "calls are recorded from {:.3f} s on, of {}"
NOT_ALL = "not all calls are recorded: {}"
ENDED = "what told its calls ended"


@dataclass(eq=False)
class _Host:
    """What tells the calls of a host, or why nothing does."""

    name: str
    channel: Channel | Lack
    roots: Collection[int]
    attached: set[int] = field(default_factory=set)
    unseen: str = ""
    ended: bool = False


class Attaching:
    """Attaches to the processes of hosts. `emit` takes their events: all that a host's processes do
    is of one process, which has the host's name."""

    def __init__(
        self, watched: Watched, inbox: Inbox, clock: Clock, emit: Callable[[Event], None]
    ) -> None:
        self._watched, self._inbox, self._clock, self._emit = watched, inbox, clock, emit
        self._hosts: dict[str, _Host] = {}
        self._heard: dict[Channel, _Host] = {}

    def begin(self, name: str) -> None:
        """A record begins: its first words on a host are from when on it has calls, and which
        sockets processes have."""
        host = self._hosts.get(name) or self._start(name)
        now = self._clock.now()
        if isinstance(host.channel, Lack):
            text = f"calls are not recorded: {host.channel.reason}; {host.channel.hint}"
            self._emit(TroubleEvent(now, name, "calls", text))
            return
        root = next(iter(host.roots), None)
        self._emit(ProcessEvent(now, name, name, "start", root, watch="calls"))
        if host.ended:
            self._emit(UnseenEvent(now, name, name, ENDED))
        elif host.attached:
            self._ask(host, TellHeld())
        else:
            host.attached.update(host.roots)
            self._ask(host, Attach([*host.roots]))
        now = self._clock.now()
        whose = "what ran then and what it starts" if host.roots else "what holds the sockets"
        text = NOT_ALL.format(host.unseen) if host.unseen else SINCE.format(now, whose)
        self._emit(TroubleEvent(now, name, "calls", text))

    def again(self, name: str) -> None:
        """A host was started again: attaches to what it is now."""
        before = self._hosts.pop(name)
        if not isinstance(before.channel, Lack):
            before.ended = True
            self._watched.detach(before.channel)
            self._emit(ProcessEvent(self._clock.now(), name, name, "gone"))
        self.begin(name)

    def holding(self, name: str, pids: Collection[int]) -> None:
        """These hold sockets of a host."""
        host = self._hosts.get(name)
        if not host or host.roots or host.ended or isinstance(host.channel, Lack):
            return
        if new := sorted({*pids} - host.attached):
            host.attached.update(new)
            self._inbox.post(host.channel, Attach(new))

    def flush(self) -> None:
        """Takes in all that they have told up to now."""
        for host in self._hosts.values():
            if not host.ended and not isinstance(host.channel, Lack):
                self._ask(host, FlushCalls())

    def hears(self, source: Source) -> bool:
        """Whether a message comes from one of them."""
        return source.channel in self._heard

    def take(self, source: Source, message: Message | None, closing: bool) -> None:
        """Takes in a message, or an end. Raises NoMessage."""
        host = self._heard[source.channel]
        name = host.name
        if host.ended:
            return
        if message is None:
            host.ended = True
            if not closing:
                self._emit(UnseenEvent(self._clock.now(), name, name, ENDED))
        elif (number := asked(message)) is not None:
            self._inbox.take_reply(number, message)
        else:
            said = ATTACHER.heard(message)
            host.unseen = said.text if isinstance(said, Unseen) else host.unseen
            of_all = isinstance(said, Process) and not host.roots  # no main process of a host
            if not isinstance(said, Hello) and not of_all:
                t = max(0.0, self._clock.of(name, said.t))
                self._emit(happened(said, t, process=name, host=name))

    def _start(self, name: str) -> _Host:
        roots = self._watched.roots(name)
        host = self._hosts[name] = _Host(name, self._watched.calls(name), roots)
        if not isinstance(host.channel, Lack):
            self._heard[host.channel] = host
            self._inbox.listen(Source(f"what tells the calls of {name}", name, host.channel))
        return host

    def _ask(self, host: _Host, command: Command[Done]) -> None:
        assert not isinstance(host.channel, Lack)
        number = self._inbox.post(host.channel, command)
        self._inbox.expect(
            lambda: self._inbox.answered(number) or host.ended, "an answer of what tells calls"
        )
        self._inbox.reply(number)
