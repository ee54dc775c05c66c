"""What tests/servers.py reads from a record of a server's calls."""

from __future__ import annotations

from typing import Any

from tests.served import told

START = {"t": 1.0, "kind": "process", "process": "server", "phase": "start"}
LOOK = {"t": 1.5, "kind": "sockets", "host": "server", "text": "LISTEN 0 5 0.0.0.0:8000"}


def call(text: str, fd: int | None = 3, pid: int = 2, **more: Any) -> dict[str, Any]:
    event = {"t": 1.1, "kind": "call", "process": "server", "phase": "done", "call": text}
    return {**event, "name": text.split(maxsplit=1)[0], "fd": fd, "pid": pid, **more}


LISTENS = [call("socket tcp"), call("set SO_REUSEADDR 1"), call("bind :8000"), call("listen 5")]


def test_an_option_before_bind() -> None:
    found = told.sockets(LISTENS)
    assert told.reuse(found) == "set to 1, before bind"
    assert told.others(found, accepted=False) == "–"


def test_an_option_that_comes_late() -> None:
    made, option, bind, listen = LISTENS
    assert told.reuse(told.sockets([made, bind, option, listen])) == "set to 1, before listen"
    assert told.reuse(told.sockets([made, bind, listen, option])) == "set to 1, after listen"


def test_an_option_that_was_refused_or_taken_back() -> None:
    made, option, bind, listen = LISTENS
    refused = call("set SO_REUSEADDR 1", errno="EINVAL")
    assert told.reuse(told.sockets([made, refused, bind, listen])) == "no"
    taken = call("set SO_REUSEADDR 0")
    assert told.reuse(told.sockets([made, option, taken, bind, listen])) == "set to 0, before bind"


def test_what_does_not_listen_is_no_listener() -> None:
    assert told.reuse(told.sockets(LISTENS[:3])) == "not seen"
    outgoing = [call("socket tcp"), call("set SO_LINGER 1 0"), call("connect there:80")]
    assert told.others(told.sockets(outgoing), accepted=False) == "–"
    client = [{**event, "process": "client"} for event in LISTENS]
    assert told.reuse(told.sockets(client)) == "not seen"


def test_two_listeners_that_differ() -> None:
    bare = [call("socket tcp", 4), call("bind :9000", 4), call("listen 5", 4)]
    assert told.reuse(told.sockets([*LISTENS, *bare])) == "no / set to 1, before bind"


def test_options_of_a_connection_that_a_child_accepted() -> None:
    child = [
        call("fork", None, result=7),
        call("accept", pid=7, result=4),
        call("set SO_KEEPALIVE 1", 4, pid=7),
        call("close", 4, pid=7),
        call("set SO_KEEPALIVE 0", 4, pid=7),
    ]
    found = told.sockets([*LISTENS, *child])
    assert told.others(found, accepted=True) == "`SO_KEEPALIVE 1`"
    assert told.others(found, accepted=False) == "–"
    assert told.reuse(found) == "set to 1, before bind"


def test_a_child_has_its_parents_listener() -> None:
    made, option, bind, _ = LISTENS
    child = [call("fork", None, result=7), call("listen 5", pid=7)]
    assert told.reuse(told.sockets([made, option, bind, *child])) == "set to 1, before bind"


def test_how_long_a_server_takes_to_listen() -> None:
    later = [{**START, "t": 3.0}, {**LOOK, "t": 3.1}, {**LOOK, "t": 3.2}]
    assert [round(each, 3) for each in told.starts([START, LOOK, *later])] == [0.5, 0.1]
    ended = {**START, "t": 1.2, "phase": "exit"}
    assert list(told.starts([START, ended, LOOK])) == []


def test_what_is_not_told() -> None:
    event = {"kind": "unseen", "process": "server", "text": "io_uring"}
    assert told.unseen([event, {**event, "process": "client", "text": "Yama"}]) == {"io_uring"}
