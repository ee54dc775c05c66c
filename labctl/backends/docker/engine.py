"""The connection to a Docker engine, and its errors in our words.

Only the engine's API is used: no command-line client, nothing mounted, nothing but its socket. So
it may run in a virtual machine or elsewhere. `docker` is slow to import and is imported when used.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.ground.errors import LabError, Unavailable
from labctl.ground.limits import limit_of, origin
from labctl.ground.resources import home

if TYPE_CHECKING:
    from docker.api.client import APIClient

PING_DEADLINE = 2
FIRST_DEADLINE = 10
REQUEST_DEADLINE = 60
CONNECTIONS = 64
WITHOUT = "or use --backend netns on Linux"

HINTS = {
    "available, non-overlapping": "remove unused networks: docker network prune",
    "no available IPv4": "give the engine larger default-address-pools, or the lab fewer hosts",
    "Pool overlaps": "a run of this name left a network: labctl down",
    "is already in use by container": "a run of this name left containers: labctl down",
    "no space left": "make room: docker system prune",
    "executable file not found": "correct `run`, or take another `image`",
}
"""A piece of what an engine says when it refuses, and what helps."""

HINT = "its log says more; `labctl doctor` checks it"


def find() -> APIClient | None:
    """A client of the engine if one answers, within PING_DEADLINE seconds. Never raises."""
    default = Path("/var/run/docker.sock")
    settings = Path(os.environ.get("DOCKER_CONFIG") or home() / ".docker")
    if not ("DOCKER_HOST" in os.environ or default.exists() or settings.is_dir()):
        return None
    try:
        client = connect(PING_DEADLINE)
    except LabError:
        return None
    client.timeout = REQUEST_DEADLINE
    return client


def answers() -> bool:
    """Whether an engine answers; see `find`."""
    if client := find():
        client.close()
    return client is not None


def connect(deadline: int = REQUEST_DEADLINE) -> APIClient:
    """A client of the engine that DOCKER_HOST or the current context names, good for many threads;
    `deadline` in seconds bounds each request. Raises Unavailable."""
    import docker
    import docker.errors
    from docker.constants import MINIMUM_DOCKER_API_VERSION

    def client(version: str) -> APIClient:
        return docker.from_env(version=version, timeout=deadline, max_pool_size=CONNECTIONS).api

    try:
        # docker itself asks for all versions, for which engines start programs.
        with closing(client(MINIMUM_DOCKER_API_VERSION)) as asking:
            if path := getattr(asking.get_adapter(asking.base_url), "socket_path", None):
                _try(path)
            answer = asking.get(f"{asking.base_url}/_ping", timeout=min(deadline, FIRST_DEADLINE))
            answer.raise_for_status()
        return client(answer.headers.get("Api-Version", "auto"))
    except (docker.errors.DockerException, OSError) as exc:
        if limit := limit_of(exc):
            raise LabError(*limit) from exc
        raise _absence(exc) from exc


def _try(path: str) -> None:
    """Connects to an engine's socket: docker never closes one that it could not connect. Raises
    OSError."""
    with socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(PING_DEADLINE)
        trial.connect(path)


def _absence(exc: Exception) -> Unavailable:
    """Why there is no engine."""
    where = os.environ.get("DOCKER_HOST") or "its default address"
    cause = origin(exc)
    reason = str(cause.strerror) if cause else str(exc).rstrip(".")
    if "timed out" in reason:
        reason = f"no word within {FIRST_DEADLINE} s"
    if "Permission denied" in reason:
        return Unavailable(
            f"no permission to use the Docker engine at {where}",
            f"become a member of the group docker, {WITHOUT}",
        )
    return Unavailable(f"no Docker engine answers at {where}: {reason}", f"start one, {WITHOUT}")


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turns the engine's errors into LabError.

    `action` completes "the engine did not ..."."""
    import docker.errors
    import requests.exceptions
    import urllib3.exceptions

    try:
        yield
    except (
        docker.errors.DockerException,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
    ) as exc:
        if limit := limit_of(exc):
            raise LabError(*limit) from exc
        said = str(getattr(exc, "explanation", None) or exc).strip()
        hint = next((hint for piece, hint in HINTS.items() if piece in said), HINT)
        raise LabError(f"the engine did not {action}: {said}", hint) from exc


class Tolerated:
    """Lets errors with these HTTP statuses pass: 404, it is gone; 409, it is not in that state."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = statuses

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> bool:
        from docker.errors import APIError

        return isinstance(exc, APIError) and exc.status_code in self._statuses
