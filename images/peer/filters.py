"""A seccomp filter that stops a program at its socket calls, for whoever traces it (seccomp(2)).

Standard library only, Python 3.6 or later. The numbers are those of linux/seccomp.h,
linux/bpf_common.h, linux/audit.h, and of asm/unistd.h for each machine.
"""

import collections
import ctypes
import os
import socket
import struct

from options import option

libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
RET_ALLOW, RET_TRACE = 0x7FFF0000, 0x7FF00000
LOAD, EQUALS, AND, RETURN = 0x20, 0x15, 0x54, 0x06

Machine = collections.namedtuple("Machine", "arch numbers foreign")
"""`foreign`: socketcall and socket of its programs of 32 bits, which others may call as well."""

READS, WRITES = ("read", "readv", "recvfrom", "recvmsg"), ("write", "writev", "sendto", "sendmsg")
NAMES = (
    "socket", "bind", "listen", "connect", "accept", "accept4", "shutdown", "setsockopt",
    "getsockopt", "close", "close_range", "dup", "dup2", "dup3", "fcntl", "ptrace",
    "io_uring_setup", "futex", *READS, *WRITES,
)  # fmt: skip
MACHINES = {
    "x86_64": Machine(0xC000003E, dict(zip(NAMES, (
        41, 49, 50, 42, 43, 288, 48, 54, 55, 3, 436, 32, 33, 292, 72, 101, 425, 202, 0, 19, 45, 47,
        1, 20, 44, 46))), (102, 359)),
    "aarch64": Machine(0xC00000B7, dict(zip(NAMES, (
        198, 200, 201, 203, 202, 242, 210, 208, 209, 57, 436, 23, None, 24, 25, 117, 425, 98, 63,
        65, 207, 212, 64, 66, 206, 211))), (102, 281)),
}  # fmt: skip
TOLD_OPTIONS = (
    "SO_REUSEADDR", "SO_REUSEPORT", "SO_LINGER", "SO_KEEPALIVE", "SO_BINDTODEVICE", "TCP_SYNCNT",
    "TCP_LINGER2", "TCP_DEFER_ACCEPT", "TCP_USER_TIMEOUT", "TCP_FASTOPEN", "IP_FREEBIND",
    "IP_BIND_ADDRESS_NO_PORT", "IP_LOCAL_PORT_RANGE", "IPV6_V6ONLY",
)  # fmt: skip
OF_NUMBERS = {option(name): name for name in TOLD_OPTIONS}
TIMERS = {option(name): name for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")}
"""Options that servers set on each connection: the filter leaves them out."""
SO_ERROR = (socket.SOL_SOCKET, 4)
FAMILIES = (socket.AF_INET, socket.AF_INET6)


def rules(io):
    """The calls to tell: a name, and for some of its arguments a mask, or None, and the values that
    matter. With `io`, those that read and write too."""
    by_level = collections.OrderedDict()
    for level, number in OF_NUMBERS:
        by_level.setdefault(level, []).append(number)
    found = [(name, ()) for name in ("bind", "listen", "connect", "accept", "accept4", "shutdown",
                                     "ptrace", "io_uring_setup")]  # fmt: skip
    found += [("socket", ((0, None, FAMILIES), (1, 0xF, (socket.SOCK_STREAM,))))]
    found += [("setsockopt", ((1, None, (level,)), (2, None, tuple(options))))
              for level, options in by_level.items()]  # fmt: skip
    found += [("getsockopt", ((1, None, SO_ERROR[:1]), (2, None, SO_ERROR[1:])))]
    return found + [(name, ()) for name in READS + WRITES if io]


def matches(rule, arguments):
    """Whether a call of that name is one of this rule, by its arguments."""
    return all((arguments[argument] & 0xFFFFFFFF & (mask or 0xFFFFFFFF)) in values
               for argument, mask, values in rule[1])  # fmt: skip


def filter_of(machine, io):
    """A seccomp filter (struct sock_filter[]) that stops at the calls to tell."""
    numbers = machine.numbers
    code = [(LOAD, 0, 0, 4), (EQUALS, 3 + len(machine.foreign), 0, machine.arch),
            (LOAD, 0, 0, 0)]  # fmt: skip
    code += [(EQUALS, len(machine.foreign) - i, 0, each)
             for i, each in enumerate(machine.foreign)]  # fmt: skip
    code += [(RETURN, 0, 0, RET_ALLOW), (RETURN, 0, 0, RET_TRACE)]
    for name, conditions in rules(io):
        rule = [(LOAD, 0, 0, 0), (EQUALS, 0, None, numbers[name])]
        for argument, mask, values in conditions:
            rule += [(LOAD, 0, 0, 16 + 8 * argument)]  # its lower half
            rule += [(AND, 0, 0, mask)] if mask else []
            rule += [(EQUALS, len(values) - 1 - i, None if i == len(values) - 1 else 0, value)
                     for i, value in enumerate(values)]  # fmt: skip
        rule += [(RETURN, 0, 0, RET_TRACE)]
        for at, (operation, then, otherwise, value) in enumerate(rule):
            past = len(rule) - 1 - at
            code.append((operation, then, past if otherwise is None else otherwise, value))
    code.append((RETURN, 0, 0, RET_ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def confine(code):
    """Sets a filter for this process and all that it starts. Raises OSError."""
    kept = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(kept))
    for words in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                  (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)):  # fmt: skip
        if libc.prctl(*words):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
