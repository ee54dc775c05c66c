"""The example repository, as its README and its workflow run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.unit.test_ci_of_others import ACTION, ECHO, WORKFLOW, read

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.ci]

TOOLS = Path(sys.executable).parent
(RUN,) = (step["run"] for step in read(ACTION)["runs"]["steps"] if step.get("name") == "Run")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the example, that nothing else is around."""
    return Path(shutil.copytree(ECHO, tmp_path / "echo", ignore=shutil.ignore_patterns(".*_cache")))


def run(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    own = {
        "PATH": f"{TOOLS}:{os.environ['PATH']}",
        "HOME": str(cwd),
        "DOCKER_HOST": "unix:///nonexistent/docker.sock",
    }
    return subprocess.run(
        words, cwd=cwd, env={**os.environ, **own, **variables},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


def acted(repository: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """What the action does with these inputs, in a step of a workflow."""
    temporary = repository.parent / "temporary"
    (temporary / "labctl").mkdir(parents=True, exist_ok=True)
    if not (temporary / "labctl" / "bin").exists():
        (temporary / "labctl" / "bin").symlink_to(TOOLS)
    given = {name: value["default"] for name, value in read(ACTION)["inputs"].items()} | inputs
    return run(
        "bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", RUN, cwd=repository,
        RUNNER_TEMP=str(temporary), GITHUB_ACTIONS="true", GITHUB_WORKSPACE=str(repository),
        GITHUB_STEP_SUMMARY=str(temporary / "summary.md"),
        RUNS=str(temporary / given["artifact"]), SCENARIOS=given["scenarios"],
        PARAMS=given["set"], BACKEND=given["backend"],
    )  # fmt: skip


def test_its_tests_pass(repository: Path) -> None:
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=repository)
    assert done.returncode == 0, done.stdout
    assert "3 passed, 1 skipped" in done.stdout  # what needs Docker is skipped


def test_its_workflow_passes(repository: Path) -> None:
    steps = [step["with"] for step in read(WORKFLOW)["jobs"]["tests"]["steps"] if "with" in step]
    steps = [step for step in steps if "scenarios" in step]
    assert len(steps) == 2
    for step in steps:
        done = acted(repository, **step)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "::error" not in done.stderr
    made = repository.parent / "temporary"
    for artifact, cases in {"scenarios": 1, "servers": 8}.items():
        junit = ElementTree.parse(made / artifact / "junit.xml")
        assert len(junit.findall(".//testsuite")) == cases
        assert (made / artifact / "index.html").is_file()
    assert "restart.labctl" in (made / "summary.md").read_text("utf-8")


def test_a_server_that_has_the_fault_fails(repository: Path) -> None:
    server = repository / "server.py"
    text = server.read_text("utf-8")
    server.write_text(text.replace("allow_reuse_address = True", "allow_reuse_address = False"))
    done = acted(repository, scenarios="scenarios/restart.labctl.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("::error ")]
    assert lines
    assert all(x.startswith("::error file=scenarios/restart.labctl.yaml,line=") for x in lines)
    assert "bind :8000 failed with EADDRINUSE" in done.stdout
