"""The man page and the completions that a wheel brings along are those of the commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import click
import pytest

from labctl.cli.commands import main
from tests.golden import agrees
from tests.manual import ROOT, SHELLS, completion, page, text
from tests.unit.test_docs import COMMANDS

PAGE = ROOT / "docs" / "labctl.1"
COMPLETIONS = ROOT / "docs" / "completions"


def formatted(text: str) -> str:
    if not shutil.which("groff"):
        pytest.skip("no groff here: install groff-base")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-P-c", "-P-b", "-P-u", "-ww", "-rLL=60n"],
        input=text, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


def test_the_page_is_committed() -> None:
    assert agrees(PAGE, page())


def test_the_page_has_every_command_with_its_options_and_examples() -> None:
    shown = formatted(page())
    lines = {line.strip() for line in shown.splitlines()}
    for name, command in COMMANDS.items():
        assert name in lines
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert re.search(rf"^ +(-\w, )?{parameter.opts[-1]}\b", shown, re.MULTILINE)
    for command in (main, *COMMANDS.values()):
        examples = re.findall(r"^ +(labctl .+)$", command.help or "", re.MULTILINE)
        assert examples, command.name
        assert set(examples) <= lines


def test_a_word_is_no_request() -> None:
    words = [".SH none", "'quoted'", "a\\nb --all"]
    told = "\n".join(map(text, words))
    lines = [line.strip() for line in formatted(f".TH A 1 B C D\n.nf\n{told}\n").splitlines()]
    assert [line for line in lines if line in words] == words


@pytest.mark.parametrize("shell", SHELLS)
def test_completions_are_committed(shell: str) -> None:
    assert agrees(COMPLETIONS / SHELLS[shell], completion(shell))


def test_they_are_in_the_wheel() -> None:
    """Where man(1) and each shell look, below the folder that it is installed into."""
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    shared = targets["targets"]["wheel"]["shared-data"]
    assert shared == {
        "docs/labctl.1": "share/man/man1/labctl.1",
        "docs/completions/labctl.bash": "share/bash-completion/completions/labctl",
        "docs/completions/_labctl": "share/zsh/site-functions/_labctl",
        "docs/completions/labctl.fish": "share/fish/vendor_completions.d/labctl.fish",
    }
    assert all((ROOT / path).is_file() for path in shared)
