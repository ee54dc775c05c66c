"""What verdicts and steps say as data, beside their words."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labctl.ground.reading import typed
from labctl.judge import recorded, rejudge
from labctl.judge.check import Verdict
from labctl.judge.explain import counted
from labctl.language.facts import AWAITING, Facts, Range, seconds_range
from labctl.language.predicates import Finding
from labctl.language.values import OPERATORS, Comparison
from labctl.record.events import (
    CallEvent,
    CountersEvent,
    Event,
    OutputEvent,
    ProcessEvent,
    SocketsEvent,
    StepEvent,
)
from labctl.reports import REPORTS, render
from labctl.reports.rows import claim_words
from tests.claimed import claim
from tests.fake import HEADER, FakeBackend, tcp
from tests.played import ESTAB, LISTEN, Play
from tests.reported import CLIENT, HANDSHAKE, RUN, SERVER, history


def judge(text: str, *events: Event) -> Finding:
    (finding,) = claim(text).judge(history(*events, segments=HANDSHAKE))
    return finding


def facts(found: Finding) -> tuple[dict[str, Any], dict[str, Any]]:
    return found.claimed.wanted.as_json(), found.measured.as_json()


def look(*lines: str) -> SocketsEvent:
    return SocketsEvent(1.0, "server", "look", "\n".join([HEADER, *lines]))


START = ProcessEvent(0.1, "server", "server", "start", pid=2)
WROTE = OutputEvent(1.0, "server", "server", "abb")
MAPPED = tcp("ESTAB", "[::ffff:198.18.0.2]:8000", CLIENT)
BIND = CallEvent(0.2, "server", "server", 2, "done", "bind :8000", "bind", "EADDRINUSE")
ENDS = [SERVER, CLIENT]
NEW, THEN = CountersEvent(0.0, "server", {"X": 3}), CountersEvent(1.0, "server", {"X": 5})


@pytest.mark.parametrize(
    ("text", "events", "wanted", "measured"),
    [
        ("{sockets: {server: ESTAB}}", [look(LISTEN, ESTAB)],
         {"count": {"low": 1}, "states": ["ESTAB"]},
         {"count": {"low": 1, "high": 1}, "sockets": {"LISTEN": 1, "ESTAB": 1},
          "connections": [ENDS]}),
        ("{sockets: {server: none}}", [look(LISTEN, MAPPED)],
         {"count": {"low": 0, "high": 0}},
         {"count": {"low": 1, "high": 1}, "sockets": {"LISTEN": 1, "ESTAB": 1},
          "connections": [ENDS]}),
        ("{sockets: {server: [LISTEN, ESTAB]}}", [look(LISTEN)],
         {"states": ["LISTEN", "ESTAB"]}, {"sockets": {"LISTEN": 1}}),
        ("{sockets: {server: LISTEN}}", [], {"count": {"low": 1}, "states": ["LISTEN"]}, {}),
        ("{process: {server: EADDRINUSE}}", [START, BIND],
         {"errno": "EADDRINUSE"}, {"process": "running", "errno": "EADDRINUSE"}),
        ("{process: {server: {call: {bind: ok, listen: ok}}}}", [START, BIND],
         {"calls": {"bind": "ok", "listen": "ok"}},
         {"process": "running", "errno": "EADDRINUSE",
          "calls": {"bind": "EADDRINUSE", "listen": "not done"}}),
        ("{process: {server: ok}}", [START, ProcessEvent(2.0, "server", "server", "exit", exit=3)],
         {"process": "exited", "exit": 0}, {"process": "exited", "exit": 3}),
        ("{process: {server: {signal: KILL}}}",
         [START, ProcessEvent(2.0, "server", "server", "gone", signal="KILL")],
         {"signal": "KILL"}, {"process": "killed", "signal": "KILL"}),
        ("{process: {server: {output: 'b+'}}}", [START, WROTE],
         {"output": "b+"}, {"process": "running", "output": "bb"}),
        ("{process: {server: {received: '>=5'}}}",
         [START, CallEvent(1.0, "server", "server", 2, "done", "recv", "recv", result=7)],
         {"received_bytes": {"low": 5}}, {"process": "running",
                                          "received_bytes": {"low": 7, "high": 7}}),
        ("{process: {server: running}}", [], {"process": "running"}, {"process": "never started"}),
        ("{counters: {server: {X: '<3'}}}", [NEW, THEN],
         {"count": {"low": 0, "high": 2}}, {"count": {"low": 2, "high": 2}}),
        ("{counters: {server: {Y: '!=3'}}}", [NEW], {}, {}),
        ("{segments: {from: client, flags: SYN, at_most: 4}}", [],
         {"count": {"low": 0, "high": 4}}, {"count": {"low": 1, "high": 1},
                                            "connections": [ENDS[::-1]]}),
        ("{segments: {flags: ACK}}", [],
         {"count": {"low": 1}}, {"count": {"low": 2, "high": 2},
                                 "connections": [ENDS, ENDS[::-1]]}),
    ],
)  # fmt: skip
def test_claims_as_data(
    text: str, events: list[Event], wanted: dict[str, Any], measured: dict[str, Any]
) -> None:
    found = judge(text, *events)
    assert json.loads(json.dumps(facts(found))) == [wanted, measured]
    assert found.what == f"{found.claimed.subject}: {found.expected}"


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("number", [1, 5])
def test_a_comparison_is_a_range(operator: str, number: int) -> None:
    found = Comparison(operator, number)
    bounds = found.bounds
    if bounds is None:
        assert operator == "!="
        return
    high = 99 if bounds.high is None else bounds.high
    assert [n for n in range(9) if bounds.low <= n <= high] == [
        n for n in range(9) if found.holds(n)
    ]


def test_seconds_without_an_end() -> None:
    assert seconds_range(1.23456789, float("inf")) == Range(1.234568)


# --- In a run -------------------------------------------------------------------------------------

LISTENS = FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN)})


def test_a_wait_says_after_how_long(watch: Play) -> None:
    steps = "- start: server\n  as: begun\n"
    wait = "- wait: {sockets: {server: LISTEN}}\n  within: 1s..3s\n  since: begun\n"
    (verdict,) = watch(steps + wait, LISTENS).verdicts
    assert (verdict.wanted.after_seconds, verdict.wanted.since) == (Range(1.0, 3.0), "begun")
    after = verdict.measured.after_seconds
    assert after is not None
    assert verdict.actual.endswith(f" after {after.high:.3f} s")
    (verdict,) = watch("- wait: {sockets: {server: LISTEN}}\n  within: 10ms\n").verdicts
    assert verdict.measured.after_seconds is None
    assert verdict.measured.until_seconds is not None
    assert verdict.actual.endswith(f" until {verdict.measured.until_seconds:.3f} s")


def test_a_step_that_failed_says_what_it_wanted(watch: Play) -> None:
    found = watch("- start: client\n- call: {client: close}\n")
    (verdict,) = found.verdicts
    assert (verdict.subject, verdict.about) == ("call client: close", ("client",))
    assert verdict.wanted == Facts(process=AWAITING)
    assert claim_words(verdict) == "call client: close: client running, in await"
    *_, step = (event for event in found.history.events if isinstance(event, StepEvent))
    assert (step.verb, step.expected, step.actual) == (
        "call", "client running, in await", "it runs, but not in await"
    )  # fmt: skip
    assert step.why == "client running, in await; saw it runs, but not in await"
    again = recorded.load(found.folder)
    assert again.verdicts == (replace(verdict, at=round(verdict.at, 3)),)
    assert [e.verb for e in again.history.events if isinstance(e, StepEvent)] == [
        "start", "start", "call", "call"
    ]  # fmt: skip


def test_counters_that_tell_of_an_end() -> None:
    counters = {"TcpRetransSegs": 1, "TcpExtTWRecycled": 4, "TcpOther": 0}
    new = CountersEvent(0.0, "server", counters)
    then = replace(look(LISTEN), counters={"TcpRetransSegs": 3, "TcpOther": 9})
    assert counted(history(new, then)) == {"server": {"TcpRetransSegs": 2}}
    assert counted(history(new)) == {}


# --- What older versions wrote --------------------------------------------------------------------

NEWER = {
    "step": ("verb", "expected", "actual"),
    "verdict": ("subject", "about", "wanted", "measured"),
}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The recorded run as a version wrote it that had words alone."""
    folder = tmp_path / "older"
    shutil.copytree(RUN, folder)
    lines = (RUN / "history.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    document = json.loads((RUN / "result.json").read_text("utf-8"))
    (run,) = document["runs"]
    del run["counted"]
    for entry in run["verdicts"]:
        for key in NEWER["verdict"]:
            del entry[key]
    for event in events:
        for key in NEWER["step"]:
            event.pop(key, None)
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "history.jsonl").write_text(text, "utf-8")
    (folder / "result.json").write_text(json.dumps(document), "utf-8")
    return folder


