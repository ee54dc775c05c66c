"""The program in a guest: runs cases on namespaces there, and reports the events to the controller.

Both speak JSON, one object a line, over a virtio-serial port: see messages.py. The guest
has no disk to keep anything on: the controller records a run, and so also all that came before a
crash.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import fcntl
import gc
import json
import os
import platform
import shutil
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from labctl.backends import (
    Backend,
    BackendOptions,
    HostLink,
    HostSpec,
    Message,
    ProcessSpec,
    sysctls,
)
from labctl.backends.capabilities import Lack
from labctl.backends.netns.backend import NetnsBackend
from labctl.backends.wire import Said
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document, params_of
from labctl.probes.segments import Captures
from labctl.record.events import Event
from labctl.run.guests import messages
from labctl.run.runner import Performance, Silent

TICK = 5.0
LONGEST_TICK = 30.0
LONGEST_REST = 60.0
"""At most so many seconds between two polls of a quiet host, if only work costs, and time does
not."""
STREAMS = {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
"""What devtmpfs lacks in /dev, as links into /proc/self: nft 0.9.8 reads /dev/stdin."""
ORPHANS, TIME_WAITS = "net/ipv4/tcp_max_orphans", "net/ipv4/tcp_max_tw_buckets"
LIMIT = "4096"
"""Of these: what a kernel with this memory takes. It goes by the size of its table of connections,
which qemu.py makes small."""
HOUSEKEEPING = {
    "vm/compaction_proactiveness": "0",
    "vm/stat_interval": "3600",
    "kernel/modprobe": "\n",
    "net/core/bpf_jit_enable": "0",
    ORPHANS: LIMIT,
}
"""sysctls. The first two let a kernel rest: otherwise it looks after its memory twice a second. It
compiles no filters: QEMU would translate that code, too, for each process anew. And it starts no
program to load a module that some name stands for, ten times a case: all that there are are
loaded."""
QUIET = (Path("/proc/sys/kernel/printk"), "4")
"""Keeps the kernel from writing everything that happens in labs to the console."""
RUN = "guest"
INSTANCES = [
    Path("/sys/kernel/tracing/instances", f"labctl-{RUN}{what}") for what in ("", "-fates")
]
"""The tracer's instances (images/host/tracer.py): making and removing one takes a tenth of a short
case."""
INIT_MODULE = 175  # arch/x86/entry/syscalls/syscall_64.tbl
RNDADDENTROPY = 0x40085203  # include/uapi/linux/random.h

WARM_UP = """\
title: What a guest does before its state is saved, so that nothing is done for the first time later
hosts:
  server: {calls: "socket; bind :80; listen 1; accept; recv; wait"}
  client: {calls: 'socket; connect server:80; send "hello"; wait'}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {sockets: {server: ESTAB, client: ESTAB}, process: {client: {output: "^$"}}}
  - inject: {from: client, to: server, flags: ACK}
  - kill: server
  - expect: {sockets: {client: CLOSE-WAIT}}
  - expect: {segments: {from: server, flags: FIN}}
"""


class Port:
    """The port to the controller."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR)
        self._lock = threading.Lock()
        self._pending = b""

    def say(self, what: Said) -> None:
        """Says something."""
        data = what.as_line().encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._file, data) :]

    def hear(self) -> Message:
        """Waits for the next one."""
        while b"\n" not in self._pending:
            self._pending += os.read(self._file, 1 << 16)
        line, _, self._pending = self._pending.partition(b"\n")
        message: Message = json.loads(line)
        return message


class GuestBackend(NetnsBackend):
    """Namespaces in a guest."""

    sysctls: Mapping[str, str] = {**NetnsBackend.sysctls, TIME_WAITS: LIMIT}

    def __init__(self, options: BackendOptions, engine: str, virtual: bool) -> None:
        super().__init__(options)
        self._engine, self._virtual = engine, virtual
        self._before: dict[Path, str] = {}  # sysctls of the whole machine, as they were

    def environment(self) -> dict[str, str | None]:
        return {**super().environment(), "engine": self._engine}

    def lacks(self) -> Mapping[str, Lack]:
        lacks = dict(super().lacks())
        if self._virtual:
            del lacks["virtual_time"]
        return lacks

    def up(
        self, hosts: Sequence[HostSpec], processes: Sequence[ProcessSpec]
    ) -> dict[str, HostLink]:
        links = super().up(hosts, processes)
        if not self._virtual:
            return links
        return {name: replace(link, longest_rest=LONGEST_REST) for name, link in links.items()}

    def sysctl(self, key: str, value: str, readable: bool) -> None:
        """See `Backend`. The machine belongs to the lab, until the case is over."""
        path = sysctls.file(key)
        try:
            before = path.read_text()
            path.write_text(value)
        except (FileNotFoundError, PermissionError):
            raise sysctls.absence(key, platform.release(), readable) from None
        self._before.setdefault(path, before)

    def down(self) -> None:
        super().down()
        while self._before:
            path, text = self._before.popitem()
            path.write_text(text)


