"""An engine that is far: whatever it is asked for comes half a second later."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from labctl.backends import EngineAt
from labctl.ground.resources import catalogue, scenarios
from labctl.judge.recorded import load as load_run
from labctl.language.scenario import Scenario, load
from labctl.record.events import StepEvent
from labctl.record.store import new_folder
from labctl.run.places import Place
from labctl.run.workers import Pace, Task, run_all
from labctl.run.workflow import run_in
from tests.contract.test_lessons import report
from tests.fake import scenario
from tests.relay import delayed
from tests.unit.test_jobs import Log

pytestmark = [pytest.mark.docker, pytest.mark.ci]

WAY = 0.25
"""Seconds that anything is under way to the engine or back."""
LESSONS = ("data_to_an_orphan", "linger_zero", "lost_last_ack")
KILLED = """\
title: A socket without a process lives for a second, by its host's clock
hosts:
  server:
    sysctls: {net.ipv4.tcp_fin_timeout: 1}
    calls: "socket; bind :80; listen 5; accept; wait"
  client: {calls: "socket; connect server:80; wait"}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {sockets: {server: ESTAB}}
  - kill: server
    as: killed
  - wait: {sockets: {server: none}}
    since: killed
    within: 5s
"""


def cases() -> list[Scenario]:
    found = catalogue(scenarios())
    return [scenario(KILLED), *(next(iter(load(found[name]))) for name in LESSONS)]


def test_latency_changes_no_verdict(tmp_path: Path) -> None:
    engine = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not engine.startswith("unix://"):
        pytest.skip("the engine has no socket here")
    with delayed(tmp_path, engine, WAY) as far:
        work = partial(run_in, place=Place("docker", engines=(EngineAt("far", far),)))
        task = Task(work, "docker", lambda case: new_folder(tmp_path, case.name))
        found = run_all(cases(), task, Pace(4, 4), Log())
    for run in found:
        assert run.result == "pass", report(run)
        assert {verdict.result for verdict in run.verdicts} == {"pass"}
    history = load_run(found[0].folder).history
    begin, end = (e for e in history.events if isinstance(e, StepEvent) and e.verb == "kill")
    fin = next(s for s in history.segments() if "FIN" in s.flags)
    assert end.moment is not None and end.host == "server"
    assert begin.t + 0.9 * WAY < end.moment <= fin.time  # neither as it was asked for, nor late