def test_it_is_still_judged(older: Path) -> None:
    new, old = rejudge.judge(RUN), rejudge.judge(older)
    assert [replace(verdict, source="") for verdict in old] == [
        replace(verdict, source="") for verdict in new
    ]
    assert old[0].measured.after_seconds


@pytest.mark.parametrize("name", REPORTS)
def test_it_is_still_shown(name: str, older: Path) -> None:
    run = recorded.load(older)
    assert run.counted is None
    text = render(name, [run])
    assert "FIN-WAIT-2" in text


def test_of_its_verdicts_there_are_words(older: Path) -> None:
    verdict = recorded.load(older).verdicts[0]
    assert claim_words(verdict) == "server: LISTEN"
    words = "server: LISTEN: expected LISTEN within 5 s, saw LISTEN accept queue 0/20 after 0.002 s"
    assert str(verdict) == f"scenarios/fin_wait_2.yaml:31: {words}"


def test_a_step_that_failed_then_has_its_words() -> None:
    detail = "server not running; saw it runs already"
    event = StepEvent(1.0, 0, "end", "start server", outcome="failed", detail=detail)
    assert event.why == detail


def test_verdicts_are_what_they_were_when_they_are_read() -> None:
    for verdict in rejudge.judge(RUN):
        read = typed(Verdict, json.loads(json.dumps(verdict.as_json())))
        assert replace(read, at=verdict.at) == verdict
