"""What holds a port on this machine or in a container, now and without a lab: who, why, for how
long, and what to do. It only looks; see images/host/holders.py."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing

from labctl.ground.errors import LabError, Unavailable, UsageError
from labctl.ground.output import tell
from labctl.ground.resources import images
from labctl.judge.holders import Holder, holders, unlisted
from labctl.probes.sockets import parse_ss
from labctl.run.places import DEFAULT_OS


def blame(port: int, container: str | None = None) -> list[Holder]:
    """What holds a port, what blocks most first. Raises Unavailable without ss(8) or an engine,
    UsageError for a container that is not there, LabError if it can't be seen."""
    said = json.loads(_beside(container, port) if container else _here(port))
    owners = {int(inode): names for inode, names in said["owners"].items()}
    return unlisted(port) if said["bound"] else holders(parse_ss(said["ss"]), owners)


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
