"""What `labctl doctor` says of namespaces, and what a run finds: the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.netns

NEEDS = {
    "nft": "- start: server\n  - wait: {sockets: {server: LISTEN}}\n"
    "  - drop: {from: client, to: server, flags: SYN, count: 1}\n"
    "  - start: client\n  - wait: {sockets: {client: ESTAB}}",
    "nat": "- start: server",
    "netem": "- net: {client: {delay: 20ms}}",
    "uids": "- start: server",
    "tracing": "- note: traced",
}
"""What needs each, as a step."""
LESSON = """\
title: What needs one thing of this machine
needs: [{needs}]
hosts:
  server: {{calls: "socket; bind :8000; listen 1; accept; wait", uid: {uid}}}
  client: {{calls: "socket; connect server:8000; wait"}}
steps:
  {step}
"""


def labctl(path: str, *words: str) -> dict[str, Any] | list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "labctl", *words, "--format", "json"],
        env={**os.environ, "PATH": path, "DOCKER_HOST": "unix:///nonexistent/docker.sock"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    found: dict[str, Any] | list[dict[str, Any]] = json.loads(done.stdout)
    return found


def broken(folder: Path, *tools: str) -> str:
    """A PATH on which these come first, and do not work."""
    folder.mkdir()
    for tool in tools:
        (folder / tool).write_text(f"#!/bin/sh\necho {tool} is out of order >&2\nexit 1\n")
        (folder / tool).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("lacking", [(), ("nft", "tc", "mmdebstrap")], ids=["as it is", "less"])
def test_it_agrees_with_runs(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    path = broken(tmp_path / "bin", *lacking)
    checks = labctl(path, "doctor")
    assert isinstance(checks, list)
    said = {check["name"]: check for check in checks}
    for tool in ("nft", "mmdebstrap"):
        assert not (tool in lacking and said[tool]["ok"])
        assert said[tool]["ok"] or said[tool]["hint"]
    for name, step in NEEDS.items():
        scenario = tmp_path / f"{name}.yaml"
        uid = 65534 if name == "uids" else "null"
        text = LESSON.format(needs=name, uid=uid, step=step)
        scenario.write_text(text.replace(", uid: null", ""))
        words = ("run", str(scenario), "--backend", "netns", "--out", str(tmp_path / "out"))
        found = labctl(path, *words)
        assert isinstance(found, dict)
        (run,) = found["runs"]
        assert (run["result"] != "skip") == said[name]["ok"], (run, said[name])
        assert run["result"] in ("pass", "skip"), run
