"""The package as it is built and installed, without this checkout around it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

from tests import CI

pytestmark = [pytest.mark.ci, pytest.mark.slow, pytest.mark.xdist_group("installed")]

ROOT = Path(__file__).parents[2]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was made of it."""
    folder = tmp_path_factory.mktemp("built")
    done = run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    if done.returncode and not CI:
        pytest.skip(f"the package can't be built: {done.stdout.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def labctl(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, from the wheel and the index, in a fresh environment."""
    (wheel,) = built.glob("*.whl")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    done = run(folder / "bin" / "pip", "install", "--quiet", wheel)
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "labctl"


def told(built: Path) -> Message:
    """What the wheel says of itself."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        return message_from_string(file.read(name).decode())


def test_what_the_wheel_says_of_itself(built: Path) -> None:
    about = told(built)
    assert about["Name"] == "labctl-tcp"
    assert re.match(r"\d+\.\d+\.\d+", about["Version"])
    targets = re.findall(r"\]\(([^)\s]+)\)", str(about.get_payload()))
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_the_sdist_has_what_a_checkout_has(built: Path) -> None:
    """A distribution's packager has its tests, too."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    committed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if committed.returncode:
        pytest.skip("this copy has no git")
    assert {*committed.stdout.splitlines()} - names == set()


def test_scenarios_are_there_by_name(labctl: Path) -> None:
    done = run(labctl, "validate", "fin_wait_2", "hours")
    assert done.returncode == 0, done.stderr
    assert "scenarios" in done.stdout
    done = run(labctl, "validate", "scenarios")
    assert (done.returncode, done.stderr) == (0, "")
    shown = run(labctl, "show", "fin_wait_2").stdout
    assert shown == (ROOT / "scenarios" / "fin_wait_2.yaml").read_text("utf-8")
    assert run(labctl, "list").stdout == run(sys.executable, "-m", "labctl", "list").stdout


def test_it_has_the_version_of_its_wheel(built: Path, labctl: Path) -> None:
    assert run(labctl, "--version").stdout == f"labctl, version {told(built)['Version']}\n"


@pytest.mark.netns
def test_a_lesson_runs(labctl: Path, tmp_path: Path) -> None:
    done = run(labctl, "run", "fin_wait_2", "--backend", "netns", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = next(tmp_path.glob("*/result.json")).read_text("utf-8")
    assert str(labctl.parents[1]) in result


def test_a_copy_without_git_can_be_installed(built: Path, tmp_path: Path) -> None:
    """As the archive of a commit, on a machine that has no git."""
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "tests", "dist")
    shutil.copytree(ROOT, copy, ignore=ignored)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "git").write_text("#!/bin/sh\nexit 127\n")
    (tools / "git").chmod(0o755)
    done = run(
        "env", f"PATH={tools}:{os.environ['PATH']}", sys.executable, "-m", "pip", "wheel",
        "--quiet", "--no-deps", "--wheel-dir", tmp_path, copy,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("labctl_tcp-0.2.0.dev0-*.whl"))
