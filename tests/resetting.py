"""A connection that its server accepts, and that ends by a RST."""

from __future__ import annotations

from labctl.record.events import Event
from tests.caused import CLIENT, LISTEN, SERVER, call, calls, established, listened, look, trace
from tests.fake import tcp
from tests.walked import ACK, RST, Sent

SERVES = "socket; bind :8000; listen 5"
ACTIVE = Sent(3.0, SERVER, CLIENT, RST | ACK, 1, 1)
"""What a kernel sends that gives up a connection of its own."""
ANSWER = Sent(3.0, SERVER, CLIENT, RST, 1)
"""What it sends for a segment that has an ACK."""
DATA = Sent(2.0, CLIENT, SERVER, ACK | 8, 1, 1, data=11)
CLOSES = call(3.0001, "server", "close")
LINGERS = call(1.02, "server", "set SO_LINGER 1 0")


def accepted(*more: Event) -> list[Event]:
    """The server accepts the connection, and has it open at 1.5 s."""
    return [
        *calls(0.5, "server", SERVES), *listened(0.502), *established(1.0),
        call(1.01, "server", "accept", local=SERVER, peer=CLIENT),
        look(1.5, LISTEN, tcp("ESTAB", SERVER, CLIENT, more="ino:7")), *more,
    ]  # fmt: skip


def over(t: float = 3.0, state: str = "ESTAB") -> list[Event]:
    """It ends there, and then at its client, by a RST."""
    return [*trace(t, state, "UNCONN"), *trace(t + 1e-4, "ESTAB", "UNCONN", ends=(CLIENT, SERVER)),
            look(t + 0.02, LISTEN), look(t + 1)]  # fmt: skip
