"""Who closed first, and what kept a connection where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from labctl.judge.causes.cause import Cause, Scene
from labctl.judge.causes.states import who_closed
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.probes.holders import Held, Holder
from labctl.record.events import Event, ProcessEvent, StepEvent, TroubleEvent
from tests.caused import (
    CLIENT,
    LISTEN,
    SERVER,
    call,
    calls,
    close,
    established,
    function_calls,
    handshake,
    holds,
    ids,
    look,
    only,
    said,
    told,
    trace,
)
from tests.fake import tcp
from tests.walked import ACK, FIN, RST, SYN, Sent

HERE, THERE = f"{SERVER} -> {CLIENT}", f"{CLIENT} -> {SERVER}"
BACK = (CLIENT, SERVER)
WIRE = [*handshake(1.0), *close(2.0)]
FIRST = ("ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "UNCONN")
LAST = ("ESTAB", "CLOSE-WAIT", "LAST-ACK", "UNCONN")
CROSS = ("ESTAB", "FIN-WAIT-1", "CLOSING", "UNCONN")


def ended(server: tuple[str, ...], client: tuple[str, ...], t: float = 2.0) -> list[Event]:
    return [
        *established(t - 1), *trace(t, *server), *trace(t, *client, ends=BACK), look(t + 0.01),
        look(t + 0.01, host="client"),
    ]  # fmt: skip


# --- Who closed first -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "client", "host", "name"),
    [(FIRST, LAST, "server", HERE), (LAST, FIRST, "client", THERE)],
)
def test_the_side_that_sent_its_fin_first(
    server: tuple[str, ...], client: tuple[str, ...], host: str, name: str
) -> None:
    wire = WIRE if host == "server" else [*handshake(1.0), *close(2.0, CLIENT, SERVER)]
    cause = only(told(ended(server, client), wire), "closed")
    assert (cause.id, cause.host, cause.connection, cause.certain) == (
        "closed-first", host, name, True,
    )  # fmt: skip
    assert cause.text.startswith(f"{host} closed first: seen in FIN-WAIT-1, FIN-WAIT-2")
    assert "in CLOSE-WAIT, LAST-ACK" in cause.text


def test_both_at_once() -> None:
    cause = only(told(ended(CROSS, CROSS), WIRE), "closed")
    assert "closed at once: each sent its FIN before the other's came" in cause.text
    alone = only(told(ended(CROSS, ())[:-1], WIRE), "closed")
    assert "server and its peer closed at once" in alone.text


def test_nobody_closed_first_where_nobody_closed() -> None:
    assert (
        ids(told(ended(("ESTAB", "UNCONN"), ("ESTAB", "UNCONN")), handshake(1.0)), "closed") == []
    )
    assert ids(told(established(1.0), handshake(1.0)), "closed") == []


def test_a_fin_alone_does_not_tell_whether_the_peer_sent_one_too() -> None:
    alone = [*established(1.0)[2:], *trace(2.0, "ESTAB", "FIN-WAIT-1", "UNCONN"), look(2.01)]
    cause = only(told(alone, WIRE), "closed")
    assert not cause.certain
    assert "would tell whether both did at once" in cause.text


def test_connections_of_the_same_ends_are_told_apart() -> None:
    """The client's view of the first one is missing: it is not taken for that of the second."""
    first = [
        *established(1.0)[2:],
        *trace(2.0, *FIRST),
        look(2.01, tcp("TIME-WAIT", SERVER, CLIENT)),
    ]
    wire = [*WIRE, *handshake(3.0, start=9000), *close(4.0, CLIENT, SERVER, start=9000)]
    history = told([*first, *ended(LAST, FIRST, 4.0)], wire)
    causes = said(history, "closed")
    assert [(cause.host, "at once" in cause.text) for cause in causes] == [
        ("server", False), ("client", False),
    ]  # fmt: skip


def test_of_two_hosts_what_was_never_there_at_once_is_not_one_connection() -> None:
    server = [*established(1.0)[2:], *trace(2.0, *FIRST), look(2.01)]
    later = trace(3.0, "UNCONN", "SYN-SENT", *FIRST, ends=BACK)
    wire = [*WIRE, *handshake(3.0, start=9000)]
    history = told([*server, *later, look(4.0, host="client")], wire)
    assert [(cause.host, "at once" in cause.text) for cause in said(history, "closed")] == [
        ("server", False), ("client", False),
    ]  # fmt: skip


