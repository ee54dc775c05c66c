"""Ports of the range for outgoing connections that ran out, or that are refused for one place
(ip(7), ip_local_port_range; tcp_twsk_unique())."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from labctl.ground import errnos
from labctl.judge.causes.cause import Cause, Descriptor, Scene
from labctl.probes.sockets import Socket, State, describe_socket
from labctl.record.events import CallEvent, SocketsEvent

RANGE = "ip(7), ip_local_port_range; __inet_hash_connect() in net/ipv4/inet_hashtables.c"
TWICE = "tcp_twsk_unique() in net/ipv4/tcp_ipv4.c; RFC 6191"
PLACES = 3


def exhausted(call: CallEvent, address: str, look: SocketsEvent, scene: Scene) -> Cause:
    """A `bind ADDRESS:0` that found no port: one pool for all destinations."""
    sockets = [s for s in look.sockets if s.state is not State.LISTEN]
    text = (
        f"{call.process}: {call.call} failed with {errnos.describe('EADDRINUSE')}: no port of "
        f"net.ipv4.ip_local_port_range is free for {address.rpartition(':')[0]}: "
        f"{_held(sockets)}; a bind to port 0 takes one for all destinations"
    )
    cure = (
        "set IP_BIND_ADDRESS_NO_PORT, so that connect chooses the port, for each destination; or "
        "a wider range, more addresses, connections that are kept"
    )
    return Cause(
        "ports-exhausted", call.host, call.t, text, cure,
        evidence=tuple(describe_socket(s) for s in sockets[:PLACES]), refs=(RANGE,),
    )  # fmt: skip


def _held(sockets: list[Socket]) -> str:
    states = Counter(str(socket.state) for socket in sockets)
    places = Counter(str(socket.remote) for socket in sockets)
    words = ", ".join(f"{count} {state}" for state, count in states.most_common())
    to = ", ".join(f"{count} to {place}" for place, count in places.most_common(PLACES))
    return f"held: {len({s.local.port for s in sockets})} ({words}; {to})"


def causes(scene: Scene) -> Iterator[Cause]:
    """A connect that failed with EADDRNOTAVAIL."""
    for call in scene.calls:
        if call.name != "connect" or call.errno != "EADDRNOTAVAIL":
            continue
        look = next((e for e in scene.looks(call.host) if e.t >= call.t), None)
        if look is None:
            continue
        mine = [d for d in scene.descriptors(call.t) if d.connected is call]
        bound = mine[0].bound if mine else None
        where = call.call.split()[-1]
        failure = f"{call.process}: {call.call} failed with {errnos.describe('EADDRNOTAVAIL')}"
        same = [s for s in look.sockets if s.connection and _to(s, where, scene)]
        if bound and bound.local and not bound.call.endswith(":0"):
            port = int(bound.local.rpartition(":")[2])
            if old := [s for s in same if s.local.port == port]:
                yield Cause(
                    "connect-in-use", call.host, call.t,
                    f"{failure}: the old connection has the same four-tuple: "
                    f"{describe_socket(old[0])}",
                    "turn timestamps on (net.ipv4.tcp_timestamps), with which a TIME_WAIT of one "
                    "second or more may be taken over; or connect from another port or address",
                    f"{old[0].local} -> {old[0].remote}",
                    (describe_socket(old[0]),), (TWICE,),
                )  # fmt: skip
        elif same:
            yield Cause(
                "ports-exhausted", call.host, call.t,
                f"{failure}: no port of {_range(mine)} is free for {where}: {_held(same)}",
                "keep connections, widen the range, or use more addresses",
                evidence=tuple(describe_socket(s) for s in same[:PLACES]), refs=(RANGE,),
            )  # fmt: skip


def _range(mine: list[Descriptor]) -> str:
    own = mine and "IP_LOCAL_PORT_RANGE" in mine[0].options
    return "its own range (IP_LOCAL_PORT_RANGE)" if own else "net.ipv4.ip_local_port_range"


def _to(socket: Socket, where: str, scene: Scene) -> bool:
    """Whether a socket's remote end is what a call names."""
    host, _, port = where.rpartition(":")
    lab = scene.history.lab
    known = {lab.addresses.get(name) for name in (host, f"{host}.v6")} if lab else set()
    addresses = known | {host.strip("[]")}
    return socket.remote.port == int(port) and socket.remote.unmapped in addresses
