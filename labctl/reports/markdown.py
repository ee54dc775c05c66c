"""Runs as Markdown, for issues and for the summaries of CI."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from labctl.reports.comparison import Comparison
from labctl.reports.mermaid import diagram
from labctl.reports.recorded import RecordedRun
from labctl.reports.rungs import clean

SIGNS = {"pass": "✅", "fail": "❌", "error": "❌", "unknown": "❔", "skip": "➖"}
SPECIAL = re.compile(r"([\\`*_\[\]<#|~&$])")


def summary(runs: Sequence[RecordedRun]) -> str:
    """Each run with its verdicts, its ladder and why; where there are several, a table of them
    first, and the ladders of those that passed folded."""
    parts = [] if len(runs) == 1 else [_overview(runs)]
    parts += [_run(run, folded=len(runs) > 1 and run.result in ("pass", "skip")) for run in runs]
    return "\n".join(parts)


def comparison(found: Comparison) -> str:
    """Places side by side: what differs or did not pass, and all of it, folded."""
    rows = [
        (_safe(p.name), _sign(p.result), *map(_safe, (p.kernel, p.system, p.reason or "")))
        for p in found.places
    ]
    heads = ("place", "result", "kernel", "system", "")
    lines = [f"## {len(found.places)} places", "", *_table(heads, rows), ""]
    lines += ["## What differs or did not pass", "", *_sections(found, True)]
    everything = [*_sections(found, False)]
    lines += ["<details><summary>Everything</summary>", "", *everything, "</details>", ""]
    return "\n".join(lines)


def _sections(found: Comparison, first: bool) -> Iterator[str]:
    """A table for each kind of row."""
    for section in found.sections(first):
        heads, *rows = ([_safe(cell) for cell in row] for row in (section.heads, *section.rows))
        yield from (f"### {section.title}", "", *_table(heads, rows), "")
    if not found.sections(first):
        yield from ("Nothing.", "")


def _overview(runs: Sequence[RecordedRun]) -> str:
    rows = [(_sign(r.result), _safe(r.label), _safe(r.title), f"{r.seconds:.1f}") for r in runs]
    heading = f"## {len(runs)} runs"
    return "\n".join((heading, "", *_table(("result", "scenario", "what", "seconds"), rows), ""))


def _run(run: RecordedRun, folded: bool) -> str:
    lines = [f"## {_safe(run.label)}: {_safe(run.title)}", ""]
    reason = f": {_safe(run.reason)}" if run.reason else ""
    lines += [f"{_sign(run.result)}{reason}, {run.seconds:.1f} s on {_safe(run.place)}", ""]
    if run.verdicts:
        rows = [
            (_sign(v.result), f"{v.at:.3f} s", _safe(v.what), _safe(v.expected), _safe(v.actual))
            for v in run.verdicts
        ]
        lines += [*_table(("", "at", "claim", "expected", "saw"), rows), ""]
    lines += list(_failures(run))
    for sentence in run.why:
        lines += [f"**Why:** {_safe(sentence)}", ""]
    if run.ladder.rows and run.hosts:
        picture = ["```mermaid", diagram(run).rstrip(), "```", ""]
        head = "<details><summary>What happened</summary>"
        lines += [head, "", *picture, "</details>", ""] if folded else picture
    return "\n".join(lines)


def _failures(run: RecordedRun) -> Iterator[str]:
    """The evidence of what did not hold."""
    for verdict in run.verdicts:
        if verdict.result not in ("pass", "skip") and verdict.evidence:
            yield f"{_safe(verdict.source)}: {_safe(verdict.what)}, evidence:"
            yield ""
            lines = "\n".join(verdict.evidence).splitlines()
            yield from (f"    {clean(line)}" for line in lines)
            yield ""


def _sign(result: str) -> str:
    return f"{SIGNS[result]} {result}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _safe(text: str) -> str:
    """Text on one line that Markdown takes as it is."""
    return SPECIAL.sub(r"\\\1", clean(" ".join(text.split())))
