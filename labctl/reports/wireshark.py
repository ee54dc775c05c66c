"""The captures of runs as one file for Wireshark, with what labctl knows of each packet."""

from __future__ import annotations

from collections.abc import Sequence

from labctl.judge.annotated import exported
from labctl.judge.result import RunResult


def captures(runs: Sequence[RunResult]) -> bytes:
    """A section for each run. Raises UsageError if a run has no captures."""
    return b"".join(
        piece for run in runs for piece in exported(run.folder, run.history, run.causes)
    )
