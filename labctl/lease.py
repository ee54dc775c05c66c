"""Leases: who is alive. A controller holds a locked file for as long as it runs (flock(2)).

The kernel lets go of the lock however the controller ends, so a lease that can be locked is dead,
and what carries its name in an engine may be removed. The file also tells `labctl ps` and
`labctl shell` about the lab.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from labctl.errors import UsageError


def new_name() -> str:
    """A name for a run that no other has."""
    return os.urandom(4).hex()


@dataclass
class Lease:
    """What a controller says of itself. `hosts` maps each host to the id of its holder: a process
    id for namespaces, a container id for an engine."""

    run: str
    kind: str
    what: str
    backend: str
    started: str
    pid: int = field(default_factory=os.getpid)
    hosts: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._path = folder() / f"{self.run}.json"
        unlocked = self._path.with_suffix(".new")
        self._file = unlocked.open("w", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.write()
        unlocked.rename(self._path)
        return self

    def write(self) -> None:
        """Writes down what has changed."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(asdict(self)))
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()

    @property
    def text(self) -> str:
        """How other controllers find it: `MACHINE:PATH`, the label on everything in an engine."""
        return f"{socket.gethostname()}:{folder() / self.run}.json"


def folder() -> Path:
    """Where this user's leases are: XDG_RUNTIME_DIR, or a folder of the user's own in /tmp.

    Raises UsageError."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(runtime) / "labctl" if runtime else Path(f"/tmp/labctl-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}; set XDG_RUNTIME_DIR to a folder") from exc
    return path


def alive(text: str) -> bool | None:
    """Whether the controller behind a lease lives; None where that can't be known from here."""
    machine, _, path = text.partition(":")
    if machine != socket.gethostname() or not path:
        return None
    try:
        return _locked(Path(path))
    except FileNotFoundError:
        return False
    except OSError:
        return None


def leases() -> Iterator[Lease]:
    """The leases of this user's living controllers; files of dead ones are removed."""
    for path in sorted(folder().glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            if _locked(path):
                yield Lease(**json.loads(path.read_text("utf-8")))
            else:
                path.unlink(missing_ok=True)


@contextmanager
def alone(things: str, progress: Callable[[str], None]) -> Iterator[None]:
    """One labctl of this user at a time that makes these `things`, whatever the process: the next
    finds what it made. Raises UsageError."""
    with (folder() / f"{things}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another labctl that makes {things}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
