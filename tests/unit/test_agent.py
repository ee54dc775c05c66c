"""The agent of a host, as far as it needs no host."""

from __future__ import annotations

import builtins
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "images" / "host" / "agent.py"
REST = 10

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the agent runs on Linux alone")


class Diag:
    """A list of sockets that never changes, and takes its time."""

    def __init__(self, spend: Callable[[], None]) -> None:
        self.fingerprint = spend


def work() -> None:
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass


def be_kept_waiting() -> None:
    time.sleep(0.3)


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("agent", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rest_after(spend: Callable[[], None]) -> float:
    """For how long the agent rests after a sample that takes so much."""
    agent = loaded().Agent(Diag(spend))
    agent.rest = REST
    agent.sample()
    return float(agent.next_sample - time.monotonic())


class Preempted:
    """Clocks that differ by 100 s, read by somebody who is kept waiting before some readings."""

    def __init__(self, waits: dict[int, float]) -> None:
        self._now, self._waits = 0.0, waits
        self._readings = itertools.count()

    def monotonic(self) -> float:
        self._now += self._waits.get(next(self._readings), 1e-6)
        return self._now

    def time(self) -> float:
        return self.monotonic() + 100


@pytest.mark.parametrize("late", range(6))
def test_its_two_clocks_are_read_at_one_moment(late: int) -> None:
    clocks = Preempted({late: 0.006, late + 3: 0.006})
    t, wall = loaded().clocks.both(clocks.monotonic, clocks.time)
    assert wall - t == pytest.approx(100, abs=1e-5)


def test_it_rests_for_as_long_as_it_worked() -> None:
    assert rest_after(work) > 0.05 * REST / 2


def test_it_does_not_rest_for_what_others_took() -> None:
    """On a busy machine it would sleep for seconds, and see nothing."""
    assert rest_after(be_kept_waiting) < 0.3 * REST / 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("ESTAB 0 0 10.0.0.1:80 10.0.0.2:4711 timer:(keepalive,1min59sec,0) ino:0", [119]),
        ("timer:(timewait,59sec,0)\ntimer:(on,200ms,3)\ntimer:(keepalive,9min,0)", [0.2, 59, 540]),
        ("timer:(timewait,7.020ms,0)", [7.02]),
        ("timer:(timewait,7.020sec,0)", [7.02]),
        ("timer:(persist,,0) ino:0", [0]),
        ("LISTEN 0 20 0.0.0.0:8000 0.0.0.0:*", []),
    ],
)
def test_when_timers_can_go_off(text: str, seconds: list[float]) -> None:
    assert loaded().timers(text) == seconds


def test_it_rests_until_a_timer_is_due_or_it_is_woken() -> None:
    agent = loaded().Agent(Diag(lambda: None))
    agent.rest, agent.longest = 0, 100.0
    agent.next_sample, agent.period = time.monotonic(), 50.0
    agent.due = [time.monotonic() + 5, time.monotonic() + 9]
    agent.sample()
    assert agent.next_sample == agent.due[0]
    agent.wake()
    assert agent.next_sample - time.monotonic() <= 0.004
    agent.due[0] = time.monotonic()
    agent.sample()  # it is due, and late
    assert agent.next_sample - time.monotonic() <= 0.025
    assert len(agent.due) == 1  # and so is the next one, later


def test_counters_that_changed_are_told_by_name() -> None:
    agent = loaded()
    before = {"Tcp: InSegs OutSegs": "Tcp: 3 4", "TcpExt: SyncookiesSent": "TcpExt: 0"}
    now = {**before, "Tcp: InSegs OutSegs": "Tcp: 5 4", "IcmpMsg: InType3": "IcmpMsg: 1"}
    assert agent.changes(now, before) == {"TcpInSegs": 5, "IcmpMsgInType3": 1}
    assert agent.changes(before, {}) == {
        "TcpInSegs": 3, "TcpOutSegs": 4, "TcpExtSyncookiesSent": 0,
    }  # fmt: skip


def test_counters_that_grow_all_the_time_are_told_less_often() -> None:
    agent = loaded().Agent(Diag(lambda: None))
    agent.count()
    periods = [agent.between_counts]
    for _ in range(12):
        agent.report_counters()
        periods.append(agent.between_counts)
    assert periods == sorted(periods)
    assert (periods[0], periods[-1]) == (0.02, 0.1)
    agent.counted_at -= 1.0  # nothing came for a while
    agent.report_counters()
    assert agent.between_counts == 0.02


def test_the_namespace_has_the_counters_of_tcp() -> None:
    agent = loaded()
    assert {"TcpActiveOpens", "TcpExtTCPTimeouts"} <= agent.changes(agent.counters(), {}).keys()


def test_a_command_of_an_engine_with_low_priority_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It can't be raised: setpriority(2), EACCES. Without an answer the lab would wait for ever."""

    def refuse(*_: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "setpriority", refuse)
    before = {*threading.enumerate()}
    loaded().do_exec(None, 7, "echo it")
    for thread in {*threading.enumerate()} - before:
        thread.join()
    answer = json.loads(capfd.readouterr().out)
    assert (answer["id"], answer["exit"], answer["output"]) == (7, 0, "it\n")


def test_a_command_ends_with_its_shell_and_not_with_what_that_has_left_in_the_background() -> None:
    command = "sleep 60 & echo it"
    with subprocess.Popen(
        command, shell=True, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        begun = time.monotonic()
        assert b"".join(loaded().written(process)) == b"it\n"
        assert time.monotonic() - begun < 30
        os.killpg(process.pid, signal.SIGKILL)


def test_an_empty_sysctl_is_written_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A write of no bytes does nothing, and a list of reserved ports would stay as it was."""
    monkeypatch.setattr(builtins, "open", lambda _, mode: Path.open(tmp_path / "ports", mode))
    loaded().do_sysctl(None, 7, {"net.ipv4.ip_local_reserved_ports": ""})
    monkeypatch.undo()
    assert (tmp_path / "ports").read_text() == "\n"
    assert json.loads(capfd.readouterr().out)["failed"] == {}


@pytest.mark.parametrize("threads", [True, False])
def test_all_captures_begin_also_where_there_are_no_more_threads(
    threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    if not threads:
        monkeypatch.setattr(threading.Thread, "start", refuse)
    begun: list[tuple[str, int]] = []
    wanted = [("eth0", 64), ("lo", 16)]
    with loaded().at_once(lambda *each: begun.append(each), wanted):
        pass
    assert sorted(begun) == wanted
