"""A lab that a limit of this machine, or somebody, keeps from going on says which, and leaves
nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.contract import real_backends
from tests.marked import Bench, eventually

CGROUP = Path("/sys/fs/cgroup/pids")
TEXT = """\
title: A connection
hosts:
  server: {calls: "socket; bind :8000; listen 5; accept; wait"}
  client: {calls: "socket; connect server:8000; wait"}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
    within: 30s
  - sleep: 2s
  - start: client
  - wait: {sockets: {client: ESTAB}}
    within: 30s
"""


def begin(bench: Bench, prefix: list[str], *more: str) -> subprocess.Popen[str]:
    path = bench.folder / "connection.yaml"
    path.write_text(TEXT)
    command = [*prefix, sys.executable, "-m", "labctl", "run", str(path), *more]
    return subprocess.Popen(
        [*command, "--backend", bench.backend, "--format", "json"],
        env=bench.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(bench: Bench, process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=240)
    assert "Traceback" not in err
    assert eventually(lambda: bench.left() == []), bench.left()
    runs = json.loads(out)["runs"] if out else [{"reason": err}]
    return process.returncode, runs[0], err


@real_backends
@pytest.mark.parametrize("files", [12, 17])
def test_too_few_files(backend: str, files: int, tmp_path: Path) -> None:
    if backend == "docker":  # what one machine lacks is no reason for a build
        Bench(backend, tmp_path, "").run("images", "build")
    bench = Bench(backend, tmp_path, uuid.uuid4().hex)
    limit = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))"
    start = f"import os, resource, sys; {limit}; os.execv(sys.argv[1], sys.argv[1:])"
    status, found, _ = end(bench, begin(bench, [sys.executable, "-c", start]))
    assert status == 4
    assert f"no more files can be opened: ulimit -n is {files}; raise it" in found["reason"]


@pytest.mark.netns
@pytest.mark.parametrize("most", [6, 9, 12, 16])
def test_too_few_processes(most: int, tmp_path: Path) -> None:
    cgroup = CGROUP / f"labctl-test-{uuid.uuid4().hex[:8]}"
    try:
        cgroup.mkdir()
        (cgroup / "pids.max").write_text(str(most))
    except OSError as exc:
        pytest.skip(f"no cgroup of one's own here: {exc}")
    try:
        bench = Bench("netns", tmp_path, uuid.uuid4().hex)
        enter = f'echo $$ > {cgroup}/cgroup.procs; exec "$@"'
        status, found, _ = end(bench, begin(bench, ["sh", "-c", enter, "sh"]))
        assert status == 4
        assert "pids.max" in found["reason"]
        assert "processes" in found["reason"]
    finally:
        assert eventually(lambda: not (cgroup / "cgroup.procs").read_text())
        cgroup.rmdir()


@pytest.mark.netns
@pytest.mark.slow
def test_a_world_that_somebody_has_stopped(tmp_path: Path) -> None:
    bench = Bench("netns", tmp_path, uuid.uuid4().hex)
    process = begin(bench, [])
    assert process.stderr
    assert any("LISTEN" in line for line in process.stderr)
    (lease,) = bench.leases()
    world = int(lease["hosts"]["server"].partition("/")[0])
    os.kill(world, signal.SIGSTOP)
    status, found, _ = end(bench, process)
    assert status == 4
    assert found["reason"].startswith(f"the lab's world is stopped (process {world}); kill -CONT")
    (account,) = found["processes"]
    assert account["condition"].startswith("runs, blocked in accept since")


@pytest.mark.netns
@pytest.mark.slow
def test_a_launcher_that_somebody_has_stopped(tmp_path: Path) -> None:
    """Which ends with its program all the same."""
    bench = Bench("netns", tmp_path, uuid.uuid4().hex)
    process = begin(bench, [])
    launcher = 0
    while not launcher and process.poll() is None:
        launcher = next(iter(launchers(process.pid)), 0)
    os.kill(launcher, signal.SIGSTOP)
    status, found, _ = end(bench, process)
    if status == 0:
        pytest.skip("it had launched by then")
    assert status == 4
    assert found["reason"].startswith(f"the launcher of labs is stopped (process {launcher})")


def launchers(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    time.sleep(0.001)
    pids = [int(pid) for pid in path.read_text().split()] if path.exists() else []
    return [pid for pid in pids if "import world" in Path(f"/proc/{pid}/cmdline").read_text()]
