"""By whose clock, since when, and of which variant a claim is judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from labctl.judge.accounts import Account
from labctl.judge.check import NotKnown, NotPassed, Verdict, check, left_undone, overall
from labctl.language.document import Document
from labctl.language.facts import AWAITING
from labctl.language.scenario import Scenario, load_document
from labctl.probes.segments import Captures
from labctl.record.events import (
    ClockEvent,
    CountersEvent,
    Event,
    LabEvent,
    ProcessEvent,
    SocketsEvent,
    StepEvent,
    TallyEvent,
)
from labctl.record.log import Log
from tests.fake import HEADER, scenario
from tests.played import LISTEN, lesson
from tests.reported import Seen, segment

COUNTER = "TcpActiveOpens"
LAB = LabEvent(0.0, "2026-01-01T00:00:00Z", "fake", {"probes": ["ss"]},
               {"server": "198.18.0.2", "client": "198.18.0.3"})  # fmt: skip


def step(t: float, index: int, phase: Any = "end", outcome: Any = "done", **more: Any) -> StepEvent:
    return StepEvent(t, index, phase, f"step {index}", outcome=outcome, **more)


def seen(t: float, *lines: str, host: str = "server", grown: int | None = None) -> SocketsEvent:
    """A look that came at once; and up to what the counter had grown by then."""
    counters = {} if grown is None else {COUNTER: grown}
    return SocketsEvent(t, host, "change", "\n".join([HEADER, *lines]), counters, since=t)


# --- By whose clock -------------------------------------------------------------------------------

WAIT = scenario(lesson(
    "- note: now\n  as: then\n"
    f"- wait: {{counters: {{server: {{{COUNTER}: 2}}}}}}\n  since: then\n  within: 1s..2s\n"
))  # fmt: skip


def waited(t: float, of: str = "client") -> list[Event]:
    """The counter of the server came to be 2 at that moment; `then` was at 1.0, by a clock."""
    return [
        CountersEvent(0.0, "server", {COUNTER: 0}), step(0.9, 0, "begin"),
        step(1.0, 0, label="then", host=of), step(1.1, 1, "begin"),
        seen(t, grown=2), step(t, 1, outcome="held"),
    ]  # fmt: skip


def clock(t: float, host: str, bound: float) -> ClockEvent:
    return ClockEvent(t, host, f"on {host}", 0.0, bound)


@pytest.mark.parametrize(
    ("t", "bounds", "result"),
    [
        (2.25, {}, "pass"),
        (2.25, {"server": 0.125, "client": 0.0625}, "pass"),
        (2.25, {"server": 0.125, "client": 0.1875}, "unknown"),  # it may have been too soon
        (2.25, {"server": 0.5}, "unknown"),
        (2.25, {"client": 0.5}, "unknown"),  # the label is by this one
        (2.25, {"other": 0.5}, "pass"),
        (2.875, {"server": 0.125, "client": 0.1875}, "unknown"),  # or too late
    ],
)
@pytest.mark.parametrize("told", ["late", "given"])
def test_clocks_that_are_told_of_at_the_end_concern_all(
    t: float, bounds: dict[str, float], result: str, told: str
) -> None:
    clocks = [clock(9.0, host, bound) for host, bound in bounds.items()]
    events = waited(t)
    if told == "late":
        (verdict,) = check(WAIT, [*events, *clocks])
    else:
        (verdict,) = check(WAIT, events, past=Log([*events, *clocks]))
    assert verdict.result == result


def test_of_one_host_s_moments_its_clock_is_right() -> None:
    bound = [clock(9.0, "server", 0.5)]
    (verdict,) = check(WAIT, [*waited(2.25, "server"), *bound])
    assert (verdict.result, verdict.actual) == ("pass", "2 after 1.250 s")


def test_a_process_has_the_clock_of_its_host() -> None:
    case = scenario(lesson(
        "- note: now\n  as: then\n- wait: {process: {client: running}}\n  since: then\n"
        "  within: 1s..2s\n"
    ))  # fmt: skip
    starts = ProcessEvent(2.25, "client", "client", "start", pid=2)
    events = [step(0.9, 0, "begin"), step(1.0, 0, label="then", host="server"),
              step(1.1, 1, "begin"), starts, step(2.25, 1, outcome="held")]  # fmt: skip
    for host, result in (("client", "unknown"), ("server", "unknown"), ("other", "pass")):
        (verdict,) = check(case, [*events, clock(9.0, host, 0.5)])
        assert verdict.result == result


def test_what_names_no_host_is_of_any() -> None:
    """So the clock of each of them may be off."""
    case = scenario(lesson(
        "- note: now\n  as: then\n- wait: {segments: {flags: SYN}}\n  since: then\n"
        "  within: 1s..2s\n"
    ))  # fmt: skip
    events = [LAB, step(0.9, 0, "begin"), step(1.0, 0, label="then", host="client"),
              step(1.1, 1, "begin"), step(2.5, 1, outcome="held")]  # fmt: skip
    for bounds, result in (
        ({}, "pass"),
        ({"server": 0.5}, "unknown"),
        ({"client": 0.5}, "unknown"),
    ):
        clocks = [clock(9.0, host, bound) for host, bound in bounds.items()]
        captures = Seen([segment(2.25, "client SYN 0 0")])
        (verdict,) = check(case, events, captures, Log([*events, *clocks]))
        assert verdict.result == result


# --- Since when -----------------------------------------------------------------------------------


def test_the_moment_of_a_wait_is_one_of_what_it_waited_for() -> None:
    """Its label is by the clocks of those that it names."""
    case = scenario(lesson(
        f"- wait: {{counters: {{client: {{{COUNTER}: 1}}}}}}\n  as: then\n"
        f"- wait: {{counters: {{server: {{{COUNTER}: 2}}}}}}\n  since: then\n  within: 1s..2s\n"
    ))  # fmt: skip
    events = [
        CountersEvent(0.0, "client", {COUNTER: 0}), CountersEvent(0.0, "server", {COUNTER: 0}),
        step(0.5, 0, "begin"), seen(1.0, host="client", grown=1),
        step(1.0, 0, outcome="held", label="then", moment=1.0), step(1.1, 1, "begin"),
        seen(2.25, grown=2), step(2.25, 1, outcome="held"),
    ]  # fmt: skip
    for host, result in (("client", "unknown"), ("server", "unknown"), ("other", "pass")):
        *_, verdict = check(case, [*events, clock(9.0, host, 0.5)])
        assert verdict.result == result


def test_a_wait_whose_beginning_is_not_recorded_counts_from_the_beginning() -> None:
    case = scenario(lesson(f"- wait: {{counters: {{server: {{{COUNTER}: 2}}}}}}\n  within: 3s\n"))
    counted = [CountersEvent(0.0, "server", {COUNTER: 0}), seen(2.0, grown=2)]
    (verdict,) = check(case, [*counted, step(2.5, 0, outcome="held")])
    assert verdict.actual == "2 after 2.000 s"


def test_moments_are_measured_to_the_microsecond() -> None:
    case = scenario(lesson(f"- wait: {{counters: {{server: {{{COUNTER}: 2}}}}}}\n  within: 1s\n"))
    events = [CountersEvent(0.0, "server", {COUNTER: 0}), step(0.0, 0, "begin"),
              seen(0.5, grown=1), step(1.23456789, 0, outcome="timeout")]  # fmt: skip
    (verdict,) = check(case, events)
    assert verdict.measured.until_seconds == 1.234568


@pytest.mark.parametrize(
    ("host", "actual"),
    [("server", "2, only seen when the wait was over"), ("client", "0 until 1.100 s")],
)
def test_what_holds_as_time_is_over_is_not_known_to_have_come_in_time(
    host: str, actual: str
) -> None:
    case = scenario(lesson(f"- wait: {{counters: {{{host}: {{{COUNTER}: 2}}}}}}\n  within: 1s\n"))
    events = [*(CountersEvent(0.0, h, {COUNTER: 0}) for h in ("server", "client")),
              step(1.0, 0, "begin"), seen(2.05, grown=2), seen(2.05, host="client"),
              step(2.1, 0, outcome="timeout")]  # fmt: skip
    (verdict,) = check(case, events)
    assert (verdict.result, verdict.actual) == ("unknown" if host == "server" else "fail", actual)


# --- What was not done ----------------------------------------------------------------------------


def test_a_call_that_failed_was_to_await_the_next_one() -> None:
    case = scenario(lesson("- call: {server: 'send \"x\"'}\n- note: x\n"))
    for index, awaited in ((0, AWAITING), (1, None)):
        (verdict,) = check(case, [step(1.0, index, outcome="failed", detail="x")])
        assert verdict.wanted.process == awaited


def test_the_step_that_was_not_done_is_the_last_one_that_began() -> None:
    case = scenario(lesson("- expect: {sockets: {server: LISTEN}}\n- start: server\n"))
    events = [step(0.1, 0, "begin"), seen(0.2), step(0.3, 0), step(0.4, 1, "begin"), seen(0.5)]
    failed, undone = left_undone(case, events, Captures(), "the engine is gone")
    assert (failed.what, undone.what) == ("server: LISTEN", "start server")


@pytest.mark.parametrize(
    ("outcome", "results"), [("done", ["pass"]), ("skipped", ["skip"]), ("failed", ["fail"])]
)
def test_what_a_step_claims_about_the_whole_run(outcome: Any, results: list[str]) -> None:
    """It is a failure already if the step itself failed."""
    case = scenario(lesson("- drop: {to: server}\n"))
    events = [LAB, step(0.1, 0, "begin"), step(0.2, 0, outcome=outcome, detail="so"),
              TallyEvent(0.3, "server", 0, 2)]  # fmt: skip
    found = check(case, events)
    assert [v.result for v in found] == results
    assert [v.actual for v in found] == ["2 segments lost" if outcome == "done" else "so"]


# --- Variants -------------------------------------------------------------------------------------

VARIANTS = """\
title: x
params: {how: a}
variants: [{how: a}, {how: b}]
hosts: {server: {}, client: {}}
steps:
- note: one
  as: then
  when: {variant: {how: a}}
