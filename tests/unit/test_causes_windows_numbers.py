"""Which numbers fit a connection, and which answer belongs to a segment: both sides of limits."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest

from labctl.judge.causes import windows
from labctl.judge.causes.cause import Scene
from labctl.judge.causes.windows import AT_ONCE, MOST, _apart, _at_once, _due, _kind, _Said
from labctl.probes.observations import Origin
from labctl.record.events import Event, FateEvent, InjectEvent, TroubleEvent
from labctl.record.history import History
from tests.caused import (
    CLIENT,
    LISTEN,
    SERVER,
    established,
    handshake,
    ids,
    look,
    only,
    told,
    trace,
)
from tests.fake import tcp
from tests.reported import segment
from tests.walked import ACK, RST, Sent, packet

ALL, HALF = 2**32, 2**31


@pytest.mark.parametrize(
    ("before", "text", "after"),
    [
        (0, "client SYN 0 0", 1),
        (0, "client SYN ACK 0 1", 1),
        (5, "client FIN ACK 5 1 len 3", 9),
        (10, "client ACK 8 1 len 1", 10),  # it comes late
        (10, "client ACK 10 1 len 1", 11),
        (10, f"client ACK 10 1 len {HALF - 1}", 10 + HALF - 1),
        (10, f"client ACK 10 1 len {HALF}", 10),
        (ALL - 2, "client ACK 1 1 len 2", 3),  # numbers begin again
    ],
)
def test_which_number_follows(before: int, text: str, after: int) -> None:
    said = _Said(following=before)
    said.add(segment(1.0, text))
    assert said.following == after


def test_what_an_end_has_acknowledged_and_its_largest_window() -> None:
    said = _Said()
    assert (said.following, said.acked, said.window) == (0, 0, 0)
    said.add(segment(1.0, "client SYN 0 7"))
    assert (said.acked, said.window) == (0, 0)
    for text, window, scale, expected in (
        ("client ACK 1 8", 100, 2, (8, 400)),
        ("client ACK 1 9", 50, 2, (9, 400)),
        ("client ACK 1 10", 1, None, (10, 1_073_741_824)),
    ):
        said.add(segment(1.0, text, window=window, origin=Origin(scale=scale)))
        assert (said.acked, said.window) == expected


@pytest.mark.parametrize(
    ("acked", "window", "late"), [(8, 400, 7), (401, 400, 400), (402, 400, 400), (400, 400, 399)]
)
def test_how_far_back_it_may_acknowledge(acked: int, window: int, late: int) -> None:
    assert _Said(acked=acked, window=window).late == late


MINE, THEIRS = _Said(following=10, acked=5000, window=1000), _Said(following=5000)


@pytest.mark.parametrize(
    ("seq", "ack", "kind"),
    [
        (10, 5000, None),
        (10, 5001, "ACK"),
        (10, 5000 + HALF - 1, "ACK"),
        (10, 5000 + HALF, None),
        (10, 4000, None),
        (10, 3999, "OLD"),
        (11, 3999, "OLD"),
        (9, 3999, None),
        (10 + HALF - 1, 3999, "OLD"),
        (10 + HALF, 3999, None),
        (10, 5001 - HALF + ALL, "OLD"),
    ],
)
def test_which_acknowledgement_does_not_fit(seq: int, ack: int, kind: str | None) -> None:
    found = segment(1.0, f"client ACK {seq} {ack}")
    said = {found.source: MINE, found.target: THEIRS}
    assert _kind(found, said) == kind
    assert _kind(found, {found.target: THEIRS}) == (kind if kind == "ACK" else None)
    assert _kind(found, {found.source: MINE}) is None
    assert _kind(found._replace(retransmitted=True), said) is None
    assert _kind(found._replace(flags=("PSH",)), said) is None
    assert _kind(found._replace(flags=("RST", "ACK")), said) == "RST"
    assert _kind(found._replace(flags=("SYN",)), {}) == "SYN"


def test_an_acknowledgement_where_numbers_begin_again() -> None:
    found = segment(1.0, "client ACK 10 0")
    ends = found.source, found.target
    said = dict(zip(ends, (MINE, _Said(following=ALL - 1)), strict=True))
    assert _kind(found, said) == "ACK"


@pytest.mark.parametrize(
    ("number", "due", "words"),
    [(10, 5, "5 after"), (5, 10, "5 before"), (2, ALL - 3, "5 after"),
     (HALF - 1, 0, "2147483647 after"), (HALF, 0, "2147483648 before")],
)  # fmt: skip
def test_how_far_apart_numbers_are(number: int, due: int, words: str) -> None:
    assert _apart(number, due) == words


# --- What a RST should have had -------------------------------------------------------------------

CAME = 2.0
ODD = segment(1.9, "client RST 50 0", CAME)
SAID = segment(1.0, "client ACK 1 1 len 10", 1.1)
CONFIRMED = segment(1.2, "server ACK 1 11", 1.3)


@pytest.mark.parametrize(
    ("more", "due"),
    [
        ({}, 11),
        ({"source": "10.0.0.9:1"}, None),  # another connection's
        ({"sender": "client"}, None),  # in its name alone
        ({"flags": ("PSH",)}, None),
        ({"flags": ("RST", "ACK")}, None),
        ({"crafted": True}, None),
        ({"t": CAME - 1e-3, "arrived": CAME}, 11),
        ({"t": CAME, "arrived": CAME}, None),
        ({"ack": 10}, None),
    ],
)
def test_what_was_due_had_been_acknowledged(more: dict[str, Any], due: int | None) -> None:
    assert _due([SAID, CONFIRMED._replace(**more)], ODD) == due


@pytest.mark.parametrize(
    ("more", "due"),
    [
        ({}, None),  # it had come, and is not acknowledged yet
        ({"source": "10.0.0.9:1"}, 11),
        ({"flags": ("RST",)}, 11),
        ({"crafted": True}, 11),
        ({"arrived": None}, 11),
        ({"arrived": CAME}, 11),
        ({"arrived": CAME - 1e-3}, None),
    ],
)
def test_and_it_was_all_that_had_come(more: dict[str, Any], due: int | None) -> None:
    another = segment(1.5, "client ACK 11 1 len 5", 1.6)._replace(**more)
    assert _due([SAID, CONFIRMED, another], ODD) == due


def test_a_syn_and_a_fin_take_a_number_each() -> None:
    syn, fin = segment(1.0, "client SYN 0 0", 1.1), segment(1.4, "client FIN ACK 11 1", 1.5)
    assert _due([syn, segment(1.2, "server SYN ACK 0 1", 1.3)], ODD) == 1
    assert _due([SAID, CONFIRMED, fin, segment(1.6, "server ACK 1 12", 1.7)], ODD) == 12


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, True),
        ({"source": "10.0.0.9:1"}, False),
        ({"sender": "client"}, False),
        ({"flags": ("PSH", "ACK")}, False),
        ({"length": 1}, False),
        ({"crafted": True}, False),
        ({"t": CAME, "arrived": CAME}, True),
        ({"t": CAME - 1e-6}, False),
        ({"t": CAME + AT_ONCE, "arrived": CAME + 1}, False),
    ],
)
def test_which_ack_is_an_answer(more: dict[str, Any], found: bool) -> None:
    answer = segment(CAME + 0.001, "server ACK 1 11", CAME + 0.002)._replace(**more)
    assert _at_once(ODD, [SAID, answer], "server") == (answer if found else None)


# --- In a history ---------------------------------------------------------------------------------

OPEN = tcp("ESTAB", SERVER, CLIENT, more="ino:7")
LATE = Sent(2.0, CLIENT, SERVER, RST, 101)
ANSWER = Sent(2.0001, SERVER, CLIENT, ACK, 1, 1)
CHALLENGED = "answered it by a challenge ACK"


def lived(*sent: Sent, counted: int = 1, events: tuple[Event, ...] = ()) -> History:
    """The connection is there to the end, and the kernel has counted challenge ACKs."""
    seen = [look(1.5, LISTEN, OPEN), look(5.0, LISTEN, OPEN, TcpExtTCPChallengeACK=counted)]
    return told([*established(1.0), *seen, *events], [*handshake(1.0), *sent])


def test_of_each_kind_the_first_of_a_connection_is_told() -> None:
    history = lived(LATE, ANSWER, replace(LATE, t=2.5), replace(ANSWER, t=2.5001))
    assert ids(history, "reset-window") == ["reset-window"]


def test_so_many_of_a_host_are_found() -> None:
    ends = [f"198.18.0.3:{40000 + n}" for n in range(MOST + 1)]
    sent = [s for n, end in enumerate(ends)
            for s in (*handshake(1.0 + n / 100, end), replace(LATE, source=end))]  # fmt: skip
    events = [e for n, end in enumerate(ends) for e in established(1.0 + n / 100, end)]
    scene = Scene(told([*events, look(5.0)], sent), None)
    assert len([*windows.causes(scene)]) == MOST


def test_an_ack_that_was_not_counted_is_no_challenge() -> None:
    assert CHALLENGED in only(lived(LATE, ANSWER), "reset-window").text
    assert CHALLENGED not in only(lived(LATE, ANSWER, counted=0), "reset-window").text


def test_an_answer_tells_though_the_connection_ends_soon_or_a_trace_has_holes() -> None:
    ends = [*trace(2.1, "ESTAB", "UNCONN"), look(5.0, TcpExtTCPChallengeACK=1)]
    history = told([*established(1.0), look(1.5, OPEN), *ends], [*handshake(1.0), LATE, ANSWER])
    assert CHALLENGED in only(history, "reset-window").text
    blind = TroubleEvent(1.2, "server", "trace", "lost")
    assert CHALLENGED in only(lived(LATE, ANSWER, events=(blind,)), "reset-window").text


def test_the_first_reason_that_the_kernel_gives_is_told() -> None:
    again = FateEvent(2.00006, "server", SERVER, CLIENT, "retransmit", "EPERM")
    fates = [FateEvent(2.00007 + n / 1e6, "server", SERVER, CLIENT, "discard", reason)
             for n, reason in enumerate((None, "TCP_RESET", "TCP_OTHER"))]  # fmt: skip
    cause = only(lived(LATE, ANSWER, events=(again, *fates)), "reset-window")
    assert cause.text.endswith("(the kernel says: TCP_RESET)")


FORGED = Sent(2.0, SERVER, CLIENT, ACK, 1, 9)
DENIES = Sent(2.0002, CLIENT, SERVER, ACK, 1, 1)


def answered(*sent: Sent, events: tuple[Event, ...] = ()) -> History:
    """The client has the connection open to the end."""
    line = tcp("ESTAB", CLIENT, SERVER, more="ino:9")
    seen = [look(t, line, host="client", TcpExtTCPChallengeACK=n) for t, n in ((1.5, 0), (5, 1))]
    return told([*established(1.0), look(0.5), *seen, *events], [*handshake(1.0), *sent])


def injected(t: float, host: str, ends: tuple[str, str], *numbers: int) -> InjectEvent:
    frame = packet(t, *ends, ACK | 8 if numbers[2:] else ACK, numbers)[16 + 14 :]
    return InjectEvent(t, host, b64encode(frame).decode(), 1, 1)


def test_what_a_step_sent_in_a_host_s_name_that_host_has_not_said() -> None:
    data = Sent(1.9, CLIENT, SERVER, ACK | 8, 1, 1, data=8)
    step = injected(1.9, "client", (CLIENT, SERVER), 4001, 1001, 8)
    assert ids(answered(data, FORGED, replace(DENIES, seq=9)), "challenge") == []
    history = answered(data, FORGED, DENIES, events=(step,))
    assert ids(history, "challenge") == ["challenge-ack"]


def test_if_its_capture_has_holes_it_may_have_sent_that() -> None:
    assert ids(answered(FORGED, DENIES), "challenge") == ["challenge-ack"]
    blind = TroubleEvent(1.2, "client", "capture", "lost 3")
    assert ids(answered(FORGED, DENIES, events=(blind,)), "challenge") == []


def test_the_last_acknowledgement_is_that_of_the_same_end_s_kernel() -> None:
    says = [Sent(1.5, CLIENT, SERVER, ACK | 8, 1, 1, data=600),
            Sent(1.6, SERVER, CLIENT, ACK, 1, 601)]  # fmt: skip
    stale, denies = replace(FORGED, ack=-100), replace(DENIES, seq=601)
    between = Sent(1.7, CLIENT, SERVER, ACK, 601, 1)
    step = Sent(1.8, SERVER, CLIENT, ACK, 1, 301)
    event = injected(1.8, "server", (SERVER, CLIENT), 1001, 4301)
    for history in (answered(*says, between, stale, denies),
                    answered(*says, step, stale, denies, events=(event,))):  # fmt: skip
        assert "is 701 before the last one, 601, and so" in only(history, "challenge").text
