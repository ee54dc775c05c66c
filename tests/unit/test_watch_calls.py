"""`labctl watch --calls`: what attaches to processes says what a test has it say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.backends.capabilities import Lack
from labctl.ground.errors import UsageError
from labctl.judge.recorded import load
from labctl.judge.rejudge import judge
from labctl.judge.result import RunResult
from labctl.record.events import CallEvent, ProcessEvent, TroubleEvent, UnseenEvent
from labctl.reports import render
from labctl.run.watch import Limits, Wanted, beside
from tests.fake import tcp
from tests.unit.test_watch import both, watched
from tests.watched import LISTENS, SERVER, WEB, FakeWatched

HAS = {"pid": 42, "call": "has tcp listening SO_REUSEADDR=1", "fd": 3, "local": "0.0.0.0:8000"}
TAKEN = {"call": "bind :8000", "errno": "EADDRINUSE", "error": "Address already in use", "fd": 5}


def called(
    tmp_path: Path, fake: FakeWatched, limits: Limits | None = None
) -> tuple[list[RunResult], list[str]]:
    results, said = watched(tmp_path, fake, limits, calls=True)
    assert {result.result for result in results} == {"pass"}
    return results, said


def of_a_server(*actions: Callable[[FakeWatched], object]) -> FakeWatched:
    fake = both(lambda f: f.look("web", LISTENS), *actions)
    fake.mains, fake.has = {"web": [42], "db": [43]}, [HAS]
    return fake


def test_calls_are_a_part_of_the_record(tmp_path: Path) -> None:
    fake = of_a_server(lambda f: f.call("web", **TAKEN), lambda _: None)
    (result,), said = called(tmp_path, fake)
    assert [m["pids"] for m in fake.asked if m["do"] == "attach"] == [[42], [43]]
    assert any(line.startswith("web: calls are recorded from") for line in said)
    history = load(result.folder).history
    assert history.processes["web"].running
    assert [c.id for c in result.causes] == ["bind-listener"]
    assert result.causes[0].certain
    text = render("markdown", [load(result.folder)])
    assert "watched from now on" in text
    assert "has tcp listening" in text
    assert "= 0.0.0.0:8000" in text


@pytest.mark.parametrize(
    ("claim", "result"),
    [
        ("{errno: EADDRINUSE}", "pass"),
        ("{errno: ECONNREFUSED}", "unknown"),
        ("{call: {bind: EADDRINUSE}}", "pass"),
        ("{call: {bind: ok}}", "fail"),
        ("{call: {listen: ok}}", "unknown"),
        ("{received: 0}", "unknown"),
        ("running", "pass"),
    ],
)
def test_what_was_called_before_nobody_knows(tmp_path: Path, claim: str, result: str) -> None:
    (found,), _ = called(tmp_path, of_a_server(lambda f: f.call("web", **TAKEN)))
    claims = tmp_path / "claims.yaml"
    claims.write_text(
        "title: t\nhosts: {web: {run: nginx}, db: {}}\nsteps: []\n"
        f"expect:\n  - process: {{web: {claim}}}\n"
    )
    assert [verdict.result for verdict in judge(found.folder, claims)] == [result]


def test_without_the_right_it_says_what_helps(tmp_path: Path) -> None:
    fake = of_a_server()
    fake.caller = Lack("containers can't be attached to", "allow it")
    (result,), said = called(tmp_path, fake)
    text = "calls are not recorded: containers can't be attached to; allow it"
    assert f"web: {text}" in said
    assert result.history.trouble["web", "calls"].text == text
    assert not result.history.processes


def test_what_is_not_seen_is_said(tmp_path: Path) -> None:
    fake = of_a_server(
        lambda f: f.callers["web"].say(kind="unseen", t=0.0, text="too many", but=[]),
        lambda f: f.callers["db"].close(),
    )
    (result,), said = called(tmp_path, fake)
    assert {"web: too many", "db: what told its calls ended"} <= {*said}
    assert {e.host for e in result.history.events if isinstance(e, UnseenEvent)} == {"web", "db"}


def test_what_can_not_be_attached_to(tmp_path: Path) -> None:
    """It says so instead of since when there are calls."""
    fake = of_a_server()
    fake.refuses = "process 42 is not seen: strace traces it"
    (result,), said = called(tmp_path, fake)
    assert f"web: not all calls are recorded: {fake.refuses}" in said
    assert not any("from" in line for line in said if line.startswith("web: calls"))
    assert result.history.without_calls.endswith(fake.refuses)


def test_each_record_says_what_was_there(tmp_path: Path) -> None:
    much = tuple(tcp("TIME-WAIT", SERVER, f"{WEB}:{n}") for n in range(1000, 1100))
    fake = of_a_server(*[lambda f: f.look("web", *much, TcpPassiveOpens=len(f.asked))] * 3)
    results, _ = called(tmp_path, fake, Limits(most_bytes=6000))
    assert len(results) > 1
    for result in results:
        events = load(result.folder).history.events
        has = [e for e in events if isinstance(e, CallEvent) and e.name == "has"]
        assert {e.host for e in has} == {"web", "db"}
    assert [message["do"] for message in fake.asked].count("attach") == 2


def test_what_is_started_again_is_attached_to_again(tmp_path: Path) -> None:
    def restart(fake: FakeWatched) -> None:
        fake.mains["web"] = [99]
        fake.restarted = ["web"]

    again = {**TAKEN, "pid": 99}
    fake = of_a_server(restart, lambda f: f.call("web", **again), lambda _: None)
    (result,), _ = called(tmp_path, fake)
    assert [m["pids"] for m in fake.asked if m["do"] == "attach"] == [[42], [43], [99]]
    phases = [e.phase for e in result.history.events
              if isinstance(e, ProcessEvent) and e.host == "web"]  # fmt: skip
    assert phases == ["start", "gone", "start"]


def test_the_end_of_a_main_process(tmp_path: Path) -> None:
    end = {"phase": "exit", "pid": 42, "exit": None, "signal": "TERM", "left": False}
    fake = of_a_server(lambda f: f.callers["web"].say(kind="process", t=0.0, **end))
    (result,), _ = called(tmp_path, fake)
    assert result.history.processes["web"].signal == "TERM"


def test_those_that_hold_a_port(tmp_path: Path) -> None:
    """Of a whole machine they alone are attached to, each once; no process is the main one."""

    def holders(fake: FakeWatched, *pids: str) -> None:
        held = {"commands": {}, "sockets": {pid: {"3": 7} for pid in pids}, "unread": []}
        fake.say("web", "holders", **held)

    end = {"phase": "exit", "pid": 7, "exit": 0, "signal": None, "left": True}
    fake = both(
        lambda f: holders(f, "7"),
        lambda f: holders(f, "7", "8"),
        lambda f: f.callers["web"].say(kind="process", t=0.0, **end),
    )
    (result,), _ = called(tmp_path, fake)
    asked = [m["pids"] for m in fake.asked if m["do"] == "attach" and m["pids"]]
    assert asked == [[7], [8]]
    assert result.history.processes["web"].running


def test_of_a_whole_machine_no_calls_are_recorded() -> None:
    with pytest.raises(UsageError, match="the calls of which processes"):
        with beside(Wanted(here=True, calls=True)):
            pass


def test_a_watch_without_calls_says_so(tmp_path: Path) -> None:
    (result,), said = watched(tmp_path, both())
    assert [e.probe for e in result.history.events if isinstance(e, TroubleEvent)].count("calls")
    assert not any("calls" in line for line in said)
