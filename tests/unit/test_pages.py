"""Pages, drawings and texts for programs, and what becomes of long runs in them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import chain, combinations
from math import dist
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labctl import reports
from labctl.judge import recorded
from labctl.judge.causes.cause import Cause
from labctl.judge.check import Verdict
from labctl.judge.result import RunResult
from labctl.probes.sockets import State
from labctl.record.events import CallEvent, Event, OutputEvent, ProcessEvent
from labctl.record.history import History
from labctl.reports import html, junit, ladder_text, markdown, mermaid
from labctl.reports.drawing import draw
from labctl.reports.drawn import CONNECTIONS, LOOK_LINES, ROWS
from labctl.reports.ladder import ladder_of
from labctl.reports.rows import Step
from labctl.reports.shapes import BAND, BANDS, FONTS, LINE, Box, Line, Words, measure, wrap
from labctl.reports.signs import STATES
from tests.fake import tcp
from tests.reported import (
    ADDRESSES,
    CLIENT,
    NASTY,
    RUN,
    SERVER,
    call,
    crowd,
    full,
    history,
    inward,
    look,
    recorded_run,
    segment,
    step,
)

# --- Pages ----------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Every tag with its attributes; unclosed and crossed tags are errors."""

    VOID = ("meta", "br", "path", "line", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_pages_refer_to_nothing_outside() -> None:
    run = recorded.load(RUN)
    for text in (html.page(run), html.page(recorded_run(full())), html.index([run])):
        tags = _Page(text).tags
        assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in tags}
        assert not [a for _, a in tags if "src" in a or any(name.startswith("on") for name in a)]
        assert not re.search(r"url\(|@import|https?:", text.replace(SVG_NAMESPACE, ""))


SVG_NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'


def nasty() -> RunResult:
    """A run whose every text is up to something."""
    found = history(
        *step(0.01, NASTY, 0.02, "failed", detail=NASTY),
        ProcessEvent(0.03, NASTY, "server", "start"),
        CallEvent(0.04, NASTY, "server", 3, "enter", f"send {NASTY}", "send"),
        OutputEvent(0.05, NASTY, "server", NASTY),
        look(0.06, "server", caption=NASTY),
    )
    verdict = Verdict("fail", NASTY, NASTY, NASTY, 0.02, NASTY, (NASTY,))
    texts = dict.fromkeys(("scenario", "title", "about", "source", "text", "reason"), NASTY)
    cause = Cause(NASTY, "server", 0.05, NASTY, NASTY, NASTY, (NASTY,), (NASTY,), certain=False)
    more = {"beside": (NASTY,), "refs": (NASTY,), "variant": {NASTY: NASTY}, "verdicts": (verdict,)}
    return recorded_run(found, **texts, **more, causes=(cause,), environment={"kernel": NASTY})


def test_pages_escape_everything() -> None:
    for text in (html.page(nasty()), html.index([nasty()])):
        _Page(text)
        assert "<script" not in text
        assert "&lt;script&gt;" in text


def test_drawings_are_well_formed() -> None:
    for run in (recorded.load(RUN), recorded_run(full(), hosts=tuple(ADDRESSES)), nasty()):
        drawings = re.findall(r"<svg.*?</svg>", html.page(run), re.DOTALL)
        assert len([ElementTree.fromstring(svg) for svg in drawings]) >= 2


def slow() -> History:
    """Segments that are long under way, and cross; words that are long."""
    return history(
        *call(0.5, 0.9, "client", f"send {'x' * 300}", result=300),
        *call(1.05, 1.15, "server", "recv", errno="ECONNRESET"),
        *step(1.06, f"snapshot {'a long name ' * 30}", 1.07),
        look(1.08, "server", *(tcp("ESTAB", SERVER, f"198.18.0.3:{40000 + n}") for n in range(9)),
             caption="crowded"),
        look(2.0, "server"),
        OutputEvent(1.09, "client", "client", "\N{CJK UNIFIED IDEOGRAPH-6F22}" * 100),
        segments=[
            segment(1 + n / 200, f"server PSH ACK {n} 1 len 9", 1.3 + n / 100, retransmitted=True)
            for n in range(9)
        ] + [segment(1.02 + n / 100, f"client ACK 1 {n}", None if n % 2 else 1.4,
                     duplicate_ack=True, zero_window=True) for n in range(9)],
    )  # fmt: skip


