"""The tour: what is told before a lesson runs, and after it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from labctl.cli.tour import STOPS
from labctl.ground.resources import catalogue, scenarios
from labctl.language.scenario import load

TOUR = [sys.executable, "-m", "labctl", "tour"]


@pytest.mark.netns
def test_the_question_comes_first_and_the_answer_last(tmp_path: Path) -> None:
    """Without a terminal nobody is waited for."""
    done = subprocess.run(
        [*TOUR, "unread_data", "--backend", "netns"],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (stop,) = (stop for stop in STOPS if stop.lesson == "unread_data")
    case, *_ = load(catalogue(scenarios())["unread_data"])
    parts = [
        "1 of 1  unread_data", stop.story, f"? {stop.question}",
        "RST ACK", f"= {case.title}", case.about, "labctl show unread_data",
    ]  # fmt: skip
    places = [done.stdout.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.netns
@pytest.mark.parametrize(("typed", "status"), [(b"\n", 0), (b"\x04", 130)], ids=["Enter", "Ctrl-D"])
def test_at_a_terminal_it_waits_until_somebody_has_guessed(
    typed: bytes, status: int, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*TOUR, "unread_data", "--backend", "netns"], stdin=theirs,
            stdout=subprocess.PIPE, text=True, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        ) as tour:  # fmt: skip
            assert tour.stdout
            shown = ""
            while "Enter runs it: " not in shown:
                shown += tour.stdout.read(1)
            os.write(ours, typed)
            drawn = tour.stdout.read()
        assert tour.returncode == status
        assert ("RST ACK" in drawn) == (tmp_path / "labctl" / "runs").exists() == (status == 0)
    finally:
        os.close(ours)
        os.close(theirs)
