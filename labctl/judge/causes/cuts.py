"""Exchanges that were cut off: a request that crossed the end of an idle connection, and what one
connection of a host lost by the end of another (RFC 9112, section 9.3 and 9.5)."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from heapq import heappop, heappush
from itertools import islice, takewhile

from labctl.ground.data import dataclass
from labctl.ground.written import count
from labctl.judge.causes.cause import Cause, Scene, line
from labctl.judge.causes.descriptors import Descriptor
from labctl.probes.observations import Segment, stays_inside
from labctl.probes.sockets import State
from labctl.record.timelines import Timeline

RACE = "RFC 9112, section 9.5 (a client may find the connection closed)"
PROXY = "RFC 9110, sections 7.6 and 15.6.3"
HALF = "RFC 9293, section 3.6; shutdown(2)"
IDLE = 0.25
"""Seconds without data after which a connection is idle."""
NEAR = 50
"""Connections that a host has accepted and has open at once, at most: of more, nobody knows which
one another was opened for."""
MOST = 20
"""Connections of a host that were cut off, at most, that are told of."""
SOON = 0.5
"""Seconds from the end of one connection to that of another of which it may be the reason."""
LATER = 0.05
"""Seconds after its FIN at which a program closes a connection later than at once."""
ENDS = {"FIN", "RST"}


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each request that crossed a FIN, and for each connection that was cut off."""
    for segments in scene.conversations:
        if found := _race(segments):
            yield found
    for host in scene.history.hosts:
        yield from _proxied(host, scene)


# --- A request and a FIN --------------------------------------------------------------------------


def _race(segments: Sequence[Segment]) -> Cause | None:
    """The first data after an idle time, if its sender did not know of the FIN yet, and the FIN's
    sender did not know of the data, and answered it by an RST."""
    fin = next((s for s in segments if ENDS & {*s.flags}), None)
    if fin is None or "RST" in fin.flags or fin.crafted or fin.length or fin.inside:
        return None
    asks = [s for s in segments if s.source == fin.target and s.length and not s.crafted]
    late = [s for s in asks if s.seq >= fin.ack]
    arrived = _came(fin, segments)
    if not late or late[0].ack > fin.seq or (arrived is not None and late[0].time >= arrived):
        return None
    before = [
        s for s in segments if s.time < fin.time and (s.source == fin.source or s.seq < fin.ack)
    ]
    data = [s for s in before if s.length]
    idle = min(fin.time, late[0].time) - max((s.time for s in data or before), default=fin.time)
    answered = not data or data[-1].source == fin.source
    reset = next(
        (s for s in segments if s.source == fin.source and "RST" in s.flags and not s.crafted
         and s.time >= late[0].time),
        None,
    )  # fmt: skip
    if idle < IDLE or not answered or reset is None:
        return None
    ask = late[0]
    who, server = ask.sender or ask.source, fin.sender or fin.source
    name = f"{ask.source} -> {ask.target}"
    return Cause(
        "idle-race", who, ask.time,
        f"{who}: a request of {count(ask.length, 'byte')} on {name} crossed the FIN of {server}, "
        f"which closed that connection after {idle:.1f} s without data: neither knew of the other, "
        f"and {server} answered the request by an RST",
        "let the client drop an idle connection sooner than the server does, and repeat such a "
        "request on a new one",
        name, (line(fin), line(ask), line(reset)), (RACE,),
    )  # fmt: skip


def _came(fin: Segment, segments: Sequence[Segment]) -> float | None:
    """When a FIN arrived, or a copy of it."""
    copies = (s.arrived for s in segments if s.source == fin.source and "FIN" in s.flags)
    return min((t for t in copies if t is not None), default=None)


# --- Two connections of one host ------------------------------------------------------------------


@dataclass(frozen=True)
class _Leg:
    """A connection of a host that has two, and what was sent in it."""

    host: str
    timeline: Timeline
    scene: Scene

    @property
    def began(self) -> float:
        """When it began."""
        return self.timeline.spans[0].begin.at

    @property
    def until(self) -> float:
        """When nothing was left of it there."""
        end = self.timeline.spans[-1].end
        return end.latest if end else math.inf

    @cached_property
    def segments(self) -> Sequence[Segment]:
        """What its ends sent each other."""
        until = min(self.until, self.scene.history.now)
        found = self.scene.conversation(self.host, self.timeline.ends, until)
        return [s for s in found if not s.crafted]

    @cached_property
    def descriptor(self) -> Descriptor | None:
        """The socket that it is, if a process's calls tell of it."""
        until = min(self.until, self.scene.history.now)
        return self.scene.descriptor(self.host, self.timeline.ends, until)

    @cached_property
    def end(self) -> Segment | None:
        """The first FIN or RST."""
        return next((s for s in self.segments if ENDS & {*s.flags}), None)

    @property
    def ended(self) -> float:
        """When the host sent that, or had it."""
        end = self.end
        if end is None:
            return math.inf
        return end.time if self.ours(end) else math.inf if end.arrived is None else end.arrived

    @property
    def far(self) -> str:
        """Who is at the other end."""
        known = (s.receiver if self.ours(s) else s.sender for s in self.segments)
        return next(filter(None, known), self.timeline.remote)

    @cached_property
    def unanswered(self) -> Sequence[Segment]:
        """The data that one side had sent since the other's last data, when it ended."""
        data = [s for s in self.segments if s.length and s.time < self.ended]
        last = [*takewhile(lambda s: s.source == data[-1].source, reversed(data))]
        return [s for s in reversed(last) if not s.retransmitted]

    def ours(self, segment: Segment) -> bool:
        """Whether it came from the host itself."""
        return segment.source == self.timeline.local

    @property
    def waited(self) -> float:
        """For how many seconds its program still had it open, after it had shut it down; 0 if
        nothing tells."""
        mine, scene = self.descriptor, self.scene
        shut = mine is not None and any(
            scene.descriptors.of(call) is mine and call.t < mine.closed
            for call in scene.calls(host=self.host, name="shutdown")
        )
        time = mine.closed - self.ended if mine and shut else 0.0
        return time if LATER < time < math.inf else 0.0

    @property
    def given_up(self) -> bool:
        """Whether the host, which ended it, had no use for an answer any more, or none came."""
        after = [s for s in self.segments if s.time > self.ended]
        if any(self.ours(s) and "RST" in s.flags for s in after):
            return True
        if any(s.length and not self.ours(s) for s in after):
            return False
        closed = self.descriptor.closed if self.descriptor else math.inf
        return self.timeline.closed or closed <= self.ended + SOON


