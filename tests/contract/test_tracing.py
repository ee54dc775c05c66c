"""The kernel's word on every transition: complete where it can be had, and gone without a trace."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.judge.result import RunResult
from labctl.language.scenario import load
from labctl.record.events import FateEvent, StateEvent
from labctl.record.history import History
from labctl.record.timelines import timelines
from labctl.run.places import Place
from labctl.run.runner import Silent
from labctl.run.workflow import run_case
from tests.contract import MARKS
from tests.marked import eventually

AS_ROOT = {"netns": [pytest.mark.skipif(os.geteuid() != 0, reason="tracing needs root")]}
TRACED = [pytest.param(name, marks=[mark, *AS_ROOT.get(name, ())]) for name, mark in MARKS.items()]
COUNT = 1000

FLOOD = f"""\
title: A thousand short connections
hosts:
  server:
    run:
      - python3
      - -c
      - |
        import socket
        listener = socket.socket()
        listener.bind(("", 8000))
        listener.listen(128)
        for _ in range({COUNT}):
            connection, _ = listener.accept()
            connection.recv(1)
            connection.close()
  client:
    run:
      - python3
      - -c
      - |
        import socket
        for _ in range({COUNT}):
            socket.create_connection(("server", 8000)).close()
steps:
  - start: server
  - wait: {{sockets: {{server: LISTEN}}}}
  - start: client
  - wait: {{process: {{client: ok, server: ok}}}}
    within: 60s
"""
SLOW = """\
title: Two hosts, and time to be killed in
hosts:
  server: {calls: "socket; bind :8000; listen 5; wait"}
  client: {calls: await}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - sleep: 30s
"""


def run(text: str, backend: str, folder: Path) -> RunResult:
    path = folder / "lesson.yaml"
    path.write_text(text)
    (case,) = load(path)
    found = run_case(case, Place(backend), folder / "out", Silent(), lambda text: None)
    assert found.reason is None
    if "trace" not in found.environment["probes"]:
        pytest.skip(found.history.trouble["server", "trace"].text)
    return found


def instances() -> set[str]:
    """The kernel's tracing instances."""
    folder = "/sys/kernel/tracing/instances"
    script = f"[ -d {folder} ] || mount -t tracefs tracefs /sys/kernel/tracing && ls {folder}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"tracefs can't be mounted here: {done.stderr.strip()}")
    return set(done.stdout.split())


def opened(history: History, host: str, old: str) -> int:
    """How many connections of a host came from a state to ESTAB."""
    transitions = (e for e in history.events if isinstance(e, StateEvent) and e.host == host)
    return sum((e.old, e.new) == (old, "ESTAB") for e in transitions)


@pytest.mark.parametrize("backend", TRACED)
def test_no_transition_of_a_flood_goes_unnoticed(backend: str, tmp_path: Path) -> None:
    result = run(FLOOD, backend, tmp_path)
    assert result.result == "pass"
    history = result.history
    lost = {host for host, probe in history.trouble if probe == "trace"}
    assert lost in (set(), {"server", "client"})
    if lost:
        assert opened(history, "server", "SYN-RECV") < COUNT
        return
    assert history.growth("client", "TcpActiveOpens") == opened(history, "client", "SYN-SENT")
    assert history.growth("server", "TcpPassiveOpens") == opened(history, "server", "SYN-RECV")
    assert history.growth("server", "TcpPassiveOpens") == COUNT
    for host in ("server", "client"):
        found = timelines(history, host)
        assert len(found) == COUNT
        assert all(timeline.complete for timeline in found)
    ends = Counter(timeline.states[-1].value for timeline in timelines(history, "client"))
    assert ends == {"TIME-WAIT": COUNT}


LOST = """\
title: An answer that must be sent again
hosts:
  server: {calls: 'socket KIND; bind :8000; listen 1; accept; recv; send "answer"; wait'}
  client: {calls: 'socket KIND; connect NAME:8000; send "question"; recv; wait'}
steps:
  - drop: {from: server, to: client, flags: PSH, count: 1}
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {process: {client: {call: {recv: ok}}}}
"""


@pytest.mark.parametrize("backend", TRACED[:1])
@pytest.mark.parametrize(("kind", "name"), [("tcp", "server"), ("tcp6", "server.v6")])
def test_the_kernel_says_which_segment_it_sent_again(
    kind: str, name: str, backend: str, tmp_path: Path
) -> None:
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 11):
        pytest.skip("this kernel does not say what becomes of segments")
    result = run(LOST.replace("KIND", kind).replace("NAME", name), backend, tmp_path)
    assert result.result == "pass"
    fates = [event for event in result.history.events if isinstance(event, FateEvent)]
    again, *_ = [fate for fate in fates if fate.did == "retransmit"]
    sent, *_ = [segment for segment in result.history.segments() if segment.retransmitted]
    assert (again.host, again.local, again.remote) == ("server", sent.source, sent.target)
    assert again.reason is None
    assert any(f"again, of {sent.source} -> {sent.target}" in sentence for sentence in result.why)


@pytest.mark.parametrize("backend", TRACED)
def test_labs_side_by_side_see_their_own_connections(backend: str, tmp_path: Path) -> None:
    """The tracepoint speaks of the whole machine."""
    command = [sys.executable, "-m", "labctl", "run", "state_walk", "--backend", backend]
    pipe = subprocess.PIPE
    folders = [str(tmp_path / str(number)) for number in range(3)]
    labs = [subprocess.Popen([*command, "--out", f], stderr=pipe, stdout=pipe) for f in folders]
    for lab in labs:
        lab.communicate(timeout=120)
    histories = sorted(tmp_path.glob("*/*/history.jsonl"))
    assert len(histories) == 6
    for path in histories:
        events = [json.loads(line) for line in path.read_text().splitlines()]
        states = [event for event in events if event["kind"] == "state"]
        if not states:
            pytest.skip("nothing was traced")
        opened = sorted(event["host"] for event in states if event["new"] == "ESTAB")
        assert opened == ["client", "server"]


@pytest.fixture
def sleeping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in its long sleep, on the backend that the test is for."""
    path = tmp_path / "slow.yaml"
    path.write_text(SLOW)
    with subprocess.Popen(
        [sys.executable, "-m", "labctl", "run", str(path), "--backend", request.param,
         "--out", str(tmp_path / "out")],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stderr
        assert any("LISTEN" in line for line in process.stderr)
        yield process
        process.kill()


@pytest.mark.parametrize("sleeping", TRACED, indirect=True)
@pytest.mark.parametrize("way", ["kill", "terminate"])
def test_no_instance_outlives_its_controller(
    way: str, sleeping: subprocess.Popen[str], tmp_path: Path
) -> None:
    (lease,) = (tmp_path / "labctl").glob("*.json")
    name = f"labctl-{lease.stem}"
    if name not in instances():
        pytest.skip("nothing is traced here")
    getattr(sleeping, way)()
    sleeping.wait()
    if way == "terminate":
        assert name not in instances()
    assert eventually(lambda: name not in instances())
