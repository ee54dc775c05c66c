"""The launcher: one interpreter beside this program, which forks the world and the tracer of each
lab instead of starting two interpreters for each.

It has loaded all that they run (see world.py). Programs that are forked after its start share it.
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
from contextlib import ExitStack, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.ground.resources import images

if TYPE_CHECKING:  # it takes time to load, and `start_ahead` is in a hurry
    from labctl.backends.netns.messages import Launch

PATIENCE = 20.0
BEGIN = "import gc, sys; gc.disable(); sys.path[:0] = [sys.argv.pop(1)]; import world; world.main()"
"""A script would be compiled anew each time."""


class Launcher:
    """A process that ends with this one; see `launcher`."""

    def __init__(self, prefix: Sequence[str]) -> None:
        programs = ("host/agent.py", "peer/peer.py", "host/tracer.py")
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = os.fdopen(os.memfd_create("errors"), "rb")
        with theirs:
            self._process = subprocess.Popen(
                [
                    *prefix, sys.executable, "-I", "-S", "-c", BEGIN, str(Path(__file__).parent),
                    *(str(images() / program) for program in programs),
                ],
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=self._errors,
                start_new_session=True,
            )  # fmt: skip
        self._owner = os.getpid()
        atexit.register(self._end)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def said(self) -> str:
        """Its standard error so far."""
        return os.pread(self._errors.fileno(), 4096, 0).decode(errors="replace").strip()

    def _end(self) -> None:
        if os.getpid() != self._owner:
            return
        self.socket.shutdown(socket.SHUT_RDWR)  # a forked program may hold it open
        self.socket.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            self._process.kill()
            self._process.wait()
        self._errors.close()


class Launched:
    """The processes forked for a lab; all of them end when asked to."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._alive, self._theirs = socket.socketpair()
        self._alive.settimeout(PATIENCE)

    def begin(self, files: Sequence[int], command: Launch) -> None:
        """Begins it in this program's folder, with the file descriptors of `launch` in world.py.
        Raises OSError; ConnectionError if the launcher is gone."""
        with ExitStack() as stack:
            here = os.open(".", os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, here)
            # In a file, since an environment may be larger than a message.
            words = stack.enter_context(open(os.memfd_create("lab"), "w"))  # noqa: PTH123
            json.dump(command.as_json(), words)
            words.flush()
            alive = stack.enter_context(self._theirs)
            sent = [words.fileno(), alive.fileno(), here, *files]
            socket.send_fds(self._launcher.socket, [b"lab"], sent)

    @property
    def launcher(self) -> int:
        """The process id of the launcher."""
        return self._launcher.pid

    @property
    def said(self) -> str:
        """The launcher's output, in case this does not begin."""
        return self._launcher.said()

    @cached_property
    def pids(self) -> list[int]:
        """The world, and the tracer if there is one; empty if there is no world."""
        from labctl.backends.netns.messages import Began
        from labctl.backends.wire import read

        with suppress(OSError):
            if said := self._alive.recv(4096):
                return Began.of(read(said)).pids
        return []

    def end(self) -> None:
        """Waits until all of it is gone; kills it after PATIENCE seconds."""
        self._theirs.close()
        with self._alive:
            if self.pids and not self._over():
                for pid in self.pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self._over()

    def _over(self) -> bool:
        with suppress(TimeoutError):
            return not self._alive.recv(1)
        return False


@cache
def launcher(*prefix: str) -> Launcher:
    """The one launcher of this program, and of those that it forks later. `prefix`: the command
    that starts it, such as unshare(1)."""
    return Launcher(prefix)


def start_ahead() -> None:
    """Lets it load what labs run while this program loads, on another core. Not if it first needs a
    user namespace (backend.py), nor if it can't start, which others report."""
    if sys.platform == "linux" and os.geteuid() == 0:
        with suppress(OSError):
            launcher()
