"""Containers that testcontainers starts: watched, waited for, and on a lab's hosts."""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest

import labctl
from labctl.backends.docker import images
from labctl.judge.recorded import load
from labctl.judge.rejudge import judge
from labctl.run.places import DEFAULT_OS
from tests.unit.test_docs import ROOT, blocks

pytest_plugins = ["pytester"]

pytestmark = pytest.mark.docker

SHELLS = ["/bin/sh", "/bin/bash", "/bin/dash", "/usr/bin/sh", "/usr/bin/bash", "/usr/bin/dash"]
BARE = f"import os; [os.remove(p) for p in {SHELLS} if os.path.lexists(p)]"
SERVE = """
import socket, time
server = socket.create_server(("", 8000))
held = []
while True:
    held.append(server.accept()[0])
"""
CONNECT = """
import socket, sys, time
near = socket.create_connection((sys.argv[1], 8000))
time.sleep(600)
"""
LATE = """
import socket, time
time.sleep(0.5)
server = socket.create_server(("", 8000))
pairs = [(socket.create_connection(("127.0.0.1", 8000)), server.accept()) for _ in range(2)]
pairs[0][0].shutdown(socket.SHUT_WR)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """A Python, and no shell."""
    tag = f"labctl-test:{uuid.uuid4().hex[:8]}"
    with closing(docker.from_env()) as client:
        peer = images.ensure(client.api, DEFAULT_OS, print).peer
        run = json.dumps(["python3", "-c", BARE])
        text = f"FROM {peer}\nUSER 0\nENTRYPOINT []\nRUN {run}\n"
        # Not from layers of another worker's, which removes them when it is done.
        client.images.build(fileobj=io.BytesIO(text.encode()), tag=tag, rm=True, nocache=True)
        yield tag
        client.images.remove(tag, force=True)


@pytest.fixture
def container(image: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a container that runs a program, with a name of its own."""
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)

    def make(program: str, *words: str, **more: Any) -> DockerContainer:
        command = ["python3", "-c", program, *words]
        name = f"labctl_test_{uuid.uuid4().hex[:8]}"
        return DockerContainer(image, name=name, **more).with_command(command)

    return make


def listens(port: int | None = 8000, seconds: int = 30) -> Any:
    return labctl.socket_state("LISTEN", port).with_startup_timeout(seconds)


# --- Watching -------------------------------------------------------------------------------------


def test_a_watch(container: Callable[..., Any], tmp_path: Path) -> None:
    """By keyword, by position and by name; and what is started again is watched on."""
    from testcontainers.core.network import Network

    with Network() as network:
        api = container(SERVE).with_network(network).with_network_aliases("api")
        client = container(CONNECT, "api").with_network(network)
        with api.waiting_for(listens()), client:
            name = client.get_wrapped_container().name
            host = name.replace("_", "-")
            with labctl.watch(name, hosts={"my-api": api}, ports=[8000], out=tmp_path) as seen:
                seen.wait(sockets={host: {"state": "ESTAB", "peer": "my-api:8000"}})
                seen.expect(sockets={"my-api": ["LISTEN", "ESTAB"]})
                client.get_wrapped_container().restart(timeout=0)
                left = ["LISTEN", "CLOSE-WAIT", "ESTAB"]
                seen.wait(sockets={host: "ESTAB", "my-api": left}, within="30s")
                with pytest.raises(labctl.NotKnown, match="it was started again"):
                    seen.segments(flags="SYN ACK")
            with pytest.raises(labctl.NotPassed, match=r"my-api: expected TIME-WAIT") as caught:
                objects = {"my-api": api.get_wrapped_container()}
                with labctl.watch(hosts=objects, calls=True, out=tmp_path) as other:
                    there = [call.call for call in other.events(labctl.CallEvent)]
                    assert "has tcp listening SO_REUSEADDR=1" in there
                    other.expect(sockets={"my-api": "TIME-WAIT"})
    assert {*load(seen.folder).hosts} == {"my-api", host}
    assert [v.result for v in judge(seen.folder)] == ["pass"] * 4
    assert [v.result for v in judge(other.folder)] == ["fail"]
    assert "✗ my-api: TIME-WAIT" in caught.value.__notes__[0]


def test_what_can_not_be_watched(container: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(labctl.UsageError, match="not started; start it first"):
        labctl.watch(db=container(SERVE))
    with pytest.raises(labctl.UsageError, match="no container 'nowhere' is running"):
        labctl.watch("nowhere", out=tmp_path).__enter__()
    with container(SERVE) as server:
        with pytest.raises(labctl.UsageError, match="a and b are the same container"):
            labctl.watch(a=server, b=server, out=tmp_path).__enter__()
    assert not [*tmp_path.iterdir()]


# --- Waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "port"), [("LISTEN", 8000), ("CLOSE-WAIT", None)])
def test_a_socket_that_comes_late(
    container: Callable[..., Any], state: str, port: int | None
) -> None:
    """Beside others, in other states."""
    wanted = labctl.socket_state(state, port).with_startup_timeout(10)
    with container(LATE).waiting_for(wanted) as server:
        found = server.exec(
            ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 8000))"]
        )
        assert found.exit_code == 0


