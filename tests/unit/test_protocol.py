"""The programs in a lab keep to the protocol, of which they import nothing: they are run, and every
line that they write is checked; and what they can do is what the protocol has them do."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labctl.backends import (
    BackendOptions,
    Channel,
    HostSpec,
    Message,
    ProcessSpec,
    protocol,
)
from labctl.backends.capabilities import Lack
from labctl.backends.netns.backend import NetnsBackend, SocketChannel, unavailable
from labctl.backends.netns.here import Here
from labctl.backends.netns.messages import LAUNCHER, WORLD
from labctl.backends.protocol import AGENT, ATTACHER, SUPERVISOR, TRACER, VERSION, WATCHER
from labctl.backends.wire import A, Command, Said, asked
from labctl.ground.errors import LabError
from labctl.ground.resources import PACKAGE, images
from labctl.lab.clocks import Clock
from labctl.lab.crafting import Crafted
from labctl.lab.faults import LOG_GROUP, Drop, End
from labctl.lab.happened import EVENTS
from labctl.lab.messaging import Inbox, Source
from labctl.probes.conversations import Conversation, Direction
from labctl.run.guests.guest import Guest
from labctl.run.guests.messages import GUEST

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's processes")
PROGRAMS = {
    "agent": AGENT, "tracer": TRACER, "supervisor": SUPERVISOR, "world": WORLD, "guest": GUEST,
    "watcher": WATCHER, "launcher": LAUNCHER, "attacher": ATTACHER,
}  # fmt: skip


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- What they are told ---------------------------------------------------------------------------


def doers(name: str) -> dict[str, Callable[..., Any]]:
    """What does each command of a program."""
    match name:
        case "agent":
            agent = loaded(images() / "host" / "agent.py")
            faults = {verb: function for verb, function in vars(agent.Faults).items()
                      if not verb.startswith("_") and verb not in ("report", "lost")}  # fmt: skip
            return {**agent.COMMANDS, **faults}
        case "watcher":
            return dict(loaded(images() / "host" / "watch.py").COMMANDS)
        case "tracer":
            return dict(loaded(images() / "host" / "tracer.py").COMMANDS)
        case "supervisor":
            return dict(loaded(images() / "peer" / "peer.py").COMMANDS)
        case "attacher":
            return dict(loaded(images() / "peer" / "attach.py").COMMANDS)
        case "guest":
            return {"hello": Guest._hello, "case": Guest._case}
        case "launcher":
            return dict(loaded(PACKAGE / "backends" / "netns" / "world.py").LAUNCHES)
        case _:
            return dict(loaded(PACKAGE / "backends" / "netns" / "world.py").COMMANDS)


ELSEWHERE = {"begin", "answer", "holders", "killall"}
"""Commands of a supervisor that it knows without functions."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_program_can_do(name: str) -> None:
    """Each command of the protocol, with all that is in it, and no other."""
    does = {getattr(command, "verb", command.do): command for command in PROGRAMS[name].does}
    found = doers(name)
    assert does.keys() - ELSEWHERE == found.keys() - {"fault"}
    for do, function in found.items():
        if do in does:
            _, *names = inspect.signature(function).parameters
            told = inspect.signature(does[do]).parameters
            assert sorted({*names} - {"ident", "channel", "files", "to_main"}) == sorted(told), do


def test_what_is_recorded_of_a_message_is_what_it_says() -> None:
    for said, event in EVENTS.items():
        recorded = {field.name for field in dataclasses.fields(event)}
        assert recorded - {"host", "process", "start", "gone"} == {*said.model_fields}, said.kind


def test_when_messages_were_added() -> None:
    said = {message.added for program in PROGRAMS.values() for message in program.says.values()}
    done = {command.added for program in PROGRAMS.values() for command in program.does}
    assert said | done == {*range(1, VERSION + 1)}


# --- What they say --------------------------------------------------------------------------------


class Heard:
    """All that programs of a lab say, each line of which has to be a message."""

    def __init__(self) -> None:
        self.said: dict[str, list[Said]] = {}
        self.ended: set[str] = set()
        self.inbox = Inbox(Clock(), self._take, lambda: None)
        self._channels: dict[str, Channel] = {}

    def listen(self, name: str, channel: Channel) -> None:
        self.said[name] = []
        self._channels[name] = channel
        self.inbox.listen(Source(name, name, channel))

    def ask(self, name: str, command: Command[A]) -> A:
        return self.inbox.ask(self._channels, {name: command})[name]

    def send(self, name: str, command: Command[Any]) -> None:
        self._channels[name].send(command.as_json())

    def post(self, name: str, command: Command[Any]) -> None:
        self.inbox.post(self._channels[name], command)

    def await_end(self, name: str) -> None:
        self.inbox.expect(lambda: name in self.ended, f"the end of {name}")

    def await_kind(self, name: str, kind: str, /, **what: object) -> Said:
        """Waits for a message of a kind, in which that stands."""

        def found() -> list[Said]:
            return [
                s for s in self.said[name] if s.kind == kind and what.items() <= vars(s).items()
            ]

        self.inbox.expect(lambda: bool(found()), f"{kind} of {name}")
        return found()[-1]

    def _take(self, source: Source, message: Message | None) -> None:
        if message is None:
            self.ended.add(source.name)
        elif (number := asked(message)) is not None:
            self.inbox.take_reply(number, message)
        else:
            program = PROGRAMS[source.name.partition(" ")[0]]
            self.said[source.name].append(program.heard(message))


