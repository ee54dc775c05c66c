"""In what order the things of a run leave an engine, and what it answers meanwhile."""

from __future__ import annotations

from threading import Lock
from typing import Any

import pytest
import requests
from docker.errors import APIError

from labctl.backends.docker.sweep import HOST, LEASE, PROCESS, RUN, TRACER, Group, insist

NETWORK = {"Id": "net", "Name": "labctl-r", "Labels": {RUN: "r", LEASE: "l"}}


def container(name: str, networks: dict[str, Any], **labels: str) -> dict[str, Any]:
    return {
        "Id": name, "Names": [f"/{name}"], "State": "running",
        "Labels": {RUN: "r", LEASE: "l", **labels}, "NetworkSettings": {"Networks": networks},
    }  # fmt: skip


class Engine:
    """Notes what it is asked for; `refusals`: the statuses with which it answers at first."""

    def __init__(self, refusals: dict[str, list[int]] | None = None) -> None:
        self.done: list[str] = []
        self._refusals = refusals or {}
        self._lock = Lock()

    def _do(self, what: str) -> None:
        with self._lock:
            if left := self._refusals.get(what):
                response = requests.Response()
                response.status_code = left.pop(0)
                raise APIError(what, response)
            self.done.append(what)

    def disconnect_container_from_network(self, container: str, network: str) -> None:
        self._do(f"{container} leaves {network}")

    def stop(self, container: str, timeout: int) -> None:
        self._do(f"stop {container}")

    def remove_container(self, container: str, force: bool, v: bool) -> None:
        self._do(f"remove {container}")

    def remove_network(self, network: str) -> None:
        self._do(f"remove {network}")

    def remove_volume(self, volume: str) -> None:
        self._do(f"remove {volume}")


def remove(engine: Engine) -> list[str]:
    group = Group("r", "l", networks=[NETWORK], volumes=[{"Name": "data"}])
    group.containers = [
        container("host", {"labctl-r": {"NetworkID": "net"}}, **{HOST: "a"}),
        container("process", {}, **{HOST: "a", PROCESS: "p"}),
        container("tracer", {"none": {"NetworkID": "none"}}, **{TRACER: ""}),
    ]
    return group.remove(engine)  # type: ignore[arg-type]


def test_hosts_leave_the_network_before_it_goes_and_a_tracer_may_tidy_up() -> None:
    engine = Engine()
    assert sorted(remove(engine)) == [
        "container host of r", "container process of r", "container tracer of r",
        "network labctl-r of r", "volume data of r",
    ]  # fmt: skip
    assert len(engine.done) == 7
    order = engine.done.index
    assert order("host leaves net") < order("remove host")
    assert order("host leaves net") < order("remove net")
    assert order("stop tracer") < order("remove tracer")


def test_what_is_still_used_goes_later_and_what_is_gone_is_not_told() -> None:
    refusals = {
        "host leaves net": [500], "remove host": [500, 500], "remove net": [403],
        "remove process": [404], "remove tracer": [409], "remove data": [409, 409],
    }  # fmt: skip
    left = ["container host of r", "network labctl-r of r", "volume data of r"]
    assert remove(Engine(refusals)) == left


def test_an_engine_that_will_not_is_an_error() -> None:
    with pytest.raises(APIError):
        remove(Engine({"remove process": [400]}))
    # What is still used is not asked for ever.
    engine = Engine({"remove net": [403] * 100})
    with pytest.raises(APIError):
        insist(lambda: engine.remove_network("net"), gone=(404,), busy=(403,), patience=0.1)
    assert engine.done == []
