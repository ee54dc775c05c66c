"""Dataclasses of this program are as the library's, but for the promise to be frozen."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

import pytest

from labctl.ground.data import dataclass


@pytest.mark.parametrize("options", [{}, {"slots": True}])
def test_they_compare_and_show_themselves_as_the_library_s(options: dict[str, bool]) -> None:
    class Plain:
        name: str
        seen: float = field(default=0.0, compare=False)
        beside: str = field(default="", repr=False)

    Plain.__annotations__ = {"name": "str", "seen": "float", "beside": "str"}
    kinds: list[Any] = [
        made(frozen=True, **options)(type("Plain", (), dict(vars(Plain))))
        for made in (dataclasses.dataclass, dataclass)
    ]
    theirs, ours = ([kind("a"), kind("a", 1.0), kind("b"), kind("a", 0.0, "c")] for kind in kinds)
    assert [a == b for a in ours for b in ours] == [a == b for a in theirs for b in theirs]
    assert [hash(each) for each in ours] == [hash(each) for each in theirs]
    assert [*map(repr, ours)] == [*map(repr, theirs)]
    assert ours[0] != theirs[0]


def test_what_may_change_has_no_hash_and_own_methods_stay() -> None:
    @dataclass
    class Changing:
        name: str

        def __repr__(self) -> str:
            return "mine"

    @dataclass(frozen=True)
    class Empty:
        pass

    @dataclass(eq=False)
    class Itself:
        name: str

    assert repr(Changing("a")) == "mine" and Changing("a") == Changing("a")
    with pytest.raises(TypeError):
        hash(Changing("a"))
    assert Empty() == Empty() and hash(Empty()) == hash(Empty())
    assert Itself("a") != Itself("a") and hash(Itself("a"))
