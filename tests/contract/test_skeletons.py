"""What is made of a record as a scenario comes to the same states and causes again."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.ground.resources import scenarios
from labctl.judge.recorded import load, scenario_of
from labctl.judge.result import RunResult
from labctl.language.scenario import load as load_scenario
from labctl.record.timelines import timelines
from labctl.reports.skeleton import skeleton
from tests import CI
from tests.contract.test_lessons import played, report, run

# Those whose causes do not depend on how long the record went on after the last step.
QUICK = (
    "bound_port_again", "data_to_an_orphan", "four_segments", "linger_zero",
    "lost_last_ack", "old_duplicate", "process_end", "real_server", "restart_client_never_closes",
    "so_reuseaddr", "unread_data",
)  # fmt: skip
SLOWER = (
    "close_wait_leak", "eaddrinuse_time_wait", "fin_wait_2_full_queue",
    "half_close", "inherited_options", "linger2", "port_exhaustion",
    "reuseport_other_user", "same_address_twice", "state_walk", "syn_into_time_wait",
    "time_wait_on_the_client",
)  # fmt: skip
FILES = {path.stem: path for path in scenarios().rglob("*.yaml")}
LESSONS = (*QUICK, *(SLOWER if CI else ()))


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
