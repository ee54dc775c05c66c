"""How many segments there may be, and what keeps anybody from knowing: a claim of their number."""

from __future__ import annotations

import math
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from labctl.language.facts import Range
from labctl.language.predicates import Finding
from labctl.language.predicates.segments import SegmentsPattern
from labctl.language.values import Names
from labctl.probes.observations import Origin, Segment
from labctl.record.events import CallEvent, ClockEvent, StepEvent
from labctl.record.history import History
from tests.reported import history, segment

NAMES = Names(dict.fromkeys(("server", "client", "proxy"), 1), {})
SYN, ANSWER = segment(1.0, "client SYN 0 0"), segment(1.1, "server SYN ACK 0 1")
DATA = segment(2.0, "client PSH ACK 1 1 len 5")
OTHER = {"source": "198.18.0.3:40001"}


def claim(**pattern: Any) -> SegmentsPattern:
    keys = {"from_": "from"}
    plain = {keys.get(key, key): v for key, v in pattern.items() if v is not None}
    return SegmentsPattern.model_validate(plain, context=NAMES)


def judged(pattern: SegmentsPattern, *segments: Segment, now: float = 9.0) -> Finding:
    found = history(segments=[*segments])
    found.reach(now)
    return pattern.judge(found)


# --- Which numbers are enough ---------------------------------------------------------------------

BOUNDS = st.none() | st.integers(0, 4)
COUNTS = st.sampled_from([None, *(f"{sign}{n}" for sign in ("", "<", "<=", ">", ">=", "!=")
                                  for n in range(4) if f"{sign}{n}" != "<0")])  # fmt: skip


@given(BOUNDS, BOUNDS, COUNTS, st.integers(0, 6), st.integers(0, 6) | st.just(math.inf))
def test_what_is_so_of_some_numbers_is_so_of_all_between(
    at_least: int | None, at_most: int | None, count: str | None, low: int, high: float
) -> None:
    """Of a range of which nobody knows which it is."""
    if at_least is not None and at_most is not None and at_least > at_most:
        with pytest.raises(ValidationError, match="an impossible range"):
            claim(at_least=at_least, at_most=at_most)
        return
    pattern = claim(at_least=at_least, at_most=at_most, count=count)
    high = max(low, high)
    told = {pattern.enough(n) for n in pattern._telling(low, high)}
    assert told == {pattern.enough(n) for n in range(low, int(min(high, 20)) + 1)}


@pytest.mark.parametrize(
    ("pattern", "bounds", "enough"),
    [
        ({}, Range(1, None), {1, 2, 3}),
        ({"at_least": 2}, Range(2, None), {2, 3}),
        ({"at_least": 0}, Range(0, None), {0, 1, 2, 3}),
        ({"at_most": 1}, Range(0, 1), {0, 1}),
        ({"at_least": 1, "at_most": 2}, Range(1, 2), {1, 2}),
        ({"at_most": 0}, Range(0, 0), {0}),
        ({"count": 2}, Range(2, 2), {2}),
        ({"count": ">1"}, Range(2, None), {2, 3}),
    ],
)  # fmt: skip
def test_how_many_are_wanted(pattern: dict[str, Any], bounds: Range, enough: set[int]) -> None:
    found = claim(**pattern)
    assert {n for n in range(4) if found.enough(n)} == enough
    finding = judged(found)
    assert (finding.claimed.wanted.count, finding.claimed.wanted.pauses_seconds) == (bounds, ())
    assert finding.result == ("pass" if 0 in enough else "fail")


# --- What nobody knows ----------------------------------------------------------------------------

LOST = DATA._replace(arrived=None)


@pytest.mark.parametrize(
    ("segments", "pattern", "now", "result", "words"),
    [
        ([LOST], {"lost": True}, 9.0, "pass", "1"),
        ([LOST], {"lost": True}, 2.1, "unknown", "0, and 1 still under way; wait a moment before"),
        ([DATA, LOST._replace(t=2.05)], {"lost": False, "count": 2}, 2.1, "unknown",
         "1, and 1 still under way; wait a moment before"),
        ([LOST, LOST._replace(t=8.95)], {"lost": True}, 9.0, "pass", "1"),
        ([DATA._replace(t=None, unseen=True), DATA], {"from_": "client", "spaced": [1]}, 9.0,
         "unknown", "2, and 1 of which nobody knows when they left"),
        ([LOST._replace(unseen=True)], {"lost": True}, 9.0, "unknown",
         "0, and what one end sent or got is not all known; watch it, too"),
        ([DATA._replace(origin=Origin(guessed=("seq",)))], {"seq": 1}, 9.0, "unknown",
         "0, and 1 of which the captures lack what this asks: how their connections began, or all "
         "of their bytes"),
    ],
)  # fmt: skip
def test_why_nobody_knows_how_many(
    segments: list[Segment], pattern: dict[str, Any], now: float, result: str, words: str
) -> None:
    finding = judged(claim(**pattern), *segments, now=now)
    assert (finding.result, finding.actual) == (result, words)


