"""Writing out what a command has to say. What came of it stands, whatever becomes of its reports:
what can't be written is told on stderr, in a line, and everything else goes on."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from labctl.ground.crash import sentence
from labctl.ground.errors import LabctlError
from labctl.ground.plain import plain_lines

ASCII = dict(zip("│─┈▶◀▸✗✓⋮…·×≥≤→↩↪", "|-.><>x+:~.x><><>", strict=True))
"""What stands for a sign where the encoding has none; each is as wide."""


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""How writing to a file fails that is open."""


def prepare() -> None:
    """Readies stdout and stderr. An encoding that lacks a sign, such as ASCII, gets another for it;
    and no file that is opened later becomes one of the standard ones where these are closed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    codecs.register_error("labctl", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="labctl")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    words = (ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in wrong)
    return "".join(words), error.end


def tell(line: str) -> None:
    """A line for people, on stderr. Where that takes nothing, it is lost, and nothing else."""
    try:
        print(plain_lines(line), file=sys.stderr, flush=True)
    except (OSError, ValueError):  # ValueError: it is closed
        silence(sys.stderr)


def show(what: str, write: Callable[[], object]) -> None:
    """Has something written to stdout, all of it. What goes wrong is told, in a line."""

    def whole() -> None:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "stdout is closed")
        write()
        flush()

    if not keep(what, whole):
        silence(sys.stdout)


def keep(what: str, write: Callable[[], object]) -> bool:
    """Has something written. What goes wrong is told, in a line, whatever it is: a mistake in a
    report is no result of a run. Returns whether all went well."""
    try:
        write()
    except Exception as exc:
        tell(f"labctl: {what} can't be written: {reason(exc)}")
        return False
    return True


def reason(exc: Exception) -> str:
    """Why something went wrong, in a line."""
    if isinstance(exc, OSError):
        return exc.strerror or str(exc)
    if isinstance(exc, LabctlError):
        return str(exc)
    return sentence(exc)


def flush() -> None:
    """Writes what waits to be written to stdout. Raises OSError."""
    if sys.stdout is not None:
        sys.stdout.flush()


def silence(stream: TextIO | None) -> None:
    """What is left to write goes nowhere: Python would try again as it ends, and end with 120."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)
