"""Segments in few bytes: a busy lab has hundreds of thousands of them, and nobody looks at more
than some at a time."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from struct import Struct
from typing import Any, TypeVar, overload

from labctl.probes.observations import Origin, Segment
from labctl.probes.sockets import Ends

T = TypeVar("T")

ROW = Struct("<2d3q10I")
"""When it left and arrived; its numbers and its length; its window and its timestamps; the numbers
and timestamps of its origin; and the places of its ends, its kind and its rest among all."""
MOMENTS = Struct(f"<2d{ROW.size - 16}x")
ENDS = Struct(f"<{ROW.size - 12}xI8x")


class Made(Sequence[T]):
    """Things that are made anew for whoever asks for one."""

    __slots__ = ()

    @abstractmethod
    def _at(self, number: int) -> T:
        """The one with this number, from 0 on."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        found = range(len(self))[index]
        return self._at(found) if isinstance(found, int) else [*map(self._at, found)]

    def __iter__(self) -> Iterator[T]:
        return map(self._at, range(len(self)))


class Places(dict[Any, int]):
    """A place for each of several `things`, in order of appearance."""

    def __init__(self) -> None:
        self.things: list[Any] = []

    def __missing__(self, key: Any) -> int:
        self.things.append(key)
        return self.setdefault(key, len(self))


