"""The events of a history, in order. Transitions and calls, of which a busy lab has a thousand a
second, take 20 or 32 bytes each until somebody asks for them."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from operator import attrgetter, itemgetter
from struct import Struct
from typing import Any, TypeVar

from labctl.probes.packed import Made, Places
from labctl.record.events import KINDS, CallEvent, Event, StateEvent

E = TypeVar("E", bound=Event)

KIND = Struct("<8xI")
"""How a row begins: its time, and the place of its kind."""
PACKED: Mapping[type[Event], tuple[tuple[str, ...], ...]] = {
    StateEvent: (("host", "old", "new"), ("local",), ("remote",)),
    CallEvent: (
        ("process", "host", "pid", "phase", "name", "errno", "error", "eof", "start", "thread",
         "since"),
        ("call",), ("local",), ("peer",), ("fd", "result"), ("data", "value"),
    ),
}  # fmt: skip
"""Which fields of such an event have a place together. The first ones are its kind, of which there
are few."""
ROWS = {kind: Struct(f"<d{len(parts)}I") for kind, parts in PACKED.items()}
"""Its time, and the place of each part among all."""
NUMBERS = {kind: number for number, kind in enumerate(KINDS.values())}
OTHERS = tuple(kind for kind in NUMBERS if kind is not StateEvent)
"""All kinds of events but transitions, which are the most."""


class Rows(Made[E]):
    """Events of a packed type, in order. `things` are what several have in common."""

    def __init__(self, kind: type[E], things: Places) -> None:
        parts = PACKED[kind]
        names = ["t", *(name for part in parts for name in part)]
        self._make = kind
        self._bytes = bytearray()
        self._parts = [attrgetter(*part) for part in parts]
        self._alone = [len(part) == 1 for part in parts[1:]]
        self._fields = itemgetter(*(names.index(f.name) for f in dataclasses.fields(kind)))
        self._named, self._kinds, self._things = parts[0], Places(), things
        self._count, self._known = 0, False

    def again(self) -> Rows[E]:
        """None of these yet, for somebody who takes in the same ones again."""
        found = copy(self)
        found._count, found._known = 0, True
        return found

    def append(self, event: E) -> None:
        """Takes in the next one."""
        self._count += 1
        if not self._known:
            kind, *rest = [part(event) for part in self._parts]
            places = [self._things[thing] for thing in rest]
            self._bytes += ROWS[self._make].pack(event.t, self._kinds[kind], *places)

    def numbers(self, having: Mapping[str, object]) -> Iterable[int]:
        """The numbers of those whose kind has these values; `...` is any but None."""
        if not having:
            return range(len(self))
        asked = [(self._named.index(name), value) for name, value in having.items()]
        kinds = {
            place for place, kind in enumerate(self._kinds.things)
            if all(kind[n] == value or (value is ... and kind[n] is not None) for n, value in asked)
        }  # fmt: skip
        size = ROWS[self._make].size
        begins = range(0, self._count * size if kinds else 0, size)
        unpack, rows = KIND.unpack_from, self._bytes
        return (n for n, begin in enumerate(begins) if unpack(rows, begin)[0] in kinds)

    def __len__(self) -> int:
        return self._count

    def _at(self, number: int) -> E:
        row = ROWS[self._make]
        t, kind, *places = row.unpack_from(self._bytes, number * row.size)
        values, things = [t, *self._kinds.things[kind]], self._things.things
        for place, alone in zip(places, self._alone, strict=True):
            if alone:
                values.append(things[place])
            else:
                values += things[place]
        return self._make(*self._fields(values))


class Some(Made[E]):
    """Some of a log's events of one type; those that come are the latest of it."""

    def __init__(self, rows: Rows[E]) -> None:
        self._rows, self._numbers = rows, array("I")

    def append(self, event: E) -> None:
        """Takes in the log's latest one."""
        self._numbers.append(len(self._rows) - 1)

    def of(self, **having: object) -> Iterator[E]:
        """Those of a kind that has these values."""
        among = {*self._rows.numbers(having)}
        return (self._rows[number] for number in self._numbers if number in among)

    def __len__(self) -> int:
        return len(self._numbers)

    def _at(self, number: int) -> E:
        return self._rows[self._numbers[number]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]


class Log(Made[Event]):
    """Events, in order; a call that one event tells of begins and ends. If those of a packed type
    are `again` those of another log, in their order, they are there once."""

    def __init__(self, events: Iterable[Event] = (), again: Log | None = None) -> None:
        things = Places()
        self._order = bytearray()  # the number of each one's type
        self._of: list[Any] = [
            [] if kind not in PACKED else again._of[n].again() if again else Rows(kind, things)
            for kind, n in NUMBERS.items()
        ]
        for event in events:
            for each in event.both if isinstance(event, CallEvent) else (event,):
                self.append(each)

    def append(self, event: Event) -> None:
        """Takes in the next one."""
        number = NUMBERS[type(event)]
        self._of[number].append(event)
        self._order.append(number)

    def none(self, kind: type[E]) -> Some[E]:
        """None of its events of a packed type, yet."""
        return Some(self._of[NUMBERS[kind]])

    def of(self, *kinds: type[E], **having: object) -> Iterator[E]:
        """Those of some types, in order; of a packed one, those of a kind that has these values."""
        events = self._of[NUMBERS[kinds[0]]]
        if having:
            return (events[number] for number in events.numbers(having))
        return self._merged(kinds, iter, self._order) if len(kinds) > 1 else iter(events)

    def latest(self, *kinds: type[E]) -> Iterator[E]:
        """Those of some types, the latest first."""
        return self._merged(kinds, reversed, self._order[::-1])

    def _merged(
        self, kinds: Iterable[type[E]], each: Callable[[Any], Iterator[E]], order: bytearray
    ) -> Iterator[E]:
        wanted = {NUMBERS[kind]: each(self._of[NUMBERS[kind]]) for kind in kinds}
        others = bytes({*range(len(self._of))} - wanted.keys())
        return (next(wanted[number]) for number in order.translate(None, others))

    def since(self, first: int) -> Iterator[Event]:
        """Those from a number on."""
        order = self._order[first:]
        following = {}
        for number in {*order}:
            events = self._of[number]
            begin = len(events) - order.count(number)
            following[number] = map(events.__getitem__, range(begin, len(events)))
        return (next(following[number]) for number in order)

    def _at(self, number: int) -> Event:
        kind = self._order[number]
        from_the_end = self._order.count(kind, number)
        event: Event = self._of[kind][-from_the_end]
        return event

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Event]:
        return self.since(0)
