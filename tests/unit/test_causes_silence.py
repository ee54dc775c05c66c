"""Calls that timed out, listeners that dropped or deferred, processes that a stop had to kill."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from labctl.judge.causes.cause import Cause
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.record.events import Event, LossEvent, ProcessEvent, StepEvent, TroubleEvent
from tests.caused import (
    CLIENT,
    LISTEN,
    SERVER,
    call,
    calls,
    established,
    handshake,
    holds,
    ids,
    listened,
    look,
    only,
    said,
    told,
    trace,
)
from tests.fake import tcp
from tests.walked import ACK, FIN, RST, SYN, Sent, packet

GONE: dict[str, Any] = {"errno": "ETIMEDOUT", "error": "Connection timed out"}
OTHER = "198.18.0.3:40001"
TRIES = [Sent(t, CLIENT, SERVER, SYN, fate="lost") for t in (1.0, 2.0, 4.0)]


def connects(texts: str = "socket", connect: str = "connect server:8000") -> list[Event]:
    return [*calls(0.9, "client", texts), call(8.0, "client", connect, **GONE), look(8.5)]


# --- Connects -------------------------------------------------------------------------------------


def test_syns_without_an_answer_are_counted_and_where_they_were_lost() -> None:
    cause = only(told(connects(), TRIES))
    assert (cause.id, cause.host, cause.connection) == (
        "no-answer", "client", f"{CLIENT} -> {SERVER}",
    )  # fmt: skip
    assert "3 tries of a SYN without an answer; 3 lost on their way" in cause.text
    assert "one SYN without" in only(told(connects(), TRIES[:1])).text


def test_a_write_that_connects_had_no_answer_to_its_syns() -> None:
    """By TCP_FASTOPEN_CONNECT: connect returns, and the SYN goes with what is written."""
    waits = connects("socket; set TCP_FASTOPEN_CONNECT; connect server:8000", 'send "hello"')
    cause = only(told(waits, TRIES))
    assert cause.id == "no-answer"
    assert 'send "hello" failed with ETIMEDOUT' in cause.text


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([replace(each, fate="") for each in TRIES],
         "all arrived, and no segment of server answered"),
        ([*(replace(each, fate="") for each in TRIES),
          *(Sent(t, SERVER, CLIENT, SYN | ACK, 0, 1, fate="lost") for t in (1.1, 2.1))],
         "2 answers of the peer were lost"),
        ([*TRIES, Sent(1.2, OTHER, SERVER, SYN), Sent(1.3, SERVER, OTHER, RST | ACK, 0, 1)], ""),
    ],
)  # fmt: skip
def test_whether_the_peer_was_silent_is_told_by_the_wire(sent: list[Sent], words: str) -> None:
    causes = said(told(connects(), sent), "no-answer")
    assert [words in cause.text for cause in causes if words] == ([True] if words else [])


def test_what_a_deaf_peer_got_is_not_claimed() -> None:
    trouble = TroubleEvent(0.5, "server", "capture", "lost 9")
    for history in (
        told([trouble, *connects()], [replace(each, fate="") for each in TRIES], deaf=["server"]),
        told(connects(connect="connect 203.0.113.9:80"),
             [replace(each, target="203.0.113.9:80") for each in TRIES]),
    ):  # fmt: skip
        assert "whether they arrived, a capture of the peer would tell" in only(history).text


@pytest.mark.parametrize(
    ("connect", "sent"),
    [
        ("connect server:8001", TRIES),
        ("connect server.2:8000", TRIES),
        ("connect server:8000", [replace(each, t=each.t - 0.9) for each in TRIES]),
        ("connect server:8000", [*TRIES, replace(TRIES[0], source=OTHER)]),  # which of the two?
        ("connect server:8000", []),
        ("connect server:8000 || continue", [*TRIES, Sent(5.0, SERVER, CLIENT, RST | ACK, 0, 1)]),
    ],
)
def test_the_syns_of_another_connect_do_not_count(connect: str, sent: list[Sent]) -> None:
    said_of = said(told(connects(connect=connect), sent), "no-answer")
    assert not [cause for cause in said_of if "SYN" in cause.text]


def test_a_connect_that_goes_on_and_one_of_ipv6_are_understood() -> None:
    assert ids(told(connects(connect="connect server:8000 || continue"), TRIES)) == ["no-answer"]
    six = [Sent(t, "[fd00::3]:40000", "[fd00::2]:8000", SYN, fate="lost") for t in (1.0, 2.0)]
    by_name = connects("socket tcp6", "connect server.v6:8000")
    assert "2 tries of a SYN" in only(told(by_name, six)).text
    # A bare name is an IPv4 address, which such a socket has as an IPv4-mapped one.
    assert ids(told(connects("socket tcp6"), TRIES)) == ["no-answer"]


def test_a_hundred_connects_are_not_told_a_hundred_times() -> None:
    events: list[Event] = [look(0.5)]
    for n in range(100):
        events += [*calls(1.0 + n, f"c{n}", "socket", "client"),
                   call(1.9 + n, f"c{n}", "connect server:8000", "client", **GONE)]  # fmt: skip
    sent = [Sent(1.5 + n, f"198.18.0.3:{40000 + n}", SERVER, SYN, fate="lost") for n in range(100)]
    assert [cause.at for cause in said(told(events, sent))] == [1.9 + n for n in range(20)]


# --- Connections ----------------------------------------------------------------------------------


def speaks(option: str = "", *more: Event, at: float = 9.0, what: str = "recv") -> list[Event]:
    """A client with a connection, whose call times out."""
    texts = "; ".join(filter(None, ["socket", option, "connect server:8000"]))
    return [
        *calls(0.999, "client", texts), *established(1.0), *more,
        call(at, "client", what, **GONE), look(at + 0.5),
    ]  # fmt: skip


def probes(count: int = 3, every: float = 2.0) -> list[Sent]:
    return [Sent(2.0 + n * every, CLIENT, SERVER, ACK, 0, 1, fate="lost") for n in range(count)]


def again(count: int = 4) -> list[Sent]:
    first = Sent(2.0, CLIENT, SERVER, ACK | 8, 1, 1, data=9, fate="lost")
    return [replace(first, t=2.0 + n) for n in range(count)]


def test_keepalive_that_gave_up() -> None:
    gave_up = Sent(8.9, CLIENT, SERVER, RST | ACK, 1, 1, fate="lost")
    history = told(speaks("set SO_KEEPALIVE"), [*handshake(1.0), *probes(), gave_up])
    cause = only(history, "timeout")
    assert (cause.id, cause.host, cause.connection) == (
        "timeout-keepalive", "client", f"{CLIENT} -> {SERVER}",
    )  # fmt: skip
    assert "3 keepalive probes had no answer, 2.0 s apart; 3 lost on their way" in cause.text
    assert len(cause.evidence) == 3


def test_retransmissions_that_gave_up() -> None:
    for option in ("", "set SO_KEEPALIVE", "set TCP_USER_TIMEOUT 0"):
        cause = only(told(speaks(option), [*handshake(1.0), *again()]), "timeout")
        assert cause.id == "timeout-retries"
        assert "3 retransmissions without an answer" in cause.text
        assert "4 lost on their way" in cause.text


def test_a_user_timeout_that_was_over() -> None:
    for sent in (again(), probes()):
        history = told(speaks("set TCP_USER_TIMEOUT 5000"), [*handshake(1.0), *sent])
        cause = only(history, "timeout")
        assert (cause.id, "TCP_USER_TIMEOUT, 5000 ms" in cause.text) == ("timeout-user", True)
    for at, named in ((6.696, []), (6.7, ["timeout-user"])):  # give or take 0.3 s
        events = speaks("set TCP_USER_TIMEOUT 5000", at=at)
        assert ids(told(events, [*handshake(1.0), *again()]), "timeout") == named


@pytest.mark.parametrize(
    ("option", "sent"),
    [
        ("", probes()),  # whose option is not known to be on
        ("set SO_KEEPALIVE 0", probes()),
        ("set TCP_USER_TIMEOUT 60000", again()),  # it was not over
        ("set SO_KEEPALIVE", []),
        ("set TCP_USER_TIMEOUT 5000", []),  # nothing was sent
        ("set SO_KEEPALIVE", [*probes(), Sent(8.0, SERVER, CLIENT, ACK, 1, 1)]),
    ],
)  # fmt: skip
def test_a_timer_that_did_not_run_is_not_named(option: str, sent: list[Sent]) -> None:
    assert ids(told(speaks(option), [*handshake(1.0), *sent]), "timeout") == []


def test_a_user_timeout_ends_an_idle_connection_by_what_came_last() -> None:
    """Its time begins before the first probe: with what the peer sent last."""
    events = speaks("set SO_KEEPALIVE; set TCP_USER_TIMEOUT 4000", at=5.1)
    assert only(told(events, [*handshake(1.0), *probes(2)]), "timeout").id == "timeout-user"
    soon = speaks("set SO_KEEPALIVE; set TCP_USER_TIMEOUT 6000", at=5.1)
    assert ids(told(soon, [*handshake(1.0), *probes(2)]), "timeout") == []


def shut(*later: Sent) -> list[Sent]:
    """The server's window is closed, and its client asks every second whether it still is."""
    data = Sent(2.0, CLIENT, SERVER, ACK | 8, 1, 1, data=9)
    answer = Sent(2.001, SERVER, CLIENT, ACK, 1, 10, window=0)
    asks = [replace(data, t=t, seq=9, data=0, flags=ACK) for t in (3.0, 4.0, 5.0)]
    return [*handshake(1.0), data, answer, *asks, *(replace(answer, t=s.t + 0.001) for s in asks),
            *later]  # fmt: skip


