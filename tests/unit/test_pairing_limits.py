"""Which sights are of one segment: both sides of each limit, and what resembles it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from labctl.probes.observations import (
    FLIGHT,
    MODULUS,
    Injection,
    Known,
    Loss,
    Observation,
    Segment,
)
from labctl.probes.owners import Owners
from labctl.probes.pairing import EARLY, FORWARDED, REPORTED
from labctl.probes.segments import match
from tests.sighted import OWNERS, SERVER, one

FAR, STRANGE = "203.0.113.9:80", "203.0.113.7:40000"
SYN = one(0.0, "client SYN 1000 0")
DATA = one(0.0, "client ACK 1001 7001 len 5")
ROUTED: Mapping[str, str] = {**OWNERS, "198.18.0.9": "router", "198.18.0.100": "router"}
VIRTUAL = "198.18.0.100:80"


def at(t: float, o: Observation = DATA, host: str = "", **more: Any) -> Observation:
    """The same at that moment of the clock, on that host: limits are met exactly."""
    return replace(o, at=t, host=host or o.host, **more)


def of(
    *observations: Observation, owners: Mapping[str, str] = ROUTED, losses: Sequence[Loss] = (),
    injections: Sequence[Injection] = (), apart: float = 0.0, named: bool = False,
) -> list[Segment]:  # fmt: skip
    known = Known(owners, 0.0, losses, injections, apart=apart, named=named)
    return match(observations, known)


def moments(found: Iterable[Segment]) -> list[tuple[float | None, float | None]]:
    """When each left and arrived."""
    return [(s.t, s.arrived) for s in found]


# --- Between two hosts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrives", "apart", "one_segment"),
    [
        (1.0, 0.0, True),
        (0.995, 0.0, True),  # two captures, two moments
        (0.985, 0.0, False),
        (0.985, 0.25, True),  # by two clocks
        (0.765, 0.25, True),
        (0.735, 0.25, False),
        (1.0 + FLIGHT, 0.0, True),
        (9.0, 0.0, True),  # something held it up
    ],
)
def test_when_what_left_arrives(arrives: float, apart: float, one_segment: bool) -> None:
    found = moments(of(at(1.0, SYN), at(arrives, SYN, "server"), apart=apart))
    assert found == ([(1.0, arrives)] if one_segment else [(None, arrives), (1.0, None)])


def test_what_goes_between_two_hosts_alone_was_passed_on_by_nobody() -> None:
    """Also if both say the same at the same time."""
    crossing = one(0.0, "server SYN 1000 0")
    found = of(at(1.0, SYN), at(1.1, SYN, "server"), at(1.1, crossing), at(1.2, crossing, "client"))
    assert [(s.sender, s.receiver) for s in found] == [("client", "server"), ("server", "client")]
    assert not any(s.follows or s.passed_on or s.way for s in found)


@pytest.mark.parametrize(("second", "first_lost"), [(FLIGHT, True), (FLIGHT * 1.5, False)])
def test_what_comes_twice_or_late(second: float, first_lost: bool) -> None:
    """One that comes soon after a copy that has come is a duplicate of that; later it is the first
    one, held up."""
    sent, came = [at(0.0), at(1.0)], [at(1.125, host="server"), at(1.0 + second, host="server")]
    found = moments(of(*sent, *came))
    assert ((0.0, None) in found) is first_lost
    assert ((None, 1.0 + second) in found) is first_lost


def test_a_duplicate_of_what_a_slow_capture_shows_too_late() -> None:
    sent, came = [at(0.0), at(1.005)], [at(1.0, host="server"), at(1.001, host="server")]
    assert (0.0, None) in moments(of(*sent, *came))


def test_each_host_has_a_loopback_address_of_its_own() -> None:
    inside = replace(SYN, source="127.0.0.1:40000", target="127.0.0.2:80")
    found = of(at(1.0, inside, "client"), at(1.5, inside, "server"))
    assert [(s.sender, s.receiver) for s in found] == [("client", "client"), ("server", "server")]


def test_an_address_that_moves_is_its_hosts_at_that_time() -> None:
    owners = Owners({**OWNERS}).moved("198.18.0.3", "other", 5.0)
    pairs = [(at(t, host=host), at(t, host="server")) for t, host in ((1.0, "client"),
                                                                     (6.0, "other"))]  # fmt: skip
    found = of(*(o for pair in pairs for o in pair), owners=owners)
    assert [(s.sender, s.receiver) for s in found] == [("client", "server"), ("other", "server")]


def test_a_segment_between_two_addresses_of_one_host_was_seen_once() -> None:
    owners = {**OWNERS, "198.18.0.8": "client"}
    (found,) = of(at(1.0, target="198.18.0.8:80"), owners=owners)
    assert (found.t, found.arrived, found.inside) == (1.0, 1.0, True)


# --- Routers --------------------------------------------------------------------------------------


def hops(found: Segment) -> list[tuple[str, float, float | None]]:
    return [(hop.host, hop.came, hop.left) for hop in found.way.hops] if found.way else []


def test_a_hop_is_from_when_it_came_to_when_it_left() -> None:
    (found,) = of(at(1.0), at(1.1, host="router"), at(1.2, host="server"))
    assert hops(found) == [("router", 1.1, None)]  # it was seen on one of its links alone
    middle = [at(t, host="router") for t in (1.1, 1.12, 1.15)]
    (found,) = of(at(1.0), *middle[:2], at(1.2, host="server"))
    assert hops(found) == [("router", 1.1, 1.12)]
    (found,) = of(at(1.0), *middle, at(1.2, host="server"))  # as over a bridge
    assert hops(found) == [("router", 1.1, 1.15)]


def test_a_hop_that_loses_a_segment_has_not_passed_it_on() -> None:
    there = [at(1.1, host="router"), at(1.12, host="router")]
    (found,) = of(at(1.0), *there, losses=[Loss(7, there[1])])
    assert (found.lost, found.dropped, found.receiver) == (True, 7, "server")
    assert hops(found) == [("router", 1.1, None)]


def test_equal_segments_have_each_their_own_ways() -> None:
    """What a router sees a moment before the sender does is of that one."""
    first, second, third = at(1.0), at(1.5), at(2.0)
    between = [at(t, host="router") for t in (1.0 - EARLY, 1.1, 1.6, 2.0 - EARLY, 2.1)]
    arrived = [at(t, host="server") for t in (1.2, 1.7, 2.2)]
    found = of(first, second, third, *between, *arrived)
    assert moments(found) == [(1.0, 1.2), (1.5, 1.7), (2.0, 2.2)]
    assert [hops(s) for s in found] == [
        [("router", 1.0 - EARLY, 1.1)], [("router", 1.6, None)], [("router", 2.0 - EARLY, 2.1)],
    ]  # fmt: skip


def test_what_comes_from_outside_is_the_first_host_s_that_sees_it() -> None:
    strange = replace(DATA, source=STRANGE)
    way = [at(1.0, strange, "r1"), at(1.1, strange, "r2"), at(1.2, strange, "server")]
    (found,) = of(*way)
    assert (found.sender, found.receiver, *moments([found])) == ("r1", "server", (1.0, 1.2))
    assert hops(found) == [("r2", 1.1, None)]


def test_what_goes_through_from_outside_to_outside() -> None:
    strange = replace(DATA, source=STRANGE, target=FAR)
    (found,) = of(at(1.0, strange, "r1"), at(1.1, strange, "r2"))
    assert (found.sender, found.receiver, *moments([found])) == ("r1", "r2", (1.0, 1.1))
    (alone,) = of(at(1.0, strange, "r1"))  # nobody knows whether it came anywhere
    assert (alone.sender, *moments([alone])) == ("r1", (1.0, None))


def test_what_is_lost_at_the_last_host_that_sees_it() -> None:
    leaves = replace(DATA, target=FAR)
    last = at(1.2, leaves, "r2")
    (found,) = of(at(1.0, leaves), at(1.1, leaves, "r1"), last, losses=[Loss(7, last)])
    assert (found.t, found.dropped, found.lost) == (1.0, 7, True)


def test_a_router_that_loses_in_both_directions_speaks_for_nobody() -> None:
    answer = one(0.0, "server ACK 7001 1001 len 9")
    found = of(at(1.0), at(1.1, host="router"), at(2.0, answer), at(2.1, answer, "router"))
    assert [(s.sender, s.receiver, s.lost) for s in found] == [
        ("client", "server", True), ("server", "client", True),
    ]  # fmt: skip


PROXIED = [
    at(1.0, SYN), at(1.1, SYN, "router"),
    at(1.11, one(0.0, "server SYN ACK 7000 1001"), "router"),
    at(1.2, one(0.0, "server SYN ACK 7000 1001"), "client"),
]  # fmt: skip
"""A proxy that nobody sees answers in the server's name."""


