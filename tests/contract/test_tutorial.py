"""docs/tutorial.md, done as it says: its files are saved, its commands show its lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.contract.test_ci_of_others import acted, run
from tests.unit.test_docs import ROOT, blocks

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.ci]

WORKFLOW = ".github/workflows/tcp.yml"
NUMBER = re.compile(r"\d+\.\d+ s")


def plain(text: str) -> str:
    """A text without its times, and without its lines' ends."""
    return " ".join(NUMBER.sub("TIME", text).split())


def test_each_block(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    said, runs = "", 0
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        kind, _, rest = block.info.partition(" ")
        if kind in ("python", "yaml"):
            path = folder / rest.removeprefix("workflow ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif kind == "sh":
            said = ""
            for line in block.text.splitlines():
                done = run("bash", "-c", line, cwd=folder, COLUMNS="200")
                assert done.returncode == (rest == "fails"), (line, done.stdout, done.stderr)
                said += plain(done.stdout)
                runs += 1
        else:
            for line in block.text.splitlines():
                assert plain(line) in said, (line, said)
    assert runs == 6
    steps = yaml.safe_load((folder / WORKFLOW).read_text())["jobs"]["restart"]["steps"]
    done = acted(folder, **steps[-1]["with"])
    assert done.returncode == 0, done.stderr
