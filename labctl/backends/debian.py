"""A Debian made from its packages, by mmdebstrap(1): as root, or in a user namespace with uids of
its own.

If a mirror breaks off, this asks it once more. A failure leaves its log, and the error names it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from labctl.backends import Progress
from labctl.backends.capabilities import CAPABILITIES, Lack
from labctl.ground.errors import Unavailable
from labctl.ground.resources import home

PACKAGE = "mmdebstrap"
ROOM = "make room there, or set XDG_CACHE_HOME"
FULL = re.compile("no space left|enough free space", re.IGNORECASE)
BROKEN_OFF = re.compile(
    "failed to fetch|could not (connect|resolve)|unable to connect|temporary failure|bad header"
    "|connection (failed|timed out|reset|refused)|timeout was reached|error reading from server"
    "|remote end closed|hash sum mismatch|unexpected size|mirror sync|undetermined error",
    re.IGNORECASE,
)
"""What apt(8) complains of if a mirror or the way to it fails, which may happen only once."""

OPTIONS = (
    '--aptopt=Acquire::http::Timeout "20"',
    '--aptopt=Acquire::Retries "1"',
    # Dates do not matter (an archived release, a mirror that lags, a clock ahead): it is signed.
    '--aptopt=Acquire::Check-Valid-Until "false"',
)
ALONE = (
    "setpriv", "--pdeathsig", "KILL", "--",
    "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
)  # fmt: skip
IN_MEMORY = 'mount -t tmpfs -o mode=1777 tmpfs "$0" && export TMPDIR="$0" && exec "$@"'
"""As root mmdebstrap mounts things, and leaves them and its files where it is killed. In namespaces
of its own, which end with us, nothing of that stays; and in memory it takes half the time."""
TRIAL = "bookworm-updates"
"""A suite with next to nothing in it."""


class Tree(Protocol):
    """A tar archive, while it comes in."""

    def read(self, size: int = -1, /) -> bytes:
        """Some of it, and in the end nothing. Raises LabError if it is not whole."""


class BootstrapError(Unavailable):
    """mmdebstrap failed; `reason` is its first complaint."""

    def __init__(self, suite: str, reason: str, log: Path | None) -> None:
        self.reason = reason
        hint = ROOM if FULL.search(reason) else "see that apt can reach its mirror"
        where = f"; all that it said: {log}" if log else ""
        super().__init__(f"mmdebstrap did not build Debian {suite}: {reason}", f"{hint}{where}")


def cache() -> Path:
    """The folder for everything that labctl made or fetched (XDG Base Directory,
    XDG_CACHE_HOME)."""
    folder = os.environ.get("XDG_CACHE_HOME") or home() / ".cache"
    return Path(folder) / "labctl"


def lacking() -> Lack | None:
    """What keeps mmdebstrap from working here."""
    if not shutil.which(PACKAGE):
        return Lack("mmdebstrap is not on the PATH", f"install the package {PACKAGE}")
    if os.geteuid() == 0:
        return None
    probe = ["unshare", "--user", "--map-root-user", "--map-auto", "true"]
    if (
        shutil.which("newuidmap")
        and not subprocess.run(
            probe, stdin=subprocess.DEVNULL, capture_output=True, check=False
        ).returncode
    ):
        return None
    return Lack(
        "mmdebstrap needs root, or newuidmap and a range of uids",
        CAPABILITIES["uids"].hint,
    )


def bootstrap(
    suite: str, words: Sequence[str], take: Callable[[Tree], None], progress: Progress
) -> None:
    """Makes a suite by mmdebstrap, with these options and sources, and lets `take` read the tree;
    once more from the start if a mirror broke off. Raises Unavailable, and what `take` raises."""
    if lack := lacking():
        raise Unavailable(*lack)
    command = [*_apart(), PACKAGE, *OPTIONS, *words]
    try:
        _attempt(suite, command, take)
    except BootstrapError as exc:
        if not BROKEN_OFF.search(exc.reason):
            raise
        progress(f"trying once more: {exc.reason}")
        _attempt(suite, command, take)
    with suppress(OSError):
        _log_of(suite).unlink()  # of an earlier failure


def _apart() -> Sequence[str]:
    """What keeps mmdebstrap apart. Another user's is in namespaces anyway; where root has none, as
    in many containers, there is nothing to do."""
    if os.geteuid() != 0:
        return ()
    workshop = cache() / "mmdebstrap"
    words = (*ALONE, "sh", "-c", IN_MEMORY, str(workshop))
    try:
        workshop.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [*words, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError:
        return ()
    return words if done.returncode == 0 else ()


def trial() -> None:
    """Makes an empty tree, with everything that a full one needs: rights, the mirror, its keys.
    Raises Unavailable."""

    def take(tree: Tree) -> None:
        while tree.read(1 << 16):
            pass

    bootstrap(TRIAL, ["--variant=custom", TRIAL, "-"], take, lambda line: None)


def _attempt(suite: str, command: Sequence[str], take: Callable[[Tree], None]) -> None:
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        ) as process:
            assert process.stdout
            tree = _Whole(process.stdout, process, log, suite)
            try:
                take(tree)
                while tree.read(1 << 16):  # behind the end of a tar archive more may come
                    pass
            except BaseException:
                # It cleans up when what it waits for has ended; Popen would not wait for it.
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                process.stdout.close()
                process.wait()
                raise


class _Whole:
    """See Tree. Its reader learns by an error that the tree is not whole."""

    def __init__(
        self, stream: IO[bytes], process: subprocess.Popen[bytes], log: IO[bytes], suite: str
    ) -> None:
        self._stream, self._process, self._log, self._suite = stream, process, log, suite

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        if not data and self._process.wait():
            self._log.seek(0)
            said = self._log.read()
            reason = complaint(said) or f"status {self._process.returncode}"
            raise BootstrapError(self._suite, reason, _keep(said, self._suite))
        return data


def complaint(log: bytes) -> str:
    """What mmdebstrap(1) complained of: its first error, which causes the others."""
    said = log.decode(errors="replace").strip().splitlines()
    full = [line for line in said if FULL.search(line)]
    errors = [line.removeprefix("E: ") for line in said if line.startswith("E: ")]
    return (full or errors or said[-1:] or [""])[0].rstrip(".")


def _log_of(suite: str) -> Path:
    return cache() / f"mmdebstrap-{suite}.log"


def _keep(said: bytes, suite: str) -> Path | None:
    """The file with all of its output, if that can be written."""
    path = _log_of(suite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(said)
    except OSError:
        return None
    return path
