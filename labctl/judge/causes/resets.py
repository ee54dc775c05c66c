"""Why a host reset a connection: by what came right before the RST, and what the host had then
(RFC 9293, section 3.10.7; RFC 2525, section 2.17; RFC 1337)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from labctl.judge.causes.cause import Cause, Descriptor, Scene
from labctl.probes.observations import Segment
from labctl.probes.sockets import State
from labctl.record.events import ProcessEvent
from labctl.record.listeners import listeners
from labctl.record.timelines import Timeline

MOST = 20
"""Connections that a host reset, at most, which are looked at."""
AT_ONCE = 0.01
"""Seconds from what a kernel answers to its answer, at most, on a busy machine."""
UNREAD = "RFC 2525, section 2.17; tcp_close() in net/ipv4/tcp.c"
LINGER = "socket(7), SO_LINGER; tcp_close() in net/ipv4/tcp.c"
LINGER2 = "tcp(7), TCP_LINGER2; tcp_rcv_state_process() in net/ipv4/tcp_input.c"
LATE = "RFC 9293, section 3.10.7; tcp_rcv_state_process() in net/ipv4/tcp_input.c"
NOBODY = "RFC 9293, section 3.10.7.1; tcp_v4_send_reset() in net/ipv4/tcp_ipv4.c"
QUEUED = "inet_csk_listen_stop() in net/ipv4/inet_connection_sock.c"


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for the first RST of each host in each connection, if it is known."""
    asked: Counter[str | None] = Counter()
    for ends, segments in scene.by_connection.items():
        if len(ends) != 2:
            continue
        seen: set[str | None] = set()
        for segment in segments:
            host = segment.sender
            if "RST" in segment.flags and host not in seen and asked[host] < MOST:
                seen.add(host)
                asked[host] += 1
                if found := _of(segment, segments, scene):
                    yield found


def _of(reset: Segment, segments: Sequence[Segment], scene: Scene) -> Cause | None:
    name = f"{reset.source} -> {reset.target}"
    proof = _line(reset)
    if reset.crafted:
        return Cause(
            "reset-crafted", reset.sender or "", reset.time,
            f"a step sent the RST of {name}: no kernel did", "", name, (proof,),
        )  # fmt: skip
    if reset.sender is None or reset.t is None or reset.inside:
        return None
    host, t = reset.sender, reset.t
    before = [s for s in segments if s.receiver == host and s.arrived and s.arrived <= t]
    trigger = before[-1] if before and t - (before[-1].arrived or 0) < AT_ONCE else None
    if trigger and "SYN" in trigger.flags and "ACK" not in trigger.flags:
        return _refused(reset, trigger, scene)
    here = _alive(reset, scene)
    if here is None:
        return _nobody(reset, trigger, segments, scene)
    state = _state(here, t)
    fin = any(s.sender == host and "FIN" in s.flags and s.time < t for s in segments)
    if maker := _maker(here, host, t, scene):
        if not fin and maker.options.get("SO_LINGER") == "1 0":
            return Cause(
                "reset-linger", host, t,
                f"{host} reset {name}: {maker.process} closed it with SO_LINGER 1 0, which sends "
                "an RST and no FIN",
                "leave SO_LINGER as it is", name, (proof,), (LINGER,),
            )  # fmt: skip
        if fin and maker.options.get("TCP_LINGER2", "").startswith("-"):
            return Cause(
                "reset-linger", host, t,
                f"{host} reset {name}: {maker.process} closed it with TCP_LINGER2 below 0, which "
                "ends it by an RST as soon as its FIN is acknowledged",
                "leave TCP_LINGER2 as it is", name, (proof,), (LINGER2,),
            )  # fmt: skip
    if trigger and trigger.length and fin and state in (State.FIN_WAIT_1, State.FIN_WAIT_2):
        return Cause(
            "reset-late-data", host, t,
            f"{host} reset {name}: {trigger.length} bytes came for a socket that was closed "
            f"already ({state}), so nobody will read them",
            "let the side that closes first read to the end, or shut down its sending half only",
            name, (_line(trigger), proof), (LATE,),
        )  # fmt: skip
    if (
        not fin
        and (unread := _unread(here, scene, t))
        and scene.grown(host, "TcpExtTCPAbortOnClose")
    ):
        return Cause(
            "reset-unread", host, t,
            f"{host} reset {name}: {unread} bytes were unread when the socket closed, so it ended "
            "by an RST and not by a FIN",
            "read to the end of file before close, or shutdown and wait", name, (proof,),
            (UNREAD,),
        )  # fmt: skip
    if not fin and _listener_ended(reset, scene):
        return Cause(
            "reset-queue", host, t,
            f"{host} reset {name}: its listener was closed while nobody had accepted it",
            "accept what waits before the listener closes; net.ipv4.tcp_migrate_req moves it to "
            "another listener with SO_REUSEPORT",
            name, (proof,), (QUEUED,),
        )  # fmt: skip
    return None


