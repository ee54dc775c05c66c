"""What blocked a bind or a listen (socket(7), SO_REUSEADDR; the kernel's inet_csk_bind_conflict()).

The look at the host that follows such a failure shows the sockets that overlap. Which of them can
block depends on options that no tool shows: those are known from calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from labctl.ground import errnos
from labctl.judge.causes.cause import Cause, Descriptor, Scene
from labctl.judge.causes.ports import exhausted
from labctl.language.calls import parse_calls
from labctl.probes.sockets import Address, Socket, State, canonical, describe_socket
from labctl.record.events import CallEvent, SocketsEvent
from labctl.record.history import History, ProcessState

CONFLICT = "socket(7), SO_REUSEADDR; inet_csk_bind_conflict() in net/ipv4/inet_connection_sock.c"
REUSE, SHARE = "SO_REUSEADDR", "SO_REUSEPORT"
HELD = {State.LISTEN, State.ESTAB, State.CLOSE_WAIT}
"""In these states some process has the socket open; in other states there may be none any more."""
IDS = {
    State.TIME_WAIT: "bind-time-wait",
    State.FIN_WAIT_1: "bind-fin-wait",
    State.FIN_WAIT_2: "bind-fin-wait",
    State.CLOSING: "bind-last-ack",
    State.LAST_ACK: "bind-last-ack",
}
BOTH = f"set {REUSE} before bind, on the server that made the old connection too"
MORE = 3


@dataclass(frozen=True)
class _Bind:
    """A bind or listen that failed, and the descriptor that it was for."""

    call: CallEvent
    address: str
    family: int
    mine: Descriptor

    @property
    def failure(self) -> str:
        """`server: bind :8000 failed with EADDRINUSE (...)`."""
        return f"{self.call.process}: {self.call.call} failed with {errnos.describe('EADDRINUSE')}"

    @property
    def port(self) -> int:
        """The port that it wanted."""
        return int(self.address.rpartition(":")[2])

    def overlaps(self, theirs: Address) -> bool:
        """Whether a socket with this local address is in its way at all."""
        if theirs.port != self.port:
            return False
        host = canonical(self.address.rpartition(":")[0].strip("[]"))
        everywhere = host in ("", "*", "0.0.0.0", "::")
        six = theirs.host == "*" or (":" in theirs.host and theirs.unmapped == theirs.host)
        if self.family == 4:
            if six and theirs.host != "*":
                return False
            return everywhere or theirs.wildcard or host == theirs.unmapped
        if six:
            return everywhere or theirs.wildcard or host == theirs.host
        return everywhere and _unset(self.mine, "IPV6_V6ONLY")


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each that failed with EADDRINUSE, if it is known."""
    history = History()
    failed: list[CallEvent] = []
    for event in scene.history.events:
        history.add(event)
        if isinstance(event, CallEvent) and event.errno == "EADDRINUSE":
            failed.append(event)
        elif isinstance(event, SocketsEvent):
            for call in [c for c in failed if (c.host, c.call) == (event.host, event.caption)][:1]:
                failed.remove(call)
                if call.name in ("bind", "listen"):
                    yield from _of(call, event, history, scene)


