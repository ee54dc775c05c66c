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
    EngineAt,
    HostLink,
    HostSpec,
    ProcessSpec,
    Progress,
    protocol,
)
from labctl.backends.capabilities import REAL_TIME, Lack
from labctl.backends.docker import configs, engine, images
from labctl.backends.docker.addresses import Holder, Network, gateways, joined, links
from labctl.backends.docker.attach import AttachChannel, run_attached
from labctl.backends.docker.compose import Made
from labctl.backends.docker.engine import Tolerated, translated
from labctl.backends.docker.nodes import Node, assigned, manager, product
from labctl.backends.docker.project import Project, absent
from labctl.backends.docker.sweep import (
    END_DEADLINE,
    HOST,
    LEASE,
    PROCESS,
    RUN,
    TRACER,
    WHEN_BACK,
    WORKERS,
    Removed,
    clear,
    insist,
    paused,
)
from labctl.backends.networks import Networks
from labctl.backends.sysctls import refusal
from labctl.ground.errors import LabError, UsageError
from labctl.ground.limits import limit_of

if TYPE_CHECKING:
    from docker.api.client import APIClient


ENGINE_IPV6 = "1.42"
"""The API from which on the engine does IPv6. Older engines (20.10) start a copy of themselves for
each IPv6 setting of a container, 0.3 s a lab, and filter none of it: there the agents do it."""


ROUTED = {"com.docker.network.bridge.enable_ip_masquerade": "false"}
"""Options of a bridge whose engine leaves foreign addresses as they are."""


