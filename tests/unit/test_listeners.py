"""Listeners: since when, and until when, by the trace, or else by looks, calls and ends."""

from __future__ import annotations

from typing import Any

import pytest

from labctl.record.events import CallEvent, Event, ProcessEvent, SocketsEvent, TroubleEvent
from labctl.record.listeners import listeners
from labctl.record.looks import SAMPLING, Looks
from labctl.record.moments import Moment
from labctl.record.timelines import Timeline
from tests.fake import tcp
from tests.walked import HERE, THERE, history, look, shown, walk

ANY = "0.0.0.0:8000"
NOBODY = "0.0.0.0:0"


def there(inode: int | None = 7, local: str = ":8000") -> str:
    return tcp("LISTEN", local, more=f"ino:{inode}" if inode else "")


def found(*events: Event, probes: tuple[str, ...] = ()) -> list[Timeline]:
    return listeners(history(*events, probes=probes), "server")


def lasted(*events: Event, **more: Any) -> list[tuple[float, float | None]]:
    """From when to when each listener listened, at best."""
    spans = [timeline.spans[0] for timeline in found(*events, **more)]
    return [(s.begin.at, s.end.at if s.end else None) for s in spans]


def listen(t: float, host: str = "server", name: str = "listen", phase: Any = "done") -> Event:
    return CallEvent(t, "p", host, 2, phase, f"{name} 5", name)


def ended(t: float, host: str = "server", phase: Any = "exit") -> Event:
    return ProcessEvent(t, "p", host, phase, pid=2, exit=0)


# --- By the trace ---------------------------------------------------------------------------------


def told(*states: str, start: float = 1.0, step: float = 1.0) -> list[Event]:
    return walk(*states, start=start, step=step, local=ANY, remote=NOBODY)


TRACE = {"probes": ("trace",)}


def test_the_trace_tells_exactly() -> None:
    (one,) = found(*told("UNCONN", "LISTEN", "UNCONN"), look(1.5, there()), look(3.0), **TRACE)
    assert (one.spans[0].begin, one.spans[0].end) == (Moment(1.0, 1.0), Moment(2.0, 2.0))
    assert one.traced


def test_one_that_was_there_already_began_before() -> None:
    lost = TroubleEvent(0.1, "server", "trace", "3 transitions were lost")
    assert lasted(lost, *told("LISTEN", "UNCONN"), look(0.9, there()), **TRACE) == [(0.0, 1.0)]


def test_as_long_as_there_is_any_it_is_one() -> None:
    """Several share a port by SO_REUSEPORT."""
    first = told("UNCONN", "LISTEN", "UNCONN", step=2.0)
    second = told("UNCONN", "LISTEN", "UNCONN", start=3.0, step=2.0)
    looks = [look(t, there()) for t in (1.5, 4.0)]
    assert lasted(*first, *second, *looks, **TRACE) == [(1.0, 5.0)]
    later = told("UNCONN", "LISTEN", "UNCONN", start=3.5)
    looks = [look(t, there()) for t in (1.5, 4.0)]
    assert lasted(*first, *later, *looks, **TRACE) == [(1.0, 3.0), (3.5, 4.5)]
    within = told("UNCONN", "LISTEN", "UNCONN", start=1.5, step=0.5)
    assert lasted(*first, *within, look(1.7, there()), **TRACE) == [(1.0, 3.0)]


def test_one_that_goes_on_has_no_end() -> None:
    assert lasted(*told("UNCONN", "LISTEN"), look(1.5, there()), **TRACE) == [(1.0, None)]


# --- By looks -------------------------------------------------------------------------------------


def test_looks_tell_between_which_of_them() -> None:
    (one,) = found(look(1.0), look(2.0, there()), look(3.0, there()), look(4.0))
    begin, end = one.spans[0].begin, one.spans[0].end
    assert begin == Moment(1.0, 2.0 + SAMPLING) and begin.at == 2.0
    assert end == Moment(3.0, 4.0 + SAMPLING) and end.at == 4.0
    assert not one.traced


