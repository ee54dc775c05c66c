"""The calls of any program are told as they are made, and the program notices nothing of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from labctl.ground.resources import images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's processes")

PATIENCE = 60.0
Told = list[dict[str, Any]]
PEER = [sys.executable, "-IS", str(images() / "peer" / "peer.py")]


def told(program: str, *options: str, watch: str = "--watch=calls", status: int = 0) -> Told:
    """What a supervisor tells of a Python program."""
    command = [*PEER, "run", *([watch] if watch else []), "--"]
    done = subprocess.run(
        [*command, sys.executable, *options, "-c", program],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert not done.stderr
    assert done.returncode == status, done.stdout
    return [json.loads(line) for line in done.stdout.splitlines()]


def calls(events: Told) -> list[str]:
    """The finished calls in words, with EADDRINUSE and the like."""
    return [
        " ".join(filter(None, [e["call"], e.get("errno")]))
        for e in events if e["kind"] == "call" and e["phase"] == "done"
    ]  # fmt: skip


def written(events: Told) -> str:
    return "".join(e["text"] for e in events if e["kind"] == "output")


def unseen(events: Told) -> list[str]:
    return [e["text"] for e in events if e["kind"] == "unseen"]


SERVER = """
import socket
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", 0)); s.listen(7)
"""
BOTH = """
c = socket.create_connection(s.getsockname()); a, _ = s.accept()
"""


def test_the_calls_of_a_server_and_a_client() -> None:
    events = told(SERVER + BOTH + "a.shutdown(socket.SHUT_WR); c.close(); a.close()")
    port = next(e["peer"] for e in events if e.get("name") == "connect").rpartition(":")[2]
    assert calls(events)[:9] == [
        "socket tcp", "set SO_REUSEADDR 1", "bind 127.0.0.1:0", "listen 7", "socket tcp",
        f"connect 127.0.0.1:{port}", "accept", "shutdown wr", "close",
    ]  # fmt: skip
    assert events[0]["watch"] == "calls"
    connect, accept = (
        next(e for e in events if e.get("name") == name and e["phase"] == "done")
        for name in ("connect", "accept")
    )
    assert (connect["local"], connect["peer"]) == (accept["peer"], accept["local"])
    assert accept["peer"].startswith("127.0.0.1:")
    by_fd = [e["fd"] for e in events if e["kind"] == "call" and e["phase"] == "done"]
    assert by_fd[:4] == [3, 3, 3, 3]
    assert accept["result"] == by_fd[7]
    assert not unseen(events)
    times = [e["t"] for e in events if e["kind"] == "call"]
    assert times == sorted(times)
    once = [e for e in events if "since" in e]  # they were over at once
    assert len(once) > 4
    assert all(e["phase"] == "done" and e["since"] <= e["t"] for e in once)


def test_what_fails_says_so() -> None:
    again = "e = s.getsockname(); n = socket.socket()\ntry: n.bind(e)\nexcept OSError: pass\n"
    refused = "s.close(); n.close()\ntry: socket.create_connection(e)\nexcept OSError: pass\n"
    found = calls(told(SERVER + again + refused))
    assert any(call.startswith("bind 127.0.0.1:") and call.endswith("EADDRINUSE") for call in found)
    assert any(c.startswith("connect 127.0.0.1:") and c.endswith("ECONNREFUSED") for c in found)


def test_options_and_ipv6() -> None:
    found = calls(
        told("""
