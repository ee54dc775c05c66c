"""What listeners did with connections that nobody had accepted: full queues, cookies, deferral."""

from __future__ import annotations

from collections.abc import Iterator

from labctl.judge.causes.cause import Cause, Scene
from labctl.probes.sockets import accept_queue, queue_is_full

QUEUE = "listen(2), backlog; tcp_conn_request() and tcp_v4_syn_recv_sock() in net/ipv4"
COOKIES = "tcp(7), tcp_syncookies; RFC 4987, section 3.6"
DEFERRED = "tcp(7), TCP_DEFER_ACCEPT; tcp_check_req() in net/ipv4/tcp_minisocks.c"
OVERFLOWS, DROPS = "TcpExtListenOverflows", "TcpExtListenDrops"


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each listener that dropped, answered by a cookie, or deferred."""
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
    seen: set[str] = set()
    for look in scene.looks(host):
        if "LISTEN" not in look.text:
            continue
        for socket in look.sockets:
            if socket.is_listener and queue_is_full(socket) and socket.local.end not in seen:
                seen.add(socket.local.end)
                yield Cause(
                    "accept-queue-full", host, look.t,
                    f"{host}: the accept queue of LISTEN {socket.local} was full "
                    f"({accept_queue(socket)}), so the kernel dropped SYNs and last ACKs: {words}",
                    "accept faster, or ask for a longer queue: listen's backlog and "
                    "net.core.somaxconn",
                    evidence=(f"LISTEN {socket.local}, accept queue {accept_queue(socket)}",),
                    refs=(QUEUE,),
                )  # fmt: skip


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
        refs=(COOKIES,), certain=True,
    )  # fmt: skip


def _deferred(host: str, scene: Scene) -> Iterator[Cause]:
    dropped = scene.grown(host, "TcpExtTCPDeferAcceptDrop")
    if not dropped:
        return
    by = [
        d for d in scene.descriptors(scene.history.now)
        if d.host == host and "TCP_DEFER_ACCEPT" in d.options and d.listening
    ]  # fmt: skip
    whose = f" of {by[0].process}, {by[0].local}," if len(by) == 1 else ""
    yield Cause(
        "deferred-accept", host, scene.history.now,
        f"{host}: the listener{whose} has TCP_DEFER_ACCEPT: the last ACK of a handshake does not "
        f"count until data comes ({dropped} ignored, TcpExtTCPDeferAcceptDrop). So the socket "
        "stays in SYN-RECV, while the client believes that it is connected and waits",
        "leave TCP_DEFER_ACCEPT out where the server speaks first",
        evidence=(f"TcpExtTCPDeferAcceptDrop: {dropped}",), refs=(DEFERRED,),
    )  # fmt: skip
