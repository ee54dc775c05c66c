"""Why a run went as it did, in sentences: its causes, and what the kernel counted beside them."""

from __future__ import annotations

from collections.abc import Sequence

from labctl.judge.causes.cause import Cause
from labctl.record.history import History

COUNTED = {
    "TcpExtTCPAbortOnClose": "closed with data that nobody had read, and so by an RST",
    "TcpExtTCPAbortOnData": "sent an RST, for SO_LINGER 1 0 or since data came for what was closed",
    "TcpExtTCPAbortOnLinger": "ended a connection by an RST once its FIN was acknowledged, as a "
    "negative TCP_LINGER2 asks for",
    "TcpExtTCPAbortOnMemory": "gave up a connection that no process had open any more: too many of "
    "them (tcp_max_orphans), or no memory (tcp_mem)",
    "TcpExtTCPAbortOnTimeout": "gave up: its probes or its segments had no answer",
    "TcpExtTCPTimeWaitOverflow": "had no room for another TIME_WAIT (tcp_max_tw_buckets), and "
    "forgot the connection",
    "TcpExtTWRecycled": "took the port of a TIME_WAIT again for a new connection",
    "TcpExtTCPChallengeACK": "answered a segment that did not fit by a challenge ACK (RFC 5961)",
    "TcpRetransSegs": "had to send segments again",
}
"""Counters by their names in nstat(8), and what a host did when one grew
(include/uapi/linux/snmp.h, and the places in net/ipv4 that count)."""

CAUSES = {
    "TcpExtTCPAbortOnClose": {"reset-unread"},
    "TcpExtTCPAbortOnData": {"reset-linger", "reset-late-data"},
    "TcpExtTCPAbortOnLinger": {"reset-linger"},
    "TcpExtTCPAbortOnTimeout": {
        "timeout-keepalive",
        "timeout-user",
        "timeout-retries",
        "last-ack-unanswered",
    },
    "TcpExtTCPAbortOnMemory": {"orphans-limit"},
    "TcpExtTCPTimeWaitOverflow": {"time-wait-overflow"},
    "TcpExtTCPChallengeACK": {"challenge-ack", "reset-window"},
}
"""The causes that say more than a counter."""


def explain(history: History, causes: Sequence[Cause]) -> list[str]:
    """A sentence for each cause, and for each of COUNTED that grew and that no cause speaks of."""
    known = {(cause.host, cause.id) for cause in causes}
    return [
        *(cause.sentence for cause in causes),
        *(
            f"{host} {COUNTED[counter]} ({counter}: {grown})"
            for host, counters in counted(history).items()
            for counter, grown in counters.items()
            if not any((host, name) in known for name in CAUSES.get(counter, ()))
        ),
    ]


def counted(history: History) -> dict[str, dict[str, int]]:
    """How much each of COUNTED grew, by host: only those that grew, and only hosts with one."""
    grown = {host: {c: history.growth(host, c) for c in COUNTED} for host in history.sockets}
    found = {host: {c: by for c, by in counters.items() if by} for host, counters in grown.items()}
    return {host: counters for host, counters in found.items() if counters}
