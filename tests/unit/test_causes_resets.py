"""Why a host reset a connection: the right reason, and silence where another is as likely."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import pytest

from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document
from labctl.record.events import (
    Event,
    InjectEvent,
    LossEvent,
    ProcessEvent,
    ResetEvent,
    TroubleEvent,
)
from labctl.record.history import History
from tests.caused import (
    CLIENT,
    LISTEN,
    PROBES,
    SERVER,
    call,
    calls,
    close,
    established,
    handshake,
    ids,
    listened,
    look,
    only,
    said,
    told,
    trace,
)
from tests.fake import tcp
from tests.resetting import (
    ACTIVE,
    ANSWER,
    CLOSES,
    DATA,
    LINGERS,
    SERVES,
    accepted,
    over,
)
from tests.walked import ACK, FIN, RST, SYN, Sent, packet

HERE = f"{SERVER} -> {CLIENT}"


def unread(count: int, state: str = "ESTAB", inode: int = 7, t: float = 2.5) -> Event:
    line = tcp(state, SERVER, CLIENT, recv_q=count, more=f"ino:{inode}")
    return look(t, LISTEN, line, TcpExtTCPAbortOnClose=1)


# --- Data that nobody had read --------------------------------------------------------------------


def test_unread_data_is_counted() -> None:
    cause = only(told([*accepted(unread(11), CLOSES), *over()], [*handshake(1.0), DATA, ACTIVE]))
    assert (cause.id, cause.host, cause.connection) == ("reset-unread", "server", HERE)
    assert "11 bytes were unread when the socket closed" in cause.text
    assert "read to the end of file" in cause.cure
    assert cause.certain


def test_unread_data_of_a_half_closed_socket() -> None:
    """It arrives a moment before the socket is closed, and not for a closed one."""
    events = [
        *accepted(call(1.6, "server", "shutdown wr"), CLOSES), unread(11, "FIN-WAIT-2"),
        *trace(1.6, "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2"), *over(3.0, "FIN-WAIT-2"),
    ]  # fmt: skip
    fin = [Sent(1.6, SERVER, CLIENT, FIN | ACK, 1, 1), Sent(1.601, CLIENT, SERVER, ACK, 1, 2)]
    for came in (replace(DATA, ack=2), replace(DATA, ack=2, t=2.9999)):
        cause = only(told(events, [*handshake(1.0), *fin, came, replace(ACTIVE, seq=2)]), "reset")
        assert cause.id == "reset-unread"
        assert cause.text.endswith("so it ended by an RST")


@pytest.mark.parametrize(
    ("since", "words"),
    [
        ([call(2.7, "server", "recv 5", result=5)], "data was unread"),
        ([replace(DATA, t=2.7, seq=12)], "data was unread"),
        ([call(2.7, "other", "recv 5", "server", result=5)], "11 bytes were unread"),
    ],
)
def test_a_count_that_may_have_changed_is_not_said(since: list[Event | Sent], words: str) -> None:
    events = [e for e in since if isinstance(e, Event)]
    segments = [e for e in since if isinstance(e, Sent)]
    other = [ProcessEvent(0.1, "other", "server", "start", pid=2)]
    story = [*accepted(unread(11), CLOSES), *over(), *other, *events]
    assert words in only(told(story, [*handshake(1.0), DATA, *segments, ACTIVE])).text


OTHER = "198.18.0.3:40001"
ENDS_TOO = [
    *established(1.2, OTHER), *trace(3.1, "ESTAB", "UNCONN", ends=(SERVER, OTHER)),
    *trace(3.1002, "ESTAB", "UNCONN", ends=(OTHER, SERVER)),
]  # fmt: skip
"""Another connection of the server, which it resets a moment later."""
BOTH = [*handshake(1.0), *handshake(1.2, OTHER), DATA, ACTIVE,
        Sent(3.1, SERVER, OTHER, RST | ACK, 1, 1)]  # fmt: skip
"""The segments of both."""


def test_another_connection_s_unread_data_explains_nothing() -> None:
    """The counter is of the host: one of two RSTs was for that."""
    history = told([*accepted(unread(11), CLOSES), *over(), *ENDS_TOO], BOTH)
    assert [only(history).connection] == [HERE]
    assert ids(told([*accepted(unread(0), CLOSES), *over(), *ENDS_TOO], BOTH)) == []


def test_a_connection_that_ends_by_fins_is_none_that_was_reset() -> None:
    wire = [*handshake(1.0), *handshake(1.2, OTHER), *close(2.0, SERVER, OTHER), DATA, ACTIVE]
    story = [*accepted(unread(0), CLOSES), *over(), *established(1.2, OTHER)]
    assert "reset-unread" in ids(told(story, wire))


def test_the_kernel_s_own_reason_decides() -> None:
    """It tells which of two RSTs was for unread data."""
    story = [*accepted(unread(0), CLOSES), *over(), *ENDS_TOO]
    because = ResetEvent(3.0, "server", SERVER, CLIENT, "TCP_ABORT_ON_CLOSE")
    cause = only(told([*story, because], BOTH))
    assert (cause.id, cause.connection) == ("reset-unread", HERE)
    assert cause.evidence[-1] == "the kernel's reason: TCP_ABORT_ON_CLOSE"
    elsewhere = [replace(e, t=1.7) if e is CLOSES else e for e in story]  # as by SCM_RIGHTS
    assert ids(told([*elsewhere, because], BOTH)) == ["reset-unread"]
    assert ids(told(elsewhere, BOTH)) == []


@pytest.mark.parametrize(
    ("reason", "found"),
    [("TCP_KEEPALIVE_TIMEOUT", []), ("NOT_SPECIFIED", ["reset-unread"]), ("NEW_ONE", [])],
)
def test_a_reason_that_does_not_fit_keeps_a_rule_silent(reason: str, found: list[str]) -> None:
    because = ResetEvent(3.0, "server", SERVER, CLIENT, reason)
    story = [*accepted(unread(11), CLOSES), *over(), because]
    assert ids(told(story, [*handshake(1.0), DATA, ACTIVE])) == found


def test_a_fin_is_no_unread_byte() -> None:
    """It counts as one in the receive queue; what was counted was another connection's."""
    other = [*established(1.2, OTHER), *trace(3.1, "ESTAB", "UNCONN", ends=(SERVER, OTHER))]
    wire = [
        *handshake(1.0), *handshake(1.2, OTHER), Sent(2.0, CLIENT, SERVER, FIN | ACK, 1, 1),
        replace(ACTIVE, ack=2), Sent(3.1, SERVER, OTHER, RST | ACK, 1, 1),
    ]  # fmt: skip
    events = [*accepted(unread(1, "CLOSE-WAIT"), CLOSES), *trace(2.0, "ESTAB", "CLOSE-WAIT"),
              *over(3.0, "CLOSE-WAIT"), *other]  # fmt: skip
    assert ids(told(events, wire), "reset") == []


