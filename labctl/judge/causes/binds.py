"""What blocked a bind or a listen (socket(7), SO_REUSEADDR; the kernel's inet_csk_bind_conflict()).

The look at the host that follows such a failure shows the sockets that overlap. Which of them can
block depends on options that no tool shows: those are known from calls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from labctl.ground import errnos
from labctl.ground.data import dataclass
from labctl.judge.causes.blocking import DUAL, RESERVE, REUSE, SHARE, blocking
from labctl.judge.causes.cause import Cause, Scene, readable
from labctl.judge.causes.descriptors import Descriptor, arguments
from labctl.judge.causes.ports import exhausted
from labctl.judge.causes.states import who_closed
from labctl.probes.holders import Holder
from labctl.probes.sockets import Address, Socket, State, canonical
from labctl.record.events import CallEvent, SocketsEvent
from labctl.record.history import History
from labctl.record.holders import held_by, told
from labctl.record.log import OTHERS

CONFLICT = "socket(7), SO_REUSEADDR; inet_csk_bind_conflict() in net/ipv4/inet_connection_sock.c"
HELD = {State.LISTEN, State.ESTAB, State.CLOSE_WAIT}
"""In these states some process has the socket open; in other states there may be none any more."""
MORE = 3
SOON = 2.0
"""Seconds after a failure within which a look tells of it."""


@dataclass(frozen=True)
class _Bind:
    """A bind or listen that failed, and the descriptor that it was for, if it is known."""

    call: CallEvent
    address: str
    family: int
    mine: Descriptor | None

    @property
    def failure(self) -> str:
        """`server: bind :8000 failed with EADDRINUSE (...)`."""
        return f"{self.call.process}: {self.call.call} failed with {errnos.describe('EADDRINUSE')}"

    @property
    def port(self) -> int:
        """The port that it wanted."""
        return int(self.address.rpartition(":")[2])

    def has(self, option: str) -> bool | None:
        """Whether its socket had an option; None if that is not known."""
        return self.mine.has(option, self.call.t) if self.mine else None

    def overlaps(self, theirs: Address) -> bool:
        """Whether a socket with this local address is in its way at all."""
        device = self.mine.option("SO_BINDTODEVICE", self.call.t) if self.mine else "0"
        if theirs.port != self.port or (theirs.interface and device not in ("0", theirs.interface)):
            return False
        host = canonical(self.address.rpartition(":")[0].strip("[]"))
        everywhere = host in ("", "*", "0.0.0.0", "::")
        if self.family == 4:
            if _six(theirs) and theirs.host != "*":
                return False
            return everywhere or theirs.wildcard or host == theirs.unmapped
        if _six(theirs):
            return everywhere or theirs.wildcard or host == theirs.host
        return everywhere and self.has("IPV6_V6ONLY") is False


def _six(address: Address) -> bool:
    """Whether an address is of IPv6, or of both."""
    return address.host == "*" or (":" in address.host and address.unmapped == address.host)


_Owner = tuple[Descriptor | None, Sequence[Holder]]
"""What made a socket, by calls, and who held it when it blocked; both as far as that is known."""


class _Why(NamedTuple):
    """Which rule it is, what else is to be said, and the cure."""

    id: str
    more: str
    cure: str
    certain: bool = True


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each that failed with EADDRINUSE, if it is known."""
    events = scene.history.events
    history = History(again=events)
    failed: list[CallEvent] = []
    wanting = any(events.of(CallEvent, errno="EADDRINUSE"))
    for event in events.of(*OTHERS) if wanting else ():
        history.add(event)
        if isinstance(event, CallEvent) and event.errno == "EADDRINUSE":
            failed.append(event)
        elif isinstance(event, SocketsEvent) and failed and readable(event):
            failed = [call for call in failed if event.t - call.t <= SOON]
            for call in [c for c in failed if (c.host, c.call) == (event.host, event.caption)][:1]:
                failed.remove(call)
                if call.name in ("bind", "listen") and (wanted := _wanted(call, history, scene)):
                    yield from _of(wanted, event, history, scene)


def _wanted(call: CallEvent, history: History, scene: Scene) -> _Bind | None:
    mine = scene.descriptors.of(call)
    if mine and mine.udp:
        return None
    if call.name == "listen":
        address = call.local or ""
    else:
        host, port = arguments(call.call) or ("", "")
        address = f"{scene.address(host, call.host)}:{port}"
    if not address.rpartition(":")[2]:
        return None
    four = "." in canonical(address.rpartition(":")[0].strip("[]"))  # also as IPv4-mapped
    family = 4 if four else mine.family if mine else 6 if address.count(":") > 1 else 4
    return _Bind(call, address, family, mine)


