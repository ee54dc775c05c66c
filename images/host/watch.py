#!/usr/bin/env python3
"""The watcher: an agent that looks at a network which others use, and does nothing there.

It captures on every interface that has an address, tells all addresses, and who holds sockets, as
far as it sees the processes. If its arguments are ports, it tells only of sockets and packets that
have one of them.

Events go to stdout and commands come from stdin, as with agent.py; it ends with its standard input.
It has no command that changes anything, so however it ends, nothing of it is left.

Standard library only, Python 3.6 or later.
"""

import fcntl
import os
import re
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # an isolated Python leaves it out
import agent
import captures
import holders
from addresses import Addresses
from kernel import open_diag

SIOCGIFHWADDR = 0x8927
ETHERNET = 1, 772  # ARPHRD_ETHER, ARPHRD_LOOPBACK
REST = 8
"""Times the number of hosts, how much longer it rests than it works: all of them together take an
eighth of a core at most."""
QUIET, BUSY, SLOWER = 0.05, 1.0, 4
"""Seconds between two reads of captures, and how fast it gets from the first to the second while
many packets come. Each read wakes it, the engine and the controller, and what is watched waits for
them."""
MANY, SURGE = 200, 10_000
"""Packets a second: on a busy host, and what may come on any, all of a sudden."""
RESERVE = 4
"""How many times as many as that the ring has room for, until the next read."""
INODE = re.compile(r" ino:(\d+)")
SCAN = 0.05
"""Seconds of CPU time to look for holders in: what is left then is left out."""


class Watcher(agent.Agent):
    woken = False  # the packet would wait for that

    def __init__(self, ports):
        super().__init__(open_diag(ports), COMMANDS)
        words = ["%s = :%d" % (end, port) for port in ports for end in ("sport", "dport")]
        self.ss, self.ports = agent.SS + ([" or ".join(words)] if words else []), ports
        self.room, self.read_at, self.between = captures.BLOCKS, 0.0, QUIET
        self.listed = set()  # the inodes of the last look

    def begin(self, longest, share):
        """Begins to watch and to capture, as one of `share` hosts."""
        self.rest, self.longest, self.next_sample = REST * share, longest, time.monotonic()
        self.addresses = Addresses(all_=True)
        interfaces = max(2, 1 + len(set(self.addresses.known.values())))
        self.room = max(captures.BLOCKS, agent.room_for(share) * 2 // interfaces)
        self.capture(captures.INSIDE, self.room)
        for address in list(self.addresses.known):
            self.new_address(address)

    def new_address(self, address):
        super().new_address(address)
        try:
            interface = socket.if_indextoname(self.addresses.known[address])
            if interface not in self.captures:
                self.capture(interface, self.room)
        except (KeyError, OSError):
            pass  # it is gone again

    def capture(self, interface, blocks):
        if is_ethernet(interface):
            super().capture(interface, blocks)
        else:
            self.refused = self.refused or "%s has no Ethernet headers" % interface

    def until_next(self, count):
        before, self.read_at = self.read_at, time.monotonic()
        rate = count / max(QUIET, self.read_at - before)
        frames = min((capture.frames for capture in self.captures.values()), default=0)
        self.between = pace(self.between, rate, frames)
        return self.between

    def sample(self):
        """See agent.py. On a busy host there is always something new: it looks once after each
        read."""
        super().sample()
        if self.between > QUIET:
            self.next_sample = max(self.next_sample, self.next_read + QUIET)

    def look(self, cause, seen=None, **extra):
        if cause == "look":
            self.listed = set()  # so that this tells all holders
        return super().look(cause, seen, **extra)

    def looked_at(self, text):
        """Tells who holds sockets, if there are new ones."""
        now = set(INODE.findall(text)) - {"0"}
        if not now <= self.listed:
            agent.emit(kind="holders", t=time.monotonic(), **held(now))
        self.listed = now


def pace(before, rate, frames):
    """In how many seconds to read captures again, if it was `before` this time, of so many packets
    a second. The busier a host is, the later, as far as a ring of so many frames holds it."""
    longest = min(BUSY, BUSY * rate / MANY, frames / RESERVE / max(rate, SURGE))
    return max(QUIET, min(SLOWER * before, longest))


def is_ethernet(interface):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("16s16x", interface.encode())
        found = fcntl.ioctl(asking, SIOCGIFHWADDR, request)
    return struct.unpack_from("=H", found, 16)[0] in ETHERNET


def held(inodes):
    """Who holds the sockets with these inodes, of the processes in this network: as `holders` of
    peer/held.py has it."""
    commands, found, unread, left_out = {}, {}, [], 0
    until = time.process_time() + SCAN
    for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
        folder = "/proc/%d" % pid
        if time.process_time() > until:
            left_out += 1
            continue
        try:
            if not os.path.samefile(folder + "/ns/net", "/proc/self/ns/net"):
                continue
            sockets = holders.sockets_of(folder)
            mine = {int(fd): int(inode) for fd, inode in sockets.items() if inode in inodes}
            if mine:
                with open(folder + "/comm", encoding="utf-8", errors="replace") as file:
                    commands[pid], found[pid] = file.read().rstrip("\n"), mine
        except PermissionError:
            unread.append(pid)
        except OSError:
            pass  # it has ended
    return {"commands": commands, "sockets": found, "unread": unread, "left_out": left_out or None}


def do_setup(watcher, ident, longest, share, bound):
    """Tells its addresses, and answers then. It makes no socket to find out whether `ss` lists
    those that are only bound."""
    watcher.begin(longest, share)
    agent.emit(kind="reply", id=ident, t=time.monotonic(), capture=watcher.refused, bound=False)


COMMANDS = {
    "clock": agent.do_clock,
    "setup": do_setup,
    "look": agent.do_look,
    "wake": agent.do_wake,
    "flush": agent.do_flush,
}


if __name__ == "__main__":
    # What is watched comes first: the ring holds what this can't take at once. See sched(7).
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    agent.tethered(lambda: Watcher([int(port) for port in sys.argv[1:]]))
