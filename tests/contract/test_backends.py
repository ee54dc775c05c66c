"""What labctl may rely on, whatever the backend: one suite over all of them.

The fake keeps all of it that takes no network: its script says what these programs would do. What
only a real stack can show has `REAL` backends alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labctl.backends import Backend, BackendOptions, HostSpec, ProcessSpec, backend_class
from labctl.backends.capabilities import CAPABILITIES, Lack
from labctl.ground.errors import MissingHere
from labctl.lab.lab import Lab
from labctl.record.events import ExecEvent, OutputEvent, ProcessEvent, SocketsEvent
from labctl.record.history import History
from labctl.run.places import DEFAULT_OS
from tests.contract import REAL, real_backends
from tests.fake import FakeBackend, scenario

every_backend = pytest.mark.parametrize("backend", ["fake", *REAL])

DEADLINE = 20.0
LAB = """\
title: A lab for this test
hosts:
{hosts}
steps: []
"""
HOSTS = """\
  a:
    addresses: 3
    processes:
      waits: {calls: "socket; bind :8000; listen 5; wait"}
      fails: {run: sh -c "exit 3"}
      leaves: {calls: "socket; fork; wait"}
  b: {}
"""
SERVER_AND_CLIENT = """\
  server: {calls: "socket; bind :8000; listen 20; accept; recv; send 'I am server' x 24; wait"}
  client: {calls: "socket; connect server:8000; send 'I am client'; recv until eof; close"}
"""
UNKNOWN = "net.ipv4.tcp_no_such_sysctl"


def opened(backend: str, folder: Path) -> Backend:
    if backend == "fake":
        script = {
            "start fails": lambda lab: lab.exit("fails", 3),
            "start leaves": lambda lab: lab.call("leaves", "fork", result=7),
            "signal leaves TERM": lambda lab: lab.killed("leaves", "TERM"),
        }
        return FakeBackend(script, {"sysctl": {"missing": [UNKNOWN]}})
    name = uuid.uuid4().hex[:8]
    options = BackendOptions(name, f"test:{folder}", folder, DEFAULT_OS, print)
    found: Backend = backend_class(backend)(options)
    return found


@contextmanager
def lab(backend: str, folder: Path, hosts: str = HOSTS) -> Iterator[Lab]:
    spec = scenario(LAB.format(hosts=hosts.rstrip())).spec
    with Lab(spec, opened(backend, folder), History(), lambda _: None, lambda *_: None) as found:
        yield found


def told(lab: Lab, process: str) -> list[tuple[str, int | None, str | None]]:
    """What was told of a process: its starts and ends."""
    events = [e for e in lab.history.events if isinstance(e, ProcessEvent)]
    return [(e.phase, e.exit, e.signal) for e in events if e.process == process]


def executed(lab: Lab) -> ExecEvent:
    """What came of the last command."""
    event = lab.history.events[-1]
    assert isinstance(event, ExecEvent)
    return event


def until(lab: Lab, condition: Callable[[], bool]) -> None:
    assert lab.pump_until(condition, lab.now() + DEADLINE)


def until_called(lab: Lab, process: str, call: str) -> None:
    calls = lab.history.processes[process].calls
    until(lab, lambda: any(c.name == call for c in calls))


def until_gone(lab: Lab, process: str) -> None:
    until(lab, lambda: not lab.lives(process))


START, GONE = ("start", None, None), ("gone", None, "KILL")


# --- Every backend --------------------------------------------------------------------------------


@every_backend
def test_hosts_have_what_was_asked_for(backend: str, tmp_path: Path) -> None:
    with lab(backend, tmp_path) as found:
        assert found.history.lab
        names = found.history.lab.addresses
        assert set(names) == {
            "a", "a.2", "a.3", "a.v6", "a.2.v6", "a.3.v6", "b", "b.v6",
        }  # fmt: skip
        assert len(set(names.values())) == len(names)
        assert len(set(found.holders.values())) == 2
        assert {"kernel", "os", "engine"} <= found.history.lab.environment.keys()
        assert found.history.lab.environment["kernel"]
        found.look()
        looks = [e for e in found.history.events if isinstance(e, SocketsEvent)]
        assert {e.host for e in looks if e.cause == "look"} == {"a", "b"}


@every_backend
def test_two_labs_at_once_know_nothing_of_each_other(backend: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with lab(backend, tmp_path) as one, lab(backend, tmp_path / "other") as other:
        for found in (one, other):
            found.start("waits")
        one.kill("waits")
        assert other.running("waits")
        other.look()
        assert told(other, "waits") == [START]


@every_backend
def test_a_process_starts_again_and_each_end_is_told(backend: str, tmp_path: Path) -> None:
    with lab(backend, tmp_path) as found:
        for _ in range(2):
            found.start("waits")
            assert found.running("waits")
            found.kill("waits")
            assert not found.lives("waits")
        found.kill("waits")
        assert told(found, "waits") == [START, GONE] * 2
        found.start("fails")
        until_gone(found, "fails")
        assert told(found, "fails")[:2] == [START, ("exit", 3, None)]
        assert not found.has_left("fails")


@every_backend
def test_a_signal_is_for_the_main_process_alone(backend: str, tmp_path: Path) -> None:
    with lab(backend, tmp_path) as found:
        found.start("waits")
        found.signal("waits", "TERM")
        until_gone(found, "waits")
        assert told(found, "waits")[1] == ("exit", None, "TERM")


@every_backend
def test_what_an_earlier_start_left_is_killed_too(backend: str, tmp_path: Path) -> None:
    with lab(backend, tmp_path) as found:
        for _ in range(2):
            found.start("leaves")
            until_called(found, "leaves", "fork")
            found.signal("leaves", "TERM")
            until(found, lambda: not found.history.processes["leaves"].running)
            assert found.has_left("leaves") and found.lives("leaves")
        found.kill("leaves")
        assert not found.lives("leaves")
        assert told(found, "leaves").count(GONE) == 2


@every_backend
def test_what_is_paused_can_be_paused_again_and_killed(backend: str, tmp_path: Path) -> None:
    with lab(backend, tmp_path) as found:
        found.start("waits")
        for frozen in (True, True, False, False, True):
            found.freeze("waits", frozen)
        found.kill("waits")
        found.freeze("waits", True)  # of what is gone: nothing
        found.start("waits")
        assert found.running("waits")


@every_backend
def test_a_name_that_nobody_knows_is_told(backend: str, tmp_path: Path) -> None:
    with lab(backend, tmp_path) as found:
        found.exec("b", "no_such_command")
        event = executed(found)
        assert (event.host, event.exit) == ("b", 127)
        assert "not found" in event.output
        with pytest.raises(MissingHere, match=UNKNOWN):
            found.sysctl("a", {UNKNOWN: "1"})


@every_backend
def test_all_streams_end_with_the_lab(backend: str, tmp_path: Path) -> None:
    """It goes down before it was up, twice, and with a process that runs."""
    process = ProcessSpec("waits", "a", calls="socket; bind :8000; listen 5; wait")
    found = opened(backend, tmp_path)
    found.down()
    found = opened(backend, tmp_path)
    try:
        links = found.up([HostSpec("a"), HostSpec("b")], [process])
        tracers = found.trace().values()
        assert {need for need in found.lacks() if CAPABILITIES[need].probed != "backend"} == set()
        assert found.stopped() is None
        running = found.spawn(process)
    finally:
        found.down()
        found.down()
    streams = [running, *(link.channel for link in links.values())]
    for channel in [*streams, *(each for each in tracers if not isinstance(each, Lack))]:
        assert all(isinstance(message["kind"], str) for message in channel)  # until its end
        channel.send({"do": "answer", "id": 1})  # nobody listens, which is no error


# --- Real stacks ----------------------------------------------------------------------------------


@real_backends
def test_a_host_outlives_its_processes(backend: str, tmp_path: Path) -> None:
    with lab(backend, tmp_path, SERVER_AND_CLIENT) as found:
        found.start("server")
        until_called(found, "server", "listen")
        found.start("client")
        until_called(found, "server", "send")  # it has read what it had: its end is a FIN
        found.kill("server")
        until(found, lambda: [s.state for s in sockets(found)] == ["TIME-WAIT"])
        found.start("server")
        until(found, lambda: not found.running("server"))
        (failed,) = (call for call in found.history.processes["server"].calls if call.errno)
        assert (failed.name, failed.errno) == ("bind", "EADDRINUSE")


def sockets(lab: Lab) -> list[Any]:
    lab.look(["server"])
    return [s for s in lab.history.sockets["server"].sockets if s.connection]


@real_backends
def test_names_and_further_addresses(backend: str, tmp_path: Path) -> None:
    hosts = """\
  a:
    addresses: 3
    processes:
      names: {run: sh -c "getent ahostsv4 a.3; getent ahostsv6 b.v6"}
      server: {calls: "socket tcp6; bind :8000; listen 5; wait"}
  b:
    addresses: 2
    processes:
      v4: {calls: "socket; connect a.2:8000"}
      v6: {calls: "socket tcp6; bind b.2.v6:9; connect a.3.v6:8000"}
