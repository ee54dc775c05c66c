#!/usr/bin/env python3
"""The tracer: every change of a TCP socket's state in a lab, by the kernel's tracepoint.

Each lab has one, beside its hosts: tracefs belongs to the kernel and not to any namespace, so it
needs CAP_SYS_ADMIN there, and the tracepoint sock:inet_sock_set_state reports all sockets of the
machine. The controller says which addresses belong to the lab (`watch`), and this reports only
those. If the kernel says why it sends an RST (tcp:tcp_send_reset, since Linux 6.10), and what it
did with a segment that it received (see `Fates`), this reports that too. It has tracefs instances
of its own, and so disturbs no other tracing.

The tracepoint knows full sockets. Connection requests, TIME_WAIT and an orphan's FIN_WAIT_2 are
minisockets, and it does not see those.

Events go to stdout and commands come from stdin, one JSON object a line, as with agent.py. `t` is
CLOCK_MONOTONIC in seconds, to the microsecond. When stdin ends, or on SIGTERM, the instance is
removed: so this must not be killed together with the controller.

Standard library only, Python 3.6 or later.
"""

import collections
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import select
import signal
import socket
import struct
import sys
import time

TRACEFS = "/sys/kernel/tracing"
PREFIX = "labctl-"
EVENT = "events/sock/inet_sock_set_state"
OF_TCP = "protocol == %d" % socket.IPPROTO_TCP
RESET = "events/tcp/tcp_send_reset"
DISCARD = "events/skb/kfree_skb"
TAKEN = "events/tcp/tcp_receive_reset"
AGAIN = "events/tcp/tcp_retransmit_skb"
PERIOD = 0.005
CHUNK = 1 << 16

# sched.h, mount.h
CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 1 << 18

STATES = {
    b"ESTABLISHED": "ESTAB", b"SYN_SENT": "SYN-SENT", b"SYN_RECV": "SYN-RECV",
    b"FIN_WAIT1": "FIN-WAIT-1", b"FIN_WAIT2": "FIN-WAIT-2", b"TIME_WAIT": "TIME-WAIT",
    b"CLOSE": "UNCONN", b"CLOSE_WAIT": "CLOSE-WAIT", b"LAST_ACK": "LAST-ACK", b"LISTEN": "LISTEN",
    b"CLOSING": "CLOSING", b"NEW_SYN_RECV": "SYN-RECV",
}  # fmt: skip
"""include/net/tcp_states.h, as the tracepoint prints them (without TCP_) and as `ss` does."""

LINE = re.compile(
    rb" (\d+\.\d+): inet_sock_set_state: family=(AF_INET6?) protocol=\S+ sport=(\d+) dport=(\d+) "
    rb"saddr=(\S+) daddr=(\S+) saddrv6=(\S+) daddrv6=(\S+) oldstate=TCP_(\w+) newstate=TCP_(\w+)"
)
RESET_LINE = re.compile(
    rb" (\d+\.\d+): tcp_send_reset: .* src=(\S+) dest=(\S+) state=\S+ reason=(\w+)"
)
FATE_LINE = re.compile(rb" (\d+\.\d+): (kfree_skb|tcp_receive_reset|tcp_retransmit_skb): (.*)")
DID = {b"kfree_skb": "discard", b"tcp_receive_reset": "reset", b"tcp_retransmit_skb": "retransmit"}
FIELD = re.compile(rb"(\w+)=0x([0-9a-f]+) ")
REASON = re.compile(r'\{ (\d+), "(\w+)" \}')
REMEMBERED = 1 << 22
"""How many bytes of transitions to look through for the ends of a socket."""
LOST = re.compile(rb"CPU:\d+ \[LOST (\d+) EVENTS\]")
STATS = re.compile(r"^(?:overrun|dropped events): (\d+)$", re.MULTILINE)


def emit(*events):
    data = "".join(json.dumps(event) + "\n" for event in events).encode()
    while data:
        data = data[os.write(1, data) :]


