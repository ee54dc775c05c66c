"""QEMU: one guest, what it says, and its end.

The guest's program speaks JSON, one object a line, over a virtio-serial port that is QEMU's
standard input and output. The console goes to a file, for when there is nothing else to read.
Here QEMU is a child that the kernel kills with this process, however that ends (prctl(2),
PR_SET_PDEATHSIG, by setpriv(1)). contained.py has it in a container of a Docker engine.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

from labctl.backends.debian import ROOM
from labctl.backends.wire import Command, NoMessage, Said, read
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, Unavailable
from labctl.run.guests.messages import GUEST

PROGRAM = "qemu-system-x86_64"
HINT = "install the package qemu-system-x86, or start a Docker engine: guests run in it, too"
PROCESSOR = {"tcg": "Nehalem,+rdrand", "kvm": "host"}
"""The emulated processor: a newer one has wider registers to save, and takes a third more time.
Without RDRAND a kernel gathers its first random numbers for a second, and Python waits for them."""
MEMORY = 1024  # MiB; what a guest never touches costs nothing
MONITOR_DEADLINE = 60.0
END_DEADLINE = 5.0
TAIL = 8  # lines of the console in an error
TICKS = os.sysconf("SC_CLK_TCK")

PARAMETERS = (
    "console=ttyS0 earlyprintk=ttyS0 loglevel=7 panic=-1 mitigations=off nowatchdog no_timer_check "
    "tsc=reliable cryptomgr.notests=1 init_on_alloc=0 random.trust_cpu=on audit=0 psi=0 "
    "cgroup_disable=memory net.ifnames=0 nokaslr norandmaps edd=off thash_entries=512 rdinit=/init"
)
"""For the kernel: see Documentation/admin-guide/kernel-parameters.rst. A panic ends QEMU. Code at
random addresses would be translated anew for each process: half of a short case. Whoever lists a
host's sockets walks through a table of all hosts, which would have 8192 entries. While it boots
the kernel writes how far it has come, for those who wait; guest.py then quietens it."""

BOARD = "q35,hpet=off"
"""A HPET never rests: it interrupts the jumps of a virtual clock some 18 times a second."""

VIRTUAL = ("-icount", "shift=1,sleep=off")
"""A clock that counts instructions, 2 ns each, and jumps to the next timer when the guest idles."""


class GuestEnded(LabError):
    """The guest is gone, or does not answer."""


class GuestHangs(GuestEnded):
    """The guest is there, but makes no progress: it would not another time, either."""


@dataclass(frozen=True)
class Hardware:
    """What a guest starts with: files, QEMU's accelerator, and which clock it uses."""

    image: Path
    initramfs: Path
    virtual: bool = False
    accelerator: str = "tcg"


def words(hardware: Hardware, console: str) -> list[str]:
    """How QEMU is started: the guest's port is its standard input and output, and what the guest
    writes to its console goes to the file `console`."""
    return [
        PROGRAM, "-M", BOARD, "-accel", hardware.accelerator,
        "-cpu", PROCESSOR[hardware.accelerator],
        "-m", str(MEMORY), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", str(hardware.image), "-initrd", str(hardware.initramfs), "-append", PARAMETERS,
        "-chardev", "stdio,id=port,signal=off",
        "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,name=labctl",
        "-chardev", f"file,id=console,path={console}", "-serial", "chardev:console",
        *(VIRTUAL if hardware.virtual else ()),
    ]  # fmt: skip


def command(hardware: Hardware, console: int, monitor: int, state: Path | None) -> list[str]:
    """The command that starts QEMU here. `console` and `monitor` are descriptors that it inherits;
    with `state` it goes on from there instead of booting."""
    return [
        "setpriv", "--pdeathsig", "KILL", "--",
        *words(hardware, f"/proc/self/fd/{console}"),
        "-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control",
        *(["-incoming", f"exec:exec cat {shlex.quote(str(state))}"] if state else ()),
    ]  # fmt: skip


class Machine(ABC):
    """A guest that runs, used in a `with`, wherever QEMU runs. Methods raise GuestEnded, and
    LabError if QEMU can't start."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self._pending = b""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def _write(self, data: bytes) -> None:
        """Writes to the guest's port. Raises OSError if it is gone."""

    @abstractmethod
    def _read(self, patience: float) -> bytes | None:
        """What comes from the guest's port, empty at its end; None if nothing comes within
        `patience` seconds."""

    @abstractmethod
    def _written(self) -> tuple[bytes, bytes]:
        """What the guest wrote to its console, and what QEMU itself said."""

    @property
    @abstractmethod
    def product(self) -> str:
        """QEMU's name and version, and what it runs in, if not here."""

    @property
    @abstractmethod
    def work(self) -> float:
        """Seconds of processor time that the guest has used."""

    @property
    @abstractmethod
    def said(self) -> int:
        """How many bytes the guest has written to its console."""

    def send(self, command: Command[Any]) -> None:
        """Makes the guest's program do something."""
        try:
            self._write((json.dumps(command.as_json()) + "\n").encode())
        except OSError as exc:
            raise self.ended("it ended") from exc

    def receive(self, patience: float) -> Said | None:
        """The next message of the guest's program; None if none comes within `patience` seconds."""
        deadline = time.monotonic() + patience
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            data = self._read(left) if left > 0 else None
            if data is None:
                return None
            if not data:
                raise self.ended("it ended")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            return GUEST.heard(read(line))
        except NoMessage as exc:
            raise self.ended(f"it does not make sense: {exc}") from exc

    def console(self) -> str:
        """What the guest wrote to its console."""
        text = self._written()[0].decode(errors="replace")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|\r", "", text)

    def ended(self, why: str) -> GuestEnded:
        """An error that says why, and what the console and QEMU said last."""
        said = self._written()[1].decode(errors="replace").strip().splitlines()
        before, panic, after = self.console().partition("Kernel panic")
        shown = before + panic + after.partition("\n")[0]  # what follows are registers
        last = [line for line in shown.splitlines() if line.strip()][-TAIL:] + said[-2:]
        tail = "".join(f"\n    {line}" for line in last)
        return GuestEnded(f"the guest: {why}" + (f"; its console:{tail}" if tail else ""))


