"""The addresses of hosts in an engine's network."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from labctl.backends import Channel, HostLink, HostSpec, LinkEnd
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError

NO_WAY_OUT = "route replace throw default\n"
"""Some engines make a way out in an internal network, too."""
NO_WAY_OUT_6 = "route replace throw ::/0\n"


@dataclass(frozen=True)
class Holder:
    """A host's holder, and the machine that it runs on."""

    container: str
    channel: Channel
    machine: str


@dataclass(frozen=True)
class Network:
    """A network of an engine: the prefix of what IPv6 addresses the agents give there, the engine's
    own addresses, `gateways`, and the ends of containers as the engine tells them."""

    prefix: ipaddress.IPv6Network
    gateways: Sequence[str]
    ends: Mapping[str, Mapping[str, str]]


def links(
    hosts: Sequence[HostSpec],
    holders: Mapping[str, Holder],
    networks: Mapping[str, Network],
) -> dict[str, HostLink]:
    """The hosts with their addresses, in each of their networks."""
    found: dict[str, HostLink] = {}
    for name, network in networks.items():
        there = [host for host in hosts if name in host.networks]
        for host, link in _in_one(there, holders, name, network).items():
            known = found.setdefault(host, replace(link, ipv4=(), ipv6=(), batch="", ends={}))
            found[host] = replace(
                link,
                ipv4=(*known.ipv4, *link.ipv4),
                ipv6=(*known.ipv6, *link.ipv6),
                batch=known.batch + link.batch,
                ends={**known.ends, **link.ends},
            )
    shut = NO_WAY_OUT if len(networks) == 1 else NO_WAY_OUT + NO_WAY_OUT_6
    return {
        host.name: replace(found[host.name], batch=found[host.name].batch + shut) for host in hosts
    }


def _in_one(
    hosts: Sequence[HostSpec], holders: Mapping[str, Holder], name: str, network: Network
) -> dict[str, HostLink]:
    """The hosts with their addresses in one network. The engine gave them some, from the bottom of
    the subnet upwards; further ones come from its top downwards. Their agents add those, and take
    away the ways to the engine's own addresses there, and through them: its machine would answer
    at all its addresses.

    A network between engines finds no address that the engines do not know: so hosts of other
    machines also have those as permanent neighbours."""
    first: dict[str, list[Any]] = {}
    rest: dict[str, list[Any]] = {}
    ends = {host.name: network.ends[holders[host.name].container] for host in hosts}
    for number, (host_name, end) in enumerate(ends.items(), 2):
        given = [ipaddress.ip_interface(end["IPv4Address"])]
        ours = ipaddress.ip_interface((network.prefix[number], network.prefix.prefixlen))
        if text := end.get("IPv6Address"):
            given.append(ipaddress.ip_interface(text))
        first[host_name] = [*given, ours][:2]
        rest[host_name] = [ours] if len(given) == 1 else []
    taken = {interface.ip for pair in first.values() for interface in pair}
    tops: dict[Any, Iterator[Any]] = {}
    links = {}
    for host in hosts:
        families = []
        for interface in first[host.name]:
            top = tops.setdefault(interface.network, _downwards(interface.network, taken))
            more = [next(top) for _ in range(host.addresses - 1)]
            rest[host.name] += more
            families.append(tuple(str(found.ip) for found in (interface, *more)))
        ipv4, ipv6 = families
        holder, device = holders[host.name], ends[host.name]["MacAddress"]
        links[host.name] = HostLink(
            holder.channel, holder.container, ipv4, ipv6, machine=holder.machine,
            ends={name: LinkEnd(device, *first[host.name])},
        )  # fmt: skip
    return {
        name: replace(link, batch="".join([
            *(_addition(interface, ends[name]["MacAddress"]) for interface in rest[name]),
            *(
                _neighbour(interface, ends[other]["MacAddress"], ends[name]["MacAddress"])
                for other, far in links.items() if far.machine != link.machine
                for interface in rest[other]
            ),
            *map(_shut, network.gateways),
        ]))
        for name, link in links.items()
    }  # fmt: skip


def gateways(network: Mapping[str, Any]) -> list[str]:
    """The engine's own addresses in a network. It takes the first of a pool, and may not say so."""
    pools = network["IPAM"]["Config"]
    given = [p.get("Gateway") or ipaddress.ip_network(p["Subnet"])[1] for p in pools]
    return [str(ipaddress.ip_interface(address).ip) for address in given]


def joined(
    hosts: Sequence[HostSpec],
    holders: Mapping[str, str],
    channels: Mapping[str, Channel],
    networks: Sequence[Mapping[str, Mapping[str, str]]],
    services: Collection[str],
) -> dict[str, HostLink]:
    """The hosts of a project, each with an address on each of its networks, in their order. A
    service asks the engine for the others' names: not every address is on a network of its own."""
    links = {}
    for host in hosts:
        holder = holders[host.name]
        given = [found[holder]["IPv4Address"] for found in networks if holder in found]
        ipv4 = tuple(str(ipaddress.ip_interface(text).ip) for text in given)
        channel, writes = channels[host.name], host.name not in services
        links[host.name] = HostLink(channel, holder, ipv4, (), hosts_file=writes)
    return links


def _addition(interface: Any, device: str) -> str:
    nodad = " nodad" if interface.version == 6 else ""
    return f"address add {interface} dev {device}{nodad}\n"


def _shut(gateway: str) -> str:
    return f"route add unreachable {gateway}\n"


def _neighbour(interface: Any, mac: str, device: str) -> str:
    return f"neighbour replace {interface.ip} lladdr {mac} dev {device} nud permanent\n"


def _downwards(network: Any, taken: set[Any]) -> Iterator[Any]:
    for number in itertools.count(-2, -1):  # -1 is IPv4's broadcast
        if network[number] in taken:
            raise LabError(
                f"{network} has too few addresses", "give the engine larger default-address-pools"
            )
        yield ipaddress.ip_interface((network[number], network.prefixlen))
