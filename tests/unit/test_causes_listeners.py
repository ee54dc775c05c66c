"""Whose accept queue was full, where a host has several: what a SYN without an answer tells. And of
how many connections it is told that they waited for data."""

from __future__ import annotations

from typing import Any

import pytest

from labctl.judge.causes.listeners import SOON
from tests.caused import CLIENT, LATER, SERVER, calls, handshake, ids, listened, look, said, told
from tests.fake import tcp
from tests.walked import ACK, SYN, Sent

BOTH = [tcp("LISTEN", f":{port}", recv_q=2, send_q=1) for port in (8000, 9000)]
OVER: dict[str, Any] = {"TcpExtListenOverflows": 1}
LITTLE = SOON / 10
NOW = 9.0


def known(*sent: Sent) -> bool:
    """Whether it is certain that it was the queue of port 8000."""
    causes = said(told([look(1.0, *BOTH), look(2.0, *BOTH, **OVER), look(NOW)], sent))
    assert {cause.id for cause in causes} == {"accept-queue-full"}
    certain = [cause.certain for cause in causes]
    assert certain in ([True], [False, False])
    return certain == [True]


@pytest.mark.parametrize(("after", "ignored"), [(SOON - LITTLE, False), (SOON + LITTLE, True)])
def test_a_syn_gets_its_answer_soon(after: float, ignored: bool) -> None:
    asks, answers, *_ = handshake(1.5)
    answers = Sent(asks.t + LATER + after, SERVER, CLIENT, answers.flags, 0, 1)
    assert known(asks, answers) is ignored


@pytest.mark.parametrize(("after", "ignored"), [(SOON - LITTLE, False), (SOON + LITTLE, True)])
def test_who_answers_a_syn_again_has_not_taken_the_last_ack(after: float, ignored: bool) -> None:
    *shakes, acks = handshake(1.5)
    again = Sent(acks.t + LATER + after, SERVER, CLIENT, SYN | ACK, 0, 1)
    assert known(*shakes, acks, again) is ignored


@pytest.mark.parametrize(("before", "ignored"), [(-LITTLE, False), (LITTLE, True)])
def test_an_answer_that_may_still_come_is_not_missing(before: float, ignored: bool) -> None:
    asks = Sent(NOW - 2 * SOON - LATER - before, CLIENT, SERVER, SYN)
    assert known(asks) is ignored


def test_syns_of_another_port_or_host_or_that_did_not_come_tell_nothing() -> None:
    assert not known(Sent(1.5, CLIENT, "198.18.0.2:7000", SYN))
    assert not known(Sent(1.5, CLIENT, "198.18.0.5:8000", SYN))
    assert not known(Sent(1.5, CLIENT, SERVER, SYN, fate="lost"))


def test_of_many_that_wait_for_data_the_first_are_told() -> None:
    ends = [f"198.18.0.3:{40000 + n}" for n in range(4)]
    waiting = [tcp("SYN-RECV", SERVER, end, more="timer:(on,1sec,0) ino:0") for end in ends]
    server = calls(0.5, "server", "socket; set TCP_DEFER_ACCEPT 5; bind :8000; listen 5")
    ignored: dict[str, Any] = {"TcpExtTCPDeferAcceptDrop": 4}
    looks = [look(1.01, *waiting, **ignored), look(4.0, *waiting)]
    shaken = [sent for end in ends for sent in handshake(1.0, end)]
    assert ids(told([*server, *listened(0.504), *looks], shaken)) == ["deferred-accept"] * 3
