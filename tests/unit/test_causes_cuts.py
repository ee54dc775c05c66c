"""Exchanges that were cut off: by the end of an idle connection, and by that of another one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labctl.judge.causes.cuts import IDLE, SOON
from labctl.record.events import Event
from labctl.record.history import History
from tests.caused import (
    CLIENT,
    LATER,
    SERVER,
    call,
    calls,
    ended,
    established,
    function_calls,
    handshake,
    ids,
    look,
    only,
    told,
    trace,
)
from tests.fake import tcp
from tests.walked import ACK, FIN, RST, Sent

PSH = ACK | 8
FIRST = [
    *handshake(1.0),
    Sent(1.1, CLIENT, SERVER, PSH, 1, 1, data=5), Sent(1.2, SERVER, CLIENT, PSH, 1, 6, data=6),
]  # fmt: skip
"""A request and its answer."""
CLOSES = Sent(3.0, SERVER, CLIENT, FIN | ACK, 7, 6)
SECOND = Sent(3.0 + LATER / 2, CLIENT, SERVER, PSH, 6, 7, data=9)
"""Before the FIN has come."""
REFUSES = Sent(3.0002, SERVER, CLIENT, RST, 7)


def raced(*sent: Sent) -> History:
    return told([look(0.5), look(5.0)], [*FIRST, *sent])


def test_a_request_that_crosses_the_fin() -> None:
    cause = only(raced(CLOSES, SECOND, REFUSES), "idle")
    assert (cause.id, cause.host, cause.at) == ("idle-race", "client", SECOND.t)
    assert cause.connection == f"{CLIENT} -> {SERVER}"
    assert "a request of 9 bytes" in cause.text
    assert "server, which closed that connection after 1.8 s without data" in cause.text
    assert "sooner than the server does" in cause.cure
    assert len(cause.evidence) == 3
    bare = Sent(2.9, CLIENT, SERVER, ACK, 6, 7)  # it has no data
    assert ids(raced(bare, CLOSES, SECOND, REFUSES), "idle") == ["idle-race"]


def test_a_fin_that_was_lost_had_not_come_either() -> None:
    lost, second = replace(CLOSES, fate="lost"), replace(SECOND, t=3.1)
    assert ids(raced(lost, second, replace(REFUSES, t=3.1002)), "idle") == ["idle-race"]


@pytest.mark.parametrize(("idle", "raced_for"), [(IDLE - 0.01, False), (IDLE + 0.01, True)])
def test_only_an_idle_connection_is_closed_for_being_so(idle: float, raced_for: bool) -> None:
    t = FIRST[-1].t + idle
    sent = replace(CLOSES, t=t), replace(SECOND, t=t + LATER / 2), replace(REFUSES, t=t + 0.0002)
    assert bool(ids(raced(*sent), "idle")) is raced_for


def test_what_left_when_the_fin_had_come_could_have_known() -> None:
    for early, crossed in ((1e-6, True), (-1e-6, False)):
        second = replace(SECOND, t=CLOSES.t + LATER - early)
        assert bool(ids(raced(CLOSES, second, REFUSES), "idle")) is crossed


@pytest.mark.parametrize(
    "history",
    [
        raced(CLOSES, replace(SECOND, t=3.1), replace(REFUSES, t=3.1002)),  # it could have known
        raced(replace(CLOSES, fate="lost"), replace(SECOND, t=3.1, ack=8), REFUSES),  # it knew
        raced(CLOSES, SECOND),  # somebody may have read it
        raced(replace(CLOSES, ack=15), replace(SECOND, t=2.9), REFUSES),  # the server had it
        raced(  # it was not idle
            replace(CLOSES, t=1.3), replace(SECOND, t=1.3 + LATER / 2), replace(REFUSES, t=1.3002)
        ),
        raced(  # nor was it the server's turn to wait: an answer was due
            Sent(1.4, CLIENT, SERVER, PSH, 6, 7, data=3), replace(CLOSES, ack=9),
            replace(SECOND, seq=9), REFUSES,
        ),
        raced(replace(CLOSES, flags=RST | ACK), SECOND, REFUSES),
        raced(replace(CLOSES, data=4), SECOND, replace(REFUSES, seq=11)),  # its last answer
    ],
)  # fmt: skip
def test_what_is_no_race(history: History) -> None:
    assert ids(history, "idle") == []


# --- Two connections of one host ------------------------------------------------------------------

BACKEND, OUT = "198.18.0.5:9000", "198.18.0.2:50000"
ASK = Sent(1.1, CLIENT, SERVER, PSH, 1, 1, data=7)
FORWARD = Sent(1.5, OUT, BACKEND, PSH, 1, 1, data=18)
DIES = Sent(2.0, BACKEND, OUT, FIN | ACK, 1, 19)
CUT = Sent(2.01, SERVER, CLIENT, FIN | ACK, 1, 8)
PROXY = "socket; bind :8000; listen 5; accept; recv; socket; connect backend:9000; recv"


def proxied(*sent: Sent, texts: str = PROXY, more: tuple[Event, ...] = ()) -> History:
    """The server is a proxy: it has asked the backend, for the client."""
    done = calls(0.9, "server", texts, client=OUT, server=BACKEND)
    when = dict(enumerate((1.01, 1.15, 1.19, 1.21, 1.51), 4))  # from accept on
    done = [replace(e, t=when.get(n, e.t)) for n, e in enumerate(done)]
    done[4:5] = [replace(e, local=SERVER, peer=CLIENT) for e in done[4:5]]  # type: ignore[call-arg]
    begun = [
        *established(0.99), *trace(1.2, "UNCONN", "SYN-SENT", "ESTAB", ends=(OUT, BACKEND)),
        *trace(1.2001, "LISTEN", "SYN-RECV", "ESTAB", ends=(BACKEND, OUT)), look(5.0),
    ]  # fmt: skip
    shaken = [*handshake(0.99), *handshake(1.2, OUT, BACKEND)]
    return told([*done, *begun, *more], [*shaken, ASK, FORWARD, *sent])


def test_the_client_loses_its_answer_as_the_backend_ends() -> None:
    cause = only(proxied(DIES, CUT), "proxy")
    assert (cause.id, cause.host, cause.at, cause.certain) == ("proxy-cut", "server", CUT.t, True)
    assert cause.connection == f"{SERVER} -> {CLIENT}"
    assert cause.text == (
        f"server ended {SERVER} -> {CLIENT}, of client, 0.010 s after backend had ended "
        f"{OUT} -> {BACKEND} by a FIN: the last 7 bytes in it, of client, never got an answer"
    )
    assert "let server answer with an error" in cause.cure


def test_the_backend_s_work_is_lost_as_the_client_ends() -> None:
    leaves = Sent(2.0, CLIENT, SERVER, RST | ACK, 8, 1)
    gives_up = Sent(2.01, OUT, BACKEND, RST | ACK, 19, 1)
    cause = only(proxied(leaves, gives_up, more=(ended(2.01, "server"),)), "proxy")
    assert cause.connection == f"{OUT} -> {BACKEND}"
    assert "after client had ended" in cause.text and "by an RST" in cause.text
    assert "the last 18 bytes in it, of server, never got an answer" in cause.text


def test_without_calls_it_is_not_certain_that_they_belong_together() -> None:
    cause = only(proxied(DIES, CUT, texts="socket"), "proxy")
    assert not cause.certain and "the calls of one process on both would tell" in cause.text
    gives_up = Sent(2.01, OUT, BACKEND, FIN | ACK, 19, 1)  # and may read on
    leaves = Sent(2.0, CLIENT, SERVER, RST | ACK, 8, 1)
    assert ids(proxied(leaves, gives_up, texts="socket"), "proxy") == []


@pytest.mark.parametrize(("after", "cut"), [(SOON - 0.01, True), (SOON + 0.01, False)])
def test_one_end_is_soon_after_the_other_one(after: float, cut: bool) -> None:
    late = replace(CUT, t=DIES.t + LATER + after)
    assert ids(proxied(DIES, late), "proxy") == (["proxy-cut"] if cut else [])
    leaves, gives_up = (Sent(2.0, CLIENT, SERVER, RST | ACK, 8, 1),
                        Sent(2.01, OUT, BACKEND, FIN | ACK, 19, 1))  # fmt: skip
    closes = ended(2.01 + after, "server")
    assert ids(proxied(leaves, gives_up, more=(closes,)), "proxy") == (["proxy-cut"] if cut else [])


HALF = Sent(1.3, CLIENT, SERVER, FIN | ACK, 8, 1)
ENDS = Sent(1.6, OUT, BACKEND, FIN | ACK, 19, 1)
READS = look(2.5, tcp("FIN-WAIT-2", CLIENT, SERVER, more="ino:9"), host="client")
WAITS = (*trace(1.3, "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", ends=(CLIENT, SERVER)), READS)


def test_a_half_closed_connection_is_cut() -> None:
    history = proxied(HALF, ENDS, more=(*WAITS, ended(1.6, "server")))
    cause = only(history, "half")
    assert (cause.id, cause.connection) == ("half-close-cut", f"{OUT} -> {BACKEND}")
    assert f"after client had shut down its sending half of {SERVER} -> {CLIENT}" in cause.text
    assert "pass a FIN on as a FIN" in cause.cure


def test_a_half_closed_connection_is_passed_on_and_cut_later() -> None:
    shut = call(1.6001, "server", "shutdown wr")
    cause = only(proxied(HALF, ENDS, more=(*WAITS, shut, ended(1.9, "server"))), "half")
    words = f"server passed on to {OUT} -> {BACKEND}, of backend, that client had shut down"
    assert words in cause.text and "and closed it 0.300 s later" in cause.text
    assert cause.cure == "let server wait longer for the answer after a FIN"


def test_by_the_client_s_calls_too() -> None:
    half = "socket; connect server:8000; send 7 bytes; shutdown wr"
    mine = tuple(calls(1.0, "client", half))
    history = proxied(HALF, ENDS, more=(*mine, ended(1.6, "server")))
    assert ids(history, "half") == ["half-close-cut"]
    closed = tuple(calls(1.0, "client", half.replace("shutdown wr", "close")))
    history = proxied(HALF, ENDS, more=(*closed, ended(1.6, "server")))
    assert ids(history, "half") == [] and ids(history, "proxy") == ["proxy-cut"]
    leaves = Sent(1.3, CLIENT, SERVER, RST | ACK, 8, 1)
    history = proxied(leaves, ENDS, more=(*mine, ended(1.6, "server")))
    assert ids(history, "half") == [] and ids(history, "proxy") == ["proxy-cut"]


EARLY = Sent(1.9, BACKEND, OUT, PSH, 1, 19, data=4)
OVER = (ended(2.02, "server"),)
ANSWER = [Sent(1.7, BACKEND, OUT, PSH, 1, 20, data=9)]


@pytest.mark.parametrize(
    "history",
    [
        proxied(DIES),
        proxied(CUT),  # the proxy ended it of its own accord
        proxied(replace(CUT, t=1.9), DIES),
        proxied(DIES, replace(CUT, t=2.9)),  # much later
        # It was answered: that the answer was the last that was sent is no loss.
        proxied(EARLY, Sent(1.95, SERVER, CLIENT, PSH, 1, 8, data=4), replace(DIES, seq=5),
                replace(CUT, seq=5), more=OVER),
        proxied(EARLY, Sent(2.0, CLIENT, SERVER, RST | ACK, 8, 1),
                Sent(2.01, OUT, BACKEND, RST | ACK, 19, 5), more=OVER),
        proxied(HALF, ENDS, *ANSWER, more=WAITS),  # it passed a FIN on as a FIN
        proxied(HALF, ENDS, more=WAITS),  # and its backend has yet to answer
        proxied(HALF, ENDS, Sent(1.7, BACKEND, OUT, RST, 1), more=WAITS),  # or refuses to
    ],
)  # fmt: skip
def test_what_is_no_cut(history: History) -> None:
    assert [*ids(history, "proxy"), *ids(history, "half")] == []


def test_of_several_nobody_knows_which_belong_together() -> None:
    other = "198.18.0.3:40001"
    more = established(1.0, client=other)
    history = told(
        [*proxied(DIES, CUT).events[2:], *more],
        [*handshake(0.99), *handshake(1.2, OUT, BACKEND), *handshake(1.0, other), ASK, FORWARD,
         DIES, CUT],
    )  # fmt: skip
    assert ids(history, "proxy") == []
    assert ids(history, "half") == []


@pytest.mark.parametrize(("others", "cut"), [(49, True), (50, False)])
def test_among_so_many_calls_tell_which_belong_together(others: int, cut: bool) -> None:
    """The others are another process's."""
    there = f"{SERVER.rpartition(':')[0]}:8001"
    ends = [f"198.18.0.3:{41000 + n}" for n in range(others)]
    more = calls(0.1, "other", "socket; bind :8001; listen 5", "server")
    for n, end in enumerate(ends):
        more += [*established(0.5 + n / 1e3, end, there),
                 call(0.6 + n / 1e3, "other", "accept", "server", local=there,
                      peer=end)]  # fmt: skip
    wire = [s for n, end in enumerate(ends) for s in handshake(0.5 + n / 1e3, end, there)]
    history = proxied(*wire, DIES, CUT, more=(*more,))
    assert ids(history, "proxy") == (["proxy-cut"] if cut else [])