def test_loopback_of_two_hosts_is_not_one_connection() -> None:
    ends = ("127.0.0.1:40000", "127.0.0.1:8000")
    ours = tcp("TIME-WAIT", *ends, more="timer:(timewait,59sec,0)")
    theirs = tcp("CLOSE-WAIT", ends[1], ends[0], recv_q=1)
    cause = only(told([look(1.0, ours), look(1.0, theirs, host="client")]), "closed")
    assert (cause.host, "client" in cause.text) == ("server", False)
    assert "in 127.0.0.1:40000 -> 127.0.0.1:8000" in cause.text


def test_a_time_wait_beside_an_open_connection_of_its_ends_tells_nothing_of_that() -> None:
    lines = [tcp("ESTAB", SERVER, CLIENT), tcp("TIME-WAIT", SERVER, CLIENT)]
    assert ids(told([look(1.0, *lines)]), "closed") == []


def test_of_many_the_first_are_told_and_how_many_there_are() -> None:
    events: list[Event] = []
    wire: list[Sent] = []
    for port in range(40000, 40010):
        end, t = f"198.18.0.3:{port}", 1.0 + (port - 40000) / 10
        events += [*established(t, end), *trace(t + 0.05, *FIRST, ends=(SERVER, end))]
        wire += [*handshake(t, end), *close(t + 0.05, SERVER, end)]
    texts = [cause.text for cause in said(told(events, wire), "closed")]
    assert len(texts) == 4
    assert "in 198.18.0.2:8000 -> 198.18.0.3:40000" in texts[0]
    assert texts[-1] == "server closed first in 7 connections more"


# --- States that last -----------------------------------------------------------------------------


def half(*more: Event, recv_q: int = 1, inode: str = "7", until: float = 9.0) -> list[Event]:
    """The client has closed its side; the server has not."""
    line = tcp("CLOSE-WAIT", SERVER, CLIENT, recv_q=recv_q, more=f"ino:{inode}")
    waits = tcp("FIN-WAIT-2", *BACK, more="ino:9")
    return [
        *established(1.0), *trace(2.0, "ESTAB", "CLOSE-WAIT"),
        *trace(2.0, *FIRST[:3], ends=BACK), look(2.5, LISTEN, line),
        look(2.5, waits, host="client"), *more, look(until, LISTEN, line),
        look(until, waits, host="client"),
    ]  # fmt: skip


HALF = [*handshake(1.0), *close(2.0, CLIENT, SERVER)[:1], Sent(2.0001, SERVER, CLIENT, ACK, 1, 2)]


def test_a_close_wait_names_the_process_that_has_not_closed() -> None:
    accepts = [*calls(0.5, "web", "socket; bind :8000; listen 5", "server"),
               call(1.01, "web", "accept", "server", local=SERVER, peer=CLIENT)]  # fmt: skip
    cause = only(told([*accepts, *half(recv_q=265)], HALF), "close-wait")
    assert (cause.id, cause.host, cause.connection) == ("close-wait-held", "server", HERE)
    assert "has been in CLOSE-WAIT for 7.0 s" in cause.text
    assert "its peer has closed, and web has not, with 264 bytes unread" in cause.text
    assert cause.evidence[0].startswith("CLOSE-WAIT 198.18.0.2:8000")


def test_the_fin_is_no_unread_byte_and_a_program_is_not_named() -> None:
    cause = only(told(half(), HALF), "close-wait")
    assert cause.text.endswith("its peer has closed, and the program here has not")
    assert "has not, with 1 byte unread" in only(told(half(recv_q=2), HALF), "close-wait").text


@pytest.mark.parametrize(("resumed", "paused"), [(1.9, False), (6.0, True)])
def test_a_paused_process_can_t_close(resumed: float, paused: bool) -> None:
    text = (
        "title: t\nhosts: {server: {processes: {web: {calls: socket}}}, client: {}}\n"
        "steps: [{pause: web}, {resume: web}]\n"
    )
    scenario = load_document(Document("t", text), text, "t", {})[0]
    steps = [
        StepEvent(1.5, 0, "end", "pause web", outcome="done", verb="pause"),
        StepEvent(resumed, 1, "end", "resume web", outcome="done", verb="resume"),
    ]
    accepts = [*calls(0.5, "web", "socket; bind :8000; listen 5", "server"),
               call(1.01, "web", "accept", "server", local=SERVER, peer=CLIENT)]  # fmt: skip
    cause = only(told([*accepts, *steps, *half()], HALF), "close-wait", scenario)
    assert cause.text.endswith("web has not: a step paused it") is paused


