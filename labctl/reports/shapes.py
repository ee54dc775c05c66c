"""The parts of a drawing: lines, boxes and words, how large they are, and their SVG.

Nobody knows the reader's fonts here. So words are measured in DejaVu Sans and DejaVu Sans Mono,
which are among the widest fonts: words that fit in these always fit.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from math import atan2, ceil, degrees
from typing import NamedTuple

from markupsafe import Markup, escape

from labctl.ground.data import dataclass
from labctl.ground.plain import plain_lines

LINE = 14.0
"""From one line of a text to the next."""
ASCENT, DESCENT = 0.8, 0.24
"""How far letters reach above and below their baseline, in parts of the font's size."""
BAND, BANDS = 200.0, 60
"""A drawing is cut into pieces of this height or a little more, but not into more than so many. A
page breaks between two pieces; a shape that reaches over several is drawn in each."""


class Font(NamedTuple):
    """Size in pixels; whether all letters are equally wide; whether it is bold."""

    size: float
    mono: bool = False
    bold: bool = False


FONTS = {
    "time": Font(10.5),
    "host": Font(14, bold=True),
    "step": Font(12, bold=True),
    "judged": Font(12),
    "state": Font(11, mono=True),
    "call": Font(11, mono=True),
    "output": Font(11, mono=True),
    "look": Font(11, mono=True),
    "seen": Font(11, mono=True),
    "segment": Font(11, mono=True),
    "marks": Font(11, bold=True),
    "process": Font(12),
    "trouble": Font(12),
    "gap-words": Font(12, bold=True),
}
"""By the first word of a style."""
LOUD = {"bad", "fail", "error"}
"""Second words of styles that make them bold."""
_WIDTHS = {
    **dict.fromkeys(map(chr, range(32, 127)), 0.64),
    **dict.fromkeys(" ijlIJ,.:;/\\|f-()[]t!r'", 0.42),
    **dict.fromkeys("CRZBAXVKUNHDGOQwk", 0.78),
    **dict.fromkeys("#+<=>^~&✓✗M", 0.86),
    **dict.fromkeys("%mW@…⋮", 1.0),
}
_SPACE = re.compile(r"(?<!\bseq)(?<!\back)(?<!\blen)(?:(?<!\d) | (?!s\b))")
"""Where a line may end: not between a number and its unit."""
_MONO, _BROAD, _OTHER, _BOLD = 0.603, 1.2, 0.86, 1.1


def measure(text: str, style: str) -> float:
    """How many pixels wide a text is at most."""
    kind, _, more = style.partition(" ")
    size, mono, bold = FONTS[kind]
    if mono:
        wide = 0 if text.isascii() else sum(map(_is_wide, text))
        return (len(text) + wide) * _MONO * size
    width = sum(_WIDTHS[c] if c in _WIDTHS else _BROAD if _is_wide(c) else _OTHER for c in text)
    return width * size * (_BOLD if bold or more in LOUD else 1.0)


def _is_wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in "WF"


def wrap(text: str, style: str, room: float, most: int = 3) -> tuple[str, ...]:
    """A text as lines no wider than `room` pixels, `most` at most: the rest becomes `…`. A number
    and its unit stay together."""
    text = " ".join(text.split())
    if measure(text, style) <= room:
        return (text,)
    lines = [""]
    for word in _SPACE.split(text):
        longer = f"{lines[-1]} {word}".lstrip()
        if measure(longer, style) <= room:
            lines[-1] = longer
            continue
        *whole, rest = _pieces(word, style, room)
        lines += [*whole, rest]
    lines = [line for line in lines if line]
    if len(lines) > most:
        last = lines[most - 1]
        while measure(f"{last} …", style) > room and last:
            last = last[:-1].rstrip()
        lines[most - 1 :] = [f"{last} …"]
    return tuple(lines)


