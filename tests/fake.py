"""A backend without a network: hosts and processes that say what a test's script has them say.

A script maps what labctl does to what happens then:

    FakeBackend({"start server": lambda lab: lab.sockets("server", tcp("LISTEN", ":8000"))})

What labctl does is written as `up`, `start P`, `kill P`, `signal P NAME`, `freeze P`, `thaw P`,
`call P TEXT`, `look HOST`, `exec HOST COMMAND`, `sysctl HOST KEY`, `drop HOST` (and all other
faults so) and `down`; `log` has all of it in order. A list of reactions is for the first time, the
second, and so on.
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
from typing import Any

from labctl.backends import Channel, HostLink, HostSpec, Message, ProcessSpec
from labctl.backends.capabilities import Lack
from labctl.backends.sysctls import refusal
from labctl.judge.check import Verdict, check
from labctl.judge.result import RunResult
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document
from labctl.probes.segments import Captures
from labctl.record.events import read_events
from labctl.record.store import RunFolder, new_folder
from labctl.run.runner import Session, Silent, Watcher

HEADER = "State Recv-Q Send-Q Local Address:Port Peer Address:Port Process"
COUNTERS = {"TcpActiveOpens": 0, "TcpExtTCPAbortOnClose": 7}

Reaction = Callable[["FakeBackend"], object]


def tcp(
    state: str,
    local: str,
    peer: str = "0.0.0.0:*",
    recv_q: int = 0,
    send_q: int = 0,
    more: str = "",
) -> str:
    """A line of `ss`."""
    host, _, port = local.rpartition(":")
    return f"{state} {recv_q} {send_q} {host or '0.0.0.0'}:{port} {peer} {more}".rstrip()


class FakeChannel:
    """A channel to a program that is a function; what the program says is put there by `say`."""

    def __init__(self, obey: Callable[[Message], None]) -> None:
        self._obey = obey
        self._said: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def say(self, **message: Any) -> None:
        self._said.put(message)

    def send(self, message: Mapping[str, Any]) -> None:
        self._obey(json.loads(json.dumps(message)))

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
    """See `Backend`, and the module. `clock` is how far the lab's clock is ahead of ours, in
    seconds; `sysctls` are the known ones, all where it is None; `outputs` maps commands to what
    they write, or to status and that; so much of it is `left_out`. `uncaptured` is why no host
    captures, and `dropped` how many packets each lost.
    `missing` is what a host can't do and why, `lost` what each has lost by which drop, and
    `unlogged` why none can say which segments those were."""

    name = "fake"

    def __init__(
        self,
        script: Mapping[str, Reaction | Sequence[Reaction]] | None = None,
        *,
        kernel: str = "6.1.0-fake",
        clock: float = 0.0,
        lacks: Mapping[str, Lack] | None = None,
        sysctls: set[str] | None = None,
        refused: Mapping[str, str] | None = None,
        outputs: Mapping[str, str | tuple[int, str]] | None = None,
        left_out: int = 0,
        uncaptured: str | None = None,
        dropped: int = 0,
        missing: Mapping[str, str] | None = None,
        lost: Mapping[str, Mapping[str, int]] | None = None,
        unlogged: str | None = None,
    ) -> None:
        self.log: list[str] = []
        self._script = script or {}
        self._kernel = kernel
        self._clock = clock
        self._lacks = lacks or {}
        self._sysctls = sysctls
        self._refused = refused or {}
        self._outputs = outputs or {}
        self._left_out = left_out
        self._uncaptured = uncaptured
        self._dropped = dropped
        self._missing = missing or {}
        self._lost = lost or {}
        self._unlogged = unlogged
        self._hosts: dict[str, FakeHost] = {}
        self._processes: dict[str, FakeChannel] = {}
        self._left: dict[str, list[FakeChannel]] = {}
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
            channel = FakeChannel(partial(self._obey, host.name))
            self._hosts[host.name] = FakeHost(channel)
            mine = [next(numbers) for _ in range(host.addresses)]
            links[host.name] = HostLink(
                channel,
                f"holder of {host.name}",
                tuple(f"198.18.0.{n}" for n in mine),
                tuple(f"fd00::{n}" for n in mine),
            )
            channel.say(kind="hello", t=self.time(), wall=time.time(), kernel=self._kernel,
                        counters=COUNTERS, watch="diag")  # fmt: skip
        self._did("up")
        return links

    def trace(self) -> Channel | Lack:
        def obey(message: Message) -> None:
            self.tracer.say(kind="reply", id=message["id"], t=self.time())

        self.tracer = FakeChannel(obey)
        self.tracer.say(kind="hello", t=self.time())
        return self.tracer

    def spawn(self, process: ProcessSpec) -> Channel:
        def obey(message: Message) -> None:
            if message["do"] == "answer":
                self.say(process.name, kind="reply", id=message["id"])
            else:
                self._did(f"call {process.name} {message['call']}")

        channel = FakeChannel(obey)
        if process.name in self._processes:
            self._left.setdefault(process.name, []).append(self._processes[process.name])
        self._processes[process.name] = channel
        self.say(process.name, kind="process", phase="start", pid=next(self._pids))
        self._did(f"start {process.name}")
        return channel

    def kill(self, process: ProcessSpec) -> None:
        self.gone(process.name)
        self._did(f"kill {process.name}")

    def signal(self, process: ProcessSpec, name: str) -> None:
        self._did(f"signal {process.name} {name}")

    def prepare(self, process: ProcessSpec) -> None:
        self._did(f"prepare {process.name}")

    def freeze(self, process: ProcessSpec, frozen: bool) -> None:
        self._did(f"{'freeze' if frozen else 'thaw'} {process.name}")

    def sysctl(self, key: str, value: str, readable: bool) -> None:
        raise refusal(key, self._kernel, True, readable)

    def stopped(self) -> str | None:
        return None

    def down(self) -> None:
        self._did("down")
        for channel in (*self._processes.values(), *(h.channel for h in self._hosts.values())):
            channel.close()

    # --- What a script has happen -----------------------------------------------------------------

    def time(self, later: float = 0.0) -> float:
        """The lab's clock, `later` seconds from now."""
        return time.monotonic() + self._clock + later

    def sockets(self, host: str, *lines: str, later: float = 0.0) -> None:
        """From now on, or as if `later` seconds from now, these are the host's sockets."""
        self._hosts[host].lines = lines
        self._report(host, "change", None, later)

    def count(self, host: str, **counters: int) -> None:
        """These counters of a host now have these values; its next look tells."""
        self._hosts[host].counters.update(counters)
        self._hosts[host].changed.update(counters)

    def packets(self, host: str, *records: bytes) -> None:
        """A host captured these, as pcap records."""
        data = base64.b64encode(b"".join(records)).decode()
        self._hosts[host].channel.say(kind="packets", t=self.time(), data=data)

    def loses(self, host: str, drop: int, packet: bytes) -> None:
        """A host lost a packet by the drop of a step."""
        data = base64.b64encode(packet).decode()
        self._hosts[host].channel.say(kind="loss", t=self.time(), drop=drop, data=data)

    def trouble(self, host: str, text: str) -> None:
        """A probe of the host can't see."""
        self._hosts[host].channel.say(kind="trouble", t=self.time(), probe="ss", text=text)

    def dies(self, host: str) -> None:
        """The host's agent ends."""
        self._hosts[host].channel.close()

    def say(self, process: str, later: float = 0.0, **message: Any) -> None:
        """A process reports something."""
        self._processes[process].say(t=self.time(later), **message)

    def call(self, process: str, call: str, done: bool = True, **result: Any) -> None:
        """A process enters a call and, unless it blocks, is done with it."""
        event: Message = {"kind": "call", "pid": 2, "call": call, "name": call.split(maxsplit=1)[0]}
        self.say(process, phase="enter", **event)
        if done:
            self.say(process, phase="done", **event, **result)

    def output(self, process: str, text: str) -> None:
        """A program writes."""
        self.say(process, kind="output", text=text)

    def exit(self, process: str, status: int = 0, later: float = 0.0) -> None:
        """The main process exits, and there are no others."""
        self.say(process, later, kind="process", phase="exit", pid=2, exit=status, signal=None)
        self.gone(process)

    def killed(self, process: str, signal: str) -> None:
        """The main process ends by a signal; its children live on."""
        self.say(process, kind="process", phase="exit", pid=2, exit=None, signal=signal, left=True)

    def gone(self, process: str) -> None:
        """Nothing of a process is left, of any of its starts."""
        for channel in self._left.pop(process, ()):
            channel.close()
        if process in self._processes:
            self._processes.pop(process).close()

    # --- Inside -----------------------------------------------------------------------------------

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
            kind="sockets", t=self.time(later), cause=cause, text="\n".join([HEADER, *host.lines]),
            counters=dict(host.changed), **({"caption": caption} if cause == "look" else {}),
        )  # fmt: skip
        host.changed.clear()

    def _obey(self, name: str, message: Message) -> None:
        answer: Message = {}
        match message:
            case {"do": "look"}:
                self._report(name, "look", message["caption"])
                what = f"look {name}"
            case {"do": "sysctl", "values": values}:
                known = values if self._sysctls is None else self._sysctls
                answer = {
                    "missing": [key for key in values if key not in known],
                    "readable": [],
                    "failed": {k: self._refused[k] for k in values if k in self._refused},
                }
                what = f"sysctl {name} {' '.join(values)}"
            case {"do": "exec", "command": command}:
                output = self._outputs.get(command, (127, "not found\n"))
                status, text = (0, output) if isinstance(output, str) else output
                answer = {"exit": status, "output": text, "left_out": self._left_out}
                what = f"exec {name} {command}"
            case {"do": "network"}:
                answer, what = {}, f"network {name}"
            case {"do": "setup"}:
                answer = {"capture": self._uncaptured, "bound": False}
                what = f"setup {name}"
            case {"do": "flush"}:
                answer = {
                    "dropped": self._dropped,
                    "dropped_inside": 0,
                    "lost": self._lost.get(name, {}),
                }
                what = f"flush {name}"
            case {"do": "fault", "verb": verb}:
                lost = self._lost.get(name, {})
                answers: dict[str, Message] = {
                    "probe": {"missing": self._missing},
                    "drop": {"unlogged": self._unlogged},
                    "heal": {"lost": lost},
                }
                answer = answers.get(verb, {})
                what = f"{verb} {name}"
            case {"do": str(other)}:
                what = f"{other} {name}"
        self._hosts[name].channel.say(kind="reply", id=message["id"], t=self.time(), **answer)
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
