"""Channels over the streams of a container that a controller is attached to."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.backends import Message, wire
from labctl.ground.errors import LabError

if TYPE_CHECKING:
    from docker.api.client import APIClient

STDERR = 2
CHUNK = 65536


def attach(client: APIClient, container: str) -> Any:
    """A stream to a container. Open it before the container starts, to miss nothing."""
    return client.attach_socket(container, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})


def _frames(stream: Any) -> Iterator[tuple[int, bytes]]:
    """Pairs of descriptor and data, as the engine multiplexes them (API: ContainerAttach). Raises
    OSError."""
    with suppress(ValueError), stream.makefile("rb") as reader:
        while len(header := reader.read(8)) == 8:
            kind, length = struct.unpack(">BxxxL", header)
            yield kind, reader.read(length)
        if stream.family != socket.AF_UNIX:
            stream.getpeername()  # ssl takes a failure for an end; but then there is no peer


class AttachChannel:
    """A channel over a container's attached streams; its stderr goes to a file, if there is one.
    `said` is the last of it. If the connection fails, `lost` is called."""

    def __init__(
        self, stream: Any, log: Path | None, lost: Callable[[], None] = lambda: None
    ) -> None:
        # Over TLS or ssh it is a socket, otherwise a raw stream around one.
        self._stream, self._socket = stream, getattr(stream, "_sock", stream)
        self._socket.settimeout(None)
        self._log, self._lost = log, lost
        self.said = b""
        self.ended = self._closed = False

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError):
            self.write((json.dumps(message) + "\n").encode())

    def write(self, data: bytes) -> None:
        """Writes to the container's standard input. Raises OSError."""
        self._socket.sendall(data)

    def __iter__(self) -> Iterator[Message]:
        parts: list[bytes] = []
        for kind, data in self.frames():
            if kind == STDERR:
                self.said = data
                if self._log:
                    with self._log.open("ab") as log:
                        log.write(data)
                continue
            lines, newline, rest = data.rpartition(b"\n")
            if newline:
                for line in b"".join([*parts, lines]).split(b"\n"):
                    yield wire.read(line)
                parts.clear()
            parts.append(rest)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Pairs of descriptor and data, until it has `ended`. Raises LabError if the connection
        fails: then nobody knows what became of the container."""
        try:
            yield from _frames(self._socket)
        except OSError as exc:
            if not self._closed:
                self._lost()
                raise LabError(f"its connection failed: {exc.strerror or exc}") from exc
        self.ended = True

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._stream.close()
            self._socket.close()


# --- A terminal -----------------------------------------------------------------------------------


def run_attached(client: APIClient, container: str, command: Sequence[str]) -> int:
    """Runs a command in a container on this program's standard streams; returns its status."""
    terminal = os.isatty(0) and os.isatty(1)
    environment = {"TERM": os.environ.get("TERM", "dumb")} if terminal else {}
    job = client.exec_create(
        container, list(command), stdin=True, tty=terminal, environment=environment
    )["Id"]
    stream: Any = client.exec_start(job, socket=True, tty=terminal)
    end = getattr(stream, "_sock", stream)
    end.settimeout(None)

    def resize(*_: object) -> None:
        width, height = os.get_terminal_size(1)
        client.exec_resize(job, height, width)

    def feed() -> None:
        with suppress(OSError):
            while data := os.read(0, CHUNK):
                end.sendall(data)
            end.shutdown(socket.SHUT_WR)

    threading.Thread(target=feed, daemon=True, name="standard input").start()
    if terminal:
        before = termios.tcgetattr(0)
        try:
            tty.setraw(0)
            signal.signal(signal.SIGWINCH, resize)
            resize()
            while data := end.recv(CHUNK):
                _write(1, data)
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
    else:
        for descriptor, data in _frames(end):
            _write(descriptor, data)
    return int(client.exec_inspect(job)["ExitCode"])


def _write(descriptor: int, data: bytes) -> None:
    stream = (sys.stderr if descriptor == STDERR else sys.stdout).buffer
    stream.write(data)
    stream.flush()
