"""What the wire tells of when a connection's states began: RFC 9293, section 3.10."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from labctl.probes.observations import Segment
from labctl.probes.sockets import State
from labctl.record.courses import Causes, Course
from labctl.record.events import CountersEvent, Event, InjectEvent, TroubleEvent
from tests.walked import (
    ACK,
    FIN,
    HERE,
    RST,
    SYN,
    THERE,
    history,
    look,
    packet,
)

NEVER = 99.0


def course(*lines: str, active: bool = False, parts: bool = False) -> Course:
    """What `1.5 left FIN ACK 10 20 +3` and the like add up to: the number, the acknowledgement, and
    the length. `parts`: what came left a second before."""
    found = Course((active, 0))
    for line in lines:
        at, way, *words = line.split()
        t, sent = float(at), way == "left"
        length = int(words.pop()) if words[-1][0] == "+" else 0
        ack, seq = int(words.pop()), int(words.pop())
        found.take(t, sent, Segment(
            t - 1 if parts else None if not sent else t, t, "a", "b", "a:1", "b:2", seq, ack,
            tuple(words), length, 500,
        ))  # fmt: skip
    return found


OPENED = ["1 came SYN 0 0", "2 left SYN ACK 0 1", "3 came ACK 1 1"]
OPENING = ["1 left SYN 0 0", "2 came SYN ACK 0 1", "3 left ACK 1 1"]


def test_a_request_came_before_and_was_answered_after() -> None:
    assert course(*OPENED).bounds(State.SYN_RECV, NEVER, cookies=False) == (1.0, 2.0)


def test_an_answer_by_a_cookie_tells_nothing() -> None:
    assert course(*OPENED).bounds(State.SYN_RECV, NEVER, cookies=True) == (1.0, None)


def test_the_answer_to_an_earlier_syn_tells_nothing_of_the_request() -> None:
    """The first was forgotten, and the client repeats it."""
    found = course("1 came SYN 0 0", "2 left SYN ACK 0 1", "5 came SYN 0 0", "6 left SYN ACK 0 1")
    assert found.bounds(State.SYN_RECV, 7.0, cookies=False) == (1.0, 6.0)
    assert found.bounds(State.SYN_RECV, 5.0, cookies=False) == (1.0, 6.0)
    assert found.bounds(State.SYN_RECV, 4.0, cookies=False) == (1.0, 2.0)


def test_who_accepts_is_established_when_the_handshake_is_done() -> None:
    """And by the first ACK: what comes later tells nothing."""
    found = course(*OPENED, "4 came ACK 1 1")
    assert found.bounds(State.ESTAB, NEVER, cookies=False) == (3.0, None)


def test_what_acknowledges_nothing_is_no_ack_of_the_handshake() -> None:
    found = course(*OPENED[:2], "2.5 came PSH 1 0 +3", OPENED[2])
    assert found.bounds(State.ESTAB, NEVER, cookies=False) == (3.0, None)


def test_an_answer_of_the_peer_is_no_ack_of_the_handshake() -> None:
    found = course("1 left SYN 0 0", "2 came SYN 0 0", "3 came SYN ACK 0 1")
    assert found.bounds(State.ESTAB, NEVER, cookies=False) == (None, None)


def test_who_opens_is_established_between_the_answer_and_what_it_says_then() -> None:
    found = course(*OPENING, "4 left ACK 1 1 +5", "5 came SYN ACK 0 1", active=True)
    assert found.bounds(State.SYN_SENT, NEVER, cookies=False) == (None, 1.0)
    assert found.bounds(State.ESTAB, NEVER, cookies=False) == (2.0, 3.0)


def test_a_fin_leaves_when_its_state_has_begun() -> None:
    fin = ["4 left FIN ACK 1 1", "5 left FIN ACK 1 1"]
    assert course(*OPENED, *fin).bounds(State.FIN_WAIT_1, NEVER, cookies=False) == (1.0, 4.0)
    opener = course(*OPENING, *fin, active=True)
    assert opener.bounds(State.FIN_WAIT_1, NEVER, cookies=False) == (2.0, 4.0)


def test_two_fins_with_other_numbers_tell_nothing() -> None:
    """A stranger used the same addresses."""
    found = course(*OPENED, "4 left FIN ACK 1 1", "5 left FIN ACK 9 1")
    assert found.bounds(State.FIN_WAIT_1, NEVER, cookies=False) == (1.0, None)
    assert found.bounds(State.LAST_ACK, NEVER, cookies=False) == (None, None)


@pytest.mark.parametrize(
    ("lines", "moment"),
    [
        (["5 came ACK 1 4"], None),  # of the data alone
        (["5 came ACK 1 5"], 5.0),
        (["5 came ACK 1 4", "6 came ACK 1 5", "7 came ACK 1 5"], 6.0),
    ],
)
def test_a_fin_is_acknowledged_by_its_number(lines: list[str], moment: float | None) -> None:
    found = course(*OPENED, "4 left FIN ACK 1 1 +3", *lines)
    assert found.bounds(State.FIN_WAIT_2, NEVER, cookies=False) == (moment, None)
    assert found.bounds(State.TIME_WAIT, NEVER, cookies=False) == (moment, None)


def test_an_acknowledgement_before_the_fin_left_tells_nothing() -> None:
    found = course(*OPENED, "4 came ACK 1 9", "5 left FIN ACK 1 1")
    assert found.bounds(State.FIN_WAIT_2, NEVER, cookies=False) == (None, None)


def test_what_came_in_parts_came_after_it_left() -> None:
    """The first part of it had the same acknowledgement."""
    lines = ["1 came SYN 0 0", "2 left SYN ACK 0 1", "3 left FIN ACK 1 1"]
    bare = course(*lines, "5 came ACK 1 2", parts=True)
    data = course(*lines, "5 came ACK 1 2 +9", parts=True)
    assert bare.bounds(State.FIN_WAIT_2, NEVER, cookies=False) == (5.0, None)
    assert data.bounds(State.FIN_WAIT_2, NEVER, cookies=False) == (4.0, None)
    assert data.bounds(State.ESTAB, NEVER, cookies=False) == (4.0, None)


def test_a_fin_that_comes_takes_effect_between_its_coming_and_its_acknowledgement() -> None:
    lines = ["4 came FIN ACK 1 1 +2", "5 left ACK 1 3", "6 came FIN ACK 1 1 +2", "7 left ACK 1 4",
             "8 left ACK 1 4"]  # fmt: skip
    found = course(*OPENED, *lines)
    assert found.taken == 7.0
    assert found.bounds(State.CLOSE_WAIT, NEVER, cookies=False) == (4.0, 7.0)
    assert found.bounds(State.CLOSING, NEVER, cookies=False) == (4.0, None)
    assert found.bounds(State.LAST_ACK, NEVER, cookies=False) == (4.0, None)
    assert found.bounds(State.TIME_WAIT, NEVER, cookies=False) == (4.0, None)


def test_after_two_fins_that_differ_nobody_knows_which_was_taken() -> None:
    found = course(*OPENED, "4 came FIN ACK 1 1", "5 came FIN ACK 8 1", "6 left ACK 1 9")
    assert found.taken is None
    assert found.bounds(State.CLOSE_WAIT, NEVER, cookies=False) == (4.0, None)


def test_a_fin_with_an_old_number_takes_nothing() -> None:
    """What had been acknowledged before it came."""
    found = course(*OPENED, "4 left ACK 1 6", "5 came FIN ACK 4 1 +1")
    assert found.bounds(State.CLOSE_WAIT, NEVER, cookies=False) == (None, None)
    found = course(*OPENED, "4 left ACK 1 6", "5 came FIN ACK 4 1 +2")
    assert found.bounds(State.CLOSE_WAIT, NEVER, cookies=False) == (5.0, None)


def test_last_ack_lies_between_both_fins() -> None:
    found = course(*OPENED, "4 came FIN ACK 1 1", "5 left FIN ACK 1 2")
    assert found.bounds(State.LAST_ACK, NEVER, cookies=False) == (4.0, 5.0)


def test_time_wait_needs_both_fins() -> None:
    lines = ["4 left FIN ACK 1 1", "5 came ACK 1 2", "6 came FIN ACK 1 2"]
    assert course(*OPENED, *lines).bounds(State.TIME_WAIT, NEVER, cookies=False) == (6.0, None)


def test_an_rst_moves_nothing() -> None:
    found = course(*OPENED, "4 left FIN ACK 1 1", "5 came RST ACK 1 2", "6 left RST FIN ACK 7 1")
    assert found.bounds(State.FIN_WAIT_2, NEVER, cookies=False) == (None, None)
    assert found.bounds(State.FIN_WAIT_1, NEVER, cookies=False) == (1.0, 4.0)


@pytest.mark.parametrize("state", [State.LISTEN, None])
def test_of_other_states_the_wire_tells_nothing(state: State | None) -> None:
    assert course(*OPENED).bounds(state, NEVER, cookies=False) == (None, None)


# --- Of a host's capture --------------------------------------------------------------------------

ENDS = (HERE, THERE)
SHAKEN = [
    packet(1.0, THERE, HERE, SYN, (100, 0)), packet(1.1, HERE, THERE, SYN | ACK, (700, 101)),
    packet(1.2, THERE, HERE, ACK, (101, 701)),
]  # fmt: skip


def causes(
    *packets: bytes, events: tuple[Event, ...] = (), probes: tuple[str, ...] = ("capture",),
    chosen: Callable[[tuple[str, str]], bool] = lambda _: True,
) -> Causes:  # fmt: skip
    found = history(look(0.5), look(9.0), *events, packets=b"".join(packets), probes=probes)
    return Causes(found, "server", chosen)


def test_a_connection_is_known_by_the_moment_of_its_syn() -> None:
    again = [packet(5.0, THERE, HERE, SYN, (900, 0)), packet(5.1, HERE, THERE, SYN | ACK, (5, 901))]
    found = causes(*SHAKEN, *again)
    first, second = found.course(ENDS, 0.0, 4.0), found.course(ENDS, 4.0, 9.0)
    assert first and first.syns == [1.0] and not first.active
    assert first.completed == pytest.approx(1.2)
    assert second and second.syns == [5.0] and second.answers == [pytest.approx(5.1)]
    assert found.course(ENDS, 1.0, 1.0)
    assert found.course(ENDS, 0.0, 9.0) is None  # one of two
    assert found.course(ENDS, 2.0, 4.0) is None  # none
    assert found.course((HERE, "198.18.0.3:1"), 0.0, 9.0) is None


def test_a_syn_that_is_repeated_opens_no_other_connection() -> None:
    found = causes(SHAKEN[0], packet(1.05, THERE, HERE, SYN, (100, 0)), *SHAKEN[1:])
    course = found.course(ENDS, 0.0, 4.0)
    assert course and course.syns == [1.0, pytest.approx(1.05)]


def test_what_was_injected_counts_for_who_gets_it() -> None:
    """But not for the socket in whose name it was sent."""
    fin = packet(2.0, THERE, HERE, FIN | ACK, (101, 701))
    data = base64.b64encode(fin[16 + 14 :]).decode()
    found = causes(*SHAKEN, fin, events=(InjectEvent(2.0, "client", data, 1, 1),))
    course = found.course(ENDS, 0.0, 4.0)
    assert course and course.fin_came == pytest.approx(2.0)
    own = packet(2.0, HERE, THERE, FIN | ACK, (701, 101))
    data = base64.b64encode(own[16 + 14 :]).decode()
    found = causes(*SHAKEN, own, events=(InjectEvent(2.0, "server", data, 1, 1),))
    course = found.course(ENDS, 0.0, 4.0)
    assert course and course.fin_left is None


def test_who_sends_the_syn_opens() -> None:
    course = causes(packet(1.0, HERE, THERE, SYN, (100, 0))).course(ENDS, 0.0, 4.0)
    assert course and course.active


def test_without_a_whole_capture_nothing_is_clear() -> None:
    assert causes(*SHAKEN, probes=()).course(ENDS, 0.0, 4.0) is None
    trouble = TroubleEvent(0.1, "server", "capture", "3 packets were not captured")
    assert causes(*SHAKEN, events=(trouble,)).course(ENDS, 0.0, 4.0) is None
    elsewhere = TroubleEvent(0.1, "client", "capture", "3 packets were not captured")
    assert causes(*SHAKEN, events=(elsewhere,)).course(ENDS, 0.0, 4.0)


def test_what_was_not_chosen_is_not_known() -> None:
    assert causes(*SHAKEN, chosen=lambda _: False).course(ENDS, 0.0, 4.0) is None


@pytest.mark.parametrize(
    ("grown", "latest"), [(0, 1.1), (1, None), (None, None)], ids=["none", "some", "not counted"]
)
def test_where_cookies_may_have_been_sent_an_answer_tells_nothing(
    grown: int | None, latest: float | None
) -> None:
    counters = {} if grown is None else {"TcpExtSyncookiesSent": grown}
    before = dict.fromkeys(counters, 0)
    events = (CountersEvent(0.0, "server", before), CountersEvent(8.0, "server", counters))
    found = causes(*SHAKEN, events=events)
    course = found.course(ENDS, 0.0, 4.0)
    assert course
    assert found.bounds(course, State.SYN_RECV, 9.0) == (1.0, latest and pytest.approx(latest))
    request = found.request(ENDS, 0.0, 9.0)
    assert request == (None if grown else pytest.approx(1.0))


def test_a_request_is_the_last_syn_before_the_answer() -> None:
    syns = [packet(t, THERE, HERE, SYN, (100, 0)) for t in (0.6, 1.0)]
    data = packet(0.8, THERE, HERE, ACK, (7, 7))
    found = causes(*syns, data, *SHAKEN[1:])
    assert found.request(ENDS, 0.0, 9.0) == 1.0
    assert found.request(ENDS, 0.0, 0.9) is None  # not answered by then
    assert found.request(ENDS, 0.0, 1.1) is None
    assert found.request(ENDS, 1.05, 9.0) is None  # it came before


S = State
SYN_OUT, SYN_IN = packet(1.0, HERE, THERE, SYN, (10, 0)), packet(1.0, THERE, HERE, SYN, (50, 0))
ANSWERED = packet(1.5, THERE, HERE, SYN | ACK, (50, 11))
FIN_OUT = packet(2.0, HERE, THERE, FIN | ACK, (11, 51))
FIN_IN = packet(3.0, THERE, HERE, FIN | ACK, (51, 11))
PARTLY, WHOLLY = packet(4.0, THERE, HERE, ACK, (52, 11)), packet(5.0, THERE, HERE, ACK, (52, 12))


@pytest.mark.parametrize(
    ("old", "new", "packets", "moment"),
    [
        (None, S.SYN_SENT, [SYN_OUT], 1.0),
        (None, S.SYN_SENT, [SYN_IN], None),
        (None, S.SYN_RECV, [SYN_IN], 1.0),
        (None, S.SYN_RECV, [SYN_OUT], None),
        (S.SYN_SENT, S.ESTAB, [SYN_OUT, PARTLY, WHOLLY], None),
        (S.SYN_SENT, S.ESTAB, [SYN_OUT, ANSWERED], 1.5),
        (S.SYN_RECV, S.ESTAB, [SYN_IN, PARTLY], 4.0),
        (S.SYN_RECV, S.ESTAB, [SYN_IN, ANSWERED], None),
        (S.ESTAB, S.FIN_WAIT_1, [FIN_IN, FIN_OUT], 2.0),
        (S.CLOSE_WAIT, S.LAST_ACK, [FIN_OUT], 2.0),
        (S.ESTAB, S.FIN_WAIT_1, [PARTLY], None),
        (S.ESTAB, S.CLOSE_WAIT, [FIN_OUT, FIN_IN], 3.0),
        (S.FIN_WAIT_1, S.CLOSING, [FIN_OUT, FIN_IN], 3.0),
        (S.ESTAB, S.CLOSE_WAIT, [PARTLY], None),
        (S.FIN_WAIT_1, S.FIN_WAIT_2, [FIN_OUT, PARTLY, WHOLLY], 5.0),
        (S.FIN_WAIT_1, S.FIN_WAIT_2, [PARTLY], 4.0),  # the FIN left before
        (S.ESTAB, S.FIN_WAIT_2, [PARTLY], None),
        (S.FIN_WAIT_1, S.TIME_WAIT, [FIN_OUT, FIN_IN, PARTLY, WHOLLY], 5.0),
        (S.FIN_WAIT_2, S.TIME_WAIT, [FIN_IN], 3.0),
        (S.FIN_WAIT_2, S.TIME_WAIT, [PARTLY], None),
        (S.CLOSING, S.TIME_WAIT, [FIN_IN], 3.0),
        (S.LAST_ACK, None, [PARTLY], 4.0),
        (S.LAST_ACK, None, [FIN_OUT, PARTLY, WHOLLY], 5.0),
        (S.CLOSE_WAIT, S.TIME_WAIT, [FIN_OUT, WHOLLY], 5.0),
        (S.ESTAB, None, [WHOLLY], None),
        (S.ESTAB, None, [WHOLLY, packet(6.0, THERE, HERE, RST, (52, 0))], 6.0),
        (S.ESTAB, None, [packet(6.0, HERE, THERE, RST, (11, 0))], 6.0),
        (S.ESTAB, S.CLOSE_WAIT, [packet(2.5, THERE, HERE, RST | FIN, (51, 0)), FIN_IN], 3.0),
    ],
)
def test_what_brings_a_state_about(
    old: State | None, new: State | None, packets: list[bytes], moment: float | None
) -> None:
    found = causes(*packets).cause(ENDS, old, new, 0.0, NEVER)
    assert found == (None if moment is None else pytest.approx(moment))


def test_a_cause_lies_between_two_moments() -> None:
    found = causes(FIN_IN, packet(3.5, THERE, HERE, FIN | ACK, (51, 11)))
    assert found.cause(ENDS, S.ESTAB, S.CLOSE_WAIT, 0.0, 9.0) == 3.0
    assert found.cause(ENDS, S.ESTAB, S.CLOSE_WAIT, 3.0, 9.0) == 3.0
    assert found.cause(ENDS, S.ESTAB, S.CLOSE_WAIT, 3.2, 9.0) == 3.5
    assert found.cause(ENDS, S.ESTAB, S.CLOSE_WAIT, 0.0, 3.0) is None
