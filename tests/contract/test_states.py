"""The lessons that docs/states.md names show the transitions that it says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from labctl.ground.resources import scenarios
from labctl.language.scenario import load
from labctl.record.timelines import timelines
from labctl.run.places import Place
from labctl.run.runner import Silent
from labctl.run.workflow import run_case
from tests.states import CLOSE, CLOSED, OPEN, TRANSITIONS

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.ci]


@pytest.mark.parametrize("lesson", ["state_walk", "fin_wait_2", OPEN, CLOSE])
def test_a_lesson_shows_its_transitions(lesson: str, tmp_path: Path) -> None:
    case, *_ = load(scenarios() / f"{lesson}.yaml")
    found = run_case(case, Place("netns"), tmp_path, Silent(), print)
    if found.result == "skip":
        pytest.skip(f"no transitions are traced here: {found.reason}")
    walks = [
        [CLOSED, *map(str, line.states), "gone"]
        for host in case.hosts
        for line in timelines(found.history, host)
    ]
    seen = {pair for walk in walks for pair in pairwise(walk)}
    seen |= {("LISTEN", "SYN-RECV") for walk in walks if "SYN-RECV" in walk}
    wanted = {(t.old, t.new) for t in TRANSITIONS if t.lesson == lesson} - {(CLOSED, "LISTEN")}
    assert wanted <= seen
