"""Words for what was seen: sockets, and which of them blocked a bind."""

from __future__ import annotations

from labctl import errnos
from labctl.calls import parse_calls
from labctl.history import CallEvent, History
from labctl.probes.sockets import Address, Socket


def describe_socket(socket: Socket, age: float = 0.0) -> str:
    """`TIME-WAIT 198.18.0.2:8000 -> 198.18.0.3:40312, timewait timer 59.3 s left`, `age` seconds
    after it was seen."""
    text = f"{socket.state} {socket.local}"
    if not socket.is_listener:
        text += f" -> {socket.remote}"
        if socket.recv_q:
            text += f", recv-q {socket.recv_q}"
        if socket.send_q:
            text += f", send-q {socket.send_q}"
    if socket.timer:
        text += f", {socket.timer.name} timer {max(0.0, socket.timer.expires - age):.1f} s left"
    return text


def blockers(address: str, sockets: tuple[Socket, ...]) -> list[Socket]:
    """The sockets that can stop a bind to `address` (as the peer wrote it: `:8000`,
    `198.18.0.2:8000`): those with its port, and with its local address where both are specific.

    Which of them did depends on options that no tool shows (see socket(7), SO_REUSEADDR)."""
    host, _, port = address.rpartition(":")
    wanted = Address(host.strip("[]") or "*", int(port), None)
    return [s for s in sockets if s.local.port == wanted.port and _overlap(wanted, s.local)]


def _overlap(a: Address, b: Address) -> bool:
    return a.wildcard or b.wildcard or a.unmapped == b.unmapped


def blocked_call(event: CallEvent, history: History) -> str | None:
    """One sentence on why a bind or listen failed, from the look at its host that follows such a
    failure; None where nothing is known."""
    seen = history.sockets[event.host]
    if event.name == "bind":
        host, port = parse_calls(event.call)[0].args
        address = f"{history.lab.addresses.get(host, host) if history.lab else host}:{port}"
    else:
        address = event.local or ":0"
    found = blockers(address, seen.sockets)
    if not found:
        return None
    who = "; ".join(describe_socket(s) for s in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    failure = f"{event.process}: {event.call} failed with {errnos.describe('EADDRINUSE')}"
    return f"{failure}: blocked by {who}{more}"
