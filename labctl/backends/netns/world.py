"""The world of one lab: process 1 of the namespaces that hold its bridge, hosts and processes.

The launcher forks it (see launcher.py), into a mount, a PID and a network namespace of its own. The
bridge lives in that network namespace. It forks an agent per host and a supervisor per process
instead of starting interpreters: so a lab of fifty hosts comes up within a second. When its control
socket ends, it ends, and the kernel ends everything in it: so nothing outlives a controller that
was killed. The tracer is forked beside it. In the world, the kernel would kill it before it tidied
up.

It has the standard library alone, of Python 3.9 or later, and labctl itself never imports it.
Requests to a world and its answers are JSON, one a SOCK_SEQPACKET message; a request may carry a
file descriptor, the channel of the program that it starts. A request to the launcher, on its
standard input, is only descriptors: the first is of a file with a message, which may be large.

Threads: none, so that fork and unshare(2) mean what they say.
"""

import codecs
import ctypes
import gc
import importlib.util
import itertools
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # an isolated Python leaves it out
import confine
import links

CLONE_NEWNS = 0x20000
CLONE_NEWIPC = 0x8000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_REC, MS_PRIVATE = 16384, 1 << 18
PR_SET_NO_NEW_PRIVS = 38
PR_CAPBSET_DROP = 24
LAST_CAPABILITY = 63
CAPABILITY_VERSION_3 = 0x20080522
NET_ADMIN, NET_RAW = 12, 13
ANSWER_LIMIT = 65536
LAUNCH_LIMIT, MOST_FILES = 16, 7
LOG = 4
HOSTS = "/tmp/hosts.%s"  # in the world's own /tmp
FORBIDDEN = confine.calls()
PRIORITY = -10  # for agents, and processes in `await`, so that each call is done at once

for codec in ("idna", "punycode"):
    codecs.lookup(codec)  # for names: where Python is root's alone, no other user could load them

libc = ctypes.CDLL(None, use_errno=True)
bounding = set(range(LAST_CAPABILITY + 1))  # what execve(2) may give: see capabilities(7)


