"""What becomes of a Compose project in a lab, from what `compose config` prints of it."""

from __future__ import annotations

from typing import Any

import pytest

from labctl.backends import HostSpec, ProcessSpec, Service
from labctl.backends.docker.compose import Made, Plan
from labctl.backends.docker.images import LENT_PEER, Command
from labctl.backends.docker.sweep import HOST, LEASE, PROCESS, RUN
from labctl.ground.errors import LabError

PROJECT: dict[str, Any] = {
    "name": "shop",
    "services": {
        "web": {
            "image": "nginx",
            "container_name": "webby",
            "command": ["serve", "$$HOME"],
            "entrypoint": None,
            "networks": {"front": {"aliases": ["www"], "ipv4_address": "10.9.0.7"}},
            "ports": [{"target": 80, "published": "8080"}],
            "links": ["api:backend"],
            "depends_on": {"api": {"condition": "service_healthy"}},
            "environment": {"PRICE": "$$5"},
            "env_file": ["web.env"],
            "restart": "always",
            "tty": True,
        },
        "api": {
            "image": "shop-api",
            "build": {"context": "/shop"},
            "command": None,
            "entrypoint": None,
            "networks": {"front": None, "back": None},
            "hostname": "api.shop",
            "dns": "1.1.1.1",
            "extra_hosts": ["a=10.0.0.1", "b:10.0.0.2"],
            "sysctls": {"net.ipv4.tcp_fin_timeout": "5", "kernel.shmmax": "1"},
            "healthcheck": {"test": ["CMD", "true"]},
            "user": "nobody",
            "volumes": [{"type": "volume", "source": "data", "target": "/data"}],
            "labels": {"mine": "1"},
        },
        "cache": {
            "image": "redis",
            "container_name": "cachy",
            "ports": ["6379:6379"],
            "networks": {"back": {"aliases": ["c"]}},
        },
        "beside": {"image": "side", "network_mode": "service:api"},
    },
    "networks": {
        "front": {
            "name": "shop_front",
            "driver_opts": {"com.docker.network.bridge.name": "br0", "mtu": 1400},
            "ipam": {"config": [{"subnet": "10.9.0.0/24"}]},
        },
        "back": {
            "name": "theirs",
            "external": True,
            "ipam": {"config": [{"subnet": "10.8.0.0/24"}]},
        },
        "unused": {"name": "shop_unused"},
    },
    "volumes": {"data": {"name": "shop_data"}, "old": {"name": "old", "external": True}},
}
MADE = Made(
    holders={"web": "h1", "server": "h2"},
    networks={"front": "lab-front", "back": "lab-back"},
    labels={RUN: "run", LEASE: "m:/a$b"},
)
COMMANDS = {
    "web": Command(("/start", "$x"), ("own",)),
    "api": Command(("/start",), ("a b", "$y")),
}


def plan(**changes: Any) -> Plan:
    """Of the project with other things said of its service api."""
    held = {
        "web": ProcessSpec("web", "web", watch="io", service=Service("c", "web")),
        "api": ProcessSpec("server", "server", service=Service("c", "api")),
    }
    services = {**PROJECT["services"], "api": {**PROJECT["services"]["api"], **changes}}
    return Plan.of({**PROJECT, "services": services}, held)


def transformed(service: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = plan(**changes).transformed(MADE, COMMANDS)["services"][service]
    return found


def test_a_held_service_joins_its_holder() -> None:
    web = transformed("web")
    assert web == {
        "image": "nginx",
        "network_mode": "container:h1",
        "volumes_from": ["container:h1:ro"],
        "entrypoint": list(LENT_PEER),
        "command": ["--tether", "run", "--watch=io", "--", "/start", "$$x", "serve", "$$HOME"],
        "depends_on": {"api": {"condition": "service_healthy"}},
        "environment": {"PRICE": "$$5"},
        "sysctls": {},
        "labels": {
            RUN: "run",
            LEASE: "m:/a$$b",
            HOST: "web",
            PROCESS: "web",
        },
        "stdin_open": True,
        "init": False,
        "restart": "no",
        "logging": {"driver": "none"},
    }


def test_what_is_no_matter_of_a_network_stays() -> None:
    api = transformed("api")
    kept = ("healthcheck", "user", "volumes")
    assert {key: api[key] for key in kept} == {key: PROJECT["services"]["api"][key] for key in kept}
    assert api["sysctls"] == {"kernel.shmmax": "1"}
    assert api["labels"]["mine"] == "1"
    assert not {"build", "hostname", "dns", "extra_hosts", "networks"} & api.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["/start", "a b", "$$y"]),
        ({"command": ["x", "$$z"]}, ["/start", "x", "$$z"]),
        ({"command": "x 'y z'"}, ["/start", "x", "y z"]),
        ({"entrypoint": ["e"]}, ["e"]),
        ({"entrypoint": "e f", "command": ["x"]}, ["e", "f", "x"]),
        ({"entrypoint": [], "command": ["x"]}, ["x"]),
    ],
)
def test_what_a_service_runs(changes: dict[str, Any], words: list[str]) -> None:
    assert transformed("api", **changes)["command"] == ["--tether", "run", "--", *words]


