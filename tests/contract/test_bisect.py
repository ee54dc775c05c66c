"""`git bisect run` finds the commit that took an option away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_docs import ROOT, blocks

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.ci]

FILES = {
    name: block.text
    for block in blocks(ROOT / "docs" / "tutorial.md")
    for name in [block.info.partition(" ")[2]]
}
GOOD = FILES["server.py"]
BAD = "".join(line for line in GOOD.splitlines(True) if "SO_REUSEADDR" not in line)


def git(*words: str, cwd: Path) -> str:
    """Its output; as somebody who has no settings."""
    done = subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *words],
        cwd=cwd, capture_output=True, text=True, check=False,
        env={
            **os.environ, "HOME": str(cwd), "XDG_STATE_HOME": str(cwd.parent / "state"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_finds_the_commit(tmp_path: Path) -> None:
    repository = tmp_path / "mine"
    repository.mkdir()
    (tmp_path / "restart.labctl.yaml").write_text(FILES["restart.labctl.yaml"])
    git("init", "--quiet", cwd=repository)
    for number, text in enumerate([GOOD, GOOD, GOOD, BAD, BAD, BAD, BAD]):
        (repository / "server.py").write_text(f"# {number}\n{text}")
        git("add", "server.py", cwd=repository)
        git("commit", "--quiet", "-m", f"commit {number}", cwd=repository)
    git("tag", "v1.0", "HEAD~6", cwd=repository)
    (start, run) = next(
        block.text.splitlines() for block in blocks(ROOT / "docs" / "bisect.md")
        if "restart.labctl.yaml" in block.text
    )  # fmt: skip
    git(*start.split()[1:], cwd=repository)
    told = git(*run.split()[1:], cwd=repository)
    assert "is the first bad commit" in told
    assert "commit 3" in git("show", "--no-patch", "bisect/bad", cwd=repository)
