"""States of a connection's ends, inferred from segments: what they prove, and no more."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.judge.result import RunResult
from labctl.record.inferred import _Life
from labctl.record.timelines import Timeline, timelines
from labctl.reports.ladder import rows
from labctl.reports.rows import UNKNOWN, Bar
from tests.captured import CLIENT, NEAR, SERVER, alone, both, closed, handshake
from tests.reported import segment
from tests.walked import ACK, FIN, RST, SYN, Sent

LATER = [Sent(9.0, "10.0.0.3:50000", SERVER, SYN, 1)]
"""Something else, long after: the captures went on."""
WALKS = {
    "server": ("SYN-RECV", "ESTAB", "CLOSE-WAIT", "LAST-ACK", "closed"),
    "client": ("SYN-SENT", "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT"),
}


def one(run: RunResult, host: str, ends: tuple[str, str] | None = None) -> Timeline:
    mine = ends or ((SERVER, CLIENT) if host == "server" else (CLIENT, SERVER))
    (found,) = (t for t in timelines(run.history, host) if t.ends == mine)
    return found


GREETING = Sent(0.05, SERVER, CLIENT, ACK, 900, 101)
"""As a keepalive: by it the server shows that it has the connection."""


def walk(run: RunResult, host: str) -> tuple[str, ...]:
    return one(run, host).walk


def drawn(run: RunResult, host: str) -> list[tuple[str, float]]:
    """The states in the picture, and when they begin."""
    ends = (SERVER, CLIENT) if host == "server" else (CLIENT, SERVER)
    bars = (r for r in rows(run.history, run.hosts).rows if isinstance(r, Bar))
    return [(bar.state or "gone", round(bar.t, 2)) for bar in bars if bar.ends == ends]


@pytest.mark.parametrize("host", WALKS)
def test_an_ordinary_close(tmp_path: Path, host: str) -> None:
    found = one(both(tmp_path, [*handshake(), *closed(1.0), *LATER]), host)
    assert found.walk == WALKS[host]
    assert found.inferred and not found.traced
    assert found.complete is (host == "server")
    for span in found.spans[:-1]:
        assert span.end and span.end.latest < 1.2


def test_nobody_knows_when_time_wait_ends(tmp_path: Path) -> None:
    run = both(tmp_path, [*handshake(), *closed(1.0), *LATER])
    found = one(run, "client")
    assert found.lost_sight and not found.closed
    assert found.gap == "segments do not tell whether it was still in TIME-WAIT"
    assert found.spans[-1].lasted(run.history.now)[1] == math.inf
    assert drawn(run, "client")[-2:] == [("TIME-WAIT", 1.1), (UNKNOWN, 1.1)]


def test_both_close_at_once(tmp_path: Path) -> None:
    sent = [
        *handshake(),
        Sent(1.0, CLIENT, SERVER, FIN | ACK, 101, 901),
        Sent(1.0 + NEAR / 2, SERVER, CLIENT, FIN | ACK, 901, 101),
        Sent(1.0 + 2 * NEAR, CLIENT, SERVER, ACK, 102, 902),
        Sent(1.0 + 2 * NEAR, SERVER, CLIENT, ACK, 902, 102),
    ]
    run = both(tmp_path, [*sent, *LATER])
    for host in WALKS:
        assert walk(run, host)[2:] == ("FIN-WAIT-1", "CLOSING", "TIME-WAIT")


def test_an_open_connection_stays_open(tmp_path: Path) -> None:
    run = both(tmp_path, [*handshake(), *LATER])
    assert walk(run, "client") == ("SYN-SENT", "ESTAB")
    assert one(run, "client").spans[-1].end is None


# --- What arrived, and what was taken -------------------------------------------------------------


def fin(t: float) -> Sent:
    return Sent(t, CLIENT, SERVER, FIN | ACK, 101, 901)


def ack(t: float) -> Sent:
    return Sent(t, SERVER, CLIENT, ACK, 901, 102)


def test_an_acknowledgement_that_was_not_taken(tmp_path: Path) -> None:
    """It arrived, and the FIN is repeated: a filter lies behind the capture."""
    sent = [*handshake(), fin(1.0), ack(1.0 + 2 * NEAR), fin(1.3), ack(1.3 + 2 * NEAR)]
    run = both(tmp_path, [*sent, *LATER])
    assert walk(run, "client") == ("SYN-SENT", "ESTAB", "FIN-WAIT-1")
    assert "took the ACK of its FIN" in str(one(run, "client").gap)
    assert drawn(run, "client")[-2:] == [("FIN-WAIT-1", 1.0), (UNKNOWN, 1.3)]
    assert walk(run, "server") == ("SYN-RECV", "ESTAB", "CLOSE-WAIT")


def told(t: float, seq: int) -> list[Sent]:
    """The server's data, and the client's acknowledgement."""
    return [
        Sent(t, SERVER, CLIENT, ACK, seq, 101 + (t > 1.0), 5),
        Sent(t + 2 * NEAR, CLIENT, SERVER, ACK, 101 + (t > 1.0), seq + 5),
    ]


TWICE = [*told(0.4, 901)[:1], *told(0.6, 901)]
"""The client acknowledges the copy, and not what came first."""


@pytest.mark.parametrize(
    ("before", "later", "until"),
    [
        (told(0.6, 901), [replace(ack(1.6), seq=906)], 1.1),  # it takes all that comes
        (TWICE, [replace(ack(1.6), seq=906)], 1.6),  # nobody knows which one it took
        (TWICE, [*told(1.3, 906), replace(ack(1.6), seq=911)], 1.3),  # it acknowledges what it took
        (TWICE, [replace(ack(2.5), seq=906)], 1.1),  # by then it would have repeated its FIN
    ],
)
def test_which_acknowledgement_was_taken(
    tmp_path: Path, before: list[Sent], later: list[Sent], until: float
) -> None:
    closing = replace(fin(1.0), ack=906), replace(ack(1.1), seq=906)
    run = both(tmp_path, [*handshake(), *before, *closing, *later, *LATER])
    found = one(run, "client").spans[-1]
    assert found.state == "FIN-WAIT-2"
    assert found.begin.earliest == pytest.approx(1.1, abs=0.01)
    assert found.begin.latest == pytest.approx(until, abs=0.01)


def test_a_fin_that_was_not_taken(tmp_path: Path) -> None:
    run = both(tmp_path, [*handshake(), GREETING, fin(1.0), fin(1.3), fin(1.9), *LATER])
    assert walk(run, "server") == ("SYN-RECV", "ESTAB")
    assert drawn(run, "client")[-2:] == [("FIN-WAIT-1", 1.0), (UNKNOWN, 1.9)]


# --- Handshakes whose last segment may have been ignored ------------------------------------------


def request(t: float) -> list[Sent]:
    """The client's data, and an answer."""
    return [
        Sent(t, CLIENT, SERVER, ACK, 101, 901, 5),
        Sent(t + 2 * NEAR, SERVER, CLIENT, ACK, 901, 106),
    ]


