"""What is claimed of states, by `path` and `lasted`, and what is found."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from labctl.ground.errors import ScenarioError
from labctl.language.facts import Range
from labctl.language.predicates import Finding, Predicate
from labctl.language.predicates.states import LastedClaim, PathClaim
from labctl.record.events import Event, TroubleEvent
from labctl.record.history import History
from tests.fake import scenario
from tests.walked import (
    ACTIVE,
    HERE,
    PASSIVE,
    ROOT,
    THERE,
    history,
    look,
    mini,
    shown,
    walk,
)

# --- Claims ---------------------------------------------------------------------------------------


def claim(text: str) -> Predicate:
    (found,) = scenario(f"""\
title: t
hosts: {{server: {{calls: await}}, client: {{calls: await}}}}
steps: []
expect:
  - {text}
""").expect
    return found


def judge(text: str, found: History) -> Finding:
    (finding,) = claim(text).judge(found)
    return finding


WALKED = "ESTAB, FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT"
TRACED = history(*walk(*ACTIVE), look(1.02, mini("TIME-WAIT")), look(61.0))
WAITING = history(*walk(*ACTIVE), look(1.02, mini("TIME-WAIT")), look(11.0, mini("TIME-WAIT")))
PASSED = history(*walk(*PASSIVE), look(2.0))
UNTRACED = TroubleEvent(0.0, "server", "trace", ROOT)


@pytest.mark.parametrize(
    ("states", "found", "result"),
    [
        (f"{WALKED}, closed", TRACED, "pass"),
        (f"{WALKED}", TRACED, "fail"),  # nothing is left
        ("FIN-WAIT-2, TIME-WAIT, closed", TRACED, "pass"),  # from the first named one on
        ("FIN_WAIT_1, fin-wait-2, TIME_WAIT, closed", TRACED, "pass"),
        ("FIN-WAIT-2, closed", TRACED, "fail"),
        ("ESTAB, FIN-WAIT-1, CLOSING, TIME-WAIT, closed", TRACED, "fail"),
        ("SYN-SENT, ESTAB, FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT, closed", TRACED, "fail"),
        (WALKED, WAITING, "pass"),
        (f"{WALKED}, closed", WAITING, "fail"),
        ("ESTAB, CLOSE-WAIT, LAST-ACK, closed", PASSED, "pass"),
        ("ESTAB, CLOSE-WAIT, closed", PASSED, "fail"),
        ("ESTAB, closed", history(look(1.0)), "fail"),
    ],
)
def test_path(states: str, found: History, result: str) -> None:
    finding = judge(f"path: {{server: [{states}]}}", found)
    assert finding.result == result
    assert finding.what == f"server: {finding.expected}"


def test_a_path_that_was_not_walked_is_told_beside_the_one_that_was() -> None:
    finding = judge("path: {server: [ESTAB, FIN-WAIT-1, closed]}", TRACED)
    assert finding.actual == f"SYN-RECV, {WALKED}, closed"
    assert finding.evidence[0] == f"{HERE} -> {THERE}"
    assert finding.evidence[2] == "  ESTAB from 1.001000 s to 1.002000 s"


def test_paths_and_times_as_data() -> None:
    finding = judge("path: {server: [ESTAB, FIN-WAIT-1, closed]}", TRACED)
    assert finding.claimed.wanted.states == ("ESTAB", "FIN-WAIT-1", "closed")
    assert ", ".join(finding.measured.states) == f"SYN-RECV, {WALKED}, closed"
    assert finding.measured.connections == ((HERE, THERE),)
    finding = judge("lasted: {server: TIME-WAIT, for: 60s, tolerance: 2s}", TRACED)
    assert finding.claimed.wanted.lasted_seconds == Range(58.0, 62.0)
    assert finding.measured.lasted_seconds == Range(59.78, 60.096)
    still = judge("lasted: {server: TIME-WAIT, for: 5s}", WAITING).measured.lasted_seconds
    assert still == Range(9.88)
    never = judge("lasted: {server: CLOSE-WAIT, for: 1s}", TRACED).measured
    assert never.lasted_seconds is None
    other = walk("LISTEN", "SYN-RECV", "ESTAB", "UNCONN", step=3, remote="198.18.0.3:40001")
    finding = judge("lasted: {server: ESTAB, for: 60s}", history(*walk(*PASSIVE), *other))
    assert (finding.measured.lasted_seconds, finding.measured.states) == (Range(0.001, 3.0), ())


def test_one_connection_that_walked_so_is_enough() -> None:
    other = walk("LISTEN", "SYN-RECV", "ESTAB", "UNCONN", remote="198.18.0.3:40001")
    both = history(*walk(*PASSIVE), *other, look(2.0))
    finding = judge("path: {server: [ESTAB, CLOSE-WAIT, LAST-ACK, closed]}", both)
    assert (finding.result, len(finding.evidence)) == ("pass", 5)


def test_many_paths_are_counted() -> None:
    events: list[Event] = []
    for number in range(7):
        events += walk(*PASSIVE, remote=f"198.18.0.3:{40000 + number}")
    finding = judge("path: {server: [ESTAB, closed]}", history(*events, look(2.0)))
    assert finding.actual == "7 x SYN-RECV, ESTAB, CLOSE-WAIT, LAST-ACK, closed"


LOOKS = [
    look(1.0, shown("ESTAB")), look(2.0, mini("FIN-WAIT-2")), look(3.0, mini("TIME-WAIT")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("states", "looks", "result"),
    [
        (WALKED, LOOKS, "unknown"),  # FIN-WAIT-1 was not seen
        ("FIN-WAIT-2, TIME-WAIT", LOOKS, "pass"),  # nothing fits between
        ("ESTAB, CLOSE-WAIT, LAST-ACK", LOOKS, "fail"),
        ("ESTAB, CLOSE-WAIT, LAST-ACK, closed", LOOKS, "unknown"),  # another may have been missed
        ("ESTAB, FIN-WAIT-1, FIN-WAIT-2", LOOKS, "fail"),  # and then TIME-WAIT
        (f"{WALKED}, closed", LOOKS, "unknown"),  # it is still there, but another may be gone
        (f"{WALKED}, closed", [*LOOKS, look(63.0)], "unknown"),
        ("TIME-WAIT, closed", [*LOOKS, look(63.0)], "pass"),
        ("FIN-WAIT-2, closed", [*LOOKS[:2], look(3.0)], "unknown"),  # a short TIME-WAIT
        ("FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT", LOOKS, "unknown"),
        ("ESTAB, closed", [look(1.0)], "unknown"),  # a whole connection can be missed
    ],
)
def test_path_without_tracing(states: str, looks: list[Event], result: str) -> None:
    finding = judge(f"path: {{server: [{states}]}}", history(UNTRACED, *looks, probes=()))
    assert finding.result == result
    assert finding.actual.endswith(f", as far as was seen: {ROOT}") == (result == "unknown")


def test_path_with_losses_is_unknown() -> None:
    trouble = TroubleEvent(1.5, "server", "trace", "3 transitions were lost")
    found = history(*walk(*PASSIVE), trouble, look(2.0))
    finding = judge("path: {server: [ESTAB, CLOSE-WAIT, LAST-ACK, closed]}", found)
    assert finding.result == "unknown"
    assert finding.actual.endswith("as far as was seen: 3 transitions were lost")


@pytest.mark.parametrize(
    ("text", "found", "result", "actual"),
    [
        ("{server: TIME-WAIT, for: 60s, tolerance: 2s}", TRACED, "pass", "59.780..60.096 s"),
        ("{server: TIME-WAIT, for: 60s}", TRACED, "pass", "59.780..60.096 s"),
        ("{server: TIME-WAIT, for: 30s}", TRACED, "fail", "59.780..60.096 s"),
        ("{server: TIME-WAIT, for: 60s, tolerance: 10ms}", TRACED, "unknown", "59.780..60.096 s"),
        ("{server: FIN-WAIT-1, for: 1ms, tolerance: 1ms}", TRACED, "pass", "0.001000 s"),
        ("{server: fin_wait1, for: 1s, tolerance: 10ms}", TRACED, "fail", "0.001000 s"),
        ("{server: CLOSE-WAIT, for: 1s}", TRACED, "fail", "never in CLOSE-WAIT"),
        ("{server: TIME-WAIT, for: 5s}", WAITING, "fail", "9.880 s so far"),
        ("{server: TIME-WAIT, for: 60s}", WAITING, "unknown", "9.880 s so far"),
        ("{client: ESTAB, for: 1s}", TRACED, "fail", "no connection"),
    ],
)
def test_lasted(text: str, found: History, result: str, actual: str) -> None:
    finding = judge(f"lasted: {text}", found)
    assert (finding.result, finding.actual) == (result, actual)


@pytest.mark.parametrize(
    ("seconds", "result"), [(1.5, "pass"), (2.5, "pass"), (1.4375, "fail"), (2.5625, "fail")]
)
def test_the_bounds_of_how_long_it_lasted_are_within(seconds: float, result: str) -> None:
    found = history(*walk("LISTEN", "SYN-RECV", "ESTAB", "UNCONN", step=seconds))
    finding = judge("lasted: {server: ESTAB, for: 2s, tolerance: 500ms}", found)
    assert finding.result == result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("{server: ESTAB, for: 1s}", "pass"),
        ("{server: ESTAB, for: 3s}", "fail"),
        ("{server: ESTAB, for: 1s, tolerance: 50ms}", "unknown"),
        ("{server: FIN-WAIT-1, for: 1s}", "fail"),  # nobody misses a second
        ("{server: FIN-WAIT-1, for: 10ms}", "unknown"),
    ],
)
def test_lasted_without_tracing(text: str, result: str) -> None:
    finding = judge(f"lasted: {text}", history(UNTRACED, look(0.9), *LOOKS, probes=()))
    assert finding.result == result
    assert (ROOT in finding.actual) == (result == "unknown")


def test_the_tolerance_is_a_tenth_and_half_a_second_at_least() -> None:
    for duration, tolerance in (("60s", 6.0), ("1s", 0.5)):
        found = claim(f"lasted: {{server: TIME-WAIT, for: {duration}}}").lasted
        assert found and found.tolerance == tolerance


def test_no_state_lasts_for_less_than_nothing() -> None:
    wanted = judge("lasted: {server: ESTAB, for: 100ms}", TRACED).claimed.wanted
    assert wanted.lasted_seconds == Range(0.0, 0.6)


def test_a_claim_from_python_is_one_already() -> None:
    found = claim("{path: {client: [ESTAB]}, lasted: {server: ESTAB, for: 1s}}")
    assert found.path
    path = found.path["client"]
    assert TypeAdapter(PathClaim).validate_python(path) is path
    assert TypeAdapter(LastedClaim).validate_python(found.lasted) is found.lasted


def test_steps_say_what_they_claim() -> None:
    found = scenario("""\
