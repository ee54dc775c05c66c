"""Plain tables at a terminal, and the console for all of them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from click import get_current_context
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from labctl.ground.plain import plain_lines

if TYPE_CHECKING:
    from labctl.run.doctor import Check

PIPE_WIDTH = 110
BLANKS = re.compile(r" +(?=\n)")


class _Console(Console):
    """Shows text as it is: none of it is markup, and none commands the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Everything that is drawn comes through here, and becomes plain text."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield segment._replace(text=plain_lines(segment.text))

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        """In a file and a pipe no line ends in blanks, which rich fills tables with."""
        text = super()._render_buffer(buffer)
        return text if self.is_terminal else BLANKS.sub("", text)

    def on_broken_pipe(self) -> None:
        # cli/ knows what to do; rich would exit.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(stderr: bool = False) -> Console:
    """A console on stdout or stderr. It obeys `--no-color`, NO_COLOR and TERM (see rich's
    Console)."""
    context = get_current_context(silent=True)
    no_color = True if context and context.color is False else None
    found = _Console(stderr=stderr, highlight=False, markup=False, emoji=False, no_color=no_color)
    if not found.is_terminal:
        found.width = max(found.width, PIPE_WIDTH)
    return found


def words(text: str, style: str = "") -> Text:
    """A text with any contents, made to take as much room as is measured."""
    return Text(plain_lines(text), style, overflow="fold")


def table(*columns: str) -> Table:
    """A table without lines; a text too long for its column goes on in the next line."""
    found = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        found.add_column(words(column), overflow="fold")
    return found


def print_table(
    out: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = ""
) -> None:
    """A plain table, with a title if it has one."""
    found = table(*columns)
    if title:
        found.title, found.title_justify, found.title_style = words(f"\n{title}"), "left", "bold"
    for row in rows:
        found.add_row(*map(words, row))
    out.print(found)


def print_checks(out: Console, checks: Sequence[Check]) -> None:
    """What `labctl doctor` found."""
    found = table("", "what", "found", "without it", "mend")
    for check in checks:
        symbol = Text(*(("✓", "green") if check.ok else ("✗", "yellow")))
        lack = ("", "") if check.ok else (check.cost, check.hint)
        found.add_row(symbol, *map(words, (check.name, check.found, *lack)))
    out.print(found)
