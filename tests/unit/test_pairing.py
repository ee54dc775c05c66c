"""What left, what came, and what hosts report of it, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.probes.alignment import MOST, align
from labctl.probes.observations import Injection, Known, Loss, Observation, Segment
from labctl.probes.owners import Owners
from labctl.probes.pairing import EARLY, REPORTED, is_loopback, owner
from labctl.probes.segments import match
from tests.sighted import EPOCH, HANDSHAKE, LAG, OWNERS, SERVER, both, one, seen, segments

# --- Alignment ------------------------------------------------------------------------------------

MOMENTS = st.lists(st.integers(0, 16).map(lambda n: n / 8), max_size=5).map(sorted)


def best(before: Sequence[float], after: Sequence[float], early: float, late: float) -> tuple[
    int, float
]:  # fmt: skip
    """How many pairs there can be at most, and the least sum of squares of so many: by trying."""
    for count in range(min(len(before), len(after)), 0, -1):
        costs = [
            sum((after[j] - before[i]) ** 2 for i, j in zip(left, right, strict=True))
            for left in combinations(range(len(before)), count)
            for right in combinations(range(len(after)), count)
            if all(-early <= after[j] - before[i] <= late for i, j in zip(left, right, strict=True))
        ]
        if costs:
            return count, min(costs)
    return 0, 0.0


@given(MOMENTS, MOMENTS, st.sampled_from([0.0, 0.25]), st.sampled_from([0.125, 0.5, 9.0]))
def test_as_many_as_possible_are_paired_and_as_close(
    before: list[float], after: list[float], early: float, late: float
) -> None:
    found = align(before, after, early, late)
    assert found == sorted(found)
    assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)
    assert all(-early <= after[j] - before[i] <= late for i, j in found)
    if len(before) != len(after) or len(found) < len(before):
        cost = sum((after[j] - before[i]) ** 2 for i, j in found)
        assert (len(found), pytest.approx(cost)) == best(before, after, early, late)


def test_the_nearest_are_paired() -> None:
    assert align([0.0, 1.0], [1.1], 0.0, 9.0) == [(1, 0)]
    assert align([1.0], [1.1, 2.0], 0.0, 9.0) == [(0, 0)]
    assert align([0.0, 1.0, 2.0], [1.1, 2.1], 0.0, 9.0) == [(1, 0), (2, 1)]


def test_as_many_as_left_came_each() -> None:
    assert align([1.0, 2.0], [1.5, 2.5], 0.0, 1.0) == [(0, 0), (1, 1)]


def test_thousands_are_paired_in_their_order() -> None:
    """What came and fits none of them is nobody's, and keeps none of the others from its own."""
    many = [n / 1000 for n in range(300)]
    came = [t + 0.0001 for t in many[:120] + many[121:]]
    assert len(many) * len(came) > MOST
    found = align(many, came, 0.01, 0.25)
    assert len(found) == len(came)
    assert all(i in (j, j + 1) for i, j in found)
    late = [t + 0.5 for t in came]  # beyond what anything may take
    assert align(many, late, 0.01, 0.1) == []
    some = align(many, [t + 0.0001 for t in many[:250]] + [9.0], 0.01, 0.25)
    assert sorted(j for _, j in some) == [*range(250)]


# --- Owners ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("128.0.0.1", False),
     ("::2", False), ("1.127.0.1", False)],
)  # fmt: skip
def test_what_never_leaves_its_host(address: str, loopback: bool) -> None:
    assert is_loopback(address) == loopback
    endpoint = f"[{address}]:80" if ":" in address else f"{address}:80"
    assert owner(endpoint, {}, "server", 1.0) == ("server" if loopback else None)


def test_an_address_that_moved_was_another_hosts_before() -> None:
    owners = Owners({"10.0.0.1": "a"}).moved("10.0.0.1", "b", 5.0)
    found = [owner("10.0.0.1:80", owners, "c", t) for t in (4.9, 5.0, 9.0)]
    assert found == ["a", "b", "b"]


# --- Reports --------------------------------------------------------------------------------------

