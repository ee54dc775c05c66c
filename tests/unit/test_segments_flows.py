"""What each end has sent so far decides what a segment is: a repetition, a probe, a beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from labctl.probes.observations import FLIGHT, MODULUS, Injection, Known, Loss, Observation, Segment
from labctl.probes.packets import STAMPED_ALONE
from labctl.probes.segments import match
from tests.sighted import EPOCH, HANDSHAKE, OWNERS, both, one, seen, segments

TOP = MODULUS - 2
HALF = MODULUS // 2


def after(*texts: str, base: int = 0, start: Sequence[Observation] = HANDSHAKE) -> list[Segment]:
    """What is found of these segments, one each second after a handshake. `base` is added to the
    client's numbers; in a text they are relative: `client ACK 1 1 len 5`."""
    found = list(start)
    for n, text in enumerate(texts):
        o = one(1.0 + n, text, mark=n + 1, window=0 if text.endswith("shut") else 500)
        mine, theirs = (1000, 7000) if o.host == "client" else (7000, 1000)
        ack = o.ack + theirs if "ACK" in o.flags else 0
        found.append(replace(o, seq=o.seq + mine, ack=ack))
    return segments(*both(*(shifted(o, base) for o in found)))


def shifted(o: Observation, base: int) -> Observation:
    """The same, with the client's numbers so much larger."""
    mine, theirs = (base, 0) if o.host == "client" else (0, base)
    acks = "ACK" in o.flags
    return replace(o, seq=(o.seq + mine) % MODULUS, ack=(o.ack + theirs * acks) % MODULUS)


WRAPS = [0, TOP - 1000, TOP - 1002, TOP - 1006]
"""With these a client's numbers begin again soon after its SYN."""


# --- What repeats something -----------------------------------------------------------------------


@pytest.mark.parametrize("base", WRAPS)
@pytest.mark.parametrize(
    ("texts", "marks"),
    [
        (["client ACK 1 1 len 5", "client ACK 1 1 len 5"], ["retransmitted"]),
        (["client ACK 1 1 len 5", "client ACK 6 1 len 5"], []),
        (["client ACK 1 1 len 5", "client ACK 3 1"], []),  # a bare one repeats nothing
        (["client ACK 1 1 len 9", "client ACK 1 1 len 4", "client ACK 5 1 len 5"],
         ["retransmitted"]),  # part by part
        (["client ACK 1 1 len 9", "server ACK 1 10", "client ACK 9 1"], ["keepalive"]),
        (["client ACK 1 1 len 9", "client ACK 9 1"], []),  # not all is acknowledged yet
        (["client ACK 1 1 len 9", "server ACK 1 10", "client ACK 8 1"], []),
        (["client ACK 1 1 len 9", "server ACK 1 10", "client ACK 9 1 len 1"], ["retransmitted"]),
        (["client ACK 1 1 len 9", "server ACK 1 10", "client RST 9 0"], []),
        (["client ACK 1 1 len 9", "server ACK 1 10", "client FIN ACK 9 1"], ["retransmitted"]),
        (["client ACK 1 1", "client ACK 0 1"], ["keepalive"]),  # and no duplicate ACK
        (["client ACK 1 1", "client ACK 1 1"], ["duplicate ACK"]),
    ],
)  # fmt: skip
def test_what_repeats_what_its_end_has_sent(base: int, texts: list[str], marks: list[str]) -> None:
    assert [*after(*texts, base=base)[-1].marks] == marks


def test_a_syn_that_is_sent_again_is_no_keepalive() -> None:
    """Though it has the number before the next one, and all is acknowledged."""
    (syn, answer), again = HANDSHAKE[:2], one(1.0, "client SYN 1000 0", mark=5)
    found = segments(*both(syn), *both(answer), *both(again))[-1]
    assert found.marks == ("retransmitted",)


def test_a_syn_that_is_sent_again_acknowledges_nothing() -> None:
    again = one(1.0, "client SYN 1000 0", mark=5)
    asks = one(9.0, "server ACK 7000 1001")
    assert segments(*both(*HANDSHAKE, again, asks))[-1].keepalive


@pytest.mark.parametrize(("apart", "again"), [(HALF - 1, True), (HALF, False), (HALF + 1, False)])
def test_half_of_all_numbers_are_before_one(apart: int, again: bool) -> None:
    data = [one(0.5, "client ACK 1001 7001 len 5"),
            one(0.6, f"client ACK {(1006 - apart) % MODULUS} 7001 len 5", mark=1)]  # fmt: skip
    assert segments(*both(*HANDSHAKE, *data))[-1].retransmitted is again


