"""The launcher: one interpreter beside this program, which forks the world and the tracer of each
lab instead of starting two interpreters for each.

It has loaded all that they run (see world.py). A program that forks after it has begun shares it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from labctl.resources import images

PATIENCE = 20.0


class Launcher:
    """A process that ends with this one; see `launcher`."""

    def __init__(self, prefix: Sequence[str]) -> None:
        programs = ("host/agent.py", "peer/peer.py", "host/tracer.py")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [
                    *prefix, sys.executable, "-I", "-S", str(Path(__file__).with_name("world.py")),
                    *(str(images() / program) for program in programs),
                ],
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        atexit.register(self._end)

    def lab(self) -> Launched:
        """A lab that is yet to begin."""
        return Launched(self._socket)

    def _end(self) -> None:
        self._socket.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Launched:
    """What is forked for a lab; all of it ends when it was asked to."""

    def __init__(self, launcher: socket.socket) -> None:
        self._launcher = launcher
        self._alive, self._theirs = socket.socketpair()
        self._alive.settimeout(PATIENCE)

    def begin(self, files: Sequence[int], **request: Any) -> None:
        """Begins it with these arguments and file descriptors, those of `launch` in world.py, in
        this program's environment and folder. Raises OSError."""
        request |= {"environ": dict(os.environ), "folder": str(Path.cwd())}
        with self._theirs:
            descriptors = [self._theirs.fileno(), *files]
            socket.send_fds(self._launcher, [json.dumps(request).encode()], descriptors)

    @cached_property
    def pids(self) -> list[int]:
        """The world, and the tracer if there is one; nothing where no world came to be."""
        with suppress(OSError):
            return list(json.loads(self._alive.recv(4096) or b"[]"))
        return []

    def end(self) -> None:
        """Waits until all of it has gone; after PATIENCE seconds it is killed."""
        self._theirs.close()
        pids = self.pids
        with self._alive:
            try:
                self._alive.recv(1)
            except TimeoutError:
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self._alive.settimeout(None)
                self._alive.recv(1)


@cache
def launcher(*prefix: str) -> Launcher:
    """The one launcher of this program, and of those that it forks afterwards. `prefix`: what it is
    started by, such as unshare(1)."""
    return Launcher(prefix)
