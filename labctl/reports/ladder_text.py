"""A ladder at a terminal: a line a row, between lifelines."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from labctl.plain import plain
from labctl.reports.rungs import (
    Arrow,
    Bar,
    Call,
    Gap,
    Judged,
    Ladder,
    Left,
    Life,
    Look,
    Note,
    Return,
    Row,
    Step,
    arrow_words,
    call_words,
    return_words,
    state_words,
    step_words,
)

if TYPE_CHECKING:
    from labctl.reports.recorded import RecordedRun

WIDTH = 110
"""Cells where nobody says how many there are."""
TIME_WIDTH = 10
SIDE_WIDTH = 16
"""At most; on a screen of fewer cells than `ROOMY` no more than what is there needs."""
ROOMY = 100
SAME_LINE = 0.001
"""A state that is new so few seconds after something stands at its side."""
SIDES = 1, 5
"""Which pieces of a line are at the sides."""
ASCII = str.maketrans("│─┈▶◀▸✗✓⋮…", "|-.><>x+:.")
LINES = 3
"""So many lines a text is long at most."""
RESULT_SIGNS = {"pass": "✓", "fail": "✗", "error": "✗", "unknown": "?", "skip": "-"}
RESULT_STYLES = {"pass": "green", "fail": "bold red", "error": "bold red", "unknown": "yellow"}


def text(ladder: Ladder, width: int, unicode: bool = True) -> str:
    """The ladder as lines of `width` cells at most: one a row, without colour."""
    lines = ("".join(words for words, _ in line).rstrip() for line in _lines(ladder, width))
    found = "\n".join(lines) + "\n"
    if unicode:
        return found
    return found.translate(ASCII).encode("ascii", "replace").decode("ascii")


def ladders(runs: Sequence[RecordedRun]) -> str:
    """The ladders of runs, as wide as the terminal."""
    width = shutil.get_terminal_size((WIDTH, 0)).columns
    return "\n".join(f"{plain(run.label)}\n{text(run.ladder, width)}" for run in runs)


def styled(ladder: Ladder, width: int) -> Text:
    """The same for a console, in colour."""
    found = Text(no_wrap=True)
    for line in _lines(ladder, width):
        found.append_text(Text.assemble(*line, "\n"))
    return found


Words = tuple[str, str]
"""A piece of text, and its style."""


class _Canvas:
    """The columns of a ladder of text: the time, a side, lifelines with what is between them, and
    the other side."""

    def __init__(self, ladder: Ladder, width: int) -> None:
        self.ladder = ladder
        self.count = max(2, len(ladder.hosts))
        self.sides = SIDE_WIDTH, SIDE_WIDTH
        if width < ROOMY:
            self.sides = self._needs(ladder.hosts[:1]), self._needs(ladder.hosts[-1:])
        between = width - TIME_WIDTH - sum(self.sides) - self.count
        self.hop = max(12, between // (self.count - 1))
        self.middle = self.hop * (self.count - 1) + self.count - 2

    def _needs(self, hosts: Sequence[str]) -> int:
        """How wide the states at the side of a host are."""
        bars = (row for row in self.ladder.rows if isinstance(row, Bar) and row.host in hosts)
        widths = (cell_len(state_words(self.ladder, bar)) for bar in bars)
        return min(SIDE_WIDTH, 3 + max(widths, default=0))

    def line(
        self, t: str, middle: Words | None = None, left: Words = ("", ""), right: Words = ("", "")
    ) -> list[Words]:
        """One line; `middle` takes all that is between the outer lifelines."""
        lanes = ("│".join([" " * self.hop] * (self.count - 1)), "dim")
        return [
            (set_cell_size(t.rjust(TIME_WIDTH - 2), TIME_WIDTH), "dim"),
            (_right(left[0], self.sides[0] - 1) + " ", left[1]),
            ("│", "dim"),
            (set_cell_size(middle[0], self.middle), middle[1]) if middle else lanes,
            ("│", "dim"),
            (f" {_clip(right[0], self.sides[1] - 1)}", right[1]),
        ]

    def beside(self, t: str, host: str, words: str, style: str) -> list[list[Words]]:
        """Words at the inside of a host's lifeline, as lines."""
        lines = _wrap(words, self.hop - 1)
        return [self._beside(t, host, line, style) for t, line in _dated(t, lines)]

    def centred(self, t: str, words: str, style: str, fill: str) -> list[list[Words]]:
        """Words amid all, as lines."""
        lines = _wrap(words, self.middle - 6)
        return [
            self.line(t, (_centred(f" {line} ", self.middle, fill), style))
            for t, line in _dated(t, lines)
        ]

    def _beside(self, t: str, host: str, words: str, style: str) -> list[Words]:
        index = self.index(host) or 0
        parts = [" " * self.hop] * (self.count - 1)
        if index == self.count - 1:
            parts[-1] = _right(words, self.hop - 1) + " "
        else:
            parts[index] = " " + set_cell_size(_clip(words, self.hop - 1), self.hop - 1)
        return self.line(t, ("│".join(parts), style))

    def index(self, host: str | None) -> int | None:
        """Which lifeline is a host's."""
        hosts = self.ladder.hosts
        return hosts.index(host) if host in hosts else None


def _wrap(words: str, width: int) -> list[str]:
    lines = textwrap.wrap(words, width, max_lines=LINES, placeholder="…", break_on_hyphens=False)
    return lines or [""]


