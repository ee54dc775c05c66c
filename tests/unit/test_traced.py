"""What the tracepoint told, and what a second probe says to it."""

from __future__ import annotations

import pytest

from labctl.probes.sockets import Ends
from labctl.record.events import Event, StateEvent, TroubleEvent
from labctl.record.traced import NEAR, Life, Told, Wire, traced_lives
from tests.fake import tcp
from tests.walked import (
    ACK,
    FIN,
    HERE,
    PASSIVE,
    RST,
    SYN,
    THERE,
    history,
    look,
    packet,
    shown,
    walk,
)

ENDS = (HERE, THERE)


def life(*states: str) -> Life:
    found = Life(event for event in walk(*states) if isinstance(event, StateEvent))
    assert found
    return found


@pytest.mark.parametrize(
    ("states", "born", "over", "listens"),
    [
        (("UNCONN", "SYN-SENT", "ESTAB"), True, False, False),
        (("LISTEN", "SYN-RECV", "ESTAB"), True, False, False),
        (("SYN-RECV", "ESTAB", "UNCONN"), True, True, False),
        (("ESTAB", "CLOSE-WAIT"), False, False, False),
        (("UNCONN", "LISTEN"), True, False, True),
        (("UNCONN", "LISTEN", "UNCONN"), True, True, True),
        (("LISTEN", "UNCONN"), True, True, True),
    ],
)
def test_what_a_socket_was(states: tuple[str, ...], born: bool, over: bool, listens: bool) -> None:
    found = life(*states)
    assert [*found] == [event for event in walk(*states) if isinstance(event, StateEvent)]
    assert (found.born, found.over, found.listens) == (born, over, listens)


def test_when_a_socket_was_there() -> None:
    """Give or take what an agent needs to look."""
    there = life("SYN-RECV", "ESTAB", "UNCONN")  # from 1.0 to 1.001
    moments = [0.99 - NEAR, 1.01 - NEAR, 1.0, 0.99 + NEAR, 1.01 + NEAR]
    assert [there.around(t) for t in moments] == [False, True, True, True, False]
    assert life("SYN-RECV", "ESTAB").around(99.0)


def test_sockets_that_were_there_at_once() -> None:
    """From 1.0 to 1.001, and later."""
    one, twin = life("SYN-RECV", "ESTAB", "UNCONN"), life("SYN-RECV", "ESTAB", "UNCONN")
    later = Life([StateEvent(1.001, *ENDS, "x", "SYN-RECV", "ESTAB")])
    assert one.overlaps(twin) and not one.overlaps(one)
    assert not one.overlaps(later) and not later.overlaps(one)


def test_transitions_in_order_of_time() -> None:
    first = Life([StateEvent(2.0, "a", "x:1", "y:2", "SYN-RECV", "ESTAB")])
    second = Life([StateEvent(1.0, "a", "x:1", "y:3", "SYN-RECV", "ESTAB")])
    listener = Life([StateEvent(0.5, "a", "x:1", "z:0", "UNCONN", "LISTEN")])
    told = Told({("x:1", "y:2"): [first], ("x:1", "y:3"): [second]}, [listener], 0)
    assert [event.t for event in told.events] == [0.5, 1.0, 2.0]


# --- What bears it out ----------------------------------------------------------------------------

NOTHING = packet(0.5, "198.18.0.2:1", "198.18.0.3:2", ACK, (1, 1))
"""A capture that has something else."""


def told(*events: Event, packets: bytes = NOTHING) -> tuple[int, int, int]:
    """How many connections and listeners of the lab there are, and how many others."""
    found = traced_lives(history(*events, packets=packets), "server")
    return sum(map(len, found.lives.values())), len(found.listeners), found.others


@pytest.mark.parametrize(
    ("t", "line", "borne"),
    [
        (1.0, shown("ESTAB"), True),
        (1.05, shown("TIME-WAIT"), True),
        (3.0, shown("TIME-WAIT"), False),  # of another one, later
        (0.5, shown("ESTAB"), False),
        (1.0, shown("ESTAB", remote="198.18.0.3:40001"), False),
        (1.0, shown("ESTAB", local="198.18.0.2:8001"), False),
        (1.0, tcp("ESTAB", "[::ffff:198.18.0.2]:8000", "[::ffff:198.18.0.3]:40000"), True),
        (1.0, tcp("LISTEN", ":8000"), False),
    ],
)
def test_a_look_bears_a_connection_out(t: float, line: str, borne: bool) -> None:
    found = told(*walk(*PASSIVE), look(t, line))
    assert found == ((1, 0, 0) if borne else (0, 0, 1))


def test_a_later_look_bears_out_what_goes_on() -> None:
    assert told(*walk(*PASSIVE[:3]), look(1.0), look(9.0, shown("ESTAB"))) == (1, 0, 0)


@pytest.mark.parametrize(
    ("line", "borne"),
    [
        (tcp("LISTEN", ":8000"), True), (tcp("LISTEN", "198.18.0.2:8000"), True),
        (tcp("LISTEN", "*:8000"), True), (tcp("LISTEN", ":8001"), False),
        (tcp("LISTEN", ":18000"), False), (shown("ESTAB"), False),
    ],
)  # fmt: skip
def test_a_look_bears_a_listener_out_by_its_port(line: str, borne: bool) -> None:
    events = walk("UNCONN", "LISTEN", remote="0.0.0.0:0")
    assert told(*events, look(1.0, line)) == ((0, 1, 0) if borne else (0, 0, 1))


