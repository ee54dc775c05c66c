"""What holds a port on this machine or in a container, now and without a lab: who, why, for how
long, and what to do. It only looks; see images/host/holders.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from labctl.ground.errors import LabError, Unavailable, UsageError
from labctl.ground.output import tell
from labctl.ground.resources import images
from labctl.probes.sockets import Socket, State, describe_socket, parse_ss
from labctl.run.places import DEFAULT_OS

SHOWN = 5
"""Sockets of one state, at most: of more it says how many there are."""
REUSE = "set SO_REUSEADDR before bind, on the server that made these connections too"


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


def blame(port: int, container: str | None = None) -> list[Holder]:
    """What holds a port, what blocks most first. Raises Unavailable without ss(8) or an engine,
    UsageError for a container that is not there, LabError if it can't be seen."""
    said = json.loads(_beside(container, port) if container else _here(port))
    owners = {int(inode): names for inode, names in said["owners"].items()}
    return judged(parse_ss(said["ss"]), owners)


def _here(port: int) -> str:
    program = images() / "host" / "holders.py"
    done = subprocess.run(
        [sys.executable, "-IS", str(program), str(port)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise Unavailable(f"ss can't be run: {last}", "install the package iproute2")
    return done.stdout


def _beside(container: str, port: int) -> str:
    """What a container beside it sees of its network and its processes."""
    from labctl.backends.docker import engine
    from labctl.backends.docker.images import ensure

    with closing(engine.connect()) as client:
        with engine.translated("look for a container"):
            running = client.containers()
            names = [name.lstrip("/") for each in running for name in each["Names"]]
        if container not in names and not any(c["Id"].startswith(container) for c in running):
            there = ", ".join(sorted(names)) or "none"
            raise UsageError(f"no container {container!r} is running", f"there are: {there}")
        image = ensure(client, DEFAULT_OS, tell).host
        with engine.translated("look into a container"):
            made = client.create_container(
                image,
                entrypoint=["python3", "-IS", "/usr/local/lib/labctl/holders.py", str(port)],
                host_config=client.create_host_config(
                    network_mode=f"container:{container}",
                    pid_mode=f"container:{container}",
                    cap_add=["SYS_PTRACE"],
                ),
            )
            try:
                client.start(made)
                status = client.wait(made)["StatusCode"]
                said = client.logs(made, stdout=True, stderr=bool(status)).decode()
            finally:
                client.remove_container(made, force=True)
    if status:
        raise LabError(f"{container}: {said.strip().rpartition(chr(10))[2]}")
    return said


def judged(sockets: Sequence[Socket], known: Mapping[int, Sequence[str]]) -> list[Holder]:
    """What sockets with one local port mean for a bind to it. Pure."""
    order = [State.LISTEN, State.UNCONN, State.ESTAB, State.CLOSE_WAIT, *State]
    found = []
    for state in dict.fromkeys(order):
        mine = [socket for socket in sockets if socket.state is state]
        if not mine:
            continue
        who = [name for socket in mine for name in known.get(socket.inode or 0, ())]
        blocks, cure = _meaning(state, mine)
        shown = tuple(describe_socket(socket) for socket in mine[:SHOWN])
        people = tuple(dict.fromkeys(who))
        found.append(Holder(str(state), shown, len(mine), people, blocks, cure))
    return found


def _meaning(state: State, mine: Sequence[Socket]) -> tuple[str, str]:
    """What sockets of one state do to a bind, and what helps."""
    if state is State.LISTEN:
        return (
            "a bind fails, unless both sockets have SO_REUSEPORT and one user",
            "stop it, or take another port",
        )
    if state is State.UNCONN:
        return "a bind fails, unless both have SO_REUSEADDR", "have it close the socket"
    unless = "a bind fails, unless both the old socket and the new one have SO_REUSEADDR"
    left = [socket.timer.expires for socket in mine if socket.timer and not socket.inode]
    if len(left) == len(mine):
        unless += f"; it ends by itself: in {max(left):.0f} s there is none left"
    if any(socket.local == socket.remote for socket in mine):
        return f"{unless}; it is a connection of this machine to itself", (
            "keep the port out of the range: net.ipv4.ip_local_reserved_ports"
        )
    return unless, REUSE