@pytest.mark.parametrize(
    ("changes", "image", "words"),
    [
        ({}, "", []),
        ({"stop_signal": "SIGUSR1"}, "SIGQUIT", ["--stop=USR1"]),
        ({"stop_signal": 3, "stop_grace_period": "1m30.5s"}, "", ["--stop=QUIT", "--grace=90.5"]),
        ({"stop_grace_period": "0s"}, "SIGTERM", ["--grace=0"]),
        ({}, "SIGWINCH", ["--stop=WINCH"]),
    ],
)
def test_how_a_service_is_stopped(changes: dict[str, Any], image: str, words: list[str]) -> None:
    commands = {**COMMANDS, "api": Command(("/start",), (), image)}
    found = plan(**changes).transformed(MADE, commands)["services"]["api"]
    assert found["command"] == ["--tether", "run", *words, "--", "/start"]
    assert "stop_signal" not in found


def test_a_stop_signal_that_is_none() -> None:
    with pytest.raises(LabError, match="api: 'SIGNOTHING' is no signal"):
        transformed("api", stop_signal="SIGNOTHING")


def test_only_steps_start_a_service_again() -> None:
    """Compose 2 would heed both of these."""
    again = {"restart_policy": {"condition": "any"}, "resources": {"limits": {"cpus": "1"}}}
    api = transformed("api", restart="always", deploy=again)
    assert (api["restart"], api["deploy"]) == ("no", {"resources": again["resources"]})
    assert "deploy" not in transformed("api", deploy={"restart_policy": {"condition": "any"}})


def test_the_rest_is_left_as_it_is_but_for_what_is_the_users_alone() -> None:
    assert transformed("cache") == {
        "image": "redis",
        "networks": {"back": {"aliases": ["c", "cache", "cachy"]}},
        "labels": {RUN: "run", LEASE: "m:/a$$b", PROCESS: "cache"},
    }
    assert transformed("beside")["network_mode"] == "container:h2"


def test_networks_and_volumes_are_the_labs_own() -> None:
    found = plan()
    document = found.transformed(MADE, COMMANDS)
    assert document["networks"] == {
        "front": {"external": True, "name": "lab-front"},
        "back": {"external": True, "name": "lab-back"},
    }
    labels = {RUN: "run", LEASE: "m:/a$$b"}
    assert document["volumes"] == {"data": {"labels": labels}, "old": {"labels": labels}}
    assert "name" not in document
    assert found.networks() == {
        "front": {
            "internal": False,
            "options": {"mtu": "1400"},
            "pools": [{"subnet": "10.9.0.0/24"}],  # web has an address in it
        },
        "back": {"internal": False, "options": {}, "pools": []},
    }
    assert found.said == (
        "no hosts, and not watched: cache, beside; new and empty here: network back, volume old"
    )


def test_hosts_join_networks() -> None:
    found = plan()
    assert found.joins(HostSpec("web")) == {
        "front": {"aliases": ["www", "web", "webby"], "ipv4_address": "10.9.0.7"}
    }
    names = {"aliases": ["api", "backend", "server"]}
    assert found.joins(HostSpec("server")) == {"front": names, "back": names}
    client = {"aliases": ["client"]}
    assert found.joins(HostSpec("client")) == {"front": client, "back": client}


def test_without_networks_there_is_the_default_one() -> None:
    found = plan(networks=None)
    assert [*found.joins(HostSpec("server"))] == ["default"]
    assert found.networks()["default"] == {"internal": False, "options": {}, "pools": []}


def test_what_a_holder_has_of_its_service() -> None:
    assert plan().holder("api") == (
        {"Hostname": "api.shop"},
        {
            "Dns": ["1.1.1.1"],
            "DnsSearch": [],
            "DnsOptions": [],
            "ExtraHosts": ["a:10.0.0.1", "b:10.0.0.2"],
            "Sysctls": {"net.ipv4.tcp_fin_timeout": "5"},
        },
    )
    listed = plan(sysctls=["net.core.somaxconn=1"], extra_hosts={"a": "10.0.0.1"}).holder("api")[1]
    assert listed["Sysctls"] == {"net.core.somaxconn": "1"}
    assert listed["ExtraHosts"] == ["a:10.0.0.1"]


def test_what_can_not_be_held() -> None:
    with pytest.raises(LabError, match="api can't be a host: its network is 'none'"):
        plan(network_mode="none")
    with pytest.raises(LabError, match="api can't be a host: it is 2 containers"):
        plan(deploy={"replicas": 2})
    with pytest.raises(LabError, match="no service 'x' now; it has: api, beside, cache, web"):
        Plan.of(PROJECT, {"x": ProcessSpec("x", "x")})