class Here(Machine):
    """A guest whose QEMU is a child of ours. With `state` it goes on from there."""

    def __init__(self, hardware: Hardware, state: Path | None = None) -> None:
        super().__init__(hardware)
        self._state = state
        self._answers = b""

    def __enter__(self) -> Self:
        # Files without names: nothing is left of them, however we end.
        self._console, self._log = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._monitor, theirs = socket.socketpair()
        inherited = [self._console.fileno(), theirs.fileno()]
        words = command(self.hardware, inherited[0], inherited[1], self._state)
        with ExitStack() as stack, theirs:
            for file in (self._console, self._log, self._monitor):
                stack.enter_context(file)
            try:
                self._process = stack.enter_context(
                    subprocess.Popen(
                        words,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=self._log,
                        pass_fds=inherited,
                        start_new_session=True,  # Ctrl-C is for us
                    )
                )
            except OSError as exc:
                raise LabError(f"{words[0]} can't be started: {exc.strerror}") from exc
            stack.callback(self._process.kill)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._stack.close()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def _read(self, patience: float) -> bytes | None:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], patience)[0]:
            return None
        data = os.read(self._process.stdout.fileno(), 1 << 16)
        if not data:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_DEADLINE)
        return data

    def _written(self) -> tuple[bytes, bytes]:
        for file in (self._console, self._log):
            file.seek(0)
        return self._console.read(), self._log.read()

    @property
    def product(self) -> str:
        return f"QEMU {version()}"

    @property
    def work(self) -> float:
        try:
            text = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return 0.0
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def said(self) -> int:
        return os.fstat(self._console.fileno()).st_size

    def save(self, state: Path) -> None:
        """Writes the guest's state to a file, and lets it go on. If that fails, raises LabError,
        and the guest is still there."""
        partial = state.with_name(f".new-{os.getpid()}-{state.name}")
        try:
            self._ask("qmp_capabilities")
            self._ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            name = shlex.quote(str(partial))  # QEMU does not see how the shell fares
            self._ask("migrate", uri=f"exec:cat > {name} || rm -f {name}")
            deadline = time.monotonic() + MONITOR_DEADLINE
            while (status := self._ask("query-migrate").get("status")) != "completed":
                if status == "failed" or time.monotonic() > deadline:
                    raise LabError(f"{state.parent} takes no state ({status})", ROOM)
                time.sleep(0.05)
            self._ask("cont")
            try:
                partial.rename(state)
            except FileNotFoundError as exc:
                raise LabError(f"{state.parent} has no room for the guest's state", ROOM) from exc
        finally:
            partial.unlink(missing_ok=True)

    def _ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Sends one command of QMP (QEMU's qmp-spec), and returns its result."""
        request = {"execute": what, "arguments": arguments}
        self._monitor.settimeout(MONITOR_DEADLINE)
        try:
            self._monitor.sendall((json.dumps(request) + "\n").encode())
            while True:
                while b"\n" not in self._answers:
                    data = self._monitor.recv(1 << 16)
                    if not data:
                        raise self.ended("it ended")
                    self._answers += data
                line, _, self._answers = self._answers.partition(b"\n")
                answer = json.loads(line)
                if "error" in answer:
                    raise LabError(f"QEMU: {what}: {answer['error'].get('desc')}")
                if "return" in answer:
                    found: dict[str, Any] = answer["return"]
                    return found
        except OSError as exc:
            raise self.ended(f"its monitor does not answer to {what}") from exc


@cache
def version() -> str:
    """QEMU's version. Raises Unavailable if it does not work, or the system is not Linux."""
    if sys.platform != "linux":
        raise Unavailable("guests need Linux", "start a Docker engine: they run in a container")
    try:
        said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False)
    except OSError as exc:
        raise Unavailable(f"{PROGRAM} can't be started: {exc.strerror}", HINT) from exc
    found = re.search(r"version (\d+(?:\.\d+)+)", said.stdout)
    if not found:
        raise Unavailable(f"{PROGRAM} does not work: {said.stderr.strip()}", HINT)
    return found[1]
