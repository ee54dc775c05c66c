"""The sockets of programs that labctl has not written: their calls name descriptors."""

from __future__ import annotations

import math
from typing import Any

from labctl.judge.causes.descriptors import Descriptor, Descriptors
from labctl.record.events import CallEvent, Event, ProcessEvent, UnseenEvent

MAIN, CHILD = 2, 5
HERE, THERE = "198.18.0.2:8000", "198.18.0.3:40000"
FILTERED = ["bind", "listen", "socket", "accept", "connect", "set"]


def did(t: float, call: str, fd: int | None = None, pid: int = MAIN, **more: Any) -> CallEvent:
    name = call.split(maxsplit=1)[0]
    return CallEvent(t, "server", "server", pid, "done", call, name, fd=fd, **more)


def started(t: float = 0.0) -> ProcessEvent:
    return ProcessEvent(t, "server", "server", "start", MAIN, watch="calls")


def missing(t: float, *but: str) -> UnseenEvent:
    return UnseenEvent(t, "server", "server", "too many", [*but])


LISTENS: list[Event] = [
    started(),
    did(0.1, "socket tcp", 3),
    did(0.2, "set SO_REUSEADDR 1", 3),
    did(0.3, "bind :8000", 3, local="0.0.0.0:8000"),
    did(0.4, "listen 5", 3, local="0.0.0.0:8000"),
]
ACCEPTS: list[Event] = [*LISTENS, did(1.0, "accept", 3, result=4, local=HERE, peer=THERE)]


def sockets(*events: Event) -> list[Descriptor]:
    return Descriptors(events, lambda host, ends, t: t - 0.01).all


def test_each_descriptor_is_a_socket_of_its_own() -> None:
    listener, accepted = sockets(*ACCEPTS, did(2.0, "set SO_LINGER 1 0", 4))
    assert (listener.port, listener.listening, accepted.listening) == (8000, 0.4, math.inf)
    assert accepted.ends == ("198.18.0.2:8000", "198.18.0.3:40000")
    assert accepted.has("SO_REUSEADDR", 3.0)
    assert accepted.has("SO_LINGER", 3.0)
    assert not listener.has("SO_LINGER", 3.0)


def test_a_number_that_is_used_again_is_another_socket() -> None:
    events = [*ACCEPTS, did(2.0, "close", 4), did(3.0, "socket tcp6", 4)]
    _, accepted, other = sockets(*events)
    assert (accepted.closed, other.closed, other.family) == (2.0, math.inf, 6)
    assert accepted.open_at(1.9)
    assert not accepted.open_at(2.1)


def test_children_hold_what_they_have_not_closed() -> None:
    forked = did(1.5, "fork", result=CHILD)
    closing = [did(2.0, "close", 4), did(2.1, "close (on exec)", 4, CHILD)]
    listener, accepted = sockets(*ACCEPTS, forked, *closing)
    assert (listener.closed, accepted.closed) == (math.inf, 2.1)
    ended = ProcessEvent(3.0, "server", "server", "exit", MAIN, exit=0, left=True)
    listener, _ = sockets(*ACCEPTS, forked, ended)
    assert listener.holders == {CHILD}
    assert listener.open_at(3.5)
    listener, _ = sockets(*ACCEPTS, forked, ended, did(4.0, "exit 0", pid=CHILD))
    assert listener.closed == 4.0


def test_a_fork_that_failed_has_no_child() -> None:
    failed = did(1.5, "fork", errno="EAGAIN")
    _, accepted = sockets(*ACCEPTS, failed, did(2.0, "close", 4))
    assert accepted.closed == 2.0


def test_a_close_that_fails_closes_too() -> None:
    _, accepted = sockets(*ACCEPTS, did(2.0, "close", 4, errno="EINTR"))
    assert accepted.closed == 2.0


PEER = ProcessEvent(0.0, "server", "server", "start", MAIN)
"""Its calls act on its current socket."""


def test_a_child_has_what_its_parent_lets_go_as_it_forks() -> None:
    forks = [*ACCEPTS[1:], did(1.5, "fork", result=CHILD)]
    _, accepted = sockets(PEER, *forks)
    assert accepted.closed == math.inf
    _, accepted = sockets(PEER, *forks, did(3.0, "close", pid=CHILD))
    assert accepted.closed == 3.0