def test_one_that_has_read_the_end_need_not_be_told_to_read() -> None:
    accepts = [*calls(0.5, "web", "socket; bind :8000; listen 5", "server"),
               call(1.01, "web", "accept", "server", local=SERVER, peer=CLIENT)]  # fmt: skip
    end = call(2.5, "web", "recv", "server", result=0, eof=True)
    cause = only(told([*accepts, end, *half()], HALF), "close-wait")
    assert cause.text.endswith("its peer has closed, and web has not, but has read the end")
    assert cause.cure == "close it"
    another = call(1.02, "web", "accept", "server", local=SERVER, peer="198.18.0.3:40001")
    late = [*trace(7.0, "CLOSE-WAIT", "LAST-ACK"), replace(end, t=7.5)]
    at_last = [*trace(7.0, "CLOSE-WAIT", "LAST-ACK"), replace(end, t=6.999)]
    for not_mine in ([another, end], [replace(end, eof=None)], late, at_last):
        cause = only(told([*accepts, *not_mine, *half(until=6.0)], HALF), "close-wait")
        assert cause.cure == "read to the end of file and close"


def test_who_has_not_closed_is_named() -> None:
    start = ProcessEvent(0.5, "web", "server", "start", pid=2)
    one = holds(8.9, "web", {2: {7: 7}})
    cause = only(told([start, *half(one)], HALF), "close-wait")
    assert cause.text.endswith("its peer has closed, and web (pid 2, nginx, fd 7) has not")
    assert cause.evidence[0].endswith("recv-q 1, held by web (pid 2, nginx, fd 7)")
    assert cause.holders == (Held((SERVER, CLIENT), (Holder("web", 1, 2, "nginx", (7,)),)),)
    both = holds(9.1, "web", {2: {7: 7}, 3: {7: 7}})
    cause = only(told([start, *half(both)], HALF), "close-wait")
    assert "web (pid 2, nginx, fd 7) and web (pid 3, nginx, fd 7) have not" in cause.text


def test_one_that_nobody_accepted_is_not_blamed_on_a_program() -> None:
    cause = only(told(half(inode="0"), HALF), "close-wait")
    assert "nobody has accepted it here" in cause.text


def test_a_half_closed_connection_that_still_talks_is_in_order() -> None:
    talks = [Sent(t, SERVER, CLIENT, ACK | 8, 1 + n, 2, data=1) for n, t in enumerate((3.0, 8.5))]
    history = told(half(), [*HALF, *talks])
    assert ids(history, "close-wait") == ids(history, "fin-wait-2") == []
    silent = told(half(), [*HALF, talks[0]])
    assert ids(silent, "close-wait") == ["close-wait-held"]


def test_a_short_close_wait_is_in_order() -> None:
    for until, told_of in ((2.9, []), (3.0, ["close-wait-held"])):  # it began at 2.0
        assert ids(told(half(until=until), HALF), "close-wait") == told_of
    for t, told_of in ((7.9, ["close-wait-held"]), (8.1, [])):
        talks = Sent(t, SERVER, CLIENT, ACK | 8, 1, 2, data=1)
        assert ids(told(half(), [*HALF, talks]), "close-wait") == told_of


def test_of_many_that_last_the_first_are_told() -> None:
    events: list[Event] = [look(9.0)]
    wire: list[Sent] = []
    for end in (f"198.18.0.3:{40000 + n}" for n in range(4)):
        events += [*established(1.0, end), *trace(2.0, *LAST[:2], ends=(SERVER, end))]
        wire += handshake(1.0, end)
    assert len(ids(told(events, wire), "close-wait")) == 3


