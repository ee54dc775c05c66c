"""What a socket does to a bind to its port, and what helps: the words, in one place."""

from __future__ import annotations

from typing import NamedTuple

from labctl.probes.sockets import Socket, State

REUSE, SHARE = "SO_REUSEADDR", "SO_REUSEPORT"
RESERVE = "keep the server's port out of the range: net.ipv4.ip_local_reserved_ports"
DUAL = "set IPV6_V6ONLY on the IPv6 socket, or serve both by that one socket"


class Blocking(NamedTuple):
    """The id of the cause if a bind fails for it, without what else is known of both sockets; what
    a bind needs to succeed all the same; the cure."""

    id: str
    unless: str
    cure: str


LISTENER = Blocking(
    "bind-listener",
    f"both sockets have {SHARE} and one user",
    f"stop it, or take another port; to share the port, set {SHARE} on both, as one user",
)
BOUND = Blocking("bind-bound", f"both sockets have {REUSE}", "close it")
IDS = {
    State.TIME_WAIT: "bind-time-wait",
    State.FIN_WAIT_1: "bind-fin-wait",
    State.FIN_WAIT_2: "bind-fin-wait",
    State.CLOSING: "bind-last-ack",
    State.LAST_ACK: "bind-last-ack",
}


def blocking(socket: Socket) -> Blocking:
    """What is to be said of a socket by its state."""
    if socket.is_listener:
        return LISTENER
    if socket.state is State.UNCONN:
        return BOUND
    return Blocking(
        IDS.get(socket.state, "bind-connection"),
        f"both the old socket and the new one have {REUSE}",
        f"set {REUSE} before bind, on the server that made the old connection too",
    )
