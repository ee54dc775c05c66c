"""Questions to supervisors of processes, which may end before they answer."""

from __future__ import annotations

from collections.abc import Collection

from labctl.backends import Channel, Message
from labctl.backends.protocol import Done, TellAll
from labctl.backends.wire import Command, asked
from labctl.lab.messaging import Inbox


class Questions:
    """Those that have no answer yet."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._open: dict[int, Channel] = {}

    def ask(self, channel: Channel, command: Command[Done]) -> int:
        """Asks one; returns its number."""
        number = self._inbox.post(channel, command)
        self._open[number] = channel
        return number

    def answered(self, channel: Channel, message: Message) -> bool:
        """Whether a message is the answer to one, which is open no more. Raises NoMessage."""
        number = asked(message)
        if number is None or self._open.get(number) is not channel:
            return False
        del self._open[number]
        return True

    def forget(self, channel: Channel) -> None:
        """Expects no answers there any more: all of that process is gone."""
        self._open = {n: other for n, other in self._open.items() if other is not channel}

    def settle(self, channels: Collection[Channel]) -> None:
        """Waits until these have done all that they were told before. Raises LabError."""
        self.wait([self.ask(channel, TellAll()) for channel in channels])

    def wait(self, numbers: Collection[int] | None = None) -> None:
        """Waits for the answers to these, or to all. Raises LabError."""
        waiting = {*(self._open if numbers is None else numbers)}
        self._inbox.expect(lambda: not waiting & self._open.keys(), "an answer of a process")
