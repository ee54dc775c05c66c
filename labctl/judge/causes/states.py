"""What is to be said of a connection's states: who closed first, and what kept it where it was
(RFC 9293, section 3.6)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from labctl.ground.written import count
from labctl.judge.causes.cause import Cause, Scene, Side
from labctl.probes.holders import Held, named
from labctl.probes.observations import Segment, stays_inside
from labctl.probes.sockets import Ends, State, describe_socket
from labctl.record.events import HoldersEvent, ProcessEvent
from labctl.record.holders import held_by
from labctl.record.timelines import Span, Timeline

CLOSING_FIRST = (State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSING, State.TIME_WAIT)
CLOSING_LAST = (State.CLOSE_WAIT, State.LAST_ACK)
"""The states of a side that sent its FIN first, and of one that received a FIN first (RFC 9293,
section 3.3.2)."""
LONG = 1.0
"""Seconds after which a state that should pass at once is worth a word."""
CLOSE = "RFC 9293, section 3.6"
ORPHAN = "tcp(7), tcp_fin_timeout; tcp_close() in net/ipv4/tcp.c"
IDLE = "tcp(7), SO_KEEPALIVE, tcp_keepalive_time; RFC 1122, section 4.2.3.6"
BUCKETS = "tcp(7), tcp_max_tw_buckets"
UNINHERITED = "end that too, or let children not inherit it (SOCK_CLOEXEC)"
CLOEXEC = "close(2); socket(2), SOCK_CLOEXEC; accept(2), SOCK_CLOEXEC"
INHERITED = 4
"""Below this descriptor there may be a socket that a program is given: as inetd does, at 0 to 2, or
sd_listen_fds(3), at 3."""
SHOWN = 3
"""Connections of one kind, at most: of more the first are told, and how many there are."""


def causes(scene: Scene) -> Iterator[Cause]:
    """For each connection who closed first; and states that lasted."""
    first: dict[tuple[str, bool], list[Cause]] = {}
    more: dict[tuple[str, bool], list[float]] = {}
    for sides in scene.pairs():
        if found := _first(sides, scene.several, scene):
            key = found.host, _both(closers(sides))
            group = first.setdefault(key, [])
            if len(group) < SHOWN:
                group.append(found)
            else:
                more.setdefault(key, []).append(found.at)
    for (host, both), group in first.items():
        yield from group
        if late := more.get((host, both)):
            what = f"{host} and its peer closed at once" if both else f"{host} closed first"
            yield Cause(
                "closed-first", host, late[-1], f"{what} in {count(len(late), 'connection')} more",
                refs=(CLOSE,),
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


def closers(sides: Sequence[Side]) -> list[Side]:
    """The sides that sent their FIN before the other's came. A TIME_WAIT that a look showed alone
    may be the end of an earlier incarnation."""
    return [
        (host, timeline) for host, timeline in sides
        if {*CLOSING_FIRST[:-1]} & {*timeline.states}
        or (State.TIME_WAIT in timeline.states and timeline.incarnation == 1)
    ]  # fmt: skip


def _both(found: Sequence[Side]) -> bool:
    """Whether both sides sent their FIN before the other's came."""
    return len(found) > 1 or any(State.CLOSING in each.states for _, each in found)


def who_closed(scene: Scene, host: str, ends: Ends, t: float) -> str:
    """Who closed first in the connection that a host had at that time, in words."""
    mine = scene.timeline(host, ends, t)
    found = closers(scene.sides(host, mine)) if mine else []
    if _both(found):
        return "both closed at once"
    if found:
        return f"{host if found[0] == (host, mine) else 'its peer'} closed first"
    return "its peer closed first" if mine and State.CLOSE_WAIT in mine.states else ""


