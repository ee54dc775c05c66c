"""The engines of a lab: what it has at each, where its hosts go, and the swarm that joins them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.backends import BackendOptions, EngineAt, HostSpec, ProcessSpec
from labctl.backends.docker import engine, images
from labctl.backends.docker.attach import AttachChannel, attach
from labctl.backends.docker.engine import ATTACHING, PORTS, Lost
from labctl.backends.docker.sweep import insist
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, Unavailable

if TYPE_CHECKING:
    from docker.api.client import APIClient

POOL = "--default-addr-pool 198.19.128.0/17 --default-addr-pool-mask-length 26"
"""Without it a swarm takes its networks from 10.0.0.0/8, which others use."""
MAKE_ONE = f"docker swarm init --advertise-addr ADDRESS {POOL}; docker swarm join on the others"

SETTLE = 3.0
"""Seconds in which a swarm ends what it began too late. Sooner, that breaks a second try."""


@dataclass(eq=False)
class Node:
    """One engine: a client of it, its images, and the tracer there; and whether a connection to it
    has failed, which ends the lab."""

    name: str
    client: APIClient
    log: Path
    version: Future[dict[str, Any]]
    built: images.Images = field(init=False)
    commands: dict[str, images.Command] = field(default_factory=dict)
    tracer: Future[AttachChannel] | None = None
    lost: bool = False

    @classmethod
    def open(cls, at: EngineAt, options: BackendOptions, pool: Executor) -> Node:
        """Raises Unavailable."""
        client = engine.connect(where=at.where)
        log = options.folder / "docker.log"
        return cls(at.name, client, log, pool.submit(client.version))

    def provide(
        self, processes: Sequence[ProcessSpec], options: BackendOptions, lost: Lost
    ) -> None:
        """Has all images that these processes need. Raises LabError."""
        self.built = images.ensure(self.client, options.os, options.progress, lost)
        for image in sorted({process.image for process in processes if process.image}):
            self.commands[image] = images.obtain(self.client, image, options.progress)

    @property
    def product(self) -> str:
        """Its name and version."""
        return product(self.version.result())

    @property
    def podman(self) -> bool:
        """Whether it is Podman's."""
        return self.product.startswith("Podman")

    def __str__(self) -> str:
        return f"the engine {self.name}".rstrip()

    def create(self, config: Mapping[str, Any], labels: Mapping[str, str], name: str) -> str:
        """Makes a container; returns its id."""
        made = self.client.create_container_from_config(  # type: ignore[no-untyped-call]
            {**config, "Labels": labels}, name
        )
        return str(made["Id"])

    def attach(self, container: str) -> AttachChannel:
        """The channel to a container."""
        return AttachChannel(attach(self.client, container), self.log, self.lose)

    def lose(self) -> None:
        """A connection to it has failed."""
        self.lost = True

    def run(self, container: str) -> AttachChannel:
        """Starts a container, and returns the channel to it."""
        channel = self.attach(container)
        try:
            self.client.start(container)
        except BaseException:
            channel.close()
            raise
        return channel

    def join(self, container: str, lost: Lost, settle: float = SETTLE) -> AttachChannel:
        """The same for one that joins a network. A busy swarm may not attach it within Docker's own
        20 s; it has these once more, `settle` seconds later, unless an engine is `lost`. Raises
        LabError that says so."""
        from docker.errors import APIError

        try:
            return self.run(container)
        except APIError as exc:
            if ATTACHING not in str(exc.explanation):
                raise
            if why := lost():
                raise LabError(why) from exc
        time.sleep(settle)
        again: list[AttachChannel] = []
        # 404, "network not found", until Docker has given up what it began at first.
        insist(lambda: again.append(self.run(container)), gone=(), busy=(404,))
        return again[0]


def assigned(hosts: Sequence[HostSpec], nodes: Sequence[Node]) -> dict[str, Node]:
    """The engine of each host: the one that it names, or the next in turn. With one engine all are
    there."""
    if len(nodes) == 1:
        return dict.fromkeys((host.name for host in hosts), nodes[0])
    named, turns = {node.name: node for node in nodes}, itertools.cycle(nodes)
    return {host.name: named[host.engine] if host.engine else next(turns) for host in hosts}


def manager(nodes: Sequence[Node]) -> Node:
    """One that manages the swarm of all of them. Raises Unavailable if there is no such swarm."""
    swarms = {node: node.client.info()["Swarm"] for node in nodes}
    for node, swarm in swarms.items():
        if swarm["LocalNodeState"] != "active":
            why = f"the engine {node.name} is in no swarm, and several engines need one"
            raise Unavailable(why, MAKE_ONE)
    found = next((node for node, swarm in swarms.items() if swarm["ControlAvailable"]), None)
    if found is None:
        names = ", ".join(node.name for node in nodes)
        raise Unavailable(f"none of {names} manages their swarm", "name a manager, too: --engine")
    states = {each["ID"]: each["Status"]["State"] for each in found.client.nodes()}
    for node, swarm in swarms.items():
        state = states.get(swarm["NodeID"])
        if state is None:
            why = f"the engine {node.name} is in another swarm than {found.name}"
            raise Unavailable(why, f"there: docker swarm leave, and join that of {found.name}")
        if state != "ready":
            why = f"the engine {node.name} is {state} for {found.name}, which manages the swarm"
            raise Unavailable(why, f"between them, open {PORTS}")
    return found


def product(version: Mapping[str, Any]) -> str:
    """The engine's name and version."""
    names = [part["Name"] for part in version.get("Components") or () if "Engine" in part["Name"]]
    name = "Docker" if names in ([], ["Engine"]) else names[0].removesuffix(" Engine")
    return f"{name} {version['Version']}"
