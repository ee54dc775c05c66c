"""Values as text."""

from __future__ import annotations

from labctl.ground.written import count


def test_one_is_in_the_singular() -> None:
    assert [count(n, "byte") for n in (0, 1, 1000)] == ["0 bytes", "1 byte", "1000 bytes"]