DRAWN: dict[str, Callable[[], RunResult]] = {
    "fin_wait_2": lambda: recorded.load(RUN),
    "two hosts": lambda: recorded_run(full(), hosts=("server", "client")),
    "three hosts": lambda: recorded_run(full(), hosts=tuple(ADDRESSES)),
    "nasty": nasty,
    "slow": lambda: recorded_run(slow()),
    "inward": lambda: recorded_run(inward(), hosts=("server", "client")),
    "inward, three hosts": lambda: recorded_run(inward(), hosts=("server", "proxy", "client")),
}


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", DRAWN)
def test_no_two_texts_of_a_drawing_touch(name: str, narrow: bool) -> None:
    drawing = draw(ladder_of(DRAWN[name]()), narrow)
    boxes = []
    for shape in drawing.shapes:
        for part in shape.parts:
            if not isinstance(part, Words):
                continue
            for number, line in enumerate(part.lines):
                width = measure(line, part.style)
                left = part.x - {"start": 0, "middle": width / 2, "end": width}[part.anchor]
                top, _ = part.span
                assert left >= 0, line
                assert left + width <= drawing.width, line
                boxes.append((top + number * LINE, left, left + width, line))
    boxes.sort()
    for n, (top, left, right, line) in enumerate(boxes):
        for other, begin, end, words in boxes[n + 1 :]:
            if other >= top + 11:
                break
            assert begin >= right or end <= left, (line, words)


@pytest.mark.parametrize("name", DRAWN)
def test_a_narrow_drawing_fits_a_small_screen(name: str) -> None:
    assert draw(ladder_of(DRAWN[name]()), narrow=True).width <= 360


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", DRAWN)
def test_no_line_of_the_paper_runs_through_words(name: str, narrow: bool) -> None:
    """Neither the rules below steps, nor lifelines that words have to cross."""
    run = DRAWN[name]()
    drawing = draw(ladder_of(run), narrow)
    parts = [(shape, part) for shape in drawing.shapes for part in shape.parts]
    lines = [p for _, p in parts if isinstance(p, Line) and p.style in ("rule", "life")]
    assert sum(line.style == "life" for line in lines) == len(run.hosts)
    for shape, words in ((s, p) for s, p in parts if isinstance(p, Words)):
        for box in words.boxes if words.style != "host" else ():
            crossed = [
                line for line in lines
                if line.x1 < box.x + box.width and line.x2 > box.x
                and line.y1 < box.y + box.height and line.y2 > box.y
            ]  # fmt: skip
            behind = [part for part in shape.parts if isinstance(part, Box)]
            assert not crossed or box in behind, (words.lines, crossed)


def test_an_arrow_that_stays_in_its_host_turns_back() -> None:
    drawing = draw(ladder_of(DRAWN["inward"]()))
    turned = [s for s in drawing.shapes if sum(isinstance(p, Line) for p in s.parts) == 3]
    assert len(turned) == 14
    for shape in turned:
        out, down, back = (part for part in shape.parts if isinstance(part, Line))
        assert (out.x1, out.x2, down.x2) == (back.x2, back.x1, down.x1)
        assert back.y1 > out.y1
        assert back.tip == ("cross" if "lost" in shape.title else "head")
    assert ":40000 → :8000 SYN" in turned[0].title


def test_drawings_are_cut_where_no_text_is() -> None:
    drawing = draw(ladder_of(recorded_run(many(50))))
    assert sum(band.height for band in drawing.bands) == drawing.height
    assert max(band.height for band in drawing.bands) < 2 * BAND
    assert sum(band.body.count("<text") for band in drawing.bands) == sum(
        isinstance(part, Words) for shape in drawing.shapes for part in shape.parts
    )


