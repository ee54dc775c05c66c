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
import errno
import os
import platform
import signal
import socket
import struct
import threading
import time

import reasons
from calls import ERRNOS
from filters import MACHINES, READS, TIMERS, WRITES
from tracees import (
    address_at,
    ends_of,
    family_of,
    inode_of,
    libc,
    memory,
    permission,
    process_of,
    waits,
)
from underway import Allowance, Entered, Tcp, fds, number_of, setting, shutting, signed

WAIT_ALL = 0x40000000  # __WALL: threads too
GET_EVENT_MESSAGE, GET_SYSCALL_INFO = 0x4201, 0x420E
SEIZE, INTERRUPT, LISTEN = 0x4206, 0x4207, 0x4208
OF_A_RANGE = 4  # CLOSE_RANGE_CLOEXEC
CONT, TO_SYSCALL = 7, 24
FORK, VFORK, CLONE, EXEC, SECCOMP, STOP = 1, 2, 3, 4, 7, 128
FORKS = (FORK, VFORK, CLONE)
GOOD, EXITKILL = 1, 1 << 20
OPTIONS = GOOD | EXITKILL | sum(1 << event for event in (*FORKS, EXEC, SECCOMP))
ENTRY, EXIT = 1, 2
HEAD, CALL, RETURNED = struct.Struct("=B3xI2Q"), struct.Struct("=7Q"), struct.Struct("=qB")
INFO_SIZE = 88
MOST_RESTARTS = 512  # errors from here on are the kernel's own: the call begins anew

DUPLICATE = ("dup", "dup2", "dup3", "fcntl")
CUT = ("accept", "accept4", *READS, *WRITES)
UNMISSED = ("bind", "listen")
"""Calls that are told in a flood, too."""
FILTERED = (*UNMISSED, "socket", "accept", "connect", "shutdown", "set", "recv", "send", "fork")
"""Calls that are told as long as there is no flood of them."""
BLINDING = ("ptrace", "io_uring_setup")
BLOCKED = 0.025
"""After so many seconds, a call that has not returned is told."""


