"""Hosts and processes of another operating system: other ss, nft and Python, the same lessons."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labctl.backends.docker.backend import build_images
from labctl.ground.errors import Unavailable
from labctl.ground.resources import catalogue, scenarios
from labctl.language.scenario import load
from labctl.run.places import Place
from labctl.run.runner import Silent
from labctl.run.workflow import run_case
from tests import CI
from tests.contract.test_lessons import report

pytestmark = [pytest.mark.docker, pytest.mark.ci]  # images of one more system are built

ANOTHER = "debian:13"
LESSONS = ["fin_wait_2", "lost_last_ack", "time_wait_assassination"]
"""Between them they need every program of an image: they lose segments, and inject some."""


@pytest.fixture(scope="module")
def another() -> str:
    """An operating system that is not the default, with its images built."""
    try:
        build_images(ANOTHER, print)
    except Unavailable as exc:
        if CI:
            raise
        pytest.skip(str(exc))
    return ANOTHER


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_holds_on_another_system(name: str, another: str, tmp_path: Path) -> None:
    case = load(catalogue(scenarios())[name])[0]
    result = run_case(case, Place("docker", another), tmp_path, Silent(), print)
    assert result.environment["os"] == another
    assert result.result == "pass", report(result)


@pytest.mark.parametrize(
    "command",
    [["run", "fin_wait_2"], ["run", "fin_wait_2", "unread_data"], ["images", "build"]],
    ids=" ".join,
)
def test_a_system_that_can_not_be_had(command: list[str], tmp_path: Path) -> None:
    wanted = "localhost:1/labctl/nowhere:1"
    options = ["--os", wanted, *(["--backend", "docker"] if command[0] != "images" else [])]
    done = subprocess.run(
        [sys.executable, "-m", "labctl", *command, *options],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 3, said
    assert f"no base image for '{wanted}': {wanted} can't be pulled" in said
    assert "debian:12" in said
    assert "docker load < FILE" in said
