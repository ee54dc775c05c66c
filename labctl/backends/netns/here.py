"""This machine's own networks, to be watched: the one of this program, and those of processes.

A watcher is a process in that network, entered by nsenter(1). It ends when the socket to this
program does; so does the tracer, which tidies up first. Both have sessions of their own, since a
Ctrl-C is for this program alone.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from labctl.backends import Channel
from labctl.backends.capabilities import Lack
from labctl.backends.netns.backend import SocketChannel, os_name
from labctl.backends.watched import TRACED_EVERY, last_line
from labctl.ground.errors import LabError, Unavailable, UsageError
from labctl.ground.resources import images

PATIENCE = 10.0
READ = 4096
TOOLS = {"ss": "iproute2", "nsenter": "util-linux"}


class Here:
    """See `Watched`. `pids`: by the name of each host a process whose network it is; None for the
    network of this program."""

    backend = "netns"

    def __init__(self, run: str, pids: Mapping[str, int | None], ports: Sequence[int]) -> None:
        if sys.platform != "linux":
            raise Unavailable("networks of this machine can be watched on Linux", "use --container")
        for tool, package in TOOLS.items():
            if not shutil.which(tool):
                raise Unavailable(f"{tool} is not on the PATH", f"install the package {package}")
        self.names: Sequence[str] = list(pids)
        self._run = run
        self._errors = os.fdopen(os.memfd_create("errors"), "rb")
        self.ports = ports
        self._pids = dict(pids)
        self._began = {pid: began(pid) for pid in pids.values() if pid is not None}
        self._processes: dict[Channel, subprocess.Popen[bytes]] = {}

    def environment(self) -> dict[str, str | None]:
        return {"kernel": platform.release(), "os": os_name(), "engine": None}

    def attach(self, name: str) -> Channel:
        return self._start(
            [*entering(self._pids[name]), *_python("watch.py"), *map(str, self.ports)]
        )

    def detach(self, channel: Channel) -> None:
        channel.close()
        process = self._processes.pop(channel)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            process.kill()
            process.wait()

    def trace(self) -> Channel | Lack:
        if os.geteuid() != 0:
            return Lack("tracing needs root", "run it as root")
        return self._start([*_python("tracer.py"), self._run, TRACED_EVERY])

    def calls(self, name: str) -> Channel | Lack:
        return self._start([*entering(self._pids[name]), *_python("attach.py", "peer")])

    def roots(self, name: str) -> Sequence[int]:
        return [pid for pid in [self._pids[name]] if pid is not None]

    def again(self, sure: bool = False) -> list[str]:
        """None: a process that starts again has another number."""
        return []

    def added(self) -> list[str]:
        """None: it is what was named."""
        return []

    def forget(self, name: str) -> None:
        """Never: there is nothing that came later."""

    def over(self) -> bool:
        return None not in self._pids.values() and not any(
            _lives(pid, since) for pid, since in self._began.items()
        )

    def why(self) -> str:
        size = os.fstat(self._errors.fileno()).st_size
        said = os.pread(self._errors.fileno(), READ, max(0, size - READ))
        return last_line(said.decode(errors="replace"))

    def down(self) -> None:
        for channel in [*self._processes]:
            self.detach(channel)
        self._errors.close()

    def _start(self, command: Sequence[str]) -> Channel:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=self._errors,
                    start_new_session=True,
                )
            except OSError as exc:
                ours.close()
                raise LabError(f"{command[0]} can't be started: {exc.strerror}") from exc
        channel = SocketChannel(ours)
        self._processes[channel] = process
        return channel


def entering(pid: int | None) -> list[str]:
    """The command that enters the network of a process; none if this program is there already.
    Without root, only a network in a user namespace of one's own can be entered."""
    if pid is None:
        return []
    spaces = Path(f"/proc/{pid}/ns")
    try:
        if (spaces / "net").samefile("/proc/self/ns/net"):
            return []
    except PermissionError as exc:
        if os.geteuid() == 0:
            kept = "its user namespace or a security module keeps this root out"
            raise UsageError(f"process {pid} can't be entered", kept) from exc
        raise UsageError(f"process {pid} is another user's", "run it as root") from exc
    except OSError as exc:
        raise UsageError(f"process {pid} has ended") from exc
    ours = os.geteuid() == 0 or (spaces / "user").samefile("/proc/self/ns/user")
    user = [] if ours else [f"--user={spaces}/user", "--preserve-credentials"]
    return ["nsenter", *user, f"--net={spaces}/net", "--"]


def began(pid: int) -> str:
    """When a process began, in ticks of the machine's clock (proc(5)). Raises UsageError."""
    try:
        return _began(pid)
    except OSError as exc:
        raise UsageError(f"there is no process {pid}") from exc


def _began(pid: int) -> str:
    stats = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    if stats[0] in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return stats[19].decode()


def _lives(pid: int, since: str) -> bool:
    with suppress(OSError):
        return _began(pid) == since
    return False


def _python(program: str, kind: str = "host") -> list[str]:
    return [sys.executable, "-IS", str(images() / kind / program)]
