"""A terminal on a host of a lab that is up."""

from __future__ import annotations

import os
import subprocess

from labctl.backends.lease import Lease, leases
from labctl.ground.errors import UsageError


def enter(host: str, command: list[str], run: str | None) -> int:
    """Runs a shell, or a command, on a host; returns its exit status. Raises UsageError."""
    lease = _find(host, run)
    if lease.backend == "docker":
        from labctl.backends.docker.backend import interactive

        words = command or ["sh", "-c", "exec bash || exec sh"]
        return interactive(lease.hosts[host], words, lease.engines)
    return _nsenter(lease.hosts[host], command or [os.environ.get("SHELL", "/bin/sh")])


def _find(host: str, run: str | None) -> Lease:
    found = [x for x in leases() if x.hosts and (run is None or x.run == run)]
    having = [x for x in found if host in x.hosts]
    having = [x for x in having if x.kind == "up"] or having
    if not found:
        raise UsageError("no lab is up", "start one with: labctl up")
    if not having:
        known = sorted({name for x in found for name in x.hosts})
        raise UsageError(f"no lab that is up has a host {host!r}", f"there are {', '.join(known)}")
    if len(having) > 1:
        runs = ", ".join(x.run for x in having)
        raise UsageError(f"several labs have a host {host!r}", f"choose one with --run: {runs}")
    return having[0]


def _nsenter(holder: str, command: list[str]) -> int:
    """Enters namespaces with nsenter(1): those of the world, then those of the host's agent, in
    which steps run commands, too.

    `holder` is WORLD/AGENT: the world's process id here, and the agent's in the world."""
    world, _, agent = holder.partition("/")
    user = ["--user", "--preserve-credentials"] if os.geteuid() != 0 else []
    outer = ["nsenter", "--target", world, *user, "--mount", "--pid", "--"]
    inner = ["nsenter", "--target", agent, "--net", "--mount", "--pid", "--ipc", "--", *command]
    return subprocess.run([*outer, *inner], check=False).returncode