def test_what_went_inside_a_host_may_be_told_of_elsewhere() -> None:
    call = CallEvent(0.1, "p", "server", 2, "done", "accept", "accept", peer="127.0.0.1:5")
    for pattern, result in (
        ({}, "pass"), ({"count": 1}, "unknown"), ({"from_": "server", "count": 0}, "unknown"),
        ({"from_": "client", "count": 1}, "pass"), ({"from_": "server", "to": "client",
                                                     "count": 0}, "pass"),
    ):  # fmt: skip
        finding = claim(**pattern).judge(history(call, segments=[DATA]))
        assert finding.result == result
        if result == "unknown":
            assert finding.actual == ("server has a connection to itself that was not captured; "
                                      "move one of its ends elsewhere")  # fmt: skip


def test_twelve_are_shown() -> None:
    many = [DATA._replace(t=2.0 + n / 8, arrived=2.1 + n / 8) for n in range(14)]
    finding = judged(claim(data=True), *many)
    assert (finding.actual, len(finding.evidence)) == ("14", 12)


# --- Since when -----------------------------------------------------------------------------------


def since(bound: float, whose: str | None, *segments: Segment, **pattern: Any) -> tuple[str, str]:
    """What is claimed of them since a label at 2.0, by that host's clock."""
    clocks = [ClockEvent(0.0, host, f"on {host}", 0.0, bound) for host in ("server", "client")]
    label = StepEvent(2.0, 0, "end", "kill", label="killed", outcome="done", host=whose)
    events = [*(clocks if bound else []), label]
    found = history(*events, segments=[*segments])
    found.reach(9.0)
    finding = claim(**{"since": "killed", **pattern}).judge(found)
    return finding.result, finding.actual


NEAR = "0, and 1 so near the beginning that the clocks can't tell"


@pytest.mark.parametrize(
    ("bound", "whose", "sent", "arrived", "told"),
    [
        (0.0, None, 2.0, 2.1, ("pass", "1")),
        (0.0, None, 1.9, 2.1, ("fail", "0")),
        (0.25, "client", 2.0, 2.1, ("pass", "1")),  # its own clock tells
        (0.25, "client", 1.9, 2.1, ("fail", "0")),
        (0.25, "server", 2.1, 2.2, ("unknown", NEAR)),
        (0.25, "server", 1.9, 2.1, ("unknown", NEAR)),
        (0.25, "server", 1.8, 1.9, ("fail", "0")),  # it had come there before
        (0.25, "server", 1.9, 2.0, ("fail", "0")),
        (0.25, "server", 2.5, 2.6, ("unknown", NEAR)),
        (0.25, "server", 2.6, 2.7, ("pass", "1")),
        (0.25, "server", 1.4, 2.1, ("fail", "0")),
        (0.25, None, 2.1, 2.2, ("unknown", NEAR)),
        (0.25, None, 1.9, None, ("unknown", NEAR)),
        (0.25, None, 2.6, 2.7, ("pass", "1")),
    ],
)
def test_what_was_sent_since_a_label(
    bound: float, whose: str | None, sent: float, arrived: float | None, told: tuple[str, str]
) -> None:
    each = DATA._replace(t=sent, arrived=arrived)
    assert since(bound, whose, each) == told


@pytest.mark.parametrize(
    ("arrived", "answer", "count"),
    [
        (2.1, segment(2.1, "server ACK 1 6"), 2),  # its receiver had the first one then
        (2.1, segment(2.05, "server ACK 1 6"), None),
        (2.1, segment(2.2, "client ACK 6 1"), 2),  # by the clock of who sent the first one
        (2.1, segment(1.9, "client ACK 6 1"), 1),
        (None, segment(2.1, "server ACK 1 6"), None),
        (2.1, segment(2.9, "server ACK 1 6"), 2),
        (2.1, segment(1.8, "server ACK 1 6", 1.9), 1),  # it had come to who sent the first one
        (2.1, segment(1.2, "server ACK 1 6"), 1),
    ],
)
def test_what_was_sent_since_the_first_of_a_kind(
    arrived: float | None, answer: Segment, count: int | None
) -> None:
    clocks = [ClockEvent(0.0, host, f"on {host}", 0.0, 0.25) for host in ("server", "client")]
    found = history(*clocks, segments=[DATA._replace(arrived=arrived), answer])
    found.reach(9.0)
    for n in (1, 2):
        finding = claim(since_first="PSH", count=n).judge(found)
        assert finding.result == ("unknown" if count is None else "pass" if n == count else "fail")


def test_without_the_first_of_a_kind_the_claim_is_false() -> None:
    finding = judged(claim(since_first="FIN", at_most=0), DATA)
    assert (finding.result, finding.actual) == ("fail", "no FIN")


# --- How far apart --------------------------------------------------------------------------------


def apart(*times: float | None, **more: Any) -> list[Segment]:
    return [DATA._replace(t=t, arrived=5.0 + n, unseen=t is None, **more)
            for n, t in enumerate(times)]  # fmt: skip