def test_a_fin_wait_2_that_a_program_holds() -> None:
    cause = only(told(half(), HALF), "fin-wait-2")
    assert (cause.id, cause.host, cause.connection) == ("fin-wait-2-held", "client", THERE)
    assert "its peer has not closed; a program has it open here" in cause.text
    start = ProcessEvent(0.5, "client", "client", "start", pid=2)
    named = [holds(9.0, "client", {2: {3: 9}}, "client"),
             holds(9.0, "client", {2: {3: 9}, 5: {3: 9}}, "client")]  # fmt: skip
    for report, words in zip(named, ("has", "and client (pid 5, nginx, fd 3) have"), strict=True):
        cause = only(told([start, *half(report)], HALF), "fin-wait-2")
        assert f"client (pid 2, nginx, fd 3) {words} it open here, so it may" in cause.text


def orphan(state: str = "FIN-WAIT-2", more: str = "timer:(timewait,4.500sec,0) ino:0",
           moves: tuple[str, ...] = FIRST[:3]) -> list[Event]:  # fmt: skip
    lines = [tcp(state, SERVER, CLIENT, send_q=1, more=more)]
    return [*established(1.0), *trace(2.0, *moves), look(2.5, *lines), look(9.0, *lines)]


SHUT = [*handshake(1.0), *close(2.0)[:1], Sent(2.0001, CLIENT, SERVER, ACK, 1, 2)]


def test_a_fin_wait_2_that_nobody_holds_ends_by_itself() -> None:
    cause = only(told(orphan(), SHUT), "fin-wait-2")
    assert (cause.id, cause.host, cause.connection) == ("fin-wait-2-orphan", "server", HERE)
    assert "its peer has not closed; nobody has it open here, so it ends by itself" in cause.text
    assert "timewait timer 4.5 s left" in cause.evidence[0]
    assert "open here since" not in cause.text
    held = look(4.0, tcp("FIN-WAIT-2", SERVER, CLIENT, more="ino:7"))
    assert "has it open here since 4.0 s" in only(told([*orphan(), held], SHUT), "fin-wait-2").text


def test_without_an_inode_nobody_knows_who_holds_it() -> None:
    assert ids(told(orphan(more=""), SHUT), "fin-wait-2") == []


def test_a_peer_whose_fin_was_lost_has_closed() -> None:
    lost = Sent(3.0, CLIENT, SERVER, FIN | ACK, 1, 2, fate="lost")
    cause = only(told(orphan(), [*SHUT, lost, replace(lost, t=3.2)]), "fin-wait-2")
    assert "the FIN of its peer has not come" in cause.text
    assert "has not closed" not in cause.text


def test_a_peer_that_closed_unheard_has_closed() -> None:
    reset = Sent(3.0, CLIENT, SERVER, RST | ACK, 1, 2, fate="lost")
    cause = only(told(orphan(), [*SHUT, reset]), "fin-wait-2")
    assert "the RST of its peer has not come" in cause.text
    sides = trace(2.0001, *LAST[:2], ends=BACK), trace(3.0, *LAST[1:3], ends=BACK)
    cause = only(told([*orphan(), *sides[0], *sides[1]], SHUT), "fin-wait-2")
    assert "its peer has closed, but neither a FIN nor an RST has left it" in cause.text
    cause = only(told([*orphan(), *sides[0]], SHUT), "fin-wait-2")
    assert "its peer has not closed" in cause.text


def test_what_a_later_connection_of_these_ends_does_is_not_this_one_s() -> None:
    lost = Sent(3.0, CLIENT, SERVER, FIN | ACK, 1, 2, fate="lost")
    later = [*trace(9.5, "FIN-WAIT-2", "UNCONN"), look(9.6), *established(10.0), look(10.1)]
    wire = [*SHUT, lost, *handshake(10.0, start=9000)]
    cause = only(told([*orphan(), *later], wire), "fin-wait-2")
    assert "the FIN of its peer has not come" in cause.text


STUCK = [*handshake(1.0), Sent(2.0, SERVER, CLIENT, FIN | ACK, 1, 1, fate="lost")]