def test_only_tcp_sockets_are_of_interest() -> None:
    assert sockets(PEER, did(0.1, "socket udp")) == []


def test_a_bind_that_failed_is_told_until_one_does_not() -> None:
    failed, done = did(0.2, "bind :1", errno="EACCES"), did(0.3, "bind :9", local="0.0.0.0:9")
    for binds, bound in (([failed], failed), ([failed, done], done), ([done, failed], done)):
        (found,) = sockets(PEER, did(0.1, "socket"), *binds)
        assert found.bound is bound


def test_a_connect_that_failed_has_no_ends() -> None:
    asked = did(0.2, "connect client:9", errno="ETIMEDOUT", local=HERE, peer=THERE)
    (found,) = sockets(PEER, did(0.1, "socket"), asked)
    assert (found.ends, found.local) == (None, "")


def test_a_socket_that_is_used_is_the_listener_only_if_it_listens() -> None:
    calls = ("socket as a", "bind :8000", "listen 5", "socket as b", "use b", "close listener")
    first, second = sockets(PEER, *(did(n / 10, call) for n, call in enumerate(calls, 1)))
    assert (first.closed, second.closed) == (0.6, math.inf)


def test_of_a_call_on_an_unknown_descriptor_nothing_is_known() -> None:
    events = [started(), call := did(1.0, "bind :8000", 7, errno="EADDRINUSE")]
    assert Descriptors(events, lambda host, ends, t: t).of(call) is None
    assert sockets(started(), did(1.0, "accept", 7, result=8, local=HERE, peer=THERE)) == []


def test_a_record_that_begins_in_the_middle_may_close_what_is_unknown() -> None:
    begun = ProcessEvent(0.0, "server", "server", "start", MAIN)
    (known,) = sockets(begun, did(1.0, "close"), did(2.0, "socket"))
    assert known.open_at(3.0)


def test_what_may_have_been_closed_unseen_is_not_surely_open() -> None:
    bound = did(2.0, "socket tcp", 5), did(2.1, "bind :9000", 5, local="0.0.0.0:9000")
    listener, _, before = sockets(*ACCEPTS, *bound, missing(3.0, *FILTERED))
    assert before.open_at(2.9)
    assert not before.open_at(3.1)
    assert not listener.open_at(3.1)
    *_, after = sockets(*ACCEPTS, missing(1.5, *FILTERED), *bound)
    assert (after.port, after.open_at(2.5)) == (9000, False)


def test_sockets_that_were_open_before() -> None:
    """The first words on a program that ran already; later calls name them."""
    events = [
        started(),
        did(0.1, "has tcp6 listening SO_REUSEADDR=1 SO_LINGER=1,7", 3, local="[::]:8000"),
        did(0.1, "has tcp", 4, local=HERE, peer=THERE),
        did(0.1, "has the same as fd 3 of 2", 9, CHILD),
        did(0.1, "has the same as fd 7 of 1", 8, CHILD),  # nobody knows of that one
        did(1.0, "accept", 3, result=5, local=HERE, peer=f"{THERE}1"),
        did(2.0, "close", 3),
        did(2.1, "close", 4),
    ]
    listener, known, accepted = sockets(*events)
    assert (listener.port, listener.family, listener.listening) == (8000, 6, 0.1)
    assert listener.option("SO_LINGER", 1.0) == "1 7"
    assert accepted.has("SO_REUSEADDR", 1.0)
    assert (known.ends, known.closed, known.chosen_port) == ((HERE, THERE), 2.1, False)
    assert listener.holders == {CHILD}
    assert listener.closed == math.inf
    assert not known.has("SO_REUSEADDR", 1.0)


def test_in_a_flood_only_what_listens_is_known() -> None:
    bound = [did(2.0, "socket tcp", 5), did(2.1, "bind :9000", 5)]
    events = [*ACCEPTS, missing(1.5, "bind", "listen"), *bound]
    found = Descriptors(events, lambda host, ends, t: t)
    assert len(found.all) == 2
    assert [found.of(call) for call in bound] == [None, None]
    closing = [did(2.0, "close", 4), did(2.1, "close", 3)]
    listener, accepted = sockets(*ACCEPTS, missing(1.5, "bind", "listen"), *closing)
    assert (listener.closed, accepted.closed) == (2.1, math.inf)