def test_a_user_timeout_ends_what_a_closed_window_keeps_though_its_probes_are_answered() -> None:
    late = speaks("set TCP_USER_TIMEOUT 3000", at=6.0)
    cause = only(told(late, shut()), "timeout")
    assert (cause.id, len(cause.evidence)) == ("timeout-user", 3)
    assert "the window of its peer stayed closed for TCP_USER_TIMEOUT, 3000 ms: 3 probes" in (
        cause.text
    )  # fmt: skip
    opened = Sent(5.5, SERVER, CLIENT, ACK, 1, 10)
    for option, sent in (
        ("set TCP_USER_TIMEOUT 4000", shut()), ("set TCP_USER_TIMEOUT 3000", shut(opened)),
        ("", shut()),
    ):  # fmt: skip
        assert ids(told(speaks(option, at=6.0), sent), "timeout") == []


def test_a_timer_that_ends_a_call_with_the_last_error_of_icmp() -> None:
    unreachable: dict[str, Any] = {"errno": "EHOSTUNREACH", "error": "No route to host"}
    story = [
        *calls(0.999, "client", "socket; set TCP_USER_TIMEOUT 5000; connect server:8000"),
        *established(1.0), call(9.0, "client", "recv", **unreachable),
    ]  # fmt: skip
    wire = [*handshake(1.0), *again()]
    gave_up = look(9.5, host="client", TcpExtTCPAbortOnTimeout=1)
    cause = only(told([*story, gave_up], wire), "timeout")
    assert (cause.id, "EHOSTUNREACH is what ICMP" in cause.text) == ("timeout-user", True)
    assert ids(told([*story, look(9.5, host="client")], wire), "timeout") == []


