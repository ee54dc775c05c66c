"""How to show results. A report reads what a run left and touches no lab.

To add one, write a module with a function from recorded runs to text, and a line in REPORTS.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.ground.errors import UsageError
from labctl.ground.output import write_file
from labctl.ground.reading import open_file as reading

if TYPE_CHECKING:
    from labctl.judge.result import RunResult

REPORTS: dict[str, str] = {
    "ladder": "labctl.reports.ladder_text:ladders",
    "blank": "labctl.reports.worksheet:sheets",
    "html": "labctl.reports.html:pages",
    "junit": "labctl.reports.junit:document",
    "ktap": "labctl.reports.ktap:document",
    "markdown": "labctl.reports.markdown:summary",
    "mermaid": "labctl.reports.mermaid:diagrams",
}
"""Name and function, `module:function`, from recorded runs to text. Imported only when used."""

MARK = b'<meta name="generator" content="labctl">'
"""A line in the head of each of our pages."""


def write(name: str, runs: Sequence[RunResult], path: Path) -> None:
    """Writes the runs as a report of that name to a file. As HTML, several runs get a page each,
    beside the file. Raises OSError."""
    from labctl.judge.recorded import told_apart

    runs = told_apart(runs)
    if name == "html" and len(runs) > 1:
        _write_pages(runs, path)
    else:
        write_file(path, render(name, runs))


def _write_pages(runs: Sequence[RunResult], path: Path) -> None:
    from labctl.reports.html import written

    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "several runs are an index and a page each: that takes a file")
    others = [p.name for p in path.parent.glob("*.html") if not _ours(p)]
    for name, text in written(runs, path.name, others):
        write_file(path.parent / name, text)


def _ours(path: Path) -> bool:
    """Whether labctl wrote a page, and so may overwrite it."""
    try:
        with reading(path) as file:
            return MARK in file.read(1000)
    except (OSError, UsageError):
        return False


def render(name: str, runs: Sequence[RunResult]) -> str:
    """The runs as a report of that name."""
    from labctl.judge.recorded import told_apart

    module, _, function = REPORTS[name].partition(":")
    found: Callable[[Sequence[RunResult]], str] = getattr(importlib.import_module(module), function)
    return found(told_apart(runs))
