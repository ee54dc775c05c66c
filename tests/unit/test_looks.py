"""Which looks showed a socket, from the first to the last, whole ones and differences."""

from __future__ import annotations

import math
from typing import Any

import pytest

from labctl.probes.sockets import State
from labctl.record.events import SocketsEvent
from labctl.record.looks import SAMPLING, Looks, Sighting, reachable
from tests.fake import HEADER, tcp
from tests.walked import HERE, THERE, history

KEY = (HERE, THERE)
OTHER = "198.18.0.3:40001"
ESTAB, BOUND = tcp("ESTAB", HERE, THERE), tcp("UNCONN", ":9000")
LISTEN, MORE = tcp("LISTEN", ":8000"), tcp("ESTAB", HERE, OTHER)


def at(t: float, *lines: str, gone: list[int] | None = None, host: str = "server"
       ) -> SocketsEvent:  # fmt: skip
    return SocketsEvent(t, host, "change", "\n".join([HEADER, *lines]), gone=gone)


def seen(*looks: SocketsEvent, **more: Any) -> Looks:
    return Looks(history(*looks), "server", **more)


def spans(looks: Looks, key: tuple[str, str] = KEY) -> list[tuple[str, int, int]]:
    return [(str(s.state), s.look, s.last) for s in looks.seen.get(key, ())]


@pytest.mark.parametrize(
    ("looks", "found"),
    [
        ([at(1.0), at(2.0, ESTAB), at(3.0)], [("ESTAB", 1, 1)]),
        # In differences, numbers count from 0 in the last whole one.
        ([at(1.0, BOUND, ESTAB), at(2.0, gone=[0]), at(3.0, gone=[])], [("ESTAB", 0, 2)]),
        ([at(1.0, BOUND, ESTAB), at(2.0, gone=[1]), at(3.0, gone=[])], [("ESTAB", 0, 0)]),
        ([at(1.0, BOUND), at(2.0, ESTAB, gone=[]), at(3.0, MORE, gone=[1])], [("ESTAB", 1, 1)]),
        ([at(1.0, ESTAB), at(2.0, tcp("CLOSE-WAIT", *KEY), gone=[0]), at(3.0, gone=[])],
         [("ESTAB", 0, 0), ("CLOSE-WAIT", 1, 2)]),
        ([at(1.0, ESTAB), at(2.0, ESTAB), at(3.0, gone=[])],
         [("ESTAB", 0, 0), ("ESTAB", 1, 2)]),  # each whole one says all anew
        ([at(1.0, ESTAB), at(1.5, host="client"), at(2.0, gone=[])], [("ESTAB", 0, 1)]),
        ([at(1.0, ESTAB), at(1.5, "nothing of ss"), at(2.0, gone=[])], [("ESTAB", 0, 1)]),
    ],
)  # fmt: skip
def test_from_which_look_to_which_a_socket_was_there(
    looks: list[SocketsEvent], found: list[tuple[str, int, int]]
) -> None:
    assert spans(seen(*looks)) == found


def test_listeners_are_beside_connections_and_bound_sockets_are_none() -> None:
    found = seen(at(1.0, BOUND, LISTEN, ESTAB))
    assert ([*found.seen], [*found.listening]) == ([KEY], [(":8000", "")])


def test_what_is_not_chosen_may_go_unnoticed() -> None:
    looks = [at(1.0, MORE, ESTAB), at(2.0, gone=[0])]
    found = seen(*looks, chosen=lambda ends: ends == KEY)
    assert [*found.seen] == [KEY] and spans(found) == [("ESTAB", 0, 1)]