def test_why_a_host_did_not_answer_its_counters_tell() -> None:
    came = [Sent(t, CLIENT, SERVER, SYN) for t in (1.0, 2.0)]
    for counter, words in (
        ("TcpExtTCPMD5Failure", "their signature (TCP_MD5SIG) is not by its key"),
        ("TcpExtListenDrops", "no accept queue was full, but a queue of SYNs"),
    ):
        grown: dict[str, Any] = {counter: 2}
        cause = only(told([*connects(), look(8.6, **grown)], came))
        assert f"all arrived, and server dropped them: {words}" in cause.text
        lost = only(told([*connects(), look(8.6, **grown)], TRIES))
        assert words not in lost.text


def test_the_silence_of_another_connection_is_not_this_one_s() -> None:
    """The other one speaks on, and is not answered either for a moment."""
    other = [*handshake(1.2, OTHER), Sent(8.9, OTHER, SERVER, ACK | 8, 1, 1, data=5)]
    events = speaks("set SO_KEEPALIVE", *established(1.2, OTHER))
    cause = only(told(events, [*handshake(1.0), *probes(), *other]), "timeout")
    assert cause.connection == f"{CLIENT} -> {SERVER}"
    silent = told(speaks("set SO_KEEPALIVE", *established(1.2, OTHER)), [*handshake(1.0), *other])
    assert ids(silent, "timeout") == []


