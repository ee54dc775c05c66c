"""Scenarios without bounds end soon, in a sentence: too many variants, names or mistakes, and files
that never end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labctl.ground.errors import MOST_MISTAKES, ScenarioError, UsageError
from labctl.language.document import MAX_BYTES, Document
from labctl.language.params import MAX_VARIANTS
from labctl.language.scenario import MAX_WORK, Scenario, load_document
from labctl.language.values import MOST_CHOICES

HOSTS = "hosts: {server: {}, client: {}}\n"


def load(text: str) -> list[Scenario]:
    return load_document(Document("big.yaml", text), text, "big", {})


def variants(count: int) -> str:
    rows = "".join(f"  - {{a: {n}}}\n" for n in range(count))
    return f"title: t\nvariants:\n{rows}{HOSTS}"


def test_as_many_variants_as_there_may_be() -> None:
    assert len(load(f"{variants(MAX_VARIANTS)}steps: [{{note: '${{a}}'}}]\n")) == MAX_VARIANTS


def test_more_variants() -> None:
    with pytest.raises(ScenarioError, match=r"^big.yaml:2: 20000 variants; 1000 is the most"):
        load(f"{variants(20_000)}steps: []\n")


def test_variants_that_multiply_a_long_file() -> None:
    notes = "".join(f"  - note: n{n}\n" for n in range(300))
    with pytest.raises(ScenarioError, match=rf"^big.yaml:2: its 900 .*{MAX_WORK} is the most"):
        load(f"{variants(900)}steps:\n{notes}")


def test_of_many_mistakes_some_are_shown() -> None:
    wrong = "".join(f"  - kill: x{n}\n" for n in range(5000))
    with pytest.raises(ScenarioError) as caught:
        load(f"title: t\n{HOSTS}steps:\n{wrong}")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("big.yaml:4: unknown process 'x0'")
    assert lines[MOST_MISTAKES:] == [f"... and {5000 - MOST_MISTAKES} mistakes more"]


def test_of_many_names_some_are_listed() -> None:
    hosts = "".join(f"  h{n}: {{}}\n" for n in range(4000))
    with pytest.raises(ScenarioError) as caught:
        load(f"title: t\nhosts:\n{hosts}steps:\n- wait: {{sockets: {{g7: none}}}}\n")
    assert str(caught.value).endswith(f"h{MOST_CHOICES - 1} and {4000 - MOST_CHOICES} more")


def test_labels_and_mistakes_by_the_thousand() -> None:
    """Each is looked up once: this took two minutes."""
    steps = "".join(f"  - {{sleep: 0, as: a{n}, since: b{n}}}\n" for n in range(4000))
    with pytest.raises(ScenarioError, match="no earlier 'as' sets the label 'b0'"):
        load(f"title: t\n{HOSTS}steps:\n{steps}")


def test_wrong_calls_by_the_thousand() -> None:
    calls = "      sockt\n" * 50_000
    with pytest.raises(ScenarioError, match="unknown call 'sockt'"):
        load(f"title: t\nhosts:\n  server:\n    calls: |\n{calls}  client: {{}}\nsteps: []\n")


@pytest.mark.parametrize("steps", ["[" * 3000, "{a: " * 3000, "\n  " + "- " * 3000])
def test_nesting_by_the_thousand(steps: str) -> None:
    with pytest.raises(ScenarioError, match="nested deeper than 40 levels"):
        load(f"title: t\nsteps: {steps}")


def test_params_that_refer_to_each_other_by_the_hundred() -> None:
    chain = "".join(f"  p{n}: ${{p{n + 1}}}\n" for n in range(400))
    with pytest.raises(ScenarioError, match="params refer to others 40 times over"):
        load(f"title: t\nparams:\n{chain}  p400: x\n{HOSTS}steps: [{{note: '${{p0}}'}}]\n")


def make(path: Path, kind: str, size: int) -> None:
    """What a file is that must not be read: a pipe, a folder, a device, or one of so many bytes,
    which are a hole and take no room."""
    match kind:
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case "a device":
            path.symlink_to("/dev/zero")
        case _:
            with path.open("w") as file:
                file.truncate(size)


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "is larger than 1000 kB"])
def test_files_that_are_no_scenario(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.yaml"
    make(path, kind, MAX_BYTES + 1)
    with pytest.raises(UsageError, match=rf"x\.yaml.*{kind}"):
        Document.read(path)


def test_a_pipe_holds_no_command_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "labctl", "validate", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    said = f"labctl: {tmp_path}/x.yaml: a pipe; a plain file is wanted here\n"
    assert done.stderr == said
