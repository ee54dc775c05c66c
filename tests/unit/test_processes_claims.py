"""What is claimed of processes, and what is found."""

from __future__ import annotations

from typing import Any

import pytest

from labctl.record.events import (
    CallEvent,
    Event,
    OutputEvent,
    ProcessEvent,
)
from tests.claimed import judge

# Processes


def started(t: float = 1.0) -> ProcessEvent:
    return ProcessEvent(t, "server", "server", "start", pid=2)


def exited(status: int | None = 0, signal: str | None = None) -> ProcessEvent:
    return ProcessEvent(3.0, "server", "server", "exit", pid=2, exit=status, signal=signal)


def gone() -> ProcessEvent:
    return ProcessEvent(4.0, "server", "server", "gone", signal="KILL")


def did(
    call: str, failure: str | None = None, phase: Any = "done", result: int | None = None
) -> CallEvent:
    name = call.split(maxsplit=1)[0]
    return CallEvent(2.0, "server", "server", 2, phase, call, name, errno=failure, result=result)


def wrote(text: str) -> OutputEvent:
    return OutputEvent(2.0, "server", "server", text)


NEVER: list[Event] = []
RUNNING = [started(), did("socket"), did("accept", phase="enter")]
ENDED = [started(), did("socket"), exited()]
FAILED = [started(), did("socket"), did("bind :8000", "EADDRINUSE"), exited(98)]
KILLED = [started(), did("wait", phase="enter"), exited(None, "KILL")]
TOLERANT = [started(), did("recv || continue", "ECONNRESET"), did("close"), exited()]
REAL_TIME = [started(), exited(None, "RTMIN+1")]
READ = [started(), did("recv", result=3), did("send", result=9), did("recv until eof", result=4)]
PROGRAM = [started(), wrote("listening\nfailed: 98\n"), exited(1)]
PROGRAM_RUNS = [started(), wrote("listening\n")]


