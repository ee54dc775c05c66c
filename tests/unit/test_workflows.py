"""The workflows of GitHub are valid, and call what is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from labctl.backends.docker import images
from labctl.ground import resources
from labctl.run.places import DEFAULT_OS, github, places
from tests.unit.test_docs import COMMANDS
from tests.unit.test_matrix import chosen

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / ".github" / "zizmor.yml"
WRITERS = {
    ("release", "publish"): {"id-token": "write"},
    ("images", "publish"): {
        "attestations": "write", "contents": "read", "id-token": "write", "packages": "write",
    },
}  # fmt: skip
"""What these jobs may do; all others may read."""
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found


def test_there_are_some() -> None:
    assert [path.stem for path in FILES] == ["images", "macos", "matrix", "release", "tests"]


def test_the_schema_of_workflows() -> None:
    """By the copy that check-jsonschema brings along: nothing is fetched."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    done = subprocess.run(
        [*command, "vendor.github-workflows", *map(str, FILES)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def audited(*paths: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("zizmor")
    command = [str(program), "--offline", "--quiet", "--config", str(CONFIG), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_linter_finds_nothing(tmp_path: Path) -> None:
    done = audited(*FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(FILES[0].read_text("utf-8").replace("actions/checkout", "somebody/checkout"))
    assert "unpinned-uses" in audited(wrong).stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_the_schema_does_not_tell(path: Path) -> None:
    """Jobs that are needed exist, nobody may write but who publishes, and no expression stands in a
    script, where its value would be code."""
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        granted = WRITERS.get((path.stem, name), {"contents": "read"})
        assert job.get("permissions", workflow["permissions"]) == granted
        assert {job["needs"]} <= workflow["jobs"].keys() if "needs" in job else True
        assert job["timeout-minutes"]
        for step in job["steps"]:
            assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_labctl_is_called_as_it_can_be(path: Path) -> None:
    text = path.read_text("utf-8")
    lines = re.findall(r"\b(labctl (?:matrix|run|doctor)\b.*)", "".join(
        step.get("run", "") + "\n" for job in read(path)["jobs"].values() for step in job["steps"]
    ))  # fmt: skip
    for line in [*lines, f"labctl matrix {read(path).get('env', {}).get('PLACES', '')}"]:
        (name,) = (name for name in COMMANDS if f"{line} ".startswith(f"{name} "))
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--[a-z][a-z-]*", line)) <= known
    assert all((ROOT / file).exists() for file in re.findall(r"scenarios/\S+\.yaml", text))


def test_the_names_of_published_images_are_those_that_labctl_asks_for() -> None:
    workflow = read(ROOT / ".github" / "workflows" / "images.yml")
    assert workflow["env"]["SYSTEM"] == DEFAULT_OS
    assert re.fullmatch(rf"{DEFAULT_OS}-slim@sha256:[0-9a-f]{{64}}", workflow["env"]["BASE"])
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["kind"] == list(images.KINDS)
    (script,) = (step["run"] for step in job["steps"] if step.get("id") == "image")
    code = script.partition("python -c '")[2].partition("'")[0]
    found = images.tags(DEFAULT_OS, images.read_sources(resources.images()))
    for kind in images.KINDS:
        said = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "SYSTEM": DEFAULT_OS, "KIND": kind},
        ).stdout.strip()  # fmt: skip
        assert f"labctl/{kind}:{said}" == getattr(found, kind)


def test_a_job_for_each_place() -> None:
    path = ROOT / ".github" / "workflows" / "matrix.yml"
    text = path.read_text("utf-8")
    wanted = chosen(read(path)["env"]["PLACES"].split())
    assert {(place.backend, bool(place.kernel)) for place in wanted} == {
        ("docker", False), ("netns", False), ("netns", True),
    }  # fmt: skip
    (entry,) = github(places([], [], ["6.1"], False))["include"]
    assert set(re.findall(r" matrix\.(\w+) ?(?:}}|$)", text, re.M)) == entry.keys()
