"""The package as it is installed, without this checkout around it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import CI

ROOT = Path(__file__).parents[2]


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd="/", env=os.environ | variables,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, as pip unpacks it."""
    folder = tmp_path_factory.mktemp("installed")
    wheels = ("--quiet", "--no-deps", "--wheel-dir", str(folder))
    built = run("pip", "wheel", *wheels, str(ROOT))
    if built.returncode and not CI:
        pytest.skip(f"pip can't build the package: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_scenarios_are_there_by_name(installed: Path) -> None:
    done = run("labctl", "validate", "fin_wait_2", "hours", PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "scenarios" in done.stdout
    done = run("labctl", "validate", "scenarios", PYTHONPATH=str(installed))
    assert (done.returncode, done.stderr) == (0, "")
    shown = run("labctl", "show", "fin_wait_2", PYTHONPATH=str(installed)).stdout
    assert shown == (ROOT / "scenarios" / "fin_wait_2.yaml").read_text("utf-8")
    listed = run("labctl", "list", PYTHONPATH=str(installed)).stdout
    assert listed == run("labctl", "list").stdout


@pytest.mark.netns
def test_a_lesson_runs(installed: Path, tmp_path: Path) -> None:
    done = run(
        "labctl", "run", "process_end", "--backend", "netns", "--out", str(tmp_path),
        PYTHONPATH=str(installed),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(installed) in (next(tmp_path.glob("*/result.json"))).read_text("utf-8")