def test_the_part_of_a_sighting_between_two_moments() -> None:
    timer = tcp("TIME-WAIT", *KEY, more="timer:(timewait,50sec,0)")
    found = seen(at(1.0, timer), at(2.0, gone=[]), at(3.0, gone=[]), at(4.0, gone=[0]))
    for low, high, first, last in (
        (0.0, 9.0, 0, 2), (1.0, 3.0, 0, 1), (1.5, 9.0, 1, 2), (3.0, 4.0, 2, 2), (2.5, 3.5, 2, 2),
    ):  # fmt: skip
        (part,) = found.between(KEY, low, high)
        assert (part.look, part.last) == (first, last)
        assert part.socket.timer and part.socket.timer.expires == 50.0 - first
    assert found.between(KEY, 3.5, 9.0) == found.between(KEY, 0.0, 1.0) == []
    assert found.between((HERE, OTHER), 0.0, 9.0) == []
    shown = [(t, s.timer.expires) for t, s in found.shown(KEY) if s.timer]
    assert shown == [(1.0, 50.0), (2.0, 49.0), (3.0, 48.0)]


def test_when_looks_were() -> None:
    found = seen(at(1.0), at(1.005), at(3.0))
    assert [found.time(n) for n in range(4)] == [1.0, 1.005, 3.0, math.inf]
    assert [found.before(n) for n in range(3)] == [0.0, 1.0, 1.005]
    assert [found.after(t, 3.0) for t in (0.5, 1.0, 1.001, 2.0)] == [1.0, 1.0, 1.005, None]
    near, far = found.noticed(1), found.noticed(2)
    assert (near.earliest, near.latest, near.seen) == (1.0, 1.005 + SAMPLING, 1.005)
    assert (far.earliest, far.latest) == (3.0 - SAMPLING, 3.0 + SAMPLING)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (("ESTAB", 0, "sk:1"), ("CLOSE-WAIT", 1, "sk:1"), True),
        (("ESTAB", 0, "sk:1"), ("ESTAB", 1, "sk:1"), True),
        (("ESTAB", 0, "sk:1"), ("CLOSE-WAIT", 1, "sk:2"), False),
        (("ESTAB", 0, "sk:1"), ("CLOSE-WAIT", 1, ""), True),
        (("ESTAB", 0, ""), ("CLOSE-WAIT", 1, "sk:2"), True),
        (("ESTAB", 0, ""), ("CLOSE-WAIT", 2, ""), False),  # a look between showed none
        (("CLOSE-WAIT", 0, ""), ("ESTAB", 1, ""), False),
        (("SYN-RECV", 0, ""), ("TIME-WAIT", 1, ""), True),
    ],
)
def test_whether_the_next_look_shows_the_same_connection(
    before: tuple[str, int, str], after: tuple[str, int, str], same: bool
) -> None:
    def sighting(state: str, look: int, cookie: str) -> Sighting:
        (found,) = seen(at(1.0, tcp(state, *KEY, more=f"ino:5 {cookie}".strip()))).seen[KEY]
        return Sighting(look, found.socket, look)

    assert sighting(*before).precedes(sighting(*after)) is same


@pytest.mark.parametrize(
    ("line", "mini"),
    [
        (tcp("TIME-WAIT", *KEY), True), (tcp("ESTAB", *KEY), False),
        (tcp("FIN-WAIT-2", *KEY, more="timer:(timewait,4.500sec,0)"), True),
        (tcp("FIN-WAIT-2", *KEY, more="timer:(keepalive,4.500sec,0)"), False),
        (tcp("FIN-WAIT-2", *KEY), False),
        (tcp("ESTAB", *KEY, more="timer:(timewait,4.500sec,0)"), False),
    ],
)  # fmt: skip
def test_what_is_a_minisocket(line: str, mini: bool) -> None:
    (found,) = seen(at(1.0, line)).seen[KEY]
    assert found.mini is mini


def test_which_states_come_after_which() -> None:
    assert reachable(State.SYN_SENT, State.TIME_WAIT) and reachable(State.ESTAB, State.LAST_ACK)
    assert not reachable(State.TIME_WAIT, State.ESTAB)
    assert not reachable(State.CLOSE_WAIT, State.FIN_WAIT_1)
