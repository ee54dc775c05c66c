"""What sockets with one local port mean for a bind to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from labctl.ground.data import dataclass
from labctl.judge.causes.blocking import BOUND, RESERVE, blocking
from labctl.probes.sockets import Socket, State, describe_socket

SHOWN = 5
"""Sockets of one kind, at most: of more it says how many there are."""
ORDER = (State.LISTEN, State.UNCONN, State.ESTAB, State.CLOSE_WAIT, *State)
"""What blocks most comes first."""


@dataclass(frozen=True)
class Holder:
    """What holds a port: sockets of one state. `blocks`: what a bind to the port needs."""

    state: str
    sockets: tuple[str, ...]
    count: int
    processes: tuple[str, ...]
    blocks: str
    cure: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "sockets": [*self.sockets], "processes": [*self.processes]}


def holders(sockets: Sequence[Socket], known: Mapping[int, Sequence[str]]) -> list[Holder]:
    """What holds a port, what blocks most first. `known` has the processes by inode."""
    found = []
    for state in dict.fromkeys(ORDER):
        mine = [socket for socket in sockets if socket.state is state]
        if not mine:
            continue
        who = [name for socket in mine for name in known.get(socket.inode or 0, ())]
        means = blocking(mine[0])
        words = f"a bind fails, unless {means.unless}"
        left = [s.timer.expires for s in mine if s.timer and s.timer.name == "timewait"]
        if len(left) == len(mine):
            words += f"; it ends by itself: in {max(left):.0f} s there is none left"
        if left and state is State.FIN_WAIT_2:
            words += "; but if its peer closes before, it is in TIME-WAIT for 60 s from then on"
        cure = means.cure
        if any(socket.local == socket.remote for socket in mine):
            words, cure = f"{words}; it is a connection of this machine to itself", RESERVE
        shown = tuple(describe_socket(socket) for socket in mine[:SHOWN])
        people = tuple(dict.fromkeys(who))
        found.append(Holder(str(state), shown, len(mine), people, words, cure))
    return found


def unlisted(port: int) -> list[Holder]:
    """A socket that ss does not list has the port."""
    shown = f"a socket that is bound to :{port} and does not listen: ss lists none such here"
    words = f"a bind fails, unless {BOUND.unless}"
    return [Holder(str(State.UNCONN), (shown,), 1, (), words, BOUND.cure)]
