"""Limits of the system, met in the middle of several cases: each is named, and the others go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.contract.test_testing import CONNECTED

pytestmark = pytest.mark.netns

LESSON = CONNECTED.replace("hosts:", "variants: [{n: 1}, {n: 2}, {n: 3}, {n: 4}]\nhosts:", 1)
LESSON += "  - note: variant ${n}\n"
OTHER = 65534
AT_ONCE = pytest.mark.parametrize("at_once", [1, 4])


def run(
    prefix: list[str], folder: Path, out: Path, at_once: int, python: str = sys.executable
) -> list[dict[str, Any]]:
    """What comes of the lesson's four cases, behind some command; nothing else may be told."""
    (folder / "lesson.yaml").write_text(LESSON)
    done = subprocess.run(
        [
            *prefix, python, "-m", "labctl", "run", str(folder / "lesson.yaml"),
            "--backend", "netns", "-j", str(at_once), "--out", str(out), "--format", "json",
            "--junit", str(folder / "junit.xml"),
        ],
        env={
            **os.environ, "XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder),
            "PYTHONPATH": ":".join(filter(None, sys.path)),
        },
        cwd="/", capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 4), done.stderr
    if not done.stdout:
        (line,) = (s for s in done.stderr.splitlines() if s.startswith("labctl: "))
        return [{"result": "error", "reason": line}] * 4
    runs: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    assert done.returncode == (4 if any(r["result"] == "error" for r in runs) else 0)
    cases = ElementTree.parse(folder / "junit.xml").getroot()
    assert int(cases.get("errors", 0)) == sum(r["result"] == "error" for r in runs)
    return runs


@AT_ONCE
def test_a_disk_that_fills(tmp_path: Path, at_once: int) -> None:
    """A small one, mounted where nobody else sees it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    flags = "-m" if os.geteuid() == 0 else "-Urm"
    mount = f'mount -t tmpfs -o size=128k tmpfs {disk} && exec "$@"'
    found = run(["unshare", flags, "sh", "-c", mount, "sh"], tmp_path, disk / "out", at_once)
    assert len(found) == 4
    failed = [each["reason"] for each in found if each["result"] != "pass"]
    assert failed
    assert all("No space left on device; make room, or use --out DIR" in why for why in failed)


@AT_ONCE
@pytest.mark.parametrize("files", [8, 16, 20, 24])
def test_files_that_are_all_open(tmp_path: Path, at_once: int, files: int) -> None:
    limited = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh"]
    found = run(limited, tmp_path, tmp_path / "out", at_once)
    assert len(found) == 4
    for each in found:
        assert each["result"] == "pass" or any(
            word in each["reason"] for word in ("no more files can be opened", "Too many open")
        )


@AT_ONCE
@pytest.mark.parametrize("processes", [2, 4, 8, 16])
def test_processes_that_are_all_there(tmp_path: Path, at_once: int, processes: int) -> None:
    """Of a user who is not root: root has no such limit."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can be another user, by setpriv(1)")
    user = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups", "--"]
    paths = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
    pythons = [sys.executable, "/usr/bin/python3"]  # a home of root's is closed to others
    can = (
        python
        for python in pythons
        if not subprocess.run(
            [*user, "sh", "-c", f"exec {python} -m labctl list"],
            env=paths, cwd="/", capture_output=True, check=False,
        ).returncode
    )  # fmt: skip
    python = next(can, None)
    if python is None:
        pytest.skip("another user can't read this Python")
    home = Path("/tmp", f"labctl-test-{os.getpid()}-{at_once}-{processes}")
    home.mkdir(mode=0o700)
    os.chown(home, OTHER, OTHER)
    limited = [*user, "prlimit", f"--nproc={processes}:{processes}"]
    try:
        found = run(limited, home, home / "out", at_once, python)
    finally:
        shutil.rmtree(home)
    assert len(found) == 4
    for each in found:
        assert each["result"] in ("pass", "skip") or any(
            word in each["reason"] for word in ("processes", "Resource temporarily unavailable")
        )
