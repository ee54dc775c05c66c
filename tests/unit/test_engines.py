"""Several engines: which they are, where hosts go, what joins them, and what each removes."""

from __future__ import annotations

import ipaddress
import re
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
import requests
from docker.api.client import APIClient
from docker.errors import APIError

from labctl.backends import BackendOptions, EngineAt, HostSpec
from labctl.backends.docker import engine
from labctl.backends.docker.addresses import Holder, Network, links
from labctl.backends.docker.backend import DockerBackend
from labctl.backends.docker.nodes import Node, assigned, manager
from labctl.backends.docker.sweep import HOST, LEASE, RUN, Group, Removed, clear
from labctl.backends.lease import Lease, abandoned, folder, leases
from labctl.ground.errors import LabError, Unavailable, UsageError
from labctl.reports.progress import Screen
from labctl.run import dispatch
from labctl.run.guests import runs
from labctl.run.orders import Orders
from labctl.run.places import Place, engines_at, place
from tests import refusing
from tests.fake import FakeChannel, scenario

# --- On the command line --------------------------------------------------------------------------


def test_names_of_engines() -> None:
    assert EngineAt.parse("left=tcp://h:2376") == EngineAt("left", "tcp://h:2376")
    assert EngineAt.parse("tcp://h:2376?x=y") == EngineAt("tcp://h:2376?x=y", "tcp://h:2376?x=y")
    assert EngineAt.parse("far") == EngineAt("far", "far")


@pytest.mark.parametrize("texts", [["a=x", "a=y"], ["a=x", "b=x"], ["x", "x"], [""], ["=x"]])
def test_each_engine_has_a_name_and_is_named_once(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="each engine once"):
        engines_at(texts)


def test_engines_are_for_docker() -> None:
    found = place("auto", None, None, False, ["a=x", "b=y"])
    assert found == Place("docker", engines=(EngineAt("a", "x"), EngineAt("b", "y")))
    with pytest.raises(UsageError, match="--engine is for Docker"):
        place("netns", None, None, False, ["a=x"])


def test_a_guest_is_at_one_engine() -> None:
    """That which is named, or the usual one."""
    found = place("auto", None, "6.1", True, ["a=x"])
    assert found == Place("docker", "", "6.1", True, (EngineAt("a", "x"),))
    assert place("docker", None, "6.1", False) == Place("docker", "", "6.1")
    assert place("auto", None, "6.1", False) == Place("netns", "", "6.1")
    with pytest.raises(UsageError, match="--kernel runs its guests at one engine"):
        place("auto", None, "6.1", False, ["a=x", "b=y"])
    with pytest.raises(UsageError, match="--virtual-time needs a guest"):
        place("auto", None, None, True, ["a=x"])


@pytest.mark.usefixtures("qemu_is_asked")
def test_without_qemu_guests_are_at_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one answers; and where one is asked for, nobody looks for QEMU."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    guest, asked = Place("netns", "", "6.1"), Place("docker", "", "6.1")
    assert runs.located(asked) == asked
    with pytest.raises(Unavailable, match=r"can't be started.*or start a Docker engine"):
        runs.located(guest)
    with refusing.engine(tmp_path / "docker.sock"):
        assert runs.located(guest) == asked


PINNED = "title: t\nhosts: {a: {engine: left}, b: {engine: rigth}}\nsteps: []\n"


def test_a_host_of_an_engine_that_is_not_there(tmp_path: Path) -> None:
    two = Place("docker", engines=(EngineAt("left", "x"), EngineAt("right", "y")))
    with pytest.raises(UsageError, match=r"host b: .*'rigth'.*right"):
        dispatch.run([scenario(PINNED)], two, Orders(Screen(), tmp_path))


def test_a_context_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="no context 'nowhere' of Docker"):
        engine.connect(where="nowhere")


def test_an_engine_that_does_not_answer(tmp_path: Path) -> None:
    where = f"unix://{tmp_path}/no.sock"
    with pytest.raises(Unavailable, match=f"no Docker engine answers at {where}"):
        engine.connect(where=where)


