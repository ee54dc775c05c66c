"""Which RSTs are looked at, and what resembles a known reason: both sides of each limit."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import pytest

from labctl.judge.causes.reset import AT_ONCE, CLOSED
from labctl.judge.causes.resets import MOST
from labctl.record.events import Event, InjectEvent, ResetEvent, StateEvent, TroubleEvent
from tests.caused import (
    CLIENT,
    LISTEN,
    PROBES,
    SERVER,
    call,
    calls,
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
from tests.resetting import ACTIVE, ANSWER, CLOSES, DATA, LINGERS, accepted, over
from tests.walked import ACK, FIN, RST, SYN, Sent, packet

LITTLE = 5e-4


@pytest.mark.parametrize(("others", "found"), [(MOST - 1, ["reset-linger"]), (MOST, [])])
def test_so_many_of_a_host_are_looked_at(others: int, found: list[str]) -> None:
    """Those of which nobody knows a reason, too."""
    ends = [f"198.18.0.3:{50000 + n}" for n in range(others)]
    unknown = [replace(ACTIVE, t=0.6 + n / 100, target=end) for n, end in enumerate(ends)]
    history = told([*accepted(LINGERS, CLOSES), *over()], [*unknown, *handshake(1.0), ACTIVE])
    assert ids(history, "reset") == found


@pytest.mark.parametrize(
    ("fate", "left", "also"),
    [
        ("", 2.0 + AT_ONCE - LITTLE, False),
        ("", 2.0 + AT_ONCE + 2e-5, False),  # it had arrived a moment after it left
        ("", 2.0 + AT_ONCE + LITTLE, True),
        ("lost", 2.0 + AT_ONCE - LITTLE, True),
    ],
)
def test_what_crossed_a_rst_on_its_way_is_no_new_beginning(
    fate: str, left: float, also: bool
) -> None:
    data = replace(DATA, t=left)
    wire = [replace(ACTIVE, t=2.0, fate=fate), data, replace(ANSWER, t=left + 2 * LITTLE)]
    events = [*accepted(LINGERS, call(2.0001, "server", "close")), *over(2.0), look(4.0, LISTEN)]
    found = ids(told(events, [*handshake(1.0), *wire]), "reset")
    assert found == ["reset-linger", *(["reset-no-socket"] if also else [])]


@pytest.mark.parametrize("between", [[], [Sent(2.99995, SERVER, CLIENT, ACK, 1, 1)]])
@pytest.mark.parametrize("again", [True, False])
def test_a_rst_that_came_first_of_all(between: list[Sent], again: bool) -> None:
    """Of its connection nothing was before it, and what its peer sends afterwards tells."""
    first = replace(ACTIVE, t=2.0)
    wire = [first, replace(DATA, t=2.9999), *between, ANSWER]
    if not again:
        wire = [first, *between, replace(ANSWER, flags=RST | ACK)]
    found = ids(told([look(0.5), look(4.0)], wire))
    assert found == (["reset-no-socket"] if again else [])


def test_only_what_its_peer_itself_sent_shows_that_it_took_no_rst() -> None:
    frame = packet(2.5, CLIENT, SERVER, ACK | 8, (4001, 1001, 11))[16 + 14 :]
    injected = InjectEvent(2.5, "client", b64encode(frame).decode(), 1, 1)
    data = replace(DATA, t=2.5)
    for sent, more, also in (
        (data, [], True),
        (data, [injected], False),
        (replace(data, source=SERVER, target=CLIENT), [], False),
    ):
        events = [*accepted(LINGERS, CLOSES, *more), *over()]
        wire = [*handshake(1.0), replace(ACTIVE, t=2.0), sent, ACTIVE]
        assert ("reset-linger" in ids(told(events, wire), "reset")) is also


@pytest.mark.parametrize(("deaf", "found"), [((), ["reset-crafted"]), (("client",), [])])
def test_a_foreign_rst_is_told_where_it_arrived(deaf: tuple[str, ...], found: list[str]) -> None:
    wire = [*handshake(1.0), Sent(2.0, SERVER, CLIENT, RST, 1, fate="foreign")]
    assert ids(told([*accepted(), look(4.0, LISTEN)], wire, deaf=deaf), "reset") == found


@pytest.mark.parametrize(("flags", "what"), [(ACK | 8, "9 bytes"), (ACK, "ACK"),
                                             (FIN | ACK, "FIN ACK")])  # fmt: skip
def test_what_nobody_had_a_socket_for(flags: int, what: str) -> None:
    data = 9 if flags & 8 else 0
    wire = [Sent(3.0, CLIENT, SERVER, flags, 1, 1, data), replace(ANSWER, t=3.0001)]
    text = only(told([look(0.5), look(4.0)], wire)).text
    assert f"answered {what} from {CLIENT} by an RST" in text


def test_who_listened_and_never_spoke_had_no_socket() -> None:
    wire = [replace(DATA, t=3.0), replace(ANSWER, t=3.0001)]
    assert ids(told([look(0.5, LISTEN), look(4.0, LISTEN)], wire)) == ["reset-no-socket"]


@pytest.mark.parametrize("end", [None, 3.1])
def test_a_socket_that_was_still_there(end: float | None) -> None:
    """Nobody looked for long enough to say that it lived on."""
    line = tcp("ESTAB", SERVER, CLIENT, more="ino:7")
    ends = [*trace(end, "ESTAB", "UNCONN"), look(3.2)] if end else [look(3.1, line)]
    events = [*established(1.0), look(1.5, line), *ends]
    wire = [*handshake(1.0), replace(DATA, t=2.9999), ANSWER]
    assert ids(told(events, wire), "reset") == []


def test_a_rst_of_which_nobody_knows_yet_whether_it_came() -> None:
    """It has taken none if it sends something afterwards."""
    under_way = replace(ACTIVE, t=3.0, fate="lost")
    wire = [*handshake(1.0), under_way, replace(DATA, t=3.05), replace(ANSWER, t=3.0501)]
    events = [*accepted(LINGERS, CLOSES), *trace(3.0, "ESTAB", "UNCONN"), look(3.15, LISTEN)]
    assert ids(told(events, wire), "reset") == ["reset-linger", "reset-no-socket"]
    alone = [*handshake(1.0), under_way, replace(ANSWER, t=3.0501)]
    assert ids(told(events, alone), "reset") == ["reset-linger"]


@pytest.mark.parametrize("host", ["trace", "capture", "ss"])
def test_a_hole_in_any_record_leaves_open_whether_it_had_a_socket(host: str) -> None:
    wire = [replace(DATA, t=3.0), replace(ANSWER, t=3.0001)]
    events = [look(0.5), look(4.0)]
    assert ids(told(events, wire)) == ["reset-no-socket"]
    assert ids(told([*events, TroubleEvent(1.0, "server", host, "lost")], wire)) == []
    assert ids(told(events, wire, [p for p in PROBES if p != "trace"])) == []


# --- Closed by its program ------------------------------------------------------------------------

FINISHED = Sent(2.5, SERVER, CLIENT, FIN | ACK, 1, 1)


@pytest.mark.parametrize(
    ("closed", "ack", "last", "found"),
    [
        (2.5, 2, ANSWER, True),
        (2.5, 1, ANSWER, False),  # what came does not cover the FIN
        (3.0 + CLOSED, 2, ANSWER, True),
        (3.0 + CLOSED + 0.01, 2, ANSWER, False),  # nobody had closed it then
        (3.0, None, ACTIVE, True),
        (2.5, None, ACTIVE, False),  # of its own accord, but not as it was closed
        (3.0, None, ANSWER, False),
    ],
)
def test_when_a_negative_linger2_ends_it(
    closed: float, ack: int | None, last: Sent, found: bool
) -> None:
    events = [
        *accepted(call(1.02, "server", "set TCP_LINGER2 -1"), call(closed, "server", "close")),
        *trace(2.5, "ESTAB", "FIN-WAIT-1"), *over(3.0, "FIN-WAIT-1"),
    ]  # fmt: skip
    covers = [Sent(2.9999, CLIENT, SERVER, ACK, 1, ack)] if ack else []
    wire = [*handshake(1.0), FINISHED, *covers, replace(last, seq=2)]
    assert ids(told(events, wire), "reset") == (["reset-linger"] if found else [])


def test_a_fin_with_data_is_acknowledged_with_it() -> None:
    events = [
        *accepted(call(1.02, "server", "set TCP_LINGER2 -1"), call(2.5, "server", "close")),
        *trace(2.5, "ESTAB", "FIN-WAIT-1"), *over(3.0, "FIN-WAIT-1"),
    ]  # fmt: skip
    for ack, found in ((6, []), (7, ["reset-linger"])):
        covers = Sent(2.9999, CLIENT, SERVER, ACK, 1, ack)
        wire = [*handshake(1.0), replace(FINISHED, data=5), covers, replace(ANSWER, seq=7)]
        assert ids(told(events, wire), "reset") == found


def test_a_fin_of_nobody_s_is_not_linger2() -> None:
    """No call tells of the socket."""
    events = [*established(1.0), look(1.5), *trace(2.5, "ESTAB", "FIN-WAIT-1"),
              *over(3.0, "FIN-WAIT-1")]  # fmt: skip
    covers = Sent(2.9999, CLIENT, SERVER, ACK, 1, 2)
    assert ids(told(events, [*handshake(1.0), FINISHED, covers, replace(ANSWER, seq=2)])) == []


def test_without_a_fin_it_is_not_linger2() -> None:
    events = [*accepted(call(1.02, "server", "set TCP_LINGER2 -1"), CLOSES), *over()]
    assert ids(told(events, [*handshake(1.0), ACTIVE]), "reset") == []


@pytest.mark.parametrize(
    ("count", "words"), [(0, "data was"), (1, "1 byte was"), (2, "2 bytes were")]
)
def test_how_many_bytes_were_unread(count: int, words: str) -> None:
    line = tcp("ESTAB", SERVER, CLIENT, recv_q=count, more="ino:7")
    shown = look(2.5, LISTEN, line, TcpExtTCPAbortOnClose=1)
    cause = only(told([*accepted(shown, CLOSES), *over()], [*handshake(1.0), DATA, ACTIVE]))
    assert f": {words} unread when the socket closed" in cause.text
    assert cause.text.endswith("ended by an RST and not by a FIN")


OTHER = "198.18.0.3:40001"


@pytest.mark.parametrize(
    ("known", "read", "count", "sure", "found"),
    [
        (True, False, 1, False, True),
        (True, False, 0, False, False),
        (True, True, 2, False, False),  # a recv may have read them
        (False, False, 2, False, False),  # whose socket it was, nobody knows
        (False, False, 2, True, True),
    ],
)
def test_if_the_count_is_not_enough_a_look_must_show_the_data(
    known: bool, read: bool, count: int, sure: bool, found: bool
) -> None:
    """Not `sure`: it is of one RST of two."""
    line = tcp("ESTAB", SERVER, CLIENT, recv_q=count, more="ino:7")
    shown = look(2.5, LISTEN, line, TcpExtTCPAbortOnClose=1)
    reads = [call(2.7, "server", "recv 1", result=1)] if read else []
    events = [*accepted(CLOSES, *reads)] if known else [*listened(0.502), *established(1.0)]
    wire = [*handshake(1.0), DATA, ACTIVE]
    if not sure:
        events += [*established(1.2, OTHER), *trace(3.1, "ESTAB", "UNCONN", ends=(SERVER, OTHER))]
        wire += [*handshake(1.2, OTHER), replace(ACTIVE, t=3.1, target=OTHER)]
    causes = said(told([*events, shown, *over()], wire), "reset-unread")
    assert [c.connection for c in causes] == ([f"{SERVER} -> {CLIENT}"] if found else [])


@pytest.mark.parametrize(
    ("gave_up", "others", "reason", "last", "found"),
    [
        (1, 0, None, ACTIVE, 1),
        (1, 1, None, ACTIVE, 0),  # one of two RSTs, and nobody knows which
        (2, 1, None, ACTIVE, 2),
        (1, 1, "TCP_ABORT_ON_MEMORY", ACTIVE, 1),
        (0, 0, "TCP_ABORT_ON_MEMORY", ACTIVE, 1),
        (0, 0, None, ACTIVE, 0),
        (1, 0, None, ANSWER, 0),
        (1, 0, "TCP_ABORT_ON_MEMORY", ANSWER, 0),
    ],
)
def test_orphans_are_counted(
    gave_up: int, others: int, reason: str | None, last: Sent, found: int
) -> None:
    events = [
        *accepted(), *trace(2.5, "ESTAB", "FIN-WAIT-1"), *over(3.0, "FIN-WAIT-1"),
        look(4.5, LISTEN, TcpExtTCPAbortOnMemory=gave_up),
    ]  # fmt: skip
    if reason:
        events.append(ResetEvent(3.0, "server", SERVER, CLIENT, reason))
    wire = [*handshake(1.0), replace(FINISHED, fate="lost"), replace(last, seq=2)]
    for n in range(others):
        end = f"198.18.0.3:{50000 + n}"
        events += established(1.2, end) + trace(3.1, "ESTAB", "UNCONN", ends=(SERVER, end))
        wire += [*handshake(1.2, end), replace(ACTIVE, t=3.1, target=end)]
    assert ids(told(events, wire), "orphans") == ["orphans-limit"] * found


def test_the_count_of_orphans_is_evidence_where_there_is_one() -> None:
    events = [*accepted(), *trace(2.5, "ESTAB", "FIN-WAIT-1"), *over(3.0, "FIN-WAIT-1")]
    wire = [*handshake(1.0), replace(FINISHED, fate="lost"), replace(ACTIVE, seq=2)]
    reason = ResetEvent(3.0, "server", SERVER, CLIENT, "TCP_ABORT_ON_MEMORY")
    for gave_up, evidence in ((2, "TcpExtTCPAbortOnMemory: 2"), (0, "the kernel's reason: ")):
        shown = look(4.5, LISTEN, TcpExtTCPAbortOnMemory=gave_up)
        last = only(told([*events, shown, reason], wire), "orphans").evidence[-1]
        assert last.startswith(evidence)


# --- Ended by another -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "process", "last", "found"),
    [
        (3.0 - CLOSED, "server", ACTIVE, False),
        (3.0 - CLOSED + 0.01, "server", ACTIVE, True),
        (3.0 + CLOSED - 0.01, "server", ACTIVE, True),
        (3.0 + CLOSED, "server", ACTIVE, False),
        (3.0, "server", ANSWER, False),
        (3.0, "other", ACTIVE, False),  # another process does so at that moment
    ],
)
def test_a_disconnect_at_that_moment(at: float, process: str, last: Sent, found: bool) -> None:
    others = calls(0.2, "other", "socket", "server")
    gone = replace(call(at, process, "connect none", "server"), name="disconnect")
    history = told([*accepted(gone), *others, *over()], [*handshake(1.0), last])
    assert ids(history, "reset-by") == (["reset-by-close"] if found else [])


@pytest.mark.parametrize(
    ("at", "process", "until", "found"),
    [
        (3.5, "server", 4.0, True),
        (3.0, "server", 4.0, True),
        (2.0, "server", 4.0, False),  # an error of before
        (3.5, "other", 4.0, False),
        (3.1, "server", 3.0 + CLOSED - 0.01, False),  # who closes it may not have been told of yet
        (3.1, "server", 3.0 + CLOSED, True),
    ],
)
def test_the_next_call_tells_that_something_else_ended_it(
    at: float, process: str, until: float, found: bool
) -> None:
    fails = call(at, process, "recv", "server", errno="ECONNABORTED", error="it was")
    ends = [*trace(3.0, "ESTAB", "UNCONN"), look(until, LISTEN)]
    events = [*accepted(fails), *calls(0.2, "other", "socket", "server"), *ends]
    history = told(events, [*handshake(1.0), ACTIVE])
    assert ids(history, "reset-by") == (["reset-by-close"] if found else [])
    assert ids(told(events, [*handshake(1.0), ANSWER]), "reset-by") == []


# --- Its listener ---------------------------------------------------------------------------------


def queued(*more: Event) -> list[Event]:
    return [
        *established(1.0), look(1.5, LISTEN, tcp("ESTAB", SERVER, CLIENT, more="ino:0")), *more,
        *trace(3.0, "ESTAB", "UNCONN"),
        *trace(3.0001, "ESTAB", "UNCONN", ends=(CLIENT, SERVER)), look(3.3), look(4.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("apart", "called", "traced"),
    [(-CLOSED - 0.01, False, False), (-CLOSED, False, True), (-CLOSED + 0.01, True, True),
     (CLOSED - 0.01, True, True), (CLOSED, False, True), (CLOSED + 0.01, False, False)],
)  # fmt: skip
def test_a_listener_that_ended_at_that_moment(apart: float, called: bool, traced: bool) -> None:
    """As its call tells, or the trace."""
    serves = calls(0.5, "server", "socket; bind :8000; listen 5")
    closed = [*serves, *listened(0.502), call(3.0 + apart, "server", "close listener")]
    wire = [*handshake(1.0), ACTIVE]
    queue = ["reset-queue"]
    assert ids(told(queued(*closed), wire), "reset") == (queue if called else [])
    ended = queued(*listened(0.502, 3.0 + apart))
    assert ids(told(ended, wire), "reset") == (queue if traced else [])


@pytest.mark.parametrize(
    "others",
    [
        calls(0.5, "other", "socket; bind :8001; listen 5", "server"),  # of another port
        calls(0.5, "other", "socket; bind :8000; listen 5", "client"),  # of another host
        calls(2.997, "other", "socket; bind :8000; listen 5", "server"),  # not before the RST
    ],
)
def test_another_listener_that_ended_then(others: list[Event]) -> None:
    closes = call(3.1, "other", "close listener", others[0].host)  # type: ignore[attr-defined]
    events = queued(*listened(0.502), *others, closes)
    assert ids(told(events, [*handshake(1.0), ACTIVE]), "reset") == []


def test_a_listener_of_another_port_that_ended_then() -> None:
    other = [
        StateEvent(t, "server", "0.0.0.0:8001", "0.0.0.0:0", *states)
        for t, states in ((0.5, ("UNCONN", "LISTEN")), (3.0, ("LISTEN", "UNCONN")))
    ]
    seen = look(1.7, LISTEN, tcp("LISTEN", ":8001", more="ino:2"))  # else it would be a stranger's
    for local, found in (("8001", []), ("8000", ["reset-queue"])):
        mine = [replace(each, local=f"0.0.0.0:{local}") for each in other]
        begun = listened(0.502) if local == "8001" else []
        events = queued(*begun, *mine, seen)
        assert ids(told(events, [*handshake(1.0), ACTIVE]), "reset") == found


def test_what_waited_sends_no_fin_and_answers_nothing() -> None:
    events = queued(*listened(0.502, 3.0))
    wire = [*handshake(1.0), FINISHED]
    assert ids(told(events, [*handshake(1.0), ACTIVE]), "reset") == ["reset-queue"]
    assert ids(told(events, [*wire, replace(ACTIVE, seq=2)]), "reset") == []
    assert ids(told(events, [*handshake(1.0), ANSWER]), "reset") == []


def test_without_a_count_there_was_no_orphan_too_many() -> None:
    """Also if of its connection only the RST was captured."""
    events = [*established(1.0), look(1.5), *over(), look(4.5, TcpExtTCPAbortOnMemory=0)]
    assert ids(told(events, [ACTIVE])) == []


def test_a_refusal_has_the_kernel_s_reason_where_it_is_known() -> None:
    wire = [Sent(3.0, CLIENT, SERVER, SYN), Sent(3.0001, SERVER, CLIENT, RST | ACK, 0, 1)]
    events: list[Event] = [look(0.5), look(9.0)]
    assert len(only(told(events, wire), "connect-refused").evidence) == 2
    why = ResetEvent(3.0001, "server", SERVER, CLIENT, "NO_SOCKET")
    cause = only(told([*events, why], wire), "connect-refused")
    assert cause.evidence[2:] == ("the kernel's reason: NO_SOCKET",)
