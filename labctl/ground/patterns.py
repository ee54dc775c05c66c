"""The regular expressions of scenarios: Python's, and bounded, so that none takes for ever.

`regex` does the matching: it takes the patterns of `re`, and can give up after some time. It is
slow to import, and imported when used.
"""

from __future__ import annotations

import re
import time
import warnings
from functools import lru_cache
from typing import Any

PATIENCE = 2.0
"""Seconds of work on one text, after which the result is unknown."""
LONGEST = 10_000
"""How many characters a pattern may have."""
MOST_REPEATS = 100_000
"""`regex` keeps as many copies of a part as it must repeat at least."""
COUNTED = re.compile(r"\{(\d*),?(\d*)\}")
HARMLESS = re.compile(r"\\(?:[^A-Za-z0-9\s]|[bBdwSAZ])")
DOTALL = re.compile(r"\(\?[A-Za-z]*s")


class TooSlow(Exception):
    """A pattern that has not decided a text in PATIENCE seconds."""

    def __init__(self) -> None:
        super().__init__(
            f"the pattern does not decide in {PATIENCE:g} s what is written here; write it without "
            "repeats of repeats, such as (a+)+"
        )


def check(pattern: str) -> None:
    """Raises ValueError for a text that is no pattern, or a pattern without bounds."""
    if len(pattern) > LONGEST:
        raise ValueError(f"it has {len(pattern)} characters; {LONGEST} are the most")
    repeats = 1
    for low, high in COUNTED.findall(pattern):
        repeats *= (
            max(int(low or 1), int(high or 1), 1) if len(low + high) < 20 else MOST_REPEATS + 1
        )
    if repeats > MOST_REPEATS:
        raise ValueError(f"its counts, multiplied, are beyond {MOST_REPEATS}; use * or +")
    try:
        with warnings.catch_warnings(action="ignore"):
            re.compile(pattern, re.MULTILINE)
            _compiled(pattern)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except Exception as exc:  # re.error, regex.error, OverflowError
        raise ValueError(str(exc)) from exc


def in_a_line(pattern: str) -> bool:
    """Whether every match of a pattern is surely within one line."""
    rest = HARMLESS.sub(".", pattern)
    free = any(char == "\\" or char < " " for char in rest) or "[^" in rest
    return not free and not DOTALL.search(rest)


def search(
    pattern: str, text: str, start: int = 0, patience: float | None = None
) -> re.Match[str] | None:
    """The first match from `start` on, of a pattern whose `^` and `$` are those of lines. Raises
    TooSlow."""
    try:
        found: re.Match[str] | None = _compiled(pattern).search(
            text, start, timeout=PATIENCE if patience is None else patience
        )
    except (TimeoutError, RecursionError, MemoryError):
        raise TooSlow from None
    return found


class Patience:
    """What is left of PATIENCE."""

    def __init__(self) -> None:
        self._until = time.monotonic() + PATIENCE

    @property
    def left(self) -> float:
        """In seconds. Raises TooSlow if nothing is left."""
        if (left := self._until - time.monotonic()) <= 0:
            raise TooSlow
        return left


@lru_cache(256)
def _compiled(pattern: str) -> Any:
    import regex

    with warnings.catch_warnings(action="ignore"):
        return regex.compile(pattern, regex.MULTILINE)
