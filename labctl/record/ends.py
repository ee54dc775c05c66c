"""The two ends of a socket that the tracepoint reported, in the spelling of segments."""

from __future__ import annotations

from functools import lru_cache

from labctl.probes.sockets import Address, Ends
from labctl.record.events import StateEvent


def ends_of(event: StateEvent) -> Ends:
    """The ends of a socket that changed its state."""
    remote = _plain(event.remote)
    return _plain(event.local), "" if remote.endswith((":0", ":None")) else remote


@lru_cache(1 << 12)
def _plain(endpoint: str) -> str:
    host, _, port = endpoint.rpartition(":")
    return Address(host.strip("[]"), int(port) if port.isdigit() else None).end
