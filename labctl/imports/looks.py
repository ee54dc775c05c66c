"""Looks by `ss` that somebody saved: text with a line before each look that says when it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from labctl.ground.data import dataclass
from labctl.ground.errors import UsageError
from labctl.ground.plain import shown
from labctl.ground.reading import MAX_RESULT, read_file
from labctl.probes.sockets import SsParseError, parse_ss

EPOCH = re.compile(r"#?\s*(\d{9,10}(?:\.\d{1,9})?)(?:\s.*)?", re.ASCII)
"""As `date +%s.%N` writes it."""
DATE = "%a %b %d %H:%M:%S %Z %Y"
"""As `date` does, in the C locale and in UTC."""
HEADER = ("State ", "Netid ")
USERS = re.compile(r" +users:\(\(.*?\)\)(?=\s|$)")
"""The processes of a socket (ss(8), --processes)."""
WHEN = "write a line before each look that says when, as `date +%s.%N` does"


@dataclass(frozen=True)
class Saved:
    """A look: when it was, in seconds since 1970, and what `ss` printed."""

    at: float
    text: str


def read_looks(path: Path, within: tuple[float, float]) -> list[Saved]:
    """The looks in a file, in order of time. A single one may be without a time: then that of the
    file counts, if it is `within` what the capture shows. Raises UsageError, with the line."""
    try:
        text = read_file(path, MAX_RESULT).decode("utf-8", "replace")
    except OSError as exc:
        raise UsageError(f"{path}: can't be read: {exc.strerror}") from exc
    found = []
    for line, at, look in _looks(text):
        if at is None:
            at = path.stat().st_mtime
            if not within[0] <= at <= within[1]:
                raise UsageError(f"{path}:{line}: nothing says when this look was", WHEN)
        try:
            parse_ss(look)
        except SsParseError as exc:
            place = f"{path}:{line + exc.line - 1}"
            raise UsageError(f"{place}: no line of `ss -tan`: {shown(exc.text)}") from exc
        found.append(Saved(at, look))
    if not found:
        raise UsageError(f"{path}: it has no look of `ss`")
    return sorted(found, key=lambda saved: saved.at)


def _looks(text: str) -> Iterator[tuple[int, float | None, str]]:
    """Each look with the number of its first line, and its time, if it says one."""
    at: float | None = None
    begun, lines = 1, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        when = _time(line)
        if when is None and not line.startswith(HEADER):
            lines.append(USERS.sub("", line))
            continue
        if lines and any(map(str.strip, lines)):
            yield begun, at, "\n".join(lines) + "\n"
            at = None
        begun, lines = (number, [line]) if when is None else (number + 1, [])
        at = at if when is None else when
    if any(map(str.strip, lines)):
        yield begun, at, "\n".join(lines) + "\n"


def _time(line: str) -> float | None:
    """The time that a line says, if it does nothing else."""
    if found := EPOCH.fullmatch(line.strip()):
        return float(found[1])
    words = line.strip().lstrip("# ")
    for read in (datetime.fromisoformat, lambda text: datetime.strptime(text, DATE)):
        try:
            when = read(words)
        except ValueError:
            continue
        return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
    return None
