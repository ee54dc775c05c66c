"""Dataclasses, of which this program has many: made in a quarter of the time, and their instances
faster too."""

from __future__ import annotations

import dataclasses
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - given on
else:

    def dataclass(kind=None, /, *, frozen=False, eq=True, **options):
        """`dataclasses.dataclass`, where all classes share the methods that compare and show their
        instances: the library compiles them anew for each, which takes most of the time. `frozen`
        is a promise that the type checker keeps: the library sets each field through
        `object.__setattr__`."""

        def made(kind):
            shared = {"__repr__": _repr}
            if eq:
                shared |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
            own = {*vars(kind)}
            kind = dataclasses.dataclass(kind, repr=False, eq=False, **options)
            for name in shared.keys() - own:
                setattr(kind, name, shared[name])
            return kind

        return made if kind is None else made(kind)


@cache
def _fields(kind: Any) -> Callable[[object], object]:
    """What gives the fields of an instance that count: of equals it gives equals."""
    names = [field.name for field in dataclasses.fields(kind) if field.compare]
    return attrgetter(*names) if names else lambda _: ()


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    values = _fields(self.__class__)
    return values(self) == values(other)


def _hash(self: Any) -> int:
    return hash(_fields(self.__class__)(self))


def _repr(self: Any) -> str:
    shown = (field.name for field in dataclasses.fields(self) if field.repr)
    told = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
    return f"{self.__class__.__qualname__}({told})"
