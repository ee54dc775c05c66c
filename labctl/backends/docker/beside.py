"""Containers that run already, to be watched.

A watcher is a container beside each, in its network; it sees the machine's processes, to tell who
holds sockets, and has no right to change anything. The engine removes it when it ends, and it ends
with the stream to this program. A container that is started again has a new network, so it gets a
new watcher: the engine's events tell.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from labctl.backends import BackendOptions, Channel
from labctl.backends.capabilities import Lack
from labctl.backends.docker import engine, images
from labctl.backends.docker.attach import AttachChannel, attach
from labctl.backends.docker.configs import CONFINED, ENDED_AT_ONCE, TETHERED, tracer
from labctl.backends.docker.engine import Tolerated, translated
from labctl.backends.docker.nodes import product
from labctl.backends.docker.sweep import HOST, LEASE, RUN, TRACER, groups
from labctl.backends.watched import TRACED_EVERY, host_names, last_line
from labctl.ground.errors import LabError, UsageError

PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"
NUMBER = "com.docker.compose.container-number"
ONE_OFF = "com.docker.compose.oneoff"
"""`compose run`: another container of a service, which is not the service."""
SETTLED = 1.0
"""Seconds after the last start in a project until what has come is watched: often more comes."""
RIGHTS = ["NET_RAW", "SYS_PTRACE", "DAC_READ_SEARCH"]
"""To capture, and to read who holds sockets."""


class Beside:
    """See `Watched`. `containers` by name or id, `named` those that hosts of these names are, or
    all of a Compose `project`. Raises UsageError if one does not run, or has two names."""

    backend = "docker"

    def __init__(
        self,
        options: BackendOptions,
        containers: Sequence[str],
        named: Mapping[str, str],
        project: str | None,
        ports: Sequence[int],
    ) -> None:
        self._options = options
        self.ports = ports
        self._client = engine.connect(without="or watch --here or --pid")
        try:
            with translated("look for containers"):
                running = self._client.containers()
            called: dict[Key, str] = {}
            for name, container in named.items():
                key = _key(_named(running, container))
                if (other := called.setdefault(key, name)) != name:
                    raise UsageError(f"{other} and {name} are the same container, {container}")
            found = [_named(running, name) for name in containers]
            found += _of_project(running, project) if project else []
            keys = [*called, *dict.fromkeys(key for key in map(_key, found) if key not in called)]
            names = host_names(called.get(key, key[-1]) for key in keys)
            self._keys = dict(zip(names, keys, strict=True))
            self._images = images.ensure(self._client, options.os, options.progress)
            with translated("tell its version"):
                self._version = self._client.version()
        except BaseException:
            self._client.close()
            raise
        self._project = project
        self._came: float | None = None  # when something of the project started last
        self._channels: dict[Channel, AttachChannel] = {}
        self._attached: dict[str, tuple[str, str]] = {}  # what `_begun` said then
        self._ended = b""
        self._numbers = itertools.count(1)
        self._started: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._events: Any = None
        self._is_down = False
        self._listen()

    @property
    def names(self) -> Sequence[str]:
        """See `Watched`."""
        return list(self._keys)

    def environment(self) -> dict[str, str | None]:
        """See `Watched`. Of the systems in the containers nothing is known."""
        return {
            "kernel": self._version.get("KernelVersion"),
            "os": None,
            "engine": product(self._version),
        }

    def attach(self, name: str) -> Channel:
        with translated(f"watch {name}"):
            begun = self._begun(name)
            if begun is None:
                raise LabError(f"{name} does not run any more")
            self._attached[name] = begun
            return self._beside(name, "watch.pyc", map(str, self.ports))

    def detach(self, channel: Channel) -> None:
        self._ended = self._channels.pop(channel).said
        channel.close()

    def trace(self) -> Channel | Lack:
        try:
            with translated("start a container that may trace"):
                config = tracer([self._options.run, TRACED_EVERY], self._images)
                return self._start({**config, "Labels": {TRACER: ""}})
        except LabError as exc:
            return Lack(str(exc), "run it on an engine that allows CAP_SYS_ADMIN")

    def calls(self, name: str) -> Channel | Lack:
        try:
            with translated("start a container that may attach to processes"):
                return self._beside(name, "attach.pyc")
        except LabError as exc:
            return Lack(str(exc), "watch it on an engine that allows CAP_SYS_PTRACE")

    def roots(self, name: str) -> Sequence[int]:
        with translated(f"find the processes of {name}"):
            container = self._attached[name][0]
            return [self._client.inspect_container(container)["State"]["Pid"]]

    def again(self, sure: bool = False) -> list[str]:
        heard: dict[str, None] = {}
        while not self._started.empty():
            heard[self._started.get()] = None
        with translated("tell what runs"):
            begun = {name: self._begun(name) for name in (self._keys if sure else heard)}
        return [
            name
            for name, start in begun.items()
            if start != self._attached[name] and (start or name in heard)
        ]

    def added(self) -> list[str]:
        if self._project is None or self._came is None or time.monotonic() < self._came + SETTLED:
            return []
        self._came = None
        with translated("look for containers"):
            found = map(_key, _apart(self._client.containers(), self._project))
        new = [key for key in found if key not in self._keys.values()]
        names = host_names([*self._keys, *(key[-1] for key in new)])[len(self._keys) :]
        self._keys = {**self._keys, **dict(zip(names, new, strict=True))}
        return names

    def forget(self, name: str) -> None:
        self._keys = {other: key for other, key in self._keys.items() if other != name}

    def over(self) -> bool:
        """Never: whatever has ended may be started again."""
        return False

    def why(self) -> str:
        said = b"".join(channel.said for channel in self._channels.values()) or self._ended
        return last_line(said.decode(errors="replace"))

    def down(self) -> None:
        if self._is_down:
            return
        if self._events:
            self._events.close()
        self._events = None
        for channel in [*self._channels]:
            self.detach(channel)
        with translated("remove the watchers"):
            for group in groups(self._client, f"{RUN}={self._options.run}"):
                group.remove(self._client)
        self._client.close()
        self._is_down = True

    def _begun(self, name: str) -> tuple[str, str] | None:
        """The container that this host is now, and when it was started; None if it does not run."""
        running = self._client.containers()
        found = next((c["Id"] for c in running if _key(c) == self._keys[name]), None)
        with Tolerated(404):
            return found and (found, self._client.inspect_container(found)["State"]["StartedAt"])
        return None

    def _beside(self, name: str, program: str, words: Iterable[str] = ()) -> Channel:
        """Starts a program in the network of what a host is now. It sees the machine's
        processes."""
        return self._start(
            {
                "Image": self._images.host,
                "Entrypoint": ["python3", "-IS", f"/usr/local/lib/labctl/{program}"],
                "Cmd": [*words],
                **TETHERED,
                **ENDED_AT_ONCE,
                "Labels": {HOST: name},
                "HostConfig": {
                    **CONFINED,
                    "CapAdd": RIGHTS,
                    "NetworkMode": f"container:{self._attached[name][0]}",
                    "PidMode": "host",
                },
            }
        )

    def _start(self, config: Mapping[str, Any]) -> Channel:
        """Starts a container that is removed when it ends."""
        labels = {RUN: self._options.run, LEASE: self._options.lease, **config["Labels"]}
        host = {**config["HostConfig"], "AutoRemove": True}
        made = self._client.create_container_from_config(  # type: ignore[no-untyped-call]
            {**config, "Labels": labels, "HostConfig": host},
            f"labctl-{self._options.run}-{next(self._numbers)}",
        )["Id"]
        channel = AttachChannel(attach(self._client, made), None)
        try:
            self._client.start(made)
        except BaseException:
            channel.close()
            with Tolerated(404, 409):  # it may be gone, or going
                self._client.remove_container(made, force=True)
            raise
        self._channels[channel] = channel
        return channel

    def _listen(self) -> None:
        """Hears of the starts of what is watched, from now on."""
        with translated("tell what happens"):
            self._events = self._client.events(
                decode=True, filters={"type": "container", "event": "start"}
            )

        def read(events: Any) -> None:
            with suppress(Exception):  # it is closed, or the engine has gone
                for event in events:
                    labels = event["Actor"]["Attributes"]
                    key = _key({"Labels": labels, "Names": [f"/{labels['name']}"]})
                    known = [name for name, each in self._keys.items() if each == key]
                    for name in known:
                        self._started.put(name)
                    if not known and key[0] == self._project:
                        self._came = time.monotonic()

        threading.Thread(target=read, args=(self._events,), daemon=True, name="events").start()


Key = tuple[str, ...]
"""What a container keeps when it is made anew: its name, or its project, service and number; the
last part is what people call it."""


def _key(container: Mapping[str, Any]) -> Key:
    labels = container["Labels"] or {}
    if SERVICE in labels and PROJECT in labels and labels.get(ONE_OFF) != "True":
        number = labels.get(NUMBER, "1")
        service = labels[SERVICE] if number == "1" else f"{labels[SERVICE]}-{number}"
        return labels[PROJECT], service
    return (container["Names"][0].lstrip("/"),)


def _named(running: Sequence[Mapping[str, Any]], wanted: str) -> Mapping[str, Any]:
    for container in running:
        names = [name.lstrip("/") for name in container["Names"]]
        if wanted in names or (len(wanted) >= 4 and container["Id"].startswith(wanted)):
            return container
    there = sorted(name.lstrip("/") for container in running for name in container["Names"])
    raise UsageError(
        f"no container {wanted!r} is running", f"there are: {', '.join(there) or 'none'}"
    )


def _of_project(running: Sequence[Mapping[str, Any]], project: str) -> list[Mapping[str, Any]]:
    found = [c for c in running if (c["Labels"] or {}).get(PROJECT) == project]
    if not found:
        known = sorted({c["Labels"][PROJECT] for c in running if PROJECT in (c["Labels"] or {})})
        raise UsageError(
            f"no container of the project {project!r} is running",
            f"there are: {', '.join(known) or 'none'}",
        )
    return _apart(found, project)


def _apart(running: Sequence[Mapping[str, Any]], project: str) -> list[Mapping[str, Any]]:
    """The containers of a project that have networks of their own, or one of those that share
    one."""
    found = [c for c in running if _key(c)[0] == project]
    networks: dict[str, Mapping[str, Any]] = {}
    for container in sorted(found, key=lambda c: (_network(c) != c["Id"], _key(c))):
        networks.setdefault(_network(container), container)
    return sorted(networks.values(), key=_key)


def _network(container: Mapping[str, Any]) -> str:
    """What containers that share a network have in common: the id of the one that owns it."""
    mode = str(container["HostConfig"]["NetworkMode"])
    shares = mode == "host" or mode.startswith("container:")
    return mode.removeprefix("container:") if shares else str(container["Id"])