def _proxied(host: str, scene: Scene) -> Iterator[Cause]:
    """Connections that a host ended right after another of its own had been ended by its peer."""
    known = scene.timelines(host)
    numbers = {False: array("I"), True: array("I")}
    for number, each in enumerate(known):
        end = each.spans[-1].end
        opened = scene.opened(host, each.ends, end.latest if end else scene.history.now)
        if opened is not None and not stays_inside(*each.ends):
            numbers[opened].append(number)
    if not all(numbers.values()):
        return
    legs = ([_Leg(host, known[n], scene) for n in mine] for mine in numbers.values())
    pairs = _pairs(*(sorted(mine, key=lambda leg: leg.began) for mine in legs))
    times = Counter(id(leg) for pair in pairs for leg in pair)
    alone = [pair for pair in pairs if times[id(pair[0])] == times[id(pair[1])] == 1]
    found = (_cut(*pair) for pair in alone)  # of several, nobody knows which belong together
    yield from islice(filter(None, found), MOST)


def _pairs(came: Sequence[_Leg], out: Sequence[_Leg]) -> list[tuple[_Leg, _Leg]]:
    """The connections of which one may have been opened for the other, by order of their
    beginnings: while that was there, by the same process. None if too many were there at once."""
    found = []
    there: list[tuple[float, int]] = []
    following = 0
    for leg in out:
        while following < len(came) and came[following].began <= leg.began:
            heappush(there, (came[following].until, following))
            following += 1
        while there and there[0][0] < leg.began:
            heappop(there)
        if len(there) > NEAR:
            return []
        found += [(came[n], leg) for _, n in there if _same(came[n], leg)]
    return found


def _same(one: _Leg, other: _Leg) -> bool:
    """Whether two connections are of one process, as far as its calls tell."""
    mine, theirs = one.descriptor, other.descriptor
    return not mine or not theirs or (mine.process, mine.start) == (theirs.process, theirs.start)


def _cut(came: _Leg, out: _Leg) -> Cause | None:
    first, other = sorted((came, out), key=lambda leg: leg.ended)
    end, cut, lost = first.end, other.end, other.unanswered
    if end is None or cut is None or first.ours(end) or not other.ours(cut) or not lost:
        return None
    asked = other.ours(lost[-1])
    if asked is not (other is out) or other.ended - first.ended > SOON:
        return None  # those were answers
    if asked and not other.given_up:
        return None
    host, half = first.host, "RST" not in end.flags and _half(first, end, other.ended)
    asker = host if asked else other.far
    how = (
        f"shut down its sending half of {first.timeline.name}, and gone on to read"
        if half else f"ended {first.timeline.name} by {'an RST' if 'RST' in end.flags else 'a FIN'}"
    )  # fmt: skip
    octets = sum(segment.length for segment in lost)
    did = (
        f"{host} ended {other.timeline.name}, of {other.far}, {other.ended - first.ended:.3f} s "
        f"after {first.far} had {how}"
    )  # fmt: skip
    if waited := half and other.waited:
        did = (
            f"{host} passed on to {other.timeline.name}, of {other.far}, that {first.far} had "
            f"{how}, and closed it {waited:.3f} s later"
        )  # fmt: skip
    known = first.descriptor is not None and other.descriptor is not None
    doubt = "" if known else "; the calls of one process on both would tell that they belong"
    cure = (
        f"let {host} wait longer for the answer after a FIN" if waited
        else f"let {host} pass a FIN on as a FIN, by shutdown, and go on with the other direction"
        if half else f"look for why {first.far} ended it, and let {host} answer with an error"
        if other is came else f"let {host} wait for the answer if the request is to count"
    )  # fmt: skip
    return Cause(
        "half-close-cut" if half else "proxy-cut", host, other.ended,
        f"{did}: the last {count(octets, 'byte')} in it, of {asker}, never got an answer{doubt}",
        cure, other.timeline.name, (line(end), line(lost[-1]), line(cut)),
        (HALF if half else PROXY,), known,
    )  # fmt: skip


def _half(leg: _Leg, fin: Segment, until: float) -> bool:
    """Whether the peer that sent a FIN still had the connection open to read from it."""
    scene, ends = leg.scene, leg.timeline.ends[::-1]
    if (mine := scene.descriptor(leg.far, ends, until)) is not None:
        return mine.closed > until and any(
            scene.descriptors.of(call) is mine for call in scene.calls(name="shutdown")
        )
    return any(
        socket.inode and socket.state in (State.FIN_WAIT_1, State.FIN_WAIT_2) and t > fin.time
        for t, socket in scene.seen(leg.far, ends)
    )
