"""A ladder at a terminal: a line a row, between lifelines."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.text import Text

from labctl.ground.output import ASCII
from labctl.ground.plain import plain
from labctl.judge.accounts import account_lines
from labctl.reports.ladder import ladder_of
from labctl.reports.rows import (
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
from labctl.reports.signs import GONE, RESULTS, STATES

if TYPE_CHECKING:
    from labctl.judge.result import RunResult

WIDTH = 110
"""How many cells, if nobody says."""
HOP, HOPS = 72, 48
"""From one lifeline to the next at most, with two hosts and with more: wider ones read badly."""
TIME_WIDTH = 10
SIDE_WIDTH, ROOMY_SIDE = 16, 26
"""How wide a side is at most: the second on a screen of `ROOMY` cells or more. It takes no more
room than it needs."""
ROOMY = 100
SAME_LINE = 0.001
"""A state that begins at most so many seconds after something stands beside it."""
LINE_ROWS = 3
"""Before and after a row, how many others may stand on its line."""
SIDES = 1, 5
"""Which pieces of a line are at the sides."""
LINES, LOOK_LINES = 3, 6
"""How many lines a text has at most, and what a look showed."""
STEP_STYLES = {"done": "bold", "held": "bold", "skipped": "dim"}

Words = tuple[str, str]
"""A piece of text, and its style."""
_Lines = Iterator[list[Words]]


def text(ladder: Ladder, width: int, unicode: bool = True) -> str:
    """The ladder as lines of `width` cells at most, one for each row, without colour."""
    return _bare(_lines(ladder, width), unicode)


def ladders(runs: Sequence[RunResult]) -> str:
    """The ladders of runs, each with its title, its result and why: no wider than the terminal, and
    without colour."""
    return "\n".join(_bare(_told(run, _columns())) for run in runs)


def picture(run: RunResult) -> str:
    """The ladder of a run below its label, for callers who say the rest themselves."""
    return f"{plain(run.label)}\n{text(ladder_of(run), _columns())}"


def _columns() -> int:
    return shutil.get_terminal_size((WIDTH, 0)).columns


def styled(ladder: Ladder, width: int) -> Text:
    """The same as `text`, in colour."""
    return _colourful(_lines(ladder, width))


def styled_ladders(runs: Sequence[RunResult], width: int) -> Text:
    """The same as `ladders`, in colour."""
    return Text("\n").join(_colourful(_told(run, width)) for run in runs)


def _bare(lines: _Lines, unicode: bool = True) -> str:
    found = "".join(f"{''.join(words for words, _ in line).rstrip()}\n" for line in lines)
    if unicode:
        return found
    found = found.translate({ord(sign): other for sign, other in ASCII.items()})
    return found.encode("ascii", "replace").decode("ascii")


def _colourful(lines: _Lines) -> Text:
    found = Text(no_wrap=True)
    for line in lines:
        found.append_text(Text.assemble(*line, "\n"))
    return found


def _told(run: RunResult, width: int) -> _Lines:
    """A run: its head, and its ladder."""
    ladder = ladder_of(run)
    canvas = _Canvas(ladder, width)
    yield from _head(run, min(width, max(canvas.width, WIDTH)))
    yield from _why(run, ladder, min(width, max(canvas.width, WIDTH)))
    if ladder.rows:
        yield [("", "")]
        yield from _lines(ladder, width)


def _head(run: RunResult, width: int) -> _Lines:
    """What ran, and its result."""
    words = plain(f"{run.label}  {run.title}")
    yield from ([(line, "bold")] for line in wrap(words, width))
    seconds = f"{run.seconds:.1f} s"
    if "virtual time" in str(run.environment.get("engine")):
        seconds = f"{run.lab_seconds:.1f} s by the lab's clock, in {seconds}"
    reason = f": {run.reason}" if run.reason else ""
    result, words = run.result.upper(), plain(f"{reason}  {seconds} on {run.where}")
    first, *more = wrap(f"{result}{words}", width)
    yield [(result, RESULTS[run.result].style), (first[len(result) :], "")]
    yield from ([(line, "")] for line in more)
    for line in account_lines(run.processes):
        yield from ([(f"    {part}", "")] for part in wrap(plain(line), width - 4))
    for verdict in run.verdicts:
        if verdict.result in ("fail", "unknown"):
            words = plain(f"{RESULTS[verdict.result].sign} {verdict}")
            style = RESULTS[verdict.result].style
            yield from ([(f"  {line}", style)] for line in wrap(words, width - 2))


def _why(run: RunResult, ladder: Ladder, width: int) -> _Lines:
    """Its causes, each with its cure and the times of the rows that prove it; and what else is to
    be said."""
    for number, cause in enumerate(run.causes, 1):
        sure = "" if cause.certain else " (not certain)"
        words = plain(f"Why [{number}]: {cause.text}{sure}")
        yield from ([(f"  {line}", "")] for line in wrap(words, width - 2))
        times = dict.fromkeys(f"{row.t:.3f} s" for _, row in ladder.proof(number))
        for word, told in (("do", cause.cure), ("rows at", ", ".join(times))):
            if told:
                lines = wrap(plain(f"{word}: {told}"), width - 6)
                yield from ([(f"      {line}", "dim")] for line in lines)
    for sentence in run.beside:
        words = plain(f"Why: {sentence}")
        yield from ([(f"  {line}", "")] for line in wrap(words, width - 2))


class _Canvas:
    """The columns of a ladder as text: the time, a side, the lifelines and everything between them,
    and the other side."""

    def __init__(self, ladder: Ladder, width: int) -> None:
        self.ladder = ladder
        self.count = max(2, len(ladder.hosts))
        most = ROOMY_SIDE if width >= ROOMY else SIDE_WIDTH
        self.sides = self._needs(ladder.hosts[:1], most), self._needs(ladder.hosts[-1:], most)
        marks = max((len(ladder.mark(self._beside(n))) + 1 for n in ladder.marks), default=0)
        times = max((len(_time(row)) for row in ladder.rows), default=0)
        self.times = max(TIME_WIDTH, marks + times + 2)
        between = width - self.times - sum(self.sides) - self.count
        hop = min(HOP if self.count == 2 else HOPS, between // (self.count - 1))
        self.hop = max(12, hop)
        self.middle = self.hop * (self.count - 1) + self.count - 2
        self.width = self.times + sum(self.sides) + self.middle + 2

    def _beside(self, number: int) -> list[int]:
        """A row, and those that may stand on its line: states, and what led to them."""
        rows = self.ladder.rows
        following = range(max(0, number - LINE_ROWS), min(len(rows), number + LINE_ROWS + 1))
        return [n for n in following if abs(rows[n].t - rows[number].t) < 2 * SAME_LINE]

    def _needs(self, hosts: Sequence[str], most: int) -> int:
        """How wide the states at the side of a host are."""
        bars = (row for row in self.ladder.rows if isinstance(row, Bar) and row.host in hosts)
        widths = (cell_len(state_words(self.ladder, bar)) for bar in bars)
        return min(most, 3 + max(widths, default=0))

    def line(
        self, t: str, middle: Words | None = None, left: Words = ("", ""), right: Words = ("", "")
    ) -> list[Words]:
        """One line; `middle` takes everything between the outer lifelines."""
        lanes = ("│".join([" " * self.hop] * (self.count - 1)), "dim")
        return [
            (set_cell_size(t.rjust(self.times - 2), self.times), "dim"),
            (_right(left[0], self.sides[0] - 1) + " ", left[1]),
            ("│", "dim"),
            (set_cell_size(middle[0], self.middle), middle[1]) if middle else lanes,
            ("│", "dim"),
            (f" {_clip(right[0], self.sides[1] - 1)}", right[1]),
        ]

    def marked(self, lines: list[list[Words]], rows: Sequence[int]) -> list[list[Words]]:
        """Lines, the first of them with the causes that some rows prove, before its time."""
        if mark := self.ladder.mark(rows):
            time = lines[0][0][0]
            lines[0][0] = f"{mark}{time[len(mark) :]}", "bold"
        return lines

    def beside(
        self, t: str, host: str, words: str, style: str, most: int = LINES
    ) -> list[list[Words]]:
        """Words on the inner side of a host's lifeline, as lines."""
        lines = wrap(words, self.hop - 1, most)
        return [self.next_to(t, host, line, style) for t, line in _dated(t, lines)]

    def centred(self, t: str, words: str, style: str, fill: str) -> list[list[Words]]:
        """Words in the middle, as lines."""
        lines = wrap(words, self.middle - 6, LINES)
        return [
            self.line(t, (_centred(f" {line} ", self.middle, fill), style))
            for t, line in _dated(t, lines)
        ]

    def next_to(self, t: str, host: str, words: str, style: str) -> list[Words]:
        """A line of words beside a host's lifeline."""
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


