"""Routers that have forgotten a connection, and lose what comes for it without a word. If they
answer by an RST, resets.py tells that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from labctl.ground.written import count
from labctl.judge.causes.cause import Cause, Scene, line
from labctl.probes.observations import Segment

IDLE = "RFC 5382, section 5; nf_conntrack-sysctl.rst, nf_conntrack_tcp_timeout_established"
CURE = (
    "send more often than it forgets (SO_KEEPALIVE with a short TCP_KEEPIDLE, on either side), or "
    "let it remember longer (net.netfilter.nf_conntrack_tcp_timeout_established)"
)
LOOSE = "net.netfilter.nf_conntrack_tcp_loose"
TIMEOUT = "net.netfilter.nf_conntrack_tcp_timeout_established"


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each connection of which a strict NAT lost something after a long silence."""
    if "nat" in scene.history.networks.routers.values():
        for segments in scene.conversations:
            if found := _lost(segments, scene):
                yield found


def _lost(segments: Sequence[Segment], scene: Scene) -> Cause | None:
    """The first segment after its time that came to a NAT, which passed nothing on. Whatever else
    may have lost it, there the NAT certainly did: by what the scenario has set, it picks no
    connection up."""
    latest, nats = segments[0].time, set[str]()
    for segment in segments:
        hops = segment.way.hops if segment.way else ()
        host = hops[-1].host if hops else ""
        idle, latest = segment.time - latest, max(latest, segment.time)
        if segment.way and segment.way.names:
            nats |= {hop.host for hop in hops}
        elif host in nats and hops[-1].left is None and segment.lost:
            timeout = scene.setting(host, TIMEOUT, segment.time) or ""
            strict = scene.setting(host, LOOSE, segment.time) == "0"
            if strict and timeout.isdecimal() and idle > int(timeout):
                name = f"{segment.source} -> {segment.target}"
                what = count(segment.length, "byte") if segment.length else " ".join(segment.flags)
                return Cause(
                    "nat-forgot", host, segment.time,
                    f"{host} has forgotten {name}: after {idle:.1f} s without a segment it took "
                    f"{what} and passed nothing on; it remembers for {timeout} s, and picks up no "
                    "connection that it does not know (nf_conntrack_tcp_loose 0)",
                    CURE, name, (line(segment),), (IDLE,),
                )  # fmt: skip
    return None
