"""Each connection's states in order, from the tracepoint, looks by `ss` and captures. There is only
this one reconstruction: verdicts and pictures both use it.

The kernel's tracepoint reports every transition of a full socket, to the microsecond. It knows
nothing of minisockets: TIME-WAIT is always one, an orphan's FIN-WAIT-2 mostly, and SYN-RECV is one
until the handshake is done. (A full socket that becomes a minisocket goes from FIN-WAIT-2 to CLOSE,
just like one that ends: tcp_time_wait() in net/ipv4/tcp_minisocks.c.) So the looks (looks.py) must
show what follows that CLOSE and what precedes that handshake, and the wire narrows the moments
(courses.py).

A TIME-WAIT should last a minute, but an RST may end it after some microseconds (RFC 1337; busy
hosts do that to each other now and then), and then no look shows it. The capture shows whether
there was one: if the peer's FIN came and was acknowledged (RFC 9293, section 3.10.7).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise, zip_longest

from labctl.ground.data import dataclass
from labctl.probes.observations import stays_inside
from labctl.probes.sockets import Ends, State
from labctl.probes.traffic import Chosen
from labctl.record.courses import Bounds, Causes, Course
from labctl.record.history import History
from labctl.record.inferred import Inferred, inferred
from labctl.record.looks import FOLLOWING, SAMPLING, Looks, Sighting, reachable
from labctl.record.moments import VAGUE, Moment
from labctl.record.traced import Life, Wire, traced_beside, traced_lives

CLOSED = "closed"
"""The end of the states: nothing is left of the connection."""


@dataclass(frozen=True, slots=True)
class Span:
    """A connection was in `state` from `begin` to `end`, or is still (None)."""

    state: State
    begin: Moment
    end: Moment | None = None

    @property
    def certain(self) -> bool:
        """Whether it came to that state at all."""
        return self.begin.latest < math.inf

    @property
    def vague(self) -> float | None:
        """From when on it may have been over long before it certainly was, if that is so."""
        end = self.end
        return end.earliest if end and end.at - end.earliest > VAGUE else None

    def lasted(self, now: float) -> tuple[float, float]:
        """How many seconds it lasted, at least and at most."""
        if self.end is None:
            return max(0.0, now - self.begin.latest), math.inf
        shortest = max(0.0, self.end.earliest - self.begin.latest)
        return shortest, self.end.latest - self.begin.earliest


@dataclass(frozen=True, slots=True)
class Timeline:
    """One connection as one of its ends saw it: `incarnation` counts those of the same addresses.

    `traced` says whether the kernel reported its transitions; if not, the looks may have missed
    states between two spans. `inferred`: only segments tell of it. `gap` says why something may be
    missing although it did.
    """

    local: str
    remote: str
    incarnation: int
    spans: tuple[Span, ...]
    traced: bool
    gap: str | None = None
    inferred: bool = False

    @property
    def closed(self) -> bool:
        """Whether nothing is left of it."""
        return self.spans[-1].end is not None and not self.lost_sight

    @property
    def lost_sight(self) -> bool:
        """Whether nobody knows when its last state ended, or whether it did."""
        end = self.spans[-1].end
        return end is not None and end.latest == math.inf

    @property
    def states(self) -> tuple[State, ...]:
        """Its states in order."""
        return tuple(span.state for span in self.spans)

    @property
    def walk(self) -> tuple[str, ...]:
        """Its states as words, and `closed` if nothing is left of it."""
        return (*self.states, *([CLOSED] if self.closed else []))

    @property
    def ends(self) -> Ends:
        """Its ends, in the spelling of segments."""
        return self.local, self.remote

    @property
    def complete(self) -> bool:
        """Whether nothing can have missed a state."""
        return (self.traced or self.inferred) and self.gap is None

    @property
    def name(self) -> str:
        """`198.18.0.2:8000 -> 198.18.0.3:40312`, and a number if several have these addresses."""
        again = f" (#{self.incarnation})" if self.incarnation > 1 else ""
        return f"{self.local} -> {self.remote}{again}"


MANY = 100_000  # events, of which it matters how much memory they take
CLOCKS = 0.001
"""Seconds by which the times of one thing may differ, at most, in captures and in the trace."""


@cache
def missable(before: State, after: State | None) -> bool:
    """Whether a state may lie between two others, or between one and the end (None)."""
    between = FOLLOWING[before] - {after}
    return any(after is None or reachable(state, after) for state in between)


def timelines(history: History, host: str, chosen: Chosen | None = None) -> list[Timeline]:
    """Every connection of a host, or the `chosen` ones, in order of appearance, up to the history's
    end."""
    upto = len(history.events), history.now, chosen
    if history.derived.get(f"timelines {host}", ("",))[0] != upto:
        history.derived.pop(f"timelines {host}", None)
        each = sorted(unsorted(history, host, chosen), key=beginning)
        history.derived[f"timelines {host}"] = upto, each
    found: list[Timeline] = history.derived[f"timelines {host}"][1]
    return found


def unsorted(history: History, host: str, chosen: Chosen | None = None) -> Iterator[Timeline]:
    """The same in any order: as a list they take much memory."""
    if history.imported:
        yield from _of_captures(history, host, chosen)
        return
    traced = is_traced(history)
    probes = ("ss", "trace") if traced else ("ss",)
    troubles = [history.trouble[host, p] for p in probes if (host, p) in history.trouble]
    told_all = traced and (host, "trace") not in history.trouble
    if len(history.events) > MANY:
        history.segments(chosen)  # to put them together takes much memory, and so do lives
    lives = traced_lives(history, host, chosen).lives
    looks, causes = Looks(history, host, chosen), Causes(history, host, chosen)
    forgets = bool(history.growth(host, "TcpExtTCPTimeWaitOverflow"))
    known = _Known(looks, causes, Wire(history, host, chosen), forgets)
    for key in dict.fromkeys([*lives, *looks.seen]):
        mine = lives.pop(key, [])
        walks = [_joined(key, mine, number, known) for number in range(len(mine))]
        walks += [*_sampled(key, looks, walks, told_all, causes)]
        for number, found in enumerate(sorted(walks, key=beginning), 1):
            gaps = [found.gap, *(t.text for t in troubles if beginning(found) < t.t)]
            yield replace(found, incarnation=number, gap=gaps[-1])


def _of_captures(history: History, host: str, chosen: Chosen | None) -> list[Timeline]:
    """The connections of a host of which captures from elsewhere tell, and those that only looks
    showed."""
    found = list(_numbered(map(_inferred, inferred(history, host, chosen))))
    told = {timeline.ends for timeline in found}
    looks, causes = Looks(history, host, chosen), Causes(history, host, chosen)
    for key in looks.seen.keys() - told:
        found += _numbered(_sampled(key, looks, (), False, causes))
    return found


def _inferred(found: Inferred) -> Timeline:
    """A connection of which only segments tell."""
    moments = [moment for _, moment in found.turns]
    spans = [
        Span(state, begin, end)
        for (state, begin), end in zip_longest(found.turns, moments[1:])
        if state is not None
    ]
    return Timeline(*found.ends, 1, tuple(spans), traced=False, gap=found.gap, inferred=True)


def _numbered(found: Iterable[Timeline]) -> Iterator[Timeline]:
    """The same, those of the same ends numbered."""
    times: Counter[Ends] = Counter()
    for timeline in found:
        times[timeline.ends] += 1
        yield replace(timeline, incarnation=times[timeline.ends])


def is_traced(history: History) -> bool:
    """Whether the kernel reported the lab's transitions."""
    return history.lab is not None and "trace" in history.lab.environment.get("probes", ())