def wrap(words: str, width: int, most: int | None = None) -> list[str]:
    """Words as lines of `width` cells at most; beyond `most` lines the rest becomes `…`."""
    lines = [""]
    for word in words.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines += chop_cells(word, width)
    lines = [line.rstrip() for line in lines if line.strip()] or [""]
    if most is not None and len(lines) > most:
        lines[most - 1 :] = [_clip(f"{lines[most - 1]} {lines[most]}", width)]
    return lines


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
    if ladder.clocks:
        yield from ([(line, "dim")] for line in wrap(ladder.clocks, width))
    yield _heading(canvas)
    waiting: list[list[Words]] = []  # lines; the first may get a state at its side
    drawn: list[int] = []  # the rows in them
    since = 0.0
    before: Row | None = None
    for number, row in enumerate(ladder.rows):
        lines, mine = _row(canvas, row), [number]
        if isinstance(row, Bar) and waiting and row.t - since < SAME_LINE:
            side = _side(canvas, row)
            if side and not waiting[0][side][0].strip():
                waiting[0][side] = lines[0][side]
                drawn.append(number)
                continue
        if isinstance(row, Arrow) and isinstance(before, Bar) and waiting:
            # A host sends in the state that its sending leads to.
            side = _side(canvas, before)
            alone = side and not waiting[0][SIDES[0] if side == SIDES[1] else SIDES[1]][0].strip()
            if alone and row.sender == before.host and row.t - before.t < SAME_LINE:
                lines[0][side], waiting = waiting[0][side], []
                mine, drawn = [*mine, *drawn], []
        yield from canvas.marked(waiting, drawn)
        waiting, drawn, since, before = lines, mine, row.t, row
        if isinstance(row, Arrow) and row.arrived is not None:
            since = row.arrived
    yield from canvas.marked(waiting, drawn)


