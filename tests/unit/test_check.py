"""Judging what a record has, moment by moment."""

from __future__ import annotations

from typing import Any

import pytest

from labctl.judge.check import Verdict, check, left_undone, unreached
from labctl.language.facts import Range
from labctl.probes.segments import Captures
from labctl.record.events import CountersEvent, Event, SocketsEvent, StepEvent
from labctl.record.history import History
from tests.fake import HEADER, scenario
from tests.played import LISTEN, lesson

COUNTER = "TcpActiveOpens"
WAIT = f"- note: now\n  as: then\n- wait: {{counters: {{server: {{{COUNTER}: 2}}}}}}\n"


def step(t: float, index: int, phase: Any, **more: Any) -> StepEvent:
    return StepEvent(t, index, phase, f"step {index}", **more)


def counted(since: float, t: float) -> list[Event]:
    """The counter came to be 2 between these moments; `then` was at 1.0."""
    return [
        CountersEvent(0.0, "server", {COUNTER: 0}),
        step(0.9, 0, "begin", label="then"),
        step(1.0, 0, "end", label="then", outcome="done"),
        step(1.1, 1, "begin"),
        SocketsEvent(t, "server", "change", HEADER, {COUNTER: 2}, since=since),
        step(t, 1, "end", outcome="held"),
    ]


@pytest.mark.parametrize(
    ("since", "t", "result", "after"),
    [
        (2.2, 2.3, "pass", "1.200..1.300 s"),
        (2.26, 2.3, "pass", "1.300 s"),  # to within TOLD it is one moment
        (2.0, 3.0, "pass", "1.000..2.000 s"),
        (1.9, 2.1, "unknown", "0.900..1.100 s"),
        (2.9, 3.1, "unknown", "1.900..2.100 s"),
        (1.5, 1.6, "fail", "0.500..0.600 s"),
        (3.1, 3.2, "fail", "2.100..2.200 s"),
        (0.8, 2.5, "unknown", "0.000..1.500 s"),  # not before it was waited for
    ],
)
def test_a_wait_is_judged_by_the_bounds_of_its_moment(
    since: float, t: float, result: str, after: str
) -> None:
    case = scenario(lesson(f"{WAIT}  since: then\n  within: 1s..2s\n"))
    (verdict,) = check(case, counted(since, t))
    assert (verdict.result, verdict.actual) == (result, f"2 after {after}")
    assert verdict.measured.after_seconds == Range(
        round(max(0.0, since - 1.0), 6), round(t - 1.0, 6)
    )
    assert verdict.wanted.after_seconds == Range(1.0, 2.0)
    assert (verdict.at, verdict.wanted.since) == (t, "then")


def test_a_wait_counts_from_its_own_beginning() -> None:
    case = scenario(lesson(f"{WAIT}  within: 1s\n"))
    (verdict,) = check(case, counted(2.0, 2.0))
    assert (verdict.result, verdict.actual) == ("pass", "2 after 0.900 s")
    assert verdict.expected == f"{COUNTER} grew by 2 within 1 s"
    assert verdict.what == f"server: {COUNTER} grew by 2"


def test_a_wait_that_ran_out_of_time_says_until_when() -> None:
    case = scenario(lesson(f"{WAIT}  since: then\n  within: 1s\n"))
    events = [*counted(2.0, 2.0)[:4], step(2.25, 1, "end", outcome="timeout")]
    look = SocketsEvent(2.0, "server", "change", HEADER, {COUNTER: 1})
    (verdict,) = check(case, [*events[:4], look, events[4]])
    assert (verdict.result, verdict.actual) == ("fail", "1 until 1.250 s")
    assert verdict.measured.until_seconds == 1.25


@pytest.mark.parametrize(("outcome", "result"), [("done", "pass"), ("skipped", "skip")])
def test_a_claim_of_a_step_that_was_left_out_is_left_out(outcome: Any, result: str) -> None:
    case = scenario(lesson("- expect: {sockets: {server: LISTEN}}\n"))
    events = [
        step(0.1, 0, "begin"),
        SocketsEvent(0.2, "server", "look", f"{HEADER}\n{LISTEN}"),
        step(0.3, 0, "end", outcome=outcome, detail="it is left out"),
    ]
    (verdict,) = check(case, events)
    assert (verdict.result, verdict.at) == (result, 0.3)
    assert verdict.actual == ("LISTEN accept queue 0/0" if result == "pass" else "it is left out")