def _pieces(word: str, style: str, room: float) -> list[str]:
    """A word in pieces that fit."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and measure(pieces[-1] + letter, style) > room:
            pieces.append("")
        pieces[-1] += letter
    return pieces


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

    @property
    def span(self) -> tuple[float, float]:
        """From where to where it reaches downwards."""
        return min(self.y1, self.y2) - 6, max(self.y1, self.y2) + 6

    def svg(self) -> str:
        """As SVG."""
        x2, y2 = px(self.x2), px(self.y2)
        line = (
            f'<line x1="{px(self.x1)}" y1="{px(self.y1)}" x2="{x2}" y2="{y2}"'
            f' class="{self.style}"/>'
        )
        place = f'transform="translate({x2} {y2})'
        if self.tip == "head":
            turned = f'{place} rotate({px(self.angle)})"'
            return f'{line}<path class="head {self.style}" {turned} d="M0 0L-9 -4L-9 4Z"/>'
        if self.tip == "cross":
            return f'{line}<path class="cross" {place}" d="M-5 -5L5 5M-5 5L5 -5"/>'
        return line


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    style: str

    @property
    def span(self) -> tuple[float, float]:
        """From where to where it reaches downwards."""
        return self.y, self.y + self.height

    def svg(self) -> str:
        """As SVG."""
        return (
            f'<rect x="{px(self.x)}" y="{px(self.y)}" width="{px(self.width)}"'
            f' height="{px(self.height)}" class="{self.style}"/>'
        )


@dataclass(frozen=True, slots=True)
class Words:
    """Lines of text from a first baseline on; `anchor` is SVG's text-anchor."""

    x: float
    y: float
    lines: tuple[str, ...]
    anchor: str
    style: str

    @property
    def span(self) -> tuple[float, float]:
        """From where to where they reach downwards."""
        size = FONTS[self.style.partition(" ")[0]].size
        return self.y - ASCENT * size, self.y + LINE * (len(self.lines) - 1) + DESCENT * size

    @property
    def boxes(self) -> Iterator[Box]:
        """The box of each line."""
        size = FONTS[self.style.partition(" ")[0]].size
        for number, line in enumerate(self.lines):
            width = measure(line, self.style)
            x = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
            top = self.y + LINE * number - ASCENT * size
            yield Box(x, top, width, (ASCENT + DESCENT) * size, "paper")

    def svg(self) -> str:
        """As SVG."""
        x = px(self.x)
        first, *more = (escape(plain_lines(line)) for line in self.lines)
        rest = "".join(f'<tspan x="{x}" dy="{px(LINE)}">{line}</tspan>' for line in more)
        return (
            f'<text x="{x}" y="{px(self.y)}" text-anchor="{self.anchor}" class="{self.style}">'
            f"{first}{rest}</text>"
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """Parts that belong together, and what a pointer at them shows; `target` is a place on the
    page that it leads to, `name` its own."""

    title: str
    parts: tuple[Line | Box | Words, ...]
    target: str = ""
    name: str = ""

    def over(self, xs: Sequence[float]) -> Shape:
        """The same, with background behind its words if vertical lines at these places would run
        through them."""
        boxes = (box for part in self.parts if isinstance(part, Words) for box in part.boxes)
        crossed = [b for b in boxes if any(b.x < x < b.x + b.width for x in xs)]
        return replace(self, parts=(*crossed, *self.parts))

    def svg(self) -> str:
        """As SVG."""
        title = f"<title>{escape(plain_lines(self.title))}</title>" if self.title else ""
        parts = "".join(part.svg() for part in self.parts)
        parts = f'<a href="#{self.target}">{parts}</a>' if self.target else parts
        name = f' id="{self.name}"' if self.name else ""
        return f"<g{name}>{title}{parts}</g>"


def clear_lines(
    ys: Sequence[float], left: float, right: float, words: Sequence[Words], style: str
) -> Iterator[tuple[Line, ...]]:
    """A horizontal line at each height, with gaps where it would run through words."""
    boxes = sorted((box for part in words for box in part.boxes), key=lambda box: box.y)
    tops = [box.y for box in boxes]
    highest = max((box.height for box in boxes), default=0.0)
    for y in ys:
        near = boxes[bisect_left(tops, y - highest - 1) : bisect_right(tops, y + 1)]
        crossed = sorted((b.x - 4, b.x + b.width + 4) for b in near if y <= b.y + b.height + 1)
        pieces, start = [], left
        for begin, end in crossed:
            if begin > start:
                pieces.append(Line(start, y, min(begin, right), y, style))
            start = max(start, end)
        if start < right:
            pieces.append(Line(start, y, right, y, style))
        yield tuple(pieces)


class Band(NamedTuple):
    """A piece of a drawing, over its whole width; `body` is SVG."""

    top: float
    height: float
    body: Markup


@dataclass(frozen=True)
class Drawing:
    """Shapes, from back to front."""

    width: float
    height: float
    shapes: tuple[Shape, ...]

    @cached_property
    def bands(self) -> list[Band]:
        """The drawing, cut where there is no text, from top to bottom."""
        cuts = [0.0, *self._cuts(), self.height]
        bodies: list[list[str]] = [[] for _ in cuts[1:]]
        for shape in self.shapes:
            svg = shape.svg()
            for number in _between(cuts, *_span(shape.parts)):
                bodies[number].append(svg)
        return [
            Band(top, bottom - top, Markup("\n".join(body)))
            for (top, bottom), body in zip(pairwise(cuts), bodies, strict=True)
        ]

    def _cuts(self) -> Iterator[float]:
        """Where it can be cut, by whole pixels."""
        words = ([p for p in shape.parts if isinstance(p, Words)] for shape in self.shapes)
        least = max(BAND, self.height / BANDS)
        above = last = 0.0
        for top, bottom in sorted(_span(parts) for parts in words if parts):
            cut = float(ceil(above))
            if cut <= top and cut - last >= least and self.height - cut >= least / 2:
                yield cut
                last = cut
            above = max(above, bottom)


def _span(parts: Sequence[Line | Box | Words]) -> tuple[float, float]:
    spans = [part.span for part in parts]
    return min(top for top, _ in spans), max(bottom for _, bottom in spans)


def _between(cuts: Sequence[float], top: float, bottom: float) -> range:
    """The numbers of the bands from `top` to `bottom`."""
    first = max(0, bisect_right(cuts, top) - 1)
    return range(first, min(len(cuts) - 1, max(first + 1, bisect_left(cuts, bottom))))


def px(number: float) -> str:
    """A length in SVG."""
    return f"{number:.1f}".removesuffix(".0")
