"""The addresses of a host: the kernel reports each new one (rtnetlink(7)).

Standard library only, Python 3.6 or later.
"""

import re
import socket
import struct

from faults import attributes

RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x10, 0x100
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
NLM_F_REQUEST_DUMP = 0x301
IFA_ADDRESS, IFA_LOCAL, IFA_PROTO = 1, 2, 11
MADE = (b"\1", b"\2", b"\3")  # IFA_PROTO of loopback, announced and link-local addresses
BODY = 24  # struct nlmsghdr and struct ifaddrmsg
LOOPBACK, LINK_LOCAL = re.compile(r"127\.|::1$"), re.compile("fe[89ab]")


class Addresses:
    """The addresses of a host, except for loopback ones and those that the kernel added by itself:
    it takes its time for that, and since 5.18 says which they are. If `all_` are wanted, except for
    loopback ones and those of a link alone."""

    def __init__(self, all_=False):
        self.all = all_
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self.socket.bind((0, RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        self.socket.setblocking(False)
        self.known = {}  # the number of each one's interface
        self.ask()
        self.read()

    def fileno(self):
        return self.socket.fileno()

    def ask(self):
        """Makes the kernel report all of them."""
        body = struct.pack("=B7x", socket.AF_UNSPEC)
        header = struct.pack("=IHHII", 16 + len(body), RTM_GETADDR, NLM_F_REQUEST_DUMP, 0, 0)
        self.socket.send(header + body)

    def read(self):
        """Those that are new since the last time."""
        found = []
        while True:
            try:
                data, offset = self.socket.recv(1 << 16), 0
            except BlockingIOError:
                return found
            except OSError:
                self.ask()  # ENOBUFS: it had too many to report
                continue
            while offset + BODY <= len(data):
                length, kind = struct.unpack_from("=IH", data, offset)
                if kind in (RTM_NEWADDR, RTM_DELADDR):
                    found += self.change(kind, data[offset : offset + length])
                offset += (length + 3) & ~3

    def change(self, kind, message):
        """The address in a message, if it is new."""
        values = attributes(message, BODY)
        packed = values.get(IFA_LOCAL, values.get(IFA_ADDRESS, b""))
        if len(packed) not in (4, 16):
            return
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        address = socket.inet_ntop(family, packed)
        if kind == RTM_DELADDR:
            self.known.pop(address, None)
        elif LINK_LOCAL.match(address) if self.all else values.get(IFA_PROTO, b"")[:1] in MADE:
            return
        elif address not in self.known and not LOOPBACK.match(address):
            (self.known[address],) = struct.unpack_from("=I", message, BODY - 4)
            yield address