import socket, struct
s = socket.socket(socket.AF_INET6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # of no interest
s.bind(("::1", 0))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(("127.0.0.1", 9))
""")
    )
    assert found[:4] == [
        "socket tcp6", "set IPV6_V6ONLY 1", "set SO_LINGER 1 0", "bind [::1]:0"
    ]  # fmt: skip
    assert not any("connect" in call for call in found)


LOOP = """
import asyncio, socket
async def main():
    async def serve(reader, writer): writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    where = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(*where)
    await reader.read(); writer.close()
    server.close(); await server.wait_closed()
    try: await asyncio.open_connection(*where)
    except OSError: pass
asyncio.run(main())
"""


def test_a_connect_that_does_not_block_has_the_outcome_that_its_program_learns() -> None:
    found = [call for call in calls(told(LOOP)) if call.startswith(("connect", "accept"))]
    names = [call.split()[0] for call in found]
    assert sorted(names) == ["accept", "connect", "connect"]  # no accept that would have blocked
    assert not found[0].endswith("ECONNREFUSED")
    assert found[-1].endswith("ECONNREFUSED")


def test_a_call_that_blocks_is_told_while_it_does() -> None:
    events = told(
        SERVER
        + """
import threading, time
first = threading.Thread(target=s.accept); first.start(); time.sleep(0.2)
print("blocked", flush=True)
c = socket.create_connection(s.getsockname()); first.join()
"""
    )
    entered, output, done = (
        next(n for n, e in enumerate(events) if wanted.items() <= e.items())
        for wanted in ({"name": "accept", "phase": "enter"}, {"kind": "output"},
                       {"name": "accept", "phase": "done"})
    )  # fmt: skip
    assert entered < output < done
    assert events[entered]["thread"] != events[entered]["pid"]


def test_children_have_what_their_parent_had() -> None:
    events = told(
        SERVER
        + """
import os
s.set_inheritable(True)
if os.fork() == 0:
    os.execvp("true", ["true"])
os.wait()
s.set_inheritable(False)
if os.fork() == 0:
    os.execvp("true", ["true"])
os.wait()
"""
    )
    main = events[0]["pid"]
    forks = [e["result"] for e in events if e.get("name") == "fork"]
    assert len(forks) == 2
    assert main not in forks
    ends = [(e["pid"], e["call"]) for e in events if e.get("pid") in forks and e["phase"] == "done"]
    assert ends == [(forks[0], "exit 0"), (forks[1], "close (on exec)")]


def test_what_is_read_and_written_if_that_is_asked_for() -> None:
    program = SERVER + BOTH + 'a.send(b"12345"); c.recv(3); c.recv(9); a.close(); c.recv(1)'
    assert not any(call.startswith(("recv", "send")) for call in calls(told(program)))
    events = [e for e in told(program, watch="--watch=io") if e.get("phase") == "done"]
    found = [(e["name"], e["result"]) for e in events if e.get("name") in ("send", "recv")]
    assert found == [("send", 5), ("recv", 3), ("recv", 2), ("recv", 0)]
    assert [e["eof"] for e in events if e.get("name") == "recv"] == [False, False, True]


def test_of_a_flood_what_binds_and_what_fails_is_told() -> None:
    events = told(
        SERVER
        + """
for _ in range(3000):
    c = socket.create_connection(s.getsockname()); s.accept()[0].close(); c.close()
where = s.getsockname(); s.close()
try: socket.create_connection(where)
except OSError: pass
n = socket.socket(); n.bind(("127.0.0.1", 0))
"""
    )
    assert sorted(text.rpartition(": ")[2] for text in unseen(events)) == [
        "not all later ones are recorded", "not all that close are recorded"
    ]  # fmt: skip
    assert len(calls(events)) < 3000
    found = [call.split()[0::2] for call in calls(events)[-4:]]  # its close, perhaps
    assert ["connect", "ECONNREFUSED"] in found
    assert calls(events)[-1] == "bind 127.0.0.1:0"


def test_of_what_is_busy_with_other_things_all_but_closing_is_told() -> None:
    """As a server does that reads a file for each request."""
    events = told(
        SERVER
        + """
import os
for _ in range(20000): os.getppid()
s.close()
n = socket.socket(); n.bind(("127.0.0.1", 0))
n.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
"""
    )
    (event,) = (e for e in events if e["kind"] == "unseen")
    assert event["text"].endswith("not all that close are recorded")
    assert {"bind", "listen", "accept", "set"} <= {*event["but"]}
    assert "close" not in event["but"]
    assert [c for c in calls(events) if not c.startswith("close")][-3:] == [
        "socket tcp", "bind 127.0.0.1:0", "set SO_KEEPALIVE 1"
    ]  # fmt: skip


def test_a_program_that_traces_itself_is_told_of() -> None:
    events = told("import ctypes; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0))")
    assert written(events) == "-1\n"
    (reason,) = unseen(events)
    assert "calls: off" in reason
    assert written(
        told("import ctypes; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0))", watch="")
    ) == ("0\n")


REFUSED = """
import ctypes, os, struct, sys
sys.path.insert(0, sys.argv[1])
import filters
machine = filters.MACHINES[os.uname().machine]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, machine.numbers["ptrace"]), (0x06, 0, 0, 0x50001),
        (0x06, 0, 0, 0x7FFF0000)]
