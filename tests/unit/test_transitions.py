"""Traced transitions, looks and captures, joined; and what is claimed of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from labctl.probes.sockets import State
from labctl.record.events import CountersEvent, Event, TroubleEvent
from labctl.record.listeners import listeners
from labctl.record.looks import FOLLOWING, SAMPLING, reachable
from labctl.record.moments import Moment
from labctl.record.timelines import Span, missable, timelines, unseen
from tests.fake import tcp
from tests.walked import (
    ACK,
    ACTIVE,
    FIN,
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
    spans,
    walk,
)

# --- Timelines ------------------------------------------------------------------------------------


def test_a_traced_connection_is_told_to_the_microsecond() -> None:
    found = one(*walk(*PASSIVE), look(0.95), look(1.2))
    assert found.name == f"{HERE} -> {THERE}"
    assert found.complete and found.closed
    assert spans(found) == [
        ("SYN-RECV", 0.95, 1.0, 1.001, 1.001),  # the request came at some time before
        ("ESTAB", 1.001, 1.001, 1.002, 1.002),
        ("CLOSE-WAIT", 1.002, 1.002, 1.003, 1.003),
        ("LAST-ACK", 1.003, 1.003, 1.004, 1.004),
    ]
    assert str(found.spans[0].begin) == "0.950..1.000"
    assert str(found.spans[1].begin) == "1.001000"


def test_an_old_kernel_begins_where_the_handshake_ends() -> None:
    found = one(*walk(*PASSIVE[1:], start=1.001), look(0.95), look(1.2))
    assert found.complete
    assert found.states == one(*walk(*PASSIVE), look(0.95), look(1.2)).states
    assert spans(found)[0] == ("SYN-RECV", 0.95, 1.001, 1.001, 1.001)


def test_a_request_that_looks_saw_began_then() -> None:
    looks = [look(0.35), look(0.4, shown("SYN-RECV")), look(0.9, shown("SYN-RECV"))]
    found = one(*walk(*PASSIVE), *looks)
    assert found.spans[0].begin == Moment(0.35, 0.5)
    assert found.spans[0].lasted(9.0) == (pytest.approx(0.501), pytest.approx(0.651))


def test_an_earlier_request_of_another_socket_is_not_this_one() -> None:
    first, second = (shown("SYN-RECV", f"sk:{n}") for n in (1, 2))
    looks = [look(0.3), look(0.35, first), look(0.4, second), look(0.9, second)]
    found = timelines(history(*walk(*PASSIVE), *looks), "server")
    assert found[-1].spans[0].begin == Moment(0.35, 0.5)


@pytest.mark.parametrize("traced", [False, True])
def test_a_request_that_looks_saw_is_whole_where_the_kernel_tells_of_the_rest(traced: bool) -> None:
    looks = [look(1.0), look(2.0, shown("SYN-RECV")), look(3.0, shown("SYN-RECV"))]
    (found,) = timelines(history(*looks, probes=("trace",) if traced else ()), "server")
    assert found.traced is traced


def test_a_look_long_after_the_end_shows_another_socket() -> None:
    """Of which the kernel has not told."""
    looks = [look(5.0, shown("ESTAB")), look(6.0, shown("ESTAB"))]
    found = timelines(history(*walk(*PASSIVE), *looks), "server")
    assert [each.states[-1] for each in found] == [State.LAST_ACK, State.ESTAB]
    assert spans(found[1]) == [("ESTAB", 4.9, 5.1, math.inf, math.inf)]


@pytest.mark.parametrize(
    ("t", "same"),
    [(1.0 - SAMPLING, True), (0.99 - SAMPLING, False), (1.002 + SAMPLING, True),
     (1.01 + SAMPLING, False)],
)  # fmt: skip
def test_a_look_shows_the_socket_of_its_time(t: float, same: bool) -> None:
    """Where the kernel may not have told of all."""
    there = walk("UNCONN", "SYN-SENT", "ESTAB", "UNCONN")  # from 1.0 to 1.002
    events = [*there, TroubleEvent(0.1, "server", "trace", "lost"), look(t, shown("SYN-SENT"))]
    assert len(timelines(history(*events), "server")) == (1 if same else 2)


def test_what_another_one_follows_has_ended() -> None:
    events = [*walk(*PASSIVE[:3]), *walk(*PASSIVE[:3], start=3.0), look(3.5, shown("ESTAB"))]
    first, second = timelines(history(*events), "server")
    assert (first.gap, second.gap) == ("its end is missing", None)
    assert (first.spans[-1].end, second.spans[-1].end) == (Moment(1.001, 3.0), None)


def test_connect_has_no_port_at_first() -> None:
    early = walk("UNCONN", "SYN-SENT", local="198.18.0.2:0", remote="198.18.0.3:80")
    rest = walk("SYN-SENT", "ESTAB", "UNCONN", start=1.5, local="198.18.0.2:33000",
                remote="198.18.0.3:80")  # fmt: skip
    found = one(*early, *rest)
    assert found.local == "198.18.0.2:33000"
    assert found.states == (State.SYN_SENT, State.ESTAB)
    assert found.spans[0].lasted(9.0) == (0.5, 0.5)


def test_a_connect_that_never_had_a_port_is_no_connection() -> None:
    place: dict[str, Any] = {"local": "198.18.0.2:0", "remote": "198.18.0.3:80"}
    failed = walk("UNCONN", "SYN-SENT", "UNCONN", **place)
    again = walk("UNCONN", "SYN-SENT", start=2.0, **place)
    rest = walk("SYN-SENT", "ESTAB", start=2.5, local="198.18.0.2:33000", remote="198.18.0.3:80")
    assert one(*failed, *again, *rest).spans[0].begin == Moment(2.0, 2.0)


def test_time_wait_follows_where_the_trace_ends() -> None:
    found = one(*walk(*ACTIVE), look(1.02, mini("TIME-WAIT")), look(61.5))
    assert found.states[-2:] == (State.FIN_WAIT_2, State.TIME_WAIT)
    assert spans(found)[-2:] == [
        ("FIN-WAIT-2", 1.003, 1.003, 1.004, pytest.approx(1.02 + SAMPLING)),
        ("TIME-WAIT", 1.004, pytest.approx(1.02 + SAMPLING), 61.5 - SAMPLING, 61.5 + SAMPLING),
    ]
    assert found.complete and found.closed


def test_time_wait_that_is_still_there_has_no_end() -> None:
    found = one(*walk(*ACTIVE), look(1.02, mini("TIME-WAIT")))
    assert found.spans[-1].end is None and not found.closed
    assert found.spans[-1].lasted(11.12) == (pytest.approx(10.0), math.inf)


def test_an_orphan_waits_on_as_a_minisocket() -> None:
    looks = [look(1.02, mini("FIN-WAIT-2", "5sec")), look(3.0, mini("TIME-WAIT")), look(63.0)]
    found = one(*walk(*ACTIVE), *looks)
    assert spans(found)[-2:] == [
        ("FIN-WAIT-2", 1.003, 1.003, 3.0 - SAMPLING, 3.0 + SAMPLING),
        ("TIME-WAIT", 3.0 - SAMPLING, 3.0 + SAMPLING, 63.0 - SAMPLING, 63.0 + SAMPLING),
    ]


def test_simultaneous_closers_enter_time_wait_when_the_trace_ends() -> None:
    states = ["LISTEN", "SYN-RECV", "ESTAB", "FIN-WAIT-1", "CLOSING", "UNCONN"]
    found = one(*walk(*states), look(1.02, mini("TIME-WAIT")))
    assert found.spans[-1].begin == Moment(1.004, 1.004)


def test_an_orphan_that_ran_out_of_time_had_no_time_wait() -> None:
    looks = [look(1.02, mini("FIN-WAIT-2", "5sec")), look(6.0)]
    packets = packet(0.99, THERE, HERE, SYN, (100, 0))
    packets += packet(0.995, HERE, THERE, SYN | ACK, (7, 101))
    found = one(*walk(*ACTIVE), *looks, packets=packets, probes=("trace", "capture"))
    assert found.states[-1] is State.FIN_WAIT_2 and found.closed and found.complete
    assert found.spans[-1].end == Moment(6.0 - SAMPLING, 6.0 + SAMPLING)


def test_a_time_wait_that_no_look_saw_is_read_off_the_wire() -> None:
    packets = b"".join(
        [
            packet(0.99, THERE, HERE, SYN, (100, 0)),
            packet(0.995, HERE, THERE, SYN | ACK, (7, 101)),
            packet(1.002, HERE, THERE, FIN | ACK, (8, 101)),
            packet(1.0035, THERE, HERE, FIN | ACK, (101, 9)),
            packet(1.0038, HERE, THERE, ACK, (9, 102)),
            packet(1.0041, THERE, HERE, RST, (102, 0)),
        ]
    )
    found = one(*walk(*ACTIVE), look(1.05), packets=packets, probes=("trace", "capture"))
    assert found.states[-1] is State.TIME_WAIT and found.closed and found.complete
    assert found.spans[-1].begin == Moment(1.004, 1.004)
    assert found.spans[-1].lasted(9.0) == (0.0, pytest.approx(0.046 + SAMPLING))
    name = "TcpExtTCPTimeWaitOverflow"
    counted = CountersEvent(0.5, "server", {name: 0}), replace(look(1.05), counters={name: 1})
    full = one(*walk(*ACTIVE), *counted, packets=packets, probes=("trace", "capture"))
    assert full.states[-1] is State.FIN_WAIT_2 and not full.complete
    assert full.gap and "no room for a TIME-WAIT" in full.gap


def test_the_wire_tells_when_a_time_wait_began_that_looks_saw() -> None:
    shaken = [packet(0.99, THERE, HERE, SYN, (100, 0)),
              packet(0.995, HERE, THERE, SYN | ACK, (7, 101)),
              packet(1.002, HERE, THERE, FIN | ACK, (8, 101))]  # fmt: skip
    for came, answered, looks in (
        (1.0035, 1.0038, [look(1.02, mini("TIME-WAIT"))]),
        (1.5, 1.51, [look(1.02, mini("FIN-WAIT-2")), look(1.55, mini("TIME-WAIT"))]),
    ):
        fin = packet(came, THERE, HERE, FIN | ACK, (101, 9))
        wire = b"".join([*shaken, fin, packet(answered, HERE, THERE, ACK, (9, 102))])
        found = one(*walk(*ACTIVE), *looks, packets=wire, probes=("trace", "capture"))
        began = found.spans[-1].begin
        assert found.states[-1] is State.TIME_WAIT
        assert (began.earliest, began.latest) == pytest.approx(
            (max(came, 1.004), max(answered, 1.004))
        )


@pytest.mark.parametrize("state", ["FIN-WAIT-2", "CLOSING"])
def test_without_a_capture_a_short_time_wait_can_be_missed(state: str) -> None:
    found = one(*walk("UNCONN", "SYN-SENT", "ESTAB", "FIN-WAIT-1", state, "UNCONN"), look(1.05))
    assert found.gap == "a short TIME-WAIT may have been missed"
    assert not found.complete


def test_where_no_look_follows_nothing_is_known() -> None:
    found = one(*walk(*ACTIVE), look(0.5))
    assert found.gap == "no look tells what followed FIN-WAIT-2"


def test_incarnations_are_told_apart() -> None:
    second = [*walk(*PASSIVE, start=2.0)]
    found = timelines(history(*walk(*PASSIVE), look(1.5), *second, look(3.0)), "server")
    assert [(t.incarnation, t.spans[1].begin.latest) for t in found] == [(1, 1.001), (2, 2.001)]
    assert found[1].name.endswith("(#2)")


def test_a_time_wait_ends_where_the_next_incarnation_begins() -> None:
    events = [*walk(*ACTIVE), look(1.02, mini("TIME-WAIT")), *walk(*ACTIVE[:3], start=1.5)]
    first, second = timelines(history(*events), "server")
    assert first.spans[-1].end == Moment(1.5 - SAMPLING, 1.5)  # sooner, a look would show it
    assert second.states == (State.SYN_RECV, State.ESTAB)


def test_what_was_there_before_the_lab_is_not_its_own() -> None:
    assert timelines(history(*walk("FIN-WAIT-1", "UNCONN"), look(2.0)), "server") == []


def test_losses_leave_a_gap() -> None:
    trouble = TroubleEvent(1.5, "server", "trace", "3 transitions were lost")
    events = [*walk("ESTAB", "FIN-WAIT-1", "FIN-WAIT-2"), trouble, look(1.6)]
    later = walk(*PASSIVE, start=2.0, remote="198.18.0.3:40001")
    first, second = timelines(history(*events, *later, look(2.5)), "server")
    assert first.gap == "3 transitions were lost" and not first.complete
    assert first.states[0] is State.ESTAB
    assert second.gap is None and second.complete


def test_a_missing_link_leaves_a_gap() -> None:
    trouble = TroubleEvent(0.5, "server", "trace", "1 transitions were lost")
    broken = [*walk("LISTEN", "SYN-RECV", "ESTAB"), *walk("LAST-ACK", "UNCONN", start=2.0)]
    assert one(trouble, *broken, look(3.0)).gap == "a transition is missing"


def test_looks_alone_tell_what_they_show() -> None:
    looks = [look(0.9), look(1.0, shown("ESTAB")), look(2.0, shown("FIN-WAIT-2")), look(5.0)]
    found = one(*looks, probes=())
    assert not found.traced and not found.complete and found.closed
    assert spans(found) == [
        ("ESTAB", pytest.approx(0.9), 1.0 + SAMPLING, 2.0 - SAMPLING, 2.0 + SAMPLING),
        ("FIN-WAIT-2", 2.0 - SAMPLING, 2.0 + SAMPLING, 5.0 - SAMPLING, 5.0 + SAMPLING),
    ]


@pytest.mark.parametrize(
    "second",
    [
        shown("ESTAB", "ino:5 sk:2"),  # another socket
        shown("SYN-SENT", "ino:4 sk:1"),  # no way back
    ],
)
def test_looks_alone_tell_incarnations_apart(second: str) -> None:
    looks = [look(1.0, shown("ESTAB", "ino:4 sk:1")), look(2.0, second)]
    assert [t.incarnation for t in timelines(history(*looks, probes=()), "server")] == [1, 2]


def test_a_mapped_address_is_the_plain_one() -> None:
    mapped = tcp("TIME-WAIT", f"[::ffff:198.18.0.2]:{8000}", "[::ffff:198.18.0.3]:40000",
                 more="timer:(timewait,59sec,0)")  # fmt: skip
    assert one(*walk(*ACTIVE), look(1.02, mapped)).states[-1] is State.TIME_WAIT


def test_a_request_that_never_came_to_anything_is_seen_by_looks_alone() -> None:
    found = one(look(1.0, shown("SYN-RECV")), look(3.0))
    assert found.states == (State.SYN_RECV,) and found.closed


def test_listeners_are_no_connections() -> None:
    events = walk("UNCONN", "LISTEN", "UNCONN", remote="0.0.0.0:0")
    assert timelines(history(*events, look(2.0, tcp("LISTEN", ":8000"))), "server") == []


def test_every_state_leads_to_the_end() -> None:
    assert FOLLOWING.keys() == set(State) - {State.LISTEN, State.UNCONN}
    assert reachable(State.SYN_SENT, State.TIME_WAIT)
    assert not reachable(State.TIME_WAIT, State.ESTAB)
    assert missable(State.ESTAB, State.FIN_WAIT_2)
    assert not missable(State.FIN_WAIT_1, State.FIN_WAIT_2)
    assert missable(State.FIN_WAIT_2, None)
    assert not missable(State.LAST_ACK, None)


def test_a_listener_that_the_trace_shows_ends_when_it_says_so() -> None:
    events = walk("UNCONN", "LISTEN", "UNCONN", remote="0.0.0.0:0", step=1.0)
    found = listeners(history(*events, look(1.01, tcp("LISTEN", HERE)), look(3.0)), "server")
    ends = [each.spans[-1].end for each in found]
    assert [end and end.at for end in ends] == [2.0]


def test_only_chosen_connections_are_told() -> None:
    other = "198.18.0.3:40001"
    events = [*walk(*PASSIVE), *walk(*PASSIVE, remote=other), look(1.0, shown("ESTAB"))]
    found = history(*events, look(2.0, shown("ESTAB", remote="198.18.0.3:40002")))
    assert len(timelines(found, "server")) == 3
    assert [t.ends for t in timelines(found, "server", lambda ends: ends[1] == other)] == [
        (HERE, other)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("begin", "end", "bounds"),
    [
        (Moment(1.0, 1.0), Moment(3.0, 3.0), (2.0, 2.0)),
        (Moment(1.0, 1.5), Moment(3.0, 4.0), (1.5, 3.0)),
        (Moment(1.0, 2.0), Moment(1.5, 2.5), (0.0, 1.5)),
        (Moment(1.0, 2.0), None, (7.0, math.inf)),
        (Moment(1.0, 9.5), None, (0.0, math.inf)),
    ],
)
def test_how_long_a_state_lasted(
    begin: Moment, end: Moment | None, bounds: tuple[float, float]
) -> None:
    assert Span(State.ESTAB, begin, end).lasted(9.0) == bounds


# --- What nobody saw ------------------------------------------------------------------------------

ELSEWHERE = packet(1.0, "198.18.0.3:9", "198.18.0.2:7", ACK, (1, 1))
INSIDE = packet(1.0, "127.0.0.1:9", "127.0.0.1:7", ACK, (1, 1))
BETWEEN = packet(1.0, HERE, THERE, ACK, (1, 1))
LOST = TroubleEvent(0.5, "server", "trace", "3 transitions were lost")
UNCAPTURED = TroubleEvent(0.5, "server", "capture", "3 packets were not captured")


@pytest.mark.parametrize(
    ("events", "packets", "probes", "missed"),
    [
        ([], BETWEEN, ("capture",), False),
        ([], ELSEWHERE, ("capture",), True),  # a connection that no look shows
        ([], BETWEEN, (), True),  # what was not captured may have been anything
        ([UNCAPTURED], BETWEEN, ("capture",), True),
        ([], ELSEWHERE, ("capture", "trace"), False),  # the kernel would have told
        ([], INSIDE, ("capture", "trace"), True),  # but not of loopback
        ([], ELSEWHERE, ("trace",), False),
        ([LOST], ELSEWHERE, ("capture", "trace"), True),
        ([LOST], BETWEEN, ("capture", "trace"), False),
    ],
)
def test_a_connection_that_nobody_saw(
    events: list[Event], packets: bytes, probes: tuple[str, ...], missed: bool
) -> None:
    found = history(*events, look(1.0, shown("ESTAB")), look(2.0, shown("ESTAB")),
                    packets=packets, probes=probes)  # fmt: skip
    assert unseen(found, "server", timelines(found, "server")) == missed


def test_what_only_the_trace_told_may_be_the_labs_where_not_all_was_captured() -> None:
    for probes, missed in ((("trace",), True), (("trace", "capture"), False)):
        found = history(*walk(*PASSIVE), look(9.0), packets=ELSEWHERE, probes=probes)
        assert timelines(found, "server") == []
        assert unseen(found, "server", []) == missed


# --- Connections that looks alone show ------------------------------------------------------------


def test_two_at_once_are_in_order_of_their_beginnings() -> None:
    events = [look(1.0, shown("ESTAB", remote="198.18.0.3:2")),
              look(2.0, shown("ESTAB"), shown("ESTAB", remote="198.18.0.3:2"))]  # fmt: skip
    found = timelines(history(*events, probes=()), "server")
    assert [t.remote for t in found] == ["198.18.0.3:2", THERE]


def test_trouble_leaves_a_gap_in_what_began_before() -> None:
    trouble = TroubleEvent(1.5, "server", "ss", "no ss")
    events = [look(1.0, shown("ESTAB")), trouble, look(2.0, shown("ESTAB")),
              look(3.0, shown("ESTAB"), shown("ESTAB", remote="198.18.0.3:2"))]  # fmt: skip
    found = timelines(history(*events, probes=()), "server")
    assert [t.gap for t in found] == ["no ss", None]
    other = TroubleEvent(1.5, "client", "ss", "no ss")
    assert one(look(1.0, shown("ESTAB")), other, look(2.0, shown("ESTAB")), probes=()).gap is None
    untold = one(look(1.0, shown("ESTAB")), replace(LOST, t=1.5), look(2.0), probes=())
    assert untold.gap is None  # nobody traces here