def _of(wanted: _Bind, look: SocketsEvent, history: History, scene: Scene) -> Iterator[Cause]:
    if wanted.port == 0:
        yield exhausted(wanted.call, wanted.address, look, scene)
        return
    found = [s for s in look.sockets if wanted.overlaps(s.local) and not _own(s, wanted)]
    judged = [(_blocks(wanted, s, _maker(s, look, scene)), s) for s in found]
    certain = [socket for blocks, socket in judged if blocks]
    if certain:
        yield _blocked(wanted, sorted(certain, key=_weight), look, history, scene)
    elif bound := _bound_alone(wanted, scene, history):
        call, by = (bound.bound.call, bound.bound.pid) if bound.bound else ("", 0)
        child = _child(wanted, (bound, ()), history)
        yield Cause(
            child.id if child else "bind-bound", bound.host, wanted.call.t,
            f"{wanted.failure}: blocked by a socket of {bound.process} that is bound ({call}, by "
            f"pid {by}) and does not listen{child.more if child else ''}",
            child.cure if child else "close it, or end that process",
            evidence=(f"{bound.process}: {call}",), refs=(CONFLICT,),
        )  # fmt: skip
    elif doubtful := sorted([s for blocks, s in judged if blocks is None], key=_weight):
        cause = _blocked(wanted, doubtful, look, history, scene)
        if not doubtful[0].is_listener:
            text = f"{cause.text}; the calls of both would tell whether they had {REUSE}"
            cause = replace(cause, text=text, certain=False)
        yield cause


def _own(socket: Socket, wanted: _Bind) -> bool:
    """Whether a socket is the one that could not listen: it is bound there itself."""
    return wanted.call.name == "listen" and socket.state is State.UNCONN


def _weight(socket: Socket) -> int:
    """What blocks most surely comes first: a listener, then what is open."""
    return 0 if socket.is_listener else 1 if socket.state in HELD else 2


def _blocks(wanted: _Bind, socket: Socket, maker: Descriptor | None) -> bool | None:
    """Whether a socket that overlaps blocks; None if that is not known."""
    t, shares, reuses = wanted.call.t, wanted.has(SHARE), wanted.has(REUSE)
    if shares is not False:
        if maker is None or shares is None:
            return None
        if maker.has(SHARE, t):
            return None if socket.is_listener else False  # of another user, if nothing else blocks
    if socket.is_listener or reuses is False:
        return True
    return None if maker is None or reuses is None else not maker.has(REUSE, t)


def _maker(socket: Socket, look: SocketsEvent, scene: Scene) -> Descriptor | None:
    """The descriptor that a socket is, or the listener from which nobody accepted it."""
    if socket.connection:
        return scene.maker(look.host, socket.ends, look.t)
    found = [
        each for each in scene.descriptors.all
        if each.host == look.host and each.open_at(look.t) and each.local == socket.local.end
        and (each.listening <= look.t) == socket.is_listener and not each.ends
        and each.family == (6 if {":", "*"} & {*socket.local.host} else 4)
    ]  # fmt: skip
    return found[-1] if found else None


def _bound_alone(wanted: _Bind, scene: Scene, history: History) -> Descriptor | None:
    """A socket that is bound there and does not listen: `ss` lists those since iproute2 6.15
    only."""
    t = wanted.call.t
    for each in scene.descriptors.all:
        process = history.processes.get(each.process)
        if (
            each is not wanted.mine and each.host == wanted.call.host and each.open_at(t)
            and each.bound and not each.bound.errno and each.bound.t <= t and each.listening > t
            and each.connected is None and each.accepted is None and process
            and wanted.overlaps(_bound_to(each))
            and not any(wanted.has(o) is not False and each.has(o, t) for o in (REUSE, SHARE))
        ):  # fmt: skip
            return each
    return None


def _bound_to(each: Descriptor) -> Address:
    host, _, port = (each.bound.local or ":0" if each.bound else ":0").rpartition(":")
    both = host == "[::]" and not each.has("IPV6_V6ONLY", math.inf)
    return Address("*" if both else canonical(host.strip("[]")) or "0.0.0.0", int(port), None)


