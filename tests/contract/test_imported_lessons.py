"""Every lesson's own captures, stripped of everything else, with one clock off by 3 s and 50 ppm,
and imported: the offset is within its bound, no state in the picture contradicts the whole record,
and no cause does. Of one capture alone the same, with less known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labctl.language.scenario import Scenario
from tests import lessons_imported as imported
from tests.contract.test_lessons import MINUTES, cases, run

TOLD = {
    "fin_wait_2": ["closed-first"],
    "data_to_an_orphan (end close, rst 1, send EPIPE)": ["closed-first", "reset-late-data"],
    "unread_data (end close)": ["reset-by-close"],
    "keepalive_dead_peer (keepalive 1, aborted 1)": ["closed-first", "timeout-keepalive"],
    "syn_into_time_wait (timestamps 1, listener gone)": ["closed-first", "connect-refused"],
    "syn_into_close_wait": ["closed-first"],
}
"""Lessons that are tried everywhere, and causes that segments alone tell, at least. The others are
tried in CI."""


def lessons() -> list[Any]:
    """Every case."""
    found = []
    for case in cases():
        marks = [] if case.label in TOLD else [pytest.mark.ci]
        marks += [pytest.mark.slow] if case.name in MINUTES else []
        found.append(pytest.param(case, id=case.label, marks=marks))
    assert {*TOLD} <= {case.label for case in cases()}
    return found


@pytest.mark.netns
@pytest.mark.parametrize("case", lessons())
def test_captures_alone(case: Scenario, tmp_path: Path) -> None:
    result = run(case, "netns", tmp_path / "runs")
    if result.result == "skip":
        pytest.skip(result.reason or "")
    for only in ("", *result.hosts):
        folder = tmp_path / f"files-{only}"
        folder.mkdir()
        found = imported.stripped(result.folder, folder, only)
        if found is None:
            continue
        assert list(imported.clock(found)) == []
        assert list(imported.contradictions(found)) == []
        assert list(imported.missing(found)) == []
        assert list(imported.wrong_causes(found)) == []
        if not only and case.label in TOLD:
            assert {*TOLD[case.label]} <= {*imported.ids(found)}
