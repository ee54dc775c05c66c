"""The socket calls of any program, as it makes them: by ptrace(2) and a seccomp filter.

The filter (filters.py) stops a program at these calls and lets all others run at full speed.
`close` is not among them, since servers close files as well, one for each request: a process that
has TCP sockets is stopped at each call instead, as long as there is room for that. Of a flood of
calls only those are told that bind and listen, and connects that fail.

Nothing outside a process is needed for that, and no capability: a parent may trace its children
unless Yama forbids it. The filter can't be taken off again, and needs a tracer: if the supervisor
ends, all that it traces ends with it.

Standard library only, Python 3.6 or later. The numbers are those of linux/ptrace.h.
"""

import ctypes
import os
import platform
import signal
import socket
import struct
import threading
import time

from calls import ERRNOS, TEXT_OPTIONS
from filters import MACHINES, OF_NUMBERS, READS, TIMERS, WRITES
from tracees import address_at, ends_of, inode_of, libc, memory, permission, process_of

WAIT_ALL = 0x40000000  # __WALL: threads too
GET_EVENT_MESSAGE, SEIZE, LISTEN, GET_SYSCALL_INFO = 0x4201, 0x4206, 0x4208, 0x420E
CONT, TO_SYSCALL = 7, 24
FORK, VFORK, CLONE, EXEC, SECCOMP, STOP = 1, 2, 3, 4, 7, 128
FORKS = (FORK, VFORK, CLONE)
GOOD, EXITKILL = 1, 1 << 20
OPTIONS = GOOD | EXITKILL | sum(1 << event for event in (*FORKS, EXEC, SECCOMP))
ENTRY, EXIT = 1, 2
HEAD, CALL, RETURNED = struct.Struct("=B3xI2Q"), struct.Struct("=7Q"), struct.Struct("=qB")
INFO_SIZE = 88
MOST_RESTARTS = 512  # errors from here on are the kernel's own: the call begins anew

HOW = ("rd", "wr", "rdwr")
UNMISSED = ("bind", "listen")
"""Calls that are told in a flood, too."""
FILTERED = (*UNMISSED, "socket", "accept", "connect", "shutdown", "set", "recv", "send", "fork")
"""Calls that are told as long as there is no flood of them."""
CALLS_AT_ONCE, CALLS_A_SECOND = 1000, 200
STOPS_AT_ONCE, STOPS_A_SECOND = 4000, 500
BLOCKED = 0.025
"""After so many seconds, a call that has not returned is told."""
NO_MACHINE = "on %s no program's calls are traced; allowed: x86_64, aarch64"
FLOOD = ("more than %d calls in a short time, and %d a second: not all later ones are "
         "recorded" % (CALLS_AT_ONCE, CALLS_A_SECOND))  # fmt: skip
BUSY = ("more than %d calls of any kind while it had sockets, and %d a second: not all that close "
        "are recorded" % (STOPS_AT_ONCE / 2, STOPS_A_SECOND / 2))  # fmt: skip
