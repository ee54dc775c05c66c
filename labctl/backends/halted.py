"""Programs that somebody has stopped (SIGSTOP, a debugger), so that a lab does not answer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
STOPPED = ("T", "t")
"""The states of such a process (proc(5), stat)."""


def halted(parts: Mapping[int, str]) -> str | None:
    """The first of some processes, by number and name, that is stopped, and how to undo that."""
    for pid, name in parts.items():
        if next(iter(_stat(pid)), "") in STOPPED:
            return f"{name} is stopped (process {pid}); kill -CONT lets it go on; run it again"
    return None


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    pids = [int(path.name) for path in PROC.iterdir() if path.name.isdigit()]
    return [pid for pid in pids if _stat(pid)[1:2] == [str(parent)]]


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on; nothing if there is no such process."""
    with suppress(OSError):
        return (PROC / f"{pid}" / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return []
