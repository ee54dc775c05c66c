"""Guests that fail: a stand-in for QEMU does what goes wrong; labctl says so and leaves nothing.

The stand-in is a program of that name on the PATH. It speaks as a guest and as QEMU's monitor do,
and what it does wrong is in the variable WRONG.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labctl.run.guests import qemu, root, runs
from tests.unit.test_kernels import bzimage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guests need Linux's setpriv")

PATIENCE = 60

STAND_IN = """\
#!PYTHON -IS
import json, os, re, resource, subprocess, sys, threading, time

if "--version" in sys.argv:
    print("QEMU emulator version 10.0.0")
    sys.exit()
wrong = os.environ.get("WRONG")
words = " ".join(sys.argv)
console = int(re.search(r"path=/proc/self/fd/(\\d+)", words)[1])
monitor = int(re.search(r"id=monitor,fd=(\\d+)", words)[1])
phases = open(os.environ["PHASES"], "a", buffering=1)

def reach(phase):
    print(os.getpid(), phase, file=phases)
    if wrong == f"hangs: {phase}":
        time.sleep(1000)

def say(kind, **what):
    print(json.dumps(dict(what, kind=kind, t=0.0)), flush=True)

def migrate(uri):
    # As root a quota would not hold us; this limit does, and SIGXFSZ is the shell's to die of.
    full = (1 << 12,) * 2 if wrong == "full disk" else (resource.RLIM_INFINITY,) * 2
    shell = ["sh", "-c", uri.partition(":")[2]]
    limited = subprocess.Popen(
        shell, stdin=subprocess.PIPE, preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, full)
    )
    limited.communicate(b"state" * 2000)

def serve():
    file = os.fdopen(monitor, "r+b", buffering=0)
    for line in file:
        request = json.loads(line)
        found = {}
        if request["execute"] == "migrate":
            reach("save")
            migrate(request["arguments"]["uri"])
        if request["execute"] == "query-migrate":
            found = {"status": "completed"}
        file.write((json.dumps({"return": found}) + "\\n").encode())

if "-incoming" in sys.argv:
    if wrong == "broken state":
        sys.exit("qemu-system-x86_64: load of migration failed: Input/output error")
else:
    reach("boot")
    os.write(console, b"[ 1.0] Linux is here\\n")
    reach("kernel")
    if wrong == "panic":
        os.write(console, b"[ 1.1] Kernel panic - not syncing: No working init found.\\n")
        os.write(console, b"[ 1.2] RIP\\n")
        sys.exit()
    began = time.process_time()
    while wrong == "spins" or (wrong == "slow" and time.process_time() - began < 3):
        if wrong == "slow":
            os.write(console, b".")
    threading.Thread(target=serve, daemon=True).start()
    say("booted")
for line in sys.stdin:
    if json.loads(line)["do"] == "hello":
        reach("hello")
        say("ready", kernel="6.6.6-mine")
    else:
        reach("case")
        say("ended", how={"result": "skip", "reason": "a stand-in has no kernel", "hint": None,
                   "environment": {}, "started": "", "seconds": 0.0, "lab_seconds": 0.0})