@pytest.mark.parametrize(
    ("segments", "result"),
    [
        (apart(1.0, 2.0), "pass"),
        (apart(1.0, 2.2), "pass"),  # within 20 percent
        (apart(1.0, 2.205), "fail"),
        (apart(1.0, 1.8), "pass"),
        (apart(1.0), "fail"),
        (apart(1.0, 1.5), "fail"),
        (apart(1.0, None), "unknown"),  # nobody knows when that one left
        (apart(None), "fail"),  # that makes no pause
        ([*apart(1.0, None), *apart(1.0, 2.0, **OTHER)], "pass"),
        ([*apart(1.0, 1.5), *apart(1.0, 2.0, **OTHER)], "pass"),
        ([*apart(1.0, 1.5), *apart(3.0, 4.0, origin=Origin(seq=7))], "pass"),  # another connection
        ([*apart(1.0), *apart(2.0, **OTHER)], "fail"),  # of two connections each
    ],
)
def test_pauses_of_one_connection(segments: list[Segment], result: str) -> None:
    finding = judged(claim(from_="client", spaced=[1]), *segments)
    assert finding.result == result
    assert finding.claimed.wanted.pauses_seconds == (1.0,)


# --- Found ----------------------------------------------------------------------------------------


def found(pattern: SegmentsPattern, *segments: Segment, now: float = 9.0) -> list[float]:
    known: History = history(segments=[*segments])
    known.reach(now)
    return [s.time for s in pattern.found(known)]


def test_only_what_surely_matches_is_found() -> None:
    assert found(claim(data=True), SYN, DATA) == [2.0]
    assert found(claim(lost=True), LOST, LOST._replace(t=8.9)) == [2.0]


@pytest.mark.parametrize(
    ("then", "count"),
    [
        ({"flags": "SYN ACK"}, 1), ({"flags": "FIN"}, 0), ({"data": True}, 1),
        ({"flags": "SYN ACK", "then": {"data": True}}, 1), ({"flags": "SYN", "bare": True}, 0),
        ({"data": True, "then": {"flags": "SYN ACK"}}, 0), ({"lost": True}, 0),
    ],
)  # fmt: skip
def test_what_follows_in_a_connection(then: dict[str, Any], count: int) -> None:
    elsewhere = segment(3.0, "client FIN ACK 1 1")._replace(source="198.18.0.3:40001")
    pattern = claim(flags="SYN", from_="client", then=then)
    assert len(found(pattern, SYN, ANSWER, DATA, elsewhere)) == count


@pytest.mark.parametrize(("number", "same"), [(0, True), (7, False)])
def test_what_follows_in_a_later_connection_of_the_same_ends_does_not_count(
    number: int, same: bool
) -> None:
    again = SYN._replace(t=3.0, arrived=3.1, origin=Origin(seq=number))
    late = DATA._replace(t=4.0, arrived=4.1, origin=Origin(seq=number))
    for then in ({"flags": "SYN"}, {"data": True}):
        assert bool(found(claim(data=True, then=then), SYN, DATA, again, late)) is same


def function_calls(count: int) -> int:
    """How many it takes to find what follows so many segments."""
    pattern = claim(data=True, then={"flags": "ACK", "data": False, "then": {"flags": "FIN"}})
    data = [DATA._replace(t=2 + n / 1000, arrived=2 + n / 1000) for n in range(count)]
    end = segment(2.9, "server ACK 1 6"), segment(3.0, "client FIN ACK 6 1")
    made: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, _: made.update((event,)))
    matching = found(pattern, *data, *end)
    sys.setprofile(None)
    assert len(matching) == count
    return made["call"]


def test_ten_times_as_many_segments_take_ten_times_as_many_function_calls() -> None:
    assert function_calls(200) < 11 * function_calls(20)


def test_what_may_still_be_lost_may_follow() -> None:
    pattern = claim(flags="SYN", from_="client", then={"lost": True})
    finding = judged(pattern, SYN, ANSWER, LOST, now=2.1)
    assert (finding.result, found(pattern, SYN, ANSWER, LOST, now=2.1)) == ("unknown", [])
    assert found(pattern, SYN, ANSWER, LOST) == [1.0]


def test_when_there_were_enough() -> None:
    """In the order in which that was clear: what was lost, after the time that it may take."""
    late = DATA._replace(t=1.5, arrived=4.0)
    known = history(segments=[late, DATA])
    known.reach(9.0)
    for pattern, turns in (
        (claim(data=True), [1.5]), (claim(data=True, at_least=2), [2.0]),
        (claim(data=True, lost=False), [2.0001]), (claim(data=True, count=1), [1.5, 2.0]),
        (claim(data=True, lost=False, at_least=2), [4.0]),
    ):  # fmt: skip
        assert pattern.turns(known) == pytest.approx(turns)
    gone = history(segments=[LOST])
    gone.reach(9.0)
    assert claim(lost=True).turns(gone) == [pytest.approx(2.0 + gone.flight)]
