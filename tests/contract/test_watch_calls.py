"""`labctl watch --calls` beside real programs: whose calls it records, and that they run on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.judge.recorded import load
from labctl.record.events import CallEvent, ProcessEvent
from tests import beside
from tests.beside import Containers, Program, Watch, eventually

program, watch, containers = beside.program, beside.watch, beside.containers

# Each of these fails a call, or has the other end of a connection fail one, and runs on.
BINDS = """
input()
new = socket.socket()
try:
    new.bind(("127.0.0.1", 8000))
except OSError as exc:
    print(exc.errno, flush=True)
input()
print("runs on", flush=True)
input()
"""
RESETS = """
import struct
input()
reached = socket.create_server(("", 8080))
print("listens", flush=True)
far, _ = reached.accept()
far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
far.close()
input()
"""
IS_RESET = """
input()
near = socket.create_connection(("198.18.0.1", 8080))
try:
    near.recv(1)
except OSError as exc:
    print(exc.errno, flush=True)
input()
"""


@pytest.mark.netns
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_calls_of_a_process_that_runs_on(
    program: Callable[[str], Program], watch: Callable[..., Watch], how: signal.Signals
) -> None:
    watched = program(BINDS)
    found = watch("--pid", str(watched.pid), "--calls")
    found.await_line("calls are recorded from")
    watched.go_on()
    assert watched.hear() == "98"  # EADDRINUSE
    if how == signal.SIGINT:
        assert found.end() == 0
        assert [cause.id for cause in load(found.record).causes] == ["bind-listener"]
    else:
        found.end(how)
    eventually(lambda: "TracerPid:\t0\n" in Path(f"/proc/{watched.pid}/status").read_text(), "held")
    watched.go_on()
    assert watched.hear() == "runs on"


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="only root joins two networks")
def test_a_reset_and_the_call_that_it_fails(
    program: Callable[[str], Program], watch: Callable[..., Watch]
) -> None:
    server, client = program(RESETS), program(IS_RESET)
    pids = [server.pid, client.pid]
    subprocess.run(
        ["ip", "link", "add", "v", "netns", str(pids[0]), "type", "veth", "peer", "v", "netns",
         str(pids[1])], check=True,
    )  # fmt: skip
    for number, pid in enumerate(pids, 1):
        batch = f"addr add 198.18.0.{number}/24 dev v\nlink set v up\n"
        subprocess.run(
            ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"],
            input=batch, text=True, check=True,
        )  # fmt: skip
    found = watch("--calls", *(word for pid in pids for word in ("--pid", str(pid))))
    found.await_line(f"pid-{pids[1]}: calls are recorded")
    found.await_line("LISTEN")
    server.go_on()
    assert server.hear() == "listens"
    client.go_on()
    assert client.hear() == "104"  # ECONNRESET
    assert found.end() == 0
    (cause,) = load(found.record).causes
    assert (cause.id, cause.host) == ("reset-linger", f"pid-{pids[0]}")
    failed = [e for e in found.history.events if isinstance(e, CallEvent) and e.errno]
    assert [(e.host, e.call, e.errno) for e in failed] == [(f"pid-{pids[1]}", "recv", "ECONNRESET")]


@pytest.mark.netns
def test_the_calls_of_what_holds_a_port(
    watch: Callable[..., Watch],
) -> None:
    text = 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], '
    text += "flush=True); a, _ = s.accept(); a.close(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        port = int(server.stdout.readline())
        found = watch("--here", "--port", str(port), "--calls")
        found.await_line("LISTEN")
        told = found.record / "history.jsonl"
        eventually(lambda: " listening" in told.read_text(), "nothing attaches")
        socket.create_connection(("127.0.0.1", port)).close()
        eventually(lambda: '"name":"close"' in told.read_text(), "it was not closed")
        assert found.end() == 0
        server.kill()
    calls = [e for e in found.history.events if isinstance(e, CallEvent) and e.phase == "done"]
    assert {e.pid for e in calls} == {server.pid}
    assert [e.name for e in calls] in (
        ["has", "accept", "close"], ["has", "has", "close"]  # it returned before it was stopped
    )  # fmt: skip


@pytest.mark.ci
@pytest.mark.docker
def test_the_calls_of_a_container(containers: Containers, watch: Callable[..., Watch]) -> None:
    web, db = containers.run("web"), containers.run("db")
    found = watch("--container", web, "--container", db, "--calls")
    found.await_line("calls are recorded from")
    found.await_line("calls are recorded from")
    containers.connect(db, web)
    found.await_line("TIME-WAIT")
    containers.restart(web)
    found.await_line("calls are recorded from")
    containers.connect(db, web)
    assert found.end() == 0
    eventually(lambda: not containers.watchers(), "something stays")
    host = web.replace("_", "-")
    told = [
        e.call if isinstance(e, CallEvent) else e.phase
        for e in found.history.events
        if isinstance(e, CallEvent | ProcessEvent) and e.host == host and e.phase != "enter"
    ]
    ended = told.index("exit")
    done = ["has tcp listening SO_REUSEADDR=1", "accept", "close", "exit by signal 9"]
    assert told[:ended] == ["start", *done]
    assert told[ended : ended + 3] == ["exit", "gone", "start"]
    assert "accept" in told[ended:]
