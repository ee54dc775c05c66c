"""What lies behind a RST by segments alone, where one end was captured, or neither at that time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labctl.judge.causes.cause import Cause
from labctl.judge.causes.rules import causes
from labctl.judge.result import RunResult
from tests.captured import (
    BEGUN,
    CLIENT,
    NEAR,
    SERVER,
    alone,
    both,
    frames,
    handshake,
    imported,
    pcap,
)
from tests.walked import ACK, FIN, RST, SYN, Sent

DATA = Sent(1.0, CLIENT, SERVER, ACK, 101, 901, 5)
SERVER_FIN = [
    Sent(0.5, SERVER, CLIENT, FIN | ACK, 901, 101),
    Sent(0.5 + 2 * NEAR, CLIENT, SERVER, ACK, 101, 902),
]
ACTIVE = Sent(2.0, SERVER, CLIENT, RST | ACK, 901, 106)
ANSWER = Sent(1.0 + 2 * NEAR, SERVER, CLIENT, RST, 901)


def found(run: RunResult) -> list[Cause]:
    return [c for c in causes(run.history) if c.id.startswith(("reset-", "connect-"))]


def ids(run: RunResult) -> list[tuple[str, bool]]:
    return [(cause.id, cause.certain) for cause in found(run)]


def test_data_that_may_have_come_may_have_been_unread(tmp_path: Path) -> None:
    """Nobody saw whether it came."""
    (cause,) = found(alone(tmp_path, [*handshake(), DATA, ACTIVE], "client"))
    assert (cause.id, cause.host) == ("reset-by-close", "peer")
    assert "closed it with data unread, or with SO_LINGER 1 0, or its listener" in cause.text
    (folder := tmp_path / "spoke").mkdir()
    spoke = Sent(1.5, SERVER, CLIENT, ACK, 901, 106, 5)
    (cause,) = found(alone(folder, [*handshake(), DATA, spoke, replace(ACTIVE, seq=906)]))
    assert "listener" not in cause.text  # it had been accepted


def test_who_opened_a_connection_has_no_listener(tmp_path: Path) -> None:
    (cause,) = found(
        alone(tmp_path, [*handshake(), Sent(2.0, CLIENT, SERVER, RST | ACK, 101, 901)])
    )
    assert "closed it with SO_LINGER 1 0: its calls would tell" in cause.text


@pytest.mark.parametrize(("data", "known"), [([replace(DATA, ack=902)], True), ([], False)])
def test_unread_data_of_a_half_closed_connection(
    tmp_path: Path, data: list[Sent], known: bool
) -> None:
    sent = [*handshake(), *SERVER_FIN, *data, replace(ACTIVE, seq=902)]
    told = found(alone(tmp_path, sent))
    assert [cause.id for cause in told] == ["reset-by-close"] * known
    assert all("after it had shut it down for sending" in cause.text for cause in told)


def test_what_a_host_answers_that_was_not_captured(tmp_path: Path) -> None:
    """It has the number that this acknowledged."""
    for seq, known in ((901, [("reset-no-socket", False)]), (950, [])):
        (folder := tmp_path / str(seq)).mkdir()
        run = alone(folder, [*handshake(), DATA, replace(ANSWER, seq=seq)], "client")
        assert ids(run) == known


def test_late_data_for_a_host_that_was_not_captured(tmp_path: Path) -> None:
    late = [replace(DATA, ack=902), replace(ANSWER, seq=902)]
    run = alone(tmp_path, [*handshake(), *SERVER_FIN, *late], "client")
    assert ids(run) == [("reset-late-data", False)]


def test_what_had_no_answer_before(tmp_path: Path) -> None:
    tries = [replace(DATA, t=t, fate="lost") for t in (1.0, 1.3, 2.0)]
    end = [
        Sent(9.0, SERVER, CLIENT, FIN | ACK, 901, 101),
        Sent(9.0 + 2 * NEAR, CLIENT, SERVER, RST, 101),
    ]
    (cause,) = found(both(tmp_path, [*handshake(), *tries, *end]))
    assert cause.id == "reset-no-socket"
    assert "or had closed it, maybe as its 5 bytes had no answer" in cause.text


@pytest.mark.parametrize(("last", "name"), [(1.9, "reset-by-close"), (5.0, "reset-crafted")])
def test_a_reset_after_a_capture_ended_may_be_its_host_s(
    tmp_path: Path, last: float, name: str
) -> None:
    """Until when it went, its last packet tells; here that is of another connection."""
    other = Sent(last, "10.0.0.3:50000", SERVER, SYN, 1)
    seen = frames([*handshake(), DATA, other], SERVER)
    server = pcap(tmp_path / "a.pcap", seen)
    client = pcap(tmp_path / "b.pcap", frames([*handshake(), DATA, ACTIVE, other], CLIENT))
    told = found(imported(tmp_path, {"server": server, "client": client}))
    assert [cause.id for cause in told] == [name]


def test_an_answer_to_a_syn_ack_that_fits(tmp_path: Path) -> None:
    """A socket that had sent the SYN would have taken it."""
    syn, synack, _ = handshake()
    rst = replace(synack, t=synack.t + 2 * NEAR, source=CLIENT, target=SERVER, flags=RST, seq=101,
                  ack=0)  # fmt: skip
    assert ids(both(tmp_path, [syn, synack, rst])) == [("reset-no-socket", False)]


@pytest.mark.parametrize("taken", [101, 106])
def test_a_refused_syn_with_data(tmp_path: Path, taken: int) -> None:
    sent = [
        Sent(0.0, CLIENT, SERVER, SYN, 100, data=5),
        Sent(2 * NEAR, SERVER, CLIENT, RST | ACK, 0, taken),
    ]
    assert ids(both(tmp_path, sent)) == [("connect-refused", False)]


def test_resets_on_loopback(tmp_path: Path) -> None:
    here, there = "127.0.0.1:40000", "127.0.0.1:8000"
    refused = [
        Sent(0.0, here, there, SYN, 100),
        Sent(NEAR, there, here, RST | ACK, 0, 101),
    ]
    unread = [
        *handshake(0.0, here, there), replace(DATA, source=here, target=there),
        replace(ACTIVE, source=there, target=here),
    ]  # fmt: skip
    for sent, name, ends in (
        (refused, "connect-refused", f"{here} -> {there}"),
        (unread, "reset-by-close", f"{there} -> {here}"),
    ):
        (folder := tmp_path / name).mkdir()
        path = pcap(folder / "a", [(BEGUN + s.t, s.frame()) for s in sent])
        (cause,) = found(imported(folder, {"web": path}))
        assert (cause.id, cause.host, cause.connection) == (name, "web", ends)


SILENT = [Sent(1.0 + 2.0**n, CLIENT, SERVER, ACK | 8, 101, 901, 50, fate="lost") for n in range(4)]
"""Data that is sent again and again."""


def test_data_that_had_no_answer_as_the_capture_ended(tmp_path: Path) -> None:
    (cause,) = causes(alone(tmp_path, [*handshake(), *SILENT], "client").history)
    assert (cause.id, cause.host) == ("no-answer", "client")
    assert (
        f"no answer to 50 bytes of {CLIENT} -> {SERVER} for 7.0 s, and has sent it 4" in cause.text
    )
    assert "a capture of the peer would tell" in cause.text


def test_data_that_came_and_had_no_answer_as_the_capture_ended(tmp_path: Path) -> None:
    came = [replace(each, fate="") for each in SILENT]
    (cause,) = causes(alone(tmp_path, [*handshake(), *came]).history)
    assert (cause.id, cause.host, cause.certain) == ("no-answer", "peer", True)
    assert "all arrived, and no segment of server answered" in cause.text


@pytest.mark.parametrize("left_out", ["what came", "the end"])
def test_what_a_capture_does_not_have_had_an_answer_maybe(tmp_path: Path, left_out: str) -> None:
    """It went one way only, or what was sent next was new."""
    new = Sent(10.0, CLIENT, SERVER, ACK | 8, 151, 901, 50)
    sent = [*handshake(), *SILENT, *([new] if left_out == "the end" else [])]
    if left_out == "what came":
        sent = [each for each in sent if each.source == CLIENT]
    assert causes(alone(tmp_path, sent, "client").history) == []


def test_a_syn_into_an_open_connection_has_a_challenge_ack(tmp_path: Path) -> None:
    """No counter is known, but a SYN has no other answer that is an ACK alone."""
    syn = Sent(2.0, CLIENT, SERVER, SYN, 7000)
    answer = Sent(2.0 + 2 * NEAR, SERVER, CLIENT, ACK, 901, 106)
    rst = Sent(2.0 + 4 * NEAR, CLIENT, SERVER, RST, 106)
    took = Sent(1.0 + 2 * NEAR, SERVER, CLIENT, ACK, 901, 106)
    told = causes(both(tmp_path, [*handshake(), DATA, took, syn, answer, rst]).history)
    assert [(cause.id, cause.host) for cause in told] == [("challenge-ack", "server")]


def test_who_answers_late_was_half_closed_wherever_it_was_captured(tmp_path: Path) -> None:
    """When its end took the RST, nobody saw."""
    fin = Sent(1.0, CLIENT, SERVER, FIN | ACK, 101, 901)
    taken = Sent(1.0 + 2 * NEAR, SERVER, CLIENT, ACK, 901, 102)
    answer = Sent(3.0, SERVER, CLIENT, ACK, 901, 102, 5)
    rst = Sent(3.0 + 2 * NEAR, CLIENT, SERVER, RST, 102)
    run = alone(tmp_path, [*handshake(), fin, taken, answer, rst], "client")
    assert {c.id for c in causes(run.history)} == {"closed-first", "reset-late-data"}
