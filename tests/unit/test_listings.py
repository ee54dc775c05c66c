"""Looks that are recorded as differences say what whole ones would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from labctl.probes.listings import LONG, Listing
from labctl.probes.sockets import RESOLVER, Socket, parse_ss
from labctl.record.events import Event, HoldersEvent, LabEvent, ProcessEvent, SocketsEvent
from labctl.record.history import History
from labctl.record.holders import held_by
from labctl.record.lines import read_events
from labctl.record.listeners import listeners
from labctl.record.timelines import timelines
from tests.fake import HEADER, tcp

EVERY = 0.4
"""Seconds from one look to the next."""
SERVER = "198.18.0.2:8000"
WALK = ("SYN-RECV", "ESTAB", "FIN-WAIT-2", "TIME-WAIT")
ENGINE = tcp("LISTEN", f"{RESOLVER}:40000", more="uid:1 ino:4 sk:fffff2")
LISTENING = tcp("LISTEN", ":8000", more="ino:9 sk:fffff1")


class Busy:
    """A host with hundreds of connections, each of which goes through some states."""

    def __init__(self, seed: int, count: int = 400) -> None:
        self._random = Random(seed)
        self._count = count
        self._numbers = iter(range(1, 100_000))
        self._there: dict[int, tuple[int, float]] = {}  # how far it is, and since when

    def look(self, t: float) -> str:
        """What `ss` prints then, some milliseconds later."""
        for number, (place, since) in [*self._there.items()]:
            going = self._random.random() < (0.03 if place < 3 else 0.004)
            if place == 3 and (t - since > 59 or going):
                del self._there[number]
            elif place < 3 and going:
                self._there[number] = place + 1, t
        while len(self._there) < self._count:
            self._there[next(self._numbers)] = self._random.choice([(0, t), (1, t), (3, t)])
        width = " " * self._random.choice([1, 6])
        lines = [ENGINE, LISTENING, *(self._line(n, t) for n in self._there)]
        return "\n\n".join([HEADER, *lines]).replace(" 198", f"{width}198") + "\n\n"

    def _line(self, number: int, t: float) -> str:
        place, since = self._there[number]
        left = 60 - (t - since) - self._random.random() * 0.02
        timer = f"timer:(timewait,{int(left)}sec,0) " if place == 3 else ""
        more = f"{timer}ino:{0 if place == 3 else number + 10} sk:{number:x}"
        return tcp(WALK[place], SERVER, f"198.18.0.3:{number % 60_000 + 1024}", more)


def texts(seed: int, looks: int = 120) -> list[tuple[float, str]]:
    busy = Busy(seed)
    return [(1 + n * EVERY, busy.look(1 + n * EVERY)) for n in range(looks)]


def whole(found: list[tuple[float, str]]) -> list[SocketsEvent]:
    return [SocketsEvent(t, "server", "change", text) for t, text in found]


def differences(looks: list[SocketsEvent]) -> list[SocketsEvent]:
    """The same as they are recorded."""

    def shortened() -> Iterator[SocketsEvent]:
        listing = Listing()
        for look in looks:
            found = listing.difference(look.t, look.text)
            yield replace(look, text=found[0], gone=found[1]) if found else look

    lines = [event.to_json() for event in shortened()]
    return [event for event in read_events(lines) if isinstance(event, SocketsEvent)]


def told(*events: Event) -> History:
    """A history that looks alone tell."""
    lab = LabEvent(0.0, "2026-01-02T03:04:05Z", "netns", {"probes": ["ss"]},
                   {"server": "198.18.0.2", "client": "198.18.0.3"})  # fmt: skip
    return History([lab, *sorted(events, key=lambda event: event.t)])


def timeless(socket: Socket) -> Socket:
    return replace(socket, timer=None)


@pytest.mark.parametrize("seed", range(3))
def test_differences_show_the_same_sockets(seed: int) -> None:
    events = whole(texts(seed))
    short = differences(events)
    told(*short)
    assert sum(len(event.text) for event in short) < 0.3 * sum(len(e.text) for e in events)
    order = [*range(len(events)), *Random(seed).sample(range(len(events)), len(events))]
    for n in order:
        expected = {s.info: s for s in events[n].sockets}
        seen = {s.info: s for s in short[n].sockets}
        assert len(short[n].sockets) == len(seen) == len(expected)
        assert {*map(timeless, seen.values())} == {*map(timeless, expected.values())}
        for info, socket in seen.items():
            timer, wanted = socket.timer, expected[info].timer
            assert (timer is None) == (wanted is None)
            if timer and wanted:
                assert timer.expires == pytest.approx(wanted.expires, abs=1.5)


def test_whole_looks_stand_between() -> None:
    """What is put together for one look is bounded."""
    short = differences(whole(texts(0, 1000)))
    places = [n for n, event in enumerate(short) if event.gone is None]
    assert places[0] == 0
    assert 3 <= len(places) < 50
    assert all(b - a > 10 for a, b in pairwise(places))


def test_a_time_that_is_over_is_no_change() -> None:
    """The kernel may forget a connection a moment later than its minute is over."""

    def look(left: str) -> str:
        ends = (f"198.18.0.3:{1024 + n}" for n in range(400))
        more = f"timer:(timewait,{left},0) ino:0 sk:1"
        return "\n".join([HEADER, *(tcp("TIME-WAIT", SERVER, end, more) for end in ends)])

    listing = Listing()
    assert listing.difference(10.0, look("41sec")) is None  # the first is whole
    assert listing.difference(30.0, look("21sec")) == ("", [])
    assert listing.difference(53.5, look("")) == ("", [])
    came, gone = listing.difference(54.0, look("59sec")) or ("", [])
    assert (came.count("TIME-WAIT"), len(gone)) == (400, 400)  # a segment began its minute again


@pytest.mark.parametrize("seed", range(3))
def test_differences_tell_the_same_lives(seed: int) -> None:
    events = whole(texts(seed))
    short = differences(events)
    assert timelines(told(*short), "server") == timelines(told(*events), "server")
    assert listeners(told(*short), "server") == listeners(told(*events), "server")


def test_differences_tell_the_same_holders() -> None:
    """Somebody holds a socket as long as looks show its inode."""
    events = whole(texts(1))
    short = differences(events)
    started = ProcessEvent(0.5, "server", "server", "start", pid=2)
    descriptors = {str(n): n + 10 for n in range(1, 400)}
    said = HoldersEvent(1.1, "server", "server", {"2": "server"}, {"2": descriptors}, [])
    one, other = told(started, said, *events), told(started, said, *short)
    held = 0
    for n in range(0, len(events), 20):
        for socket in events[n].sockets:
            by = held_by(one, "server", socket, events[n].t)
            assert by == held_by(other, "server", socket, events[n].t)
            held += bool(by)
    assert held > 50


def test_few_sockets_are_always_recorded_whole() -> None:
    listing = Listing()
    few = "\n".join([HEADER, *[tcp("ESTAB", SERVER, f"198.18.0.3:{n}") for n in range(100)]])
    assert len(few) < LONG
    assert [listing.difference(float(t), few) for t in range(3)] == [None] * 3


def test_what_has_no_names_of_its_own_is_recorded_whole() -> None:
    """Entries that are alike could not be told apart; and a text that `ss` does not print is kept
    as it is."""
    alike = "\n".join([HEADER, *[tcp("ESTAB", SERVER, "198.18.0.3:9")] * 500])
    odd = "who knows\n" * 3000
    for text in (alike, odd):
        listing = Listing()
        assert [listing.difference(float(t), text) for t in range(3)] == [None] * 3


def test_a_timer_that_began_again_is_recorded() -> None:
    listing = Listing()

    def look(t: float, left: int, first: int) -> tuple[str, list[int]] | None:
        more = "timer:(timewait,{}sec,0) ino:0 sk:{:x}"
        times = [first, *[left] * 299]
        lines = [tcp("TIME-WAIT", SERVER, f"198.18.0.3:{n}", more.format(seconds, n))
                 for n, seconds in enumerate(times, 1)]  # fmt: skip
        return listing.difference(t, "\n".join([HEADER, *lines]))

    assert look(1.0, 50, 50) is None
    assert look(6.0, 45, 45) == ("", [])
    found = look(11.0, 40, 59)
    assert found and found[1] == [0]
    (again,) = parse_ss(found[0])
    assert again.timer and again.timer.expires == 59
    assert look(12.0, 39, 58) == ("", [])
    assert look(13.0, 38, 38) is not None
