"""The ladder: from a history to its rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labctl.judge import recorded
from labctl.judge.check import Verdict
from labctl.record.events import (
    CountersEvent,
    Event,
    ProcessEvent,
    SocketsEvent,
    StateEvent,
    TroubleEvent,
)
from labctl.reports import ladder, ladder_text
from labctl.reports.ladder import ladder_of
from labctl.reports.rows import Arrow, Bar, Call, Gap, Judged, Ladder, Look, Note, Return, Step
from tests.fake import tcp
from tests.reported import (
    ADDRESSES,
    CLIENT,
    CLOSE,
    HANDSHAKE,
    RUN,
    SERVER,
    bars,
    call,
    full,
    history,
    look,
    rows,
    segment,
    step,
)

# --- The ladder -----------------------------------------------------------------------------------


def test_rows_are_in_order_and_hosts_are_the_scenarios() -> None:
    run = recorded.load(RUN)
    times = [row.t for row in ladder_of(run).rows]
    assert run.hosts == ("server", "client")
    assert times == sorted(times)


def test_states_that_ss_saw_are_put_at_the_segment_that_brought_them() -> None:
    estab = tcp("ESTAB", SERVER, CLIENT), tcp("ESTAB", CLIENT, SERVER)
    found = rows(
        history(
            look(0.09, "client", estab[1]),
            look(0.11, "server", estab[0]),
            look(0.201, "server", tcp("FIN-WAIT-2", SERVER, CLIENT)),
            look(0.19, "client", tcp("CLOSE-WAIT", CLIENT, SERVER)),
            look(0.25, "client", tcp("CLOSE-WAIT", CLIENT, SERVER)),
            look(0.31, "server", tcp("TIME-WAIT", SERVER, CLIENT)),
            look(0.31, "client"),
            look(60.31, "server"),
            segments=[*HANDSHAKE, *CLOSE],
        )
    )
    assert bars(found, "client") == [
        ("ESTAB", pytest.approx(0.1003), False),
        ("CLOSE-WAIT", pytest.approx(0.2001), False),
        ("", 0.31, False),
    ]
    assert bars(found, "server") == [
        ("ESTAB", pytest.approx(0.1005), False),
        ("FIN-WAIT-2", pytest.approx(0.2003), False),
        ("TIME-WAIT", pytest.approx(0.3001), False),
        ("", 60.31, False),
    ]


def test_the_tracepoint_wins_and_ss_adds_minisockets() -> None:
    found = rows(
        history(
            StateEvent(0.1, "client", "198.18.0.3:0", SERVER, "UNCONN", "SYN-SENT"),
            StateEvent(0.1003, "client", CLIENT, SERVER, "SYN-SENT", "ESTAB"),
            look(0.15, "client", tcp("ESTAB", CLIENT, SERVER)),
            StateEvent(0.2, "client", CLIENT, SERVER, "ESTAB", "FIN-WAIT-1"),
            StateEvent(0.2002, "client", CLIENT, SERVER, "FIN-WAIT-1", "FIN-WAIT-2"),
            StateEvent(0.3, "client", CLIENT, SERVER, "FIN-WAIT-2", "UNCONN"),
            look(0.29, "client", tcp("FIN-WAIT-2", CLIENT, SERVER)),
            look(0.32, "client", tcp("TIME-WAIT", CLIENT, SERVER)),
            look(60.3, "client"),
        )
    )
    assert bars(found, "client") == [
        ("SYN-SENT", 0.1, True),
        ("ESTAB", 0.1003, True),
        ("FIN-WAIT-1", 0.2, True),
        ("FIN-WAIT-2", 0.2002, True),
        ("TIME-WAIT", 0.3, False),
        ("", 60.3, False),
    ]


def test_a_socket_may_become_a_minisocket_in_the_state_that_it_is_in() -> None:
    found = rows(
        history(
            look(0.0999, "server", tcp("ESTAB", SERVER, CLIENT)),  # ran a little later
            StateEvent(0.1003, "server", SERVER, CLIENT, "LISTEN", "SYN-RECV"),
            StateEvent(0.1004, "server", SERVER, CLIENT, "SYN-RECV", "ESTAB"),
            StateEvent(0.2, "server", SERVER, CLIENT, "ESTAB", "FIN-WAIT-1"),
            StateEvent(0.2002, "server", SERVER, CLIENT, "FIN-WAIT-1", "FIN-WAIT-2"),
            StateEvent(0.2002, "server", SERVER, CLIENT, "FIN-WAIT-2", "UNCONN"),
            look(0.21, "server", tcp("FIN-WAIT-2", SERVER, CLIENT)),
            look(5.21, "server"),
        )
    )
    assert bars(found, "server") == [
        ("SYN-RECV", 0.1003, True),
        ("ESTAB", 0.1004, True),
        ("FIN-WAIT-1", 0.2, True),
        ("FIN-WAIT-2", 0.2002, True),
        ("", 5.21, False),
    ]


def test_a_listener_begins_with_listen_and_ends_with_its_process() -> None:
    old, new = (tcp("LISTEN", ":8000", more=f"ino:{n}") for n in (11, 12))
    found = rows(
        history(
            ProcessEvent(0.01, "server", "server", "start"),
            look(0.018, "server", old),
            *call(0.019, 0.02, "server", "listen 5"),
            ProcessEvent(0.2, "server", "server", "gone", signal="KILL"),
            ProcessEvent(0.21, "server", "server", "start"),
            *call(0.22, 0.23, "server", "listen 5"),
            look(0.22, "server", new),
        )
    )
    assert bars(found, "server") == [
        ("LISTEN", 0.02, False), ("", 0.2, False), ("LISTEN", 0.23, False)
    ]  # fmt: skip


def test_a_look_that_is_not_understood_changes_no_state() -> None:
    found = rows(
        history(
            look(0.1, "server", tcp("LISTEN", ":8000")),
            SocketsEvent(0.2, "server", "look", "who knows", {}, "odd"),
        )
    )
    assert bars(found, "server") == [("LISTEN", 0.1, False)]
    assert "not understood" in found.looks[0].lines[0]


def test_like_segments_become_one_arrow_and_odd_ones_never() -> None:
    data = [segment(1 + n / 1e5, f"server ACK {n} 1 len 10") for n in range(50)]
    special = [
        segment(1.1, "client ACK 1 9", zero_window=True),
        segment(1.2, "client ACK 1 9", zero_window=True),
        segment(1.3, "server ACK 8 1 len 1", probe=True),
        segment(1.4, "server ACK 8 1 len 1", probe=True),
        *(segment(1.5 + n / 1e5, f"server ACK {n} 1 len 10", None) for n in range(5)),
        *(segment(1.6 + n / 1e5, "server RST 1 1") for n in range(5)),
    ]
    later = look(2.0, "server")  # by then nothing is under way any more
    drawn = rows(history(later, segments=data + special)).rows
    found = [r for r in drawn if isinstance(r, Arrow)]
    assert [(a.label, a.count) for a in found[:1]] == [("50 segments, 500 bytes", 50)]
    assert len(found) == 1 + len(special)
    assert [a.lost for a in found[5:10]] == [True] * 5


def test_other_events_part_like_segments() -> None:
    data = [segment(1 + n / 1e3, f"server ACK {n} 1 len 10") for n in range(20)]
    killed = ProcessEvent(1.0095, "client", "client", "gone")
    started = ProcessEvent(0.5, "client", "client", "start")
    found = rows(history(started, killed, look(2.0, "server"), segments=data))
    assert [r.count for r in found.rows if isinstance(r, Arrow)] == [10, 10]


def test_a_call_that_waits_returns_later() -> None:
    found = rows(
        history(
            *call(0.05, 0.12, "server", "accept", peer=CLIENT),
            *call(0.13, 0.1301, "server", "send x", result=1),
            *call(0.14, None, "server", "wait"),
            segments=HANDSHAKE,
        )
    )
    calls = [row for row in found.rows if isinstance(row, Call)]
    assert [(c.text, c.result, c.until, c.waits) for c in calls] == [
        ("accept", f"from {CLIENT}", 0.12, True),
        ("send x", "1", 0.1301, False),
        ("wait", "", None, True),
    ]
    assert [row.call.text for row in found.rows if isinstance(row, Return)] == ["accept"]


def test_verdicts_stand_for_their_steps_and_follow_what_they_saw() -> None:
    verdict = Verdict("pass", "server: LISTEN", "LISTEN within 5 s", "LISTEN", 0.019, "a.yaml:3",
                      subject="server")  # fmt: skip
    found = rows(
        history(
            *step(0.001, "start server", 0.002),
            *step(0.003, "wait server LISTEN", 0.01863, "held"),
            look(0.01863, "server", tcp("LISTEN", ":8000")),
            *call(0.0191, 0.0193, "server", "listen 5"),
        ),
        verdict,
    )
    kinds = [type(row) for row in found.rows]
    assert kinds == [Step, Call, Bar, Judged]
    assert [row.claim for row in found.rows if isinstance(row, Judged)] == [
        "server: LISTEN within 5 s"
    ]


def test_long_silence_is_folded() -> None:
    found = rows(full())
    assert [(gap.t, round(gap.until - gap.t, 1)) for gap in found.rows if isinstance(gap, Gap)] == [
        (pytest.approx(0.4501), 60.0)
    ]
    assert "⋮ 60.0 s" in ladder_text.text(found, 100)


def test_looks_with_captions_are_kept() -> None:
    found = rows(full())
    assert [(x.host, x.caption) for x in found.looks] == [
        ("server", "connected"), ("server", "at the end")
    ]  # fmt: skip
    assert found.looks[1].lines == ("no sockets",)
    assert isinstance(found.rows[-1], Look)


def test_connections_are_told_apart() -> None:
    found = rows(full())
    assert found.connections == ((CLIENT, SERVER), ("198.18.0.3:40001", "198.18.0.4:80"))
    assert "#2 RST ACK" in ladder_text.text(found, 100)


def requested(*events: object, counters: int | None = None) -> list[tuple[str, float, bool]]:
    """The states of a server whose handshake went so."""
    told: list[Event] = [CountersEvent(0.01, "server", {"TcpExtSyncookiesSent": 0})]
    if counters is not None:
        told += [replace(look(0.5, "server"), counters={"TcpExtSyncookiesSent": counters})]
    late = [segment(0.05, "client SYN 0 0"), *HANDSHAKE]  # the first one had no answer
    return bars(rows(history(*told, *events, segments=late)), "server")  # type: ignore[arg-type]


def test_syn_recv_begins_with_the_syn_that_was_answered() -> None:
    """The tracepoint tells of it when the handshake is done, or not at all."""
    after = StateEvent(0.1006, "server", SERVER, CLIENT, "SYN-RECV", "ESTAB")
    told = StateEvent(0.1005, "server", SERVER, CLIENT, "LISTEN", "SYN-RECV")
    expected = [("SYN-RECV", pytest.approx(0.1001), False), ("ESTAB", 0.1006, True)]
    assert requested(told, after) == expected
    assert requested(after) == expected
    # with SYN cookies, nothing is kept for a SYN
    assert requested(told, after, counters=1)[0] == ("SYN-RECV", 0.1005, True)
    _, syn, answer, _ = ladder_text.text(rows(history(told, after, segments=HANDSHAKE)), 100).split(
        "\n"
    )[:4]
    assert "[SYN-RECV] │◀" in syn
    assert "SYN ACK" in answer


def test_syn_recv_of_an_address_that_comes_again() -> None:
    again = [s._replace(t=(s.t or 0) + 1, arrived=(s.arrived or 0) + 1) for s in HANDSHAKE]
    found = rows(
        history(
            StateEvent(0.1005, "server", SERVER, CLIENT, "LISTEN", "SYN-RECV"),
            StateEvent(0.1006, "server", SERVER, CLIENT, "SYN-RECV", "ESTAB"),
            StateEvent(0.2, "server", SERVER, CLIENT, "ESTAB", "UNCONN"),
            StateEvent(1.1005, "server", SERVER, CLIENT, "LISTEN", "SYN-RECV"),
            StateEvent(1.1006, "server", SERVER, CLIENT, "SYN-RECV", "ESTAB"),
            segments=[*HANDSHAKE, segment(0.2001, "server RST ACK 1 1"), *again],
        )
    )
    assert [(state, round(t, 4)) for state, t, _ in bars(found, "server")] == [
        ("SYN-RECV", 0.1001), ("ESTAB", 0.1006), ("", 0.2), ("SYN-RECV", 1.1001), ("ESTAB", 1.1006)
    ]  # fmt: skip


def test_steps_of_other_variants_are_none_of_the_ladder() -> None:
    mine, other = step(0.01, "kill server", 0.02), step(0.03, "stop server", 0.04, "skipped")
    found = ladder.rows(history(*mine, *other), ("server", "client"), (), others={30})
    assert [row.text for row in found.rows if isinstance(row, Step)] == ["kill server"]


def notes(found: Ladder) -> list[tuple[str, str, bool]]:
    return [(r.host, r.text, r.trouble) for r in found.rows if isinstance(r, Note)]


def test_an_accept_queue_is_told_as_it_fills() -> None:
    waiting = [0, 1, 1, 2, 3, 4, 5, 6, 5, 0, 6, 0]
    looks = [
        look(0.1 + n / 10, "server", tcp("LISTEN", ":8000", recv_q=q, send_q=5), *more)
        for n, q in enumerate(waiting)
        for more in [(tcp("ESTAB", SERVER, f"198.18.0.3:{n + 1}"),)]
    ]
    assert [text for _, text, _ in notes(rows(history(*looks)))] == [
        f"accept queue of :8000: {words}"
        for words in ("1/5", "2/5", "4/5", "6/5, full", "0/5", "6/5, full", "0/5")
    ]
    closed = [look(0.1, "server", tcp("LISTEN", ":1", recv_q=1, send_q=5)), look(0.2, "server")]
    again = look(0.3, "server", tcp("LISTEN", ":1", recv_q=1, send_q=5))
    assert len(notes(rows(history(*closed, again)))) == 2


def test_what_can_not_be_seen_is_told_once() -> None:
    lost, other = "3 packets were lost", "no such file"
    found = rows(
        history(
            *(TroubleEvent(t, host, "trace", lost) for t in (0.1, 0.2) for host in ADDRESSES),
            TroubleEvent(0.3, "client", "ss", other),
        )
    )
    assert notes(found) == [("server", f"trace: {lost}", True), ("client", f"ss: {other}", True)]
