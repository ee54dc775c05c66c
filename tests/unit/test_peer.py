"""The peer program: a supervisor, and below it calls or a program."""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from labctl.ground import signals
from tests.unit.test_calls import PEER

DEADLINE = 10.0


# The program


class Process:
    """A peer program that runs, and what it has told so far."""

    def __init__(self, *arguments: str, under: Sequence[str] = ()) -> None:
        self.popen = subprocess.Popen(
            [*under, sys.executable, str(PEER), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.events: list[dict[str, Any]] = []
        self._rest = b""
        assert self.popen.stdout
        self._out = self.popen.stdout.fileno()

    def tell(self, **message: str) -> None:
        assert self.popen.stdin
        self.popen.stdin.write((json.dumps(message) + "\n").encode())
        self.popen.stdin.flush()

    def until(self, **wanted: Any) -> dict[str, Any]:
        """The first event that has all of this, waiting for it."""
        deadline = time.monotonic() + DEADLINE
        while True:
            for event in self.events:
                if wanted.items() <= event.items():
                    return event
            assert self._read(deadline), f"no {wanted} in {self.events}"

    def end(self) -> int:
        """Waits for the end of it and of all that it started; its exit status."""
        while self._read(time.monotonic() + DEADLINE):
            pass
        return self.popen.wait(DEADLINE)

    def _read(self, deadline: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            assert selector.select(deadline - time.monotonic()), self.events
        data = os.read(self._out, 65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.events += map(json.loads, lines)
        return bool(data)

    def done(self) -> list[tuple[str, str | None]]:
        """The calls that are done: text and errno."""
        return [(e["call"], e.get("errno")) for e in self.events if e.get("phase") == "done"]


@contextmanager
def running(*arguments: str, under: Sequence[str] = ()) -> Iterator[Process]:
    process = Process(*arguments, under=under)
    try:
        yield process
    finally:
        process.popen.kill()  # The main process goes with it.
        process.popen.wait()
        for stream in (process.popen.stdin, process.popen.stdout, process.popen.stderr):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]


def listening(process: Process) -> int:
    """The port of a process that listens by now."""
    process.until(name="listen", phase="done")
    return port_of(process.until(name="bind", phase="done"))


def port_of(event: dict[str, Any]) -> int:
    return int(event["local"].rpartition(":")[2])


@pytest.mark.parametrize(("kind", "host"), [("tcp", "127.0.0.1"), ("tcp6", "[::1]")])
def test_an_exchange(kind: str, host: str) -> None:
    if kind == "tcp6" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    server_calls = f"""
        socket {kind}
        set SO_REUSEADDR
        bind {host}:0
        listen 5
        accept
        recv until eof
        send "I am server\\n" x 2
        close
        close listener
        exit 7"""
    with running("calls", server_calls) as server:
        bound = server.until(name="bind", phase="done")
        assert listening(server) == port_of(bound)
        assert bound["local"].startswith(f"{host}:")
        client_calls = f"""
            socket {kind}; connect {host}:{port_of(bound)}; send "I am client"; send 1000 bytes
            shutdown wr; recv 24; recv; recv || continue"""
        with running("calls", client_calls) as client:
            assert client.end() == 0
            assert server.end() == 7
            connected = client.until(name="connect", phase="done")
            assert connected["peer"] == bound["local"]
            accepted = server.until(name="accept", phase="done")
            assert (accepted["local"], accepted["peer"]) == (connected["peer"], connected["local"])
            got = server.until(name="recv", phase="done")
            assert (got["result"], got["eof"], got["data"][:11]) == (1011, True, "I am client")
            assert client.until(call="send 1000 bytes", phase="done")["result"] == 1000
            assert client.until(call="recv 24", phase="done") | {"eof": False, "result": 24} == (
                client.until(call="recv 24", phase="done")
            )
            assert client.until(call="recv", phase="done")["eof"] is True
            starts = server.until(phase="start")
            ends = server.until(phase="exit")
            assert starts["pid"] == ends["pid"] == bound["pid"] != server.popen.pid
            assert (ends["exit"], ends["signal"]) == (7, None)
            times = [event["t"] for event in server.events]
            assert times == sorted(times)
            for event in server.events:
                assert event["kind"] in ("process", "call")


def test_a_call_that_fails_ends_the_process_with_its_errno() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with running("calls", f"socket; bind 127.0.0.1:{port}; listen 5") as process:
            assert process.end() == errno.EADDRINUSE
            failed = process.until(name="bind", phase="done")
            assert (failed["errno"], failed["error"]) == ("EADDRINUSE", "Address already in use")
            assert process.done() == [("socket", None), (f"bind 127.0.0.1:{port}", "EADDRINUSE")]


@pytest.mark.parametrize(
    ("calls", "name", "status"),
    [
        ("recv", "EBADF", errno.EBADF),
        ("close", "EBADF", errno.EBADF),
        ("close listener", "EBADF", errno.EBADF),
        ("socket; recv", "ENOTCONN", errno.ENOTCONN),
        ("socket; shutdown wr", "ENOTCONN", errno.ENOTCONN),
        ("socket; accept", "EINVAL", errno.EINVAL),
        ("socket; set TCP_CONGESTION nothing", "ENOENT", errno.ENOENT),
        ("socket; bind no-such-host.invalid:80", "EAI_NONAME", 1),
        ("socket; bind 192.0.2.1:80", "EADDRNOTAVAIL", errno.EADDRNOTAVAIL),
    ],
)
def test_errnos(calls: str, name: str, status: int) -> None:
    with running("calls", calls) as process:
        assert process.end() == status
        assert process.done()[-1][1] == name


def test_a_tolerated_failure_goes_on() -> None:
    with running("calls", "recv || continue; socket; close || continue; exit 3") as process:
        assert process.end() == 3
        assert process.done()[:3] == [
            ("recv || continue", "EBADF"), ("socket", None), ("close || continue", None)
        ]  # fmt: skip


def test_return_and_the_end_of_the_list() -> None:
    for calls in ("", "return", "socket\n# the end\n", "return; exit 9"):
        with running("calls", calls) as process:
            assert process.end() == 0


def test_a_child_lives_on_after_its_parent_was_killed() -> None:
    calls = (
        'socket; bind 127.0.0.1:0; listen 5; accept; fork; recv; send "still here"; recv until eof'
    )
    with running("--tether", "calls", calls) as server:
        port = listening(server)
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
            child = server.until(name="recv", phase="enter")["pid"]
            assert server.until(name="fork", phase="done", result=child)["pid"] != child
            server.tell(do="signal", signal="KILL")
            assert server.until(phase="exit")["signal"] == "KILL"
            client.sendall(b"are you there?")
            assert client.recv(64) == b"still here"
        assert server.until(call="recv until eof", phase="done")["pid"] == child
        assert server.end() == 128 + signal.SIGKILL


def test_a_parent_keeps_the_listener_and_leaves_the_connection() -> None:
    with running(
        "--tether", "calls", "socket; bind 127.0.0.1:0; listen 5; accept; fork; exit"
    ) as server:
        port = listening(server)
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
            assert client.recv(1) == b""  # The child has ended, and nobody else held it.
        with socket.create_connection(("127.0.0.1", port), DEADLINE):
            pass
        assert not any(event.get("phase") == "exit" for event in server.events)


def test_calls_over_stdin() -> None:
    with running("--tether", "calls", "socket; await") as process:
        process.until(name="await", phase="enter")
        process.tell(do="call", call="bind 127.0.0.1:0")
        process.tell(do="call", call="listen 5; recv || continue")
        assert process.until(call="recv || continue", phase="done")["errno"] == "ENOTCONN"
        assert not any(e["phase"] == "done" and e["name"] == "await" for e in process.events)
        process.tell(do="call", call="exit 5")
        assert process.end() == 5


def test_the_end_of_stdin_ends_everything() -> None:
    with running("--tether", "calls", "wait") as process:
        process.until(name="wait", phase="enter")
        assert process.popen.stdin
        process.popen.stdin.close()
        assert process.end() == 0


@pytest.mark.netns
def test_the_end_of_stdin_ends_children_too() -> None:
    """As process 1, like in a lab. SIGTERM is forwarded to the main process alone."""
    unshare = ["unshare", *(() if os.geteuid() == 0 else ("-Ur",)), "-pf", "--mount-proc"]
    calls = "socket; bind 127.0.0.1:0; listen 5; accept; fork; recv until eof; wait"
    with running("--tether", "calls", calls, under=[*unshare, "--kill-child"]) as server:
        with socket.create_connection(("127.0.0.1", listening(server)), DEADLINE) as client:
            child = server.until(name="recv", phase="enter")["pid"]
            server.tell(do="signal", signal="TERM")
            assert server.until(phase="exit")["signal"] == "TERM"
            client.shutdown(socket.SHUT_WR)
            server.until(name="wait", phase="enter", pid=child)  # It has outlived its parent.
            assert server.popen.stdin
            server.popen.stdin.close()
            assert client.recv(1) == b""
        server.end()


@pytest.mark.parametrize("number", [1, 9, 15, 16, 31, 34, 35, 50, 63, 64])
def test_every_signal_has_a_name(number: int) -> None:
    """Those for real time, too; and what has a name can be sent by it."""
    name = signals.NAMES[number]
    with running("run", "--", "sh", "-c", f"kill -{number} $$") as process:
        assert process.end() == 128 + number
        assert process.until(phase="exit")["signal"] == name
    with running("--tether", "calls", "wait") as process:
        process.until(name="wait")
        process.tell(do="signal", signal=name)
        assert process.until(phase="exit")["signal"] == name


def queued(client: socket.socket) -> bool:
    """Whether anything is on its way from a client to its server, or unread there (proc(5))."""
    port = f":{client.getsockname()[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return any(row[4] != "00000000:00000000" for row in rows if port in row[1] + row[2])


def test_what_a_failing_call_had_read() -> None:
    with running("calls", "socket; bind 127.0.0.1:0; listen 5; accept; recv until eof") as server:
        with socket.create_connection(("127.0.0.1", listening(server)), DEADLINE) as client:
            server.until(name="recv", phase="enter")
            client.send(b"hello")
            deadline = time.monotonic() + DEADLINE
            while queued(client) and time.monotonic() < deadline:
                time.sleep(0.001)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        done = server.until(name="recv", phase="done")
        assert (done["errno"], done["result"], done["data"]) == ("ECONNRESET", 5, "hello")
        assert server.end() == errno.ECONNRESET


def test_signals_reach_the_main_process() -> None:
    """From its first moment on."""
    for _ in range(10):
        with running("calls", "wait") as process:
            process.until(phase="start")
            process.popen.send_signal(signal.SIGTERM)
            assert process.end() == 128 + signal.SIGTERM
            assert process.until(phase="exit")["signal"] == "TERM"


def test_a_program() -> None:
    script = (
        "import os; print('out'); os.write(2, b'err\\n'); print(os.read(0, 1)); raise SystemExit(3)"
    )
    with running("run", "--", sys.executable, "-uc", script) as process:
        assert process.end() == 3
        text = "".join(event["text"] for event in process.events if event["kind"] == "output")
        assert text == "out\nerr\nb''\n"
        assert [event["kind"] for event in process.events][-1] == "process"
        assert process.until(phase="exit")["exit"] == 3


def test_a_program_that_is_not_there() -> None:
    with running("run", "--", "no-such-program", "with spaces") as process:
        assert process.end() == 127
        (output,) = [event["text"] for event in process.events if event["kind"] == "output"]
        assert output == "cannot run no-such-program: No such file or directory\n"


def test_text_for_people() -> None:
    with running("--text", "calls", "socket; recv || continue; exit 2") as process:
        out, err = process.popen.communicate(timeout=DEADLINE)
        assert (process.popen.returncode, err) == (2, b"")
        words = [line.split(" ", 2)[2] for line in out.decode().splitlines()]
        assert words == [
            "process start ", "socket ...", "socket = ok", "recv || continue ...",
            "recv || continue = ENOTCONN (107: Transport endpoint is not connected)", "exit 2 ...",
            "process exit 2",
        ]  # fmt: skip


def test_bad_usage() -> None:
    for arguments, message in [
        (["calls", "socket\nlisen"], "line 2: unknown call 'lisen'"),
        (["run"], "required: ARG"),
        ([], "required"),
    ]:
        with running(*arguments) as process:
            out, err = process.popen.communicate(timeout=DEADLINE)
            assert (process.popen.returncode, out) == (2, b"")
            assert message in err.decode()