def test_what_lives_long_is_not_drawn_over_and_over() -> None:
    looks = [look(n / 10, "server", *(tcp("ESTAB", SERVER, f"198.18.0.3:{40000 + m}")
                                      for m in range(n))) for n in range(200)]  # fmt: skip
    drawing = draw(ladder_of(recorded_run(history(*looks))))
    assert len(drawing.bands) <= BANDS


def test_an_arrow_falls_while_it_is_under_way() -> None:
    found = draw(ladder_of(recorded_run(slow())))
    falls = [
        part.y2 - part.y1
        for shape in found.shapes
        for part in shape.parts
        if isinstance(part, Line) and part.tip == "head"
    ]
    assert min(falls) > 20


@pytest.mark.parametrize("room", [30, 60, 100, 1000])
def test_words_are_wrapped_to_their_room(room: float) -> None:
    words = "server: no connection within 4.5..7 s of killed abcdefghijklmnopqrstuvwxyz"
    for style in FONTS:
        lines = wrap(words, style, room, 99)
        assert max(measure(line, style) for line in lines) <= room
        assert "".join(lines).replace(" ", "") == words.replace(" ", "")
        short = wrap(words, style, room, 2)
        assert len(short) <= 2
        assert (short == lines) is (not short[-1].endswith("…"))
    assert wrap("within 5 s", "step", measure("within 5", "step")) == ("within", "5 s")


def test_pages_keep_what_is_drawn_by_letters() -> None:
    assert html.paragraphs("One\ntwo.\n\n    a -> b\n      c\n\nThree.") == [
        ("p", "One\ntwo."), ("pre", "a -> b\n  c"), ("p", "Three.")
    ]  # fmt: skip


def test_words_stay_whole_in_pages() -> None:
    text = "client in FIN-WAIT-1 -> <b> after 0.005 s"
    assert html.words(text) == (
        'client in <span class="w">FIN-WAIT-1</span> <span class="w">-&gt;</span> &lt;b&gt; after '
        '<span class="w">0.005 s</span>'
    )
    assert html.words("a-" * 30) == "a-" * 30  # or it would be wider than a screen


@pytest.mark.parametrize("letter", ["x", "1", "1."])
def test_a_long_word_takes_no_long_time(letter: str) -> None:
    begun = time.process_time()
    assert html.words(letter * 30_000) == letter * 30_000
    assert time.process_time() - begun < 0.5


