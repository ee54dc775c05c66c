#!/usr/bin/env python3
"""The peer: a program that does what it is told, one socket call a line.

    peer.py calls 'socket; bind :8000; listen 20; accept; recv; send "I am server" forever'
    peer.py run -- nginx -g 'daemon off;'

Two processes run: the *supervisor* (process 1 of a container or of a PID namespace) starts the
*main* process, reports when it ends, forwards signals to it alone, and stays until the last of its
descendants is gone. So a forked child survives its parent, and a container's end ends them all.

It writes events to stdout as JSON, one object a line, with `t` from CLOCK_MONOTONIC, the one clock
that all containers of a kernel share. `--text` writes them for people instead. With `--tether` the
end of stdin ends everything: then nothing outlives whoever started it.

Standard library only, Python 3.6 or later. calls.py says what calls there are, program.py what
they do.
"""

import collections
import errno
import fcntl
import json
import os
import select
import shlex
import signal
import socket
import struct
import sys
import termios
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # an isolated Python leaves it out
import filters
import syscalls
from calls import CallError, parse
from held import IN_ONE_PIECE, MUCH, holders
from program import Program
from written import Written

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
FORWARDED = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
             signal.SIGUSR2]  # fmt: skip
RTMIN, RTMAX = 34, 64
UNNAMED = {n: "RTMIN%+d" % (n - RTMIN) for n in range(RTMIN - 2, RTMAX) if n != RTMIN}
UNNAMED[16] = "STKFLT"
"""Signals without a name in Python, or in an older Python (signal(7), those of glibc)."""
MOST_FILES, AT_ONCE, CHUNK = 1 << 16, 4096, 65536
TRACED, UNTRACED = b"+", b"-"
NO_FORK = "can't fork: %s; a limit of processes (ulimit -u, or pids.max of a cgroup) refuses it"


def as_json(event):
    return json.dumps(event)


def as_text(event):
    words = ["%.3f" % event["t"], "[%d]" % event.get("pid", os.getpid())]
    if event["kind"] == "output":
        words += [event["text"].rstrip("\n")]
    elif event["kind"] == "call":
        words += [event["call"], "..." if event["phase"] == "enter" else "="]
        if event["phase"] == "done":
            known = ("value", "result", "eof", "data", "local", "peer")
            shown = ["%s %r" % (key, event[key]) for key in known if key in event]
            number = getattr(errno, event.get("errno") or "", None)
            reason = "%s: %s" % (number, event.get("error")) if number else event.get("error")
            failed = event.get("errno") and "%s (%s)" % (event["errno"], reason)
            words += [failed or ", ".join(shown) or "ok"]
    elif event["kind"] in ("broken", "unseen"):
        words += [event["kind"] + ":", event["text"]]
    else:
        how = "signal %s" % event["signal"] if event.get("signal") else event.get("exit", "")
        words += ["process", event["phase"], str(how)]
    return " ".join(words)


class Log:
    """Writes events to standard output, one a line, by `words`: as_json or as_text."""

    def __init__(self, words):
        self.words = words
        self.waiting = bytearray()

    def __call__(self, **event):
        """Writes an event, now."""
        self.later(**event)
        self.finish()

    def later(self, **event):
        """The same for a slow reader: call `push` when standard output takes more."""
        event.setdefault("t", time.monotonic())
        self.waiting += (self.words(event) + "\n").encode()

    def push(self):
        """Writes as much as surely does not block after select(2) (see pipe(7), PIPE_BUF), with
        nobody else's bytes in between."""
        del self.waiting[: os.write(1, bytes(self.waiting[:AT_ONCE]))]

    def finish(self):
        """Writes everything that waits."""
        while self.waiting:
            self.push()


def told(exc):
    """What broke, and where, in a line."""
    trace = exc.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = trace and (os.path.basename(trace.tb_frame.f_code.co_filename), trace.tb_lineno)
    return "%s: %s%s" % (type(exc).__name__, exc, " (%s:%d)" % where if where else "")