BEGIN = "import socket; s = socket.socket(); s.setblocking(0); s.connect_ex(('127.0.0.1', 9))"
MOST_TRIES = 100
CONNECT = protocol.Exec(f'{sys.executable} -c "{BEGIN}"')
"""Sends a SYN, and waits for nothing."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[NetnsBackend]:
    if lack := unavailable():
        pytest.skip(lack.reason)
    backend = NetnsBackend(BackendOptions("protocol", "", tmp_path, "", print))
    try:
        yield backend
    finally:
        backend.down()


def test_a_lab(lab: NetnsBackend) -> None:
    """Launcher, world, agent, supervisors and tracer. What the first two say is checked by their
    backend."""
    calls = ProcessSpec("calls", "server", calls="socket; bind :8000; listen 3; await")
    program = ProcessSpec("program", "server", run=("sh", "-c", "sleep 600 & echo hello; wait"))
    killed = ProcessSpec("killed", "server", calls="sleep 600s")
    links = lab.up([HostSpec("server")], [calls, program, killed])
    heard = Heard()
    heard.listen("agent", links["server"].channel)
    check_agent(heard, links["server"].batch)
    (trace,) = lab.trace().values()
    if not isinstance(trace, Lack):
        heard.listen("tracer", trace)
        check_tracer(heard)
    heard.listen("supervisor of calls", lab.spawn(calls))
    heard.listen("supervisor of a program", lab.spawn(program))
    heard.listen("supervisor to be killed", lab.spawn(killed))
    check_supervisors(heard)
    lab.kill(calls)
    lab.kill(program)
    lab.kill(killed)
    heard.await_end("supervisor of calls")


def check_agent(heard: Heard, batch: str) -> None:
    heard.await_kind("agent", "hello")
    heard.ask("agent", protocol.SetNetwork(hosts=None, batch=batch))
    setup = protocol.SetUp(longest=0.025, share=1, bound=True)
    assert heard.ask("agent", setup).capture is None
    heard.ask("agent", protocol.TellTime())
    heard.post("agent", protocol.Wake())
    for _ in range(MOST_TRIES):  # a look that comes first has the counters itself
        assert heard.ask("agent", CONNECT).exit == 0
        if any(said.kind == "counters" for said in heard.said["agent"]):
            break
    heard.ask("agent", protocol.Look("a caption"))
    heard.await_kind("agent", "sockets", cause="look", caption="a caption")
    heard.await_kind("agent", "counters")
    heard.await_kind("agent", "packets")
    values = {"net.ipv4.tcp_fin_timeout": "7", "net.nosuch": "1", "net.ipv4.tcp_syn_retries": "x"}
    found = heard.ask("agent", protocol.SetSysctls(values))
    assert (found.missing, [*found.failed]) == (["net.nosuch"], ["net.ipv4.tcp_syn_retries"])
    heard.ask("agent", protocol.Exec("ip address add 198.18.255.1/32 dev eth0"))
    heard.await_kind("agent", "address", address="198.18.255.1")
    if "nft" not in heard.ask("agent", protocol.Probe(["nft"])).missing:
        drop = Drop(None, End(("127.0.0.1",), 9), "output")
        rules, log = drop.rules(1), drop.log(1)
        unlogged = heard.ask("agent", protocol.Drop(1, LOG_GROUP, log, rules)).unlogged
        heard.ask("agent", CONNECT)
        if not unlogged:
            heard.await_kind("agent", "loss", drop=1)
        assert heard.ask("agent", protocol.Heal([1])).lost["1"] > 0
    heard.ask("agent", protocol.Link(up=False))
    heard.ask("agent", protocol.Link(up=True))
    heard.ask("agent", protocol.Shape([]))
    talk = Conversation(("127.0.0.1:9", "127.0.0.1:10"), {"127.0.0.1:9": Direction(0, 0)})
    _, _, packet = Crafted(("RST",)).craft(talk, "127.0.0.1:9")
    heard.ask("agent", protocol.Inject(base64.b64encode(packet).decode()))
    assert heard.ask("agent", protocol.Flush()).dropped == 0


def test_a_watcher() -> None:
    """Of this machine's network, and of one port of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        here = Here("protocol", {"here": None}, [port])
        try:
            heard = Heard()
            heard.listen("watcher", here.attach("here"))
            heard.await_kind("watcher", "hello")
            heard.ask("watcher", protocol.TellTime())
            heard.ask("watcher", protocol.SetUp(longest=1.0, share=1, bound=False))
            heard.post("watcher", protocol.Wake())
            heard.ask("watcher", protocol.Look("all"))
            look = heard.await_kind("watcher", "sockets", cause="look", caption="all")
            assert isinstance(look, protocol.Sockets)
            _, *lines = look.text.splitlines()
            assert [line.split()[0] for line in lines if line[:1].isalpha()] == ["LISTEN"]
            held = heard.await_kind("watcher", "holders")
            assert isinstance(held, protocol.Holders)
            mine = held.sockets[str(os.getpid())]
            assert mine == {str(server.fileno()): os.fstat(server.fileno()).st_ino}
            with socket.create_connection(("127.0.0.1", port)):
                heard.await_kind("watcher", "sockets", cause="change")
            heard.ask("watcher", protocol.Flush())
        finally:
            here.down()
        heard.await_end("watcher")


