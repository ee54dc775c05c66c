"""What belongs to one RST, by its time: its reason, what it answers, and what ended its socket."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from labctl.judge.causes.reset import AT_ONCE, CLOSED
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


@pytest.mark.parametrize(("after", "this"), NEAR)
def test_the_kernel_gave_its_reason_then(after: float, this: bool) -> None:
    other = ResetEvent(T + after, "server", SERVER, CLIENT, "TCP_KEEPALIVE_TIMEOUT")
    assert found(other) == ([] if this else ["reset-linger"])


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
