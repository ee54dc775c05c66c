"""Dataclasses, of which this program has many: made in half the time, and their instances too."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - given on
else:

    def dataclass(kind=None, /, *, frozen=False, eq=True, **options):
        """`dataclasses.dataclass`, where `frozen` is a promise that the type checker keeps: the
        library's own way writes two more methods for each class, and sets each field through
        `object.__setattr__`."""
        return dataclasses.dataclass(kind, eq=eq, unsafe_hash=frozen and eq, **options)
