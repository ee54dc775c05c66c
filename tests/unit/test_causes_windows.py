"""Segments whose numbers did not fit: what a host did not take, and why."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.judge.causes.windows import AFTER, AT_ONCE, MOST, TRIED
from labctl.record.events import Event, FateEvent, InjectEvent, TroubleEvent
from labctl.record.history import History
from tests import captured
from tests.caused import (
    CLIENT,
    LATER,
    LISTEN,
    SERVER,
    close,
    established,
    handshake,
    ids,
    look,
    only,
    told,
    trace,
)
from tests.fake import tcp
from tests.walked import ACK, RST, SYN, Sent, packet

OPEN = tcp("ESTAB", SERVER, CLIENT, more="ino:7")
LATE = Sent(2.0, CLIENT, SERVER, RST, 101)
"""A RST whose number is 100 beyond what is due, 1."""
ANSWER = Sent(2.0001, SERVER, CLIENT, ACK, 1, 1)
AGAIN = Sent(3.0, CLIENT, SERVER, SYN, 0, start=70_000)
"""A SYN of a client that has forgotten the connection, with a number of its own."""
CHALLENGE = Sent(3.0001, SERVER, CLIENT, ACK, 1, 1)


def wire(*more: Sent) -> list[Sent]:
    return [*handshake(1.0), *more]


def lived(*sent: Sent, counted: int = 1, until: float = 5.0, events: tuple[Event, ...] = ()
          ) -> History:  # fmt: skip
    """The connection is there to the end, and the kernel has counted challenge ACKs."""
    seen = [look(1.5, LISTEN, OPEN), look(until, LISTEN, OPEN, TcpExtTCPChallengeACK=counted)]
    return told([*established(1.0), *seen, *events], wire(*sent))


def test_an_rst_in_the_window_is_answered_by_a_challenge() -> None:
    cause = only(lived(LATE, ANSWER), "reset-window")
    assert (cause.id, cause.host, cause.at) == ("reset-window", "server", pytest.approx(2.00005))
    assert cause.connection == f"{SERVER} -> {CLIENT}"
    assert "its number is 100 after the one that was due, 1, so server answered" in cause.text
    assert [line.split(": ")[1] for line in cause.evidence] == ["RST seq 101", "ACK seq 1 ack 1"]


def test_an_rst_beside_it_is_not_answered() -> None:
    before = replace(LATE, seq=-99)
    cause = only(lived(before, counted=0), "reset-window")
    assert "100 before the one that was due, 1, so server dropped it" in cause.text


def fate(reason: str | None, t: float = 2.00006) -> FateEvent:
    return FateEvent(t, "server", SERVER, CLIENT, "discard" if reason else "reset", reason)


def test_the_kernel_s_own_word_is_told() -> None:
    blind = TroubleEvent(1.2, "server", "trace", "lost")
    cause = only(lived(LATE, events=(fate("TCP_RESET"), blind)), "reset-window")
    assert "and the connection went on (the kernel says: TCP_RESET)" in cause.text
    other = only(lived(LATE, ANSWER, events=(fate("TCP_RESET", 1.5),)), "reset-window")
    assert "kernel says" not in other.text


CAME = LATE.t + LATER
LITTLE = AT_ONCE / 20


@pytest.mark.parametrize(
    ("after", "at_once"),
    [(-LITTLE, False), (LITTLE, True), (AT_ONCE - LITTLE, True), (AT_ONCE + LITTLE, False)],
)
def test_an_answer_comes_at_once(after: float, at_once: bool) -> None:
    cause = only(lived(LATE, replace(ANSWER, t=CAME + after)), "reset-window")
    assert ("answered it by a challenge ACK" in cause.text) is at_once


@pytest.mark.parametrize(
    ("after", "about_it"),
    [(-AT_ONCE - LITTLE, False), (-AT_ONCE + LITTLE, True), (AT_ONCE - LITTLE, True),
     (AT_ONCE + LITTLE, False)],
)  # fmt: skip
def test_the_kernel_s_word_is_of_that_moment(after: float, about_it: bool) -> None:
    said = only(lived(LATE, ANSWER, events=(fate("TCP_RESET", CAME + after),)), "reset-window")
    assert ("the kernel says" in said.text) is about_it
    took = lived(LATE, ANSWER, events=(fate(None, CAME + after),))
    assert ids(took, "reset-window") == ([] if about_it else ["reset-window"])


@pytest.mark.parametrize(("after", "lives"), [(AFTER - 0.01, False), (AFTER + 0.01, True)])
def test_what_it_did_no_harm_lives_on_for_a_while(after: float, lives: bool) -> None:
    ends = [*trace(CAME + after, "ESTAB", "UNCONN"), look(5.0)]
    history = told([*established(1.0), look(1.5, OPEN), *ends], wire(LATE))
    assert ids(history, "reset-window") == (["reset-window"] if lives else [])
    assert ids(lived(LATE, until=CAME + after), "reset-window") == (
        ["reset-window"] if lives else []
    )


@pytest.mark.parametrize(("before", "found"), [(TRIED - 1, True), (TRIED, False)])
def test_some_of_a_connection_are_looked_at(before: int, found: bool) -> None:
    fit = [replace(LATE, t=1.5 + n / 100, seq=1) for n in range(before)]
    assert ids(lived(*fit, LATE), "reset-window") == (["reset-window"] if found else [])


def test_some_of_a_host_are_told() -> None:
    ends = [f"198.18.0.3:{40000 + n}" for n in range(MOST + 1)]
    sent = [s for n, end in enumerate(ends)
            for s in (*handshake(1.0 + n / 100, end), replace(LATE, source=end))]  # fmt: skip
    events = [e for n, end in enumerate(ends) for e in established(1.0 + n / 100, end)]
    assert len(ids(told([*events, look(5.0)], sent), "reset-window")) == MOST


@pytest.mark.parametrize(
    "history",
    [
        lived(LATE, ANSWER, events=(fate(None),)),  # the kernel took it
        lived(replace(LATE, seq=1)),  # it fits: the firewall of its host may have sent it
        lived(replace(LATE, fate="lost")),
        lived(LATE, until=2.1),  # too soon to say that it did no harm
        lived(Sent(1.9, CLIENT, SERVER, ACK | 8, 1, 1, data=100), LATE),  # not acknowledged yet
        lived(LATE, events=(TroubleEvent(1.2, "server", "trace", "lost"),)),
        told([*established(1.0), look(1.5, OPEN), *trace(2.0001, "ESTAB", "UNCONN"), look(5.0)],
             wire(LATE)),
    ],
)  # fmt: skip
def test_what_resembles_it(history: History) -> None:
    assert "reset-window" not in ids(history)


def test_a_syn_into_an_open_connection_is_challenged() -> None:
    """70,000 apart are the first numbers of the client's two connections."""
    cause = only(lived(AGAIN, replace(CHALLENGE, start=0)), "challenge")
    assert (cause.id, cause.host) == ("challenge-ack", "server")
    assert (cause.connection, cause.at) == (f"{SERVER} -> {CLIENT}", pytest.approx(AGAIN.t + LATER))
    assert "the number that was due is 69999 before the SYN's own" in cause.text
    assert "ACK seq 1 ack 4294897297" in cause.evidence[1]