def _missed(host: str, timeline: Timeline, scene: Scene) -> bool:
    """Whether a host, by its FIN, had acknowledged more than captures from elsewhere have of its
    peer."""
    until = next((s.end.latest for s in timeline.spans if s.end), scene.history.now)
    found = scene.conversation(host, timeline.ends, until) if scene.history.imported else []
    fin = next((s for s in found if s.source == timeline.local and "FIN" in s.flags), None)
    theirs = [s for s in found if s.source == timeline.remote and fin and s.time <= fin.time]
    sent = [s.seq + s.length + ("SYN" in s.flags) + ("FIN" in s.flags) for s in theirs]
    return fin is not None and bool(sent) and fin.ack > max(sent)


def _first(sides: Sequence[Side], many: bool, scene: Scene) -> Cause | None:
    """Which side closed first."""
    found = closers(sides)
    if not found:
        return None
    host, timeline = found[0]
    inside = stays_inside(*timeline.ends)
    where = f" in {timeline.local} -> {timeline.remote}" if many or inside else ""
    at = next(s.begin.at for s in timeline.spans if s.state in CLOSING_FIRST)
    certain = True
    if _both(found):
        other = found[1][0] if len(found) > 1 and found[1][0] != host else "its peer"
        words = (
            f"{host} and {other} closed at once{where}: each sent its FIN before the other's came"
        )
    else:
        words = f"{host} closed first{where}: seen in {_states(timeline, CLOSING_FIRST)}"
        words += "".join(
            f"; {h} in {_states(t, CLOSING_LAST)}" for h, t in sides
            if h != host and _states(t, CLOSING_LAST)
        )  # fmt: skip
        certain = (
            len(sides) > 1
            or State.FIN_WAIT_1 not in timeline.states
            or (State.FIN_WAIT_2 in timeline.states)
        )
    if certain and not _both(found) and _missed(host, timeline, scene):
        certain = False
        words += "; but it had acknowledged more than was captured, maybe its peer's FIN"
    elif not certain:
        words += (
            "; its peer's states, or when its FIN was sent, would tell whether both did at once"
        )
    return Cause("closed-first", host, at, words, "", timeline.name, refs=(CLOSE,), certain=certain)


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
        self.host, self.timeline, self.span, self.scene = host, timeline, span, scene
        self.until = min(span.end.latest if span.end else math.inf, scene.history.now)
        seen = [
            (t, socket) for t, socket in scene.seen(host, timeline.ends)
            if span.begin.earliest <= t <= self.until and socket.state is span.state
        ]  # fmt: skip
        self.last = seen[-1][1] if seen else None
        self.by = held_by(scene.history, host, seen[-1][1], seen[-1][0]) if seen else ()
        self.open_until = max((t for t, socket in seen if socket.inode), default=span.begin.at)
        """When a look showed for the last time that some process had it open."""
        lasted, _ = span.lasted(scene.history.now)
        still = "has been" if span.end is None else "was"
        self._what = f"{timeline.name} on {host} {still} in {span.state} for {lasted:.1f} s"

    @property
    def open_for(self) -> float:
        """For how many seconds some process had it open, as far as looks tell."""
        return self.open_until - self.span.begin.at

    @property
    def said(self) -> list[Segment]:
        """What the connection's ends have sent by the end of that state."""
        segments = self.scene.conversation(self.host, self.timeline.ends, self.until)
        return [s for s in segments if s.time <= self.until]

    def talks(self, sender: str) -> bool:
        """Whether an end has gone on to send data, so that the other is half closed and no more:
        its last pause was not much longer than those before."""
        begun = self.span.begin.at
        data = [s.time for s in self.said if s.source == sender and s.length and s.time > begun]
        pauses = [2 * (later - t) for t, later in pairwise(data)]
        return bool(data) and self.until - data[-1] < max([LONG, *pauses])

    def cause(self, name: str, why: str, cure: str = "", ref: str = CLOSE) -> Cause:
        """A cause about it."""
        told = (describe_socket(self.last, holders=self.by),) if self.last else ()
        holders = (Held(self.timeline.ends, self.by),) if self.by else ()
        return Cause(
            name, self.host, self.span.begin.at, f"{self._what}: {why}", cure,
            self.timeline.name, told, (ref,), holders=holders,
        )  # fmt: skip


