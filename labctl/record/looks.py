"""What looks by `ss` show of a host's sockets, to within SAMPLING seconds: an agent looks as soon
as its poll notices a change."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import cache

from labctl.ground.data import dataclass
from labctl.probes.sockets import Ends, Socket, SsParseError, State, aged
from labctl.probes.traffic import Chosen
from labctl.record.events import SocketsEvent
from labctl.record.history import History
from labctl.record.moments import Moment
from labctl.record.traced import NEAR

SAMPLING = NEAR
"""Seconds within which an agent notices a change and has looked."""


@cache
def reachable(start: State, end: State) -> bool:
    """Whether a connection can come from one state to another, directly or not."""
    return end in FOLLOWING[start] or any(reachable(state, end) for state in FOLLOWING[start])


FOLLOWING: dict[State, frozenset[State]] = {
    State.SYN_SENT: frozenset({State.ESTAB, State.SYN_RECV}),
    State.SYN_RECV: frozenset({State.ESTAB, State.FIN_WAIT_1, State.CLOSE_WAIT}),
    State.ESTAB: frozenset({State.FIN_WAIT_1, State.CLOSE_WAIT}),
    State.FIN_WAIT_1: frozenset({State.FIN_WAIT_2, State.CLOSING, State.TIME_WAIT}),
    State.FIN_WAIT_2: frozenset({State.TIME_WAIT}),
    State.CLOSING: frozenset({State.TIME_WAIT}),
    State.CLOSE_WAIT: frozenset({State.LAST_ACK}),
    State.LAST_ACK: frozenset(),
    State.TIME_WAIT: frozenset(),
}
"""RFC 9293, section 3.3.2: the states of a connection, and which states may follow each. Its end
may follow all of them."""


@dataclass(slots=True)
class Sighting:
    """A socket in the look with this number, and in all others up to the `last` one: nothing but
    its timer changed there."""

    look: int
    socket: Socket
    last: int

    @property
    def state(self) -> State:
        """Its state."""
        return self.socket.state

    @property
    def mini(self) -> bool:
        """Whether it is a minisocket in TIME-WAIT or FIN-WAIT-2."""
        timer = self.socket.timer
        return self.state is State.TIME_WAIT or (
            self.state is State.FIN_WAIT_2 and timer is not None and timer.name == "timewait"
        )

    @property
    def cookie(self) -> str:
        """The kernel's name for it, from request to TIME-WAIT, since `ss` first asked."""
        words = self.socket.info.split()
        return next((word for word in words if word.startswith("sk:")), "")

    def precedes(self, later: Sighting) -> bool:
        """Whether `later` may be the same connection, seen by the next look."""
        before, after = self.state, later.state
        return (
            later.look == self.last + 1
            and (self.cookie == later.cookie or "" in (self.cookie, later.cookie))
            and (before == after or reachable(before, after))
        )


def _over(sightings: Iterable[Sighting], last: int) -> None:
    for sighting in sightings:
        sighting.last = last


class Looks:
    """A host's looks: when they were, and the sockets that they showed, or those that are `chosen`.
    A look that can't be parsed does not count."""

    def __init__(self, history: History, host: str, chosen: Chosen | None = None) -> None:
        self._sampling = math.inf if history.imported else SAMPLING
        self.times: list[float] = []
        self.seen: dict[Ends, list[Sighting]] = {}
        self.listening: dict[Ends, list[Sighting]] = {}
        there: dict[int, Sighting] = {}
        following = 0
        for event in history.events.of(SocketsEvent):
            if event.host != host:
                continue
            try:
                came = event.came
            except SsParseError:
                continue
            look = len(self.times)
            if event.gone is None:
                _over(there.values(), look - 1)
                there, following = {}, 0
            _over((there.pop(number) for number in event.gone or () if number in there), look - 1)
            for number, socket in enumerate(came, following):
                if socket.state is not State.UNCONN and (not chosen or chosen(socket.ends)):
                    kind = self.seen if socket.connection else self.listening
                    there[number] = Sighting(look, socket, look)
                    kind.setdefault(socket.ends, []).append(there[number])
            following += len(came)
            self.times.append(event.t)
        _over(there.values(), len(self.times) - 1)

    def between(self, key: Ends, low: float, high: float) -> list[Sighting]:
        """The sightings of a connection in [low, high), in order; of one that goes beyond that, the
        part within."""
        found = []
        for s in self.seen.get(key, ()):
            first = bisect_left(self.times, low, s.look, s.last + 1)
            after = bisect_left(self.times, high, first, s.last + 1)
            if first < after:
                socket = aged(s.socket, self.times[first] - self.times[s.look])
                found.append(Sighting(first, socket, after - 1))
        return found

    def shown(self, key: Ends) -> Iterator[tuple[float, Socket]]:
        """When looks showed a connection, and its socket then."""
        for s in self.seen.get(key, ()):
            for t in self.times[s.look : s.last + 1]:
                yield t, aged(s.socket, t - self.times[s.look])

    def noticed(self, look: int) -> Moment:
        """When a change happened that this look is the first to show. `ss` runs a little after the
        look's `t`."""
        t = self.times[look]
        return Moment(max(self.before(look), t - self._sampling), t + SAMPLING, seen=t)

    def after(self, t: float, until: float) -> float | None:
        """The time of the first look from `t` on, before `until`."""
        found = self.time(bisect_left(self.times, t))
        return found if found < until else None

    def before(self, look: int) -> float:
        """The time of the look before this one, or of the run's beginning."""
        return self.times[look - 1] if look else 0.0

    def time(self, look: int) -> float:
        """The time of a look; infinity if there was no such look yet."""
        return self.times[look] if look < len(self.times) else math.inf
