"""Walks of connections whose end, or whose addresses, a single probe can't tell."""

from __future__ import annotations

import pytest

from labctl.probes.sockets import State
from labctl.probes.transitions import SAMPLING, Moment
from tests.unit.test_transitions import (
    history,
    judge,
    look,
    mini,
    one,
    shown,
    walk,
)

CLOSED_TWICE = [
    ["ESTAB", "FIN-WAIT-1", "FIN-WAIT-1", "FIN-WAIT-2", "UNCONN"],
    ["ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "FIN-WAIT-2", "UNCONN"],
    ["ESTAB", "FIN-WAIT-1", "CLOSING", "CLOSING", "UNCONN"],
    ["ESTAB", "CLOSE-WAIT", "LAST-ACK", "LAST-ACK", "UNCONN"],
]


@pytest.mark.parametrize("states", CLOSED_TWICE)
def test_a_close_after_shutdown_enters_no_other_state(states: list[str]) -> None:
    """The kernel tells of the state that it sets, although it is the same."""
    found = one(*walk("LISTEN", "SYN-RECV", *states, step=1.0), look(9.0), probes=("trace",))
    walked = [str(state) for state in found.states]
    assert walked == ["SYN-RECV", *dict.fromkeys(states[:-1])]


def test_a_state_goes_on_when_its_process_closes() -> None:
    states = ["LISTEN", "SYN-RECV", "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "FIN-WAIT-2", "UNCONN"]
    events = [
        *walk(*states, step=1.0),
        look(6.05, mini("FIN-WAIT-2")),
        look(9.0, mini("TIME-WAIT")),
    ]
    found = history(*events)
    assert judge("lasted: {server: FIN-WAIT-2, for: 5s, tolerance: 200ms}", found).result == "pass"
    assert judge("lasted: {server: FIN-WAIT-2, for: 1s}", found).result == "fail"
    path = "path: {server: [ESTAB, FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT]}"
    assert judge(path, found).result == "pass"


def test_what_no_look_showed_for_long_happened_shortly_before_the_one_that_did() -> None:
    """Looks come when something changes: where nothing does there are none."""
    states = ["LISTEN", "SYN-RECV", "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "UNCONN"]
    found = one(*walk(*states), look(1.003, shown("FIN-WAIT-2")), look(3.0, mini("TIME-WAIT")))
    assert found.states[-1] is State.TIME_WAIT
    assert found.spans[-1].begin == Moment(3.0 - SAMPLING, 3.0 + SAMPLING)