RING = "it uses io_uring, and calls that go that way are not seen"
TRACES = "it traces processes itself, which labctl's tracing forbids; set 'calls: off'"
FOREIGN = "it is a program for another machine (32 bits?), whose calls are not seen"


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
    many."""

    __slots__ = ("arguments", "event", "name", "quiet", "since", "told")

    def __init__(self, name, arguments, event, quiet):
        self.name, self.arguments, self.event, self.quiet = name, arguments, event, quiet
        self.told, self.since = False, event["t"]


class Tcp:
    """A TCP socket of a process."""

    __slots__ = ("connecting", "family", "kept")

    def __init__(self, family, kept):
        self.family = family
        self.kept = kept  # by a program that is executed
        self.connecting = None


class Tracer:
    """Traces a process and all that it starts. All methods but `overdue` run in one thread.

    `say` takes events of the kinds `call` and `unseen`."""

    def __init__(self, main, say):
        self.main, self.say = main, say
        self.machine = MACHINES.get(platform.machine())
        self.names = {}
        if self.machine:
            self.names = {number: name for name, number in self.machine.numbers.items()}
        self.groups = {main: main}  # of each thread
        self.sockets = {main: {}}  # of each process, by descriptor
        self.unknown = set()  # processes with sockets that a flood has hidden
        self.inside = {}  # of each thread
        self.lock = threading.Lock()
        self.calls = Allowance(CALLS_AT_ONCE, CALLS_A_SECOND)
        self.stops = Allowance(STOPS_AT_ONCE, STOPS_A_SECOND)
        self.unseen = set()
        self._info = ctypes.create_string_buffer(INFO_SIZE)

    def begin(self):
        """Traces `main` from now on. Raises OSError, with what helps."""
        if not self.machine:
            raise OSError(NO_MACHINE % platform.machine())
        if libc.ptrace(SEIZE, self.main, None, OPTIONS):
            code = ctypes.get_errno()
            raise OSError("ptrace(2) is refused: %s; %s" % (os.strerror(code), permission()))

    def stopped(self, thread, status):
        """Does what a stop asks for, and lets the thread go on."""
        event, number, deliver = status >> 16, os.WSTOPSIG(status), 0
        self._group(thread)
        request = None
        if event == SECCOMP:
            request = self._entered(thread)
        elif number == signal.SIGTRAP | 0x80:
            request = self._at_call(thread)
        elif event == STOP:
            if number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
                request = LISTEN  # all of it is stopped, until a SIGCONT
        elif event in FORKS:
            self._forked(thread, event)
        elif event == EXEC:
            self._executed(thread)
        elif not event:
            deliver = number
        if request is None:
            request = TO_SYSCALL if self._steps(thread) else CONT
        libc.ptrace(request, thread, None, deliver)

    def ended(self, thread, status):
        """Takes in the end of a thread."""
        with self.lock:
            self.inside.pop(thread, None)
        process = self.groups.pop(thread, thread)
        if process == thread:
            found = self.sockets.pop(process, None)
            if found and process != self.main:
                how = "exit %d" % (status >> 8)
                if os.WIFSIGNALED(status):
                    how = "exit by signal %d" % os.WTERMSIG(status)
                self.say(kind="call", t=time.monotonic(), pid=process, phase="done", call=how,
                         name="exit")  # fmt: skip

    def overdue(self, now):
        """The calls that have not returned for a while, as events that were not told yet; and when
        to ask again, or None. For another thread."""
        found, due = [], None
        with self.lock:
            for call in self.inside.values():
                if call.told or call.quiet:
                    continue
                if now - call.since >= BLOCKED:
                    call.told = True
                    found.append(dict(call.event, phase="enter"))
                else:
                    due = call.since if due is None else min(due, call.since)
        return found, None if due is None else due + BLOCKED

    def _group(self, thread):
        if thread not in self.groups:
            self.groups[thread] = process = process_of(thread)
            self.sockets.setdefault(process, {})

    def _steps(self, thread):
        """Whether to stop a thread at each call: if it may close a socket, while there is room."""
        if not self.sockets.get(self.groups[thread]):
            return False
        if not self.stops.take():
            self._unseen(BUSY, FILTERED)
            return False
        return True

    def _unseen(self, text, but=()):
        if text not in self.unseen:
            self.unseen.add(text)
            self.say(kind="unseen", t=time.monotonic(), text=text, but=list(but))

    # --- Calls ------------------------------------------------------------------------------------

    def _read_info(self, thread):
        return libc.ptrace(GET_SYSCALL_INFO, thread, INFO_SIZE, self._info) > 0

    def _entered(self, thread):
        """A call that the filter stops at begins."""
        if not self._read_info(thread):
            self._unseen("the kernel does not tell calls (PTRACE_GET_SYSCALL_INFO, Linux 5.3)")
            return CONT
        number, *arguments = CALL.unpack_from(self._info, HEAD.size)
        name = self.names[number]
        if name in UNMISSED or self.calls.take():
            return self._enter(thread, name, arguments, False)
        self._unseen(FLOOD, UNMISSED)
        if name == "connect":
            return self._enter(thread, name, arguments, True)
        if name == "socket":
            self.unknown.add(self.groups[thread])
        return CONT

    def _enter(self, thread, name, arguments, quiet):
        process = self.groups[thread]
        told = self._told(thread, name, arguments)
        if told is None:
            return None
        event = {"kind": "call", "t": time.monotonic(), "pid": process, "name": name, "call": name}
        if thread != process:
            event["thread"] = thread
        event.update(told)
        if name not in ("socket", "ptrace", "io_uring_setup"):
            event["fd"] = signed(arguments[0])
        with self.lock:
            self.inside[thread] = Entered(name, arguments, event, quiet)
        self.say()
        return TO_SYSCALL

    def _told(self, thread, name, arguments):
        """What to tell of a call as it begins; None if it is not to be told."""
        process = self.groups[thread]
        fd = signed(arguments[0])
        mine = self.sockets[process].get(fd)
        if name == "socket":
            return {"call": "socket tcp6" if arguments[0] == 10 else "socket tcp"}
        if name in ("ptrace", "io_uring_setup"):
            return {}
        if name in ("accept", "accept4"):
            return {"name": "accept", "call": "accept"}
        if name in ("bind", "connect"):
            address = address_at(thread, arguments[1], arguments[2])
            if not (mine or (address and process in self.unknown)):
                return None
            words = {"call": "%s %s" % (name, address or "?")}
            return dict(words, peer=address) if name == "connect" and address else words
        if name == "listen":
            return {"call": "listen %d" % max(0, signed(arguments[1]))}
        if mine is None:
            return None
        if name == "shutdown":
            return {"call": "shutdown %s" % HOW[arguments[1] if arguments[1] < 3 else 2]}
        if name == "setsockopt":
            return {"name": "set", "call": self._set(thread, *arguments[1:5])}
        if name == "getsockopt":
            return {} if mine.connecting else None
        if name in READS + WRITES:
            return (
                {"name": "recv", "call": "recv"}
                if name in READS
                else {"name": "send", "call": "send"}
            )
        return {}

    def _set(self, thread, level, number, pointer, length):
        option = signed(level), signed(number)
        name = OF_NUMBERS.get(option) or TIMERS[option]
        data = memory(thread, pointer, min(length, 16))
        if data is None:
            return "set %s ?" % name
        if name in TEXT_OPTIONS:
            return "set %s '%s'" % (name, data.split(b"\0")[0].decode("ascii", "replace"))
        values = struct.unpack("=%di" % (len(data) // 4), data[: len(data) // 4 * 4])
        return " ".join(["set", name] + [str(value) for value in values or (data[:1] or b"0")[:1]])

    def _at_call(self, thread):
        """A thread that is stopped at each call begins one, or one returns."""
        if not self._read_info(thread):
            return CONT
        kind = self._info.raw[0]
        if kind == EXIT:
            value, failed = RETURNED.unpack_from(self._info, HEAD.size)
            with self.lock:
                call = self.inside.pop(thread, None)
            if call:
                self._returned(thread, call, value if failed else max(value, 0))
        elif kind == ENTRY:
            number, *arguments = CALL.unpack_from(self._info, HEAD.size)
            name = self.names.get(number)
            mine = self.sockets[self.groups[thread]]
            if name == "close" and signed(arguments[0]) in mine:
                return self._enter(thread, name, arguments, False)
            if name == "setsockopt" and tuple(map(signed, arguments[1:3])) in TIMERS:
                return self._enter(thread, name, arguments, False)
            if name in ("dup", "dup2", "dup3", "fcntl") and signed(arguments[0]) in mine:
                event = {"t": time.monotonic()}
                with self.lock:
                    self.inside[thread] = Entered(name, arguments, event, True)
                return TO_SYSCALL
        return None

    def _returned(self, thread, call, value):
        name, event, process = call.name, call.event, self.groups[thread]
        mine = self.sockets[process]
        fd = signed(call.arguments[0])
        if value <= -MOST_RESTARTS:
            return
        code = ERRNOS.get(-value) if value < 0 else None
        if name in ("dup", "dup2", "dup3", "fcntl"):
            self._duplicated(mine, name, call.arguments, value)
            return
        if name == "ptrace":
            if code == "EPERM":
                self._unseen(TRACES)
            return
        if name == "io_uring_setup":
            if not code:
                self._unseen(RING)
            return
        if name in ("accept", "accept4"):
            if code == "EAGAIN":
                return
            if not code:
                self._accepted(mine, thread, call, value)
        elif name == "getsockopt":
            self._connected(thread, mine[fd], call)
            return
        elif name in READS + WRITES:
            if code == "EAGAIN":
                return
            if not code:
                event.update(result=value, eof=value == 0) if name in READS else event.update(
                    result=value
                )
        elif name == "socket" and not code:
            mine[value] = Tcp(call.arguments[0], not call.arguments[1] & os.O_CLOEXEC)
            event["fd"] = value
        elif name == "close" and not code:
            gone = mine.pop(fd, None)
            if gone in mine.values():
                return  # another descriptor of it is left
        elif name == "connect":
            if code == "EINPROGRESS" and fd in mine:
                mine[fd].connecting = Entered(name, call.arguments, event, call.quiet)
                mine[fd].connecting.told = call.told
                if not call.told and not call.quiet:
                    self.say(**dict(event, phase="enter"))
                    mine[fd].connecting.told = True
                return
            if code in ("EALREADY", "EAGAIN"):
                return
            waiting = fd in mine and mine[fd].connecting
            if waiting:  # it asks again, and is told how that went
                mine[fd].connecting = None
                call = waiting
                event = call.event
                code = None if code == "EISCONN" else code
        self._tell(process, call, code)

    def _tell(self, process, call, code):
        """Tells how a call went."""
        event = call.event
        if call.quiet and not code:
            return
        if code:
            event.update(errno=code, error=os.strerror(number_of(code)))
        if call.name == "listen" or (not code and call.name in ("bind", "connect")):
            self._name(process, event)
        if not call.told:
            enter = dict(event, phase="enter")
            for key in ("errno", "error", "result", "eof"):
                enter.pop(key, None)
            self.say(**enter)
        self.say(**dict(event, phase="done", t=time.monotonic()))

    def _accepted(self, mine, thread, call, value):
        listener, event = mine.get(signed(call.arguments[0])), call.event
        peer = None
        if call.arguments[1]:
            length = memory(thread, call.arguments[2], 4)
            size = struct.unpack("=I", length)[0] if length else 0
            peer = address_at(thread, call.arguments[1], size)
        kept = not (call.name == "accept4" and call.arguments[3] & os.O_CLOEXEC)
        event["result"] = value
        family = listener.family if listener else socket.AF_INET
        if peer and peer.startswith("["):
            family = socket.AF_INET6
        mine[value] = Tcp(family, kept)
        local, remote = ends_of(self.groups[thread], value, family)
        event.update(local=local, peer=remote or peer)

    def _name(self, process, event):
        """Adds the ends of a socket, as far as they can be known."""
        mine = self.sockets[process].get(event["fd"])
        local, remote = ends_of(process, event["fd"], mine.family) if mine else (None, None)
        if event["name"] == "connect":
            event["peer"] = remote or event.get("peer")
        elif event["name"] == "bind" and not event["call"].endswith((":0", "?")):
            asked = event["call"].split()[1]
            local = local or ("0.0.0.0" + asked if asked.startswith(":") else asked)
        event["local"] = local

    def _connected(self, thread, mine, call):
        """A program asks how its connect went (connect(2), EINPROGRESS)."""
        data = memory(thread, call.arguments[3], 4)
        if data is None:
            return
        number = struct.unpack("=i", data)[0]
        waiting, mine.connecting = mine.connecting, None
        if waiting:
            self._tell(self.groups[thread], waiting, ERRNOS.get(number) if number else None)

    @staticmethod
    def _duplicated(mine, name, arguments, value):
        if value < 0 or (name == "fcntl" and arguments[1] not in (0, 1030)):  # F_DUPFD(_CLOEXEC)
            return
        mine[value] = mine[signed(arguments[0])]

    # --- Processes --------------------------------------------------------------------------------

    def _forked(self, thread, event):
        message = ctypes.c_ulong()
        libc.ptrace(GET_EVENT_MESSAGE, thread, None, ctypes.addressof(message))
        child, parent = message.value, self.groups[thread]
        process = process_of(child) if event == CLONE else child
        self.groups[child] = process
        if process == parent or process != child:
            return
        self.sockets[child] = dict(self.sockets[parent])
        if parent in self.unknown:
            self.unknown.add(child)
        if self.sockets[child]:
            self.say(kind="call", t=time.monotonic(), pid=parent, phase="done", call="fork",
                     name="fork", result=child)  # fmt: skip

    def _executed(self, thread):
        """Only descriptors without FD_CLOEXEC are left, and one thread (execve(2))."""
        if self._read_info(thread) and HEAD.unpack_from(self._info)[1] != self.machine.arch:
            self._unseen(FOREIGN)
        with self.lock:
            for other in [t for t, p in self.groups.items() if p == thread and t != thread]:
                del self.groups[other]
                self.inside.pop(other, None)
            self.inside.pop(thread, None)
        mine = self.sockets[thread]
        for fd, each in list(mine.items()):
            left = inode_of(thread, fd)
            if left is None if os.access("/proc/%d/fd" % thread, os.R_OK) else not each.kept:
                del mine[fd]
                if each not in mine.values():
                    self.say(kind="call", t=time.monotonic(), pid=thread, phase="done",
                             call="close (on exec)", name="close", fd=fd)  # fmt: skip


def signed(value):
    """A C int, from a register."""
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def number_of(code):
    return next(number for number, name in ERRNOS.items() if name == code)
