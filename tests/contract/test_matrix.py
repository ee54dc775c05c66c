"""The same cases at two places, gone on from where they were left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOWHERE = "unix:///nonexistent/docker.sock"

LESSON = """\
title: A listener, seen or not
params: {seen: LISTEN}
variants: [{seen: LISTEN}, {seen: none}, {seen: TIME-WAIT}]
hosts:
  server: {calls: "socket; bind :8000; listen 1; wait"}
  client: {}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - expect: {sockets: {server: "${seen}"}}
"""


class Lesson:
    """A scenario in a file, and the folder that its results are kept in."""

    def __init__(self, folder: Path) -> None:
        self.file, self.out = folder / "lesson.yaml", folder / "out"
        self.file.write_text(LESSON)

    def matrix(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "labctl", "matrix", str(self.file), "--out", str(self.out),
             *options],
            env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def runs(self) -> set[Path]:
        """The cases' runs; without the looks at places."""
        return {p.parent for p in self.out.glob("*/lesson-*/result.json")}


def cells(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found = json.loads(done.stdout)
    return {row["case"]: row["cells"] for row in found["rows"] if row["kind"] == "result"}


@pytest.mark.netns
def test_a_place_that_is_there_and_one_that_is_not(tmp_path: Path) -> None:
    lesson = Lesson(tmp_path)
    options = ("--backend", "docker,netns", "--format", "json")
    done = lesson.matrix(*options, DOCKER_HOST=NOWHERE)
    assert done.returncode == 1, done.stderr
    assert cells(done) == {
        "lesson (seen LISTEN)": ["skip", "pass"],
        "lesson (seen none)": ["skip", "pass"],
        "lesson (seen TIME-WAIT)": ["skip", "fail"],
    }
    docker, netns = json.loads(done.stdout)["places"]
    assert (docker["result"], netns["result"]) == ("skip", "fail")
    assert f"no Docker engine answers at {NOWHERE}" in docker["reason"]
    assert "start one" in docker["reason"]
    assert netns["sysctls"]["net.ipv4.tcp_fin_timeout"].isdigit()
    (kept,) = lesson.out.glob("netns-*/result.json")
    assert json.loads(kept.read_text()) == netns["document"]

    before = lesson.runs()
    assert len(before) == 3
    again = lesson.matrix(*options, DOCKER_HOST=NOWHERE)
    assert lesson.runs() == before
    assert json.loads(again.stdout)["rows"] == json.loads(done.stdout)["rows"]
    assert "netns: 0 of 3 cases to run" in again.stderr

    # One that was killed left no result, and one that was interrupted an error.
    killed, interrupted, _ = sorted(before)
    (killed / "result.json").unlink()
    result = json.loads((interrupted / "result.json").read_text())
    result["runs"][0] |= {"result": "error", "reason": "interrupted"}
    (interrupted / "result.json").write_text(json.dumps(result))
    third = lesson.matrix("--backend", "netns", "--format", "markdown")
    assert "netns: 2 of 3 cases to run" in third.stderr
    assert len(lesson.runs() - before) == 2
    assert "❌ fail" in third.stdout

    # Nothing is known of another text.
    lesson.file.write_text(f"{LESSON}  - sleep: 1ms\n")
    shown = lesson.matrix("--backend", "netns", "--show", "--format", "json")
    assert (shown.returncode, {*map(tuple, cells(shown).values())}) == (3, {("not run",)})
    assert "netns: 3 of 3 cases to run" in lesson.matrix("--backend", "netns").stderr


@pytest.mark.netns
@pytest.mark.docker
def test_two_places(tmp_path: Path) -> None:
    lesson = Lesson(tmp_path)
    done = lesson.matrix("--backend", "docker,netns", "--format", "json", "-j", "2")
    assert done.returncode == 1, done.stderr
    assert [set(found) for found in cells(done).values()] == [{"pass"}, {"pass"}, {"fail"}]
    assert len(lesson.runs()) == 6
    assert "What differs or did not pass" in lesson.matrix("--show").stdout
    assert len(lesson.runs()) == 6
