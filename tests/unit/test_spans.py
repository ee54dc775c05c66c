"""Moments, and the spans and timelines that they bound."""

from __future__ import annotations

import math
from typing import Any

import pytest

from labctl.probes.sockets import State
from labctl.record.events import CallEvent, TroubleEvent
from labctl.record.moments import VAGUE, Moment
from labctl.record.timelines import (
    CLOSED,
    Span,
    Timeline,
    is_traced,
    missable,
    timelines,
    unseen,
)
from tests.walked import ACK, HERE, PASSIVE, THERE, history, look, packet, shown, walk

# --- Moments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "at"),
    [
        (Moment(1.0, 1.0), 1.0), (Moment(1.0, 2.0), 2.0), (Moment(1.0, 2.0, 1.5), 1.5),
        (Moment(1.0, 2.0, None, 1.25), 1.25), (Moment(1.0, 2.0, 1.5, 1.25), 1.5),
        (Moment(1.0, 2.0, 0.5), 1.0), (Moment(1.0, 2.0, 2.5), 2.0),
        (Moment(0.0, 2.0, 0.0), 0.0),
    ],
)  # fmt: skip
def test_the_best_single_time_is_within_its_bounds(moment: Moment, at: float) -> None:
    assert moment.at == at


@pytest.mark.parametrize(
    ("earliest", "latest", "text"),
    [
        (1.0, 1.0, "1.000000"), (1.0, 1.0005, "1.000000..1.000500"), (1.0, 1.5, "1.000..1.500"),
        (1.0, 1.25, "1.000..1.250"), (0.0, 0.001, "0.000000..0.001000"),
    ],
)  # fmt: skip
def test_a_moment_in_words(earliest: float, latest: float, text: str) -> None:
    assert str(Moment(earliest, latest)) == text
    assert Moment(earliest, latest).exact is (earliest == latest)


def test_a_moment_by_another_clock_keeps_what_is_best() -> None:
    wide = Moment(1.0, 2.0, 1.5, 1.25).give_or_take(0.25)
    assert (wide.earliest, wide.latest, wide.guess, wide.seen) == (0.75, 2.25, 1.5, 1.25)
    assert wide.within(1.0, 1.25).at == 1.25


# --- Spans ----------------------------------------------------------------------------------------


def span(begin: tuple[float, float], end: Moment | None) -> Span:
    return Span(State.ESTAB, Moment(*begin), end)


@pytest.mark.parametrize(
    ("end", "vague"),
    [
        (None, None),
        (Moment(2.0, 2.0), None),
        (Moment(2.0, 2.0 + VAGUE * 1.01), 2.0),
        (Moment(2.0, 9.0, 2.05), None),  # it was probably over soon
        (Moment(2.0, 9.0, 3.0), 2.0),
        (Moment(0.0, VAGUE), None),
    ],
)
def test_from_when_on_a_state_may_have_been_over(end: Moment | None, vague: float | None) -> None:
    assert span((1.0, 1.0), end).vague == vague


@pytest.mark.parametrize(
    ("begin", "end", "lasted"),
    [
        ((1.0, 1.0), Moment(3.0, 3.0), (2.0, 2.0)),
        ((1.0, 1.5), Moment(3.0, 4.0), (1.5, 3.0)),
        ((1.0, 3.5), Moment(3.0, 4.0), (0.0, 3.0)),  # and not less than nothing
        ((1.0, 1.5), None, (7.5, math.inf)),
        ((1.0, 9.5), None, (0.0, math.inf)),
    ],
)
def test_how_long_a_state_lasted(
    begin: tuple[float, float], end: Moment | None, lasted: tuple[float, float]
) -> None:
    assert span(begin, end).lasted(9.0) == lasted


def test_a_state_that_it_may_never_have_come_to() -> None:
    assert span((1.0, 2.0), None).certain and not span((1.0, math.inf), None).certain


# --- Timelines ------------------------------------------------------------------------------------


def timeline(end: Moment | None, number: int = 1, **more: Any) -> Timeline:
    spans = (Span(State.SYN_SENT, Moment(1.0, 1.0), Moment(2.0, 2.0)), span((2.0, 2.0), end))
    return Timeline(HERE, THERE, number, spans, **{"traced": True, **more})


@pytest.mark.parametrize(
    ("end", "closed", "lost_sight"),
    [(None, False, False), (Moment(3.0, 4.0), True, False), (Moment(3.0, math.inf), False, True)],
)
def test_what_is_left_of_a_connection(end: Moment | None, closed: bool, lost_sight: bool) -> None:
    found = timeline(end)
    assert (found.closed, found.lost_sight) == (closed, lost_sight)
    walked = (State.SYN_SENT, State.ESTAB)
    assert (found.states, found.walk) == (walked, (*walked, *([CLOSED] if closed else [])))


