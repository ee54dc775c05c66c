"""On Docker the controller needs the engine's socket and nothing else of its machine."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PR_CAPBSET_DROP, LAST_CAPABILITY = 24, 63
CAPABILITY_VERSION_3 = 0x20080522
MINUTES = 12 * 60
# The engine must restart the server of fin_wait_2 within five seconds, which four labs at once on a
# busy machine may not let it: test_lessons runs that by itself.
LESSONS = {
    "child_keeps_port",
    "lost_last_ack",
    "old_duplicate",
    "reuseport_other_user",
    "state_walk",
}


def renounce() -> None:
    """Leaves the process without a capability, as any user's: it may be root in name alone."""
    libc = ctypes.CDLL(None)
    for number in range(LAST_CAPABILITY + 1):
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0


@pytest.mark.docker
@pytest.mark.slow
def test_lessons_run_without_privileges_and_without_tools(tmp_path: Path) -> None:
    """Some of each kind. All of them run without tools in test_lessons."""
    # Where nothing can be pulled, images are built with tools of the machine.
    build = [sys.executable, "-m", "labctl", "images", "build"]
    subprocess.run(build, check=True, capture_output=True)
    home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "runtime")}
    done = subprocess.run(
        [sys.executable, "-m", "labctl", "run", *LESSONS, "--backend", "docker",
         "--format", "json", "-j", "4"],
        env={**os.environ, **home, "PATH": ""},
        preexec_fn=renounce,
        capture_output=True,
        text=True,
        timeout=MINUTES,
        check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert {run["scenario"] for run in runs} == LESSONS
    assert [run for run in runs if run["result"] != "pass"] == []
    assert done.returncode == 0
