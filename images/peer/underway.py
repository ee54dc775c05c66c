"""A call under way, the socket that it is about, and what it asks for, in words.

Standard library only, Python 3.6 or later.
"""

import struct
import time

from calls import ERRNOS, TEXT_OPTIONS
from filters import OF_NUMBERS, TIMERS
from tracees import memory

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
    many; `cut`: a signal has interrupted it, and it may begin anew."""

    __slots__ = ("arguments", "cut", "event", "name", "quiet", "since", "told")

    def __init__(self, name, arguments, event, quiet):
        self.name, self.arguments, self.event, self.quiet = name, arguments, event, quiet
        self.told, self.cut, self.since = False, False, event["t"]


class Tcp:
    """A TCP socket of a process."""

    __slots__ = ("connecting", "family", "kept")

    def __init__(self, family, kept):
        self.family = family
        self.kept = kept  # by a program that is executed
        self.connecting = None


def shutting(how):
    """A shutdown, as a call of the peer."""
    return "shutdown %s" % HOW.get(signed(how), signed(how))


def setting(thread, level, number, pointer, length):
    """A setsockopt of a thread, as a call of the peer."""
    option = signed(level), signed(number)
    name = OF_NUMBERS.get(option) or TIMERS[option]
    data = memory(thread, pointer, min(length & 0xFFFFFFFF, 16))
    if data is None:
        return "set %s ?" % name
    if name in TEXT_OPTIONS:
        return "set %s '%s'" % (name, data.split(b"\0")[0].decode("ascii", "replace"))
    values = struct.unpack("=%di" % (len(data) // 4), data[: len(data) // 4 * 4])
    read = values[: 2 if name == "SO_LINGER" else 1] or data[:1]  # by the kernel
    return " ".join(["set", name] + [str(value) for value in read])


def signed(value):
    """A C int, from a register."""
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def number_of(code):
    return next((number for number, name in ERRNOS.items() if name == code), None) or int(code)


def fds(arguments):
    """Both descriptors of a call that duplicates one."""
    return signed(arguments[0]), signed(arguments[1])
