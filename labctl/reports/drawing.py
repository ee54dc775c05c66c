"""A ladder as shapes: where every row of it stands in a drawing. html.py's template paints them.

Down is later: the order is exact, and every row has room of its own, so distances are only a hint
at how much time passed. Columns: the time, steps and verdicts, and each host's words beside its
lifeline; sockets' states are bars on the lifelines.
"""

from __future__ import annotations

import textwrap
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import atan2, degrees

from labctl.reports.rungs import (
    Arrow,
    Bar,
    Call,
    Gap,
    Judged,
    Ladder,
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
from labctl.reports.states import Ends

TOP, BOTTOM = 44.0, 36.0
LINE, APART, NEXT = 14.0, 7.0, 12.0
"""The height of a line of text, the space below a row, and from a row to one in another column."""
PER_SECOND, MOST = 1500.0, 22.0
"""How much lower a row is for the time since the one before, and at most."""
TIME_END, STEPS_AT, STEPS_CHARS = 58.0, 72.0, 40
STEPS_WIDTH, SIDE, HOP = 262.0, 236.0, 360.0
SIDE_CHARS = 34
LANE, LANES_WIDTH = 11.0, 66.0
CHAR = 6.7
"""About the width of a letter of an arrow's label."""
_Beside = Bar | Call | Return | Life | Look | Note
SIGNS = {"pass": "✓", "fail": "✗", "error": "✗", "unknown": "?", "skip": "–"}


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line; `tip` is what it ends in: nothing, an arrow's head or a cross."""

    x1: float
    y1: float
    x2: float
    y2: float
    style: str
    tip: str = ""

    @property
    def angle(self) -> float:
        """Its direction in degrees, clockwise from the right."""
        return degrees(atan2(self.y2 - self.y1, self.x2 - self.x1))


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    style: str


@dataclass(frozen=True, slots=True)
class Words:
    """Lines of text from a first baseline on; `anchor` is SVG's text-anchor."""

    x: float
    y: float
    lines: tuple[str, ...]
    anchor: str
    style: str


@dataclass(frozen=True, slots=True)
class Shape:
    """Parts that belong together, and what is told of them when pointed at; `target` is a place
    on the page."""

    title: str
    parts: tuple[Line | Box | Words, ...]
    target: str = ""


@dataclass(frozen=True)
class Drawing:
    """Shapes, from the hindmost on."""

    width: float
    height: float
    shapes: tuple[Shape, ...]


@dataclass
class _Host:
    """A host's column: its lifeline at `x`, lanes for bars on the `outward` side of it (-1 is to
    the left), and words beyond them. `lanes`: see `_assign`."""

    name: str
    x: float = 0.0
    outward: int = 1
    lanes: dict[Ends, tuple[list[float], list[int]]] = field(default_factory=dict)
    lane: float = LANE
    width: float = LANE

    @property
    def words_at(self) -> float:
        return self.x + self.outward * (self.width + 10)

    @property
    def anchor(self) -> str:
        return "end" if self.outward < 0 else "start"


def draw(ladder: Ladder) -> Drawing:
    """The drawing of a ladder."""
    return _Pen(ladder).draw()


class _Pen:
    """Goes down the ladder once to place its rows, and once more to draw them."""

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder
        self.hosts = _columns(ladder)
        self.width = (max(h.words_at for h in self.hosts.values()) if self.hosts else 0.0) + SIDE
        self.tops: dict[int, float] = {}  # by the row's number
        self.arrivals: dict[int, float] = {}
        self.bottom = TOP
        self._times: list[float] = []
        self._heights: list[float] = []

    def draw(self) -> Drawing:
        self._place()
        end = self.bottom + APART
        back: list[Shape] = [Shape(h.name, (Line(h.x, TOP - 8, h.x, end, "life"),))
                             for h in self.hosts.values()]  # fmt: skip
        front: list[Shape] = []
        bars = {(r.host, r.ends, r.t): self.tops[n]
                for n, r in enumerate(self.ladder.rows) if isinstance(r, Bar)}  # fmt: skip
        looks = 0
        for number, row in enumerate(self.ladder.rows):
            y = self.tops[number]
            match row:
                case Arrow():
                    front.append(self._arrow(row, y, self.arrivals.get(number)))
                case Bar():
                    until = end if row.until is None else bars[row.host, row.ends, row.until]
                    back += self._bar(row, y, until)
                    front.append(self._beside(row, y, _seen(row), "state"))
                case Call():
                    back += self._waiting(row, y, end)
                    front.append(self._beside(row, y, _span(row), _call_style(row)))
                case Return(call=call):
                    front.append(self._beside(row, y, _span(call), _call_style(call)))
                case Life():
                    front.append(self._beside(row, y, row.text, "process"))
                case Look():
                    looks += 1
                    front.append(self._beside(row, y, _look(row), "look", f"look-{looks}"))
                case Note():
                    front.append(self._beside(row, y, row.text, _note_style(row)))
                case Step():
                    words = Words(STEPS_AT, y, self._lines(row), "start", _step_style(row))
                    below = y + LINE * (len(words.lines) - 1) + 5
                    back.append(Shape("", (Line(STEPS_AT, below, self.width, below, "rule"),)))
                    front.append(Shape(step_words(row), (words,)))
                case Judged(verdict=v):
                    style = f"judged {v.result}"
                    words = Words(STEPS_AT, y, self._lines(row), "start", style)
                    told = f"{v.what}\nexpected {v.expected}\nsaw {v.actual}\n{v.source}"
                    front.append(Shape(told, (words,)))
                case Gap():
                    front.append(self._gap(row, y))
            if not isinstance(row, Gap):
                label = Words(TIME_END, y, (f"{row.t:.3f}",), "end", "time")
                front.append(Shape(f"{row.t:.6f} s", (label,)))
        names = [
            Shape("", (Words(h.x, y, (h.name,), "middle", "host"),))
            for h in self.hosts.values()
            for y in (TOP - 20, end + 20)
        ]
        return Drawing(self.width, end + BOTTOM, (*back, *names, *front))

    # --- Placing

    def _place(self) -> None:
        """Gives every row, and every arrival, its height: later is lower, and no two texts of one
        column touch."""
        moments = [(row.t, 1, n, row) for n, row in enumerate(self.ladder.rows)]
        moments += [
            (row.arrived, 0, n, row)
            for n, row in enumerate(self.ladder.rows)
            if isinstance(row, Arrow) and row.arrived is not None and row.count == 1
        ]
        moments.sort(key=lambda moment: moment[:3])
        free: dict[str, float] = {}
        y, before = TOP, 0.0
        for t, starts, number, row in moments:
            y += min(MOST, PER_SECOND * max(0.0, t - before))
            before = row.until if isinstance(row, Gap) else t
            if not starts:
                y += 3
                self.arrivals[number] = y
            else:
                column = self._column(row)
                beside = free if column == "all" else (column, "all")
                y = max(y + NEXT, *(free.get(other, TOP) for other in beside), TOP)
                self.tops[number] = y
                free[column] = y + LINE * len(self._lines(row)) + APART
                self.bottom = max(self.bottom, free[column])
            self._times.append(before)
            self._heights.append(y)
        self.bottom = max(self.bottom, y)

    def _column(self, row: Row) -> str:
        match row:
            case Gap():
                return "all"
            case Arrow():
                return "arrows"
            case Step() | Judged():
                return "steps"
            case Bar(host=host) | Call(host=host) | Return(host=host) | Life(host=host):
                pass
            case Look(host=host) | Note(host=host):
                pass
            case _:
                raise TypeError(row)
        inner = 0 < list(self.hosts).index(host) < len(self.hosts) - 1
        return "arrows" if inner else f"beside {host}"

    def _lines(self, row: Row) -> tuple[str, ...]:
        """The lines of a row's text."""
        match row:
            case Arrow():
                return ("", *([" ".join(row.marks)] if row.marks else []))
            case Step():
                return _wrap(f"▸ {step_words(row)}", STEPS_CHARS)
            case Judged():
                return _wrap(f"{SIGNS[row.verdict.result]} {row.claim}", STEPS_CHARS)
            case Gap():
                return ("", "")
            case Bar():
                return _wrap(state_words(self.ladder, row), SIDE_CHARS)
            case Call():
                return _wrap(call_words(row), SIDE_CHARS)
            case Return():
                return _wrap(return_words(row.call), SIDE_CHARS)
            case Look():
                return _wrap(f"ss: {row.caption}", SIDE_CHARS, 1)
            case Life() | Note():
                return _wrap(row.text, SIDE_CHARS)
        raise TypeError(row)

    def _height(self, t: float) -> float:
        """How far down a moment is that has no row of its own."""
        return self._heights[max(0, bisect_right(self._times, t) - 1)]

    # --- Drawing

    def _beside(self, row: _Beside, y: float, told: str, style: str, target: str = "") -> Shape:
        host = self.hosts[row.host]
        words = Words(host.words_at, y, self._lines(row), host.anchor, style)
        return Shape(told, (words,), target)

    def _bar(self, bar: Bar, y: float, until: float) -> list[Shape]:
        host = self.hosts[bar.host]
        if not bar.state:
            return []
        since, lanes = host.lanes[bar.ends]
        lane = lanes[bisect_right(since, bar.t) - 1]
        x = host.x + host.outward * lane * host.lane
        width = max(2.0, host.lane - 2)
        box = Box(x - width / 2, y - 4, width, max(3.0, until - y), f"bar s-{bar.state.lower()}")
        local, remote = bar.ends
        ends = f"{local} – {remote}" if remote else local
        return [Shape(f"{bar.state} on {bar.host}: {ends}\n{_seen(bar)}", (box,))]

    def _waiting(self, call: Call, y: float, end: float) -> list[Shape]:
        if not call.waits:
            return []
        host = self.hosts[call.host]
        x = host.x + host.outward * (host.width + 5)
        until = end if call.until is None else self._height(call.until)
        return [Shape(_span(call), (Line(x, y - 4, x, max(y, until), "waiting"),))]

    def _arrow(self, arrow: Arrow, y: float, arrived: float | None) -> Shape:
        start, end = self._ends(arrow)
        low = y + 3 if arrived is None else arrived
        style = "arrow lost" if arrow.lost else "arrow"
        style += " reset" if "RST" in arrow.label.split() else ""
        style += " many" if arrow.count > 1 else ""
        if arrow.lost:
            end = start + 0.72 * (end - start)
        parts: list[Line | Box | Words] = [
            Line(start, y - 4, end, max(low, y) - 4, style, "cross" if arrow.lost else "head")
        ]
        middle = (start + end) / 2
        level = (y + max(low, y)) / 2 - 4
        slope = (max(low, y) - y) / max(1.0, abs(end - start))
        label = arrow_words(self.ladder, arrow).partition(" [")[0]
        raised = min(8.0, slope * len(label) * CHAR / 2)
        parts.append(Words(middle, level - 4 - raised, (label,), "middle", "segment"))
        if arrow.marks:
            marks = ", ".join(arrow.marks)
            lowered = min(8.0, slope * len(marks) * CHAR / 2)
            parts.append(Words(middle, level + 12 + lowered, (marks,), "middle", "marks"))
        took = "" if arrow.arrived is None else f"\narrived {arrow.arrived:.6f} s"
        told = f"{arrow_words(self.ladder, arrow)}\nleft {arrow.t:.6f} s{took}"
        return Shape(told, tuple(parts))

    def _ends(self, arrow: Arrow) -> tuple[float, float]:
        """From where to where; what no host sent comes from between two."""
        places = [h.x for h in self.hosts.values()]
        start = self.hosts[arrow.sender].x if arrow.sender in self.hosts else None
        end = self.hosts[arrow.receiver].x if arrow.receiver in self.hosts else None
        if start is None:
            near = places[0] if end is None else end
            start = near + (HOP / 2 if near == places[0] else -HOP / 2)
        if end is None:
            end = start + (HOP / 2 if start == places[0] else -HOP / 2)
        return start, end

    def _gap(self, gap: Gap, y: float) -> Shape:
        words = f"⋮  {gap.until - gap.t:.1f} s without news  ⋮"
        first, *_, last = self.hosts.values()
        parts = (
            Box(0, y - 8, self.width, 22, "gap"),
            Line(0, y - 8, self.width, y - 8, "torn"),
            Line(0, y + 14, self.width, y + 14, "torn"),
            Words((first.x + last.x) / 2, y + 7, (words,), "middle", "gap-words"),
        )
        return Shape(f"nothing from {gap.t:.3f} s to {gap.until:.3f} s", parts)


def _columns(ladder: Ladder) -> dict[str, _Host]:
    """The hosts and where they stand. The first one's words are to the left of its lifeline, the
    others' to the right."""
    hosts = {name: _Host(name) for name in ladder.hosts}
    for host in hosts.values():
        spans = _spans([r for r in ladder.rows if isinstance(r, Bar) and r.host == host.name])
        count = _assign(spans, host.lanes)
        host.lane = min(LANE, LANES_WIDTH / max(1, count))
        host.width = host.lane * max(1, count)
    x = STEPS_AT + STEPS_WIDTH + SIDE
    for number, host in enumerate(hosts.values()):
        if number == 0:
            host.outward = -1
            x += host.width + 10
        host.x = x
        inner = 0 < number < len(hosts) - 1
        x += HOP + (SIDE / 2 + host.width if inner else 0)
    return hosts


def _spans(bars: Sequence[Bar]) -> list[tuple[float, float, Ends]]:
    """From when to when each socket was there."""
    spans: list[tuple[float, float, Ends]] = []
    since: dict[Ends, float] = {}
    for bar in bars:
        if bar.state:
            since.setdefault(bar.ends, bar.t)
        elif bar.ends in since:
            spans.append((since.pop(bar.ends), bar.t, bar.ends))
    return spans + [(t, float("inf"), ends) for ends, t in since.items()]


def _assign(
    spans: Sequence[tuple[float, float, Ends]], lanes: dict[Ends, tuple[list[float], list[int]]]
) -> int:
    """Gives each span the first lane that is free: for each socket when its spans begin, and their
    lanes. Returns how many lanes there are."""
    ends: list[float] = []
    for since, until, socket in sorted(spans, key=lambda span: span[0]):
        lane = next((n for n, end in enumerate(ends) if end <= since), len(ends))
        ends[lane : lane + 1] = [until]
        starts, numbers = lanes.setdefault(socket, ([], []))
        starts.append(since)
        numbers.append(lane)
    return len(ends)


def _wrap(words: str, width: int, most: int = 3) -> tuple[str, ...]:
    lines = textwrap.wrap(words, width, max_lines=most, placeholder=" …")
    return tuple(lines) or ("",)


def _call_style(call: Call) -> str:
    return "call bad" if call.failed else "call"


def _note_style(note: Note) -> str:
    return "trouble" if note.trouble else "output"


def _step_style(step: Step) -> str:
    return "step" if step.outcome in ("done", "held") else "step bad"


def _look(look: Look) -> str:
    head = f"ss on {look.host} at {look.t:.3f} s: {look.caption}"
    return "\n".join((head, *look.lines))


def _seen(bar: Bar) -> str:
    what = bar.state or "gone"
    if bar.exact:
        return f"{what} from {bar.t:.6f} s, by the kernel's tracepoint"
    return f"{what} seen by ss at {bar.seen:.3f} s"


def _span(call: Call) -> str:
    if call.until is None:
        return f"{call.text}\nentered {call.t:.6f} s, never done"
    result = f"{call.result}\n" if call.result else "it ended there\n"
    return f"{call.text}\n{result}{call.t:.6f} s to {call.until:.6f} s"
