"""The two ends of a socket, spelled as segments spell them, whoever told of it."""

from __future__ import annotations

from functools import lru_cache

from labctl.probes.sockets import Address, Socket
from labctl.record.events import StateEvent

Ends = tuple[str, str]
"""The local and the remote end of a socket; a listener's remote one is empty. IPv4 is always
spelled as such; a listener on all addresses is `:8000`."""


def ends(socket: Socket) -> Ends:
    """The ends of a socket that `ss` saw."""
    remote = "" if socket.is_listener else _endpoint(socket.remote)
    return _endpoint(socket.local), remote


def ends_of(event: StateEvent) -> Ends:
    """The ends of a socket that went from one state to another."""
    remote = _plain(event.remote)
    return _plain(event.local), "" if remote.endswith((":0", ":None")) else remote


@lru_cache(1 << 16)
def _endpoint(address: Address) -> str:
    if address.wildcard:
        return f":{address.port}"
    host = address.unmapped
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"


@lru_cache(1 << 16)
def _plain(endpoint: str) -> str:
    host, _, port = endpoint.rpartition(":")
    return _endpoint(Address(host.strip("[]"), int(port) if port.isdigit() else None))
