"""A backend without a network: hosts and processes that say what a test's script has them say.

A script maps what labctl does to what happens then:

    FakeBackend({"start server": lambda lab: lab.sockets("server", tcp("LISTEN", ":8000"))})

What labctl does is written as `up`, `start P`, `begin`, `kill P`, `signal P NAME`, `freeze P`,
`thaw P`, `call P TEXT`, `look HOST`, `exec HOST COMMAND`, `sysctl HOST KEY`, `drop HOST` (and all
other faults so) and `down`; `log` has all of it in order. A list of reactions is for the first
time, the second, and so on.

It keeps the contract of all backends as far as that takes no network
(tests/contract/test_backends.py).
"""

from __future__ import annotations

import base64
import itertools
import json
import queue
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from labctl.backends import Channel, HostLink, HostSpec, Message, ProcessSpec
from labctl.backends.capabilities import Lack
from labctl.backends.sysctls import refusal
from labctl.judge.check import Verdict, check
from labctl.judge.result import RunResult
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document
from labctl.probes.segments import Captures
from labctl.record.lines import read_events
from labctl.record.store import RunFolder, new_folder
from labctl.run.runner import Session, Silent, Watcher

HEADER = "State Recv-Q Send-Q Local Address:Port Peer Address:Port Process"
COUNTERS = {"TcpActiveOpens": 0, "TcpExtTCPAbortOnClose": 7}
ANSWERS: dict[str, Message] = {
    "sysctl": {"missing": [], "readable": [], "failed": {}},
    "exec": {"exit": 127, "output": "not found\n", "left_out": 0},
    "setup": {"capture": None, "bound": False},
    "flush": {"dropped": 0, "dropped_inside": 0, "lost": {}},
    "probe": {"missing": {}},
    "drop": {"unlogged": None},
    "heal": {"lost": {}},
}
"""What an agent answers, beside that something is done."""

Reaction = Callable[["FakeBackend"], object]
Script = Mapping[str, Reaction | Sequence[Reaction]]


def tcp(state: str, local: str, peer: str = "0.0.0.0:*", more: str = "", **queues: int) -> str:
    """A line of `ss`, with what is in its queues: `recv_q` and `send_q`."""
    host, _, port = local.rpartition(":")
    waiting = f"{queues.get('recv_q', 0)} {queues.get('send_q', 0)}"
    return f"{state} {waiting} {host or '0.0.0.0'}:{port} {peer} {more}".rstrip()


class FakeChannel:
    """A channel to a program that is a function; what the program says is put there by `say`."""

    def __init__(self, obey: Callable[[Message], None]) -> None:
        self.obey = obey
        self._said: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def say(self, **message: Any) -> None:
        self._said.put(message)

    def send(self, message: Mapping[str, Any]) -> None:
        self.obey(json.loads(json.dumps(message)))

    def __iter__(self) -> Iterator[Message]:
        while (message := self._said.get()) is not None:
            yield message

    def close(self) -> None:
        self._said.put(None)


@dataclass
class FakeHost:
    """A host: what its agent would say."""

    channel: FakeChannel
    lines: tuple[str, ...] = ()
    counters: dict[str, int] = field(default_factory=lambda: dict(COUNTERS))
    changed: dict[str, int] = field(default_factory=dict)


