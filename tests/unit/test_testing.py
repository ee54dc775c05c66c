"""Scenarios as tests of pytest, as far as they are collected, and the mistakes of Python's labs."""

from __future__ import annotations

import re
import unittest
from pathlib import Path
from typing import Any

import pytest

import labctl
from labctl.ground.errors import ScenarioError, UsageError
from tests.unit.test_docs import table

pytest_plugins = ["pytester"]

VARIANTS = """\
title: Two cases
params: {port: 8000}
variants: [{n: 1}, {n: 2}]
hosts: {server: {calls: "socket; bind :${port}; listen ${n}; wait"}, client: {}}
steps:
  - start: server
"""
BAD = """\
title: Not what a scenario is
hosts: {server: {calls: await}, client: {}}
steps:
  - start: sever
  - wait: {sockets: {server: ESTABB}}
"""
HOSTS: dict[str, Any] = {"server": {"calls": "await"}, "client": {}}


@pytest.fixture
def folder(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with one scenario."""
    (pytester.path / "two.yaml").write_text(VARIANTS)
    return pytester


def collected(folder: pytest.Pytester, *options: str) -> list[str]:
    found = folder.runpytest_inprocess("--collect-only", "-q", *options)
    return [line for line in found.outlines if "::" in line]


# --- Collecting -----------------------------------------------------------------------------------

CASES = ["two.yaml::two (n 1)", "two.yaml::two (n 2)"]


def test_nobody_asked(folder: pytest.Pytester) -> None:
    assert collected(folder) == []


def test_asked_by_the_command_line(folder: pytest.Pytester) -> None:
    assert collected(folder, "--labctl") == CASES


def test_asked_by_the_settings(folder: pytest.Pytester) -> None:
    folder.makeini("[pytest]\nlabctl_scenarios = true\n")
    assert collected(folder) == CASES


def test_a_param_of_the_command_line(folder: pytest.Pytester) -> None:
    assert collected(folder, "--labctl", "--labctl-set", "n=7") == ["two.yaml::two (n 7)"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("prt=1", "--labctl-set prt: unknown param 'prt'; allowed: n, port; did you mean"),
        ("port", "--labctl-set port: no NAME=VALUE"),
    ],
)
def test_a_bad_param(folder: pytest.Pytester, option: str, message: str) -> None:
    found = folder.runpytest_inprocess("--labctl", "--labctl-set", option)
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines([f"ERROR: {message}*"])


def test_a_bad_param_with_workers(folder: pytest.Pytester) -> None:
    found = folder.runpytest_inprocess("--labctl", "--labctl-set", "prt=1", "-n", "1")
    found.assert_outcomes(failed=2)
    found.stdout.fnmatch_lines(["--labctl-set prt: unknown param 'prt'; *"])


def test_each_file_takes_the_params_that_it_has(folder: pytest.Pytester) -> None:
    """As with --set of several files: `n` is of one alone."""
    (folder.path / "other.yaml").write_text(VARIANTS.replace("n:", "m:").replace("${n}", "${m}"))
    assert collected(folder, "--labctl", "--labctl-set", "n=7", "--labctl-set", "port=1") == [
        "other.yaml::other (m 1)", "other.yaml::other (m 2)", "two.yaml::two (n 7)"
    ]  # fmt: skip


def test_a_bad_scenario(pytester: pytest.Pytester) -> None:
    (pytester.path / "bad.yaml").write_text(BAD)
    found = pytester.runpytest_inprocess("--labctl")
    found.assert_outcomes(errors=1)
    found.stdout.fnmatch_lines(
        ["bad.yaml:4: unknown process 'sever'; *", "bad.yaml:5: 'ESTABB' is no TCP state, *"],
        consecutive=True,
    )
    found.stdout.no_fnmatch_line("*Traceback*")
    found.stdout.no_fnmatch_line("*.py:*")


def test_it_costs_nothing_where_nobody_asked(folder: pytest.Pytester) -> None:
    """Of labctl, pytest imports the plugin alone."""
    folder.makepyfile(
        test_it="""
        import sys

        def test_what_is_imported():
            found = {name for name in sys.modules if name.partition(".")[0] == "labctl"}
            assert found == {"labctl", "labctl.pytest_plugin"}
            assert not {"pydantic", "yaml", "docker", "dpkt", "rich.console"} & set(sys.modules)
        """
    )
    folder.runpytest_subprocess().assert_outcomes(passed=1)


def test_the_options_are_documented(pytester: pytest.Pytester) -> None:
    shown = pytester.runpytest_inprocess("--help").stdout.str()
    rows = table("docs/testing.md", "Scenarios as tests", "option")
    documented = {row[0].strip("`").split(" ")[0] for row in rows}
    assert documented == set(re.findall(r"--labctl[a-z-]*", shown))
    assert "labctl_scenarios" in shown


@pytest.mark.parametrize("names", [["far"], ["far", "near"]])
def test_scenarios_on_engines(folder: pytest.Pytester, names: list[str]) -> None:
    """Each is skipped, as no engine answers."""
    engines = [f"--labctl-engine={name}=unix:///nowhere/{name}.sock" for name in names]
    found = folder.runpytest_inprocess("--labctl", "-rs", *engines)
    found.assert_outcomes(skipped=2)
    found.stdout.fnmatch_lines(["SKIPPED*no Docker engine answers at unix:///nowhere/far.sock*"])


def test_engines_are_for_docker(folder: pytest.Pytester) -> None:
    found = folder.runpytest_inprocess("--labctl", "--labctl-backend=netns", "--labctl-engine=far")
    found.assert_outcomes(failed=2)
    found.stdout.fnmatch_lines(["*--engine is for Docker*"])


# --- Labs in Python -------------------------------------------------------------------------------


def test_a_lab_on_an_engine_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(unittest.SkipTest, match="engine answers at unix:///nowhere/far"):
        with labctl.Lab(hosts=HOSTS, engines=["far=unix:///nowhere/far.sock"], out=tmp_path):
            pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a lab takes a scenario or hosts, one of them"),
        ({"scenario": {}, "hosts": HOSTS}, "a lab takes a scenario or hosts, one of them"),
        ({"hosts": {"server": {}}}, "two hosts or more are needed"),
        ({"hosts": {**HOSTS, "client": {"cals": "wait"}}}, "unknown key 'cals'; .*mean 'calls'"),
        ({"hosts": {**HOSTS, "client": {"run": Path("cat")}}}, "texts, numbers, lists .* Posix"),
        ({"scenario": {"title": "No hosts"}}, "'hosts' is missing"),
    ],
)
def test_a_mistake_in_python(given: dict[str, Any], message: str) -> None:
    """It is in the line that gave it."""
    with pytest.raises(UsageError, match=rf"^tests/unit/test_testing\.py:\d+: .*{message}"):
        labctl.Lab(**given)


def test_mistakes_in_a_text_are_in_its_lines() -> None:
    with pytest.raises(ScenarioError, match=r"<scenario of test_mis.*>:4: unknown process 'sever'"):
        labctl.Lab(BAD)


def test_mistakes_in_a_file_are_in_its_lines(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    with pytest.raises(ScenarioError, match=rf"{tmp_path}/bad.yaml:5: 'ESTABB' is no TCP state"):
        labctl.Lab(tmp_path / "bad.yaml")
    with pytest.raises(UsageError, match="No such file"):
        labctl.Lab(tmp_path / "none.yaml")


def test_one_variant_must_be_chosen() -> None:
    with pytest.raises(UsageError, match=r"one variant, not test_one.* \(n 1\), .* \(n 2\); use s"):
        labctl.Lab(VARIANTS)
    labctl.Lab(VARIANTS, sets={"n": "2"})
    with pytest.raises(UsageError, match="unknown param 'm'; allowed: n, port"):
        labctl.Lab(VARIANTS, sets={"m": "2"})


def test_a_lab_that_is_not_up() -> None:
    lab = labctl.Lab(hosts=HOSTS)
    with pytest.raises(UsageError, match="the lab is not up; use it in a `with`"):
        lab.start("server")
    with pytest.raises(UsageError, match="the lab has not been up yet"):
        _ = lab.folder


LONG: dict[str, Any] = {"a": {}}
LONG["a"]["b"] = LONG


@pytest.mark.parametrize(
    "given",
    [
        {"scenario": 7}, {"scenario": b"title: x"}, {"scenario": [HOSTS]}, {"hosts": [HOSTS]},
        {"hosts": "server"}, {"hosts": {1: {}}}, {"hosts": LONG}, {"hosts": {"a": {"calls": {1}}}},
        {"hosts": {"a": {"calls": "\ud800"}}}, {"hosts": {("a", "b"): {}}},
        *({"hosts": HOSTS, **more} for more in (
            {"sets": "n=1"}, {"sets": {"n": 1}}, {"sets": {1: "n"}}, {"sets": ["n=1"]},
            {"backend": None}, {"backend": 7}, {"os": 12}, {"os": b"debian:12"}, {"out": 7},
            {"out": b"/tmp"}, {"engines": "far"}, {"engines": [7]},
        )),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_type(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^tests/unit/test_testing\.py:\d+: ."):
        labctl.Lab(**given)


def test_a_lab_that_was_never_entered() -> None:
    with pytest.raises(UsageError, match="the lab has not been up yet"):
        labctl.Lab(hosts=HOSTS).__exit__(None, None, None)


def test_an_unknown_backend() -> None:
    with pytest.raises(UsageError, match="unknown backend 'podman'; allowed: auto, docker, netns"):
        labctl.Lab(hosts=HOSTS, backend="podman").__enter__()