def _of(call: CallEvent, look: SocketsEvent, history: History, scene: Scene) -> Iterator[Cause]:
    known = [d for d in scene.descriptors(call.t) if d.host == call.host]
    mine = [d for d in known if d.process == call.process][-1:] or [
        Descriptor(call.process, call.host)
    ]
    if call.name == "bind":
        host, port = parse_calls(call.call)[0].args
        address = f"{history.lab.addresses.get(host, host) if history.lab else host}:{port}"
        family = mine[0].family
    else:
        address, family = call.local or ":0", mine[0].family
    wanted = _Bind(call, address, family, mine[0])
    if wanted.port == 0:
        yield exhausted(call, address, look, scene)
        return
    others = [d for d in known if d is not mine[0]]
    found = [s for s in look.sockets if wanted.overlaps(s.local) and not _own(s, wanted)]
    judged = [(_blocks(wanted, socket, others), socket) for socket in found]
    certain = [socket for blocks, socket in judged if blocks]
    if blockers := sorted(certain or [s for b, s in judged if b is None], key=_weight):
        yield _blocked(wanted, blockers, others, history, scene)
    elif bound := _bound_alone(wanted, others, history):
        text = (
            f"{wanted.failure}: blocked by a socket of {bound.process} that is bound "
            f"({bound.bound.call if bound.bound else ''}) and does not listen"
        )
        yield Cause(
            "bind-bound", call.host, call.t, text, "close it, or end that process",
            evidence=(f"{bound.process}: {bound.bound.call if bound.bound else ''}",),
            refs=(CONFLICT,),
        )  # fmt: skip


def _own(socket: Socket, wanted: _Bind) -> bool:
    """Whether a socket is the one that could not listen: it is bound there itself."""
    return wanted.call.name == "listen" and socket.state is State.UNCONN


def _weight(socket: Socket) -> int:
    """What blocks most surely comes first: a listener, then what is open."""
    return 0 if socket.is_listener else 1 if socket.state in HELD else 2


def _blocks(wanted: _Bind, socket: Socket, others: Iterable[Descriptor]) -> bool | None:
    """Whether a socket that overlaps blocks; None if that is not known."""
    maker = _maker(socket, others)
    if maker and _set(wanted.mine, SHARE) and _set(maker, SHARE):
        return None if socket.is_listener else False  # of another user's, if nothing else blocks
    if socket.is_listener or not _set(wanted.mine, REUSE):
        return True
    return None if maker is None else not _set(maker, REUSE)


def _set(descriptor: Descriptor, option: str) -> bool:
    return descriptor.options.get(option, "0") != "0"


def _unset(descriptor: Descriptor, option: str) -> bool:
    return not _set(descriptor, option)


def _maker(socket: Socket, others: Iterable[Descriptor]) -> Descriptor | None:
    """The descriptor that a socket is, or was accepted from; the latest of several."""
    found = None
    for each in others:
        local = each.local
        if not local or int(local.rpartition(":")[2] or 0) != socket.local.port:
            continue
        if each.connected is not None and each.connected.errno is None:
            if each.connected.peer == socket.remote.end or not each.connected.peer:
                found = each
        elif each.listening or socket.state is State.UNCONN:
            found = each
    return found


def _bound_alone(
    wanted: _Bind, others: Iterable[Descriptor], history: History
) -> Descriptor | None:
    """A socket of a process that still runs, which is bound there and does not listen: `ss` lists
    those since iproute2 6.15 only."""
    for each in others:
        process = history.processes.get(each.process)
        if (
            each.bound and each.bound.local and not each.bound.errno and not each.closed
            and not each.listening and each.connected is None
            and each.process != wanted.call.process and process and process.running
            and wanted.overlaps(_parsed(each.bound.local))
        ):  # fmt: skip
            return each
    return None


def _parsed(end: str) -> Address:
    host, _, port = end.rpartition(":")
    return Address(canonical(host.strip("[]")) or "0.0.0.0", int(port), None)


def _blocked(
    wanted: _Bind,
    found: list[Socket],
    others: list[Descriptor],
    history: History,
    scene: Scene,
) -> Cause:
    call, first = wanted.call, found[0]
    maker = _maker(first, others)
    certain = maker is not None or first.is_listener or _unset(wanted.mine, REUSE)
    who = describe_socket(first)
    beside = [describe_socket(socket) for socket in found[1:MORE]]
    more = f"; also by {'; '.join(beside)}" if beside else ""
    more += f" and {len(found) - MORE} more" if len(found) > MORE else ""
    kind, why, cure = _kind(wanted, first, maker, history)
    if first.connection:
        why += _closed_first(first, call.host, scene)
    text = f"{wanted.failure}: blocked by {who}{why}{more}"
    if not certain:
        text += "; its calls would tell whether it had SO_REUSEADDR"
    ends = f"{first.local} -> {first.remote}" if first.connection else None
    evidence = tuple(describe_socket(socket) for socket in found[:MORE])
    return Cause(kind, call.host, call.t, text, cure, ends, evidence, (CONFLICT,), certain)