@pytest.mark.parametrize(
    ("event", "begin"),
    [
        (listen(1.5), 1.5),
        (listen(1.5, host="client"), 2.0),
        (listen(1.5, name="bind"), 2.0),
        (listen(1.5, phase="enter"), 2.0),
        (listen(0.4), 1.0),  # not before the look that did not show it
        (listen(2.05), 2.05),  # `ss` ran a little later
        (listen(3.5), 2.0),
    ],
)
def test_a_listener_began_when_listen_was_called(event: Event, begin: float) -> None:
    assert lasted(look(1.0), look(2.0, there()), look(3.0, there()), event) == [(begin, None)]


@pytest.mark.parametrize(
    ("event", "end"),
    [
        (ended(3.5), 3.5),
        (ended(3.5, phase="gone"), 3.5),
        (ended(3.5, host="client"), 4.0),
        (ended(0.5), 4.0),
        (ended(5.5), 4.0),
    ],
)
def test_a_listener_ended_when_its_process_did(event: Event, end: float) -> None:
    looks = [look(1.0), look(2.0, there()), look(3.0, there()), look(4.0), look(5.0)]
    assert lasted(*looks, event) == [(2.0, end)]


def test_causes_come_in_any_order() -> None:
    looks = [look(1.0), look(2.0, there()), look(3.0), look(4.0, there(8))]
    events = [listen(3.4), listen(1.5), ended(2.5)]
    assert lasted(*looks, *events) == [(1.5, 2.5), (3.4, None)]


def test_another_socket_on_the_port_is_another_listener() -> None:
    looks = [look(1.0, there(7)), look(2.0, there(8)), look(3.0, there(8))]
    assert [t.incarnation for t in found(*looks)] == [1, 2]
    assert len(found(look(1.0, there(7)), look(2.0, there(None)), look(3.0, there(7)))) == 1


def test_as_long_as_one_of_several_is_the_same_it_is_one() -> None:
    looks = [look(1.0, there(7)), look(2.0, there(7), there(8)), look(3.0, there(8))]
    assert len(found(*looks)) == 1


def test_a_look_without_it_parts_two() -> None:
    assert len(found(look(1.0, there(7)), look(2.0), look(3.0, there(7)))) == 2


def test_each_address_has_its_own() -> None:
    looks = [look(1.0, there()), look(2.0, there(), there(8, "10.0.0.1:8000"))]
    assert [(t.local, t.spans[0].begin.at) for t in found(*looks)] == [
        (":8000", 1.0), ("10.0.0.1:8000", 2.0)
    ]  # fmt: skip


def test_what_is_bound_and_no_more_is_no_listener() -> None:
    looks = [look(1.0, tcp("UNCONN", ":8000")), look(2.0, there())]
    assert lasted(*looks) == [(2.0, None)]


def test_connections_are_no_listeners() -> None:
    assert found(look(1.0, shown("ESTAB")), look(2.0)) == []


# --- Looks ----------------------------------------------------------------------------------------


def test_looks_of_one_host_in_order() -> None:
    events = [look(1.0, shown("ESTAB")), look(2.0, there()), look(3.0, shown("CLOSE-WAIT"))]
    looks = Looks(history(*events), "server", lambda _: True)
    assert looks.times == [1.0, 2.0, 3.0]
    assert [s.state for s in looks.between((HERE, THERE), 1.0, 3.0)] == ["ESTAB"]
    assert [s.state for s in looks.between((HERE, THERE), 1.1, 3.1)] == ["CLOSE-WAIT"]
    assert looks.between((THERE, HERE), 0.0, 9.0) == []
    assert [(s.look, s.mini) for s in looks.listening[":8000", ""]] == [(1, False)]
    assert Looks(history(*events), "client", lambda _: True).times == []
    assert Looks(history(*events), "server", lambda _: False).seen == {}