class DockerBackend:
    """See `Backend`."""

    name = "docker"

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._nodes: list[Node] = []
        self._is_down = False
        self._at: dict[str, Node] = {}  # by host
        self._pool = ThreadPoolExecutor(WORKERS, "docker")
        self._containers: dict[str, list[str]] = {}  # of each process, the latest start last
        self._configs: dict[str, dict[str, Any]] = {}
        self._holders: dict[str, AttachChannel] = {}
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
        nodes = [node for node in self._nodes if _known(node.version)]
        kernels = dict.fromkeys(str(node.version.result().get("KernelVersion")) for node in nodes)
        engines = (f"{n.product} ({n.name})" if n.name else n.product for n in nodes)
        return {
            "kernel": ", ".join(kernels) or None,
            "os": self._options.os,
            "engine": ", ".join(engines) or None,
        }

    def lacks(self) -> Mapping[str, Lack]:
        lack = absent()
        return {"virtual_time": REAL_TIME, **({"compose": lack} if lack else {})}

    def up(
        self, hosts: Sequence[HostSpec], processes: Sequence[ProcessSpec]
    ) -> dict[str, HostLink]:
        submit, options = self._pool.submit, self._options
        for at in options.engines or [EngineAt()]:
            self._nodes.append(Node.open(at, options, self._pool))
        project = self._project = Project.read(processes)
        if project and options.engines:
            raise UsageError("a Compose project runs on the usual engine", "leave --engine out")
        self._at = assigned(hosts, self._nodes)
        used = list(dict.fromkeys(self._at.values())) or self._nodes
        for node in used:
            node.provide([p for p in processes if self._at[p.host] is node], options, self._silent)
        if project:
            project.provide(used[0].client, options.progress)
        with self._translated("bring the lab up"):
            for node in used:
                node.tracer = submit(self._start_tracer, node)
            # In the pool too, as `down` waits for it: an engine goes on with interrupted requests.
            networks = submit(self._create_networks, [*Networks(hosts).members] or [""]).result()
            # Podman starts a network's resolver with its first container, and fails with two.
            turns = Lock() if used[0].podman else nullcontext()
            lending = {p.host for p in processes if p.image or p.service}
            holders = _results(
                {
                    host.name: submit(self._create_holder, host, host.name in lending, networks)
                    for host in hosts
                }
            )
            started = {
                name: submit(self._start_holder, name, container, turns)
                for name, container in holders.items()
            }
            ours = [process for process in processes if not process.service]
            self._configs = {
                p.name: configs.program(
                    p, self._at[p.host].built, holders[p.host], self._at[p.host].commands
                )
                for p in ours
            }
            created = {p.name: submit(self._create_process, p) for p in ours}
            if project:
                made = Made(holders, {k: self._name(k) for k in networks}, self._labels())
                client = used[0].client
                services = submit(project.create, client, self._name(), made).result()
                self._containers = {name: [container] for name, container in services.items()}
            self._containers |= {name: [made] for name, made in _results(created).items()}
            _results(started)
            told = [_told(used, made) for made in networks.values()]
        found = [_endpoints(each) for each in told]
        for name, container in holders.items():
            if not any(container in endpoints for endpoints in found):
                raise self._ended(name)
        if project:
            return joined(hosts, holders, self._holders, found, project.hosts)
        up = {
            name: Holder(container, self._holders[name], self._at[name].name)
            for name, container in holders.items()
        }
        spaces = {
            name: Network(self._prefix(name), gateways(each[0]), ends)
            for name, each, ends in zip(networks, told, found, strict=True)
        }
        return links(hosts, up, spaces)

    def prepare(self, process: ProcessSpec) -> None:
        """Starts the container, where our own program waits until `spawn`. A service does not
        wait: Compose asks for its health."""
        if process.service:
            return
        self._prepared[process.name] = self._pool.submit(self._start, process)

    def trace(self) -> dict[str, Channel | Lack]:
        return {node.name: _traced(node) for node in dict.fromkeys(self._at.values())}

    def spawn(self, process: ProcessSpec) -> Channel:
        with self._translated(f"start {process.name}"):
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
        node, containers = self._find(process)
        if before := self._processes.get(process.name):
            if before.ended:
                # Until it has seen the end, an engine takes no notice of a start.
                node.client.wait(containers[-1], END_DEADLINE, "not-running")
            elif process.service:
                raise LabError(
                    f"what {process.name} left still runs, and Compose has one container for it",
                    "restart ends that first",
                )
            else:  # what it has left lives on in its container
                containers.append(self._create_process(process, len(containers) + 1))
        container = containers[-1]
        if process.service and not before:  # Compose starts it
            return node.attach(container)
        return node.run(container)

    def kill(self, process: ProcessSpec) -> None:
        client, containers = self._begun(process)
        with self._translated(f"kill {process.name}"):
            for container in containers:
                with Tolerated(409):
                    client.kill(container)
            for container in containers:
                client.wait(container, END_DEADLINE, "not-running")

    def signal(self, process: ProcessSpec, name: str) -> None:
        if channel := self._processes.get(process.name):
            channel.send(protocol.Signal(name).as_json())

    def freeze(self, process: ProcessSpec, frozen: bool) -> bool:
        client, containers = self._begun(process)

        def resume(container: str) -> None:
            if client.inspect_container(container)["State"]["Paused"]:
                client.unpause(container)

        with self._translated(f"{'pause' if frozen else 'resume'} {process.name}"):
            for container in containers:
                state = client.inspect_container(container)["State"]
                if frozen and state["Running"] and not state["Paused"]:
                    # 500: it could not freeze all at once ("unable to freeze"); 409: it has ended.
                    insist(partial(client.pause, container), gone=(404, 409), busy=(500,))
                elif not frozen:
                    # 500: a busy engine heard late that it was paused ("cannot resume a running
                    # process"), and will hear that it was resumed.
                    insist(partial(resume, container), gone=(404,), busy=(500,))
        return False

    def sysctl(self, key: str, value: str, readable: bool) -> None:
        raise refusal(key, str(self.environment()["kernel"]), True, readable)

    def stopped(self) -> str | None:
        reasons = (paused(node.client, self._options.run) for node in self._nodes)
        return self._silent() or next(filter(None, reasons), None)

    def _silent(self) -> str | None:
        """Which engines do not answer any more, and what to do."""
        silent = engine.silent({n.name: n.client for n in self._nodes if not n.lost})
        lost = [node for node in self._nodes if node.lost or node.name in silent]
        for node in lost:
            node.lose()
        do = "does" if len(lost) == 1 else "do"
        text = f"{' and '.join(map(str, lost))} {do} not answer any more; {WHEN_BACK}"
        return text if lost else None

    def _translated(self, action: str) -> AbstractContextManager[None]:
        return translated(action, self._silent)

    def down(self) -> None:
        self._pool.shutdown(cancel_futures=True)  # or things made later would be missed below
        if self._is_down:
            return
        self._is_down, nodes = True, self._nodes
        for node in nodes:
            if node.tracer and _known(node.tracer):
                node.tracer.result().close()
        waiting = [p.result() for p in self._prepared.values() if _known(p)]
        channels = [*self._holders.values(), *self._spawned, *waiting]
        try:
            removed = self._remove(nodes)
            if any(map(limit_of, removed.failures)):
                while channels:  # which frees descriptors for the rest
                    channels.pop().close()
                for node in nodes:
                    node.client.close()
                removed = self._remove(nodes, 1)
        finally:  # their programs end with them, even if an engine removes nothing
            for channel in channels:
                channel.close()
            for node in nodes:
                node.client.close()
        if removed.failures:
            raise removed.failures[0]

    def _remove(self, nodes: Sequence[Node], at_once: int = WORKERS) -> Removed:
        removed, label = Removed("remove the lab"), f"{RUN}={self._options.run}"
        lost = {node.name: node.client for node in nodes if node.lost}  # they may be back
        removed.leave(gone := engine.silent(lost, engine.PING_DEADLINE))
        clients = {node.name: node.client for node in nodes if node.name not in gone}
        clear(clients, lambda *_: True, removed, label, at_once=at_once)
        return removed

    def _find(self, process: ProcessSpec) -> tuple[Node, list[str]]:
        if self._is_down:
            raise LabError("the lab is down")
        return self._at[process.host], self._containers[process.name]

    def _begun(self, process: ProcessSpec) -> tuple[APIClient, list[str]]:
        """The same without a container that is only prepared."""
        node, containers = self._find(process)
        begun = containers[:-1] if process.name in self._prepared else containers
        return node.client, begun

    def _ended(self, host: str) -> LabError:
        for _ in self._holders[host]:
            pass  # It has ended; its output goes to the log.
        log = self._at[host].log
        said = log.read_text(errors="replace").strip() if log.exists() else ""
        reason = said.splitlines()[-1] if said else "no reason given"
        return LabError(f"host {host} ended as soon as it was up: {reason}")

    def _name(self, *parts: str) -> str:
        return "-".join(["labctl", re.sub(r"[^\w.-]+", "-", self._options.run), *parts])

    def _labels(self) -> dict[str, str]:
        return {RUN: self._options.run, LEASE: self._options.lease}

    def _prefix(self, network: str) -> ipaddress.IPv6Network:
        name = self._options.run + network
        unique = hashlib.sha256(name.encode()).digest()[:5]  # RFC 4193, section 3.2
        return ipaddress.IPv6Network((b"\xfd" + unique + bytes(10), 64))

    def _create_networks(self, names: Sequence[str]) -> dict[str, str]:
        """The networks: of the lab's own, or of its project's by their names there. One of a swarm
        goes by its name, as an engine knows it only when a container joins it."""
        if len(self._nodes) > 1:
            client = manager(self._nodes).client
            for name in names:
                client.create_network(
                    self._name(*filter(None, [name])),
                    driver="overlay",
                    internal=True,
                    attachable=True,
                    labels=self._labels(),
                )
            return {name: self._name(*filter(None, [name])) for name in names}
        (node,) = self._nodes
        if not self._project:
            return {name: self._create_network(node, name, len(names) == 1) for name in names}
        return {
            key: self._project.create_network(node.client, self._name(key), key, self._labels())
            for key in self._project.plan.networks()
        }

    def _create_network(self, node: Node, name: str, alone: bool) -> str:
        """Filters of an engine that sees what passes on bridges (br_netfilter) lose all that has
        foreign addresses on an internal one, and so all that a router forwards. So only a network
        `alone` is internal; from the others the agents take away the way out."""
        from docker.types import IPAMConfig, IPAMPool
        from docker.utils import version_gte

        ipv6 = version_gte(node.client.api_version, ENGINE_IPV6)
        pools = [IPAMPool(str(self._prefix(name)))] if ipv6 else []  # IPv4: the engine's choice
        internal = alone or node.podman  # whose filters know no such rule
        made = node.client.create_network(
            self._name(*filter(None, [name])),
            driver="bridge",
            internal=internal,
            enable_ipv6=ipv6,
            ipam=IPAMConfig(pool_configs=pools),
            options={} if internal else ROUTED,
            labels=self._labels(),
        )
        return str(made["Id"])

    def _create_holder(self, host: HostSpec, lends: bool, networks: Mapping[str, str]) -> str:
        node = self._at[host.name]
        client = node.client
        config = configs.holder(host, node.built, node.podman)
        config |= configs.LENDS if lends else {}
        joins: Mapping[str, dict[str, Any]] = {name: {} for name in host.networks}
        if self._project:
            joins = self._project.joins(host.name, config)
        (first, how), *more = joins.items()
        config["HostConfig"]["NetworkMode"] = networks[first]
        if how:
            endpoint = client.create_endpoint_config(**how)
            config["NetworkingConfig"] = {"EndpointsConfig": {networks[first]: endpoint}}
        labels = {**self._labels(), HOST: host.name}
        container = node.create(config, labels, self._name(host.name))
        for key, how in more:
            client.connect_container_to_network(container, networks[key], **how)
        return container

    def _create_process(self, process: ProcessSpec, number: int = 1) -> str:
        """One of a process's containers, from 1 on."""
        labels = {**self._labels(), HOST: process.host, PROCESS: process.name}
        again = [f"_{number}"] if number > 1 else []
        name = self._name(*again, f"{process.host}.{process.name}")
        return self._at[process.host].create(self._configs[process.name], labels, name)

    def _start_tracer(self, node: Node) -> AttachChannel:
        # By a name of its own: engines of one machine have one kernel.
        number = f"-{self._nodes.index(node)}" if len(self._nodes) > 1 else ""
        config = configs.tracer([f"{self._options.run}{number}"], node.built)
        labels = {**self._labels(), TRACER: ""}
        return node.run(node.create(config, labels, self._name(f"_tracer{number}")))

    def _start_holder(
        self, name: str, container: str, turn: AbstractContextManager[object]
    ) -> None:
        with turn:
            self._holders[name] = self._at[name].join(container, self._silent)


