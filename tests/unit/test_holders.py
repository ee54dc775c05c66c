"""Who holds a socket: what supervisors report, joined with looks; in words and as data."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from labctl.ground.resources import images
from labctl.probes.holders import Holder, named
from labctl.probes.sockets import describe_socket, parse_ss
from labctl.record.events import Event, HoldersEvent, ProcessEvent, SocketsEvent
from labctl.record.history import History
from labctl.record.holders import SOON, described, held_by, told
from labctl.reports.ladder import rows
from tests.caused import LISTEN, holds, look
from tests.fake import FakeBackend, tcp
from tests.played import Play

START = ProcessEvent(0.1, "server", "server", "start", pid=2)
ONE, OTHER = Holder("server", 1, 2, "nginx", (6,)), Holder("server", 1, 3, "nginx", (6,))
NO_LISTENER = look(2.0, tcp("TIME-WAIT", "198.18.0.2:8000", "198.18.0.3:40000"))


LISTENS = holds(1.0, "server", {2: {6: 1}})


def by(*events: Event, t: float = 3.0, line: str = LISTEN) -> list[Holder]:
    """Who held this socket, that a look at this time showed."""
    (seen,) = parse_ss(line)
    return list(held_by(History([START, *events, look(t, line)]), "server", seen, t))


# --- The join -------------------------------------------------------------------------------------


def test_a_look_at_the_time_of_a_report() -> None:
    assert by(LISTENS, t=1.0) == [ONE]
    assert by(look(0.9, LISTEN), LISTENS, t=1.0 - SOON / 2) == [ONE]
    assert by(LISTENS, t=1.0 - 2 * SOON) == []


def test_several_hold_one_socket_and_one_by_several_descriptors() -> None:
    twice = holds(1.0, "server", {2: {6: 1, 10: 1, 3: 7}, 3: {6: 1}})
    assert by(twice) == [Holder("server", 1, 2, "nginx", (6, 10)), OTHER]


def test_a_report_holds_as_long_as_looks_show_the_inode() -> None:
    assert by(LISTENS, look(2.0, LISTEN)) == [ONE]
    assert by(LISTENS, NO_LISTENER) == []  # the inode is another socket's by now
    assert by(LISTENS, NO_LISTENER, holds(2.5, "server", {3: {6: 1}})) == [OTHER]
    late = [holds(2.1, "server", {3: {6: 1}}), NO_LISTENER]  # this look was before that report
    assert by(LISTENS, *late) == [OTHER]
    assert by(LISTENS, *late, look(2.5)) == []


def test_a_look_elsewhere_says_nothing_of_it() -> None:
    assert by(LISTENS, look(2.0, host="client")) == [ONE]


def test_the_nearest_report_counts() -> None:
    both = holds(1.0, "server", {2: {6: 1}, 3: {6: 1}})
    assert by(both, holds(2.9, "server", {3: {6: 1}})) == [OTHER]
    assert by(both, holds(3.0 + SOON / 2, "server", {3: {6: 1}})) == [OTHER]
    assert by(both, holds(3.0 + 2 * SOON, "server", {3: {6: 1}})) == [ONE, OTHER]
    assert by(holds(2.9, "server", {2: {6: 1}}), holds(3.5, "server", {3: {6: 1}})) == [ONE]


def test_who_has_ended_since_then_holds_nothing() -> None:
    both = holds(1.0, "server", {2: {6: 1}, 3: {6: 1}})
    ended = ProcessEvent(2.0, "server", "server", "exit", pid=2, signal="KILL", left=True)
    assert by(both, ended) == [OTHER]
    assert by(both, ProcessEvent(2.0, "server", "server", "gone", signal="KILL")) == []
    before = ProcessEvent(0.5, "server", "server", "exit", pid=2, exit=0, left=True)
    assert by(before, both) == [ONE, OTHER]  # that pid is another one's by now


def test_starts_are_distinguished() -> None:
    again = ProcessEvent(1.5, "server", "server", "start", pid=2)
    mine = [
        LISTENS,
        again,
        holds(1.6, "server", {3: {6: 1}}, start=1),
        holds(1.6, "server", {2: {6: 9}}),
    ]
    assert by(*mine) == [OTHER]
    other = tcp("LISTEN", ":9000", more="ino:9")
    assert by(*mine, line=other) == [Holder("server", 2, 2, "nginx", (6,))]
    gone = ProcessEvent(2.0, "server", "server", "gone", signal="KILL", start=1)
    assert by(*mine, gone) == []
    assert by(*mine, gone, line=other) == [Holder("server", 2, 2, "nginx", (6,))]


@pytest.mark.parametrize("more", ["", "ino:0", "ino:2"])
def test_of_a_socket_that_nobody_is_known_to_hold(more: str) -> None:
    """`ss` shows no inode of some, 0 of those that nobody holds."""
    assert by(LISTENS, line=tcp("LISTEN", ":8000", more=more)) == []


def test_of_another_host_nothing_is_known() -> None:
    (seen,) = parse_ss(LISTEN)
    assert held_by(History([START, LISTENS]), "client", seen, 1.0) == ()


def test_what_is_known_grows_with_the_history() -> None:
    history, (seen,) = History([START, LISTENS]), parse_ss(LISTEN)
    assert held_by(history, "server", seen, 1.5) == (ONE,)
    history.add(holds(1.5, "server", {2: {6: 1}, 3: {6: 1}}))
    assert held_by(history, "server", seen, 1.5) == (ONE, OTHER)
    history.add(NO_LISTENER)
    assert held_by(history, "server", seen, 2.5) == ()


# --- Words and data -------------------------------------------------------------------------------


def test_in_words() -> None:
    assert str(ONE) == "server (pid 2, nginx, fd 6)"
    assert str(Holder("server", 1, 2, "", (6,))) == "server (pid 2, fd 6)"
    assert str(Holder("old", 1, 2, "sh", (3, 4, 5, 6))) == "old (pid 2, sh, fd 3 4 5...)"
    assert "\x1b" not in str(Holder("old", 1, 2, "\x1b[31msh", (3,)))
    many = [Holder("p", 1, pid, "sh", (3,)) for pid in range(2, 9)]
    words = [f"p (pid {pid}, sh, fd 3)" for pid in range(2, 9)]
    assert named(many[:1]) == words[0]
    assert named(many[:2]) == f"{words[0]} and {words[1]}"
    assert named(many[:3]) == f"{words[0]}, {words[1]} and {words[2]}"
    assert named(many) == f"{words[0]}, {words[1]}, {words[2]} and 4 more"


def test_a_socket_with_its_holders() -> None:
    seen = look(1.0, LISTEN, tcp("TIME-WAIT", "198.18.0.2:80", "198.18.0.3:9"))
    history = History([START, LISTENS, seen])
    listener, old = seen.sockets
    words = "LISTEN 0.0.0.0:8000, accept queue 0/5"
    assert described(history, seen, listener) == f"{words}, held by server (pid 2, nginx, fd 6)"
    assert described(history, seen, old) == describe_socket(old)
    lines, (found,) = told(history, seen, seen.sockets)
    assert lines == tuple(described(history, seen, socket) for socket in seen.sockets)
    assert (found.ends, found.by) == (listener.ends, (ONE,))


def test_the_picture_of_a_look_names_holders() -> None:
    seen = SocketsEvent(1.0, "server", "look", look(1.0, LISTEN).text, {}, "a caption")
    (row,) = rows(History([START, LISTENS, seen]), ["server"]).looks
    assert row.lines == (
        "LISTEN 0.0.0.0:8000, accept queue 0/5, held by server (pid 2, nginx, fd 6)",
    )


# --- A lab ----------------------------------------------------------------------------------------

LISTENER = tcp("LISTEN", ":8000", more="ino:7", send_q=5)
TEXT = """\
- start: server
- snapshot: all
- expect: {sockets: {server: none}}
- expect: {sockets: {server: FIN-WAIT-1}}
"""


def starts(lab: FakeBackend) -> None:
    lab.sockets("server", LISTENER)
    lab.holds("server", 2, fd3=7)
    lab.holds("server", 5, fd3=7)


def test_evidence_names_holders(watch: Play) -> None:
    found = watch(TEXT, FakeBackend({"start server": starts}))
    for verdict in found.verdicts:
        assert verdict.evidence == (
            "LISTEN 0.0.0.0:8000, accept queue 0/5, "
            "held by server (pid 2, python3, fd 3) and server (pid 5, python3, fd 3)",
        )
    measured = json.loads(json.dumps(found.as_json()))["verdicts"][0]["measured"]
    pids = {"process": "server", "start": 1, "command": "python3", "descriptors": [3]}
    assert measured["holders"] == [
        {"ends": [":8000", ""], "by": [{**pids, "pid": 2}, {**pids, "pid": 5}]}
    ]


@pytest.mark.parametrize(
    ("before", "known"), [("", 1), ("- pause: server\n", 0), ("- kill: server\n", 0)]
)
def test_who_can_not_answer_is_not_asked(before: str, known: int, watch: Play) -> None:
    """A paused process, and one that is gone."""
    text = f"- start: server\n{before}- expect: {{sockets: {{server: none}}}}\n"
    found = watch(text, FakeBackend({"start server": starts}))
    assert sum("held by" in line for line in found.verdicts[0].evidence) == known


def test_who_ends_before_it_answers_keeps_nobody_waiting(watch: Play) -> None:
    def ends(lab: FakeBackend) -> None:
        lab.sockets("server", LISTENER)
        lab.dumb("server")

    fake = FakeBackend({"start server": ends, "look server": lambda lab: lab.exit("server")})
    found = watch("- start: server\n- expect: {sockets: {server: LISTEN}}\n", fake)
    assert found.verdicts[0].evidence == ("LISTEN 0.0.0.0:8000, accept queue 0/5",)


def test_waiting_for_a_counter_asks_nobody_again_and_again(watch: Play) -> None:
    text = "- start: server\n- wait: {counters: {server: {TcpActiveOpens: 9}}}\n  within: 300ms\n"
    fake = FakeBackend({"start server": starts})
    found = watch(text, fake)
    reports = [e for e in found.history.events if isinstance(e, HoldersEvent)]
    assert len(reports) == 3 < fake.log.count("look server")  # first, when it is late, in the end


def test_a_look_waits_for_slow_answers(watch: Play) -> None:
    def begins(lab: FakeBackend) -> None:
        starts(lab)
        lab.dumb("server")

    def looks(lab: FakeBackend) -> None:
        threading.Timer(0.1, lab.speaks).start()

    fake = FakeBackend({"start server": begins, "look server": looks})
    found = watch("- start: server\n", fake, "expect:\n- sockets: {server: LISTEN}\n")
    assert "held by" in found.verdicts[0].evidence[0]


def test_after_a_bind_that_failed_holders_are_asked_for_at_once(watch: Play) -> None:
    def fails(lab: FakeBackend) -> None:
        starts(lab)
        lab.call("server", "bind server:8000", errno="EADDRINUSE", error="Address already in use")

    found = watch("- start: server\n- kill: server\n", FakeBackend({"start server": fails}))
    (cause,) = (cause for cause in found.causes if cause.id.startswith("bind"))
    assert "held by server (pid 2, python3, fd 3) and server (pid 5" in cause.text


# --- The report of a supervisor -------------------------------------------------------------------


def program() -> Any:
    spec = importlib.util.spec_from_file_location("peer_held", images() / "peer" / "held.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HELD = program()
AT_LEAST = 60.0
"""Seconds that surely are enough for a report."""


def proc(folder: Path, **files: Sequence[str]) -> str:
    """A /proc with these processes (`pid7`): what each descriptor is, from 0 on."""
    for name, targets in files.items():
        process = folder / name.removeprefix("pid")
        (process / "fd").mkdir(parents=True)
        (process / "comm").write_text(f"command {process.name}\n")
        for number, target in enumerate(targets):
            (process / "fd" / str(number)).symlink_to(target)
    return str(folder)


def sockets(count: int) -> list[str]:
    return [f"socket:[{2**32 - n}]" for n in range(count)]


def test_what_processes_hold(tmp_path: Path) -> None:
    there = proc(
        tmp_path, pid7=["/dev/null", "socket:[11]", "pipe:[5]", "socket:[12]"], pid30=[],
        pid8=["socket:[11]"], **{str(os.getpid()): ["socket:[11]"]},
    )  # fmt: skip
    (tmp_path / "uptime").write_text("1 1")
    (tmp_path / "9").mkdir()  # it ends at this moment
    assert HELD.holders(HELD.MUCH, AT_LEAST, there) == {
        "commands": {7: "command 7", 8: "command 8"},
        "sockets": {7: {1: 11, 3: 12}, 8: {0: 11}},
        "unread": [], "left_out": None,
    }  # fmt: skip


def test_a_report_has_room_for_so_much(tmp_path: Path) -> None:
    """The first ones are told, and the others counted."""
    there = proc(tmp_path, pid7=sockets(400), pid8=sockets(5), pid9=sockets(1))
    found = HELD.holders(HELD.IN_ONE_PIECE, AT_LEAST, there)
    told = found["sockets"][7]
    assert len(json.dumps(found)) < HELD.IN_ONE_PIECE
    assert told == dict(enumerate(range(2**32, 2**32 - len(told), -1)))
    assert (100 < len(told) < 400, [*found["sockets"]]) == (True, [7])
    assert found["left_out"] == 400 - len(told) + 2
    found = HELD.holders(HELD.MUCH, AT_LEAST, there)
    assert ([*found["sockets"]], found["left_out"]) == ([7, 8, 9], None)


def test_a_report_of_many_processes(tmp_path: Path) -> None:
    there = proc(tmp_path, **{f"pid{pid}": sockets(1) for pid in range(4_000_000, 4_000_100)})
    for comm in tmp_path.glob("*/comm"):
        comm.write_bytes(b"\xff" * 15)
    found = HELD.holders(HELD.IN_ONE_PIECE, AT_LEAST, there)
    assert len(json.dumps(found)) < HELD.IN_ONE_PIECE
    assert len(found["sockets"]) + found["left_out"] == 100
    assert set(found["commands"].values()) == {"\ufffd" * 15}


def test_a_report_without_time(tmp_path: Path) -> None:
    there = proc(tmp_path, pid7=["socket:[11]"], pid8=[])
    found = HELD.holders(HELD.MUCH, -1.0, there)
    assert found == {"commands": {}, "sockets": {}, "unread": [], "left_out": 2}