def test_a_handshake_that_a_full_queue_ignores(tmp_path: Path) -> None:
    """Each SYN ACK that is repeated says that the server was in SYN-RECV until then."""
    _, synack, ack = handshake()
    again = [replace(each, t=t + each.t - 2 * NEAR) for t in (1.0, 3.0) for each in (synack, ack)]
    run = both(tmp_path, [*handshake(), *again, *LATER])
    assert walk(run, "server") == ("SYN-RECV",)
    assert drawn(run, "server") == [("SYN-RECV", 0.0), (UNKNOWN, 3.0)]
    assert "took the ACK" in str(one(run, "server").gap)
    assert walk(run, "client") == ("SYN-SENT", "ESTAB")
    (folder := tmp_path / "room").mkdir()
    run = both(folder, [*handshake(), *again, *request(5.0), *LATER])
    assert drawn(run, "server") == [("SYN-RECV", 0.0), (UNKNOWN, 3.0), ("ESTAB", 5.0)]


@pytest.mark.parametrize("host", WALKS)
def test_a_server_that_may_have_waited_for_data(tmp_path: Path, host: str) -> None:
    """With TCP_DEFER_ACCEPT it is in SYN-RECV until there is some, without it is not."""
    run = alone(tmp_path, [*handshake(), *request(2.0), *LATER], host)
    (found,) = (
        t for name in run.hosts for t in timelines(run.history, name) if t.ends == (SERVER, CLIENT)
    )
    assert found.states == ("SYN-RECV", "ESTAB")
    begin = found.spans[1].begin
    assert begin.earliest < 0.001 and begin.at == pytest.approx(2.0, abs=0.001)
    assert drawn(run, "server")[:3] == [("SYN-RECV", 0.0), (UNKNOWN, 0.0), ("ESTAB", 2.0)]


