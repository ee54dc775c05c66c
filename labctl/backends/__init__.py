"""Where labs run: the Backend protocol, and the table of backends.

A backend brings up hosts (namespaces that outlive their processes, each with an agent), starts and
kills processes on them, and takes everything down. With every backend, `images/host/agent.py`,
`images/host/tracer.py` and `images/peer/peer.py` report what happens through channels of JSON
lines. Polling, waiting and recording live above it, in `lab.py`, shared by all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any, Literal, Protocol

from labctl.backends.capabilities import Lack
from labctl.ground.data import dataclass
from labctl.ground.errors import UsageError

Message = dict[str, Any]
Progress = Callable[[str], None]


class Channel(Protocol):
    """A duplex stream of JSON objects, one a line, to a program in the lab."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one message. A program that is gone is not an error: its stream says so."""

    def __iter__(self) -> Iterator[Message]:
        """The program's messages, until it ends. Called once, from a thread of its own. Raises
        NoMessage (wire.py) for a line that is no message."""

    def close(self) -> None:
        """Ends the stream; a tethered program ends with it."""


Router = Literal["plain", "nat"]


@dataclass(frozen=True)
class HostSpec:
    """A host to bring up: `addresses` IPv4 and as many IPv6 addresses. `engine` names the one that
    it runs on, if the lab has several. In several `networks` it has one of each in each, and is a
    `router` between them (networks.py)."""

    name: str
    addresses: int = 1
    engine: str | None = None
    networks: tuple[str, ...] = ("",)
    router: Router | None = None


@dataclass(frozen=True)
class Service:
    """A service of somebody's Compose project: the project's file, and its name there."""

    file: str
    name: str


MEM_LIMIT, PIDS_LIMIT = 2 << 30, 4096
"""The most memory in bytes, and the most processes and threads, of a container whose scenario asks
for no more."""


@dataclass(frozen=True)
class ProcessSpec:
    """A process to start on a host: `calls` for the peer program, or `run`, any program; or, with
    neither, the own command of an `image`, or what a `service` runs. `rights` are the
    capabilities(7) that it keeps, of RIGHTS. `watch`: whether to tell a program's socket calls, and
    what it reads and writes. `mem_limit` in bytes and `pids_limit` bound its container."""

    name: str
    host: str
    calls: str | None = None
    run: tuple[str, ...] | None = None
    image: str | None = None
    uid: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    rights: tuple[str, ...] = ()
    watch: Literal["calls", "io"] | None = None
    service: Service | None = None
    mem_limit: int = MEM_LIMIT
    pids_limit: int = PIDS_LIMIT


USUAL_REST = 0.025


@dataclass(frozen=True)
class LinkEnd:
    """A host's end in one of several networks: its interface, by name or by hardware address, and
    its addresses there."""

    device: str
    ipv4: IPv4Interface
    ipv6: IPv6Interface


@dataclass(frozen=True)
class HostLink:
    """A host that is up. `holder`: what `labctl shell` enters, a container's id or process ids;
    `ipv4` and `ipv6` in order; `batch`: ip(8) commands that its agent still has to run;
    `hosts_file`: whether its agent has to write /etc/hosts; `longest_rest`: at most so many seconds
    between two of its polls; `machine`: hosts of the same one share a clock and a tracer; `ends`:
    those in each network."""

    channel: Channel
    holder: str
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    batch: str = ""
    hosts_file: bool = True
    longest_rest: float = USUAL_REST
    machine: str = ""
    ends: Mapping[str, LinkEnd] = field(default_factory=dict)


def address_names(hosts: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, str]:
    """The address behind each name, from the IPv4 and IPv6 addresses of each host: NAME, NAME.2 ...
    are IPv4; NAME.v6, NAME.2.v6 ... are IPv6."""
    return {
        f"{host}{'' if index == 1 else f'.{index}'}{suffix}": address
        for host, families in hosts.items()
        for suffix, family in zip(("", ".v6"), families, strict=True)
        for index, address in enumerate(family, 1)
    }