def test_a_proxy_speaks_for_the_server_whatever_else_there_is() -> None:
    answer = PROXIED[2]
    stray = at(5.0, one(0.0, "client ACK 99 1"), "server")  # sent by nobody
    forwarded = [at(t, answer, "r2") for t in (1.111, 1.112)]
    for more in ([], [stray], forwarded):
        found = of(*PROXIED, *more)
        assert [(s.sender, s.receiver, s.lost) for s in found[:2]] == [
            ("client", "router", False), ("router", "client", False),
        ]  # fmt: skip
        assert len(found) == 2 + (more == [stray])


@pytest.mark.parametrize(("apart", "made"), [(EARLY, False), (EARLY * 1.5, True)])
def test_how_near_two_sights_of_what_is_forwarded_are(apart: float, made: bool) -> None:
    reset = one(0.0, "server RST ACK 0 1001")
    way = [at(0.0, reset, "router"), at(apart, reset, "router"), at(0.1, reset, "client")]
    assert ("router" in {s.sender for s in of(*way)}) is made


# --- NATs -----------------------------------------------------------------------------------------


def passed_on(slow: float, **more: Any) -> list[Segment]:
    """A balancer passes a SYN on after that time, under other addresses."""
    syn = replace(SYN, target=VIRTUAL)
    out = at(1.0 + slow, SYN, "router")
    return of(at(0.5, syn), at(1.0, syn, "router"), out, at(3.0, SYN, "server"), **more)


