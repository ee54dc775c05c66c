"""GitHub's annotations: a claim that did not pass, and why, beside its line in the
scenario.

They are commands of a workflow, one a line ("Setting an error message" in its reference of workflow
commands), and go to stderr: a runner reads both streams.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from labctl.judge.explain import first_reason
from labctl.judge.result import RunResult

LEVELS = {"fail": "error", "unknown": "warning"}


def wanted() -> bool:
    """Whether this is a step of a workflow."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def lines(results: Iterable[RunResult]) -> Iterator[str]:
    """A line for each claim that did not pass, and for each case that could not be judged."""
    for run in results:
        if run.result == "error":
            yield f"::error title={_escaped(run.label, ':,')}::{_escaped(run.reason or '')}"
        for verdict in run.verdicts:
            if verdict.result in LEVELS:
                file, _, line = verdict.source.rpartition(":")
                where = f"file={_escaped(_in_repository(file), ':,')},line={line}"
                title = f"title={_escaped(run.label, ':,')}"
                said = str(verdict).removeprefix(f"{verdict.source}: ")
                told = "\n".join([said, *first_reason(verdict, run.causes, run.history)])
                yield f"::{LEVELS[verdict.result]} {where},{title}::{_escaped(told)}"


def _in_repository(file: str) -> str:
    """A file by its path from the top of what the workflow checked out."""
    top, path = Path(os.environ.get("GITHUB_WORKSPACE", "/")).resolve(), Path(file).resolve()
    return str(path.relative_to(top)) if path.is_relative_to(top) else file


def _escaped(text: str, more: str = "") -> str:
    for sign in f"%\r\n{more}":
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text