def hosts_text(names: Mapping[str, str]) -> str:
    """hosts(5) for a lab."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    return "\n".join(lines + [f"{address} {name}" for name, address in names.items()]) + "\n"


class Backend(Protocol):
    """One lab. Methods raise LabError, and are called from one thread."""

    name: str

    @classmethod
    def share(cls) -> None:
        """Starts what labs can share, in a program that is about to fork others for labs."""

    def environment(self) -> dict[str, str | None]:
        """`kernel`, `os` and `engine` of the place where the lab runs, for the result; and on
        namespaces the `folder` in which programs start."""

    def lacks(self) -> Mapping[str, Lack]:
        """The capabilities (capabilities.py) that are missing here."""

    def up(
        self, hosts: Sequence[HostSpec], processes: Sequence[ProcessSpec]
    ) -> dict[str, HostLink]:
        """Brings the hosts up, connected, and prepares their processes. `spawn` will be called for
        no others than `processes`."""

    def trace(self) -> Mapping[str, Channel | Lack]:
        """The tracer of each machine (images/host/tracer.py), which `up` has started, or why there
        is none. Called once, after `up`."""

    def prepare(self, process: ProcessSpec) -> None:
        """Says that `spawn` comes later for a process: anything that takes long can begin now, if
        the host does not notice it."""

    def spawn(self, process: ProcessSpec) -> Channel:
        """Starts a process, or starts it again after it ended, beside what it left."""

    def begin(self) -> None:
        """Starts the services of a project, in the order that it wants; `spawn` was called for each
        before, and its channel tells when it has begun. Nothing to do without a project."""

    def kill(self, process: ProcessSpec) -> None:
        """Sends SIGKILL to everything in a process, of all its starts; returns when all of it is
        gone, and its sockets too. No error if it is gone already."""

    def signal(self, process: ProcessSpec, name: str) -> None:
        """Sends a signal (`TERM`) to the main process of the latest start alone."""

    def freeze(self, process: ProcessSpec, frozen: bool) -> bool:
        """Stops or continues everything in a process. Returns whether its supervisors do that, and
        have done it when they answer; else it is done."""

    def sysctl(self, key: str, value: str, readable: bool) -> None:
        """Sets a sysctl that no host has of its own, or can only read (`readable`), for all hosts,
        if the whole machine belongs to the lab. Otherwise raises MissingHere or Refused. Raises
        OSError if the kernel refuses the value."""

    def stopped(self) -> str | None:
        """Which of the lab's own programs somebody has stopped, and how to undo that; None if
        nobody can see it. Called when the lab does not answer."""

    def down(self) -> None:
        """Removes everything. May be called at any time, also twice."""


RIGHTS = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SYS_CHROOT": 18,
}
"""The capabilities that a process of root may keep: those that servers need to drop privileges.
Numbers of linux/capability.h."""


@dataclass(frozen=True)
class EngineAt:
    """An engine: its name in the lab, and where it is, as a URL or as the name of a context of
    Docker. Without that it is the engine that DOCKER_HOST or the current context names."""

    name: str = ""
    where: str = ""

    @classmethod
    def parse(cls, text: str) -> EngineAt:
        """`NAME=WHERE`, or WHERE alone, which is then its name, too."""
        name, equals, where = text.partition("=")
        return cls(name, where) if equals and "/" not in name else cls(text, text)

    def __str__(self) -> str:
        return self.where if self.name == self.where else f"{self.name}={self.where}"


@dataclass(frozen=True)
class BackendOptions:
    """How to open a backend: a name for the run and its lease (see lease.py), a folder for files
    while it runs, the operating system of the images, where to report progress on long work, and
    the engines, if not the usual one."""

    run: str
    lease: str
    folder: Path
    os: str
    progress: Progress
    engines: tuple[EngineAt, ...] = ()


BACKENDS: dict[str, str] = {
    "docker": "labctl.backends.docker.backend:DockerBackend",
    "netns": "labctl.backends.netns.backend:NetnsBackend",
}
"""Name and factory, `module:class`; a factory takes BackendOptions. Imported only when used."""


def backend_class(name: str) -> Any:
    """The class behind a name. Raises UsageError for an unknown one."""
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}", f"allowed: auto, {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def choose(name: str, os: str | None = None) -> str:
    """`auto` becomes `docker` if an engine answers or an `os` is wanted, and `netns` otherwise;
    others stay. Raises UsageError for an unknown one, and for an `os` on namespaces."""
    if os and name == "netns":
        raise UsageError(
            f"namespaces run on this machine's own system, not on {os!r}", "take the backend docker"
        )
    if name != "auto":
        backend_class(name)
        return name
    return "docker" if os or backend_class("docker").answers() else "netns"