class Tracer:
    """Traces a process and all that it starts. All methods but `overdue` run in one thread.

    `say` takes events of the kinds `call` and `unseen`; `rouse` has `overdue` asked."""

    def __init__(self, main, say, rouse):
        self.main, self.say, self.rouse = main, say, rouse
        self.machine = MACHINES.get(platform.machine())
        self.names = {}
        if self.machine:
            self.names = {number: name for name, number in self.machine.numbers.items()}
        self.groups = {main: main}  # of each thread
        self.sockets = {main: {}}  # of each process, by descriptor
        self.unknown = set()  # processes with sockets that a flood has hidden
        self.free = set()  # threads that only the filter stops
        self.inside = {}  # of each thread
        self.lock = threading.Lock()
        self.calls = Allowance(reasons.CALLS_AT_ONCE, reasons.CALLS_A_SECOND)
        self.stops = Allowance(reasons.STOPS_AT_ONCE, reasons.STOPS_A_SECOND)
        self.unseen = set()
        self._info = ctypes.create_string_buffer(INFO_SIZE)

    def begin(self):
        """Traces `main` from now on. Raises OSError, with what helps."""
        if not self.machine:
            raise OSError(reasons.NO_MACHINE % platform.machine())
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
        (self.free.add if request == CONT else self.free.discard)(thread)
        libc.ptrace(request, thread, None, deliver)

    def ended(self, thread, status):
        """Takes in the end of a thread."""
        with self.lock:
            self.inside.pop(thread, None)
        self.free.discard(thread)
        process = self.groups.pop(thread, thread)
        if process == thread:
            self.unknown.discard(process)
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
            process, parent = process_of(thread)
            self._begun(thread, process, parent)

    def _socket(self, thread, fd):
        """The TCP socket that a descriptor is, or None: other processes may have handed it over,
        and what closed one may have been hidden."""
        mine = self.sockets[self.groups[thread]]
        known = mine.get(fd)
        if known and reasons.BUSY not in self.unseen:
            return known
        family = family_of(thread, fd)
        if family == 0:
            mine.pop(fd, None)
            return None
        if family and not known:
            known = Tcp(family, True)
            self._have(thread, fd, known)
        return known

    def _have(self, thread, fd, tcp):
        """A process has a socket. If it is the first, its other threads are stopped at each call
        from now on: those that wait for one another notice nothing of it, but others might."""
        process = self.groups[thread]
        mine = self.sockets[process]
        if not mine and reasons.BUSY not in self.unseen:
            for other in [t for t in self.free if self.groups[t] == process and t != thread]:
                if waits(other, self.machine.numbers["futex"]):
                    libc.ptrace(INTERRUPT, other, None, None)
        if fd in mine and reasons.BUSY not in self.unseen:
            self._unseen(reasons.BESIDE, FILTERED)
        mine[fd] = tcp

    def _steps(self, thread):
        """Whether to stop a thread at each call: if it may close a socket, while there is room."""
        if not self.sockets.get(self.groups[thread]):
            return False
        if not self.stops.take():
            self._unseen(reasons.BUSY, FILTERED)
            return False
        return True

    def _unseen(self, text, but=()):
        if text not in self.unseen:
            self.unseen.add(text)
            self.say(kind="unseen", t=time.monotonic(), text=text, but=list(but))

    # --- Calls ------------------------------------------------------------------------------------

    def _read_info(self, thread):
        if libc.ptrace(GET_SYSCALL_INFO, thread, INFO_SIZE, self._info) > 0:
            return True
        if ctypes.get_errno() != errno.ESRCH:  # it was not killed
            self._unseen("the kernel does not tell calls (PTRACE_GET_SYSCALL_INFO, Linux 5.3)")
        return False

    def _entered(self, thread):
        """A call that the filter stops at begins."""
        if not self._read_info(thread):
            return CONT
        number, *arguments = CALL.unpack_from(self._info, HEAD.size)
        name = self.names.get(number)
        foreign = HEAD.unpack_from(self._info)[1] != self.machine.arch
        if name is None or foreign:
            self._unseen(reasons.FOREIGN if foreign else reasons.ITS_OWN)
            return None
        if name in UNMISSED or name in BLINDING or self.calls.take():
            return self._enter(thread, name, arguments, False)
        self._unseen(reasons.FLOOD, UNMISSED)
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
        if name not in ("socket", *BLINDING):
            event["fd"] = signed(arguments[0])
        before = self._cut(thread)
        if before and (before.name, before.arguments) == (name, arguments):
            return TO_SYSCALL  # it begins anew
        if before:
            self._tell(process, before, "EINTR")
        mine = self.sockets[process].get(event.get("fd"))
        quiet = quiet or (name == "connect" and mine is not None and mine.connecting is not None)
        with self.lock:
            self.inside[thread] = Entered(name, arguments, event, quiet)
        self.rouse()
        return TO_SYSCALL

    def _cut(self, thread):
        """The call of a thread that a signal has interrupted, or None; it is no longer so."""
        call = self.inside.get(thread)
        if not (call and call.cut):
            return None
        call.cut = False
        return call

    def _told(self, thread, name, arguments):
        """What to tell of a call as it begins; None if it is not to be told."""
        process = self.groups[thread]
        fd = signed(arguments[0])
        if name == "socket":
            return {"call": "socket tcp6" if signed(arguments[0]) == 10 else "socket tcp"}
        if name in BLINDING:
            return {}
        mine = self._socket(thread, fd)
        if mine is None and process not in self.unknown:
            return None
        if name in ("accept", "accept4"):
            return {"name": "accept", "call": "accept"}
        if name in ("bind", "connect"):
            address = address_at(thread, arguments[1], arguments[2])
            if not (mine or address):
                return None
            if name == "connect" and memory(thread, arguments[1], 2) == b"\0\0":  # AF_UNSPEC
                return {"name": "disconnect", "call": "disconnect"}
            words = {"call": "%s %s" % (name, address or "?")}
            return dict(words, peer=address) if name == "connect" and address else words
        if name == "listen":
            return {"call": "listen %d" % (arguments[1] & 0x7FFFFFFF)}
        if mine is None:
            return None
        if name == "shutdown":
            return {"call": shutting(arguments[1])}
        if name == "setsockopt":
            return {"name": "set", "call": setting(thread, *arguments[1:5])}
        if name == "getsockopt":
            return {} if mine.connecting else None
        if name in READS + WRITES:
            word = "recv" if name in READS else "send"
            return {"name": word, "call": word}
        return {}

    def _at_call(self, thread):
        """A thread that is stopped at each call begins one, or one returns."""
        if not self._read_info(thread):
            return CONT
        kind = self._info.raw[0]
        if kind == EXIT:
            value, failed = RETURNED.unpack_from(self._info, HEAD.size)
            call = self.inside.get(thread)
            if call and not call.cut:
                with self.lock:
                    del self.inside[thread]
                self._returned(thread, call, value if failed else max(value, 0))
        elif kind == ENTRY:
            number, *arguments = CALL.unpack_from(self._info, HEAD.size)
            name = self.names.get(number)
            mine = self.sockets[self.groups[thread]]
            if name == "close" and signed(arguments[0]) in mine:
                return self._enter(thread, name, arguments, False)
            if name == "setsockopt" and tuple(map(signed, arguments[1:3])) in TIMERS:
                return self._enter(thread, name, arguments, False)
            if name == "close_range" or (name in DUPLICATE and mine.keys() & set(fds(arguments))):
                event = {"t": time.monotonic()}
                with self.lock:
                    self.inside[thread] = Entered(name, arguments, event, True)
                return TO_SYSCALL
        return None

    def _returned(self, thread, call, value):
        name, event, process = call.name, call.event, self.groups[thread]
        mine = self.sockets[process]
        fd = signed(call.arguments[0])
        if value <= -MOST_RESTARTS and name in CUT:
            call.cut = True
            with self.lock:
                self.inside[thread] = call
        if value <= -MOST_RESTARTS:
            if name != "connect":
                return
            value = -errno.EINTR
        code = ERRNOS.get(-value, str(-value)) if value < 0 else None
        if name in DUPLICATE:
            self._duplicated(process, call, value)
            return
        if name == "close_range":
            first, last, how = (argument & 0xFFFFFFFF for argument in call.arguments[:3])
            if not value and not how & OF_A_RANGE:
                for each in sorted(each for each in mine if first <= each <= last):
                    self._closed(process, each, "close")
            return
        if name == "ptrace":
            if code == "EPERM":
                self._unseen(reasons.TRACES)
            return
        if name == "io_uring_setup":
            if not code:
                self._unseen(reasons.RING)
            return
        if name in ("accept", "accept4"):
            if code == "EAGAIN" and not call.told:
                return
            if not code:
                self._accepted(mine, thread, call, value)
        elif name == "getsockopt":
            if fd in mine:
                self._connected(thread, mine[fd], call)
            return
        elif name in READS + WRITES:
            if code == "EAGAIN" and not call.told:
                return
            if not code:
                event.update({"eof": value == 0} if name in READS else {}, result=value)
        elif name == "socket" and not code:
            kept = not call.arguments[1] & os.O_CLOEXEC
            self._have(thread, value, Tcp(signed(call.arguments[0]), kept))
            event["fd"] = value
        elif name == "close" and not code:
            gone = mine.pop(fd, None)
            if gone in mine.values():
                return  # another descriptor of it is left
        elif name == "connect":
            if event["name"] == "disconnect":
                if fd in mine:
                    mine[fd].connecting = None
            elif code in ("EINPROGRESS", "EINTR") and fd in mine:
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
        self._have(thread, value, Tcp(family, kept))
        local, remote = ends_of(self.groups[thread], thread, value, family)
        event.update(local=local, peer=remote or peer)

    def _name(self, process, event):
        """Adds the ends of a socket, as far as they can be known."""
        fd, thread = event["fd"], event.get("thread", process)
        mine = self.sockets[process].get(fd)
        local, remote = ends_of(process, thread, fd, mine.family) if mine else (None, None)
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

    def _duplicated(self, process, call, value):
        if value < 0 or (call.name == "fcntl" and signed(call.arguments[1]) not in (0, 1030)):
            return  # it is not F_DUPFD, nor F_DUPFD_CLOEXEC
        mine, fd = self.sockets[process], signed(call.arguments[0])
        if value != fd and value in mine:
            self._closed(process, value, "close (by dup)")
        if fd in mine:
            mine[value] = mine[fd]

    def _closed(self, process, fd, call):
        """A descriptor is closed by a call for more than that."""
        mine = self.sockets[process]
        if mine.pop(fd) not in mine.values():
            self.say(kind="call", t=time.monotonic(), pid=process, phase="done", call=call,
                     name="close", fd=fd)  # fmt: skip

    # --- Processes --------------------------------------------------------------------------------

    def _forked(self, thread, event):
        message = ctypes.c_ulong()
        if libc.ptrace(GET_EVENT_MESSAGE, thread, None, ctypes.addressof(message)):
            return  # it was killed
        child, parent = message.value, self.groups[thread]
        if child not in self.groups:
            self._begun(child, process_of(child)[0] if event == CLONE else child, parent)

    def _begun(self, child, process, parent):
        """Takes in a thread or a process, which may stop before its parent says so."""
        self.groups[child] = process
        if process in self.sockets or process != child:
            return
        self.sockets[child] = dict(self.sockets.get(parent, {}))
        if parent in self.unknown:
            self.unknown.add(child)
        if self.sockets[child]:
            self.say(kind="call", t=time.monotonic(), pid=parent, phase="done", call="fork",
                     name="fork", result=child)  # fmt: skip

    def _executed(self, thread):
        """Only descriptors without FD_CLOEXEC are left, and one thread (execve(2))."""
        if self._read_info(thread) and HEAD.unpack_from(self._info)[1] != self.machine.arch:
            self._unseen(reasons.FOREIGN)
        with self.lock:
            for other in [t for t, p in self.groups.items() if p == thread and t != thread]:
                del self.groups[other]
                self.inside.pop(other, None)
            self.inside.pop(thread, None)
        mine = self.sockets[thread]
        for fd, each in list(mine.items()):
            left = inode_of(thread, fd)
            if left is None if os.access("/proc/%d/fd" % thread, os.R_OK) else not each.kept:
                self._closed(thread, fd, "close (on exec)")
