"""Which services of a Compose project can be hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """The keys in a service below which the reason stands, and the reason."""

    path: tuple[str, ...]
    reason: str


def refusal(service: Mapping[str, Any]) -> Refusal | None:
    """Why a service can't be a host, by what its project says of it."""
    if mode := service.get("network_mode"):
        return Refusal(("network_mode",), f"its network is {mode!r}, and a host has its own")
    deploy = service.get("deploy")
    for path, count in (
        (("deploy", "replicas"), deploy.get("replicas") if isinstance(deploy, Mapping) else None),
        (("scale",), service.get("scale")),
    ):
        if isinstance(count, int) and count != 1:
            return Refusal(path, f"it is {count} containers, and a host is one")
    return None
