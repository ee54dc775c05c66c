#!/usr/bin/env python3
"""What holds a port here: prints the output of ss(8) as `ss`, and as `owners` the processes that
have each socket open, by its inode, as one JSON object.

It looks at the network and the processes that it sees itself: in a container beside another one it
sees those of the other. Another user's processes tell their open files to CAP_SYS_PTRACE only.

Standard library only, Python 3.6 or later.
"""

import json
import os
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


def main(port):
    done = subprocess.run([*SS, "sport = :" + port], stdout=subprocess.PIPE, check=True)
    print(json.dumps({"ss": done.stdout.decode(), "owners": owners()}))


if __name__ == "__main__":
    main(sys.argv[1])
