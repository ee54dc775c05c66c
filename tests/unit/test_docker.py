"""What the backend for containers asks an engine for."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from docker.errors import APIError

from labctl.backends import BackendOptions, ProcessSpec
from labctl.backends.docker.attach import ForeignChannel, HolderChannel
from labctl.backends.docker.backend import DockerBackend
from labctl.ground.errors import LabError

DEADLINE = 30.0
SERVER = ProcessSpec("server", "server", image="mine")


class Engine:
    """An engine that refuses to freeze, with these statuses, at first."""

    def __init__(self, *refusals: int) -> None:
        self._refusals = list(refusals)
        self.paused = 0

    def inspect_container(self, container: str) -> dict[str, Any]:
        return {"State": {"Running": True, "Paused": False}}

    def pause(self, container: str) -> None:
        if self._refusals:
            response = requests.Response()
            response.status_code = self._refusals.pop(0)
            raise APIError("runc pause: unable to freeze", response)
        self.paused += 1


def freeze(engine: Engine, folder: Path) -> None:
    backend = DockerBackend(BackendOptions("r", "l", folder, "debian:12", print))
    backend._client = engine  # type: ignore[assignment]
    backend._containers["server"] = ["c"]
    backend.freeze(SERVER, True)


def test_a_pause_that_is_refused_for_an_instant_is_tried_again(tmp_path: Path) -> None:
    engine = Engine(500, 500)
    freeze(engine, tmp_path)
    assert engine.paused == 1
    freeze(gone := Engine(409), tmp_path)
    assert gone.paused == 0


def test_a_pause_that_is_refused_for_good_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="the engine did not pause server"):
        freeze(Engine(400), tmp_path)


# --- What a program of another image writes -------------------------------------------------------


def outputs(stream: socket.socket, folder: Path) -> Iterator[dict[str, Any]]:
    """What a channel tells of a program that writes to a stream of the engine's."""
    with (
        closing(HolderChannel(socket.socket(), folder / "log")) as holder,
        closing(ForeignChannel(stream, folder / "log", holder, lambda: 0)) as channel,
    ):
        yield from (message for message in channel if message["kind"] == "output")


def frame(data: bytes, kind: int = 1) -> bytes:
    return struct.pack(">BxxxL", kind, len(data)) + data


def test_a_character_of_a_foreign_program_in_two_pieces(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(frame(b"caf\xc3") + frame(b"!", 2) + frame(b"\xa9\n"))
    theirs.close()
    assert [m["text"] for m in outputs(ours, tmp_path)] == ["caf", "!", "é\n"]


def test_a_foreign_program_that_writes_much(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    total = 30_000_000

    def write() -> None:
        for _ in range(total // 60_000):
            theirs.sendall(frame(b"x" * 59_999 + b"\n"))
        theirs.sendall(frame(b"done\n"))
        assert told.wait(DEADLINE)  # it is told although nothing more comes
        theirs.close()

    told = threading.Event()
    writer = threading.Thread(target=write)
    writer.start()
    length = left_out = 0
    for message in outputs(ours, tmp_path):
        length += len(message["text"])
        left_out += message.get("left_out", 0)
        if message["text"].endswith("x\ndone\n"):
            told.set()
    writer.join()
    assert told.is_set()
    assert length + left_out == total + len("done\n")
    assert length < 6_000_000