def test_an_accepted_connection_has_its_own_options() -> None:
    back = [replace(each, source=SERVER, target=CLIENT) for each in probes()]
    for option, name in [("set SO_KEEPALIVE", ["timeout-keepalive"]), ("set SO_KEEPALIVE 0", [])]:
        events = [
            *calls(0.5, "server", "socket; set SO_KEEPALIVE; bind :8000; listen 5"),
            *established(1.0), call(1.1, "server", "accept", local=SERVER, peer=CLIENT),
            call(1.2, "server", option), call(9.0, "server", 'send "x"', **GONE), look(9.5),
        ]  # fmt: skip
        assert ids(told(events, [*handshake(1.0), *back]), "timeout") == name


def test_what_a_step_drops_is_told() -> None:
    frame = packet(2.0, CLIENT, SERVER, ACK, (4000, 1001))[16 + 14 :]
    lost = LossEvent(2.0, "client", b64encode(frame).decode(), 0)
    wire = [*handshake(1.0), *probes(1)]
    cause = only(told(speaks("set SO_KEEPALIVE", lost), wire), "timeout")
    assert "1 lost by a drop" in cause.text


# --- Listeners ------------------------------------------------------------------------------------

FULL = tcp("LISTEN", ":8000", recv_q=2, send_q=1)
OVER: dict[str, Any] = {"TcpExtListenOverflows": 3, "TcpExtListenDrops": 4}


def test_a_full_accept_queue() -> None:
    cause = only(told([look(1.0, FULL), look(2.0, FULL, **OVER)]))
    assert (cause.id, cause.host, cause.connection, cause.certain) == (
        "accept-queue-full", "server", None, True,
    )  # fmt: skip
    assert "LISTEN 0.0.0.0:8000 was full (2/1, full)" in cause.text
    assert "3 overflows (TcpExtListenOverflows), 4 drops" in cause.text
    assert "somaxconn" in cause.cure
    assert cause.evidence == ("LISTEN 0.0.0.0:8000, accept queue 2/1, full",)
    assert "tcp_abort_on_overflow" not in cause.text


@pytest.mark.parametrize(("abort", "words"), [(1, "such an ACK gets an RST"), (0, "drops")])
def test_what_a_full_queue_does_to_the_last_ack(abort: int, words: str) -> None:
    server = f"{{sysctls: {{net.ipv4.tcp_abort_on_overflow: {abort}}}}}"
    text = f"title: x\nhosts: {{client: {{}}, server: {server}}}\nsteps: [{{note: nothing}}]\n"
    (case,) = load_document(Document("full", text), text, "full", {})
    cause = only(told([look(1.0, FULL), look(2.0, FULL, **OVER)]), scenario=case)
    assert words in cause.text and ("RST" in cause.text) == bool(abort)


def test_whose_accept_queue_was_full() -> None:
    full = FULL.replace("0.0.0.0:*", "0.0.0.0:* ino:5")
    start = ProcessEvent(0.5, "web", "server", "start", pid=2)
    events = [start, look(1.0, full), holds(1.0, "web", {2: {3: 5}}), look(2.0, full, **OVER)]
    cause = only(told(events))
    assert cause.evidence[0].endswith("full, held by web (pid 2, nginx, fd 3)")
    assert cause.holders[0].by[0].process == "web"


@pytest.mark.parametrize(("after", "found"), [(1.9, []), (2.1, ["stopped-by-force"])])
def test_a_service_has_a_signal_and_a_patience_of_its_own(after: float, found: list[str]) -> None:
    first, *rest = stopped(gone(1.0 + after))
    assert isinstance(first, ProcessEvent)
    causes = said(told([replace(first, stop="QUIT", grace=2.0), *rest]))
    assert [cause.id for cause in causes] == found
    assert all(
        "within 2.1 s of SIGQUIT" in c.text and c.cure.startswith("on SIGQUIT") for c in causes
    )


@pytest.mark.parametrize(
    "events",
    [
        [look(1.0, FULL), look(2.0, FULL)],  # nobody came while it was full
        [look(1.0, tcp("LISTEN", ":8000", recv_q=1, send_q=1)), look(2.0, **OVER)],
        [look(1.0, FULL), look(2.0, host="client", **OVER)],
    ],
)  # fmt: skip
def test_a_queue_that_dropped_nothing_is_none(events: list[Event]) -> None:
    assert ids(told(events)) == []


