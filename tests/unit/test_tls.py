"""Engines behind TLS: a context has the keys; if they are wrong, one sentence says which."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from labctl.backends.docker import engine
from labctl.ground.errors import Unavailable
from tests.certificates import Keys, authority, context, signed
from tests.refusing import LISTS, Answer, WantsKeys

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


class Server(ThreadingHTTPServer):
    """An engine that answers, on a port, to clients with keys of its own CA."""

    def __init__(self, keys: Keys) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.has, self.asked = LISTS, list[str]()
        wrapped = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=keys.ca)
        wrapped.load_cert_chain(keys.cert, keys.key)
        wrapped.verify_mode = ssl.CERT_REQUIRED
        self.socket = wrapped.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """It says nothing of clients that it refuses."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Keys]:
    """Of a server, of its client, and of a stranger; each of the first two by one CA."""
    folder = tmp_path_factory.mktemp("keys")
    ours, others = authority(folder, "ours"), authority(folder, "others")
    return {
        "server": signed(ours, "server"),
        "client": signed(ours, "client"),
        "stranger": signed(others, "stranger"),
    }


@pytest.fixture
def settings(
    tmp_path: Path, keys: dict[str, Keys], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder for contexts, where other CAs are set for all that Python asks for."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(keys["stranger"].ca))
    yield tmp_path


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """The URL of a server, as long as a `with`."""
    with server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def url(keys: dict[str, Keys]) -> Iterator[str]:
    with serving(Server(keys["server"])) as found:
        yield found


def test_a_context_has_the_keys(settings: Path, url: str, keys: dict[str, Keys]) -> None:
    context(settings, "far", url, keys["client"])
    client = engine.connect(where="far")
    assert engine.ping(client)
    client.close()


def refused(name: str) -> tuple[str, str]:
    with pytest.raises(Unavailable) as caught:
        engine.connect(where=name)
    return caught.value.message, caught.value.hint


def test_a_wrong_ca(settings: Path, url: str, keys: dict[str, Keys]) -> None:
    context(settings, "far", url, replace(keys["client"], ca=keys["stranger"].ca))
    message, hint = refused("far")
    assert message.startswith(
        "no TLS with the Docker engine at far: the context's CA has not signed its certificate: "
    )
    assert hint.startswith("docker context update NAME --docker host=URL,ca=FILE")


def test_a_wrong_certificate(settings: Path, url: str, keys: dict[str, Keys]) -> None:
    context(settings, "far", url, replace(keys["stranger"], ca=keys["client"].ca))
    message, hint = refused("far")
    assert message.startswith(
        "no TLS with the Docker engine at far: it does not take the context's certificate: "
    )
    assert "cert=FILE,key=FILE" in hint


def test_no_keys() -> None:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), WantsKeys)) as url:
        message, hint = refused(url)
    why = "it asks for keys, and there are none"
    assert message == f"no TLS with the Docker engine at {url}: {why}"
    assert hint.startswith("docker context create NAME --docker host=URL,ca=FILE")


def test_nobody_speaks_tls_there(settings: Path, keys: dict[str, Keys]) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.has, server.asked = LISTS, []  # type: ignore[attr-defined]
    with serving(server) as url:
        context(settings, "far", url, keys["client"])
        message, _ = refused("far")
    assert "at far: nobody speaks TLS there" in message
