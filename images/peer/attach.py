#!/usr/bin/env python3
"""Tells the socket calls of processes that run already: it attaches to them by ptrace(2), follows
what they start, and lets go of all when it ends.

A process that runs can't be given a filter, so it is stopped at each call, of any kind, as long as
there is room for that. Then it runs freely until a signal, a fork or an exec stops it anyway, and
`unseen` says so. What is told is what filters.py says, and reads and writes that fail. Sockets that
were open before are told as `has`, a call that nobody made.

It never asks to let go: the kernel does that when this process ends, however it ends, and so what
it traced runs on (ptrace(2), no PTRACE_O_EXITKILL). It ends with its standard input.

Events go to stdout and commands come from stdin, as with peer.py. Standard library only, Python 3.6
or later.
"""

import ctypes
import json
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # an isolated Python leaves it out
import reasons
from calls import option
from filters import READS, WRITES, matches, rules
from syscalls import CONT, EXITKILL, INTERRUPT, OPTIONS, SECCOMP, SEIZE, WAIT_ALL, Tracer
from tracees import attachable, copy_of, family_of, inode_of, libc, process_of
from underway import Allowance, Tcp, signed

PR_SET_DUMPABLE = 4
LETTING_GO = OPTIONS & ~EXITKILL & ~(1 << SECCOMP)
AT_ONCE = 1000
"""Stops that are handled before anything else is."""
MOST_HELD = 200
"""Sockets of a process that are told as `has`, at most."""
SHOWN = ("SO_REUSEADDR", "SO_REUSEPORT", "IPV6_V6ONLY", "SO_LINGER")


class Attached(Tracer):
    """Traces processes that run already, and all that they start."""

    busy, still = reasons.FREED, ()

    def __init__(self, say):
        super().__init__(say, lambda: None)
        self.stops = Allowance(reasons.ATTACHED_AT_ONCE, reasons.ATTACHED_A_SECOND)
        self.roots = set()
        self.running = set()  # processes of which nothing has stopped yet
        self._rules = {}
        for rule in rules(io=False):
            self._rules.setdefault(rule[0], []).append(rule)

    def attach(self, roots):
        """Traces processes from now on, with all that descends from them, and tells the sockets
        that they have. What can't be traced is `unseen`."""
        if not self.machine:
            self.blind(reasons.NO_MACHINE % os.uname().machine)
            return
        self.roots.update(roots)
        before, new, tried = set(self.sockets), True, set()
        while new:  # what is not traced yet may start more
            found = descendants(roots, os.getppid())
            new = [(process, thread) for process in found for thread in threads_of(process)
                   if thread not in self.groups and thread not in tried]  # fmt: skip
            for process, thread in new:
                tried.add(thread)
                self._seize(process, thread)
        self.tell_held({p: mine for p, mine in self.sockets.items() if p not in before})

    def _seize(self, process, thread):
        if libc.ptrace(SEIZE, thread, None, LETTING_GO):
            why = attachable(thread, ctypes.get_errno())
            if why and process == thread:
                self.blind("process %d is not seen: %s" % (process, why))
            return
        self.groups[thread] = process
        if process not in self.sockets:
            self.sockets[process] = held(process)
            self.running.add(process)
        libc.ptrace(INTERRUPT, thread, None, None)

    def stopped(self, thread, status):
        """Calls are told from the first stop of a process on, of any of its threads. One that
        returned before it may have made a socket."""
        process = self.groups.get(thread)
        if process in self.running:
            self.running.discard(process)
            new = held(process, self.sockets[process])
            self.sockets[process].update(new)
            self.tell_held({process: new})
        super().stopped(thread, status)

    def tell_held(self, sockets):
        """Tells these sockets of processes."""
        told = {}
        for process, mine in sockets.items():
            for fd, tcp in sorted(mine.items())[:MOST_HELD]:
                inode = inode_of(process, fd)
                event = {"kind": "call", "t": time.monotonic(), "pid": process, "phase": "done",
                         "name": "has", "fd": fd}  # fmt: skip
                if inode in told:
                    self.say(call="has the same as fd %d of %d" % told[inode], **event)
                    continue
                told[inode] = fd, process
                words, ends = ["tcp6" if tcp.family == socket.AF_INET6 else "tcp"], {}
                copy = copy_of(process, fd)
                if copy:
                    with copy:
                        words += described(copy)
                        ends = dict(zip(("local", "peer"), names(copy)))
                self.say(call=" ".join(["has", *words]), **dict(event, **ends))

    def ended(self, thread, status):
        process = self.groups.get(thread)
        super().ended(thread, status)
        if process != thread:
            return
        self.running.discard(process)
        if process in self.roots:
            self.roots.discard(process)
            killed = os.WIFSIGNALED(status)
            self.say(kind="process", t=time.monotonic(), phase="exit", pid=process,
                     exit=None if killed else os.WEXITSTATUS(status),
                     signal=name_of(os.WTERMSIG(status)) if killed else None,
                     left=bool(self.sockets))  # fmt: skip

    def _matters(self, process):
        return True

    def _begins(self, thread, name, arguments):
        if self._info.machine != self.machine.arch:
            self.blind(reasons.FOREIGN)
            return None
        if name in READS or name in WRITES:
            mine = signed(arguments[0]) in self.mine(thread)
            return self._enter(thread, name, arguments, True) if mine else None
        if any(matches(rule, arguments) for rule in self._rules.get(name, ())):
            request = self._filtered(thread, name, arguments)
            return None if request == CONT else request  # there is no filter to stop it again
        return super()._begins(thread, name, arguments)


