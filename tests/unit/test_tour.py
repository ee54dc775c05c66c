"""The stops of the tour."""

from __future__ import annotations

from labctl.cli.tour import STOPS
from labctl.ground.resources import catalogue, scenarios
from labctl.language.scenario import load
from tests.played import Labctl


def test_each_stop_is_a_lesson_whose_answer_comes_later() -> None:
    known = catalogue(scenarios())
    for stop in STOPS:
        (title,) = {case.title for case in load(known[stop.lesson])}
        assert stop.question.endswith("?")
        assert title not in f"{stop.story} {stop.question}"
        assert max(map(len, stop.story.splitlines())) <= 90


def test_another_lesson(labctl: Labctl) -> None:
    status, _, told = labctl("tour", "unread_date")
    assert status == 2
    assert "unknown lesson of the tour 'unread_date'" in told
    assert "did you mean 'unread_data'?" in told
