"""Cases that run at once give what they give one after the other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.contract import real_backends

TIMES = {"started": "", "seconds": 0, "lab_seconds": 0, "at": 0, "actual": "", "evidence": [],
         "measured": {}, "counted": {}, "causes": [], "why": []}  # fmt: skip

SLOW = """\
title: A case that waits
params: {seen: 0}
variants: [{seen: none}, {seen: LISTEN}, {seen: TIME-WAIT}]
hosts: {server: {}, client: {}}
steps:
  - snapshot: the beginning
  - sleep: 10s
  - expect: {sockets: {server: "${seen}"}}
"""


def labctl(backend: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "labctl", "run", *arguments, "--backend", backend],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def timeless(document: str, out: Path) -> dict[str, Any]:
    """A result document without what differs from run to run: moments, and what else happened."""
    whole: dict[str, Any] = json.loads(document.replace(str(out), "OUT"))
    for run in whole["runs"]:
        run.update({key: value for key, value in TIMES.items() if key in run})
        for verdict in run["verdicts"]:
            verdict.update({key: value for key, value in TIMES.items() if key in verdict})
    return whole


@real_backends
def test_the_document_is_that_of_one_after_the_other(backend: str, tmp_path: Path) -> None:
    found = []
    for at_once in ("1", "4"):
        out = tmp_path / at_once
        done = labctl(
            backend, "process_end", "same_address_twice", "-j", at_once,
            "--out", str(out), "--format", "json",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(timeless(done.stdout, out))
    assert len(found[0]["runs"]) > 4
    assert found[0] == found[1]


@real_backends
def test_slow_cases_and_those_that_fail(backend: str, tmp_path: Path) -> None:
    lesson, junit, summary = (tmp_path / name for name in ("slow.yaml", "junit.xml", "summary.md"))
    lesson.write_text(SLOW)
    began = time.monotonic()
    done = labctl(
        backend, str(lesson), "-j", "4", "--out", str(tmp_path / "out"),
        "--junit", str(junit), "--html", str(tmp_path / "index.html"),
        GITHUB_STEP_SUMMARY=str(summary),
    )  # fmt: skip
    wall = time.monotonic() - began
    assert done.returncode == 1, done.stderr

    names = ("none", "LISTEN", "TIME-WAIT")
    folders = [tmp_path / "out" / f"slow-{name}" for name in names]
    runs = [json.loads((x / "result.json").read_text())["runs"][0] for x in folders]
    assert [run["result"] for run in runs] == ["pass", "fail", "fail"]
    assert wall < sum(run["seconds"] for run in runs)

    told = re.findall(r"^(pass|fail) +slow \(seen (\S+)\)  [0-9.]+ s$", done.stderr, re.MULTILINE)
    assert sorted(told) == [("fail", "LISTEN"), ("fail", "TIME-WAIT"), ("pass", "none")]
    places = [done.stdout.index(f"slow (seen {seen})") for seen in ("LISTEN", "TIME-WAIT")]
    assert places == sorted(places)
    assert done.stdout.count("the beginning") == 2, "both sides, of those that failed"
    table = re.findall(r"^. (pass|fail)  slow +seen (\S+)", done.stdout, re.MULTILINE)
    assert table == [("pass", "none"), ("fail", "LISTEN"), ("fail", "TIME-WAIT")]

    for report in (junit, summary, tmp_path / "index.html"):
        text = report.read_text()
        if report.suffix == ".html":  # where words with a hyphen are kept whole by tags
            text = re.sub(r"<[^>]*>", "", text)
        places = [text.index(f"slow (seen {seen})") for seen in names]
        assert places == sorted(places), report
