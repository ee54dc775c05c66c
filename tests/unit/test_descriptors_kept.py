"""Whose socket a call acts on, what it is set to, and how long it is kept open."""

from __future__ import annotations

import math
from typing import Any

import pytest

from labctl.judge.causes.descriptors import Descriptor, Descriptors, asks_for, end_of
from labctl.record.events import CallEvent, Event, ProcessEvent
from tests.unit.test_descriptors import (
    ACCEPTS,
    CHILD,
    FILTERED,
    HERE,
    LISTENS,
    MAIN,
    PEER,
    THERE,
    did,
    missing,
    sockets,
    started,
)

MORE = "198.18.0.3:40001"


def peer(*texts: str, at: float = 0.1, **more: Any) -> list[Event]:
    """The peer program starts, and does these calls, one each tenth of a second. What it accepts
    is from the client's ports in turn."""
    found: list[Event] = [PEER]
    ports = iter(range(40000, 50000))
    for n, text in enumerate(texts):
        known = {"local": HERE, "peer": f"198.18.0.3:{next(ports)}"} if "accept" in text else {}
        found.append(did(round(at + n / 10, 6), text, **{**known, **more}))
    return found


def closed(*texts: str) -> list[float]:
    return [each.closed for each in sockets(*peer(*texts))]


# --- Ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("0.0.0.0:80", ":80"), ("[::]:80", ":80"), ("198.18.0.2:80", "198.18.0.2:80"),
        ("[fd00::2]:80", "[fd00::2]:80"), ("[FD00:0::2]:80", "[fd00::2]:80"),
        ("[::ffff:198.18.0.2]:80", "198.18.0.2:80"),
    ],
)  # fmt: skip
def test_an_end_in_the_spelling_of_segments(text: str, end: str) -> None:
    assert end_of(text) == end


def event(text: str, local: str | None = None, far: str | None = None, **more: Any) -> CallEvent:
    return did(1.0, text, local=local, peer=far, **more)


BIND = event("bind :80", "198.18.0.2:80")


@pytest.mark.parametrize(
    ("known", "local", "port", "ends"),
    [
        ({}, "", 0, None),
        ({"bound": BIND}, "198.18.0.2:80", 80, None),
        ({"bound": event("bind :80", errno="EACCES")}, "", 0, None),
        ({"bound": BIND, "connected": event("connect b:9", HERE, THERE)}, HERE, 8000,
         (HERE, THERE)),
        ({"bound": BIND, "connected": event("connect b:9", HERE, THERE, errno="ETIMEDOUT")},
         "198.18.0.2:80", 80, None),
        ({"bound": BIND, "accepted": event("accept", HERE, THERE)}, HERE, 8000, (HERE, THERE)),
        ({"accepted": event("accept", HERE)}, HERE, 8000, None),
        ({"accepted": event("accept", None, THERE), "bound": BIND}, "198.18.0.2:80", 80, None),
    ],
)  # fmt: skip
def test_where_a_socket_is(known: dict[str, Any], local: str, port: int, ends: Any) -> None:
    found = Descriptor("server", "server", 1, 0.5, **known)
    assert (found.local, found.port, found.ends) == (local, port, ends)


@pytest.mark.parametrize(
    ("bind", "asked"), [("bind :80", 80), ("bind :0", 0), ("bind", None), ("bind x y z", None)]
)
def test_the_port_that_a_bind_asked_for(bind: str, asked: int | None) -> None:
    assert asks_for(event(bind)) == asked
    for connected in (None, event("connect b:9", HERE, THERE)):
        found = Descriptor("server", "server", 1, 0.5, bound=event(bind), connected=connected)
        assert found.chosen_port is (connected is not None and asked == 0)


def test_without_a_bind_the_kernel_chose_the_port_of_who_connects() -> None:
    assert not Descriptor("server", "server", 1, 0.5).chosen_port
    connected = event("connect b:9", HERE, THERE)
    assert Descriptor("server", "server", 1, 0.5, connected=connected).chosen_port


# --- Options --------------------------------------------------------------------------------------