@pytest.mark.parametrize(
    "sent",
    [
        [GREETING, *request(2.0)],
        request(0.05),
        [Sent(2.0, SERVER, CLIENT, FIN | ACK, 901, 101)],
        [Sent(2.0, SERVER, CLIENT, RST | ACK, 901, 101)],
    ],
    ids=["it speaks first", "data comes soon", "it closes", "it gives up"],
)
def test_a_server_that_took_the_ack(tmp_path: Path, sent: list[Sent]) -> None:
    run = both(tmp_path, [*handshake(), *sent, *LATER])
    assert drawn(run, "server")[:2] == [("SYN-RECV", 0.0), ("ESTAB", 0.0)]
    begin = one(run, "server").spans[1].begin
    assert begin.at == begin.earliest < 0.001


@pytest.mark.parametrize(("host", "end"), [("server", "gone"), ("client", UNKNOWN)])
def test_a_server_that_may_have_no_socket(tmp_path: Path, host: str, end: str) -> None:
    """A SYN cookie needs none, and what came may not have reached it: it answers by a RST."""
    reset = Sent(2.0 + 2 * NEAR, SERVER, CLIENT, RST, 901)
    run = alone(tmp_path, [*handshake(), *request(2.0)[:1], reset, *LATER], "server")
    assert drawn(run, "server") == [(UNKNOWN, 0.0), ("gone", 2.0)]
    assert walk(run, "server") == ("SYN-RECV", "closed")
    (folder := tmp_path / host).mkdir()
    run = alone(folder, handshake(), host)
    assert [state for state, _ in drawn(run, "server")] == [UNKNOWN]


def test_a_syn_ack_that_nothing_answers_is_no_doubt(tmp_path: Path) -> None:
    run = both(tmp_path, [*handshake()[:2], *LATER])
    assert drawn(run, "server")[0] == ("SYN-RECV", 0.0)


def test_a_syn_that_no_socket_sent(tmp_path: Path) -> None:
    """Somebody forged it on the client's host: the client goes on in the numbers that it had."""
    stray = [
        Sent(1.0, CLIENT, SERVER, SYN, 7000),
        Sent(1.0 + 2 * NEAR, SERVER, CLIENT, ACK, 901, 101),
    ]
    run = both(tmp_path, [*handshake(), GREETING, *stray, *request(2.0), *LATER])
    for host, states in (("server", ("SYN-RECV", "ESTAB")), ("client", ("SYN-SENT", "ESTAB"))):
        assert walk(run, host) == states and one(run, host).spans[-1].end is None
    assert [s.seq for s in run.history.segments() if s.time > 0.5][:3] == [6900, 1, 1]


def test_a_record_that_ends_too_soon_to_tell(tmp_path: Path) -> None:
    run = both(tmp_path, [*handshake(), *closed(1.0)])
    assert walk(run, "server") == WALKS["server"]
    assert "took the ACK of its FIN" in str(one(run, "server").gap)


# --- Resets ---------------------------------------------------------------------------------------


def test_a_reset_ends_both_sides(tmp_path: Path) -> None:
    reset = Sent(1.0, SERVER, CLIENT, RST | ACK, 901, 101)
    run = both(tmp_path, [*handshake(), reset, *LATER])
    for host, state in (("server", "SYN-RECV"), ("client", "SYN-SENT")):
        found = one(run, host)
        assert found.walk == (state, "ESTAB", "closed")
        assert found.gap is None


