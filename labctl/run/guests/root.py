"""The root of guests: a small Debian with Python, iproute2, nftables and labctl's dependencies.

mmdebstrap(1) makes it once for each suite, from packages that apt has checked. The dependencies are
the versions that this labctl runs with, as wheels for the root's Python, byte-compiled there.

A suite that is too old for labctl has them beside it, with another suite's Python for labctl alone.
The programs in a lab are the root's own in both cases.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from stat import S_IFDIR, S_IFLNK, S_IFREG
from typing import IO, cast

from labctl.backends import Progress, debian
from labctl.backends.docker import images
from labctl.backends.lease import alone
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, Unavailable, UsageError
from labctl.run.guests import assembled, cache, suite_of
from labctl.run.guests.apt import Suite
from labctl.run.guests.initramfs import Archive

LENDERS = {"bullseye": "bookworm"}
"""For each suite whose own Python can't run labctl, the suite whose Python it uses."""
PACKAGES = ("iproute2", "mount", "nftables", "procps", "python3", "tcpdump")
DEPENDENCIES = ("dpkt", "pydantic", "pyyaml", "regex")
"""What guest.py needs; labctl's other dependencies are for the controller."""
COMPILE = (
    "python3 -m compileall -q -f --invalidation-mode unchecked-hash "
    "/usr/lib/python{python} /opt/site"
)
"""Files in an initramfs have lost their times, so Python must not check byte code by them."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
OMITTED = re.compile(
    r"((boot|dev|proc|sys|var/(cache|lib/(apt|dpkg)|log)|usr/share|(usr/)?lib/(apt|locale|systemd))/"
    r"|usr/bin/(perl|localedef)|usr/lib/x86_64-linux-gnu/(gconv/|(lib)?perl|libcrypto)"
    r"|usr/lib/python3.*/(pydoc_data|test)/).*"
)
"""Files that no lab needs: all of a root is in a guest's memory."""
OF_PYTHON = re.compile(
    r"opt(/site(/.*)?)?"
    r"|usr(/(bin(/python3\.\d+)?|lib(/(python3\.\d+(/.*)?|x86_64-linux-gnu(/[^/]*\.so[^/]*)?))?))?"
)
"""The files of a Python with labctl's dependencies. Beside another suite's root they are below
/opt."""

Placed = Callable[[str], str | None]


def suite_for(system: str) -> str:
    """The suite for guests of a system, by the name of its image. Raises UsageError."""
    name = images.suite_name(system)
    if not name:
        allowed = ", ".join(f"debian:{release}" for release in images.BOOTSTRAP)
        raise UsageError(
            f"no guest runs on {system!r}: it is made of Debian's packages", f"allowed: {allowed}"
        )
    return name


@dataclass(frozen=True)
class Part:
    """An archive of a root: packages of a suite, wheels beside them, and where its files go."""

    name: str
    suite: str
    packages: Sequence[str]
    wheels: Sequence[str]
    placed: Placed


def parts(name: str) -> list[Part]:
    """The parts of a suite's root, in the order in which a kernel unpacks them."""
    wheels, lender = closure(DEPENDENCIES, _requirements), LENDERS.get(name)
    if lender is None:
        return [Part("root.cpio", name, PACKAGES, wheels, rooted)]
    return [
        Part("root.cpio", name, PACKAGES, (), rooted),
        Part("python.cpio", lender, ("python3",), wheels, beside),
    ]


def make(part: Part, folder: Path, progress: Progress) -> None:
    """Makes it in a folder. Raises Unavailable and LabError."""
    suite = suite_of(part.suite)
    progress(f"asking for the packages of {part.suite}")
    suite.update()
    python = python_of(suite)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        site = Path(temporary, "site")
        site.mkdir()
        if part.wheels:
            progress(f"fetching labctl's dependencies for the guests' Python {python}")
            _install(part.wheels, python, site)
        kind = part.name.removesuffix(".cpio")
        progress(f"making a guest's {kind} of {part.suite}'s packages, for about a minute")
        words = [
            "--variant=essential", "--architectures=amd64", f"--include={','.join(part.packages)}",
            f"--customize-hook=copy-in {shlex.quote(str(site))} /opt",
            f'--customize-hook=chroot "$1" {COMPILE.format(python=python)}',
            suite.name, "-", str(suite.sources),
        ]  # fmt: skip

        def take(tree: debian.Tree) -> None:
            """The tree comes as a tar archive, and becomes a cpio: so nobody needs to be root."""
            with (folder / part.name).open("wb") as out:
                convert(tree, out, part.placed)

        debian.bootstrap(suite.name, words, take, progress)


