"""Segments and events in few bytes: what comes out is what went in, in order."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from labctl.judge.causes.conversations import Conversations
from labctl.probes.observations import PLAIN, Hop, Origin, Segment, Way, begins
from labctl.probes.packed import Places, Segments
from labctl.probes.sockets import State
from labctl.record.events import CallEvent, Event, ProcessEvent, StateEvent
from labctl.record.kept import Timelines
from labctl.record.log import Log
from labctl.record.moments import Moment
from labctl.record.timelines import Span, Timeline, beginning
from tests.reported import segment

LARGEST = 2**32 - 1
TIMES = st.sampled_from([0.0, 1.0, 1.000001, 2.5, 1e6])
NUMBERS = st.sampled_from([0, 1, 7, LARGEST])
COUNTED = st.sampled_from([-1, 0, 1, 2 * LARGEST])
HOSTS = st.sampled_from([None, "server", "client"])
PLACES = st.sampled_from(["10.0.0.1:1", "10.0.0.2:2", "[fd00::1]:1"])
WAY = Way((Hop("nat", 1.0, None),), (), "client", None, 0)
MARK = st.booleans()


@st.composite
def any_segment(draw: st.DrawFn) -> Segment:
    moments = st.tuples(st.none() | TIMES, st.none() | TIMES)
    t, arrived = draw(moments.filter(lambda pair: pair != (None, None)))
    origin = Origin(
        draw(NUMBERS), draw(NUMBERS), draw(st.none() | NUMBERS), draw(st.none() | NUMBERS),
        draw(st.none() | st.integers(0, 14)), draw(st.sampled_from([(), ("seq",), ("seq", "ack")])),
    )  # fmt: skip
    return Segment(
        t, arrived, draw(HOSTS), draw(HOSTS), draw(PLACES), draw(PLACES), draw(COUNTED),
        draw(COUNTED), draw(st.sampled_from([(), ("SYN",), ("FIN", "ACK")])),
        draw(st.sampled_from([0, 1, 70_000])), draw(NUMBERS), draw(MARK), draw(MARK), draw(MARK),
        draw(MARK), draw(st.sampled_from([None, 0, 3])), draw(MARK),
        draw(st.none() | st.tuples(NUMBERS, NUMBERS)), draw(MARK),
        draw(st.sampled_from(["", "server"])), draw(MARK), draw(MARK), draw(MARK), PLAIN, origin,
        draw(st.sampled_from([b"", b"GET"])), draw(MARK), draw(MARK),
        draw(st.sampled_from([None, WAY])),
    )  # fmt: skip


@given(st.lists(any_segment(), max_size=8))
@example([segment(1.0, "client SYN 0 0", timestamps=None, origin=Origin())])
def test_segments_come_out_as_they_went_in(given: list[Segment]) -> None:
    """In order of time; those of one moment as they were."""
    packed, ordered = Segments(given), sorted(given, key=lambda s: s.time)
    assert [*packed] == ordered == [packed[n] for n in range(len(packed))]
    assert packed == ordered and packed != [*ordered, *given, None]
    assert {type(s) for s in packed} <= {Segment} and {type(s.origin) for s in packed} <= {Origin}
    assert packed.ways == any(s.way for s in given)
    for ends in {(s.source, s.target) for s in given}:
        assert ends in packed.ends
        assert packed.of(ends) == [s for s in ordered if (s.source, s.target) == ends]
        both = [n for n, s in enumerate(ordered) if (s.source, s.target) in (ends, ends[::-1])]
        assert packed.numbers(ends, ends[::-1]) == packed.numbers(ends[::-1], ends) == both
        assert packed.between(ends) == [ordered[n] for n in both]


def test_of_ends_that_there_are_not_there_is_nothing() -> None:
    packed = Segments([segment(1.0, "client SYN 0 0")])
    ends = ("10.0.0.9:1", "10.0.0.9:2")
    assert (packed.of(ends), packed.numbers(ends), packed.between(ends)) == ([], [], [])
    assert [*Segments()] == [] and Segments() == [] and Segments() != 0


@given(st.lists(any_segment(), max_size=8), st.slices(8))
def test_some_of_the_segments(given: list[Segment], part: slice) -> None:
    if part.step not in (None, 1):
        part = slice(part.start, part.stop)
    some, ordered = Segments(given)[part], sorted(given, key=lambda s: s.time)[part]
    assert [*some] == ordered and len(some) == len(ordered)
    for ends in {(s.source, s.target) for s in given}:
        assert some.of(ends) == [s for s in ordered if (s.source, s.target) == ends]
        both = [s for s in ordered if (s.source, s.target) in (ends, ends[::-1])]
        assert some.between(ends) == both and len(some.numbers(ends, ends[::-1])) == len(both)
    for t in (0.0, 1.0, 1.5, 2.5, 1e7):
        assert some.until(t) == sum(s.time <= t for s in ordered)
        assert some.position(t) == sum(s.time < t for s in ordered)
        seen = [s for s in ordered if t in (s.time, s.arrived)]
        assert [s for _, s in some.seen_at(t)] == seen


def test_some_are_otherwise_now() -> None:
    three = [segment(float(n), f"client ACK {n} 1") for n in (1, 2, 3)]
    other = three[1]._replace(pending=True)
    first = Segments(three).first(2, {1: other})
    assert [*first] == [three[0], other]
    assert [*first[1:]] == [other] and first.of((other.source, other.target)) == [three[0], other]


@pytest.mark.parametrize(
    ("t", "arrived", "late"),
    [(1.0, 1.25, False), (1.0, 1.26, True), (None, 1.0, False), (1.0, None, False)],
)
def test_which_were_under_way_for_long(t: float | None, arrived: float | None, late: bool) -> None:
    quick = segment(0.5, "client ACK 1 1")
    slow = segment(1.0, "client ACK 2 1")._replace(t=t, arrived=arrived)
    assert Segments([quick, slow]).late(0.25) == ([1] if late else [])


def test_a_place_for_each_thing() -> None:
    places = Places()
    assert [places[thing] for thing in ("a", ("b",), "a", None, ("b",))] == [0, 1, 0, 2, 1]
    assert places.things == ["a", ("b",), None]


# --- Events ---------------------------------------------------------------------------------------


TRANSITIONS = st.builds(
    StateEvent, TIMES, st.sampled_from(["server", "client"]), PLACES, PLACES,
    st.sampled_from(["ESTAB", "UNCONN"]), st.sampled_from(["FIN-WAIT-1", "UNCONN"]),
)  # fmt: skip
OTHERS = st.builds(
    ProcessEvent, TIMES, st.sampled_from(["one", "two"]), st.just("server"), st.just("start")
)


CALLS = st.builds(
    CallEvent, TIMES, st.just("one"), st.just("server"), st.integers(1, 2),
    st.sampled_from(["enter", "done"]), PLACES, PLACES, st.none() | st.just("EBADF"),
    result=st.integers(0, 1), local=PLACES, eof=st.none() | st.booleans(), data=st.none() | PLACES,
)  # fmt: skip


@given(st.lists(TRANSITIONS | OTHERS | CALLS, max_size=12), st.slices(12))
def test_events_come_out_as_they_went_in(given: list[Event], part: slice) -> None:
    log = Log(given)
    assert len(log) == len(given)
    assert [*log] == given == [log[n] for n in range(len(log))]
    assert [log[n - len(given)] for n in range(len(given))] == given
    assert log[part] == given[part]
    assert [*log.since(2)] == given[2:]
    processes, transitions, calls = (
        [event for event in given if isinstance(event, kind)]
        for kind in (ProcessEvent, StateEvent, CallEvent)
    )
    assert [*log.of(ProcessEvent)] == processes
    assert [*log.of(StateEvent)] == transitions
    assert [*log.of(CallEvent)] == calls == [*log.latest(CallEvent)][::-1]
    both = [event for event in given if not isinstance(event, StateEvent)]
    assert (
        [*log.of(ProcessEvent, CallEvent)] == both == [*log.latest(CallEvent, ProcessEvent)][::-1]
    )
    for host in ("server", "client", "nobody"):
        assert [*log.of(StateEvent, host=host)] == [e for e in transitions if e.host == host]
    failed = [call for call in calls if isinstance(call, CallEvent) and call.errno]
    assert [*log.of(CallEvent, errno=...)] == failed
    for beyond in (len(given), -len(given) - 1):
        with pytest.raises(IndexError):
            log[beyond]


# --- Conversations --------------------------------------------------------------------------------

HERE, THERE = "198.18.0.2:8000", "198.18.0.3:40000"


def said(t: float, text: str, base: int = 0, **more: Any) -> Segment:
    return segment(t, text, origin=Origin(base, 0), **more)


@pytest.mark.parametrize(
    ("text", "base", "more", "parts"),
    [
        ("client SYN 0 0", 9, {}, [2, 1]),
        ("client SYN 0 0", 5, {}, [3]),  # the same one, again
        ("client SYN ACK 0 1", 9, {}, [3]),
        ("client ACK 1 1", 9, {}, [3]),
        ("server SYN 0 0", 9, {}, [3]),  # its peer had another number all the time
        ("client SYN 0 0", 9, {"crafted": True}, [3]),  # a step sent it
        ("client SYN 0 0", 9, {"scope": "client"}, [2, 1]),  # valid within that host alone
        ("client ACK 1 1", 5, {"scope": "client"}, [2, 1]),
    ],
)
def test_where_another_connection_begins(
    text: str, base: int, more: dict[str, Any], parts: list[int]
) -> None:
    found = [said(1.0, "client SYN 0 0", 5), said(1.1, "server RST ACK 0 1", 7, crafted=True),
             said(2.0, text, base, **more)]  # fmt: skip
    talks = Conversations(Segments(found))
    assert [len(talk) for talk in talks] == parts
    assert [s for talk in talks for s in talk] == found
    ends = found[0].source, found[0].target
    assert [*talks.between(ends)] == [*talks.between(ends[::-1])] == [*talks][::-1]


@pytest.mark.parametrize(
    ("flags", "asks"), [("SYN", True), ("SYN ACK", False), ("ACK", False), ("FIN", False)]
)
def test_what_asks_for_a_connection(flags: str, asks: bool) -> None:
    assert begins(segment(1.0, f"client {flags} 0 0")) is asks


def test_what_a_step_sent_before_is_of_no_connection() -> None:
    found = [said(1.0, "client SYN 0 0", 5, crafted=True), said(2.0, "client SYN 0 0", 9)]
    assert [len(talk) for talk in Conversations(Segments(found))] == [2]


def test_conversations_are_in_order_of_their_beginnings() -> None:
    """Also where those between other ends begin in between."""
    other = "198.18.0.3:40001"
    found = [
        said(1.0, "client SYN 0 0", 5), said(1.5, "client SYN 0 0", 6, source=other),
        said(2.0, "client SYN 0 0", 9), said(2.1, "server RST ACK 0 1", 7),
        said(3.0, "server ACK 1 1", 7, target="198.18.0.3:40002"),
    ]  # fmt: skip
    talks = Conversations(Segments(found))
    expected = [[found[0]], [found[1]], found[2:4], [found[4]]]
    assert [*talks] == expected and len(talks) == 4
    assert [talks[n] for n in range(4)] == expected and talks[-1] == expected[-1]
    assert [*talks[1:3]] == expected[1:3] and talks[1:3][0] == expected[1]
    first = found[0]
    assert [*talks.between((first.source, first.target))] == [found[2:4], [first]]
    assert [*talks.between(("10.0.0.9:1", "10.0.0.9:2"))] == []
    assert {where: [*each] for where, each in talks.asked.items()} == {
        first.target: expected[:3]
    }  # who answered the last one has asked for nothing
    assert [*Conversations(Segments())] == []


def test_a_long_conversation_takes_linear_time() -> None:
    """Only what begins a connection is held against all before it."""

    def seconds(count: int) -> float:
        begun = [said(0.0, "client SYN 0 0", 5)]
        sent = (said(1.0 + n, "client ACK 1 1", 5) for n in range(count))
        segments, spent = Segments([*begun, *sent]), []
        for _ in range(3):
            start = time.process_time()
            assert len(Conversations(segments)) == 1
            spent.append(time.process_time() - start)
        return min(spent)

    assert seconds(8_000) < 20 * seconds(1_000)


# --- Timelines ------------------------------------------------------------------------------------

WHEN = st.sampled_from([0.0, 1.0, 1.5, math.inf])
MOMENTS = st.builds(
    lambda a, b, guess, seen: Moment(min(a, b), max(a, b), guess, seen),
    WHEN, WHEN, st.none() | WHEN, st.none() | WHEN,
)  # fmt: skip


@st.composite
def any_timeline(draw: st.DrawFn) -> Timeline:
    """A state ends as the next begins, or nobody knows when."""
    spans, begin = [], draw(MOMENTS)
    for state in draw(st.lists(st.sampled_from([*State]), min_size=1, max_size=4)):
        end = draw(st.none() | MOMENTS)
        spans.append(Span(state, begin, end))
        begin = end if end and draw(MARK) else draw(MOMENTS)
    gap = draw(st.sampled_from([None, "its captures have a gap"]))
    number = draw(st.integers(1, 3))
    return Timeline(draw(PLACES), draw(PLACES), number, (*spans,), draw(MARK), gap, draw(MARK))


@given(st.lists(any_timeline(), max_size=6))
def test_timelines_come_out_as_they_went_in_and_in_order(found: list[Timeline]) -> None:
    kept, expected = Timelines(found), sorted(found, key=beginning)
    assert repr([*kept]) == repr(expected)  # with all that does not count in comparisons
    assert repr(kept[1:]) == repr(expected[1:])
    for timeline in found:
        same = [each for each in expected if each.ends == timeline.ends]
        assert repr([kept[number] for number in kept.of(timeline.ends)]) == repr(same)
    assert [*kept.of(("nobody", ""))] == []