def test_what_an_end_has_sent_is_known_by_what_the_other_acknowledged() -> None:
    """Also if its SYN is in no capture."""
    found = segments(*both(one(0.1, "server ACK 7001 1001 len 5"),
                           one(0.2, "client ACK 1501 7006 len 5")))  # fmt: skip
    assert [(s.seq, s.ack) for s in found] == [(1, 1), (501, 6)]


def test_a_new_connection_forgets_what_was_captured_of_an_old_one() -> None:
    old = one(0.1, "server ACK 7001 1001 len 5")
    texts = ("client SYN 900000 0", "server ACK 9001 900001 len 1")
    found = segments(*both(old, *(one(0.2 + n, text) for n, text in enumerate(texts))))
    assert [(s.seq, s.ack) for s in found] == [(1, 1), (0, 0), (1, 1)]


def test_a_reset_without_any_context_counts_from_itself() -> None:
    (found,) = segments(*both(one(0.1, "client RST 1001 0")))
    assert (found.seq, found.base) == (1, (1000, 0))


# --- SYNs that begin something, and others --------------------------------------------------------

STRAY = "client SYN 899000 0"


@pytest.mark.parametrize("base", WRAPS)
@pytest.mark.parametrize(
    ("texts", "begins"),
    [
        ([STRAY], True),
        ([STRAY, "client ACK 1 1"], False),
        ([STRAY, "client ACK 0 1"], False),  # a keepalive probe goes on, too
        ([STRAY, "client ACK 2 1"], True),
        ([STRAY, "client ACK 899001 1"], True),
        ([STRAY, STRAY, "client ACK 1 1"], False),
        ([STRAY, "client RST 1 0", "client ACK 1 1"], False),
        ([STRAY, "client RST 1 0"], True),
        (["client ACK 1 1 len 5", STRAY, "client ACK 1 1 len 5"], False),  # it repeats that
        (["client ACK 1 1 len 5", STRAY, "client ACK 6 1 len 5"], False),
        ([STRAY, "server ACK 1 1", "client ACK 1 1"], False),
    ],
)
def test_a_syn_begins_a_connection_unless_its_end_goes_on(
    base: int, texts: list[str], begins: bool
) -> None:
    found = after(*texts, base=base)
    stray = next(s for s in found[3:] if "SYN" in s.flags)
    assert stray.seq == (0 if begins else 899000)
    last = found[-1]
    assert begins or (last.seq < 10 and last.retransmitted is (texts[0] == texts[-1]))


def test_a_second_try_from_the_same_port_begins_anew() -> None:
    """The first one had no answer."""
    found = segments(*both(one(0.1, "client SYN 1000 0"), one(0.2, "client SYN 5000 0"),
                           one(0.3, "server SYN ACK 7000 5001")))  # fmt: skip
    assert [(s.seq, s.ack) for s in found] == [(0, 0), (0, 0), (0, 1)]


def test_what_a_step_sends_meanwhile_does_not_go_on_for_its_end() -> None:
    syn, made = one(1.0, "client SYN 900000 0"), one(1.1, "client ACK 1001 7001")
    talk = both(*HANDSHAKE, syn, made, one(1.2, "client ACK 900001 7001"))
    found = match(talk, Known(OWNERS, EPOCH, injections=[Injection(1, 1, made)]))
    assert (found[3].seq, found[-1].seq) == (0, 1)


def test_a_stray_syn_has_no_scale_as_no_syn_has_one() -> None:
    def opens(o: Observation) -> Observation:
        return replace(o, header=replace(STAMPED_ALONE, options=("wscale",), scale=7))

    begun = [opens(HANDSHAKE[0]), opens(HANDSHAKE[1]), HANDSHAKE[2]]
    found = after(STRAY, "client ACK 1 1", "server ACK 1 1", start=begun)
    assert [s.origin.scale for s in found] == [0, 0, 7, 0, 7, 7]
    assert found[2].origin is found[4].origin  # thousands of segments have one