def _close_wait(held: _Held) -> Cause | None:
    if held.talks(held.timeline.local):
        return None
    # The FIN counts as one byte (tcp_diag_get_info()).
    unread = held.last.recv_q - 1 if held.last else 0
    more = f", with {count(unread, 'byte')} unread" if unread > 0 else ""
    mine = held.scene.descriptor(held.host, held.timeline.ends, held.until)
    if mine is None and held.last and held.last.inode == 0:
        why = f"its peer has closed, and nobody has accepted it here{more}"
        return held.cause("close-wait-held", why, "accept, read to the end of file and close")
    if words := _inherited(held):
        why = f"its peer has closed, and {words}{more}"
        return held.cause("close-wait-held", why, UNINHERITED, CLOEXEC)
    who = named(held.by) or (mine.process if mine else "the program here")
    not_yet = "have not" if len(held.by) > 1 else "has not"
    halfway = (held.span.begin.at + held.until) / 2
    if mine and held.scene.paused(mine.process, halfway):
        why = f"its peer has closed, and {who} {not_yet}: a step paused it{more}"
        return held.cause("close-wait-held", why)
    calls = (call for call in held.scene.calls(eof=True) if call.t <= halfway)
    ended = mine is not None and any(held.scene.descriptors.of(call) is mine for call in calls)
    return held.cause(
        "close-wait-held",
        f"its peer has closed, and {who} {not_yet}{', but has read the end' if ended else more}",
        "close it" if ended else "read to the end of file and close",
    )


def _fin_wait_2(held: _Held) -> Cause | None:
    if held.last is None or held.last.inode is None or held.talks(held.timeline.remote):
        return None
    peer = _peer(held)
    if held.last.inode:
        who = named(held.by) or "a program"
        has = "have" if len(held.by) > 1 else "has"
        return held.cause(
            "fin-wait-2-held", f"{peer}; {who} {has} it open here, so it may last for ever",
            "close it, or have the peer close",
        )  # fmt: skip
    since = f" since {held.open_until:.1f} s" if held.open_for >= LONG else ""
    return held.cause(
        "fin-wait-2-orphan",
        f"{peer}; nobody has it open here{since}, so it ends by itself (tcp_fin_timeout, or its "
        "TCP_LINGER2)",
        ref=ORPHAN,
    )


def _peer(held: _Held) -> str:
    """Whether the peer has closed, though nothing of that has come."""
    for s in held.said:
        if s.source == held.timeline.remote and s.arrived is None and {"FIN", "RST"} & {*s.flags}:
            return f"the {'FIN' if 'FIN' in s.flags else 'RST'} of its peer has not come"
    if any(
        span.state is State.CLOSE_WAIT and span.end and span.end.latest <= held.until
        for _, side in held.scene.sides(held.host, held.timeline) for span in side.spans
    ):  # fmt: skip
        return "its peer has closed, but neither a FIN nor an RST has left it"
    return "its peer has not closed"


def _established(held: _Held) -> Cause | None:
    """Nothing tells a side that its peer is gone, unless it sends something."""
    if words := _inherited(held):
        return held.cause("open-child", f"{words}, so no FIN was sent", UNINHERITED, CLOEXEC)
    local, remote = held.timeline.ends
    host = held.scene.history.owners.get(remote.rpartition(":")[0].strip("[]"))
    if host is None or held.span.end or held.last is None:
        return None
    since, gone = held.scene.cut_off(host, held.until), "has been cut off"
    if since is None:
        since, gone = _forgotten(host, held), "told nobody that it has had no socket for it"
    if since is None or held.until - since < LONG:
        return None
    if any(s.source == local and s.time > since for s in held.said):
        return None
    timer = held.last.timer
    if timer is None:
        notice = "no timer runs, so nothing ever asks: SO_KEEPALIVE is off"
    elif timer.name == "keepalive" and not timer.retrans:
        notice = f"keepalive asks for the first time in {timer.expires:g} s"
    else:
        return None
    return held.cause(
        "gone-unnoticed",
        f"{host} {gone} since {since:.3f} s, nothing is sent, and {notice}",
        "set SO_KEEPALIVE, and TCP_KEEPIDLE to what you can wait; or a time limit of the program",
        IDLE,
    )


