"""What is claimed of processes, and what is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from labctl.language.facts import Range
from labctl.language.predicates.called import STILL
from labctl.record.events import (
    CallEvent,
    Event,
    OutputEvent,
    ProcessEvent,
    UnseenEvent,
)
from labctl.record.history import History
from tests.claimed import claim, judge

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
REPEATED = [started(), did("repeat 2: bind :8000", phase="enter"), did("bind :8000", "EADDRINUSE")]
TOLERANT = [started(), did("recv || continue", "ECONNRESET"), did("close"), exited()]
REAL_TIME = [started(), exited(None, "RTMIN+1")]
READ = [started(), did("recv", result=3), did("send", result=9), did("recv until eof", result=4)]
PROGRAM = [started(), wrote("listening\nfailed: 98\n"), exited(1)]
WATCHED: list[Event] = [
    ProcessEvent(1.0, "server", "server", "start", 2, watch="calls"), did("socket tcp")
]  # fmt: skip
REFUSED: list[Event] = [*WATCHED, did("bind :8000", "EADDRINUSE"), did("close"), exited(1)]
AGAIN: list[Event] = [*WATCHED, did("bind :8000", "EADDRINUSE"), did("bind :8000"), exited(1)]
BUSY = UnseenEvent(1.5, "server", "server", "too many",
                   ["socket", "bind", "listen", "accept", "connect"])  # fmt: skip
FLOOD = UnseenEvent(1.6, "server", "server", "a flood", ["bind", "listen", "close"])
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
        ("EADDRINUSE", [*REPEATED, exited(98)], "pass"),
        ("EADDRINUSE", [*REPEATED, did("bind :8000", phase="enter")], "fail"),
        ("EADDRINUSE", [*REPEATED, did("repeat 2: bind :8000")], "fail"),
        ("EADDRINUSE", [*FAILED[:-1], replace(REPEATED[1], t=2.5)], "fail"),
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
        # A program's calls: it goes on after one that failed.
        ("EADDRINUSE", REFUSED, "pass"),
        ("EADDRINUSE", AGAIN, "fail"),
        ("ECONNREFUSED", REFUSED, "fail"),
        ("{call: {bind: EADDRINUSE, close: ok}}", REFUSED, "pass"),
        ("{call: {listen: ok}}", REFUSED, "fail"),
        ("{received: 0}", REFUSED, "unknown"),
        # Not all of them are seen.
        ("EADDRINUSE", [*REFUSED, FLOOD], "pass"),
        ("ECONNREFUSED", [*REFUSED, BUSY], "fail"),
        ("ECONNREFUSED", [*REFUSED, FLOOD], "unknown"),
        ("{call: {bind: EADDRINUSE}}", [*REFUSED, FLOOD], "pass"),
        ("{call: {bind: ok}}", [*REFUSED, BUSY], "fail"),
        ("{call: {close: ok}}", [*REFUSED, BUSY], "unknown"),
        ("{call: {close: ok}}", [*REFUSED, BUSY, FLOOD], "unknown"),  # the first one still holds
        ("{call: {connect: ok}}", [*REFUSED, FLOOD], "unknown"),
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
    assert actual("ECONNRESET", TOLERANT) == "exit 0"  # not its last call
    assert actual("ECONNRESET", TOLERANT[:2]).startswith("recv || continue: ECONNRESET")
    assert actual("EADDRINUSE", PROGRAM_RUNS) == (
        "running; its calls are not seen: judge exit or output"
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


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("running", "running"), ("ok", "ok"), ("EADDRINUSE", "EADDRINUSE"),
        ("{exit: 0}", "exit 0"), ("{signal: TERM}", "signal TERM"), ('{output: "a"}', "output 'a'"),
        ("{call: {bind: ok, connect: ECONNREFUSED}}", "bind ok, connect ECONNREFUSED"),
        ('{received: ">3"}', "received >3"),
        ('{state: exited, exit: 3, output: ""}', "exited, exit 3, output ''"),
    ],
)  # fmt: skip
def test_a_claim_in_words(pattern: str, words: str) -> None:
    found = judge(f"{{process: {{server: {pattern}}}}}", *ENDED)
    assert found.expected == words
    assert found.claimed.about == ("server",)


@pytest.mark.parametrize(
    ("pattern", "process", "status"),
    [("ok", "exited", 0), ("exited", "exited", None), ("running", "running", None),
     ("{exit: 3}", None, 3), ("{state: exited, exit: 3}", "exited", 3)],
)  # fmt: skip
def test_what_is_wanted_as_data(pattern: str, process: str | None, status: int | None) -> None:
    wanted = judge(f"{{process: {{server: {pattern}}}}}", *ENDED).claimed.wanted
    assert (wanted.process, wanted.exit) == (process, status)


@pytest.mark.parametrize(
    ("events", "process", "status", "signal", "errno"),
    [
        (RUNNING, "running", None, None, None), (ENDED, "exited", 0, None, None),
        (KILLED, "killed", None, "KILL", None), (FAILED, "exited", 98, None, "EADDRINUSE"),
        (TOLERANT, "exited", 0, None, None), (PROGRAM, "exited", 1, None, None),
        ([*FAILED[:3], did("accept", phase="enter")], "running", None, None, None),
    ],
)  # fmt: skip
def test_what_was_seen_as_data(
    events: list[Event], process: str, status: int | None, signal: str | None, errno: str | None
) -> None:
    measured = judge("{process: {server: ok}}", *events).measured
    assert (measured.process, measured.exit, measured.signal, measured.errno) == (
        process, status, signal, errno,
    )  # fmt: skip
    assert (measured.output, measured.received_bytes) == (None, None)


def test_a_process_that_runs_and_awaits_nothing() -> None:
    assert judge("{process: {server: awaiting}}", *RUNNING).measured.process == "running"


def test_a_state_beside_what_it_wrote() -> None:
    assert judge("{process: {server: {state: running}}}", *RUNNING).result == "pass"


def test_a_call_of_its_own_may_come_to_be_blocked() -> None:
    entered = [CallEvent(t, name, name, 2, "enter", "recv", "recv")
               for t, name in ((1.0, "server"), (2.0, "client"))]  # fmt: skip
    predicate = claim("{process: {client: {call: {recv: blocked}}}}")
    assert predicate.turns(History(entered)) == [2.0 + STILL]


def test_what_was_read_and_written_as_data() -> None:
    claimed = judge("{process: {server: {received: 7, call: {recv: ok}}}}", *READ)
    assert claimed.measured.received_bytes == claimed.claimed.wanted.received_bytes == Range(7, 7)
    assert claimed.measured.calls == claimed.claimed.wanted.calls == {"recv": "ok"}
    written = judge('{process: {server: {output: "fail.*"}}}', *PROGRAM)
    assert written.measured.output == "failed: 98"
    assert judge('{process: {server: {output: "x"}}}', *PROGRAM).measured.output is None


@pytest.mark.parametrize(("length", "shown"), [(200, "x" * 200), (201, "x" * 197 + "...")])
def test_a_long_match_is_cut(length: int, shown: str) -> None:
    found = judge('{process: {server: {output: "x+"}}}', started(), wrote("x" * length + "\n"))
    assert found.actual == f"output {shown!r}"
    assert found.measured.output == shown
    missed = judge('{process: {server: {output: "y"}}}', started(), wrote("x" * length + "\n"))
    assert missed.actual == f"output {shown!r}"


@pytest.mark.parametrize(("length", "shown"), [(500, "x" * 500), (501, "x" * 497 + "...")])
def test_long_lines_are_cut_as_evidence(length: int, shown: str) -> None:
    found = judge("{process: {server: ok}}", started(), wrote("x" * length + "\n"))
    assert found.evidence == (shown,)


def test_the_last_of_what_was_done_and_written_is_evidence() -> None:
    calls = [did(f"send {n}") for n in range(9)]
    lines = [wrote(f"{n}\n") for n in range(9)]
    found = judge("{process: {server: ok}}", started(), *calls, *lines)
    assert found.evidence == (
        *(f"2.000 send {n}: ok" for n in range(1, 9)), *(str(n) for n in range(1, 9))
    )  # fmt: skip
    blocked = did("accept", phase="enter")
    killed = judge("{process: {server: ok}}", started(), blocked, exited(None, "KILL"))
    assert killed.evidence == ("2.000 accept: not done",)


def test_output_that_is_not_recorded_decides_nothing() -> None:
    left = OutputEvent(2.0, "server", "server", "x\n", left_out=10)
    found = judge('{process: {server: {output: "y"}}}', started(), left)
    assert (found.result, found.actual) == (
        "unknown",
        "output 'x'; 10 bytes of it are not recorded; have it write less, or into a file",
    )
    assert judge('{process: {server: {output: "x"}}}', started(), left).result == "pass"
    silent = judge('{process: {server: {output: "y"}}}', started())
    assert (silent.result, silent.actual) == ("fail", "output ''")


def test_what_is_read_on_is_told() -> None:
    found = judge("{process: {server: {received: 7}}}", *READ, did("recv 9", phase="enter"))
    assert found.actual == "received 7, and what recv 9 has; wait until it is done"


def test_an_error_of_a_call_that_did_not_end_its_process_is_not_why_it_ended() -> None:
    found = judge("{process: {server: ok}}", started(), did("bind :80", "EACCES"), exited(3))
    assert found.actual.startswith("bind :80: EACCES")
    ended = judge("{process: {server: running}}", started(), did("bind :80", "EACCES"), exited(0))
    assert ended.actual == "exit 0"


def test_news_of_processes_that_never_started() -> None:
    assert judge("{process: {server: ok}}", did("socket"), exited()).actual == "never started"
