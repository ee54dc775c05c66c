"""Everything that runs have in an engine, by labels, and its removal: of a run's own things at its
end, and of what killed controllers left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from labctl.backends import EngineAt
from labctl.backends.docker import engine
from labctl.backends.docker.engine import Tolerated, translated
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError

if TYPE_CHECKING:
    from docker.api.client import APIClient

DOMAIN = "io.github.labctl-tcp"
RUN, LEASE, HOST, PROCESS, TRACER = (
    f"{DOMAIN}.{what}" for what in ("run", "lease", "host", "process", "tracer")
)
"""Labels: the run's name, its controller's lease, and whose container it is. Their names begin with
a domain of ours, as Docker asks for, so nobody else's are the same."""

WORKERS = 16
END_DEADLINE = 20
TRACER_DEADLINE = 5
NEW = 60.0  # seconds; longer than a lab takes to come up
FORGET_DEADLINE = 2
RETRY = 0.05
WHEN_BACK = "when it is back, `labctl down` removes what it has"


@dataclass
class Group:
    """Everything that an engine has of one run, as it lists it."""

    run: str
    lease: str
    containers: list[dict[str, Any]] = field(default_factory=list)
    networks: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether a holder or the tracer runs, which end with their controller; or all of it is so
        new that perhaps none runs yet."""
        made = [float(found["Created"]) for found in self.containers]
        made += [datetime.fromisoformat(found["Created"]).timestamp() for found in self.networks]
        made += [datetime.fromisoformat(found["CreatedAt"]).timestamp() for found in self.volumes]
        return time.time() - max(made) < NEW or any(
            found["State"] == "running" and PROCESS not in found["Labels"]
            for found in self.containers
        )

    def remove(self, client: APIClient, at_once: int = WORKERS) -> list[str]:
        """Removes it, and returns a line for each thing. Others may do the same at once."""
        hosts = [found for found in self.containers if _is_host(found)]
        others = [found for found in self.containers if not _is_host(found)]
        with ThreadPoolExecutor(at_once) as pool:
            leaving = [pool.submit(_leave_networks, client, found) for found in hosts]
            gone = [pool.submit(_remove_container, client, found) for found in others]
            wait(leaving)
            gone += [pool.submit(_remove_container, client, found) for found in hosts]
            gone += [
                pool.submit(_remove_network, client, found)
                for found in self.networks
                if not _is_shared(found)
            ]
            gone += [pool.submit(_remove_volume, client, found) for found in self.volumes]
        return [f"{what} of {self.run}" for what in (job.result() for job in gone) if what]

    def remove_shared(self, client: APIClient, patience: float) -> list[str]:
        """The same for its networks of a swarm, once nothing at other engines needs them: a manager
        removes those, and no worker can. A node that is down needs them until it is back."""
        shared = [found for found in self.networks if _is_shared(found)]
        if not shared or not client.info()["Swarm"]["ControlAvailable"]:
            return []
        gone = [_remove_network(client, found, patience) for found in shared]
        return [f"{what} of {self.run}" for what in gone if what]

    def forget_shared(self, client: APIClient, patience: float = FORGET_DEADLINE) -> list[str]:
        """Waits until an engine, too, has forgotten those that its swarm has no more. One that was
        late may keep them for good, as it keeps their own ends; then this removes them."""
        if not any(map(_is_shared, self.networks)):
            return []
        filters, deadline = {"label": [f"{RUN}={self.run}"]}, time.monotonic() + patience
        while there := client.networks(filters=filters):
            if time.monotonic() > deadline:
                break
            time.sleep(RETRY)
        for found in there:
            with Tolerated(404):
                ends = client.inspect_network(found["Id"])["Containers"] or {}
                for end in ends.values():
                    client.disconnect_container_from_network(end["Name"], found["Id"], force=True)
        if there:
            client.prune_networks(filters)  # type: ignore[no-untyped-call]
        return [f"network {found['Name']} of {self.run}" for found in there]


@dataclass
class Removed:
    """A line for each thing that was removed, and what stopped the rest. `action` completes "the
    engine did not ..."."""

    action: str = "remove what is left of other runs"
    lines: list[str] = field(default_factory=list)
    failures: list[LabError] = field(default_factory=list)

    def leave(self, names: Iterable[str]) -> None:
        """Leaves out these engines, which do not answer."""
        for name in names:
            with self.part(name):
                raise LabError("the engine does not answer", WHEN_BACK)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Something at the engine of this name. If it fails, the others go on."""
        try:
            with translated(self.action):
                yield
        except LabError as exc:
            failure = LabError(f"{name}: {exc.message}", exc.hint) if name else exc
            failure.__cause__ = exc.__cause__
            self.failures.append(failure)


def sweep(
    dead: Callable[[str, str, bool], bool],
    everything: bool = False,
    engines: Iterable[EngineAt] = (),
) -> Removed:
    """Removes the containers, networks and volumes of runs for which `dead(run, lease, held)` is
    true, or of all; `held`: a holder runs, or the run is too new to tell.

    Images stay, and so does whatever labctl did not make. Without the usual engine there is nothing
    to remove there; one of `engines` that does not answer is a failure."""
    removed = Removed()
    with ExitStack() as stack:
        usual = engine.find()
        clients = {"": stack.enter_context(closing(usual))} if usual else {}
        for at in engines:
            with removed.part(at.name):
                client = engine.connect(where=at.where)
                clients[at.name] = stack.enter_context(closing(client))
        clear(clients, lambda *run: everything or dead(*run), removed)
    return removed


def clear(
    clients: Mapping[str, APIClient],
    dead: Callable[[str, str, bool], bool],
    removed: Removed,
    *labels: str,
    at_once: int = WORKERS,
) -> None:
    """Removes what some engines have of dead runs, each for itself; see `sweep`."""
    found: dict[str, list[Group]] = {}
    silent = engine.silent(clients) if len(clients) > 1 else []
    removed.leave(silent)
    for name in [name for name in clients if name not in silent]:
        with removed.part(name):
            found[name] = groups(clients[name], *labels)
    held = Counter(group.run for each in found.values() for group in each if group.held)
    chosen = [
        (name, group)
        for name, each in found.items()
        for group in each
        if dead(group.run, group.lease, held[group.run] > 0)
    ]

    def remove(name: str, group: Group) -> None:
        with removed.part(name):
            removed.lines += group.remove(clients[name], at_once)

    with ThreadPoolExecutor(len(chosen) or 1) as pool:
        wait([pool.submit(remove, *each) for each in chosen])
    for name, group in chosen:
        with removed.part(name):
            patience = 0 if removed.failures else END_DEADLINE
            removed.lines += group.remove_shared(clients[name], patience)
    for name, group in chosen if not removed.failures else ():
        with removed.part(name):
            removed.lines += group.forget_shared(clients[name])


def groups(client: APIClient, *labels: str) -> list[Group]:
    """What the engine has of each run, or only of things with these labels too."""
    found_groups: dict[str, Group] = {}

    def group(found: Mapping[str, Any]) -> Group:
        run, lease = found["Labels"].get(RUN, ""), found["Labels"][LEASE]
        return found_groups.setdefault(run, Group(run, lease))

    filters = {"label": [LEASE, *labels]}
    for found in client.containers(all=True, filters=filters):
        group(found).containers.append(found)
    for found in client.networks(filters=filters):
        group(found).networks.append(found)
    for found in client.volumes(filters=filters)["Volumes"] or ():
        group(found).volumes.append(found)
    return list(found_groups.values())


def paused(client: APIClient, run: str) -> str | None:
    """Which of a run's own containers somebody has paused. Never raises LabError."""
    with suppress(LabError), translated("tell of the lab"):
        for group in groups(client, f"{RUN}={run}"):
            for found in group.containers:
                if found["State"] == "paused" and PROCESS not in found["Labels"]:
                    name = found["Names"][0].lstrip("/")
                    return f"{name} is paused; docker unpause lets it go on; run it again"
    return None


