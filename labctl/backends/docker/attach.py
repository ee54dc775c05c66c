"""Channels over the streams of a container that a controller is attached to."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import struct
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.backends import Message, protocol, wire
from labctl.ground import signals
from labctl.ground.errors import LabError
from labctl.ground.resources import peer_module

if TYPE_CHECKING:
    from docker.api.client import APIClient

SAME_CLOCK = 1.0  # seconds; the uptimes of two machines differ by more
STDERR = 2
WAITING = 64
"""How many pieces of a program's output wait here, before the engine has to wait."""
CHUNK = 65536
KILLED = 128 + signal.SIGKILL
SIGNALS = {128 + number: name for number, name in signals.NAMES.items()}


def attach(client: APIClient, container: str, stdin: bool = True) -> Any:
    """A stream to a container. Open it before the container starts, to miss nothing."""
    return client.attach_socket(
        container, {"stdin": int(stdin), "stdout": 1, "stderr": 1, "stream": 1}
    )


def _frames(stream: Any) -> Iterator[tuple[int, bytes]]:
    """Pairs of descriptor and data, as the engine multiplexes them (API: ContainerAttach)."""
    with suppress(OSError, ValueError), stream.makefile("rb") as reader:
        while len(header := reader.read(8)) == 8:
            kind, length = struct.unpack(">BxxxL", header)
            yield kind, reader.read(length)


class AttachChannel:
    """A channel over a container's attached streams; its stderr goes to a file."""

    def __init__(self, stream: Any, log: Path) -> None:
        # Over TLS or ssh it is a socket, otherwise a raw stream around one.
        self._stream, self._socket = stream, getattr(stream, "_sock", stream)
        self._socket.settimeout(None)
        self._log = log
        self.ended = False

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError):
            self._socket.sendall((json.dumps(message) + "\n").encode())

    def __iter__(self) -> Iterator[Message]:
        parts: list[bytes] = []
        for kind, data in self.frames():
            if kind == STDERR:
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
        """Pairs of descriptor and data, until it has `ended`."""
        yield from _frames(self._socket)
        self.ended = True

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._stream.close()
            self._socket.close()


class HolderChannel(AttachChannel):
    """A channel to an agent. `offset`: the lab's clock minus ours, by its first message."""

    offset = 0.0

    def __iter__(self) -> Iterator[Message]:
        for message in super().__iter__():
            if message["kind"] == protocol.Hello.kind:
                offset = protocol.AgentHello.of(message).t - time.monotonic()
                self.offset = offset if abs(offset) > SAME_CLOCK else 0.0
            yield message


class ForeignChannel(AttachChannel):
    """A channel to a program that knows nothing of us: it says what peer.py would say for it.

    `status` waits for the container's end and returns its status."""

    def __init__(
        self, stream: Any, log: Path, holder: HolderChannel, status: Callable[[], int]
    ) -> None:
        super().__init__(stream, log)
        self._holder, self._status = holder, status

    def send(self, message: Mapping[str, Any]) -> None:
        """Does nothing: nobody listens."""

    def __iter__(self) -> Iterator[Message]:
        yield self._message(kind="process", phase="start")
        yield from self._outputs()
        with suppress(LabError):
            status = self._status()
            name = SIGNALS.get(status)
            if status != KILLED:  # A kill ends all of it at once, and the stream's end says so.
                yield self._message(
                    kind="process", phase="exit", exit=None if name else status, signal=name
                )

    def _outputs(self) -> Iterator[Message]:
        """What to record of its output, as peer.py does: see images/peer/written.py. A thread of
        its own reads it, since a piece also ends by time, without news."""
        frames: queue.Queue[tuple[int, bytes] | None] = queue.Queue(WAITING)
        streams: dict[int, Any] = {}

        def read() -> None:
            for frame in self.frames():
                frames.put(frame)
            frames.put(None)

        threading.Thread(target=read, daemon=True, name="what a program writes").start()
        while True:
            due = min((w.due for w in streams.values() if w.due is not None), default=None)
            try:
                frame = frames.get(timeout=None if due is None else max(0.0, due - self._now))
            except queue.Empty:
                frame = -1, b""
            if frame and frame[1]:
                written = streams.setdefault(frame[0], peer_module("written").Written())
                written.add(frame[1], self._now)
            for written in streams.values():
                ready = written.due is not None and written.due <= self._now
                if (frame is None or ready) and (found := written.take(frame is None)):
                    yield {"kind": "output", **found}
            if frame is None:
                return

    @property
    def _now(self) -> float:
        return time.monotonic() + self._holder.offset

    def _message(self, **message: Any) -> Message:
        return {"t": self._now, **message}


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
