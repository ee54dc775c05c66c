"""The commands: their help, their exit statuses, and what they print."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from labctl import __version__
from labctl.cli.commands import main
from labctl.cli.exits import EXIT
from labctl.ground.resources import catalogue, scenarios, shelf
from labctl.language.document import Document
from labctl.language.params import Given
from labctl.language.scenario import load
from labctl.language.schema import schema
from tests.played import Labctl

SHIPPED = sorted(catalogue(scenarios()).values())


def program(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same as a program of its own."""
    return subprocess.run(
        [sys.executable, "-m", "labctl", *arguments],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


# Help


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command, by the words that choose it."""
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(labctl: Labctl, path: tuple[str, ...], option: str) -> None:
    status, out, err = labctl(*path, option)
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: {' '.join(('labctl', *path))} ")
    paragraphs = out.split("\n\n")
    assert len(paragraphs[1].split()) >= 4, "what it does"
    for line in out.splitlines():
        assert len(line) <= 80


def test_options_are_explained() -> None:
    for path in commands():
        command: Any = main
        for word in path:
            command = command.commands[word]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not command.hidden:
                assert parameter.help or parameter.name == "form", (path, parameter.name)


def test_help_of_all_names_every_command(labctl: Labctl) -> None:
    _, out, _ = labctl("--help")
    for path in commands():
        assert path[:1] in ((), ("_hold",)) or f"\n  {path[0]} " in out
    assert "_hold" not in out


def loaded(*arguments: str) -> list[str]:
    """What a command has imported when it ends, in order."""
    script = """
import sys
from labctl.cli.commands import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(end.code, *sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1].split()


NEEDLESS = {"rich", "docker", "requests", "dpkt", "jinja2", "labctl.judge.causes"}


def test_help_is_quick() -> None:
    """It imports none of what only a run needs."""
    status, *modules = loaded("--help")
    assert status == "0" and "labctl.cli.commands" in modules
    too = {"pydantic", "yaml", "importlib.metadata", "labctl.language.scenario"}
    assert not (NEEDLESS | too) & set(modules)


def test_a_run_begins_quickly() -> None:
    """First it has the launcher of namespaces begin; and it does without what only shows a result,
    or explains it, until the lab waits."""
    status, *modules = loaded("run", "fin_wait_2", "--backend", "netns", "--set", "no=1")
    assert status == "2" and "labctl.run.runner" in modules
    assert not NEEDLESS & set(modules)
    assert modules.index("labctl.backends.netns.launcher") < modules.index("pydantic")


def test_version(labctl: Labctl) -> None:
    assert labctl("--version") == (0, f"labctl, version {__version__}\n", "")


# Exit statuses


def test_a_status_for_every_result() -> None:
    assert EXIT == {"pass": 0, "fail": 1, "unknown": 3, "skip": 3, "error": 4}


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"], ["run"], ["run", "--nonsense"], ["run", "x", "--backend", "lxc"],
        ["run", "x", "--format", "xml"], ["run", "no-such-scenario"], ["validate"],
        ["validate", "no-such-scenario"], ["list", "--format", "xml"], ["shell"],
        ["shell", "server"], ["shell", "server", "--run", "x"], ["images", "nonsense"],
        ["check"], ["check", "x", "--format", "html"], ["report"], ["report", "x"],
        ["report", "x", "--format", "pdf"], ["run", "fin_wait_2", "--set", "x"],
        ["run", "fin_wait_2", "--set", "no_such=1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_usage(labctl: Labctl, arguments: list[str], environment: Path) -> None:
    status, out, err = labctl(*arguments)
    assert (status, out) == (2, "")
    assert err
    assert "Traceback" not in err
    assert not (environment / "labctl" / "runs").exists()


def test_no_arguments_at_all(labctl: Labctl) -> None:
    status, out, err = labctl()
    assert status == 2
    assert "Usage: labctl" in out + err


def test_nothing_is_up(labctl: Labctl) -> None:
    assert labctl("ps") == (0, "no lab is up\n", "")
    assert labctl("down") == (0, "", "")
    status, out, err = labctl("shell", "server")
    assert (status, out) == (2, "")
    assert err == "labctl: no lab is up; start one with: labctl up\n"


def test_no_engine_is_unavailable(labctl: Labctl) -> None:
    status, out, err = labctl("images", "build")
    assert (status, out) == (3, "")
    assert err.startswith("labctl: ")
    assert "Traceback" not in err


# The catalogue and the language


def test_up_ends_as_what_it_started_did() -> None:
    done = program("up", "--backend", "docker", DOCKER_HOST="unix:///nowhere.sock")
    assert (done.returncode, done.stdout) == (EXIT["skip"], "")
    assert done.stderr.startswith("labctl: no Docker engine answers at unix:///nowhere.sock")
    assert len(done.stderr.splitlines()) == 1


def test_list(labctl: Labctl) -> None:
    status, out, err = labctl("list", "--format", "json")
    assert (status, err) == (0, "")
    entries = json.loads(out)
    assert {entry["name"] for entry in entries} == catalogue(scenarios()).keys()
    themes = [entry["theme"] for entry in entries]
    assert themes == sorted(themes)
    assert all(themes)
    for entry in entries:
        assert entry["title"]
        assert entry["seconds"] > 0
        assert entry["variants"] >= 1
        assert Path(entry["source"]).is_file()
    status, table, _ = labctl("list")
    assert status == 0
    for entry in entries:
        assert entry["name"] in table
        assert entry["theme"] in table
        assert entry["title"].split()[0] in table


def test_validate(labctl: Labctl) -> None:
    status, out, err = labctl("validate", str(scenarios()))
    assert (status, err) == (0, "")
    cases = sum(len(load(path)) for path in SHIPPED)
    assert out == f"{len(SHIPPED)} scenarios, {cases} cases: valid\n"
    status, out, _ = labctl("validate", "fin_wait_2")
    assert (status, out.split(",")[0]) == (0, "1 scenario")


def test_schema(labctl: Labctl) -> None:
    status, out, err = labctl("schema")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found.pop("$id").endswith("/docs/scenario.schema.json")
    assert found == schema()
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(found["required"]) == {"title", "hosts", "steps"}
    assert found["additionalProperties"] is False
    references = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', out))
    assert references <= set(found["$defs"])


def test_schema_is_a_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", shelf(scenarios()).values(), ids=lambda path: path.stem)
def test_shipped_scenarios_fit_the_schema(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    read = Document.read(path)
    validator.validate(read.expand(None).data)
    for choice in Given(read).choices({}):
        validator.validate(read.expand(choice.params).data)


def test_a_guest_refuses_what_it_can_not_do(labctl: Labctl) -> None:
    for options, said in (
        (("--kernel", "6.1", "--keep"), "--kernel has no lab to keep"),
        (("--kernel", "6.1", "--os", "alpine:3.20"), "allowed: debian:11, debian:12, debian:13, "),
        (("--virtual-time",), "choose its kernel: --kernel NAME"),
    ):
        status, _, err = labctl("run", "process_end", *options)
        assert status == 2
        assert said in err


def test_a_lab_to_keep_is_the_only_one(labctl: Labctl) -> None:
    status, _, err = labctl("run", "process_end", "--keep", "--jobs", "2")
    assert (status, err) == (
        2, "labctl: --keep keeps one lab at a time, so it can't go with --jobs 2\n"
    )  # fmt: skip
    for wrong in ("0", "33", "some"):
        status, _, err = labctl("run", "process_end", "-j", wrong)
        assert status == 2
        assert "'-j' / '--jobs'" in err


def test_namespaces_refuse_another_system(labctl: Labctl) -> None:
    status, _, err = labctl("run", "process_end", "--backend", "netns", "--os", "debian:11")
    assert status == 2
    assert err.startswith("labctl: namespaces run on this machine's own system, not on 'debian:11'")


def test_a_system_that_is_asked_for_wants_an_engine(
    labctl: Labctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    status, out, err = labctl("run", "process_end", "--os", "debian:12", "--format", "json")
    assert status == 3, err
    runs = json.loads(out)["runs"]
    assert {run["result"] for run in runs} == {"skip"}
    assert all("no Docker engine answers" in run["reason"] for run in runs)
