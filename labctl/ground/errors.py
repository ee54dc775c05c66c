"""The exception tree. Only `cli/commands.py` turns one into an exit status.

LabctlError                what users may see: exit 4, unless said otherwise
|-- UsageError             bad usage: exit 2
|   `-- ScenarioError      every mistake of a file, each with file and line
|-- LabError               the lab itself failed
|   |-- GuestEnded         a guest is gone, or does not answer
|   |   `-- GuestHangs     it is there, but makes no progress
|   |-- Refused            the system refuses what a line of the scenario asks for
|   `-- Unavailable        nothing to run it on: exit 3
|       |-- BootstrapError  no Debian could be made
|       `-- MissingHere    this kernel or machine lacks what the scenario is about
`-- NotPassed              claims of people's own tests that do not hold: exit 1
    `-- NotKnown           a question that nobody can answer: exit 3

Each says in its `message` what is wrong, and in its `hint` what to do, if that is known; `str()` is
both. Ctrl-C, SIGTERM and SIGHUP are KeyboardInterrupt, exit 130: no library on the way takes that
for an error of its own. Interrupted is one, with the results of the cases so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter

from labctl.ground.data import dataclass
from labctl.ground.plain import plain_lines


class LabctlError(Exception):
    """Anything that ends a command with a message for people, and a hint."""

    exit_status = 4

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, *([hint] if hint else []))
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return plain_lines(f"{self.message}; {self.hint}" if self.hint else self.message)


class UsageError(LabctlError):
    """Bad usage."""

    exit_status = 2


@dataclass(frozen=True)
class Mistake:
    """One mistake in a file; `str()` gives `file:line: message`. Lines count from 1."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


MOST_MISTAKES = 200
"""How many mistakes to show; nobody reads more at a time."""


class ScenarioError(UsageError):
    """A file that is no valid scenario, with all its mistakes in the order of lines."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(set(mistakes), key=attrgetter("file", "line", "message"))
        lines = [str(mistake) for mistake in self.mistakes[:MOST_MISTAKES]]
        more = len(self.mistakes) - len(lines)
        super().__init__("\n".join([*lines, *([f"... and {more} mistakes more"] if more else [])]))


class LabError(LabctlError):
    """The lab failed: an engine that refuses, a host that dies."""


class Unavailable(LabError):
    """Nothing here can run it."""

    exit_status = 3


class MissingHere(Unavailable):
    """This kernel or machine lacks what the scenario is about."""


class Refused(LabError):
    """The system refuses what a scenario asks of it."""


@contextmanager
def located(source: str) -> Iterator[None]:
    """Makes a Refused say which line of a scenario, `file:line`, it comes from."""
    try:
        yield
    except Refused as exc:
        raise Refused(f"{source}: {exc.message}", exc.hint) from exc
