"""What runs already, to be watched: watchers that say what a test has them say."""

from __future__ import annotations

import base64
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from labctl.backends import Channel, Message
from labctl.backends.capabilities import Lack
from labctl.ground.errors import LabError
from tests.fake import HEADER, FakeChannel, tcp
from tests.sighted import EPOCH

WEB, DB = "198.18.0.2", "198.18.0.3"
CLIENT, SERVER = f"{DB}:40000", f"{WEB}:8000"
LISTENS = tcp("LISTEN", ":8000", more="ino:7")
CLOSE_WAIT = tcp("CLOSE-WAIT", SERVER, CLIENT, more="ino:8")
FRESH = {"TcpActiveOpens": 3, "TcpPassiveOpens": 5}


class FakeWatched:
    """See `Watched`. What happens is a list of actions: one is done whenever the watch asks whether
    all is over, which is so after the last one."""

    backend = "fake"

    def __init__(
        self, actions: Sequence[Callable[[FakeWatched], object]], **hosts: Sequence[str]
    ) -> None:
        self.hosts = {name: list(addresses) for name, addresses in hosts.items()}
        self.ports: Sequence[int] = ()
        self.tracer: FakeChannel | None = None
        self.caller: Lack | None = None  # why nothing attaches
        self.callers: dict[str, FakeChannel] = {}
        self.mains: dict[str, list[int]] = {}
        self.has: list[dict[str, Any]] = []  # what is told of sockets that were there before
        self.refuses = ""  # why a process can't be attached to
        self.asked: list[Message] = []  # of what attaches
        self.counters = dict(FRESH)
        self.lines: dict[str, Sequence[str]] = defaultdict(tuple)
        self.channels: dict[str, FakeChannel] = {}
        self.detached: list[Channel] = []
        self.is_down = False
        self.restarted: list[str] = []
        self.coming: list[str] = []
        self.fails = ""
        self.tells = True
        self._actions = list(actions)

    @property
    def names(self) -> Sequence[str]:
        return list(self.hosts)

    def environment(self) -> dict[str, str | None]:
        return {"kernel": "6.1.0-fake", "os": None, "engine": None}

    def attach(self, name: str) -> Channel:
        if self.fails:
            raise LabError(self.fails)
        channel = FakeChannel(lambda message: self._obey(name, channel, message))
        self.channels[name] = channel
        if self.tells:
            channel.say(kind="hello", t=time.monotonic(), wall=EPOCH, kernel="6.1.0-fake",
                        counters=self.counters, watch="diag")  # fmt: skip
        else:
            channel.close()
        return channel

    def detach(self, channel: Channel) -> None:
        self.detached.append(channel)
        channel.close()

    def trace(self) -> Channel | Lack:
        if self.tracer:
            self.tracer.say(kind="hello", t=time.monotonic())
            return self.tracer
        return Lack("no tracing here", "take another kernel")

    def calls(self, name: str) -> Channel | Lack:
        if self.caller:
            return self.caller
        channel = FakeChannel(lambda message: self._attach(channel, message))
        self.callers[name] = channel
        channel.say(kind="hello", t=time.monotonic())
        return channel

    def roots(self, name: str) -> Sequence[int]:
        return self.mains.get(name, [])

    def again(self, sure: bool = False) -> list[str]:
        found, self.restarted = self.restarted, []
        return found

    def added(self) -> list[str]:
        found, self.coming = self.coming, []
        return found

    def forget(self, name: str) -> None:
        del self.hosts[name]

    def over(self) -> bool:
        if self._actions:
            self._actions.pop(0)(self)
            return False
        return True

    def why(self) -> str:
        return "it says why"

    def down(self) -> None:
        self.is_down = True
        more = *self.callers.values(), *filter(None, [self.tracer])
        for channel in (*self.channels.values(), *more):
            channel.close()

    # --- What happens -----------------------------------------------------------------------------

    def say(self, name: str, kind: str, **message: Any) -> None:
        """A watcher says something."""
        self.channels[name].say(kind=kind, t=time.monotonic(), **message)

    def call(self, name: str, **message: Any) -> None:
        """A process of a host makes a call, and it returns."""
        told = {"t": time.monotonic(), "pid": 42, "name": message["call"].split()[0], **message}
        for phase in ("enter", "done"):
            failure = {"errno": None, "error": None} if phase == "enter" else {}
            self.callers[name].say(kind="call", phase=phase, **{**told, **failure})

    def look(
        self, name: str, *lines: str, cause: str = "change", caption: str | None = None,
        **counters: int,
    ) -> None:  # fmt: skip
        """From now on these are the sockets of a host."""
        self.lines[name] = lines
        text = "\n".join([HEADER, *lines])
        self.say(name, "sockets", cause=cause, text=text, counters=counters, caption=caption)

    def packets(self, name: str, *records: bytes) -> None:
        """A watcher captured these."""
        self.say(name, "packets", data=base64.b64encode(b"".join(records)).decode())

    def _obey(self, name: str, channel: FakeChannel, message: Message) -> None:
        answer: Mapping[str, object] = {}
        if message["do"] == "setup":
            answer = {"capture": None, "bound": False}
            for address in self.hosts[name]:
                channel.say(kind="address", t=time.monotonic(), address=address)
        elif message["do"] == "look":
            self.look(name, *self.lines[name], cause="look", caption=message["caption"])
        elif message["do"] == "flush":
            answer = {"dropped": 0, "dropped_inside": 0, "lost": {}}
        channel.say(kind="reply", id=message["id"], t=time.monotonic(), **answer)

    def _attach(self, channel: FakeChannel, message: Message) -> None:
        self.asked.append(message)
        if self.refuses and message["do"] == "attach":
            channel.say(kind="unseen", t=time.monotonic(), text=self.refuses, but=[])
        for has in self.has if message["do"] in ("attach", "held") else ():
            channel.say(kind="call", t=time.monotonic(), phase="done", name="has", **has)
        channel.say(kind="reply", id=message["id"], t=time.monotonic())
