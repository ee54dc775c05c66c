"""A ladder as shapes: the place of every row in a drawing.

Down is later: the order is exact, and every row has room of its own, so distances are only a hint
at how much time passed. Every text is measured, and no two can touch. Sockets' states are bars on
the lifelines; an arrow's words stand above its beginning. There are two drawings of a ladder: a
wide one, with columns for steps and verdicts and for each host's words, and a narrow one for small
screens, with all words between the lifelines.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from labctl.probes.sockets import Ends
from labctl.reports.lanes import Host, hosts
from labctl.reports.rows import (
    UNKNOWN,
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
    gap_words,
    return_words,
    state_words,
    step_words,
    unmarked_words,
)
from labctl.reports.shapes import LINE, Box, Drawing, Line, Shape, Words, clear_lines, measure, wrap
from labctl.reports.signs import GONE, RESULTS, STATES

TOP, BOTTOM = 44.0, 36.0
APART, NEXT = 7.0, 13.0
"""The space below a row, and from a row to one in another column."""
RISE, FALL, LIFT = 10.0, 4.0, 9.0
"""How far a row's words reach above and below their baseline; how much higher an arrow's are."""
PER_SECOND, MOST = 1500.0, 22.0
"""How much lower a row is for each second since the row before, and at most."""
STEEP = 24.0
"""If an arrow falls so far, its words stand at its beginning."""
STEPS, SIDE, SEEN = 240.0, 226.0, 6
"""How wide columns of words are at most, and how many lines of `ss` to show."""
HOPS = 230.0, 330.0
"""From one lifeline to the next, if words are beside them."""
NARROW, NARROW_HOP = 356.0, 72.0
"""How wide a narrow drawing is, and how far apart its lifelines are at least: with too many of them
it is wider."""
LOOP = 20.0, 9.0
"""How far out, and how far down, an arrow goes that turns back to its host."""
LANES, NARROW_LANES = 66.0, 22.0
INSET = 14.0
"""From a lifeline to words on its inner side."""

Block = tuple[str, tuple[str, ...]]
"""The style of some lines of text, and the lines."""
_Beside = Bar | Call | Return | Life | Look | Note


def draw(ladder: Ladder, narrow: bool = False) -> Drawing:
    """The drawing of a ladder."""
    return _Pen(ladder, narrow).draw()


class _Pen:
    """Measures the rows' words, makes columns for them, goes down the ladder to place its rows, and
    once more to draw them."""

    def __init__(self, ladder: Ladder, narrow: bool) -> None:
        self.ladder = ladder
        self.narrow = narrow
        self.hosts = hosts(ladder, NARROW_LANES if narrow else LANES)
        self.names = list(self.hosts)
        times = (measure(self._time(n, r), "time") for n, r in enumerate(ladder.rows)
                 if not isinstance(r, Gap))  # fmt: skip
        self.time_end = max(times, default=0.0) + 2
        self.hop = self._hop()
        self.between = (self.hop * (len(self.names) - 1) if narrow else self.hop) - 2 * INSET
        self.blocks = [tuple(self._blocks(row)) for row in ladder.rows]
        self.steps_at = self.time_end + 12
        self.width = self._columns()
        self.tops: dict[int, float] = {}  # by the row's number
        self.arrivals: dict[int, float] = {}
        self.bottom = TOP
        self._times: list[float] = []
        self._heights: list[float] = []

    @property
    def name(self) -> str:
        """How the names of rows begin on a page: both drawings may be there."""
        return "narrow" if self.narrow else "row"

    def _time(self, number: int, row: Row) -> str:
        """`[1] 0.553`, with the causes that it proves."""
        return f"{self.ladder.mark([number])} {row.t:.3f}".lstrip()

    def draw(self) -> Drawing:
        """All of it."""
        self._place()
        end = self.bottom + APART
        back: list[Shape] = [Shape(h.name, (Line(h.x, TOP - 8, h.x, end, "life"),))
                             for h in self.hosts.values()]  # fmt: skip
        front: list[Shape] = []
        bars = {(r.host, r.ends, r.t): self.tops[n]
                for n, r in enumerate(self.ladder.rows) if isinstance(r, Bar)}  # fmt: skip
        looks, rules = 0, []
        for number, row in enumerate(self.ladder.rows):
            y = self.tops[number]
            told, target = "", ""
            match row:
                case Arrow():
                    back.append(self._arrow(row, y, self.arrivals.get(number)))
                    told = _flight(self.ladder, row)
                case Bar():
                    back += self._bar(row, y, self._until(row, bars, end))
                    told = _seen(row)
                case Call():
                    back += self._waiting(row, y, end)
                    told = _span(row)
                case Return(call=call):
                    told = _span(call)
                case Life() | Note() | Left():
                    told = row.text
                case Look():
                    looks += 1
                    told, target = _look(row), f"look-{looks}"
                case Step():
                    rules.append(y + LINE * (_count(self.blocks[number]) - 1) + 5)
                    told = step_words(row)
                case Judged(verdict=v):
                    told = f"{v.what}\nexpected {v.expected}\nsaw {v.actual}\n{v.source}"
                case Gap():
                    back.append(self._gap(row, y))
            front.append(Shape(told, tuple(self._words(number, row, y)), target))
            if not isinstance(row, Gap):
                label = Words(self.time_end, y, (self._time(number, row),), "end", "time")
                causes = self.ladder.marks.get(number)
                name, why = (f"{self.name}-{number}", f"why-{causes[0]}") if causes else ("", "")
                front.append(Shape(f"{row.t:.6f} s", (label,), why, name))
        left = self._host(0).x if self.narrow else self.steps_at
        right = self._host(-1).x if self.narrow else self.width
        words = [part for shape in front for part in shape.parts if isinstance(part, Words)]
        ruled = [Shape("", p) for p in clear_lines(rules, left, right, words, "rule") if p]
        if len(self.names) > 2:
            front = [shape.over([host.x for host in self.hosts.values()]) for shape in front]
        return Drawing(self.width, end + BOTTOM, (*ruled, *back, *self._headings(end), *front))

    def _until(self, bar: Bar, bars: Mapping[tuple[str, Ends, float], float], end: float) -> float:
        """How far down a bar reaches: to the next bar of its socket, by their beginnings."""
        if bar.until is None:
            return end
        following = bars.get((bar.host, bar.ends, bar.until))
        return self._height(bar.until) if following is None else following

    # --- Measuring

    def _hop(self) -> float:
        """From one lifeline to the next."""
        if self.narrow:
            end = max(self._host(-1).width, measure(self.names[-1], "host") / 2)
            room = NARROW - self.time_end - 9 - self._host(0).width - min(end, NARROW_HOP / 2)
            return max(NARROW_HOP, room // max(1, len(self.hosts) - 1))
        arrows = (row for row in self.ladder.rows if isinstance(row, Arrow))
        widths = (measure(unmarked_words(self.ladder, arrow), "segment") for arrow in arrows)
        return ceil(min(max(HOPS[0], max(widths, default=0.0) + 2 * INSET + 12), HOPS[1]))

    def _host(self, number: int) -> Host:
        return self.hosts[self.names[number]]

    def _blocks(self, row: Row) -> Iterator[Block]:
        """The words of a row, as lines."""
        between = self.between
        side = self._room(row)
        steps = between if self.narrow else STEPS
        match row:
            case Arrow():
                room = between - LOOP[0] if row.inward else between
                yield "segment", wrap(unmarked_words(self.ladder, row), "segment", room)
                if row.marks:
                    yield "marks", wrap(", ".join(row.marks), "marks", room)
            case Step():
                style = _step_style(row)
                yield style, wrap(f"▸ {step_words(row)}", style, steps)
            case Judged(verdict=verdict):
                style = f"judged {verdict.result}"
                yield style, wrap(f"{RESULTS[verdict.result].sign} {row.claim}", style, steps)
            case Gap():
                yield "gap-words", (f"⋮  {gap_words(row)}  ⋮",)
            case Left():
                yield "gap-words", wrap("⋮  some of it is left out  ⋮", "gap-words", between)
            case Bar():
                yield "state", wrap(state_words(self.ladder, row), "state", side)
            case Call():
                yield _call_style(row), wrap(call_words(row), "call", side)
            case Return(call=call):
                yield _call_style(call), wrap(return_words(call), "call", side)
            case Look():
                yield "look", wrap(f"ss: {row.caption}", "look", side)
                yield "seen", wrap("; ".join(row.lines), "seen", side, SEEN)
            case Life():
                yield "process", wrap(row.text, "process", side)
            case Note():
                style = "trouble" if row.trouble else "output"
                yield style, wrap(row.text, style, side)
            case _:
                raise TypeError(row)

    def _room(self, row: Row) -> float:
        """How wide a row's words beside its host's lifeline may be."""
        if not isinstance(row, _Beside):
            return self.between
        if self.narrow:
            number, last = self.names.index(row.host), len(self.names) - 1
            return max(number, last - number) * self.hop - 2 * INSET
        return self.between if self._is_inner(row) else SIDE

    def _is_inner(self, row: Row) -> bool:
        """Whether its host has other hosts on both sides."""
        return isinstance(row, _Beside) and row.host in self.names[1:-1]

    def _columns(self) -> float:
        """Says where the lifelines are and where words begin; returns the drawing's width. In a
        wide one the first host's words are to the left of its lifeline, the others' to the
        right."""
        widths: dict[str, float] = dict.fromkeys(("steps", *self.names), 0.0)
        for row, blocks in zip(self.ladder.rows, self.blocks, strict=True):
            if isinstance(row, _Beside | Step | Judged):
                column = row.host if isinstance(row, _Beside) else "steps"
                width = max(measure(t, style) for style, lines in blocks for t in lines)
                widths[column] = max(widths[column], width)
        first, last = self._host(0), self._host(-1)
        first.outward = -1
        if self.narrow:  # words stand on the side with more room
            for host in list(self.hosts.values())[: (len(self.hosts) + 1) // 2]:
                host.outward = -1
        x = self.time_end + 6 + first.width
        if not self.narrow:
            x = self.steps_at + widths["steps"] + 24 + widths[first.name] + first.width + 10
        for number, host in enumerate(self.hosts.values()):
            host.x = ceil(x)
            inner = 0 < number < len(self.hosts) - 1
            x += self.hop + (host.width if inner and not self.narrow else 0)
            away = host.outward * (-1 if self.narrow else 1)
            host.words_at = host.x + away * (INSET if self.narrow else host.width + 10)
            host.waiting_at = host.x + away * (7 if self.narrow else host.width + 5)
            host.anchor = "start" if away > 0 else "end"
        name = max(measure(line, "host") for line in self._heading(last)) / 2
        if self.narrow:
            return ceil(max(last.x + last.width, last.x + name)) + 3
        return ceil(max(last.words_at + widths[last.name], last.x + name)) + 8

    # --- Placing

    def _place(self) -> None:
        """Gives every row, and every arrival, its height: later is lower, and no two texts of a
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
            y += round(min(MOST, PER_SECOND * max(0.0, t - before)))
            before = row.until if isinstance(row, Gap) else t
            if not starts:
                y += 3
                self.arrivals[number] = y
            else:
                column = self._column(row)
                beside = free if column == "all" else (column, "all")
                more = LINE * (_count(self.blocks[number]) - 1)
                above, below = RISE, FALL + more
                if isinstance(row, Arrow) and row.inward:
                    below += LOOP[1]
                elif isinstance(row, Arrow):
                    above, below = RISE + LIFT + more, 0.0
                elif isinstance(row, Gap):
                    above, below = RISE, 20.0
                clear = max((free.get(other, 0.0) for other in beside), default=0.0)
                y = max(y + NEXT, clear + above, TOP)
                self.tops[number] = y
                free[column] = y + below + APART
                self.bottom = max(self.bottom, free[column])
            self._times.append(before)
            self._heights.append(y)
        self.bottom = max(self.bottom, y)

    def _column(self, row: Row) -> str:
        if self.narrow or isinstance(row, Gap):
            return "all"
        if isinstance(row, _Beside) and not self._is_inner(row):
            return f"beside {row.host}"
        return "steps" if isinstance(row, Step | Judged) else "arrows"

    def _height(self, t: float) -> float:
        """How far down a moment without a row of its own is."""
        return self._heights[max(0, bisect_right(self._times, t) - 1)]

    # --- Drawing

    def _heading(self, host: Host) -> tuple[str, ...]:
        return wrap(host.name, "host", self.hop - 8, 1)

    def _headings(self, end: float) -> list[Shape]:
        return [
            Shape(h.name, (Words(h.x, y, self._heading(h), "middle", "host"),))
            for h in self.hosts.values()
            for y in (TOP - 20, end + 20)
        ]

    def _words(self, number: int, row: Row, y: float) -> Iterator[Words]:
        """A row's words at their place."""
        blocks = self.blocks[number]
        match row:
            case Arrow() if row.inward:
                x, anchor = self._turn(row)
                x += LOOP[0] * (1 if anchor == "start" else -1) / 2
                y += FALL
            case Arrow():
                x, anchor = self._label_at(row, self.arrivals.get(number, y) - y)
                if self.narrow and anchor == "middle":  # may be wider than the hosts are apart
                    wide = max(measure(t, style) for style, lines in blocks for t in lines) / 2
                    left, right = self._host(0).x + 4 + wide, self._host(-1).x - 4 - wide
                    x = min(max(x, left), right)
                y -= LIFT + LINE * (_count(blocks) - 1)
            case Gap() | Left():
                x, anchor = (self._host(0).x + self._host(-1).x) / 2, "middle"
                y += 7 if isinstance(row, Gap) else 0
            case Step() | Judged():
                anchor = "start"
                x = self._host(0).x + INSET if self.narrow else self.steps_at
            case _:
                assert isinstance(row, _Beside)
                host = self.hosts[row.host]
                x, anchor = host.words_at, host.anchor
        for style, lines in blocks:
            yield Words(x, y, lines, anchor, style)
            y += LINE * len(lines)

    def _turn(self, arrow: Arrow) -> tuple[float, str]:
        """Where an arrow that stays in its host turns back, and the anchor of words from there on:
        towards the other hosts."""
        host = self.hosts[arrow.sender or ""]
        away = -1 if host is self._host(-1) else 1
        if self.narrow:
            away = -host.outward
        return host.x + away * LOOP[0], "start" if away > 0 else "end"

    def _label_at(self, arrow: Arrow, falls: float) -> tuple[float, str]:
        """Where an arrow's words are, and their anchor: between two lifelines, or at its
        beginning."""
        start, end = self._ends(arrow)
        if falls > STEEP:
            return (start + INSET, "start") if end > start else (start - INSET, "end")
        if arrow.sender in self.hosts and arrow.receiver in self.hosts:
            return (start + end) / 2, "middle"
        known, other = (start, end) if arrow.sender in self.hosts else (end, start)
        return known + (self.hop / 2 if other > known else -self.hop / 2), "middle"

    def _bar(self, bar: Bar, y: float, until: float) -> list[Shape]:
        host = self.hosts[bar.host]
        if bar.state in ("", UNKNOWN):
            return []
        since, lanes = host.lanes[bar.ends]
        lane = lanes[bisect_right(since, bar.t) - 1]
        x = host.x + host.outward * lane * host.lane
        width = max(2.0, host.lane - 2)
        box = Box(x - width / 2, y - 4, width, max(3.0, until - y), _bar_classes(bar))
        local, remote = bar.ends
        ends = f"{local} – {remote}" if remote else local
        parts: list[Line | Box] = [box]
        if STATES.get(bar.state, GONE).striped:
            parts.append(Line(x, y - 4, x, max(y - 1, until - 4), "stripes"))
        return [Shape(f"{bar.state} on {bar.host}: {ends}\n{_seen(bar)}", tuple(parts))]

    def _waiting(self, call: Call, y: float, end: float) -> list[Shape]:
        if not call.waits:
            return []
        x = self.hosts[call.host].waiting_at
        until = end if call.until is None else self._height(call.until)
        return [Shape(_span(call), (Line(x, y - 4, x, max(y, until), "waiting"),))]

    def _arrow(self, arrow: Arrow, y: float, arrived: float | None) -> Shape:
        low = y + 3 if arrived is None else arrived
        style = "arrow lost" if arrow.lost else "arrow"
        style += " reset" if "RST" in arrow.flags else ""
        style += " many" if arrow.count > 1 else ""
        tip = "cross" if arrow.lost else "head"
        if arrow.inward:
            start, (turn, _), low = self.hosts[arrow.sender or ""].x, self._turn(arrow), y + LOOP[1]
            out = Line(start, y - 4, turn, y - 4, style)
            down = Line(turn, y - 4, turn, low - 4, style)
            return Shape(
                _flight(self.ladder, arrow),
                (out, down, Line(turn, low - 4, start, low - 4, style, tip)),
            )
        start, end = self._ends(arrow)
        if arrow.lost:
            end = start + 0.72 * (end - start)
        line = Line(start, y - 4, end, max(low, y) - 4, style, tip)
        return Shape(_flight(self.ladder, arrow), (line,))

    def _ends(self, arrow: Arrow) -> tuple[float, float]:
        """Its beginning and end; one that no host sent begins between two hosts."""
        half = self.hop / 2
        first = self._host(0).x
        start = self.hosts[arrow.sender].x if arrow.sender in self.hosts else None
        end = self.hosts[arrow.receiver].x if arrow.receiver in self.hosts else None
        if start is None:
            near = first if end is None else end
            start = near + (half if near == first else -half)
        if end is None:
            end = start + (half if start == first else -half)
        return start, end

    def _gap(self, gap: Gap, y: float) -> Shape:
        parts = (
            Box(0, y - 8, self.width, 22, "gap"),
            Line(0, y - 8, self.width, y - 8, "torn"),
            Line(0, y + 14, self.width, y + 14, "torn"),
        )
        return Shape(f"nothing from {gap.t:.3f} s to {gap.until:.3f} s", parts)


