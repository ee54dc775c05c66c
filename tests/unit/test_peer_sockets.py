"""The peer program with several sockets: names, loops, what the kernel says of a socket."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.unit.test_peer import DEADLINE, listening, port_of, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's sockets")


def values(calls: str) -> list[tuple[str, str | None]]:
    """Each call that found something, and what."""
    with running("calls", calls) as process:
        process.end()
        done = [event for event in process.events if event.get("phase") == "done"]
        return [(e["call"], e.get("value") or e.get("errno")) for e in done if "name" in e]


def found(calls: str) -> list[str | None]:
    return [value for call, value in values(calls) if value]


def test_named_sockets() -> None:
    calls = """
        socket tcp as a; bind 127.0.0.1:0; listen 5
        socket tcp as b; bind 127.0.0.1:0; listen 5
        use a; accept as one; use b; accept; use one; recv; use b; close; use b || continue
        use nobody || continue; use a; accept"""
    with running("--tether", "calls", calls) as process:
        process.until(name="accept", phase="enter")
        first, second = [port_of(e) for e in process.events if e["kind"] == "call"
                         and (e["name"], e["phase"]) == ("bind", "done")]  # fmt: skip
        with socket.create_connection(("127.0.0.1", first), DEADLINE) as one:
            process.until(call="accept", phase="enter")
            with socket.create_connection(("127.0.0.1", second), DEADLINE) as two:
                one.sendall(b"to one")
                got = process.until(name="recv", phase="done")
                assert got["data"] == "to one"
                assert process.until(call="use b || continue", phase="done")["errno"] == "EBADF"
                missing = process.until(call="use nobody || continue", phase="done")
                assert missing["errno"] == "EBADF"
                assert two.recv(0) == b""
                with socket.create_connection(("127.0.0.1", first), DEADLINE):
                    assert process.end() == 0


def test_what_the_kernel_says_of_a_socket() -> None:
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text("utf-8").strip()
    assert found("""
        socket; get SO_ERROR; get SO_TYPE; get SO_LINGER; set SO_LINGER 1 5; get SO_LINGER
        set SO_RCVTIMEO 1.5s; get SO_RCVTIMEO; get TCP_CONGESTION; get TCP_USER_TIMEOUT
        set TCP_USER_TIMEOUT 3000; get TCP_USER_TIMEOUT; get TCP_INFO.tcpi_state
        get SIOCINQ; bind 127.0.0.1:0; listen 1; get TCP_INFO.tcpi_state; get SO_ACCEPTCONN
        get SIOCINQ || continue""") == [
        "0", "1", "0 0", "1 5", "1.5", congestion, "0", "3000", "7", "0", "10", "1", "EINVAL"
    ]  # fmt: skip


def test_other_kinds_of_sockets() -> None:
    assert found("""
        socket mptcp; get SO_PROTOCOL; socket udp; get SO_TYPE; get SO_PROTOCOL; bind 127.0.0.1:0
        listen 1 || continue; socket udp6; get SO_DOMAIN""") == [
        "262", "2", "17", "EOPNOTSUPP", "10"
    ]  # fmt: skip


def test_calls_that_do_not_block() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert found(f"""
            socket as s; bind 127.0.0.1:0; listen 1; nonblock; accept || continue; poll in 1ms
            socket; nonblock; connect 127.0.0.1:{port} || continue; poll out; get SO_ERROR
            recv || continue; send "x"; nonblock off; set SO_RCVTIMEO 10ms; recv || continue
            get TCP_INFO.tcpi_state; get SIOCOUTQ""")[:9] == [
            "EAGAIN", "none", "EINPROGRESS", "out", "0", "EAGAIN", "EAGAIN", "1", "0"
        ]  # fmt: skip


def test_a_refused_connect_that_does_not_block() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert found(f"""
        socket; nonblock; connect 127.0.0.1:{port} || continue; poll; get SO_ERROR; get SO_ERROR
        """) == ["EINPROGRESS", "in out err hup rdhup", "ECONNREFUSED", "0"]


def test_a_send_that_fills_the_buffer_tells_how_much_it_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        calls = f"socket; connect 127.0.0.1:{port}; nonblock; send 100000000 bytes || continue"
        with running("calls", calls) as process:
            assert process.end() == 0
            sent = process.until(name="send", phase="done")
    assert sent["errno"] == "EAGAIN"
    assert 0 < sent["result"] < 100_000_000


def test_repeat() -> None:
    with running("calls", "repeat 3: socket; bind 127.0.0.1:0; listen 1\nexit 4") as process:
        assert process.end() == 4
        done = [e["name"] for e in process.events if e.get("phase") == "done"]
        assert done == [*["socket", "bind", "listen"] * 3, "repeat"]
        assert process.until(name="repeat", phase="done")["result"] == 3
        ports = {e["local"] for e in process.events if e.get("name") == "bind" and "local" in e}
        assert len(ports) == 3
    with running("calls", "repeat 5: close") as process:
        assert process.end() == errno.EBADF
        assert process.done() == [("close", "EBADF")]


def test_a_connection_to_nowhere_ends_the_one_before() -> None:
    calls = "socket; bind 127.0.0.1:0; listen 1; accept; recv 1; connect none; recv || continue"
    with running("--tether", "calls", calls) as process:
        with socket.create_connection(("127.0.0.1", listening(process)), DEADLINE) as client:
            client.sendall(b"x")  # now it is connected, as create_connection sees it
            assert process.end() == 0
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert process.until(call="connect none", phase="done")["name"] == "disconnect"
        assert process.done()[-1] == ("recv || continue", "ECONNRESET")


def test_a_program_that_is_executed_has_the_socket_and_not_our_stream() -> None:
    script = (
        "import os, socket; s = socket.socket(fileno=3); c = s.accept()[0]; print('lies'); "
        "c.sendall(repr([sorted(map(int, os.listdir('/proc/self/fd'))), "
        "os.readlink('/proc/self/fd/1'), os.environ['LISTEN_FDS'], "
        "int(os.environ['LISTEN_PID']) == os.getpid()]).encode())"
    )
    calls = f'socket; bind 127.0.0.1:0; listen 1; exec {sys.executable} -c "{script}"'
    with running("--tether", "calls", calls) as process:
        with socket.create_connection(("127.0.0.1", listening(process)), DEADLINE) as client:
            said = client.makefile().read()
        assert process.end() == 0
        # The last two are what it accepted, and the folder that it lists.
        assert said == repr([[0, 1, 2, 3, 4, 5], "/dev/null", "1", True])
        assert process.until(name="exec", phase="enter")
        assert [e for e in process.events if e["kind"] == "process"][-1]["exit"] == 0


def test_a_program_that_is_not_there() -> None:
    assert found("socket; exec no-such-program || continue; get SO_ERROR") == ["ENOENT", "0"]
    with running("calls", "exec true") as process:
        assert process.end() == errno.EBADF


@pytest.mark.netns
def test_a_call_for_a_process_that_has_ended_breaks_nothing() -> None:
    """As process 1, its supervisor stays for a child, which has no pipe that calls come through."""
    unshare = ["unshare", *(() if os.geteuid() == 0 else ("-Ur",)), "-pf", "--mount-proc"]
    script = "import socket; s = socket.socket(fileno=3); s.accept()[0].recv(1); s.accept()"
    calls = f'socket; bind 127.0.0.1:0; listen 5; fork; exec {sys.executable} -c "{script}"'
    with running("--tether", "calls", calls, under=[*unshare, "--kill-child"]) as process:
        port = listening(process)
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""  # it is executed, and has accepted this
            process.tell(do="signal", signal="KILL")
            process.until(kind="process", phase="exit")
            process.tell(do="call", call="close")
            process.tell(do="answer", id="1")
            process.until(kind="reply")
            socket.create_connection(("127.0.0.1", port), DEADLINE).close()
        process.end()
        assert not [event for event in process.events if event["kind"] == "broken"]