def test_of_two_listeners_it_is_not_certain_whose_queue_it_was() -> None:
    events = [look(1.0, FULL, tcp("LISTEN", ":9000", send_q=1)), look(2.0, FULL, **OVER)]
    cause = only(told(events))
    assert (cause.id, cause.certain) == ("accept-queue-full", False)
    assert "would tell whose" in cause.text
    both = [look(1.0, FULL, tcp("LISTEN", ":9000", recv_q=2, send_q=1)), look(2.0, FULL, **OVER)]
    known = only(told([*both, look(9.0)], [Sent(1.5, CLIENT, SERVER, SYN)]))
    assert (known.certain, "LISTEN 0.0.0.0:8000" in known.text) == (True, True)
    assert len(said(told([*both, look(9.0)], handshake(1.5)))) == 2


def test_syn_cookies() -> None:
    cookies: dict[str, Any] = {"TcpExtSyncookiesSent": 5, "TcpExtSyncookiesRecv": 2}
    cause = only(told([look(1.0), look(2.0, **cookies)]))
    assert (cause.id, cause.host) == ("syn-cookies", "server")
    assert "answered 5 SYNs by SYN cookies" in cause.text
    assert "and 2 came back" in cause.text
    assert ids(told([look(1.0), look(2.0, TcpExtSyncookiesRecv=1)])) == []


IGNORED: dict[str, Any] = {"TcpExtTCPDeferAcceptDrop": 1}
PENDING = tcp("SYN-RECV", SERVER, CLIENT, more="timer:(on,1sec,0) ino:0")
DEFERS = "socket; set TCP_DEFER_ACCEPT 5; bind :8000; listen 5"


def deferred(*events: Event, listen: str = DEFERS) -> list[Event]:
    return [
        *calls(0.5, "server", listen), *listened(0.504), look(1.01, LISTEN, PENDING, **IGNORED),
        look(2.5, LISTEN, PENDING), look(4.0, LISTEN, PENDING), *events,
    ]  # fmt: skip


def test_a_handshake_that_waits_for_data() -> None:
    cause = only(told(deferred(), handshake(1.0)))
    assert (cause.id, cause.host) == ("deferred-accept", "server")
    assert cause.connection == f"{SERVER} -> {CLIENT}"
    assert "the listener of server has TCP_DEFER_ACCEPT" in cause.text
    assert "in SYN-RECV for 2.9 s" in cause.text


def test_a_handshake_that_waited_until_data_came() -> None:
    """The data arrives a little before the trace tells of what it did."""
    opens = trace(3.2, "LISTEN", "SYN-RECV", "ESTAB")
    events = [*deferred()[:-1], *opens, look(3.3, LISTEN, tcp("ESTAB", SERVER, CLIENT))]
    data = Sent(3.19, CLIENT, SERVER, ACK | 8, 1, 1, data=1)
    cause = only(told(events, [*handshake(1.0), data]))
    assert (cause.id, " was in SYN-RECV for 2.1 s" in cause.text) == ("deferred-accept", True)


@pytest.mark.parametrize(
    ("events", "sent"),
    [
        # Data comes at once: the usual way, which does no harm.
        ([*calls(0.5, "server", DEFERS), *established(1.0), look(1.3, LISTEN, **IGNORED)],
         [*handshake(1.0), Sent(1.0003, CLIENT, SERVER, ACK | 8, 1, 1, data=5)]),
        (deferred(listen="socket; bind :8000; listen 5"), handshake(1.0)),
        (deferred(look(4.1, LISTEN, PENDING, TcpExtListenOverflows=1)), handshake(1.0)),
        (deferred(), handshake(1.0)[:2]),  # its last ACK never came
        # It did not wait for long.
        ([*deferred()[:-2], look(1.5, LISTEN, tcp("ESTAB", SERVER, CLIENT)), look(2.5)],
         handshake(1.0)),
    ],
)  # fmt: skip
def test_a_handshake_that_waits_for_something_else(events: list[Event], sent: list[Sent]) -> None:
    assert ids(told(events, sent), "deferred") == []


# --- Stops ----------------------------------------------------------------------------------------


def stopped(*events: ProcessEvent, text: str = "stop server", verb: str = "stop") -> list[Event]:
    return [
        ProcessEvent(0.5, "server", "server", "start", pid=2),
        ProcessEvent(0.5, "client", "client", "start", pid=2),
        StepEvent(1.0, 0, "begin", text, verb=verb), *events,
        StepEvent(12.0, 0, "end", text, outcome="done", verb=verb), look(12.1),
    ]  # fmt: skip


