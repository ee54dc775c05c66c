"""What listeners did with connections that nobody had accepted: full queues, cookies, deferral."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from labctl.ground.written import count
from labctl.judge.causes.cause import Cause, Scene, line
from labctl.probes.observations import begins
from labctl.probes.sockets import State, accept_queue, queue_is_full
from labctl.record.holders import told
from labctl.record.timelines import Timeline

QUEUE = "listen(2), backlog; tcp_conn_request() and tcp_v4_syn_recv_sock() in net/ipv4"
COOKIES = "tcp(7), tcp_syncookies; RFC 4987, section 3.6"
DEFERRED = "tcp(7), TCP_DEFER_ACCEPT; tcp_check_req() in net/ipv4/tcp_minisocks.c"
SOON = 0.1
"""Seconds in which a SYN gets its answer, at most, on a busy machine."""
LONG, SHOWN = 1.0, 3
"""Seconds in SYN-RECV that are worth a word; and of how many connections, at most."""
LONGER = "accept faster, or ask for a longer queue: listen's backlog and net.core.somaxconn"
ABORT = "net.ipv4.tcp_abort_on_overflow"
OVERFLOWS, DROPS = "TcpExtListenOverflows", "TcpExtListenDrops"


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each listener that dropped, answered by a cookie, or deferred."""
    for host in scene.history.imported:
        yield from islice(_again(host, scene), SHOWN)
    for host in scene.history.hosts:
        yield from _full(host, scene)
        yield from _cookies(host, scene)
        yield from _deferred(host, scene)


def _full(host: str, scene: Scene) -> Iterator[Cause]:
    overflows = scene.grown(host, OVERFLOWS)
    if not overflows:
        return
    drops = scene.grown(host, DROPS)
    words = f"{overflows} overflows ({OVERFLOWS}), {drops} drops ({DROPS})"
    locals_ = {each.local for each in scene.listeners(host)}
    ignored = {local for local in locals_ if _ignored(host, local, scene)}
    alone = len(locals_) == 1 or bool(ignored)
    if not alone:
        words += f"; {host} has several listeners, and only SYNs without an answer would tell whose"
    if scene.setting(host, ABORT, scene.history.now) == "1":
        words += f"; with {ABORT} 1 such an ACK gets an RST"
    seen: set[str] = set()
    for look in scene.looks(host):
        if "LISTEN" not in look.text:
            continue
        for socket in look.came:
            if ignored and socket.local.end not in ignored:
                continue
            if socket.is_listener and queue_is_full(socket) and socket.local.end not in seen:
                seen.add(socket.local.end)
                evidence, holders = told(scene.history, look, [socket])
                yield Cause(
                    "accept-queue-full", host, look.t,
                    f"{host}: the accept queue of LISTEN {socket.local} was full "
                    f"({accept_queue(socket)}), and the kernel refuses SYNs and last ACKs for "
                    f"which a queue has no room: {words}",
                    LONGER, evidence=evidence, refs=(QUEUE,), certain=alone, holders=holders,
                )  # fmt: skip


def _again(host: str, scene: Scene) -> Iterator[Cause]:
    """SYN ACKs that a host sent again although it had got the ACK, as far as segments tell."""
    for segments in scene.conversations:
        asked = segments[0]
        answers = [s for s in segments if s.sender == host and {"SYN", "ACK"} <= {*s.flags}]
        acks = [
            s for s in segments
            if answers and s.source == asked.source and s.arrived is not None
            and "SYN" not in s.flags and s.ack == answers[0].seq + 1
        ]  # fmt: skip
        if not acks or not begins(asked) or asked.inside or "RST" in acks[0].flags:
            continue
        late = [s for s in answers if s.time > (acks[0].arrived or 0.0) + SOON]
        if late:
            name = f"{asked.target} -> {asked.source}"
            yield Cause(
                "accept-queue-full", host, late[0].time,
                f"{host} sent its SYN ACK of {name} again, {count(len(late), 'time')}, although "
                "the ACK had come: the accept queue of its listener was full, it seems, or a "
                f"filter kept the ACK from it, or TCP_DEFER_ACCEPT waited for data: {OVERFLOWS} "
                "would tell",
                LONGER, name, (line(acks[0]), *map(line, late[-2:])), (QUEUE,), certain=False,
            )  # fmt: skip


