"""The embedded backend: plain Linux namespaces, with root or in an unprivileged user namespace.

    launcher -> a process that waits for all of the lab
                 |-- world.py (process 1; owns the bridge's network namespace)
                 |    |-- agent.py, one for each host, in a network namespace of its own
                 |    `-- peer.py, one for each process, in a PID namespace of its own
                 `-- tracer.py, with real root only

No daemon and no image. World and tracer end with their sockets to this program: the kernel ends
everything in a world, and the tracer has to tidy up first.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import json
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from typing import Any

from labctl.backends import (
    RIGHTS,
    BackendOptions,
    Channel,
    HostLink,
    HostSpec,
    LinkEnd,
    Message,
    ProcessSpec,
    protocol,
    wire,
)
from labctl.backends.capabilities import CAPABILITIES, REAL_TIME, Lack
from labctl.backends.halted import children, halted
from labctl.backends.netns import confine
from labctl.backends.netns.launcher import Launched, Launcher, launcher
from labctl.backends.netns.messages import AddHost, End, Forked, Gone, Kill, Launch, Spawn
from labctl.backends.protocol import Hello
from labctl.backends.sysctls import refusal
from labctl.backends.wire import A, Command, Failed, asked
from labctl.ground.errors import LabError, Unavailable
from labctl.ground.limits import explained, limit_of

NETWORKS = ipaddress.IPv4Network("198.18.0.0/16")  # RFC 2544: for tests
LEAST = 8
"""Bits of a host's number. A lab has a network of its own, since tracing knows addresses and no
namespaces. It chooses one at random, since it can't ask labs elsewhere on the machine."""

START_DEADLINE = 20.0
ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
"""What a lab gets of this program's environment; the rest may hold secrets."""
TOOLS = {"unshare": "util-linux", "ip": "iproute2", "ss": "iproute2"}


