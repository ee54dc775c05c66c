"""A run's ladder with gaps, for a class: states and segments' flags are left out, and marked later.

The gaps are numbered from the run alone, so whoever has the run can mark a sheet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from labctl.ground.data import dataclass
from labctl.judge.result import RunResult
from labctl.probes.sockets import State
from labctl.reports.ladder import ladder_of
from labctl.reports.ladder_text import text
from labctl.reports.rows import Judged, Look

WIDTH = 100
FLAG = "(?:SYN|FIN|RST|PSH|ACK|URG)"
GAP = re.compile(rf"(?<=\[)~?(?:{'|'.join(State)})(?=[ \]])|(?<=─ ){FLAG}(?: {FLAG})*(?= )")
ANSWER = re.compile(r"^[ \t]*(\d+)[ \t]*:[ \t]*(.*?)[ \t]*$", re.MULTILINE)
HEAD = """\
Each number is a gap: in brackets a state of that host's side of the connection, in an arrow the
flags of a segment. Write each answer behind its number below.
"""


@dataclass(frozen=True)
class Mark:
    """A gap: what was to be written there, and what was."""

    number: int
    wanted: str
    given: str

    @property
    def right(self) -> bool:
        """Whether both mean the same state, or the same flags."""
        try:
            return State.parse(self.given) == State.parse(self.wanted)
        except ValueError:
            return set(re.findall(r"\w+", self.given.upper())) == set(self.wanted.split())


def blank(run: RunResult) -> str:
    """The sheet."""
    sheet, wanted = _gaps(run)
    answers = "\n".join(f"{number}:" for number in range(1, len(wanted) + 1))
    return f"{HEAD}\n{sheet}\n{answers}\n"


def sheets(runs: Sequence[RunResult]) -> str:
    """A sheet of each run."""
    return "\n".join(map(blank, runs))


def marks(run: RunResult, filled: str) -> list[Mark]:
    """A mark for each gap; of several answers to one the last counts."""
    given = {int(number): answer for number, answer in ANSWER.findall(filled)}
    return [
        Mark(number, wanted, given.get(number, ""))
        for number, wanted in enumerate(_gaps(run)[1], 1)
    ]


def _gaps(run: RunResult) -> tuple[str, list[str]]:
    """The ladder with gaps, and what stood there. Without claims, looks and causes, which say it
    too."""
    ladder = ladder_of(run)
    told = tuple(row for row in ladder.rows if not isinstance(row, Judged | Look))
    wanted: list[str] = []

    def gap(found: re.Match[str]) -> str:
        wanted.append(found[0].lstrip("~"))
        return str(len(wanted)).ljust(len(found[0]), "_")

    return GAP.sub(gap, text(replace(ladder, rows=told, marks={}), WIDTH)), wanted
