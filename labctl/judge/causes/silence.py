"""Calls and connections that ended with ETIMEDOUT: what had no answer, and which timer gave up
(RFC 9293, section 3.8.3; RFC 1122, section 4.2.3.6; tcp(7))."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from labctl.ground import errnos
from labctl.judge.causes.cause import Cause, Scene, begins, line
from labctl.judge.causes.descriptors import Descriptor, arguments
from labctl.probes.observations import Segment
from labctl.probes.sockets import State
from labctl.record.events import CallEvent

SYN = "tcp(7), tcp_syn_retries"
USER = "tcp(7), TCP_USER_TIMEOUT; RFC 5482"
KEEPALIVE = "tcp(7), SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT"
GIVING_UP = (
    State.ESTAB, State.CLOSE_WAIT, State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK
)  # fmt: skip
"""The states in which a side waits for an acknowledgement."""
PATIENT = 1.0
"""Seconds after which no answer to a first SYN is worth a word: then it is sent again."""
SLACK = 0.3
"""Seconds by which a timer may seem to end early: it begins with what is sent, not acknowledged."""
RETRIES = "tcp(7), tcp_retries2; RFC 1122, section 4.2.3.5"


ABORTED = "TcpExtTCPAbortOnTimeout"


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each call that timed out, and for each connection of which no call tells that."""
    yield from _calls(scene)
    if scene.history.without_calls:
        yield from _in_vain(scene)
    for host in scene.history.hosts:
        yield from _given_up(host, scene)


def _in_vain(scene: Scene) -> Iterator[Cause]:
    """Connections that somebody asked for, as far as only segments tell: without any answer."""
    for segments in scene.conversations:
        host, asked = segments[0].sender, segments[0].source
        if host is None or not all(begins(s) and s.source == asked for s in segments):
            continue
        if scene.history.now - segments[0].time < PATIENT or segments[0].inside:
            continue
        tries = f"{len(segments)} SYNs" if len(segments) > 1 else "its SYN"
        name = f"{asked} -> {segments[0].target}"
        yield Cause(
            "no-answer", host, segments[-1].time,
            f"{host} had no answer to {tries} of {name}; {_fate(segments, 0, scene)}", "", name,
            tuple(map(line, segments[-3:])), (SYN,), certain=scene.captured(host),
        )  # fmt: skip


def _given_up(host: str, scene: Scene) -> Iterator[Cause]:
    """Connections of programs whose reading nobody sees: as many as the kernel says it gave up."""
    count = scene.grown(host, ABORTED)
    timed_out = [c for c in scene.calls if c.host == host and c.errno == "ETIMEDOUT"]
    if not count or not scene.captured(host):
        return
    told = {mine.ends for call in timed_out if (mine := scene.descriptors.of(call))}
    found = []
    for timeline in scene.timelines(host):
        last = timeline.spans[-1]
        if last.end is None or last.state not in GIVING_UP or timeline.ends in told:
            continue
        t = last.end.latest
        sent, lost = _unanswered(scene.conversation(host, timeline.ends, t), host, t, scene)
        if sent:
            found.append((timeline, t, sent, lost))
    if len(found) != count - len(timed_out):
        return
    for timeline, t, sent, lost in found:
        if known := _timer(scene.descriptor(host, timeline.ends, t), t, sent):
            kind, ref, why = known
            yield Cause(
                kind, host, t, f"{host} gave up {timeline.name}: {why}; {lost}", "", timeline.name,
                (*map(line, sent[-3:]), f"{ABORTED}: {count}"), (ref,),
            )  # fmt: skip


def _calls(scene: Scene) -> Iterator[Cause]:
    for call in scene.calls:
        mine = scene.descriptors.of(call)
        if call.errno != "ETIMEDOUT" or mine is None:
            continue
        found = _asked(call, mine, scene) if call.name == "connect" else _spoke(call, mine, scene)
        sent, lost = _unanswered(found, call.host, call.t, scene)
        if not sent:
            continue
        failure = f"{call.process}: {call.call} failed with {errnos.describe('ETIMEDOUT')}"
        if call.name == "connect" or all(map(begins, sent)):  # a write may connect: Fast Open
            tries = f"{len(sent)} tries of a" if len(sent) > 1 else "one"
            kind, ref, why = "no-answer", SYN, f"{tries} SYN without an answer"
        elif known := _timer(mine, call.t, sent):
            kind, ref, why = known
        else:
            continue
        yield Cause(
            kind, call.host, call.t, f"{failure}: {why}; {lost}", "",
            f"{sent[-1].source} -> {sent[-1].target}",
            tuple(map(line, sent[-3:])), (ref,),
        )  # fmt: skip


