"""Hosts that are services of a Compose project: what its file says of them, before anything starts.
Compose itself reads more, such as what a file includes; the backend asks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labctl.backends.services import refusal
from labctl.ground.errors import Mistake, ScenarioError, UsageError
from labctl.language.document import Document, Expanded
from labctl.language.scenario import Scenario
from labctl.language.values import unknown


def check_services(cases: list[Scenario]) -> list[Scenario]:
    """The same cases. Raises ScenarioError with every service that can't be a host."""
    if mistakes := [*dict.fromkeys(mistake for case in cases for mistake in _mistakes(case))]:
        raise ScenarioError(mistakes)
    return cases


def _mistakes(case: Scenario) -> Iterator[Mistake]:
    services = {name: host.service for name, host in case.hosts.items() if host.service}
    if not services:
        return
    if not case.compose:
        first = next(iter(services))
        message = f"{first} is a service of which project? Say `compose: FILE`, or --compose FILE"
        yield _at(case.service_sources[first], message)
        return
    try:
        project = _read(case.compose)
    except ScenarioError as exc:
        yield from exc.mistakes
        return
    except UsageError as exc:
        yield _at(case.compose_source, str(exc))
        return
    for name, host in case.hosts.items():
        if host.addresses > 1:
            message = "the networks of a project give its hosts their addresses; leave this out"
            yield _at(case.service_sources[name], message)
    found = _mapping(project.data.get("services"))
    seen: set[str] = set()
    for name, service in services.items():
        if service in found:
            if refused := refusal(_mapping(found[service])):
                line = project.line(("services", service, *refused.path))
                message = f"{service} can't be the host {name}: {refused.reason}"
                yield Mistake(case.compose, line, message)
        elif "include" not in project.data:
            yield _at(case.service_sources[name], unknown("service", service, found))
        if service in seen:
            yield _at(case.service_sources[name], f"the service {service!r} is two hosts; keep one")
        seen.add(service)


def _at(source: str, message: str) -> Mistake:
    file, _, line = source.rpartition(":")
    return Mistake(file, int(line), message)


def _mapping(data: Any) -> dict[str, Any]:
    return data if isinstance(data, dict) else {}


def _read(file: str) -> Expanded:
    return Document.read(Path(file)).expand(None)
