"""Ports of the range for outgoing connections that ran out, or that are refused for one place
(ip(7), ip_local_port_range; tcp_twsk_unique())."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from labctl.ground import errnos
from labctl.judge.causes.cause import Cause, Scene
from labctl.judge.causes.descriptors import Descriptor, arguments
from labctl.probes.sockets import Socket, State
from labctl.record.events import CallEvent, SocketsEvent
from labctl.record.history import History
from labctl.record.holders import described, told

RANGE = "ip(7), ip_local_port_range; __inet_hash_connect() in net/ipv4/inet_hashtables.c"
TWICE = "tcp_twsk_unique() in net/ipv4/tcp_ipv4.c; RFC 6191"
RESERVED = "net.ipv4.ip_local_reserved_ports"
KEY = "net.ipv4.ip_local_port_range"
PLACES = 3
SOON = 1.0
"""Seconds after a failure within which a look tells of it."""


def exhausted(call: CallEvent, address: str, look: SocketsEvent, scene: Scene) -> Cause:
    """A `bind ADDRESS:0` that found no port: one pool for all destinations."""
    host = address.rpartition(":")[0].strip("[]")
    everywhere = host in ("", "0.0.0.0", "::")
    which, bounds = _chosen(call, scene.descriptors.of(call), scene)
    sockets = [
        s for s in look.sockets
        if s.connection and _in(bounds, s)
        and (everywhere or s.local.wildcard or s.local.unmapped == host)
        and scene.opened(call.host, s.ends, look.t) is not False
    ]  # fmt: skip
    return Cause(
        "ports-exhausted", call.host, call.t,
        f"{call.process}: {call.call} failed with {errnos.describe('EADDRINUSE')}: no port of "
        f"{which} is free for {'any address' if everywhere else host}: "
        f"{_held(sockets)}{_reserved(bounds, call, scene)}; a bind to port 0 takes one for all "
        "destinations",
        "set IP_BIND_ADDRESS_NO_PORT, so that connect chooses the port, for each destination; or "
        "a wider range, more addresses, connections that are kept",
        refs=(RANGE,), **_told(scene.history, look, sockets),
    )  # fmt: skip


def _range(call: CallEvent, scene: Scene) -> tuple[int, int] | None:
    """The host's range then, if a scenario has set it."""
    words = (scene.setting(call.host, KEY, call.t) or "").split()
    return (int(words[0]), int(words[1])) if len(words) == 2 else None


def _in(bounds: tuple[int, int] | None, socket: Socket) -> bool:
    """Whether a socket's port is in a range, as far as that is known."""
    return bounds is None or bounds[0] <= (socket.local.port or 0) <= bounds[1]


def _named(bounds: tuple[int, int] | None) -> str:
    """The host's range, with its numbers if they are known."""
    low, high = bounds or (0, 0)
    count = high - low + 1
    ports = "1 port" if count == 1 else f"{count} ports"
    return f"{KEY} ({low} to {high}: {ports})" if bounds else KEY


def _chosen(
    call: CallEvent, mine: Descriptor | None, scene: Scene
) -> tuple[str, tuple[int, int] | None]:
    """The range from which a connect or a bind chose, in words and numbers: that of the host, or
    what of it is in the socket's own, if anything is (inet_sk_get_local_port_range())."""
    bounds = _range(call, scene)
    own = mine.option("IP_LOCAL_PORT_RANGE", call.t).split() if mine else []
    if len(own) != 2:
        return _named(bounds), bounds
    low, high = int(own[0]), int(own[1])
    words = f"IP_LOCAL_PORT_RANGE ({low} to {high})"
    if bounds is None:
        return f"the socket's own {words}", (low, high)
    if low <= bounds[1] and high >= bounds[0]:
        bounds = max(low, bounds[0]), min(high, bounds[1])
        return f"{_named(bounds)} within the socket's own {words}", bounds
    return f"{_named(bounds)}, which has none of the socket's own {words},", bounds


