"""The walk of each connection through its states: the tracepoint and looks by `ss`, joined.

The kernel's tracepoint tells every transition of a full socket, to the microsecond. It knows
nothing of minisockets: TIME-WAIT is always one, an orphan's FIN-WAIT-2 mostly (a full socket that
becomes one goes from FIN-WAIT-2 to CLOSE, just as one that ends: tcp_time_wait() in
net/ipv4/tcp_minisocks.c), and SYN-RECV is one until the handshake is done. What follows that CLOSE
and what precedes that handshake is therefore read off the looks. They tell it to within SAMPLING
seconds, since an agent looks as soon as its poll notices a change.

A TIME-WAIT should last a minute, but an RST may end it after some microseconds (RFC 1337; busy
hosts do that to each other now and then), and then no look shows it. Whether there was one is read
off the capture: there is where the peer's FIN came and was acknowledged (RFC 9293, section 3.10.7).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from labctl.probes.observations import stays_inside
from labctl.probes.sockets import Address, Socket, State
from labctl.record.events import SocketsEvent
from labctl.record.history import History
from labctl.record.traced import NEAR, Key, Life, Wire, told

SAMPLING = NEAR
"""Seconds within which an agent notices a change and has looked."""

FOLLOWING: Mapping[State, frozenset[State]] = {
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
"""RFC 9293, section 3.3.2: the states of a connection and what may follow each, but for its end,
which may follow all of them."""


@dataclass(frozen=True)
class Moment:
    """When something happened, in seconds since the run began: between two times, or, where the
    kernel told it, exactly then."""

    earliest: float
    latest: float

    @property
    def exact(self) -> bool:
        """Whether the kernel told it."""
        return self.earliest == self.latest

    def __str__(self) -> str:
        if self.exact:
            return f"{self.earliest:.6f}"
        return f"{self.earliest:.3f}..{self.latest:.3f}"


@dataclass(frozen=True)
class Span:
    """A connection was in `state` from `begin` to `end`, or is still (None)."""

    state: State
    begin: Moment
    end: Moment | None = None

    def lasted(self, now: float) -> tuple[float, float]:
        """For how many seconds at least and at most."""
        if self.end is None:
            return max(0.0, now - self.begin.latest), math.inf
        shortest = max(0.0, self.end.earliest - self.begin.latest)
        return shortest, self.end.latest - self.begin.earliest


@dataclass(frozen=True)
class Timeline:
    """One connection as one of its ends lived it: `incarnation` counts those of the same addresses.

    `traced` tells whether the kernel told of its transitions; where it did not, states between two
    spans may have been missed. `gap` is why something may be missing although it did.
    """

    local: str
    remote: str
    incarnation: int
    spans: tuple[Span, ...]
    traced: bool
    gap: str | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing is left of it."""
        return self.spans[-1].end is not None

    @property
    def states(self) -> tuple[State, ...]:
        """Its states in order."""
        return tuple(span.state for span in self.spans)

    @property
    def complete(self) -> bool:
        """Whether no state can have been missed."""
        return self.traced and self.gap is None

    @property
    def name(self) -> str:
        """`198.18.0.2:8000 -> 198.18.0.3:40312`, and which of several with these addresses."""
        again = f" (#{self.incarnation})" if self.incarnation > 1 else ""
        return f"{self.local} -> {self.remote}{again}"


def reachable(start: State, end: State) -> bool:
    """Whether a connection can come from one state to another, directly or not."""
    return end in FOLLOWING[start] or any(reachable(state, end) for state in FOLLOWING[start])


def missable(before: State, after: State | None) -> bool:
    """Whether a state may lie between two others, or between one and the end (None)."""
    between = FOLLOWING[before] - {after}
    return any(after is None or reachable(state, after) for state in between)


def timelines(history: History, host: str) -> list[Timeline]:
    """Every connection of a host, in order of appearance, up to the history's end."""
    looks = _Looks(e for e in history.events if isinstance(e, SocketsEvent) and e.host == host)
    traced = is_traced(history)
    troubles = [
        history.trouble[host, probe]
        for probe in ("ss", *(["trace"] if traced else []))
        if (host, probe) in history.trouble
    ]
    told_all = traced and (host, "trace") not in history.trouble
    lives = told(history, host).lives
    wire = Wire(history, host)
    found: list[Timeline] = []
    for key in dict.fromkeys([*lives, *looks.seen]):
        mine = lives.get(key, [])
        walks = [_joined(key, mine, number, looks, wire) for number in range(len(mine))]
        walks = sorted([*walks, *_sampled(key, looks, walks, told_all)], key=_beginning)
        found += [replace(t, incarnation=number) for number, t in enumerate(walks, 1)]
    for trouble in troubles:
        found = [replace(t, gap=trouble.text) if _beginning(t) < trouble.t else t for t in found]
    return sorted(found, key=_beginning)


