"""The last net: an error that nobody foresaw ends in one sentence, and never in a traceback."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from labctl.ground.errors import LabctlError, LabError
from labctl.ground.limits import limit_of


def prepare(tell: Callable[[str], object]) -> None:
    """For a command: a thread that fails says so in a sentence, too."""

    def ended(how: threading.ExceptHookArgs) -> None:
        if how.exc_value is not None:
            tell(f"labctl: {sentence(how.exc_value)}")

    threading.excepthook = ended


def sentence(exc: BaseException) -> str:
    """The sentence for a user; see `unforeseen`."""
    return str(unforeseen(exc))


def unforeseen(exc: BaseException) -> LabError:
    """Says which limit of the system it was; else that it is labctl's own fault, and where the
    traceback is."""
    if limit := limit_of(exc):
        return LabError(*limit)
    return LabError(f"a fault of labctl itself: {_said(exc)}", f"please report it{_kept(exc)}")


@contextmanager
def netted() -> Iterator[None]:
    """Turns unforeseen errors into a LabError. It is a decorator, too."""
    try:
        yield
    except LabctlError:
        raise
    except Exception as exc:
        raise unforeseen(exc) from exc


def _said(exc: BaseException) -> str:
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:300].rstrip(": ")


def _kept(exc: BaseException) -> str:
    import traceback

    from labctl.ground.installed import version
    from labctl.ground.resources import default_folder

    try:
        folder = default_folder().parent / "crashes"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.txt"
        about = f"labctl {version()}, Python {sys.version}, {' '.join(os.uname())}\n"
        trace = "".join(traceback.format_exception(exc))
        path.write_text(f"{about}{sys.argv}\n{trace}", encoding="utf-8", errors="replace")
    except Exception as again:
        return f" (its traceback can't be kept: {_said(again)})"
    return f", with {path}"