def by_place(places: Sequence[int], count: int) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers of what has these of so many places, those of one place together, and where those
    of each begin."""
    begins = array("I", bytes(4 * (count + 1)))
    for place in places:
        begins[place + 1] += 1
    for place in range(count):
        begins[place + 1] += begins[place]
    return array("I", sorted(range(len(places)), key=places.__getitem__)), begins


class _Packed:
    """Segments in order of time. Each takes some 90 bytes: what many have in common is there
    once."""

    def __init__(self, found: Iterable[Segment]) -> None:
        rows, times = bytearray(), array("d")
        self.ends, kinds, rests = Places(), Places(), Places()
        for s in found:
            values = [*s[:2], *s[6:8], *s[9:11], *(s.timestamps or (None, None)), *s.origin[:4]]
            lacks = tuple(n for n, value in enumerate(values) if value is None)
            kind = s[2:4], s.flags, s[11:17], s[18:24], s.origin[4:], s[26:28], lacks
            places = self.ends[s[4:6]], kinds[kind], rests[s.data, s.way]
            rows += ROW.pack(*(value or 0 for value in values), *places)
            times.append(s.time)
        self.times, self.rows = array("d"), bytearray()
        for number in sorted(range(len(times)), key=times.__getitem__):
            self.times.append(times[number])
            self.rows += rows[number * ROW.size : (number + 1) * ROW.size]
        self._kinds, self._rests, self._ends = kinds.things, rests.things, self.ends.things
        self.ways = any(way for _, way in rests)
        """Whether some went on through other hosts."""

    def segment(self, number: int) -> Segment:
        """One of them, made anew."""
        values: list[Any] = [*ROW.unpack_from(self.rows, number * ROW.size)]
        hosts, flags, marks, more, guessed, names, lacks = self._kinds[values[13]]
        for place in lacks:
            values[place] = None
        t, arrived, seq, ack, length, window, stamp, echo, *origin, ends, _, rest = values
        data, way = self._rests[rest]
        return tuple.__new__(  # as _make does it, in half the time
            Segment,
            (
                t, arrived, *hosts, *self._ends[ends], seq, ack, flags, length, window, *marks,
                None if stamp is None else (stamp, echo), *more,
                tuple.__new__(Origin, (*origin, *guessed)), data, *names, way,
            ),
        )  # fmt: skip

    @cached_property
    def _by_ends(self) -> tuple[Sequence[int], Sequence[int]]:
        """The numbers of all, those of the same ends together, and where those of each begin."""
        places = array("I", (place for (place,) in ENDS.iter_unpack(self.rows)))
        return by_place(places, len(self._ends))

    @cached_property
    def arrivals(self) -> tuple[Sequence[float], Sequence[int]]:
        """When they arrived, in order, and the numbers of those that did then."""
        came = array("d", (came for _, came in MOMENTS.iter_unpack(self.rows)))
        numbers = array("I", sorted(range(len(came)), key=came.__getitem__))
        return array("d", (came[number] for number in numbers)), numbers

    def of(self, ends: Ends) -> Sequence[int]:
        """The numbers of those from one end to another, in order."""
        place = self.ends.get(ends)
        numbers, begins = self._by_ends
        return () if place is None else numbers[begins[place] : begins[place + 1]]


class Segments(Sequence[Segment]):
    """Segments in order of time, or those with these `numbers` of them. Whoever asks for one gets
    it made anew; `changed` are, by number, those that are otherwise now."""

    def __init__(
        self,
        found: Iterable[Segment] | _Packed = (),
        numbers: range | None = None,
        changed: Mapping[int, Segment] | None = None,
    ) -> None:
        self._packed = found if isinstance(found, _Packed) else _Packed(found)
        self._numbers = range(len(self._packed.times)) if numbers is None else numbers
        self._changed = changed or {}

    @property
    def ends(self) -> Iterable[Ends]:
        """The ends between which there are some, or were."""
        return self._packed.ends

    @property
    def ways(self) -> bool:
        """Whether some went on through other hosts."""
        return self._packed.ways

    def of(self, ends: Ends) -> list[Segment]:
        """Those from one end to another, in order."""
        return [self._at(n) for n in self._packed.of(ends) if n in self._numbers]

    def numbers(self, *ends: Ends) -> list[int]:
        """The numbers of those from one end to another of such, in order."""
        numbers = sorted({number for each in ends for number in self._packed.of(each)})
        return [n for n in numbers if n in self._numbers]

    def numbered(self, numbers: Iterable[int]) -> Iterator[tuple[int, Segment]]:
        """Those with these numbers, and with them."""
        return ((number, self._at(number)) for number in numbers)

    def between(self, ends: Ends) -> list[Segment]:
        """Those from either of two ends to the other, in order."""
        return [self._at(n) for n in self.numbers(ends, ends[::-1])]

    def until(self, t: float) -> int:
        """How many of them were first seen up to that time."""
        begin, end = self._numbers.start, self._numbers.stop
        return bisect_right(self._packed.times, t, begin, end) - begin

    def position(self, t: float) -> int:
        """How many of them were first seen before that time."""
        begin, end = self._numbers.start, self._numbers.stop
        return bisect_left(self._packed.times, t, begin, end) - begin

    def late(self, flight: float) -> list[int]:
        """The numbers of those that were under way longer."""
        moments = MOMENTS.iter_unpack(self._packed.rows)
        late = (n for n, (left, came) in enumerate(moments) if came - left > flight)
        return [n for n in late if self._at(n).flight > flight]

    def seen_at(self, t: float) -> Iterator[tuple[int, Segment]]:
        """Those that were first seen, or arrived, at exactly that time, and their numbers."""
        times, numbers = self._packed.arrivals
        begin, end = bisect_left(times, t), bisect_right(times, t)
        first, after = (cut(self._packed.times, t) for cut in (bisect_left, bisect_right))
        found = {*range(first, after), *numbers[begin:end]}
        some = self.numbered(n for n in sorted(found) if n in self._numbers)
        return ((number, s) for number, s in some if t in (s.time, s.arrived))

    def first(self, count: int, changed: Mapping[int, Segment]) -> Segments:
        """The first ones, some of them otherwise."""
        return Segments(self._packed, self._numbers[:count], changed)

    def _at(self, number: int) -> Segment:
        return self._changed.get(number) or self._packed.segment(number)

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice) -> Segments: ...
    def __getitem__(self, index: int | slice) -> Segment | Segments:
        if isinstance(index, slice):
            return Segments(self._packed, self._numbers[index], self._changed)
        return self._at(self._numbers[index])

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Segment]:
        return map(self._at, self._numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]