Make = Callable[[Part, Path, Progress], None]


def ensure(name: str, progress: Progress, make: Make = make) -> list[Path]:
    """A suite's root, as cpio archives in their order; makes it if it is not here yet.

    Raises Unavailable for a missing tool, LabError if it can't be made."""
    demand(name)
    folder = place(name)
    if not folder.exists():
        with alone("roots", progress):
            if not folder.exists():
                with assembled(folder) as new:
                    for part in parts(name):
                        make(part, new, progress)
                for older in set(folder.parent.glob(f"{name}-*")) - {folder}:
                    shutil.rmtree(older, ignore_errors=True)
    return [folder / part.name for part in parts(name)]


def demand(name: str) -> None:
    """Raises Unavailable if a suite's root is not here and can't be made."""
    if place(name).exists():
        return
    if sys.platform != "linux":
        raise Unavailable(
            f"{place(name)} is not there, a root for guests, and tools of Linux make it",
            "with the same labctl on Debian or Ubuntu: labctl kernels fetch NAME; then copy its "
            f"folder labctl/kernels here, to {cache()}",
        )
    if lack := debian.lacking():
        raise Unavailable(*lack)


def place(name: str) -> Path:
    """The folder of a suite's root; there is another for each set of things that make it."""
    parts = (Path(__file__).read_bytes(), closure(DEPENDENCIES, _requirements))
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    return cache() / "roots" / f"{name}-{key}"


def python_of(suite: Suite) -> str:
    """The version of a suite's Python, such as 3.11. Raises LabError."""
    for package in suite.depends("python3"):
        if found := re.fullmatch(r"python(3\.\d+)", package):
            return found[1]
    raise LabError(f"python3 of {suite.name} depends on no python3.N")


def closure(names: Iterable[str], requirements: Callable[[str], Iterable[str]]) -> tuple[str, ...]:
    """`name==version` of packages and of everything that they require, as installed here."""
    found: dict[str, str] = {}

    def visit(name: str) -> None:
        if name not in found:
            found[name] = f"{name}=={importlib.metadata.version(name)}"
            for other in requirements(name):
                visit(other)

    for name in names:
        visit(name)
    return tuple(sorted(found.values()))


def _requirements(name: str) -> list[str]:
    """What a package always requires: not only for extras, or for other systems or Pythons."""
    required = importlib.metadata.requires(name) or []
    return [re.split(r"[^\w.-]", text)[0] for text in required if ";" not in text]


def _install(wheels: Iterable[str], python: str, folder: Path) -> None:
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--no-compile", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", python, "--target", str(folder),
        *(f"--platform={platform}" for platform in PLATFORMS), *wheels,
    ]  # fmt: skip
    _checked(command, f"pip can't fetch labctl's dependencies for Python {python}")


def rooted(name: str) -> str | None:
    """The place of a tree's file in a root; None if it is OMITTED."""
    return None if OMITTED.fullmatch(name) else name


def beside(name: str) -> str | None:
    """The place of a file from a tree with Python beside the root of another suite."""
    if OMITTED.fullmatch(name) or not OF_PYTHON.fullmatch(name):
        return None
    return name if name.startswith("opt") else f"opt/{name}"


def convert(tar: debian.Tree, out: IO[bytes], placed: Placed) -> None:
    """Makes a cpio archive of a tar archive, without devices; `placed` says where a file goes, or
    that it does not."""
    archive = Archive(out)
    with tarfile.open(fileobj=cast(IO[bytes], tar), mode="r|") as source:
        for member in source:
            name = placed(member.name.removeprefix("./"))
            if not name:
                continue
            if member.isdir():
                archive.add(name, S_IFDIR | member.mode)
            elif member.isfile():
                content = source.extractfile(member)
                archive.add(name, S_IFREG | member.mode, content.read() if content else b"")
            elif member.issym():
                archive.add(name, S_IFLNK | 0o777, member.linkname.encode())
            elif member.islnk() and (target := placed(member.linkname.removeprefix("./"))):
                archive.add(name, S_IFLNK | 0o777, f"/{target}".encode())
    archive.end()


def _checked(command: list[str], what: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise LabError(f"{what}: {_last(done.stderr or done.stdout, done.returncode)}")


def _last(said: bytes, status: int) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"status {status}"
