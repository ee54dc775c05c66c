"""GitHub's summary of a step: Markdown in a file that takes 1 MiB for everything in the step.

What does not fit is left out, the least important first, and the end says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from labctl.ground.data import dataclass
from labctl.ground.output import keep, open_file

VARIABLE = "GITHUB_STEP_SUMMARY"
LIMIT = 1 << 20
"""Bytes a step; GitHub shows nothing of a step that wrote more ("Step isolation and limits" in its
reference of workflow commands)."""
NOTE = 4096
"""Bytes to reserve for saying what was left out."""


@dataclass(frozen=True)
class Part:
    """A piece of a summary. `versions` go from the briefest to the whole, each with a rank: low
    ranks get their room first."""

    versions: Sequence[tuple[int, str]]

    @property
    def whole(self) -> str:
        """All of it."""
        return self.versions[-1][1]


def wanted() -> Path | None:
    """The file for the summary, if this is a step of a workflow."""
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None


def add(make: Callable[[int], str]) -> None:
    """Appends to the summary, if there is one, what `make` makes for so many bytes. Reports
    errors."""

    path = wanted()
    if path is None:
        return

    def write() -> None:
        with open_file(path, "a") as file:
            file.write(make(max(0, LIMIT - file.tell())).encode(errors="replace"))

    keep(f"{VARIABLE} {path}", write)


def fitted(parts: Sequence[Part], room: int, note: Callable[[Sequence[int]], str]) -> str:
    """The parts, with a line break between them, as far as there is room. If they do not all fit,
    then also what `note` says of those that are not whole, by number."""
    text = "\n".join(part.whole for part in parts)
    if _size(text) <= room:
        return text
    chosen: dict[int, str] = {}
    left = room - NOTE
    moves = [(r, n, t) for n, part in enumerate(parts) for r, t in part.versions]
    for _, number, text in sorted(moves, key=lambda move: move[:2]):
        more = _size(text) + 1 - (_size(chosen[number]) + 1 if number in chosen else 0)
        if more <= left:
            chosen[number], left = text, left - more
    cut = [n for n, part in enumerate(parts) if chosen.get(n) != part.whole]
    text = "\n".join([*(chosen[n] for n in sorted(chosen)), note(cut)])
    if _size(text) > room:
        raise OSError(f"the step has said so much that there is no room left in {LIMIT >> 20} MiB")
    return text


def artifacts() -> str:
    """A link to the artifacts of the workflow's run; empty outside of workflows."""
    server, repository, run = (
        os.environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID")
    )
    if not (server and repository and run):
        return ""
    return f"[the artifacts of its run]({server}/{repository}/actions/runs/{run}#artifacts)"


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))