def is_traced(history: History) -> bool:
    """Whether the kernel told of the lab's transitions."""
    return history.lab is not None and "trace" in history.lab.environment.get("probes", ())


def unseen(history: History, host: str, seen: Iterable[Timeline]) -> bool:
    """Whether a host may have had a connection, for a moment, that is none of those that were
    seen: where not all was traced, the wire tells. Addresses that several hosts have, as those of
    loopback, are not traced on each."""
    wire = Wire(history, host)
    if history.misses_inside(host):
        return True
    looked_at = {(timeline.local, timeline.remote) for timeline in seen}
    if is_traced(history) and (host, "trace") not in history.trouble:
        if told(history, host).others and not wire.complete:
            return True
        return any(stays_inside(*key) for key in wire.connections - looked_at)
    return not wire.complete or bool(wire.connections - looked_at)


def _beginning(timeline: Timeline) -> float:
    return timeline.spans[0].begin.latest


# --- What ss showed -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sighting:
    """A socket in the look with this number."""

    look: int
    socket: Socket

    @property
    def mini(self) -> bool:
        """Whether it is a minisocket that waits for its end."""
        timer = self.socket.timer
        return self.socket.state is State.TIME_WAIT or (
            self.socket.state is State.FIN_WAIT_2 and timer is not None and timer.name == "timewait"
        )

    @property
    def cookie(self) -> str:
        """What the kernel knows it by, from request to TIME-WAIT, since `ss` first asked."""
        words = self.socket.info.split()
        return next((word for word in words if word.startswith("sk:")), "")

    def precedes(self, later: _Sighting) -> bool:
        """Whether the same connection may be seen again so by the next look."""
        before, after = self.socket.state, later.socket.state
        return (
            later.look == self.look + 1
            and (self.cookie == later.cookie or "" in (self.cookie, later.cookie))
            and (before == after or reachable(before, after))
        )


class _Looks:
    """A host's looks: when they were, and the connections that they showed."""

    def __init__(self, events: Iterable[SocketsEvent]) -> None:
        self.times: list[float] = []
        self.seen: dict[Key, list[_Sighting]] = {}
        for event in events:
            for socket in event.sockets:
                if socket.connection:
                    key = (_plain(socket.local), _plain(socket.remote))
                    self.seen.setdefault(key, []).append(_Sighting(len(self.times), socket))
            self.times.append(event.t)

    def between(self, key: Key, low: float, high: float) -> list[_Sighting]:
        """Where a connection was seen in [low, high), in order."""
        return [s for s in self.seen.get(key, ()) if low <= self.times[s.look] < high]

    def noticed(self, look: int) -> Moment:
        """When what a look is the first to show happened. `ss` runs a little after its `t`."""
        t = self.times[look]
        return Moment(max(self._before(look), t - SAMPLING), t + SAMPLING)

    def missing(self, last: _Sighting, until: float = math.inf) -> Moment | None:
        """When a connection ended that was seen last so; None where it may be there still."""
        following = last.look + 1
        if following < len(self.times) and self.times[following] < until:
            return self.noticed(following)
        if until == math.inf:
            return None
        return Moment(max(self.times[last.look], until - SAMPLING), until)

    def after(self, t: float, until: float) -> float | None:
        """The time of the first look from `t` on, before `until`."""
        return next((at for at in self.times if t <= at < until), None)

    def _before(self, look: int) -> float:
        return self.times[look - 1] if look else 0.0


def _plain(address: Address) -> str:
    return str(Address(address.unmapped, address.port))


def _sampled(
    key: Key, looks: _Looks, told: Sequence[Timeline], told_all: bool
) -> Iterator[Timeline]:
    """What only `ss` saw. Of a mere request that is all there was, where the kernel tells of each
    full socket."""
    told_all = told_all and not stays_inside(*key)
    run: list[_Sighting] = []
    for sighting in looks.seen.get(key, ()):
        if any(_covers(timeline, looks.times[sighting.look]) for timeline in told):
            continue
        if run and not run[-1].precedes(sighting):
            yield _run(key, run, looks, told_all)
            run = []
        run.append(sighting)
    if run:
        yield _run(key, run, looks, told_all)


def _covers(timeline: Timeline, t: float) -> bool:
    end = timeline.spans[-1].end
    return timeline.spans[0].begin.earliest - SAMPLING <= t and (
        end is None or t <= end.latest + SAMPLING
    )


