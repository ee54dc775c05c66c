"""The recorded output of a process, and what a pattern matches in it.

It keeps what it found, so that it searches each piece once. A match within a line may have any
length; a match over several lines has REACH characters at most.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import field

from labctl.ground import patterns
from labctl.ground.data import dataclass
from labctl.ground.patterns import Patience, TooSlow

REACH = 1 << 18
SHOWN = 1 << 14
"""How many of its last characters to look at for its last lines."""
WHATEVER = ("\n", "a", "\0")
"""What may follow a text before a gap: an end of the line, a word, and neither."""


@dataclass
class _Run:
    """Text without a gap: pieces, and where each begins. `cut`: there is a gap before it."""

    cut: bool
    pieces: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    length: int = 0

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.starts.append(self.length)
        self.length += len(text)

    def since(self, start: int) -> str:
        """The text from there on."""
        if start >= self.length:
            return ""
        first = bisect_right(self.starts, start) - 1
        return "".join(self.pieces[first:])[start - self.starts[first] :]


@dataclass
class _Search:
    """How far the search for a pattern has come: up to where in which run, and where the incomplete
    line begins."""

    run: int = 0
    upto: int = 0
    line: int = 0
    found: str | None = None
    too_slow: bool = False


class Output:
    """Grows by `add`."""

    def __init__(self) -> None:
        self.left_out = 0
        self._runs: list[_Run] = []
        self._searches: dict[str, _Search] = {}

    def add(self, text: str, left_out: int | None = None) -> None:
        """Takes in the next output, after `left_out` bytes that are not recorded."""
        self.left_out += left_out or 0
        if left_out or not self._runs:
            self._runs.append(_Run(cut=bool(left_out)))
        self._runs[-1].add(text)

    @property
    def text(self) -> str:
        """All recorded output."""
        return "".join(piece for run in self._runs for piece in run.pieces)

    def last_lines(self, count: int) -> list[str]:
        """Its last lines, each cut to SHOWN characters."""
        if not self._runs:
            return []
        run = self._runs[-1]
        return run.since(max(0, run.length - SHOWN)).rstrip().splitlines()[-count:]

    def search(self, pattern: str) -> str | None:
        """The first match of a pattern. Raises TooSlow, and then every time."""
        state = self._searches.setdefault(pattern, _Search())
        if state.found is not None:
            return state.found
        if state.too_slow:
            raise TooSlow
        try:
            return self._search(pattern, state)
        except TooSlow:
            state.too_slow = True
            raise

    def _search(self, pattern: str, state: _Search) -> str | None:
        patience = Patience()
        runs = self._runs or [_Run(cut=False)]
        while True:
            run, last = runs[state.run], state.run + 1 >= len(runs)
            start = state.line if patterns.in_a_line(pattern) else max(0, state.upto - REACH)
            # A character before it, so that ^ knows whether a line begins here.
            before = run.since(start - 1) if start else ("\0" if run.cut else "") + run.since(0)
            skip = 1 if start or run.cut else 0
            match = patterns.search(pattern, before, skip, patience.left)
            if match:
                inside = match.end() < len(before)
                if inside or (not last and _sure(pattern, before, skip, patience)):
                    state.found = match[0]
                if last or state.found is not None:
                    return match[0]
            newline = before.rfind("\n", skip)
            if newline >= 0:
                state.line = start + newline + 1 - skip
            state.upto = run.length
            if last:
                return None
            state.run, state.upto, state.line = state.run + 1, 0, 0


def _sure(pattern: str, text: str, skip: int, patience: Patience) -> bool:
    """Whether a pattern matches, whatever follows the text."""
    found = (patterns.search(pattern, text + after, skip, patience.left) for after in WHATEVER)
    return all(match and match.start() < len(text) for match in found)