@pytest.mark.parametrize(
    ("pattern", "events", "result"),
    [
        ("running", RUNNING, "pass"),
        ("running", ENDED, "fail"),
        ("running", NEVER, "fail"),
        ("running", [started(), gone()], "fail"),
        ("running", [*ENDED, started(5.0)], "pass"),
        ("exited", ENDED, "pass"),
        ("exited", KILLED, "pass"),
        ("exited", RUNNING, "fail"),
        ("exited", NEVER, "fail"),
        ("ok", ENDED, "pass"),
        ("ok", FAILED, "fail"),
        ("ok", KILLED, "fail"),
        ("ok", RUNNING, "fail"),
        ("ok", TOLERANT, "pass"),
        ("EADDRINUSE", FAILED, "pass"),
        ("EADDRINUSE", ENDED, "fail"),
        ("ECONNREFUSED", FAILED, "fail"),
        ("EADDRINUSE", RUNNING, "fail"),
        ("EADDRINUSE", NEVER, "fail"),
        ("ECONNRESET", TOLERANT, "fail"),  # not its last call
        ("ECONNRESET", TOLERANT[:2], "pass"),
        ("EADDRINUSE", PROGRAM, "unknown"),
        ("EADDRINUSE", PROGRAM_RUNS, "unknown"),
        ("{errno: EADDRINUSE}", FAILED, "pass"),
        ("{state: exited}", FAILED, "pass"),
        ("{exit: 98}", FAILED, "pass"),
        ("{exit: 0}", FAILED, "fail"),
        ("{exit: 0}", RUNNING, "fail"),
        ("{exit: 0}", KILLED, "fail"),
        ("{signal: KILL}", KILLED, "pass"),
        ("{signal: SIGKILL}", KILLED, "pass"),
        ("{signal: TERM}", KILLED, "fail"),
        ("{signal: KILL}", FAILED, "fail"),
        ("{signal: KILL}", [started(), gone()], "pass"),
        ("{signal: TERM}", [started(), exited(None, "TERM"), gone()], "pass"),
        ('{output: "fail.*98"}', PROGRAM, "pass"),
        ('{output: "^listening$"}', PROGRAM, "pass"),
        ('{output: "^fail$"}', PROGRAM, "fail"),
        ('{output: "list.*failed"}', PROGRAM, "fail"),
        ('{output: "x"}', [started()], "fail"),
        ("{call: {bind: EADDRINUSE}}", FAILED, "pass"),
        ("{call: {bind: ok}}", FAILED, "fail"),
        ("{call: {socket: ok, bind: EADDRINUSE}}", FAILED, "pass"),
        ("{call: {connect: ok}}", FAILED, "fail"),
        ("{call: {accept: ok}}", RUNNING, "fail"),  # entered, not done
        ("{call: {recv: ECONNRESET}}", [*TOLERANT[:2], did("recv")], "fail"),  # the last one counts
        ('{exit: 1, output: "98", call: {bind: ok}}', PROGRAM, "unknown"),
        ('{exit: 2, output: "98", call: {bind: ok}}', PROGRAM, "fail"),
        ("{received: 7}", READ, "pass"),
        ('{received: ">7"}', READ, "fail"),
        ("{received: 0}", RUNNING, "pass"),
        ("{received: 7}", [*READ, did("recv until eof", "ECONNRESET")], "pass"),
        ("{received: 12}", [*READ, did("recv 9", "ECONNRESET", result=5)], "pass"),
        ("{received: 7}", [*READ, did("recv 9", "ECONNRESET", result=5)], "fail"),
        # What is still being read, or was when the process was killed
        ("{received: 7}", [*READ, did("recv", phase="enter")], "pass"),
        ("{received: 7}", [*READ, did("recv || continue", phase="enter")], "pass"),
        ("{received: 7}", [*READ, did("recv until eof", phase="enter")], "unknown"),
        ("{received: 8}", [*READ, did("recv 9", phase="enter"), exited(None, "KILL")], "unknown"),
        ('{received: ">16"}', [*READ, did("recv 9", phase="enter")], "fail"),
        ('{received: "<=16"}', [*READ, did("recv 9 || continue", phase="enter")], "pass"),
        ('{received: ">=16"}', [*READ, did("recv 9", phase="enter")], "unknown"),
        ("{received: 17}", [*READ, did("recv until eof", phase="enter")], "unknown"),
        ('{received: ">=7"}', [*READ, did("recv until eof", phase="enter")], "pass"),
        ('{received: "<7"}', [*READ, did("recv until eof", phase="enter")], "fail"),
        (
            "{received: 7}",
            [*READ, did("recv until eof", phase="enter"), did("recv until eof")],
            "pass",
        ),
        # A program's calls are not seen.
        ("{received: 0}", PROGRAM, "unknown"),
        ("{received: 0}", PROGRAM_RUNS, "unknown"),
        ("{call: {bind: ok}}", PROGRAM_RUNS, "unknown"),
        ("{signal: RTMIN+1}", REAL_TIME, "pass"),
        ("{signal: SIGRTMAX-29}", REAL_TIME, "pass"),
        ("{signal: 35}", REAL_TIME, "pass"),
        ("{signal: KILL}", REAL_TIME, "fail"),
        ("{signal: RTMIN}", REAL_TIME, "fail"),
        ('{exit: 1, output: "98"}', PROGRAM, "pass"),
    ],
)
def test_processes(pattern: str, events: list[Event], result: str) -> None:
    assert judge(f"{{process: {{server: {pattern}}}}}", *events).result == result


def test_what_was_seen_of_processes() -> None:
    def actual(pattern: str, events: list[Event]) -> str:
        return judge(f"{{process: {{server: {pattern}}}}}", *events).actual

    assert actual("ok", RUNNING) == "running, in accept"
    assert actual("ok", PROGRAM_RUNS) == "running"
    assert actual("ok", NEVER) == "never started"
    assert actual("running", KILLED) == "killed by SIGKILL"
    assert actual("running", ENDED) == "exit 0"
    assert actual("ok", TOLERANT) == "exit 0"
    assert actual("ok", FAILED) == (
        "bind :8000: EADDRINUSE (98 on Linux, 48 on macOS and the BSDs)"
    )
    assert actual("EADDRINUSE", PROGRAM_RUNS) == (
        "running; a program's calls are not seen, judge exit or output"
    )
    assert (
        actual("{call: {bind: ok, connect: ok}}", FAILED)
        == "bind: EADDRINUSE (98 on Linux, 48 on macOS and the BSDs), connect: not done"
    )


def test_the_evidence_of_processes() -> None:
    found = judge("{process: {server: ok}}", *RUNNING)
    assert found.evidence == ("2.000 socket: ok", "2.000 accept: blocked")
    found = judge("{process: {server: ok}}", *FAILED)
    assert found.evidence[-1] == (
        "2.000 bind :8000: EADDRINUSE (98 on Linux, 48 on macOS and the BSDs)"
    )
    many = [started(), *(did("recv") for _ in range(20)), *(wrote(f"{n}\n") for n in range(20))]
    assert len(judge("{process: {server: ok}}", *many).evidence) == 16


def test_news_of_processes_that_never_started() -> None:
    assert judge("{process: {server: ok}}", did("socket"), exited()).actual == "never started"
