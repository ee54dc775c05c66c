"""Walks of connections whose end, or whose addresses, a single probe can't tell."""

from __future__ import annotations

import pytest

from labctl.probes.sockets import State
from labctl.record.events import TroubleEvent
from labctl.record.looks import SAMPLING
from labctl.record.moments import Moment
from labctl.record.timelines import timelines
from tests.unit.test_states_claims import judge
from tests.walked import (
    ACK,
    HERE,
    PASSIVE,
    RST,
    SYN,
    THERE,
    history,
    look,
    mini,
    one,
    packet,
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


# --- Requests -------------------------------------------------------------------------------------

REQUEST = [look(1.0, shown("SYN-RECV")), look(2.0)]


@pytest.mark.parametrize(
    ("claim", "result"),
    [
        ("path: {server: [SYN-RECV, closed]}", "pass"),
        ("path: {server: [SYN-RECV, ESTAB, closed]}", "fail"),
        ("lasted: {server: SYN-RECV, for: 1s}", "pass"),
        ("lasted: {server: ESTAB, for: 0s}", "fail"),
    ],
)
def test_a_request_alone_is_all_there_was_where_full_sockets_are_traced(
    claim: str, result: str
) -> None:
    packets = packet(1.0, THERE, HERE, SYN, (1, 0))
    found = history(*REQUEST, packets=packets, probes=("trace", "capture"))
    assert judge(claim, found).result == result


@pytest.mark.parametrize("states", ["SYN-RECV, closed", "SYN-RECV, ESTAB, closed"])
def test_a_request_alone_may_not_be_all_where_the_tracer_ended(states: str) -> None:
    ended = TroubleEvent(0.5, "server", "trace", "the tracer ended")
    packets = packet(1.0, THERE, HERE, SYN, (1, 0))
    found = history(ended, *REQUEST, packets=packets, probes=("trace", "capture"))
    assert judge(f"path: {{server: [{states}]}}", found).result == "unknown"


def test_a_request_that_came_to_nothing_is_none_of_a_later_connection() -> None:
    found = timelines(history(*REQUEST, *walk(*PASSIVE, start=5.0), look(6.0)), "server")
    assert [(str(t.states[0]), len(t.states)) for t in found] == [("SYN-RECV", 1), ("SYN-RECV", 4)]
    assert found[0].spans[0].end == Moment(2.0 - SAMPLING, 2.0 + SAMPLING)
    assert found[1].spans[0].begin == Moment(5.0 - SAMPLING, 5.0)


def test_a_request_began_when_the_first_look_of_several_saw_it() -> None:
    looks = [look(1.0), look(2.0, shown("SYN-RECV")), look(4.0, shown("SYN-RECV"))]
    found = one(*looks, *walk(*PASSIVE, start=5.0), look(6.0))
    assert found.spans[0].begin == Moment(2.0 - SAMPLING, 2.0 + SAMPLING)


# --- Addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "source", "target", "kept"),
    [
        (PASSIVE, THERE, "198.18.0.2:80", True),  # REDIRECT: the client's end is the same
        (PASSIVE, "198.18.0.3:40001", HERE, False),  # another client of the same listener
        (["UNCONN", "SYN-SENT", "UNCONN"], HERE, "198.18.0.3:99", True),  # DNAT of what it sends
        (["UNCONN", "SYN-SENT", "UNCONN"], "198.18.0.2:8001", THERE, False),
    ],
)
def test_a_capture_bears_out_what_the_hosts_own_nat_changed(
    states: list[str], source: str, target: str, kept: bool
) -> None:
    packets = packet(1.0005, source, target, ACK, (1, 1))
    found = history(*walk(*states), look(2.0), packets=packets, probes=("trace", "capture"))
    assert bool(timelines(found, "server")) == kept


def test_a_capture_of_another_traced_connection_bears_nothing_out() -> None:
    """Both are from the same end; whose the second is nobody knows."""
    theirs = walk("UNCONN", "SYN-SENT", "UNCONN", remote="198.18.0.3:99")
    packets = packet(1.0005, HERE, THERE, ACK, (1, 1))
    ours = walk("UNCONN", "SYN-SENT", "ESTAB", "UNCONN")
    found = history(*ours, *theirs, look(2.0), packets=packets, probes=("trace", "capture"))
    assert [timeline.remote for timeline in timelines(found, "server")] == [THERE]


REFUSED = [
    packet(1.0, "127.0.0.1:50000", "127.0.0.1:9", SYN, (1, 0)),
    packet(1.0001, "127.0.0.1:9", "127.0.0.1:50000", RST | ACK, (0, 2)),
]


@pytest.mark.parametrize(
    ("claim", "result"),
    [
        ("path: {server: [SYN-SENT, closed]}", "unknown"),
        ("lasted: {server: SYN-SENT, for: 0s}", "unknown"),
        ("path: {server: [SYN-SENT, ESTAB]}", "fail"),  # a look would have shown that one
        ("lasted: {server: SYN-SENT, for: 10s}", "fail"),
        ("path: {server: [SYN-RECV, ESTAB, CLOSE-WAIT, LAST-ACK, closed]}", "pass"),
    ],
)
def test_short_connections_of_loopback_addresses_are_never_traced(claim: str, result: str) -> None:
    packets = b"".join([packet(0.9, THERE, HERE, ACK, (1, 1)), *REFUSED])
    found = history(*walk(*PASSIVE), look(2.0), packets=packets, probes=("trace", "capture"))
    assert judge(claim, found).result == result


def test_who_only_refuses_has_no_connection() -> None:
    packets = b"".join(
        [
            packet(0.9, "198.18.0.3:40001", "198.18.0.2:9", SYN, (1, 0)),
            packet(0.9001, "198.18.0.2:9", "198.18.0.3:40001", RST | ACK, (0, 2)),
        ]
    )
    found = history(look(2.0), packets=packets, probes=("capture",))
    assert judge("path: {server: [SYN-RECV, closed]}", found).result == "fail"