@pytest.mark.parametrize(
    ("events", "last"),
    [
        ([look(2.5, LISTEN, tcp("ESTAB", SERVER, CLIENT, recv_q=11, more="ino:7")), CLOSES],
         ACTIVE),  # nothing was counted
        ([unread(11), CLOSES], ANSWER),  # no RST of its own accord
        ([unread(11)], ACTIVE),  # nobody closed it: a timer gave up, or ss -K
    ],
)  # fmt: skip
def test_a_rst_that_resembles_it_is_not_for_unread_data(events: list[Event], last: Sent) -> None:
    assert ids(told([*accepted(*events), *over()], [*handshake(1.0), DATA, last])) == []


# --- Options --------------------------------------------------------------------------------------


def test_linger_0_is_named_with_its_process() -> None:
    wire = [*handshake(1.0), ACTIVE]
    five = only(told([*accepted(call(1.02, "server", "set SO_LINGER 5 0"), CLOSES), *over()], wire))
    assert (five.id, "with SO_LINGER 5 0" in five.text) == ("reset-linger", True)
    for closes in (CLOSES, ProcessEvent(3.02, "server", "server", "gone", signal="KILL")):
        cause = only(told([*accepted(LINGERS, closes), *over()], wire))
        assert (cause.id, cause.host, cause.connection) == ("reset-linger", "server", HERE)
        assert "server closed it with SO_LINGER 1 0" in cause.text