class FakeBackend:
    """See `Backend`, and the module. `answers` maps what labctl has an agent do, or how that
    begins (`exec server ls`, `flush server`, `sysctl`), to what it answers then."""

    name = "fake"
    ahead = 0.0
    """How far the lab's clock is ahead of ours, in seconds."""
    machines: ClassVar[Mapping[str, float]] = {}
    """Hosts on machines of their own, and how far their clocks are ahead of the others'."""

    def __init__(
        self,
        script: Script | None = None,
        answers: Mapping[str, Message] | None = None,
        kernel: str = "6.1.0-fake",
        lacks: Mapping[str, Lack] | None = None,
    ) -> None:
        self.log: list[str] = []
        self.about: dict[
            str, dict[str, Any]
        ] = {}  # what supervisors tell of processes as they start
        self._script = script or {}
        self._answers = answers or {}
        self._kernel = kernel
        self._lacks = lacks or {}
        self._hosts: dict[str, FakeHost] = {}
        self._processes: dict[str, FakeChannel] = {}
        self._where: dict[str, str] = {}  # the host of each
        self._left: dict[str, list[FakeChannel]] = {}
        self._held: dict[str, dict[str, dict[str, int]]] = {}
        self._dumb: set[str] = set()
        self._unanswered: list[Callable[[], None]] = []
        self._channels: list[FakeChannel] = []
        self._pids = itertools.count(100)

    # --- The protocol -----------------------------------------------------------------------------

    @classmethod
    def share(cls) -> None:
        pass

    def environment(self) -> dict[str, str | None]:
        return {"kernel": self._kernel, "os": "Fake OS 1", "engine": None}

    def lacks(self) -> Mapping[str, Lack]:
        return self._lacks

    def up(
        self, hosts: Sequence[HostSpec], processes: Sequence[ProcessSpec]
    ) -> dict[str, HostLink]:
        links, numbers = {}, itertools.count(2)
        for host in hosts:
            channel = self._channel(partial(self._obey, host.name))
            self._hosts[host.name] = FakeHost(channel)
            mine = [next(numbers) for _ in range(host.addresses)]
            links[host.name] = HostLink(
                channel,
                f"holder of {host.name}",
                tuple(f"198.18.0.{n}" for n in mine),
                tuple(f"fd00::{n}" for n in mine),
                machine=self._machine(host.name),
            )
            channel.say(kind="hello", t=self.time(host=host.name), wall=time.time(),
                        kernel=self._kernel, counters=COUNTERS, watch="diag")  # fmt: skip
        self._did("up")
        return links

    def trace(self) -> dict[str, Channel | Lack]:
        def obey(message: Message) -> None:
            self.tracer.say(kind="reply", id=message["id"], t=self.time())

        self.tracer = self._channel(obey)
        self.tracer.say(kind="hello", t=self.time())
        lack = Lack("no tracer", "have one")
        found = dict.fromkeys(self._machine(host) for host in self._hosts)
        return {machine: lack if machine else self.tracer for machine in found}

    def spawn(self, process: ProcessSpec) -> Channel:
        now = partial(self.time, host=process.host)

        def obey(message: Message) -> None:
            if process.name in self._dumb:
                self._unanswered.append(partial(obey, message))
                return
            if message["do"] == "holders":
                held = self._held.get(process.name, {})
                commands = dict.fromkeys(held, "python3")
                channel.say(t=now(), kind="holders", commands=commands, sockets=held,
                            unread=[])  # fmt: skip
            if message["do"] in ("answer", "holders", "killall"):
                channel.say(t=now(), kind="reply", id=message["id"])
            else:
                self._did(f"call {process.name} {message['call']}")

        channel = self._channel(obey)
        if process.name in self._processes:
            self._left.setdefault(process.name, []).append(self._processes[process.name])
        self._processes[process.name] = channel
        self._where[process.name] = process.host
        about = self.about.get(process.name, {})
        self.say(process.name, kind="process", phase="start", pid=next(self._pids), **about)
        self._did(f"start {process.name}")
        return channel

    def begin(self) -> None:
        self._did("begin")

    def kill(self, process: ProcessSpec) -> None:
        self.gone(process.name)
        self._did(f"kill {process.name}")

    def signal(self, process: ProcessSpec, name: str) -> None:
        self._did(what := f"signal {process.name} {name}")
        if what not in self._script and process.name in self._processes:
            self.killed(process.name, name, left=False)

    def prepare(self, process: ProcessSpec) -> None:
        self._did(f"prepare {process.name}")

    def freeze(self, process: ProcessSpec, frozen: bool) -> bool:
        self._did(f"{'freeze' if frozen else 'thaw'} {process.name}")
        return True

    def sysctl(self, key: str, value: str, readable: bool) -> None:
        raise refusal(key, self._kernel, True, readable)

    def stopped(self) -> str | None:
        return None

    def down(self) -> None:
        self._did("down")
        for channel in self._channels:
            channel.close()

    # --- What a script has happen -----------------------------------------------------------------

    def time(self, later: float = 0.0, host: str = "") -> float:
        """The lab's clock, or a host's, `later` seconds from now."""
        return time.monotonic() + self.ahead + self.machines.get(host, 0.0) + later

    def _machine(self, host: str) -> str:
        return host if host in self.machines else ""

    def sockets(self, host: str, *lines: str, later: float = 0.0) -> None:
        """From now on, or as if `later` seconds from now, these are the host's sockets."""
        self.unnoticed(host, *lines)
        self._report(host, "change", None, later)

    def unnoticed(self, host: str, *lines: str) -> None:
        """These are the host's sockets, and only a look tells."""
        self._hosts[host].lines = lines

    def count(self, host: str, **counters: int) -> None:
        """These counters of a host now have these values; its next look tells."""
        self._hosts[host].counters.update(counters)
        self._hosts[host].changed.update(counters)

    def packets(self, host: str, *records: bytes) -> None:
        """A host captured these, as pcap records."""
        data = base64.b64encode(b"".join(records)).decode()
        self._hosts[host].channel.say(kind="packets", t=self.time(host=host), data=data)

    def loses(self, host: str, drop: int, packet: bytes) -> None:
        """A host lost a packet by the drop of a step."""
        data = base64.b64encode(packet).decode()
        self._hosts[host].channel.say(kind="loss", t=self.time(host=host), drop=drop, data=data)

    def trouble(self, host: str, text: str) -> None:
        """A probe of the host can't see."""
        self._hosts[host].channel.say(kind="trouble", t=self.time(host=host), probe="ss", text=text)

    def dies(self, host: str) -> None:
        """The host's agent ends."""
        self._hosts[host].channel.close()

    def say(self, process: str, later: float = 0.0, **message: Any) -> None:
        """A process reports something."""
        t = self.time(later, self._where[process])
        self._processes[process].say(t=t, **message)

    def call(self, process: str, call: str, done: bool = True, **result: Any) -> None:
        """A process enters a call and, unless it blocks, is done with it."""
        event: Message = {"kind": "call", "pid": 2, "call": call, "name": call.split(maxsplit=1)[0]}
        self.say(process, phase="enter", **event)
        if done:
            self.say(process, phase="done", **event, **result)

    def holds(self, process: str, pid: int, **sockets: int) -> None:
        """One of a process's processes holds these inodes by these descriptors (`fd3=7`)."""
        numbers = {name.removeprefix("fd"): inode for name, inode in sockets.items()}
        self._held.setdefault(process, {})[str(pid)] = numbers

    def dumb(self, process: str) -> None:
        """From now on a process answers nothing, until it `speaks` again."""
        self._dumb.add(process)

    def speaks(self) -> None:
        """All processes answer, also what they were asked meanwhile."""
        self._dumb.clear()
        while self._unanswered:
            self._unanswered.pop(0)()

    def output(self, process: str, text: str) -> None:
        """A program writes."""
        self.say(process, kind="output", text=text)

    def exit(self, process: str, status: int = 0, later: float = 0.0) -> None:
        """The main process exits, and there are no others."""
        self.say(process, later, kind="process", phase="exit", pid=2, exit=status, signal=None)
        self.gone(process)

    def killed(self, process: str, signal: str, left: bool = True) -> None:
        """The main process ends by a signal; its children live on, where it has left some."""
        self.say(process, kind="process", phase="exit", pid=2, exit=None, signal=signal, left=left)
        if not left:
            self.gone(process)

    def gone(self, process: str) -> None:
        """Nothing of a process is left, of any of its starts."""
        for channel in self._left.pop(process, ()):
            channel.close()
        if process in self._processes:
            self._processes.pop(process).close()

    # --- Inside -----------------------------------------------------------------------------------

    def _channel(self, obey: Callable[[Message], None]) -> FakeChannel:
        self._channels.append(FakeChannel(obey))
        return self._channels[-1]

    def _did(self, what: str) -> None:
        times = self.log.count(what)
        self.log.append(what)
        reactions = self._script.get(what, ())
        if callable(reactions):
            reactions(self)
        elif times < len(reactions):
            reactions[times](self)

    def _report(self, name: str, cause: str, caption: str | None, later: float = 0.0) -> None:
        host = self._hosts[name]
        host.channel.say(
            kind="sockets", t=self.time(later, name), cause=cause,
            text="\n".join([HEADER, *host.lines]), counters=dict(host.changed),
            **({"caption": caption} if cause == "look" else {}),
        )  # fmt: skip
        host.changed.clear()

    def _obey(self, name: str, message: Message) -> None:
        verb = str(message.get("verb", message["do"]))
        words = {"exec": [message.get("command")], "sysctl": message.get("values", ())}
        what = " ".join([verb, name, *words.get(verb, ())])
        answer = dict(ANSWERS.get(verb, {}))
        for begin, told in self._answers.items():
            if f"{what} ".startswith(f"{begin} "):
                answer |= told
        if verb == "look":
            self._report(name, "look", message["caption"])
        now = self.time(host=name)
        self._hosts[name].channel.say(kind="reply", id=message["id"], t=now, **answer)
        self._did(what)