filters.confine(b"".join(struct.pack("=HBBI", *each) for each in code))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def test_where_tracing_is_forbidden_the_program_runs_all_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, str(images() / "peer"), *PEER[1:], "run", "--watch=calls",
         "--", sys.executable, "-c", SERVER + "print('served')"],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, b"")
    assert written(events) == "served\n"
    assert not calls(events)
    assert not any("watch" in event for event in events)
    (reason,) = unseen(events)
    assert reason.startswith("ptrace(2) is refused: Operation not permitted; ")


# --- It changes nothing for the program -----------------------------------------------------------

NOTICED = """
import os, resource, signal, sys, time
print(os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid(), os.getppid())
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), signal.getsignal(signal.SIGCHLD))
print(sorted(os.listdir("/proc/self/fd")), sorted(os.environ) == sorted(os.environ), os.getcwd())
print([(name, signal.getsignal(name)) for name in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)])
if os.fork() == 0: os._exit(7)
print(os.wait()[1])
"""


def test_a_program_finds_all_as_it_would_be() -> None:
    def found(watch: str) -> list[str]:
        text = written(told(NOTICED, watch=watch))
        return [line for line in text.splitlines() if not line.isdecimal() or line == "1792"]

    with_it, without = found("--watch=calls"), found("")
    parents = [lines[0].split() for lines in (with_it, without)]
    assert parents[0][:2] == parents[1][:2]
    assert with_it[1:] == without[1:]


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)", "os.abort()"])
def test_how_a_program_ends(end: str) -> None:
    statuses = {"os._exit(3)": 3, "os.abort()": 134}
    status = statuses.get(end, 137)
    last = [
        told(f"import os, sys; sys.stdout.flush(); {end}", watch=watch, status=status)[-1]
        for watch in ("--watch=calls", "")
    ]
    assert {key: value for key, value in last[0].items() if key not in ("t", "pid")} == {
        key: value for key, value in last[1].items() if key not in ("t", "pid")
    }


def test_signals_stop_and_continue_as_ever() -> None:
    events = told("""
import os, signal, time
child = os.fork()
if child == 0:
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(5))
    while True: signal.pause()
def state():
    return open(f"/proc/{child}/stat").read().rpartition(")")[2].split()[0]
def until(wanted):
    while state() not in wanted: time.sleep(0.01)
time.sleep(0.05)
os.kill(child, signal.SIGSTOP)
print(os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1]))
until("Tt")
os.kill(child, signal.SIGUSR1); time.sleep(0.05); print(state() in "Tt")
os.kill(child, signal.SIGCONT)
print(os.waitpid(child, 0)[1] >> 8)
""")
    assert written(events) == "True\nTrue\n5\n"


def test_threads_that_start_programs() -> None:
    events = told("""
import subprocess, threading
def run():
    for _ in range(5): subprocess.run(["sh", "-c", "exit 3"])
threads = [threading.Thread(target=run) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
print("all")
""")
    assert written(events) == "all\n"


def test_the_machines_have_numbers_for_all_calls() -> None:
    assert os.uname().machine == platform.machine()
    sys.path.insert(0, str(images() / "peer"))
    try:
        import filters  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    for machine in filters.MACHINES.values():
        code = filters.filter_of(machine, io=True)
        assert len(code) % 8 == 0
        assert len(machine.numbers) == len(filters.NAMES)
