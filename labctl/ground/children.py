"""Several commands of labctl at the same time, each a process of its own. This passes on what they
say, line by line, and all of them end with it."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO

TETHERED = ("setpriv", "--pdeathsig", "TERM", "--")
"""prctl(2), PR_SET_PDEATHSIG: if this process is killed, they take down what they have."""
LABCTL = (sys.executable, "-m", "labctl")


def possible() -> bool:
    """Whether this machine has the program that ends them."""
    return shutil.which(TETHERED[0]) is not None


def run(
    commands: Mapping[str, Sequence[str]],
    at_once: int,
    say: Callable[[str, str], None],
    program: Sequence[str] = LABCTL,
) -> None:
    """Runs labctl with the arguments of each command, by name, so many at once. Calls `say` with a
    command's name and each line that it writes to standard error; drops the rest.

    Raises KeyboardInterrupt only when all of them have ended properly."""
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
    """The lines that come through a pipe."""

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
