"""What happens to segments on their way through others: held up, cut up, put together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labctl.probes.observations import FLIGHT, Known, Observation
from labctl.probes.segments import match
from labctl.record.events import LabEvent
from labctl.record.history import History
from tests.sighted import EPOCH, HANDSHAKE, LAG, NAMES, OWNERS, both, one, record, seen, segments


def comes(observation: Observation, after: float) -> Observation:
    """The same where it arrives, so many seconds after it left."""
    return replace(seen(observation), at=observation.at + after)


def told(*observations: Observation) -> list[tuple[int, int, bool, bool]]:
    """Number, length, whether it was lost, whether nobody sent it."""
    found = segments(*both(*HANDSHAKE), *observations)[len(HANDSHAKE) :]
    return [(s.seq, s.length, s.lost, s.injected) for s in found]


DATA = one(1.0, "client PSH ACK 1001 7001 len 10")
AGAIN = replace(DATA, at=EPOCH + 2.0)


@pytest.mark.parametrize("delay", [0.3, 5.0])
def test_what_comes_late_was_not_lost(delay: float) -> None:
    (found,) = segments(DATA, comes(DATA, delay))
    assert not found.lost and not found.injected
    assert found.flight == pytest.approx(delay)


def test_equal_ones_that_come_late_have_all_come() -> None:
    later = replace(DATA, at=EPOCH + 1.2)
    found = told(DATA, later, comes(DATA, 0.4), comes(later, 0.4))
    assert found == [(1, 10, False, False)] * 2


def test_what_comes_twice_does_not_stand_for_what_was_lost_before() -> None:
    found = told(DATA, AGAIN, comes(AGAIN, 0.001), comes(AGAIN, 0.1))
    assert found == [(1, 10, True, False), (1, 10, False, False), (1, 10, False, True)]


def test_nothing_comes_before_it_left() -> None:
    early = replace(DATA, at=EPOCH + 0.5)
    assert told(DATA, comes(early, 0.0)) == [(1, 10, False, True), (1, 10, True, False)]


def test_what_comes_late_is_lost_until_then() -> None:
    packets = [(o.host, record(o)) for o in (DATA, comes(DATA, 2.0))]
    lab = LabEvent(0.0, "", "fake", {"probes": ["ss", "capture"]}, NAMES, EPOCH)
    found = History([lab])
    for host, data in packets:
        found.captures.add(host, data)
    marks = []
    for now in (1.0 + FLIGHT / 2, 1.0 + 2 * FLIGHT, 3.1):
        found.reach(now)
        (segment,) = found.segments()
        marks.append((segment.pending, segment.lost))
    assert marks == [(True, False), (False, True), (False, False)]


# --- Large segments -------------------------------------------------------------------------------

LARGE = one(1.0, "client FIN PSH ACK 1001 7001 len 3000", mark=7)
PARTS = [
    one(1.0, "client ACK 1001 7001 len 1448", mark=7),
    one(1.0, "client ACK 2449 7001 len 1448", mark=8),
    one(1.0, "client FIN PSH ACK 3897 7001 len 104", mark=9),
]
REPEATED = replace(LARGE, at=EPOCH + 1.1)


def test_what_a_host_on_the_way_cuts_up_has_come() -> None:
    assert told(LARGE, *map(seen, PARTS)) == [(1, 3000, False, False)]


def test_what_a_host_on_the_way_puts_together_has_come() -> None:
    found = told(*PARTS, seen(LARGE))
    assert found == [(1, 1448, False, False), (1449, 1448, False, False), (2897, 104, False, False)]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_what_came_in_part_alone_is_lost(missing: int) -> None:
    parts = [part for number, part in enumerate(PARTS) if number != missing]
    found = told(LARGE, *map(seen, parts))
    assert (1, 3000, True, False) in found and len(found) == 3


def test_a_fin_is_a_part_too() -> None:
    last = one(1.0, "client PSH ACK 3897 7001 len 104", mark=9)
    assert (1, 3000, True, False) in told(LARGE, *map(seen, [*PARTS[:2], last]))


def test_parts_are_those_of_the_last_that_can_have_been_cut_up() -> None:
    parts = [comes(part, 0.1001) for part in PARTS]
    found = told(LARGE, REPEATED, *parts)
    assert found == [(1, 3000, True, False), (1, 3000, False, False)]


def test_parts_have_the_header_of_the_whole() -> None:
    for part in PARTS:
        others = [o if o != part else replace(o, window=501) for o in PARTS]
        assert (1, 3000, True, False) in told(LARGE, *map(seen, others))


def test_numbers_may_wrap_within_a_large_segment() -> None:
    wrapped = [replace(o, seq=(o.seq - 2000) % (1 << 32)) for o in (LARGE, *PARTS)]
    (found,) = segments(wrapped[0], *map(seen, wrapped[1:]))
    assert not found.lost


# --- Addresses ------------------------------------------------------------------------------------


def test_hosts_may_have_one_address_each_for_itself() -> None:
    """As those have that a balancer passes on to, on their loopback interfaces."""
    virtual = "198.18.0.100"
    owners = {**OWNERS, virtual: "client"}  # it has it, too
    packets = [
        Observation(host, EPOCH + at, f"{virtual}:40000", f"{virtual}:80", 1, 1, ("ACK",), 5, 500)
        for host, at in (("server", 1.0), ("client", 1.1))
    ]
    found = [(s.sender, s.receiver, s.lost) for s in match(packets, Known(owners, EPOCH))]
    assert found == [("server", "server", False), ("client", "client", False)]


# --- Refusals -------------------------------------------------------------------------------------


def test_a_firewalls_refusal_is_its_own() -> None:
    """It has the address of the server, which knows nothing of it."""
    syn = one(1.0, "client SYN 1000 0")
    reset = one(1.001, "server RST ACK 0 1001")
    here = [replace(syn, host="router"), replace(reset, host="router")]
    found = segments(syn, *here, seen(reset))
    assert [(s.sender, s.receiver, s.flags, s.lost) for s in found] == [
        ("client", "server", ("SYN",), True),
        ("router", "client", ("RST", "ACK"), False),
    ]


def test_a_proxy_that_nobody_sees_is_who_is_spoken_to() -> None:
    """It has the address of the server, which hears nothing of all this."""
    syn = one(1.0, "client SYN 1000 0")
    answer = one(1.001, "server SYN ACK 7000 1001")
    ack = one(1.002, "client ACK 1001 7001")
    there = [replace(each, host="router", at=each.at + LAG / 2) for each in (syn, ack)]
    found = segments(syn, replace(answer, host="router"), seen(answer), ack, *there)
    assert [(s.sender, s.receiver, s.lost, s.injected) for s in found] == [
        ("client", "router", False, False),
        ("router", "client", False, False),
        ("client", "router", False, False),
    ]


def test_what_a_router_drops_was_lost() -> None:
    syn = one(1.0, "client SYN 1000 0")
    (found,) = segments(syn, replace(syn, host="router", at=syn.at + LAG / 2))
    assert (found.sender, found.receiver, found.lost) == ("client", "server", True)


def test_a_refusal_that_is_forwarded_is_the_servers() -> None:
    reset = one(1.001, "server RST ACK 0 1001")
    passing = [replace(reset, host="router", at=reset.at + LAG * part) for part in (0.3, 0.6)]
    (found,) = segments(reset, *passing, seen(reset))
    assert (found.sender, found.lost) == ("server", False)
    (unsent,) = segments(*passing, seen(reset))  # a server that nobody watched
    assert unsent.injected
