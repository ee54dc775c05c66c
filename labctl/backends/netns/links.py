"""The links of a lab: bridges, and the interfaces and addresses of hosts, by rtnetlink(7). So no
host needs a process of ip(8), which loads its libraries each time.

It is loaded by world.py and uses the standard library alone, Python 3.9 or later.
"""

import ipaddress
import itertools
import os
import socket
import struct

NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 1, 4, 0x200, 0x400
RTM_NEWLINK, RTM_NEWADDR = 16, 20
IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_NET_NS_FD = 3, 10, 18, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL, IFA_F_NODAD = 1, 2, 2
IFF_UP = 1
LOOPBACK = 1
ROOM = 1 << 16


class Links:
    """The links of the network namespace where this is made. Methods raise OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._numbers = itertools.count(1)

    def close(self) -> None:
        """Forgets the namespace."""
        self._socket.close()

    def bridge(self, name: str) -> int:
        """A bridge that is up; returns its number."""
        self._add(f"bridge {name}", link(), text(IFLA_IFNAME, name), info("bridge"))
        return socket.if_nametoindex(name)

    def pair(self, port: str, bridge: int, device: str, network: int) -> None:
        """A port of a bridge that leads to an interface in another network, a descriptor."""
        there = link(flags=0) + text(IFLA_IFNAME, device) + number(IFLA_NET_NS_FD, network)
        data = attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, there))
        self._add(
            f"{port} of {device}",
            link(), text(IFLA_IFNAME, port), number(IFLA_MASTER, bridge), info("veth", data),
        )  # fmt: skip

    def up(self, index: int) -> None:
        """Begins to use an interface."""
        self._do(f"interface {index}", RTM_NEWLINK, 0, link(index))

    def address(self, index: int, address: str) -> None:
        """Gives an interface an address, with the length of its network; nobody else has it."""
        interface = ipaddress.ip_interface(address)
        six = interface.version == 6
        family, flags = (socket.AF_INET6, IFA_F_NODAD) if six else (socket.AF_INET, 0)
        head = struct.pack("=BBBBI", family, interface.network.prefixlen, flags, 0, index)
        packed = interface.ip.packed
        both = attribute(IFA_LOCAL, packed), attribute(IFA_ADDRESS, packed)
        self._do(address, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, head, *both)

    def _add(self, what: str, *parts: bytes) -> None:
        self._do(what, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, *parts)

    def _do(self, what: str, kind: int, flags: int, *parts: bytes) -> None:
        """Makes the kernel do something (struct nlmsghdr), and hears how that went."""
        body, asked = b"".join(parts), next(self._numbers)
        flags |= NLM_F_REQUEST | NLM_F_ACK
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, flags, asked, 0) + body)
        code = -struct.unpack_from("=i", self._socket.recv(ROOM), 16)[0]
        if code:
            raise OSError(code, f"{what}: {os.strerror(code)}")


def link(index: int = 0, flags: int = IFF_UP) -> bytes:
    """A struct ifinfomsg, of an interface that shall be up."""
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def info(kind: str, data: bytes = b"") -> bytes:
    """Of which kind a link is."""
    return attribute(IFLA_LINKINFO, text(IFLA_INFO_KIND, kind) + data)


def text(kind: int, value: str) -> bytes:
    """An attribute with a name."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """An attribute with a number."""
    return attribute(kind, struct.pack("=I", value))


def attribute(kind: int, data: bytes) -> bytes:
    """A netlink attribute (struct nlattr), padded."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