@pytest.mark.parametrize(
    ("slow", "on"),
    [(-EARLY / 2, True), (-EARLY * 2, False), (0.0, True), (FORWARDED * 0.75, True),
     (FORWARDED, True), (FORWARDED * 1.1, False)],
)  # fmt: skip
def test_how_long_a_nat_may_take(slow: float, on: bool) -> None:
    first, second = sorted(passed_on(slow), key=lambda s: s.target == SERVER)
    assert (second.sender, second.follows, first.way is not None) == (
        ("client", True, True) if on else ("router", False, False)
    )


@pytest.mark.parametrize(
    ("slow", "lost"), [(FORWARDED * 0.75, False), (FORWARDED, False), (FORWARDED * 1.1, True)]
)
def test_how_long_a_nat_may_take_to_change_a_source(slow: float, lost: bool) -> None:
    answer = one(0.0, "server SYN ACK 7000 1001")
    way = [at(0.5, answer), at(1.0, answer, "router"),
           at(1.0 + slow, answer, "router", source=VIRTUAL)]  # fmt: skip
    first = of(*way, at(3.0, answer, "client", source=VIRTUAL))[0]
    assert (first.receiver, first.lost) == ("client", lost)


def test_between_named_networks_a_nat_has_received_and_sent() -> None:
    first, second = passed_on(0.1, named=True)
    assert (first.sender, first.receiver, first.passed_on) == ("client", "router", True)
    assert (second.sender, second.receiver, second.follows) == ("router", "server", True)
    assert not second.passed_on and not first.follows
    first, second = passed_on(0.1)
    assert (first.passed_on, second.sender, second.follows) == (False, "client", True)
    assert first.way and first.way.names == ((second.source, SERVER),)


