"""Writing a command's output. Its result stands, whatever happens to its reports: if one can't be
written, a line on stderr says so, and everything else goes on."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, TextIO, cast

from labctl.ground.crash import sentence
from labctl.ground.errors import LabctlError
from labctl.ground.plain import plain_lines

ASCII = dict(zip("│─┈▶◀▸✗✓⋮…·×≥≤→↩↪", "|-.><>x+:~.x><><>", strict=True))
"""What replaces a sign that the encoding lacks; each is as wide."""


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""How writing fails: to an open file, and to a closed stdout."""


class Closed(io.TextIOBase):
    """A closed stdout: to Python it is None, which `print` and click silently accept."""

    def write(self, text: str) -> int:
        """Fails, as it would in any other language."""
        raise OSError(errno.EBADF, "stdout is closed")


def prepare() -> None:
    """Prepares stdout and stderr. If the encoding lacks a sign, as ASCII does, another one replaces
    it. If they are closed, no file that is opened later becomes one of them; output for stdout is
    reported as lost, and output for stderr does not go to stdout, where `print` would write it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or Closed()
    sys.stderr = sys.stderr or io.StringIO()
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
    """Writes a line for people to stderr. If that fails, the line is lost, and nothing else."""
    try:
        print(plain_lines(line), file=sys.stderr, flush=True)
    except (OSError, ValueError):  # ValueError: it is closed
        silence(sys.stderr)


def show(what: str, write: Callable[[], object]) -> None:
    """Lets `write` write to stdout, completely. Reports an error in a line."""

    def whole() -> None:
        write()
        flush()

    if not keep(what, whole):
        silence(sys.stdout)


def keep(what: str, write: Callable[[], object]) -> bool:
    """Lets `write` write something. Reports any error in a line: a mistake in a report is no result
    of a run. Returns whether all went well."""
    try:
        write()
    except Exception as exc:
        tell(f"labctl: {what} can't be written: {reason(exc)}")
        return False
    return True


def open_file(path: Path, mode: str) -> IO[bytes]:
    """A file to write a report to, or to append one. It waits for nobody: if it is a pipe, somebody
    must already read it. Raises OSError."""

    def opener(name: str, flags: int) -> int:
        try:
            number = os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                raise OSError(exc.errno, "nobody reads from it", name) from exc
            raise
        os.set_blocking(number, True)
        return number

    return cast("IO[bytes]", open(path, f"{mode}b", opener=opener))


def write_file(path: Path, content: str | Iterable[bytes]) -> None:
    """Writes a report, or its parts. Raises OSError."""
    with open_file(path, "w") as file:
        file.writelines([content.encode()] if isinstance(content, str) else content)


def reason(exc: Exception) -> str:
    """Why something went wrong, in a line."""
    if isinstance(exc, OSError):
        return exc.strerror or str(exc)
    if isinstance(exc, LabctlError):
        return str(exc)
    return sentence(exc)


def flush() -> None:
    """Writes what stdout still holds back. Raises OSError."""
    sys.stdout.flush()


def silence(stream: TextIO) -> None:
    """Discards what is left to write: Python would try again as it ends, and end with 120."""
    if isinstance(stream, Closed):
        sys.stdout = io.StringIO()
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
