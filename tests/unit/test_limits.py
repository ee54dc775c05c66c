"""Limits that a run comes up against, and programs that somebody has stopped."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.backends.halted import children, halted
from labctl.ground import limits
from labctl.ground.limits import explained, limit_of, origin
from tests.fake import FakeBackend
from tests.played import Play

FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def wrapped(exc: Exception) -> Exception:
    """As libraries wrap what comes from the system."""
    try:
        raise ValueError("no good", exc)
    except ValueError as outer:
        last = RuntimeError("at last")
        last.__cause__ = outer
        return last


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), f"opened: ulimit -n is {FILES}; raise it"),
        (OSError(errno.ENFILE, "Too many open files in system"), "the limit is fs.file-max"),
        (BlockingIOError(errno.EAGAIN, "try again"), "no more processes or threads can be started"),
        (RuntimeError("can't start new thread"), "no more processes or threads can be started"),
        (OSError(errno.ENOMEM, "no memory"), "no more memory can be had"),
        (MemoryError(), "no more memory can be had"),
        (OSError(errno.ENOSPC, "no room"), "No space left on device; make room"),
        (wrapped(OSError(errno.EMFILE, "Too many open files")), "ulimit -n"),
    ],
)
def test_a_limit_names_itself(exc: Exception, words: str) -> None:
    assert words in "; ".join(limit_of(exc) or ())


@pytest.mark.parametrize(
    "exc",
    [
        OSError(errno.ENOENT, "no such file"), OSError("without a number"), ValueError("a"),
        TimeoutError(), RuntimeError("something else"), KeyboardInterrupt(),
        wrapped(FileNotFoundError(errno.ENOENT, "none")),
    ],
)  # fmt: skip
def test_all_else_is_no_limit(exc: BaseException) -> None:
    assert limit_of(exc) is None


def test_what_came_while_a_limit_was_dealt_with_is_none() -> None:
    """An interruption stays one."""
    try:
        try:
            raise BlockingIOError(errno.EAGAIN, "try again")
        except BlockingIOError:
            raise KeyError("later")  # noqa: B904 - that it has a context is what this is about
    except KeyError as exc:
        assert limit_of(exc) is None


def test_the_error_of_the_system_is_found_however_deep() -> None:
    cause = OSError(errno.ENOENT, "none")
    assert origin(wrapped(wrapped(cause))) is cause
    assert origin(ValueError("a")) is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("OSError: [Errno 24] Too many open files: 'a'",
         "OSError: Too many open files: 'a': a limit of open files (ulimit -n) refuses it; raise "
         "it"),
        ("[Errno 11] can't fork: a limit of processes (ulimit -u, or pids.max of a cgroup) "
         "refuses it",
         "can't fork: a limit of processes (ulimit -u, or pids.max of a cgroup) refuses it; raise "
         "it"),
        ("[Errno 2] No such file or directory", "[Errno 2] No such file or directory"),
        ("no reason given", "no reason given"),
    ],
)  # fmt: skip
def test_what_a_program_of_the_lab_said(said: str, told: str) -> None:
    assert explained(said) == told


def test_the_cgroups_that_limit_processes(tmp_path: Path) -> None:
    below = tmp_path / "pids" / "a" / "b"
    below.mkdir(parents=True)
    (below / "pids.max").write_text("max\n")
    (below.parent / "pids.max").write_text("30\n")
    own = tmp_path / "cgroup"
    own.write_text("8:pids:/a/b\n4:memory:/c\n0::/\n")
    said = list(limits.of_processes(own, tmp_path))
    assert [line for line in said if "pids.max" in line] == [f"pids.max 30 of {below.parent}"]


@pytest.mark.parametrize(
    ("exc", "words"),
    [(OSError(errno.EMFILE, "Too many"), "ulimit -n"), (MemoryError(), "no more memory")],
)
def test_a_case_that_comes_up_against_a_limit(watch: Play, exc: Exception, words: str) -> None:
    def fail(lab: FakeBackend) -> None:
        raise exc

    found = watch("- start: server\n- start: client\n", FakeBackend({"start client": fail}))
    assert found.result == "error"
    assert words in (found.reason or "")


# --- Stopped --------------------------------------------------------------------------------------


@pytest.fixture
def asleep() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_program_that_was_stopped(asleep: subprocess.Popen[bytes]) -> None:
    parts = {os.getpid(): "this", asleep.pid: "the lab's world", 1 << 30: "none"}
    assert asleep.pid in children(os.getpid())
    assert halted(parts) is None
    asleep.send_signal(signal.SIGSTOP)
    os.waitpid(asleep.pid, os.WUNTRACED)
    said = (
        f"the lab's world is stopped (process {asleep.pid}); kill -CONT lets it go on; run it again"
    )
    assert halted(parts) == said
    asleep.send_signal(signal.SIGCONT)
    os.waitpid(asleep.pid, os.WCONTINUED)
    assert halted(parts) is None
