"""The root of guests: a small Debian with Python, iproute2, nftables and labctl's dependencies.

Made once by mmdebstrap(1), from packages that apt has checked. The dependencies are those versions
that this labctl runs with, as wheels for the Python in it, byte-compiled there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from labctl.backends import Progress
from labctl.errors import LabError, Unavailable
from labctl.kernels import assembled, cache, missing, suite_of

SUITE = "bookworm"
PYTHON = "3.11"
"""What SUITE has."""
PACKAGES = ("iproute2", "nftables", "procps", "python3")
DEPENDENCIES = ("pydantic", "pyyaml", "scapy")
"""What runs in a guest needs; labctl's other dependencies are for the controller."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
OMITTED = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*")


def ensure(progress: Progress) -> tuple[Path, Path]:
    """The root as a squashfs image, and a static busybox, made where they are not there yet.

    Raises Unavailable for a missing tool, LabError where it can't be made."""
    wheels = closure(DEPENDENCIES, _requirements)
    key = hashlib.sha256(repr((SUITE, PACKAGES, wheels, OMITTED)).encode()).hexdigest()[:12]
    folder = cache() / "roots" / f"{SUITE}-{key}"
    if not folder.exists():
        if lacking := missing():
            raise Unavailable(
                f"{', '.join(lacking)}: not on the PATH; install the packages "
                + " ".join(dict.fromkeys(lacking.values()))
            )
        with assembled(folder) as new:
            suite = suite_of(SUITE)
            progress(f"asking for the packages of {SUITE}")
            suite.update()
            suite.unpack(["busybox-static"], new / "packages")
            (new / "packages" / "bin" / "busybox").rename(new / "busybox")
            shutil.rmtree(new / "packages")
            progress("fetching labctl's dependencies for the guests' Python")
            _install(wheels, new / "site")
            progress(f"making a root for guests from the packages of {SUITE}, for about a minute")
            _bootstrap(suite.sources, new / "site", new / "root.squashfs")
            shutil.rmtree(new / "site")
    return folder / "root.squashfs", folder / "busybox"


def closure(names: Iterable[str], requirements: Callable[[str], Iterable[str]]) -> tuple[str, ...]:
    """`name==version` of packages and of all that they require, as they are installed here."""
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
    """What a package always requires: not for extras, nor for other systems or Pythons."""
    required = importlib.metadata.requires(name) or []
    return [re.split(r"[^\w.-]", text)[0] for text in required if ";" not in text]


def _install(wheels: Iterable[str], folder: Path) -> None:
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--no-compile", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", PYTHON, "--target", str(folder),
        *(f"--platform={platform}" for platform in PLATFORMS), *wheels,
    ]  # fmt: skip
    _checked(command, "pip can't fetch labctl's dependencies")


def _bootstrap(sources: Path, site: Path, target: Path) -> None:
    """mmdebstrap writes a tar archive, and mksquashfs reads it: no rights of root are needed."""
    make = [
        "mmdebstrap", "--quiet", "--variant=essential", "--architectures=amd64",
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in OMITTED),
        f"--customize-hook=copy-in {site} /opt",
        '--customize-hook=chroot "$1" python3 -m compileall -q /opt/site',
        SUITE, "-", str(sources),
    ]  # fmt: skip
    pack = ["mksquashfs", "-", str(target), "-tar", "-comp", "lz4", "-quiet", "-no-progress"]
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(make, stdout=subprocess.PIPE, stderr=log) as maker:
            try:
                _checked(pack, "mksquashfs can't pack the root", maker.stdout)
            finally:
                maker.terminate() if maker.poll() is None and not target.exists() else None
        if maker.returncode:
            log.seek(0)
            raise LabError(
                f"mmdebstrap can't make a root: {_last(log.read(), maker.returncode)}; "
                "see that apt reaches its mirror"
            )


def _checked(command: list[str], what: str, stdin: object = subprocess.DEVNULL) -> None:
    done = subprocess.run(command, stdin=stdin, capture_output=True, check=False)  # type: ignore[call-overload]
    if done.returncode:
        raise LabError(f"{what}: {_last(done.stderr or done.stdout, done.returncode)}")


def _last(said: bytes, status: int) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"status {status}"
