"""Calls that strace wrote down, beside a capture."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labctl.ground.errors import UsageError
from labctl.imports import importing
from labctl.imports.calls import read_calls, ways_of
from labctl.imports.census import Wanted
from labctl.judge.causes.rules import causes
from labctl.judge.recorded import load
from labctl.judge.rejudge import judge
from labctl.judge.result import RunResult
from labctl.record.events import CallEvent, Event, ProcessEvent, UnseenEvent
from tests.captured import BEGUN, CLIENT, NEAR, SERVER, frames, handshake, pcap
from tests.damaged import damaged
from tests.walked import ACK, RST, Sent

SPAN = (BEGUN, BEGUN + 10)
WAYS = ways_of([(BEGUN + 1.0, CLIENT, SERVER)])
HERE = "{sa_family=AF_INET, sin_port=htons(8000), sin_addr=inet_addr(%s)}"
ANY, SERVING = (HERE % f'"{host}"' for host in ("0.0.0.0", "10.0.0.2"))
THERE = '{sa_family=AF_INET, sin_port=htons(40000), sin_addr=inet_addr("10.0.0.3")}'
SERVED = f"""\
7 1700000000.100000 socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_IP) = 3
7 1700000000.200000 setsockopt(3, SOL_SOCKET, SO_REUSEADDR, [1], 4) = 0
7 1700000000.300000 bind(3, {ANY}, 16) = 0
7 1700000000.400000 listen(3, 5) = 0
7 1700000000.500000 accept4(3,  <unfinished ...>
8 1700000000.600000 +++ exited with 0 +++
7 1700000001.000400 <... accept4 resumed>{THERE}, [16], SOCK_CLOEXEC) = 4
7 1700000001.100000 recvfrom(4, "hello", 100, 0, NULL, NULL) = 5
7 1700000001.200000 setsockopt(4, SOL_SOCKET, SO_LINGER, {{l_onoff=1, l_linger=0}}, 8) = 0
7 1700000002.000000 close(4) = 0
7 1700000003.000000 --- SIGTERM {{si_signo=SIGTERM, si_code=SI_USER}} ---
7 1700000003.100000 +++ killed by SIGTERM +++
"""


def read(tmp_path: Path, text: str) -> list[Event]:
    path = tmp_path / "trace"
    path.write_text(text, "utf-8")
    return read_calls(path, "server", SPAN, WAYS)


def calls(events: list[Event]) -> list[CallEvent]:
    """Those that ended."""
    return [e for e in events if isinstance(e, CallEvent) and e.phase == "done"]


def test_a_server(tmp_path: Path) -> None:
    found = read(tmp_path, SERVED)
    assert [call.call for call in calls(found)] == [
        "socket tcp", "set SO_REUSEADDR 1", "bind :8000", "listen 5", "accept", "recv",
        "set SO_LINGER 1 0", "close",
    ]  # fmt: skip
    assert [e.t for e in found] == sorted(e.t for e in found)
    accept = calls(found)[4]
    assert (accept.local, accept.peer, accept.result, accept.fd) == (SERVER, CLIENT, 4, 3)
    entered = [e for e in found if isinstance(e, CallEvent) and e.phase == "enter"]
    assert (entered[4].t, accept.t) == (BEGUN + 0.5, BEGUN + 1.0004)
    start, end = found[0], found[-1]
    assert isinstance(start, ProcessEvent) and isinstance(end, ProcessEvent)
    assert (start.phase, start.pid, start.watch) == ("start", 7, "calls")
    assert (end.phase, end.signal, end.exit) == ("exit", "TERM", None)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"bind(3, {ANY}, 16) = -1 EADDRINUSE (Address already in use)", ["bind :8000 EADDRINUSE"]),
        ('bind(3, {sa_family=AF_INET6, sin6_port=htons(80), sin6_flowinfo=htonl(0), '
         'inet_pton(AF_INET6, "::", &sin6_addr), sin6_scope_id=0}, 28) = 0', ["bind [::]:80"]),
        (f"connect(3, {SERVING}, 16) = -1 ECONNREFUSED (Refused) <0.000012>",
         ["connect 10.0.0.2:8000 ECONNREFUSED"]),
        ("shutdown(3, SHUT_WR)   = 0", ["shutdown wr"]),
        ("shutdown(3, SHUT_RDWR /* send and receive */) = 0", ["shutdown rdwr"]),
        ("accept(3, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)", []),
        ('read(3, "", 100) = 0', ["recv eof"]),
        ('sendto(3, "a) = b", 6, MSG_NOSIGNAL, NULL, 0) = 6', ["send"]),
        ('write(9, "no socket", 9) = 9', []),
        ("socket(AF_UNIX, SOCK_STREAM, 0) = 5", []),
        ("socket(AF_INET, SOCK_DGRAM, IPPROTO_IP) = 5", []),
        ("exit_group(0) = ?", []),
    ],
)  # fmt: skip
def test_each_call(tmp_path: Path, line: str, told: list[str]) -> None:
    text = f"1700000000.1 socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3\n1700000001.0 {line}\n"
    found = calls(read(tmp_path, text))[1:]
    words = [" ".join(filter(None, (c.call, c.errno, "eof" if c.eof else ""))) for c in found]
    assert words == told


def test_a_connect_that_does_not_block(tmp_path: Path) -> None:
    found = calls(read(tmp_path, f"""\
