"""mmdebstrap(1) as it fails: a stand-in for it does what goes wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from labctl.backends import debian
from labctl.ground.errors import Unavailable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mmdebstrap is Linux's")

BROKEN = "E: Failed to fetch http://mirror/x  Connection timed out"
NOT_SIGNED = "E: The repository is not signed."


class Machine:
    """A machine with the stand-in alone: what it does each time, and what it is called with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.calls = folder, folder / "calls"
        self.said: list[str] = []
        (folder / "bin").mkdir()
        for tool in ("sh", "echo", "cat", "true"):
            (folder / "bin" / tool).symlink_to(shutil.which(tool) or "")
        monkeypatch.setenv("PATH", str(folder / "bin"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setattr(os, "geteuid", lambda: 0)

    def add(self, name: str, *acts: str) -> None:
        """A program that does one of these each time; the last one from then on."""
        cases = "".join(f"{'.' * n}) {act};;\n" for n, act in enumerate(acts, 1))
        (self.folder / "bin" / name).write_text(
            f"#!/bin/sh\necho . >> {self.calls}.{name}\n"
            f"n=; while read -r d; do n=$n$d; done < {self.calls}.{name}\n"
            f"case $n in\n{cases}*) {acts[-1]};;\nesac\n"
        )
        (self.folder / "bin" / name).chmod(0o755)

    def count(self, name: str) -> int:
        """How often it was called."""
        path = Path(f"{self.calls}.{name}")
        return len(path.read_text().splitlines()) if path.exists() else 0

    def make(self) -> bytes:
        """A tree, as it was taken at last."""
        taken = b""

        def take(tree: debian.Tree) -> None:
            nonlocal taken
            taken = b""
            while data := tree.read(3):
                taken += data

        debian.bootstrap("sid", ["sid", "-"], take, self.said.append)
        return taken


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def fails(error: str) -> str:
    return f"echo half; echo 'I: works' >&2; echo '{error}' >&2; echo 'E: failed' >&2; exit 25"


def test_a_tree_is_taken(machine: Machine) -> None:
    machine.add("mmdebstrap", "echo a tree")
    assert machine.make() == b"a tree\n"
    assert machine.said == []


def test_a_mirror_that_breaks_off_is_asked_once_more(machine: Machine) -> None:
    """From the start: what was taken of the first tree is of no use."""
    machine.add("mmdebstrap", fails(BROKEN), "echo a tree")
    assert machine.make() == b"a tree\n"
    (line,) = machine.said
    assert line == f"trying once more: {BROKEN.removeprefix('E: ')}"
    assert not list(machine.folder.rglob("*.log"))


@pytest.mark.parametrize(("error", "calls"), [(BROKEN, 2), (NOT_SIGNED, 1)])
def test_what_fails_is_told_with_its_log(machine: Machine, error: str, calls: int) -> None:
    machine.add("mmdebstrap", fails(error))
    with pytest.raises(Unavailable) as caught:
        machine.make()
    (log,) = machine.folder.rglob("*.log")
    said = error.removeprefix("E: ").rstrip(".")
    assert str(caught.value) == (
        f"mmdebstrap did not build Debian sid: {said}; see that apt can reach its mirror; all that "
        f"it said: {log}"
    )
    assert log.read_text() == f"I: works\n{error}\nE: failed\n"
    assert machine.count("mmdebstrap") == calls


def test_a_full_disk_is_not_the_mirrors_fault(machine: Machine) -> None:
    (machine.folder / "cache").touch()
    machine.add("mmdebstrap", fails("tar: write error: No space left on device"))
    with pytest.raises(Unavailable, match="No space left on device; make room there, or") as caught:
        machine.make()
    assert "all that it said" not in str(caught.value)  # there was no room for it
    assert machine.count("mmdebstrap") == 1


def test_a_taker_that_fails_ends_it(machine: Machine) -> None:
    (machine.folder / "bin" / "mmdebstrap").write_text(
        f"#!/bin/sh\ntrap '>{machine.folder}/ended; exit' TERM\necho it; echo is; cat /dev/zero\n"
    )
    (machine.folder / "bin" / "mmdebstrap").chmod(0o755)

    def take(tree: debian.Tree) -> None:
        assert tree.read(2) == b"it"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        debian.bootstrap("sid", [], take, machine.said.append)
    assert (machine.folder / "ended").exists()


def test_without_the_tool(machine: Machine) -> None:
    with pytest.raises(Unavailable, match=r"^mmdebstrap is not on the PATH; install the package"):
        machine.make()


@pytest.mark.parametrize("tools", [[], ["unshare"], ["newuidmap"]], ids=str)
def test_without_root_and_without_uids_that_is_said_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tools: list[str]
) -> None:
    """Where nothing maps uids, or the range that it would map is missing."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    machine.add("mmdebstrap", "echo a tree")
    for tool in ("unshare", "newuidmap"):
        machine.add(tool, "true" if tool in tools else "exit 1")
    if "newuidmap" not in tools:
        (machine.folder / "bin" / "newuidmap").unlink()
    with pytest.raises(Unavailable) as caught:
        machine.make()
    assert str(caught.value) == (
        "mmdebstrap needs root, or newuidmap and a range of uids; run as root, or install uidmap "
        "and give this user a range in /etc/subuid and /etc/subgid"
    )
    assert machine.count("mmdebstrap") == 0


def test_without_root_and_with_uids(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for tool in ("mmdebstrap", "unshare", "newuidmap"):
        machine.add(tool, "true")
    assert machine.make() == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="root's alone")
def test_nothing_of_it_outlives_us(tmp_path: Path) -> None:
    """Killed, it would leave what it has mounted; and it does not end with us by itself."""
    program = tmp_path / "mmdebstrap"
    program.write_text('#!/bin/sh\ntouch "$TMPDIR/made"\nsleep 600 &\necho begun\nwait\n')
    program.chmod(0o755)
    take = "lambda tree: print(tree.read(6), flush=True)"
    controller = subprocess.Popen(
        [sys.executable, "-c",
         "from labctl.backends import debian\n"
         f"debian.bootstrap('sid', ['sid', '-'], {take}, print)"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MARK": str(tmp_path),
             "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with controller:
        assert controller.stdout
        assert controller.stdout.readline() == "b'begun\\n'\n"
        assert len(marked(str(tmp_path))) > 3
        controller.kill()
    deadline = time.monotonic() + 30
    while marked(str(tmp_path)):
        assert time.monotonic() < deadline, marked(str(tmp_path))
        time.sleep(0.02)
    assert [*(tmp_path / "cache" / "labctl" / "mmdebstrap").iterdir()] == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def marked(mark: str) -> list[str]:
    """The processes whose environment has this mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"MARK={mark}".encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (b"", ""),
        (b"\n", ""),
        (b"chroot: no rights\n", "chroot: no rights"),
        (b"I: x\nE: Release is expired.\nE: apt-get failed\n", "Release is expired"),
        (b"E: tar failed\ncat: write error: No space left on device\n",
         "cat: write error: No space left on device"),
        (b"W: one\nE: \xff\n", "\ufffd"),
    ],
)  # fmt: skip
def test_complaints(log: bytes, reason: str) -> None:
    assert debian.complaint(log) == reason


@pytest.mark.slow
@pytest.mark.skipif(debian.lacking() is not None, reason=f"{debian.lacking()}")
def test_the_real_one_keeps_apt_s_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a port where nobody listens."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["bookworm", "-", "deb http://127.0.0.1:9/debian bookworm main"]
    said: list[str] = []
    with pytest.raises(
        Unavailable, match=r"Failed to fetch .*refused.*all that it said: "
    ) as caught:
        debian.bootstrap("bookworm", words, lambda tree: None, said.append)
    assert said and said[0].startswith("trying once more: Failed to fetch")
    log = Path(str(caught.value).rpartition("all that it said: ")[2])
    assert "running apt-get update" in log.read_text()
