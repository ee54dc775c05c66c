"""The socket of an engine on another machine, by ssh(1): one connection for all requests.
ssh_config(5) holds."""

from __future__ import annotations

import atexit
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from labctl.ground.errors import Unavailable

DEADLINE = 20
AWAY = 10
"""For so many seconds an engine's machine may be out of reach; then connections to it end."""
SOCKET = "/var/run/docker.sock"
HINT = "`ssh {}` must work without a password, and its user must be allowed to use Docker"


@cache
def through(url: str) -> str:
    """The URL here of the engine behind `ssh://[USER@]HOST[:PORT][/SOCKET]`. The tunnel lasts as
    long as this process: its far end waits for the end of our stream. Raises Unavailable, and
    ValueError for what is no such URL."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError("it names no host")
    host = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
    port = ["-p", str(parts.port)] if parts.port else []
    folder = tempfile.TemporaryDirectory(prefix="labctl-ssh-")
    socket = Path(folder.name) / "docker.sock"
    words = [
        "ssh", "-T", *port, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={DEADLINE}",
        "-o", "ExitOnForwardFailure=yes", "-o", "ControlPath=none",
        "-o", f"ServerAliveInterval={AWAY // 2}", "-o", "ServerAliveCountMax=1",
        "-L", f"{socket}:{parts.path or SOCKET}", "--", host, "echo up; exec cat",
    ]  # fmt: skip
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us
        )
    except OSError as exc:
        folder.cleanup()
        raise Unavailable(f"ssh can't be run: {exc.strerror}", "install an ssh client") from exc
    assert process.stdin and process.stdout and process.stderr
    here = os.getpid()

    def close() -> None:
        if os.getpid() == here:  # and not in a fork
            process.terminate()
            process.communicate()
            folder.cleanup()

    if process.stdout.readline() != "up\n":
        said = process.stderr.read().strip().splitlines() or ["it says nothing"]
        close()
        raise Unavailable(f"no Docker engine answers at {url}: {said[-1]}", HINT.format(host))
    atexit.register(close)
    return f"unix://{socket}"