def test_of_two_equal_segments_a_nat_passes_one_on() -> None:
    syn = replace(SYN, target=VIRTUAL)
    way = [at(1.0, syn), at(1.1, syn, "router"), at(1.2, syn), at(1.3, syn, "router")]
    found = of(*way, at(1.35, SYN, "router"), at(1.4, SYN, "server"))
    assert [s.way is not None for s in found if s.target == VIRTUAL] == [True, False]
    assert [s.follows for s in found] == [False, False, True]


# --- Reports --------------------------------------------------------------------------------------


def test_what_a_router_lost_is_one_segment() -> None:
    there = at(1.1, host="router")
    (found,) = of(at(1.0), there, losses=[Loss(7, there)])
    assert (found.dropped, found.receiver) == (7, "server")


def test_a_report_is_enough_to_know_of_a_segment() -> None:
    (found,) = of(losses=[Loss(7, at(1.0, host="server"))])
    assert (found.dropped, found.receiver, found.arrived) == (7, "server", None)
    (made,) = of(injections=[Injection(1, 1, at(1.0))])
    assert (made.crafted, made.sender, made.t) == (True, "client", 1.0)


def test_what_resembles_a_lost_or_a_made_segment_is_another_one() -> None:
    here, there = at(1.0), at(1.1, host="server")
    lost, stray = of(there, losses=[Loss(7, here)])
    assert (lost.dropped, lost.t, lost.arrived) == (7, 1.0, None)
    assert (stray.dropped, stray.t, stray.arrived) == (None, None, 1.1)
    sent, made = of(here, there, injections=[Injection(1, 1, there)])
    assert (sent.crafted, sent.lost, made.crafted, made.t) == (False, True, True, 1.1)


def test_what_was_lost_inside_its_host_had_been_captured() -> None:
    inside = replace(DATA, source="127.0.0.1:40000", target="127.0.0.1:80")
    (found,) = of(at(1.0, inside), losses=[Loss(7, at(1.1, inside))])
    assert (found.dropped, found.arrived, found.t) == (7, None, 1.0)


def test_what_a_host_sends_to_itself_for_another_left() -> None:
    forged = at(1.0, host="server")
    (found,) = of(forged, injections=[Injection(1, 1, forged)])
    assert (found.crafted, found.t) == (True, 1.0)


@pytest.mark.parametrize("backwards", [False, True])
def test_reports_and_captures_may_come_in_any_order(backwards: bool) -> None:
    came = [at(1.1, host="server"), at(1.3, host="server")]
    captures, reports = [at(1.0), at(1.2), *came], [Loss(n, o) for n, o in enumerate(came)]
    order = slice(None, None, -1 if backwards else 1)
    assert [s.dropped for s in of(*captures[order], losses=reports[order])] == [0, 1]


@pytest.mark.parametrize(("sent", "moved"), [(1.0 - REPORTED, False), (1.01 - REPORTED, True)])
def test_how_late_the_report_of_a_loss_may_be(sent: float, moved: bool) -> None:
    later = replace(DATA, seq=1006, mark=(4, 0))
    lost = Loss(7, at(1.0, replace(DATA, mark=(3, 0))))
    found = of(at(sent, later), at(sent, later, "server"), losses=[lost])
    assert [s.dropped for s in found] == ([7, None] if moved else [None, 7])


# --- Large segments -------------------------------------------------------------------------------

LARGE = one(0.0, "client ACK 1001 7001 len 3000")
PARTS = [
    replace(LARGE, length=length, seq=LARGE.seq + begin, mark=(begin, 0))
    for begin, length in ((0, 1448), (1448, 1448), (2896, 104))
]


def rejoined(
    whole: Sequence[Observation], parts: Sequence[Observation], **more: Any
) -> list[tuple[int, bool, float | None]]:
    """What is found if these left, and these came: length, whether it was lost, when it came."""
    return [(s.length, s.lost, s.arrived) for s in of(*whole, *parts, **more)]


def came(t: float, parts: Sequence[Observation] = PARTS) -> list[Observation]:
    return [at(t + n / 64, part, "server") for n, part in enumerate(parts)]


