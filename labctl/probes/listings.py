"""The output of `ss` as a difference to what it was before.

A busy host has thousands of sockets in TIME-WAIT, which differ from one look to the next only in
how much of their minute is left. So a difference has the sockets that came or changed, as `ss`
wrote them, and the numbers of those that went or changed. An entry of which only that time went by
counts as the same. The entries of a whole output have numbers from 0 on, and later ones the next.
"""

from __future__ import annotations

import re

from labctl.probes.sockets import RESOLVER, seconds_left

BLANKS = re.compile(" {2,}")
ENTRY = re.compile(r"\n+(?=\S)")
LEFT = re.compile(r"timer:\(timewait,([^,]*),")
ENGINE = re.compile(rf"[ :]{re.escape(RESOLVER)}\]?(?:%\S+)?:")
"""The engine's own sockets have no numbers: nobody is shown them."""
SPREAD = 1.5
"""Seconds by which the time that is left may seem to jump: `ss` shows whole ones, and runs a
while."""
LONG = 20_000
"""From how many characters on a difference is recorded."""
PAY = 4
"""How many times as long as a whole output its differences are, all together, until there is a
whole one again."""


class Listing:
    """A host's looks, one after the other."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, float]] = {}  # the number, and when its time is over
        self._following = 0
        self._room = 0

    def difference(self, t: float, text: str) -> tuple[str, list[int]] | None:
        """What is new at `t`, and the numbers of what is gone; None if the output is to be recorded
        whole."""
        if len(text) < LONG:
            self._room = 0
            return None
        header, *entries = ENTRY.split(BLANKS.sub(" ", text.rstrip()))
        entries = [entry for entry in entries if not ENGINE.search(entry)]
        now = {key: (entry, over) for entry in entries for key, over in [_parted(entry, t)]}
        new = [key for key, (_, over) in now.items() if not self._has(key, over, t)]
        gone = [n for key, (n, over) in self._known.items() if key not in now]
        gone += [self._known[key][0] for key in new if key in self._known]
        came = "\n".join(now[key][0] for key in new)
        self._room -= len(came) + len(gone)
        odd = len(now) < len(entries) or not header.startswith("State ")
        whole = odd or self._room <= 0
        if whole:
            self._known, self._following, new = {}, 0, [*now]
            self._room = 0 if odd else PAY * len(text)
        for key in self._known.keys() - now.keys():
            del self._known[key]
        for key in new:
            self._known[key] = self._following, now[key][1]
            self._following += 1
        return None if whole else (came, gone)

    def _has(self, key: str, over: float, t: float) -> bool:
        """Whether it was there, and only time has gone by until `t`: one whose time is over may
        stay a moment longer, with nothing left."""
        return key in self._known and abs(max(t, self._known[key][1]) - over) < SPREAD


def _parted(entry: str, t: float) -> tuple[str, float]:
    """An entry without what is left of its time in TIME-WAIT, and when that is over: now, if none
    is."""
    found = LEFT.search(entry)
    left = seconds_left(found[1]) if found else None
    if found is None or left is None:
        return entry, t
    return entry[: found.start(1)] + entry[found.end(1) :], t + left
