"""Containers of people's own tests: whatever starts them, as it hands them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from labctl.ground.errors import UsageError
from labctl.language.from_python import misused, shown

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

__tracebackhide__ = True
"""See recording.py."""


INSTALL = "pip install 'testcontainers>=4.13,<5'"


class Identified(Protocol):
    """A container of docker-py."""

    @property
    def id(self) -> str | None:
        """Its id."""


class Wrapping(Protocol):
    """A container of testcontainers."""

    def get_wrapped_container(self) -> Any:
        """The container of docker-py, if it has been started."""


Container = str | Identified | Wrapping
"""A container that runs: its name, its id, or an object of docker-py or of testcontainers."""


def name_of(container: object) -> str:
    """The name or the id of a container that runs. Raises UsageError if it is none."""
    if isinstance(container, str):
        return container
    wrapped = getattr(container, "get_wrapped_container", None)
    try:
        found = wrapped() if wrapped else container
    except Exception as exc:  # a class of testcontainers, which need not be installed
        raise misused(f"{shown(container)}: {exc}", "start it first") from exc
    name = getattr(found, "name", None) or getattr(found, "id", None)
    if not isinstance(name, str):
        wanted = "a name, an id, or a container of docker-py or testcontainers that was started"
        raise misused(f"a container: {wanted} is wanted, not {shown(container)}")
    return name


def missing(what: str) -> UsageError:
    """An error for what needs testcontainers, where that is not installed."""
    return UsageError(f"{what} is for testcontainers, which is not installed", INSTALL)


def share(container: DockerContainer, holder: str) -> None:
    """Makes a container of testcontainers share the network of another one, as soon as it starts.
    Raises UsageError if that can't be."""
    try:
        from testcontainers.core.container import DockerContainer
    except ImportError as exc:
        raise missing("place") from exc
    if not isinstance(container, DockerContainer):
        raise misused(
            f"place: a DockerContainer of testcontainers is wanted, not {shown(container)}"
        )
    image = container.image
    if container._container is not None:
        raise misused(f"place: {image} has been started", "place it first, and start it then")
    if container.ports:
        ports = ", ".join(map(str, container.ports))
        raise misused(
            f"place: {image} publishes {ports}, and what shares a host's network can't",
            "container.ports.clear(); the lab's hosts reach it by its host's name",
        )
    if container._network or {"network", "network_mode"} & container._kwargs.keys():
        raise misused(f"place: {image} has a network of its own", "leave that out")
    container.with_kwargs(**{**container._kwargs, "network_mode": f"container:{holder}"})
