"""Leases: who is alive. A controller holds a locked file as long as it runs (flock(2)).

The kernel releases the lock however the controller ends. So a lease that can be locked is dead, and
everything in an engine with its name may be removed. The file also tells `labctl ps` and
`labctl shell` about the lab.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, field
from pathlib import Path
from typing import BinaryIO, Self

from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, UsageError

HINT = "set XDG_RUNTIME_DIR to a folder of your own"


def new_name() -> str:
    """A name for a run that no other has."""
    return os.urandom(4).hex()


@dataclass
class Lease:
    """What a controller says of itself. `hosts` maps each host to the id of its holder: a process
    id for namespaces, a container id for an engine. `began` distinguishes its process from a later
    one with the same number. `engines` are where it has things, if that is not the usual engine."""

    run: str
    kind: str
    what: str
    backend: str
    started: str
    pid: int = field(default_factory=os.getpid)
    hosts: dict[str, str] = field(default_factory=dict)
    began: str = ""
    engines: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Raises UsageError if the lease can't be written."""
        self.kept = False
        self.began = _began(self.pid)
        self._path = folder() / f"{self.run}.json"
        unlocked = self._path.with_suffix(".new")
        with _writing(self._path):
            self._file = _open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            with _writing(self._path):
                self._write()
                unlocked.rename(self._path)
        except BaseException:
            unlocked.unlink(missing_ok=True)
            self._file.close()
            raise
        return self

    def write(self) -> None:
        """Writes down what has changed. Raises LabError if there is no room."""
        try:
            self._write()
        except OSError as exc:
            raise LabError(f"{self._path}: can't be written: {exc.strerror}", HINT) from exc

    def _write(self) -> None:
        # At once, and never shorter: a reader always finds all of it.
        text = json.dumps(asdict(self)).encode()
        os.pwrite(self._file.fileno(), text.ljust(os.fstat(self._file.fileno()).st_size), 0)

    def keep(self) -> None:
        """Says that something may be left at its engines. Its file stays, for the next sweep."""
        self.kept = True

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # A file that stays is a dead lease.
            if not self.kept:
                self._path.unlink(missing_ok=True)
        self._file.close()

    def interrupt(self) -> None:
        """Asks the controller to end. Raises LabError if the process with its number is another
        one: the controller runs in another container, say."""
        if self.pid < 1 or self.began != _began(self.pid):
            raise LabError(
                f"{self.what} is kept by a labctl that is not process {self.pid} here, which is "
                "left alone",
                "end it where it runs",
            )
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    @property
    def text(self) -> str:
        """How other controllers find it: `MACHINE:PATH`, the label on everything in an engine."""
        return f"{socket.gethostname()}:{folder() / self.run}.json"


def folder() -> Path:
    """The folder of this user's leases: in XDG_RUNTIME_DIR, or the user's own in /tmp. An
    XDG_RUNTIME_DIR of somebody else does not count, as its specification says: su(1) leaves it.

    Leases say which processes to end. So the folder must be no link, belong to the user, and be
    closed to others. Otherwise raises UsageError."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    shared = Path(f"/tmp/labctl-{os.geteuid()}")
    path = Path(runtime) / "labctl" if runtime and not _of_others(Path(runtime)) else shared
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise UsageError(f"{path}: a link, and none is followed here", f"remove it, or {HINT}")
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{path}: no folder", f"remove it, or {HINT}")
    if found.st_uid != os.geteuid():
        raise UsageError(
            f"{path}: belongs to user {found.st_uid}, and not to you, user {os.geteuid()}",
            f"remove it, or {HINT}",
        )
    if found.st_mode & 0o022:
        mode = stat.S_IMODE(found.st_mode)
        raise UsageError(
            f"{path}: others can write there (mode {mode:o})",
            f"remove it, or chmod 700 it where nobody has, or {HINT}",
        )
    return path


def _of_others(path: Path) -> bool:
    try:
        return path.stat().st_uid != os.geteuid()
    except PermissionError:
        return True
    except OSError:  # It is not there yet.
        return False


def alive(text: str) -> bool | None:
    """Whether the controller of a lease lives; None if nobody can know that from here."""
    machine, _, path = text.partition(":")
    if machine != socket.gethostname() or not path:
        return None
    try:
        with _open(Path(path), os.O_RDONLY, anybodys=True) as file:
            return _locked(file)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return None


def leases() -> Iterator[Lease]:
    """The leases of this user's living controllers; removes the files of dead ones, except what
    `abandoned` finds. Raises UsageError."""
    for path, lease, lives in _all():
        if lives:
            yield lease
        elif not lease.engines:
            path.unlink(missing_ok=True)


def abandoned() -> Iterator[tuple[Path, Lease]]:
    """The dead leases that name engines, where something may be left. Raises UsageError."""
    for path, lease, lives in _all():
        if lease.engines and not lives:
            yield path, lease


def _all() -> Iterator[tuple[Path, Lease, bool]]:
    """All leases, and whether their controllers live."""
    from pydantic import TypeAdapter

    lease = TypeAdapter(Lease)
    for path in sorted(folder().glob("*.json")):
        with suppress(OSError, ValueError), _open(path, os.O_RDONLY) as file:
            lives = _locked(file)
            try:
                found = lease.validate_json(file.read(), strict=True)
            except ValueError:
                if not lives:
                    path.unlink(missing_ok=True)
                continue
            yield path, found, lives


@contextmanager
def alone(things: str, progress: Callable[[str], None]) -> Iterator[None]:
    """Only one labctl of this user at a time makes these `things`, in whatever process: the next
    finds what it made. Raises UsageError."""
    path = folder() / f"{things}.lock"
    with _writing(path):
        file = _open(path, os.O_RDWR | os.O_CREAT)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another labctl that makes {things}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(path: Path, flags: int, anybodys: bool = False) -> BinaryIO:
    """Opens a plain file of this user, or of `anybodys`, and no link. Raises OSError."""
    number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    file = os.fdopen(number, "rb", buffering=0)
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode) or not (anybodys or found.st_uid == os.geteuid()):
        file.close()
        raise PermissionError(errno.EPERM, "no plain file of your own", str(path))
    return file


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", HINT) from exc


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _began(pid: int) -> str:
    """When a process began, in ticks of the machine's clock (proc(5)); empty if there is no such
    process, or the system has no /proc."""
    try:
        stats = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    return stats.rpartition(b")")[2].split()[19].decode()
