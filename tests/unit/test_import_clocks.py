"""How far two clocks are apart: the offset within its bound, whatever the delays."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.ground.errors import UsageError
from labctl.imports.clocks import Clock, compare
from labctl.judge.causes.rules import causes
from tests.captured import BEGUN, CLIENT, NEAR, SERVER, frames, handshake, imported, pcap
from tests.walked import ACK, SYN, Sent

PPM = 1e-6


def exchange(
    offset: float, drift: float, seconds: float, delays: tuple[float, float], seed: int = 1
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """What goes there and back, with the least delays of each way, and now and then more."""
    chance = random.Random(seed)
    there, back = [], []
    for number in range(200):
        t = seconds * number / 199
        late = chance.expovariate(1 / delays[0])
        arrives = t + delays[0] + late
        clock = arrives + offset + drift * arrives
        there.append((clock, clock - t))
        clock = t + offset + drift * t
        late = chance.expovariate(1 / delays[1])
        back.append((clock, clock - (t + delays[1] + late)))
    return there, back


@given(
    st.floats(-1e5, 1e5),
    st.floats(-200, 200),
    st.floats(0.001, 10_000),
    st.tuples(st.floats(1e-6, 0.5), st.floats(1e-6, 0.5)),
    st.integers(0, 1000),
)
def test_the_offset_is_within_its_bound(
    offset: float, ppm: float, seconds: float, delays: tuple[float, float], seed: int
) -> None:
    there, back = exchange(offset, ppm * PPM, seconds, delays, seed)
    found = compare(there, back)
    for t in (0.0, seconds / 2, seconds):
        clock = t + offset + ppm * PPM * t
        assert abs(found.ahead(clock) - (clock - t)) <= found.bound + 1e-9 * (1 + abs(offset))
    assert found.bound <= 2 * (1 + seconds * 2 * 500e-6) * max(sum(delays), 1e-6) * 20


def test_a_long_exchange_tells_the_drift() -> None:
    found = compare(*exchange(3.0, 50 * PPM, 60.0, (50e-6, 50e-6)))
    assert found.drift == pytest.approx(50 * PPM, abs=3 * PPM)
    assert found.ahead(3.0) == pytest.approx(3.0, abs=50e-6)
    assert found.bound < 200e-6
    assert str(found).startswith("3.0000") and "gaining 5" in str(found)


def test_what_comes_after_the_exchange_is_bounded_too() -> None:
    """Of a short one the drift is not known, but it goes on."""
    there, back = exchange(3.0, 50 * PPM, 0.001, (50e-6, 50e-6))
    found = compare(there, back, (3.0, 13.0))
    assert abs(found.ahead(13.0) - 3.0 - 10 * 50 * PPM) <= found.bound < 0.011
    assert compare(there, back).bound < 5e-4


def test_a_short_one_does_not() -> None:
    found = compare(*exchange(-3.0, 50 * PPM, 0.001, (50e-6, 50e-6)))
    assert found.drift is None
    assert str(found).endswith("for too short a time to tell its drift")
    assert "2.99" in str(found) or "3.00" in str(found)
    assert " s behind, give or take 0.0000" in str(found)


def test_what_goes_one_way_bounds_one_side() -> None:
    there, _ = exchange(3.0, 0.0, 1.0, (50e-6, 50e-6))
    found = compare(there, [])
    assert found.bound == math.inf
    assert found.ahead(3.0) == pytest.approx(3.0, abs=200e-6)
    assert "3.0000" in str(found) and "nobody knows how exactly" in str(found)


def test_a_clock_that_was_set_meanwhile_has_a_bound_for_that() -> None:
    there, back = exchange(3.0, 0.0, 10.0, (50e-6, 50e-6))

    def later(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(t + (t > 8), d + (t > 8)) for t, d in points]

    found = compare(later(there), later(back))
    assert found.bound > 0.4 and found.early > 0.2
    assert compare(there, back).early == 0.0


def test_captures_by_a_clock_that_was_set_meanwhile_are_refused(tmp_path: Path) -> None:
    """What one had sent, and what the other had got, can't be told apart then."""
    sent = [*handshake(), *(each for n in range(1, 9) for each in exchanged(n))]
    server = pcap(tmp_path / "a.pcap", frames(sent, SERVER))
    mine = frames(sent, CLIENT)
    back = pcap(tmp_path / "b.pcap", [(t - 5 * (t > BEGUN + 4.5), d) for t, d in mine])
    with pytest.raises(UsageError, match=r"arrives 2\.50\d s before it left; 0\.1 s") as raised:
        imported(tmp_path, {"server": server, "client": back})
    assert "give one file alone" in str(raised.value.hint)


def test_a_clock_that_was_slewed_is_part_of_the_bound(tmp_path: Path) -> None:
    """And a SYN that comes late by it is not one for an open connection."""
    data = Sent(0.005, CLIENT, SERVER, ACK, 101, 901, 1)
    taken = Sent(0.0052, SERVER, CLIENT, ACK, 901, 102)
    sent = [*handshake(), data, taken, *(each for n in range(1, 9) for each in exchanged(n))]
    server = pcap(tmp_path / "a.pcap", frames(sent, SERVER))
    mine = [(t + 0.04 * (t > BEGUN + 1.5), d) for t, d in frames(sent, CLIENT)]
    found = imported(tmp_path, {"server": server, "client": pcap(tmp_path / "b.pcap", mine)})
    bound = found.history.imported["client"].bound
    assert bound and 0.02 < bound < 0.1
    assert causes(found.history) == []


def exchanged(t: float) -> list[Sent]:
    """A byte of the server's, and its acknowledgement."""
    seq = 900 + round(t)
    return [
        Sent(t, SERVER, CLIENT, ACK, seq, 101, 1),
        Sent(t + 2 * NEAR, CLIENT, SERVER, ACK, 101, seq + 1),
    ]


def test_clocks_of_which_each_is_disciplined(tmp_path: Path) -> None:
    """One may gain 500 ppm, and the other lose as much."""
    found = compare(*exchange(3.0, 990 * PPM, 100.0, (50e-6, 50e-6)))
    assert found.bound < 200e-6 and found.early == 0.0


def test_the_same_clock() -> None:
    assert Clock().ahead(1e9) == 0.0


def test_what_is_sent_again_is_told_apart_by_its_mark(tmp_path: Path) -> None:
    """SYNs without timestamps, and without an answer, differ in nothing else."""
    sent = [Sent(t, CLIENT, SERVER, SYN, 100) for t in (1.0, 2.0, 4.0)]

    def saved(name: str, here: str, ahead: float = 0.0) -> Path:
        found = enumerate(frames(sent, here, ahead), 7)
        return pcap(tmp_path / name, [(t, d[:18] + bytes([n, 0]) + d[20:]) for n, (t, d) in found])

    run = imported(tmp_path, {"server": saved("a", SERVER), "client": saved("b", CLIENT, 3.0)})
    assert [s.lost or s.injected for s in run.history.segments()] == [False] * 3