# --- Many -----------------------------------------------------------------------------------------


def many(count: int, apart: float) -> History:
    """A proxy's connections, one after the other or all at once."""
    events: list[Event] = [look(0.5)]
    wire: list[Sent] = []
    for number in range(count):
        t, port = 1 + number * apart, 2000 + number
        came, out = f"198.18.0.3:{port}", f"198.18.0.2:{port}"
        ends = ("ESTAB", "FIN-WAIT-1", "UNCONN")
        events += [*established(t, came), *established(t + 0.001, out, BACKEND)]
        events += [
            *trace(t + 0.9, *ends, ends=(SERVER, came)),
            *trace(t + 0.9, *ends, ends=(out, BACKEND)),
        ]
        wire += [
            *handshake(t, came), *handshake(t + 0.001, out, BACKEND),
            replace(ASK, t=t + 0.1, source=came), replace(FORWARD, t=t + 0.2, source=out),
            replace(DIES, t=t + 0.3, target=out), replace(CUT, t=t + 0.301, target=came),
        ]  # fmt: skip
    return told(events, wire)


def test_of_many_a_few_are_told() -> None:
    assert ids(many(30, 1.0), "proxy") == ["proxy-cut"] * 20


@pytest.mark.parametrize("apart", [1.0, 0.001])
def test_ten_times_as_many_take_ten_times_as_many_function_calls(apart: float) -> None:
    took = [function_calls(many(count, apart)) for count in (60, 600)]
    assert took[1] < 15 * took[0]
