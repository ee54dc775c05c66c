"""The man page, made from the commands, and the completions of shells, as click prints them.

UPDATE_GOLDEN=1 has tests/unit/test_manual.py write them into docs/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from labctl.cli.commands import main

ROOT = Path(__file__).parents[1]
RELEASE = re.compile(r"^## \[(.+)\] - (.+)$", re.MULTILINE)
SHELLS = {"bash": "labctl.bash", "zsh": "_labctl", "fish": "labctl.fish"}
"""The name of the file in which each looks for it."""
STATUSES = "Exit status:"
END = r"""
.SH FILES
.TP
.I ~/.local/state/labctl/runs
The runs that were recorded without
.BR \-\-out ,
or below
.BR XDG_STATE_HOME .
.TP
.I ~/.cache/labctl
Kernels and systems for
.BR \-\-kernel .
.SH SEE ALSO
.BR ss (8),
.BR tcp (7),
.BR ip-netns (8),
.BR packet (7)
"""


def page() -> str:
    """labctl(1), in the macros of man(7)."""
    found = RELEASE.search((ROOT / "CHANGELOG.md").read_text("utf-8"))
    assert found, "CHANGELOG.md has no release with a date"
    version, date = found.groups()
    with click.Context(main, info_name="labctl", **main.context_settings) as context:
        about, *rest = paragraphs(main)
        lines = [
            f'.TH LABCTL 1 "{date}" "labctl {version}" "User Commands"',
            ".SH NAME",
            f"labctl \\- {text(about.rstrip('.')[0].lower() + about.rstrip('.')[1:])}",
            ".SH SYNOPSIS",
            *usage(context),
            ".SH DESCRIPTION",
            text(about),
            *described(part for part in rest if not part.startswith(STATUSES)),
            ".SH OPTIONS",
            *options(context, main.get_params(context)),
            ".SH COMMANDS",
            *(line for command in main.commands.values() for line in section(command, context)),
            ".SH EXIT STATUS",
            *(text(p.removeprefix(STATUSES).strip()) for p in rest if p.startswith(STATUSES)),
        ]
    return "\n".join(lines) + END


def section(command: click.Command, above: click.Context) -> Iterator[str]:
    """A command, or each of a group's."""
    if command.hidden:
        return
    with click.Context(command, info_name=command.name, parent=above) as context:
        if isinstance(command, click.Group):
            for each in command.commands.values():
                yield from section(each, context)
            return
        yield f".SS {text(context.command_path)}"
        yield from usage(context)
        yield from described(paragraphs(command))
        yield from options(context, command.params)


def usage(context: click.Context) -> list[str]:
    words = " ".join(context.command.collect_usage_pieces(context))
    return [".PP", f"\\fB{text(context.command_path)}\\fR {text(words)}"]


def paragraphs(command: click.Command) -> list[str]:
    return cleandoc(command.help or "").split("\n\n")


def described(parts: Iterable[str]) -> Iterator[str]:
    """Paragraphs of a help; \\b begins one whose lines stay as they are."""
    for part in parts:
        yield ".PP"
        if part.startswith("\b\n"):
            head, *lines = part.removeprefix("\b\n").splitlines()
            yield from (text(head), ".PP", ".nf", *map(text, lines), ".fi")
        else:
            yield text(" ".join(part.split()))


def options(context: click.Context, parameters: Iterable[click.Parameter]) -> Iterator[str]:
    for parameter in parameters:
        if isinstance(parameter, click.Option) and (shown := parameter.get_help_record(context)):
            name, help_ = shown
            yield from (".TP", f"\\fB{text(name)}\\fR", text(help_))


def text(words: str) -> str:
    """Words that groff shows as they are: a hyphen that can be copied, and no request."""
    shown = words.replace("\\", "\\e").replace("-", "\\-").strip("\n")
    return f"\\&{shown}" if shown.startswith((".", "'")) else shown


def completion(shell: str) -> str:
    """What a shell sources, or loads by its file's name."""
    made = get_completion_class(shell)
    assert made
    lines = made(main, {}, "labctl", "_LABCTL_COMPLETE").source().strip().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"