def test_an_option_has_the_value_that_it_had_then() -> None:
    texts = ("socket", "set SO_LINGER 1 7", "set SO_LINGER 0 0", "set SO_KEEPALIVE", "set X '2'")
    (found,) = sockets(*peer(*texts))
    told = [(found.option("SO_LINGER", t), found.has("SO_LINGER", t)) for t in (0.1, 0.2, 0.3)]
    assert told == [("0", False), ("1 7", True), ("0 0", False)]
    assert (found.option("SO_KEEPALIVE", 9.0), found.has("SO_KEEPALIVE", 9.0)) == ("1", True)
    assert not found.has("SO_KEEPALIVE", 0.39) and found.has("SO_KEEPALIVE", 0.4)
    (failed,) = sockets(*peer("socket"), did(0.5, "set SO_LINGER 1 0", errno="EINVAL"))
    assert not failed.has("SO_LINGER", 9.0)


def test_who_is_accepted_has_what_was_set_before_its_connection_began() -> None:
    """See `sockets`: it began 0.01 s before."""
    for t, had in ((0.98, True), (0.99, True), (0.991, False)):
        sets = did(t, "set SO_KEEPALIVE", 3)
        *_, accepted = sockets(*LISTENS, sets, *ACCEPTS[-1:])
        assert accepted.has("SO_KEEPALIVE", 9.0) is had
    nameless = did(1.0, "accept", 3, result=4)  # nobody knows when it began
    *_, accepted = sockets(*LISTENS, did(1.0, "set SO_KEEPALIVE", 3), nameless)
    assert accepted.has("SO_KEEPALIVE", 9.0) and accepted.family == 4


def test_when_a_socket_was_surely_open() -> None:
    found = Descriptor("server", "server", 1, made=1.0, closed=3.0)
    assert [found.open_at(t) for t in (0.9, 1.0, 2.9, 3.0)] == [False, True, True, False]
    lost = Descriptor("server", "server", 1, made=1.0, lost=2.0)
    assert [lost.open_at(t) for t in (1.9, 2.0)] == [True, False]


# --- The peer program -----------------------------------------------------------------------------

SERVES = ("socket", "bind :8000", "listen 5")
NEVER = math.inf


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["socket", "close"], [0.2]),
        (["socket", "close", "close"], [0.2]),
        ([*SERVES, "close listener"], [0.4]),
        ([*SERVES, "accept", "close"], [NEVER, 0.5]),
        ([*SERVES, "accept", "close", "close"], [0.6, 0.5]),  # then the listener is current
        ([*SERVES, "accept", "close listener"], [0.5, NEVER]),
        ([*SERVES, "accept", "close listener", "close"], [0.5, 0.6]),
        ([*SERVES, "close listener", "close"], [0.4]),
        ([*SERVES, "accept", "accept", "close"], [NEVER, NEVER, 0.6]),
        (["socket tcp as a", "socket tcp as b", "use a", "close"], [0.4, NEVER]),
        (["socket tcp as a", "socket tcp as b", "use a", "close", "close"], [0.4, NEVER]),
    ],
)
def test_which_socket_a_close_closes(texts: list[str], found: list[float]) -> None:
    assert closed(*texts) == found


def test_a_close_that_failed_closed_nothing() -> None:
    (found,) = sockets(*peer("socket"), did(0.5, "close", errno="EBADF"))
    assert found.closed == NEVER


def test_a_call_that_failed_makes_no_socket() -> None:
    failed = [did(0.4, "socket", errno="EMFILE"), did(0.5, "accept", errno="EAGAIN"),
              did(0.6, "listen 5", errno="EADDRINUSE")]  # fmt: skip
    (found,) = sockets(*peer("socket", "bind :8000"), *failed)
    assert found.listening == NEVER
    (found, _) = sockets(*peer("socket", "bind :8000"), *failed, did(0.7, "accept"))
    assert found.listening == NEVER


def test_a_listen_is_when_it_listens_first() -> None:
    found, *_ = sockets(*peer(*SERVES, "listen 9"))
    assert found.listening == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("text", "family", "udp"), [("socket", 4, False), ("socket tcp", 4, False),
                                ("socket tcp6", 6, False)],
)  # fmt: skip
def test_kinds_of_sockets(text: str, family: int, udp: bool) -> None:
    (found,) = sockets(*peer(text))
    assert (found.family, found.udp) == (family, udp)


