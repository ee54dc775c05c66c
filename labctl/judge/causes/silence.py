"""Calls that ended with ETIMEDOUT: what had no answer, and which timer gave up (RFC 9293, section
3.8.3; RFC 1122, section 4.2.3.6; tcp(7))."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from labctl.ground import errnos
from labctl.judge.causes.cause import Cause, Scene
from labctl.probes.observations import Segment
from labctl.record.events import CallEvent

SYN = "tcp(7), tcp_syn_retries"
USER = "tcp(7), TCP_USER_TIMEOUT; RFC 5482"
KEEPALIVE = "tcp(7), SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT"
RETRIES = "tcp(7), tcp_retries2; RFC 1122, section 4.2.3.5"


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each call that timed out."""
    for call in scene.calls:
        if call.errno != "ETIMEDOUT":
            continue
        mine = [d for d in scene.descriptors(call.t) if d.process == call.process]
        if not mine:
            continue
        connect = call if call.name == "connect" else mine[-1].connected
        sent = _sent(call, connect, scene)
        if not sent:
            continue
        failure = f"{call.process}: {call.call} failed with {errnos.describe('ETIMEDOUT')}"
        ends = f"{sent[-1].source} -> {sent[-1].target}"
        proof = tuple(f"{s.time:.3f} {s.sender}: {s.summary}" for s in sent[-3:])
        if call.name == "connect":
            text = f"{failure}: {_tries(sent)} SYN without an answer; {_lost(sent)}"
            yield Cause("no-answer", call.host, call.t, text, "", ends, proof, (SYN,))
            continue
        again = [s for s in sent if s.retransmitted]
        options = mine[-1].options
        if "TCP_USER_TIMEOUT" in options:
            ms = options["TCP_USER_TIMEOUT"]
            kind, ref = "timeout-user", USER
            text = f"{failure}: nothing was acknowledged for TCP_USER_TIMEOUT, {ms} ms"
        elif again:
            kind, ref = "timeout-retries", RETRIES
            text = f"{failure}: {len(again)} retransmissions without an answer (tcp_retries2)"
        elif "SO_KEEPALIVE" in options:
            kind, ref = "timeout-keepalive", KEEPALIVE
            text = f"{failure}: keepalive probes had no answer"
        else:
            continue
        yield Cause(kind, call.host, call.t, f"{text}; {_lost(sent)}", "", ends, proof, (ref,))


def _sent(call: CallEvent, connect: CallEvent | None, scene: Scene) -> list[Segment]:
    """What the host had sent in that connection before, from its last answered segment on."""
    peer = connect.peer if connect and connect.peer else None
    local = connect.local if connect and connect.local else None
    found: list[Segment] = []
    for segment in scene.segments:
        if segment.time > call.t:
            break
        if segment.sender == call.host and (local is None or segment.source == local):
            if peer is None or segment.target == peer:
                found.append(segment)
        elif segment.receiver == call.host and segment.arrived is not None and found:
            back = found[-1].target, found[-1].source
            if (segment.source, segment.target) == back:
                found.clear()
    if call.name == "connect":
        found = [s for s in found if "SYN" in s.flags]
    return found if len({(s.source, s.target) for s in found}) == 1 else []


def _tries(sent: list[Segment]) -> str:
    return f"{len(sent)} tries of a" if len(sent) > 1 else "one"


def _lost(sent: list[Segment]) -> str:
    """Where they were lost."""
    where = Counter(
        "lost by a drop" if s.dropped is not None else "lost on their way"
        for s in sent if s.dropped is not None or s.lost
    )  # fmt: skip
    lost = ", ".join(f"{count} {what}" for what, count in where.most_common())
    return lost or "all arrived, so the peer did not answer"