class Children(threading.Thread):
    """Waits for all that lives below a supervisor, and traces it if that is wanted; only the thread
    that traces a process gets its stops. `said` is what there is to tell, in order: events, how
    the main process ended (its status, and whether it left anything), and None at the very end."""

    def __init__(self, main, waker, traced):
        """`traced`: our end of a socket to a main process that waits to be traced, or None."""
        super().__init__(daemon=True)
        self.main, self.waker = main, waker
        self.said = collections.deque()
        self.tracer = syscalls.Tracer(self.say, self.rouse) if traced else None
        self.waits = traced

    def say(self, **event):
        self.tell(event)

    def tell(self, what):
        self.said.append(what)
        self.rouse()

    def rouse(self):
        """Wakes the supervisor: there is something to tell, or a call whose return to wait for."""
        try:
            os.write(self.waker, b"x")
        except BlockingIOError:
            pass  # it is awake

    def run(self):
        try:
            if self.tracer:
                self.begin()
            self.wait()
        except BaseException as exc:
            self.say(kind="broken", text=told(exc))
        self.tell(None)

    def begin(self):
        word = TRACED
        with self.waits:
            self.waits.recv(1)
            try:
                self.tracer.begin(self.main)
            except OSError as exc:
                self.say(kind="unseen", t=time.monotonic(), text=str(exc), but=[])
                self.tracer, word = None, UNTRACED
            self.waits.send(word)

    def wait(self):
        while True:
            try:
                pid, status = os.waitpid(-1, syscalls.WAIT_ALL)
            except ChildProcessError:
                return
            if os.WIFSTOPPED(status):
                self.tracer.stopped(pid, status)
                continue
            if self.tracer:
                self.tracer.ended(pid, status)
            if pid == self.main:
                self.tell((status, _left()))


