"""What to type to call this very labctl, and what a shell completes of it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from labctl.cli.arguments import find
from labctl.cli.commands import main
from labctl.ground import invoked
from labctl.ground.resources import scenarios
from tests.unit.test_cli import commands

PATIENCE = 60.0
ROOT = Path(__file__).parents[2]
SCRIPT = Path(sys.executable).with_name("labctl")
EXAMPLE = re.compile(r"^ +labctl ([^;>#]*?)(?:;.*|>.*|  .*)?$", re.MULTILINE)

# How it was called


def installed(folder: Path) -> Path:
    folder.mkdir(parents=True)
    script = folder / "labctl"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("called", "path", "expected"),
    [
        (".venv/bin/labctl", "/usr/bin", ".venv/bin/labctl"),
        ("HERE/.venv/bin/labctl", "/usr/bin", ".venv/bin/labctl"),
        ("HERE/.venv/bin/labctl", "HERE/.venv/bin", "labctl"),
        (".venv/bin/labctl", "HERE/other/bin:HERE/.venv/bin", ".venv/bin/labctl"),
        ("HERE/other/bin/labctl", "HERE/other/bin:HERE/.venv/bin", "labctl"),
        ("HERE/link/labctl", "HERE/other/bin", "labctl"),
        ("ELSEWHERE/a b/labctl", "/usr/bin", "'ELSEWHERE/a b/labctl'"),
    ],
)
def test_the_command_works_as_it_is_written(
    called: str, path: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here / ".venv" / "bin", here / "other" / "bin", elsewhere / "a b"):
        installed(folder)
    (here / "link").symlink_to("other/bin")
    monkeypatch.chdir(here)

    def placed(text: str) -> str:
        return text.replace("ELSEWHERE", str(elsewhere)).replace("HERE", str(here))

    monkeypatch.setattr(sys, "argv", [placed(called)])
    monkeypatch.setenv("PATH", placed(path))
    assert invoked.command() == placed(expected)
    assert subprocess.run(["/bin/sh", "-c", invoked.command()], check=False).returncode == 0


def test_a_program_that_uses_labctl_names_its_labctl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `python -m labctl` does: it may be started from elsewhere, with another folder to import
    from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert invoked.command() == str(SCRIPT)


def test_programs_of_the_administrator_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, seen in {
        "/usr/bin:/bin": "/usr/bin:/bin:/usr/sbin:/sbin",
        "/sbin:/usr/sbin": "/sbin:/usr/sbin",
        "": "",
    }.items():
        monkeypatch.setenv("PATH", path)
        invoked.see_all_tools()
        assert os.environ["PATH"] == seen


# The help's examples


def examples() -> Iterator[list[str]]:
    for path in commands():
        command: click.Command = main
        for word in path:
            assert isinstance(command, click.Group)
            command = command.commands[word]
        yield from (found.split() for found in EXAMPLE.findall(command.help or ""))


def test_the_examples_of_help_work_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as can be told without a lab: they parse, and name scenarios that there are."""
    monkeypatch.chdir(tmp_path)
    found = list(examples())
    assert len(found) > 10
    for words in found:
        above = click.Context(main, **main.context_settings)
        name, command, context = main.resolve_command(above, words)
        assert command and name
        parsed = command.make_context(name, list(context), above)
        if "paths" in parsed.params:
            assert find(parsed.params["paths"], scenarios()) or name == "matrix"
        if name == "show":
            assert find([parsed.params["name"]], scenarios())


# Completion


@contextmanager
def terminal(folder: Path) -> Iterator[int]:
    """A bash that completes labctl, in a folder, by what a wheel brings along."""
    (folder / "rc").write_text(f"PS1='$ '; source {ROOT}/docs/completions/labctl.bash\n")
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe("bash", ["bash", "--rcfile", "rc", "-i"], {**os.environ, "TERM": "dumb"})
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        os.waitpid(pid, 0)


def seen(descriptor: int, wanted: str) -> str:
    """What it writes until something wanted has come."""
    deadline, text = time.monotonic() + PATIENCE, ""
    while wanted not in text:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([descriptor], [], [], left)[0], (wanted, text)
        text += os.read(descriptor, 4096).decode().replace("\a", "")
    return text


def test_a_shell_completes_names_and_files(tmp_path: Path) -> None:
    """A real bash: the words that it is asked for, and what it makes of them."""
    if subprocess.run(["bash", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("no bash here")
    (tmp_path / "fin_mine.yaml").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    with terminal(tmp_path) as bash:
        seen(bash, "$ ")
        for typed, completed in {
            f"{SCRIPT} run bound_p": "bound_port_again ",  # a name
            f"{SCRIPT} run fin_m": "fin_mine.yaml ",  # a file, beside names
            f"{SCRIPT} run note": "notes.txt ",  # a file that no name is like
            f"{SCRIPT} run fol": "folder/",  # a folder, which can be gone on from
            f"{SCRIPT} run ./folder/d": "./folder/deep/",
            f"{SCRIPT} validate servers/half": "servers/half_close ",
            f"{SCRIPT} show state_w": "state_walk ",
            f"{SCRIPT} report fol": "folder/",
            f"{SCRIPT} run fin_wait_2 --out fol": "folder/",
        }.items():
            os.write(bash, f"{typed}\t".encode())
            seen(bash, completed)
            os.write(bash, b"\x15")  # Ctrl-U: a line anew