@pytest.mark.parametrize(
    ("events", "last"),
    [
        ([call(1.02, "server", "set SO_LINGER 0 0"), CLOSES], ACTIVE),
        ([call(1.02, "server", "set SO_LINGER 1 5"), CLOSES], ACTIVE),
        ([LINGERS, call(1.03, "server", "set SO_LINGER 0 0"), CLOSES], ACTIVE),
        ([call(1.02, "server", "set SO_LINGER 0 0"), CLOSES], ACTIVE),
        ([LINGERS], ACTIVE),  # nobody closed it: keepalive gave up
        ([LINGERS, CLOSES], ANSWER),
        ([call(1.02, "server", "set SO_LINGER 1 0 || continue"),
          call(1.03, "server", "set SO_LINGER 0 0 || continue"), CLOSES], ACTIVE),
        ([call(1.02, "server", "close"), *calls(1.1, "other", "socket; set SO_LINGER 1 0; "
          "bind :8000 || continue", "server"), CLOSES], ACTIVE),
    ],
)  # fmt: skip
def test_linger_that_does_not_apply_is_not_named(events: list[Event], last: Sent) -> None:
    assert ids(told([*accepted(*events), *over()], [*handshake(1.0), last])) == []


def test_linger_0_that_goes_on_and_linger_0_after_a_fin() -> None:
    lingers = call(1.02, "server", "set SO_LINGER 1 0 || continue")
    events = [*accepted(lingers, CLOSES), *over()]
    assert ids(told(events, [*handshake(1.0), ACTIVE])) == ["reset-linger"]
    half = [*accepted(lingers, call(2.9, "server", "shutdown wr"), CLOSES),
            *trace(2.9, "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2"), *over(3.0, "FIN-WAIT-2")]  # fmt: skip
    wire = [
        *handshake(1.0),
        FINISHED,
        Sent(2.95, CLIENT, SERVER, ACK, 1, 2),
        replace(ACTIVE, seq=2),
    ]
    cause = only(told(half, wire), "reset")
    assert cause.id == "reset-linger"
    assert "sends an RST, after it had shut it down for sending" in cause.text


def test_the_linger_of_another_connection_of_the_listener_is_not_named() -> None:
    first = [
        *established(0.8, OTHER), call(0.9, "server", "accept", local=SERVER, peer=OTHER),
        call(0.91, "server", "set SO_LINGER 1 0"), call(0.95, "server", "close"),
    ]  # fmt: skip
    history = told([*accepted(CLOSES), *first, *over()], [*handshake(0.8, OTHER), *handshake(1.0),
                                                          ACTIVE])  # fmt: skip
    assert ids(history) == []


FINISHED = Sent(2.9, SERVER, CLIENT, FIN | ACK, 1, 1)


def finishing(option: str = "set TCP_LINGER2 -1", state: str = "FIN-WAIT-1") -> list[Event]:
    return [
        *accepted(call(1.02, "server", option), call(2.9, "server", "close")),
        *trace(2.9, "ESTAB", state), *over(3.0, state),
    ]  # fmt: skip


def test_a_negative_linger2_is_named_once_the_fin_is_acknowledged() -> None:
    covers = Sent(2.9999, CLIENT, SERVER, ACK, 1, 2)
    cause = only(told(finishing(), [*handshake(1.0), FINISHED, covers, replace(ANSWER, seq=2)]))
    assert (cause.id, "TCP_LINGER2 below 0" in cause.text) == ("reset-linger", True)
    wire = [*handshake(1.0), FINISHED, covers, replace(ANSWER, seq=2)]
    assert ids(told(finishing("set TCP_LINGER2 5"), wire), "reset") == []
    before = Sent(2.9999, CLIENT, SERVER, ACK | 8, 1, 1, data=5)
    history = told(finishing(), [*handshake(1.0), FINISHED, before, ANSWER])
    assert ids(history, "reset") == ["reset-late-data"]


# --- What came too late ---------------------------------------------------------------------------

LATE = Sent(2.9999, CLIENT, SERVER, ACK | 8, 1, 2, data=17)


def test_data_for_a_closed_socket() -> None:
    events = finishing("set SO_KEEPALIVE", "FIN-WAIT-2")
    cause = only(told(events, [*handshake(1.0), FINISHED, LATE, replace(ANSWER, seq=2)]), "reset")
    assert (cause.id, cause.host, cause.connection) == ("reset-late-data", "server", HERE)
    assert "17 bytes came for a socket that was closed already" in cause.text
    assert "FIN-WAIT-2" in cause.text
    assert len(cause.evidence) == 2