def threads_of(process):
    """The threads of a process; none if it has ended."""
    try:
        return sorted(map(int, os.listdir("/proc/%d/task" % process)))
    except OSError:
        return []


def descendants(roots, without):
    """These processes and all that descend from them, but for one and its own."""
    children = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        children.setdefault(process_of(pid)[1], []).append(pid)
    found, left = [], list(roots)
    while left:
        process = left.pop()
        if process not in found:
            found.append(process)
            left += [pid for pid in children.get(process, ()) if pid != without]
    return found


def held(process, known=()):
    """The TCP sockets that a process has, by descriptor, but for those that are `known`."""
    found = {}
    try:
        numbers = list(map(int, os.listdir("/proc/%d/fd" % process)))
    except OSError:
        return found  # it has ended
    for fd in set(numbers).difference(known):
        family = family_of(process, fd)
        try:
            with open("/proc/%d/fdinfo/%d" % (process, fd)) as file:
                flags = next(int(line[6:], 8) for line in file if line.startswith("flags:"))
        except OSError:
            continue  # it has closed that
        if family:
            found[fd] = Tcp(family, not flags & os.O_CLOEXEC)
    return found


def described(copy):
    """Whether a socket listens, and the options that are set, in words."""
    words = ["listening"] if copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else []
    for name in SHOWN:
        try:
            values = struct.unpack("=ii", copy.getsockopt(*option(name), 8).ljust(8, b"\0"))
        except OSError:
            continue  # of another family
        if values[0]:
            words.append("%s=%s" % (name, ",".join(map(str, values[: 1 + (name == "SO_LINGER")]))))
    return words


def names(copy):
    """Both ends of a socket, as far as it has them."""
    for ask in (copy.getsockname, copy.getpeername):
        try:
            host, port = ask()[:2]
        except OSError:
            return
        if port:
            yield ("[%s]:%d" if ":" in host else "%s:%d") % (host, port)


def name_of(number):
    try:
        return signal.Signals(number).name[3:]
    except ValueError:
        return str(number)


# --- Commands -------------------------------------------------------------------------------------


def do_attach(tracer, pids):
    tracer.attach(pids)


def do_held(tracer):
    for text, but in tracer.unseen.items():
        tracer.say(kind="unseen", t=time.monotonic(), text=text, but=but)
    tracer.tell_held(tracer.sockets)


def do_flush(tracer):
    """All that was told before is told."""


COMMANDS = {"attach": do_attach, "held": do_held, "flush": do_flush}
WAKES = {signal.SIGCHLD, signal.SIGUSR1}


def listen(asked):
    """Reads commands, and ends this program when nobody can send one any more."""
    pending = b""
    while True:
        try:
            data = os.read(0, 65536)
        except OSError:  # it has ended, and had not read all
            data = b""
        if not data:
            os._exit(0)
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            asked.append(json.loads(line.decode()))
        os.kill(os.getpid(), signal.SIGUSR1)


def write(told):
    """Writes what is told: a slow reader delays nobody who is traced."""
    while True:
        line = (json.dumps(told.get()) + "\n").encode()
        try:
            while line:
                line = line[os.write(1, line) :]
        except OSError:
            os._exit(0)
        told.task_done()


def take_stops(tracer):
    """Takes in what has stopped or ended, or some of it."""
    for _ in range(AT_ONCE):
        try:
            thread, status = os.waitpid(-1, WAIT_ALL | os.WNOHANG)
        except ChildProcessError:
            return False
        if not thread:
            return False
        if os.WIFSTOPPED(status):
            tracer.stopped(thread, status)
        else:
            tracer.ended(thread, status)
    return True


def main():
    # Else commands could write into this stream (ptrace(2), "Ptrace access mode checking").
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKES)
    told, asked = queue.Queue(), []

    def say(**event):
        told.put(event)

    for work in (lambda: listen(asked), lambda: write(told)):
        threading.Thread(target=work, daemon=True).start()
    say(kind="hello", t=time.monotonic())
    try:
        run(Attached(say), asked, say)
    except Exception as exc:
        say(kind="unseen", t=time.monotonic(), text="%s: %s" % (type(exc).__name__, exc), but=[])
        told.join()
        raise


def run(tracer, asked, say):
    """Traces, and does what it is asked."""
    while True:
        more = take_stops(tracer)
        while asked:
            message = asked.pop(0)
            ident = message.pop("id")
            COMMANDS[message.pop("do")](tracer, **message)
            say(kind="reply", id=ident, t=time.monotonic())
        late, due = tracer.overdue(time.monotonic())
        for event in late:
            say(**event)
        if not more:
            patience = 3600.0 if due is None else max(0.0, due - time.monotonic())
            signal.sigtimedwait(WAKES, patience)


if __name__ == "__main__":
    main()