def _run(key: Key, run: Sequence[_Sighting], looks: _Looks, told_all: bool) -> Timeline:
    changes = [run[0]] + [b for a, b in pairwise(run) if a.socket.state != b.socket.state]
    begins = [looks.noticed(sighting.look) for sighting in changes]
    ends = [*begins[1:], looks.missing(run[-1])]
    spans = tuple(
        Span(sighting.socket.state, begin, end)
        for sighting, begin, end in zip(changes, begins, ends, strict=True)
    )
    requested = all(span.state is State.SYN_RECV for span in spans)
    return Timeline(*key, 1, spans, traced=told_all and requested)


# --- What the kernel told -------------------------------------------------------------------------


def _joined(key: Key, lives: Sequence[Life], number: int, looks: _Looks, wire: Wire) -> Timeline:
    """One of a key's lives, with what `ss` saw before it was a full socket, and after."""
    life = lives[number]
    since = lives[number - 1][-1].t if number else 0.0
    until = lives[number + 1][0].t if number + 1 < len(lives) else math.inf
    spans = [
        Span(State(event.new), _exactly(event.t), _exactly(following.t))
        for event, following in pairwise(life)
    ]
    gap = None
    if any(other[0].t < life[-1].t and life[0].t < other[-1].t for other in lives if other != life):
        gap = "another socket on this machine had the same ends at the same time"
    elif any(event.new != following.old for event, following in pairwise(life)):
        gap = "a transition is missing"
    if not life.born:
        first = Moment(0.0, life[0].t)
        spans.insert(0, Span(State(life[0].old), first, _exactly(life[0].t)))
        gap = "its beginning is missing"
    elif life[0].old == State.LISTEN and spans:
        spans[0] = replace(spans[0], begin=_requested(key, life[0].t, since, looks))
    elif life[0].old == State.SYN_RECV:
        requested = _requested(key, life[0].t, since, looks)
        spans.insert(0, Span(State.SYN_RECV, requested, _exactly(life[0].t)))
    if not life.over:
        end = None if until == math.inf else Moment(life[-1].t, until)
        spans.append(Span(State(life[-1].new), _exactly(life[-1].t), end))
        gap = gap or (None if end is None else "its end is missing")
    elif spans[-1].state in (State.FIN_WAIT_2, State.CLOSING):
        spans[-1:], unseen = _shrunk(key, spans[-1], until, looks, wire)
        gap = gap or unseen
    return Timeline(*key, 1, tuple(spans), traced=True, gap=gap)


def _exactly(t: float) -> Moment:
    return Moment(t, t)


def _requested(key: Key, t: float, since: float, looks: _Looks) -> Moment:
    """When the SYN came of a connection whose handshake was done at `t`."""
    latest = bisect_left(looks.times, t) - 1
    seen = [s for s in looks.between(key, since, t) if s.socket.state is State.SYN_RECV]
    if seen and seen[-1].look == latest:  # else that was an earlier request, and came to nothing
        first = seen.pop()
        while seen and seen[-1].precedes(first):
            first = seen.pop()
        noticed = looks.noticed(first.look)
        return Moment(noticed.earliest, min(noticed.latest, t))
    before = looks.times[latest] if latest >= 0 else 0.0
    return Moment(max(before, t - SAMPLING), t)


def _shrunk(
    key: Key, full: Span, until: float, looks: _Looks, wire: Wire
) -> tuple[list[Span], str | None]:
    """What became of a socket that ended as a full one in FIN-WAIT-2 or CLOSING; and what is not
    known of that, if anything."""
    assert full.end
    t = full.end.latest
    seen = [s for s in looks.between(key, t - SAMPLING, until) if s.mini]
    waiting = [s for s in seen if s.socket.state is State.TIME_WAIT]
    if waiting:
        began = _exactly(t)
        if full.state is State.FIN_WAIT_2:
            shown = looks.noticed(waiting[0].look)
            began = Moment(max(t, shown.earliest), shown.latest)
        end = looks.missing(seen[-1], until)
        return [replace(full, end=began), Span(State.TIME_WAIT, began, end)], None
    after = looks.after(t, until)
    if seen:
        end = looks.missing(seen[-1], until)
    else:
        end = Moment(t, until if after is None else after + SAMPLING)
    if end is None:
        return [replace(full, end=None)], None
    if end.latest == math.inf:
        return [full], f"no look tells what followed {full.state}"
    if full.state is State.CLOSING or not wire.complete or key[::-1] not in wire.flows:
        return [replace(full, end=end)], "a short TIME-WAIT may have been missed"
    taken = wire.end_taken(key, full.begin.earliest - SAMPLING, until)
    if taken is None:
        return [replace(full, end=end)], None
    came, answered = taken
    began = Moment(max(t, came), max(t, answered))
    end = Moment(began.earliest, max(began.latest, end.latest))
    return [replace(full, end=began), Span(State.TIME_WAIT, began, end)], None