@pytest.mark.parametrize(
    ("t", "ends", "borne"),
    [
        (1.0, ENDS, True), (1.0, ENDS[::-1], True), (1.05, ENDS, True), (1.5, ENDS, False),
        (0.5, ENDS, False), (1.0, (HERE, "198.18.0.9:1"), False),
    ],
)  # fmt: skip
def test_a_capture_bears_a_connection_out(t: float, ends: Ends, borne: bool) -> None:
    found = told(*walk(*PASSIVE), look(9.0), packets=packet(t, *ends, ACK, (1, 1)))
    assert found == ((1, 0, 0) if borne else (0, 0, 1))


@pytest.mark.parametrize(("probe", "borne"), [("trace", 1), ("ss", 1), ("capture", 0)])
def test_what_was_there_before_counts_where_its_beginning_may_be_lost(
    probe: str, borne: int
) -> None:
    trouble = TroubleEvent(0.5, "server", probe, "something was lost")
    found = told(trouble, *walk("ESTAB", "CLOSE-WAIT"), look(1.0, shown("CLOSE-WAIT")))
    assert found[0] == borne


def test_a_connect_whose_beginning_was_lost() -> None:
    trouble = TroubleEvent(0.5, "server", "trace", "something was lost")
    assert told(trouble, *walk("SYN-SENT", "ESTAB"), look(1.0, shown("ESTAB"))) == (1, 0, 0)


# --- The wire -------------------------------------------------------------------------------------


def wire(*packets: bytes, probes: tuple[str, ...] = ("trace", "capture")) -> Wire:
    return Wire(history(look(9.0), packets=b"".join(packets), probes=probes), "server")


def test_a_wire_is_complete_where_all_was_captured() -> None:
    assert wire(NOTHING).complete
    assert not wire(NOTHING, probes=("trace",)).complete
    trouble = TroubleEvent(0.5, "server", "capture", "3 packets were not captured")
    assert not Wire(history(trouble, probes=("capture",)), "server").complete


def test_the_connections_of_a_host_begin_with_its_own_end() -> None:
    syn, data = packet(1.0, THERE, HERE, SYN, (1, 0)), packet(1.0, HERE, THERE, ACK, (1, 1))
    assert wire(syn).connections == {ENDS}
    assert wire(data).connections == {ENDS}
    refused = [syn, packet(1.1, HERE, THERE, RST | ACK, (0, 2))]
    assert wire(*refused).connections == set()
    assert wire(*refused, packet(1.2, HERE, THERE, ACK, (1, 1))).connections == {ENDS}


def test_the_first_syn_of_a_connection() -> None:
    syns = [packet(t, HERE, THERE, SYN, (seq, 0)) for t, seq in ((1.0, 7), (2.0, 9), (3.0, 9))]
    found = wire(*syns, packet(2.5, HERE, THERE, ACK, (10, 1)))
    assert found.first_syn(ENDS, 4.0) == 2.0
    assert found.first_syn(ENDS, 3.0) == 2.0
    assert found.first_syn(ENDS, 1.5) == 1.0
    assert found.first_syn(ENDS, 0.5) is None
    assert found.first_syn(ENDS[::-1], 4.0) is None


SHAKEN = [packet(1.0, THERE, HERE, SYN, (100, 0)), packet(1.1, HERE, THERE, SYN | ACK, (700, 101))]
CAME = packet(2.0, THERE, HERE, FIN | ACK, (101, 701))


@pytest.mark.parametrize(
    ("packets", "taken"),
    [
        ([CAME, packet(2.5, HERE, THERE, ACK, (701, 102))], (2.0, 2.5)),
        ([CAME, packet(2.0, HERE, THERE, ACK, (701, 102))], (2.0, 2.0)),
        ([CAME, packet(2.5, HERE, THERE, ACK, (701, 101))], None),  # not of the FIN
        ([CAME], None),
        ([CAME, packet(2.2, HERE, THERE, ACK, (701, 101)),
          packet(2.5, HERE, THERE, ACK, (701, 102))], (2.0, 2.5)),
        ([packet(1.5, HERE, THERE, ACK, (701, 102)), CAME,
          packet(2.5, HERE, THERE, ACK, (701, 102))], None),  # an old number
        ([packet(2.0, THERE, HERE, ACK, (101, 701)),
          packet(2.5, HERE, THERE, ACK, (701, 102))], None),
    ],
)  # fmt: skip
def test_a_fin_is_taken_when_it_is_acknowledged(
    packets: list[bytes], taken: tuple[float, float] | None
) -> None:
    found = wire(*SHAKEN, *packets).end_taken(ENDS, 0.0, 9.0)
    assert found == (taken and pytest.approx(taken))
    assert wire(*SHAKEN, *packets).end_taken(ENDS, 2.1, 9.0) is None
    assert wire(*SHAKEN, *packets).end_taken(ENDS, 0.0, 2.0) is None


# --- Sockets of the same ends ---------------------------------------------------------------------


def test_a_new_socket_of_the_same_ends_is_another_one() -> None:
    again = walk(*PASSIVE, start=2.0)
    assert told(*walk(*PASSIVE), *again, look(1.0, shown("ESTAB")), look(2.0, shown("ESTAB"))) == (
        2, 0, 0,
    )  # fmt: skip


def test_a_transition_goes_on_where_its_socket_was() -> None:
    """Of two with the same ends at once."""
    events = [
        *walk("LISTEN", "SYN-RECV", "ESTAB"), *walk("LISTEN", "SYN-RECV", start=1.5),
        *walk("ESTAB", "CLOSE-WAIT", start=1.7), *walk("SYN-RECV", "ESTAB", start=1.8),
    ]  # fmt: skip
    found = traced_lives(history(*events), "server").lives[ENDS]
    assert [[event.new for event in each] for each in found] == [
        ["SYN-RECV", "ESTAB", "CLOSE-WAIT"], ["SYN-RECV", "ESTAB"]
    ]  # fmt: skip