def _kind(
    wanted: _Bind, first: Socket, maker: Descriptor | None, history: History
) -> tuple[str, str, str]:
    """The rule, what else is to be said, and the cure."""
    whose = f", of {maker.process}" if maker and maker.process != wanted.call.process else ""
    if first.state in HELD and (child := _child(wanted, history)):
        return "bind-child", *child
    if first.is_listener:
        if (first.local.host == "*") != (wanted.family == 6) and first.local.wildcard:
            return (
                "bind-dual-stack",
                f"{whose}, which takes IPv6 and IPv4 both"
                if first.local.host == "*"
                else f"{whose}: the new socket would take IPv4 too",
                "set IPV6_V6ONLY on the IPv6 socket, or serve both by that one socket",
            )
        if maker and _set(wanted.mine, SHARE) and _set(maker, SHARE):
            return (
                "bind-other-user",
                f"{whose}, of uid {first.uid}; both have SO_REUSEPORT, but not the same user",
                "run both as one user",
            )
        return (
            "bind-listener", whose,
            "stop it, or take another port; to share the port, set SO_REUSEPORT on both, as one "
            "user",
        )  # fmt: skip
    if first.state is State.UNCONN:
        return "bind-bound", f"{whose}, which is bound and does not listen", "close it"
    if first.local == first.remote:
        return (
            "bind-self-connection",
            ", a connection of the host to itself: its port was chosen from the range",
            "keep the server's port out of the range: net.ipv4.ip_local_reserved_ports",
        )
    if maker and maker.connected is not None and (maker.bound is None or _any_port(maker)):
        return (
            "bind-outgoing",
            f"{whose}: an outgoing connection, which got the port from the range",
            "keep the server's port out of the range: net.ipv4.ip_local_reserved_ports",
        )
    lacking = [
        name for name, each in (("the old socket", maker), ("the new one", wanted.mine))
        if each is not None and _unset(each, REUSE)
    ]  # fmt: skip
    lacks = f"; {' and '.join(lacking)} had no SO_REUSEADDR" if lacking else ""
    return IDS.get(first.state, "bind-connection"), lacks, BOTH


def _any_port(maker: Descriptor) -> bool:
    return maker.bound is not None and maker.bound.call.endswith(":0")


def _child(wanted: _Bind, history: History) -> tuple[str, str] | None:
    """What a child that may have such a socket has to do with it, and what helps: by the calls of
    its parent, or because that is a program, whose calls nobody sees."""
    for (name, _), state in history.orphans.items():
        if state.host == wanted.call.host and (_binds(state, wanted) or not state.calls):
            seems = "" if state.calls else ", it seems,"
            how = f"was killed by SIG{state.signal}" if state.signal else f"ended with {state.exit}"
            return (
                f": a child of {name}{seems} has it open since its main process {how}",
                "end the child too, or let children not inherit it (SOCK_CLOEXEC)",
            )
    return None


def _binds(state: ProcessState, wanted: _Bind) -> bool:
    return any(
        call.name == "bind" and not call.errno and call.local
        and wanted.overlaps(_parsed(call.local))
        for call in state.calls
    )  # fmt: skip


def _closed_first(socket: Socket, host: str, scene: Scene) -> str:
    """Which host closed first in this connection."""
    for timeline in scene.timelines(host):
        if timeline.ends == socket.ends:
            if State.FIN_WAIT_1 in timeline.states or State.FIN_WAIT_2 in timeline.states:
                return f"; {host} closed first in this connection"
            if State.CLOSE_WAIT in timeline.states:
                return "; its peer closed first in this connection"
    return ""
