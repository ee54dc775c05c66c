#!/usr/bin/env python3
"""The agent: holds a host's network namespace, watches its sockets and does things there.

It runs for as long as the host lives, as the holder container's main process or as a process in
the host's namespace. A cheap in-process poll (sock_diag, see sock_diag(7)) notices when any TCP
socket changes its state, queue or kind of timer; what it then reports is what the real `ss` says.
So a quiet host costs no process, and a change is reported within PERIOD_MAX.

Events go to stdout and commands come from stdin, one JSON object a line. `t` is CLOCK_MONOTONIC.
With `--tether` the end of stdin ends the agent, and with it the host.

Standard library only, Python 3.6 or later.
"""

import argparse
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

PERIOD_MIN = 0.004
PERIOD_MAX = 0.025
SS = ["ss", "--tcp", "--all", "--numeric", "--options", "--extended", "--info"]

lock = threading.Lock()


def emit(**event):
    line = (json.dumps(event) + "\n").encode()
    with lock:
        while line:
            line = line[os.write(1, line) :]


# --- What the host's sockets look like --------------------------------------------------------

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP = 4, 20, 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3


class Diag:
    """The kernel's list of TCP sockets, as bytes that differ when anything but a clock moved."""

    def __init__(self):
        self.netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)

    def fingerprint(self):
        """A hash of every socket's identity, state, timer kind, retransmissions and queues.

        Raises OSError where the kernel has no tcp_diag.
        """
        return hash(tuple(self._family(socket.AF_INET) + self._family(socket.AF_INET6)))

    def _family(self, family):
        # struct inet_diag_req_v2 and inet_diag_msg, include/uapi/linux/inet_diag.h
        body = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
        header = struct.pack(
            "=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 0, 0
        )
        self.netlink.send(header + body)
        found = []
        while True:
            data, offset = self.netlink.recv(1 << 18), 0
            while offset < len(data):
                length, kind = struct.unpack_from("=IH", data, offset)
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", data, offset + 16)[0], "sock_diag")
                message = offset + 16
                # family, state, timer, retrans and the id; then, past `expires`, both queues
                found.append(data[message : message + 52] + data[message + 56 : message + 64])
                offset += (length + 3) & ~3


class Proc:
    """The same from /proc/net/tcp, for kernels without tcp_diag. Slower by a factor of three."""

    def fingerprint(self):
        found = []
        for name in ("/proc/net/tcp", "/proc/net/tcp6"):
            try:
                with open(name) as table:
                    rows = [line.split()[1:6] for line in table]
            except FileNotFoundError:
                continue
            found += [(*row[:4], row[4][:2]) for row in rows]
        return hash(tuple(found))


def open_diag():
    diag = Diag()
    try:
        diag.fingerprint()
    except OSError:
        return Proc()
    return diag


def counters():
    """{name: value} of the namespace's counters, named as nstat(8) does."""
    values = {}
    for path in ("/proc/net/snmp", "/proc/net/netstat"):
        with open(path) as table:
            lines = table.read().splitlines()
        for names, numbers in zip(lines[::2], lines[1::2]):
            prefix, _, rest = names.partition(": ")
            found = zip(rest.split(), numbers.split()[1:])
            values.update((prefix + name, int(number)) for name, number in found)
    return values


# --- The agent ------------------------------------------------------------------------------------


