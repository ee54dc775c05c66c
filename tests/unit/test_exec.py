"""What a command of a scenario claims, and when it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labctl.ground.errors import ScenarioError
from labctl.judge.check import Verdict, check
from labctl.judge.result import RunResult
from labctl.record.events import ExecEvent, StepEvent
from tests.fake import FakeBackend, play, scenario

SCENARIO = """\
title: Commands
hosts: {{server: {{}}, client: {{}}}}
steps:
  - exec: {{server: "{command}"}}
{modifiers}  - note: the steps go on
"""
FAILS = {"exit": 3, "output": "first\nError: no such table\n    ^^^\n"}
OUTPUTS = {
    "exec server works": {"exit": 0, "output": "one\ntwo\n"},
    "exec server fails": FAILS,
    "exec client fails": FAILS,
    "exec server long": {"exit": 3, "output": "x" * 100_000},
    "exec server silent": {"exit": 1, "output": ""},
}


def ran(
    command: str, tmp_path: Path, left_out: int = 0, **modifiers: Any
) -> tuple[RunResult, list[Verdict]]:
    lines = "".join(f"    {name}: {value}\n" for name, value in modifiers.items())
    text = SCENARIO.format(command=command, modifiers=lines)
    result = play(text, FakeBackend(answers={**OUTPUTS, "exec": {"left_out": left_out}}), tmp_path)
    notes = [e for e in result.history.events if getattr(e, "text", "") == "note the steps go on"]
    assert notes
    return result, list(result.verdicts)


@pytest.mark.parametrize(
    ("command", "modifiers", "expected"),
    [
        ("works", {}, None),
        ("works", {"status": 0}, ("pass", "status 0", "status 0")),
        ("works", {"status": "any"}, None),
        ("works", {"status": 1}, ("fail", "status 1", "status 0, output 'two'")),
        ("works", {"output": "^two$"},
         ("pass", "status 0, output '^two$'", "status 0, output 'two'")),
        ("works", {"output": "three"},
         ("fail", "status 0, output 'three'", "status 0, output 'two'")),
        ("fails", {}, ("fail", "status 0", "status 3, output 'Error: no such table'")),
        ("fails", {"status": "any"}, None),
        ("fails", {"status": 3}, ("pass", "status 3", "status 3")),
        ("fails", {"status": "any", "output": "Error"},
         ("pass", "output 'Error'", "status 3, output 'Error'")),
        ("fails", {"output": "Error"},
         ("fail", "status 0, output 'Error'", "status 3, output 'Error'")),
        ("silent", {}, ("fail", "status 0", "status 1, output ''")),
    ],
)  # fmt: skip
def test_what_a_command_claims(
    command: str,
    modifiers: dict[str, Any],
    expected: tuple[str, str, str] | None,
    tmp_path: Path,
) -> None:
    result, verdicts = ran(command, tmp_path, **modifiers)
    if expected is None:
        assert (result.result, verdicts) == ("pass", [])
        return
    (verdict,) = verdicts
    assert (verdict.result, verdict.expected, verdict.actual) == expected
    assert verdict.what == f"server: {command}: {expected[1]}"
    assert verdict.source == "lesson.yaml:4"
    assert result.result == expected[0]


def test_a_failure_shows_the_command_and_what_it_wrote(tmp_path: Path) -> None:
    _, (verdict,) = ran("fails", tmp_path)
    assert verdict.evidence == ("fails", "first", "Error: no such table", "    ^^^")


@pytest.mark.parametrize("output", ["x+", "y"])
def test_a_long_line_is_cut_in_all_that_a_verdict_shows(output: str, tmp_path: Path) -> None:
    """Otherwise a few commands would make a result that nobody can read."""
    _, (verdict,) = ran("long", tmp_path, output=output)
    assert len(str(verdict)) < 10_000


def test_what_was_not_recorded_is_not_known(tmp_path: Path) -> None:
    _, (verdict,) = ran("works", tmp_path, left_out=10, output="three")
    assert verdict.result == "unknown"
    assert "10 bytes of it are not recorded; have it write less" in verdict.actual
    _, (verdict,) = ran("works", tmp_path, left_out=10, output="one")
    assert verdict.result == "pass"
    _, (verdict,) = ran("fails", tmp_path, left_out=10, output="three")
    assert verdict.result == "fail"


def test_of_several_hosts_each_has_a_verdict(tmp_path: Path) -> None:
    text = SCENARIO.format(command="works", modifiers="").replace(
        'exec: {server: "works"}', "exec: {server: works, client: fails}"
    )
    result = play(text, FakeBackend(answers=OUTPUTS), tmp_path)
    (verdict,) = result.verdicts
    assert (verdict.what, verdict.result) == ("client: fails: status 0", "fail")


def test_each_host_is_judged_by_its_own_command(tmp_path: Path) -> None:
    text = SCENARIO.format(command="works", modifiers="    status: 3\n").replace(
        'exec: {server: "works"}', "exec: {server: works, client: fails}"
    )
    found = play(text, FakeBackend(answers=OUTPUTS), tmp_path).verdicts
    assert [(v.what, v.result) for v in found] == [
        ("server: works: status 3", "fail"), ("client: fails: status 3", "pass")
    ]  # fmt: skip


def test_one_that_is_left_out_claims_nothing(tmp_path: Path) -> None:
    result, verdicts = ran("fails", tmp_path, when="{backend: docker}")
    assert (result.result, verdicts) == ("pass", [])
    result, (verdict,) = ran("fails", tmp_path, when="{backend: docker}", status=3)
    assert (verdict.result, verdict.actual) == ("skip", "backend fake is not docker")


def test_a_record_of_another_command_decides_nothing(tmp_path: Path) -> None:
    result, _ = ran("fails", tmp_path)
    edited = scenario(SCENARIO.format(command="works", modifiers="    status: 3\n"))
    (verdict,) = check(edited, result.history.events)
    assert (verdict.result, verdict.actual) == ("unknown", "the record has another command here")


def test_a_command_of_many_lines_is_drawn_in_one(tmp_path: Path) -> None:
    text = SCENARIO.format(command="works", modifiers="").replace(
        '"works"}', '"\\nnft add table x\\n  nft add chain x y\\n"}'
    )
    result = play(text, FakeBackend(answers=OUTPUTS), tmp_path)
    (step, *_) = [e.text for e in result.history.events if isinstance(e, StepEvent)]
    assert step == "exec server: nft add table x … (2 lines)"
    (verdict,) = result.verdicts
    assert verdict.what == "server: nft add table x … (2 lines): status 0"
    assert verdict.evidence[:2] == ("nft add table x", "  nft add chain x y")
    (event,) = [e for e in result.history.events if isinstance(e, ExecEvent)]
    assert event.command == "\nnft add table x\n  nft add chain x y\n"


@pytest.mark.parametrize(
    ("modifiers", "message"),
    [
        ({"status": "-1"}, "-1 is no status; allowed: any, or a number from 0 to 255"),
        ({"status": "256"}, "256 is no status"),
        ({"status": "some"}, "'some' is no status"),
        ({"status": "true"}, "True is no status"),
        ({"status": "1.0"}, "1.0 is no status"),
        ({"output": "'('"}, "'(' is no regular expression"),
        ({"within": "5s"}, "unknown key 'within'"),
    ],
)
def test_mistakes(modifiers: dict[str, str], message: str) -> None:
    lines = "".join(f"    {name}: {value}\n" for name, value in modifiers.items())
    with pytest.raises(ScenarioError) as caught:
        scenario(SCENARIO.format(command="works", modifiers=lines))
    assert f"lesson.yaml:5: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "more"), [(12, None), (13, "... 1 lines before"), (20, "... 8 lines before")]
)
def test_of_long_output_the_last_lines_are_evidence(
    tmp_path: Path, lines: int, more: str | None
) -> None:
    output = "".join(f"line {n}\n" for n in range(lines))
    fake = FakeBackend(answers={"exec server fails": {"exit": 1, "output": output}})
    (verdict,) = play(SCENARIO.format(command="fails", modifiers=""), fake, tmp_path).verdicts
    assert verdict.evidence == (
        "fails", *([more] if more else []), *(f"line {n}" for n in range(lines - 12, lines))
    )  # fmt: skip


@pytest.mark.parametrize(("length", "cut"), [(60, False), (61, True)])
def test_a_long_command_is_cut_in_its_name(tmp_path: Path, length: int, cut: bool) -> None:
    command = "x" * length
    fake = FakeBackend(answers={f"exec server {command}": {"exit": 1, "output": ""}})
    (verdict,) = play(SCENARIO.format(command=command, modifiers=""), fake, tmp_path).verdicts
    name = f"{'x' * 57}..." if cut else command
    assert verdict.subject == f"server: {name}"
    assert verdict.evidence == (command,)


@pytest.mark.parametrize("status", ["-1", "256", "true", "1.5", "none", "'0'"])
def test_what_is_no_status(status: str) -> None:
    with pytest.raises(
        ScenarioError, match="is no status; allowed: any, or a number from 0 to 255"
    ):
        scenario(SCENARIO.format(command="works", modifiers=f"    status: {status}\n"))


@pytest.mark.parametrize("status", ["0", "255"])
def test_what_is_a_status(status: str) -> None:
    assert scenario(SCENARIO.format(command="works", modifiers=f"    status: {status}\n"))


def test_what_was_measured_of_a_command(tmp_path: Path) -> None:
    _, (verdict,) = ran("fails", tmp_path, status=3, output="no such [a-z]+")
    assert (verdict.wanted.exit, verdict.wanted.output) == (3, "no such [a-z]+")
    assert (verdict.measured.exit, verdict.measured.output) == (3, "no such table")
    assert verdict.about == ("server",)
    _, (verdict,) = ran("fails", tmp_path, status="any", output="no such [a-z]+")
    assert (verdict.wanted.exit, verdict.measured.exit) == (None, 3)