def unseen(history: History, host: str, seen: Iterable[Timeline]) -> bool:
    """Whether a host may have had a connection, for a moment, that nobody saw. If not all was
    traced, the wire shows it. The trace does not say which host it is for addresses that several
    hosts have, as on loopback."""
    wire = Wire(history, host)
    if history.misses_inside(host):
        return True
    looked_at = {(timeline.local, timeline.remote) for timeline in seen}
    if is_traced(history) and (host, "trace") not in history.trouble:
        if traced_beside(history, host).others and not wire.complete:
            return True
        return any(stays_inside(*key) for key in wire.connections - looked_at)
    return not wire.complete or bool(wire.connections - looked_at)


def beginning(timeline: Timeline) -> float:
    """When it certainly was there, by which timelines are in order."""
    return timeline.spans[0].begin.latest


# --- When -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Turn:
    """A connection came to a state, or to its end (None), at a moment. The moment is certainly not
    before `floor`, and its cause is before `limit`. `closed` is when the kernel reported that it
    was no full socket any more; `left` is when the state before may have ended, at the earliest.
    """

    state: State | None
    moment: Moment
    floor: float
    limit: float = math.inf
    closed: float | None = None
    left: float = math.inf


def _told(state: State | None, t: float) -> _Turn:
    return _Turn(state, Moment(t, t), t, t)