1700000000.5 socket(AF_INET, SOCK_STREAM|SOCK_NONBLOCK, IPPROTO_IP) = 3
1700000001.0 connect(3, {SERVING}, 16) = -1 EINPROGRESS (Operation now in progress)
1700000001.2 getsockopt(3, SOL_SOCKET, SO_ERROR, [111], [4]) = 0
"""))  # fmt: skip
    assert [(c.name, c.errno) for c in found] == [("socket", None), ("connect", "ECONNREFUSED")]
    assert (found[1].local, found[1].peer, found[1].t) == (CLIENT, SERVER, BEGUN + 1.2)


def test_threads_and_processes(tmp_path: Path) -> None:
    found = calls(read(tmp_path, """\
7 1700000000.1 socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3
7 1700000000.2 clone3({flags=CLONE_VM|CLONE_THREAD, child_tid=0x7f}, 88) = 8
8 1700000000.3 close(3) = 0
7 1700000000.4 socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3
7 1700000000.5 clone(child_stack=NULL, flags=SIGCHLD) = 9
9 1700000000.6 close(3) = 0
7 1700000000.7 listen(3, 5) = 0
"""))  # fmt: skip
    assert [(c.name, c.pid, c.thread) for c in found] == [
        ("socket", 7, None), ("close", 7, 8), ("socket", 7, None), ("fork", 7, None),
        ("close", 9, None), ("listen", 7, None),
    ]  # fmt: skip


def test_a_trace_without_closes_says_so(tmp_path: Path) -> None:
    found = read(tmp_path, "1700000000.1 socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3\n")
    (unseen,) = (e for e in found if isinstance(e, UnseenEvent))
    assert "strace did not trace close" in unseen.text and "close" not in unseen.but
    assert not [e for e in read(tmp_path, SERVED) if isinstance(e, UnseenEvent)]


@pytest.mark.parametrize("hours", [0, 2, -5])
def test_times_without_a_date(tmp_path: Path, hours: int) -> None:
    """In any zone: only one lets them fit the capture."""
    clock = datetime.fromtimestamp(BEGUN + 1.5 + 3600 * hours, UTC)
    text = f"{clock:%H:%M:%S.%f} socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3\n"
    assert calls(read(tmp_path, text))[0].t == pytest.approx(BEGUN + 1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trace: it has no line of strace with a time; trace with `strace -f -ttt`"),
        ("socket(AF_INET, SOCK_STREAM, 0) = 3\n", "trace: it has no line of strace with a time"),
        ("7 1700000000.1 rubbish\n", "trace:1: no line of strace: 'rubbish'"),
        ("\n12:00:00 close(3) = 0\n", "trace:2: a time without a date; trace with"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as found:
        read(tmp_path, text)
    assert message in str(found.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_is_too_much(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "trace"
    path.write_bytes(damaged(SERVED.encode(), data))
    try:
        read_calls(path, "server", SPAN, WAYS)
    except UsageError as exc:
        assert str(exc).startswith(f"{path}:")


# --- What they tell -------------------------------------------------------------------------------

SENT = [
    *handshake(1.0),
    Sent(1.05, CLIENT, SERVER, ACK, 101, 901, 5),
    Sent(1.05 + 2 * NEAR, SERVER, CLIENT, ACK, 901, 106),
    Sent(2.0, SERVER, CLIENT, RST | ACK, 901, 106),
]


def traced(folder: Path, text: str) -> RunResult:
    """The import of both ends, and of a trace at the server, which is the second file: its clock is
    3 s ahead."""
    files = {
        "client": pcap(folder / "b", frames(SENT, CLIENT)),
        "server": pcap(folder / "a", frames(SENT, SERVER, 3.0)),
    }
    path = folder / "trace"
    path.write_text(text, "utf-8")
    run = folder / "run"
    run.mkdir()
    found = importing.with_calls(importing.load(files, Wanted()), {"server": path})
    importing.record(found, run)
    return load(run)


def later(text: str, seconds: int) -> str:
    """A trace by a clock that is ahead."""
    words = (line.split(" ", 2) for line in text.splitlines())
    return "".join(f"{a} {float(b) + seconds:.6f} {c}\n" for a, b, c in words)


def test_a_cause_that_needs_calls(tmp_path: Path) -> None:
    run = traced(tmp_path, later(SERVED, 3))
    (reset,) = (cause for cause in causes(run.history) if cause.id.startswith("reset-"))
    assert (reset.id, reset.host, reset.certain) == ("reset-linger", "server", True)
    accept = next(e for e in run.history.events if isinstance(e, CallEvent) and e.name == "accept")
    assert accept.t == pytest.approx(0.4, abs=0.01)  # since the first call


def test_claims_about_a_program(tmp_path: Path) -> None:
    run = traced(tmp_path, later(SERVED, 3))
    claims = tmp_path / "claims.yaml"
    claims.write_text("""\
title: claims
hosts: {server: {calls: accept}, client: {}}
steps: []
expect:
  - process: {server: {call: {bind: ok}}}
  - process: {server: {signal: TERM}}
  - process: {server: EADDRINUSE}
""")
    assert [verdict.result for verdict in judge(run.folder, claims)] == ["pass", "pass", "fail"]


def test_a_trace_of_another_host(tmp_path: Path) -> None:
    files = {"server": pcap(tmp_path / "a", frames(SENT, SERVER))}
    found = importing.load(files, Wanted())
    with pytest.raises(UsageError, match="--strace web=x: no capture of that host; there are: ser"):
        importing.with_calls(found, {"web": Path("x")})
