"""What to record of a program's output: all of it, until that is too much, and from then on the end
of what comes in each moment.

So a program may write without end and never has to wait: whoever reads it keeps up. Standard
library only, Python 3.6 or later. The controller imports this module too.
"""

import codecs

IN_FULL = 4 << 20
"""How many bytes to record in full. Each piece counts for PIECE more: an event has its cost."""
PIECE = 1 << 10
SOON = 0.001
"""Seconds after what was recorded last in which a little more of it waits for what else comes."""
MOMENT = 0.05
TAIL = 4096
"""After that: at most so many bytes of each moment, which lasts so many seconds."""


class Written:
    """Takes in bytes (`add`) and returns what to record of them (`take`) when that is `due`. A
    character whose bytes come in two pieces is one character."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._room = IN_FULL
        self._kept, self._left_out = b"", 0
        self._began = self._latest = self._rests = 0.0

    @property
    def in_full(self):
        """Whether to record everything as it comes."""
        return self._room > 0

    @property
    def due(self):
        """When to take what is there; None if nothing is there."""
        if not self._kept:
            return None
        if not self.in_full:
            return self._began + MOMENT
        return max(self._began, self._rests) if len(self._kept) < TAIL else self._began

    def add(self, data, t):
        """Takes in the bytes that came at `t`."""
        if not self._kept:
            self._began = t
        self._latest = t
        self._kept += data
        if not self.in_full and len(self._kept) > TAIL:
            self._cut(len(self._kept) - TAIL)

    def _cut(self, count):
        while count < len(self._kept) and self._kept[count] & 0xC0 == 0x80:
            count += 1  # the rest of a character whose beginning is cut off
        self._left_out += count + len(self._decoder.getstate()[0])
        self._decoder.reset()
        self._kept = self._kept[count:]

    def take(self, final=False):
        """An event's `text`, its time `t`, and how many bytes before it were left out, if any; None
        if there is nothing to report. `final`: nothing more comes."""
        text = self._decoder.decode(self._kept, final)
        found = {"text": text, "t": self._latest}
        if self._left_out:
            found["left_out"] = self._left_out
        if self.in_full:
            self._room -= len(self._kept) + PIECE
        self._kept, self._left_out = b"", 0
        self._rests = self._latest + SOON
        return found if text or "left_out" in found else None