def test_who_sends_with_fast_open_connects() -> None:
    sends = did(0.5, 'send "x"', local=HERE, peer=THERE)
    (found,) = sockets(*peer("socket"), sends)
    assert found.connected is sends
    for other in (did(0.5, 'send "x"'), did(0.5, "recv", local=HERE, peer=THERE)):
        (found,) = sockets(*peer("socket"), other)
        assert found.connected is None


def test_a_named_socket_that_listens_accepts() -> None:
    texts = ("socket tcp as a", "set SO_KEEPALIVE", "listen 5", "socket tcp as b", "listen 5",
             "use a", "accept as c", "use b", "use c", "close")  # fmt: skip
    first, second, accepted = sockets(*peer(*texts))
    assert accepted.has("SO_KEEPALIVE", 9.0)
    assert [first.closed, second.closed, accepted.closed] == [NEVER, NEVER, 1.0]


def test_a_use_that_failed_changes_nothing() -> None:
    events = peer("socket tcp as a", "socket tcp as b")
    first, second = sockets(*events, did(0.5, "use a", errno="EBADF"), did(0.6, "close"))
    assert (first.closed, second.closed) == (NEVER, 0.6)
    nothing = sockets(*events, did(0.5, "use z"), did(0.6, "close"))
    assert [each.closed for each in nothing] == [NEVER, NEVER]


def test_what_only_begins_changes_nothing() -> None:
    entered = CallEvent(0.5, "server", "server", MAIN, "enter", "close", "close")
    (found,) = sockets(*peer("socket"), entered)
    assert found.closed == NEVER


# --- Processes ------------------------------------------------------------------------------------


def ends(t: float, phase: Any = "exit", **more: Any) -> ProcessEvent:
    return ProcessEvent(t, "server", "server", phase, MAIN, **more)


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (ends(3.0), 3.0),
        (ends(3.0, left=True), NEVER),  # a child has it still
        (ends(3.0, "gone"), 3.0),
        (ends(3.0, "gone", left=True), 3.0),
        (ends(3.0, start=1), 3.0),
        (ends(3.0, start=7), NEVER),  # that of another start
    ],
)
def test_a_process_that_ends_closes_what_it_has(end: ProcessEvent, found: float) -> None:
    assert [each.closed for each in sockets(*peer("socket"), end)] == [found]


def test_what_an_earlier_start_left_is_closed_by_its_own_end() -> None:
    again = [*peer("socket"), ends(1.0, left=True), PEER, did(2.0, "socket"), ends(3.0, start=1)]
    first, second = sockets(*again)
    assert (first.closed, second.closed, first.start, second.start) == (3.0, NEVER, 1, 2)
    late = [*again[:-1], did(2.5, "close", start=1)]
    assert [each.closed for each in sockets(*late)] == [2.5, NEVER]


def test_a_fork_of_the_peer_hands_on_what_it_has_accepted() -> None:
    forked = did(0.6, "fork", result=CHILD)
    listener, accepted = sockets(*peer(*SERVES, "accept"), forked)
    assert (listener.holders, accepted.holders) == ({MAIN, CHILD}, {CHILD})
    listener, _ = sockets(*peer(*SERVES, "accept"), forked, did(0.7, "close"))
    assert listener.holders == {CHILD}  # it was its parent's only one left
    (alone,) = sockets(*peer(*SERVES), forked)
    assert alone.holders == {MAIN, CHILD}
    failed = did(0.6, "fork", errno="EAGAIN")
    listener, accepted = sockets(*peer(*SERVES, "accept"), failed)
    assert (listener.holders, accepted.holders) == ({MAIN}, {MAIN})


# --- Any program ----------------------------------------------------------------------------------


def test_a_child_has_nothing_of_what_was_closed_before() -> None:
    gone = [did(2.0, "close", 4), did(2.5, "fork", result=CHILD)]
    listener, accepted = sockets(*ACCEPTS, *gone)
    assert (listener.holders, accepted.holders) == ({MAIN, CHILD}, set())