title: t
hosts: {server: {calls: await}, client: {calls: await}}
steps:
  - expect:
      lasted: {server: TIME-WAIT, for: 1m, tolerance: 2s}
      path: {client: [LAST-ACK, closed]}
""")
    assert str(found.steps[0]) == (
        "expect server TIME-WAIT for 60 s, give or take 2 s, client LAST-ACK, closed"
    )


def test_claims_look_at_the_hosts_that_they_are_about() -> None:
    assert claim("{path: {client: [ESTAB]}, lasted: {server: ESTAB, for: 1s}}").hosts == {
        "server", "client",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("path: {server: ESTAB}", "a list of states is wanted here, in order, not 'ESTAB'"),
        ("path: {server: []}", "a list of states is wanted here, in order, not []"),
        ("path: {server: [ESTAB, FINWAIT]}", "did you mean FIN-WAIT-"),
        ("path: {server: [closed]}", "'closed' alone is no path"),
        ("path: {server: [ESTAB, closed, ESTAB]}", "'closed' ends a path"),
        ("path: {server: [LISTEN, ESTAB]}", "LISTEN is no state of a connection"),
        ("path: {server: [TIME-WAIT, ESTAB]}", "ESTAB can't come after TIME-WAIT"),
        ("path: {sever: [ESTAB]}", "unknown host 'sever'"),
        ("path: {}", "one or more are wanted here, not {}"),
        ("lasted: {server: ESTAB}", "'for' is missing"),
        ("lasted: {for: 1s}", "one host and its state are wanted beside 'for', not 0"),
        ("lasted: {server: ESTAB, client: ESTAB, for: 1s}", "beside 'for', not 2"),
        ("lasted: {sever: ESTAB, for: 1s}", "did you mean 'server'?"),
        ("lasted: {server: LISTEN, for: 1s}", "LISTEN is no state of a connection"),
        ("lasted: {server: STAB, for: 1s}", "did you mean ESTAB?"),
        ("lasted: {server: ESTAB, for: soon}", "'soon' is no duration"),
        ("lasted: ESTAB", "a mapping of a host, 'for' and 'tolerance' is wanted here"),
    ],
)
def test_mistakes(text: str, mistake: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        claim(text)
    assert any(mistake in str(m) for m in raised.value.mistakes), raised.value.mistakes
