"""What is claimed of single calls: which of them, their values, and those that are under way."""

from __future__ import annotations

from typing import Any

import pytest

from labctl.language.predicates.called import STILL
from labctl.language.predicates.held import held_at
from labctl.record.events import CallEvent, Event, ProcessEvent, StepEvent
from labctl.record.history import History
from tests.claimed import LAB, claim, judge
from tests.fake import scenario


def started(watch: Any = None) -> ProcessEvent:
    return ProcessEvent(0.5, "server", "server", "start", pid=2, watch=watch)


def call(t: float, text: str, errno: str | None = None, **more: Any) -> CallEvent:
    name = more.pop("name", text.split(maxsplit=1)[0])
    phase = more.pop("phase", "done")
    return CallEvent(t, "server", "server", 2, phase, text, name, errno=errno, **more)


def enter(t: float, text: str) -> CallEvent:
    return call(t, text, phase="enter")


def marked(t: float, label: str) -> StepEvent:
    return StepEvent(t, 0, "end", "note", verb="note", label=label, outcome="done")


ASKED: list[Event] = [
    started(),
    call(1.0, "get SO_ERROR", value="ECONNREFUSED"),
    call(1.1, "get TCP_INFO.tcpi_backoff", value="3"),
    call(1.2, "get TCP_CONGESTION", value="reno"),
    call(1.3, "get SO_LINGER", value="1 0"),
    call(1.4, "poll in 1s", value="in hup"),
    call(1.5, "get TCP_TX_DELAY || continue", "ENOPROTOOPT"),
    call(1.6, "recv", result=11),
    call(1.7, "recv || continue", "EAGAIN"),
    call(1.8, "connect none", name="disconnect"),
    call(1.9, "recv 5", result=5),
]


@pytest.mark.parametrize(
    ("claimed", "result"),
    [
        ("get SO_ERROR: ECONNREFUSED", "pass"), ("get SO_ERROR: ok", "pass"),
        ("get SO_ERROR: 0", "fail"), ("get SO_ERROR: ETIMEDOUT", "fail"),
        ("get TCP_INFO.tcpi_backoff: 3", "pass"), ("get TCP_INFO.tcpi_backoff: 2", "fail"),
        ('get TCP_INFO.tcpi_backoff: ">=3"', "pass"), ('get TCP_INFO.tcpi_backoff: ">3"', "fail"),
        ("get TCP_INFO.tcpi_rto: 3", "fail"),
        ("get TCP_CONGESTION: reno", "pass"), ("get TCP_CONGESTION: cubic", "fail"),
        ("get SO_LINGER: 1 0", "pass"), ("get SO_LINGER: 1", "fail"),
        ("get TCP_TX_DELAY: ENOPROTOOPT", "pass"), ("get TCP_TX_DELAY: ok", "fail"),
        ('get TCP_TX_DELAY: ">=0"', "fail"),
        ("get: ENOPROTOOPT", "pass"), ("1st get: ECONNREFUSED", "pass"), ("2nd get: 3", "pass"),
        ("3rd get: reno", "pass"), ("3rd get: 3", "fail"), ("6th get: ok", "fail"),
        ("poll: in hup", "pass"), ("poll: in", "fail"), ("poll in: in hup", "pass"),
        ("poll out: in hup", "fail"),
        ("recv: 5", "pass"), ("1st recv: 11", "pass"), ("2nd recv: EAGAIN", "pass"),
        ("2nd recv: ok", "fail"), ("recv 5: ok", "pass"), ("recv 6: ok", "fail"),
        ("connect none: ok", "pass"), ("connect: ok", "fail"),
        ("recv: blocked", "fail"),
    ],
)  # fmt: skip
def test_the_outcome_of_a_call(claimed: str, result: str) -> None:
    assert judge(f"{{process: {{server: {{call: {{{claimed}}}}}}}}}", *ASKED).result == result


def test_what_was_seen_of_a_call() -> None:
    found = judge("{process: {server: {call: {get SO_ERROR: 0, 9th recv: ok}}}}", *ASKED)
    assert found.actual == (
        "get SO_ERROR: ECONNREFUSED (111 on Linux, 61 on macOS and the BSDs), 9th recv: not done"
    )
    assert found.measured.calls == {"get SO_ERROR": "ECONNREFUSED", "9th recv": "not done"}
    assert found.claimed.wanted.calls == {"get SO_ERROR": "0", "9th recv": "ok"}
    assert "1.100 get TCP_INFO.tcpi_backoff: 3" in judge(
        "{process: {server: running}}", *ASKED[:4]
    ).evidence  # fmt: skip


def test_only_calls_since_a_label_count() -> None:
    events = [started(), call(1.0, "recv", "EAGAIN"), marked(2.0, "later"), call(3.0, "recv"),
              call(4.0, "recv", "EPIPE")]  # fmt: skip
    since = "{{process: {{server: {{call: {{{}}}, since: later}}}}}}"
    for claimed, result in (("1st recv: ok", "pass"), ("1st recv: EAGAIN", "fail"),
                            ("recv: EPIPE", "pass"), ("send: ok", "fail")):  # fmt: skip
        (finding,) = labelled(since.format(claimed)).judge(History([LAB, *events]))
        assert finding.result == result, claimed
    (finding,) = labelled(since.format("recv: ok")).judge(History([LAB, *events[:2]]))
    assert (finding.result, finding.actual) == ("unknown", "'later' was not reached")
    (finding,) = labelled(since.format("recv: EAGAIN")).judge(History([LAB, *events[:3]]))
    assert (finding.result, finding.actual) == ("fail", "recv: not done")


