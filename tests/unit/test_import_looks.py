"""Looks by `ss` beside a capture: when they were, and what they tell where segments do not."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labctl.ground.errors import UsageError
from labctl.imports import importing
from labctl.imports.census import Wanted
from labctl.imports.looks import read_looks
from labctl.judge.causes.rules import causes
from labctl.judge.recorded import load
from labctl.judge.result import RunResult
from labctl.record.events import SocketsEvent
from labctl.record.timelines import Timeline, timelines
from tests.captured import BEGUN, CLIENT, SERVER, closed, frames, handshake, pcap
from tests.damaged import damaged
from tests.fake import HEADER, tcp
from tests.walked import ACK, FIN, Sent

LISTEN = tcp("LISTEN", ":8000", send_q=5)
NOW = (BEGUN, BEGUN + 100)


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("1700000001.250000000", 1700000001.25),
        ("1700000001", 1700000001.0),
        ("# 1700000001.25 a caption", 1700000001.25),
        ("2023-11-14T22:13:21.25+00:00", 1700000001.25),
        ("2023-11-14T23:13:21+01:00", 1700000001.0),
        ("2023-11-14 22:13:21", 1700000001.0),
        ("Tue Nov 14 22:13:21 UTC 2023", 1700000001.0),
    ],
)
def test_times(tmp_path: Path, line: str, at: float) -> None:
    (found,) = read_looks(written(tmp_path / "ss", line, HEADER, LISTEN), NOW)
    assert found.at == at
    assert found.text == f"{HEADER}\n{LISTEN}\n"


def test_several_looks_in_any_order(tmp_path: Path) -> None:
    path = written(
        tmp_path / "ss", "1700000009", HEADER, LISTEN, "", "1700000005", HEADER, "1700000007"
    )
    assert [look.at - BEGUN for look in read_looks(path, NOW)] == [5, 9]


def test_processes_do_not_matter(tmp_path: Path) -> None:
    """`ss -p` prints them, and so people's files have them."""
    line = LISTEN + ' users:(("nginx",pid=7,fd=6),("nginx",pid=8,fd=6)) ino:5 sk:1'
    (found,) = read_looks(written(tmp_path / "ss", "1700000001", HEADER, line), NOW)
    assert found.text == f"{HEADER}\n{LISTEN} ino:5 sk:1\n"


