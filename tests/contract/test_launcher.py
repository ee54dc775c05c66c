"""The one process that forks what all labs on namespaces run in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.netns, pytest.mark.skipif(sys.platform != "linux", reason="namespaces")]

PATIENCE = 60
LAB = """
import os, sys, time
from labctl.backends.netns import launcher
from labctl.backends.netns.backend import NetnsBackend
from labctl.testing.lab import Lab

def look():
    with Lab(hosts=HOSTS, backend="netns") as lab:
        lab.snapshot("up")

HOSTS = {"server": {}, "client": {}}
"""


def python(folder: Path, program: str, **variables: str) -> str:
    """What a program that uses labctl says, as a program of its own."""
    home = {"XDG_STATE_HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", LAB + program],
        env={**os.environ, **home, **variables}, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_an_environment_may_be_large(tmp_path: Path) -> None:
    large = {f"LARGE_{number}": "x" * 100_000 for number in range(5)}
    python(tmp_path, "look()", **large)


def test_the_folder_may_be_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = f"""
from pathlib import Path
from labctl.backends import BackendOptions
os.chdir({str(gone)!r})
os.rmdir({str(gone)!r})
lab = NetnsBackend(BackendOptions("gone", "gone", Path({str(tmp_path)!r}), "", print))
lab.up([], [])
lab.down()
"""
    python(tmp_path, program)


def test_one_that_was_killed_is_replaced_in_every_worker(tmp_path: Path) -> None:
    program = """
NetnsBackend.share()
os.kill(launcher.launcher()._process.pid, 9)
launcher.launcher()._process.wait()
for number in range(2):
    if (pid := os.fork()) == 0:
        look()
        print(number, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""
    assert python(tmp_path, program) == "0\n1\n"


def test_what_was_forked_does_not_hold_it_back(tmp_path: Path) -> None:
    """A server that a test has put into the background, for example."""
    program = """
look()
if (pid := os.fork()) == 0:
    os.closerange(0, 3)
    time.sleep(1000)
print(pid, launcher.launcher()._process.pid, time.monotonic())
"""
    said = python(tmp_path, program).split()
    over = time.monotonic() - float(said.pop())
    forked, launcher = map(int, said)
    try:
        assert not Path(f"/proc/{launcher}").exists()
        assert Path(f"/proc/{forked}").exists()
        assert over < PATIENCE / 4
    finally:
        os.kill(forked, signal.SIGKILL)