@pytest.mark.parametrize("first", [0, 1])
def test_of_one_syn_alone_nobody_knows_the_scale(first: int) -> None:
    header = replace(STAMPED_ALONE, options=("wscale",), scale=7)
    talk = [replace(HANDSHAKE[first], header=header), HANDSHAKE[2],
            one(0.4, "server ACK 7001 1001")]  # fmt: skip
    found = segments(*both(*talk))
    assert [s.origin.scale for s in found[1:]] == [None, None]
    guessed = {s.sender: s.origin.guessed for s in found[1:]}
    ours = ("client", "server") if first else ("server", "client")
    assert guessed == {ours[0]: ("seq",), ours[1]: ("ack",)}


# --- What steps send ------------------------------------------------------------------------------


def made(*observations: Observation, last: Observation, base: int = 0) -> Segment:
    """The last one, after a handshake and these, which steps sent in the client's name."""
    talk = [shifted(o, base) for o in (*HANDSHAKE, *observations, last)]
    reports = [Injection(0, 0, o) for o in talk[3:-1]]
    return match(both(*talk), Known(OWNERS, EPOCH, injections=reports))[-1]


ASKS = one(9.0, "server ACK 7000 1001")


@pytest.mark.parametrize("base", [0, TOP - 1000, TOP - 1005])
@pytest.mark.parametrize(
    ("texts", "counts"),
    [
        (["ACK 1001 7001"], True),
        (["ACK 1000 7001"], False),  # an old number
        (["PSH 1001 7001"], False),  # it acknowledges nothing, and has no window
        (["ACK 1001 7000"], False),  # less than the client itself has acknowledged
        (["ACK 1001 7001 len 5", "ACK 1006 7001"], True),
        (["ACK 1001 7001 len 5", "ACK 1001 7001"], False),
        (["ACK 2001 7001", "ACK 1001 7001"], True),  # after a gap, which nothing has filled
        (["ACK 1001 7001 len 5", "ACK 1006 7001 len 5", "ACK 1006 7001"], False),
    ],
)
def test_what_a_step_sent_counts_if_it_comes_next(
    texts: list[str], counts: bool, base: int
) -> None:
    """The last one closes the window: whether the server asks for that tells whether it counts."""
    sent = [one(0.4 + n, f"client {text}", mark=n + 1) for n, text in enumerate(texts)]
    found = made(*sent[:-1], replace(sent[-1], window=0), last=ASKS, base=base)
    assert (found.probe, found.keepalive) == (counts, not counts)


def test_what_a_step_sent_before_any_other_counts_for_nobody() -> None:
    """A SYN of its own tells where an end's numbers begin, and other segments do not."""
    first = one(0.1, "client ACK 5001 7001")
    later = [one(0.2, "client ACK 1001 7001 len 5"), one(0.3, "server ACK 7001 1006")]
    found = match(both(first, *later), Known(OWNERS, EPOCH, injections=[Injection(1, 1, first)]))
    assert [(s.seq, s.ack) for s in found[1:]] == [(1, 1), (1, 6)]
    answered = match(both(later[1], first),
                     Known(OWNERS, EPOCH, injections=[Injection(1, 1, first)]))  # fmt: skip
    assert [s.crafted for s in answered] == [True, False]


@pytest.mark.parametrize(
    ("before", "seq"),
    [
        ([], 1),
        (["client ACK 3001 7001 len 5"], 1),  # of an end without a SYN
        (["client SYN 3000 0"], 2001),  # its own counts, though nobody has answered it yet
    ],
)
def test_where_an_injected_syn_begins_the_numbers_of_an_end(before: list[str], seq: int) -> None:
    syn = one(0.3, "client SYN 5000 0")
    talk = [*(one(0.1, text) for text in before), syn, one(0.4, "client ACK 5001 7001", mark=9)]
    found = match(both(*talk), Known(OWNERS, EPOCH, injections=[Injection(0, 0, syn)]))
    assert found[-1].seq == seq


@pytest.mark.parametrize(
    ("numbers", "shown", "base"),
    [
        ((0, 0), (0, 0), (1001, 7001)),
        ((1, 1), (1, 1), (1000, 7000)),
        ((-5, -6), (-5, -6), (1006, 7007)),  # before the beginning
        ((MODULUS - 1, 1), (MODULUS - 1, 1), (1002, 7000)),
        ((MODULUS, MODULUS + 3), (0, 3), (1001, 6998)),
        ((-MODULUS, 1 - MODULUS), (0, 1 - MODULUS), (1001, 7000)),
        ((2000, 8000), (2000, 8000), (MODULUS - 999, MODULUS - 999)),
    ],
)
def test_numbers_of_what_a_step_sent(
    numbers: tuple[int, int], shown: tuple[int, int], base: tuple[int, int]
) -> None:
    forged = one(0.5, "client ACK 1001 7001")
    known = Known(OWNERS, EPOCH, injections=[Injection(*numbers, forged)])
    (found,) = match([forged, seen(forged)], known)
    assert ((found.seq, found.ack), found.base) == (shown, base)


