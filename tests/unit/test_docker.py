"""What the backend for containers asks an engine for."""

from __future__ import annotations

import socket
import struct
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import requests
from docker.api.client import APIClient
from docker.errors import APIError

from labctl.backends import BackendOptions, ProcessSpec
from labctl.backends.docker.attach import AttachChannel
from labctl.backends.docker.backend import DockerBackend
from labctl.backends.docker.nodes import Node
from labctl.ground.errors import LabError

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

    def containers(self, **_: Any) -> Any:
        raise APIError("the engine is ill", requests.Response())

    def close(self) -> None:
        pass


def freeze(engine: Engine, folder: Path) -> None:
    backend = DockerBackend(BackendOptions("r", "l", folder, "debian:12", print))
    backend._at["server"] = Node("", cast(APIClient, engine), folder / "log", Future())
    backend._containers["server"] = ["c"]
    backend.freeze(SERVER, True)


def test_a_pause_that_is_refused_for_an_instant_is_tried_again(tmp_path: Path) -> None:
    engine = Engine(500, 500)
    freeze(engine, tmp_path)
    assert engine.paused == 1
    freeze(gone := Engine(409), tmp_path)
    assert gone.paused == 0


def test_a_lab_that_can_not_be_removed_is_let_go(tmp_path: Path) -> None:
    backend = DockerBackend(BackendOptions("r", "l", tmp_path, "debian:12", print))
    backend._nodes.append(Node("", cast(APIClient, Engine()), tmp_path / "log", Future()))
    ours, theirs = socket.socketpair()
    backend._holders["server"] = AttachChannel(ours, None)
    theirs.setblocking(False)
    with theirs:
        with pytest.raises(LabError, match="the engine did not remove the lab"):
            backend.down()
        assert theirs.recv(1) == b"", "what runs in its containers is not told to end"


def test_a_pause_that_is_refused_for_good_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="the engine did not pause server"):
        freeze(Engine(400), tmp_path)


@pytest.mark.parametrize("linger", [b"", struct.pack("ii", 1, 0)], ids=["end", "reset"])
def test_a_connection_that_fails_is_no_end_of_a_container(linger: bytes) -> None:
    lost: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    channel = AttachChannel(ours, None, lambda: lost.append(True))
    if linger:  # its end is an RST
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    theirs.close()
    with pytest.raises(LabError, match="its connection failed") if linger else nullcontext():
        assert list(channel) == []
    assert (channel.ended, lost) == ((False, [True]) if linger else (True, []))
    channel.close()
