"""Commands of labctl at the same time, each a process of its own: what they say is passed on, line
by line, and all of them end with this one."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO

TETHERED = ("setpriv", "--pdeathsig", "TERM", "--")
"""prctl(2), PR_SET_PDEATHSIG: where this process is killed, they take down what they have."""
LABCTL = (sys.executable, "-m", "labctl")


def possible() -> bool:
    """Whether this machine has what ends them."""
    return shutil.which(TETHERED[0]) is not None


def run(
    commands: Mapping[str, Sequence[str]],
    at_once: int,
    say: Callable[[str, str], None],
    program: Sequence[str] = LABCTL,
) -> None:
    """Runs labctl with the arguments of each command, by name, so many at once. `say` is called
    with a command's name and each line that it writes to standard error; the rest is dropped.

    KeyboardInterrupt comes out when all of them have ended, orderly."""
    waiting = dict(commands)
    running: list[subprocess.Popen[bytes]] = []
    environment = {k: v for k, v in os.environ.items() if k != "GITHUB_STEP_SUMMARY"}  # ours
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or selector.get_map():
                while waiting and len(selector.get_map()) < at_once:
                    name = next(iter(waiting))
                    process = subprocess.Popen(
                        [*TETHERED, *program, *waiting.pop(name)],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        env=environment,
                        start_new_session=True,  # Ctrl-C is for us
                    )
                    running.append(process)
                    assert process.stderr
                    selector.register(process.stderr, selectors.EVENT_READ, _Lines(name, say))
                for key, _ in selector.select():
                    if not key.data.read(key.fileobj):
                        selector.unregister(key.fileobj)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.communicate()


class _Lines:
    """What comes of a pipe, in lines."""

    def __init__(self, name: str, say: Callable[[str, str], None]) -> None:
        self._name, self._say = name, say
        self._rest = b""

    def read(self, pipe: IO[bytes]) -> bool:
        """Passes on what is there; false at the end."""
        data = os.read(pipe.fileno(), 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._say(self._name, line.decode(errors="replace"))
        return bool(data)
