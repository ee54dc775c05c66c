"""Every shipped lesson holds on every backend, and none of them holds by accident: where a lesson
is changed so that it claims something false, or so that what it shows does not happen, it fails."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from labctl.history import Event, History
from labctl.lab import Lab
from labctl.resources import scenarios
from labctl.runner import RunResult
from labctl.scenario import Scenario, load
from labctl.workflow import run_case
from tests.contract.false_claims import OF_THE_CATALOGUE, FalseClaim, whats

BACKENDS = [("netns", pytest.mark.netns), ("docker", pytest.mark.docker)]
FILES = sorted(scenarios().glob("*.yaml"))
MINUTES = {"eaddrinuse_time_wait"}


class Silent:
    """A watcher of runs that nobody watches."""

    def event(self, event: Event, history: History) -> None:
        pass

    def up(self, lab: Lab) -> None:
        pass

    def done(self, lab: Lab) -> None:
        pass


def run(case: Scenario, backend: str, folder: Path) -> RunResult:
    return run_case(case, backend, Silent(), lambda text: None, folder)


def report(result: RunResult) -> str:
    """All that a failed test has to say."""
    verdicts = [
        f"{v.result:7} {v.source}: {v.what}: expected {v.expected}, saw {v.actual}"
        for v in result.verdicts
    ]
    head = f"{result.scenario.label}: {result.result} {result.reason or ''} ({result.folder})"
    return "\n".join([head, *verdicts, *result.why])


def cases() -> list[Scenario]:
    """All of them, those that take minutes first: then the rest can run beside them."""
    found = [case for file in FILES for case in load(file)]
    return sorted(found, key=lambda case: case.name not in MINUTES)


def lessons() -> list[Any]:
    """Every case on every backend."""
    return [
        pytest.param(
            case,
            backend,
            id=f"{case.label}-{backend}",
            marks=[mark, pytest.mark.slow] if case.name in MINUTES else mark,
        )
        for backend, mark in BACKENDS
        for case in cases()
    ]


def claims(case: Scenario, backend: str, kernel: str) -> list[tuple[str, str]]:
    """What a case claims and how it ends where all of that is true, from the scenario alone. So it
    is the same for all backends, but for steps that say otherwise (`when`)."""
    steps = [
        step
        for step in case.steps
        if not (step.when and step.when.lacking(kernel, backend, dict(case.variant)))
    ]
    last = [finding.what for claim in case.expect for finding in claim.judge(History())]
    return [(what, "pass") for what in [*chain.from_iterable(map(whats, steps)), *last]]


@pytest.mark.parametrize(("case", "backend"), lessons())
def test_holds(case: Scenario, backend: str, tmp_path: Path) -> None:
    result = run(case, backend, tmp_path)
    if result.result == "skip":
        pytest.skip(result.reason or "")
    assert result.result == "pass", report(result)
    judged = [(v.what, v.result) for v in result.verdicts if v.result != "skip"]
    assert judged == claims(case, backend, str(result.environment["kernel"])), report(result)


def flipped(case: Scenario) -> FalseClaim:
    """A row of the table of options, with its outcome turned round."""
    old, new, bind = case.variant["old"], case.variant["new"], case.variant["bind"]
    wrong = "ok" if bind == "EADDRINUSE" else "EADDRINUSE"
    row = f"{{old: {old}, new: {new}, bind: "
    return FalseClaim(
        "so_reuseaddr", f"{row}{bind}", f"{row}{wrong}", f"{new}: bind {wrong}",
        (("old", old), ("new", new)),
    )  # fmt: skip


FALSE_CLAIMS = [
    FalseClaim(
        "state_walk",
        "server: [SYN-RECV, ESTAB, CLOSE-WAIT, LAST-ACK, closed]",
        "server: [SYN-RECV, ESTAB, FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT]",
        "server: SYN-RECV, ESTAB, FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT",
        (("way", "close"),),
    ),
    FalseClaim(
        "state_walk",
        "for: 0s, tolerance: 100ms",
        "for: 5s, tolerance: 100ms",
        "server: LAST-ACK for 5 s, give or take 0.1 s",
        (("way", "half"),),
    ),
    # Wrong states: the remainder of the connection is on the other side, or another one.
    FalseClaim(
        "eaddrinuse_time_wait",
        "{server: TIME-WAIT, client: none}",
        "{server: none, client: TIME-WAIT}",
        "client: TIME-WAIT",
    ),
    FalseClaim(
        "process_end",
        "{server: FIN-WAIT-2, client: CLOSE-WAIT}",
        "{server: none, client: none}",
        "client: no connection",
        (("end", "KILL"),),
    ),
    FalseClaim(
        "unread_data",
        "{server: none, client: none}",
        "{server: TIME-WAIT, client: none}",
        "server: TIME-WAIT",
        (("end", "close"),),
    ),
    FalseClaim(
        "fin_wait_2",
        "expect: {sockets: {server: FIN-WAIT-2",
        "expect: {sockets: {server: TIME-WAIT",
        "server: TIME-WAIT",
    ),
    FalseClaim(
        "fin_wait_1_zero_window",
        "server: {state: FIN-WAIT-1,",
        "server: {state: FIN-WAIT-2,",
        "server: FIN-WAIT-2 send-q >0 timer persist",
    ),
    FalseClaim(
        "fin_wait_1_zero_window",
        "{server: none, client: none}",
        "{server: TIME-WAIT, client: none}",
        "server: TIME-WAIT",
    ),
    FalseClaim(
        "time_wait_on_the_client",
        "{client: TIME-WAIT, server: none}",
        "{client: none, server: TIME-WAIT}",
        "server: TIME-WAIT",
    ),
    # Wrong queues, timers and counters.
    FalseClaim(
        "fin_wait_2_full_queue",
        "recv-q: 290961",
        "recv-q: 290960",
        "client: CLOSE-WAIT recv-q 290960",
    ),
    FalseClaim(
        "fin_wait_2_full_queue",
        "timer: timewait",
        "timer: persist",
        "server: FIN-WAIT-2 timer persist",
    ),
    FalseClaim(
        "unread_data",
        "TcpExtTCPAbortOnClose: 1",
        "TcpExtTCPAbortOnClose: 0",
        "server: TcpExtTCPAbortOnClose grew by 0",
        (("end", "KILL"),),
    ),
    # Wrong durations.
    FalseClaim(
        "eaddrinuse_time_wait", "within: 59s..63s", "within: 1s..3s", "server: no connection"
    ),
    FalseClaim("fin_wait_2", "fin_timeout: 5", "fin_timeout: 2", "server: no connection"),
    FalseClaim(
        "fin_wait_2_full_queue",
        "within: 2.5s..5s",
        "within: 500ms..1s",
        "server: no connection",
    ),
    # Wrong outcomes of calls and processes.
    FalseClaim(
        "eaddrinuse_time_wait",
        "{server: EADDRINUSE}",
        "{server: EADDRNOTAVAIL}",
        "server: EADDRNOTAVAIL",
    ),
    FalseClaim(
        "process_end",
        "{recv: ok}",
        "{recv: ECONNRESET}",
        "client: recv ECONNRESET",
        (("end", "TERM"),),
    ),
    FalseClaim(
        "process_end",
        "{server: {exit: 3}}",
        "{server: {exit: 0}}",
        "server: exit 0",
        (("end", "exit"),),
    ),
    FalseClaim(
        "process_end",
        "wait: {process: {server: {signal: KILL}}}",
        "wait: {process: {server: {signal: TERM}}}",
        "server: signal TERM",
        (("end", "KILL"),),
    ),
    FalseClaim(
        "unread_data",
        "{client: ECONNRESET}",
        "{client: {call: {recv: ok}}}",
        "client: recv ok",
        (("end", "close"),),
    ),
    FalseClaim(
        "two_addresses",
        "{first: EADDRINUSE}",
        "{first: {call: {bind: ok}}}",
        "first: bind ok",
    ),
    FalseClaim(
        "two_addresses",
        "{second: {call: {listen: ok}}}",
        "{second: EADDRINUSE}",
        "second: EADDRINUSE",
    ),
    FalseClaim(
        "time_wait_on_the_client",
        "{server: {call: {listen: ok}}}",
        "{server: EADDRINUSE}",
        "server: EADDRINUSE",
    ),
    FalseClaim(
        "same_address_twice",
        "bind: EADDRINUSE, later: EADDRINUSE",
        "bind: ok, later: EADDRINUSE",
        "second: bind ok",
        (("option", "SO_REUSEADDR 0"),),
    ),
    FalseClaim(
        "same_address_twice",
        "listen: EADDRINUSE",
        "listen: ok",
        "second: listen ok",
        (("option", "SO_REUSEADDR"),),
    ),
    FalseClaim(
        "same_address_twice",
        "bind: ok, later: EADDRINUSE",
        "bind: ok, later: ok",
        "second: bind ok",
        (("option", "SO_REUSEADDR"),),
    ),
    FalseClaim(
        "same_address_twice",
        "bind: ok, listen: ok",
        "bind: ok, listen: EADDRINUSE",
        "second: listen EADDRINUSE",
        (("option", "SO_REUSEPORT"),),
    ),
    *(flipped(case) for case in load(scenarios() / "so_reuseaddr.yaml")),
    # Options, users and addresses that are missing, or there where they should not be.
    FalseClaim(
        "eaddrinuse_time_wait",
        "bind 0.0.0.0:8000",
        "set SO_REUSEADDR; bind 0.0.0.0:8000",
        "server: EADDRINUSE",
    ),
    FalseClaim(
        "fin_wait_2", "bind :8000", "set SO_REUSEADDR; bind :8000", "server: EADDRINUSE"
    ),
    FalseClaim(
        "fin_wait_1_zero_window",
        "bind :8000",
        "set SO_REUSEADDR; bind :8000",
        "server: EADDRINUSE",
    ),
    FalseClaim(
        "so_reuseaddr",
        "socket; set SO_REUSEADDR; bind",
        "socket; bind",
        "REUSEADDR: bind ok",
        (("old", "REUSEADDR"), ("new", "REUSEADDR")),
    ),
    FalseClaim(
        "child_keeps_port",
        "{reuseaddr: 1, bind: ok}",
        "{reuseaddr: 0, bind: ok}",
        "successor: bind ok",
        (("bind", "ok"),),
    ),
    FalseClaim(
        "child_keeps_port",
        "{reuseaddr: 0, bind: EADDRINUSE}",
        "{reuseaddr: 1, bind: EADDRINUSE}",
        "successor: bind EADDRINUSE",
        (("bind", "EADDRINUSE"),),
    ),
    FalseClaim(
        "same_address_twice",
        "option: SO_REUSEPORT,",
        "option: SO_REUSEADDR 0,",
        "second: bind ok",
        (("listen", "ok"),),
    ),
    FalseClaim("reuseport_other_user", "uid: 1002", "uid: 1001", "stranger: EADDRINUSE"),
    FalseClaim("reuseport_other_user", "set SO_REUSEPORT; ", "", "stranger: bind ok"),
    FalseClaim(
        "two_addresses", "bind server.2:8000", "bind server:8000", "server: 2 x LISTEN"
    ),
    FalseClaim(
        "two_addresses", "bind 0.0.0.0:8000", "bind 0.0.0.0:8001", "wildcard: EADDRINUSE"
    ),
    FalseClaim(
        "two_addresses", "connect server.2:8000", "connect server:8000", "second: accept ok"
    ),
    # Programs that behave otherwise.
    FalseClaim("eaddrinuse_time_wait", "recv until eof  ", "wait", "server: TIME-WAIT"),
    FalseClaim(
        "fin_wait_2",
        "wait                     #",
        "recv until eof; close #",
        "server: FIN-WAIT-2",
    ),
    FalseClaim(
        "fin_wait_2_full_queue",
        "4096 1048576 6291456",
        "4096 131072 131072",
        "client: ESTAB recv-q 290960",
    ),
    FalseClaim(
        "fin_wait_1_zero_window",
        "wait                      #",
        "recv until eof #",
        "server: ESTAB timer persist",
    ),
    FalseClaim(
        "unread_data",
        "await                     # never reads",
        "recv; await",
        "server: ESTAB recv-q 11",
        (("end", "close"),),
    ),
    FalseClaim(
        "child_keeps_port",
        "fork       ",
        "",
        "server: ESTAB and 0 x LISTEN",
        (("bind", "ok"),),
    ),
    FalseClaim(
        "child_keeps_port",
        'send "I am the child"',
        "",
        "client: ESTAB recv-q 14",
        (("bind", "EADDRINUSE"),),
    ),
    FalseClaim(
        "time_wait_on_the_client",
        'send "I am client"\n      close',
        'send "I am client"\n      wait',
        "client: TIME-WAIT",
    ),
    *OF_THE_CATALOGUE,
]  # fmt: skip


@pytest.mark.netns
@pytest.mark.parametrize("claim", FALSE_CLAIMS, ids=str)
def test_false_claim_fails(claim: FalseClaim, tmp_path: Path) -> None:
    result = run(claim.case, "netns", tmp_path)
    if result.result == "skip":
        pytest.skip(result.reason or "")
    assert result.result == "fail", report(result)
    failed = [v for v in result.verdicts if v.result == "fail"]
    assert claim.blamed in [v.what for v in failed], report(result)
    assert {v.source for v in failed} == {failed[-1].source}, report(result)


def test_false_claims_of_every_lesson() -> None:
    assert {claim.lesson for claim in FALSE_CLAIMS} == {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_explains_itself(file: Path) -> None:
    case = load(file)[0]
    assert case.about and case.refs


def test_table_of_lessons() -> None:
    docs = Path(__file__).parents[2] / "docs" / "lessons.md"
    rows = re.findall(r"^\| \[`(\w+)`\]\(\.\./scenarios/(\w+)\.yaml\) \|", docs.read_text(), re.M)
    assert sorted(rows) == [(file.stem, file.stem) for file in FILES]
