"""Ports that ran out, and those that an old connection has: who holds them, of which range."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document
from labctl.record.events import StepEvent
from labctl.record.history import History
from tests.caused import CLIENT, SERVER, bind_fails, call, calls, handshake, ids, look, only, told
from tests.fake import tcp

NO_PORT: dict[str, Any] = {"errno": "EADDRNOTAVAIL", "error": "Cannot assign requested address"}
FAR = "198.18.0.2:8000"


def gone(port: int, state: str = "TIME-WAIT", remote: str = FAR, local: str = "198.18.0.3") -> str:
    return tcp(state, f"{local}:{port}", remote)


def refused(*lines: str, texts: str = "socket", connect: str = "connect server:8000",
            at: float = 3.1) -> History:  # fmt: skip
    events = calls(3.0, "client", texts)
    events[-1:] = [*events[-1:], call(3.05, "client", connect, **NO_PORT)]
    return told([*events, look(at, *lines, host="client")])


def test_a_connect_without_a_port_names_who_holds_them_for_that_place() -> None:
    other = gone(40002, remote="198.18.0.4:8000")
    cause = only(refused(gone(40000), gone(40001, "ESTAB"), other))
    assert (cause.id, cause.host, cause.certain) == ("ports-exhausted", "client", True)
    assert "held: 2 (1 TIME-WAIT, 1 ESTAB; 2 to 198.18.0.2:8000)" in cause.text
    assert "no port of net.ipv4.ip_local_port_range is free for server:8000" in cause.text


@pytest.mark.parametrize(("at", "named"), [(3.02, True), (4.04, True), (4.06, False)])
def test_a_look_within_a_second_tells_or_the_last_before(at: float, named: bool) -> None:
    assert bool(ids(refused(gone(40000), at=at))) is named


def ranged(before: str, steps: str = "[{note: nothing}]") -> Scenario:
    """A scenario that sets the client's range, and a later step that may set it again."""
    text = (
        "title: few ports\nhosts: {server: {}, client: "
        f"{{sysctls: {{net.ipv4.ip_local_port_range: {before}}}}}}}\nsteps: {steps}\n"
    )
    return load_document(Document("few", text), text, "few", {})[0]


@pytest.mark.parametrize(
    ("reserved", "words"),
    [
        ("40001-40003,40005,39000-40000", "; reserved: 5 (net.ipv4.ip_local_reserved_ports, "),
        ("9000", ""),
    ],
)
def test_reserved_ports_are_told(reserved: str, words: str) -> None:
    more = f'40000 40005, net.ipv4.ip_local_reserved_ports: "{reserved}"'
    text = only(refused(gone(40004)), "", ranged(more)).text
    assert ("reserved" in text, words in text) == (bool(words), True)


def test_the_range_has_the_numbers_that_were_set_last() -> None:
    history = refused(gone(40000), gone(40001))
    cause = only(history, "", ranged("40000 40001"))
    assert "(40000 to 40001: 2 ports) is free for server:8000: held: 2 (2 TIME-WAIT" in cause.text
    sets = "[sysctl: {client: {net.ipv4.ip_local_port_range: 40001 40001}}]"
    again = ranged("40000 40001", sets)
    events = [*history.events]
    t = events[-1].t - 1.0
    failed = StepEvent(t, 0, "end", "sysctl", outcome="failed", verb="sysctl")
    events.insert(3, failed)
    unset = History(events, history.captures)
    assert "(40000 to 40001: 2 ports) is free" in only(unset, "", again).text
    events[3] = replace(failed, outcome="done")
    history = History(events, history.captures)
    assert (
        "(40001 to 40001: 1 port) is free for server:8000: held: 1 ("
        in only(history, "", again).text
    )


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("40001 40009", "(40001 to 40001: 1 port) within the socket's own IP_LOCAL_PORT_RANGE"),
        ("61000 61009", "(40000 to 40001: 2 ports), which has none of the socket's own IP_LOCAL"),
    ],
)
def test_a_range_of_the_socket_s_own_only_chooses_from_the_host_s(own: str, words: str) -> None:
    history = refused(gone(40000), gone(40001), texts=f"socket; set IP_LOCAL_PORT_RANGE {own}")
    assert words in only(history, "", ranged("40000 40001")).text
    assert "free for" in only(history).text and "40000 to" not in only(history).text


def test_a_connect_that_goes_on_is_understood() -> None:
    assert ids(refused(gone(40000), connect="connect server:8000 || continue")) == [
        "ports-exhausted"
    ]


@pytest.mark.parametrize(
    "history",
    [
        refused(gone(40000, remote="198.18.0.4:8000")), refused(),
        refused(gone(40000), at=9.0), refused(gone(40000), connect="connect [fd00::2]:8000"),
    ],
)  # fmt: skip
def test_without_such_connections_nothing_is_said(history: History) -> None:
    assert ids(history) == []


def test_a_bound_port_that_the_old_connection_has() -> None:
    bound = "socket; bind client:40000"
    cause = only(refused(gone(40000), gone(40001), texts=bound))
    assert (cause.id, cause.connection) == ("connect-in-use", f"{CLIENT} -> {SERVER}")
    assert "TIME-WAIT 198.18.0.3:40000" in cause.text
    assert "tcp_timestamps" in cause.cure
    assert "tcp_timestamps" not in only(refused(gone(40000, "ESTAB"), texts=bound)).cure
    assert ids(refused(gone(40001), texts=bound)) == []
    assert ids(refused(gone(40000, local="198.18.0.9"), texts=bound)) == []


def test_a_port_that_bind_has_chosen_is_not_exhaustion() -> None:
    assert ids(refused(gone(40000), texts="socket; bind client:0")) == ["connect-in-use"]


def test_a_bind_to_port_0_counts_what_went_out_from_that_address() -> None:
    lines = [
        gone(40000), gone(40001, remote="198.18.0.4:8000"), gone(40002, local="198.18.0.9"),
        tcp("TIME-WAIT", "198.18.0.3:8000", "198.18.0.2:50000"), tcp("LISTEN", ":8000"),
    ]  # fmt: skip
    wire = handshake(1.0, "198.18.0.2:50000", "198.18.0.3:8000")
    events = bind_fails(3.0, "new", *lines, texts="socket; bind client:0", host="client")
    cause = only(told(events, wire), "ports")
    assert "free for 198.18.0.3: held: 2 (2 TIME-WAIT; 1 to" in cause.text
    assert "one for all destinations" in cause.text
    assert "IP_BIND_ADDRESS_NO_PORT" in cause.cure


def test_a_bind_chooses_of_the_socket_s_own_range_too() -> None:
    texts = "socket; set IP_LOCAL_PORT_RANGE 40000 40000; bind :0"
    events = bind_fails(3.0, "new", gone(40000), gone(40001), texts=texts, host="client")
    text = only(told(events), "ports").text
    assert "of the socket's own IP_LOCAL_PORT_RANGE (40000 to 40000) is free for any" in text
    assert "held: 1 (1 TIME-WAIT" in text