def call(name: str, *args: object) -> None:
    """A libc call without a Python wrapper before 3.12. Raises OSError."""
    if getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def load(path: str):  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fork(work) -> int:  # type: ignore[no-untyped-def]
    """A process that does some work and ends: with 0 only if nothing went wrong. Otherwise it says
    on stderr what did."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def close_but(*kept: int) -> None:
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in kept:
            try:
                os.close(number)
            except OSError:
                pass


def limit_capabilities(most: "Iterable[int]") -> None:
    """Nothing that this process or its children execute will have others than these."""
    for number in bounding.difference(most):
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    bounding.intersection_update(most)


def drop_capabilities(kept: "list[int]") -> None:
    """Leaves a process with only these capabilities, of the first 32, now and after exec, like the
    containers of processes."""
    limit_capabilities(kept)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    mask = sum(1 << number for number in kept)  # effective and permitted
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    call("capset", header, (ctypes.c_uint32 * 6)(mask, mask))


def hasten() -> None:
    """Gives this process priority, if it may."""
    with suppress(OSError):  # it takes CAP_SYS_NICE
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)


class World:
    def __init__(  # type: ignore[no-untyped-def]
        self, control: socket.socket, agent, peer, folder: str
    ) -> None:
        self.control, self.folder = control, folder
        self.agent, self.peer = agent, peer
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self.links = links.Links()
        self.bridges: dict[str, int] = {}
        self.ports = map("port{}".format, itertools.count())
        self.networks: dict[str, int] = {}
        self.processes: dict[int, str] = {}

    def host(  # type: ignore[no-untyped-def]
        self, channel: int, name: str, sysctls: "dict[str, str]", ends
    ) -> dict[str, object]:
        """A new network namespace with interfaces, and with an agent in it, in a PID namespace of
        its own, with the rights of a holder's container."""

        def work() -> None:
            call("unshare", CLONE_NEWNS | CLONE_NEWIPC)
            confine.bind(HOSTS % name, "/etc/hosts")
            confine.proc()
            confine.own(os.environ.get("PATH", ""), self.folder, confine.COPIED)
            hasten()
            drop_capabilities([NET_ADMIN, NET_RAW])
            self.peer.filters.confine(FORBIDDEN)
            self.agent.main(["--tether"])

        with open(HOSTS % name, "w") as file:
            os.fchmod(file.fileno(), 0o644)
        for bridge in {end["bridge"] for end in ends}.difference(self.bridges):
            self.bridges[bridge] = self.links.bridge(bridge)
        call("unshare", CLONE_NEWNET)
        self.networks[name] = os.open("/proc/self/ns/net", os.O_RDONLY)
        for path, value in sysctls.items():
            with open(f"/proc/sys/{path}", "w") as file:
                file.write(value)
        try:
            self.wire(self.networks[name], ends)
            call("unshare", CLONE_NEWPID)
            return {"pid": self.fork(channel, work)}
        finally:
            call("setns", self.pids, CLONE_NEWPID)
            call("setns", self.home, CLONE_NEWNET)

    def wire(self, network: int, ends) -> None:  # type: ignore[no-untyped-def]
        """Makes the interfaces of a host, from its network, where this process is."""
        here = links.Links()
        here.up(links.LOOPBACK)
        for end in ends:
            bridge = self.bridges[end["bridge"]]
            self.links.pair(next(self.ports), bridge, end["device"], network)
            index = socket.if_nametoindex(end["device"])
            for address in end["addresses"]:
                here.address(index, address)
            here.up(index)
        here.close()

    def spawn(  # type: ignore[no-untyped-def]
        self, channel: int, name: str, host: str, what, rights
    ) -> dict[str, object]:
        """A supervisor and its process, on a host, in a new PID namespace with a /proc of its
        own: no process sees another one's."""
        uid = rights["uid"]

        def work() -> None:
            call("setns", self.networks[host], CLONE_NEWNET)
            call("unshare", CLONE_NEWNS | CLONE_NEWIPC)
            confine.bind(HOSTS % host, "/etc/hosts")
            confine.protect("/etc/hosts")
            confine.proc()
            confine.own(os.environ.get("PATH", ""), self.folder, confine.COPIED)
            close_but(0, 1, 2)
            calls = None if what["calls"] is None else self.peer.parse(what["calls"])
            if calls and any(call.name == "await" for call in calls):
                hasten()
            if uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            else:
                drop_capabilities(rights["kept"])
            self.peer.filters.confine(FORBIDDEN)
            log = self.peer.Log(self.peer.as_json)
            if calls is not None:
                main = self.peer.calls_main(calls, log)
            else:
                main = self.peer.run_main(what["run"], what["env"])
            self.peer.supervise(main, log, True, what["watch"])

        call("unshare", CLONE_NEWPID)
        try:
            pid = self.fork(channel, work)
        finally:
            call("setns", self.pids, CLONE_NEWPID)
        self.processes[pid] = name
        return {"pid": pid}

    def kill(self, channel: int, pid: int) -> dict[str, object]:
        """Sends SIGKILL to a PID namespace. Answers at once; `gone` follows when it is empty."""
        if pid in self.processes:
            os.kill(pid, signal.SIGKILL)
        return {}

    def fork(self, channel: int, work) -> int:  # type: ignore[no-untyped-def]
        def child() -> None:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(channel, 0)
            os.dup2(channel, 1)
            close_but(0, 1, 2, *self.networks.values())
            try:
                work()
            except BaseException as exc:
                self.peer.Log(self.peer.as_json)(kind="broken", text=self.peer.told(exc))
                raise

        try:
            return fork(child)
        except OSError as exc:
            raise OSError(exc.errno, self.peer.NO_FORK % exc.strerror) from None

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if name := self.processes.pop(pid, None):
                self.send(kind="gone", name=name, pid=pid, status=status)

    def send(self, **message: object) -> None:
        self.control.send(json.dumps({"t": time.monotonic(), **message}).encode())

    def serve(self) -> None:
        wake, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready, _, _ = select.select([wake, self.control.fileno()], [], [])
            if wake in ready:
                os.read(wake, 4096)
                self.reap()
            if self.control.fileno() not in ready:
                continue
            data, channels, _, _ = socket.recv_fds(self.control, ANSWER_LIMIT, 1)
            if not data:
                return
            request = json.loads(data)
            ident = request.pop("id")
            channel = channels[0] if channels else -1
            try:
                answer = COMMANDS[request.pop("do")](self, channel, **request)
            except OSError as exc:
                answer = {"error": str(exc)}
            if channels:
                os.close(channel)
            self.send(kind="reply", id=ident, **answer)


