"""The connection to a Docker engine, and its errors in our words.

Only the engine's API is used: no command-line client, nothing mounted, nothing but its socket. So
it may run in a virtual machine or elsewhere. `docker` is slow to import and is imported when used.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.backends.docker.tunnel import AWAY, through
from labctl.ground.errors import LabError, Unavailable, UsageError
from labctl.ground.limits import limit_of, origin
from labctl.ground.resources import home

if TYPE_CHECKING:
    from docker.api.client import APIClient
    from docker.tls import TLSConfig

Lost = Callable[[], str | None]
"""Says which engines do not answer any more, and what to do; None if all do."""

PING_DEADLINE = 2
FIRST_DEADLINE = 10
REQUEST_DEADLINE = 60
CONNECTIONS = 64
WITHOUT = "or use --backend netns on Linux"

PORTS = "2377/tcp, 7946/tcp and udp, and 4789/udp"
"""What the engines of a swarm have to reach of each other."""

ATTACHING = "to network"
"""Part of what an engine says if its swarm does not attach a container in time: "attaching to
network failed", or "Could not attach to network" if its manager did not answer at all."""

HINTS = {
    "available, non-overlapping": "remove unused networks: docker network prune",
    "no available IPv4": "give the engine larger default-address-pools, or the lab fewer hosts",
    "Pool overlaps": "a run of this name left a network: labctl down",
    "is already in use by container": "a run of this name left containers: labctl down",
    "no space left": "make room: docker system prune",
    ATTACHING: f"run fewer labs at once; or between the engines, open {PORTS}",
    "executable file not found": "correct `run`, or take another `image`",
}
"""A piece of what an engine says when it refuses, and what helps."""

OF_TLS = {
    "CERTIFICATE_VERIFY_FAILED": "the context's CA has not signed its certificate",
    "WRONG_VERSION_NUMBER": "nobody speaks TLS there",
}
"""What prevents TLS, by the word that OpenSSL has for it."""
HTTPS = "HTTP request to an HTTPS server"
"""Part of what an engine behind TLS answers to who has no keys for it."""
KEYS = "docker context update NAME --docker host=URL,ca=FILE,cert=FILE,key=FILE corrects that"
NO_KEYS = "docker context create NAME --docker host=URL,ca=FILE,cert=FILE,key=FILE has them"

URLS = "an engine is at unix://PATH, tcp://HOST:PORT or ssh://[USER@]HOST[:PORT]"

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


def connect(deadline: int = REQUEST_DEADLINE, where: str = "", without: str = WITHOUT) -> APIClient:
    """A client of an engine, good for many threads: of that at a URL or of a context of Docker, or
    of the one that DOCKER_HOST or the current context names; `deadline` in seconds bounds each
    request, and `without` says what to do without an engine. Raises Unavailable; UsageError for a
    context that is not there."""
    import docker
    import docker.errors
    from docker.constants import MINIMUM_DOCKER_API_VERSION
    from requests.adapters import HTTPAdapter
    from requests.utils import get_environ_proxies

    def client(version: str) -> APIClient:
        how = {"version": version, "timeout": deadline, "max_pool_size": CONNECTIONS}
        found: APIClient = (
            docker.APIClient(url, tls=tls or False, **how)  # type: ignore[arg-type]
            if where
            else docker.from_env(**how).api  # type: ignore[arg-type]
        )
        adapter = found.get_adapter(found.base_url)
        if type(adapter) is HTTPAdapter:  # of a port, and not of a socket here
            adapter.init_poolmanager(CONNECTIONS, CONNECTIONS, socket_options=_options())
        if isinstance(found.verify, str):  # requests would prefer the CAs of REQUESTS_CA_BUNDLE
            found.proxies.update(get_environ_proxies(found.base_url))
            found.trust_env = False
        return found

    try:
        url, tls = _address(where) if where else ("", None)
        # docker itself asks for all versions, for which engines start programs.
        with closing(client(MINIMUM_DOCKER_API_VERSION)) as asking:
            _try(asking)
            answer = asking.get(f"{asking.base_url}/_ping", timeout=min(deadline, FIRST_DEADLINE))
            answer.raise_for_status()
        return client(answer.headers.get("Api-Version", "auto"))
    except (docker.errors.DockerException, OSError, ValueError) as exc:
        if limit := limit_of(exc):
            raise LabError(*limit) from exc
        raise _absence(exc, where, without) from exc