def mount():
    """Mounts tracefs so that only this process sees it. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name, *arguments):
        if getattr(libc, name)(*arguments):
            code = ctypes.get_errno()
            raise OSError(code, "%s tracefs: %s" % (name, os.strerror(code)))

    call("unshare", CLONE_NEWNS)
    call("mount", b"none", b"/", None, MS_REC_PRIVATE, None)
    try:
        call("mount", b"tracefs", TRACEFS.encode(), b"tracefs", 0, None)
    except OSError as exc:
        if exc.errno != errno.EBUSY:  # it is there already, as systemd mounts it
            raise


@contextlib.contextmanager
def alone(folder):
    """Only one tracer of this kernel at a time: others sweep an instance whose pipe is not open.
    All mounts of tracefs are one, so a lock of its folder holds in every container."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class Instance:
    """A ring buffer of our own for tracepoints, each with a filter. Raises OSError if there can be
    none.

    If somebody holds one of this name open, this uses it, and leaves it to them at the end."""

    def __init__(self, name, events):
        self.path = os.path.join(TRACEFS, "instances", PREFIX + name)
        if not os.path.isdir(os.path.join(TRACEFS, EVENT)):
            raise OSError(errno.ENOENT, "this kernel has no tracepoint sock:inet_sock_set_state")
        with alone(os.path.dirname(self.path)):
            self._sweep()
            if not os.path.isdir(self.path):
                os.mkdir(self.path)
            self.pipe = os.open(self.path + "/trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        self.write("trace_clock", "mono")  # which empties it, too, of what others left
        if os.path.exists(self.path + "/buffer_percent"):
            self.write("buffer_percent", "0")  # be woken by the first event, not by half a buffer
        self.events = events
        for event, which in events.items():
            if which:
                self.write(event + "/filter", which)

    def _sweep(self):
        """Removes instances that no tracer uses: one in use can't be removed."""
        parent = os.path.dirname(self.path)
        for name in os.listdir(parent):
            if name.startswith(PREFIX):
                try:
                    os.rmdir(os.path.join(parent, name))
                except OSError:
                    pass

    def write(self, name, text):
        with open(os.path.join(self.path, name), "w") as file:
            file.write(text)

    def start(self):
        for event in self.events:
            self.write(event + "/enable", "1")

    def read(self):
        """The events since the last call, as trace_pipe prints them."""
        parts = []
        while True:
            try:
                parts.append(os.read(self.pipe, CHUNK))
            except BlockingIOError:
                return b"".join(parts)
            if not parts[-1]:
                return b"".join(parts)

    def lost(self):
        """How many events found no room, since the beginning."""
        total = 0
        for cpu in os.listdir(self.path + "/per_cpu"):
            with open(os.path.join(self.path, "per_cpu", cpu, "stats")) as file:
                total += sum(map(int, STATS.findall(file.read())))
        return total

    def remove(self):
        for event in self.events:
            self.write(event + "/enable", "0")
        with alone(os.path.dirname(self.path)):
            os.close(self.pipe)
            self._sweep()


def ahead(offsets="/proc/self/timens_offsets"):
    """By how many seconds CLOCK_MONOTONIC is ahead here of the kernel's own, which the trace has:
    time_namespaces(7), since Linux 5.6."""
    try:
        with open(offsets) as file:
            found = dict(line.split(None, 1) for line in file)
    except OSError:
        return 0.0
    seconds, nanos = found["monotonic"].split()
    return int(seconds) + int(nanos) / 1e9


def format_of(event):
    """What the kernel says of a tracepoint; empty if it has none."""
    try:
        with open(os.path.join(TRACEFS, event, "format")) as file:
            return file.read()
    except OSError:
        return ""


class Fates:
    """What the kernel did with segments. It discarded one that it had received, for a reason (skb:
    kfree_skb, include/net/dropreason-core.h), or took the reset in it (tcp:tcp_receive_reset); or
    it sent one again, and by which error that failed (tcp:tcp_retransmit_skb).

    A discard names its socket by a pointer alone (rx_sk, since Linux 6.11). Whose that is, the last
    transition of the socket tells, in an instance that prints fields as they are. Of addresses of
    IPv6 it prints none, so those are left out, and so is whatever is not found."""

    def __init__(self, name):
        found = format_of(DISCARD)
        if "rx_sk" not in found:
            raise OSError(errno.ENOENT, "this kernel does not say whose segments it discards")
        self.reasons = {int(number): word for number, word in REASON.findall(found)}
        events = {EVENT: OF_TCP, DISCARD: "reason > 2 && rx_sk != 0", TAKEN: "", AGAIN: ""}
        self.instance = Instance(name, events)
        self.instance.write("options/fields", "1")
        self.seen = collections.deque()  # what it said lately
        self.ahead = ahead()

    def read(self, addresses):
        """The messages since the last call."""
        data = self.instance.read()
        self.seen.append(data)
        while sum(map(len, self.seen)) > REMEMBERED:
            self.seen.popleft()
        if not any(event + b":" in data for event in DID):
            return
        known = b"".join(self.seen)
        for found in FATE_LINE.finditer(data):
            at, event, text = found.groups()
            fields = fields_of(text)
            failed = (1 << 32) - fields.get("err", 1 << 32)
            reason = errno.errorcode.get(failed)
            if event == b"kfree_skb":
                reason = self.reasons.get(fields["reason"])
                before = known[: known.find(found.group(0))]
                fields = fields_of(last_of(fields["rx_sk"], before))
            local, remote = (dotted(fields.get(name, 0)) for name in ("saddr", "daddr"))
            if local in addresses:
                yield {
                    "kind": "fate", "t": float(at) + self.ahead,
                    "did": DID[event], "reason": reason,
                    "local": "%s:%d" % (local, fields["sport"]),
                    "remote": "%s:%d" % (remote, fields["dport"]),
                }  # fmt: skip


def fields_of(text):
    """The numbers in a line that prints fields as they are."""
    return {name.decode(): int(value, 16) for name, value in FIELD.findall(text + b" ")}


def last_of(pointer, text):
    """The last line about a socket."""
    start = text.rfind(b"skaddr=0x%x " % pointer)
    return text[start:].split(b"\n", 1)[0] if start >= 0 else b""


class Tracer:
    def __init__(self, instance, fates):
        self.instance, self.fates = instance, fates
        self.addresses = set()
        self.ahead = ahead()
        self.lost = 0

    def start(self):
        self.instance.start()
        if self.fates:
            self.fates.instance.start()

    def read(self):
        """Reports the lab's events since the last time."""
        events = []
        for line in self.instance.read().splitlines():
            found, reset = LINE.search(line), RESET_LINE.search(line)
            if found:
                events += self.event(found)
            elif reset:
                events += self.reset(reset)
            else:
                events += self.loss(LOST.search(line))
        if self.fates:
            events += self.fates.read(self.addresses)
        emit(*events)

    def event(self, found):
        at, family, sport, dport, saddr, daddr, saddr6, daddr6, old, new = found.groups()
        if family == b"AF_INET6":
            saddr, daddr = saddr6, daddr6
        local, remote = unmapped(saddr), unmapped(daddr)
        if local in self.addresses:
            yield {
                "kind": "state", "t": float(at) + self.ahead,
                "local": place(local, sport), "remote": place(remote, dport),
                "old": STATES[old], "new": STATES[new],
            }  # fmt: skip

    def reset(self, found):
        at, source, target, reason = found.groups()
        local, port = parted(source)
        if local in self.addresses:
            yield {
                "kind": "reset", "t": float(at) + self.ahead, "local": place(local, port),
                "remote": place(*parted(target)), "reason": reason.decode(),
            }  # fmt: skip

    def loss(self, found):
        if found:
            self.lost += int(found.group(1))
            yield trouble("%s transitions were lost" % found.group(1).decode())

    def obey(self, message):
        ident = message.pop("id")
        try:
            COMMANDS[message.pop("do")](self, ident, **message)
        except (OSError, ValueError) as exc:
            emit({"kind": "reply", "id": ident, "t": time.monotonic(), "error": str(exc)})

    def run(self):
        pending = b""
        while True:
            ready, _, _ = select.select([0, self.instance.pipe], [], [])
            if self.instance.pipe in ready:
                self.read()
            if 0 in ready:
                data = os.read(0, CHUNK)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self.obey(json.loads(line.decode()))
            else:
                time.sleep(PERIOD)  # so that not every event wakes us


def unmapped(address):
    """An IPv4-mapped IPv6 address as IPv4, others as they are."""
    text = address.decode()
    return text[7:] if text.startswith("::ffff:") and "." in text else text


def dotted(address):
    """An address of IPv4, from its bytes as one number of this machine."""
    return socket.inet_ntoa(struct.pack("=I", address))


def parted(end):
    """Address and port of an end, as the kernel prints it (%pISpc)."""
    address, _, port = end.rpartition(b":")
    return unmapped(address.strip(b"[]")), port


def place(address, port):
    return "%s:%s" % ("[%s]" % address if ":" in address else address, port.decode())


def trouble(text):
    return {"kind": "trouble", "t": time.monotonic(), "probe": "trace", "text": text}


def do_watch(tracer, ident, addresses):
    """From now on, reports the sockets that have these local addresses."""
    tracer.addresses = set(addresses)
    emit({"kind": "reply", "id": ident, "t": time.monotonic()})


def do_flush(tracer, ident):
    """Reports what is left in the buffer, and how much was lost."""
    tracer.read()
    lost = tracer.instance.lost()
    if lost > tracer.lost:
        emit(trouble("%d transitions were lost" % (lost - tracer.lost)))
        tracer.lost = lost
    emit({"kind": "reply", "id": ident, "t": time.monotonic()})


COMMANDS = {"watch": do_watch, "flush": do_flush}


def refuse(exc):
    emit({"kind": "refused", "t": time.monotonic(), "reason": "no tracing: %s" % exc.strerror})


def main(argv):
    (name,) = argv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        mount()
        given = {RESET: ""} if "reason=" in format_of(RESET) else {}
        instance = Instance(name, {EVENT: OF_TCP, **given})
    except OSError as exc:
        refuse(exc)
        return
    fates = None
    try:
        try:
            fates = Fates(name + "-fates")
        except OSError:
            pass  # nothing stands on that alone
        tracer = Tracer(instance, fates)
        try:
            tracer.start()  # nobody has asked yet, but the kernel takes its time for it
        except OSError as exc:
            refuse(exc)
            return
        emit({"kind": "hello", "t": time.monotonic()})
        tracer.run()
    except OSError:
        pass  # The controller is gone, in the middle of a word.
    except Exception as exc:
        text = "%s: %s" % (type(exc).__name__, exc)
        emit({"kind": "broken", "t": time.monotonic(), "text": text})
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for each in [instance, fates.instance] if fates else [instance]:
            each.remove()


if __name__ == "__main__":
    main(sys.argv[1:])