def test_a_socket_that_never_comes(container: Callable[..., Any]) -> None:
    with pytest.raises(TimeoutError) as caught:
        container(SERVE).waiting_for(listens(port=8001, seconds=2)).__enter__()
    text = str(caught.value)
    assert "no socket in LISTEN on port 8001 within 2 s, and it runs" in text
    assert "LISTEN 0.0.0.0:8000" in text
    assert "report /" in text


def test_a_container_that_ends(container: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="it has ended, with status 3"):
        container("raise SystemExit(3)").waiting_for(listens(seconds=2)).__enter__()


# --- On a host of a lab ---------------------------------------------------------------------------

HOSTS = {"db": {}, "client": {"calls": "socket; connect db:8000; await"}}


def test_a_container_on_a_host(container: Callable[..., Any], tmp_path: Path) -> None:
    """Its sockets outlive it, and every step works on its host."""
    with labctl.Lab(hosts=HOSTS, backend="docker", out=tmp_path) as lab:
        server = container(SERVE).with_kwargs(hostname=None, labels={"kept": "yes"})
        assert lab.place(server, "db") is server
        with server.waiting_for(listens()):
            assert server.get_wrapped_container().labels["kept"] == "yes"
            lab.sysctl("db", {"net.ipv4.tcp_fin_timeout": 3})
            lab.start("client")
            lab.wait(sockets={"db": {"state": "ESTAB", "peer": "client"}, "client": "ESTAB"})
            name = server.exec(["python3", "-c", "import socket; socket.gethostbyname('client')"])
            assert name.exit_code == 0, "it knows the lab's hosts"
            with pytest.raises(labctl.UsageError, match="unknown process 'db'"):
                lab.expect(process={"db": "running"})
            with pytest.raises(labctl.UsageError, match="unknown process 'db'"):
                lab.kill("db")
            lab.drop(to="client", flags="FIN", count=1, as_="lost")
            gone = time.monotonic()
        lab.wait(sockets={"db": "FIN-WAIT-2", "client": "CLOSE-WAIT"})
        lab.expect(segments={"from": "db", "flags": "FIN", "lost": True, "count": 1})
        lab.cut("client")
        lab.wait(sockets={"db": "none"}, within="10s")
        assert time.monotonic() - gone >= 3.0
        lab.expect(sockets={"client": "CLOSE-WAIT"})
    (found,) = json.loads((lab.folder / "result.json").read_text())["runs"]
    assert found["result"] == "pass"
    assert all(v.result == "pass" for v in judge(lab.folder))


def test_what_can_not_be_placed(container: Callable[..., Any], tmp_path: Path) -> None:
    from testcontainers.core.network import Network

    with labctl.Lab(hosts=HOSTS, backend="docker", out=tmp_path) as lab:
        verbs: Any = lab
        network = Network()
        with container(SERVE) as started:
            for it, host, message in (
                (container(SERVE, ports=[8000]), "db", r"publishes 8000, .*\.ports\.clear\(\)"),
                (container(SERVE).with_bind_ports(8000, 9000), "db", "publishes 8000"),
                (started, "db", "has been started; place it first"),
                (container(SERVE).with_network(network), "db", "has a network of its own"),
                (container(SERVE).with_kwargs(network_mode="host"), "db", "a network of its own"),
                (started.get_wrapped_container(), "db", "a DockerContainer of testcontainers is"),
                (container(SERVE), "dp", "unknown host 'dp'; allowed: db, client"),
            ):
                with pytest.raises(
                    labctl.UsageError, match=rf"^tests/contract/.*:\d+: .*{message}"
                ):
                    verbs.place(it, host)
        assert lab.events(labctl.StepEvent) == ()


@pytest.mark.netns
def test_namespaces_have_no_room_for_containers(
    container: Callable[..., Any], tmp_path: Path
) -> None:
    with labctl.Lab(hosts=HOSTS, backend="netns", out=tmp_path) as lab:
        with pytest.raises(labctl.UsageError, match='no room for containers; use backend="docker"'):
            lab.place(container(SERVE), "db")


# --- The docs -------------------------------------------------------------------------------------


def test_the_examples_of_the_docs(
    image: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    page = ROOT / "docs" / "testcontainers.md"
    examples = [block for block in blocks(page) if block.info == "python"]
    for example in examples:
        assert "python:3.13-slim" in example.text
        text = example.text.replace("python:3.13-slim", image)
        (pytester.path / f"test_{example.line}.py").write_text(text)
    found = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--durations=0")
    found.assert_outcomes(passed=len(examples))