def test_a_step_that_failed_is_a_verdict() -> None:
    case = scenario(lesson("- expect: {sockets: {server: LISTEN}}\n"))
    for more, told in (
        ({"detail": "no such thing"}, ("to be done", "no such thing")),
        ({"detail": "x", "expected": "a", "actual": "b"}, ("a", "b")),
    ):
        failed: dict[str, Any] = dict(more)
        (verdict,) = check(case, [step(0.1, 0, "begin"),
                                  step(0.3, 0, "end", outcome="failed", **failed)])  # fmt: skip
        assert (verdict.result, verdict.expected, verdict.actual) == ("fail", *told)
        assert (verdict.what, verdict.subject) == ("step 0", "step 0")


# --- What a run was kept from ---------------------------------------------------------------------

CLAIMS = "- expect: {sockets: {server: LISTEN}}\n- start: server\n"


def cut_short(line: str) -> list[Verdict]:
    """What is known of a run that ended in its second step."""
    events = [
        step(0.1, 0, "begin"),
        SocketsEvent(0.2, "server", "look", f"{HEADER}\n{line}"),
        step(0.3, 0, "end", outcome="done"),
        step(0.4, 1, "begin"),
    ]
    return left_undone(scenario(lesson(CLAIMS)), events, Captures(), "the engine is gone")


def test_a_run_that_was_kept_from_going_on_keeps_its_failures() -> None:
    failed, undone = cut_short("")
    assert (failed.result, failed.what) == ("fail", "server: LISTEN")
    assert (undone.result, undone.what, undone.expected, undone.actual, undone.at) == (
        "unknown", "start server", "to be done", "the engine is gone", 0.4,
    )  # fmt: skip
    assert cut_short(LISTEN) == []


# --- Labels ---------------------------------------------------------------------------------------

LABELLED = "- note: a\n  as: then\n- note: b\n"


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([step(1.0, 0, "end", label="then", outcome="done")], None),
        ([step(1.0, 0, "end", outcome="skipped", detail="it is not so")],
         ("skip", "'then' was left out: it is not so")),
        ([step(1.0, 1, "end", outcome="skipped", detail="it is not so")],
         ("unknown", "the record has no moment for 'then'")),
        ([step(1.0, 1, "end", outcome="done")], ("unknown", "the record has no moment for 'then'")),
        ([], ("unknown", "'then' was not reached: the steps ended before")),
        ([step(1.0, 0, "end", outcome="failed", detail="x")],
         ("unknown", "'then' was not reached: the steps ended before, at lesson.yaml:7")),
        ([step(1.0, 0, "begin", label="then")],
         ("unknown", "'then' was not reached: the steps ended before")),
    ],
)  # fmt: skip
def test_what_becomes_of_a_claim_whose_label_was_not_set(
    events: list[Event], told: tuple[str, str] | None
) -> None:
    assert unreached("then", scenario(lesson(LABELLED)), History(events)) == told


def test_what_of_a_claim_counts_from_a_label() -> None:
    sent, called = (
        "segments: {flags: FIN, since: then}",
        "{client: {call: {send: ok}, since: then}}",
    )
    for claimed, about in ((sent, ["segments"]), (f"process: {called}", ["client"])):
        predicate = scenario(lesson(f"{LABELLED}- expect: {{{claimed}}}\n")).steps[2].claim
        assert predicate
        assert [f.claimed.subject for f in predicate.counted("then", History())] == about
        assert predicate.counted("b", History()) == []


# --- A verdict ------------------------------------------------------------------------------------


def test_a_verdict_in_words_and_as_data() -> None:
    found = Verdict("fail", "server: LISTEN", "LISTEN", "ESTAB", 1.23456, "a.yaml:3",
                    subject="server", about=("server",))  # fmt: skip
    assert str(found) == "a.yaml:3: server: expected LISTEN, saw ESTAB"
    told = found.as_json()
    assert (told["at"], told["about"], "processes" in told) == (1.235, ["server"], False)
    unknown = Verdict("unknown", "server: LISTEN", "LISTEN", "no look", 1.0, "a.yaml:3")
    assert str(unknown) == "a.yaml:3: server: LISTEN: expected LISTEN, unknown: no look"
    assert found.claimed.what == "server: LISTEN"
