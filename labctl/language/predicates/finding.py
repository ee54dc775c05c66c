"""The result of judging a claim: in words for people, and as data for programs."""

from __future__ import annotations

from typing import Literal

from labctl.ground.data import dataclass
from labctl.language.facts import NO_FACTS, Facts

Result = Literal["pass", "fail", "unknown", "skip"]
QUOTED, WIDTH = 200, 500
"""How many characters of a match, and of a line, to show."""


def cut(text: str, width: int) -> str:
    """A text of so many characters at most."""
    return text if len(text) <= width else f"{text[: width - 3]}..."


@dataclass(frozen=True)
class Claimed:
    """A claim about a subject, in words and as data. `about` are the hosts and the processes that
    it names, `text` the whole claim if that is not subject and `expected`."""

    subject: str
    expected: str
    about: tuple[str, ...] = ()
    wanted: Facts = NO_FACTS
    text: str = ""

    @property
    def what(self) -> str:
        """The whole claim: `server: LISTEN`."""
        return self.text or f"{self.subject}: {self.expected}"


@dataclass(frozen=True)
class Finding:
    """What was claimed about one subject, what was seen, and the evidence, a line each."""

    result: Result
    claimed: Claimed
    actual: str
    evidence: tuple[str, ...] = ()
    measured: Facts = NO_FACTS

    @property
    def what(self) -> str:
        """The whole claim, in words."""
        return self.claimed.what

    @property
    def expected(self) -> str:
        """What is claimed, in words."""
        return self.claimed.expected


def decided(holds: bool, claimed: Claimed, actual: str, measured: Facts, *evidence: str) -> Finding:
    """A finding that is a pass or a fail."""
    return Finding("pass" if holds else "fail", claimed, actual, evidence, measured)
