"""What belongs to one RST, by its time: its reason, what it answers, and what ended its socket."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from labctl.judge.causes.cause import Scene
from labctl.judge.causes.reset import AT_ONCE, BEFORE, CLOSED, Reset
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.probes.observations import Segment
from labctl.record.events import Event, ResetEvent
from tests.caused import (
    CLIENT,
    LATER,
    LISTEN,
    SERVER,
    call,
    calls,
    established,
    handshake,
    ids,
    look,
    told,
    trace,
)
from tests.fake import tcp
from tests.reported import segment
from tests.walked import ACK, RST, Sent

T = 3.0
GIVES_UP = Sent(T, SERVER, CLIENT, RST | ACK, 1, 1)
ASKS = Sent(T - 2 * LATER, CLIENT, SERVER, ACK | 8, 1, 1, data=9)
ANSWERS = Sent(T, SERVER, CLIENT, RST, 1)
NEAR = [
    (-AT_ONCE * 1.1, False), (-AT_ONCE * 0.9, True), (AT_ONCE * 0.9, True), (AT_ONCE * 1.1, False),
]  # fmt: skip


def found(*more: Event, closes: float = T, ends: float = T, sent: Sequence[Sent] = (GIVES_UP,)
          ) -> list[str]:  # fmt: skip
    """What is said of a connection that a server closes with SO_LINGER 1 0, and that ends."""
    events = [
        *calls(0.5, "server", "socket; bind :8000; listen 5"), *established(1.0),
        call(1.01, "server", "accept", local=SERVER, peer=CLIENT),
        call(1.02, "server", "set SO_LINGER 1 0"), call(closes, "server", "close"),
        *trace(ends, "ESTAB", "UNCONN"), *more, look(9.0),
    ]  # fmt: skip
    return ids(told(events, [*handshake(1.0), *sent]), "reset")


@pytest.mark.parametrize(
    ("after", "this"),
    [(-CLOSED * 1.1, False), (-CLOSED * 0.9, True), (CLOSED * 0.9, True), (CLOSED * 1.1, False)],
)
def test_who_closed_it_did_so_then(after: float, this: bool) -> None:
    assert found(closes=T + after) == (["reset-linger"] if this else [])


@pytest.mark.parametrize(("after", "this"), NEAR)
def test_it_ended_then(after: float, this: bool) -> None:
    assert found(ends=T + after) == (["reset-linger"] if this else [])


@pytest.mark.parametrize(("before", "over"), [(BEFORE * 0.5, False), (BEFORE * 1.5, True)])
def test_what_came_after_the_end_did_not_end_it(before: float, over: bool) -> None:
    came = ASKS.t + LATER
    told_of = found(ends=came - before, closes=1.5, sent=(ASKS, ANSWERS))
    assert told_of == (["reset-no-socket"] if over else [])


@pytest.mark.parametrize(("after", "this"), NEAR)
def test_the_kernel_gave_its_reason_then(after: float, this: bool) -> None:
    other = ResetEvent(T + after, "server", SERVER, CLIENT, "TCP_KEEPALIVE_TIMEOUT")
    assert found(other) == ([] if this else ["reset-linger"])


def test_the_kernel_s_reason_for_another_rst_is_none_for_this() -> None:
    for host, end in (("client", CLIENT), ("server", "198.18.0.3:40001")):
        other = ResetEvent(T, host, SERVER, end, "TCP_KEEPALIVE_TIMEOUT")
        assert found(other) == ["reset-linger"]


@pytest.mark.parametrize(
    ("local", "reason", "this"),
    [(SERVER, "TCP_FLAGS", True), ("0.0.0.0:8000", "TCP_FLAGS", True),
     ("0.0.0.0:8001", "TCP_FLAGS", False), (SERVER, "NOT_SPECIFIED", False)],
)  # fmt: skip
def test_a_listener_that_is_left_answers_an_ack(local: str, reason: str, this: bool) -> None:
    listener = ResetEvent(T, "server", local, "0.0.0.0:0", reason)
    came = Sent(T - 2 * LATER, CLIENT, SERVER, ACK, 1, 1)
    over = found(listener, ends=T - LATER, closes=1.5, sent=(came, ANSWERS))
    assert over == (["reset-no-socket"] if this else [])


def test_a_listener_answers_for_no_connection_that_lives_on() -> None:
    """A firewall did, and the kernel has no reason for that."""
    listener = ResetEvent(T, "server", SERVER, "0.0.0.0:0", "TCP_FLAGS")
    assert found(listener, ends=8.0, closes=8.0, sent=(ASKS, ANSWERS)) == ["reset-crafted"]


@pytest.mark.parametrize(("after", "this"), NEAR[2:])
def test_it_answers_what_came_right_before(after: float, this: bool) -> None:
    came = Sent(T - LATER - after, CLIENT, SERVER, ACK | 8, 1, 1, data=9)
    history = told([look(0.5), look(9.0)], [came, ANSWERS])
    assert ids(history) == (["reset-no-socket"] if this else [])


@pytest.mark.parametrize(("after", "lives"), [(CLOSED * 0.9, False), (CLOSED * 1.1, True)])
def test_what_outlives_it_is_there_a_moment_later(after: float, lives: bool) -> None:
    crafted = ["reset-crafted"] if lives else []
    assert found(closes=9.0, ends=T + after, sent=[ASKS, ANSWERS]) == crafted
    line = tcp("ESTAB", SERVER, CLIENT, more="ino:7")
    seen = [*established(1.0), look(1.5, LISTEN, line), look(T + after, LISTEN, line)]
    assert ids(told(seen, [*handshake(1.0), ASKS, ANSWERS]), "reset") == crafted
    looks_alone = told(seen[-2:], [*handshake(1.0), ASKS, ANSWERS], ("ss", "capture"))
    assert ids(looks_alone, "reset") == []  # it may have ended between two of them


# --- What came before, and after ------------------------------------------------------------------

SCENE = Scene(told([look(0.5), look(9.0)]), None)
CAME = segment(2.9, "client PSH ACK 1 1 len 5", T)
WENT = segment(2.0, "server SYN ACK 0 1", 2.1)


def reset(*before: Segment, flags: str = "RST ACK", seq: int = 1, after: Sequence[Segment] = ()
          ) -> Reset:  # fmt: skip
    rst = segment(T, f"server {flags} {seq} 1")
    return Reset(len(before), [*before, rst, *after], SCENE)


def test_what_had_come_and_what_its_host_had_sent() -> None:
    late, lost = CAME._replace(arrived=T + 1e-6), CAME._replace(arrived=None)
    early, forged = CAME._replace(arrived=2.95), WENT._replace(crafted=True)
    found = reset(CAME, late, lost, early, WENT, forged)
    assert (found.came, found.sent) == ([early, CAME], [WENT])
    other = reset(CAME._replace(receiver="proxy"), WENT._replace(sender="proxy"))
    assert (other.came, other.sent) == ([], [])


@pytest.mark.parametrize(
    ("flags", "came", "trigger", "answered"),
    [
        ("RST", CAME, True, True),
        ("RST ACK", CAME, True, False),
        ("RST ACK", CAME._replace(flags=("SYN",)), True, True),
        ("RST", CAME._replace(flags=("SYN",)), True, False),
        ("RST", CAME._replace(arrived=T - AT_ONCE * 0.9), True, True),
        ("RST", CAME._replace(arrived=T - AT_ONCE * 1.1), False, False),
    ],
)
def test_what_it_answers(flags: str, came: Segment, trigger: bool, answered: bool) -> None:
    found = reset(came, flags=flags)
    assert found.trigger == (came if trigger else None)
    assert found.answered == (came if answered else None)
    assert reset(flags=flags).trigger is None


TEXT = "title: x\nhosts: {client: {}, server: {}}\nsteps: [{reject: {to: server, with: rst}}]\n"
(REJECTS,) = load_document(Document("few", TEXT), TEXT, "few", {})
LOST = CAME._replace(arrived=None, dropped=0, t=T - AT_ONCE / 2)


@pytest.mark.parametrize(
    ("flags", "lost", "rejected"),
    [
        ("RST", LOST, True),
        ("RST ACK", LOST, False),  # what has an ACK is answered without one
        ("RST ACK", LOST._replace(flags=("SYN",)), True),
        ("RST", LOST._replace(flags=("SYN",)), False),
        ("RST", LOST._replace(t=T - AT_ONCE * 1.1), False),
        ("RST", LOST._replace(dropped=1), False),  # a step that is not there any more
        ("RST", LOST._replace(dropped=None), False),
        ("RST", LOST._replace(source=LOST.target, target=LOST.source), False),
    ],
)
def test_what_a_step_refused(flags: str, lost: Segment, rejected: bool) -> None:
    rst = segment(T, f"server {flags} 1 1")
    scene = Scene(SCENE.history, REJECTS)
    assert Reset(1, [lost, rst], scene).rejected == (lost if rejected else None)
    assert Reset(2, [lost, CAME, rst], scene).rejected == (lost if rejected else None)
    assert Reset(1, [lost, rst], SCENE).rejected is None


def test_whether_its_host_had_spoken_and_had_sent_a_fin() -> None:
    fin = segment(2.5, "server FIN ACK 1 1")
    assert (reset(WENT, fin).fin, reset(WENT).fin, reset(WENT).spoke) == (fin, None, True)
    assert not reset(CAME).spoke and not reset(segment(2.5, "server RST 1 1")).spoke


@pytest.mark.parametrize(
    ("after", "later"),
    [
        (segment(3.2, "server ACK 1 1 len 2"), True),
        (segment(T + AT_ONCE * 0.9, "server ACK 1 1 len 2"), False),
        (segment(T + AT_ONCE * 1.1, "server ACK 1 1 len 2"), True),
        (segment(3.2, "server SYN 1 1"), False),
        (segment(3.2, "server RST 1 1"), False),
        (segment(3.2, "client ACK 1 1"), False),
        (segment(3.2, "server ACK 1 1", crafted=True), False),
    ],
)
def test_whether_its_host_went_on(after: Segment, later: bool) -> None:
    """The number that is due is 1, after its SYN."""
    found = reset(WENT, after=[after])
    assert (found.later, found.went_on) == (([after], True) if later else ([], False))
    assert not reset(WENT, after=[after], seq=2).went_on
    assert not reset(after=[after]).went_on
    sent = segment(2.5, "server ACK 1 1 len 6")
    assert reset(WENT, sent, after=[after], seq=7).went_on is later
