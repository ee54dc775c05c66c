"""Leases: whoever lives holds the lock, however the others ended."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labctl.backends.lease import Lease, alive, alone, folder, leases
from labctl.ground.errors import LabError, UsageError
from labctl.run import workflow

HOLDER = """\
import sys
from labctl.backends.lease import Lease
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


# --- Only our own ---------------------------------------------------------------------------------

OTHER, VICTIM = 65534, 54000 + os.getpid() % 1000
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("link", "a link"),
        ("dangling", "a link"),
        ("file", "no folder"),
        ("777", "mode 777"),
        ("770", "mode 770"),
    ],
)
def test_a_folder_that_others_may_have_made(
    runtime: Path, tmp_path: Path, kind: str, message: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    match kind:
        case "link":
            runtime.symlink_to(elsewhere)
        case "dangling":
            runtime.symlink_to(tmp_path / "nothing")
        case "file":
            runtime.touch()
        case mode:
            runtime.mkdir()
            runtime.chmod(int(mode, 8))
    for attempt in (folder, lambda: list(leases()), lease().__enter__, alone("x", print).__enter__):
        with pytest.raises(UsageError, match=f"{message}.*set XDG_RUNTIME_DIR"):
            attempt()
    assert list(elsewhere.iterdir()) == []


@as_root
def test_a_folder_of_another_user(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    os.chown(runtime, OTHER, OTHER)
    with pytest.raises(UsageError, match=f"belongs to user {OTHER}, and not to you, user 0"):
        folder()


AS_VICTIM = """\
import os, sys
from labctl.run import workflow
from labctl.ground.errors import UsageError
from labctl.backends.lease import Lease, alone, folder, leases
import pydantic
os.environ.pop("XDG_RUNTIME_DIR", None)
if len(sys.argv) > 2:
    os.environ["XDG_RUNTIME_DIR"] = sys.argv[2]
os.setgroups([])
os.setresgid(*[int(sys.argv[1])] * 3)
os.setresuid(*[int(sys.argv[1])] * 3)
try:
    for lease in leases():
        workflow.end(lease)
    with alone("images", print), Lease("mine", "run", "", "netns", ""):
        print("made", folder())
except UsageError as exc:
    print(exc)
"""


def as_victim(*more: str) -> str:
    command = [sys.executable, "-c", AS_VICTIM, str(VICTIM), *more]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@as_root
def test_another_user_makes_the_folder_first(tmp_path: Path) -> None:
    """With a lease that says to end a process of the victim's, and a lock that is a link to a file
    of the victim's."""
    shared = Path(f"/tmp/labctl-{VICTIM}")
    precious = tmp_path / "precious"
    precious.write_text("not to be emptied")
    os.chown(precious, VICTIM, VICTIM)
    target = subprocess.Popen(["sleep", "60"], user=VICTIM)
    said = {"run": "x", "kind": "up", "what": "lab", "backend": "netns", "started": ""}
    attack = f"""\
import fcntl, os, time
os.mkdir({str(shared)!r}, 0o700)
os.symlink({str(precious)!r}, {str(shared / "images.lock")!r})
file = open({str(shared / "x.json")!r}, "w")
file.write({json.dumps({**said, "pid": target.pid, "hosts": {}})!r})
file.flush()
fcntl.flock(file, fcntl.LOCK_EX)
os.chmod({str(shared)!r}, 0o777)
print("ready", flush=True)
time.sleep(60)
"""
    attacker = subprocess.Popen(
        ["python3", "-c", attack], user=OTHER, group=OTHER, stdout=subprocess.PIPE, text=True
    )
    try:
        assert attacker.stdout
        assert attacker.stdout.readline() == "ready\n"
        assert f"belongs to user {OTHER}, and not to you, user {VICTIM}" in as_victim()
        assert precious.read_text() == "not to be emptied"
        assert target.poll() is None
    finally:
        for process in (attacker, target):
            process.kill()
            process.communicate(timeout=10)
        for file in (*shared.glob("*"), shared):
            file.unlink() if not file.is_dir() else file.rmdir()


@as_root
def test_somebody_elses_runtime_folder_does_not_count(tmp_path: Path) -> None:
    """As a shell of su(1) has it."""
    shared = Path(f"/tmp/labctl-{VICTIM}")
    try:
        assert as_victim(str(tmp_path)) == f"made {shared}\n"
        assert stat.S_IMODE(shared.stat().st_mode) == 0o700
        assert shared.stat().st_uid == VICTIM
        assert list(tmp_path.iterdir()) == []
    finally:
        (shared / "images.lock").unlink(missing_ok=True)
        shared.rmdir()


def test_files_that_are_links(runtime: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("not to be emptied")
    folder()
    for name in ("images.lock", "mine.new", "other.json"):
        (runtime / name).symlink_to(precious)
    with pytest.raises(UsageError, match=r"images\.lock.*symbolic"), alone("images", print):
        pass
    with pytest.raises(UsageError, match=r"mine\.json.*exists"), lease():
        pass
    with precious.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert list(leases()) == []
        assert alive(f"{socket.gethostname()}:{runtime / 'other.json'}") is None
    assert precious.read_text() == "not to be emptied"


def test_a_file_that_never_ends_holds_nobody_up(runtime: Path) -> None:
    folder()
    os.mkfifo(runtime / "x.json")
    assert list(leases()) == []
    assert alive(f"{socket.gethostname()}:{runtime / 'x.json'}") is None
    os.mkfifo(runtime / "images.lock")
    with pytest.raises(UsageError, match="no plain file"), alone("images", print):
        pass


@pytest.mark.parametrize("pid", [-1, 0, "sleeper"])
def test_a_process_that_is_not_the_controller_is_left_alone(runtime: Path, pid: int | str) -> None:
    """Its number went to another one, or is one of another container."""
    with holder(), subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            number = sleeper.pid if pid == "sleeper" else pid
            (file,) = runtime.glob("*.json")
            file.write_text(json.dumps({**json.loads(file.read_text()), "pid": number}))
            (found,) = leases()
            with pytest.raises(LabError, match=f"not process {number} here, which is left alone"):
                workflow.end(found)
            assert sleeper.poll() is None
        finally:
            sleeper.kill()


def test_the_controller_is_ended() -> None:
    with holder() as (process, _):
        (found,) = leases()
        assert workflow.end(found) is True
        assert process.wait(10) == -signal.SIGTERM


def test_a_lease_that_can_not_be_written(runtime: Path) -> None:
    folder()
    (runtime / "mine.json").mkdir()
    with pytest.raises(UsageError, match=r"mine\.json"), lease():
        pass
    assert [file.name for file in runtime.iterdir()] == ["mine.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_lease_that_finds_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with lease() as held:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, held._file.fileno())
        os.close(full)
        with pytest.raises(LabError, match="No space left on device; set XDG_RUNTIME_DIR"):
            held.write()
