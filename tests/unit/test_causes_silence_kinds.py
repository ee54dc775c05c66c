"""Whom a timer ended, and who waits: as many as the kernel counts, and what is told of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from labctl.judge.causes.cause import Scene
from labctl.judge.causes.silence import timed_out
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.record.events import Event, FateEvent, StepEvent, TroubleEvent
from tests.caused import (
    CLIENT,
    SERVER,
    call,
    calls,
    established,
    handshake,
    ids,
    look,
    only,
    said,
    told,
    trace,
)
from tests.fake import tcp
from tests.walked import ACK, RST, SYN, Sent

GONE: dict[str, Any] = {"errno": "ETIMEDOUT", "error": "Connection timed out"}
OTHER = "198.18.0.3:40001"
BLIND = TroubleEvent(0.1, "client", "calls", "not seen")


def syns(count: int, source: str = CLIENT) -> list[Sent]:
    return [Sent(1.0 + n / 2, source, SERVER, SYN, fate="lost") for n in range(count)]


@pytest.mark.parametrize(("count", "words"), [(1, "its SYN"), (2, "2 SYNs"), (4, "4 SYNs")])
def test_of_segments_alone_all_tries_are_counted(count: int, words: str) -> None:
    cause = only(told([BLIND, look(0.5), look(9.0)], syns(count)), "no-answer")
    assert f"no answer to {words} of {CLIENT} -> {SERVER}" in cause.text
    assert cause.at == pytest.approx(1.0 + (count - 1) / 2)
    assert f"; {count} lost on their way; an ICMP error" in cause.text
    assert len(cause.evidence) == min(count, 3)


@pytest.mark.parametrize(
    "sent",
    [
        [*syns(2), Sent(2.0, SERVER, CLIENT, SYN)],  # both ask: the other one is an answer
        [replace(s, source="203.0.113.9:1", fate="") for s in syns(2)],  # of a stranger
        [replace(s, target="198.18.0.3:9") for s in syns(2)],  # inside a host
    ],
)
def test_syns_of_which_segments_alone_tell_nothing(sent: list[Sent]) -> None:
    assert ids(told([BLIND, look(0.5), look(9.0)], sent), "no-answer") == []


def test_a_call_that_tells_of_a_connection_is_enough() -> None:
    events = [*calls(0.9, "client", "socket"), call(8.0, "client", "connect server:8000", **GONE),
              *trace(1.0, "UNCONN", "SYN-SENT", ends=(CLIENT, SERVER)), look(8.5)]  # fmt: skip
    cause = only(told(events, syns(2)), "no-answer")
    assert "2 tries of a SYN without an answer" in cause.text and "ICMP" not in cause.text


@pytest.mark.parametrize("blind", [[], [BLIND]])
@pytest.mark.parametrize("errno", ["ECONNREFUSED", "EHOSTUNREACH", "EINPROGRESS"])
def test_an_icmp_error_is_an_answer(blind: list[Event], errno: str) -> None:
    asks = trace(1.0, "UNCONN", "SYN-SENT", ends=(CLIENT, SERVER))
    gone = trace(3.0, "SYN-SENT", "UNCONN", ends=(CLIENT, SERVER))
    failed = call(3.0, "client", "connect server:8000", errno=errno, error="refused")
    events = [*blind, *calls(0.9, "client", "socket"), failed, *asks, *gone, look(8.5)]
    answered = [] if errno == "EINPROGRESS" else ["connect-refused"]
    arrived = [replace(each, fate="") for each in syns(2)]
    counters = look(8.0, host="client", IcmpInDestUnreachs=2)
    found = ids(told([*events, counters], arrived))
    assert found[:1] == (answered or ["no-answer"])
    assert ("no-answer" in found) is (not answered)


@pytest.mark.parametrize(
    ("errors", "words", "certain"),
    [
        (2, "; an ICMP error may have been its answer (IcmpInDestUnreachs: 2)", False),
        (0, "their way", True),
    ],
)
def test_icmp_errors_that_were_counted(errors: int, words: str, certain: bool) -> None:
    counted = look(9.0, host="client", IcmpInDestUnreachs=errors)
    cause = only(told([BLIND, look(0.5), counted], syns(2)), "no-answer")
    assert cause.text.endswith(words) and cause.certain is certain


@pytest.mark.parametrize(("reason", "found"), [("EPERM", ["no-answer"]), ("EBUSY", []), (None, [])])
def test_a_rule_of_its_own_host_keeps_a_syn_back(reason: str | None, found: list[str]) -> None:
    again = FateEvent(2.0, "client", CLIENT, SERVER, "retransmit", reason)
    asks = (look(t, tcp("SYN-SENT", CLIENT, SERVER), host="client") for t in (1.0, 2.5))
    history = told([*asks, again, look(3.0)])
    assert ids(history) == found
    assert all("a rule of client itself drops" in cause.text for cause in said(history))
    failed = told([*calls(0.9, "client", "socket"), again,
                   call(8.0, "client", "connect server:8000", **GONE), look(8.5)])  # fmt: skip
    cause = only(failed, "no-answer")
    assert ("a rule of client itself drops" in cause.text, cause.certain) == (bool(found),) * 2


def test_who_asks_itself_has_its_answer() -> None:
    """A port that the kernel chose was the one to connect to."""
    me = "127.0.0.1:40000"
    asks = [Sent(1.0, me, me, SYN), Sent(1.0001, me, me, SYN | ACK, 0, 1)]
    lines = tcp("ESTAB", me, me, more="ino:4")
    events = [*(look(t, lines, host="client") for t in (1.1, 3.0, 5.0)), look(6.0)]
    assert (
        ids(told([*trace(1.0, "UNCONN", "SYN-SENT", "ESTAB", ends=(me, me)), *events], asks)) == []
    )


@pytest.mark.parametrize(("answered", "again", "found"), [
    (1.1, 2.0, ["no-answer"]), (1.1, 1.2, []), (2.1, 2.0, []),
])  # fmt: skip
def test_answers_that_tcp_did_not_take(answered: float, again: float, found: list[str]) -> None:
    asks = (look(t, tcp("SYN-SENT", CLIENT, SERVER), host="client") for t in (1.0, 2.5, 4.0))
    sent = [Sent(1.0, CLIENT, SERVER, SYN), Sent(answered, SERVER, CLIENT, SYN | ACK, 0, 1),
            Sent(again, CLIENT, SERVER, SYN)]  # fmt: skip
    history = told([*asks, look(4.0)], sorted(sent, key=lambda each: each.t))
    assert ids(history) == found
    for cause in said(history):
        assert "though 1 SYN-ACK came to it" in cause.text and not cause.certain


def test_what_a_call_tells_for_certain_is_not_told_as_likely_too() -> None:
    reads = [*calls(0.999, "client", "socket; set SO_KEEPALIVE; connect server:8000"),
             call(9.0, "client", "recv", **GONE)]  # fmt: skip
    sent = [*handshake(1.0), *probes(), Sent(9.0, CLIENT, SERVER, RST | ACK, 1, 1)]
    assert only(told([BLIND, *MINE, *reads], sent), "timeout").certain
    (likely,) = said(told([BLIND, *MINE], sent), "timeout")
    assert not likely.certain


def test_a_call_on_a_socket_that_nobody_knows_is_not_explained() -> None:
    failed = call(8.0, "client", "connect server:8000", **GONE)
    assert ids(told([failed, look(8.5)], syns(2))) == []


def test_the_syn_of_another_host_is_not_that_of_a_connect() -> None:
    events = [*calls(0.9, "client", "socket"), call(8.0, "client", "connect server:8000", **GONE)]
    both = [*syns(2), *syns(2, "198.18.0.5:40000")]
    cause = only(told([*events, look(8.5)], both), "no-answer")
    assert cause.connection == f"{CLIENT} -> {SERVER}"


TWICE = [Sent(t, CLIENT, SERVER, ACK | 8, 1, 1, data=5, fate="lost") for t in (2.0, 2.5)]


def test_what_is_told_of_who_waits() -> None:
    asks = [*trace(1.0, "UNCONN", "SYN-SENT", ends=(CLIENT, SERVER)), look(2.5)]
    cause = only(told(asks, syns(2)), "no-answer")
    assert (cause.at, cause.refs) == (pytest.approx(1.0), ("tcp(7), tcp_syn_retries",))
    more = replace(TWICE[0], t=2.25, seq=6, data=7)
    waits = told([*established(1.0), look(9.0)], [*handshake(1.0), TWICE[0], more, TWICE[1]])
    cause = only(waits, "no-answer")
    assert "no answer to 5 bytes of" in cause.text and "for 7.0 s" in cause.text
    assert cause.at == pytest.approx(2.0) and "tcp_retries2" in cause.refs[0]


def test_who_waits_in_a_state_that_it_has_come_to_just_now() -> None:
    for since, found in ((8.5, []), (5.0, ["no-answer"])):
        walked = trace(since, "ESTAB", "CLOSE-WAIT", ends=(CLIENT, SERVER))
        history = told([*established(1.0), *walked, look(9.0)], [*handshake(1.0), *TWICE])
        assert ids(history, "no-answer") == found


def test_syns_are_none_of_what_an_open_connection_waits_for() -> None:
    assert ids(told([*established(1.0), look(9.0)], syns(2)), "no-answer") == []


# --- Connections that the kernel gave up ----------------------------------------------------------


def probes(source: str = CLIENT) -> list[Sent]:
    return [Sent(t, source, SERVER, ACK, 0, 1, fate="lost") for t in (2.0, 4.0, 6.0)]


def lived(*states: str, end: str = CLIENT) -> list[Event]:
    """A client's connection that was in these states after ESTAB, the last one of all the end."""
    return [*established(1.0, end), *trace(1.5, "ESTAB", *states[:-1], ends=(end, SERVER)),
            *trace(9.0, ["ESTAB", *states][-2], states[-1], ends=(end, SERVER))]  # fmt: skip