def _ignored(host: str, local: str, scene: Scene) -> bool:
    """Whether a listener certainly had a SYN without an answer, or answered one again whose last
    ACK had come."""
    port = local.rpartition(":")[2]
    for target, tries in scene.conversations.asked.items():
        if target != local and (local != f":{port}" or target.rpartition(":")[2] != port):
            continue
        for segments in tries:
            came = [s for s in segments if s.receiver == host and s.arrived is not None]
            answers = [s.time for s in segments if s.sender == host and "SYN" in s.flags]
            syns = [s.arrived or 0.0 for s in came if begins(s)]
            acked = [s.arrived or 0.0 for s in came if "ACK" in s.flags]
            late = scene.history.now - SOON
            silent = any(t < min([*answers, late]) - SOON for t in syns)
            if silent or (answers and any(t + SOON < answers[-1] for t in acked)):
                return True
    return False


def _cookies(host: str, scene: Scene) -> Iterator[Cause]:
    sent = scene.grown(host, "TcpExtSyncookiesSent")
    if not sent:
        return
    got = scene.grown(host, "TcpExtSyncookiesRecv")
    text = (
        f"{host} answered {sent} {'SYN' if sent == 1 else 'SYNs'} by SYN cookies "
        f"(TcpExtSyncookiesSent), and {got} came back: without its last ACK a client believes that "
        f"it is connected, while {host} has no socket for it"
    )
    yield Cause(
        "syn-cookies", host, scene.history.now, text,
        "a longer SYN queue (listen's backlog, net.ipv4.tcp_max_syn_backlog) needs no cookies; "
        "net.ipv4.tcp_syncookies 2 sends them always",
        evidence=(f"TcpExtSyncookiesSent: {sent}", f"TcpExtSyncookiesRecv: {got}"),
        refs=(COOKIES,),
    )  # fmt: skip


def _deferred(host: str, scene: Scene) -> Iterator[Cause]:
    """Connections whose last ACK came, and which waited all the same. Where data follows at once,
    deferral does no harm; where a queue was full, it may have been that."""
    ignored = scene.grown(host, "TcpExtTCPDeferAcceptDrop")
    if not ignored or scene.grown(host, OVERFLOWS):
        return
    told = 0
    for timeline in scene.timelines(host):
        first = timeline.spans[0]
        shortest, _ = first.lasted(scene.history.now)
        if first.state is not State.SYN_RECV or shortest < LONG or told >= SHOWN:
            continue
        listener = scene.listening(host, timeline.local, first.begin.at)
        if not _acknowledged(host, timeline, scene) or (
            listener and not listener.has("TCP_DEFER_ACCEPT", first.begin.at)
        ):
            continue
        told += 1
        whose = f" of {listener.process}" if listener else ""
        still = "has been" if first.end is None else "was"
        yield Cause(
            "deferred-accept", host, first.begin.at,
            f"{timeline.name} on {host} {still} in SYN-RECV for {shortest:.1f} s: the listener"
            f"{whose} has TCP_DEFER_ACCEPT, so the last ACK of a handshake does not count until "
            f"data comes ({ignored} ignored, TcpExtTCPDeferAcceptDrop), while the client believes "
            "that it is connected",
            "leave TCP_DEFER_ACCEPT out where the server speaks first", timeline.name,
            (f"TcpExtTCPDeferAcceptDrop: {ignored}",), (DEFERRED,),
        )  # fmt: skip


def _acknowledged(host: str, timeline: Timeline, scene: Scene) -> bool:
    """Whether the last ACK of a handshake came soon, and no data."""
    began = timeline.spans[0].begin.latest
    came = [
        s for s in scene.conversation(host, timeline.ends, began)
        if s.receiver == host and s.arrived is not None and s.arrived < began + LONG
    ]  # fmt: skip
    return any(s.flags == ("ACK",) for s in came) and not any(s.length for s in came)