def test_a_reset_after_which_the_host_goes_on(tmp_path: Path) -> None:
    """A firewall sent it, or the other end did not take it."""
    reset = Sent(1.0, SERVER, CLIENT, RST | ACK, 901, 101)
    data = [Sent(2.0, CLIENT, SERVER, ACK, 101, 901, 5), Sent(2.1, SERVER, CLIENT, ACK, 901, 106)]
    run = both(tmp_path, [*handshake(), reset, *data, *LATER])
    assert walk(run, "server") == ("SYN-RECV", "ESTAB")
    assert walk(run, "client") == ("SYN-SENT", "ESTAB")


def test_a_reset_with_a_number_that_is_not_due(tmp_path: Path) -> None:
    run = both(tmp_path, [*handshake(), Sent(1.0, SERVER, CLIENT, RST, 5000), *LATER])
    found = one(run, "client")
    assert found.lost_sight
    assert found.gap == "segments do not tell whether it took the RST that came"


def test_a_reset_that_reaches_a_deaf_host(tmp_path: Path) -> None:
    """Nothing that came before had an answer either: a filter lies behind its capture."""
    probes = [Sent(t, SERVER, CLIENT, ACK, 900, 101) for t in (1.0, 2.0, 3.0)]
    reset = Sent(4.0, SERVER, CLIENT, RST | ACK, 901, 101)
    found = one(both(tmp_path, [*handshake(), *probes, reset, *LATER]), "client")
    assert found.walk == ("SYN-SENT", "ESTAB")
    assert found.lost_sight


def test_a_reset_for_want_of_a_socket(tmp_path: Path) -> None:
    """The server had forgotten the connection by then, nobody knows since when."""
    sent = [*handshake(), *closed(1.0, SERVER, CLIENT), Sent(4.0, CLIENT, SERVER, ACK, 102, 902, 5),
            Sent(4.0 + 2 * NEAR, SERVER, CLIENT, RST, 902)]  # fmt: skip
    run = both(tmp_path, [*sent, *LATER])
    assert [state for state, _ in drawn(run, "server")][-3:] == ["TIME-WAIT", UNKNOWN, "gone"]


def test_what_a_closed_window_hides(tmp_path: Path) -> None:
    """A FIN may wait behind data that can't be sent."""
    full = Sent(1.0, SERVER, CLIENT, ACK, 901, 101, 100)
    shut = Sent(1.0 + 2 * NEAR, CLIENT, SERVER, ACK, 101, 1001, window=0)
    probes = [Sent(t, SERVER, CLIENT, ACK, 1000, 101) for t in (1.3, 1.9)]
    still = [Sent(t + 2 * NEAR, CLIENT, SERVER, ACK, 101, 1001, window=0) for t in (1.3, 1.9)]
    sent = sorted([*handshake(), full, shut, *probes, *still], key=lambda s: s.t)
    run = both(tmp_path, [*sent, *LATER])
    assert drawn(run, "server")[-2:] == [("ESTAB", 0.0), (UNKNOWN, 1.0)]


# --- One capture, and connections of which not all was captured -----------------------------------


@pytest.mark.parametrize("host", WALKS)
def test_one_capture_tells_less_of_the_other_end(tmp_path: Path, host: str) -> None:
    run = alone(tmp_path, [*handshake(), *closed(1.0), *LATER], host)
    assert walk(run, host) == WALKS[host]
    other = "client" if host == "server" else "server"
    ends = (SERVER, CLIENT) if other == "server" else (CLIENT, SERVER)
    assert one(run, "peer", ends).walk == WALKS[other]


def test_a_quiet_end_without_a_capture_is_unknown(tmp_path: Path) -> None:
    run = alone(tmp_path, [*handshake(), GREETING, *LATER])
    assert one(run, "server").spans[-1].end is None
    assert one(run, "peer", (CLIENT, SERVER)).lost_sight


def test_a_connection_that_was_there_before(tmp_path: Path) -> None:
    sent = [Sent(1.0, CLIENT, SERVER, ACK, 101, 901, 5), Sent(1.1, SERVER, CLIENT, ACK, 901, 106)]
    run = both(tmp_path, [*sent, *LATER])
    assert walk(run, "server") == ("ESTAB",)
    assert one(run, "server").gap == "segments do not tell whether it had other states before"


