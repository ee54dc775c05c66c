"""What attaches to programs that run already: it tells their calls, and they run on after it."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.backends.protocol import ATTACHER
from labctl.ground.resources import images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's processes")

PATIENCE = 30.0
ATTACH = [sys.executable, "-IS", str(images() / "peer" / "attach.py")]
PUPPET = "import os, socket, struct, subprocess, sys, threading, time\n" + (
    "for line in sys.stdin:\n"
    "    try: print(eval(line), flush=True)\n"
    "    except OSError as exc: print(exc.errno, flush=True)\n"
)
SERVER = "s := socket.create_server(('127.0.0.1', 0))"
Told = dict[str, Any]


class Puppet:
    """A program that evaluates what it is told."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PUPPET.replace("eval(line)", "eval(line, globals())")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self("1")  # it has begun

    def __call__(self, text: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"({text})\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def end(self) -> int:
        self._process.kill()
        self._process.communicate()
        return self._process.returncode


class Teller:
    """attach.py, and what it tells."""

    def __init__(self, user: int | None = None) -> None:
        self.process = subprocess.Popen(
            ATTACH, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user
        )
        self.told: list[Told] = []
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._asked = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def next(self) -> Told | None:
        line = self._lines.get(timeout=PATIENCE)
        if line is None:
            return None
        message: Told = json.loads(line)
        if message["kind"] != "reply":
            ATTACHER.heard(message)
            self.told.append(message)
        return message

    def ask(self, do: str, **what: Any) -> None:
        """Has it do something, and takes in all that it tells until it has."""
        self._asked += 1
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"do": do, "id": self._asked, **what}).encode() + b"\n")
        self.process.stdin.flush()
        while (message := self.next()) and message.get("id") != self._asked:
            pass
        assert message

    def calls(self, pid: int | None = None) -> list[str]:
        """The finished calls in words, of one process or of all."""
        self.ask("flush")
        return [
            " ".join(filter(None, [e["call"], e.get("errno")])) for e in self.told
            if e["kind"] == "call" and e["phase"] == "done" and pid in (None, e["pid"])
        ]  # fmt: skip

    def unseen(self) -> list[str]:
        self.ask("flush")
        return [e["text"] for e in self.told if e["kind"] == "unseen"]

    def end(self) -> None:
        self.process.kill()
        self._reader.join()
        with self.process:  # closes its streams
            pass


@pytest.fixture
def puppet() -> Iterator[Callable[[], Puppet]]:
    made: list[Puppet] = []

    def make() -> Puppet:
        made.append(Puppet())
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture
def teller() -> Iterator[Teller]:
    found = Teller()
    yield found
    found.end()


def tracer_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("TracerPid:")[2].split()[0])


def test_sockets_that_were_there_and_calls_since_then(
    puppet: Callable[[], Puppet], teller: Teller
) -> None:
    program = puppet()
    program(SERVER)
    program("s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 7))")
    port = program("s.getsockname()[1]")
    teller.ask("attach", pids=[program.pid])
    assert tracer_of(program.pid) == teller.process.pid
    program("[c := socket.create_connection(s.getsockname()), a := s.accept()[0]]")
    assert program("socket.socket().bind(s.getsockname())") == "98"
    program("a.close()")
    assert teller.calls() == [
        "has tcp listening SO_REUSEADDR=1 SO_LINGER=1,7", "socket tcp",
        f"connect 127.0.0.1:{port}", "accept", "socket tcp", f"bind 127.0.0.1:{port} EADDRINUSE",
        "close", "close",
    ]  # fmt: skip
    has = next(each for each in teller.told if each.get("name") == "has")
    assert (has["pid"], has["local"]) == (program.pid, f"127.0.0.1:{port}")
    accept = next(e for e in teller.told if e.get("name") == "accept" and e["phase"] == "done")
    assert accept["local"] == has["local"]
    teller.ask("held")
    assert teller.calls()[8:] == [
        "has tcp listening SO_REUSEADDR=1 SO_LINGER=1,7", "has tcp"
    ]  # fmt: skip
    assert not teller.unseen()


def test_a_call_that_returns_as_its_process_is_attached_to(
    puppet: Callable[[], Puppet], teller: Teller
) -> None:
    """What it made is told as its own, or as there."""

    def connects(port: int) -> None:
        socket.create_connection(("127.0.0.1", port)).close()

    for attempt in range(60):
        program = puppet()
        port = int(program(f"({SERVER}).getsockname()[1]"))
        accepts = threading.Thread(target=program, args=("[a := s.accept()[0]]",))
        accepts.start()
        threading.Timer(attempt % 10 / 2000, connects, [port]).start()
        teller.ask("attach", pids=[program.pid])
        accepts.join()
        program("a.close()")
        listens = "has tcp listening SO_REUSEADDR=1"
        assert teller.calls(program.pid) in (
            [listens, "accept", "close"], [listens, "has tcp SO_REUSEADDR=1", "close"]
        )  # fmt: skip


def test_a_socket_of_several_processes_is_told_as_one(
    puppet: Callable[[], Puppet], teller: Teller
) -> None:
    program = puppet()
    program(SERVER)
    child = int(program("os.fork() or time.sleep(1000)"))
    try:
        teller.ask("attach", pids=[child, program.pid])
        assert [call for call in teller.calls() if call.startswith("has the same")] == [
            f"has the same as fd 3 of {program.pid}"
        ]
        assert tracer_of(child) == teller.process.pid
    finally:
        os.kill(child, signal.SIGKILL)