def _asked(call: CallEvent, mine: Descriptor, scene: Scene) -> Sequence[Segment]:
    """The connection that a connect asked for: the only one whose SYN went there meanwhile."""
    given = arguments(call.call)
    if len(given) != 2:
        return ()
    host, port = given
    lab = scene.history.lab
    name = f"{host}.v6" if mine.family == 6 else host
    address = lab.addresses.get(name, host) if lab else host
    target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    asked = scene.asked.get(target, [])
    first = bisect_left(asked, mine.made, key=lambda each: each[0].time)
    last = bisect_right(asked, call.t, key=lambda each: each[0].time)
    found = [each for each in asked[first:last] if each[0].sender == call.host]
    return found[0] if len(found) == 1 else ()


def _spoke(call: CallEvent, mine: Descriptor, scene: Scene) -> Sequence[Segment]:
    return scene.conversation(call.host, mine.ends, call.t) if mine.ends else ()


def _unanswered(
    found: Sequence[Segment], host: str, t: float, scene: Scene
) -> tuple[list[Segment], str]:
    """What a host has sent there since it heard from its peer, and what became of it. A bare ACK
    wants no answer; a keepalive probe, which repeats a number, does."""
    ours: list[Segment] = []
    theirs = following = 0
    for segment in found:
        if segment.time > t:
            break
        if segment.sender == host and segment.source == _own(found, host):
            span = segment.length + ("SYN" in segment.flags) + ("FIN" in segment.flags)
            if "RST" not in segment.flags and (span or segment.seq < following):
                ours.append(segment)
            following = max(following, segment.seq + span)
        elif segment.arrived is not None:
            ours, theirs = [], 0
        else:
            theirs += 1
    return (ours, _fate(ours, theirs, scene)) if ours else ([], "")


def _own(found: Sequence[Segment], host: str) -> str:
    """The end of that host: of a connection inside it, the one that opened it."""
    first = found[0]
    return first.source if first.sender == host else first.target


def _fate(sent: Sequence[Segment], answers: int, scene: Scene) -> str:
    """What became of segments without an answer."""
    there = sent[-1].receiver
    if any(s.unseen and s.arrived is None for s in sent):
        return "whether they arrived, a capture of the peer would tell"
    lost = [s for s in sent if s.dropped is not None or s.lost]
    if lost and not all(s.dropped is not None for s in lost) and not scene.captured(there):
        return "whether they arrived, a capture of the peer would tell"
    where = Counter(
        "lost by a drop" if s.dropped is not None else "lost on their way" for s in lost
    )
    words = ", ".join(f"{count} {what}" for what, count in where.most_common())
    if answers:
        back = f"{answers} answers of the peer were lost"
        return f"{words}, and {back}" if words else back
    return words or "all arrived, so the peer did not answer"


def _timer(
    mine: Descriptor | None, t: float, sent: Sequence[Segment]
) -> tuple[str, str, str] | None:
    """The rule, where it is written, and which timer gave up."""
    again = sum(s.retransmitted or s.probe for s in sent)
    user = mine.option("TCP_USER_TIMEOUT", t) if mine else "0"
    if user.isdecimal() and int(user) > 0:
        if t - sent[0].time < int(user) / 1000 - SLACK:
            return None
        why = f"nothing was acknowledged for TCP_USER_TIMEOUT, {user} ms"
        return "timeout-user", USER, why
    if again and mine:
        why = f"{again} retransmissions without an answer (net.ipv4.tcp_retries2)"
        return "timeout-retries", RETRIES, why
    probes = [s for s in sent if not s.length and "FIN" not in s.flags]
    if (mine is None or mine.has("SO_KEEPALIVE", t)) and probes and len(probes) == len(sent):
        apart = [round(b.time - a.time, 1) for a, b in pairwise(probes)]
        spacing = f", {min(apart)} s apart" if apart else ""
        why = f"{len(probes)} keepalive probes had no answer{spacing}"
        return "timeout-keepalive", KEEPALIVE, why
    return None
