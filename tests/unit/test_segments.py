"""From captures to segments, and what is claimed of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.probes.observations import FLAG_BITS, MODULUS, Known, Observation, Segment
from labctl.probes.segments import match
from tests.sighted import (
    BITS,
    CLIENT,
    CLIENT_6,
    EPOCH,
    HANDSHAKE,
    LAG,
    OWNERS,
    SERVER,
    SERVER_6,
    both,
    one,
    seen,
    segments,
)

# --- Matching -------------------------------------------------------------------------------------


def test_what_was_sent_and_arrived_is_one_segment() -> None:
    first, second, third = segments(*both(*HANDSHAKE))
    assert (first.sender, first.receiver) == ("client", "server")
    assert (first.source, first.target) == (CLIENT, SERVER)
    assert first.t == pytest.approx(0.1, abs=1e-6)
    assert first.arrived == pytest.approx(0.1 + LAG, abs=1e-6)
    assert not first.lost
    assert [s.summary for s in (first, second, third)] == [
        "SYN seq 0", "SYN ACK seq 0 ack 1", "ACK seq 1 ack 1"
    ]  # fmt: skip


def test_captures_may_come_in_any_order() -> None:
    observations = both(*HANDSHAKE)
    assert segments(*reversed(observations)) == segments(*observations)


def test_what_never_arrives_is_lost() -> None:
    found = segments(*both(*HANDSHAKE), one(0.4, "client PSH ACK 1001 7001 len 5"))
    assert [s.lost for s in found] == [False, False, False, True]
    assert found[-1].summary == "PSH ACK seq 1 ack 1 len 5 [lost]"


@pytest.mark.parametrize("text", ["PSH ACK 1001 7001 len 5", "FIN ACK 1001 7001"])
def test_a_retransmission_repeats_what_was_lost(text: str) -> None:
    first, again = one(0.4, f"client {text}", mark=1), one(0.6, f"client {text}", mark=2)
    found = segments(*both(*HANDSHAKE), first, *both(again))[-2:]
    assert [(s.lost, s.retransmitted) for s in found] == [(True, False), (False, True)]
    assert found[1].arrived == pytest.approx(0.6 + LAG, abs=1e-6)


def test_a_retransmission_that_nothing_tells_from_the_first_is_paired_in_order() -> None:
    first = one(0.4, "client FIN ACK 1001 7001")
    again = replace(first, at=first.at + LAG / 2)
    found = segments(*both(*HANDSHAKE), *both(first), *both(again))[-2:]
    assert [(s.lost, s.retransmitted) for s in found] == [(False, False), (False, True)]


def test_more_than_what_was_sent_is_no_retransmission() -> None:
    first = one(0.4, "client ACK 1001 7001 len 10")
    following = one(0.5, "client ACK 1011 7001 len 10")
    assert not any(s.retransmitted for s in segments(*both(*HANDSHAKE, first, following)))


def test_duplicate_acks() -> None:
    ack = "client ACK 1001 7011"
    found = segments(
        *both(*HANDSHAKE, one(0.4, "server ACK 7001 1001 len 10")),
        *both(one(0.5, ack, mark=1), one(0.6, ack, mark=2), one(0.7, ack, window=600, mark=3)),
    )
    assert [s.duplicate_ack for s in found[-3:]] == [False, True, False]  # the last: more room
    assert found[-2].summary == "ACK seq 1 ack 11 [duplicate ACK]"


def test_zero_windows_and_probes_of_them() -> None:
    found = segments(
        *both(
            *HANDSHAKE,
            one(0.4, "server ACK 7001 1001 len 10"),
            one(0.5, "client ACK 1001 7011", window=0),
            one(0.7, "server ACK 7010 1001"),
            one(0.8, "client ACK 1001 7011", window=0, mark=1),
            one(0.9, "client RST 1001 0", window=0),
        )
    )
    assert [s.zero_window for s in found[3:]] == [False, True, False, True, False]
    assert [s.probe for s in found[3:]] == [False, False, True, False, False]
    assert not any(s.retransmitted for s in found)
    assert found[5].summary == "ACK seq 10 ack 1 [window probe]"


def test_a_probe_needs_a_window_that_is_closed() -> None:
    keepalive = one(0.7, "server ACK 7000 1001")
    assert not segments(*both(*HANDSHAKE, keepalive))[-1].probe


@pytest.mark.parametrize(
    ("text", "probe", "again"),
    [
        ("server ACK 7010 1001", True, False),
        ("server ACK 7010 1001 len 1", True, False),
        ("server ACK 7009 1001 len 2", False, True),
        ("server ACK 7010 1001 len 2", False, True),  # more than a probe
        ("server FIN ACK 7010 1001", False, True),
        ("server ACK 7011 1001 len 1", False, False),  # something new
    ],
)
def test_a_probe_asks_for_one_number_that_was_sent(text: str, probe: bool, again: bool) -> None:
    talk = [one(0.4, "server ACK 7001 1001 len 10"), one(0.5, "client ACK 1001 7011", window=0)]
    found = segments(*both(*HANDSHAKE, *talk, one(0.7, text, mark=1)))[-1]
    assert (found.probe, found.retransmitted) == (probe, again)


def test_a_window_that_opens_again_needs_no_probe() -> None:
    talk = [
        one(0.4, "server ACK 7001 1001 len 10"), one(0.5, "client ACK 1001 7011", window=0),
        one(0.6, "client ACK 1001 7011"), one(0.7, "server ACK 7010 1001 len 1", mark=1),
    ]  # fmt: skip
    found = segments(*both(*HANDSHAKE, *talk))
    assert [s.zero_window for s in found[-4:]] == [False, True, False, False]
    assert (found[-1].probe, found[-1].retransmitted) == (False, True)


def test_an_rst_moves_nothing() -> None:
    """Neither numbers nor windows: it may be forged, and has none."""
    reset, data = (
        one(0.4, "client RST ACK 9001 7001", window=0),
        one(0.5, "client ACK 1001 7001 len 5"),
    )
    found = segments(*both(*HANDSHAKE, reset, data))
    assert [s.retransmitted for s in found[-2:]] == [False, False]


def test_what_nobody_sent_moves_nothing() -> None:
    forged, data = one(0.4, "client ACK 1001 7001 len 9"), one(0.5, "client ACK 1001 7001 len 5")
    found = segments(*both(*HANDSHAKE), seen(forged), *both(data))
    assert [(s.injected, s.retransmitted) for s in found[-2:]] == [(True, False), (False, False)]
    again = segments(*both(*HANDSHAKE, data), seen(replace(forged, at=forged.at + 1)))[-1]
    assert (again.injected, again.retransmitted) == (True, False)


def test_a_forged_syn_begins_no_connection() -> None:
    forged, data = one(0.4, "client SYN 900000 0"), one(0.5, "client ACK 1001 7001 len 5")
    found = segments(*both(*HANDSHAKE), seen(forged), *both(data))
    assert [(s.seq, s.ack) for s in found[-2:]] == [(0, 0), (1, 1)]


def test_a_syn_after_which_its_end_goes_on_begins_no_connection() -> None:
    """It left that host, and somebody forged it there. A connection that begins goes on by its own
    numbers, and what an end says when its SYN was not understood is an RST."""
    syn = one(0.4, "client SYN 900000 0")
    challenge, reset = one(0.5, "server ACK 7001 1001"), one(0.6, "client RST 1001 0")
    goes_on, begins = one(0.7, "client ACK 1001 7001 len 5"), one(0.7, "client ACK 900001 7001")
    for last, seq in ((goes_on, 899000), (begins, 0)):
        found = segments(*both(*HANDSHAKE, syn, challenge, reset, last))
        assert (found[3].seq, found[-1].seq) == (seq, 1)
    again = segments(*both(*HANDSHAKE, syn, challenge, replace(syn, at=syn.at + 1)))
    assert again[-1].retransmitted


def test_a_segment_with_more_than_an_ack_is_no_duplicate_of_one() -> None:
    """And after it the next one is none either."""
    ack = "client ACK 1001 7001"
    texts = [ack, f"{ack} len 1", "client ACK 1002 7001", "client ACK 1002 7001"]
    found = segments(
        *both(*HANDSHAKE, *(one(0.4 + n / 10, t, mark=n) for n, t in enumerate(texts)))
    )
    assert [s.duplicate_ack for s in found[2:]] == [False, True, False, False, True]
    urgent = [one(0.4, "client URG ACK 1001 7001"), one(0.5, "client URG ACK 1001 7001", mark=1)]
    assert not any(s.duplicate_ack for s in segments(*both(*HANDSHAKE, *urgent)))


@pytest.mark.parametrize(("flags", "zero"), [("ACK", True), ("FIN ACK", True), ("SYN ACK", False),
                                             ("RST ACK", False)])  # fmt: skip
def test_a_zero_window_is_one_of_a_connection_that_is_open(flags: str, zero: bool) -> None:
    (found,) = segments(*both(one(0.1, f"client {flags} 1000 7000", window=0)))
    assert found.zero_window == zero


def test_without_a_syn_numbers_count_from_what_came_first() -> None:
    found = segments(
        *both(one(0.1, "client ACK 1000 7000 len 5"), one(0.2, "server ACK 7000 1005"))
    )
    assert [(s.seq, s.ack, s.base) for s in found] == [
        (1, 1, (999, 6999)), (1, 6, (6999, 999))
    ]  # fmt: skip


def test_numbers_before_the_first_wrap() -> None:
    (found,) = segments(*both(one(0.1, "client ACK 0 0 len 5")))
    assert (found.seq, found.ack, found.base) == (1, 1, (MODULUS - 1, MODULUS - 1))


def test_an_rst_that_answers_nothing_known_tells_no_numbers_of_its_peer() -> None:
    (found,) = segments(*both(one(0.1, "client RST ACK 0 7000")))
    assert (found.ack, found.base[1]) == (0, 0)


def test_an_answer_without_an_ack_acknowledges_nothing() -> None:
    found = segments(*both(*HANDSHAKE, one(0.4, "client RST 1001 55")))[-1]
    assert (found.seq, found.ack) == (1, 0)


def test_a_new_connection_forgets_the_numbers_of_its_peer() -> None:
    """Its first segment with an acknowledgement says anew what they are."""
    later = [one(5.1, "client SYN 900000 0"), one(5.3, "client ACK 900001 400001 len 1")]
    found = segments(*both(*HANDSHAKE, *later))
    assert [(s.seq, s.ack) for s in found[3:]] == [(0, 0), (1, 1)]


def test_what_nobody_sent_was_injected() -> None:
    found = segments(*both(*HANDSHAKE), seen(one(0.5, "client RST 1001 0")))[-1]
    assert found.t is None
    assert found.arrived == pytest.approx(0.5 + LAG, abs=1e-6)
    assert (found.sender, found.receiver) == ("client", "server")  # as it claims
    assert not found.lost


def test_strangers_own_nothing() -> None:
    stray = replace(seen(one(0.5, "client SYN 1 0")), source="203.0.113.9:1")
    (found,) = segments(stray)
    assert (found.sender, found.receiver, found.t) == (None, "server", None)


def test_addresses_that_are_used_again() -> None:
    later = [
        one(5.1, "client SYN 900000 0"), one(5.2, "server SYN ACK 400000 900001"),
        one(5.3, "client ACK 900001 400001"), one(5.4, "server PSH ACK 400001 900001 len 3"),
    ]  # fmt: skip
    found = segments(*both(*HANDSHAKE, *later))[3:]
    assert [(s.seq, s.ack) for s in found] == [(0, 0), (0, 1), (1, 1), (1, 1)]
    assert not any(s.retransmitted for s in found)


def test_a_syn_that_is_repeated_opens_nothing_new() -> None:
    again = one(1.1, "client SYN 1000 0", mark=1)
    found = segments(one(0.1, "client SYN 1000 0"), *both(again))
    assert [(s.seq, s.retransmitted, s.lost) for s in found] == [(0, False, True), (0, True, False)]


def test_numbers_that_wrap() -> None:
    top = MODULUS - 3
    found = segments(
        *both(
            one(0.1, f"client SYN {top} 0"),
            one(0.2, f"server SYN ACK {top} {top + 1}"),
            one(0.3, f"client ACK {top + 1} {top + 1} len 5"),
            one(0.4, f"client ACK {top + 6} {top + 1} len 5"),
            one(0.5, f"server ACK {top + 1} {top + 11}"),
            one(0.6, f"client ACK {top + 1} {top + 1} len 5", mark=1),
        )
    )
    assert [(s.seq, s.ack) for s in found] == [(0, 0), (0, 1), (1, 1), (6, 1), (1, 11), (1, 1)]
    assert [s.retransmitted for s in found] == [False] * 5 + [True]


def test_ipv6() -> None:
    found = segments(*both(*(one(0.1 * n, t, v6=True) for n, t in enumerate((
        "client SYN 1000 0", "server SYN ACK 7000 1001", "client ACK 1001 7001"))))
    )  # fmt: skip
    assert [(s.sender, s.receiver, s.seq, s.ack) for s in found] == [
        ("client", "server", 0, 0), ("server", "client", 0, 1), ("client", "server", 1, 1)
    ]  # fmt: skip
    assert found[0].target == SERVER_6


def test_a_connection_whose_beginning_was_not_captured() -> None:
    found = segments(*both(one(0.1, "server FIN ACK 7001 1001"), one(0.2, "client ACK 1001 7002")))
    assert [(s.seq, s.ack) for s in found] == [(1, 1), (1, 2)]


NUMBERS = st.sampled_from([0, 1, 2, 1000, MODULUS // 2, MODULUS - 1])
ENDS = st.sampled_from([(SERVER, CLIENT), (CLIENT, SERVER), (SERVER_6, CLIENT_6)])


@st.composite
def any_observation(draw: st.DrawFn) -> Observation:
    flags = draw(st.sets(st.sampled_from(sorted(BITS))))
    return Observation(
        draw(st.sampled_from(["server", "client"])),
        EPOCH + draw(st.integers(0, 10)) / 8,
        *draw(ENDS),
        draw(NUMBERS),
        draw(NUMBERS),
        tuple(flag for flag in FLAG_BITS if flag in flags),
        draw(st.sampled_from([0, 1, 1448])),
        draw(st.sampled_from([0, 500])),
        draw(st.tuples(st.sampled_from([0, 1]), st.sampled_from([0, 9]))),
    )


def sightings(found: Iterable[Segment]) -> Counter[tuple[Any, ...]]:
    """What is left of the observations in segments: who saw what, and when."""
    left: Counter[tuple[Any, ...]] = Counter()
    for s in found:
        what = (s.source, s.target, s.flags, s.length, s.window)
        left.update((at, *what) for at in (s.t, s.arrived) if at is not None)
    return left


@given(st.lists(any_observation(), max_size=12))
def test_nothing_is_lost_or_invented(observations: list[Observation]) -> None:
    found = match(observations, Known(OWNERS, EPOCH))
    assert sightings(found) == Counter(
        (o.at - EPOCH, o.source, o.target, o.flags, o.length, o.window) for o in observations
    )
    assert [s.time for s in found] == sorted(s.time for s in found)
    for s in found:
        assert s.t is not None or s.arrived is not None
        assert s.t is None or s.arrived is None or s.t <= s.arrived
        assert 0 <= s.seq < MODULUS
        assert 0 <= s.ack < MODULUS
        assert s.summary


@pytest.mark.parametrize(
    ("first", "overtaken"),
    [("client FIN ACK 1001 7001", True), ("client ACK 1001 7001 len 3", True),
     ("client ACK 1001 7001", False)],  # of what takes no number nobody cares
)  # fmt: skip
def test_what_was_sent_later_and_came_first(first: str, overtaken: bool) -> None:
    slow, fast = one(0.5, first), one(0.6, "client ACK 1002 7001", mark=9)
    came = replace(seen(slow), at=EPOCH + 0.7)
    found = segments(*both(*HANDSHAKE, fast), slow, came)[-2:]
    assert [s.overtaken for s in found] == [overtaken, False]


def test_two_syns_that_cross_begin_one_connection() -> None:
    sent = both(
        one(0.1, "client SYN 1000 0"), one(0.2, "server SYN 7000 0"), one(1.1, "client SYN 1000 0"),
        one(1.2, "server SYN ACK 7000 1001"), one(1.3, "client ACK 1001 7001"),
    )  # fmt: skip
    found = segments(*sent)
    assert [s.retransmitted for s in found] == [False, False, True, True, False]
    assert [(s.seq, s.ack) for s in found[-2:]] == [(0, 1), (1, 1)]
