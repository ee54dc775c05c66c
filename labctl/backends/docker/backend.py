"""The backend for containers: any Docker engine, through its API and nothing else.

    network (internal bridge, one for each run)
      |-- holder, one for each host: agent.py; owns the network namespace; NET_ADMIN and NET_RAW
      |     `-- process, any number: peer.py, also in any image, joined to the holder's namespace
      `-- holder ...
    tracer: tracer.py; no network; SYS_ADMIN, only for tracefs

A container that owns its namespace loses it on restart, and every TIME_WAIT with it; hence holders.
A process needs no capability and has none. Somebody else's image is lent a Python for peer.py.
Everything has labels from its creation on, so `sweep` finds whatever a killed controller leaves;
and the lab's own programs end with the stream to their controller.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from labctl.backends import (
    BackendOptions,
    Channel,
    HostLink,
    HostSpec,
    ProcessSpec,
    Progress,
    protocol,
)
from labctl.backends.capabilities import REAL_TIME, Lack
from labctl.backends.docker import configs, engine, images
from labctl.backends.docker.addresses import gateways, joined, links
from labctl.backends.docker.attach import (
    AttachChannel,
    attach,
    run_attached,
)
from labctl.backends.docker.compose import Made
from labctl.backends.docker.engine import Tolerated, translated
from labctl.backends.docker.project import Project, absent
from labctl.backends.docker.sweep import (
    END_DEADLINE,
    HOST,
    LEASE,
    PROCESS,
    RUN,
    TRACER,
    WORKERS,
    groups,
    insist,
    paused,
)
from labctl.backends.sysctls import refusal
from labctl.ground.errors import LabError
from labctl.ground.limits import limit_of

if TYPE_CHECKING:
    from docker.api.client import APIClient


ENGINE_IPV6 = "1.42"
"""The API from which on the engine does IPv6. Older engines (20.10) start a copy of themselves for
each IPv6 setting of a container, 0.3 s a lab, and filter none of it: there the agents do it."""


class DockerBackend:
    """See `Backend`."""

    name = "docker"

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._log = options.folder / "docker.log"
        self._client: APIClient | None = None
        self._version: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(WORKERS, "docker")
        self._containers: dict[str, list[str]] = {}  # of each process, the latest start last
        self._configs: dict[str, dict[str, Any]] = {}
        self._holders: dict[str, AttachChannel] = {}
        self._tracer: Future[AttachChannel] | None = None
        self._processes: dict[str, AttachChannel] = {}
        self._spawned: list[AttachChannel] = []
        self._prepared: dict[str, Future[AttachChannel]] = {}
        self._project: Project | None = None

    @classmethod
    def answers(cls) -> bool:
        """Whether an engine answers, within a moment. Never raises."""
        return engine.answers()

    @classmethod
    def describe_engine(cls) -> str | None:
        """The engine in a few words, or None if none answers."""
        try:
            with closing(engine.connect(engine.PING_DEADLINE)) as client:
                version = client.version()
        except LabError:
            return None
        return f"{product(version)}, API {version['ApiVersion']}, {version['Arch']}"

    @classmethod
    def share(cls) -> None:
        """See `Backend`. Does nothing: a client of the engine can't be shared."""

    def environment(self) -> dict[str, str | None]:
        return {
            "kernel": self._version.get("KernelVersion"),
            "os": self._options.os,
            "engine": product(self._version) if self._version else None,
        }

    def lacks(self) -> Mapping[str, Lack]:
        lack = absent()
        return {"virtual_time": REAL_TIME, **({"compose": lack} if lack else {})}

    def up(
        self, hosts: Sequence[HostSpec], processes: Sequence[ProcessSpec]
    ) -> dict[str, HostLink]:
        client = self._client = engine.connect()
        submit = self._pool.submit
        version = submit(client.version)
        built = images.ensure(client, self._options.os, self._options.progress)
        project = self._project = Project.read(processes)
        if project:
            project.provide(client, self._options.progress)
        commands = {
            image: images.obtain(client, image, self._options.progress)
            for image in sorted({process.image for process in processes if process.image})
        }
        with translated("bring the lab up"):
            self._tracer = submit(self._start_tracer, client, built)
            # In the pool too, as `down` waits for it: an engine goes on with interrupted requests.
            networks = submit(self._create_networks, client).result()
            self._version = version.result()
            podman = product(self._version).startswith("Podman")
            # Podman starts a network's resolver with its first container, and fails with two.
            turns = Lock() if podman else nullcontext()
            lending = {p.host for p in processes if p.image or p.service}
            holders = _results(
                {
                    host.name: submit(
                        self._create_holder,
                        client,
                        host.name,
                        configs.holder(host, built, podman)
                        | (configs.LENDS if host.name in lending else {}),
                        networks,
                    )
                    for host in hosts
                }
            )
            started = {
                name: submit(self._start_holder, client, name, container, turns)
                for name, container in holders.items()
            }
            ours = [process for process in processes if not process.service]
            self._configs = {
                p.name: configs.program(p, built, holders[p.host], commands) for p in ours
            }
            created = {p.name: submit(self._create_process, client, p) for p in ours}
            if project:
                made = Made(holders, {k: self._name(k) for k in networks}, self._labels())
                services = submit(project.create, client, self._name(), made).result()
                self._containers = {name: [container] for name, container in services.items()}
            self._containers |= {name: [made] for name, made in _results(created).items()}
            _results(started)
            inspected = [client.inspect_network(made) for made in networks.values()]
            found = [network["Containers"] for network in inspected]
        for name, container in holders.items():
            if not any(container in endpoints for endpoints in found):
                raise self._ended(name)
        if project:
            return joined(hosts, holders, self._holders, found, project.hosts)
        shut = gateways(inspected[0])
        return links(hosts, holders, self._holders, found[0], self._prefix(), shut)

    def prepare(self, process: ProcessSpec) -> None:
        """Starts the container, where our own program waits until `spawn`. A service does not
        wait: Compose asks for its health."""
        if process.service:
            return
        self._prepared[process.name] = self._pool.submit(self._start, process)

    def trace(self) -> dict[str, Channel | Lack]:
        return {"": self._trace_there()}

    def _trace_there(self) -> Channel | Lack:
        assert self._tracer
        try:
            with translated("start a container that may trace"):
                return self._tracer.result()
        except LabError as exc:
            return Lack(str(exc), "run it on an engine that allows CAP_SYS_ADMIN")

    def spawn(self, process: ProcessSpec) -> Channel:
        with translated(f"start {process.name}"):
            prepared = self._prepared.pop(process.name, None)
            channel = prepared.result() if prepared else self._start(process)
            if not process.service:
                channel.send(protocol.Begin().as_json())
        self._processes[process.name] = channel
        self._spawned.append(channel)
        return channel

    def begin(self) -> None:
        if self._project:
            self._project.start()

    def _start(self, process: ProcessSpec) -> AttachChannel:
        client, containers = self._find(process)
        if before := self._processes.get(process.name):
            if before.ended:
                # Until it has seen the end, an engine takes no notice of a start.
                client.wait(containers[-1], END_DEADLINE, "not-running")
            elif process.service:
                raise LabError(
                    f"what {process.name} left still runs, and Compose has one container for it",
                    "restart ends that first",
                )
            else:  # what it has left lives on in its container
                containers.append(self._create_process(client, process, len(containers) + 1))
        container = containers[-1]
        if process.service and not before:  # Compose starts it
            return AttachChannel(attach(client, container), self._log)
        return self._run(client, container)

    def _run(self, client: APIClient, container: str) -> AttachChannel:
        """Starts a container, and returns the channel to it."""
        channel = AttachChannel(attach(client, container), self._log)
        try:
            client.start(container)
        except BaseException:
            channel.close()
            raise
        return channel

    def kill(self, process: ProcessSpec) -> None:
        client, containers = self._begun(process)
        with translated(f"kill {process.name}"):
            for container in containers:
                with Tolerated(409):
                    client.kill(container)
            for container in containers:
                client.wait(container, END_DEADLINE, "not-running")

    def signal(self, process: ProcessSpec, name: str) -> None:
        if channel := self._processes.get(process.name):
            channel.send(protocol.Signal(name).as_json())

    def freeze(self, process: ProcessSpec, frozen: bool) -> None:
        client, containers = self._begun(process)
        with translated(f"{'pause' if frozen else 'resume'} {process.name}"):
            for container in containers:
                state = client.inspect_container(container)["State"]
                if frozen and state["Running"] and not state["Paused"]:
                    # 500: it could not freeze all at once ("unable to freeze"); 409: it has ended.
                    insist(partial(client.pause, container), gone=(404, 409), busy=(500,))
                elif not frozen and state["Paused"]:
                    client.unpause(container)

    def sysctl(self, key: str, value: str, readable: bool) -> None:
        raise refusal(key, str(self._version.get("KernelVersion")), True, readable)

    def stopped(self) -> str | None:
        return paused(self._client, self._options.run) if self._client else None

    def down(self) -> None:
        self._pool.shutdown(cancel_futures=True)  # or things made later would be missed below
        if self._client is None:
            return
        if self._tracer and not _failed(self._tracer):
            self._tracer.result().close()
        waiting = [p.result() for p in self._prepared.values() if not _failed(p)]
        channels = [*self._holders.values(), *self._spawned, *waiting]
        try:
            self._remove(self._client)
        except LabError as exc:
            if not limit_of(exc):
                raise
            while channels:  # which frees descriptors for the rest
                channels.pop().close()
            self._client.close()
            self._remove(self._client, 1)
        finally:  # their programs end with them, even if the engine removes nothing
            for channel in channels:
                channel.close()
            self._client.close()
        self._client = None

    def _remove(self, client: APIClient, at_once: int = WORKERS) -> None:
        with translated("remove the lab"):
            for group in groups(client, f"{RUN}={self._options.run}"):
                group.remove(client, at_once)

    def _find(self, process: ProcessSpec) -> tuple[APIClient, list[str]]:
        if self._client is None:
            raise LabError("the lab is down")
        return self._client, self._containers[process.name]

    def _begun(self, process: ProcessSpec) -> tuple[APIClient, list[str]]:
        """The same without a container that is only prepared."""
        client, containers = self._find(process)
        return client, containers[:-1] if process.name in self._prepared else containers

    def _ended(self, host: str) -> LabError:
        for _ in self._holders[host]:
            pass  # It has ended; its output goes to the log.
        said = self._log.read_text(errors="replace").strip() if self._log.exists() else ""
        reason = said.splitlines()[-1] if said else "no reason given"
        return LabError(f"host {host} ended as soon as it was up: {reason}")

    def _name(self, *parts: str) -> str:
        return "-".join(["labctl", re.sub(r"[^\w.-]+", "-", self._options.run), *parts])

    def _labels(self) -> dict[str, str]:
        return {RUN: self._options.run, LEASE: self._options.lease}

    def _prefix(self) -> ipaddress.IPv6Network:
        unique = hashlib.sha256(self._options.run.encode()).digest()[:5]  # RFC 4193, section 3.2
        return ipaddress.IPv6Network((b"\xfd" + unique + bytes(10), 64))

    def _create_networks(self, client: APIClient) -> dict[str, str]:
        """The ids of the networks: of the lab's own, or of its project's by their names there."""
        if not self._project:
            return {"": self._create_network(client)}
        return {
            key: self._project.create_network(client, self._name(key), key, self._labels())
            for key in self._project.plan.networks()
        }

    def _create_network(self, client: APIClient) -> str:
        from docker.types import IPAMConfig, IPAMPool
        from docker.utils import version_gte

        ipv6 = version_gte(client.api_version, ENGINE_IPV6)
        pools = [IPAMPool(str(self._prefix()))] if ipv6 else []  # IPv4: the engine's choice
        made = client.create_network(
            self._name(),
            driver="bridge",
            internal=True,
            enable_ipv6=ipv6,
            ipam=IPAMConfig(pool_configs=pools),
            labels=self._labels(),
        )
        return str(made["Id"])

    def _create_holder(
        self, client: APIClient, host: str, config: dict[str, Any], networks: Mapping[str, str]
    ) -> str:
        joins = self._project.joins(host, config) if self._project else {"": {}}
        (first, how), *more = joins.items()
        config["HostConfig"]["NetworkMode"] = networks[first]
        if how:
            endpoint = client.create_endpoint_config(**how)
            config["NetworkingConfig"] = {"EndpointsConfig": {networks[first]: endpoint}}
        container = self._create(client, config, host)
        for key, how in more:
            client.connect_container_to_network(container, networks[key], **how)
        return container

    def _create_process(self, client: APIClient, process: ProcessSpec, number: int = 1) -> str:
        """One of a process's containers, from 1 on."""
        config = self._configs[process.name]
        return self._create(client, config, process.host, process.name, number)

    def _create(
        self,
        client: APIClient,
        config: Mapping[str, Any],
        host: str,
        process: str = "",
        number: int = 1,
    ) -> str:
        labels = {**self._labels(), HOST: host, **({PROCESS: process} if process else {})}
        again = [f"_{number}"] if number > 1 else []
        name = self._name(*again, f"{host}.{process}" if process else host)
        made = client.create_container_from_config(  # type: ignore[no-untyped-call]
            {**config, "Labels": labels}, name
        )
        return str(made["Id"])

    def _start_tracer(self, client: APIClient, built: images.Images) -> AttachChannel:
        config = configs.tracer(self._options.run, built)
        made = client.create_container_from_config(  # type: ignore[no-untyped-call]
            {**config, "Labels": {**self._labels(), TRACER: ""}}, self._name("_tracer")
        )
        return self._run(client, made["Id"])

    def _start_holder(
        self, client: APIClient, name: str, container: str, turn: AbstractContextManager[object]
    ) -> None:
        self._holders[name] = AttachChannel(attach(client, container), self._log)
        with turn:
            client.start(container)


def build_images(os: str, progress: Progress) -> list[str]:
    """Builds the images of an operating system unless they exist; returns their tags.

    Raises Unavailable and LabError."""
    with closing(engine.connect()) as client:
        built = images.ensure(client, os, progress)
    return [built.host, built.peer]


def interactive(container: str, command: Sequence[str]) -> int:
    """Runs a command in a container on this terminal, or on this program's standard streams;
    returns its exit status. Raises Unavailable and LabError."""
    with translated("run a command"), closing(engine.connect()) as client:
        return run_attached(client, container, command)


def product(version: Mapping[str, Any]) -> str:
    """The engine's name and version."""
    names = [part["Name"] for part in version.get("Components") or () if "Engine" in part["Name"]]
    name = "Docker" if names in ([], ["Engine"]) else names[0].removesuffix(" Engine")
    return f"{name} {version['Version']}"


def _failed(job: Future[Any]) -> bool:
    return job.cancelled() or job.exception() is not None


def _results(jobs: Mapping[str, Future[Any]]) -> dict[str, Any]:
    return {name: job.result() for name, job in jobs.items()}
