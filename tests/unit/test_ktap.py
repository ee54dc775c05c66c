"""KTAP, read again by what its page in the kernel's documentation says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.judge.check import Verdict
from labctl.judge.recorded import load
from labctl.language.predicates import Result
from labctl.reports import ktap
from tests.played import Labctl
from tests.reported import RUN

PLAN = re.compile(r"1\.\.(\d+)")
RESULT = re.compile(r"(ok|not ok) (\d+) ([^#]+?)(?: # SKIP (.+))?")


def read(lines: list[str]) -> list[tuple[str, str, list[str]]]:
    """The results of a level: each with its description, and the lines before it."""
    assert lines[0] == "KTAP version 1"
    plan = PLAN.fullmatch(lines[1])
    assert plan
    found: list[tuple[str, str, list[str]]] = []
    before: list[str] = []
    for line in lines[2:]:
        if line.startswith(("  ", "# ")):
            before.append(line)
            continue
        result = RESULT.fullmatch(line)
        assert result, line
        found.append((f"{result[1]}{' SKIP' if result[4] else ''}", result[3], before))
        assert int(result[2]) == len(found)
        before = []
    assert len(found) == int(plan[1])
    return found


def inner(lines: list[str]) -> list[tuple[str, str, list[str]]]:
    """The claims of a run, without what is told of the run behind them."""
    own = [line.removeprefix("  ") for line in lines]
    end = max((n for n, line in enumerate(own, 1) if RESULT.fullmatch(line)), default=0)
    return read(own[:end])


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("pass", "ok"),
        ("fail", "not ok"),
        ("unknown", "not ok"),
        ("skip", "ok SKIP"),
        ("error", "not ok"),
    ],
)
def test_each_result(result: str, expected: str) -> None:
    run = replace(load(RUN), name="mine #2\nok 7", result=result, reason="why # not\nok 9")
    runs = [load(RUN), run]
    one, other = read(ktap.document(runs).splitlines())
    assert (one[0], other[0], other[1]) == ("ok", expected, "mine 2\\nok 7")
    assert [claim[0] for claim in inner(one[2])] == ["ok"] * len(load(RUN).verdicts)
    assert ("  # error: why # not\\nok 9" in other[2]) == (result == "error")


def test_a_claim_that_did_not_pass_says_why() -> None:
    results: tuple[Result, ...] = ("pass", "fail", "unknown")
    verdicts = tuple(
        Verdict(result, "server", "LISTEN", "no\nsockets", 1.0, f"a.yaml:{line}")
        for line, result in enumerate(results, 1)
    )
    run = replace(load(RUN), result="fail", verdicts=verdicts)
    ((_, _, lines),) = read(ktap.document([run]).splitlines())
    assert [(claim[0], claim[2]) for claim in inner(lines)] == [
        ("ok", []),
        ("not ok", ["# a.yaml:2: server: expected LISTEN, saw no\\nsockets"]),
        ("not ok", ["# a.yaml:3: server: expected LISTEN, unknown: no\\nsockets"]),
    ]


@pytest.mark.netns
def test_a_run_prints_it(tmp_path: Path, labctl: Labctl) -> None:
    path = tmp_path / "look.yaml"
    claim = {"expect": {"sockets": {"server": "none"}}}
    path.write_text(
        json.dumps({"title": "A look", "hosts": {"server": {}, "client": {}}, "steps": [claim]})
    )
    status, out, _ = labctl("run", str(path), "--backend", "netns", "--format", "ktap")
    assert status == 0
    ((result, name, lines),) = read(out.splitlines())
    assert (result, name, len(inner(lines))) == ("ok", "look", 1)