def _reserved(bounds: tuple[int, int] | None, call: CallEvent, scene: Scene) -> str:
    """How many ports of a range no connect chooses, if a scenario has said so."""
    text = scene.setting(call.host, RESERVED, call.t) or ""
    parts = [[int(end) for end in part.split("-")] for part in re.findall(r"\d+(?:-\d+)?", text)]
    low, high = bounds or (0, 0xFFFF)
    found = sum(max(0, min(high, each[-1]) - max(low, each[0]) + 1) for each in parts)
    return f"; reserved: {found} ({RESERVED}, {text})" if found else ""


def _held(sockets: list[Socket]) -> str:
    states = Counter(str(socket.state) for socket in sockets)
    places = Counter(str(socket.remote) for socket in sockets)
    words = ", ".join(f"{count} {state}" for state, count in states.most_common())
    to = ", ".join(f"{count} to {place}" for place, count in places.most_common(PLACES))
    by = f" ({words}; {to})" if sockets else " by outgoing connections"
    return f"held: {len({s.local.port for s in sockets})}{by}"


def causes(scene: Scene) -> Iterator[Cause]:
    """A connect that failed with EADDRNOTAVAIL."""
    for call in scene.calls(name="connect", errno="EADDRNOTAVAIL"):
        look = scene.look(call.host, call.t, SOON)
        given = arguments(call.call)
        if look and len(given) == 2:
            mine = scene.descriptors.of(call)
            same = [s for s in look.sockets if s.connection and _to(s, given, call, scene)]
            if found := _of(call, mine, same, look, scene):
                yield found


def _told(history: History, look: SocketsEvent, sockets: Sequence[Socket]) -> dict[str, Any]:
    """The first of some sockets, as a cause has them."""
    evidence, holders = told(history, look, sockets[:PLACES])
    return {"evidence": evidence, "holders": holders}


def _of(
    call: CallEvent, mine: Descriptor | None, same: list[Socket], look: SocketsEvent,
    scene: Scene,
) -> Cause | None:  # fmt: skip
    where = call.call.partition("||")[0].split()[-1]
    failure = f"{call.process}: {call.call} failed with {errnos.describe('EADDRNOTAVAIL')}"
    host, _, port = (mine.local if mine else "").rpartition(":")
    same = [s for s in same if host in ("", s.local.end.rpartition(":")[0])]
    if port not in ("", "0"):
        old = [s for s in same if s.local.port == int(port)]
        if not old:
            return None
        late = (
            "turn timestamps on (net.ipv4.tcp_timestamps), with which a TIME_WAIT of one second or "
            "more may be taken over; or "
        ) if old[0].state is State.TIME_WAIT else ""  # fmt: skip
        return Cause(
            "connect-in-use", call.host, call.t,
            f"{failure}: the old connection has the same four-tuple: "
            f"{described(scene.history, look, old[0])}",
            f"{late}connect from another port or address",
            f"{old[0].local} -> {old[0].remote}", refs=(TWICE,),
            **_told(scene.history, look, old[:1]),
        )  # fmt: skip
    if not same:
        return None
    which, bounds = _chosen(call, mine, scene)
    same = [s for s in same if _in(bounds, s)] or same
    return Cause(
        "ports-exhausted", call.host, call.t,
        f"{failure}: no port of {which} is free for {where}: {_held(same)}"
        f"{_reserved(bounds, call, scene)}",
        "keep connections, widen the range, or use more addresses",
        refs=(RANGE,), **_told(scene.history, look, same),
    )  # fmt: skip


def _to(socket: Socket, given: tuple[str, int], call: CallEvent, scene: Scene) -> bool:
    """Whether a socket's remote end is what a call names."""
    address = scene.address(given[0], call.host).strip("[]")
    return socket.remote.port == int(given[1]) and socket.remote.unmapped == address