def gone(t: float, process: str = "server") -> ProcessEvent:
    return ProcessEvent(t, process, process, "gone", signal="KILL")


def exited(t: float, signal: str | None = None, process: str = "server") -> ProcessEvent:
    return ProcessEvent(t, process, process, "exit", 2, None if signal else 0, signal, left=True)


def test_a_stop_that_ended_in_sigkill() -> None:
    cause = only(told(stopped(gone(11.05))))
    assert (cause.id, cause.host) == ("stopped-by-force", "server")
    assert "server did not end within 10.1 s of SIGTERM, so it was killed" in cause.text
    assert cause.evidence == ("stop server",)


@pytest.mark.parametrize(
    "events",
    [
        stopped(exited(1.2, "TERM"), gone(1.3)),  # it obeyed; labctl clears up behind it
        stopped(exited(1.2), gone(11.5)),  # what it left is killed
        stopped(gone(1.2)),  # it killed itself
        stopped(gone(11.5, "client")),
        stopped(gone(11.05), text="kill server", verb="kill"),
        stopped(replace(gone(11.05), start=1)),
    ],
)  # fmt: skip
def test_other_ends_are_no_force(events: list[Event]) -> None:
    assert ids(told(events)) == []


# --- Records with holes ---------------------------------------------------------------------------


def test_a_history_without_captures_says_nothing_of_the_wire() -> None:
    for history in (told(connects(), probes=("ss", "trace")),
                    told(speaks("set SO_KEEPALIVE"), probes=("ss", "trace"))):  # fmt: skip
        assert ids(history) == []


def test_a_fin_without_an_answer_is_no_keepalive_probe() -> None:
    fin = [Sent(t, CLIENT, SERVER, FIN | ACK, 1, 1, fate="lost") for t in (2.0, 2.4, 3.2)]
    events = speaks("set SO_KEEPALIVE", *trace(2.0, "ESTAB", "FIN-WAIT-1", ends=(CLIENT, SERVER)))
    assert ids(told(events, [*handshake(1.0), *fin]), "timeout") == ["timeout-retries"]


# --- Connections of programs, whose reading nobody sees -------------------------------------------


def gives_up(*sent: Sent, count: int = 1, more: Sequence[Event] = ()) -> list[Cause]:
    """What is said of a client that closed without a FIN, after what it sent."""
    ends = CLIENT, SERVER
    events = [
        *established(1.0), *more, look(2.0, host="client", TcpExtTCPAbortOnTimeout=0),
        *trace(8.0, "ESTAB", "UNCONN", ends=ends),
        look(8.5, host="client", TcpExtTCPAbortOnTimeout=count),
    ]  # fmt: skip
    return said(told(events, [*handshake(1.0), *sent]), "timeout")


def test_a_connection_that_keepalive_gave_up_is_told_by_its_probes() -> None:
    (cause,) = gives_up(*probes())
    assert (cause.id, cause.host, cause.connection) == (
        "timeout-keepalive", "client", f"{CLIENT} -> {SERVER}"
    )  # fmt: skip
    assert cause.text.startswith(f"client gave up {CLIENT} -> {SERVER}: 3 keepalive probes had no")
    assert "2.0 s apart; 3 lost on their way" in cause.text
    assert cause.evidence[-1] == "TcpExtTCPAbortOnTimeout: 1"


def test_which_connection_the_kernel_gave_up_is_not_guessed() -> None:
    assert gives_up(*probes(), count=0) == []
    assert gives_up(*probes(), count=2) == []
    assert gives_up() == []
    assert gives_up(*probes(), Sent(7.5, SERVER, CLIENT, RST | ACK, 1, 1)) == []
    trouble = TroubleEvent(1.5, "client", "capture", "lost 9")
    assert gives_up(*probes(), more=[trouble]) == []
    # Nobody has it open any more, and so another limit counts.
    client = calls(0.999, "client", "socket; connect server:8000")
    orphan = [*client, call(1.5, "client", "close")]
    (cause,) = gives_up(*again(), more=orphan)
    assert (cause.id, "net.ipv4.tcp_orphan_retries" in cause.text) == ("timeout-retries", True)
    assert "net.ipv4.tcp_retries2" in gives_up(*again(), more=client)[0].text
    # Of data sent again, the socket's options would tell which timer it was.
    assert gives_up(*again()) == []