def _noticed(state: State | None, look: int, looks: Looks, closed: float | None = None) -> _Turn:
    moment, floor = looks.noticed(look), looks.before(look)
    if closed is not None:
        moment = moment.within(max(moment.earliest, closed), moment.latest)
        floor = max(floor, closed)
    return _Turn(state, moment, floor, looks.time(look + 1), closed)


def _missed(last: Sighting, until: float, looks: Looks) -> _Turn | None:
    """The end of a connection after its `last` sighting, if its next incarnation began at `until`;
    None if it may still be there."""
    seen, following = looks.times[last.last], last.last + 1
    if looks.time(following) < until:
        return _noticed(None, following, looks)
    if until == math.inf:
        return None
    return _Turn(None, Moment(max(seen, until - SAMPLING), until), seen)


def _spans(key: Ends, turns: Sequence[_Turn], causes: Causes) -> tuple[Span, ...]:
    """The states that a connection came to. The wire narrows the moments, and so do the moments
    before and after."""
    if not all(turn.moment.exact for turn in turns):
        _narrow(key, turns, causes)
        _guess(key, turns, causes)
    found = []
    for turn, following in zip_longest(turns, turns[1:]):
        if turn.state is None:
            break
        end: Moment | None = None
        if following:
            end = following.moment
            if _skips(turn.state, following.state):
                left = min(following.left, end.earliest)
                end = end.within(max(left, turn.moment.earliest), end.latest)
        found.append(Span(turn.state, turn.moment, end))
    return tuple(found)


def _skips(before: State, after: State | None) -> bool:
    """Whether looks may have missed a state between two that they showed. A connection that one SYN
    opened is never in SYN-RECV after SYN-SENT."""
    return (before, after) != (State.SYN_SENT, State.ESTAB) and missable(before, after)


def _narrow(key: Ends, turns: Sequence[_Turn], causes: Causes) -> None:
    first = turns[0]
    until = first.moment.latest
    if first.state is State.SYN_SENT:  # its SYN may leave late
        until = turns[1].moment.latest if len(turns) > 1 else math.inf
    course = causes.course(key, first.floor - CLOCKS, until)
    wire = [_bounds(turn, course, causes) for turn in turns]
    following = math.inf
    for turn, (earliest, latest) in zip(reversed(turns), reversed(wire), strict=True):
        if not turn.moment.exact:
            low, high = turn.moment.earliest, min(turn.moment.latest, max(following, turn.floor))
            if latest is not None and max(turn.floor, earliest or 0.0) <= latest:
                high = min(high, latest)
            if high < low:  # the agent was late
                low = turn.floor
            turn.moment = turn.moment.within(low, high)
        turn.left, following = turn.moment.earliest, turn.moment.latest
    before = 0.0
    for turn, (earliest, _) in zip(turns, wire, strict=True):
        for bound in (earliest, before):
            if bound is not None and turn.moment.earliest < bound <= turn.moment.latest:
                turn.moment = turn.moment.within(bound, turn.moment.latest)
        before = turn.moment.earliest


