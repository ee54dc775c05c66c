"""Limits that a run comes up against: which one, and how to raise it."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

FEWER = "raise it, or run fewer cases at once (-j)"
MEMORY = (
    "no more memory can be had: the limit is ulimit -v, memory.max of a cgroup, or what this "
    "machine has",
    FEWER,
)
ROOM = ("No space left on device", "make room, or use --out DIR")
SENTENCES = {
    errno.ENFILE: ("no more files can be opened on this machine: the limit is fs.file-max", FEWER),
    errno.ENOMEM: MEMORY,
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ("a file grew too large", "raise the limit (ulimit -f)"),
}
"""What to say of an error, and the hint."""
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
OF_OTHERS = {
    errno.EMFILE: "a limit of open files (ulimit -n)",
    errno.ENFILE: "this machine's limit of open files (fs.file-max)",
    errno.EAGAIN: "a limit of processes (ulimit -u, or pids.max of a cgroup)",
    errno.ENOMEM: "a limit of memory (ulimit -v, or memory.max of a cgroup)",
}
NUMBER = re.compile(r"\[Errno (\d+)\] ?")


def limit_of(exc: BaseException) -> tuple[str, str] | None:
    """The limit of the system behind an exception, and a hint; None for other exceptions."""
    match exc:
        case MemoryError():
            return MEMORY
        case RuntimeError() if "new thread" in str(exc):
            bounded = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
            return MEMORY if bounded else _sentence(errno.EAGAIN)
        case Exception():
            cause = origin(exc)
            return _sentence(cause.errno) if cause else None
    return None


def explained(text: str) -> str:
    """What a program of the lab said; and which of its limits it has reached, if so."""
    number = NUMBER.search(text)
    if not number or not (limit := OF_OTHERS.get(int(number[1]))):
        return text
    said = text.replace(number[0], "")
    return f"{said}; raise it" if limit in said else f"{said}: {limit} refuses it; raise it"


def origin(exc: BaseException) -> OSError | None:
    """The system's error behind an exception, which may be wrapped several times."""
    seen: list[BaseException] = []
    waiting: list[object] = [exc]
    while waiting:
        found = waiting.pop(0)
        if isinstance(found, BaseException) and found not in seen:
            if isinstance(found, OSError) and found.errno and found.strerror:
                return found
            seen.append(found)
            waiting += [*found.args, getattr(found, "reason", None), found.__cause__]
    return None


def _sentence(number: int | None) -> tuple[str, str] | None:
    if number == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"no more files can be opened: ulimit -n is {most}", FEWER
    if number == errno.EAGAIN:
        known = ", ".join(of_processes()) or "ulimit -u, or pids.max of a cgroup"
        return f"no more processes or threads can be started: the limit is {known}", FEWER
    return SENTENCES.get(number or 0)


def of_processes(own: Path = OWN_CGROUPS, cgroups: Path = CGROUPS) -> Iterator[str]:
    """This program's limits for the number of processes: its user's, and those of its cgroups. The
    kernel's file `own` names them, and they are folders of `cgroups`."""
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if most != resource.RLIM_INFINITY and os.geteuid() != 0:
        yield f"ulimit -u {most}"
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "pids"):
                folder = cgroups / kinds / path.lstrip("/")
                for level in (folder, *folder.parents):
                    with suppress(OSError):
                        if (text := (level / "pids.max").read_text().strip()) != "max":
                            yield f"pids.max {text} of {level}"
