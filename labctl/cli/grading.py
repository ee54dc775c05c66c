"""The command `labctl grade`: sheets of `labctl report --blank`, filled in."""

from __future__ import annotations

from pathlib import Path

import click

from labctl.cli.arguments import last_option, runs_argument
from labctl.ground.output import reason, show

MOST = 1 << 20
"""How many bytes a sheet may have."""


@click.command()
@click.argument("answers", type=click.Path(path_type=Path), metavar="FILE")
@runs_argument
@last_option
def grade(answers: Path, runs: tuple[str, ...], last: bool) -> int:
    """Mark a sheet that `labctl report --blank` made of a run. RUN is as in `labctl report`.

    States may be spelled as anybody spells them: FIN-WAIT-2, fin_wait2. Flags in any order.

    \b
    Examples:
      labctl report --last --blank > sheet.txt; labctl grade sheet.txt --last

    Exit status: 0 if all of it is right or empty, 1 if something is wrong.
    """
    from labctl.cli import chosen
    from labctl.ground.errors import UsageError
    from labctl.ground.reading import read_file
    from labctl.judge.recorded import load
    from labctl.reports.worksheet import marks

    try:
        filled = read_file(answers, MOST).decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{answers}: can't be read: {reason(exc)}") from exc
    folders = chosen.find(runs, last)
    if len(folders) > 1:
        raise UsageError("a sheet is of one run", "name it: labctl grade FILE RUN")
    found = marks(load(folders[0]), filled)

    def write() -> None:
        for mark in found:
            if not mark.right:
                click.echo(f"{mark.number}: {mark.wanted}, not {mark.given or 'empty'}")
        click.echo(f"{sum(mark.right for mark in found)} of {len(found)} are right")

    show("the marks", write)
    return int(any(mark.given and not mark.right for mark in found))