def build_images(os: str, progress: Progress, where: str = "") -> list[str]:
    """Builds the images of an operating system unless they exist; returns their tags.

    Raises Unavailable and LabError."""
    with closing(engine.connect(where=where)) as client:
        built = images.ensure(client, os, progress)
    return [built.host, built.peer]


def interactive(container: str, command: Sequence[str], engines: Sequence[str] = ()) -> int:
    """Runs a command in a container, at whichever of these engines has it, on this terminal, or on
    this program's standard streams; returns its exit status. Raises Unavailable and LabError."""
    with translated("run a command"):
        for where in engines[:-1]:
            with closing(engine.connect(where=where)) as client, Tolerated(404):
                client.inspect_container(container)
                return run_attached(client, container, command)
        with closing(engine.connect(where=engines[-1] if engines else "")) as client:
            return run_attached(client, container, command)


def _told(nodes: Sequence[Node], network: str) -> list[dict[str, Any]]:
    """What engines tell of a network; one of a swarm no worker knows without a container on it."""
    found = []
    for node in nodes:
        with Tolerated(404):
            found.append(node.client.inspect_network(network))
    return found


def _endpoints(told: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The ends of a network, by container: each engine tells of its own."""
    return {
        container: end
        for each in told
        for container, end in (each["Containers"] or {}).items()  # a manager may have none
    }


def _traced(node: Node) -> Channel | Lack:
    """Its tracer, or why it has none."""
    assert node.tracer
    try:
        with translated("start a container that may trace"):
            return node.tracer.result()
    except LabError as exc:
        return Lack(str(exc), "run it on an engine that allows CAP_SYS_ADMIN")


def _known(job: Future[Any]) -> bool:
    """Whether a job that has ended has a result."""
    return job.done() and not job.cancelled() and job.exception() is None


def _results(jobs: Mapping[str, Future[Any]]) -> dict[str, Any]:
    return {name: job.result() for name, job in jobs.items()}
