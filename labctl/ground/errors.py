"""The exception tree. Only `cli.py` turns one into an exit status.

LabctlError
|-- UsageError       bad usage or a bad scenario: exit 2
|   `-- ScenarioError    every mistake of a file, each with file and line
`-- LabError         the lab itself failed: exit 4
    |-- Unavailable      nothing to run it on: exit 3
    `-- Refused          what a line of the scenario asks for

Ctrl-C, SIGTERM and SIGHUP are KeyboardInterrupt, exit 130: no library on the way takes that for an
error of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from labctl.ground.plain import plain_lines


class LabctlError(Exception):
    """Anything that ends a command with a message for people."""

    exit_status = 4

    def __str__(self) -> str:
        return plain_lines(super().__str__())


class UsageError(LabctlError):
    """Bad usage."""

    exit_status = 2


@dataclass(frozen=True, order=True)
class Mistake:
    """One mistake in a file; `str()` gives `file:line: message`. Lines count from 1."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


MOST_MISTAKES = 200
"""That are shown; nobody reads more at a time."""


class ScenarioError(UsageError):
    """A file that is no valid scenario, with all its mistakes in the order of lines."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(set(mistakes))
        lines = [str(mistake) for mistake in self.mistakes[:MOST_MISTAKES]]
        more = len(self.mistakes) - len(lines)
        super().__init__("\n".join([*lines, *([f"... and {more} mistakes more"] if more else [])]))


class LabError(LabctlError):
    """The lab failed: an engine that refuses, a host that dies."""


class Unavailable(LabError):
    """Nothing here can run it; the message ends with the mend."""

    exit_status = 3


class Refused(LabError):
    """The system refuses what a scenario asks of it."""


@contextmanager
def located(source: str) -> Iterator[None]:
    """Has a Refused say which line of a scenario, `file:line`, it comes from."""
    try:
        yield
    except Refused as exc:
        raise Refused(f"{source}: {exc}") from exc
