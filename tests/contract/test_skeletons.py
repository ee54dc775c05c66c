"""What is made of a record as a scenario comes to the same states and causes again."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.ground.resources import catalogue, scenarios
from labctl.judge.recorded import load, scenario_of
from labctl.judge.result import RunResult
from labctl.language.scenario import load as load_scenario
from labctl.record.timelines import timelines
from labctl.reports.skeleton import skeleton
from tests.contract.test_lessons import played, report, run

LESSONS = (
    "bound_port_again", "data_to_an_orphan", "fin_wait_2", "linger_zero", "process_end",
    "real_server", "same_address_twice", "so_reuseaddr", "time_wait_on_the_client", "unread_data",
)  # fmt: skip
"""Some of those that come out the same."""
FILES = {path.stem: path for path in catalogue(scenarios()).values()}


def seen(run: RunResult) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """The states of each host's connections, and the causes."""
    walks = {
        (host, state)
        for host in run.history.hosts
        for timeline in timelines(run.history, host)
        for state in timeline.walk
    }
    return walks, {(cause.id, cause.host) for cause in run.causes}


@pytest.mark.netns
@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_again(name: str, tmp_path: Path) -> None:
    case, *_ = load_scenario(FILES[name])
    first = run(case, "netns", tmp_path / "first")
    assert first.result == "pass", report(first)
    recorded = load(first.folder)
    text = skeleton(recorded, scenario_of(recorded))
    again = played(text, "netns", tmp_path / "again")
    assert not again.reason, f"{text}\n{report(again)}"
    assert seen(again) == seen(first), text