@pytest.mark.parametrize(
    ("arrives", "apart", "joined"),
    [
        (1.0 - EARLY * 0.9, 0.0, True),
        (1.0 - EARLY * 1.1, 0.0, False),
        (1.0 - EARLY * 1.1, 0.25, True),
        (1.0 + FLIGHT - 2 / 64, 0.0, True),
        (1.0 + FLIGHT, 0.0, False),
    ],
)
def test_when_the_parts_of_a_large_segment_come(arrives: float, apart: float, joined: bool) -> None:
    found = rejoined([at(1.0, LARGE)], came(arrives), apart=apart)
    assert (found == [(3000, False, arrives + 2 / 64)]) is joined
    assert (3000, True, None) in found or joined


def test_large_segments_may_begin_with_the_run() -> None:
    assert rejoined([at(0.0, LARGE)], came(0.0)) == [(3000, False, 2 / 64)]


def test_the_first_byte_of_a_large_segment_must_come_too() -> None:
    first = replace(PARTS[0], seq=PARTS[0].seq + 1, length=1447)
    assert (3000, True, None) in rejoined([at(1.0, LARGE)], came(1.0, [first, *PARTS[1:]]))


def test_parts_one_after_the_other_come_as_one() -> None:
    for step in (1 / 64, -1 / 64, 0.0):
        sent = [at(1.0 + n * step, part) for n, part in enumerate(PARTS)]
        found = of(*sent, at(1.0625, LARGE, "server"))
        assert sorted(s.length for s in found) == [104, 1448, 1448]
        assert {s.arrived for s in found} == {1.0625}


def test_what_is_beside_a_large_segment_is_no_part_of_it() -> None:
    """It was sent by nobody, and stays so."""
    for seq, length in ((LARGE.seq - 1000, 500), (LARGE.seq - 500, 500), (LARGE.seq + 3000, 500)):
        beside = replace(LARGE, seq=seq, length=length, mark=(9, 0))
        found = of(at(1.0, LARGE), *came(1.0), at(1.0625, beside, "server"))
        assert sorted((s.length, s.t, s.arrived) for s in found if s.t is None) == [
            (500, None, 1.0625)
        ]
        assert [s.lost for s in found if s.t is not None] == [False]


def test_a_bare_ack_has_no_parts() -> None:
    lost = one(0.0, "client ACK 1001 7001", mark=3)
    forged = replace(lost, mark=(4, 0))
    assert moments(of(at(1.0, lost), at(1.0625, forged, "server"))) == [(1.0, None), (None, 1.0625)]


def test_what_a_step_lost_or_sent_was_not_cut_up() -> None:
    """Parts of it that came all the same were sent by nobody."""
    dropped = of(*came(1.0), losses=[Loss(7, at(1.0, LARGE))])
    assert [(s.length, s.dropped, s.t) for s in dropped if s.dropped is not None] == [
        (3000, 7, 1.0)
    ]
    assert sum(s.t is None for s in dropped) == len(PARTS)
    made = of(at(1.0, LARGE), *came(1.0), injections=[Injection(1, 1, at(1.0, LARGE))])
    assert [(s.crafted, s.arrived) for s in made if s.t is not None] == [(True, None)]


def test_numbers_may_be_far_apart() -> None:
    """Half of all numbers are after one, and the others before it."""
    for apart in (MODULUS // 2 - 1, MODULUS // 2, MODULUS // 2 + 1):
        other = replace(LARGE, seq=(LARGE.seq + apart) % MODULUS, length=5, mark=(9, 0))
        found = of(at(1.0, LARGE), *came(1.0), at(1.0625, other, "server"))
        assert [s.lost for s in found if s.t is not None] == [False]


def test_how_early_what_a_nat_passes_on_may_seem_to_have_left() -> None:
    syn = replace(SYN, target=VIRTUAL)
    for early, on in ((0.0, True), (0.001, True), (-0.001, False)):  # within EARLY, and beyond it
        seen = [at(0.0, syn), at(EARLY, syn, "router"), at(early, SYN, "router")]
        *_, last = sorted(of(*seen, at(3.0, SYN, "server")), key=lambda s: s.target == SERVER)
        assert last.follows is on
