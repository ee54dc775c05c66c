"""The networks of a lab: the ways between them, and which address a name means where. Pure.

Routers that are `plain` forward all; what leaves a `nat` for any of its networks but the first gets
the router's own address there, and nobody has a way into the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from graphlib import TopologicalSorter
from ipaddress import IPv6Address
from itertools import pairwise

from labctl.backends import HostLink, HostSpec, Router
from labctl.ground.data import dataclass

LINK_LOCAL = int(IPv6Address("fe80::"))
FORWARDING = {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}
"""What makes a host a router."""


@dataclass(frozen=True)
class Networks:
    """What the hosts of a lab say of its networks."""

    hosts: Sequence[HostSpec]

    @cached_property
    def members(self) -> Mapping[str, list[str]]:
        """The hosts in each network; the networks in an order in which each host has its own."""
        order: TopologicalSorter[str] = TopologicalSorter()
        for host in self.hosts:
            order.add(host.networks[0])
            for first, then in pairwise(host.networks):
                order.add(then, first)
        return {
            network: [host.name for host in self.hosts if network in host.networks]
            for network in order.static_order()
        }

    @property
    def told(self) -> tuple[Mapping[str, list[str]], Mapping[str, Router]] | tuple[None, None]:
        """The hosts in each network, and the kinds of routers; nothing if all are in one, which has
        no name."""
        if [*self.members] in ([""], []):
            return None, None
        return self.members, self.routers

    @property
    def routers(self) -> dict[str, Router]:
        """The kind of each router."""
        return {host.name: host.router for host in self.hosts if host.router}

    @classmethod
    def recorded(
        cls, members: Mapping[str, Sequence[str]], routers: Mapping[str, Router]
    ) -> Networks:
        """Those of a lab of which that is known."""
        names = dict.fromkeys(name for there in members.values() for name in there)
        return cls(
            [
                HostSpec(
                    name,
                    networks=tuple(n for n, there in members.items() if name in there),
                    router=routers.get(name),
                )
                for name in names
            ]
        )

    @cached_property
    def _by_name(self) -> Mapping[str, HostSpec]:
        return {host.name: host for host in self.hosts}

    @cached_property
    def _routing(self) -> Sequence[HostSpec]:
        return [host for host in self.hosts if host.router]

    def ways(self, name: str) -> dict[str, tuple[str, str]]:
        """The router that leads a host to each network that it is not in, and the network in which
        it reaches that; the nearest networks come first."""
        here = self._by_name[name].networks
        first: dict[str, tuple[str, str] | None] = dict.fromkeys(here)
        queue = deque(here)
        while queue:
            network = queue.popleft()
            for router in self._routing:
                if router.name == name or network not in router.networks:
                    continue
                inside = router.networks[:1] if router.router == "nat" else ()
                for other in router.networks:
                    if other not in first and other not in inside:
                        first[other] = first[network] or (router.name, network)
                        queue.append(other)
        return {network: way for network, way in first.items() if way is not None}

    def meeting(self, viewer: str, name: str) -> str | None:
        """The network in which a host sees another one: one of both, else the nearest to which it
        has a way."""
        theirs = self._by_name[name].networks
        near = (*self._by_name[viewer].networks, *self.ways(viewer))
        return next((network for network in near if network in theirs), None)

    def only(self, name: str) -> tuple[str, ...]:
        """Other names of a host's only link: of its network, and of the host in that."""
        networks = self._by_name[name].networks if name in self._by_name else ()
        return (networks[0], f"{name}.{networks[0]}") if len(networks) == 1 else ()

    def path(self, name: str, other: str | None) -> list[str]:
        """The routers on the way from a host to another one."""
        if not {name, other} <= self._by_name.keys():
            return []
        network = self.meeting(name, other or "")
        if network is None or network in self._by_name[name].networks:
            return []
        router = self.ways(name)[network][0]
        return [router, *self.path(router, other)]

    def apart(self, viewer: str, name: str) -> bool:
        """Whether a host has no way to another one. Other names are none of ours."""
        known = {viewer, name} <= self._by_name.keys()
        return known and viewer != name and self.meeting(viewer, name) is None

    def hidden_by(self, name: str) -> list[tuple[str, str]]:
        """The routers, and the networks there, whose addresses stand for a host's: it is behind
        their NAT."""
        if name not in self._by_name:
            return []
        here = {*self._by_name[name].networks, *self.ways(name)}
        return [
            (router.name, network)
            for router in self.hosts
            if router.router == "nat" and router.name != name and router.networks[0] in here
            for network in router.networks[1:]
            if network not in self._by_name[name].networks
        ]

    def in_order(self, names: Sequence[str]) -> list[str]:
        """These hosts, from the first one on, with routers between those whom they connect."""
        known = self._by_name
        left = [*self.members]
        queue = deque(known[names[0]].networks[:1] if names and names[0] in known else ())
        found: dict[str, None] = {}
        while left:
            network = queue.popleft() if queue else left[0]
            if network in left:
                left.remove(network)
                there = [name for name in names if name in self.members[network]]
                there.sort(key=lambda name: len(known[name].networks) > 1)
                found |= dict.fromkeys(there)
                queue.extend(n for name in there for n in known[name].networks)
        return [*found, *(name for name in names if name not in found)]


