"""The picture of states has what labctl judges by, and lessons that there are."""

from __future__ import annotations

from xml.etree import ElementTree

from labctl.ground.resources import catalogue, scenarios
from tests.golden import agrees
from tests.states import HIGH, PLACES, TRANSITIONS, WIDE, centre, ends, page, picture, table
from tests.unit.test_docs import ROOT


def test_every_transition_is_there_once() -> None:
    drawn = [(t.old, t.new) for t in TRANSITIONS]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == table()
    assert {name for pair in drawn for name in pair} == {str(name) for name in PLACES}


def test_no_arrow_runs_through_a_box() -> None:
    for t in TRANSITIONS:
        x1, y1, x2, y2 = ends(t)
        for name in PLACES.keys() - {t.old, t.new}:
            x, y = centre(name)
            for part in range(101):
                dx, dy = x1 + (x2 - x1) * part / 100 - x, y1 + (y2 - y1) * part / 100 - y
                assert abs(dx) > WIDE / 2 or abs(dy) > HIGH / 2, (t, name)


def test_its_lessons_are_shipped() -> None:
    assert {t.lesson for t in TRANSITIONS} - {""} <= catalogue(scenarios()).keys()


def test_they_are_committed() -> None:
    made = picture()
    ElementTree.fromstring(made)
    assert agrees(ROOT / "docs" / "states.svg", made)
    assert agrees(ROOT / "docs" / "states.md", page())