@pytest.mark.parametrize(
    "where", ["tcp://h:port", "tcp://h:99999", "tcp://[::1", "tcp://h", "foo://x", "ssh://"]
)
def test_what_is_no_url_of_an_engine(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match=f"no Docker engine can be at {re.escape(where)}") as told:
        engine.connect(where=where)
    assert told.value.hint == engine.URLS
    monkeypatch.setenv("DOCKER_HOST", where)
    assert engine.find() is None


# --- Where hosts go -------------------------------------------------------------------------------


class Client:
    """What an engine says of its swarm, and what is asked of it to remove."""

    base_url = "http://x"

    def __init__(self, node: str = "", manages: bool = False, **states: str) -> None:
        self.done: list[str] = []
        self.networks_there: list[dict[str, Any]] = []
        self.containers_there: list[dict[str, Any]] = []
        self.refusals: list[tuple[int, str]] = []
        self.gone = False
        self._swarm = {
            "LocalNodeState": "active" if node else "inactive",
            "ControlAvailable": manages, "NodeID": node,
        }  # fmt: skip
        self._states = states

    def get_adapter(self, url: str) -> None:
        pass

    def get(self, url: str, timeout: int) -> requests.Response:
        if self.gone:
            raise requests.exceptions.ConnectionError("it is gone")
        found = requests.Response()
        found.status_code = 200
        return found

    def info(self) -> dict[str, Any]:
        if self.gone:
            raise requests.exceptions.ConnectionError("it is gone")
        return {"Swarm": self._swarm}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"ID": name, "Status": {"State": state}} for name, state in self._states.items()]

    def containers(self, **_: Any) -> list[dict[str, Any]]:
        return self.containers_there

    def networks(self, **_: Any) -> list[dict[str, Any]]:
        return self.networks_there

    def volumes(self, **_: Any) -> dict[str, Any]:
        return {"Volumes": None}

    def remove_container(self, container: str, force: bool, v: bool) -> None:
        self.done.append(f"remove {container}")

    def inspect_network(self, network: str) -> dict[str, Any]:
        return {"Containers": {"lb-labctl-r": {"Name": "labctl-r-endpoint"}}}

    def disconnect_container_from_network(
        self, container: str, network: str, force: bool = False
    ) -> None:
        if force:
            self.done.append(f"disconnect {container}")

    def prune_networks(self, filters: dict[str, Any]) -> None:
        self.done.append(f"prune {filters['label']}")

    def attach_socket(self, container: str, _: object) -> MagicMock:
        self.done.append(f"attach {container}")
        return MagicMock()

    def start(self, container: str) -> None:
        self.done.append(f"start {container}")
        self._refuse()

    def remove_network(self, network: str) -> None:
        self.done.append(f"remove {network}")
        self._refuse()
        self.networks_there = []

    def _refuse(self) -> None:
        if self.refusals:
            response = requests.Response()
            response.status_code, said = self.refusals.pop(0)
            raise APIError("refused", response, said)


def node(name: str, client: Client) -> Node:
    return Node(name, cast(APIClient, client), Path(), Future())


def test_hosts_are_spread_in_turn_and_where_they_say() -> None:
    left, right = node("left", Client()), node("right", Client())
    hosts = [HostSpec("a"), HostSpec("b", engine="left"), HostSpec("c"), HostSpec("d")]
    found = assigned(hosts, [left, right])
    assert {host: node.name for host, node in found.items()} == {
        "a": "left", "b": "left", "c": "right", "d": "left"
    }  # fmt: skip
    assert {*assigned([*hosts, HostSpec("e", engine="elsewhere")], [right]).values()} == {right}


def test_the_manager_is_found_among_them() -> None:
    worker, chief = Client("w"), Client("m", manages=True, w="ready", m="ready")
    assert manager([node("left", worker), node("right", chief)]).name == "right"