COMMANDS: "dict[str, Callable[..., dict[str, object]]]" = {
    "host": World.host,
    "spawn": World.spawn,
    "kill": World.kill,
}


def obey(programs, files: "list[int]") -> None:  # type: ignore[no-untyped-def]
    """Does what the first of these files asks for, with the others: see `launch`."""
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), files[LOG], files[LOG])):
        os.dup2(file, number)
    words, *others = files
    request = json.loads(os.pread(words, os.fstat(words).st_size, 0))
    os.close(words)
    LAUNCHES[request.pop("do")](programs, others, **request)


def launch(  # type: ignore[no-untyped-def]
    programs, files: "list[int]", run: str, environ: "dict[str, str]", rights: "list[int]"
) -> None:
    """Begins a lab, says which processes it has, and waits for their end: they are children of this
    one.

    `files`: where to say that, the folder to be in, the world's control socket, its log, and for
    tracing the tracer's channel and log."""
    agent, peer, tracer = programs
    alive, folder, control, _, *trace = files
    os.environ.clear()
    os.environ.update(environ)
    os.fchdir(folder)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()

    def watch() -> None:
        for number, file in enumerate((trace[0], trace[0], trace[1])):
            os.dup2(file, number)
        close_but(0, 1, 2)
        tracer.main([run])

    def hold() -> None:
        close_but(0, 1, 2, control)
        confine.mount("none", "/", "", MS_REC | MS_PRIVATE)
        confine.proc()
        folder = confine.here()
        confine.system(os.environ.get("PATH", ""), folder)
        limit_capabilities([NET_ADMIN, NET_RAW, *rights])
        world = World(socket.socket(fileno=control), agent, peer, folder)
        world.send(kind="hello")
        world.serve()

    tracers = [fork(watch)] if trace else []
    call("unshare", CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC)
    pids = [fork(hold), *tracers]
    began = {"kind": "began", "t": time.monotonic(), "pids": pids}
    os.write(alive, json.dumps(began).encode())
    for file in files:
        if file != alive:
            os.close(file)  # /proc is the world's by now
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # they keep their numbers until all end
    for pid in pids:
        os.waitpid(pid, 0)


LAUNCHES: "dict[str, Callable[..., None]]" = {"launch": launch}


def main() -> None:
    programs = [load(path) for path in sys.argv[1:]]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that launch
    inbox = socket.socket(fileno=0)
    gc.freeze()
    gc.enable()
    while True:
        data, files, _, _ = socket.recv_fds(inbox, LAUNCH_LIMIT, MOST_FILES)
        if not data:
            os._exit(0)  # at once: an interpreter takes its time to end
        try:
            fork(lambda: obey(programs, files))  # noqa: B023 - called before the next turn
        except OSError as exc:
            print(f"[Errno {exc.errno}] fork: {exc.strerror}", file=sys.stderr, flush=True)
        for file in files:
            os.close(file)
