"""What is to be said of a connection's states: who closed first, and what kept it where it was
(RFC 9293, section 3.6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
                f"forgot {overflows} connections (TcpExtTCPTimeWaitOverflow)",
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
    closers = closers or [(h, t) for h, t in sides if State.TIME_WAIT in t.states]
    if not closers:
        return None
    host, timeline = closers[0]
    where = f" in {timeline.local} -> {timeline.remote}" if many else ""
    at = next(s.begin.at for s in timeline.spans if s.state in CLOSING_FIRST)
    if len(closers) > 1:
        words = f"{closers[0][0]} and {closers[1][0]} closed at once{where}: each sent its FIN before the other's came"
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
    told: dict[str, int] = {}
    for timeline in scene.timelines(host):
        for span in timeline.spans:
            shortest, _ = span.lasted(scene.history.now)
            if shortest < LONG or not (found := _lasting(host, timeline, span, scene)):
                continue
            told[found.id] = told.get(found.id, 0) + 1
            if told[found.id] <= SHOWN:
                yield found


def _lasting(host: str, timeline: Timeline, span: Span, scene: Scene) -> Cause | None:
    lasted, _ = span.lasted(scene.history.now)
    still = "has been" if span.end is None else "was"
    what = f"{timeline.local} -> {timeline.remote} on {host} {still} in {span.state} for {lasted:.1f} s"
    seen = _seen(host, timeline, span, scene)
    proof = (describe_socket(seen),) if seen else ()
    at = span.begin.at
    match span.state:
        case State.CLOSE_WAIT:
            unread = f", with {seen.recv_q - 1} bytes unread" if seen and seen.recv_q > 1 else ""
            return Cause(
                "close-wait-held", host, at,
                f"{what}: its peer has closed, and the program here has not{unread}",
                "read to the end of file and close", timeline.name, proof, (CLOSE,),
            )  # fmt: skip
        case State.FIN_WAIT_2:
            orphan = seen is not None and seen.timer is not None and seen.inode == 0
            return Cause(
                "fin-wait-2-orphan" if orphan else "fin-wait-2-held", host, at,
                f"{what}: its peer has not closed"
                + ("; nobody has it open here, so it ends by itself (tcp_fin_timeout)" if orphan
                   else "; a program has it open here, so it may last for ever"),
                "" if orphan else "close it, or have the peer close",
                timeline.name, proof, (ORPHAN,),
            ) if seen and seen.inode is not None else None  # fmt: skip
        case State.FIN_WAIT_1 | State.LAST_ACK:
            zero = seen is not None and seen.timer is not None and seen.timer.name == "persist"
            kind = "fin-wait-1-stuck" if span.state is State.FIN_WAIT_1 else "last-ack-unanswered"
            why = (
                "the peer's window is zero, so the FIN can't be sent"
                if zero
                else ("its FIN has no answer")
            )
            return Cause(kind, host, at, f"{what}: {why}", "", timeline.name, proof, (CLOSE,))
    return None


def _seen(host: str, timeline: Timeline, span: Span, scene: Scene):  # type: ignore[no-untyped-def]
    """The last socket that a look showed of it in this state."""
    found = None
    end = span.end.latest if span.end else float("inf")
    for look in scene.looks(host):
        if span.begin.earliest <= look.t <= end and str(span.state) in look.text:
            for socket in look.sockets:
                if socket.ends == timeline.ends and socket.state is span.state:
                    found = socket
    return found