def gave_up(count: int) -> Event:
    return look(9.5, host="client", TcpExtTCPAbortOnTimeout=count)


MINE = [*lived("UNCONN"), look(0.5), look(9.6)]


@pytest.mark.parametrize(
    ("count", "events", "sent", "found"),
    [
        (1, MINE, probes(), 1),
        (0, MINE, probes(), 0),
        (2, MINE, probes(), 0),
        (1, MINE, [], 0),
        (1, [*lived("CLOSE-WAIT", "UNCONN"), look(0.5), look(9.6)], probes(), 1),
        (1, [*lived("FIN-WAIT-1", "FIN-WAIT-2", "UNCONN"), look(0.5), look(9.6)], probes(), 0),
        (1, [*established(1.0), look(0.5), look(9.6)], probes(), 0),
        # Beside another one: that lives, that waited for nothing, or whose state has no timer.
        (1, [*MINE, *established(1.0, OTHER)], [*probes(), *handshake(1.0, OTHER)], 1),
        (1, [*MINE, *lived("UNCONN", end=OTHER)], [*probes(), *handshake(1.0, OTHER)], 1),
        (1, [*MINE, *lived("FIN-WAIT-1", "FIN-WAIT-2", "UNCONN", end=OTHER)],
         [*probes(), *handshake(1.0, OTHER), *probes(OTHER)], 1),
        (1, [*MINE, *lived("UNCONN", end=OTHER)],
         [*probes(), *handshake(1.0, OTHER), *probes(OTHER)], 0),
        (2, [*MINE, *lived("UNCONN", end=OTHER)],
         [*probes(), *handshake(1.0, OTHER), *probes(OTHER)], 2),
    ],
)  # fmt: skip
def test_as_many_as_the_kernel_gave_up(
    count: int, events: list[Event], sent: list[Sent], found: int
) -> None:
    history = told([*events, gave_up(count)], [*handshake(1.0), *sent])
    assert ids(history, "timeout") == ["timeout-keepalive"] * found