"""
    with lab(backend, tmp_path, hosts) as found:
        names = found.history.lab.addresses if found.history.lab else {}
        found.start("names")
        until_gone(found, "names")
        text = found.history.processes["names"].output.splitlines()
        assert [line.split()[0] for line in text[::3]] == [names["a.3"], names["b.v6"]]
        found.start("server")
        until_called(found, "server", "listen")
        for client in ("v4", "v6"):
            found.start(client)
            until_gone(found, client)
            state = found.history.processes[client]
            assert (state.exit, state.signal) == (0, None), state.output


@real_backends
def test_a_paused_process_does_nothing_and_can_be_killed(backend: str, tmp_path: Path) -> None:
    hosts = "  a: {run: 'sh -c \"while echo x; do sleep 0.02; done\"'}\n  b: {}\n"
    with lab(backend, tmp_path, hosts) as found:

        def lines() -> int:
            found.pump(0)
            return sum(isinstance(e, OutputEvent) for e in found.history.events)

        def goes_on() -> bool:
            before = lines()
            return found.pump_until(lambda: lines() > before + 2, found.now() + 0.5)

        found.start("a")
        assert goes_on()
        found.freeze("a", True)
        found.freeze("a", True)
        found.hear(["a"])
        assert not goes_on()
        found.freeze("a", False)
        found.freeze("a", False)
        assert goes_on()
        found.freeze("a", True)
        found.kill("a")
        found.kill("a")
        assert found.history.processes["a"].signal == "KILL"
        found.freeze("a", True)  # of what is gone: nothing
        found.start("a")
        assert goes_on()