def _bounds(turn: _Turn, course: Course | None, causes: Causes) -> Bounds:
    if course is None or turn.moment.exact:
        return None, None
    earliest, latest = causes.bounds(course, turn.state, turn.moment.latest)
    if turn.closed is not None and course.taken is not None:
        latest = max(turn.closed, course.taken)  # it was TIME-WAIT at once, or else a minisocket
    return earliest, latest


def _guess(key: Ends, turns: Sequence[_Turn], causes: Causes) -> None:
    after, old = turns[0].floor, None
    for turn in turns:
        if not turn.moment.exact and turn.moment.guess is None:
            if turn.state is State.SYN_RECV:
                guess = causes.request(key, after, turn.limit)
            else:
                guess = causes.cause(key, old, turn.state, after, turn.limit)
            guess = turn.closed if guess is None else guess
            turn.moment = replace(turn.moment, guess=guess)
        if not turn.moment.exact and turn.moment.at < after:
            turn.moment = replace(turn.moment, guess=after)
        after, old = turn.moment.at, turn.state


# --- What ss showed -------------------------------------------------------------------------------


def _sampled(
    key: Ends, looks: Looks, told: Sequence[Timeline], told_all: bool, causes: Causes
) -> Iterator[Timeline]:
    """What only `ss` saw. If the kernel reports each full socket, that can only be a request."""
    told_all = told_all and not stays_inside(*key)
    run: list[Sighting] = []
    for whole in looks.seen.get(key, ()):
        for sighting in _uncovered(whole, looks, told, told_all):
            if run and not run[-1].precedes(sighting):
                yield _run(key, run, looks, told_all, causes)
                run = []
            run.append(sighting)
    if run:
        yield _run(key, run, looks, told_all, causes)


def _uncovered(
    sighting: Sighting, looks: Looks, told: Sequence[Timeline], told_all: bool
) -> Iterator[Sighting]:
    """Those looks of a sighting that may not be of a socket that the kernel told of."""

    def covered(look: int) -> set[int]:
        t = latest = looks.times[look]
        if told_all and sighting.state is not State.SYN_RECV:
            # The kernel has reported each full socket, however late `ss` ran.
            latest = looks.time(look + 1)
        return {number for number, each in enumerate(told) if _covers(each, t, latest)}

    if not told:
        yield sighting
        return
    if covered(sighting.look) & covered(sighting.last):
        return  # and so at all looks between
    for look in range(sighting.look, sighting.last + 1):
        if not covered(look):
            yield Sighting(look, sighting.socket, look)


def _covers(timeline: Timeline, t: float, latest: float) -> bool:
    """Whether it may be the socket that was seen from `t` on, at `latest`."""
    end = timeline.spans[-1].end
    begun = timeline.spans[0].begin.earliest - SAMPLING <= latest
    return begun and (end is None or t <= end.latest + SAMPLING)


def _run(
    key: Ends, run: Sequence[Sighting], looks: Looks, told_all: bool, causes: Causes
) -> Timeline:
    changes = [run[0]] + [b for a, b in pairwise(run) if a.state != b.state]
    turns = [_noticed(sighting.state, sighting.look, looks) for sighting in changes]
    if end := _missed(run[-1], math.inf, looks):
        turns.append(end)
    requested = all(sighting.state is State.SYN_RECV for sighting in run)
    spans = _spans(key, turns, causes)
    return Timeline(*key, 1, spans, traced=told_all and requested)


# --- What the kernel told -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """What else is known of a host's sockets."""

    looks: Looks
    causes: Causes
    wire: Wire
    forgets: bool
    """Whether it had no room for some TIME-WAIT."""