@pytest.mark.parametrize(
    ("state", "moves", "name"),
    [
        ("FIN-WAIT-1", FIRST[:2], "fin-wait-1-stuck"),
        ("LAST-ACK", LAST[:3], "last-ack-unanswered"),
    ],
)
def test_a_fin_without_an_answer(state: str, moves: tuple[str, ...], name: str) -> None:
    waits = orphan(state, "timer:(on,1sec,5) ino:0", moves)
    cause = only(told(waits, STUCK), name)
    assert (cause.host, cause.connection) == ("server", HERE)
    assert "its FIN had no answer in that time" in cause.text
    assert "on timer 1.0 s left" in cause.evidence[0]
    tries = orphan(state, "timer:(persist,1sec,5) ino:0", moves)
    assert "its FIN had no answer in that time" in only(told(tries, STUCK), name).text
    full = [*STUCK[:3], Sent(1.5, CLIENT, SERVER, ACK, 1, 1, window=0)]
    zero = only(told(tries, full), name)
    assert "the peer's window is zero, so its FIN can't be sent" in zero.text
    assert ids(told(tries, STUCK[:3]), name) == []
    text = CUTTING.replace("cut: client", "cut: server")
    (scenario,) = load_document(Document("cut", text), text, "cut", {})
    cut = only(told([*tries, cut_at(1.5)], STUCK[:3]), name, scenario)
    assert "server was cut off at 1.500 s, so its FIN can't leave it" in cut.text
    assert ids(told(waits, STUCK[:3]), name) == []  # data before it is still under way


def test_a_fin_that_is_acknowledged_soon_is_in_order() -> None:
    history = told(ended(FIRST, LAST), WIRE)
    assert ids(history, "fin-wait-1") == ids(history, "last-ack") == []


def test_no_room_for_another_time_wait() -> None:
    events = [look(1.0), look(2.0, TcpExtTCPTimeWaitOverflow=2)]
    cause = only(told(events))
    assert (cause.id, cause.host) == ("time-wait-overflow", "server")
    assert "forgot 2 (TcpExtTCPTimeWaitOverflow)" in cause.text
    assert "tcp_max_tw_buckets" in cause.cure
    assert ids(told([look(1.0), look(2.0, TcpExtTW=2)])) == []


# --- Many -----------------------------------------------------------------------------------------


def many(count: int) -> tuple[list[Event], list[Sent]]:
    """Connections that are reset and held, each with a call that times out."""
    gone: dict[str, Any] = {"errno": "ETIMEDOUT", "error": "Connection timed out"}
    events: list[Event] = [look(0.5)]
    wire: list[Sent] = []
    for number in range(count):
        end, t = f"198.18.0.3:{1024 + number % 60000}", 1.0 + number / 100
        other = f"198.18.0.3:{1024 + (number + 30000) % 60000}"
        events += [
            *established(t, end),
            *trace(t + 0.001, "ESTAB", "CLOSE-WAIT", ends=(SERVER, end)),
        ]
        events += calls(t, f"client{number}", "socket", "client")
        events += [call(t + 0.009, f"client{number}", "connect server:9000", "client", **gone)]
        wire += [*handshake(t, end), Sent(t + 0.005, SERVER, end, 4 | ACK, 1, 1)]
        wire += [Sent(t + 0.002, other, "198.18.0.2:9000", SYN, fate="lost")]
    return events, wire


def test_ten_times_as_many_connections_take_ten_times_as_many_function_calls() -> None:
    """Quadratic would be a hundred times."""
    took = [function_calls(told(*many(count))) for count in (100, 1000)]
    assert took[1] < 15 * took[0]


# --- Open, and nobody there -----------------------------------------------------------------------

CUTTING = """\
title: A client that vanishes
hosts: {server: {}, client: {}}
steps:
  - cut: client
  - join: client
"""


def cut_at(t: float, index: int = 0) -> StepEvent:
    verb = "join" if index else "cut"
    return StepEvent(t + 0.01, index, "end", f"{verb} client", None, "done", moment=t, verb=verb)


def vanished(*more: Event, timer: str = "", sent: Sequence[Sent] = ()) -> list[Cause]:
    """What is said of a server whose client's host is cut off a second after the handshake."""
    (scenario,) = load_document(Document("cut", CUTTING), CUTTING, "cut", {})
    open_ = tcp("ESTAB", SERVER, CLIENT, more=f"{timer} ino:7")
    events = [*established(1.0), look(1.5, open_), *more, look(9.0, open_)]
    return said(told(events, [*handshake(1.0), *sent]), "gone", scenario)


def test_nothing_tells_a_side_that_its_peer_s_host_was_cut_off() -> None:
    (cause,) = vanished(cut_at(2.0))
    assert (cause.id, cause.host, cause.connection) == ("gone-unnoticed", "server", HERE)
    assert "client has been cut off since 2.000 s, nothing is sent, and no timer runs" in cause.text
    (cause,) = vanished(cut_at(2.0), timer="timer:(keepalive,119min,0)")
    assert "keepalive asks for the first time in 7140 s" in cause.text