def _inherited(held: _Held) -> str:
    """That its program closed it, or ended, and only a child has it open since then, and says
    nothing: one that was left alone, or that is another program, to which nobody gave it on
    purpose. Empty if it is not so."""
    scene, mine = held.scene, held.scene.descriptor(held.host, held.timeline.ends, held.until)
    made = (mine.accepted or mine.connected) if mine else None
    if mine is None or made is None or any(
        (each.process, each.start) != (mine.process, mine.start) or each.pid == made.pid
        for each in held.by
    ):  # fmt: skip
        return ""
    closed = [
        call.t for call in scene.calls(host=held.host, name="close")
        if call.pid == made.pid and not call.errno and scene.descriptors.of(call) is mine
    ]  # fmt: skip
    ended = [
        event.t for event in scene.history.events.of(ProcessEvent)
        if event.process == mine.process and event.left and event.pid == made.pid
        and mine.made <= event.t < held.until
    ]  # fmt: skip
    names = {
        event.commands.get(str(made.pid)) for event in scene.history.events.of(HoldersEvent)
        if event.process == mine.process
    }  # fmt: skip
    strange = names - {None} and all(
        each.command not in names and min(each.descriptors) >= INHERITED for each in held.by
    )
    since = min([*closed, *ended], default=held.until)
    if not held.by or since >= held.open_until or held.until - since < LONG:
        return ""
    if not (ended or strange) or any(
        s.source == held.timeline.local and s.length and s.time > since for s in held.said
    ):
        return ""
    did = "closed it" if since in closed else "ended"
    return (
        f"{mine.process} {did} at {since:.3f} s, but {named(held.by)}, which inherited it, "
        f"{'have' if len(held.by) > 1 else 'has'} it open"
    )


def _forgotten(host: str, held: _Held) -> float | None:
    """Since when nothing was left of a connection at its peer's host, if no FIN and no RST came."""
    local, remote = held.timeline.ends
    history = held.scene.history
    blind = any((host, probe) in history.trouble for probe in ("ss", "trace"))
    there = held.scene.timeline(host, (remote, local), held.until)
    end = there.spans[-1].end if there else None
    if end is None or blind or history.imported or not held.scene.captured(held.host):
        return None
    told = any(s.source == remote and s.arrived and {"FIN", "RST"} & {*s.flags} for s in held.said)
    return None if told else end.latest


def _fin_wait_1(held: _Held) -> Cause | None:
    return _unanswered("fin-wait-1-stuck", held)


def _last_ack(held: _Held) -> Cause | None:
    return _unanswered("last-ack-unanswered", held)


def _unanswered(name: str, held: _Held) -> Cause | None:
    timer = held.last.timer if held.last else None
    came = [s for s in held.said if s.source == held.timeline.remote and s.arrived is not None]
    # It also runs if nothing could be sent at all (tcp_write_xmit() in net/ipv4/tcp_output.c).
    if timer and timer.name == "persist" and (not came or came[-1].zero_window):
        return held.cause(name, "the peer's window is zero, so its FIN can't be sent")
    if any(s.source == held.timeline.local and "FIN" in s.flags for s in held.said):
        return held.cause(name, "its FIN had no answer in that time")
    since = held.scene.cut_off(held.host, held.span.begin.at)
    if since is None:
        return None
    return held.cause(name, f"{held.host} was cut off at {since:.3f} s, so its FIN can't leave it")


LASTING: dict[State, Callable[[_Held], Cause | None]] = {
    State.CLOSE_WAIT: _close_wait,
    State.FIN_WAIT_2: _fin_wait_2,
    State.FIN_WAIT_1: _fin_wait_1,
    State.LAST_ACK: _last_ack,
    State.ESTAB: _established,
}
