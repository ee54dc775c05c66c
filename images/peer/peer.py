#!/usr/bin/env python3
"""The peer: a program that does what it is told, one socket call a line.

    peer.py calls 'socket; bind :8000; listen 20; accept; recv; send "I am server" forever'
    peer.py run -- nginx -g 'daemon off;'

Two processes run: the *supervisor* (process 1 of a container or of a PID namespace) starts the
*main* process, reports when it ends, forwards signals to it alone, and stays until the last of its
descendants is gone. So a forked child survives its parent, and a container's end ends them all.

What happens is written to stdout as JSON, one object a line, with `t` from CLOCK_MONOTONIC, the one
clock that all containers of a kernel share. `--text` writes it for people instead. With `--tether`
the end of stdin ends everything: then nothing outlives whoever started it.

Standard library only, Python 3.6 or later. What a call is and does stands in calls.py.
"""

import argparse
import ctypes
import errno
import json
import os
import select
import shlex
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # an isolated Python leaves it out
from calls import CallError, Program, parse

FORWARDED = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
             signal.SIGUSR2]  # fmt: skip
PR_SET_PDEATHSIG = 1


def log_json(**event):
    event["t"] = time.monotonic()
    os.write(1, (json.dumps(event) + "\n").encode())


def log_text(**event):
    words = ["%.3f" % time.monotonic(), "[%d]" % event.get("pid", os.getpid())]
    if event["kind"] == "output":
        words += [event["text"].rstrip("\n")]
    elif event["kind"] == "call":
        words += [event["call"], "..." if event["phase"] == "enter" else "="]
        if event["phase"] == "done":
            known = ("result", "eof", "data", "local", "peer")
            shown = ["%s %r" % (key, event[key]) for key in known if key in event]
            number = getattr(errno, event.get("errno") or "", None)
            reason = "%s: %s" % (number, event.get("error")) if number else event.get("error")
            failed = event.get("errno") and "%s (%s)" % (event["errno"], reason)
            words += [failed or ", ".join(shown) or "ok"]
    else:
        how = "signal %s" % event["signal"] if event.get("signal") else event.get("exit", "")
        words += ["process", event["phase"], str(how)]
    os.write(1, (" ".join(words) + "\n").encode())


def supervise(main, log, tether):
    """Starts `main` in a child and stays until no descendant lives; returns main's exit status.

    `main` is a function of one argument, the descriptor for a program's output. Commands come as
    JSON lines on stdin: `{"do": "call", "call": TEXT}` for a process in `await`, `{"do": "signal",
    "signal": "TERM"}` for the main process alone; `{"do": "end"}`, a SIGTERM, `{"do": "freeze"}`
    and `{"do": "thaw"}` for all of them (as process 1 only).
    """
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    commands, to_main = os.pipe()
    output, from_main = os.pipe()
    started = os.getpid()
    # Signals that come before their handlers are there must wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = os.fork()
    if child == 0:
        if started != 1:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        os.dup2(commands, 0)
        for descriptor in (wake, waker, commands, to_main, output):
            os.close(descriptor)
        log(kind="process", phase="start", pid=os.getpid())
        main(from_main)
        os._exit(0)
    for number in FORWARDED:
        signal.signal(number, lambda n, _: _kill(child, n))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    os.close(commands)
    os.close(from_main)
    status = None
    pending = b""
    watched = [wake, output] + ([0] if tether else [])
    while True:
        ready, _, _ = select.select(watched, [], [])
        if output in ready:
            data = os.read(output, 65536)
            if data:
                log(kind="output", text=data.decode("utf-8", "replace"))
            else:
                watched.remove(output)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                _kill(-1 if started == 1 else child, signal.SIGKILL)
                os._exit(0)
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                _obey(json.loads(line.decode()), child if status is None else None, to_main)
        if wake in ready:
            os.read(wake, 4096)
            while True:
                try:
                    pid, ended = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    return status
                if pid == 0:
                    break
                if pid == child:
                    while output in watched and select.select([output], [], [], 0)[0]:
                        data = os.read(output, 65536)
                        if not data:
                            watched.remove(output)
                        else:
                            log(kind="output", text=data.decode("utf-8", "replace"))
                    status = _report_exit(log, child, ended)


def _report_exit(log, child, ended):
    if os.WIFSIGNALED(ended):
        name = signal.Signals(os.WTERMSIG(ended)).name[3:]
        log(kind="process", phase="exit", pid=child, exit=None, signal=name)
        return 128 + os.WTERMSIG(ended)
    log(kind="process", phase="exit", pid=child, exit=os.WEXITSTATUS(ended), signal=None)
    return os.WEXITSTATUS(ended)


def _obey(message, main, to_main):
    if message["do"] == "call":
        os.write(to_main, (message["call"] + "\n").encode())
    elif message["do"] == "signal" and main:
        _kill(main, getattr(signal, "SIG" + message["signal"]))
    elif message["do"] == "end":
        _kill(-1, signal.SIGTERM)
    elif message["do"] == "freeze":
        _kill(-1, signal.SIGSTOP)
    elif message["do"] == "thaw":
        _kill(-1, signal.SIGCONT)


def _kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def calls_main(text, log):
    """A main process that executes calls."""
    calls = parse(text)

    def main(output):
        os.close(output)
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
        os.closerange(3, 256)
        try:
            os.execvpe(argv[0], argv, dict(os.environ, **env))
        except OSError as exc:
            message = "cannot run %s: %s\n" % (" ".join(map(shlex.quote, argv)), exc.strerror)
            os.write(2, message.encode())
            os._exit(127)

    return main


def await_line():
    """Reads one line of stdin and not a byte more; ends the process where none comes."""
    byte = b""
    while byte != b"\n":
        byte = os.read(0, 1)
        if not byte:
            sys.exit(0)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="peer.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--text", action="store_true", help="write for people, not JSON")
    parser.add_argument("--tether", action="store_true", help="end when stdin ends")
    parser.add_argument("--held", action="store_true", help="begin at the first line of stdin")
    modes = parser.add_subparsers(dest="mode", metavar="calls|run")
    modes.required = True
    modes.add_parser("calls", help="socket calls").add_argument("calls", metavar="CALLS")
    modes.add_parser("run", help="any program").add_argument("argv", nargs="+", metavar="ARG")
    options = parser.parse_args(arguments)
    log = log_text if options.text else log_json
    try:
        job = (
            calls_main(options.calls, log)
            if options.mode == "calls"
            else run_main(options.argv, {})
        )
    except CallError as exc:
        parser.error("line %d: %s" % (exc.offset + 1, exc))
    if options.held:
        await_line()
    sys.exit(supervise(job, log, options.tether))


if __name__ == "__main__":
    main()
