"""`labctl blame --container`: what holds a port in a container's network."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import closing

import docker
import pytest

from labctl.backends.docker import images
from labctl.ground.errors import UsageError
from labctl.run.blame import blame
from labctl.run.places import DEFAULT_OS

pytestmark = pytest.mark.docker

SERVE = "import socket, time; s = socket.create_server(('', 8000)); time.sleep(600)"
DEADLINE = 20.0


@pytest.fixture
def container() -> Iterator[str]:
    name = f"blamed-{uuid.uuid4().hex[:8]}"
    with closing(docker.from_env()) as client:
        peer = images.ensure(client.api, DEFAULT_OS, print).peer
        made = client.containers.run(
            peer, ["-c", SERVE], entrypoint="python3", name=name, detach=True, network_mode="none"
        )
        try:
            yield name
        finally:
            made.remove(force=True)


def test_a_container(container: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not (found := blame(8000, container)) and time.monotonic() < deadline:
        time.sleep(0.05)
    (holder,) = found
    assert holder.state == "LISTEN"
    assert "create_server" in str(holder.processes)
    assert blame(8001, container) == []


def test_no_such_container(container: str) -> None:
    with pytest.raises(UsageError, match="no container 'nosuch' is running") as told:
        blame(8000, "nosuch")
    assert container in told.value.hint
