"""The segments that caused a connection's states, or that show them.

By RFC 9293, section 3.10, a connection enters some states because a segment arrives (a FIN takes
ESTAB to CLOSE-WAIT), so not before that. It enters others because of what its host does, and a
segment shows that: a FIN leaves only after FIN-WAIT-1 or LAST-ACK has begun, maybe long after. So
segments bound the moment of a state, if the capture is complete and it is clear which segments
belong to the connection.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import field
from functools import cached_property

from labctl.ground.data import dataclass
from labctl.probes.observations import Segment
from labctl.probes.packed import Segments
from labctl.probes.sockets import Ends, State
from labctl.probes.traffic import Chosen
from labctl.record.history import History

FIN_SENT = (State.FIN_WAIT_1, State.LAST_ACK)
FIN_CAME = (State.CLOSE_WAIT, State.CLOSING)
COOKIES = "TcpExtSyncookiesSent"
"""With SYN cookies a host keeps nothing for a SYN (RFC 4987, section 3.6)."""

Passed = tuple[float, bool, Segment]
"""A segment that left a host (true) or came to it, and when."""
Bounds = tuple[float | None, float | None]
"""Before and after which something did not happen."""


@dataclass(slots=True)
class Course:
    """When each kind of segment of one connection first passed a host's wire. `opener`: who sent
    the SYN, and its number."""

    opener: tuple[bool, int]
    syns: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)  # SYN ACKs that left
    accepted: float | None = None  # a SYN ACK came
    completed: float | None = None  # an ACK came
    spoke: float | None = None  # something but SYN left
    fin_left: float | None = None
    fin_acked: float | None = None
    fin_came: float | None = None
    fin_taken: float | None = None  # an acknowledgement of that left
    ends: set[int] = field(default_factory=set)  # the numbers after the FINs that left
    their_ends: set[int] = field(default_factory=set)  # and after those that came
    furthest: int = 0  # the highest acknowledgement that left

    @property
    def active(self) -> bool:
        """Whether the host opened the connection."""
        return self.opener[0]

    @property
    def taken(self) -> float | None:
        """When it was clear that the host had accepted its peer's FIN, if there was only one."""
        return self.fin_taken if len(self.their_ends) == 1 else None

    def take(self, t: float, sent: bool, segment: Segment) -> None:
        """Takes in the next segment on the wire."""
        if "RST" in segment.flags:
            return
        following = segment.seq + segment.length + 1
        syn, fin, ack = (flag in segment.flags for flag in ("SYN", "FIN", "ACK"))
        if syn and not ack:
            self.syns.append(t)
        elif sent:
            self._left(t, segment, syn, following if fin else None)
        else:
            self._came(t, segment, syn, following if fin else None)

    def _left(self, t: float, segment: Segment, syn: bool, end: int | None) -> None:
        if syn:
            self.answers.append(t)
        elif self.spoke is None:
            self.spoke = t
        if end is not None:
            self.ends.add(end)
            self.fin_left = t if self.fin_left is None else self.fin_left
        if self.fin_taken is None and self.their_ends and segment.ack >= max(self.their_ends):
            self.fin_taken = t
        self.furthest = max(self.furthest, segment.ack)

    def _came(self, t: float, segment: Segment, syn: bool, end: int | None) -> None:
        # A segment with data may have come in parts (pairing._rejoined). `t` is when it left: its
        # first part, with the same acknowledgement, came later.
        acked = t if not segment.length or segment.t is None else segment.t
        if syn:
            self.accepted = t if self.accepted is None else self.accepted
        elif self.completed is None and "ACK" in segment.flags:
            self.completed = acked
        if end is not None and end > self.furthest:  # else it is an old number, and takes nothing
            self.fin_came = t if self.fin_came is None else self.fin_came
            self.their_ends.add(end)
        if self.fin_acked is None and self.ends and segment.ack >= min(self.ends):
            self.fin_acked = acked

    def bounds(self, state: State | None, until: float, cookies: bool) -> Bounds:
        """Between which times, by the wire, the connection entered a state that it had before
        `until`."""
        opened = self.accepted if self.active else self.syns[0]
        left = self.fin_left if len(self.ends) == 1 else None
        match state:
            case State.SYN_SENT:
                return None, self.syns[0]
            case State.SYN_RECV:
                last = max((t for t in self.syns if t <= until), default=until)
                answer = next((t for t in self.answers if t >= last), None)
                return self.syns[0], None if cookies else answer
            case State.ESTAB if self.active:
                return self.accepted, self.spoke
            case State.ESTAB:
                return self.completed, None
            case State.FIN_WAIT_1:
                return opened, left
            case State.FIN_WAIT_2:
                return self.fin_acked, None
            case State.CLOSING:
                return self.fin_came, None  # its ACK leaves first: tcp_fin() in tcp_input.c
            case State.TIME_WAIT:
                both = [t for t in (self.fin_acked, self.fin_came) if t is not None]
                return max(both, default=None), None
            case State.CLOSE_WAIT:
                return self.fin_came, self.taken
            case State.LAST_ACK:
                return self.fin_came, left
        return None, None


