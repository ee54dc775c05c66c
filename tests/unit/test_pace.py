"""How often the watcher reads what it captured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.ground.resources import images
from tests.unit.test_protocol import loaded

watch = loaded(images() / "host" / "watch.py")
RING = 16384
"""Frames of its smallest ring."""


def paces(rate: float, frames: int = 4 * RING) -> list[float]:
    """How it goes on from a quiet host, at so many packets a second."""
    found = [watch.QUIET]
    for _ in range(5):
        found.append(watch.pace(found[-1], rate, frames))
    return found


@pytest.mark.parametrize(
    ("rate", "found"),
    [(0, 0.05), (10, 0.05), (100, 0.5), (200, 1.0), (16_384, 1.0), (100_000, 0.16384)],
)
def test_on_a_busy_host_it_comes_to_read_once_a_second(rate: float, found: float) -> None:
    assert paces(rate)[-1] == pytest.approx(found)


def test_a_short_exchange_does_not_make_it_slow() -> None:
    assert paces(1000)[:4] == pytest.approx([0.05, 0.2, 0.8, 1.0])
    assert watch.pace(1.0, 3, RING) == watch.QUIET


@given(st.floats(0.05, 1), st.floats(0, 80_000), st.integers(RING, 4 * RING))
def test_the_ring_holds_what_came_four_times_over(before: float, rate: float, frames: int) -> None:
    wait = watch.pace(before, rate, frames)
    assert watch.QUIET <= wait <= watch.BUSY
    assert wait == watch.QUIET or wait * max(rate, watch.SURGE) * 4 <= frames * 1.001