def _dated(t: str, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Lines, the first of them with a time."""
    return zip([t, *[""] * (len(lines) - 1)], lines, strict=True)


def _clip(words: str, width: int) -> str:
    return words if cell_len(words) <= width else set_cell_size(words, width - 1) + "…"


def _right(words: str, width: int) -> str:
    words = _clip(words, width)
    return " " * (width - cell_len(words)) + words


def _centred(words: str, width: int, fill: str) -> str:
    words = _clip(words, width - 4)
    left = (width - cell_len(words)) // 2
    return fill * left + words + fill * (width - cell_len(words) - left)


def _lines(ladder: Ladder, width: int) -> Iterator[list[Words]]:
    canvas = _Canvas(ladder, width)
    yield _heading(canvas)
    waiting: list[list[Words]] = []  # lines, of which the first may get a state at its side
    since = 0.0
    before: Row | None = None
    for row in ladder.rows:
        lines = _row(canvas, row)
        if isinstance(row, Bar) and waiting and row.t - since < SAME_LINE:
            side = _side(canvas, row)
            if side and not waiting[0][side][0].strip():
                waiting[0][side] = lines[0][side]
                continue
        if isinstance(row, Arrow) and isinstance(before, Bar) and waiting:
            # What it sends, a host sends in the state that this takes it to.
            side = _side(canvas, before)
            alone = side and not waiting[0][SIDES[0] if side == SIDES[1] else SIDES[1]][0].strip()
            if alone and row.sender == before.host and row.t - before.t < SAME_LINE:
                lines[0][side], waiting = waiting[0][side], []
        yield from waiting
        waiting, since, before = lines, row.t, row
        if isinstance(row, Arrow) and row.arrived is not None:
            since = row.arrived
    yield from waiting


def _side(canvas: _Canvas, bar: Bar) -> int:
    """Which piece of a line has a host's states; 0 for one in the middle, which has none."""
    return {0: SIDES[0], canvas.count - 1: SIDES[1]}.get(canvas.index(bar.host) or 0, 0)


def _heading(canvas: _Canvas) -> list[Words]:
    names = [_clip(name, canvas.hop // 2) for name in canvas.ladder.hosts]
    start = TIME_WIDTH + canvas.sides[0]
    found = " " * start
    for number, name in enumerate(names):
        at = start + number * (canvas.hop + 1) - len(name) // 2
        found = found.ljust(at) + name
    return [(found, "bold")]


def _row(canvas: _Canvas, row: Row) -> list[list[Words]]:
    """A row as lines."""
    t = f"{row.t:.3f}"
    match row:
        case Arrow():
            return [canvas.line(t, _arrow_words(canvas, row))]
        case Bar():
            return _state(canvas, row)
        case Call(host=host):
            style = "red" if row.failed else ""
            return canvas.beside(t, host, call_words(row), style)
        case Return(host=host, call=call):
            return canvas.beside(t, host, return_words(call), "red" if call.failed else "")
        case Life(host=host):
            return canvas.beside(t, host, row.text, "magenta")
        case Look(host=host):
            return canvas.beside(t, host, f"ss: {row.caption}", "dim")
        case Note(host=host):
            return canvas.beside(t, host, row.text, "yellow" if row.trouble else "")
        case Step():
            style = "dim" if row.outcome == "skipped" else "bold"
            return canvas.centred(t, step_words(row), style, "┈")
        case Judged(verdict=verdict):
            words = f"{RESULT_SIGNS[verdict.result]} {row.claim}"
            lines = canvas.centred(t, words, RESULT_STYLES.get(verdict.result, ""), " ")
            return lines + [
                line for text in row.processes for line in canvas.centred("", text, "yellow", " ")
            ]
        case Gap():
            return canvas.centred("⋮", f"⋮ {row.until - row.t:.1f} s", "dim", " ")
        case Left():
            return canvas.centred(t, f"⋮ {row.text}", "yellow", " ")
    raise TypeError(row)


def _state(canvas: _Canvas, bar: Bar) -> list[list[Words]]:
    t = f"{bar.t:.3f}"
    words = (f"[{state_words(canvas.ladder, bar)}]", "cyan")
    side = _side(canvas, bar)
    if not side:
        return canvas.beside(t, bar.host, *words)
    return [canvas.line(t, None, *((words,) if side == SIDES[0] else (("", ""), words)))]


def _arrow_words(canvas: _Canvas, arrow: Arrow) -> Words:
    """An arrow over all that is between the outer lifelines."""
    start, end = canvas.index(arrow.sender), canvas.index(arrow.receiver)
    if start is None:  # no host of the lab sent it: it comes from beside the receiver
        start = 1 if not end else end - 1
    if end is None:
        end = 1 if not start else start - 1
    low, high = min(start, end), max(start, end)
    size = (high - low) * (canvas.hop + 1) - 1
    body = size - 1 - (size // 5 if arrow.lost else 0)
    words = arrow_words(canvas.ladder, arrow)
    if cell_len(words) > body - 6 and arrow.marks:  # What is special counts more than numbers.
        words = arrow_words(canvas.ladder, replace(arrow, label=arrow.label.partition(" seq ")[0]))
    label = _centred(f" {words} ", body, "─")
    if start < end:
        drawn = (label + ("✗" if arrow.lost else "▶")).ljust(size)
    else:
        drawn = _right(("✗" if arrow.lost else "◀") + label, size)
    parts = [" " * canvas.hop] * low + [drawn] + [" " * canvas.hop] * (canvas.count - 1 - high)
    return "│".join(parts), "red" if arrow.lost or "RST" in arrow.label else "blue"