@pytest.mark.parametrize(
    ("clients", "reason", "hint"),
    [
        ((Client("w"), Client()), "the engine right is in no swarm", "--default-addr-pool 198.19"),
        ((Client("v"), Client("w")), "none of left, right manages their swarm", "--engine"),
        ((Client("m", True, m="ready"), Client("w")), "right is in another swarm", "leave"),
        ((Client("m", True, m="ready", w="down"), Client("w")), "right is down for left", "4789"),
    ],
)
def test_what_joins_them_is_missing(clients: tuple[Client, Client], reason: str, hint: str) -> None:
    nodes = [node(name, client) for name, client in zip(("left", "right"), clients, strict=True)]
    with pytest.raises(Unavailable, match=reason) as caught:
        manager(nodes)
    assert hint in (caught.value.hint or "")


def test_an_engine_that_is_gone_before_there_is_a_network(tmp_path: Path) -> None:
    backend = DockerBackend(BackendOptions("r", "l", tmp_path, "debian:12", print))
    left, right = Client("m", True, m="ready"), Client("w")
    backend._nodes, right.gone = [node("left", left), node("right", right)], True
    with pytest.raises(LabError, match="the engine right does not answer any more"):
        with backend._translated("bring the lab up"):
            backend._create_networks([""])


LATE = "attaching to network failed, make sure your network options are correct"
UNHEARD = "Could not attach to network labctl-r: context deadline exceeded"
GIVEN_UP = "network labctl-r not found"


@pytest.mark.parametrize(
    ("said", "fails"),
    [
        ([LATE, GIVEN_UP], None),  # as Docker goes on from the first try
        ([LATE, GIVEN_UP, GIVEN_UP], None),
        ([UNHEARD], None),
        ([LATE, LATE], "attaching"),
        ([LATE, GIVEN_UP, UNHEARD], "Could not"),
        ([GIVEN_UP], "not found"),
    ],
)
def test_a_swarm_that_is_late_may_attach_a_host_once_more(
    said: list[str], fails: str | None
) -> None:
    client = Client()
    client.refusals = [(404 if text == GIVEN_UP else 500, text) for text in said]
    with pytest.raises(APIError, match=fails) if fails else nullcontext():
        node("right", client).join("c", lambda: None, settle=0)
    assert not client.refusals
    assert client.done == [*["attach c", "start c"] * (len(said) + (fails is None))]


def test_a_swarm_whose_manager_is_gone_attaches_no_host() -> None:
    client = Client()
    client.refusals = [(500, UNHEARD)]
    with pytest.raises(LabError, match="left is gone"):
        node("right", client).join("c", lambda: "left is gone")
    assert client.done == ["attach c", "start c"]


def test_neighbours_are_those_of_other_machines() -> None:
    """By the addresses that no engine knows: the second ones, and those of IPv6."""
    machines = {"a": "one", "b": "two", "c": "one"}
    holders = {name: Holder(name, FakeChannel(print), at) for name, at in machines.items()}
    ends = {
        name: {"IPv4Address": f"198.19.128.{n}/26", "MacAddress": f"02:42:00:00:00:0{n}"}
        for n, name in enumerate(machines, 2)
    }
    hosts = [HostSpec("a"), HostSpec("b", 2), HostSpec("c")]
    network = Network(ipaddress.IPv6Network("fd00::/64"), [], ends)
    found = links(hosts, holders, {"": network})
    assert found["a"].batch.splitlines() == [
        "address add fd00::2/64 dev 02:42:00:00:00:02 nodad",
        "neighbour replace fd00::3 lladdr 02:42:00:00:00:03 dev 02:42:00:00:00:02 nud permanent",
        "neighbour replace 198.19.128.62 lladdr 02:42:00:00:00:03 dev "
        "02:42:00:00:00:02 nud permanent",
        "neighbour replace fd00::ffff:ffff:ffff:fffe lladdr 02:42:00:00:00:03 dev "
        "02:42:00:00:00:02 nud permanent",
        "route replace throw default",
    ]
    assert [line.split()[2] for line in found["b"].batch.splitlines()[3:-1]] == [
        "fd00::2",
        "fd00::4",
    ]
    assert "neighbour" in found["c"].batch and "fd00::2 " not in found["c"].batch
    assert [link.machine for link in found.values()] == ["one", "two", "one"]


