"""What judging a claim gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Result = Literal["pass", "fail", "unknown", "skip"]


@dataclass(frozen=True)
class Finding:
    """What was claimed of one subject, what was seen, and the evidence, a line each."""

    result: Result
    what: str
    expected: str
    actual: str
    evidence: tuple[str, ...] = field(default=())


def finding(holds: bool, what: str, expected: str, actual: str, *evidence: str) -> Finding:
    """A finding that is a pass or a fail."""
    return Finding("pass" if holds else "fail", what, expected, actual, evidence)