def supervise(main, log, tether, watched=None, about=()):
    """Starts `main` in a child and stays until no descendant lives; returns main's exit status.

    `main` is a function of one argument, the descriptor for a program's output. With `watched`,
    "calls" or "io", the socket calls of main and of all that it starts are told (syscalls.py).
    `about`: pairs to tell of it as it starts.
    Commands come as JSON lines on stdin: `{"do": "call", "call": TEXT}` for a process in `await`,
    `{"do": "signal", "signal": "TERM"}` for the main process alone; `{"do": "end"}`, a SIGTERM,
    `{"do": "freeze"}` and `{"do": "thaw"}` for all of them (as process 1 only); `{"do": "answer",
    "id": N}`, which it does when it has reported all that was written before; `{"do": "holders",
    "id": N}`: it tells which sockets the others hold (as process 1 only); `{"do": "killall",
    "id": N}`: it tells the time, sends SIGKILL to all of them, and ends. Neither the child nor a
    slow controller can delay it.
    """
    # Programs below, of the same user, must not reach this process' streams and speak for it. After
    # this only CAP_SYS_PTRACE opens them and its memory (ptrace(2), "Ptrace access mode checking").
    # The same holds for a child, until it executes a program or begins with calls.
    prctl = filters.libc.prctl
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    commands, to_main = os.pipe()
    output, from_main = os.pipe()
    ours, theirs = socket.socketpair()
    started = os.getpid()
    # Signals that come before their handlers are there must wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = _fork()
    if child == 0:
        status = 1
        try:
            if started != 1:
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in FORWARDED:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            os.dup2(commands, 0)
            if watched:
                prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # for its tracer; there is nobody else yet
                theirs.send(b"?")
                traced = theirs.recv(1) == TRACED
                prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
                watched = watched if traced and _filter(log, watched) else None
            for descriptor in (wake, waker, commands, to_main, output):
                os.close(descriptor)
            ours.close()
            theirs.close()
            seen = dict(about, **({"watch": watched} if watched else {}))
            log(kind="process", phase="start", pid=os.getpid(), **seen)
            main(from_main)
            status = 0
        except BaseException as exc:
            log(kind="broken", text=told(exc))
        finally:
            os._exit(status)
    for number in FORWARDED:
        signal.signal(number, lambda n, _: _kill(child, n))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    os.close(commands)
    os.close(from_main)
    theirs.close()
    below = Children(child, waker, ours if watched else None)
    try:
        below.start()
    except RuntimeError as exc:  # a thread counts as a process
        _kill(child, signal.SIGKILL)
        raise OSError(errno.EAGAIN, NO_FORK % exc) from None
    status = None
    pending = b""
    written = Written()
    watching = [wake, output] + ([0] if tether else [])

    def record(final=False):
        found = written.take(final)
        if found:
            log.later(kind="output", **found)

    def hear():
        """Tells what the tracer has told so far."""
        while below.said and isinstance(below.said[0], dict):
            log.later(**below.said.popleft())

    while True:
        # If the reader is slow, the moment of a program that writes much is longer.
        late, due = below.tracer.overdue(time.monotonic()) if below.tracer else ((), None)
        for event in late:
            log.later(**event)
        dues = [due, None if log.waiting and not written.in_full else written.due]
        due = min((each for each in dues if each is not None), default=None)
        patience = None if due is None else max(0.0, due - time.monotonic())
        ready, takes, _ = select.select(watching, [1] if log.waiting else [], [], patience)
        if takes:
            log.push()
        if output in ready:
            data = os.read(output, CHUNK)
            if data:
                written.add(data, time.monotonic())
            else:
                watching.remove(output)
                record(final=True)
        if written.due is not None and time.monotonic() >= written.due:
            record()
        if 0 in ready:
            data = os.read(0, CHUNK)
            if not data:
                _kill(-1 if started == 1 else child, signal.SIGKILL)
                os._exit(0)
            *lines, pending = (pending + data).split(b"\n")
            for message in map(json.loads, (line.decode() for line in lines)):
                do = message.pop("do")
                if do == "answer":
                    hear()
                    _rest(output, written)
                    record()
                    log.later(kind="reply", id=message["id"])
                elif do == "holders":  # calls write into this stream too, and have no output
                    room = MUCH if output in watching else IN_ONE_PIECE
                    log.later(kind="holders", **holders(room))
                    log.later(kind="reply", id=message["id"])
                elif do == "killall":
                    at = time.monotonic()
                    _kill(-1 if started == 1 else child, signal.SIGKILL)
                    log(kind="reply", id=message["id"], t=at)
                    os._exit(0)
                else:
                    COMMANDS[do](child if status is None else None, to_main, **message)
        if wake in ready:
            os.read(wake, CHUNK)
            hear()
            while below.said:
                ended = below.said.popleft()
                _rest(output, written)
                record(final=ended is None)
                if ended is None:
                    log.finish()
                    return 1 if status is None else status
                status = _report_exit(log, child, *ended)
                hear()


def _filter(log, watched):
    """Has this process stop at the calls that are told; whether it can, and says so if not."""
    machine = filters.MACHINES[os.uname().machine]
    try:
        filters.confine(filters.filter_of(machine, watched == "io"))
    except OSError as exc:
        log(kind="unseen", text="no seccomp filter: %s" % exc.strerror, but=[])
        return False
    return True


def _fork():
    """A child. Raises OSError, with what helps."""
    try:
        return os.fork()
    except OSError as exc:
        raise OSError(exc.errno, NO_FORK % exc.strerror) from None


def _rest(output, written):
    """Takes in what is in a pipe now, but not what others write there later."""
    count = struct.unpack("i", fcntl.ioctl(output, termios.FIONREAD, bytes(4)))[0]
    while count:
        data = os.read(output, min(count, CHUNK))
        written.add(data, time.monotonic())
        count -= len(data)


