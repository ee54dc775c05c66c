"""The states of a connection's ends, inferred from segments alone (RFC 9293, section 3.10).

What a host sends shows what it had come to: it acknowledges a FIN only once it has taken it. That a
segment arrived does not show that it was taken: a filter may lie behind the capture. So a state
that begins with an arrival counts once the host has sent what only follows from it, or does not
repeat in time what it would have to. And some states end silently, by a timer, or with the process:
from the last sign on nobody knows.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from itertools import accumulate, zip_longest

from labctl.ground.data import dataclass
from labctl.probes.observations import FLIGHT, Segment
from labctl.probes.sockets import Ends, State
from labctl.probes.traffic import Chosen
from labctl.record.history import History
from labctl.record.looks import FOLLOWING, SAMPLING, Looks, reachable
from labctl.record.moments import VAGUE, Moment

ANSWER = 0.02
"""Seconds from what a host takes to what it answers at once, at most, on a busy machine: what it
sends later was sent in the knowledge of that."""
AGAIN = 1.0
"""Seconds after which a host repeats what had no answer, at the latest, the first time (RFC 6298:
section 2)."""
DEAF = 0.5
"""Seconds after which what came should have had an answer, at the latest."""
BACKOFF = 2.5
"""How many times as long as the last time it waits then, at most: twice, and some."""

BEFORE = "segments do not tell whether it had other states before"
Passed = tuple[float, bool, Segment]
"""A segment that left a host (true) or came to it, and when."""
Turn = tuple[State | None, Moment]
"""A state, or the end (None), and when it began. If that may be at any time since then, the latest
moment is infinite."""


@dataclass(frozen=True)
class Inferred:
    """One connection of a host: its states, and what segments do not tell of them."""

    ends: Ends
    turns: tuple[Turn, ...]
    gap: str | None


def inferred(history: History, host: str, chosen: Chosen | None = None) -> Iterator[Inferred]:
    """The connections of a host, or the `chosen` ones, in order for each pair of ends."""
    watched = history.captured(host)
    looks = Looks(history, host, chosen)
    event = history.imported.get(host)
    until = min(history.now, event.t) if event else history.now
    for ends, passed in _passed(history, host, chosen).items():
        shown = [t for t, s in looks.shown(ends) if s.state is not State.SYN_RECV]
        lives = [_Life(each, watched, until) for each in _lives(passed)]
        for life, following in zip_longest(lives, lives[1:]):
            life.shown = [t for t in shown if following is None or t < following.begun]
            turns = list(_in_order(life.turns()))
            if not turns:
                continue
            if following is not None and (turns[-1][0] or turns[-1][1].latest == math.inf):
                begun = following.begun
                if turns[-1][0] is None:
                    turns.pop()
                turns.append((None, Moment(min(life.sign, begun), begun, begun)))
                life.doubts.clear()
            turns, doubts = _looked_at(ends, turns, life.doubts, looks)
            yield Inferred(ends, tuple(turns), doubts[0] if doubts else None)


def _in_order(turns: Sequence[Turn]) -> Iterator[Turn]:
    """The same, none before the one before it: some hosts keep to no rule."""
    before = Moment(0.0, 0.0)
    for state, moment in turns:
        at = max(moment.at, before.at)
        latest = max(moment.latest, at)
        before = Moment(min(max(moment.earliest, before.earliest), at), latest, at)
        yield state, before


def _looked_at(
    ends: Ends, turns: Sequence[Turn], doubts: list[str], looks: Looks
) -> tuple[list[Turn], list[str]]:
    """The same, with what looks showed of a connection since segments told nothing more of it."""
    last, moment = turns[-1]
    lost = last is None and moment.latest == math.inf
    if not looks.times or not (lost or last):
        return [*turns], doubts
    found = [*turns[:-1]] if lost else [*turns]
    since = moment.earliest if lost else moment.latest
    doubts = doubts[:-1] if lost else doubts
    seen = {n: s.state for s in looks.seen.get(ends, ()) for n in range(s.look, s.last + 1)}
    for number, t in enumerate(looks.times):
        state, shown = found[-1][0], seen.get(number)
        if t < since or state is None or (shown not in (None, state) and not _leads(state, shown)):
            continue
        if shown == state:
            begun = found[-1][1]
            found[-1] = state, begun.within(begun.earliest, min(begun.latest, t))
            doubts = [doubt for doubt in doubts if doubt == BEFORE]
        else:
            found.append((shown, Moment(since, t + SAMPLING, seen=t)))
            if FOLLOWING[state] - {shown}:
                doubts.append(f"no look tells all that followed {state}")
        since = t
    if lost and found[-1][0] is not None:
        found.append((None, Moment(since, math.inf, since)))
        doubts.append(f"segments and looks do not tell whether it was still in {found[-2][0]}")
    return found, doubts


def _leads(state: State, later: State | None) -> bool:
    return later is None or reachable(state, later)


def _passed(history: History, host: str, chosen: Chosen | None) -> Mapping[Ends, list[Passed]]:
    """What passed a host, by the connection's ends as it sees them. If it was not captured, the
    moments are those of the other side."""
    found: dict[Ends, list[Passed]] = defaultdict(list)
    for segment in history.segments(chosen):
        if "SYN" in segment.flags and segment.seq:
            continue  # into a connection: no socket of its host sent that, and none takes it
        ends = segment.source, segment.target
        if segment.sender == host and not segment.injected:
            found[ends].append((segment.time, True, segment))
        if segment.receiver == host and (segment.arrived is not None or segment.unseen):
            t = segment.time if segment.arrived is None else segment.arrived
            found[ends[::-1]].append((t, False, segment))
    for passed in found.values():
        passed.sort(key=lambda each: each[0])
    return found


def _lives(passed: Sequence[Passed]) -> Iterator[list[Passed]]:
    """What passed in each of the connections that a host had between the same ends: one begins with
    a SYN of its own, or with one that it answers."""
    current: list[Passed] = []
    first: int | None = None
    for each in passed:
        _, sent, segment = each
        if sent and "SYN" in segment.flags and segment.base[0] != first:
            asked = len(current)
            if "ACK" in segment.flags:
                asked = _asked(current, segment)
            if any(out for _, out, _ in current[:asked]):
                yield current[:asked]
            first, current = segment.base[0], current[asked:]
        current.append(each)
    if any(out for _, out, _ in current):
        yield current


def _asked(before: Sequence[Passed], answer: Segment) -> int:
    """Where what led to a SYN ACK begins: with the SYN that it answers, or the first copy of it
    since the host last sent anything."""
    found = len(before)
    for number in reversed(range(len(before))):
        _, sent, segment = before[number]
        if sent:
            break
        if segment.flags == ("SYN",) and segment.base[0] == answer.base[1]:
            found = number
    return found


def _following(segment: Segment) -> int:
    """The number after its data, or its FIN."""
    return segment.seq + segment.length + ("FIN" in segment.flags)


@dataclass
class _Life:
    """A connection as one end of it had it. `until` is when its record ends; if the end was not
    `watched`, the times of what came are when that was sent, and of what left when it arrived.
    Looks have `shown` it past its handshake at these times."""

    passed: list[Passed]
    watched: bool
    until: float
    shown: Sequence[float] = ()
    doubts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        plain = [(t, s) for t, sent, s in self.passed if sent and "RST" not in s.flags]
        self.left = plain
        self.furthest = list(accumulate((s.ack for _, s in plain), max, initial=0))
        self.came = [(t, s) for t, sent, s in self.passed if not sent and "RST" not in s.flags]
        self.synacks = [t for t, s in plain if {"SYN", "ACK"} <= {*s.flags}]
        self.syns = [t for t, s in plain if s.flags == ("SYN",)]

    @property
    def begun(self) -> float:
        """When it began, at the latest."""
        return self.passed[0][0]

    @property
    def sign(self) -> float:
        """When the host last showed that it had it."""
        return self.left[-1][0] if self.left else self.begun

    @cached_property
    def spoke(self) -> float | None:
        """When it first sent something else than a SYN or a RST."""
        return next((t for t, s in self.left if "SYN" not in s.flags), None)

    def turns(self) -> list[Turn]:
        """Its states, and its end if that is known to have come, or may have come."""
        found = self._opening()
        if not found:
            return []
        end = self._reset()
        found += self._closing()
        over = found[-1][0] is None and end is not None and found[-1][1].at <= end.at
        if end is not None and not over:
            if self.ignored is not None:
                end = replace(end, earliest=min(end.earliest, self.ignored))
            found = [
                turn for turn in found if turn[0] is not None and turn[1].earliest <= end.latest
            ]
            if end.latest == math.inf:
                self._doubt("took the RST that came")
            return [*found, (None, end)]
        last, begun = found[-1]
        if last is not None and (doubt := self._silence(last, begun)) is not None:
            self._doubt(f"was still in {last}")
            found.append((None, doubt))
        return found

    def _doubt(self, what: str) -> None:
        self.doubts.append(f"segments do not tell whether it {what}")

    # --- Its beginning ----------------------------------------------------------------------------

    def _opening(self) -> list[Turn]:
        found: list[Turn] = []
        if self.syns:
            found.append((State.SYN_SENT, self._at(self.syns[0])))
        if self.synacks:
            asked = [t for t, s in self.came if "SYN" in s.flags and t <= self.synacks[0]]
            begin, latest = asked[-1] if asked else self.synacks[0], self.synacks[0]
            if self.ignored is not None:
                self._doubt("took the ACK")
                if len(self.synacks) == 1 and not self.syns:
                    latest = math.inf
            found.append((State.SYN_RECV, Moment(begin, latest, begin)))
        if not found:
            if self.spoke is None:
                return []
            self.doubts.append(BEFORE)
            return [(State.ESTAB, Moment(0.0, self.spoke, self.spoke))]
        if self.established is not None:
            found.append((State.ESTAB, self.established))
        return found

    def _at(self, t: float) -> Moment:
        """The moment of what a host does of its own accord, shown by what it sent."""
        return Moment(max(0.0, t - ANSWER), t, t)

    @cached_property
    def established(self) -> Moment | None:
        """When it took the last segment of its handshake, if it showed that it did."""
        if not self.synacks:  # it opened the connection
            came = [t for t, s in self.came if {"SYN", "ACK"} <= {*s.flags}]
            return None if self.spoke is None else self._by(came, self.spoke)
        if not self.proofs:
            return None
        shown = self.proofs[0]
        last = max((t for t in self.synacks if t <= shown), default=0.0)
        before = [t for t in self.acks if t <= shown]
        came = [t for t in before if t > last] or before
        near = came and came[-1] - came[0] <= VAGUE
        return self._by(came[:1] if near else came, shown)

    @cached_property
    def acks(self) -> list[float]:
        """When segments came that acknowledge its SYN ACK: each may complete its handshake."""
        most = max(s.seq + s.length + len({"SYN", "FIN"} & {*s.flags}) for _, s in self.left)
        return [t for t, s in self.came if "SYN" not in s.flags and 0 < s.ack <= most]

    @cached_property
    def proofs(self) -> list[float]:
        """When what it did, or a look, showed that the handshake that it was asked for was done. It
        spoke, or gave up a connection by a RST of its own."""
        began = min([*self.acks, math.inf])
        gave_up = [t for t, sent, s in self.passed if sent and {"RST", "ACK"} <= {*s.flags}]
        found = [t for t in (*gave_up, *self.shown) if began <= t]
        return sorted([*found, *([] if self.spoke is None else [self.spoke])])

    @cached_property
    def ignored(self) -> float | None:
        """When the ACK of its SYN ACK came, if it may have ignored that, as nothing shows what it
        made of it. A listener does so whose queue is full, or with TCP_DEFER_ACCEPT, which does not
        repeat its SYN ACK even. And one that had answered by a SYN cookie had no socket at all, if
        a filter kept the ACK from it (tcp_check_req() in net/ipv4/tcp_minisocks.c; RFC 4987)."""
        after = [t for t in self.acks if t > self.synacks[-1]] if self.synacks else []
        return after[0] if after and not self.proofs else None

    def _by(self, came: Sequence[float], shown: float) -> Moment:
        """When it took what came, one of several times, as it showed afterwards."""
        before = [t for t in came if t <= shown]
        if not before:
            return Moment(0.0, shown, shown)
        return Moment(before[0], shown, before[0] if len(before) == 1 else before[-1])

    # --- Its end ----------------------------------------------------------------------------------

    @cached_property
    def fins(self) -> list[tuple[float, Segment]]:
        """The FINs that it sent."""
        return [(t, s) for t, s in self.left if "FIN" in s.flags]

    @cached_property
    def their_fin(self) -> Moment | None:
        """When it took the other end's FIN, as it showed by an acknowledgement."""
        for came, fin in self.came:
            if "FIN" not in fin.flags:
                continue
            end = _following(fin)
            shown = next((t for t, s in self.left if s.ack >= end and t >= came), None)
            if shown is not None:
                again = [t for t, s in self.came if came <= t <= shown]
                return Moment(came, shown, again[-1])
        return None

    @cached_property
    def acknowledged(self) -> Moment | None:
        """When it took the acknowledgement of its FIN."""
        refuted, good = self._acknowledgements
        if refuted and good:  # something keeps them from it, and it may have given up
            if self.their_fin is None or self.their_fin.latest < good[0][0]:
                self._doubt("took the ACK of its FIN")
            return None
        return self._one_of(good) if good else None

    @cached_property
    def _acknowledgements(self) -> tuple[list[float], list[tuple[float, Segment]]]:
        """The acknowledgements of its FIN: when those came that it had not taken, as it repeated
        its FIN afterwards, and the others."""
        if not self.fins:
            return [], []
        end = min(_following(s) for _, s in self.fins)
        came = [(t, s) for t, s in self.came if "ACK" in s.flags and s.ack >= end]
        last = self.fins[-1][0]
        refuted = [t for t, _ in came if t + ANSWER < last]
        return refuted, [(t, s) for t, s in came if t + ANSWER >= last]

    def _one_of(self, came: Sequence[tuple[float, Segment]]) -> Moment:
        """When it took the first acknowledgement of its FIN that reached it, of these. It would
        repeat the FIN until then, so its silence shows that one of the first did; and it
        acknowledges what it takes."""
        sent = [t for t, _ in self.fins]
        wait = AGAIN if len(sent) < 2 else max(AGAIN, BACKOFF * (sent[-1] - sent[-2]))
        first = latest = came[0][0]
        if self.until - first < wait:
            self._doubt("took the ACK of its FIN")
        for t, segment in came if len(came) > 1 and self.filtered else ():
            if t > first + wait:
                break
            latest = t
            if self._wants_answer(t, segment) and self._acked(math.inf) >= _following(segment):
                break
        return Moment(first, latest, first if latest - first <= VAGUE else latest)

    @cached_property
    def filtered(self) -> bool:
        """Whether something seems to lie behind the capture that keeps segments from it: one came
        again before it had acknowledged the first."""
        unanswered = set()
        for t, segment in self.came:
            if self._wants_answer(t, segment):
                if segment.seq in unanswered:
                    return True
                unanswered.add(segment.seq)
        return False

    def _wants_answer(self, t: float, segment: Segment) -> bool:
        """Whether a segment that came then has something that it had not acknowledged."""
        following = _following(segment)
        return following > segment.seq and following > self._acked(t)

    def _acked(self, until: float) -> int:
        """The furthest that it had acknowledged before then."""
        return self.furthest[bisect_left(self.left, until, key=lambda each: each[0])]

    def _closing(self) -> Iterator[Turn]:
        theirs = self.their_fin
        if not self.fins:
            if theirs is not None:
                yield State.CLOSE_WAIT, theirs
            return
        left, fin = self.fins[0]
        # With data it may have waited for a window; else nothing was waiting: tcp_send_fin().
        at_once = max(0.0, left - ANSWER)
        begun = Moment(self._waiting(left, at_once) if fin.length else at_once, left, left)
        last = theirs is not None and theirs.latest <= left
        if theirs is not None and last:
            yield State.CLOSE_WAIT, theirs
            yield State.LAST_ACK, Moment(max(begun.earliest, theirs.earliest), left, left)
        else:
            yield State.FIN_WAIT_1, begun
        done = self.acknowledged
        if last:
            if done:
                yield None, done
            return
        # Of a connection to itself, its own FIN comes, and before its own acknowledgement.
        first = done and fin.source != fin.target and (theirs is None or done.at <= theirs.at)
        if done and first:
            yield State.FIN_WAIT_2, done
        elif theirs is not None:
            yield State.CLOSING, theirs
        if done and theirs is not None:
            yield State.TIME_WAIT, theirs if first else done

    def _waiting(self, until: float, otherwise: float) -> float:
        """Since when, without a long break, something that it had sent had no acknowledgement, or
        the other end's window was closed. What its program does then, even close it, may wait."""
        since, until_then, sent, acked, window = None, None, 0, 0, 1
        for t, out, segment in self.passed:
            if t >= until:
                break
            if "RST" in segment.flags:
                continue
            if out:
                sent = max(sent, segment.seq + segment.length + ("FIN" in segment.flags))
            else:
                acked, window = max(acked, segment.ack), segment.window
            if acked >= sent and window:
                until_then = t if until_then is None else until_then
            else:
                if since is None or (until_then is not None and t - until_then > ANSWER):
                    since = t
                until_then = None
        if since is None or (until_then is not None and until - until_then > ANSWER):
            return otherwise
        return min(since, otherwise)

    def _silence(self, last: State, begun: Moment) -> Moment | None:
        """Since when a state may be over without a sign; None if it would send one."""
        since = max(self.sign, begun.at, self.ignored or 0.0)
        refuted, good = self._acknowledgements
        if refuted and good:
            since = max(begun.at, min(since, good[0][0]))
        if last in (State.ESTAB, State.CLOSE_WAIT):
            waiting = self._waiting(math.inf, math.inf)
            if waiting == math.inf and self.watched:
                return None
            since = max(begun.at, min(since, waiting))
        return Moment(since, math.inf, since)

    def _reset(self) -> Moment | None:
        """When a RST ended it, or may have, if one did."""
        for t, sent, rst in self.passed:
            if "RST" not in rst.flags or (sent and rst.crafted):
                continue
            late = 0.0 if sent else ANSWER if self.watched else FLIGHT
            if any(at > t + late for at, _ in self.left):
                continue  # it went on
            if sent:
                live = [at for at, _ in self.left if at <= t]
                active = "ACK" in rst.flags or not live  # else it may have had no socket any more
                return Moment(self._waiting(t, t if active else live[-1]), t, t)
            if self._takes(t, rst):
                return Moment(self._waiting(t, t), t, t)
            return Moment(self._waiting(t, t), math.inf, t)
        return None

    def _unanswered(self, t: float) -> list[tuple[float, Segment]]:
        """What came by then since it last sent anything, and wants an answer: something new, or
        something old once more."""
        sign = max((at for at, _ in self.left if at <= t), default=0.0)
        acked = self._acked(t)
        return [
            (at, s) for at, s in self.came
            if sign < at <= t and (s.length or "FIN" in s.flags or s.seq < acked)
        ]  # fmt: skip

    def _takes(self, t: float, rst: Segment) -> bool:
        """Whether it certainly takes a RST: one that answers its SYN, or has the number that is due
        (RFC 5961, section 3.2), but not in TIME-WAIT (RFC 1337)."""
        if not self.watched:
            return False
        if self.spoke is None and not self.synacks:
            return "ACK" in rst.flags
        if self.their_fin is not None and self.acknowledged is not None and self.fins:
            return False
        if any(at + DEAF < t for at, s in self._unanswered(t)):
            return False  # nothing that comes seems to reach it
        acks = [s.ack for at, s in self.left if at <= t]
        return rst.seq == max(acks, default=-1)
