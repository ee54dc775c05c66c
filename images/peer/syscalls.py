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
import signal
import threading
import time

import reasons
from filters import MACHINES, READS, TIMERS, WRITES
from returned import DUPLICATE, RETURNED
from tracees import Info, ends_of, family_of, inode_of, libc, permission, process_of, waits
from underway import ASKED, OF_ANY, Allowance, Entered, Tcp, fds, number_of, signed

WAIT_ALL = 0x40000000  # __WALL: threads too
GET_EVENT_MESSAGE = 0x4201
SEIZE, INTERRUPT, LISTEN = 0x4206, 0x4207, 0x4208
CONT, TO_SYSCALL = 7, 24
FORK, VFORK, CLONE, EXEC, SECCOMP, STOP = 1, 2, 3, 4, 7, 128
FORKS = (FORK, VFORK, CLONE)
GOOD, EXITKILL = 1, 1 << 20
OPTIONS = GOOD | EXITKILL | sum(1 << event for event in (*FORKS, EXEC, SECCOMP))
ENTRY, EXIT = 1, 2
MOST_RESTARTS = 512  # errors from here on are the kernel's own: the call begins anew

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

    busy, still = reasons.BUSY, FILTERED
    """Why not all calls are told if there is no room for more stops, and which still are."""

    def __init__(self, say, rouse):
        self.say, self.rouse = say, rouse
        self.main = None
        self.machine = MACHINES.get(os.uname().machine)
        self.names = {}
        if self.machine:
            self.names = {number: name for name, number in self.machine.numbers.items()}
        self.groups = {}  # of each thread
        self.sockets = {}  # of each process, by descriptor
        self.unknown = set()  # processes with sockets that a flood has hidden
        self.free = set()  # threads that only the filter stops
        self.inside = {}  # of each thread
        self.lock = threading.Lock()
        self.calls = Allowance(reasons.CALLS_AT_ONCE, reasons.CALLS_A_SECOND)
        self.stops = Allowance(reasons.STOPS_AT_ONCE, reasons.STOPS_A_SECOND)
        self.unseen = {}  # why not all calls are told, and which still are
        self._info = Info()

    def begin(self, main):
        """Traces `main` from now on. Raises OSError, with what helps."""
        if not self.machine:
            raise OSError(reasons.NO_MACHINE % os.uname().machine)
        if libc.ptrace(SEIZE, main, None, OPTIONS):
            code = ctypes.get_errno()
            raise OSError("ptrace(2) is refused: %s; %s" % (os.strerror(code), permission()))
        self.main = self.groups[main] = main
        self.sockets[main] = {}

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

    def mine(self, thread):
        """The sockets of a thread's process, by descriptor."""
        return self.sockets[self.groups[thread]]

    def _group(self, thread):
        if thread not in self.groups:
            process, parent = process_of(thread)
            self._begun(thread, process, parent)

    def _socket(self, thread, fd):
        """The TCP socket that a descriptor is, or None: other processes may have handed it over,
        and what closed one may have been hidden."""
        mine = self.mine(thread)
        known = mine.get(fd)
        if known and self.busy not in self.unseen:
            return known
        family = family_of(thread, fd)
        if family == 0:
            mine.pop(fd, None)
            return None
        if family and not known:
            known = Tcp(family, True)
            self.have(thread, fd, known)
        return known

    def have(self, thread, fd, tcp):
        """A process has a socket. If it is the first, its other threads are stopped at each call
        from now on: those that wait for one another notice nothing of it, but others might."""
        process = self.groups[thread]
        mine = self.sockets[process]
        if not mine and self.busy not in self.unseen:
            for other in [t for t in self.free if self.groups[t] == process and t != thread]:
                if waits(other, self.machine.numbers["futex"]):
                    libc.ptrace(INTERRUPT, other, None, None)
        if fd in mine and self.busy not in self.unseen:
            self.blind(reasons.BESIDE, FILTERED)
        mine[fd] = tcp

    def _steps(self, thread):
        """Whether to stop a thread at each call: if that may tell something, while there is
        room."""
        if not self._matters(self.groups[thread]):
            return False
        if not self.stops.take():
            self.blind(self.busy, self.still)
            return False
        return True

    def _matters(self, process):
        """Whether a process may close a socket."""
        return bool(self.sockets.get(process))

    def blind(self, text, but=()):
        """From now on not all calls are told."""
        if text not in self.unseen:
            self.unseen[text] = list(but)
            self.say(kind="unseen", t=time.monotonic(), text=text, but=list(but))

    # --- Calls ------------------------------------------------------------------------------------

    def _read_info(self, thread):
        try:
            self._info.read(thread)
        except OSError as exc:
            if exc.errno != errno.ESRCH:  # it was not killed
                self.blind("the kernel does not tell calls (PTRACE_GET_SYSCALL_INFO, Linux 5.3)")
            return False
        return True

    def _entered(self, thread):
        """A call that the filter stops at begins."""
        if not self._read_info(thread):
            return CONT
        number, arguments = self._info.call()
        name = self.names.get(number)
        foreign = self._info.machine != self.machine.arch
        if name is None or foreign:
            self.blind(reasons.FOREIGN if foreign else reasons.ITS_OWN)
            return None
        return self._filtered(thread, name, arguments)

    def _filtered(self, thread, name, arguments):
        """A call begins that is to be told, as long as there is no flood of them."""
        if name in UNMISSED or name in BLINDING or self.calls.take():
            return self._enter(thread, name, arguments, False)
        self.blind(reasons.FLOOD, UNMISSED)
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
            before.returned(-errno.EINTR)
            self._tell(thread, before)
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
        if name in BLINDING:
            return {}
        mine = None
        if name != "socket":
            mine = self._socket(thread, signed(arguments[0]))
            hidden = self.groups[thread] in self.unknown and name in OF_ANY
            if mine is None and not hidden:
                return None
        return ASKED[name](thread, arguments, mine) if name in ASKED else {}

    def _at_call(self, thread):
        """A thread that is stopped at each call begins one, or one returns."""
        if not self._read_info(thread):
            return CONT
        if self._info.op == EXIT:
            call = self.inside.get(thread)
            if call and not call.cut:
                with self.lock:
                    del self.inside[thread]
                self._returned(thread, call, self._info.value())
        elif self._info.op == ENTRY:
            number, arguments = self._info.call()
            return self._begins(thread, self.names.get(number), arguments)
        return None

    def _begins(self, thread, name, arguments):
        """A call begins that the filter does not stop at."""
        mine = self.mine(thread)
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
        if value <= -MOST_RESTARTS:
            if call.name in CUT:
                call.cut = True
                with self.lock:
                    self.inside[thread] = call
            if call.name != "connect":
                return
            value = -errno.EINTR
        call.returned(value)
        if call.name in CUT and call.code == "EAGAIN" and not call.told:
            return
        told = RETURNED[call.name](self, thread, call) if call.name in RETURNED else call
        if told:
            self._tell(thread, told)

    def _tell(self, thread, call):
        """Tells how a call went."""
        event = call.event
        if call.quiet and not call.code:
            return
        if call.code:
            event.update(errno=call.code, error=os.strerror(number_of(call.code)))
        if call.name == "listen" or (not call.code and call.name in ("bind", "connect")):
            self._name(self.groups[thread], event)
        if not call.told:
            event["since"] = event["t"]
        self.say(**dict(event, phase="done", t=time.monotonic()))

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

    def closed(self, thread, fd, call):
        """A descriptor is closed by a call for more than that."""
        mine = self.mine(thread)
        if mine.pop(fd) not in mine.values():
            self.say(kind="call", t=time.monotonic(), pid=self.groups[thread], phase="done",
                     call=call, name="close", fd=fd)  # fmt: skip

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
        if self._read_info(thread) and self._info.machine != self.machine.arch:
            self.blind(reasons.FOREIGN)
        with self.lock:
            for other in [t for t, p in self.groups.items() if p == thread and t != thread]:
                del self.groups[other]
                self.inside.pop(other, None)
            self.inside.pop(thread, None)
        mine = self.sockets[thread]
        for fd, each in list(mine.items()):
            left = inode_of(thread, fd)
            if left is None if os.access("/proc/%d/fd" % thread, os.R_OK) else not each.kept:
                self.closed(thread, fd, "close (on exec)")
