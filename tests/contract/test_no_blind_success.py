"""Whatever breaks, or fails, is told, and is no success; on every backend."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from labctl.judge.result import RunResult
from tests.contract import real_backends
from tests.contract.test_lessons import played, report

HOSTS = """\
title: What breaks
hosts:
  server: {calls: "socket tcp6; bind :8000; listen 5; accept; await", uid: 1234}
  client: {calls: "socket tcp6; await", uid: 1235}
steps:
"""


def judged(steps: str, backend: str, folder: Path) -> RunResult:
    text = HOSTS + steps
    result = played(text, backend, folder)
    if result.result == "skip":
        pytest.skip(result.reason or "")
    return result


@real_backends
def test_names_for_another_users_process(backend: str, tmp_path: Path) -> None:
    steps = f"""\
  - start: server
  - wait: {{sockets: {{server: LISTEN}}}}
  - start: client
  - call: {{client: "connect [fe80::1%{"x" * 80}]:8000 || continue"}}
  - expect: {{process: {{client: {{call: {{connect: EAI_NONAME}}}}}}}}
  - call: {{client: connect server.v6:8000}}
  - wait: {{process: {{client: {{call: {{connect: ok}}}}}}}}
  - call: {{client: "connect [fe80::1%{"x" * 80}]:8000"}}
  - wait: {{process: {{client: {{exit: 1}}}}}}
  - expect: {{process: {{client: ok}}}}
"""
    result = judged(steps, backend, tmp_path)
    assert [v.result for v in result.verdicts] == ["pass"] * 4 + ["fail"], report(result)


@real_backends
def test_commands_that_fail(backend: str, tmp_path: Path) -> None:
    steps = """\
  - exec: {server: "nft add rule ip nosuch x tcp dport 8000 drop"}
  - exec: {server: "true"}
  - exec: {server: "exit 3"}
    status: 3
  - exec: {client: "kill -9 $$"}
    status: any
  - exec: {client: "kill -9 $$"}
    status: 137
  - exec:
      server: |
        cd /
        pwd; echo trouble >&2
    output: "^/$\\ntrouble"
  - exec: {server: nosuchcommand}
    output: not found
"""
    result = judged(steps, backend, tmp_path)
    found = [(v.result, v.expected) for v in result.verdicts]
    assert found == [
        ("fail", "status 0"),
        ("pass", "status 3"),
        ("pass", "status 137"),
        ("pass", "status 0, output '^/$\\ntrouble'"),
        ("fail", "status 0, output 'not found'"),
    ], report(result)
    assert any("No such file" in line for line in result.verdicts[0].evidence)


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="the limit of another user is set by root")
def test_a_process_limit_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "limit.yaml"
    path.write_text(HOSTS + "  - start: server\n  - wait: {process: {server: ok}}\n")
    done = subprocess.run(
        [sys.executable, "-m", "labctl", "run", str(path), "--backend", "netns", "--format", "json",
         "--out", str(tmp_path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    (case,) = json.loads(done.stdout)["runs"]
    assert (done.returncode, case["result"]) == (4, "error"), done.stderr
    assert case["reason"].startswith("process server broke: ")
    assert "can't fork" in case["reason"]
    assert "a limit of processes (ulimit -u" in case["reason"]