def check_tracer(heard: Heard) -> None:
    heard.inbox.expect(lambda: bool(heard.said["tracer"]), "the tracer's first word")
    if heard.said["tracer"][0].kind == "hello":
        heard.ask("tracer", protocol.Watch(["127.0.0.1"]))
        heard.ask("agent", CONNECT)
        heard.ask("tracer", protocol.FlushTrace())
        heard.await_kind("tracer", "state", old="UNCONN", new="SYN-SENT")
        if any(said.kind == "reset" for said in heard.said["tracer"]):  # not of older kernels
            heard.await_kind("tracer", "reset", local="127.0.0.1:9", reason="NO_SOCKET")


def check_supervisors(heard: Heard) -> None:
    name = "supervisor of calls"
    heard.await_kind(name, "process", phase="start")
    heard.await_kind(name, "call", name="await", phase="enter")
    heard.send(name, protocol.DoCall("socket; connect 127.0.0.1:9 || continue"))
    heard.await_kind(name, "call", name="connect", phase="done", errno="ECONNREFUSED")
    heard.send(name, protocol.Freeze())
    heard.send(name, protocol.Thaw())
    heard.ask(name, protocol.TellAll())
    heard.ask(name, protocol.TellHolders())
    heard.await_kind(name, "holders", unread=[], left_out=None)
    heard.send(name, protocol.Signal("TERM"))
    heard.await_kind(name, "process", phase="exit", signal="TERM", left=False)
    name = "supervisor of a program"
    heard.await_kind(name, "output", text="hello\n")
    heard.send(name, protocol.Signal("KILL"))
    heard.await_kind(name, "process", phase="exit", signal="KILL", left=True)
    heard.send(name, protocol.End())
    heard.await_end(name)
    name = "supervisor to be killed"
    heard.await_kind(name, "process", phase="start")
    heard.ask(name, protocol.KillAll())
    heard.await_end(name)
    assert [said.kind for said in heard.said[name]].count("process") == 1


# --- Their last words -----------------------------------------------------------------------------


@contextmanager
def running(program: str, *command: str, **env: str) -> Iterator[Heard]:
    """A program by itself, heard until it ends."""
    ours, theirs = socket.socketpair()
    heard = Heard()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            env={**os.environ, **env},
        )
    channel = SocketChannel(ours)
    with process:
        heard.listen(program, channel)
        try:
            yield heard
        finally:
            channel.close()


def test_an_agent_without_its_ss(tmp_path: Path) -> None:
    setup = protocol.SetUp(longest=0.025, share=1, bound=False)
    command = (str(images() / "host" / "agent.py"), "--tether")
    with running("agent", *command, PATH=str(tmp_path)) as heard:
        heard.await_kind("agent", "hello")
        heard.ask("agent", setup)
        with pytest.raises(LabError, match=r"agent: .*'ss'"):
            heard.ask("agent", protocol.Look(None))
        (tmp_path / "ss").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "ss").chmod(0o755)
        heard.ask("agent", protocol.Look(None))
        heard.await_kind("agent", "trouble")


def test_what_an_agent_can_not_do() -> None:
    wrong = protocol.SetNetwork(None, "no such command\n")
    agent = str(images() / "host" / "agent.py")
    with (
        running("agent", agent, "--tether") as heard,
        pytest.raises(LabError, match="agent: ip"),
    ):
        heard.ask("agent", wrong)


def test_a_tracer_that_can_not_trace() -> None:
    with running("tracer", str(images() / "host" / "tracer.py"), "no/such/place") as heard:
        heard.await_kind("tracer", "refused")
        heard.await_end("tracer")
    assert TRACER.heard(loaded(images() / "host" / "tracer.py").trouble("x")).kind == "trouble"


def test_a_process_that_breaks() -> None:
    breaks = "import sys; sys.path.insert(0, sys.argv[1]); import peer, program; "
    breaks += "program.socket = None; sys.argv[1:] = ['calls', 'socket']; peer.main()"
    with running("supervisor", "-c", breaks, str(images() / "peer")) as heard:
        heard.await_kind("supervisor", "broken")
        heard.await_kind("supervisor", "process", phase="exit", exit=1)
        heard.await_end("supervisor")