def test_a_look_without_a_time_has_that_of_its_file(tmp_path: Path) -> None:
    path = written(tmp_path / "ss", HEADER, LISTEN)
    os.utime(path, (BEGUN + 7, BEGUN + 7))
    (found,) = read_looks(path, NOW)
    assert found.at == BEGUN + 7
    os.utime(path, (BEGUN - 7, BEGUN - 7))
    with pytest.raises(UsageError, match=r"ss:1: nothing says when this look was; write a line"):
        read_looks(path, NOW)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1700000001", HEADER, LISTEN, "rubbish"], "ss:4: no line of `ss -tan`: 'rubbish'"),
        (["1700000001", HEADER, LISTEN, "1700000002", HEADER, "x"], "ss:6: no line"),
        (["Netid State Recv-Q Send-Q Local Peer", "tcp LISTEN 0 1 *:80 *:*"], "ss:"),
        ([""], "ss: it has no look of `ss`"),
    ],
)
def test_what_is_no_look(tmp_path: Path, lines: list[str], message: str) -> None:
    path = written(tmp_path / "ss", *lines)
    os.utime(path, (BEGUN + 7, BEGUN + 7))
    with pytest.raises(UsageError) as found:
        read_looks(path, NOW)
    assert message in str(found.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none: can't be read: No such file"):
        read_looks(tmp_path / "none", NOW)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_is_too_much(tmp_path: Path, data: st.DataObject) -> None:
    path = written(tmp_path / "ss", "1700000001", HEADER, LISTEN, tcp("ESTAB", SERVER, CLIENT))
    path.write_bytes(damaged(path.read_bytes(), data))
    try:
        read_looks(path, NOW)
    except UsageError as exc:
        assert str(exc).startswith(f"{path}:")


# --- What they tell -------------------------------------------------------------------------------


def looked(folder: Path, sent: list[Sent], *looks: tuple[float, str], ahead: float = 0.0
           ) -> RunResult:  # fmt: skip
    """The import of both ends, and of looks at the client; its clock is ahead."""
    files = {
        "server": pcap(folder / "a", frames(sent, SERVER)),
        "client": pcap(folder / "b", frames(sent, CLIENT, ahead)),
    }
    lines = [w for t, line in looks for w in (f"{BEGUN + t + ahead:.6f}", HEADER, line)]
    saved = {"client": written(folder / "ss.txt", *lines)}
    run = folder / "run"
    run.mkdir()
    importing.record(importing.with_looks(importing.load(files, Wanted()), saved), run)
    return load(run)


def client(run: RunResult) -> Timeline:
    (found,) = (t for t in timelines(run.history, "client") if t.ends == (CLIENT, SERVER))
    return found


def shown(state: str, more: str = "") -> str:
    return tcp(state, CLIENT, SERVER, more=more)


PLAIN = [*handshake(), *closed(1.0)]
NONE = tcp("LISTEN", ":22")


def test_a_look_tells_that_time_wait_goes_on(tmp_path: Path) -> None:
    run = looked(tmp_path, PLAIN, (30.0, shown("TIME-WAIT")), (59.0, shown("TIME-WAIT")))
    found = client(run)
    assert found.lost_sight
    end = found.spans[-1].end
    assert end and end.earliest == pytest.approx(59.0, abs=0.01) and end.latest == math.inf


def test_a_look_tells_that_it_is_over(tmp_path: Path) -> None:
    run = looked(tmp_path, PLAIN, (30.0, shown("TIME-WAIT")), (70.0, NONE))
    found = client(run)
    assert found.walk[-1] == "closed"
    assert found.complete
    end = found.spans[-1].end
    assert end and end.earliest == pytest.approx(30.0, abs=0.01)
    assert end.latest == pytest.approx(70.1, abs=0.01)


def test_looks_have_the_clock_of_their_host(tmp_path: Path) -> None:
    run = looked(tmp_path, PLAIN, (30.0, shown("TIME-WAIT")), ahead=3.0)
    assert run.history.sockets["client"].t == pytest.approx(30.0, abs=0.001)


def test_a_state_that_no_segment_shows(tmp_path: Path) -> None:
    """The client closed, and its FIN was lost before any capture."""
    run = looked(tmp_path, handshake(), (5.0, shown("ESTAB")), (9.0, shown("FIN-WAIT-1")))
    found = client(run)
    assert found.walk == ("SYN-SENT", "ESTAB", "FIN-WAIT-1")
    begin = found.spans[-1].begin
    assert (begin.earliest, begin.latest) == pytest.approx((5.0, 9.1), abs=0.01)


def test_a_state_that_contradicts_the_segments_does_not_count(tmp_path: Path) -> None:
    run = looked(tmp_path, PLAIN, (5.0, shown("ESTAB")))
    assert client(run).states[-1] == "TIME-WAIT"


@pytest.mark.parametrize(
    ("look", "walk", "certain"),
    [
        (shown("ESTAB"), ("SYN-RECV", "ESTAB"), True),
        (shown("SYN-RECV"), ("SYN-RECV",), True),
        (NONE, ("SYN-RECV", "closed"), False),
    ],
)
def test_a_look_tells_whether_a_handshake_is_done(
    tmp_path: Path, look: str, walk: tuple[str, ...], certain: bool
) -> None:
    """The client was asked, and has said nothing since its SYN ACK: it may have no socket even."""
    found = client(looked(tmp_path, handshake(0.0, SERVER, CLIENT), (5.0, look)))
    assert found.walk == walk
    assert found.spans[0].certain is certain


def test_a_connection_that_only_looks_show(tmp_path: Path) -> None:
    other = tcp("ESTAB", "10.0.0.3:50001", "10.0.0.9:5432")
    run = looked(tmp_path, PLAIN, (5.0, other), (9.0, other))
    (found,) = (t for t in timelines(run.history, "client") if t.local.endswith(":50001"))
    assert found.states == ("ESTAB",) and not found.inferred
    begin = found.spans[0].begin
    assert begin.earliest == 0.0 and begin.latest == pytest.approx(5.1, abs=0.01)


def test_causes_name_what_looks_show(tmp_path: Path) -> None:
    """Nobody has the client's socket open: an orphan."""
    sent = [
        *handshake(),
        Sent(1.0, CLIENT, SERVER, FIN | ACK, 101, 901),
        Sent(1.01, SERVER, CLIENT, ACK, 901, 102),
    ]
    orphan = shown("FIN-WAIT-2", "timer:(timewait,50sec,0) ino:0")
    run = looked(tmp_path, sent, (3.0, orphan), (9.0, orphan))
    assert "fin-wait-2-orphan" in {cause.id for cause in causes(run.history)}


def test_a_look_at_another_host(tmp_path: Path) -> None:
    files = {"server": pcap(tmp_path / "a", frames(PLAIN, SERVER))}
    found = importing.load(files, Wanted())
    with pytest.raises(UsageError, match="--ss web=x: no capture of that host; there are: server"):
        importing.with_looks(found, {"web": Path("x")})


def test_a_look_from_before_the_capture(tmp_path: Path) -> None:
    """The run begins with it."""
    run = looked(tmp_path, PLAIN, (-9.0, NONE), (5.0, NONE))
    assert [e.t for e in run.history.events if isinstance(e, SocketsEvent)] == [0.0, 14.0]
    assert client(run).spans[0].begin.at == pytest.approx(9.0, abs=0.01)