- expect: {sockets: {server: LISTEN}}
  when: {variant: {how: b}}
- expect: {segments: {flags: FIN, since: then, count: 0}}
- expect: {sockets: {server: none}}
expect:
- {segments: {flags: RST, since: then, count: 0}, sockets: {server: none}}
"""


def variants() -> dict[str, Scenario]:
    cases = load_document(Document("v", VARIANTS), VARIANTS, "v", {})
    return {str(case.variant["how"]): case for case in cases}


@pytest.mark.parametrize(
    ("how", "claims"),
    [
        ("a", ["0 x FIN since then", "server: no connection", "server: no connection",
               "0 x RST since then"]),
        ("b", ["server: LISTEN", "server: no connection", "server: no connection"]),
    ],
)  # fmt: skip
def test_what_is_of_another_variant_is_claimed_by_none(how: str, claims: list[str]) -> None:
    case = variants()[how]
    ends = [step(1.0 + n, n, outcome="done", label="then" if n == 0 and how == "a" else None)
            for n in range(4)]  # fmt: skip
    found = check(case, [LAB, seen(0.5, LISTEN), *ends])
    assert [v.what.removeprefix("segments: ") for v in found] == claims


# --- Verdicts -------------------------------------------------------------------------------------


def test_a_verdict_tells_of_the_processes_behind_it() -> None:
    account = Account("server", "server", "ended", exit=1)
    plain = Verdict("fail", "server: LISTEN", "LISTEN", "ESTAB", 1.0, "a.yaml:3")
    told = replace(plain, processes=(account,)).as_json()
    assert [each["process"] for each in told["processes"]] == ["server"]


def test_claims_that_did_not_pass_are_told_with_the_failure() -> None:
    verdict = Verdict("fail", "server: LISTEN", "LISTEN", "ESTAB", 1.0, "a.yaml:3")
    failure, question = NotPassed("it failed", [verdict]), NotKnown("nobody knows")
    assert (str(failure), failure.verdicts, failure.exit_status) == ("it failed", (verdict,), 1)
    assert (str(question), question.verdicts, question.exit_status) == ("nobody knows", (), 3)


@pytest.mark.parametrize(
    ("results", "worst"),
    [
        ("pass skip", "pass"), ("skip", "skip"), ("pass unknown", "unknown"),
        ("unknown fail pass", "fail"), ("fail error", "error"), ("", "pass"),
    ],
)  # fmt: skip
def test_the_worst_of_some_results(results: str, worst: str) -> None:
    assert overall(results.split()) == worst
