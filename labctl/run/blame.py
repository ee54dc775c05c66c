"""What holds a port on this machine or in a container, now and without a lab: who, why, for how
long, and what to do. It only looks: ss(8), and the open files in /proc (proc(5))."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labctl.ground.errors import LabError, Unavailable, UsageError
from labctl.ground.plain import plain
from labctl.probes.sockets import Socket, State, describe_socket, parse_ss

SS = ("ss", "--tcp", "--all", "--numeric", "--options", "--extended")
LONGEST = 100
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
    """What holds a port, what blocks most first. Raises Unavailable without ss(8), UsageError for a
    container that is not there, LabError if its network can't be seen."""
    inside = _inside(container) if container else ()
    try:
        done = subprocess.run(
            [*inside, *SS, f"sport = :{port}"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as exc:
        packages = "install the packages iproute2 and util-linux"
        raise Unavailable(f"{exc.filename} is not on the PATH", packages) from exc
    if done.returncode:
        hint = "it takes root, on the engine's machine" if container else ""
        raise LabError(f"ss: {done.stderr.strip() or done.returncode}", hint)
    sockets = parse_ss(done.stdout)
    return judged(sockets, owners({s.inode for s in sockets if s.inode}))


def _inside(container: str) -> tuple[str, ...]:
    """What runs a command in a container's network."""
    from labctl.backends.docker import engine

    client = engine.connect()
    try:
        with engine.translated("looking for a container"):
            found = client.containers(filters={"name": f"^/?{container}$"})
            if not found:
                names = [name.lstrip("/") for each in client.containers() for name in each["Names"]]
                there = ", ".join(sorted(names)) or "none"
                raise UsageError(f"no container {container!r} is running", f"there are: {there}")
            pid = client.inspect_container(found[0]["Id"])["State"]["Pid"]
    finally:
        client.close()
    return "nsenter", f"--target={pid}", "--net", "--"


def owners(inodes: Iterable[int]) -> dict[int, list[str]]:
    """Who has these sockets open, `nginx (pid 7)`, as far as this user may see it."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, list[str]] = {}
    for folder in Path("/proc").glob("[0-9]*") if wanted else ():
        try:
            for file in (folder / "fd").iterdir():
                inode = wanted.get(str(file.readlink()))
                if inode is not None:
                    who = f"{_command(folder)} (pid {folder.name})"
                    if who not in found.setdefault(inode, []):
                        found[inode].append(who)
        except OSError:
            continue  # it has ended, or belongs to somebody else
    return found


def _command(folder: Path) -> str:
    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    text = plain(" ".join(filter(None, words)) or (folder / "comm").read_text().strip())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


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
