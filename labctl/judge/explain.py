"""Why a run went as it did, in sentences about what was seen: who closed first, what blocked a
bind, and what the kernel counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile

from labctl.ground import errnos
from labctl.language.calls import parse_calls
from labctl.probes.sockets import Address, Socket, State, canonical, describe_socket
from labctl.record.events import CallEvent, SocketsEvent
from labctl.record.history import History
from labctl.record.traced import traced_lives

COUNTED = {
    "TcpExtTCPAbortOnClose": "closed with data that nobody had read, and so by an RST",
    "TcpExtTCPAbortOnData": "sent an RST, for SO_LINGER 1 0 or since data came for what was closed",
    "TcpExtTCPAbortOnLinger": "ended a connection by an RST once its FIN was acknowledged, as a "
    "negative TCP_LINGER2 asks for",
    "TcpExtTCPAbortOnTimeout": "gave up: its probes or its segments had no answer",
    "TcpExtTCPTimeWaitOverflow": "had no room for another TIME_WAIT (tcp_max_tw_buckets), and "
    "forgot the connection",
    "TcpExtTWRecycled": "took the port of a TIME_WAIT again for a new connection",
    "TcpExtTCPChallengeACK": "answered a segment that did not fit by a challenge ACK (RFC 5961)",
    "TcpRetransSegs": "had to send segments again",
}
"""Counters by their names in nstat(8), and what a host did when one grew
(include/uapi/linux/snmp.h, and the places in net/ipv4 that count)."""

UNLISTED = "a socket that is bound and does not listen is listed by ss since iproute2 6.15 alone"

CLOSES_FIRST = (State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSING, State.TIME_WAIT)
CLOSES_LAST = (State.CLOSE_WAIT, State.LAST_ACK)
"""The states of a side that sent its FIN first, and of one that received a FIN first (RFC 9293,
section 3.3.2)."""
HELD = {State.LISTEN, State.ESTAB, State.CLOSE_WAIT}
"""In these states some process has the socket open; in other states there may be none any more."""


def blockers(address: str, sockets: tuple[Socket, ...]) -> list[Socket]:
    """The sockets that can stop a bind to `address` (as the peer wrote it: `:8000`,
    `198.18.0.2:8000`): those with its port, and with its local address if both are specific.

    Which of them did stop it depends on options that no tool shows (see socket(7),
    SO_REUSEADDR)."""
    wanted = _address(address)
    return [s for s in sockets if s.local.port == wanted.port and _overlap(wanted, s.local)]


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return Address(canonical(host.strip("[]")) or "*", int(port), None)


def _overlap(a: Address, b: Address) -> bool:
    return a.wildcard or b.wildcard or a.unmapped == b.unmapped


def blocked_call(event: CallEvent, history: History) -> str | None:
    """One sentence on why a bind or listen failed, by the look at its host after the failure; None
    if nothing is known."""
    seen = history.sockets[event.host]
    if event.name == "bind":
        host, port = parse_calls(event.call)[0].args
        address = f"{history.lab.addresses.get(host, host) if history.lab else host}:{port}"
    else:
        address = event.local or ":0"
    failure = f"{event.process}: {event.call} failed with {errnos.describe('EADDRINUSE')}"
    found = blockers(address, seen.sockets)
    if not found:
        if bound := _bound(address, event, history):
            return f"{failure}: blocked, it seems, by {bound}; {UNLISTED}"
        return None
    who = "; ".join(
        f"{s.state} {s.local}" if s.is_listener else describe_socket(s) for s in found[:3]
    )
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    cure = "SO_REUSEADDR on both, old and new"
    if not all(s.connection for s in found):
        cure = "SO_REUSEPORT on both, old and new, of one user"
    child = _child(address, event, history) if {s.state for s in found} & HELD else ""
    return f"{failure}: blocked by {who}{more}; {cure}, would let it bind{child}"


def _bound(address: str, event: CallEvent, history: History) -> str | None:
    """Another process that runs on the host and has bound `address`, by its calls:
    `other: bind :8000`. Not a process that has closed a socket: it may have closed this one."""
    wanted = _address(address)
    for name, state in history.processes.items():
        if state.host == event.host and state.running and name != event.process:
            for call in takewhile(lambda call: call.name != "close", reversed(state.calls)):
                if call.name == "bind" and call.local and not call.errno:
                    ours = _address(call.local)
                    if ours.port == wanted.port and _overlap(wanted, ours):
                        return f"{name}: {call.call}"
    return None


def _child(address: str, event: CallEvent, history: History) -> str:
    """Which process of the host left a child that may have a socket with `address`, by its calls or
    because it is a program, whose calls nobody sees; and what helps."""
    wanted = _address(address)
    for (name, _), state in history.orphans.items():
        binds = (c for c in state.calls if c.name == "bind" and not c.errno)
        bound = [_address(c.local) for c in binds if c.local]
        ours = any(b.port == wanted.port and _overlap(wanted, b) for b in bound)
        if state.host == event.host and (ours or not state.calls):
            seems = "" if ours else ", it seems,"
            how = f"was killed by SIG{state.signal}" if state.signal else f"ended with {state.exit}"
            return (
                f"; a child of {name}{seems} has it open since its main process {how}: end the "
                "child too, or have children close what they do not serve (SOCK_CLOEXEC)"
            )
    return ""


def explain(whole: History) -> list[str]:
    """A sentence for each bind or listen that was blocked, one on who closed first, and one for
    each of COUNTED that grew."""
    history = History()
    failed: list[CallEvent] = []
    found: list[str] = []
    seen: list[tuple[float, State, str]] = [
        (event.t, State(event.new), host)
        for host in whole.hosts for event in traced_lives(whole, host).events
    ]  # fmt: skip
    for event in whole.events:
        history.add(event)
        if isinstance(event, CallEvent) and event.errno == "EADDRINUSE":
            failed.append(event)
        elif isinstance(event, SocketsEvent):
            # Each line begins with a state. There may be too many lines to parse them all.
            words = {line.partition(" ")[0] for line in event.text.splitlines()} & {*State}
            seen += [(event.t, State(word), event.host) for word in words]
            for call in [c for c in failed if (c.host, c.call) == (event.host, event.caption)][:1]:
                failed.remove(call)
                if sentence := blocked_call(call, history):
                    found.append(sentence)
    states: dict[State, dict[str, None]] = {}  # the hosts of each state, in order of appearance
    for _, state, host in sorted(seen, key=lambda each: each[0]):
        states.setdefault(state, {})[host] = None
    sentences = (
        f"{host} {COUNTED[counter]} ({counter}: {grown})"
        for host, counters in counted(whole).items()
        for counter, grown in counters.items()
    )
    return [*found, *_closed(states), *sentences]


def _closed(seen: Mapping[State, Iterable[str]]) -> Iterable[str]:
    """Which side closed first, and the states of both sides after that."""

    def states(host: str, of: Iterable[State]) -> str:
        return ", ".join(state for state in of if host in seen.get(state, ()))

    firsts = [host for state in CLOSES_FIRST for host in seen.get(state, ())]
    for first in firsts[:1]:
        others = dict.fromkeys(
            h for state in CLOSES_LAST for h in seen.get(state, ()) if h != first
        )
        words = [f"{first} closed first: seen in {states(first, CLOSES_FIRST)}"]
        yield "; ".join([*words, *(f"{host} in {states(host, CLOSES_LAST)}" for host in others)])


def counted(history: History) -> dict[str, dict[str, int]]:
    """How much each of COUNTED grew, by host: only those that grew, and only hosts with one."""
    grown = {host: {c: history.growth(host, c) for c in COUNTED} for host in history.sockets}
    found = {host: {c: by for c, by in counters.items() if by} for host, counters in grown.items()}
    return {host: counters for host, counters in found.items() if counters}