@pytest.mark.parametrize(
    ("more", "complete"),
    [
        ({}, True), ({"gap": "lost"}, False), ({"traced": False}, False),
        ({"traced": False, "inferred": True}, True), ({"inferred": True, "gap": "lost"}, False),
    ],
)  # fmt: skip
def test_whether_a_state_may_be_missing(more: dict[str, Any], complete: bool) -> None:
    assert timeline(None, **more).complete is complete


def test_the_name_of_a_connection() -> None:
    assert timeline(None).name == f"{HERE} -> {THERE}"
    assert timeline(None, 2).name == f"{HERE} -> {THERE} (#2)"


@pytest.mark.parametrize(
    ("before", "after", "may"),
    [
        (State.ESTAB, State.CLOSE_WAIT, False), (State.ESTAB, State.LAST_ACK, True),
        (State.ESTAB, None, True), (State.TIME_WAIT, None, False), (State.LAST_ACK, None, False),
        (State.CLOSE_WAIT, State.LAST_ACK, False), (State.FIN_WAIT_1, State.TIME_WAIT, True),
        (State.SYN_SENT, State.ESTAB, True), (State.FIN_WAIT_2, State.TIME_WAIT, False),
    ],
)  # fmt: skip
def test_whether_a_look_may_have_missed_a_state(
    before: State, after: State | None, may: bool
) -> None:
    assert missable(before, after) is may


@pytest.mark.parametrize(("t", "gap"), [(0.5, None), (1.0, None), (1.001, "lost"), (9.0, "lost")])
def test_trouble_concerns_what_began_before_it(t: float, gap: str | None) -> None:
    events = [*walk(*PASSIVE), look(2.0), TroubleEvent(t, "server", "trace", "lost")]
    (found,) = timelines(history(*events), "server")
    assert (found.spans[0].begin.latest, found.gap) == (1.0, gap)
    plain = history(*walk(*PASSIVE), look(2.0), TroubleEvent(t, "server", "trace", "x"), probes=())
    assert is_traced(history()) and not is_traced(plain)


def test_what_is_told_is_put_together_anew_only_if_there_is_more() -> None:
    found = history(look(1.0, shown("ESTAB")))
    first = timelines(found, "server")
    assert timelines(found, "server") is first
    found.add(look(2.0))
    (after,) = timelines(found, "server")
    assert after.closed and not first[0].closed
    assert timelines(found, "server", lambda ends: False) == []


def test_whether_a_host_had_connections_that_nobody_saw() -> None:
    """Over the loopback no capture may show them."""
    inside = CallEvent(0.1, "p", "server", 2, "done", "connect", "connect", peer="127.0.0.1:5")
    every = ("trace", "capture", "loopback")
    seen = [look(1.0, shown("ESTAB")), look(2.0)]
    wire = packet(1.0, HERE, THERE, ACK, (1, 1))
    for events, probes, missed in (
        ([], every, False),
        ([inside], every, False),
        ([inside], every[:2], True),
        ([TroubleEvent(1.5, "server", "loopback", "lost")], every, True),
        ([], ("capture", "loopback"), False),
        ([], (), True),  # and without a capture or a trace any
    ):
        found = history(*seen, *events, packets=wire, probes=probes)
        assert unseen(found, "server", timelines(found, "server")) is missed


def test_a_request_that_a_look_showed_is_none_of_a_connection_that_its_host_opened_later() -> None:
    """Between the same ends, and before the next look."""
    opened = walk("UNCONN", "SYN-SENT", "ESTAB", start=1.25)
    looks = [look(0.5), look(1.0, shown("SYN-RECV")), look(1.5, shown("ESTAB"))]
    found = timelines(history(*opened, *looks), "server")
    assert [each.states for each in found] == [
        (State.SYN_RECV,), (State.SYN_SENT, State.ESTAB),
    ]  # fmt: skip
    assert [each.incarnation for each in found] == [1, 2]


def test_a_look_whose_ss_ran_late_shows_what_the_kernel_told_of_since() -> None:
    """Without a trace nobody knows that, and it may have been another connection."""
    opened = walk("UNCONN", "SYN-SENT", "ESTAB", start=1.25)
    late = [look(1.0, shown("ESTAB")), look(1.5, shown("ESTAB"))]
    (found,) = timelines(history(*opened, *late), "server")
    assert found.spans[0].begin.at == 1.25
    again = walk("UNCONN", "SYN-SENT", "ESTAB", start=1.75)  # after the next look
    assert len(timelines(history(*again, *late), "server")) == 2
