"""KTAP, version 1, as the kernel's own tests print it: a test for each run, and in it one for each
claim (Documentation/dev-tools/ktap.rst).

An unknown claim is `not ok`, as it is no pass; a line of diagnostics says what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from labctl.ground.plain import plain
from labctl.judge.check import Verdict
from labctl.judge.result import RunResult

VERSION = "KTAP version 1"


def document(runs: Sequence[RunResult]) -> str:
    """All runs."""
    lines = [VERSION, f"1..{len(runs)}"]
    for number, run in enumerate(runs, 1):
        lines += (f"  {line}" for line in _inner(run))
        skipped = f" # SKIP {_described(run.reason or '')}" if run.result == "skip" else ""
        ok = "ok" if run.result in ("pass", "skip") else "not ok"
        lines.append(f"{ok} {number} {_described(run.label)}{skipped}")
    return "\n".join(lines) + "\n"


def _inner(run: RunResult) -> Iterator[str]:
    if run.verdicts:
        yield VERSION
        yield f"1..{len(run.verdicts)}"
    for number, verdict in enumerate(run.verdicts, 1):
        yield from _claim(number, verdict)
    if run.result == "error":
        yield f"# error: {plain(run.reason or '')}"
    if run.result not in ("pass", "skip"):
        yield from (f"# why: {plain(sentence)}" for sentence in run.why)


def _claim(number: int, verdict: Verdict) -> Iterator[str]:
    passed = verdict.result == "pass"
    if not passed:
        yield f"# {plain(str(verdict))}"
    claim = f"{verdict.subject or verdict.what}: {verdict.expected}"
    yield f"{'ok' if passed else 'not ok'} {number} {_described(claim)}"


def _described(text: str) -> str:
    """A description or a reason, in a line: a # would begin a directive."""
    return plain(text).replace("#", "")
