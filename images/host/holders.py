#!/usr/bin/env python3
"""What holds a port here: prints the output of ss(8) as `ss`, and as `owners` the processes that
have each socket open, by its inode, as one JSON object. If ss shows nothing, `bound` is whether
something is bound there all the same: before iproute2 6.15, ss lists no socket that is only bound.

It looks at the network and the processes that it sees itself: in a container beside another one it
sees those of the other. Another user's processes tell their open files to CAP_SYS_PTRACE only.

Standard library only, Python 3.6 or later.
"""

import errno
import json
import os
import socket
import subprocess
import sys

SS = ["ss", "--tcp", "--all", "--numeric", "--options", "--extended"]
LONGEST = 100


def owners():
    """Who has each socket open: `nginx (pid 7)`, by inode."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        folder = "/proc/" + pid
        try:
            for inode in sockets_of(folder).values():
                who = "%s (pid %s)" % (command(folder), pid)
                if who not in found.setdefault(inode, []):
                    found[inode].append(who)
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


def sockets_of(folder):
    """The sockets that a process has open: their inodes by descriptor. Raises OSError."""
    found = {}
    for name in os.listdir(folder + "/fd"):
        file = os.readlink(folder + "/fd/" + name)
        if file.startswith("socket:["):
            found[name] = file[8:-1]
    return found


def command(folder):
    with open(folder + "/cmdline", "rb") as file:
        words = file.read().decode("utf-8", "replace").split("\0")
    text = " ".join(filter(None, words))
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def is_bound(port):
    """Whether a bind fails: it is tried, and undone at once."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(family) as tried:
                if family == socket.AF_INET6:
                    tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tried.bind(("", port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return True
    return False


def main(port):
    done = subprocess.run([*SS, "sport = :" + port], stdout=subprocess.PIPE, check=True)
    text = done.stdout.decode()
    bound = len(text.splitlines()) < 2 and is_bound(int(port))
    print(json.dumps({"ss": text, "owners": owners(), "bound": bound}))


if __name__ == "__main__":
    main(sys.argv[1])
