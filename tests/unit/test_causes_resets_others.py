"""RSTs of others than a connection's ends, and those that no rule may explain."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from labctl.record.events import Event, ResetEvent, StateEvent
from labctl.record.history import History
from tests.caused import (
    CLIENT,
    LISTEN,
    SERVER,
    call,
    calls,
    captured,
    handshake,
    ids,
    listened,
    look,
    only,
    told,
    trace,
)
from tests.fake import tcp
from tests.resetting import ANSWER, DATA, accepted, over
from tests.walked import ACK, FIN, RST, SYN, Sent

# --- A host that forwards -------------------------------------------------------------------------


def firewalled(*sent: Sent, rst: Sent) -> History:
    """A router, `backend`, sends a RST in the name of one of the ends."""
    events: list[Event] = [look(0.5, LISTEN), look(9.0, LISTEN)]
    found = told(events, [*sent, replace(rst, fate="foreign")])
    (record,) = captured([replace(rst, t=rst.t - 1e-5, target="10.9.9.9:1")]).values()
    (like,) = captured([replace(rst, fate="foreign")]).values()
    # As it left there: the same packet, a moment before it arrived.
    found.add_packets(found.now, "backend", record[:8] + like[8:])
    return found


ASKS = Sent(2.0, CLIENT, SERVER, SYN)
REFUSES = Sent(2.0001, SERVER, CLIENT, RST | ACK, 0, 1)


@pytest.mark.parametrize(
    ("before", "rst", "name", "evidence"),
    [
        ([ASKS], REFUSES, "connect-refused", 2),
        ([replace(ASKS, t=1.0), replace(ASKS, t=2.0)], REFUSES, "connect-refused", 2),
        ([*handshake(1.0), replace(DATA, t=2.0)], replace(ANSWER, t=2.0001), "reset-crafted", 2),
        ([], replace(ANSWER, t=2.0001), "connect-refused", 1),
    ],
)
def test_a_router_answers_in_the_name_of_another(
    before: list[Sent], rst: Sent, name: str, evidence: int
) -> None:
    cause = only(firewalled(*before, rst=rst))
    assert (cause.id, cause.host, len(cause.evidence)) == (name, "backend", evidence)
    assert "server did not: backend, which forwards, answered in its name" in cause.text
    assert cause.cure == "look at the rules (nft list ruleset) of backend"
    if before:
        assert cause.evidence[0].startswith(f"{before[-1].t:.6f} client: ")


# --- Inside one host ------------------------------------------------------------------------------

HERE, THERE = "127.0.0.1:40000", "127.0.0.1:8000"


@pytest.mark.parametrize(
    ("came", "answer", "found"),
    [
        (Sent(3.0, HERE, THERE, SYN), Sent(3.0001, THERE, HERE, RST | ACK, 0, 1),
         ["connect-refused"]),
        (Sent(3.0, HERE, THERE, ACK | 8, 1, 1, 9), Sent(3.0001, THERE, HERE, RST, 1), []),
        (Sent(2.9, HERE, THERE, SYN), Sent(3.0001, THERE, HERE, RST | ACK, 0, 1), []),
    ],
)  # fmt: skip
def test_on_the_loopback_only_refusals_are_told(came: Sent, answer: Sent, found: list[str]) -> None:
    history = told([look(0.5), look(9.0)])
    records = b"".join(s.record() for s in (came, replace(answer, ack=came.seq + 1)))
    history.add_packets(history.now, "server", records)
    assert ids(history) == found


def test_unread_data_on_the_loopback() -> None:
    wire = [*handshake(1.0, HERE, THERE), Sent(2.0, HERE, THERE, ACK | 8, 1, 1, 9),
            Sent(3.0, THERE, HERE, RST | ACK, 1, 10)]  # fmt: skip
    lines = [tcp("ESTAB", HERE, THERE, more="ino:8"),
             tcp("ESTAB", THERE, HERE, recv_q=9, more="ino:7")]  # fmt: skip
    history = told([look(1.5, *lines), look(2.5, *lines, TcpExtTCPAbortOnClose=1), look(3.01)])
    history.add_packets(history.now, "server", b"".join(s.record() for s in wire))
    cause = only(history, "reset")
    assert (cause.id, cause.connection) == ("reset-unread", f"{THERE} -> {HERE}")


# --- The kernel's reason is another one -----------------------------------------------------------

OTHER = "TCP_INVALID_SEQUENCE"
LINE = tcp("ESTAB", SERVER, CLIENT, more="ino:7")


def because(reason: str, t: float = 3.0) -> ResetEvent:
    return ResetEvent(t, "server", SERVER, CLIENT, reason)


@pytest.mark.parametrize(
    ("events", "sent", "found"),
    [
        ([look(0.5), look(9.0)], [replace(ASKS, t=2.9999), replace(REFUSES, t=3.0)],
         "connect-refused"),
        ([look(0.5), look(9.0)], [replace(DATA, t=2.9999), ANSWER], "reset-no-socket"),
    ],
)  # fmt: skip
def test_it_had_a_socket_if_the_kernel_says_so(
    events: list[Event], sent: list[Sent], found: str
) -> None:
    for reason, told_of in (("NO_SOCKET", [found]), (OTHER, [])):
        assert ids(told([*events, because(reason)], sent)) == told_of


def test_a_socket_that_ended_an_instant_before_is_none() -> None:
    """The RST answers what came right after the last ACK, and ended nothing here."""
    walk = ("ESTAB", "CLOSE-WAIT", "LAST-ACK", "UNCONN")
    ends = [
        StateEvent(2.9995 + n / 1e4, "server", SERVER, CLIENT, *states)
        for n, states in enumerate(pairwise(walk))
    ]
    wire = [*handshake(1.0), replace(DATA, t=2.9998), ANSWER]
    cause = only(told([*accepted(), *ends, because("NO_SOCKET")], wire), "reset-no-socket")
    assert "it ended there at 3.000 s, in LAST-ACK" in cause.text


def test_what_the_kernel_gives_a_reason_for_no_firewall_sent() -> None:
    """Though its socket lived on."""
    events = [*accepted(), look(6.0, LISTEN, LINE)]
    wire = [*handshake(1.0), replace(DATA, t=2.9999), ANSWER]
    assert ids(told(events, wire), "reset") == ["reset-crafted"]
    assert ids(told([*events, because("NO_SOCKET")], wire), "reset") == []


# --- Data for what was closed ---------------------------------------------------------------------

LATE = Sent(2.9999, CLIENT, SERVER, ACK | 8, 1, 2, data=17)
FINISHED = Sent(2.5, SERVER, CLIENT, FIN | ACK, 1, 1)


@pytest.mark.parametrize(
    ("walked", "fin", "found"),
    [
        (("FIN-WAIT-1",), [FINISHED], ["reset-late-data"]),
        (("FIN-WAIT-1", "FIN-WAIT-2"), [FINISHED], ["reset-late-data"]),
        (("FIN-WAIT-1", "FIN-WAIT-2"), [], []),  # its FIN is in no capture
        (("CLOSE-WAIT", "LAST-ACK"), [FINISHED], []),  # the peer had closed before
        ((), [FINISHED], []),
    ],
)
def test_in_which_states_data_comes_too_late(
    walked: tuple[str, ...], fin: list[Sent], found: list[str]
) -> None:
    states = ("ESTAB", *walked)
    events = [*accepted(call(2.4, "server", "shutdown wr")), *trace(2.5, *states),
              *over(3.0, states[-1])]  # fmt: skip
    wire = [*handshake(1.0), *fin, LATE, replace(ANSWER, seq=2)]
    assert ids(told(events, wire), "reset") == found


def test_of_a_connection_that_had_ended_its_last_state_is_told() -> None:
    walked = ("ESTAB", "CLOSE-WAIT", "LAST-ACK", "UNCONN")
    events = [*accepted(), *trace(2.0, *walked, step=0.1), look(2.5, LISTEN), look(9.0)]
    wire = [*handshake(1.0), replace(DATA, t=2.9999), ANSWER]
    assert "it ended there at 2.200 s, in LAST-ACK" in only(told(events, wire), "reset").text


def test_what_was_asked_for_since_then_may_be_a_socket() -> None:
    walked = ("ESTAB", "CLOSE-WAIT", "LAST-ACK", "UNCONN")
    events = [*accepted(), *trace(2.0, *walked, step=0.1), look(2.5, LISTEN), look(9.0)]
    late = [replace(DATA, t=2.9999), ANSWER]
    for again, found in ((1.9, ["reset-no-socket"]), (2.6, [])):
        wire = [*handshake(1.0), Sent(again, SERVER, CLIENT, SYN | ACK, 0, 1), *late]
        assert ids(told(events, wire), "reset") == found


# --- A handshake that was not done as its listener closed -----------------------------------------


def half_open(
    *more: Event, closed: float = 2.0, line: str = tcp("SYN-RECV", SERVER, CLIENT)
) -> History:
    """The last ACK is lost, the listener closes, and what comes after that gets a RST."""
    events = [
        *calls(0.5, "server", "socket; bind :8000; listen 5"), *listened(0.502, closed),
        *trace(1.0, "UNCONN", "SYN-SENT", "ESTAB", ends=(CLIENT, SERVER)),
        look(1.5, line), look(3.1), look(4.0), *more,
    ]  # fmt: skip
    first = replace(handshake(1.0)[2], fate="lost")
    wire = [*handshake(1.0)[:2], first, replace(DATA, t=3.0), replace(ANSWER, t=3.0001)]
    return told(events, wire)


def test_a_handshake_that_was_not_done_as_its_listener_closed() -> None:
    cause = only(half_open(), "reset")
    assert (cause.id, cause.host) == ("reset-queue", "server")
    assert "its listener was closed before its handshake was done, so what" in cause.text
    assert ids(half_open(closed=9.0), "reset") == []
    assert ids(half_open(line=""), "reset") == ["reset-queue"]  # by a SYN cookie
    assert ids(half_open(line="", closed=9.0), "reset") == []
    reason = ResetEvent(3.0001, "server", SERVER, CLIENT, "TCP_STATE")
    assert ids(half_open(reason), "reset") == []
