"""What other projects' CI gets: annotations, an action, a hook, names for editors, a marker."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from labctl.cli.commands import main
from labctl.judge.check import Verdict
from labctl.judge.result import unperformed
from labctl.language.scenario import Scenario, load
from labctl.reports.github_errors import lines
from tests.unit.test_docs import blocks, table, words
from tests.unit.test_testing import VARIANTS
from tests.unit.test_workflows import audited

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "action.yml"
ECHO = ROOT / "examples" / "echo"
WORKFLOW = ECHO / ".github" / "workflows" / "tests.yml"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


# --- Annotations ----------------------------------------------------------------------------------


def judged(case: Scenario, result: Any, source: str, tmp_path: Path) -> Any:
    verdict = Verdict(result, "server", "LISTEN, 100%", "no\nsockets", 1.0, source)
    found = unperformed(case, result, "", "netns", tmp_path)
    return replace(found, name="mine (n 1, m 2)", verdicts=(verdict,))


def test_a_line_for_each_claim_that_did_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (case, *_) = load(ROOT / "scenarios" / "fin_wait_2.yaml")
    for result, source, line in (
        ("fail", "a/b,c.yaml:14", "::error file=a/b%2Cc.yaml,line=14,"),
        ("fail", f"{tmp_path}/d.yaml:3", "::error file=d.yaml,line=3,"),
        ("fail", "/elsewhere/d.yaml:3", "::error file=/elsewhere/d.yaml,line=3,"),
        ("unknown", "a.yaml:1", "::warning file=a.yaml,line=1,"),
    ):
        saw = "unknown:" if result == "unknown" else "saw"
        assert list(lines([judged(case, result, source, tmp_path)])) == [
            f"{line}title=mine (n 1%2C m 2)::server: expected LISTEN, 100%25, {saw} no%0Asockets"
        ]
    assert list(lines([judged(case, "pass", "a.yaml:1", tmp_path)])) == []


# --- The action, and the example's workflow -------------------------------------------------------


def test_they_are_valid(tmp_path: Path) -> None:
    for schema, path in (("actions", ACTION), ("workflows", WORKFLOW)):
        done = subprocess.run(
            [sys.executable, "-m", "check_jsonschema", "--builtin-schema",
             f"vendor.github-{schema}", str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    done = audited(ACTION, WORKFLOW)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_expression_stands_in_a_script() -> None:
    assert all("${{" not in step.get("run", "") for step in read(ACTION)["runs"]["steps"])


def test_inputs_are_documented_and_used() -> None:
    inputs = read(ACTION)["inputs"]
    assert words("docs/ci.md", "GitHub Actions", "input") == [*inputs]
    assert set(re.findall(r"inputs\.(\w+)", ACTION.read_text("utf-8"))) == inputs.keys()
    steps = [
        step
        for text in (WORKFLOW.read_text("utf-8"), *(b.text for b in blocks(ROOT / "docs/ci.md")))
        for step in re.findall(r"uses: labctl-tcp/labctl@\S+\n +with:\n((?: {10}.*\n)+)", text)
    ]
    assert len(steps) == 4
    assert all(yaml.safe_load(step).keys() <= inputs.keys() for step in steps)


def test_the_example_names_its_files() -> None:
    named = {row[0].strip("`") for row in table("examples/echo/README.md", TITLE, "file")}
    there = {
        str(path.relative_to(ECHO))
        for path in ECHO.rglob("*")
        if path.is_file() and not {"__pycache__", ".pytest_cache"} & {*path.parts}
    }
    assert named == there - {"README.md"} - {"compose.yaml"}


TITLE = "A server that is tested with labctl"


# --- A hook, and names for editors ----------------------------------------------------------------


def test_the_hook_checks_the_files_that_it_matches() -> None:
    (hook,) = read(ROOT / ".pre-commit-hooks.yaml")
    (used,) = read(ECHO / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert used["id"] == hook["id"]
    files = [str(path) for path in ECHO.rglob("*") if re.search(hook["files"], path.name)]
    assert len(files) == 2
    program, *arguments = shlex.split(hook["entry"])
    assert program == "labctl"
    done = CliRunner().invoke(main, [*arguments, *files])
    assert (done.exit_code, done.output) == (0, "2 scenarios, 2 cases: valid\n")


def test_the_schema_is_where_it_says_that_it_is() -> None:
    """Editors find it by this address; and the example, and the docs, name the same."""
    path = ROOT / "docs" / "scenario.schema.json"
    address = yaml.safe_load(path.read_text("utf-8"))["$id"]
    assert address.endswith(f"/{path.relative_to(ROOT)}")
    assert f'"{address}": "*.labctl.yaml"' in (ROOT / "docs" / "ci.md").read_text("utf-8")
    for scenario in ECHO.rglob("*.labctl.yaml"):
        assert scenario.read_text("utf-8").startswith(
            f"# yaml-language-server: $schema={address}\n"
        )


# --- The marker -----------------------------------------------------------------------------------


def test_scenarios_have_a_marker(pytester: pytest.Pytester) -> None:
    (pytester.path / "two.yaml").write_text(VARIANTS)
    pytester.makepyfile("def test_other(): pass")
    for chosen, count in (("labctl", 2), ("not labctl", 1)):
        found = pytester.runpytest_inprocess(
            "--labctl", "--strict-markers", "--collect-only", "-q", "-m", chosen
        )
        assert len([line for line in found.outlines if "::" in line]) == count