DATA = one(0.4, "client ACK 1001 7001 len 5", mark=3)
REPEATED = one(0.7, "client ACK 1001 7001 len 5", mark=4)


def known(*losses: Loss, injections: Sequence[Injection] = ()) -> Known:
    return Known(OWNERS, EPOCH, losses, injections)


def lost(found: Segment) -> tuple[bool, int | None]:
    return found.lost, found.dropped


def test_what_was_lost_as_it_came_in_was_captured_before() -> None:
    here = seen(DATA)
    found = match([*both(*HANDSHAKE), DATA, here], known(Loss(7, replace(here, at=here.at + 0.3))))
    assert [lost(s) for s in found] == [(False, None)] * 3 + [(True, 7)]
    assert found[-1].t == pytest.approx(0.4)


def test_what_was_lost_as_it_left_was_not_captured() -> None:
    found = match([*both(*HANDSHAKE), *both(REPEATED)], known(Loss(7, DATA)))
    assert [lost(s) for s in found[-2:]] == [(True, 7), (False, None)]
    assert found[-2].t == pytest.approx(0.4)
    assert (found[-2].sender, found[-2].receiver) == ("client", "server")
    assert [s.retransmitted for s in found[-2:]] == [False, True]


def test_a_report_is_about_what_was_captured_at_about_that_time() -> None:
    here = seen(DATA)
    for after, dropped in ((REPORTED - 0.1, 7), (REPORTED + 0.1, None)):
        report = Loss(7, replace(here, at=here.at + after))
        found = match([*both(*HANDSHAKE), DATA, here], known(report))[-1]
        assert lost(found) == (dropped is not None, dropped)


def test_each_report_is_about_one_segment() -> None:
    again = replace(DATA, at=DATA.at + 0.2)
    here = [seen(DATA), seen(again)]
    found = match([*both(*HANDSHAKE), DATA, again, *here], known(Loss(7, here[1])))
    assert [lost(s) for s in found[-2:]] == [(False, None), (True, 7)]
    late = [Loss(8, here[1]), Loss(7, here[0])]  # whatever their order
    found = match([*both(*HANDSHAKE), DATA, again, *here], known(*late))
    assert [lost(s) for s in found[-2:]] == [(True, 7), (True, 8)]


@pytest.mark.parametrize(
    ("mark", "other", "first"),
    [
        ((3, 50), (4, 60), True),  # by its timestamp it is the earlier one
        ((4, 60), (3, 50), False),
        ((3, 0), (4, 0), True),  # by its identification
        ((4, 0), (3, 0), False),
        ((0, 0), (4, 0), False),  # nothing tells
        ((3, 0), (0, 0), False),
        ((65_535, 0), (2, 0), True),  # it wraps
        ((3, 50), (2, 60), True),  # the timestamp counts
        ((3, 60), (4, 60), True),  # the same one: the identification tells
        ((5, 60), (4, 60), False),
        ((3, 50), (4, 0), True),  # only one of them has one
        ((3, 0), (4, 60), True),
        ((3, 60), (3, 61), True),
        ((3, 0), (3, 0), False),
        # Numbers begin again: half of all are later.
        ((3, 60), (3, 60 + 2**31 - 1), True),
        ((3, 60), (3, 60 + 2**31), False),
        ((3, 2**32 - 1), (3, 5), True),
        ((3, 0), (3 + 2**15 - 1, 0), True),
        ((3, 0), (3 + 2**15, 0), False),
        ((2**16 - 1, 0), (1, 0), True),
    ],
)
def test_what_was_lost_as_it_left_was_before_what_is_marked_as_later(
    mark: tuple[int, int], other: tuple[int, int], first: bool
) -> None:
    """Its report may come a moment late."""

    def stamped(o: Observation, mark: tuple[int, int]) -> Observation:
        return replace(o, mark=mark, timestamps=(mark[1], 1) if mark[1] else None)

    report = stamped(replace(DATA, at=EPOCH + 0.6), mark)
    other_one = stamped(one(0.5, "client ACK 1006 7001 len 9"), other)
    found = match([*both(*HANDSHAKE), *both(other_one)], known(Loss(7, report)))[-2:]
    assert [s.dropped for s in found] == ([7, None] if first else [None, 7])


