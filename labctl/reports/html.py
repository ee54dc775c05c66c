"""Runs as self-contained HTML pages: no script, nothing from elsewhere, everything escaped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from labctl.reports.drawing import SIGNS, Box, Line, Words, draw
from labctl.reports.recorded import RecordedRun
from labctl.reports.rungs import clean

STATE_COLOURS = {
    "listen": ("#8a93a3", "#7d8798"),
    "syn-sent": ("#b08900", "#e0b93c"),
    "syn-recv": ("#c46a00", "#f0933a"),
    "estab": ("#1f8a4c", "#3fbf74"),
    "fin-wait-1": ("#7a5cd6", "#a68cff"),
    "fin-wait-2": ("#b02fa6", "#e36bd8"),
    "close-wait": ("#c2410c", "#ff8352"),
    "closing": ("#5b6bbf", "#8e9df0"),
    "last-ack": ("#9a6b4f", "#c99a7c"),
    "time-wait": ("#c01f3f", "#ff6480"),
}
"""The colour of each state, on light and on dark."""


def page(run: RecordedRun) -> str:
    """One run on a page."""
    drawing = draw(run.ladder) if run.ladder.rows and run.hosts else None
    return _template("run.html.j2").render(run=run, ladder=run.ladder, drawing=drawing)


def index(runs: Sequence[RecordedRun]) -> str:
    """Many runs on a page, each with a link to `file_name(run)` beside it."""
    return _template("index.html.j2").render(runs=runs, file_name=file_name)


def pages(runs: Sequence[RecordedRun]) -> str:
    """One run on a page, or several as an index."""
    return page(runs[0]) if len(runs) == 1 else index(runs)


def file_name(run: RecordedRun) -> str:
    """What a run's page is called: after the run's folder."""
    return f"{run.folder.resolve().name}.html"


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
    environment.globals.update(signs=SIGNS, colours=STATE_COLOURS)
    environment.tests.update(
        line=lambda part: isinstance(part, Line),
        box=lambda part: isinstance(part, Box),
        words=lambda part: isinstance(part, Words),
    )
    environment.filters["px"] = lambda number: f"{number:.1f}".removesuffix(".0")
    return environment


def _finalize(value: Any) -> Any:
    """What goes into a page, without characters that have no place in one."""
    if isinstance(value, str) and not value.isprintable():
        return type(value)("\n".join(map(clean, value.split("\n"))))
    return value


def _template(name: str) -> Template:
    return _environment().get_template(name)