def test_reads_and_writes_that_fail(puppet: Callable[[], Puppet], teller: Teller) -> None:
    program = puppet()
    program(SERVER)
    teller.ask("attach", pids=[program.pid])
    program("[c := socket.create_connection(s.getsockname()), a := s.accept()[0]]")
    program("[c.send(b'x'), a.recv(1), c.setblocking(False)]")
    assert program("c.recv(1)") == "11"  # EAGAIN
    program("c.setblocking(True)")
    program("[a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))]")
    program("a.close()")
    assert program("c.recv(1)") == "104"
    assert [call for call in teller.calls() if call.startswith(("recv", "send"))] == [
        "recv ECONNRESET"
    ]


def test_it_follows_children_and_threads(puppet: Callable[[], Puppet], teller: Teller) -> None:
    program = puppet()
    program(SERVER)
    early = int(program("(p := subprocess.Popen(['sleep', '1000'])).pid"))
    try:
        teller.ask("attach", pids=[program.pid])
        assert tracer_of(early) == teller.process.pid
        program(f"subprocess.run([sys.executable, '-c', {'import socket; socket.socket()'!r}])")
        program("[t := threading.Thread(target=socket.socket), t.start(), t.join()]")
        assert program("os.wait() if os.fork() else os._exit(3)").endswith(", 768)")
    finally:
        program("[p.kill(), p.wait()]")
    calls = teller.calls()
    assert calls.count("socket tcp") == 2
    assert "exit 3" in calls
    pids = {each["pid"] for each in teller.told if each.get("call") == "socket tcp"}
    assert len(pids) == 2  # the program, by its thread, and the one that it has run
    assert program.pid in pids
    shared = [each["pid"] for each in teller.told if each.get("name") == "fork"]
    assert {*shared} == {program.pid}


@pytest.mark.parametrize("how", ["killed", "left"])
def test_what_it_has_told_of_runs_on(
    puppet: Callable[[], Puppet], teller: Teller, how: str
) -> None:
    program = puppet()
    program(SERVER)
    teller.ask("attach", pids=[program.pid])
    program("s.getsockname()")
    if how == "killed":
        teller.process.kill()
    else:
        assert teller.process.stdin
        teller.process.stdin.close()
    teller.process.wait(PATIENCE)
    assert tracer_of(program.pid) == 0
    assert program("[c := socket.create_connection(s.getsockname())] and 7") == "7"
    other = Teller()
    try:
        other.ask("attach", pids=[program.pid])
        program("c.close()")
        assert other.calls()[-1] == "close"
    finally:
        other.end()


def test_it_ends_with_somebody_who_had_not_read_all(puppet: Callable[[], Puppet]) -> None:
    """Then a socket says ECONNRESET, not its end (unix(7))."""
    program = puppet()
    ours, theirs = socket.socketpair()
    with theirs:
        tracer = subprocess.Popen(ATTACH, stdin=theirs.fileno(), stdout=theirs.fileno())
    with ours:
        ours.sendall(json.dumps({"do": "attach", "id": 1, "pids": [program.pid]}).encode() + b"\n")
        deadline = time.monotonic() + PATIENCE
        while b'"reply"' not in ours.recv(1 << 16, socket.MSG_PEEK):
            assert time.monotonic() < deadline
    try:
        assert tracer.wait(PATIENCE) == 0
    finally:
        tracer.kill()
        tracer.wait()
    assert program("7") == "7"


def test_a_process_has_one_tracer(puppet: Callable[[], Puppet], teller: Teller) -> None:
    program = puppet()
    teller.ask("attach", pids=[program.pid])
    other = Teller()
    try:
        other.ask("attach", pids=[program.pid])
        assert other.unseen() == [
            f"process {program.pid} is not seen: process {teller.process.pid} traces it, and a "
            "process has one tracer"
        ]
    finally:
        other.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_the_process_of_another_user(puppet: Callable[[], Puppet]) -> None:
    program, other = puppet(), Teller(user=65534)
    try:
        other.ask("attach", pids=[program.pid])
        (text,) = other.unseen()
    finally:
        other.end()
    assert text.startswith(
        f"process {program.pid} is not seen: ptrace(2) is refused: Operation not"
    )
    assert "; run it as root" in text
    assert program("7") == "7"


def test_what_has_ended_is_not_missed(teller: Teller) -> None:
    with subprocess.Popen(["true"]) as done:
        pass
    teller.ask("attach", pids=[done.pid])
    assert not teller.unseen()


def test_of_a_flood_not_all_is_seen(puppet: Callable[[], Puppet], teller: Teller) -> None:
    program = puppet()
    teller.ask("attach", pids=[program.pid])
    program("[os.getppid() for _ in range(10000)] and 7")
    (text,) = teller.unseen()
    assert text.startswith("more than 5000 calls")
    teller.ask("held")
    assert teller.unseen() == [text, text]
    deadline = time.monotonic() + PATIENCE
    while "listen" not in " ".join(teller.calls()):  # until there is room
        assert time.monotonic() < deadline
        program("os._exit(0) if os.fork() == 0 else os.wait()")  # which stops it
        program(SERVER)


def test_the_end_of_a_process_is_told(puppet: Callable[[], Puppet], teller: Teller) -> None:
    program = puppet()
    teller.ask("attach", pids=[program.pid])
    os.kill(program.pid, signal.SIGTERM)
    while (message := teller.next()) and message["kind"] != "process":
        pass
    assert message
    assert (message["phase"], message["pid"], message["signal"]) == ("exit", program.pid, "TERM")
    assert not message["left"]


def test_signals_reach_what_is_traced(puppet: Callable[[], Puppet], teller: Teller) -> None:
    program = puppet()
    program("__import__('signal').signal(10, lambda *_: print('heard', flush=True))")
    teller.ask("attach", pids=[program.pid])
    os.kill(program.pid, signal.SIGUSR1)
    assert program("7") == "heard"