def contrast(one: str, other: str) -> float:
    """How well two colours can be told apart by their light (WCAG 2.2)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def linear(colour: str) -> list[float]:
    parts = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def luminance(colour: str) -> float:
    return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


SEEING = {
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "no green": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "no blue": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}
"""What becomes of light in the eyes of people who lack a kind of cone (Machado et al. 2009)."""


def seen(colour: str, by: str) -> tuple[float, float, float]:
    """A colour as they see it, in CIE L*a*b*."""
    r, g, b = (
        min(1.0, max(0.0, sum(m * c for m, c in zip(row, linear(colour), strict=True))))
        for row in SEEING[by]
    )
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.0888,
    )
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("dark", [0, 1])
def test_states_can_be_told_apart(dark: int) -> None:
    paper = re.findall(r"--paper: (#\w{6})", html.page(recorded.load(RUN)))[dark]
    looks = {s.lower(): ((c.light, c.dark)[dark], c.striped) for s, c in STATES.items()}
    assert looks.keys() == {state.lower() for state in State if state != State.UNCONN}
    assert len(set(looks.values())) == len(looks)
    colours = {colour for colour, _ in looks.values()}
    for colour in colours:
        assert contrast(colour, paper) >= 3  # WCAG 2.2, 1.4.11
    for one, other in combinations(colours, 2):
        for by in SEEING:
            assert dist(seen(one, by), seen(other, by)) > 25, (one, other, by)


def test_nothing_is_told_twice() -> None:
    page = html.page(DRAWN["inward"]())
    (_, wide, *_) = page.split('class="scroll ladder')
    words = [re.sub("<[^>]*>", "", text) for text in re.findall("<text.*?</text>", wide)]
    assert sum("transitions were lost" in text for text in words) == 2  # a wide and a narrow one
    run = recorded_run(history(segments=crowd(CONNECTIONS + 700)))
    shown = re.sub("<title>.*?</title>", "", html.page(run), flags=re.DOTALL)
    assert shown.count("700 of 800 connections") == 1


def test_pages_of_runs_whose_folders_are_called_the_same(tmp_path: Path) -> None:
    runs = [
        replace(recorded.load(RUN), folder=Path(folder), title=f"Run {n}")
        for n, folder in enumerate(["a/one", "b/one", "c/ONE", "d/index", "e/one-2"])
    ]
    reports.write("html", runs, tmp_path / "index.html")
    index = (tmp_path / "index.html").read_text()
    links = re.findall(r'<a href="([^"]+)"', index)
    assert links == ["one.html", "one-2.html", "ONE-3.html", "index-2.html", "one-2-2.html"]
    for n, link in enumerate(links):
        assert f"<h1>Run {n}</h1>" in (tmp_path / link).read_text()


def test_pages_of_a_set_are_by_theme_and_lead_to_the_next(tmp_path: Path) -> None:
    themes = {"b": "2. Ends", "none": "", "a": "1. Beginnings", "c": "2. Ends"}
    runs = [
        replace(recorded.load(RUN), folder=Path(name), theme=theme, name=f"run {name}")
        for name, theme in themes.items()
    ]
    reports.write("html", runs, tmp_path / "all of it.html")
    index = (tmp_path / "all of it.html").read_text()
    told = re.findall(r'<h2 id="(theme-\d)">(.*?)</h2>|<td><a href="(.*?)"', index)
    assert ["".join(words) for words in told] == [
        "theme-11. Beginnings", "a.html", "theme-22. Ends", "b.html", "c.html",
        "theme-3Others", "none.html",
    ]  # fmt: skip
    assert re.findall('href="#(.*?)"', index) == ["theme-1", "theme-2", "theme-3"]
    order = ["a", "b", "c", "none"]
    for before, name, after in zip(["", *order], order, [*order[1:], ""], strict=False):
        page = (tmp_path / f"{name}.html").read_text()
        links = re.findall('rel="(prev|next)" href="(.*?)"', page)
        wanted = {"prev": before, "next": after}
        assert links == [(rel, f"{to}.html") for rel, to in wanted.items() if to] * 2
        assert page.count('href="all%20of%20it.html"') == 2


def test_markdown_and_mermaid_keep_to_their_lines() -> None:
    run = nasty()
    text = markdown.summary([run])
    assert "<script" not in re.sub(r"^    .*$", "", text, flags=re.MULTILINE).replace("\\<", "")
    assert "\x1b" not in mermaid.diagram(run)
    for line in mermaid.diagram(run).splitlines()[1:]:
        words = re.sub(r"#\d+;", "", line)
        assert not re.search(r"[#;<>%`]", words.replace("->>", ""))


def test_junit_is_well_formed() -> None:
    assert len(ElementTree.fromstring(junit.document([nasty()]))) == 1


def test_mermaid_is_cut_where_it_would_be_too_long() -> None:
    text = mermaid.diagram(recorded_run(many(2500)))
    assert len(text) < 50_000
    assert re.search(r"Note over h0,h1: \d+ more are left out here\n$", text)


# --- Long runs ------------------------------------------------------------------------------------


def many(rounds: int) -> History:
    """Four events and two segments a round, none of them like the one before."""
    events: list[Event] = []
    segments = []
    for n in range(rounds):
        t = n / 100
        state = "ESTAB" if n % 2 else "CLOSE-WAIT"
        events += call(t, t + 0.001, "client", f"send {n}", result=n)
        events += [look(t + 0.002, "server", tcp(state, SERVER, CLIENT))]
        events += [ProcessEvent(t + 0.003, "server", "server", "start")]
        segments += [
            segment(t + 0.004, f"client PSH ACK {n} 1 len 1", None),
            segment(t + 0.006, f"client PSH ACK {n} 1 len 1", retransmitted=True),
        ]
    return history(*events, segments=segments)


RENDERERS: dict[str, Callable[[RunResult], object]] = {
    "rows": ladder_of,
    "text": lambda run: ladder_text.text(ladder_of(run), 100),
    "html": html.page,
    "mermaid": mermaid.diagram,
    "markdown": lambda run: markdown.summary([run]),
}


def short_lives(count: int) -> History:
    """Connections, one after another, each of which `ss` saw in two states."""
    states = [(n / 100 + later, n, state) for n in range(count)
              for later, state in ((0.0, "ESTAB"), (0.005, "TIME-WAIT"))]  # fmt: skip
    return history(*(look(t, "server", tcp(state, SERVER, f"198.18.0.3:{20000 + n}"))
                     for t, n, state in states))  # fmt: skip


LONG: dict[str, Callable[[int], History]] = {"many": many, "short lives": short_lives}


@pytest.mark.parametrize("made", LONG)
@pytest.mark.parametrize("name", RENDERERS)
def test_what_is_long_takes_longer_in_proportion(name: str, made: str) -> None:
    def seconds(rounds: int) -> float:
        found = []
        for _ in range(2):
            run = recorded_run(LONG[made](rounds))
            began = time.process_time()
            RENDERERS[name](run)
            found.append(time.process_time() - began)
        return min(found)

    if name == "rows":
        assert len(ladder_of(recorded_run(LONG[made](200))).rows) > 2 * min(200, CONNECTIONS)
    RENDERERS[name](recorded_run(many(2)))  # the templates are read once
    few, lots = seconds(200), seconds(1000)
    assert lots < 12 * few + 0.05  # 25 times as long, if each looked at all others


def test_a_page_that_is_long_has_one_drawing() -> None:
    short, long = (html.page(recorded_run(many(rounds))) for rounds in (50, 2500))
    assert 'class="narrow"' in short
    assert 'class="narrow"' not in long


def test_of_too_many_rows_those_amid_are_left_out() -> None:
    calls = [call(n / 100, n / 100 + 0.001, "client", f"send {n}", result=n)
             for n in range(ROWS + 50)]  # fmt: skip
    amid = step(ROWS / 200, "kill server", ROWS / 200 + 0.001)
    run = recorded_run(history(*chain.from_iterable(calls), *amid,
                               look(0.0, "server", tcp("ESTAB", SERVER, CLIENT))))  # fmt: skip
    assert len(ladder_of(run).rows) <= ROWS + 3
    assert any(isinstance(row, Step) and row.text == "kill server" for row in ladder_of(run).rows)
    (words,) = ladder_of(run).left
    assert re.match(r"5\d rows are left out from here to \d+\.\d{3} s", words)
    draw(ladder_of(run))


def test_a_look_at_thousands_of_sockets_tells_of_some() -> None:
    sockets = [tcp("ESTAB", SERVER, f"198.18.0.3:{20000 + n}") for n in range(2000)]
    run = recorded_run(history(look(0.1, "server", *sockets, caption="now")))
    (found,) = ladder_of(run).looks
    assert found.lines[-1] == f"and {2000 - LOOK_LINES:,} more"
    assert len(found.lines) == LOOK_LINES + 1


def test_many_connections_are_drawn_side_by_side() -> None:
    sockets = [tcp("ESTAB", SERVER, f"198.18.0.3:{40000 + n}") for n in range(CONNECTIONS)]
    run = recorded_run(history(look(0.1, "server", *sockets), look(5.0, "server")))
    drawing = draw(ladder_of(run))
    assert drawing.width < 1400
    assert ladder_of(run).number(CONNECTIONS) == f"#{CONNECTIONS}"
