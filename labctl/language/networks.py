"""The networks of a scenario: who is in which, and who has a way to whom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from labctl.backends import HostSpec, Router
from labctl.backends.networks import Networks
from labctl.language.calls import host_of
from labctl.language.document import Expanded, Path_
from labctl.language.named import lines, pairs, texts
from labctl.language.values import choices

NETWORK_NAME = re.compile(r"(?!v6$)[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
"""A label of a name, as `gate.inside`; no number, and not the `v6` of `gate.v6`."""
KINDS = ("plain", "nat")
Mistakes = Iterator[tuple[Path_, int, str]]
"""Where each is, in which line of a text there, and what it is."""


def spec(name: str, addresses: int, engine: str | None, router: Any, networks: Any) -> HostSpec:
    """What a backend needs to know of a host. One that is in several networks is a router, `plain`
    if it does not say which kind."""
    mine = tuple(network for network, hosts in (networks or {}).items() if name in hosts)
    kind: Router | None = router or ("plain" if len(mine) > 1 else None)
    return HostSpec(name, addresses, engine, mine or ("",), kind)


def networks_of(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """The networks of each host, as far as they can be read."""
    found: dict[str, list[str]] = {}
    for network, there in pairs(data, "networks"):
        for name in dict.fromkeys(map(str, there)) if isinstance(there, list) else ():
            found.setdefault(name, []).append(str(network))
    return found


def wrong_networks(expanded: Expanded) -> Iterator[tuple[int, str]]:
    """The line and the message of each mistake in networks and routers, and where a host is to
    reach one to which there is no way."""
    hosts, networks = expanded.data.get("hosts"), expanded.data.get("networks")
    if isinstance(hosts, dict):
        for path, offset, message in _wrong(hosts, networks, expanded.data):
            yield expanded.line_in(path, offset), message


def _wrong(hosts: Mapping[str, Any], networks: Any, data: Mapping[str, Any]) -> Mistakes:
    yield from _wrong_routers(hosts, networks)
    if not isinstance(networks, dict):
        return
    sound = all(isinstance(there, list) for there in networks.values())
    for mistake in _wrong_members(hosts, networks):
        sound = False
        yield mistake
    if not sound:
        return
    kinds = {n: h.get("router") if isinstance(h, dict) else None for n, h in hosts.items()}
    if all(kind in (None, *KINDS) for kind in kinds.values()):
        found = Networks([spec(n, 1, None, kinds[n], networks) for n in hosts])
        yield from _wrong_ways(found, data)


def _wrong_routers(hosts: Mapping[str, Any], networks: Any) -> Mistakes:
    for name, host in hosts.items():
        if not isinstance(host, dict):
            continue
        mine = networks_of({"networks": networks}).get(name, [])
        if host.get("router") is not None and len(mine) < 2:
            where = f"only in {mine[0]!r}" if mine else "in none of several"
            yield (
                ("hosts", name, "router"),
                0,
                f"{name} is a router, but {where}; list it in two networks or more",
            )
        if len(mine) > 1 and host.get("addresses") not in (None, 1):
            yield (
                ("hosts", name, "addresses"),
                0,
                f"{name} is in {len(mine)} networks, and has one address in each; leave "
                "'addresses' out",
            )
        if networks is not None and host.get("service"):
            yield (
                ("hosts", name, "service"),
                0,
                "'service' and 'networks' exclude each other: a project has networks of its own",
            )


def _wrong_members(hosts: Mapping[str, Any], networks: Mapping[str, Any]) -> Mistakes:
    for network, there in networks.items():
        path: Path_ = ("networks", network)
        if not isinstance(network, str) or not NETWORK_NAME.fullmatch(network):
            yield path, 0, (f"{network!r} is no name of a network; allowed: a letter, then "
                            "letters, digits and hyphens, 63 at most, and not v6")  # fmt: skip
        elif network in hosts:
            yield path, 0, f"{network!r} is a host and a network; choose another name for one"
        if not isinstance(there, list):
            continue  # its type is a mistake already
        for index, name in enumerate(there):
            if name not in hosts:
                yield (*path, index), 0, f"unknown host {str(name)!r}; {choices(name, hosts)}"
            elif name in there[:index]:
                yield (*path, index), 0, f"{name} is listed twice in {network!r}; once is enough"
        if len({*map(str, there)}) < 2:
            yield path, 0, f"the network {network!r} needs two hosts or more: a link has two ends"
    if not networks:
        yield ("networks",), 0, "no network is named; leave 'networks' out, and all hosts share one"
    for name in hosts if networks else ():
        if name not in networks_of({"networks": networks}):
            yield ("hosts", name), 0, f"{name} is in no network; {_listed(networks)}"


def _listed(networks: Mapping[str, Any]) -> str:
    return f"list it in one of {', '.join(map(str, networks))}"


# --- Ways -----------------------------------------------------------------------------------------


def _wrong_ways(networks: Networks, data: Mapping[str, Any]) -> Mistakes:
    found = [(path, offset, one, other, False) for path, offset, one, other in _calls(data)]
    for part in ("steps", "expect"):
        found += [
            (path, 0, one, other, True) for path, one, other in _pairs(data.get(part), (part,))
        ]
    for path, offset, one, other, both in found:
        if networks.apart(one, other) and (not both or networks.apart(other, one)):
            why = "make a host that is in both of their networks a router"
            if not networks.apart(other, one):
                why = "a NAT hides it, so it has to connect itself"
            yield path, offset, f"{one} has no way to {other}; {why}"


def _calls(data: Mapping[str, Any]) -> Iterator[tuple[Path_, int, str, str]]:
    """Where calls connect, by line of the text: from which host to which."""
    where = {
        process: host for host, written in pairs(data, "hosts")
        for process in (host, *(name for name, _ in pairs(written, "processes")))
    }  # fmt: skip
    for process, text, path in texts(data):
        for line, offset in lines(text):
            for call in line:
                if call.name == "connect" and process in where:
                    yield path, offset, where[process], host_of(call).partition(".")[0]


def _pairs(data: Any, path: Path_) -> Iterator[tuple[Path_, str, str]]:
    """Where segments are named: `from` one host `to` another."""
    if isinstance(data, dict):
        ends = data.get("from"), data.get("to")
        if all(isinstance(end, str) for end in ends):
            one, other = (re.split("[.:]", str(end))[0] for end in ends)
            yield (*path, "to"), one, other
    elif not isinstance(data, list):
        return
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield from _pairs(value, (*path, key))
