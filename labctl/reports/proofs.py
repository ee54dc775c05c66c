"""Which rows of a ladder prove a cause: those of its host and its connection at its moment, and
those that its evidence quotes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from labctl.judge.causes.cause import Cause
from labctl.probes.observations import MARKS
from labctl.reports.rows import Arrow, Bar, Call, Ladder, Life, Look, Note, Return, Row, Step


def marks(causes: Sequence[Cause], ladder: Ladder) -> Mapping[int, tuple[int, ...]]:
    """The causes that each row proves, as numbers from 1 on, by the number of the row."""
    at: dict[int, list[int]] = defaultdict(list)
    quoted: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(ladder.rows):
        if (moment := _moment(row)) is not None:
            at[_micro(moment)].append(number)
        for text in _texts(row):
            quoted[text].append(number)
    found: dict[int, list[int]] = defaultdict(list)
    for number, cause in enumerate(causes, 1):
        for place in sorted({*_beside(cause, ladder, at), *_quoted(cause, ladder, quoted)}):
            found[place].append(number)
    return {row: tuple(numbers) for row, numbers in found.items()}


def _micro(t: float) -> int:
    return round(t * 1e6)


def _moment(row: Row) -> float | None:
    """When what a cause may be about happened: of a call, its end."""
    match row:
        case Call():
            return None if row.waits else row.until
        case Arrow() | Bar() | Return() | Life() | Note():
            return row.t
    return None


def _texts(row: Row) -> tuple[str, ...]:
    """What evidence may quote of a row."""
    match row:
        case Arrow():
            marks = "".join(f" [{mark}]" for mark in MARKS if mark in row.marks)
            return (f"{row.t:.6f} {row.sender or '?'}: {row.label}{marks}",)
        case Look():
            return row.lines
        case Step():
            return (row.text,)
    return ()


def _beside(cause: Cause, ladder: Ladder, at: Mapping[int, list[int]]) -> list[int]:
    """The rows at its moment that are about it."""
    found = []
    for number in at.get(_micro(cause.at), ()):
        row = ladder.rows[number]
        if isinstance(row, Arrow | Bar):
            ends = ladder.connections[row.connection - 1] if row.connection else ("", "")
            about = cause.connection in (" -> ".join(ends), " -> ".join(ends[::-1]))
        else:
            about = True
        if about and (isinstance(row, Arrow) or getattr(row, "host", None) == cause.host):
            found.append(number)
    return found


def _quoted(cause: Cause, ladder: Ladder, quoted: Mapping[str, list[int]]) -> list[int]:
    """The rows that its evidence quotes. The same socket may stand in many looks: the nearest
    counts."""
    found, looks = [], []
    for line in cause.evidence:
        for number in quoted.get(line, ()):
            row = ladder.rows[number]
            if not isinstance(row, Look):
                found.append(number)
            elif row.host == cause.host:
                looks.append((abs(row.t - cause.at), number))
    return [*found, *([min(looks)[1]] if looks else [])]