def test_a_look_that_is_not_understood_is_none() -> None:
    events = [look(1.0), SocketsEvent(2.0, "server", "change", "odd"), look(3.0)]
    assert Looks(history(*events), "server", lambda _: True).times == [1.0, 3.0]


def test_the_looks_around_a_moment() -> None:
    looks = Looks(history(look(1.0), look(1.05), look(3.0)), "server", lambda _: True)
    assert [looks.before(n) for n in range(3)] == [0.0, 1.0, 1.05]
    assert looks.time(2) == 3.0 and looks.time(3) == float("inf")
    assert looks.noticed(1) == Moment(1.0, 1.05 + SAMPLING)
    assert looks.noticed(2) == Moment(3.0 - SAMPLING, 3.0 + SAMPLING)
    assert looks.noticed(2).seen == 3.0
    assert looks.after(1.0, 9.0) == 1.0
    assert looks.after(1.01, 9.0) == 1.05
    assert looks.after(1.01, 1.05) is None
    assert looks.after(4.0, 9.0) is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (("ESTAB", "sk:1"), ("ESTAB", "sk:1"), True),
        (("ESTAB", "sk:1"), ("FIN-WAIT-2", "sk:1"), True),
        (("ESTAB", "sk:1"), ("FIN-WAIT-2", "sk:2"), False),
        (("ESTAB", "sk:1"), ("FIN-WAIT-2", ""), True),
        (("ESTAB", ""), ("FIN-WAIT-2", "sk:2"), True),
        (("FIN-WAIT-2", "sk:1"), ("ESTAB", "sk:1"), False),
    ],
)
def test_a_connection_that_is_seen_again(
    first: tuple[str, str], second: tuple[str, str], same: bool
) -> None:
    looks = Looks(history(look(1.0, shown(*first)), look(2.0, shown(*second)), look(3.0),
                          look(4.0, shown(*second))), "server", lambda _: True)  # fmt: skip
    one, again, later = looks.seen[HERE, THERE]
    assert one.precedes(again) == same
    assert not again.precedes(later)  # the look between did not show it
    assert one.cookie == first[1]


def test_a_minisocket_waits_by_its_own_timer() -> None:
    events = [look(1.0, shown("FIN-WAIT-2", f"timer:({name},5sec,0)")) for name in
              ("timewait", "keepalive")]  # fmt: skip
    events += [look(3.0, shown("FIN-WAIT-2")), look(4.0, shown("TIME-WAIT")),
               look(5.0, shown("ESTAB", "timer:(timewait,5sec,0)"))]  # fmt: skip
    seen = Looks(history(*events), "server", lambda _: True).seen[HERE, THERE]
    assert [s.mini for s in seen] == [True, False, False, True, False]


# --- Moments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "at", "text"),
    [
        (Moment(1.0, 2.0), 2.0, "1.000..2.000"),  # only the kernel told of it
        (Moment(1.0, 2.0, seen=1.5), 1.5, "1.000..2.000"),
        (Moment(1.0, 2.0, seen=1.5, guess=1.2), 1.2, "1.000..2.000"),
        (Moment(1.0, 2.0, guess=0.2), 1.0, "1.000..2.000"),
        (Moment(1.0, 2.0, guess=7.0), 2.0, "1.000..2.000"),
        (Moment(1.0, 1.0005), 1.0005, "1.000000..1.000500"),
        (Moment(0.0, 0.001), 0.001, "0.000000..0.001000"),
        (Moment(1.5, 1.5), 1.5, "1.500000"),
    ],
)
def test_a_moment_at_best_and_in_words(moment: Moment, at: float, text: str) -> None:
    assert (moment.at, str(moment)) == (at, text)
    assert moment.exact == (moment.earliest == moment.latest)


def test_what_is_probable_makes_no_other_moment() -> None:
    assert Moment(1.0, 2.0, guess=1.1) == Moment(1.0, 2.0, guess=1.2, seen=1.3)
