"""Leases: whoever lives holds the lock, however the others ended."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labctl.lease import Lease, alive, folder, leases

HOLDER = """\
import sys
from labctl.lease import Lease
with Lease("other", "run", "a lesson", "netns", "2026-01-01T00:00:00+00:00") as lease:
    lease.hosts = {"server": "12/34"}
    lease.write()
    print(lease.text, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "labctl"


def lease(run: str = "mine") -> Lease:
    return Lease(run, "run", "a lesson", "netns", "2026-01-01T00:00:00+00:00")


@contextmanager
def holder() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another controller, and the text of its lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_lease_is_alive_while_it_is_held(runtime: Path) -> None:
    held = lease()
    assert alive(held.text) is False
    with held:
        assert alive(held.text) is True
        assert [found.run for found in leases()] == ["mine"]
        (file,) = runtime.iterdir()
        assert held.text == f"{socket.gethostname()}:{file}"
        assert file.stat().st_uid == os.getuid()
    assert alive(held.text) is False
    assert list(leases()) == list(runtime.iterdir()) == []


def test_what_others_read(runtime: Path) -> None:
    with lease() as held:
        held.hosts = {"server": "a much longer text than before", "client": "x"}
        held.write()
        held.hosts = {"server": "x"}
        held.write()
        assert list(leases()) == [held]
        (found,) = leases()
        assert (found.pid, found.hosts, found.what) == (os.getpid(), {"server": "x"}, "a lesson")


def test_a_lease_of_another_process(runtime: Path) -> None:
    with holder() as (process, text):
        assert alive(text) is True
        (found,) = leases()
        assert (found.run, found.pid, found.hosts) == ("other", process.pid, {"server": "12/34"})
        assert process.stdin
        process.stdin.close()
        assert process.wait(10) == 0
        assert alive(text) is False
        assert list(runtime.iterdir()) == []


def test_a_killed_holder_is_dead(runtime: Path) -> None:
    with holder() as (process, text):
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert len(list(runtime.iterdir())) == 1
        assert alive(text) is False
        with lease():
            assert [found.run for found in leases()] == ["mine"]
            assert [file.name for file in runtime.iterdir()] == ["mine.json"]


def test_a_stopped_holder_lives() -> None:
    with holder() as (process, text):
        process.send_signal(signal.SIGSTOP)
        assert alive(text) is True


def test_a_lease_is_alive_from_its_first_moment() -> None:
    """Whoever lists the leases right then must not take it for a dead one."""
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            list(leases())

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for number in range(300):
            with lease(str(number)) as held:
                assert alive(held.text) is True
    finally:
        done.set()
        for looker in lookers:
            looker.join()


def test_looking_takes_no_lock() -> None:
    with lease() as held:
        for _ in range(3):
            assert alive(held.text) is True
    with lease():  # again, at once
        pass


@pytest.mark.parametrize("text", ["", "elsewhere:/tmp/x.json", f"{socket.gethostname()}:", "x"])
def test_what_can_not_be_known_from_here(text: str) -> None:
    assert alive(text) is None


def test_a_lease_that_is_no_file(tmp_path: Path) -> None:
    assert alive(f"{socket.gethostname()}:{tmp_path}") is None
    assert alive(f"{socket.gethostname()}:{tmp_path}/nothing.json") is False


def test_files_that_are_no_leases(runtime: Path) -> None:
    """A locked file of another version does not end a listing."""
    folder()
    (runtime / "note.txt").write_text("not ours")
    contents = ["", "{", "[]", '{"run": "x"}', json.dumps({"new": 1})]
    files = [runtime / f"{n}.json" for n in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(content)
    with files[0].open() as one, files[1].open() as two, files[4].open() as three, lease():
        for locked in (one, two, three):
            fcntl.flock(locked, fcntl.LOCK_EX)
        assert [found.run for found in leases()] == ["mine"]
    assert sorted(file.name for file in runtime.iterdir()) == [
        "0.json", "1.json", "4.json", "note.txt"
    ]  # fmt: skip


def test_where_leases_are(runtime: Path) -> None:
    assert folder() == runtime
    assert runtime.stat().st_mode & 0o777 == 0o700