def test_what_a_call_has_told_of_is_not_counted_again() -> None:
    reads = [*calls(0.999, "client", "socket; set SO_KEEPALIVE; connect server:8000"),
             call(9.0, "client", "recv", **GONE)]  # fmt: skip
    sent = [*handshake(1.0), *probes(), *handshake(1.0, OTHER), *probes(OTHER)]
    history = told([*MINE, *lived("UNCONN", end=OTHER), *reads, gave_up(2)], sent)
    assert [c.connection for c in said(history, "timeout")] == [
        f"{CLIENT} -> {SERVER}", f"{OTHER} -> {SERVER}"
    ]  # fmt: skip


def test_a_call_of_another_host_that_timed_out_is_none_of_these() -> None:
    other = [*calls(0.6, "server", "socket; bind :8000; listen 5"),
             call(9.0, "server", "connect client:9", **GONE)]  # fmt: skip
    history = told([*MINE, *other, gave_up(1)], [*handshake(1.0), *probes()])
    assert ids(history, "timeout") == ["timeout-keepalive"]


def test_no_process_had_it_open_while_it_tried_again() -> None:
    again = [replace(TWICE[0], t=2.0 + n) for n in range(4)]
    for closed, orphan in ((4.5, True), (7.0, False)):
        events = [*calls(0.997, "client", "socket; bind :40000; connect server:8000"),
                  call(closed, "client", "close"), *lived("FIN-WAIT-1", "UNCONN")]  # fmt: skip
        history = told([*events, gave_up(1), look(9.6)], [*handshake(1.0), *again])
        cause = only(history, "timeout")
        assert cause.text.count("no process had it open any more") == orphan
        assert "3 retransmissions without an answer" in cause.text


