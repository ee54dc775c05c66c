"""Timelines in few bytes: a busy lab has tens of thousands of connections, and nobody looks at more
than some at a time."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise

from labctl.probes.packed import Made, Places, by_place
from labctl.probes.sockets import Ends
from labctl.record.moments import Moment
from labctl.record.timelines import Span, Timeline, beginning

NONE, SAME, EXACT, ANY = range(4)
"""How a moment is kept: there is none, it is the one before, or so by one number or by four."""


class Timelines(Made[Timeline]):
    """The timelines of a host, in order."""

    def __init__(self, found: Iterable[Timeline]) -> None:
        begins = array("d")
        self._ends, self._kinds = Places(), Places()
        self._of, self._kind, self._begins = array("I"), array("I"), array("I")
        self._numbers = array("d")  # of all moments
        for each in found:
            self._of.append(self._ends[each.ends])
            self._begins.append(len(self._numbers))
            shapes = tuple(self._keep(_moments(each.spans)))
            marks = each.incarnation, each.traced, each.gap, each.inferred
            self._kind.append(self._kinds[marks, each.states, shapes])
            begins.append(beginning(each))
        order = sorted(range(len(begins)), key=begins.__getitem__)
        self._of, self._kind, self._begins = (
            array("I", map(column.__getitem__, order))
            for column in (self._of, self._kind, self._begins)
        )

    def _keep(self, moments: Sequence[Moment | None]) -> Iterator[int]:
        for before, moment in pairwise((None, *moments)):
            if moment is None or moment is before:
                yield NONE if moment is None else SAME
            elif moment.exact and moment.guess is moment.seen is None:
                self._numbers.append(moment.latest)
                yield EXACT
            else:
                known = moment.earliest, moment.latest, moment.guess, moment.seen
                self._numbers.extend(math.nan if number is None else number for number in known)
                yield ANY

    def of(self, ends: Ends) -> Sequence[int]:
        """The numbers of those between these ends, in order."""
        place = self._ends.get(ends)
        numbers, begins = self._by_ends
        return () if place is None else numbers[begins[place] : begins[place + 1]]

    @cached_property
    def _by_ends(self) -> tuple[Sequence[int], Sequence[int]]:
        return by_place(self._of, len(self._ends))

    def _at(self, number: int) -> Timeline:
        (incarnation, traced, gap, inferred), states, shapes = self._kinds.things[
            self._kind[number]
        ]
        moments: list[Moment | None] = []
        place = self._begins[number]
        for shape in shapes:
            if shape == EXACT:
                moments.append(Moment(self._numbers[place], self._numbers[place]))
                place += 1
            elif shape == ANY:
                earliest, latest, guess, seen = self._numbers[place : place + 4]
                moments.append(Moment(earliest, latest, _known(guess), _known(seen)))
                place += 4
            else:
                moments.append(moments[-1] if shape == SAME else None)
        spans = tuple(map(Span, states, moments[::2], moments[1::2]))  # type: ignore[arg-type]
        local, remote = self._ends.things[self._of[number]]
        return Timeline(local, remote, incarnation, spans, traced, gap, inferred)

    def __len__(self) -> int:
        return len(self._of)


def _moments(spans: Iterable[Span]) -> list[Moment | None]:
    return [moment for span in spans for moment in (span.begin, span.end)]


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number
