"""What had no answer, for how long, and what became of it: both sides of each limit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from labctl.judge.causes.cause import Scene
from labctl.judge.causes.silence import PATIENT, Silence
from labctl.probes.observations import Segment
from labctl.record.events import Event, TroubleEvent
from tests.caused import (
    CLIENT,
    SERVER,
    call,
    established,
    handshake,
    ids,
    look,
    said,
    told,
    trace,
)
from tests.reported import segment
from tests.walked import ACK, FIN, RST, SYN, Sent

SCENE = Scene(told([look(0.5), look(99.0)]), None)


def lost(t: float, text: str, **more: Any) -> Segment:
    return segment(t, text, None, **more)


def silent(*found: Segment, t: float = 50.0) -> Silence:
    return Silence(found, "client", t, SCENE)


DATA = lost(2.0, "client PSH ACK 1 1 len 5")
HEARD = segment(1.0, "server ACK 1 1", 1.1)


@pytest.mark.parametrize(
    ("last", "sent"),
    [
        (DATA, 1),
        (lost(2.0, "client ACK 1 1"), 0),  # a bare ACK wants no answer
        (lost(2.0, "client ACK 0 1"), 1),  # a keepalive probe does: its number was there before
        (lost(2.0, "client FIN ACK 1 1"), 1),
        (lost(2.0, "client RST ACK 1 1 len 5"), 0),
        (lost(2.0, "client RST ACK 0 1"), 0),
        (lost(50.0, "client PSH ACK 1 1 len 5"), 1),
        (lost(50.1, "client PSH ACK 1 1 len 5"), 0),  # later than what is asked about
        (segment(2.0, "server ACK 1 1"), 0),
        (lost(2.0, "client PSH ACK 1 1 len 5", sender="server"), 0),  # in its name alone
    ],
)
def test_what_wants_an_answer(last: Segment, sent: int) -> None:
    syn = segment(0.5, "client SYN 0 0")
    assert len(silent(syn, HEARD, last).sent) == sent


def test_numbers_that_data_a_syn_and_a_fin_take_repeat() -> None:
    """A bare ACK with one of these is a probe; nothing but its number tells."""
    for text, repeats, fits in (
        ("client SYN 7 0", 7, 8), ("client ACK 7 1 len 3", 9, 10), ("client FIN ACK 7 1", 7, 8),
        ("client FIN ACK 7 1 len 3", 10, 11),
    ):  # fmt: skip
        before = segment(0.5, text)
        assert silent(before, HEARD, lost(2.0, f"client ACK {repeats} 1")).sent != []
        assert silent(before, HEARD, lost(2.0, f"client ACK {fits} 1")).sent == []


def test_since_when_it_has_heard_nothing() -> None:
    found = silent(DATA, HEARD, DATA)
    assert (found.heard, found.sent, silent(DATA).heard) == (1.1, [DATA], 0.0)


def test_a_window_that_its_peer_keeps_closed() -> None:
    closed = segment(1.0, "server ACK 1 1", zero_window=True)
    probe = lost(2.0, "client ACK 0 1", probe=True)
    answer = segment(2.5, "server ACK 1 1", zero_window=True)
    again = probe._replace(t=4.0)
    assert silent(closed, probe, answer, again).shut == [probe, again]
    assert silent(closed, probe, HEARD, again).shut == []  # it has opened it
    assert silent(HEARD, probe).shut == []
    assert silent(probe).shut == []
    assert silent(closed, DATA).shut == []
    assert silent(closed, probe, answer).lines == (silent(closed, probe).lines[0],)


def test_the_last_of_them_are_evidence() -> None:
    tries = [lost(t, f"client PSH ACK 1 1 len {n}") for n, t in enumerate((2.0, 3.0, 5.0, 9.0), 1)]
    lines = silent(HEARD, *tries).lines
    assert ["len 2" in lines[0], "len 4" in lines[2], len(lines)] == [True, True, 3]


def test_which_end_is_its_own_inside_a_host() -> None:
    ours = segment(0.5, "client ACK 1 1 len 5", receiver="client")
    theirs = segment(1.0, "server ACK 1 6", sender="client", receiver="client")
    assert silent(ours).sent == [ours]
    assert silent(ours, theirs).sent == []
    assert silent(theirs, ours).sent == []


# --- What became of it ----------------------------------------------------------------------------

CAPTURE = "whether they arrived, a capture of the peer would tell"
ARRIVED = segment(2.0, "client PSH ACK 1 1 len 5")


@pytest.mark.parametrize(
    ("sent", "answers", "words"),
    [
        ([DATA], 0, "1 lost on their way"),
        ([DATA, DATA, DATA._replace(dropped=0)], 0, "2 lost on their way, 1 lost by a drop"),
        ([ARRIVED._replace(dropped=0)], 0, "1 lost by a drop"),
        ([ARRIVED], 0, "all arrived, and no segment of server answered"),
        ([ARRIVED], 2, "2 answers of the peer were lost"),
        ([ARRIVED, DATA], 2, "1 lost on their way, and 2 answers of the peer were lost"),
        ([DATA._replace(unseen=True)], 0, CAPTURE),
        ([ARRIVED._replace(unseen=True)], 0, "all arrived, and no segment of server answered"),
        ([DATA._replace(receiver=None)], 0, CAPTURE),
        ([DATA._replace(receiver=None, dropped=0)], 0, "1 lost by a drop"),
        ([DATA._replace(receiver=None), DATA._replace(receiver=None, dropped=0)], 0, CAPTURE),
    ],
)
def test_what_became_of_what_had_no_answer(sent: list[Segment], answers: int, words: str) -> None:
    back = [lost(1.5, "server ACK 1 1")] * answers
    assert silent(HEARD, *back, *sent).fate == words


@pytest.mark.parametrize(
    ("counters", "syns", "words"),
    [
        ({}, True, "all arrived, and no segment of server answered"),
        ({"TcpExtTCPMD5NotFound": 2}, False, "and it wants one"),
        ({"TcpExtListenDrops": 2}, True, "a queue of SYNs"),
        ({"TcpExtListenDrops": 2}, False, "all arrived, and no segment of server answered"),
        ({"TcpExtListenOverflows": 1, "TcpExtListenDrops": 2}, True, "an accept queue was full"),
        ({"TcpExtTCPMD5NotFound": 1, "TcpExtListenDrops": 2}, True, "and it wants one"),
    ],
)
def test_a_counter_of_the_peer_tells_why_it_dropped_them(
    counters: dict[str, int], syns: bool, words: str
) -> None:
    scene = Scene(told([look(0.5), replace(look(99.0), counters=counters)]), None)
    what = "client SYN 0 0" if syns else "client PSH ACK 1 1 len 5"
    assert words in Silence([segment(2.0, what)], "client", 50.0, scene).fate
    elsewhere = segment(2.0, what, receiver=None, unseen=True)
    assert "no segment of the peer answered" in Silence([elsewhere], "client", 50.0, scene).fate


# --- Which timer gave up --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (
            [
                lost(2.0, "client ACK 0 1"),
                lost(3.26, "client ACK 0 1"),
                lost(5.0, "client ACK 0 1"),
            ],
            "3 keepalive probes had no answer, 1.3 s apart",
        ),
        ([lost(2.0, "client ACK 0 1")], "1 keepalive probe had no answer; 1 lost"),
        ([DATA], None),
        ([lost(2.0, "client FIN ACK 1 1")], None),
        ([DATA, lost(3.0, "client ACK 0 1")], None),
        ([], None),
    ],
)
def test_keepalive_gave_up_where_nothing_else_was_under_way(
    sent: list[Segment], found: str | None
) -> None:
    timer = silent(segment(0.5, "client SYN 0 0"), HEARD, *sent).timer(None)
    assert (timer is not None) is (found is not None)
    if timer and found:
        assert timer[0] == "timeout-keepalive" and found in timer[2]


# --- Who waits still ------------------------------------------------------------------------------


def asks(last: float, *more: Event, end: float | None = None) -> list[Event]:
    ends = [*trace(end, "SYN-SENT", "UNCONN", ends=(CLIENT, SERVER))] if end else []
    return [*trace(1.0, "UNCONN", "SYN-SENT", ends=(CLIENT, SERVER)), *ends, look(last), *more]


SYNS = [Sent(t, CLIENT, SERVER, SYN, fate="lost") for t in (1.0, 1.5)]


@pytest.mark.parametrize(
    ("events", "sent", "words"),
    [
        (asks(2.5), SYNS, "client has had no answer to its SYN"),
        (asks(2.5), SYNS[:1], ""),  # not sent again yet
        (asks(1.0 + PATIENT - 0.01), SYNS, ""),
        (asks(1.0 + PATIENT + 0.01), SYNS, "for 1.0 s, and has sent it 2 times"),
        (asks(9.0, end=3.0), SYNS, "client had no answer to its SYN"),
        (asks(9.0, end=1.7), SYNS, ""),
        (asks(2.5, call(2.0, "client", "connect server:8000", local=CLIENT, errno="EINTR",
                        error="x")), SYNS, ""),
        (asks(2.5, call(2.0, "client", "connect server:8000", local="198.18.0.3:40001",
                        errno="EINTR", error="x")), SYNS, "no answer to its SYN"),
        (asks(2.5, call(2.0, "client", "connect server:8000", local=CLIENT)), SYNS,
         "no answer to its SYN"),
        (asks(2.5, call(2.0, "client", "recv", local=CLIENT, errno="EINTR", error="x")), SYNS,
         "no answer to its SYN"),
        (asks(2.5, call(2.0, "x", "connect server:8000", "server", local=CLIENT, errno="EINTR",
                        error="x")), SYNS, "no answer to its SYN"),
    ],
)  # fmt: skip
def test_a_connect_that_waits(events: list[Event], sent: list[Sent], words: str) -> None:
    found = said(told(events, sent), "no-answer")
    assert [words in cause.text for cause in found] == ([True] if words else [])


def speaks(state: str = "ESTAB", last: float = 9.0, end: float | None = None) -> list[Event]:
    ends = (CLIENT, SERVER)
    more = [*trace(1.5, "ESTAB", state, ends=ends)] if state != "ESTAB" else []
    more += [*trace(end, state, "UNCONN", ends=ends)] if end else []
    return [*established(1.0), look(1.2), *more, look(last)]


TWICE = [Sent(t, CLIENT, SERVER, ACK | 8, 1, 1, data=5, fate="lost") for t in (2.0, 2.5)]


@pytest.mark.parametrize(
    ("events", "sent", "words"),
    [
        (speaks(), TWICE, "client has had no answer to 5 bytes of"),
        (speaks("CLOSE-WAIT"), TWICE, "has had no answer to 5 bytes of"),
        (speaks("FIN-WAIT-1"), TWICE, ""),
        (speaks(end=8.0), TWICE, ""),
        (speaks(last=2.0 + PATIENT - 0.01), TWICE, ""),
        (speaks(last=2.0 + PATIENT + 0.01), TWICE, "for 1.0 s, and has sent it 2 times"),
        (speaks(), TWICE[:1], ""),
        (speaks(), [*TWICE, Sent(3.0, SERVER, CLIENT, ACK, 1, 6)], ""),
    ],
)
def test_data_that_waits(events: list[Event], sent: list[Sent], words: str) -> None:
    found = said(told(events, [*handshake(1.0), *sent]), "no-answer")
    assert [words in cause.text for cause in found] == ([True] if words else [])


def test_some_connections_of_a_host_that_wait_are_told_of() -> None:
    ends = [f"198.18.0.3:{40000 + n}" for n in range(4)]
    events = [e for end in ends
              for e in trace(1.0, "UNCONN", "SYN-SENT", ends=(end, SERVER))]  # fmt: skip
    sent = [Sent(t, end, SERVER, SYN, fate="lost") for end in ends for t in (1.0, 2.0)]
    assert ids(told([*events, look(4.0)], sent)) == ["no-answer"] * 3


# --- Where nobody knows the calls -----------------------------------------------------------------

BLIND = TroubleEvent(0.1, "client", "calls", "not seen")


@pytest.mark.parametrize(
    ("sent", "now", "words"),
    [
        (SYNS, 9.0, "SYN"),
        (SYNS, 1.0 + PATIENT - 0.01, ""),
        (SYNS, 1.0 + PATIENT + 0.01, "SYN"),
        ([*SYNS, Sent(3.0, SERVER, CLIENT, SYN | ACK, 0, 1)], 9.0, ""),
        ([*SYNS, Sent(3.0, CLIENT, SERVER, ACK, 1, 1)], 9.0, ""),
        ([Sent(1.0, CLIENT, SERVER, ACK, 1, 1)], 9.0, ""),
    ],
)
def test_syns_that_nobody_answered(sent: list[Sent], now: float, words: str) -> None:
    found = said(told([BLIND, look(0.5), look(now)], sent), "no-answer")
    assert [words in cause.text for cause in found] == ([True] if words else [])
    assert said(told([look(0.5), look(now)], sent), "no-answer") == []


ACTIVE = Sent(3.0, SERVER, CLIENT, RST | ACK, 1, 1)
ANSWER = Sent(3.0, SERVER, CLIENT, RST, 1)
SENDS = Sent(2.9999, CLIENT, SERVER, ACK | 8, 1, 1, data=11)
PROBE = Sent(2.0, SERVER, CLIENT, ACK, 0, 1, fate="lost")
GOES_ON = Sent(3.2, SERVER, CLIENT, ACK | 8, 1, 12, data=2)


@pytest.mark.parametrize(
    ("sent", "name", "words"),
    [
        ([*handshake(1.0), ACTIVE], "reset-by-close", "closed it with SO_LINGER 1 0, or its"),
        ([*handshake(1.0), SENDS, ACTIVE], "reset-by-close", "closed it with data unread, or with"),
        ([*handshake(1.0), Sent(2.0, SERVER, CLIENT, FIN | ACK, 1, 1), ACTIVE], "", ""),
        ([ACTIVE], "", ""),
        ([*handshake(1.0), SENDS, ANSWER], "reset-no-socket", "by then it had no socket for what"),
        ([*handshake(1.0), ANSWER], "", ""),
        ([*handshake(1.0), PROBE, PROBE, ACTIVE], "timeout-keepalive", "2 keepalive probes had"),
        ([*handshake(1.0), ACTIVE, GOES_ON], "reset-crafted", "it went on with the connection"),
        ([Sent(1.0, CLIENT, SERVER, SYN), Sent(1.1, SERVER, CLIENT, RST | ACK, 0, 1)],
         "connect-refused", "server refused"),
    ],
)  # fmt: skip
def test_what_lies_behind_a_rst_by_its_segments_alone(
    sent: list[Sent], name: str, words: str
) -> None:
    found = said(told([BLIND, look(0.5), look(9.0)], sent, ("ss", "capture")))
    assert [cause.id for cause in found] == ([name] if name else [])
    assert [words in cause.text for cause in found] == ([True] if name else [])
    assert [cause.certain for cause in found] == ([False] if name else [])
