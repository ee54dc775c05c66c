"""What becomes of a Compose project in a lab: another document for Compose, in which services are
processes in the network namespaces of holders, with a supervisor around what they run. All that
belongs to a network goes from a service to its holder.

Everything here is pure: from the document that `compose config` prints to one for `compose up`. In
both a dollar sign is written twice.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from labctl.backends import HostSpec, ProcessSpec
from labctl.backends.docker.images import LENT_PEER, Command
from labctl.backends.docker.sweep import HOST, PROCESS
from labctl.backends.services import refusal
from labctl.ground import signals
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError

Fields = dict[str, Any]

OF_THE_NETWORK = {
    "networks", "network_mode", "ports", "expose", "hostname", "domainname", "mac_address", "dns",
    "dns_search", "dns_opt", "extra_hosts", "links", "external_links",
}  # fmt: skip
"""A container that joins the network namespace of another one can't have these."""
OF_A_TERMINAL = {"tty", "stdin_open", "logging", "init", "restart", "stop_signal"}
"""These concern whoever starts and hears a program: here that is its supervisor."""
DONE = {"container_name", "build", "env_file", "pull_policy", "profiles", "scale", "ports"}
"""What is the user's alone (names and ports), and what `compose config` has done already."""
OF_THE_MACHINE = "com.docker.network.bridge.name"
"""An option of networks that names a thing of which a machine has one."""
DEFAULT = "default"
PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)")
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Made:
    """What there is of a lab before its project's containers are made: the holders by host, the
    names of the networks, and the labels of everything."""

    holders: Mapping[str, str]
    networks: Mapping[str, str]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """A project, as `compose config` prints it, and the processes that its services are."""

    document: Mapping[str, Any]
    held: Mapping[str, ProcessSpec]

    @classmethod
    def of(cls, document: Mapping[str, Any], held: Mapping[str, ProcessSpec]) -> Plan:
        """Raises LabError for a service that is not there, or can't be a host."""
        services = _fields(document, "services")
        for name in held:
            if name not in services:
                known = ", ".join(sorted(services)) or "none"
                raise LabError(
                    f"the project has no service {name!r} now; it has: {known}",
                    "COMPOSE_PROFILES chooses the profiles",
                )
            if refused := refusal(services[name]):
                raise LabError(f"{name} can't be a host: {refused.reason}")
        return cls(document, held)

    @property
    def services(self) -> Mapping[str, Fields]:
        """Its services."""
        return _fields(self.document, "services")

    @property
    def said(self) -> str:
        """What is otherwise than in the user's own project, in a line; or nothing."""
        unheld = [name for name in self.services if name not in self.held]
        foreign = [
            f"{kind} {name}"
            for kind in ("network", "volume")
            for name, found in _fields(self.document, f"{kind}s").items()
            if found.get("external")
        ]
        told = [f"no hosts, and not watched: {', '.join(unheld)}"] if unheld else []
        told += [f"new and empty here: {', '.join(foreign)}"] if foreign else []
        return "; ".join(told)

    def networks(self) -> dict[str, Fields]:
        """The networks that it uses, with what is to be said of each when it is made."""
        used = dict.fromkeys(key for name in self.services for key in self._networks_of(name))
        fixed = {
            key
            for name in self.services
            for key, how in self._networks_of(name).items()
            if how.get("ipv4_address")
        }
        return {key: self._network(key, key in fixed) for key in used}

    def _network(self, key: str, fixed: bool) -> Fields:
        """Its subnet is the user's own only if addresses in it are `fixed`: the user's own network
        may be there too."""
        found = _fields(self.document, "networks").get(key) or {}
        options = _fields(found, "driver_opts")
        pools = _fields(found, "ipam").get("config") or ()
        return {
            "internal": bool(found.get("internal")),
            "options": {k: str(v) for k, v in options.items() if k != OF_THE_MACHINE},
            "pools": [pool for pool in pools if ":" not in pool["subnet"]] if fixed else [],
        }

    def _networks_of(self, service: str) -> dict[str, Fields]:
        found = self.services[service]
        if found.get("network_mode"):
            return {}
        named = found.get("networks") or {DEFAULT: None}
        return {key: _fields({"": named}, "").get(key) or {} for key in named}

    def joins(self, host: HostSpec) -> dict[str, Fields]:
        """The networks of a host: those of its service, or all; with how it is known there."""
        service = next((name for name, spec in self.held.items() if spec.host == host.name), None)
        if service is None:
            return {key: {"aliases": [host.name]} for key in self.networks()}
        return {
            key: {
                "aliases": [
                    *dict.fromkeys([*(how.get("aliases") or ()), *self._names(service), host.name])
                ],
                **({"ipv4_address": how["ipv4_address"]} if how.get("ipv4_address") else {}),
            }
            for key, how in self._networks_of(service).items()
        }

    def _names(self, service: str) -> Iterator[str]:
        """How others call a service, on each of its networks."""
        yield service
        if name := self.services[service].get("container_name"):
            yield name
        for other in self.services.values():
            for link in other.get("links") or ():
                target, _, alias = link.partition(":")
                if target == service and alias:
                    yield alias

    def holder(self, service: str) -> tuple[Fields, Fields]:
        """What a holder has of its service: of its configuration, and below HostConfig."""
        found = self.services[service]
        config = {"Hostname": "hostname", "Domainname": "domainname"}
        below = {"Dns": "dns", "DnsSearch": "dns_search", "DnsOptions": "dns_opt"}
        extra = [
            f"{name}:{address}" for name, address in _pairs(found.get("extra_hosts"), "=", ":")
        ]
        sysctls = {
            key: value for key, value in _pairs(found.get("sysctls"), "=") if key.startswith("net.")
        }
        return (
            {ours: found[theirs] for ours, theirs in config.items() if found.get(theirs)},
            {
                **{ours: _words(found.get(theirs)) for ours, theirs in below.items()},
                "ExtraHosts": extra,
                "Sysctls": sysctls,
            },
        )

    def transformed(self, made: Made, commands: Mapping[str, Command]) -> Fields:
        """The document for `compose up`. `commands` are those of the services' images."""
        kept = ("configs", "secrets")
        return {
            **{key: self.document[key] for key in kept if self.document.get(key)},
            "services": {
                name: self._held(name, made, commands[name])
                if name in self.held
                else self._unheld(name, made)
                for name in self.services
            },
            "networks": {
                key: {"external": True, "name": name} for key, name in made.networks.items()
            },
            "volumes": {
                name: {
                    **{k: v for k, v in (found or {}).items() if k not in ("name", "external")},
                    "labels": {
                        **dict(_pairs((found or {}).get("labels"), "=")),
                        **_escaped(made.labels),
                    },
                }
                for name, found in _fields(self.document, "volumes").items()
            },
        }

    def _held(self, name: str, made: Made, image: Command) -> Fields:
        spec, found = self.held[name], self.services[name]
        holder = made.holders[spec.host]
        gone = OF_THE_NETWORK | OF_A_TERMINAL | DONE | {"deploy"}
        labels = {**made.labels, HOST: spec.host, PROCESS: spec.name}
        watch = [f"--watch={spec.watch}"] if spec.watch else []
        own = {k: v for k, v in _pairs(found.get("sysctls"), "=") if not k.startswith("net.")}
        deploy = _fields(found, "deploy")
        deploy.pop("restart_policy", None)  # it would count beside `restart`
        return {
            **{key: value for key, value in found.items() if key not in gone},
            **({"deploy": deploy} if deploy else {}),
            "network_mode": f"container:{holder}",
            "volumes_from": [*(found.get("volumes_from") or ()), f"container:{holder}:ro"],
            "entrypoint": list(LENT_PEER),
            "command": [
                "--tether", "run", *watch, *self._stopping(name, image), "--",
                *self._command(name, image),
            ],
            "sysctls": own,
            "labels": {**dict(_pairs(found.get("labels"), "=")), **_escaped(labels)},
            "stdin_open": True,
            "init": False,  # peer.py is an init of its own
            "restart": "no",
            "logging": {"driver": "none"},
        }  # fmt: skip

    def _unheld(self, name: str, made: Made) -> Fields:
        found = self.services[name]
        labels = {**made.labels, PROCESS: name}
        changed: Fields = {"labels": {**dict(_pairs(found.get("labels"), "=")), **_escaped(labels)}}
        kind, _, whose = str(found.get("network_mode") or "").partition(":")
        if kind == "service" and whose in self.held:
            changed["network_mode"] = f"container:{made.holders[self.held[whose].host]}"
        elif networks := self._networks_of(name):
            changed["networks"] = {
                key: {**how, "aliases": [*(how.get("aliases") or ()), *self._names(name)]}
                for key, how in networks.items()
            }
        return {**{key: value for key, value in found.items() if key not in DONE}, **changed}

    def _stopping(self, service: str, image: Command) -> list[str]:
        """How a service is asked to end, if it is not as others are."""
        found = self.services[service]
        text, grace = str(found.get("stop_signal") or image.stop), found.get("stop_grace_period")
        signal, seconds = signals.parse(text or "TERM"), _seconds(grace)
        if signal is None:
            raise LabError(f"{service}: {text!r} is no signal", "mend its stop_signal")
        words = [] if signal == "TERM" else [f"--stop={signal}"]
        return words if seconds is None else [*words, f"--grace={seconds:g}"]

    def _command(self, service: str, image: Command) -> list[str]:
        """All that a service runs: an entrypoint of its own takes the place of both of the
        image's."""
        entrypoint, command = (self.services[service].get(k) for k in ("entrypoint", "command"))
        before = [_doubled(word) for word in image.entrypoint]
        after = [_doubled(word) for word in image.arguments]
        if entrypoint is not None:
            before, after = _words(entrypoint), []
        return [*before, *(after if command is None else _words(command))]


def _fields(found: Mapping[str, Any], key: str) -> Fields:
    """A mapping below a key; a list of names is one without values."""
    value = found.get(key) or {}
    return dict(value) if isinstance(value, Mapping) else dict.fromkeys(value)


def _words(value: Any) -> list[str]:
    """A command line, or a list of texts, which may also be written as one text."""
    return shlex.split(value) if isinstance(value, str) else [str(word) for word in value or ()]


def _pairs(value: Any, *separators: str) -> Iterator[tuple[str, str]]:
    """A mapping of texts, which may also be written as a list of `NAME=VALUE`."""
    if isinstance(value, Mapping):
        yield from ((key, str(item)) for key, item in value.items())
        return
    for item in value or ():
        separator = next((mark for mark in separators if mark in item), separators[0])
        key, _, text = item.partition(separator)
        yield key, text


def _seconds(duration: Any) -> float | None:
    """A duration of Compose, such as 1m30s; None if there is none."""
    parts = PART.findall(str(duration or ""))
    return sum(float(number) * UNITS[unit] for number, unit in parts) if parts else None


def _doubled(text: str) -> str:
    return text.replace("$", "$$")


def _escaped(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: _doubled(value) for key, value in labels.items()}