def test_two_connections_of_the_same_ends(tmp_path: Path) -> None:
    again = [
        Sent(s.t + 3, s.source, s.target, s.flags, s.seq + 7000, s.ack and s.ack + 7000)
        for s in [*handshake(), *closed(1.0)]
    ]
    run = both(tmp_path, [*handshake(), *closed(1.0), *again, *LATER])
    found = [t for t in timelines(run.history, "client") if t.ends == (CLIENT, SERVER)]
    assert [(t.incarnation, t.states[0]) for t in found] == [(1, "SYN-SENT"), (2, "SYN-SENT")]
    assert found[0].closed and not found[1].closed
    end = found[0].spans[-1].end
    assert end and 1.0 < end.earliest < 1.2 and end.latest == pytest.approx(3.0, abs=0.01)


def test_an_ack_of_something_else_establishes_nothing(tmp_path: Path) -> None:
    """As a client's TIME-WAIT answers what a late copy of its SYN brought: with its own numbers."""
    syn, synack, ack = handshake()
    wrong = replace(ack, ack=70_000)
    reset = Sent(ack.t + NEAR, SERVER, CLIENT, RST | ACK, 901, 101)
    for last, states in ((wrong, ["SYN-RECV", "closed"]), (ack, ["SYN-RECV", "ESTAB", "closed"])):
        (folder := tmp_path / str(last.ack)).mkdir()
        run = alone(folder, [syn, synack, last, reset, *LATER], "server")
        assert [*walk(run, "server")] == states


# --- What an end had acknowledged -----------------------------------------------------------------


def life(*passed: tuple[float, str]) -> _Life:
    """The server's, by what passed its capture and when."""
    return _Life([(t, text.startswith("server"), segment(t, text)) for t, text in passed], True, 9)


@pytest.mark.parametrize(
    ("until", "acked"), [(1.0, 0), (1.5, 1), (2.0, 1), (2.5, 6), (3.5, 6), (4.5, 9), (9.0, 9)]
)
def test_how_far_it_had_acknowledged_before_a_moment(until: float, acked: int) -> None:
    """An old number that is sent once more takes nothing back, and a RST's says nothing."""
    found = life(
        (1.0, "server SYN ACK 0 1"), (1.2, "client ACK 1 1 len 8"), (2.0, "server ACK 1 6"),
        (3.0, "server ACK 1 4"), (4.0, "server ACK 1 9"), (5.0, "server RST ACK 1 99"),
    )  # fmt: skip
    assert found._acked(until) == acked


@pytest.mark.parametrize(
    ("text", "wants"),
    [
        ("client ACK 6 1 len 1", True),
        ("client ACK 5 1 len 1", False),
        ("client ACK 1 1 len 6", True),
        ("client FIN ACK 6 1", True),
        ("client FIN ACK 5 1", False),
        ("client ACK 6 1", False),
        ("client ACK 9 1", False),
    ],
)
def test_what_it_had_not_acknowledged_wants_an_answer(text: str, wants: bool) -> None:
    found = life((1.0, "server ACK 1 6"))
    assert found._wants_answer(2.0, segment(2.0, text)) is wants


@pytest.mark.parametrize(
    ("passed", "filtered"),
    [
        ([(1.0, "client ACK 1 1 len 5"), (2.0, "client ACK 1 1 len 5")], True),
        ([(1.0, "client ACK 1 1 len 5"), (2.0, "client ACK 1 1 len 9")], True),
        ([(1.0, "client ACK 1 1 len 5"), (2.0, "client ACK 6 1 len 5")], False),
        ([(1.0, "client ACK 1 1 len 5"), (1.5, "server ACK 1 6"),
          (2.0, "client ACK 1 1 len 5")], False),
        ([(1.0, "client ACK 1 1 len 5"), (1.5, "server ACK 1 5"),
          (2.0, "client ACK 1 1 len 5")], True),
        ([(1.0, "client ACK 1 1"), (2.0, "client ACK 1 1")], False),
        ([(1.0, "client ACK 1 1 len 5")], False),
        ([], False),
    ],
)  # fmt: skip
def test_whether_a_filter_seems_to_lie_behind_the_capture(
    passed: list[tuple[float, str]], filtered: bool
) -> None:
    assert life((0.5, "server SYN ACK 0 1"), *passed).filtered is filtered