"""


class Machine:
    """A machine with the stand-in, a kernel, and a cache with a root in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache" / "labctl" / "kernels"
        self.phases = folder / "phases"
        self.phases.touch()
        program = folder / "bin" / qemu.PROGRAM
        program.parent.mkdir()
        program.write_text(STAND_IN.replace("PYTHON", sys.executable))
        program.chmod(0o755)
        self.kernel = bzimage(folder / "bzImage", "6.6.6-mine")
        (folder / "modules").mkdir()
        (self.cache / "roots" / root.place("bookworm").name).mkdir(parents=True)
        (self.cache / "roots" / root.place("bookworm").name / "root.cpio").touch()

    def variables(self, wrong: str = "") -> dict[str, str]:
        """What leads to it, and has the stand-in do what is wrong."""
        return {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "WRONG": wrong,
            "PHASES": str(self.phases),
            "DOCKER_HOST": "unix:///nonexistent/docker.sock",  # in a container it would be another
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    def start(self, wrong: str = "", **environment: str) -> subprocess.Popen[str]:
        """`labctl run` of one lesson."""
        return subprocess.Popen(
            [
                sys.executable, "-m", "labctl", "run", "fin_wait_2", "--kernel", str(self.kernel),
                "--virtual-time", "--out", str(self.folder / "out"),
            ],
            env={**os.environ, **self.variables(wrong), **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, wrong: str = "", **environment: str) -> tuple[int, str]:
        """Its exit status, and what it says on standard error."""
        process = self.start(wrong, **environment)
        said = process.communicate(timeout=PATIENCE)[1]
        return process.returncode, said

    def states(self) -> list[Path]:
        """The saved states."""
        return list(self.cache.glob("boots/*/*.state"))

    def left(self) -> list[Path]:
        """What is half made."""
        return list(self.cache.rglob(".new-*"))

    def reached(self, phase: str) -> int | None:
        """The process id of the stand-in, once it is there."""
        for line in self.phases.read_text().splitlines():
            pid, _, name = line.partition(" ")
            if name == phase:
                return int(pid)
        return None


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_guest_is_booted_once_and_kept(machine: Machine) -> None:
    """The stand-in is a good guest, where nothing is wrong."""
    for _ in range(2):
        status, said = machine.run()
        assert status == 3, said
    assert machine.phases.read_text().count("boot") == 1
    (state,) = machine.states()
    assert state.stat().st_size == 10_000
    assert machine.left() == []


def test_a_kernel_that_panics_says_so(machine: Machine) -> None:
    status, said = machine.run("panic")
    assert status == 4
    assert said.count("trying once more: ") == 1
    assert "Linux 6.6.6-mine does not boot in QEMU 10.0.0; take another kernel" in said
    assert said.rstrip().endswith("Kernel panic - not syncing: No working init found.")
    assert "RIP" not in said and "Traceback" not in said
    assert machine.states() == machine.left() == []


def test_a_kernel_that_hangs_says_so_once(machine: Machine) -> None:
    """With what its console said last. It would hang another time, too."""
    status, said = machine.run("hangs: kernel")
    assert status == 4
    assert "trying once more" not in said and machine.phases.read_text().count("boot") == 1
    assert "does not boot in QEMU 10.0.0; take another kernel" in said
    assert re.search(r"it stood still for \d+ s while it booted, or had no processor; its", said)
    assert said.rstrip().endswith("Linux is here")
    assert machine.states() == machine.left() == []


def test_a_guest_that_gets_nowhere_is_told_from_a_slow_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One works and tells of it, the other works without a word."""
    monkeypatch.setenv("PHASES", str(machine.phases))
    monkeypatch.setenv("PATH", f"{machine.folder / 'bin'}:{os.environ['PATH']}")
    hardware = qemu.Hardware(machine.kernel, machine.folder / "initramfs")
    monkeypatch.setenv("WRONG", "slow")
    with qemu.Here(hardware) as guest:
        runs.boots(guest, silent_work=1.0)
    assert guest.work == 0.0
    monkeypatch.setenv("WRONG", "spins")
    with (
        qemu.Here(hardware) as guest,
        pytest.raises(qemu.GuestHangs, match=r"nothing in \d+ s of"),
    ):
        runs.boots(guest, silent_work=1.0)


def test_a_disk_that_is_full_keeps_no_state_and_no_lesson_from_running(machine: Machine) -> None:
    status, said = machine.run("full disk")
    assert status == 3
    assert machine.reached("case")
    assert "can't be kept for the next time: " in said and "make room" in said
    assert machine.states() == machine.left() == []


def test_a_state_that_is_broken_is_thrown_away(machine: Machine) -> None:
    machine.run()
    status, said = machine.run("broken state")
    assert status == 3
    assert "booting anew" in said and "load of migration failed" in said
    assert len(machine.states()) == 1


def test_without_qemu_nothing_is_fetched(machine: Machine) -> None:
    (machine.folder / "bin" / qemu.PROGRAM).unlink()
    empty = machine.folder / "empty"
    empty.mkdir()
    status, said = machine.run(PATH=str(empty))
    assert status == 3
    assert said.startswith(f"labctl: {qemu.PROGRAM} can't be started")
    assert "install the package qemu-system-x86" in said
    assert len(said.splitlines()) == 1


def test_a_cache_that_can_not_be_written_says_what_to_do(machine: Machine) -> None:
    (machine.cache / "boots").touch()
    status, said = machine.run()
    assert status == 4
    assert "make room there, or set XDG_CACHE_HOME" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["boot", "save", "hello", "case"])
def test_a_signal_leaves_nothing_running_and_nothing_half_made(
    machine: Machine, phase: str, number: signal.Signals
) -> None:
    deadline = time.monotonic() + PATIENCE
    with machine.start(f"hangs: {phase}") as process:
        while not (guest := machine.reached(phase)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    while Path(f"/proc/{guest}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert machine.left() == []
    assert machine.run()[0] == 3


MAKER = """\
#!/bin/sh
trap 'wait; sleep 0.5; rm there; exit 1' TERM
sleep 0.5  # until who started it has taken note of that
sleep 1000 &
touch there
wait
rm there
"""


def test_a_root_that_is_interrupted_cleans_up_first(tmp_path: Path) -> None:
    """mmdebstrap(1) removes what it has made, once what it waits for has ended."""
    program = tmp_path / "mmdebstrap"
    program.write_text(MAKER)
    program.chmod(0o755)
    code = (
        "from labctl.backends import debian; "
        "debian.bootstrap('sid', ['sid', '-'], lambda tree: tree.read(1), print)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path, stderr=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / "there").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
    assert not (tmp_path / "there").exists()