class SocketChannel:
    """A channel over one end of a socket pair."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError):
            self._socket.sendall((json.dumps(message) + "\n").encode())

    def __iter__(self) -> Iterator[Message]:
        with suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                yield wire.read(line)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class NetnsBackend:
    """See `Backend`."""

    name = "netns"
    sysctls: Mapping[str, str] = {"net/ipv4/ip_unprivileged_port_start": "0"}
    """Of each host, by their files below /proc/sys: as container engines have them."""

    def __init__(self, options: BackendOptions) -> None:
        self._run = options.run
        self._folder = options.folder
        self._claims: list[socket.socket] = []
        self._trace: SocketChannel | None = None
        self._launched: Launched | None = None
        self._control: socket.socket | None = None
        self._channels: list[SocketChannel] = []
        self._processes: dict[str, list[tuple[int, SocketChannel]]] = {}  # the latest start last
        self._asked = itertools.count(1)

    @classmethod
    def share(cls) -> None:
        """See `Backend`: starts the launcher."""
        if not _missing():
            _launcher()

    def environment(self) -> dict[str, str | None]:
        known = {"kernel": platform.release(), "os": os_name(), "engine": None}
        return {**known, "folder": confine.here()}

    def lacks(self) -> Mapping[str, Lack]:
        lacks = {
            "images": Lack("plain namespaces have no images", CAPABILITIES["images"].hint),
            "compose": Lack("plain namespaces have no containers", CAPABILITIES["compose"].hint),
            "virtual_time": REAL_TIME,
        }
        if lack := one_user_only():
            lacks["uids"] = lack
        return lacks

    def up(
        self, hosts: Sequence[HostSpec], processes: Sequence[ProcessSpec]
    ) -> dict[str, HostLink]:
        spaces = self._spaces(hosts)
        world = self._start()
        links = {}
        for host in hosts:
            given, ends, wired = [], {}, []
            for index, network in enumerate(host.networks):
                device, space = f"eth{index}", spaces[network]
                there = [space.next() for _ in range(host.addresses)]
                given += there
                ends[network] = LinkEnd(device, *there[0])
                addresses = [str(address) for pair in there for address in pair]
                wired.append(End(device=device, bridge=space.bridge, addresses=addresses))
            channel, pid = self._open(AddHost(host.name, self.sysctls, wired))
            links[host.name] = HostLink(
                channel,
                f"{world}/{pid}",
                tuple(str(v4.ip) for v4, _ in given),
                tuple(str(v6.ip) for _, v6 in given),
                ends=ends,
            )
        return links

    def trace(self) -> dict[str, Channel | Lack]:
        return {"": self._trace_here()}

    def _trace_here(self) -> Channel | Lack:
        if self._trace:
            return self._trace
        if not self._claims:
            return Lack(
                "too many labs run already, and tracing tells labs apart by addresses",
                "run fewer at once",
            )
        return Lack("tracing needs root", "run it as root, or use --backend docker")

    def _spaces(self, hosts: Sequence[HostSpec]) -> dict[str, _Space]:
        """The networks of a lab, and the claims to them: all, or none."""
        wanted: Counter[str] = Counter()
        for host in hosts:
            wanted.update(dict.fromkeys(host.networks, host.addresses))
        found, claims = {}, []
        for number, (name, addresses) in enumerate(wanted.items()):
            v4, mine = _claim_network(addresses)
            claims.append(mine)
            self._claims += mine
            found[name] = _Space(f"bridge{number}", v4)
        if not all(claims):
            while self._claims:
                self._claims.pop().close()
        return found

    def _start(self) -> int:
        """Begins the lab; returns the world's process id."""
        if lack := _missing():
            raise Unavailable(*lack)
        log = self._folder / "world.log"
        with ExitStack() as stack:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._control.settimeout(START_DEADLINE)
            files: list[Any] = [stack.enter_context(theirs), stack.enter_context(log.open("wb"))]
            if self._claims and os.geteuid() == 0:
                ours, theirs = socket.socketpair()
                self._trace = SocketChannel(ours)
                tracer_log = (self._folder / "tracer.log").open("wb")
                files += [stack.enter_context(theirs), stack.enter_context(tracer_log)]
            descriptors = [file.fileno() for file in files]
            try:
                self._begin(descriptors)
            except ConnectionError:
                launcher.cache_clear()
                with suppress(ConnectionError):  # the control socket shows that
                    self._begin(descriptors)
        try:
            Hello.of(self._receive())
        except LabError:
            if lack := unavailable():
                raise Unavailable(*lack) from None
            raise
        assert self._launched
        return self._launched.pids[0]

    def _begin(self, files: Sequence[int]) -> None:
        self._launched = Launched(_launcher())
        try:
            environ = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
            self._launched.begin(files, Launch(self._run, environ, [*RIGHTS.values()]))
        except ConnectionError:
            self._launched.end()
            raise
        except OSError as exc:
            reason, hint = limit_of(exc) or (exc.strerror, "")
            raise LabError(f"the namespaces can't begin: {reason}", hint) from exc

    def prepare(self, process: ProcessSpec) -> None:
        """Does nothing: a fork takes no time."""

    def spawn(self, process: ProcessSpec) -> Channel:
        channel, pid = self._open(
            Spawn(
                name=process.name,
                host=process.host,
                what={
                    "calls": process.calls,
                    "run": process.run,
                    "env": dict(process.env),
                    "watch": process.watch,
                },
                rights={
                    "uid": process.uid,
                    "kept": [RIGHTS[name] for name in process.rights],
                },
            )
        )
        self._processes.setdefault(process.name, []).append((pid, channel))
        return channel

    def begin(self) -> None:
        """See `Backend`. There are no projects."""

    def kill(self, process: ProcessSpec) -> None:
        for pid, _ in [*self._processes.get(process.name, ())]:
            self._ask(Kill(pid))
        while self._processes.get(process.name):
            self._receive()

    def signal(self, process: ProcessSpec, name: str) -> None:
        for _, channel in self._processes.get(process.name, ())[-1:]:
            channel.send(protocol.Signal(name).as_json())

    def freeze(self, process: ProcessSpec, frozen: bool) -> bool:
        command = protocol.Freeze() if frozen else protocol.Thaw()
        for _, channel in self._processes.get(process.name, ()):
            channel.send(command.as_json())
        return True

    def sysctl(self, key: str, value: str, readable: bool) -> None:
        raise refusal(key, platform.release(), not user_flags(), readable)

    def stopped(self) -> str | None:
        if not self._launched:
            return None
        parts = {self._launched.launcher: "the launcher of labs"}
        parts |= zip(self._launched.pids, ("the lab's world", "the lab's tracer"), strict=False)
        for world in self._launched.pids[:1]:
            parts |= dict.fromkeys(children(world), "an agent or a supervisor of the lab")
        return halted(parts)

    def down(self) -> None:
        if self._trace is not None:
            self._trace.close()
            self._trace = None
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._launched is not None:
            ended, self._launched = self._launched.end, None
            try:
                # The kernel takes its time for it; this program ends after that.
                threading.Thread(target=ended).start()
            except RuntimeError:  # no more threads
                ended()
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        while self._claims:
            self._claims.pop().close()

    def _open(self, command: Command[Forked]) -> tuple[SocketChannel, int]:
        ours, theirs = socket.socketpair()
        channel = SocketChannel(ours)
        self._channels.append(channel)
        with theirs:
            return channel, self._ask(command, theirs.fileno()).pid

    def _ask(self, command: Command[A], descriptor: int | None = None) -> A:
        if self._control is None:
            raise LabError("the lab is down")
        number = next(self._asked)
        data = json.dumps({**command.as_json(), "id": number}).encode()
        try:
            socket.send_fds(self._control, [data], [] if descriptor is None else [descriptor])
        except OSError as exc:
            raise self._broken() from exc
        while asked(message := self._receive()) != number:
            pass
        if isinstance(answer := command.answered(message), Failed):
            raise LabError(explained(answer.error))
        return answer

    def _receive(self) -> Message:
        """The world's next message: an answer, or that a process is gone."""
        assert self._control is not None
        try:
            data = self._control.recv(1 << 16)
        except TimeoutError as exc:
            late = f"the lab's world did not answer within {START_DEADLINE:g} s"
            raise LabError(self.stopped() or late) from exc
        except OSError as exc:
            raise self._broken() from exc
        if not data:
            raise self._broken()
        message = wire.read(data)
        if message["kind"] == Gone.kind:
            gone = Gone.of(message)
            started = self._processes.get(gone.name, [])
            self._processes[gone.name] = [each for each in started if each[0] != gone.pid]
        return message

    def _broken(self) -> LabError:
        log = (self._folder / "world.log").read_text(errors="replace").strip()
        log = log or (self._launched.said if self._launched else "")
        said = log.splitlines()[-1] if log else "no reason given"
        return LabError(f"the namespaces ended: {explained(said)}")