def _report_exit(log, child, ended, left):
    if os.WIFSIGNALED(ended):
        name = _signal_name(os.WTERMSIG(ended))
        log.later(kind="process", phase="exit", pid=child, exit=None, signal=name, left=left)
        return 128 + os.WTERMSIG(ended)
    log.later(kind="process", phase="exit", pid=child, exit=os.WEXITSTATUS(ended), signal=None,
              left=left)  # fmt: skip
    return os.WEXITSTATUS(ended)


def _left():
    """Whether anything that a main process started lives on; by now it is our child."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def _signal_name(number):
    if number in UNNAMED:
        return UNNAMED[number]
    try:
        return signal.Signals(number).name[3:]
    except ValueError:
        return str(number)


def _signal_number(name):
    return next(number for number in range(1, RTMAX + 1) if _signal_name(number) == name)


def do_call(main, to_main, call):
    try:
        os.write(to_main, (call + "\n").encode())
    except BrokenPipeError:
        pass  # a call before this one has ended it


def do_signal(main, to_main, signal):
    if main:
        _kill(main, _signal_number(signal))


def do_end(main, to_main):
    _kill(-1, signal.SIGTERM)


def do_freeze(main, to_main):
    _kill(-1, signal.SIGSTOP)


def do_thaw(main, to_main):
    _kill(-1, signal.SIGCONT)


COMMANDS = {
    "call": do_call,
    "signal": do_signal,
    "end": do_end,
    "freeze": do_freeze,
    "thaw": do_thaw,
}
"""Commands that it does at once, by name; `main` is the main process, while it runs."""


def _kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def calls_main(calls, log):
    """A main process that executes calls."""

    def main(output):
        os.close(output)
        # Nothing but calls runs beside it, and its supervisor must see which sockets it holds.
        filters.libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        Program(log).execute(calls)

    return main


def run_main(argv, env):
    """A main process that is a program: stdin is empty, stdout and stderr go to the log."""

    def main(output):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, MOST_FILES)
        try:
            os.execvpe(argv[0], argv, dict(os.environ, **env))
        except OSError as exc:
            message = "cannot run %s: %s\n" % (shlex.quote(argv[0]), exc.strerror)
            os.write(2, message.encode())
            os._exit(127)

    return main


def await_line():
    """Reads one line of stdin and not a byte more; ends the process if none comes."""
    byte = b""
    while byte != b"\n":
        byte = os.read(0, 1)
        if not byte:
            sys.exit(0)


def main(arguments=None):
    import argparse  # a launcher of labs does without

    parser = argparse.ArgumentParser(prog="peer.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--text", action="store_true", help="write for people, not JSON")
    parser.add_argument("--tether", action="store_true", help="end when stdin ends")
    parser.add_argument("--held", action="store_true", help="begin at the first line of stdin")
    modes = parser.add_subparsers(dest="mode", metavar="calls|run")
    modes.required = True
    modes.add_parser("calls", help="socket calls").add_argument("calls", metavar="CALLS")
    program = modes.add_parser("run", help="any program")
    program.add_argument("--watch", choices=("calls", "io"), help="tell its socket calls")
    program.add_argument("--stop", metavar="SIGNAL", help="tell that this asks it to end")
    program.add_argument("--grace", type=float, metavar="SECONDS", help="and how long it may take")
    program.add_argument("argv", nargs="+", metavar="ARG")
    options = parser.parse_args(arguments)
    log = Log(as_text if options.text else as_json)
    try:
        job = (
            calls_main(parse(options.calls), log)
            if options.mode == "calls"
            else run_main(options.argv, {})
        )
    except CallError as exc:
        parser.error("line %d: %s" % (exc.offset + 1, exc))
    if options.held:
        await_line()
    try:
        about = [(key, getattr(options, key, None)) for key in ("stop", "grace")]
        about = [(key, value) for key, value in about if value is not None]
        status = supervise(job, log, options.tether, getattr(options, "watch", None), about)
    except OSError as exc:
        log(kind="broken", text=told(exc))
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    main()
