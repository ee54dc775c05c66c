"""The events of a history, in order. Most are transitions of sockets, which take 20 bytes each
until somebody asks for them: a busy lab has a thousand a second."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import overload

from labctl.probes.packed import Places
from labctl.record.events import Event, StateEvent

ROW = Struct("<d3I")
"""Its time, and the places of its kind, its local and its remote end among all."""


class Log(Sequence[Event]):
    """Events, in order. `others` are all but transitions."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.others: list[Event] = []
        self._numbers = array("I")  # of the others
        self._rows = bytearray()
        self._kinds, self._ends = Places(), Places()
        for event in events:
            self.append(event)

    def append(self, event: Event) -> None:
        """Takes in the next one."""
        if isinstance(event, StateEvent):
            kind = self._kinds[event.host, event.old, event.new]
            local, remote = self._ends[event.local], self._ends[event.remote]
            self._rows += ROW.pack(event.t, kind, local, remote)
        else:
            self._numbers.append(len(self))
            self.others.append(event)

    def transitions(self, host: str | None = None) -> Iterator[StateEvent]:
        """All transitions, or those of a host, in order; each is made anew."""
        kinds = {n for n, (at, *_) in enumerate(self._kinds.things) if host in (None, at)}
        for place in range(0, len(self._rows), ROW.size):
            t, kind, local, remote = ROW.unpack_from(self._rows, place)
            if kind in kinds:
                at, old, new = self._kinds.things[kind]
                ends = self._ends.things
                yield StateEvent(t, at, ends[local], ends[remote], old, new)

    def _transition(self, number: int) -> StateEvent:
        t, kind, local, remote = ROW.unpack_from(self._rows, number * ROW.size)
        host, old, new = self._kinds.things[kind]
        return StateEvent(t, host, self._ends.things[local], self._ends.things[remote], old, new)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        place = bisect_left(self._numbers, number)
        if place < len(self._numbers) and self._numbers[place] == number:
            return self.others[place]
        return self._transition(number - place)

    def __len__(self) -> int:
        return len(self.others) + len(self._rows) // ROW.size

    def __iter__(self) -> Iterator[Event]:
        transitions, following = self.transitions(), 0
        for number, other in zip(self._numbers, self.others, strict=True):
            for _ in range(number - following):
                yield next(transitions)
            yield other
            following = number + 1
        yield from transitions
