"""Why a connection was refused, and why a connect had no way: the right reason, or silence."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest

from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.record.events import Event, LossEvent, ResetEvent, StepEvent, TroubleEvent
from tests.caused import (
    CLIENT,
    LISTEN,
    SERVER,
    call,
    calls,
    established,
    handshake,
    ids,
    listened,
    look,
    only,
    told,
    trace,
)
from tests.fake import tcp
from tests.walked import ACK, RST, SYN, Sent

# --- Refused by an RST ----------------------------------------------------------------------------

ASKS = [Sent(3.0, CLIENT, SERVER, SYN), Sent(3.0001, SERVER, CLIENT, RST | ACK, 0, 1)]


def test_a_connection_is_refused_where_nobody_listens() -> None:
    cause = only(told([look(0.5), look(4.0)], ASKS))
    assert (cause.id, cause.host, cause.connection) == (
        "connect-refused", "server", f"{CLIENT} -> {SERVER}",
    )  # fmt: skip
    assert "nobody listened on port 8000 there" in cause.text
    gone = ResetEvent(3.0001, "server", SERVER, CLIENT, "NO_SOCKET")
    closing = [look(0.5), look(2.99, LISTEN), look(3.2), gone]
    assert ids(told(closing, ASKS)) == ["connect-refused"]


@pytest.mark.parametrize(
    "events",
    [
        [look(0.5), look(2.99, LISTEN), look(3.2)],
        [look(0.5, tcp("LISTEN", "127.0.0.1:8000")), look(4.0)],
        [look(4.0, host="client")],
        [look(0.5), TroubleEvent(1.0, "server", "ss", "it broke"), look(4.0)],
    ],
)  # fmt: skip
def test_a_refusal_in_spite_of_a_listener_or_unseen_is_not_explained(events: list[Event]) -> None:
    assert ids(told(events, ASKS)) == []


def test_a_listener_that_takes_no_connection_to_that_address() -> None:
    """Somebody has that port, and "start the server" would be no help."""
    for local, peer in (("127.0.0.1:8000", "0.0.0.0:*"), ("[::]:8000", "[::]:*")):
        line = tcp("LISTEN", local, peer, more="ino:1")
        cause = only(told([look(0.5, line), look(4.0, line)], ASKS))
        assert cause.id == "connect-refused"
        assert f"LISTEN {local}" in cause.text
        assert "takes no connections to 198.18.0.2" in cause.text
        assert cause.cure.startswith("bind the server to that address or to the wildcard")


def test_a_rst_in_spite_of_a_listener_is_a_firewall_s() -> None:
    for line in (LISTEN, tcp("LISTEN", "*:8000", "*:*"), tcp("LISTEN", SERVER)):
        cause = only(told([look(0.5, line), look(4.0, line)], ASKS))
        assert (cause.id, "a firewall of server does" in cause.text) == ("connect-refused", True)
    another = tcp("LISTEN", ":8000", send_q=5, more="ino:2")  # which began meanwhile
    assert ids(told([look(0.5, LISTEN), look(4.0, another)], ASKS)) == []
    denied = ResetEvent(3.0001, "server", SERVER, CLIENT, "NO_SOCKET")
    assert ids(told([look(0.5, LISTEN), look(4.0, LISTEN), denied], ASKS)) == []


def test_a_listener_of_another_time_does_not_count() -> None:
    assert ids(told([look(0.5), *listened(3.5), look(4.0, LISTEN)], ASKS)) == ["connect-refused"]
    gone = ResetEvent(3.0001, "server", SERVER, CLIENT, "NO_SOCKET")
    for reason in ([], [gone]):
        ended = [look(0.5), *listened(1.0, 2.0), look(4.0), *reason]
        assert ids(told(ended, ASKS)) == ["connect-refused"]


# --- Without an answer, and no call says so -------------------------------------------------------

LOST = [Sent(t, CLIENT, SERVER, SYN, fate="lost") for t in (1.0, 2.0)]
ASKING = trace(1.0, "UNCONN", "SYN-SENT", ends=(CLIENT, SERVER))


def test_a_connect_that_its_program_has_not_waited_for() -> None:
    gone = trace(2.9, "SYN-SENT", "UNCONN", ends=(CLIENT, SERVER))
    for events, words in (
        (ASKING, "client has had no answer"),
        ([*ASKING, *gone], "client had no"),
    ):
        cause = only(told([*events, look(3.0)], LOST))
        assert (cause.id, cause.host) == ("no-answer", "client")
        assert words in cause.text and "has sent it 2 times; 2 lost on their way" in cause.text
    answer = Sent(2.5, SERVER, CLIENT, SYN | ACK, 0, 1)
    assert ids(told([*ASKING, look(3.0)], [*LOST, answer])) == []
    assert ids(told([*ASKING, look(1.5)], LOST[:1])) == []
    soon = [LOST[0], replace(LOST[1], t=1.4)]
    for until, told_of in ((1.9, []), (2.0, ["no-answer"])):
        assert ids(told([*ASKING, look(until)], soon)) == told_of
    late = call(2.8, "client", "connect server:8000", errno="EINTR", error="", local=CLIENT)
    assert ids(told([*ASKING, late, look(3.0)], LOST)) == []
    goes_on = replace(late, t=1.1, errno="EINPROGRESS")
    assert ids(told([*ASKING, goes_on, look(3.0)], LOST)) == ["no-answer"]


@pytest.mark.parametrize(("until", "told_of"), [(1.9, False), (2.0, True)])
def test_a_connect_of_a_program_whose_calls_nobody_sees(until: float, told_of: bool) -> None:
    unseen = TroubleEvent(0.5, "client", "calls", "no tracing here")
    assert ids(told([unseen, look(until)], LOST[:1])) == (["no-answer"] if told_of else [])
    assert len(only(told([unseen, look(9.0)], LOST)).evidence) == len(LOST)


def test_data_that_still_has_no_answer() -> None:
    data = [Sent(t, CLIENT, SERVER, ACK | 8, 1, 1, data=9, fate="lost") for t in (2.0, 2.4, 3.2)]
    wire = [*handshake(1.0), *data]
    cause = only(told([*established(1.0), look(3.5)], wire))
    assert (cause.id, "no answer to 9 bytes of" in cause.text) == ("no-answer", True)
    over = trace(3.4, "ESTAB", "UNCONN", ends=(CLIENT, SERVER))  # why, other rules say
    assert ids(told([*established(1.0), *over, look(3.5)], wire)) == []
    late = Sent(3.3, SERVER, CLIENT, ACK, 1, 10)
    assert ids(told([*established(1.0), look(3.5)], [*wire, late])) == []


# --- Refused by ICMP, or without a way ------------------------------------------------------------


def fails(errno: str, connect: str = "connect server:8000", kind: str = "tcp") -> list[Event]:
    """A connect fails so, and no RST has come."""
    error: dict[str, Any] = {"errno": errno, "error": errno}
    return [*calls(0.9, "client", f"socket {kind}"), call(4.0, "client", connect, **error)]


def counted(host: str = "client", /, **counters: int) -> Event:
    grown: dict[str, Any] = {**counters}
    return look(4.5, host=host, **grown)


GOT, SENT = {"IcmpInDestUnreachs": 1}, {"IcmpOutDestUnreachs": 1}
STEPS = "title: x\nhosts: {client: {}, server: {}}\nsteps: ["
TRIES = [Sent(t, CLIENT, SERVER, SYN) for t in (1.0, 2.0)]


def test_a_firewall_that_answers_by_icmp() -> None:
    for errno in ("ECONNREFUSED", "EHOSTUNREACH"):
        known = [counted(**GOT), counted("server", **SENT)]
        cause = only(told([*fails(errno), *known], TRIES))
        assert (cause.id, cause.host, cause.connection) == (
            "connect-refused", "client", f"{CLIENT} -> {SERVER}",
        )  # fmt: skip
        assert "server answered its SYN by an ICMP error, as a firewall does" in cause.text
        assert ("or a router that finds no way on" in cause.text) is (errno == "EHOSTUNREACH")
    unknown = only(told([*fails("ECONNREFUSED"), counted(**GOT)], TRIES))
    assert "a host on the way answered" in unknown.text


def test_a_step_that_refuses_by_icmp() -> None:
    refuses = "{reject: {to: server, flags: SYN, with: port-unreachable}}"
    (scenario,) = load_document(Document("few", STEPS + refuses + "]\n"), "", "few", {})
    frame = b64encode(replace(TRIES[0], seq=4000).frame()[14:]).decode()
    history = told([*fails("ECONNREFUSED"), LossEvent(1.00005, "server", frame, 0)], TRIES[:1])
    cause = only(history, "connect-refused", scenario)
    assert "a step refused its SYN by ICMP (port-unreachable)" in cause.text

    sends = "{inject: {from: server, to: client, icmp: port-unreachable}}"
    (scenario,) = load_document(Document("few", STEPS + sends + "]\n"), "", "few", {})
    step = StepEvent(1.5, 0, "end", "inject", outcome="done", verb="inject")
    cause = only(told([*fails("ECONNREFUSED"), counted(**GOT), step], TRIES), "connect", scenario)
    assert "a step sent an ICMP error (port-unreachable)" in cause.text


def test_nobody_answers_for_an_address() -> None:
    """A host tells itself by ICMP that it has found no neighbour."""
    cause = only(told([*fails("EHOSTUNREACH"), counted(**GOT, **SENT)]))
    assert (cause.id, cause.certain) == ("no-answer", True)
    assert "nothing of it left client: nobody answers for 198.18.0.2" in cause.text
    six = fails("EHOSTUNREACH", "connect server.v6:8000", "tcp6")
    own = {"Icmp6InDestUnreachs": 1, "Icmp6OutDestUnreachs": 1}
    assert "neighbour discovery" in only(told([*six, counted(**own)])).text
    doubt = only(told([*fails("ETIMEDOUT"), counted()]))
    assert (doubt.id, doubt.certain) == ("no-answer", False)
    assert "or a rule of client loses what it sends" in doubt.text


def test_who_is_cut_off_does_not_answer_for_its_address() -> None:
    (scenario,) = load_document(Document("few", f"{STEPS}{{cut: server}}]\n"), "", "few", {})
    cut = StepEvent(1.0, 0, "end", "cut server", outcome="done", verb="cut", moment=1.0)
    cause = only(told([cut, *fails("EHOSTUNREACH"), counted(**GOT, **SENT)]), "", scenario)
    assert "server has been cut off since 1.000 s" in cause.text
    for at, words in ((0.5, "2 lost on their way: server was cut off at 0.500 s"), (1.5, "")):
        silent = only(told([replace(cut, t=at, moment=at), *ASKING, look(3.0)], LOST), "", scenario)
        assert ("cut off" in silent.text, words in silent.text) == (bool(words), True)


def test_whose_icmp_error_it_was_may_not_be_known() -> None:
    other = {"IcmpInDestUnreachs": 2, "IcmpOutDestUnreachs": 1}
    for counters, told_of in (({**GOT, **SENT}, ["no-answer"]), (other, [])):
        assert ids(told([*fails("EHOSTUNREACH"), counted(**counters)], TRIES)) == told_of


def test_no_route() -> None:
    cause = only(told([*fails("ENETUNREACH"), counted(IpOutNoRoutes=1)]))
    assert (cause.id, "client has no route to 198.18.0.2" in cause.text) == ("no-route", True)
    assert ids(told([*fails("ENETUNREACH"), counted()])) == []


def test_its_own_firewall_refuses() -> None:
    cause = only(told([*fails("ECONNREFUSED"), counted(**GOT, **SENT)]))
    assert "a rule of client itself refuses what it sends" in cause.text


def test_a_connect_that_timed_out_was_not_refused() -> None:
    assert ids(told([*fails("ETIMEDOUT"), counted(**GOT)], TRIES)) == ["no-answer"]


@pytest.mark.parametrize(
    ("events", "sent"),
    [
        (fails("ECONNREFUSED"), TRIES),  # nothing tells of an ICMP error
        ([*fails("ECONNREFUSED"), counted(**GOT, **SENT)], TRIES),  # nor whose it was
        ([*fails("ECONNREFUSED"), counted(**GOT)], []),
        ([*fails("EHOSTUNREACH"), counted(**GOT),
          TroubleEvent(0.5, "client", "capture", "lost 3")], TRIES),
        ([*fails("ECONNREFUSED"), counted(**GOT)],  # of two connects one
         [*TRIES, Sent(1.5, "198.18.0.3:40001", SERVER, SYN)]),
    ],
)  # fmt: skip
def test_what_nothing_tells_is_not_said(events: list[Event], sent: list[Sent]) -> None:
    assert ids(told(events, sent), "connect") == []


def test_an_rst_that_refused_is_told_once() -> None:
    wire = [*TRIES[:1], Sent(1.0001, SERVER, CLIENT, RST | ACK, 0, 1)]
    events = [look(0.5), *fails("ECONNREFUSED"), counted(**GOT), look(5.0)]
    assert ids(told(events, wire)) == ["connect-refused"]
