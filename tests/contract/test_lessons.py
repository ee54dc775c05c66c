"""Every shipped lesson holds on every backend: all that it claims is so."""

from __future__ import annotations

import os
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from labctl.backends.docker.backend import build_images
from labctl.ground.resources import catalogue, scenarios
from labctl.judge.result import RunResult
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load, load_document
from labctl.record.history import History
from labctl.run.places import DEFAULT_OS, Place
from labctl.run.runner import Silent
from labctl.run.workflow import run_case
from tests import CI, tshark
from tests import lessons_imported as imported
from tests.contract import MARKS
from tests.contract.false_claims import whats

FILES = catalogue(scenarios())
HOURS = {name for name in FILES if name.startswith("hours/")}
MINUTES = {"eaddrinuse_time_wait", "time_wait_restarted"}
HURRIED = {"fin_wait_2"}
"""Its server must be restarted before five seconds are over; a busy engine may be late, once."""
TEST_ALL = os.environ.get("LABCTL_TEST_ALL")
# Lessons whose captures alone are tried everywhere, and causes that these tell, at least. The first
# case of each other lesson is tried in CI, and all of them where LABCTL_TEST_ALL is set.
TOLD = {
    "fin_wait_2": ["closed-first"],
    "data_to_an_orphan (end close, rst 1, send EPIPE)": ["closed-first", "reset-late-data"],
    "unread_data (end close)": ["reset-by-close"],
    "keepalive_dead_peer (keepalive 1, aborted 1)": ["closed-first", "timeout-keepalive"],
    "syn_into_time_wait (timestamps 1, listener gone)": ["closed-first", "connect-refused"],
    "syn_into_close_wait": ["closed-first"],
    "balancer_resets": ["reset-crafted"],
}
CASES = {name: load(file) for name, file in sorted(FILES.items())}
FIRST = {case.label for case, *_ in CASES.values()}
"""The first case of each lesson: the others are done on namespaces, and on Docker by the matrix
(.github/workflows/matrix.yml) and where LABCTL_TEST_ALL is set."""


def run(case: Scenario, backend: str, folder: Path) -> RunResult:
    return run_case(case, Place(backend), folder, Silent(), lambda text: None)


def played(text: str, backend: str, folder: Path, **sets: Any) -> RunResult:
    """Runs the one case of a scenario's text."""
    words = {name: str(value) for name, value in sets.items()}
    (case,) = load_document(Document("played", text), text, "played", words)
    return run(case, backend, folder)


def report(result: RunResult) -> str:
    """All that a failed test has to say."""
    verdicts = [
        f"{v.result:7} {v.source}: {v.what}: expected {v.expected}, saw {v.actual}"
        for v in result.verdicts
    ]
    head = f"{result.label}: {result.result} {result.reason or ''} ({result.folder})"
    return "\n".join([head, *verdicts, *result.why])


def cases() -> list[Scenario]:
    """All that are for these backends, those that take minutes first: then the rest can run beside
    them. Those that take hours are for guests: test_guest_kernels.py."""
    found = [case for name, each in CASES.items() if name not in HOURS for case in each]
    return sorted(found, key=lambda case: case.name not in MINUTES)


def lessons() -> list[Any]:
    """Every case on namespaces, and the first of each lesson on Docker; those that take minutes
    there in CI."""
    long = {"netns": [pytest.mark.slow], "docker": [pytest.mark.slow, pytest.mark.ci]}
    return [
        pytest.param(
            case,
            backend,
            id=f"{case.label}-{backend}",
            marks=[mark, *(long[backend] if case.name in MINUTES else ())],
        )
        for backend, mark in MARKS.items()
        for case in cases()
        if backend == "netns" or case.label in FIRST or TEST_ALL
    ]


def claims(case: Scenario, backend: str, kernel: str) -> list[tuple[str, str]]:
    """What a case claims and how it ends where all of that is true, from the scenario alone. So it
    is the same for all backends, but for steps that say otherwise (`when`)."""
    steps = [
        step
        for step in case.steps
        if not (step.when and step.when.lacking(kernel, backend, dict(case.variant)))
    ]
    in_the_end = [claim for step in steps if (claim := step.in_the_end(0))]
    last = [f.what for claim in [*in_the_end, *case.expect] for f in claim.judge(History())]
    return [(what, "pass") for what in [*chain.from_iterable(map(whats, steps)), *last]]


@pytest.mark.parametrize(("case", "backend"), lessons())
def test_holds(
    case: Scenario, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as environment:
        if backend == "docker":  # which needs no tool of this machine, once there are images
            build_images(DEFAULT_OS, print)
            environment.setenv("PATH", "")
        result = run(case, backend, tmp_path)
        if backend == "docker" and case.name in HURRIED and result.result == "fail":
            result = run(case, backend, tmp_path)
    if result.result == "skip":
        pytest.skip(result.reason or "")
    assert result.result == "pass", report(result)
    judged = [(v.what, v.result) for v in result.verdicts if v.result != "skip"]
    assert judged == claims(case, backend, str(result.environment["kernel"])), report(result)
    if not tshark.MISSING and (backend == "netns" or case.label in FIRST):
        assert tshark.disagreements(result.history, result.folder) == []
    tried = case.label in TOLD or (CI and case.label in FIRST) or TEST_ALL
    if backend == "netns" and tried:
        captures_alone(result, tmp_path)


def captures_alone(result: RunResult, folder: Path) -> None:
    """A lesson's own captures, stripped of everything else, with one clock off by 3 s and 50 ppm,
    and imported: the offset is within its bound, no state in the picture contradicts the whole
    record, and no cause does. Of one capture alone the same, with less known."""
    for only in ("", *result.hosts):
        files = folder / f"files-{only}"
        files.mkdir()
        found = imported.stripped(result.folder, files, only)
        if found is None:
            continue
        assert list(imported.clock(found)) == []
        assert list(imported.contradictions(found)) == []
        assert list(imported.missing(found)) == []
        assert list(imported.wrong_causes(found)) == []
        if not only and result.label in TOLD:
            assert {*TOLD[result.label]} <= {*imported.ids(found)}


def test_those_whose_captures_are_tried_everywhere() -> None:
    assert {*TOLD} <= {case.label for case in cases()}


@pytest.mark.parametrize("name", FILES)
def test_explains_itself(name: str) -> None:
    case = CASES[name][0]
    assert case.about and case.refs


def test_table_of_lessons() -> None:
    docs = Path(__file__).parents[2] / "docs" / "lessons.md"
    row = r"^\| \[`(\w+)`\]\(\.\./scenarios/([\w/]+)\.yaml\) \|"
    rows = re.findall(row, docs.read_text(), re.M)
    assert sorted(rows) == sorted((file.stem, name) for name, file in FILES.items())