def _count(blocks: Sequence[Block]) -> int:
    """How many lines the blocks have."""
    return sum(len(lines) for _, lines in blocks)


def _flight(ladder: Ladder, arrow: Arrow) -> str:
    took = "" if arrow.arrived is None else f"\narrived {arrow.arrived:.6f} s"
    return f"{arrow_words(ladder, arrow)}\nleft {arrow.t:.6f} s{took}"


def _call_style(call: Call) -> str:
    return "call bad" if call.failed else "call"


def _step_style(step: Step) -> str:
    return {"done": "step", "held": "step", "skipped": "step skip"}.get(step.outcome, "step bad")


def _look(look: Look) -> str:
    head = f"ss on {look.host} at {look.t:.3f} s: {look.caption}"
    return "\n".join((head, *look.lines))


def _bar_classes(bar: Bar) -> str:
    return f"bar s-{bar.state.lower()}" + (" inferred" if bar.inferred else "")


def _seen(bar: Bar) -> str:
    what = bar.state or "gone"
    if bar.inferred:
        return f"{what} from {bar.t:.6f} s, inferred from segments"
    if bar.exact:
        return f"{what} from {bar.t:.6f} s, by the kernel's tracepoint"
    if bar.by_syn:
        return f"{what} from {bar.t:.6f} s, when the SYN came"
    if bar.seen is None:
        return f"{what} from {bar.t:.6f} s, when the FIN came"
    return f"{what} seen by ss at {bar.seen:.3f} s"


def _span(call: Call) -> str:
    if call.until is None:
        return f"{call.text}\nentered {call.t:.6f} s, never done"
    result = f"{call.result}\n" if call.result else "it ended there\n"
    return f"{call.text}\n{result}{call.t:.6f} s to {call.until:.6f} s"