@dataclass(frozen=True)
class Wiring:
    """The networks of a lab that is up."""

    networks: Networks
    links: Mapping[str, HostLink]

    def names(self) -> dict[str, str]:
        """`gate.inside` and `gate.inside.v6`: the addresses of hosts in each of their networks."""
        return {
            f"{host}.{network}{suffix}": str(address.ip)
            for host, link in self.links.items()
            for network, end in link.ends.items()
            if network
            for suffix, address in (("", end.ipv4), (".v6", end.ipv6))
        }

    def seen_by(self, viewer: str) -> dict[str, str]:
        """What the bare names of hosts mean for one of them."""
        found: dict[str, str] = {}
        for host in self.links:
            network = self.networks.meeting(viewer, host)
            found |= self._bare.get((host, network), {})
        return found

    @cached_property
    def _bare(self) -> Mapping[tuple[str, str | None], Mapping[str, str]]:
        """The bare names of each host, and its addresses in a network."""
        return {
            (host, network): {host: str(end.ipv4.ip), f"{host}.v6": str(end.ipv6.ip)}
            for host, link in self.links.items()
            for network, end in link.ends.items()
        }

    def batch(self, name: str) -> str:
        """ip(8) commands for a host's ways to networks that it is not in; a router needs addresses
        of links at once, to ask for the neighbours to which it forwards."""
        return "".join((*self._link_addresses(name), *self._routes(name)))

    def _link_addresses(self, name: str) -> Iterator[str]:
        for end in self.links[name].ends.values() if name in self.networks.routers else ():
            number = int(end.ipv6.ip) % (1 << 64)
            address = IPv6Address(LINK_LOCAL + number)
            yield f"address add {address}/64 dev {end.device} nodad\n"

    def _routes(self, name: str) -> Iterator[str]:
        if not self.links[name].ends:
            return
        for network, (router, near) in self.networks.ways(name).items():
            there = self.links[self.networks.members[network][0]].ends[network]
            gate = self.links[router].ends[near]
            yield f"route add {there.ipv4.network} via {gate.ipv4.ip}\n"
            yield f"route add {there.ipv6.network} via {gate.ipv6.ip}\n"

    def translation(self, name: str) -> str:
        """What nft(8) reads on a host that is a `nat`. What its table of connections does not know,
        it does not pass on."""
        host = next(host for host in self.networks.hosts if host.name == name)
        if host.router != "nat":
            return ""
        ends = self.links[name].ends
        outside = ", ".join(f'"{ends[network].device}"' for network in host.networks[1:])
        return (
            "table inet labctl_nat {\n"
            "  chain out {\n"
            "    type nat hook postrouting priority 100\n"
            f"    oifname {{ {outside} }} masquerade\n"
            "  }\n"
            "  chain through {\n"
            "    type filter hook forward priority 10\n"
            "    ct state invalid drop\n"
            "  }\n"
            "}\n"
        )
