"""Debian's packages of any suite, through apt(8) and the mirror that this machine uses.

Each suite has an apt of its own below the cache: its sources, lists and downloads, next to the
machine's and never touching them. So it is apt that speaks to the mirror, and apt that checks the
archive's signature and every hash. Needs no root.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from labctl.backends.debian import FULL, ROOM
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, Unavailable

KEYRINGS = tuple(
    Path("/usr/share/keyrings", f"debian-archive-keyring.{ending}") for ending in ("gpg", "pgp")
)
MIRROR = "LABCTL_DEBIAN_MIRROR"
FRESH = 24 * 3600.0
"""For how many seconds lists of packages are good enough."""

FIELDS = ("$(ORIGIN)", "$(LABEL)", "$(REPO_URI)")

CONFIGURATION = """\
Dir::State "{folder}";
Dir::State::Lists "{folder}/lists";
Dir::State::status "/dev/null";
Dir::Cache "{folder}/cache";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "{folder}/sources";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
"""
SOURCES = """\
Types: deb
URIs: {uri}
Suites: {suite}
Components: main
Signed-By: {keyring}
"""


@dataclass(frozen=True)
class Suite:
    """The packages of one suite, such as `trixie-backports`; its files are below `parent`.

    Methods raise Unavailable if this machine can't do it, LabError if apt fails."""

    name: str
    parent: Path

    @property
    def folder(self) -> Path:
        """The files of this suite's apt."""
        return self.parent / self.name

    @property
    def sources(self) -> Path:
        """Its sources (sources.list(5), deb822), which exist after `update`."""
        return self.folder / "sources" / "labctl.sources"

    def update(self, patience: float = FRESH) -> None:
        """Has lists that are no older than `patience` seconds."""
        with kept(self.folder):
            for name in ("lists/partial", "cache/archives/partial", "sources"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
        with lock, kept(self.folder):
            fcntl.flock(lock, fcntl.LOCK_EX)  # another labctl may do it: its lists are enough
            if not self.fresh(patience):
                self._update()
                self._stamp.touch()

    def fresh(self, patience: float) -> bool:
        """Whether its lists are no older than `patience` seconds."""
        try:
            return time.time() - self._stamp.stat().st_mtime < patience
        except FileNotFoundError:
            return False

    @property
    def _stamp(self) -> Path:
        return self.folder / "updated"

    def _update(self) -> None:
        (self.folder / "apt.conf").write_text(CONFIGURATION.format(folder=self.folder))
        text = SOURCES.format(uri=self._uri, suite=self.name, keyring=keyring())
        self.sources.write_text(text)
        self._run(["apt-get", "update", "--quiet", "--error-on=any"])

    @cached_property
    def packages(self) -> frozenset[str]:
        """The names of all packages in the lists."""
        return frozenset(self._run(["apt-cache", "pkgnames"]).split())

    def depends(self, package: str) -> list[str]:
        """The names of the packages that one depends on."""
        lines = self._run(["apt-cache", "depends", package]).splitlines()
        return [line.split()[-1] for line in lines if line.strip().startswith("Depends:")]

    def unpack(self, packages: Iterable[str], into: Path) -> None:
        """Downloads packages and unpacks them below a folder, one over the other."""
        into.mkdir(parents=True, exist_ok=True)
        self._run(["apt-get", "download", "--quiet", *packages], into)
        for package in into.glob("*.deb"):
            _checked(["dpkg-deb", "--extract", package.name, "."], into)
            package.unlink()

    @property
    def _uri(self) -> str:
        main, security = archive()
        return security if self.name.endswith("-security") else main

    def _run(self, command: Sequence[str], folder: Path | None = None) -> str:
        return _checked(command, folder, {"APT_CONFIG": str(self.folder / "apt.conf")})


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """For code that writes to the cache. Raises LabError for a full disk and the like."""
    try:
        yield
    except OSError as exc:
        raise LabError(f"{path}: {exc.strerror}", ROOM) from exc


def keyring() -> Path:
    """The keys with which Debian signs. Raises Unavailable."""
    for path in KEYRINGS:
        if path.exists():
            return path
    raise Unavailable("Debian's keys are not here", "install the package debian-archive-keyring")


def archive() -> tuple[str, str]:
    """The URIs of Debian's archive and of its security archive, from this machine's apt or from the
    variable LABCTL_DEBIAN_MIRROR. Raises Unavailable."""
    if chosen := os.environ.get(MIRROR, "").rstrip("/"):
        return chosen, f"{chosen}-security"
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if not shutil.which(tool):
            raise Unavailable(
                f"{tool} is not on the PATH: Debian's kernels come by it",
                "use Debian or Ubuntu, or a kernel of your own: --kernel /path/to/bzImage",
            )
    command = ["apt-get", "indextargets", "--format", "|".join(FIELDS), "Created-By: Packages"]
    uris = parse_targets(_checked(command))
    if "Debian" not in uris:
        raise Unavailable(
            "this machine's apt has no Debian archive, or no lists yet",
            f"run apt-get update, or name a mirror of Debian: {MIRROR}=URI",
        )
    main = uris["Debian"].rstrip("/")
    return main, uris.get("Debian-Security", f"{main}-security").rstrip("/")


def parse_targets(text: str) -> dict[str, str]:
    """The URI of Debian's first repository for each label, from `apt-get indextargets`."""
    uris: dict[str, str] = {}
    for line in text.splitlines():
        origin, label, uri = line.split("|")
        if origin == "Debian":
            uris.setdefault(label, uri)
    return uris


def _checked(
    command: Sequence[str], folder: Path | None = None, environment: dict[str, str] | None = None
) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        full = [line for line in said if FULL.search(line)][:1]
        reasons = full or [line for line in said if line.startswith("E:")] or said[-1:]
        reason = "; ".join(reasons) or f"status {done.returncode}"
        raise LabError(f"{' '.join(command[:2])}: {reason}", ROOM if full else "")
    return done.stdout