OVER = trace(2.0, "ESTAB", "UNCONN", ends=BACK)
"""Nothing is left of it at the client: as after a crash."""


def test_nothing_tells_a_side_that_its_peer_has_forgotten_it() -> None:
    (cause,) = vanished(*OVER, look(5.0, host="client"))
    assert (cause.id, cause.host, cause.connection) == ("gone-unnoticed", "server", HERE)
    assert "client told nobody that it has had no socket for it since 2.0" in cause.text
    lost = Sent(2.0, CLIENT, SERVER, RST | ACK, 1, 1, fate="lost")
    assert [c.id for c in vanished(*OVER, look(5.0, host="client"), sent=[lost])] == [cause.id]


@pytest.mark.parametrize(
    ("more", "sent"),
    [
        ([*OVER], [Sent(2.0, CLIENT, SERVER, RST | ACK, 1, 1)]),  # something took it away
        ([*OVER], [Sent(3.0, SERVER, CLIENT, ACK, 1, 1, 5, "lost")]),
        ([*OVER, TroubleEvent(1.5, "client", "trace", "lost")], []),
        ([*OVER, TroubleEvent(1.5, "server", "capture", "lost")], []),
        (trace(8.5, "ESTAB", "UNCONN", ends=BACK), []),
        (trace(2.0, "ESTAB", "FIN-WAIT-1", ends=BACK), []),
    ],
)  # fmt: skip
def test_who_may_have_heard_is_not_said_to_be_unaware(more: list[Event], sent: list[Sent]) -> None:
    assert vanished(*more, look(5.0, host="client"), sent=sent) == []


def test_who_is_back_or_is_asked_is_not_unnoticed() -> None:
    assert vanished() == []
    assert vanished(cut_at(2.0), cut_at(3.0, 1)) == []
    assert vanished(cut_at(2.0), sent=[Sent(3.0, SERVER, CLIENT, ACK, 1, 1, 5, "lost")]) == []
    assert vanished(cut_at(2.0), *trace(8.5, "ESTAB", "UNCONN")) == []  # it is over
    for timer in ("keepalive,900ms,2", "on,200ms,0"):
        assert vanished(cut_at(2.0), timer=f"timer:({timer})") == []
    assert vanished(cut_at(8.1)) == []
    assert len(vanished(cut_at(8.0))) == 1  # for a second, by the last look


@pytest.mark.parametrize("mine", [CLIENT, "198.18.0.3:40001"])
def test_who_closed_first_is_asked_of_one_connection(mine: str) -> None:
    other = "198.18.0.3:40001" if mine == CLIENT else CLIENT
    events: list[Event] = [look(0.5), look(9.0)]
    wire: list[Sent] = []
    for end, first in ((mine, (SERVER, mine)), (other, (other, SERVER))):
        events += [*established(1.0, end), *trace(2.0, *FIRST, ends=first),
                   *trace(2.0, *LAST, ends=first[::-1])]  # fmt: skip
        wire += [*handshake(1.0, end), *close(2.0, *first)]
    scene = Scene(told(events, wire), None)
    for host, ends, words in (
        ("server", (SERVER, mine), "server closed first"),
        ("server", (SERVER, other), "its peer closed first"),
        ("client", (mine, SERVER), "its peer closed first"),
        ("client", (other, SERVER), "client closed first"),
        ("client", (other, "198.18.0.9:1"), ""),
    ):
        assert who_closed(scene, host, ends, 5.0) == words


def test_both_closed_first_or_a_record_has_one_side_alone() -> None:
    for each in (CROSS, FIRST):
        both = [*established(1.0), *trace(2.0, *each), *trace(2.0, *each, ends=BACK), look(9.0)]
        scene = Scene(told(both, WIRE), None)
        assert who_closed(scene, "server", (SERVER, CLIENT), 5.0) == "both closed at once"
    for states, words in ((LAST, "its peer closed first"), (("ESTAB", "UNCONN"), "")):
        events = [*established(1.0), *trace(2.0, *states), look(9.0)]
        scene = Scene(told(events, [*handshake(1.0), *close(2.0, CLIENT, SERVER)]), None)
        assert who_closed(scene, "server", (SERVER, CLIENT), 5.0) == words
