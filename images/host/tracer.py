#!/usr/bin/env python3
"""The tracer: every change of a TCP socket's state in a lab, by the kernel's tracepoint.

Each lab has one, beside its hosts: tracefs belongs to the kernel and not to any namespace, so it
needs CAP_SYS_ADMIN there, and the tracepoint sock:inet_sock_set_state reports all sockets of the
machine. The controller says which addresses belong to the lab (`watch`), and this reports only
those. If the kernel says why it sends an RST, and what it did with a segment, this reports that too
(see `known`). It has a tracefs instance of its own, and so disturbs no other tracing.

The tracepoint knows full sockets. Connection requests, TIME_WAIT and an orphan's FIN_WAIT_2 are
minisockets, and it does not see those.

Events go to stdout and commands come from stdin, one JSON object a line, as with agent.py. `t` is
CLOCK_MONOTONIC in seconds. When stdin ends, or on SIGTERM, the instance is
removed: so this must not be killed together with the controller.

It reads as soon as something happens, and then not for PERIOD; or, if there is a second word, once
in so many seconds. That is for a watch: what is watched would wait while something that it does
wakes this, and each read wakes the engine and the controller.

Standard library only, Python 3.6 or later.
"""

import errno
import json
import os
import re
import select
import signal
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # an isolated Python leaves it out
from tracepoints import Instance, mount, tracepoint

OF_TCP = "protocol == %d" % socket.IPPROTO_TCP
PERIOD = 0.005
CHUNK = 1 << 16
NANO = 1000000000

STATES = [
    None, "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "UNCONN",
    "CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING", "SYN-RECV",
]  # fmt: skip
"""include/net/tcp_states.h, as `ss` names them."""

REASON = re.compile(r'\{ (\d+), "(\w+)" \}')
REMEMBERED = 1 << 16
"""How many sockets to know by their pointers."""
MAPPED = bytes(10) + b"\xff\xff"


def emit(*events):
    data = "".join(json.dumps(event) + "\n" for event in events).encode()
    while data:
        data = data[os.write(1, data) :]


def reasons(tracepoint):
    """The names that its field `reason` can have, by number."""
    found = REASON.findall(tracepoint.text.rpartition("REC->reason,")[2])
    return {int(number): word for number, word in found}


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


def known():
    """What this kernel tells, the changes of sockets' states first: each tracepoint with the method
    that reports it. Raises OSError if it has none of them.

    Of resets it may tell why they were sent (since Linux 6.10). Of segments it may tell that it
    discarded one that it had received, for a reason (include/net/dropreason-core.h), took the reset
    in it, or sent one again, and by which error that failed."""
    found = [(tracepoint("sock/inet_sock_set_state", OF_TCP), Tracer.state)]
    if not found[0][0].fields:
        raise OSError(errno.ENOENT, "this kernel has no tracepoint sock:inet_sock_set_state")
    sent = tracepoint("tcp/tcp_send_reset")
    if "reason" in sent.fields:
        found.append((sent, Tracer.reset))
    discarded = tracepoint("skb/kfree_skb", "reason > 2 && rx_sk != 0")
    if "rx_sk" in discarded.fields:  # since Linux 6.11
        found += [
            (discarded, Tracer.discard),
            (tracepoint("tcp/tcp_receive_reset"), Tracer.taken),
            (tracepoint("tcp/tcp_retransmit_skb"), Tracer.again),
        ]
    return found