class Causes:
    """The segments of each connection on a host's wire, or of those that are `chosen`. Reading
    captures takes time, so this reads them only when asked."""

    def __init__(self, history: History, host: str, chosen: Chosen | None = None) -> None:
        self._history, self._host, self._chosen = history, host, chosen
        grown = history.growth(host, COOKIES) if host in history.sockets else None
        self._no_cookies, self._cookies = grown == 0, bool(grown)
        self._latest: tuple[Ends | None, list[Course]] = None, []  # one's lives come in turn
        self._last: tuple[Ends | None, list[Passed]] = None, []
        self._complete = history.captured(host) and not history.misses_inside(host)

    @cached_property
    def _segments(self) -> Segments:
        return self._history.segments(self._chosen)

    def _passed(self, ends: Ends) -> list[Passed]:
        """What passed in a connection, in order."""
        if self._last[0] == ends:
            return self._last[1]
        found: list[Passed] = []
        for segment in self._segments.between(ends):
            way = segment.source, segment.target
            if way == ends and segment.sender == self._host and segment.t is not None:
                found.append((segment.t, True, segment))
            if way[::-1] == ends and segment.receiver == self._host and segment.arrived is not None:
                arrived, off = segment.arrived, self._history.apart([segment.sender, self._host])
                if off and segment.t is not None:  # by another clock
                    segment = segment._replace(t=segment.t - off)
                found.append((arrived, False, segment))
        found.sort(key=lambda each: each[0])
        self._last = ends, found
        return found

    def course(self, ends: Ends, since: float, until: float) -> Course | None:
        """The course of the connection whose SYN passed between two moments; None if that is not
        clear."""
        if not self._complete:
            return None
        if self._latest[0] != ends:
            self._latest = ends, list(self._courses(ends))
        found = [c for c in self._latest[1] if any(since <= t <= until for t in c.syns)]
        return found[0] if len(found) == 1 else None

    def _courses(self, ends: Ends) -> Iterator[Course]:
        course: Course | None = None
        for t, sent, segment in self._passed(ends):
            if sent and segment.crafted:
                continue  # no socket's
            if "SYN" in segment.flags and "ACK" not in segment.flags:
                opener = sent, segment.base[0]
                if course is None or course.opener != opener:
                    if course:
                        yield course
                    course = Course(opener)
            if course:
                course.take(t, sent, segment)
        if course:
            yield course

    def bounds(self, course: Course, state: State | None, until: float) -> Bounds:
        """See Course.bounds."""
        return course.bounds(state, until, not self._no_cookies)

    def request(self, ends: Ends, after: float, before: float) -> float | None:
        """When, between two moments, the first SYN came that a socket answered by a SYN ACK."""
        syn = None
        for t, sent, segment in self._between(ends, after, before):
            if "SYN" not in segment.flags:
                continue
            if not sent:
                syn = t
            elif "ACK" in segment.flags:
                return None if self._cookies else syn
        return None

    def cause(
        self, ends: Ends, old: State | None, new: State | None, after: float, before: float
    ) -> float | None:
        """When, between two moments, a segment passed that takes a socket from one state to
        another."""
        return next(_causing(self._between(ends, after, before), old, new), None)

    def _between(self, ends: Ends, after: float, before: float) -> Iterator[Passed]:
        passed = self._passed(ends)
        for index in range(bisect_left(passed, after, key=lambda each: each[0]), len(passed)):
            if passed[index][0] >= before:
                return
            yield passed[index]


def _causing(passed: Iterable[Passed], old: State | None, new: State | None) -> Iterator[float]:
    """The moments in `passed` at which RFC 9293 goes from one state to the other."""
    opened = old == State.SYN_SENT
    fin_end: int | None = None
    fin_came, acknowledged = old in (State.CLOSE_WAIT, State.LAST_ACK), old == State.FIN_WAIT_2
    known = old in FIN_SENT or old == State.CLOSING  # whose FIN left before
    for t, sent, segment in passed:
        flags = segment.flags
        if "RST" in flags:
            if new is None:
                yield t
            continue
        if sent:
            opened |= flags == ("SYN",)
            if "FIN" in flags:
                fin_end = segment.seq + segment.length + 1
            if (new == State.SYN_SENT and flags == ("SYN",)) or (
                new in FIN_SENT and "FIN" in flags
            ):
                yield t
            continue
        fin_came |= "FIN" in flags
        if "ACK" in flags and (known if fin_end is None else segment.ack >= fin_end):
            acknowledged = True
        if (
            (new == State.SYN_RECV and flags == ("SYN",))
            or (new == State.ESTAB and "ACK" in flags and ("SYN" in flags) == opened)
            or (new in FIN_CAME and "FIN" in flags)
            or (new == State.FIN_WAIT_2 and acknowledged)
            or (new == State.TIME_WAIT and acknowledged and fin_came)
            or (new is None and old == State.LAST_ACK and acknowledged)
        ):
            yield t
