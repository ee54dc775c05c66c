"""What the calls of the peer program do; calls.py is their language.

Standard library only, Python 3.6 or later.
"""

import errno
import fcntl
import os
import signal
import socket
import time

from asked import disconnect, md5_key, ready, value_of
from calls import ERRNOS, HOW, KINDS, parse
from options import option

MSG_FASTOPEN = 0x20000000
FIRST = 3  # of the descriptors that are passed to a program (sd_listen_fds(3))
MOST_TEXT = 400  # of a call, in a report, which must be written in one piece (pipe(7), PIPE_BUF)


class Program:
    """The state of a process that runs calls: its sockets, and where `call` steps come from."""

    def __init__(self, log):
        self.log = log
        self.current = None
        self.listener = None
        self.listening = []
        self.named = {}
        self.open = []

    def execute(self, calls):
        for call in calls:
            text = call.text if len(call.text) <= MOST_TEXT else call.text[:MOST_TEXT] + "..."
            name = "disconnect" if (call.name, call.args) == ("connect", ()) else call.name
            report = {"kind": "call", "pid": os.getpid(), "call": text, "name": name}
            self.log(phase="enter", **report)
            try:
                result = DOES[call.name](self, *call.args)
            except OSError as exc:
                name, status = ERRNOS.get(exc.errno), exc.errno
                if isinstance(exc, socket.gaierror):
                    name, status = "EAI_NONAME", 1
                report.update(pid=os.getpid(), local=self.bound(), **getattr(exc, "found", {}))
                self.log(phase="done", errno=name, error=exc.strerror, **report)
                if not call.tolerant:
                    os._exit(status)
            else:
                report["pid"] = os.getpid()
                self.log(phase="done", **dict(report, **(result or {})))

    def sock(self):
        if self.current is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.current

    def bound(self):
        """The local address of the current socket, or None."""
        try:
            return _name(self.sock().getsockname())
        except OSError:
            return None

    def adopt(self, sock, name=None):
        self.current = sock
        self.open.append(sock)
        if name:
            self.named[name] = sock

    def drop(self, sock):
        self.open.remove(sock)
        self.listening = [each for each in self.listening if each is not sock]
        if sock is self.listener:
            self.listener = None
        if sock is self.current:
            self.current = self.listener
        sock.close()

    def resolve(self, host, port, flags=0):
        family = self.sock().family
        if family == socket.AF_INET6 and host:
            flags |= socket.AI_V4MAPPED
        try:
            found = socket.getaddrinfo(host or None, port, family, socket.SOCK_STREAM, 0, flags)
        except UnicodeError as exc:  # no name at all, says Python's IDNA
            raise socket.gaierror(socket.EAI_NONAME, str(exc)) from None
        return found[0][4]


def call_socket(program, kind, name=None):
    program.adopt(socket.socket(*KINDS[kind]), name)


def call_use(program, name):
    sock = program.named.get(name)
    if sock not in program.open:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    program.current = sock
    if sock in program.listening:
        program.listener = sock


def call_set(program, name, value):
    level, number = option(name)
    if name == "TCP_MD5SIG":
        host, key = value
        value = md5_key(program.resolve(host, 0), key)
    program.sock().setsockopt(level, number, value)


def call_get(program, name, field):
    return {"value": value_of(program.sock(), name, field)}


def call_nonblock(program, on):
    program.sock().setblocking(not on)


def call_poll(program, wanted, seconds):
    return {"value": ready(program.sock(), wanted, seconds)}


def call_bind(program, host, port):
    address = program.resolve(host, port, socket.AI_PASSIVE)
    sock = program.sock()
    try:
        sock.bind(address)
    except OSError as exc:
        # Python words some of bind's errors itself; only the kernel's number counts.
        raise OSError(exc.errno, os.strerror(exc.errno)) from exc
    return {"local": _name(sock.getsockname())}


def call_listen(program, backlog):
    program.sock().listen(backlog)
    program.listener = program.sock()
    program.listening.append(program.listener)


def call_accept(program, name=None):
    listener = program.listener or program.sock()
    connection, peer = listener.accept()
    program.adopt(connection, name)
    return {"local": _name(connection.getsockname()), "peer": _name(peer)}