def scenario(text: str) -> Scenario:
    """The one case of a scenario's text."""
    (found,) = load_document(Document("lesson.yaml", text), text, "lesson", {})
    return found


def play(
    text: str | Scenario, backend: FakeBackend, out: Path, watcher: Watcher | None = None
) -> RunResult:
    """Runs a scenario on a fake, and sees to what holds of every run: everything is taken down, the
    record is whole, and judging the record gives the verdicts that the run gave."""
    chosen = scenario(text) if isinstance(text, str) else text
    with RunFolder(new_folder(out, chosen.name), chosen.text) as folder:
        found = Session(chosen, backend, folder, watcher or Silent()).run()
    assert "up" not in backend.log or "down" in backend.log
    (recorded,) = json.loads((found.folder / "result.json").read_text())["runs"]
    assert recorded == json.loads(json.dumps(found.as_json()))
    if found.result == "skip" and not found.verdicts:
        return found
    events = read_events((found.folder / "history.jsonl").read_text().splitlines())
    replayed = check(chosen, events, Captures.load(found.folder))
    judged = [v for v in found.verdicts if v.expected != "to be done"]  # no claim of the scenario's
    assert [timeless(v) for v in replayed] == [timeless(v) for v in judged]
    for again, before in zip(replayed, judged, strict=True):
        assert abs(again.at - before.at) < 1e-5
    return found


def timeless(verdict: Verdict) -> tuple[str, ...]:
    """A verdict without its times: they are recorded as rounded to microseconds."""
    actual = re.sub(r"\d+\.\d{3} s\b", "T s", verdict.actual)
    return (verdict.result, verdict.what, verdict.expected, actual, verdict.source)