@pytest.mark.parametrize(
    ("came", "last"),
    [
        (LATE, replace(ACTIVE, seq=2)),  # closed with unread data, right after some came
        (replace(LATE, data=0), replace(ANSWER, seq=2)),
        (replace(LATE, t=2.95), replace(ANSWER, seq=2)),
        (replace(LATE, fate="lost"), replace(ANSWER, seq=2)),
    ],
)
def test_what_came_before_a_rst_by_chance_is_not_its_reason(came: Sent, last: Sent) -> None:
    events = finishing("set SO_KEEPALIVE", "FIN-WAIT-2")
    assert ids(told(events, [*handshake(1.0), FINISHED, came, last]), "reset") == []


def test_the_fin_of_an_earlier_connection_of_these_ends_does_not_count() -> None:
    first = [*established(0.6), *trace(0.7, "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "UNCONN")]
    wire = [*handshake(0.6, start=9000), Sent(0.7, SERVER, CLIENT, FIN | ACK, 1, 1, start=9000),
            *handshake(1.0), DATA, ACTIVE]  # fmt: skip
    history = told([*first, *accepted(LINGERS, CLOSES), *over()], wire)
    assert ids(history, "reset") == ["reset-linger"]


# --- An accept queue ------------------------------------------------------------------------------


def queued(*more: Event, inode: int = 0, end: float | None = 3.0) -> list[Event]:
    return [
        *calls(0.5, "server", SERVES), *listened(0.502, end), *established(1.0),
        look(1.5, LISTEN, tcp("ESTAB", SERVER, CLIENT, more=f"ino:{inode}")), *more,
        *trace(3.0, "ESTAB", "UNCONN"),
        *trace(3.0001, "ESTAB", "UNCONN", ends=(CLIENT, SERVER)), look(3.05), look(4.0),
    ]  # fmt: skip


def test_a_connection_that_waited_while_its_listener_closed() -> None:
    closes, wire = call(3.0001, "server", "close listener"), [*handshake(1.0), ACTIVE]
    assert ids(told(queued(closes, end=None), wire)) == ["reset-queue"]  # of two, by SO_REUSEPORT
    cause = only(told(queued(closes), wire))
    assert (cause.id, cause.host, cause.connection) == ("reset-queue", "server", HERE)
    assert "its listener was closed while nobody had accepted it" in cause.text
    assert "tcp_migrate_req" in cause.cure


@pytest.mark.parametrize(
    "events",
    [
        queued(inode=7), queued(end=None), queued(end=1.8),
        queued(call(1.6, "server", "accept", local=SERVER, peer=CLIENT)),
    ],
)  # fmt: skip
def test_one_that_was_accepted_or_whose_listener_lives_did_not_wait(events: list[Event]) -> None:
    assert ids(told(events, [*handshake(1.0), ACTIVE]), "reset") == []


# --- Nobody there ---------------------------------------------------------------------------------

STRAY = [Sent(3.0, CLIENT, SERVER, ACK | 8, 1, 1, data=9), Sent(3.0001, SERVER, CLIENT, RST, 1)]


def test_a_host_that_never_had_such_a_connection() -> None:
    cause = only(told([look(0.5), look(4.0)], STRAY))
    assert (cause.id, cause.host, cause.connection) == ("reset-no-socket", "server", HERE)
    assert f"answered 9 bytes from {CLIENT} by an RST" in cause.text
    assert "it never had one: a NAT may have forgotten it" in cause.text


def test_a_nat_that_has_forgotten_a_connection_never_had_a_socket_for_it() -> None:
    """It has spoken in that connection, and nothing listens there."""
    cause = only(told([look(0.5), look(4.0)], [*handshake(1.0), *STRAY]))
    assert (cause.id, cause.host) == ("reset-no-socket", "server")
    assert "a NAT may have forgotten it" in cause.text


def test_a_host_whose_connection_has_ended() -> None:
    events = [*accepted(), *trace(2.0, "ESTAB", "UNCONN"), look(2.1, LISTEN), look(4.0)]
    cause = only(told(events, [*handshake(1.0), *STRAY]), "reset")
    assert cause.id == "reset-no-socket"
    assert "it ended there at 2.000 s, in ESTAB" in cause.text


@pytest.mark.parametrize(
    ("events", "sent", "probes"),
    [
        # A last ACK that was refused: such a request is no full socket.
        ([look(0.5, LISTEN), look(4.0, LISTEN)], [*handshake(1.0), *STRAY], PROBES),
        ([look(0.5), look(4.0)], STRAY, ("ss", "capture")),
        ([look(0.5), TroubleEvent(1.0, "server", "trace", "lost"), look(4.0)], STRAY, PROBES),
        ([look(0.5), TroubleEvent(1.0, "server", "capture", "lost"), look(4.0)], STRAY, PROBES),
        ([look(0.5), look(4.0)], [STRAY[0], replace(STRAY[1], t=3.2)], PROBES),
        ([look(0.5), look(4.0)], [STRAY[0], replace(STRAY[1], flags=RST | ACK)], PROBES),
    ],
)
def test_where_it_may_have_had_one_nothing_is_said(
    events: list[Event], sent: list[Sent], probes: tuple[str, ...]
) -> None:
    assert ids(told(events, sent, probes)) == []


# --- RSTs of others -------------------------------------------------------------------------------


def test_a_rst_that_a_step_sent() -> None:
    frame = packet(2.0, SERVER, CLIENT, RST, (1001, 0))[16 + 14 :]
    events = [*accepted(), InjectEvent(2.0, "server", b64encode(frame).decode(), 1, 0)]
    cause = only(told(events, [*handshake(1.0), Sent(2.0, SERVER, CLIENT, RST, 1)]), "reset")
    assert (cause.id, cause.connection) == ("reset-crafted", HERE)
    assert "a step sent the RST" in cause.text


def test_a_rst_that_ended_nothing_hides_none_that_did() -> None:
    """A step had sent one before, or the first one was lost."""
    crafted = packet(2.0, SERVER, CLIENT, RST, (1051, 0))[16 + 14 :]
    injected = [InjectEvent(2.0, "server", b64encode(crafted).decode(), 51, 0)]
    wire = [*handshake(1.0), Sent(2.0, SERVER, CLIENT, RST, 51), DATA, ACTIVE]
    found = ids(told([*accepted(unread(11), CLOSES), *over(), *injected], wire), "reset")
    assert found[:2] == ["reset-crafted", "reset-unread"]
    events = [*accepted(LINGERS, call(2.0001, "server", "close")), *over(2.0), look(4.0, LISTEN)]
    ignored = replace(ACTIVE, t=2.0)  # it came, and a firewall lost it
    again = [replace(each, t=each.t + n / 100) for n in (0, 1, 2) for each in STRAY]
    for first in (replace(ignored, fate="lost"), ignored):
        found = ids(told(events, [*handshake(1.0), first, *again]), "reset")
        assert found == ["reset-linger", "reset-no-socket"]
    crossed = [ignored, replace(STRAY[0], t=1.99999), replace(STRAY[1], t=2.0001)]
    assert ids(told(events, [*handshake(1.0), *crossed]), "reset") == found[:1]


def test_a_rst_that_something_on_the_way_sent() -> None:
    wire = [*handshake(1.0), Sent(2.0, SERVER, CLIENT, RST, 1, fate="foreign")]
    cause = only(told([*accepted(), look(4.0, LISTEN)], wire), "reset")
    assert (cause.id, cause.host, cause.connection) == ("reset-crafted", "client", HERE)
    assert "which server did not send" in cause.text


def test_if_its_host_s_capture_has_holes_it_may_have_been_that_host() -> None:
    wire = [*handshake(1.0), Sent(2.0, SERVER, CLIENT, RST, 1, fate="foreign")]
    trouble = TroubleEvent(1.5, "server", "capture", "lost 3")
    assert ids(told([*accepted(trouble), look(4.0, LISTEN)], wire), "reset") == []


def firewalled(*more: Event, until: float = 6.0) -> History:
    """A firewall of the server answers data by a RST; the socket knows nothing of it."""
    line = tcp("ESTAB", SERVER, CLIENT, more="ino:7")
    events = [*accepted(*more), look(until, LISTEN, line)]
    return told(events, [*handshake(1.0), replace(DATA, t=2.9999), ANSWER])


def test_a_socket_that_outlives_its_rst_did_not_send_it() -> None:
    cause = only(firewalled(LINGERS), "reset")
    assert (cause.id, cause.host) == ("reset-crafted", "server")
    assert "its socket stayed in ESTAB, so TCP did not send it" in cause.text
    assert ids(firewalled(LINGERS, until=3.1), "reset") == []
    assert ids(firewalled(TroubleEvent(1.0, "server", "trace", "lost")), "reset") == []


def scenario(server: str = "{}", step: str = "{note: nothing}") -> Scenario:
    text = f"title: x\nhosts: {{client: {{}}, server: {server}}}\nsteps: [{step}]\n"
    return load_document(Document("few", text), text, "few", {})[0]


def test_a_step_refuses_by_an_rst() -> None:
    refused = replace(DATA, t=2.9999)
    frame = b64encode(replace(refused, seq=4001, ack=1001).frame()[14:]).decode()
    story = [*accepted(), *over(3.0002), LossEvent(2.99995, "server", frame, 0)]
    history = told(story, [*handshake(1.0), refused, ANSWER])
    cause = only(history, "reset", scenario(step="{reject: {to: server, with: rst}}"))
    assert (cause.id, cause.host, cause.connection) == ("reset-crafted", "server", HERE)
    assert f"a step refused 11 bytes from {CLIENT}" in cause.text
    for other in ("{reject: {to: server, with: host-unreachable}}", "{drop: {to: server}}"):
        assert said(history, "reset", scenario(step=other)) == []
    late = told(story, [*handshake(1.0), refused, replace(ANSWER, t=3.1)])
    assert said(late, "reset", scenario(step="{reject: {to: server, with: rst}}")) == []


def test_a_host_that_sends_a_thousand_is_not_told_a_thousand_times() -> None:
    ends = [f"198.18.0.3:{port}" for port in range(40000, 40100)]
    wire = [Sent(3.0 + n / 100, end, SERVER, SYN) for n, end in enumerate(ends)]
    wire += [Sent(3.0001 + n / 100, SERVER, e, RST | ACK, 0, 1) for n, e in enumerate(ends)]
    assert ids(told([look(0.5), look(9.0)], wire)) == ["connect-refused"] * 20


def test_a_program_disconnects_or_something_else_ends_its_connection() -> None:
    wire, other = [*handshake(1.0), ACTIVE], "something else ended it"
    gone = replace(call(3.0001, "server", "connect none"), name="disconnect")
    fails = call(3.5, "server", "recv", errno="ECONNABORTED", error="it was")
    why = ResetEvent(3.0, "server", SERVER, CLIENT, "TCP_STATE")
    for known, words in ((gone, "server disconnected it"), (why, other), (fails, other)):
        cause = only(told([*accepted(known), *over()], wire))
        assert (cause.id, words in cause.text) == ("reset-by-close", True)
    timer = replace(why, reason="TCP_KEEPALIVE_TIMEOUT")
    other_ways = ([replace(gone, t=2.0)], [why, CLOSES], [fails, CLOSES], [timer])
    for story in ([*established(1.0), gone], *(accepted(*events) for events in other_ways)):
        assert ids(told([*story, *over()], wire)) == []


# --- Too many orphans -----------------------------------------------------------------------------


def orphaned(*more: Event, gave_up: int = 1) -> History:
    """As Linux 6.1 does with a tcp_max_orphans of 0: its FIN is lost, and it gives up when its
    timer wants to repeat it."""
    events = [
        *accepted(), *trace(2.5, "ESTAB", "FIN-WAIT-1"), *over(3.0, "FIN-WAIT-1"),
        look(4.5, LISTEN, TcpExtTCPAbortOnMemory=gave_up), *more,
    ]  # fmt: skip
    fin = Sent(2.5, SERVER, CLIENT, FIN | ACK, 1, 1, fate="lost")
    return told(events, [*handshake(1.0), fin, replace(ACTIVE, seq=2)])


def test_an_orphan_too_many() -> None:
    cause = only(orphaned(), "orphans")
    assert (cause.id, cause.host, cause.certain) == ("orphans-limit", "server", False)
    assert "more such orphans than net.ipv4.tcp_max_orphans allows, or no memory" in cause.text
    assert "the kernel's log would tell which" in cause.text
    known = only(orphaned(), "orphans", scenario("{sysctls: {net.ipv4.tcp_max_orphans: 0}}"))
    assert known.certain and "net.ipv4.tcp_max_orphans, 0, allows" in known.text
    assert known.text.endswith("or no memory for one (net.ipv4.tcp_mem)")
    assert ids(orphaned(gave_up=0), "orphans") == []  # without such a count it is none


def test_the_kernel_s_own_reason_for_an_orphan() -> None:
    why = ResetEvent(3.0, "server", SERVER, CLIENT, "TCP_ABORT_ON_MEMORY")
    assert only(orphaned(why, gave_up=0), "orphans").evidence[-1].endswith("TCP_ABORT_ON_MEMORY")
    other = ResetEvent(3.0, "server", SERVER, CLIENT, "TCP_ABORT_ON_TIMEOUT")
    assert ids(orphaned(other), "orphans") == []