def _side(canvas: _Canvas, bar: Bar) -> int:
    """Which piece of a line has a host's states; 0 for a host in the middle, which has none."""
    return {0: SIDES[0], canvas.count - 1: SIDES[1]}.get(canvas.index(bar.host) or 0, 0)


def _heading(canvas: _Canvas) -> list[Words]:
    names = [_clip(name, canvas.hop // 2) for name in canvas.ladder.hosts]
    start = canvas.times + canvas.sides[0]
    found = " " * start
    for number, name in enumerate(names):
        at = start + number * (canvas.hop + 1) - len(name) // 2
        found = found.ljust(at) + name
    return [(found, "bold")]


def _row(canvas: _Canvas, row: Row) -> list[list[Words]]:
    """A row as lines."""
    t = _time(row)
    match row:
        case Arrow() if row.inward:
            return _turned(canvas, row)
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
            words = f"ss: {row.caption}: {'; '.join(row.lines)}"
            return canvas.beside(t, host, words, "dim", LOOK_LINES)
        case Note(host=host):
            return canvas.beside(t, host, row.text, "yellow" if row.trouble else "")
        case Step():
            style = STEP_STYLES.get(row.outcome, "bold red")
            return canvas.centred(t, step_words(row), style, "┈")
        case Judged(verdict=verdict):
            words = f"{RESULTS[verdict.result].sign} {row.claim}"
            lines = canvas.centred(t, words, RESULTS[verdict.result].style, " ")
            return lines + [
                line for text in row.processes for line in canvas.centred("", text, "yellow", " ")
            ]
        case Gap():
            return canvas.centred("⋮", f"⋮ {row.until - row.t:.1f} s", "dim", " ")
        case Left():
            return canvas.centred(t, f"⋮ {row.text}", "yellow", " ")
    raise TypeError(row)


def _time(row: Row) -> str:
    return f"{row.t:.3f}"


def _state(canvas: _Canvas, bar: Bar) -> list[list[Words]]:
    t = _time(bar)
    words = (f"[{state_words(canvas.ladder, bar)}]", STATES.get(bar.state, GONE).style)
    side = _side(canvas, bar)
    if not side:
        return canvas.beside(t, bar.host, *words)
    return [canvas.line(t, None, *((words,) if side == SIDES[0] else (("", ""), words)))]


def _turned(canvas: _Canvas, arrow: Arrow) -> list[list[Words]]:
    """An arrow that stays in its host: it turns back at the lifeline."""
    host, style = arrow.sender or "", _arrow_style(arrow)
    last = canvas.index(host) == canvas.count - 1
    sign = "✗" if arrow.lost else "↪" if last else "↩"
    lines = wrap(arrow_words(canvas.ladder, arrow), canvas.hop - 3, LINES)
    return [
        canvas.next_to(t, host, f"{line} {mark}" if last else f"{mark} {line}", style)
        for (t, line), mark in zip(
            _dated(f"{arrow.t:.3f}", lines), [sign, *" " * len(lines)], strict=False
        )
    ]


def _arrow_style(arrow: Arrow) -> str:
    if arrow.lost or "RST" in arrow.flags:
        return "red"
    return "yellow" if arrow.marks else "blue"


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
    if cell_len(words) > body - 6 and arrow.marks:  # Marks matter more than numbers.
        words = arrow_words(canvas.ladder, replace(arrow, numbers=""))
    label = _centred(f" {words} ", body, "─")
    if start < end:
        drawn = (label + ("✗" if arrow.lost else "▶")).ljust(size)
    else:
        drawn = _right(("✗" if arrow.lost else "◀") + label, size)
    parts = [" " * canvas.hop] * low + [drawn] + [" " * canvas.hop] * (canvas.count - 1 - high)
    return "│".join(parts), _arrow_style(arrow)