def _line(segment: Segment) -> str:
    return f"{segment.time:.6f} {segment.sender or '?'}: {segment.summary}"


def _alive(reset: Segment, scene: Scene) -> Timeline | None:
    """The connection as its sender had it right before the RST."""
    assert reset.sender
    assert reset.t is not None
    for timeline in scene.timelines(reset.sender):
        if timeline.ends == (reset.source, reset.target):
            first, last = timeline.spans[0].begin, timeline.spans[-1].end
            if first.earliest <= reset.t and (last is None or last.latest >= reset.t - AT_ONCE):
                return timeline
    return None


def _state(timeline: Timeline, t: float) -> State:
    """The state that it was in right before."""
    found = timeline.spans[0].state
    for span in timeline.spans:
        if span.begin.earliest < t - 1e-6:
            found = span.state
    return found


def _refused(reset: Segment, syn: Segment, scene: Scene) -> Cause | None:
    host, t = reset.sender or "", reset.t or 0.0
    port = reset.source.rpartition(":")[2]
    for each in listeners(scene.history, host):
        span = each.spans[0]
        on = each.local.rpartition(":")[2] == port
        if on and span.begin.earliest <= t and (span.end is None or span.end.latest >= t):
            return None  # a queue, a filter, or another address: this does not tell
    return Cause(
        "connect-refused", host, t,
        f"{host} refused {syn.source} -> {syn.target}: nobody listened on port {port} there",
        "start the server first, or have the client try again",
        f"{syn.source} -> {syn.target}", (_line(syn), _line(reset)), (NOBODY,),
    )  # fmt: skip


def _nobody(
    reset: Segment, trigger: Segment | None, segments: Sequence[Segment], scene: Scene
) -> Cause | None:
    """A RST to what came for a connection of which this host knows nothing, or nothing any more."""
    host, t = reset.sender or "", reset.t or 0.0
    if trigger is None or (host, "trace") in scene.history.trouble:
        return None
    mine = [e for e in scene.timelines(host) if e.ends == (reset.source, reset.target)]
    past = [e.spans[-1] for e in mine if (end := e.spans[-1].end) and end.earliest <= t]
    if past and (end := past[-1].end):
        then = f"it ended there at {end.at:.3f} s, in {past[-1].state}"
    elif any(e.spans[0].begin.earliest <= t for e in mine):
        return None
    else:
        then = "it never had one: a NAT may have forgotten it, or did not know the segment"
    what = f"{trigger.length} bytes" if trigger.length else " ".join(trigger.flags)
    return Cause(
        "reset-no-socket", host, t,
        f"{host} answered {what} from {trigger.source} by an RST: it has no socket for "
        f"{reset.source} -> {reset.target}; {then}",
        "", f"{reset.source} -> {reset.target}", (_line(trigger), _line(reset)), (NOBODY,),
    )  # fmt: skip


def _maker(timeline: Timeline, host: str, t: float, scene: Scene) -> Descriptor | None:
    """The descriptor that a connection is, or was accepted from."""
    port = timeline.local.rpartition(":")[2]
    for each in reversed(scene.descriptors(t)):
        if each.host == host and each.local.rpartition(":")[2] == port:
            return each
    return None


def _unread(timeline: Timeline, scene: Scene, t: float) -> int:
    """How many bytes its receive queue held in the last look before."""
    host_looks = [
        look for host in scene.history.hosts for look in scene.looks(host)
        if look.t <= t and scene.history.owners.get(_address(timeline.local)) == host
    ]  # fmt: skip
    for look in reversed(host_looks):
        for socket in look.sockets:
            if socket.ends == timeline.ends:
                return socket.recv_q
    return 0


def _address(end: str) -> str:
    return end.rpartition(":")[0].strip("[]")


def _listener_ended(reset: Segment, scene: Scene) -> bool:
    t, port = reset.t or 0.0, reset.source.rpartition(":")[2]
    ends = [
        each.spans[-1].end for each in listeners(scene.history, reset.sender or "")
        if each.local.rpartition(":")[2] == port
    ]  # fmt: skip
    killed = [
        e.t for e in scene.history.events
        if isinstance(e, ProcessEvent) and e.phase in ("exit", "gone") and e.host == reset.sender
    ]  # fmt: skip
    gone = any(end and end.earliest - AT_ONCE <= t <= end.latest + AT_ONCE for end in ends)
    return gone and any(abs(moment - t) < 10 * AT_ONCE for moment in killed)
