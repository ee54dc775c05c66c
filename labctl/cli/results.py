"""The output of a command that ran cases: their results, and the reports that were asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from labctl.cli.exits import EXIT, INTERRUPTED
from labctl.ground.data import dataclass
from labctl.ground.output import keep, show, tell
from labctl.judge.result import RunResult, document
from labctl.run.runner import WAS_INTERRUPTED


@dataclass(frozen=True)
class Wanted:
    """How to write the results to stdout, and which files get reports."""

    form: str
    junit: Path | None = None
    html: Path | None = None


def why_cut_short(results: Sequence[RunResult], cases: int) -> str:
    """Why some of so many cases have no result of their own."""
    decided = sum(run.reason != WAS_INTERRUPTED for run in results)
    return f"{WAS_INTERRUPTED} when {decided} of {cases} cases were decided"


def give(results: list[RunResult], wanted: Wanted, seconds: float, cut_short: str) -> int:
    """Writes it all, and returns the exit status. A failure to write changes no result."""

    def table() -> None:
        from labctl.reports.tables import console
        from labctl.reports.terminal import print_runs

        print_runs(results, console(), seconds, cut_short)

    found = document(results, cut_short)
    if wanted.form == "json":
        show("the results", lambda: print(json.dumps(found, indent=1)))
    elif wanted.form == "ktap":
        from labctl.reports import ktap

        show("the results", lambda: print(ktap.document(results), end=""))
    elif results:
        show("the table", table)
    write_reports(results, {"junit": wanted.junit, "html": wanted.html})
    if cut_short:
        tell(f"labctl: {WAS_INTERRUPTED}")
    return INTERRUPTED if cut_short else EXIT[found["result"]]


def write_reports(results: list[RunResult], files: dict[str, Path | None]) -> None:
    """Writes the reports that were asked for, and what a step of GitHub's workflows shows."""
    from labctl import reports
    from labctl.reports import github_errors, step_summary

    if github_errors.wanted():
        for line in github_errors.lines(results):
            tell(line)
    wanted = {name: path for name, path in files.items() if path}
    if not results or not (wanted or step_summary.wanted()):
        return
    from labctl.judge.recorded import reloaded, told_apart
    from labctl.reports.markdown import summary

    recorded: list[RunResult] = []

    def read(found: RunResult) -> None:
        recorded.append(reloaded(found))

    for found in results:
        keep(f"{found.label} in the reports", partial(read, found))
    for name, path in wanted.items():
        keep(str(path), partial(reports.write, name, recorded, path))
    step_summary.add(partial(summary, told_apart(recorded)))