def test_a_call_at_the_moment_of_a_label_counts() -> None:
    text = "{process: {server: {call: {1st recv: ok}, since: later}}}"
    events = [started(), marked(2.0, "later"), call(2.0, "recv")]
    assert labelled(text).judge(History([LAB, *events]))[0].result == "pass"


def test_a_call_that_goes_on_is_not_what_was_done() -> None:
    done = [started(), call(1.0, "accept"), enter(2.0, "accept")]
    assert judge("{process: {server: {call: {accept: ok}}}}", *done).measured.calls == {
        "accept": "ok"
    }


def labelled(text: str) -> Any:
    """A claim after a step with the label `later`."""
    found = scenario(f"""\
title: t
hosts:
  server: {{calls: socket}}
  client: {{calls: socket}}
steps:
  - {{note: now, as: later}}
  - wait: {text}
""")
    return found.steps[1].claim


def blocked(events: list[Event], now: float, name: str = "accept") -> str:
    history = History([LAB, *events])
    history.reach(now)
    text = f"{{process: {{server: {{call: {{{name}: blocked}}}}}}}}"
    (finding,) = claim(text).judge(history)
    return finding.result


def test_a_call_that_is_blocked() -> None:
    events: list[Event] = [started(), enter(1.0, "accept")]
    assert blocked(events, 1.0 + STILL) == "pass"
    assert blocked(events, 0.999 + STILL) == "unknown"  # it may return at once
    assert blocked(events, 9.0, "recv") == "fail"
    assert blocked([*events, call(1.5, "accept")], 9.0) == "fail"
    assert blocked([*events, call(1.5, "accept"), enter(2.0, "accept")], 9.0) == "pass"
    ended = ProcessEvent(2.0, "server", "server", "exit", pid=2, exit=0)
    assert blocked([*events, ended], 9.0) == "fail"


def test_the_second_call_that_is_blocked() -> None:
    events: list[Event] = [started(), enter(1.0, "accept")]
    again = [*events, call(1.5, "accept"), enter(2.0, "accept as c")]
    assert blocked(events, 9.0, "1st accept") == "pass"
    assert blocked(events, 9.0, "2nd accept") == "fail"
    assert blocked(again, 9.0, "2nd accept") == "pass"
    assert blocked(again, 9.0, "1st accept") == "fail"
    assert blocked(again, 9.0, "accept as c") == "pass"


def test_a_call_that_blocks_in_a_repeat() -> None:
    events: list[Event] = [started(), call(0.6, "await", phase="enter"),
                           enter(1.0, "repeat 2: recv; close"), enter(1.0, "recv")]  # fmt: skip
    assert blocked(events, 9.0, "recv") == "pass"
    history = History([LAB, *events, call(2.0, "recv")])
    state = history.processes["server"]
    assert not state.awaits
    assert state.entered
    assert state.entered.name == "repeat"
    assert blocked([*events, call(2.0, "recv")], 9.0, "repeat") == "pass"
    history.add(call(3.0, "repeat 2: recv; close", result=2))
    assert state.awaits
    assert not state.under_way  # type: ignore[unreachable]


def test_since_when_a_call_was_blocked() -> None:
    wanted = claim("{process: {server: {call: {accept: blocked}}}}")
    events: list[Event] = [started(), enter(1.0, "accept"), call(1.0 + STILL / 2, "accept"),
                           enter(2.0, "accept"), call(3.0, "accept")]  # fmt: skip
    events += [marked(4.0, "end")]
    held = held_at(wanted, History([LAB, *events]), 0.0)
    assert held
    assert held.latest == 2.0 + STILL
    assert held_at(wanted, History([LAB, *events[:3], marked(4.0, "end")]), 0.0) is None


def test_when_it_was_blocked_before_a_wait_nobody_asks() -> None:
    wanted = claim("{process: {server: {call: {accept: blocked}}}}")
    history = History([LAB, started(), enter(1.0, "accept"), marked(2.0, "one")])
    exactly = held_at(wanted, history, 1.0 + STILL)
    assert exactly and exactly.latest == 1.0 + STILL
    assert held_at(wanted, history, 3.0) is None


def test_what_is_not_seen_of_a_program() -> None:
    found = judge("{process: {server: {call: {get SO_ERROR: 0}}}}", started("io"),
                  call(1.0, "bind :80"))  # fmt: skip
    assert (found.result, found.actual) == (
        "unknown", "get SO_ERROR: get of a program is not seen"
    )  # fmt: skip


def test_a_claim_in_words() -> None:
    found = labelled("{process: {server: {call: {2nd accept: blocked}, since: later}}}")
    assert str(found.process["server"]) == "2nd accept blocked, since later"
    assert found.labels == {"later"}