class Agent:
    def __init__(self):
        self.diag = open_diag()
        self.seen = None
        self.counted = {}
        self.period = PERIOD_MIN
        self.rest = None
        self.next_sample = None

    def moment(self):
        """Equal at two times only if nothing happened between them: states may come and go, but
        segments are counted."""
        counted = counters()
        return self.diag.fingerprint(), counted["TcpInSegs"], counted["TcpOutSegs"]

    def look(self, cause, **extra):
        """Reports what `ss` and the counters say now."""
        before = self.moment()
        at = time.monotonic()
        found = subprocess.run(SS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if found.returncode:
            emit(kind="trouble", t=at, text=found.stderr.decode("utf-8", "replace"), probe="ss")
        now = counters()
        changed = {k: v for k, v in now.items() if v != self.counted.get(k, 0)}
        self.counted = now
        emit(kind="sockets", t=at, cause=cause, text=found.stdout.decode("utf-8", "replace"),
             counters=changed, **extra)  # fmt: skip
        # What ss saw may have passed by the next sample. If anything happened meanwhile, that
        # looks again.
        self.seen = before[0] if self.moment() == before else None
        return at

    def sample(self):
        """Looks if anything changed; sets the time of the next sample."""
        start = time.monotonic()
        seen = self.diag.fingerprint()
        if seen != self.seen:
            self.look("change")
            self.period = PERIOD_MIN
        now = time.monotonic()
        self.next_sample = now + max(self.period, self.rest * (now - start))
        self.period = min(PERIOD_MAX, self.period * 1.3)

    def obey(self, message):
        ident = message.pop("id")
        try:
            COMMANDS[message.pop("do")](self, ident, **message)
        except (OSError, ValueError) as exc:
            emit(kind="reply", id=ident, t=time.monotonic(), error=str(exc))

    def run(self):
        pending = b""
        emit(kind="hello", t=time.monotonic(), wall=time.time(), counters=counters(),
             kernel=os.uname().release, watch=type(self.diag).__name__.lower())  # fmt: skip
        self.counted = counters()
        while True:
            patience = self.next_sample and max(0, self.next_sample - time.monotonic())
            ready, _, _ = select.select([0], [], [], patience)
            if ready:
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self.obey(json.loads(line.decode()))
            if self.next_sample and time.monotonic() >= self.next_sample:
                self.sample()


def do_look(agent, ident, caption=None):
    at = agent.look("look", caption=caption)
    emit(kind="reply", id=ident, t=at)


def do_clock(agent, ident):
    emit(kind="reply", id=ident, t=time.monotonic())


def do_setup(agent, ident, rest, hosts=None, batch=""):
    """Writes /etc/hosts, runs a batch of ip(8) commands, and begins to watch the sockets.

    After each sample the agent rests for `rest` times as long as it took: listing sockets is slow
    on a host with thousands of them, and for many hosts at once.
    """
    if hosts is not None:
        with open("/etc/hosts", "w") as file:
            file.write(hosts)
    if batch:
        done = subprocess.run(["ip", "-batch", "-"], input=batch.encode(), stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False)  # fmt: skip
        if done.returncode:
            raise OSError("ip: %s" % done.stderr.decode("utf-8", "replace").strip())
    agent.rest, agent.next_sample = rest, time.monotonic()
    emit(kind="reply", id=ident, t=time.monotonic())


def do_sysctl(agent, ident, values):
    """Writes sysctls; says which are unknown here (`missing`) and which were refused (`failed`)."""
    missing, failed = [], {}
    for key, value in values.items():
        path = "/proc/sys/" + key.replace(".", "/")
        try:
            with open(path, "w") as file:
                file.write(str(value))
        except FileNotFoundError:
            missing.append(key)
        except OSError as exc:
            failed[key] = exc.strerror
    emit(kind="reply", id=ident, t=time.monotonic(), missing=missing, failed=failed)


def do_exec(agent, ident, command):
    def work():
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, shell=True, check=False)  # fmt: skip
        emit(kind="reply", id=ident, t=time.monotonic(), exit=done.returncode,
             output=done.stdout.decode("utf-8", "replace"))  # fmt: skip

    threading.Thread(target=work, daemon=True).start()


COMMANDS = {
    "look": do_look,
    "clock": do_clock,
    "setup": do_setup,
    "sysctl": do_sysctl,
    "exec": do_exec,
}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="agent.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tether", action="store_true", help="obey stdin, and end when it ends")
    options = parser.parse_args(arguments)
    if options.tether:
        Agent().run()
    else:
        # A host for hands: it only has to be there, until somebody stops it.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