def test_a_report_is_about_addresses_as_they_were_then() -> None:
    report = replace(DATA, at=EPOCH + 0.6, mark=(3, 0))
    later = [*both(*HANDSHAKE), *both(one(0.5, "client ACK 1006 7001 len 9", mark=4))]
    for address, name in (("198.18.0.3", "router"), ("198.18.0.2", "client")):
        moved = Owners(OWNERS).moved(address, name, 9.0)
        found = match(later, Known(moved, EPOCH, [Loss(7, report)]))[-2:]
        assert [s.dropped for s in found] == [7, None]


def test_a_syn_and_an_rst_are_not_counted_with_the_rest() -> None:
    """No socket counts them: their identification is 0 or random."""
    report = replace(DATA, at=EPOCH + 0.6, mark=(3, 0))
    for text in ("client SYN 1 0", "client RST ACK 1006 7001"):
        found = match([*both(*HANDSHAKE), *both(one(0.5, text, mark=4))], known(Loss(7, report)))
        assert [s.dropped for s in found[-2:]] == [None, 7]


def test_of_other_connections_nothing_is_put_in_order() -> None:
    report = replace(DATA, at=EPOCH + 0.6, mark=(3, 0))
    other = replace(one(0.5, "client ACK 1006 7001", mark=4), source="198.18.0.3:40001")
    found = match([*both(*HANDSHAKE), *both(other)], known(Loss(7, report)))
    assert [s.dropped for s in found[-2:]] == [None, 7]
    early = replace(one(0.05, "client ACK 1006 7001", mark=4))
    found = match([*both(early)], known(Loss(7, report)))  # no report is so late
    assert [s.dropped for s in found] == [None, 7]


def test_what_was_injected_is_no_segment_of_its_sender() -> None:
    reset = one(0.5, "client RST 1006 0")
    report = Injection(6, 0, replace(reset, at=reset.at + 0.1))
    found = match([*both(*HANDSHAKE), *both(reset)], known(injections=[report]))[-1]
    assert (found.crafted, found.injected, found.sender, found.receiver) == (
        True, True, "client", "server",
    )  # fmt: skip
    assert (found.seq, found.ack, found.lost) == (6, 0, False)
    assert found.arrived == pytest.approx(0.5 + LAG)


def test_an_injection_in_the_name_of_another_left_where_it_was_made() -> None:
    forged = replace(one(0.5, "client RST 1006 0"), host="router")
    arrived = replace(forged, host="server", at=forged.at + LAG)
    (found,) = match([forged, arrived], known(injections=[Injection(6, 0, forged)]))
    assert (found.crafted, found.t, found.receiver) == (True, pytest.approx(0.5), "server")


# --- On the way -----------------------------------------------------------------------------------


def passing(o: Observation, *parts: float) -> list[Observation]:
    """The same as a router sees it, at these parts of its way."""
    return [replace(o, host="router", at=o.at + LAG * part) for part in parts]


def test_what_is_forwarded_is_one_segment() -> None:
    found, straight = segments(DATA, *passing(DATA, 0.3, 0.6), seen(DATA), *both(REPEATED))
    assert (found.sender, found.receiver, found.lost) == ("client", "server", False)
    assert found.way and [hop.host for hop in found.way.hops] == ["router"]
    assert straight.way is None


@pytest.mark.parametrize(("apart", "made"), [(EARLY / 2, False), (EARLY * 2, True)])
def test_who_forwards_sees_it_twice_within_a_moment(apart: float, made: bool) -> None:
    """Who made it sees it once."""
    reset = one(1.0, "server RST ACK 0 1001")
    first = replace(reset, host="router")
    second = replace(first, at=first.at + apart)
    found = segments(first, second, seen(reset))
    assert ("router" in {s.sender for s in found}) == made