# --- What each removes ----------------------------------------------------------------------------


def network(scope: str) -> dict[str, Any]:
    labels = {RUN: "r", LEASE: "l"}
    return {"Id": "net", "Name": "labctl-r", "Labels": labels, "Scope": scope,
            "Created": "2026-01-01T00:00:00+00:00"}  # fmt: skip


def container(name: str, state: str = "exited") -> dict[str, Any]:
    return {
        "Id": name, "Names": [f"/{name}"], "State": state, "Created": 0,
        "Labels": {RUN: "r", LEASE: "l", HOST: name}, "NetworkSettings": {"Networks": {}},
    }  # fmt: skip


def named(left: Client, right: Client) -> dict[str, APIClient]:
    return {"left": cast(APIClient, left), "right": cast(APIClient, right)}


def test_a_network_of_a_swarm_goes_last_and_at_a_manager() -> None:
    worker, chief = Client("w"), Client("m", manages=True)
    chief.networks_there, chief.refusals = [network("swarm")], [(400, ""), (503, "")]
    worker.containers_there, chief.containers_there = [container("a")], [container("b")]
    removed = Removed()
    clear(named(worker, chief), lambda *_: True, removed)
    assert worker.done == ["remove a"]
    assert chief.done == ["remove b", *["remove net"] * 3]  # it was still in use
    assert sorted(removed.lines) == [
        "container a of r", "container b of r", "network labctl-r of r"
    ]  # fmt: skip
    assert removed.failures == []


def test_what_an_engine_keeps_of_a_network_that_its_swarm_has_no_more() -> None:
    """Only this engine has it; or its own end there holds it."""
    chief, group = Client("m", manages=True), Group("r", "l", networks=[network("swarm")])
    chief.networks_there, chief.refusals = group.networks, [(500, "network labctl-r not found")]
    assert group.remove_shared(cast(APIClient, chief), 0) == []
    assert group.forget_shared(cast(APIClient, chief), 0) == ["network labctl-r of r"]
    assert chief.done == ["remove net", "disconnect labctl-r-endpoint", f"prune ['{RUN}=r']"]


def test_an_engine_that_is_gone_stops_no_other() -> None:
    gone, other = Client(), Client()
    gone.gone, other.containers_there = True, [container("b")]
    removed = Removed()
    clear(named(gone, other), lambda *_: True, removed)
    assert other.done == ["remove b"]
    (failure,) = removed.failures
    assert failure.message == "left: the engine does not answer"
    assert failure.hint == "when it is back, `labctl down` removes what it has"


def test_a_run_that_is_held_at_one_engine_is_alive_at_all() -> None:
    one, two = Client(), Client()
    one.containers_there, two.containers_there = [container("a", "running")], [container("b")]
    told = []
    clear(named(one, two),
          lambda run, lease, held: bool(told.append(held)), Removed())  # fmt: skip
    assert told == [True, True] and one.done == two.done == []


# --- Leases ---------------------------------------------------------------------------------------


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return folder()


def lease(*engines: str) -> Lease:
    return Lease("mine", "run", "x", "docker", "now", engines=[*engines])


def test_a_lease_stays_for_the_engines_where_something_is_left(runtime: Path) -> None:
    with lease("tcp://left") as kept:
        assert [*abandoned()] == []
        kept.keep()
    assert [*leases()] == []
    ((path, found),) = abandoned()
    assert (found.engines, path.exists()) == (["tcp://left"], True)


def test_a_lease_that_is_done_goes(runtime: Path) -> None:
    with lease("tcp://left"):
        pass
    assert [*runtime.iterdir()] == []


def test_a_killed_controller_leaves_a_lease_with_its_engines(runtime: Path) -> None:
    with lease("tcp://left") as here:
        text = here._path.read_text()
    for name, content in (("one", text), ("two", text.replace('"tcp://left"', ""))):
        (runtime / f"{name}.json").write_text(content)
    assert [*leases()] == []
    assert [path.name for path, _ in abandoned()] == ["one.json"]
    assert sorted(path.name for path in runtime.iterdir()) == ["one.json"]
