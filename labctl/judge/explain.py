"""Why a run went as it did, in sentences: its causes, and what the kernel counted beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from labctl.judge.accounts import reasons
from labctl.judge.causes.cause import Cause
from labctl.judge.check import Verdict
from labctl.probes.sockets import State
from labctl.record.events import FateEvent
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


FAILURES = {
    "EADDRINUSE": ("bind-", "ports-"),
    "EADDRNOTAVAIL": ("ports-", "connect-in-use"),
    "ECONNREFUSED": ("connect-refused",),
    "EHOSTUNREACH": ("no-answer", "connect-refused", "timeout-"),
    "ENETUNREACH": ("no-route", "connect-refused", "timeout-"),
    "ECONNRESET": ("reset-", "idle-race", "nat-forgot"),
    "EPIPE": ("reset-", "idle-race", "nat-forgot"),
    "ETIMEDOUT": ("no-answer", "timeout-"),
}
"""How the ids of the causes begin that say why a call failed."""
FOREMOST = 3
"""How many causes to tell where room is short."""
ALWAYS = ("closed-first", "reset-crafted")
"""Causes of what needs no cure: others come first."""


def sentences(causes: Iterable[Cause], others: Iterable[str]) -> list[str]:
    """Causes as sentences, and others, nothing twice."""
    return list(dict.fromkeys([*(cause.sentence for cause in causes), *others]))


def beside(history: History, causes: Sequence[Cause]) -> list[str]:
    """A sentence for each of COUNTED that grew and that no cause speaks of."""
    known = {(cause.host, cause.id) for cause in causes}
    return [
        f"{host} {COUNTED[counter]}{_of(counter, host, history)} ({counter}: {grown})"
        for host, counters in counted(history).items()
        for counter, grown in counters.items()
        if not any((host, name) in known for name in CAUSES.get(counter, ()))
    ]


def _of(counter: str, host: str, history: History) -> str:
    """Of which connection segments were sent again, where the kernel says so."""
    if counter != "TcpRetransSegs":
        return ""
    again = [
        event
        for event in history.events.of(FateEvent)
        if event.host == host and event.did == "retransmit"
    ]
    ends = {f"{event.local} -> {event.remote}" for event in again}
    failed = {event.reason for event in again if event.reason}
    of = f", of {min(ends)}" if len(ends) == 1 else f", of {len(ends)} connections" if ends else ""
    return of + (f", which failed by {', '.join(sorted(failed))}" if failed else "")


def foremost(
    causes: Iterable[Cause], verdicts: Sequence[Verdict], history: History
) -> list[tuple[int, Cause]]:
    """The causes by their numbers, from 1 on, those first that matter most for the verdicts: for
    those that did not pass, if there are any; else in their order."""
    hosts = _hosts(history)
    wrong = [v for v in verdicts if v.result in ("fail", "unknown")]

    def rank(numbered: tuple[int, Cause]) -> tuple[int, bool]:
        cause = numbered[1]
        most = max((_matters(cause, v, hosts) for v in wrong or verdicts), default=0)
        return -most, cause.id in ALWAYS

    return sorted(enumerate(causes, 1), key=rank)


def first_reason(verdict: Verdict, causes: Iterable[Cause], history: History) -> list[str]:
    """Why a claim failed, and what to do, a line each: the first cause of what it claims or what
    was seen, else what its processes say. Empty if nothing is known."""
    if verdict.result != "fail":
        return []
    hosts = _hosts(history)
    for _, cause in foremost(causes, [verdict], history):
        if cause.cure and cause.id not in ALWAYS and _matters(cause, verdict, hosts) > 1:
            return [f"Why: {cause.brief}", f"do: {cause.cure}"]
    return [f"Why: {sentence}" for sentence in reasons(verdict.processes)[:1]]


def _hosts(history: History) -> dict[str, str]:
    return {name: process.host for name, process in history.processes.items()}


def _matters(cause: Cause, verdict: Verdict, hosts: Mapping[str, str]) -> int:
    """How much a cause has to do with a claim: 0 if it is about another host, 2 if it is about a
    state or a failure that was claimed or seen."""
    if cause.host not in {hosts.get(name, name) for name in (verdict.subject, *verdict.about)}:
        return 0
    facts = (verdict.wanted, verdict.measured)
    words = {state.lower() for fact in facts for state in (*fact.sockets, *fact.states)}
    errors = {name for fact in facts for name in (fact.errno, *fact.calls.values()) if name}
    begins = {begin for name in errors for begin in FAILURES.get(name, ())}
    begins |= {*FAILURES["EADDRINUSE"]} if State.LISTEN in verdict.wanted.states else set()
    ends = {" -> ".join(ends) for fact in facts for ends in fact.connections}
    known = any(cause.id.startswith(begin) for begin in begins | words)
    return 2 if known or cause.connection in ends else 1


def counted(history: History) -> dict[str, dict[str, int]]:
    """How much each of COUNTED grew, by host: only those that grew, and only hosts with one."""
    grown = {host: {c: history.growth(host, c) for c in COUNTED} for host in history.sockets}
    found = {host: {c: by for c, by in counters.items() if by} for host, counters in grown.items()}
    return {host: counters for host, counters in found.items() if counters}
