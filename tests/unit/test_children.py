"""Commands at the same time, with programs that stand in for labctl."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.ground import children
from labctl.run.places import Place
from labctl.run.places import children as children_of

PATIENCE = 30
SAYS = "import sys; print(*sys.argv[1:], 'of it', sep='\\n', file=sys.stderr)"
WAITS = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="setpriv is Linux's")


def test_guests_are_filled_at_the_same_time_where_there_are_cores_for_two() -> None:
    here, old, new = Place("netns"), Place("netns", kernel="5.10"), Place("netns", kernel="7.3")
    assert children_of([here, old, new], 2) == [old, new]
    assert children_of([here, old, new], 1) == []
    assert children_of([here, old], 8) == []


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_what_they_say_is_passed_on(at_once: int) -> None:
    said: list[tuple[str, str]] = []
    commands = {name: [name, "more"] for name in "abc"}
    program = (sys.executable, "-c", SAYS)
    children.run(commands, at_once, lambda name, line: said.append((name, line)), program)
    for name in commands:
        assert [line for who, line in said if who == name] == [name, "more", "of it"]


def test_what_labctl_says_is_passed_on() -> None:
    said: list[str] = []
    children.run({"wrong": ["run", "no_such_lesson"]}, 2, lambda _, line: said.append(line))
    assert said[0].startswith("labctl: no_such_lesson: no such file")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_they_end_with_who_started_them(number: signal.Signals, tmp_path: Path) -> None:
    code = f"""\
import sys
from labctl.ground import children
program = (sys.executable, "-c", {WAITS!r})
children.run({{n: [{str(tmp_path)!r} + "/" + n] for n in "ab"}}, 2, print, program)
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        eventually(lambda: len(list(tmp_path.iterdir())) == 2)
        children = alive(str(tmp_path))
        process.send_signal(number)
        process.wait(PATIENCE)
    assert len(children) == 2
    eventually(lambda: alive(str(tmp_path)) == [])


def alive(mark: str) -> list[int]:
    """The programs that were started with a folder of this test's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(f"{mark}/".encode()) for word in words):
            found.append(int(path.parent.name))
    return found


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