def _blocked(
    wanted: _Bind, found: list[Socket], look: SocketsEvent, history: History, scene: Scene
) -> Cause:
    call, first = wanted.call, found[0]
    shown, holders = told(scene.history, look, found[:MORE])
    also = f"; also by {'; '.join(shown[1:])}" if shown[1:] else ""
    also += f" and {len(found) - MORE} more" if len(found) > MORE else ""
    owner = _maker(first, look, scene), held_by(scene.history, look.host, first, look.t)
    why = _kind(wanted, first, owner, history, scene)
    closed = ""
    if first.connection and (closed := who_closed(scene, call.host, first.ends, look.t)):
        closed = f"; {closed} in this connection"
    return Cause(
        why.id, call.host, call.t,
        f"{wanted.failure}: blocked by {shown[0]}{why.more}{closed}{also}", why.cure,
        f"{first.local} -> {first.remote}" if first.connection else None,
        shown, (CONFLICT,), why.certain, holders,
    )  # fmt: skip


def _kind(wanted: _Bind, first: Socket, owner: _Owner, history: History, scene: Scene) -> _Why:
    maker, holders = owner
    other = maker and not holders and maker.process != wanted.call.process
    whose = f", of {maker.process}" if maker and other else ""
    means = blocking(first)
    if first.state in HELD and (child := _child(wanted, owner, history)):
        return child
    if first.is_listener:
        if wanted.family == 4 and first.local.host == "*":
            return _Why("bind-dual-stack", f"{whose}, which takes IPv6 and IPv4 both", DUAL)
        if wanted.family == 6 and not _six(first.local):
            return _Why("bind-dual-stack", f"{whose}: the new socket would take IPv4 too", DUAL)
        if maker and wanted.has(SHARE) and maker.has(SHARE, wanted.call.t):
            uid = scene.uid(wanted.call.process)
            mine = "another" if uid is None else f"uid {uid}"
            more = f"{whose}, of uid {first.uid}; both have {SHARE}, but the new one is of {mine}"
            return _Why("bind-other-user", more, "run both as one user")
        return _Why(means.id, whose, means.cure)
    if first.state is State.UNCONN:
        return _Why(means.id, f"{whose}, which is bound and does not listen", means.cure)
    opened = scene.opened(wanted.call.host, first.ends, wanted.call.t)
    chosen = maker.chosen_port if maker else None
    if opened and chosen is not False:
        certain = chosen is True
        more = f"{whose}, an outgoing connection of this host"
        more += ", which got the port from the range" if certain else ""
        name = "bind-outgoing"
        if first.local.end == first.remote.end:
            name, more = "bind-self-connection", f"{more} to itself"
        if maker and maker.has(REUSE, wanted.call.t) and wanted.has(REUSE) is False:
            more += f"; it has {REUSE}, and the new one had not"
            return _Why(name, more, f"set {REUSE} before bind, or {RESERVE}", certain)
        return _Why(name, more, RESERVE, certain)
    had = {
        "the old socket": maker and maker.has(REUSE, wanted.call.t),
        "the new one": wanted.has(REUSE),
    }
    lacking = [name for name, has in had.items() if has is False]
    lacks = f"; {' and '.join(lacking)} had no {REUSE}" if lacking else ""
    return _Why(means.id, whose + lacks, means.cure)


def _child(wanted: _Bind, owner: _Owner, history: History) -> _Why | None:
    """What a child that may have such a socket has to do with it: as its supervisor says, by the
    calls of its parent, or because that is a program, whose calls nobody sees, and no other runs
    there."""
    maker, holders = owner
    others = [
        name for name, state in history.processes.items()
        if state.host == wanted.call.host and state.running and name != wanted.call.process
    ]  # fmt: skip
    for (name, start), state in history.orphans.items():
        makers: Sequence[Holder | Descriptor] = holders or ([maker] if maker else [])
        known = any((made.process, made.start) == (name, start) for made in makers)
        if state.host != wanted.call.host or not (
            known or (not makers and not state.calls and not others)
        ):
            continue
        seems = "" if known else ", it seems,"
        how = f"was killed by SIG{state.signal}" if state.signal else f"ended with {state.exit}"
        return _Why(
            "bind-child",
            f": a child of {name}{seems} has it open since its main process {how}",
            "end the child too, or let children not inherit it (SOCK_CLOEXEC)", known,
        )  # fmt: skip
    return None
