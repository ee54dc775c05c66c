"""Who holds which socket: the open descriptors of all processes that this one sees, by /proc.

Standard library only, Python 3.6 or later.
"""

import os
import time

MUCH, IN_ONE_PIECE = 50000, 3400
"""How many bytes a report takes at most: the second where it must be written in one piece (pipe(7),
PIPE_BUF), since others write there too."""
PATIENCE = 0.02
"""Seconds of CPU time that a report takes at most: nothing else is done meanwhile."""
PROCESS, DESCRIPTOR, PID = 150, 24, 12
"""How many bytes each of them takes in a report at most."""
SOCKET = "socket:["


def holders(room, patience=PATIENCE, proc="/proc"):
    """Of all processes but this one, by pid: `commands`, the command of each that has a socket, and
    `sockets`, their inodes by descriptor. `unread`: the pids of those whose descriptors this one
    may not read (proc(5), /proc/pid/fd). `left_out`: how many processes and descriptors are not in
    it, for want of time or of `room`, or None."""
    commands, held, unread, left_out = {}, {}, [], 0
    until = time.process_time() + patience
    for pid in sorted(map(int, filter(str.isdigit, os.listdir(proc)))):
        folder, sockets = "%s/%d" % (proc, pid), {}
        if pid == os.getpid():
            continue
        if room < PROCESS + DESCRIPTOR or time.process_time() > until:
            left_out += 1
            continue
        try:
            names = sorted(map(int, os.listdir(folder + "/fd")))
            room -= PROCESS
            for number, name in enumerate(names):
                if room < DESCRIPTOR or time.process_time() > until:
                    left_out += len(names) - number
                    break
                inode = socket_of("%s/fd/%d" % (folder, name))
                if inode:
                    sockets[name] = inode
                    room -= DESCRIPTOR
            if sockets:
                commands[pid], held[pid] = command(folder), sockets
        except PermissionError:
            unread.append(pid)
            room -= PID
        except OSError:
            pass  # it has ended
    return {"commands": commands, "sockets": held, "unread": unread, "left_out": left_out or None}


def socket_of(descriptor):
    """The inode of the socket that a descriptor is; 0 if it is none, or closed by now."""
    try:
        file = os.readlink(descriptor)
    except FileNotFoundError:
        return 0
    return int(file[len(SOCKET) : -1]) if file.startswith(SOCKET) else 0


def command(folder):
    """The name of a process's command (proc(5), /proc/pid/comm)."""
    with open(folder + "/comm", encoding="utf-8", errors="replace") as file:
        return file.read().rstrip("\n")