def _is_shared(network: Mapping[str, Any]) -> bool:
    """Whether it is a network of a swarm, and not of one engine."""
    return bool(network.get("Scope") == "swarm")


def _is_host(container: Mapping[str, Any]) -> bool:
    return HOST in container["Labels"] and PROCESS not in container["Labels"]


def _leave_networks(client: APIClient, container: Mapping[str, Any]) -> None:
    """Takes a host off its network. Then the network can be removed while the container ends: both
    take equally long. If this fails, the container's removal does the same, or says why not."""
    from docker.errors import APIError

    for network in container["NetworkSettings"]["Networks"].values():
        with suppress(APIError):
            client.disconnect_container_from_network(container["Id"], network["NetworkID"])


def _remove_container(client: APIClient, container: Mapping[str, Any]) -> str | None:
    if TRACER in container["Labels"] and container["State"] == "running":
        with Tolerated(404, 409):
            client.stop(container["Id"], TRACER_DEADLINE)  # It has to tidy up the kernel.
    remove = partial(client.remove_container, container["Id"], force=True, v=True)
    # 409 if somebody else removes it; 500 if Podman requires others to be removed first.
    removed = insist(remove, gone=(404, 409), busy=(500,))
    return f"container {container['Names'][0].lstrip('/')}" if removed else None


def _remove_network(
    client: APIClient, network: Mapping[str, Any], patience: float = END_DEADLINE
) -> str | None:
    # 403 while somebody else is still removing one of its containers; of a swarm, 400, and 503, and
    # 500 if only this engine still has it.
    gone, busy = ((404, 500), (400, 403, 503)) if _is_shared(network) else ((404,), (403,))
    remove = partial(client.remove_network, network["Id"])
    removed = insist(remove, gone, busy, patience)
    return f"network {network['Name']}" if removed else None


def _remove_volume(client: APIClient, volume: Mapping[str, Any]) -> str | None:
    # 409 while a container has it.
    removed = insist(partial(client.remove_volume, volume["Name"]), gone=(404,), busy=(409,))
    return f"volume {volume['Name']}" if removed else None


def insist(
    act: Callable[[], object],
    gone: Sequence[int],
    busy: Sequence[int],
    patience: float = END_DEADLINE,
) -> bool:
    """Tries to do something for `patience` seconds at most; returns False if its object is gone.
    `gone` and `busy` are the HTTP statuses of the engine's errors that say so."""
    from docker.errors import APIError

    deadline = time.monotonic() + patience
    while True:
        try:
            act()
            return True
        except APIError as exc:
            if exc.status_code in gone:
                return False
            if exc.status_code not in busy or time.monotonic() > deadline:
                raise
        time.sleep(RETRY)
