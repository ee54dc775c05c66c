"""A call under way, the socket that it is about, and what it asks for, in words.

Standard library only, Python 3.6 or later.
"""

import socket
import struct
import time

from calls import ERRNOS
from filters import OF_NUMBERS, READS, TIMERS, WRITES
from options import TEXT_OPTIONS
from tracees import address_at, memory

HOW = {0: "rd", 1: "wr", 2: "rdwr"}


class Allowance:
    """How much may still be done: so much at once, and so much more each second."""

    def __init__(self, most, rate):
        self.left, self.most, self.rate, self.at = float(most), most, rate, time.monotonic()

    def take(self):
        """Takes one; False if there is none."""
        now = time.monotonic()
        self.left = min(self.most, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Entered:
    """A call under way. `event` is what to tell of it; `quiet`: only a failure, for there are too
    many; `cut`: a signal has interrupted it, and it may begin anew. When it has returned, `value`
    is what, and `code` the error, or None."""

    __slots__ = ("arguments", "code", "cut", "event", "name", "quiet", "since", "told", "value")

    def __init__(self, name, arguments, event, quiet):
        self.name, self.arguments, self.event, self.quiet = name, arguments, event, quiet
        self.told, self.cut, self.since = False, False, event["t"]
        self.value = self.code = None

    def returned(self, value):
        """Takes in what it returned."""
        self.value = value
        self.code = ERRNOS.get(-value, str(-value)) if value < 0 else None


class Tcp:
    """A TCP socket of a process."""

    __slots__ = ("connecting", "family", "kept")

    def __init__(self, family, kept):
        self.family = family
        self.kept = kept  # by a program that is executed
        self.connecting = None


def number_of(code):
    return next((number for number, name in ERRNOS.items() if name == code), None) or int(code)


def fds(arguments):
    """Both descriptors of a call that duplicates one."""
    return signed(arguments[0]), signed(arguments[1])


def signed(value):
    """A C int, from a register."""
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def _socket(thread, arguments, mine):
    family = signed(arguments[0])
    return {"call": "socket tcp6" if family == socket.AF_INET6 else "socket tcp"}


def _accept(thread, arguments, mine):
    return {"name": "accept", "call": "accept"}


def _bind(thread, arguments, mine):
    address = address_at(thread, arguments[1], arguments[2])
    return {"call": "bind %s" % (address or "?")} if mine or address else None


def _connect(thread, arguments, mine):
    address = address_at(thread, arguments[1], arguments[2])
    if address:
        return {"call": "connect %s" % address, "peer": address}
    if mine and memory(thread, arguments[1], 2) == b"\0\0":  # AF_UNSPEC
        return {"name": "disconnect", "call": "disconnect"}
    return {"call": "connect ?"} if mine else None


def _listen(thread, arguments, mine):
    return {"call": "listen %d" % (arguments[1] & 0x7FFFFFFF)}


def _shutdown(thread, arguments, mine):
    how = signed(arguments[1])
    return {"call": "shutdown %s" % HOW.get(how, how)}


def _set(thread, arguments, mine):
    level, number, pointer, length = arguments[1:5]
    option = signed(level), signed(number)
    name = OF_NUMBERS.get(option) or TIMERS[option]
    data = memory(thread, pointer, min(length & 0xFFFFFFFF, 16))
    if data is None:
        value = "?"
    elif name in TEXT_OPTIONS:
        value = "'%s'" % data.split(b"\0")[0].decode("ascii", "replace")
    else:
        numbers = struct.unpack("=%di" % (len(data) // 4), data[: len(data) // 4 * 4])
        read = numbers[: 2 if name == "SO_LINGER" else 1] or data[:1]  # by the kernel
        value = " ".join(map(str, read))
    return {"name": "set", "call": "set %s %s" % (name, value)}


def _get(thread, arguments, mine):
    return {} if mine.connecting else None  # SO_ERROR


def _recv(thread, arguments, mine):
    return {"name": "recv", "call": "recv"}


def _send(thread, arguments, mine):
    return {"name": "send", "call": "send"}


ASKED = {
    "socket": _socket, "accept": _accept, "accept4": _accept, "bind": _bind, "connect": _connect,
    "listen": _listen, "shutdown": _shutdown, "setsockopt": _set, "getsockopt": _get,
    **dict.fromkeys(READS, _recv), **dict.fromkeys(WRITES, _send),
}  # fmt: skip
"""What to tell of a call as it begins, by its thread, its arguments, and the socket that it is
about; None if it is not to be told."""
OF_ANY = ("accept", "accept4", "bind", "connect", "listen")
"""Calls that tell by themselves that it is a socket."""
