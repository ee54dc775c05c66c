"""Messages from the programs in the lab, in the order in which they arrive, and questions to them.

Threads: each channel has a reader, which only puts messages on a queue. Everything else happens in
the thread that calls `pump`: it takes them off, and so decides the order of the record.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from labctl.backends import Channel, Message
from labctl.backends.wire import A, Command, Failed, NoMessage
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError
from labctl.ground.limits import explained
from labctl.lab.clocks import Clock

stopping = threading.Event()
"""Set when a signal asked to stop. The exception that it raised may be lost where Python can't
raise (in a finalizer). So `pump` checks this too, every HEARTBEAT seconds or as often as agents
poll."""

HEARTBEAT = 1.0
ANSWER_DEADLINE = 20.0
NO_MESSAGE = "said what is no message, or something in the lab wrote into its stream"


def surely(down: Callable[[], None], because: BaseException | None = None) -> None:
    """Takes something down, also if that is interrupted once. If it goes down because of something,
    then that is the reason also if this fails."""
    try:
        down()
    except KeyboardInterrupt:
        down()
        raise
    except LabError:
        if because is None:
            raise


@dataclass(frozen=True)
class Source:
    """Where a message comes from: a host's agent, the tracer, or one start of a process, from 1
    on."""

    name: str
    host: str
    channel: Channel
    process: str | None = None
    start: int = 0

    def __str__(self) -> str:
        return self.name


Said = Message | Exception | None
"""A message; the error that broke its channel; or None for the channel's end."""


class Inbox:
    """All channels of a lab. It calls `take` with each message; if a program does not answer,
    `stopped` says which of the lab's programs somebody has stopped."""

    def __init__(
        self,
        clock: Clock,
        take: Callable[[Source, Message | None], None],
        stopped: Callable[[], str | None],
    ) -> None:
        self.heartbeat = HEARTBEAT
        self._clock, self._take_in, self._stopped = clock, take, stopped
        self._said: queue.SimpleQueue[tuple[Source, Said]] = queue.SimpleQueue()
        self._asked = 0
        self._replies: dict[int, Message] = {}

    def listen(self, source: Source) -> None:
        """Hears a channel from now on, to its end."""

        def read() -> None:
            try:
                for message in source.channel:
                    self._said.put((source, message))
                self._said.put((source, None))
            except Exception as exc:
                self._said.put((source, exc))

        threading.Thread(target=read, daemon=True, name=f"read {source.host}").start()

    def pump(self, patience: float) -> None:
        """Takes in the messages that are there; waits for the first one, `patience` seconds or a
        heartbeat at most. Raises KeyboardInterrupt if that is due.

        Messages that come meanwhile are for the next time: a flood must not keep us here."""
        if self.next(patience):
            for _ in range(self._said.qsize()):
                self._take(*self._said.get_nowait())

    def next(self, patience: float) -> bool:
        """Takes in the next message, if one comes; see `pump`."""
        if stopping.is_set():
            raise KeyboardInterrupt
        try:
            self._take(*self._said.get(timeout=max(0.0, min(patience, self.heartbeat))))
        except queue.Empty:
            return False
        return True

    def pump_until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Takes in messages until a condition holds; False if it does not before `deadline`."""
        while not condition():
            if (left := deadline - self._clock.now()) <= 0:
                return False
            self.pump(left)
        return True

    def expect(
        self, condition: Callable[[], bool], what: str, patience: float = ANSWER_DEADLINE
    ) -> None:
        """The same for a condition that must hold soon. Raises LabError if it does not."""
        if not self.pump_until(condition, self._clock.now() + patience):
            late = f"{what} did not come within {patience:g} s"
            raise LabError(self._stopped() or late)

    def post(self, channel: Channel, command: Command[Any]) -> int:
        """Sends a command; returns the number that the answer will have."""
        self._asked += 1
        channel.send({**command.as_json(), "id": self._asked})
        return self._asked

    def answered(self, number: int) -> bool:
        """Whether a command has its answer."""
        return number in self._replies

    def take_reply(self, number: int, message: Message) -> None:
        """Keeps an answer."""
        self._replies[number] = message

    def reply(self, number: int) -> Message | None:
        """Takes out an answer; None if there is none yet."""
        return self._replies.pop(number, None)

    def ask(
        self,
        channels: Mapping[str, Channel],
        commands: Mapping[str, Command[A]],
        patience: float = ANSWER_DEADLINE,
    ) -> dict[str, A]:
        """Asks the agents of hosts, and returns their answers. Raises LabError."""
        ids = {host: self.post(channels[host], command) for host, command in commands.items()}
        waiting, deadline = {*ids.values()}, self._clock.now() + patience
        if not self.pump_until(lambda: waiting <= self._replies.keys(), deadline):
            late = ", ".join(host for host, number in ids.items() if not self.answered(number))
            do = next(iter(commands.values())).do
            raise LabError(self._stopped() or f"{late}: no answer to {do} in {patience:g} s")
        said = {host: self._replies.pop(number) for host, number in ids.items()}
        answers: dict[str, A] = {}
        for host, command in commands.items():
            try:
                answer = command.answered(said[host])
            except NoMessage as exc:
                raise LabError(f"the agent of host {host} {NO_MESSAGE}: {exc}") from exc
            if isinstance(answer, Failed):
                raise LabError(f"{host}: {explained(answer.error)}")
            answers[host] = answer
        return answers

    def _take(self, source: Source, message: Said) -> None:
        try:
            if isinstance(message, NoMessage):
                raise message
            if isinstance(message, LabError):
                raise LabError(self._stopped() or f"{source}: {message}") from message
            if isinstance(message, Exception):
                raise LabError(f"{source}: {type(message).__name__}: {message}") from message
            self._take_in(source, message)
        except NoMessage as exc:
            raise LabError(f"{source} {NO_MESSAGE}: {exc}") from exc
