"""The segments of each connection of a run, put together when somebody looks at them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import overload

from labctl.probes.observations import Segment, begins, is_another
from labctl.probes.packed import Segments
from labctl.probes.sockets import Ends


class Conversations(Sequence[list[Segment]]):
    """The segments of each connection, in both directions, in order of their beginnings: a SYN with
    a number of its own begins another one between the same ends."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._numbers, self._begins = array("I"), array("I", [0])
        self._of: dict[Ends, range] = {}
        for ends in segments.ends:
            if ends[::-1] in self._of:
                continue
            before = len(self._begins) - 1
            for numbers in _parted(segments, segments.numbers(ends, ends[::-1])):
                self._numbers.extend(numbers)
                self._begins.append(len(self._numbers))
            self._of[ends] = range(before, len(self._begins) - 1)
        places = range(len(self._begins) - 1)
        self._order: Sequence[int] = array("I", sorted(places, key=self._first))

    def between(self, ends: Ends) -> Iterator[list[Segment]]:
        """Those between two ends, the latest first."""
        places = self._of.get(ends) or self._of.get(ends[::-1]) or ()
        return map(self._at, reversed(places))

    @cached_property
    def asked(self) -> dict[str, Conversations]:
        """Those that somebody asked for, by where."""
        found: dict[str, array[int]] = {}
        for place in self._order:
            first = self._segments[self._first(place)]
            if begins(first):
                found.setdefault(first.target, array("I")).append(place)
        return {target: self._only(places) for target, places in found.items()}

    def _only(self, places: Sequence[int]) -> Conversations:
        """Those in these places."""
        found = Conversations(Segments())
        found._segments, found._numbers, found._begins = self._segments, self._numbers, self._begins
        found._order = places
        return found

    def _first(self, place: int) -> int:
        return self._numbers[self._begins[place]]

    def _at(self, place: int) -> list[Segment]:
        numbers = self._numbers[self._begins[place] : self._begins[place + 1]]
        return [self._segments[number] for number in numbers]

    @overload
    def __getitem__(self, index: int) -> list[Segment]: ...
    @overload
    def __getitem__(self, index: slice) -> Conversations: ...
    def __getitem__(self, index: int | slice) -> list[Segment] | Conversations:
        if isinstance(index, slice):
            return self._only(self._order[index])
        return self._at(self._order[index])

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[list[Segment]]:
        return map(self._at, self._order)


def _parted(segments: Segments, numbers: Iterable[int]) -> list[list[int]]:
    """The numbers of what two ends sent each other, one connection after the other."""
    found: list[list[int]] = []
    latest: dict[str, tuple[list[int], list[Segment]]] = {}
    for number in numbers:
        segment = segments[number]
        mine = latest.get(segment.scope)
        # Only a SYN is held against all before it: there are few of them
        if mine is None or (begins(segment) and any(is_another(segment, s) for s in mine[1])):
            mine = latest[segment.scope] = [], []
            found.append(mine[0])
        mine[0].append(number)
        mine[1].append(segment)
    return found