def _joined(key: Ends, lives: Sequence[Life], number: int, known: _Known) -> Timeline:
    """One of a key's lives, with what `ss` saw before and after it was a full socket."""
    mine = lives[number]
    life = [*mine]
    since = lives[number - 1][-1].t if number else 0.0
    until = lives[number + 1][0].t if number + 1 < len(lives) else math.inf
    turns = [_told(State(event.new), event.t) for event in life]
    gap = None
    if any(map(mine.overlaps, lives)):
        gap = "another socket on this machine had the same ends at the same time"
    elif any(event.new != following.old for event, following in pairwise(life)):
        gap = "a transition is missing"
    if not mine.born:
        turns.insert(0, _Turn(State(life[0].old), Moment(0.0, life[0].t), 0.0, life[0].t))
        gap = "its beginning is missing"
    elif life[0].old == State.LISTEN:
        turns[0] = _requested(key, life[0].t, since, known.looks)
    elif life[0].old == State.SYN_RECV:
        turns.insert(0, _requested(key, life[0].t, since, known.looks))
    if not mine.over:
        if until != math.inf:
            turns.append(_Turn(None, Moment(life[-1].t, until), life[-1].t, until))
            gap = gap or "its end is missing"
    else:
        turns[-1].state = None
        if len(turns) > 1 and turns[-2].state in (State.FIN_WAIT_2, State.CLOSING):
            turns[-1:], unseen = _shrunk(key, turns[-2:], until, known)
            gap = gap or unseen
    return Timeline(*key, 1, _spans(key, turns, known.causes), traced=True, gap=gap)


def _requested(key: Ends, t: float, since: float, looks: Looks) -> _Turn:
    """When the SYN of a connection came whose handshake was done at `t`."""
    latest = bisect_left(looks.times, t) - 1
    sightings = looks.between(key, since, t)
    while sightings and sightings[-1].last == latest and sightings[-1].state != State.SYN_RECV:
        latest = sightings.pop().look - 1  # `ss` ran later than `t`
    seen = [s for s in sightings if s.state is State.SYN_RECV]
    if seen and seen[-1].last == latest:  # else that was an earlier request without a connection
        first = seen.pop()
        while seen and seen[-1].precedes(first):
            first = seen.pop()
        noticed = looks.noticed(first.look)
        moment = noticed.within(noticed.earliest, min(noticed.latest, t))
        return _Turn(State.SYN_RECV, moment, looks.before(first.look), t)
    before = looks.times[latest] if latest >= 0 else 0.0
    moment = Moment(max(before, t - SAMPLING), t)
    # A look that ran late may have missed a short request.
    return _Turn(State.SYN_RECV, moment, max(before - SAMPLING, since), t)


def _shrunk(
    key: Ends, full: Sequence[_Turn], until: float, known: _Known
) -> tuple[list[_Turn], str | None]:
    """What came after FIN-WAIT-2 or CLOSING when a full socket ended there, with both turns; and
    what is not known of it, if anything."""
    looks, wire = known.looks, known.wire
    state, t = full[0].state, full[1].moment.at
    sightings = looks.between(key, t - SAMPLING, until)
    seen = [s for s in sightings if s.mini or (s.state == state and looks.times[s.last] >= t)]
    end = _missed(seen[-1], until, looks) if seen else None
    waiting = next((s for s in seen if s.state is State.TIME_WAIT), None)
    if waiting:
        began = _told(State.TIME_WAIT, t)
        if state is State.FIN_WAIT_2:
            began = _noticed(State.TIME_WAIT, waiting.look, looks, t)
        return [began, end] if end else [began], None
    if seen:
        return [end] if end else [], None
    after = looks.after(t, until)
    if after is None and until == math.inf:
        return [_Turn(None, Moment(t, until, t), t)], f"no look tells what followed {state}"
    latest = until if after is None else after + SAMPLING
    end = _Turn(None, Moment(t, latest, t, after), t)
    if state is State.CLOSING or not wire.complete or not wire.flow(key[::-1]):
        return [end], "a short TIME-WAIT may have been missed"
    taken = wire.end_taken(key, full[0].moment.earliest - SAMPLING, until)
    if taken is None:
        return [end], None
    if known.forgets:
        return [end], "there may have been no room for a TIME-WAIT (net.ipv4.tcp_max_tw_buckets)"
    came, answered = (max(t, moment) for moment in taken)
    began = _Turn(State.TIME_WAIT, Moment(came, answered, came if came < answered else None), t)
    end.moment = Moment(came, max(answered, latest), seen=after)
    return [began, end], None