def _address(where: str) -> tuple[str, TLSConfig | None]:
    """The URL of an engine, and the keys for it. Raises UsageError."""
    from docker.context import ContextAPI

    if "://" in where:
        return (through(where) if where.startswith("ssh://") else where), None
    if found := ContextAPI.get_context(where):
        url = str(found.Host)
        return (through(url) if url.startswith("ssh://") else url), found.TLSConfig
    known = ", ".join(context.name for context in ContextAPI.contexts())
    raise UsageError(f"no context {where!r} of Docker", f"there are: {known}; or give a URL")


def _options() -> list[tuple[int, int, int]]:
    """Options of its sockets: tcp(7). Each system has some of them."""
    probes = {"TCP_KEEPIDLE": AWAY // 2, "TCP_KEEPINTVL": AWAY // 5, "TCP_KEEPCNT": 3}
    values = {"TCP_NODELAY": 1, **probes, "TCP_USER_TIMEOUT": AWAY * 1000}
    named = ((getattr(socket, name, None), value) for name, value in values.items())
    found = [(socket.IPPROTO_TCP, option, value) for option, value in named if option is not None]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *found]


def silent(clients: Mapping[str, APIClient], deadline: int = FIRST_DEADLINE) -> list[str]:
    """Which of these engines do not answer within so many seconds, by name."""
    with ThreadPoolExecutor(len(clients) or 1) as pool:
        answers = pool.map(partial(ping, deadline=deadline), clients.values())
    return [name for name, answer in zip(clients, answers, strict=True) if not answer]


def ping(client: APIClient, deadline: int = FIRST_DEADLINE) -> bool:
    """Whether an engine still answers, within so many seconds."""
    import requests.exceptions

    try:
        _try(client)
        return client.get(f"{client.base_url}/_ping", timeout=deadline).ok
    except (requests.exceptions.RequestException, OSError):
        return False


def _try(client: APIClient) -> None:
    """Connects to an engine's socket, if it has one: docker never closes one that it could not
    connect. Raises OSError."""
    path = getattr(client.get_adapter(client.base_url), "socket_path", None)
    if path is None:
        return
    with socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(PING_DEADLINE)
        trial.connect(path)


def _absence(exc: Exception, where: str, without: str) -> Unavailable:
    """Why there is no engine."""
    where = where or os.environ.get("DOCKER_HOST") or "its default address"
    if isinstance(exc, ValueError) or "Invalid bind address" in str(exc):
        return Unavailable(f"no Docker engine can be at {where}: {exc}", URLS)
    cause = origin(exc)
    if isinstance(cause, ssl.SSLError):
        what = OF_TLS.get(cause.reason or "", "it does not take the context's certificate")
        said = getattr(cause, "verify_message", None) or str(cause.strerror)
        return Unavailable(f"no TLS with the Docker engine at {where}: {what}: {said}", KEYS)
    response = getattr(exc, "response", None)
    if response is not None and HTTPS in response.text:
        why = f"no TLS with the Docker engine at {where}: it asks for keys, and there are none"
        return Unavailable(why, NO_KEYS)
    reason = str(cause.strerror) if cause else str(exc).rstrip(".")
    if "timed out" in reason:
        reason = f"no word within {FIRST_DEADLINE} s"
    if "Permission denied" in reason:
        return Unavailable(
            f"no permission to use the Docker engine at {where}",
            f"become a member of the group docker, {without}",
        )
    return Unavailable(f"no Docker engine answers at {where}: {reason}", f"start one, {without}")


@contextmanager
def translated(action: str, lost: Lost = lambda: None) -> Iterator[None]:
    """Turns the engine's errors into LabError. `action` completes "the engine did not ..."; if it
    is the connection that failed, `lost` may say why."""
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
        if not isinstance(exc, docker.errors.DockerException) and (why := lost()):
            raise LabError(why) from exc
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
