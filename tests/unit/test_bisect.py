"""What `labctl run --bisect` ends with."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.played import Labctl
from tests.reported import RUN
from tests.unit.test_docs import table

LOOK = """\
title: A look at two hosts
hosts: {server: {}, client: {}}
steps:
  - expect: {sockets: {server: %s}}
"""


@pytest.mark.netns
@pytest.mark.parametrize(("state", "status"), [("none", 0), ("LISTEN", 1)])
def test_good_and_bad(state: str, status: int, tmp_path: Path, labctl: Labctl) -> None:
    path = tmp_path / "look.yaml"
    path.write_text(LOOK % state)
    assert labctl("run", str(path), "--backend", "netns", "--bisect")[0] == status


@pytest.mark.parametrize(
    ("text", "usual", "told"),
    [
        ("title: nothing else", 2, "look.yaml:1: "),
        (None, 2, "no such file"),
        (LOOK % "none", 3, "no Docker engine answers"),
    ],
    ids=["a bad scenario", "no scenario", "nowhere to run"],
)
def test_what_says_neither(
    text: str | None, usual: int, told: str, tmp_path: Path, labctl: Labctl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Git would take each other status for a bad commit."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    path = tmp_path / "look.yaml"
    if text is not None:
        path.write_text(text)
    words = ("run", str(path), "--backend", "docker")
    assert labctl(*words)[0] == usual
    status, out, err = labctl(*words, "--bisect")
    assert status == 125
    assert told in out + err


def test_the_statuses_are_documented() -> None:
    statuses = [row[0] for row in table("docs/bisect.md", "Which commit it was", "status")]
    assert statuses == ["0", "1", "125", "130"]


def test_a_report_fits_into_a_mail(labctl: Labctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    status, out, _ = labctl("report", str(RUN))
    assert status == 0
    assert max(map(cell_len, out.splitlines())) == 72
