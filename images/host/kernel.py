"""What the kernel says of a host's TCP: its sockets, in brief, and its counters.

Standard library only, Python 3.6 or later.
"""

import functools
import itertools
import os
import socket
import struct

NETLINK_SOCK_DIAG, TCPDIAG_GETSOCK, NLM_F_REQUEST_DUMP = 4, 18, 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
ROOM = 1 << 16  # the kernel gives one of these files as a whole
tables = {}  # those that are open, by path


class Diag:
    """The kernel's list of TCP sockets, as bytes that differ when anything but a clock changed; if
    there are `ports`, of those that have one of them."""

    def __init__(self, ports=()):
        self.ports = {struct.pack("!H", port) for port in ports}
        self.netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        self.room = memoryview(bytearray(1 << 16))  # a message has half of it at most

    def fingerprint(self):
        """A hash of every socket's identity, state, timer kind, retransmissions and queues.

        Raises OSError if the kernel has no tcp_diag.
        """
        # struct inet_diag_req and inet_diag_msg, include/uapi/linux/inet_diag.h. The old request
        # answers for IPv4 and IPv6 at once, and each request walks the kernel's whole table.
        body = struct.pack("=B51xII", socket.AF_INET, 0xFFFFFFFF, 0)
        header = struct.pack("=IHHII", 16 + len(body), TCPDIAG_GETSOCK, NLM_F_REQUEST_DUMP, 0, 0)
        self.netlink.send(header + body)
        found = []
        while True:
            end, offset = self.netlink.recv_into(self.room), 0
            data = self.room[:end].tobytes()
            while offset < end:
                length, kind = struct.unpack_from("=IH", data, offset)
                if kind == NLMSG_DONE:
                    return hash(tuple(found))
                if kind == NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", data, offset + 16)[0], "sock_diag")
                message = offset + 16
                offset += (length + 3) & ~3
                ends = data[message + 4 : message + 6], data[message + 6 : message + 8]
                if self.ports and self.ports.isdisjoint(ends):
                    continue
                # family, state, timer, retrans and the id; then, past `expires`, both queues
                found.append(data[message : message + 52] + data[message + 56 : message + 64])


class Proc:
    """The same from /proc/net/tcp, for kernels without tcp_diag. Slower by a factor of three."""

    def __init__(self, ports=()):
        self.ports = {"%04X" % port for port in ports}

    def fingerprint(self):
        found = []
        for name in ("/proc/net/tcp", "/proc/net/tcp6"):
            try:
                with open(name) as table:
                    rows = [line.split()[1:6] for line in table]
            except FileNotFoundError:
                continue
            found += [(*row[:4], row[4][:2]) for row in rows if self.wanted(row)]
        return hash(tuple(found))

    def wanted(self, row):
        return not self.ports or not self.ports.isdisjoint(end[-4:] for end in row[:2])


def open_diag(ports=()):
    diag = Diag(ports)
    try:
        diag.fingerprint()
    except OSError:
        return Proc(ports)
    return diag


def read(path):
    """What a file in /proc/net says now. It stays open: to open it again takes longer than to read
    it, and the kernel remembers how much room it needs."""
    if path not in tables:
        tables[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return os.pread(tables[path], ROOM, 0).decode()


def counters():
    """The namespace's counters, as {line of names: line of numbers}; both begin with a prefix."""
    lines = (read("/proc/net/snmp") + read("/proc/net/netstat")).splitlines()
    try:
        lines += in_lines(read("/proc/net/snmp6"))
    except OSError:
        pass  # a kernel without IPv6
    return dict(zip(lines[::2], lines[1::2]))


@functools.lru_cache(maxsize=1)
def in_lines(table):
    """A table of names and numbers as a line of each; they seldom change."""
    return [" ".join(line) for line in zip(*map(str.split, [": :", *table.splitlines()]))]


def changes(now, before):
    """{name: value} of the counters that have changed, by their names in nstat(8)."""
    found = {}
    for names, numbers in now.items():
        old = before.get(names)
        if numbers != old:
            olds = old.split()[1:] if old else itertools.repeat(None)
            for name, number, was in zip(full(names), numbers.split()[1:], olds):
                if number != was:
                    found[name] = int(number)
    return found


@functools.lru_cache(maxsize=None)
def full(names):
    """The names of a line, each with the line's prefix."""
    prefix, *each = names.split()
    return [prefix[:-1] + name for name in each]


def segments():
    """How many TCP segments came in and went out; reading all counters takes five times as long."""
    lines = read("/proc/net/snmp").splitlines()
    names, numbers = (line.split() for line in lines if line.startswith("Tcp:"))
    return [numbers[names.index(name)] for name in ("InSegs", "OutSegs")]