class Tracer:
    def __init__(self, instance, told, every=None):
        self.instance, self.every = instance, every
        self.told = {each.number: method for each, method in told}
        self.reasons = {each.number: reasons(each) for each, _ in told}
        self.addresses = set()
        self.sockets = {}  # their ends, by their pointers
        self.ahead = ahead()
        self.lost = 0

    def read(self):
        """Reports the lab's events since the last time."""
        now = int((time.monotonic() - self.ahead) * NANO)
        events = []
        for t, number, fields in self.instance.read(now):
            said = self.told[number](self, fields, self.reasons[number])
            if said:
                events.append(dict(said, t=t / NANO + self.ahead))
        if self.instance.missed:
            events += self.losses()
        emit(*events)

    def ends(self, fields):
        """Both ends of one of the lab's sockets, or None: addresses as bytes, and ports."""
        end = "addr_v6" if fields["family"] == socket.AF_INET6 else "addr"
        local, remote = (unmapped(fields[side + end]) for side in "sd")
        if local in self.addresses:
            return (local, fields["sport"]), (remote, fields["dport"])
        return None

    def state(self, fields, _):
        self.sockets.pop(fields["skaddr"], None)
        ends = self.ends(fields)
        if ends is None:
            return None
        if len(self.sockets) >= REMEMBERED:
            del self.sockets[next(iter(self.sockets))]
        self.sockets[fields["skaddr"]] = ends
        old, new = (STATES[fields[which]] for which in ("oldstate", "newstate"))
        return about("state", ends, old=old, new=new)

    def reset(self, fields, names):
        ends = tuple(parted(fields[side]) for side in ("saddr", "daddr"))
        if ends[0][0] not in self.addresses:
            return None
        return about("reset", ends, reason=names.get(fields["reason"], "unknown"))

    def discard(self, fields, names):
        """It names its socket by a pointer alone: whose that is, its last transition told."""
        ends = self.sockets.get(fields["rx_sk"])
        return about("fate", ends, did="discard", reason=names.get(fields["reason"]))

    def taken(self, fields, _):
        return about("fate", self.ends(fields), did="reset", reason=None)

    def again(self, fields, _):
        failed = errno.errorcode.get(-fields.get("err", 0))
        return about("fate", self.ends(fields), did="retransmit", reason=failed)

    def losses(self):
        """That more was lost than it has said."""
        lost = self.instance.lost()
        if lost > self.lost:
            yield trouble("%d transitions were lost" % (lost - self.lost))
            self.lost = lost

    def obey(self, message):
        ident = message.pop("id")
        try:
            COMMANDS[message.pop("do")](self, ident, **message)
        except (OSError, ValueError) as exc:
            emit({"kind": "reply", "id": ident, "t": time.monotonic(), "error": str(exc)})

    def run(self):
        pending = b""
        pipes = [] if self.every else self.instance.pipes
        while True:
            patience = self.every or (PERIOD if self.instance.waits() else None)
            ready, _, _ = select.select([0, *pipes], [], [], patience)
            if ready != [0]:
                self.read()
            if 0 in ready:
                data = os.read(0, CHUNK)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self.obey(json.loads(line.decode()))
            elif pipes:
                select.select([0], [], [], PERIOD)  # so that not every event wakes us


def about(kind, ends, **more):
    """A message about a socket, but for its time; None without its ends."""
    if ends is None:
        return None
    return dict(more, kind=kind, local=place(*ends[0]), remote=place(*ends[1]))


def unmapped(address):
    """An IPv4-mapped IPv6 address as IPv4, others as they are."""
    return address[len(MAPPED) :] if address.startswith(MAPPED) else address


def parted(end):
    """Address and port in a struct sockaddr_in or sockaddr_in6."""
    family, port = struct.unpack_from("=H", end)[0], struct.unpack_from("!H", end, 2)[0]
    return (end[4:8] if family == socket.AF_INET else unmapped(end[8:24])), port


def place(address, port):
    if len(address) == 4:
        return "%s:%d" % (socket.inet_ntop(socket.AF_INET, address), port)
    return "[%s]:%d" % (socket.inet_ntop(socket.AF_INET6, address), port)


def packed(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address)


def trouble(text):
    return {"kind": "trouble", "t": time.monotonic(), "probe": "trace", "text": text}


def do_watch(tracer, ident, addresses):
    """From now on, reports the sockets that have these local addresses."""
    tracer.addresses = set(map(packed, addresses))
    emit({"kind": "reply", "id": ident, "t": time.monotonic()})


def do_flush(tracer, ident):
    """Reports what is left in the buffer, and how much was lost."""
    tracer.read()
    emit(*tracer.losses())
    emit({"kind": "reply", "id": ident, "t": time.monotonic()})


COMMANDS = {"watch": do_watch, "flush": do_flush}


def refuse(exc):
    emit({"kind": "refused", "t": time.monotonic(), "reason": "no tracing: %s" % exc.strerror})


def main(argv):
    name, every = argv[0], float(argv[1]) if argv[1:] else None
    if every:  # what is watched comes first: the ring holds what this can't take at once
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        mount()
        told = known()
        instance = Instance(name, [each for each, _ in told])
    except OSError as exc:
        refuse(exc)
        return
    try:
        tracer = Tracer(instance, told, every)
        try:
            instance.start()  # nobody has asked yet, but the kernel takes its time for it
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
        instance.remove()


if __name__ == "__main__":
    main(sys.argv[1:])