def test_a_syn_that_a_step_sent_is_challenged_too() -> None:
    frame = packet(3.0, CLIENT, SERVER, SYN, (4011, 0))[16 + 14 :]
    crafted = InjectEvent(3.0, "client", b64encode(frame).decode(), 11, 0)
    history = lived(Sent(3.0, CLIENT, SERVER, SYN, 11), CHALLENGE, events=(crafted,))
    cause = only(history, "challenge")
    assert "due is 10 before the SYN's own" in cause.text
    assert "[injected]" in cause.evidence[0]


@pytest.mark.parametrize(
    "history",
    [
        lived(AGAIN, CHALLENGE, counted=0),
        lived(AGAIN, replace(CHALLENGE, flags=SYN | ACK)),
        lived(AGAIN, replace(CHALLENGE, t=3.2)),
        lived(CHALLENGE),
        told([*established(1.0), *trace(2.0, "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "UNCONN"),
              look(2.5, tcp("TIME-WAIT", SERVER, CLIENT)),
              look(5.0, tcp("TIME-WAIT", SERVER, CLIENT), TcpExtTCPChallengeACK=1)],
             wire(*close(2.0), AGAIN, CHALLENGE)),
    ],
)  # fmt: skip
def test_what_is_no_challenge(history: History) -> None:
    assert ids(history, "challenge") == []


# --- An ACK for what was never sent ---------------------------------------------------------------

FORGED = Sent(2.0, SERVER, CLIENT, ACK, 1, 9)
"""The server has data that somebody sent in the client's name."""
DENIES = Sent(2.0002, CLIENT, SERVER, ACK, 1, 1)


def answered(*sent: Sent, counted: int = 1) -> History:
    """The client has the connection open to the end."""
    line = tcp("ESTAB", CLIENT, SERVER, more="ino:9")
    seen = [
        look(t, line, host="client", TcpExtTCPChallengeACK=n) for t, n in ((1.5, 0), (5, counted))
    ]
    return told([*established(1.0), look(0.5), *seen], wire(*sent))


def test_an_ack_of_what_was_never_sent_is_challenged() -> None:
    cause = only(answered(FORGED, DENIES), "challenge")
    assert cause.at == pytest.approx(CAME)
    assert (cause.host, cause.connection) == ("client", f"{CLIENT} -> {SERVER}")
    assert "acknowledges all up to number 9, and client had sent no more than up to 1" in cause.text


@pytest.mark.parametrize(
    "history",
    [
        answered(replace(FORGED, ack=1), DENIES), answered(FORGED),
        answered(FORGED, DENIES, counted=0),
        answered(Sent(1.9, CLIENT, SERVER, ACK | 8, 1, 1, data=8), FORGED, replace(DENIES, seq=9)),
    ],
)  # fmt: skip
def test_what_was_sent_may_be_acknowledged(history: History) -> None:
    assert ids(history, "challenge") == []


# --- An ACK that is much too old ------------------------------------------------------------------

SAYS = [Sent(1.5, CLIENT, SERVER, ACK | 8, 1, 1, data=600), Sent(1.6, SERVER, CLIENT, ACK, 1, 601)]
DENIES_IT = replace(DENIES, seq=601)
STALE = replace(FORGED, ack=-100)
"""The server has acknowledged 600 bytes, and never had the one before them."""


def test_an_ack_that_is_too_old_is_challenged() -> None:
    cause = only(answered(*SAYS, STALE, DENIES_IT), "challenge")
    assert cause.at == pytest.approx(CAME)
    assert (cause.host, cause.connection) == ("client", f"{CLIENT} -> {SERVER}")
    assert "its acknowledgement is 701 before the last one, 601, and so too old" in cause.text
    assert "RFC 5961, section 5.2" in cause.refs[0]


@pytest.mark.parametrize(
    ("data", "ack", "old"),
    [(600, 1, False), (600, 0, True),  # what its own first number is, it may acknowledge
     (3000, 2001, False), (3000, 2000, True)],  # and as far back as its window of 1000
)  # fmt: skip
def test_how_old_an_ack_may_be(data: int, ack: int, old: bool) -> None:
    says = replace(SAYS[0], data=data), replace(SAYS[1], ack=1 + data)
    history = answered(*says, replace(STALE, ack=ack), replace(DENIES_IT, seq=1 + data))
    assert ids(history, "challenge") == (["challenge-ack"] if old else [])


@pytest.mark.parametrize(
    "history",
    [
        answered(*SAYS, STALE), answered(*SAYS, STALE, DENIES_IT, counted=0),
        answered(*SAYS, replace(STALE, ack=101), DENIES_IT),
        answered(*SAYS, replace(STALE, fate="lost"), DENIES_IT),
        # It is old as a whole, and its own number is what is answered.
        answered(*SAYS, replace(STALE, seq=-500, data=10), DENIES_IT),
        answered(*SAYS, replace(STALE, flags=0), DENIES_IT),
    ],
)  # fmt: skip
def test_an_ack_that_is_old_and_no_more(history: History) -> None:
    assert ids(history, "challenge") == []


def test_in_captures_from_elsewhere_the_answer_tells(tmp_path: Path) -> None:
    """No counter does, but an answer is there."""
    rst = Sent(1.0, captured.SERVER, captured.CLIENT, RST, 1001)
    ack = Sent(1.0 + captured.NEAR + 1e-5, captured.CLIENT, captured.SERVER, ACK, 101, 901)
    data = Sent(3.0, captured.CLIENT, captured.SERVER, ACK, 101, 901, 7)
    run = captured.both(tmp_path, [*captured.handshake(), rst, ack, data])
    assert "answered it by a challenge ACK" in only(run.history, "reset-window").text