def test_probes_of_a_closed_window_are_tries_too() -> None:
    data = Sent(2.0, CLIENT, SERVER, ACK | 8, 1, 1, data=9)
    closed = Sent(2.001, SERVER, CLIENT, ACK, 1, 10, window=0)
    asks = [replace(data, t=t, seq=9, data=0, flags=ACK, fate="lost") for t in (3.0, 4.0, 6.0)]
    events = [*calls(0.999, "client", "socket; connect server:8000"), *established(1.0),
              call(9.0, "client", "recv", **GONE), look(9.5)]  # fmt: skip
    cause = only(told(events, [*handshake(1.0), data, closed, *asks]), "timeout")
    assert (cause.id, "3 retransmissions" in cause.text) == ("timeout-retries", True)


@pytest.mark.parametrize(("user", "name"), [(0, "timeout-retries"), (1, "timeout-user")])
def test_the_least_user_timeout(user: int, name: str) -> None:
    texts = f"socket; set TCP_USER_TIMEOUT {user}; connect server:8000"
    events = [*calls(0.999, "client", texts), *established(1.0),
              call(9.0, "client", "recv", **GONE), look(9.5)]  # fmt: skip
    assert ids(told(events, [*handshake(1.0), *TWICE]), "timeout") == [name]


@pytest.mark.parametrize(
    ("errno", "text", "counted", "timer"),
    [
        ("ETIMEDOUT", "connect server:8000", 0, True),
        ("ETIMEDOUT", "recv", 0, True),
        ("EHOSTUNREACH", "recv", 1, True),
        ("EHOSTUNREACH", "recv", 0, False),
        ("EHOSTUNREACH", "connect server:8000", 1, False),
        ("ECONNRESET", "recv", 1, False),
    ],
)
def test_which_calls_a_timer_ended(errno: str, text: str, counted: int, timer: bool) -> None:
    failed = call(2.0, "client", text, errno=errno, error="x")
    seen = look(9.5, host="client", TcpExtTCPAbortOnTimeout=counted)
    assert timed_out(failed, Scene(told([failed, seen]), None)) is timer


CUT = """\
title: A client that is cut off
hosts: {server: {}, client: {}}
steps:
  - cut: client
"""


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        ("", ""), ("; set SO_KEEPALIVE", "timeout-keepalive"),
        ("; set TCP_USER_TIMEOUT 1500", "timeout-user"), ('; send "x"', "timeout-retries"),
    ],
)  # fmt: skip
def test_no_capture_has_what_a_host_sends_that_is_cut_off_itself(texts: str, name: str) -> None:
    (scenario,) = load_document(Document("cut", CUT), CUT, "cut", {})
    step = StepEvent(2.01, 0, "end", "cut client", None, "done", moment=2.0, verb="cut")
    started = calls(0.9, "client", "socket; connect server:8000" + texts)
    made = [replace(e, t=e.t + 2) if "send" in str(e) else e for e in started]
    events = [*made, *established(1.0), call(9.0, "client", "recv", **GONE), look(9.5)]
    causes = said(told([*events, step], handshake(1.0)), "timeout", scenario)
    assert [cause.id for cause in causes] == [name] * bool(name)
    for cause in causes:
        assert cause.connection == f"{CLIENT} -> {SERVER}"
        assert "client itself was cut off at 2.000 s, so nothing could leave it" in cause.text
    assert not said(told(events, handshake(1.0)), "timeout", scenario)