def test_what_a_call_acted_on() -> None:
    closes = did(2.0, "close", 4)
    sets, late, none = did(1.5, "set X 1", 4), did(2.5, "set X 1", 4), did(1.5, "set X 1")
    events = [*ACCEPTS, sets, none, closes, late]
    found = Descriptors(events, lambda host, ends, t: t)
    _, accepted = found.all
    assert [found.of(call) for call in (sets, closes)] == [accepted, accepted]
    assert found.of(late) is None and found.of(none) is None
    opened = ACCEPTS[-1]
    assert isinstance(opened, CallEvent) and found.of(opened) is accepted


@pytest.mark.parametrize(
    ("call", "count"),
    [
        (did(1.0, "socket tcp", 5), 2),
        (did(1.0, "socket tcp", 5, errno="EMFILE"), 1),
        (did(1.0, "socket tcp"), 1),  # nobody knows its number
        (did(1.0, "accept", 3, result=6, local=HERE, peer=THERE), 2),
        (did(1.0, "accept", 3, errno="EAGAIN"), 1),
        (did(1.0, "accept", 3, local=HERE, peer=THERE), 1),
    ],
)
def test_what_opens_a_socket(call: CallEvent, count: int) -> None:
    found = sockets(*LISTENS, call)
    assert len(found) == count
    assert {each.family for each in found} == {4}


def test_what_a_child_shares_it_holds_and_closes() -> None:
    same = did(0.5, "has the same as fd 3 of 2", 9, CHILD)
    (listener,) = sockets(*LISTENS, same)
    assert listener.holders == {MAIN, CHILD}
    (listener,) = sockets(*LISTENS, same, did(0.6, "close", 3), did(0.7, "close", 9, CHILD))
    assert (listener.closed, listener.holders) == (0.7, set())
    exits = [did(0.6, "exit 0", pid=CHILD), did(0.8, "close", 3)]
    (listener,) = sockets(*LISTENS, same, *exits)
    assert (listener.closed, listener.holders) == (0.8, set())


def test_what_a_socket_was_like_before_anybody_saw_its_calls() -> None:
    has = [did(0.1, "has tcp SO_KEEPALIVE=1", 3, local="0.0.0.0:8000"),
           did(0.1, "has tcp6 listening", 4, local="[::]:8000"),
           did(0.1, "has tcp", 5, local=HERE, peer=THERE)]  # fmt: skip
    idle, listens, connected = sockets(started(), *has)
    assert [each.family for each in (idle, listens, connected)] == [4, 6, 4]
    assert [each.listening for each in (idle, listens, connected)] == [NEVER, 0.1, NEVER]
    assert [each.ends for each in (idle, listens, connected)] == [None, None, (HERE, THERE)]
    assert idle.settings == [(0.1, "SO_KEEPALIVE", "1")] and listens.settings == []


def test_what_is_set_unseen_leaves_only_who_listens() -> None:
    """If options may be set unseen, nothing but a listener is known; also by a later report."""
    bound = did(0.5, "socket tcp", 5)
    for missed, known in (
        ([missing(3.0, *FILTERED)], True),
        ([missing(3.0, "bind")], False),
        ([missing(3.0, "bind"), missing(3.1, *FILTERED)], False),
    ):
        later = did(4.0, "set SO_KEEPALIVE 1", 5), did(4.1, "set SO_KEEPALIVE 1", 3)
        listener, other = sockets(*LISTENS, bound, *missed, *later)
        assert (listener.has("SO_KEEPALIVE", 9.0), other.has("SO_KEEPALIVE", 9.0)) == (True, known)
        *_, made = sockets(*LISTENS, bound, *missed, did(5.0, "socket tcp", 6))
        assert (made.made == 5.0) is known


def test_a_main_process_that_ends_leaves_what_its_children_have() -> None:
    forked = did(1.5, "fork", result=CHILD)
    unknown = ProcessEvent(3.0, "server", "server", "exit", 77, exit=0, left=True)
    listener, accepted = sockets(*ACCEPTS, forked, unknown)
    assert (listener.holders, accepted.closed) == ({MAIN, CHILD}, NEVER)
