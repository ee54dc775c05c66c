"""Runs as self-contained HTML pages: no script, nothing from elsewhere, everything escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, count, groupby
from textwrap import dedent
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from labctl.ground.data import dataclass
from labctl.ground.plain import plain_lines
from labctl.judge.accounts import account_lines
from labctl.judge.result import RunResult
from labctl.reports.comparison import Comparison
from labctl.reports.drawing import draw
from labctl.reports.ladder import ladder_of
from labctl.reports.rows import behind, claim_words
from labctl.reports.shapes import FONTS, Drawing, px
from labctl.reports.signs import RESULTS, STATES

WHOLE = re.compile(
    r"(?<!\d)\d[\d.]{0,30} (?:ms|s|min)\b|(?<![^\s-])[^\s-]{1,31}-\S*|(?<=\s)->(?=\s)"
)
WHOLE_MOST = 32
"""Words that stay on one line if they are not longer: a number with its unit, and a word with a
hyphen, at which a browser would break the line."""

NARROW_ROWS = 2000
"""A longer ladder has no narrow drawing: the page would be too large for a small device."""


@dataclass(frozen=True)
class Place:
    """A page's place in a set: the index and the pages before and after it, by their files."""

    index: str
    before: tuple[str, RunResult] | None
    after: tuple[str, RunResult] | None


def page(run: RunResult, place: Place | None = None) -> str:
    """One run on a page, with links to others if it has a place in a set."""
    drawings: dict[str, Drawing] = {}
    ladder = ladder_of(run)
    if ladder.rows and run.hosts:
        drawings["wide"] = draw(ladder)
        if len(ladder.rows) <= NARROW_ROWS:
            drawings["narrow"] = draw(ladder, narrow=True)
    return _template("run.html.j2").render(
        run=run, ladder=ladder, drawings=drawings, about=paragraphs(run.about), place=place
    )


def index(runs: Sequence[RunResult], names: Sequence[str] | None = None) -> str:
    """Many runs on a page, by their themes, each with a link to its own page: by `names`, or by
    `page_names`."""
    named = sorted(zip(runs, names or page_names(runs), strict=True), key=lambda n: _theme(n[0]))
    themes = [(theme, list(found)) for (_, theme), found in groupby(named, lambda n: _theme(n[0]))]
    return _template("index.html.j2").render(runs=runs, themes=themes)


def written(
    runs: Sequence[RunResult], name: str, taken: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """The pages of a set, each with its name, none of them `taken`. Each has links to those before
    and after it in the order of the index, which is called `name` and comes last."""
    runs = sorted(runs, key=_theme)
    names = page_names(runs, [name, *taken])
    steps = [None, *zip(names, runs, strict=True), None]
    for n, run in enumerate(runs):
        yield names[n], page(run, Place(name, steps[n], steps[n + 2]))
    yield name, index(runs, names)


def _theme(run: RunResult) -> tuple[bool, str]:
    """By which runs are sorted: those without a theme come last."""
    return not run.theme, run.theme


def pages(runs: Sequence[RunResult]) -> str:
    """One run on a page, or several as an index."""
    return page(runs[0]) if len(runs) == 1 else index(runs)


def comparison(found: Comparison) -> str:
    """Places side by side on a page."""
    return _template("comparison.html.j2").render(found=found)


def paragraphs(text: str) -> list[tuple[str, str]]:
    """A text's paragraphs, separated by empty lines: the element for each, and its words. `pre` is
    for indented lines, as they are; `p` for the others."""
    found = []
    for block in filter(str.strip, re.split(r"\n[ \t]*\n", text)):
        drawn = all(line.startswith("  ") for line in block.split("\n"))
        found.append(("pre", dedent(block)) if drawn else ("p", block))
    return found


def words(text: str) -> Markup:
    """A text that breaks lines only between words: not in `FIN-WAIT-2`."""

    def kept(found: re.Match[str]) -> Markup:
        token = escape(found[0])
        return Markup(f'<span class="w">{token}</span>') if len(found[0]) <= WHOLE_MOST else token

    pieces, end = [], 0
    text = plain_lines(text)
    for found in WHOLE.finditer(text):
        pieces += [escape(text[end : found.start()]), kept(found)]
        end = found.end()
    return Markup("").join([*pieces, escape(text[end:])])


def page_names(runs: Sequence[RunResult], taken: Iterable[str] = ()) -> list[str]:
    """The names of runs' pages: after the runs' folders, each name once and none that is taken,
    also where upper and lower case do not differ."""
    used = {name.casefold() for name in taken}
    names = []
    for run in runs:
        folder = run.folder.resolve().name
        tries = chain([""], (f"-{n}" for n in count(2)))
        name = next(n for t in tries if (n := f"{folder}{t}.html").casefold() not in used)
        used.add(name.casefold())
        names.append(name)
    return names


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("labctl", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(looks=RESULTS, states=STATES, fonts=FONTS, claim=claim_words)
    environment.globals.update(behind=behind, account_lines=account_lines)
    environment.filters["px"] = px
    environment.filters["words"] = words
    return environment


def _finalize(value: Any) -> Any:
    """A value for a page, without characters that may not stand in one."""
    return plain_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _template(name: str) -> Template:
    return _environment().get_template(name)