def call_connect(program, host=None, port=None):
    sock = program.sock()
    if host is None:
        disconnect(sock)
        return {"local": program.bound()}
    address = program.resolve(host, port)
    sock.connect(address)
    try:
        address = sock.getpeername()
    except OSError:
        pass  # with TCP_FASTOPEN_CONNECT there may be no connection yet
    return {"local": _name(sock.getsockname()), "peer": _name(address)}


def call_send(program, data, times, pause, total, to=None):
    sock, sent, writes = program.sock(), 0, 0
    ends = {}
    try:
        while (sent < total) if total is not None else (times is None or writes < times):
            if writes and pause:
                time.sleep(pause)
            chunk = data if total is None else data[: total - sent]
            if to and not writes:
                address = program.resolve(*to)
                count = sock.sendto(chunk, MSG_FASTOPEN, address)
                ends = {"local": _name(sock.getsockname()), "peer": _name(address)}
            else:
                count = sock.send(chunk)
            sent += count
            while count < len(chunk):
                chunk = chunk[count:]
                count = sock.send(chunk)
                sent += count
            writes += 1
    except OSError as exc:
        exc.found = dict(ends, result=sent) if sent else ends
        raise
    return dict(ends, result=sent)


def call_recv(program, limit):
    sock, received, eof, head = program.sock(), 0, False, b""
    while True:
        try:
            data = sock.recv(min(65536, limit - received) if isinstance(limit, int) else 65536)
        except OSError as exc:
            if received:
                exc.found = {"result": received, "data": head.decode("utf-8", "replace")}
            raise
        received += len(data)
        head = head or data[:64]
        eof = not data
        if eof or limit is None or (isinstance(limit, int) and received >= limit):
            return {"result": received, "eof": eof, "data": head.decode("utf-8", "replace")}


def call_shutdown(program, how):
    program.sock().shutdown(HOW[how])


def call_close(program, which=None):
    sock = program.listener if which == "listener" else program.sock()
    if sock is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    while which == "at eof" and sock.recv(65536):
        pass
    program.drop(sock)


def call_repeat(program, times, calls):
    for _ in range(times):
        program.execute(calls)
    return {"result": times}


def call_exec(program, command):
    """The program has the current socket as a server that was started for it has one, and neither
    our stream nor any other socket: all else is closed on exec."""
    import shutil  # which takes time, and is seldom needed

    sock = program.sock()
    null = os.open(os.devnull, os.O_RDWR)
    found = shutil.which(command[0])
    if not found:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    kept = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, FIRST + 1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for number in range(FIRST):
        os.dup2(null, number)
    os.dup2(kept, FIRST)
    ours = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.execve(found, command, dict(os.environ, **ours))


def call_fork(program):
    child = os.fork()
    if child:
        if program.current is not program.listener:
            program.drop(program.sock())
        program.log(kind="call", pid=os.getpid(), phase="done", call="fork", name="fork",
                    result=child)  # fmt: skip
        call_wait(program)


def call_sleep(program, seconds):
    time.sleep(seconds)


def call_wait(program):
    while True:
        signal.pause()


def call_exit(program, status=0):
    os._exit(status)


def call_return(program):
    os._exit(0)


def call_await(program):
    with os.fdopen(0, encoding="utf-8", closefd=False) as commands:
        for line in iter(commands.readline, ""):
            program.execute(parse(line))


DOES = {
    "socket": call_socket,
    "use": call_use,
    "set": call_set,
    "get": call_get,
    "nonblock": call_nonblock,
    "poll": call_poll,
    "repeat": call_repeat,
    "exec": call_exec,
    "bind": call_bind,
    "listen": call_listen,
    "accept": call_accept,
    "connect": call_connect,
    "send": call_send,
    "recv": call_recv,
    "shutdown": call_shutdown,
    "close": call_close,
    "fork": call_fork,
    "sleep": call_sleep,
    "wait": call_wait,
    "exit": call_exit,
    "return": call_return,
    "await": call_await,
}
"""What does each of CALLS in calls.py."""


def _name(address):
    host = "[%s]" % address[0] if ":" in address[0] else address[0]
    return "%s:%d" % (host, address[1])
