"""Many cases over several engines: which has room, where each case goes, and what becomes of those
whose engine is lost."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labctl.backends import EngineAt
from labctl.backends.docker.room import Room
from labctl.backends.docker.sweep import LEASE, RUN
from labctl.ground.errors import Unavailable, UsageError
from labctl.judge.recorded import load
from labctl.judge.result import RunResult
from labctl.language.scenario import Scenario
from labctl.record.store import new_folder
from labctl.reports.progress import Screen
from labctl.run.matrix import Matrix
from labctl.run.orders import Orders
from labctl.run.places import Place, places
from labctl.run.runner import Silent
from labctl.run.spread import Spread
from labctl.run.workers import Pace, Task, Work, run_all
from tests import refusing
from tests.fake import scenario
from tests.unit.test_jobs import Log, case, play

LEFT, RIGHT = EngineAt("left", "unix:///nowhere/left"), EngineAt("right", "unix:///nowhere/right")
TWO = Place("docker", engines=(LEFT, RIGHT))


def spread(said: list[str] | None = None, **rooms: Room) -> Spread:
    by_name = {"left": LEFT, "right": RIGHT}
    return Spread(
        TWO,
        {by_name[name]: room for name, room in rooms.items()},
        print if said is None else said.append,
    )


def engines_of(work: Work) -> list[str]:
    place: Place = work.keywords["place"]  # type: ignore[attr-defined]
    return [at.name for at in place.engines]


def given(found: Spread, cases: int) -> list[str]:
    return [",".join(engines_of(found.begin(number, case("x")))) for number in range(cases)]


# --- Room -----------------------------------------------------------------------------------------


def running(run: str) -> dict[str, Any]:
    return {"Labels": {RUN: run, LEASE: "l"}}


@pytest.mark.parametrize(
    ("cores", "gigabytes", "labs"), [(2, 64, 16), (64, 64, 32), (8, 1, 8), (1, 0, 1)]
)
def test_the_room_of_an_engine(tmp_path: Path, cores: int, gigabytes: int, labs: int) -> None:
    """By its processors, its memory, and how many networks an engine has; and what runs there."""
    info = {"NCPU": cores, "MemTotal": gigabytes << 30, "KernelVersion": "6.1"}
    there = [running("one"), running("one"), running("two")]
    with refusing.engine(tmp_path / "socket", info=info, **{"containers/json": there}):
        found = Room.of(EngineAt("far", f"unix://{tmp_path}/socket"))
    assert found == Room("6.1", cores, labs, 2)
    assert found.free == max(0, labs - 2)


def test_no_room_without_an_engine() -> None:
    with pytest.raises(Unavailable, match="no Docker engine answers at unix:///nowhere/left"):
        Spread.over(TWO, print)


# --- Where cases go -------------------------------------------------------------------------------


def test_cases_are_spread_by_room() -> None:
    counts = given(spread(left=Room("6.1", 4, 32), right=Room("6.1", 1, 8)), 40)
    assert (counts.count("left"), counts.count("right")) == (32, 8)


def test_what_runs_there_already_takes_room() -> None:
    found = given(spread(left=Room("6.1", 2, 16, taken=15), right=Room("6.1", 2, 16)), 16)
    assert (found.count("left"), found.count("right")) == (1, 15)


def test_a_case_that_is_over_makes_room(tmp_path: Path) -> None:
    found = spread(left=Room("6.1", 1, 8), right=Room("6.1", 1, 8))
    assert given(found, 2) == ["left", "right"]
    assert found.ended(1, passed(tmp_path)) is not None
    assert engines_of(found.begin(2, case("x"))) == ["right"]


def test_a_case_that_names_engines_has_all() -> None:
    pinned = scenario("title: t\nhosts: {a: {engine: left}, b: {}}\nsteps: []\n")
    found = spread(left=Room("6.1", 1, 8), right=Room("6.1", 1, 8))
    assert engines_of(found.begin(0, pinned)) == ["left", "right"]


def test_the_pace_is_that_of_the_engines() -> None:
    cores = os.cpu_count() or 1
    found = spread(left=Room("6.1", 1, 8, taken=3), right=Room("6.1", 1, 8, taken=9))
    assert found.pace(100, None) == Pace(5, 2)
    assert found.pace(100, 32).at_once == 32
    assert found.pace(4, None).at_once == 4
    full = spread(left=Room("6.1", 99, 8, taken=8))
    assert full.pace(100, None) == Pace(1, 4 * cores)
    assert spread(left=Room("6.1", 99, 32), right=Room("6.1", 9, 32)).pace(100, None).at_once == 32


def test_a_place_has_one_kernel() -> None:
    spread(left=Room("6.1", 1, 8), right=Room("6.1", 1, 8)).demand_one_kernel()
    with pytest.raises(Unavailable, match=r"left has 6\.1, right has 6\.12"):
        spread(left=Room("6.1", 1, 8), right=Room("6.12", 1, 8)).demand_one_kernel()


def test_a_matrix_is_not_of_engines_with_several_kernels(tmp_path: Path) -> None:
    """It compares kernels. Its cases are each on one engine, also a single one."""
    with ExitStack() as stack:
        ats = []
        for kernel in ("6.1", "6.12"):
            info = {"NCPU": 1, "MemTotal": 1 << 30, "KernelVersion": kernel}
            stack.enter_context(refusing.engine(tmp_path / kernel, info=info))
            ats.append(EngineAt(f"with {kernel}", f"unix://{tmp_path}/{kernel}"))
        place = Place("docker", "debian:12", engines=tuple(ats))
        found = Matrix([case("x")], {}, tmp_path / "out")
        found.fill(place, Orders(Screen()))
    seen = found.seen(place)
    assert seen.result == "skip"
    assert "one kernel, but with 6.1 has 6.1, with 6.12 has 6.12" in (seen.reason or "")


def test_places_of_a_matrix_on_engines() -> None:
    texts = ["left=x", "right=y"]
    named = (EngineAt("left", "x"), EngineAt("right", "y"))
    (only,) = places([], [], [], False, texts)
    assert only == Place("docker", "debian:12", engines=named)
    assert only.name == "docker debian:12 on left, right"
    assert only.options == ["--os", "debian:12", "--engine=left=x", "--engine=right=y"]
    first, second = places(["netns"], ["debian:11"], [], False, texts)
    assert (first.engines, second) == (named, Place("netns"))
    with pytest.raises(UsageError, match="--engine is for Docker"):
        places(["netns"], [], [], False, texts)


# --- A lost engine --------------------------------------------------------------------------------


def passed(out: Path, title: str = "x") -> RunResult:
    return play(new_folder(out, title), case(title), Silent(), print)


def error(out: Path, title: str = "x") -> RunResult:
    return replace(passed(out, title), result="error", reason="it is gone")


def test_a_case_of_a_lost_engine_runs_again_elsewhere_once(tmp_path: Path) -> None:
    """Its result says so, in its folder too."""
    said: list[str] = []
    found = spread(said, left=Room("6.1", 1, 8), right=Room("6.1", 1, 8))
    assert given(found, 4) == ["left", "right", "left", "right"]
    assert found.ended(0, error(tmp_path, "first")) is None
    assert said == ["the engine left does not answer any more: its cases run again elsewhere"]
    assert engines_of(found.begin(0, case("x"))) == ["right"]
    assert found.ended(2, error(tmp_path, "other")) is None and len(said) == 1
    again = found.ended(0, passed(tmp_path, "again"))
    assert again and again.result == "pass"
    (why,) = again.beside
    assert why == (
        f"a second run, as the engine left was lost; of the first there is {tmp_path / 'first'}"
    )
    assert load(tmp_path / "again").beside == (why,)


def test_a_case_does_not_run_a_third_time(tmp_path: Path) -> None:
    found = spread(left=Room("6.1", 1, 8), right=Room("6.1", 1, 8))
    given(found, 1)
    assert found.ended(0, error(tmp_path, "first")) is None
    given(found, 1)
    again = found.ended(0, error(tmp_path, "again"))
    assert again and again.result == "error" and "a second run" in again.beside[0]


@pytest.mark.parametrize("result", ["pass", "fail", "unknown"])
def test_a_case_that_was_judged_does_not_run_again(tmp_path: Path, result: str) -> None:
    found = spread(left=Room("6.1", 1, 8), right=Room("6.1", 1, 8))
    given(found, 1)
    judged = replace(passed(tmp_path), result=result)
    assert found.ended(0, judged) is judged


def test_an_error_on_an_engine_that_answers_is_the_result(tmp_path: Path) -> None:
    with refusing.engine(tmp_path / "socket"):
        there = EngineAt("there", f"unix://{tmp_path}/socket")
        found = Spread(Place("docker", engines=(there, LEFT)),
                       {there: Room("6.1", 1, 8), LEFT: Room("6.1", 1, 8)}, print)  # fmt: skip
        assert given(found, 1) == ["there"]
        failed = error(tmp_path)
        assert found.ended(0, failed) is failed


def test_where_all_engines_are_lost_nothing_runs_again(tmp_path: Path) -> None:
    said: list[str] = []
    found = spread(said, left=Room("6.1", 1, 8))
    given(found, 1)
    failed = error(tmp_path)
    assert found.ended(0, failed) is failed
    assert said == ["the engine left does not answer any more: no other is left"]
    assert given(found, 1) == ["left"]  # which says why it can't run


def test_a_case_over_several_engines_does_not_run_again(tmp_path: Path) -> None:
    pinned = scenario("title: t\nhosts: {a: {engine: left}, b: {}}\nsteps: []\n")
    found = spread(left=Room("6.1", 1, 8), right=Room("6.1", 1, 8))
    found.begin(0, pinned)
    failed = error(tmp_path)
    assert found.ended(0, failed) is failed


class Twice:
    """Has each case run twice."""

    def __init__(self) -> None:
        self.first: dict[int, Path] = {}
        self.begun: list[int] = []

    def begin(self, number: int, chosen: Scenario) -> Work:
        self.begun.append(number)
        return play

    def ended(self, number: int, found: RunResult) -> RunResult | None:
        if number in self.first:
            return found
        self.first[number] = found.folder
        return None


def test_workers_run_a_case_again_in_a_folder_of_its_own(tmp_path: Path) -> None:
    twice, board = Twice(), Log()
    task = Task(play, "fake", lambda chosen: new_folder(tmp_path, chosen.title), twice)
    found = run_all([case("one"), case("two")], task, Pace(1, 1), board)
    assert [run.result for run in found] == ["pass", "pass"]
    assert twice.begun == [0, 0, 1, 1]
    assert [run.folder for run in found] != list(twice.first.values())
    assert all((folder / "result.json").exists() for folder in twice.first.values())
    assert [number for what, number in board.log if what == "pass"] == [0, 1]
    for run in found:
        (recorded,) = json.loads((run.folder / "result.json").read_text())["runs"]
        assert recorded["dir"] == str(run.folder)
