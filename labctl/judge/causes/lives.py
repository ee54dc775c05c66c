"""What is to be said of a connection's states: who closed first, and what kept it where it was
(RFC 9293, section 3.6)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from labctl.judge.causes.cause import Cause, Scene
from labctl.probes.sockets import State, describe_socket
from labctl.record.timelines import Span, Timeline

CLOSING_FIRST = (State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSING, State.TIME_WAIT)
CLOSING_LAST = (State.CLOSE_WAIT, State.LAST_ACK)
"""The states of a side that sent its FIN first, and of one that received a FIN first (RFC 9293,
section 3.3.2)."""
LONG = 1.0
"""Seconds after which a state that should pass at once is worth a word."""
CLOSE = "RFC 9293, section 3.6"
ORPHAN = "tcp(7), tcp_fin_timeout; tcp_close() in net/ipv4/tcp.c"
BUCKETS = "tcp(7), tcp_max_tw_buckets"
SHOWN = 3
"""Connections of one kind, at most: of more the first are told, and how many there are."""


def causes(scene: Scene) -> Iterator[Cause]:
    """For each connection who closed first; and states that lasted."""
    pairs = _pairs(scene)
    first: dict[str, list[Cause]] = {}
    for sides in pairs:
        if found := _first(sides, many=len(pairs) > 1):
            first.setdefault(found.host, []).append(found)
    for group in first.values():
        yield from group[:SHOWN]
        if len(group) > SHOWN:
            last = group[-1]
            yield Cause(
                "closed-first", last.host, last.at,
                f"{last.host} closed first in {len(group) - SHOWN} connections more", refs=(CLOSE,),
            )  # fmt: skip
    for host in scene.history.hosts:
        yield from _held(host, scene)
        if overflows := scene.grown(host, "TcpExtTCPTimeWaitOverflow"):
            yield Cause(
                "time-wait-overflow", host, scene.history.now,
                f"{host} had no room for another TIME_WAIT (net.ipv4.tcp_max_tw_buckets), and "
                f"forgot {overflows} (TcpExtTCPTimeWaitOverflow)",
                "raise net.ipv4.tcp_max_tw_buckets",
                evidence=(f"TcpExtTCPTimeWaitOverflow: {overflows}",), refs=(BUCKETS,),
            )  # fmt: skip


Side = tuple[str, Timeline]


def _pairs(scene: Scene) -> list[list[Side]]:
    """Each connection, by one or both of its sides."""
    left: dict[tuple[str, str], list[Side]] = {}
    found: list[list[Side]] = []
    for host in scene.history.hosts:
        for timeline in scene.timelines(host):
            mates = left.get((timeline.remote, timeline.local), [])
            mate = next((m for m in mates if _together(m[1], timeline)), None)
            if mate is None:
                left.setdefault(timeline.ends, []).append((host, timeline))
            else:
                mates.remove(mate)
                found.append([mate, (host, timeline)])
    found += [[side] for sides in left.values() for side in sides]
    return sorted(found, key=lambda sides: sides[0][1].spans[0].begin.at)


def _together(one: Timeline, other: Timeline) -> bool:
    """Whether two may be the sides of one connection: they were there at the same time."""

    def bounds(timeline: Timeline) -> tuple[float, float]:
        end = timeline.spans[-1].end
        return timeline.spans[0].begin.earliest, end.latest if end else float("inf")

    (begin, end), (start, stop) = bounds(one), bounds(other)
    return begin <= stop and start <= end and one.local != one.remote


def _first(sides: Sequence[Side], many: bool) -> Cause | None:
    """Which side closed first."""
    closers = [
        (h, t) for h, t in sides if State.FIN_WAIT_1 in t.states or State.FIN_WAIT_2 in t.states
    ]
    closers = closers or [
        (h, t) for h, t in sides if State.TIME_WAIT in t.states and t.incarnation == 1
    ]
    if not closers:
        return None
    host, timeline = closers[0]
    where = f" in {timeline.local} -> {timeline.remote}" if many else ""
    at = next(s.begin.at for s in timeline.spans if s.state in CLOSING_FIRST)
    if len(closers) > 1:
        words = (
            f"{host} and {closers[1][0]} closed at once{where}: each sent its FIN before the "
            "other's came"
        )
    else:
        words = f"{host} closed first{where}: seen in {_states(timeline, CLOSING_FIRST)}"
        words += "".join(
            f"; {h} in {_states(t, CLOSING_LAST)}" for h, t in sides
            if h != host and _states(t, CLOSING_LAST)
        )  # fmt: skip
    return Cause("closed-first", host, at, words, "", timeline.name, refs=(CLOSE,))


def _states(timeline: Timeline, among: Sequence[State]) -> str:
    return ", ".join(state for state in among if state in timeline.states)


def _held(host: str, scene: Scene) -> Iterator[Cause]:
    """States that lasted, or did not end at all."""
    told: Counter[State] = Counter()
    for timeline in scene.timelines(host):
        for span in timeline.spans:
            shortest, _ = span.lasted(scene.history.now)
            if span.state not in LASTING or shortest < LONG or told[span.state] >= SHOWN:
                continue
            if found := LASTING[span.state](_Held(host, timeline, span, scene)):
                told[span.state] += 1
                yield found


class _Held:
    """A state that lasted, and the last socket that a look showed of it."""

    def __init__(self, host: str, timeline: Timeline, span: Span, scene: Scene) -> None:
        self._host, self._timeline, self._span = host, timeline, span
        seen = [
            (look.t, socket) for look in scene.looks(host)
            if span.begin.earliest <= look.t <= (span.end.latest if span.end else math.inf)
            and span.state in look.text
            for socket in look.sockets
            if socket.ends == timeline.ends and socket.state is span.state
        ]  # fmt: skip
        self.last = seen[-1][1] if seen else None
        self.open_until = max((t for t, socket in seen if socket.inode), default=0.0)
        """When a look showed for the last time that some process had it open."""
        lasted, _ = span.lasted(scene.history.now)
        still = "has been" if span.end is None else "was"
        self._what = f"{timeline.name} on {host} {still} in {span.state} for {lasted:.1f} s"

    @property
    def open_for(self) -> float:
        """For how many seconds some process had it open, as far as looks tell."""
        return self.open_until - self._span.begin.at

    def cause(self, name: str, why: str, cure: str = "", ref: str = CLOSE) -> Cause:
        """A cause about it."""
        return Cause(
            name, self._host, self._span.begin.at, f"{self._what}: {why}", cure,
            self._timeline.name, (describe_socket(self.last),) if self.last else (), (ref,),
        )  # fmt: skip


def _close_wait(held: _Held) -> Cause | None:
    # The FIN counts as one byte (tcp_diag_get_info()).
    unread = held.last.recv_q - 1 if held.last else 0
    more = f", with {unread} bytes unread" if unread > 0 else ""
    return held.cause(
        "close-wait-held", f"its peer has closed, and the program here has not{more}",
        "read to the end of file and close",
    )  # fmt: skip


def _fin_wait_2(held: _Held) -> Cause | None:
    if held.last is None or held.last.inode is None:
        return None
    if held.last.inode:
        return held.cause(
            "fin-wait-2-held",
            "its peer has not closed; a program has it open here, so it may last for ever",
            "close it, or have the peer close",
        )
    since = f" since {held.open_until:.1f} s" if held.open_for >= LONG else ""
    return held.cause(
        "fin-wait-2-orphan",
        f"its peer has not closed; nobody has it open here{since}, so it ends by itself "
        "(tcp_fin_timeout, or its TCP_LINGER2)",
        ref=ORPHAN,
    )


def _fin_wait_1(held: _Held) -> Cause | None:
    return held.cause("fin-wait-1-stuck", _unanswered(held))


def _last_ack(held: _Held) -> Cause | None:
    return held.cause("last-ack-unanswered", _unanswered(held))


def _unanswered(held: _Held) -> str:
    timer = held.last.timer if held.last else None
    if timer and timer.name == "persist":
        return "the peer's window is zero, so its FIN can't be sent"
    return "its FIN has no answer"


LASTING: dict[State, Callable[[_Held], Cause | None]] = {
    State.CLOSE_WAIT: _close_wait,
    State.FIN_WAIT_2: _fin_wait_2,
    State.FIN_WAIT_1: _fin_wait_1,
    State.LAST_ACK: _last_ack,
}