@pytest.mark.parametrize("slow", [LAG / 4, EARLY * 5])
def test_nat_changes_addresses_alone(slow: float) -> None:
    """What a router sends under its own address it had got under another one."""
    inside = "10.9.0.5:40000"
    syn = replace(one(1.0, "client SYN 1000 0", mark=5), source=inside)
    before = replace(syn, host="router", at=syn.at + LAG / 4)
    after = replace(before, source="198.18.0.9:40000", at=before.at + slow)
    arrived = replace(after, host="server", at=after.at + LAG)
    owners = {**OWNERS, "198.18.0.9": "router", "10.9.0.5": "client"}
    found = match([syn, before, after, arrived], Known(owners, EPOCH))
    assert [(s.sender, s.receiver, s.lost) for s in found[-1:]] == [("router", "server", False)]


VIRTUAL = "198.18.0.100:80"
BALANCED = {**OWNERS, "198.18.0.100": "router"}


@pytest.mark.parametrize(
    ("slow", "sender"), [(LAG / 4, "client"), (0.05, "client"), (0.9, "client"), (1.5, "router")]
)
def test_what_a_balancer_passes_on_is_the_clients(slow: float, sender: str) -> None:
    """Within the time that forwarding takes: later, it is the balancer's own."""
    syn = replace(one(1.0, "client SYN 1000 0", mark=5), target=VIRTUAL)
    there = replace(syn, host="router", at=syn.at + LAG)
    out = replace(there, target=SERVER, at=there.at + slow)
    arrived = replace(out, host="server", at=out.at + LAG)
    found = match([syn, there, out, arrived], Known(BALANCED, EPOCH))
    assert [(s.sender, s.receiver, s.lost) for s in found] == [
        ("client", "router", False), (sender, "server", False)
    ]  # fmt: skip


@pytest.mark.parametrize(("slow", "lost"), [(LAG / 4, False), (0.05, False), (1.5, True)])
def test_an_answer_whose_source_a_balancer_changes_was_not_lost(slow: float, lost: bool) -> None:
    answer = one(1.0, "server SYN ACK 7000 1001", mark=6)
    there = replace(answer, host="router", at=answer.at + LAG)
    out = replace(there, source=VIRTUAL, at=there.at + slow)
    arrived = replace(out, host="client", at=out.at + LAG)
    first, second = match([answer, there, out, arrived], Known(BALANCED, EPOCH))
    assert (first.sender, first.receiver, first.lost) == ("server", "client", lost)
    assert (second.sender, second.receiver, second.lost) == ("router", "client", False)


def test_a_balancer_is_not_who_is_spoken_to() -> None:
    """A whole handshake through it: the server answers the client."""
    syn = replace(one(1.0, "client SYN 1000 0", mark=5), target=VIRTUAL)
    there = replace(syn, host="router", at=syn.at + LAG)
    out = replace(there, target=SERVER, at=there.at + LAG)
    answer = one(1.1, "server SYN ACK 7000 1001", mark=6)
    back = replace(answer, host="router", at=answer.at + LAG)
    home = replace(back, source=VIRTUAL, at=back.at + LAG)
    ends = [replace(out, host="server", at=out.at + LAG), replace(home, host="client")]
    found = match([syn, there, out, answer, back, home, *ends], Known(BALANCED, EPOCH))
    assert [(s.sender, s.receiver, s.lost) for s in found] == [
        ("client", "router", False), ("client", "server", False),
        ("server", "client", False), ("router", "client", False),
    ]  # fmt: skip
    assert [s.way is not None for s in found] == [True, False, True, False]


def test_what_leaves_the_lab_comes_to_the_last_host_that_sees_it() -> None:
    data = replace(DATA, target="203.0.113.9:80")
    way = [replace(data, host=host, at=data.at + LAG * n) for n, host in enumerate(("r1", "r2"), 1)]
    (found,) = segments(data, *way)
    assert (found.sender, found.receiver, found.lost) == ("client", "r2", False)
    assert found.arrived == pytest.approx(0.4 + 2 * LAG)
