"""`labctl list`: quick, and the same as what a run would take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from labctl.ground.errors import ScenarioError
from labctl.ground.resources import catalogue, scenarios
from labctl.language.catalogue import BESIDES, entries
from labctl.language.scenario import load

ODD = """\
title: "  A title  "
params: {one: 2s, two: "${one}"}
variants: [{how: a}, {how: b}, {how: a}, {how: c, one: 3s}]
hosts: {server: {}, client: {}}
steps:
  - sleep: ${two}
  - {sleep: 1m, when: {variant: {how: b}}}
  - {wait: {sockets: {server: none}}, within: "${one}..9s"}
  - {wait: {sockets: {server: none}}, within: 7s}
"""


def same(folder: Path) -> bool:
    for entry in entries(folder):
        cases = load(catalogue(folder)[entry.name])
        assert (entry.title, entry.theme) == (cases[0].title, cases[0].theme)
        assert entry.variants == len(cases)
        assert entry.seconds == sum(case.least + BESIDES for case in cases)
        assert entry.source == cases[0].source
    return True


def test_it_says_what_the_scenarios_themselves_say(tmp_path: Path) -> None:
    assert same(scenarios())
    (tmp_path / "odd.yaml").write_text(ODD)
    assert same(tmp_path)
    (odd,) = entries(tmp_path)
    assert (odd.variants, odd.seconds) == (3, 2 + 2 + 2 + 60 + 2 + 3 + 3 + 3 * BESIDES)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("title:", "titel:"), ("steps:", "stops:"), ("[{how", "[[how"), ("${two}", "${twoo}"),
        ("two: \"${one}\"", "two: \"${two}\""), ("{one: 2s", "[one"), ("steps:", "steps: 7\nx:"),
    ],
)  # fmt: skip
def test_one_that_is_no_scenario_says_what_is_wrong(tmp_path: Path, old: str, new: str) -> None:
    """In a checkout somebody may be at work on it."""
    assert old in ODD
    (tmp_path / "odd.yaml").write_text(ODD.replace(old, new))
    with pytest.raises(ScenarioError, match=r"odd\.yaml:\d+: "):
        entries(tmp_path)


def test_it_builds_no_model() -> None:
    """That takes most of a second, and what is listed once is listed again and again."""
    code = """
import sys
from labctl.cli.commands import main
try:
    main(["list"])
except SystemExit as end:
    assert not end.code
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert "labctl.language.catalogue" in modules
    assert not modules & {"pydantic", "labctl.language.scenario", "docker", "dpkt"}
