"""Counters in few bytes: a busy host tells of a dozen of them a hundred times a second."""

from __future__ import annotations

import json
from array import array
from collections.abc import ItemsView, Iterator, Mapping
from functools import lru_cache


class Counts(Mapping[str, int]):
    """The values of counters, by their names. Raises OverflowError for more than 63 bits."""

    __slots__ = ("_names", "_values")

    def __init__(self, values: Mapping[str, int]) -> None:
        self._names = _once(tuple(values))
        self._values = array("q", values.values()).tobytes()

    def items(self) -> ItemsView[str, int]:
        """All at once; to ask for one takes as long."""
        return dict(zip(self._names, array("q", self._values), strict=True)).items()

    def __getitem__(self, name: str) -> int:
        return dict(self.items())[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@lru_cache(1 << 12)
def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    return names


def packed(values: Mapping[str, int]) -> Mapping[str, int]:
    """The same in few bytes, if that can be."""
    try:
        return values if isinstance(values, Counts) else Counts(values)
    except OverflowError:
        return values


as_json = json.JSONEncoder(
    separators=(",", ":"), default=lambda counts: dict(counts.items())
).encode
"""JSON of data with such, without blanks: a history may have a million lines."""