def test_a_forged_segment_without_an_ack_acknowledges_nothing() -> None:
    forged = one(0.5, "client RST 1001 77")
    known = Known(OWNERS, EPOCH, injections=[Injection(1, 0, forged)])
    (found,) = match([forged, seen(forged)], known)
    assert found.base == (1000, 0)


# --- What overtook what ---------------------------------------------------------------------------

SLOW, FAST = one(0.5, "client ACK 1001 7001 len 3"), one(0.6, "client ACK 1004 7001 len 3")


def comes(o: Observation, at: float) -> Observation:
    return replace(seen(o), at=EPOCH + at)


@pytest.mark.parametrize(
    ("sights", "overtaken"),
    [
        ([SLOW, comes(SLOW, 0.7), FAST, comes(FAST, 0.65)], [True, False]),
        ([SLOW, comes(SLOW, 0.65), FAST, comes(FAST, 0.65)], [False, False]),
        ([SLOW, comes(SLOW, 0.7), FAST], [False, False]),  # that was lost
        ([SLOW, FAST, comes(FAST, 0.65)], [False, False]),  # so was this
        ([comes(SLOW, 0.7), FAST, comes(FAST, 0.65)], [False, False]),  # nobody sent it
        ([SLOW, comes(SLOW, 0.7), comes(FAST, 0.65)], [False, False]),
        ([SLOW, comes(SLOW, 0.7), replace(FAST, at=SLOW.at), comes(FAST, 0.65)], [False, False]),
    ],
)
def test_what_was_sent_first_and_came_last(
    sights: list[Observation], overtaken: list[bool]
) -> None:
    found = sorted(segments(*sights), key=lambda s: s.seq)
    assert [s.overtaken for s in found] == overtaken


def test_what_began_with_the_run_is_overtaken_too() -> None:
    slow, fast = replace(SLOW, at=0.0), replace(FAST, at=0.125)
    talk = [slow, replace(seen(slow), at=0.25), fast, replace(seen(fast), at=0.1875)]
    assert [s.overtaken for s in match(talk, Known(OWNERS, 0.0))] == [True, False]


# --- Where nobody captured ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sights", "watched", "unseen"),
    [
        ("sent", {"client": (0.0, 9.0)}, True),  # the server was not watched at all
        ("sent", {"client": (0.0, 9.0), "server": (0.0, 9.0)}, False),
        ("sent", {"client": (0.0, 9.0), "server": (0.0, 1.0 + FLIGHT)}, False),
        ("sent", {"client": (0.0, 9.0), "server": (0.0, 1.0 + FLIGHT / 2)}, True),
        ("sent", None, False),
        ("came", {"server": (0.0, 9.0)}, True),
        ("came", {"server": (0.0, 9.0), "client": (0.0, 9.0)}, False),
        ("came", {"server": (0.0, 9.0), "client": (1.0 - FLIGHT, 9.0)}, False),
        ("came", {"server": (0.0, 9.0), "client": (1.0 - FLIGHT / 2, 9.0)}, True),
        ("both", {"client": (0.0, 0.5), "server": (0.0, 0.5)}, False),
        ("dropped", {"client": (0.0, 9.0)}, False),  # a step says what became of it
    ],
)
def test_what_may_have_left_or_arrived_where_nobody_saw_it(
    sights: str, watched: Any, unseen: bool
) -> None:
    sent = replace(SLOW, at=1.0)
    came = replace(seen(sent), at=1.0)
    kinds = {"sent": [sent], "came": [came], "both": [sent, came], "dropped": []}
    losses = [Loss(7, sent)] if sights == "dropped" else []
    (found,) = match(kinds[sights], Known(OWNERS, 0.0, losses, watched=watched))
    assert found.unseen is unseen
    assert found.lost is (sights in ("sent", "dropped") and not unseen)
    assert found.injected is (sights == "came" and not unseen)