class Teller:
    """Tells the controller what to record."""

    def __init__(self, say: Callable[[Said], None]) -> None:
        self._say, self.captures = say, Captures()

    def add(self, event: Event) -> None:
        """See `Records`."""
        self._say(messages.Happened(t=event.t, line=event.to_json()))

    def add_packets(self, host: str, records: bytes) -> None:
        """See `Records`."""
        data = base64.b64encode(records).decode()
        self._say(messages.Captured(t=time.monotonic(), host=host, data=data))


class Guest:
    """Does what the controller says, and answers. `backend` makes its labs."""

    def __init__(
        self,
        port: Port,
        backend: Callable[[BackendOptions, str, bool], Backend] = GuestBackend,
    ) -> None:
        self._port, self._backend = port, backend
        self._engine, self._virtual = "QEMU", False

    def serve(self) -> None:
        """Warms up, and obeys as long as the guest lives."""
        (warm_up,) = load_document(Document("warm up", WARM_UP), WARM_UP, "warm", {})
        how = self._perform(warm_up, lambda said: None)
        if how["result"]:
            sys.exit(
                f"labctl: this kernel brings no lab up: {how['reason']}; it needs veth, bridge, "
                "af_packet and tcp_diag, built in or as modules"
            )
        # Who says something goes on, and this takes in more at once: at each change of process QEMU
        # forgets what it knew of addresses.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        gc.collect()
        gc.freeze()
        QUIET[0].write_text(QUIET[1])
        self._port.say(messages.Booted(t=time.monotonic()))
        while True:
            message = self._port.hear()
            if message.pop("do") == "hello":
                self._hello(**message)
            else:
                self._case(**message)

    def _hello(self, wall: float, seed: str, engine: str, virtual: bool) -> None:
        """Sets the clock, and mixes the kernel's random numbers: a saved state has old ones."""
        time.clock_settime(time.CLOCK_REALTIME, wall)
        fresh = bytes.fromhex(seed)
        with Path("/dev/random").open("wb") as pool:
            request = struct.pack("ii", 8 * len(fresh), len(fresh)) + fresh
            fcntl.ioctl(pool, RNDADDENTROPY, request)
        self._engine, self._virtual = engine, virtual
        self._port.say(messages.Greeted(t=time.monotonic(), kernel=os.uname().release))

    def _case(self, source: str, name: str, text: str, sets: dict[str, str], case: str) -> None:
        document = Document(source, text)
        own = params_of(document)
        chosen = {name: value for name, value in sets.items() if name in own}
        (scenario,) = load_document(document, text, name, chosen, case)
        ended = threading.Event()

        def tick() -> None:
            began = time.monotonic()
            while not ended.wait(min(max(TICK, (time.monotonic() - began) / 10), LONGEST_TICK)):
                self._port.say(messages.Tick(t=time.monotonic()))

        self._port.say(messages.Tick(t=time.monotonic()))
        ticker = threading.Thread(target=tick, name="tick")
        ticker.start()
        try:
            how = self._perform(scenario, self._port.say)
        finally:
            ended.set()
            ticker.join()
        self._port.say(messages.CaseEnded(t=time.monotonic(), how=how))

    def _perform(self, scenario: Scenario, say: Callable[[Said], None]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            options = BackendOptions(RUN, "", Path(folder), "", print)
            backend = self._backend(options, self._engine, self._virtual)
            performance = Performance(scenario, backend, Teller(say), Silent())
            performance.perform()
        return asdict(performance.ended)


def load_modules(folder: Path) -> None:
    """Loads the kernel's modules, in the order of `initramfs.py` (init_module(2)), or exits.

    By hand: insmod(8) would take a process for each."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name in (folder / "order").read_text().split():
        image = (folder / name).read_bytes()
        if libc.syscall(INIT_MODULE, image, ctypes.c_ulong(len(image)), b""):
            code = ctypes.get_errno()
            if code != errno.EEXIST:
                sys.exit(f"labctl: the kernel refuses its module {name}: {os.strerror(code)}")
    shutil.rmtree(folder)


@contextmanager
def held_instances() -> Iterator[None]:
    """Makes INSTANCES, and holds them open, so that tracers do not remove them; if it can't, they
    say why."""
    with ExitStack() as stack:
        with suppress(OSError):
            for instance in INSTANCES:
                instance.mkdir()
                stack.enter_context((instance / "tracing_on").open())
        yield


def main() -> None:
    """Loads what the kernel needs, finds the port, and serves."""
    gc.set_threshold(50_000)
    for name in ("PYTHONHOME", "PYTHONPATH"):
        os.environ.pop(name, None)  # or programs in labs would have them
    load_modules(Path("/modules"))
    for name, file in STREAMS.items():
        Path("/dev", name).symlink_to(f"/proc/self/{file}")
    for name, value in HOUSEKEEPING.items():
        with suppress(OSError):  # of a kernel that was built without, or to compile always
            Path("/proc/sys", name).write_text(value)
    port = next(Path("/dev").glob("vport*"), None)
    if port is None:
        sys.exit(
            "labctl: this kernel does not speak virtio; it needs virtio_pci and virtio_console, "
            "built in or as modules"
        )
    sys.stdout = sys.stderr
    with held_instances():
        Guest(Port(str(port))).serve()