class _Space:
    """A network of a lab: its bridge, and which of its addresses are free."""

    def __init__(self, bridge: str, v4: ipaddress.IPv4Network) -> None:
        self.bridge = bridge
        self._v4 = v4
        self._v6 = ipaddress.IPv6Network((b"\xfd" + os.urandom(5) + bytes(10), 64))  # RFC 4193
        self._numbers = itertools.count(2)

    def next(self) -> tuple[ipaddress.IPv4Interface, ipaddress.IPv6Interface]:
        """The next address of each family."""
        n = next(self._numbers)
        return (
            ipaddress.IPv4Interface((self._v4[n], self._v4.prefixlen)),
            ipaddress.IPv6Interface((self._v6[n], self._v6.prefixlen)),
        )


def _claim_network(addresses: int) -> tuple[ipaddress.IPv4Network, list[socket.socket]]:
    """A network with room for so many addresses that no other lab has, and the sockets that keep it
    ours: an abstract address (unix(7)) belongs to one socket, and is free again however its owner
    ends. If all networks are taken, one that others have too."""
    bits = max(LEAST, (addresses + 2).bit_length())
    size = 1 << bits
    count = NETWORKS.num_addresses // size
    for number in random.sample(range(count), count):
        network = ipaddress.IPv4Network((NETWORKS[number * size], 32 - bits))
        claims: list[socket.socket] = []
        with suppress(OSError):
            for part in network.subnets(new_prefix=32 - LEAST):
                claims.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                claims[-1].bind(f"\0labctl-network-{part.network_address}")
            return network, claims
        for claim in claims:
            claim.close()
    return network, []


SPACES = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""The namespaces that the launcher makes for each lab, in unshare(1)'s words."""


@cache
def user_flags() -> tuple[str, ...]:
    """unshare(1)'s flags for the user namespace around all of it; root needs none."""
    if os.geteuid() == 0:
        return ()
    one, all_ = ("--user", "--map-root-user"), ("--user", "--map-root-user", "--map-auto")
    return all_ if shutil.which("newuidmap") and not _unshare_refused(all_) else one


def unshare_flags() -> tuple[str, ...]:
    """unshare(1)'s flags for everything that a lab lives in."""
    return (*user_flags(), *SPACES)


def _launcher() -> Launcher:
    return launcher(*(["unshare", *user_flags(), "--"] if user_flags() else []))


def _missing() -> Lack | None:
    if sys.platform != "linux":
        return Lack("namespaces need Linux", "use --backend docker")
    for tool, package in TOOLS.items():
        if not shutil.which(tool):
            return Lack(f"{tool} is not on the PATH", f"install the package {package}")
    return None


@cache
def unavailable() -> Lack | None:
    """Why this machine can't run labs in namespaces, if so."""
    if lack := _missing():
        return lack
    if refusal := _unshare_refused(unshare_flags()):
        if "temporarily unavailable" in refusal:
            return Lack("no more processes can be had", "raise the limit (ulimit -u)")
        return Lack(
            "this system forbids new namespaces to this user",
            "run as root, or allow them: sysctl kernel.unprivileged_userns_clone=1 (Debian), "
            "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), "
            "user.max_user_namespaces (elsewhere)",
        )
    return None


def one_user_only() -> Lack | None:
    """Why there can be no processes of other users, if so."""
    if not user_flags() or "--map-auto" in user_flags():
        return None
    return Lack(
        "this user namespace has one user only",
        CAPABILITIES["uids"].hint,
    )


def _unshare_refused(flags: Sequence[str]) -> str:
    """What unshare(1) says if it can't do this; empty if it can."""
    command = ["unshare", *flags, "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stderr.strip() or "it can't"
    if os.strerror(errno.EAGAIN) in said:
        raise BlockingIOError(errno.EAGAIN, said)
    return said if done.returncode else ""


def os_name() -> str:
    """This machine's operating system."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()
