"""Runs as Markdown, for issues and for the summaries of CI."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from labctl.ground.plain import plain
from labctl.judge.accounts import account_lines
from labctl.judge.result import RunResult
from labctl.reports.comparison import Comparison, Section
from labctl.reports.ladder import ladder_of
from labctl.reports.mermaid import drawn
from labctl.reports.rows import behind
from labctl.reports.signs import RESULTS
from labctl.reports.step_summary import LIMIT, NOTE, Part, artifacts, fitted

SPECIAL = re.compile(r"([\\`*_\[\]<#|~&$])")


def summary(runs: Sequence[RunResult], room: int | None = None) -> str:
    """Each run with its verdicts, its ladder and why. If there are several, a table of them comes
    first, and the ladders of those that passed are folded. If there is only room for so many bytes,
    those that did not pass come first, and the end says what is left out."""
    parts = [*_overview(runs)] if len(runs) > 1 else []
    before = len(parts)
    for run in runs:
        rank, whole = 5 if _good(run) else 3, _run(run, folded=_good(run) and len(runs) > 1)
        parts.append(Part([(rank, _run(run, None)), (rank + 1, whole)]))

    def rest(cut: Sequence[int]) -> str:
        return _left_out("runs", [str(runs[n - before].folder) for n in cut if n >= before])

    return _within(parts, room, rest)


def comparison(found: Comparison, room: int | None = None) -> str:
    """Places side by side: what differs or did not pass, and then everything, folded. If there is
    only room for so many bytes, says what is left out."""
    rows = [
        (_safe(p.name), _sign(p.result), *map(_safe, (p.kernel, p.system, p.reason or "")))
        for p in found.places
    ]
    heads = ("place", "result", "kernel", "system", "")
    lines = [f"## {len(found.places)} places", "", *_table(heads, rows), ""]
    lines += ["## What differs or did not pass", ""]
    parts = [_part(0, *lines), *_sections(found, True, 1)]
    parts.append(_part(0, "<details><summary>Everything</summary>", ""))
    parts += [*_sections(found, False, 2), _part(0, "</details>", "")]
    return _within(parts, room, lambda cut: _left_out(f"{len(cut)} rows of tables", []))


def _within(parts: Sequence[Part], room: int | None, rest: Callable[[Sequence[int]], str]) -> str:
    if room is None:
        return "\n".join(part.whole for part in parts)
    return fitted(parts, room, rest)


def _part(rank: int, *lines: str) -> Part:
    return Part([(rank, "\n".join(lines))])


def _left_out(what: str, folders: Sequence[str]) -> str:
    """What a summary says about what it leaves out."""
    heading = f"{len(folders)} {what}, in whole or in part" if folders else what
    lines = ["", f"**Left out here: {heading}.** A step's summary takes {LIMIT >> 20} MiB."]
    if link := artifacts():
        lines += ["", f"What the workflow keeps of it is among {link}."]
    size = sum(map(len, lines)) + 200
    for number, folder in enumerate(folders):
        line = f"- `labctl report {plain(folder)}`"
        size += 4 * len(line)  # in UTF-8 at most
        if size > NOTE:
            lines.append(f"- and {len(folders) - number} more beside them")
            break
        lines += [*([""] if not number else []), line]
    return "\n".join([*lines, ""])


def _sections(found: Comparison, first: bool, rank: int) -> Iterator[Part]:
    """A table for each kind of row."""
    sections = found.sections(first)
    for section in sections:
        yield from _section(section, rank)
    if not sections:
        yield _part(0, _safe(found.nothing) or "Nothing.", "")


def _section(section: Section, rank: int) -> Iterator[Part]:
    heads, *rows = ([_safe(cell) for cell in row] for row in (section.heads, *section.rows))
    head, rule, *lines = _table(heads, rows)
    yield _part(0, f"### {section.title}", "", head, rule)
    yield from (_part(rank, line) for line in lines)
    yield _part(0, "")


def _overview(runs: Sequence[RunResult]) -> Iterator[Part]:
    rows = [(_sign(r.result), _safe(r.label), _safe(r.title), f"{r.seconds:.1f}") for r in runs]
    head, rule, *lines = _table(("result", "scenario", "what", "seconds"), rows)
    yield _part(0, f"## {len(runs)} runs", "", head, rule)
    yield from (_part(2 if _good(run) else 1, line) for run, line in zip(runs, lines, strict=True))
    yield _part(0, "")


def _good(run: RunResult) -> bool:
    return run.result in ("pass", "skip")


def _run(run: RunResult, folded: bool | None) -> str:
    """A run with its picture, which may be folded, or (None) without it."""
    lines = [f"## {_safe(run.label)}: {_safe(run.title)}", ""]
    reason = f": {_safe(run.reason)}" if run.reason else ""
    lines += [f"{_sign(run.result)}{reason}, {run.seconds:.1f} s on {_safe(run.where)}", ""]
    if run.verdicts:
        rows = [
            (_sign(v.result), f"{v.at:.3f} s", _safe(v.what), _safe(v.expected), _safe(v.actual))
            for v in run.verdicts
        ]
        lines += [*_table(("", "at", "claim", "expected", "saw"), rows), ""]
    lines += list(_failures(run))
    for sentence in run.why:
        lines += [f"**Why:** {_safe(sentence)}", ""]
    ladder = ladder_of(run) if folded is not None and run.hosts else None
    if ladder and ladder.rows:
        picture = ["```mermaid", drawn(ladder).rstrip(), "```", ""]
        head = "<details><summary>What happened</summary>"
        lines += [head, "", *picture, "</details>", ""] if folded else picture
    return "\n".join(lines)


def _failures(run: RunResult) -> Iterator[str]:
    """The reasons for all claims that did not hold."""
    for verdict, found in behind(run.verdicts):
        if verdict.result not in ("pass", "skip") and found:
            yield f"{_safe(verdict.source)}: {_safe(verdict.what)}, evidence:"
            yield ""
            yield from _quoted(found)
    if run.processes:
        yield from ("What the processes did last:", "", *_quoted(account_lines(run.processes)))


def _quoted(found: Iterable[str]) -> Iterator[str]:
    yield from (f"    {plain(line)}" for line in "\n".join(found).splitlines())
    yield ""


def _sign(result: str) -> str:
    return f"{RESULTS[result].emoji} {result}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _safe(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return SPECIAL.sub(r"\\\1", plain(" ".join(text.split())))
