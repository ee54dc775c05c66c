"""What calls that have returned change, of the sockets that a process has and of what is told.

Standard library only, Python 3.6 or later.
"""

import os
import socket
import struct

import reasons
from filters import READS, WRITES
from tracees import address_at, ends_of, memory
from underway import Tcp, signed

OF_A_RANGE = 4  # CLOSE_RANGE_CLOEXEC
DUPLICATE = ("dup", "dup2", "dup3", "fcntl")


def _opened(tracer, thread, call):
    if not call.code:
        kept = not call.arguments[1] & os.O_CLOEXEC
        tracer.have(thread, call.value, Tcp(signed(call.arguments[0]), kept))
        call.event["fd"] = call.value
    return call


def _accepted(tracer, thread, call):
    if call.code:
        return call
    listener = tracer.mine(thread).get(call.event["fd"])
    peer = None
    if call.arguments[1]:
        length = memory(thread, call.arguments[2], 4)
        size = struct.unpack("=I", length)[0] if length else 0
        peer = address_at(thread, call.arguments[1], size)
    kept = not (call.name == "accept4" and call.arguments[3] & os.O_CLOEXEC)
    family = listener.family if listener else socket.AF_INET
    if peer and peer.startswith("["):
        family = socket.AF_INET6
    tracer.have(thread, call.value, Tcp(family, kept))
    local, remote = ends_of(tracer.groups[thread], thread, call.value, family)
    call.event.update(result=call.value, local=local, peer=remote or peer)
    return call


def _connected(tracer, thread, call):
    mine = tracer.mine(thread).get(call.event["fd"])
    if call.event["name"] == "disconnect":
        if mine:
            mine.connecting = None
        return call
    if mine and call.code in ("EINPROGRESS", "EINTR"):
        if not call.told and not call.quiet:
            tracer.say(**dict(call.event, phase="enter"))
            call.told = True
        mine.connecting = call
        return None
    if call.code in ("EALREADY", "EAGAIN"):
        return None
    if not (mine and mine.connecting):
        return call
    waiting, mine.connecting = mine.connecting, None  # it asks again, and is told how that went
    waiting.returned(0 if call.code == "EISCONN" else call.value)
    return waiting


def _asked(tracer, thread, call):
    """A program asks how its connect went (connect(2), EINPROGRESS)."""
    mine = tracer.mine(thread).get(call.event["fd"])
    data = memory(thread, call.arguments[3], 4)
    if not (mine and mine.connecting) or data is None:
        return None
    waiting, mine.connecting = mine.connecting, None
    waiting.returned(-struct.unpack("=i", data)[0])
    return waiting


def _received(tracer, thread, call):
    if not call.code:
        call.event.update(eof=call.value == 0, result=call.value)
    return call


def _sent(tracer, thread, call):
    if not call.code:
        call.event.update(result=call.value)
    return call


def _closed(tracer, thread, call):
    mine = tracer.mine(thread)
    gone = None if call.code else mine.pop(call.event["fd"], None)
    return None if gone in mine.values() else call  # another descriptor of it is left


def _closed_range(tracer, thread, call):
    first, last, how = (argument & 0xFFFFFFFF for argument in call.arguments[:3])
    if not call.value and not how & OF_A_RANGE:
        for fd in sorted(fd for fd in tracer.mine(thread) if first <= fd <= last):
            tracer.closed(thread, fd, "close")


def _duplicated(tracer, thread, call):
    if call.code or (call.name == "fcntl" and signed(call.arguments[1]) not in (0, 1030)):
        return  # it is not F_DUPFD, nor F_DUPFD_CLOEXEC
    fd, mine = signed(call.arguments[0]), tracer.mine(thread)
    if call.value != fd and call.value in mine:
        tracer.closed(thread, call.value, "close (by dup)")
    if fd in mine:
        mine[call.value] = mine[fd]


def _traced(tracer, thread, call):
    if call.code == "EPERM":
        tracer.blind(reasons.TRACES)


def _ringed(tracer, thread, call):
    if not call.code:
        tracer.blind(reasons.RING)


RETURNED = {
    "socket": _opened, "accept": _accepted, "accept4": _accepted, "connect": _connected,
    "getsockopt": _asked, "close": _closed, "close_range": _closed_range, "ptrace": _traced,
    "io_uring_setup": _ringed, **dict.fromkeys(READS, _received), **dict.fromkeys(WRITES, _sent),
    **dict.fromkeys(DUPLICATE, _duplicated),
}  # fmt: skip
"""By the call's name, with the tracer, the thread and the call: each returns the call to tell, or
None. Of others nothing changes, and they are told."""
