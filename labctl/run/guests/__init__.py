"""Other kernels: guests of QEMU that run labctl itself, with namespaces, and report the events.

So a kernel is one more place to run, not one more backend. A guest is made of

    a kernel      Debian's cloud kernel of a suite, or one of your own (this module, apt.py)
    a root        a small Debian with Python, iproute2 and nftables (root.py)
    an initramfs  that root, the modules that a lab needs, labctl (initramfs.py)

kconfig.py knows what a kernel must be built with, qemu.py starts it, guest.py is the program in it,
and runs.py has cases run there.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from labctl.backends import Progress, debian
from labctl.backends.lease import alone
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, UsageError
from labctl.run.guests.apt import FRESH, Suite, kept

SUITES = ("bullseye-security", "bookworm", "trixie", "trixie-backports", "sid")
"""The suites in which to look for kernels."""

PACKAGE = re.compile(r"linux-(?:image|binary)-(\d+\.\d+\.\d+[^-]*(?:-\d[^-]*)?)-cloud-amd64")
META = "linux-image-cloud-amd64"
"""Depends on a suite's own kernel. Others may be there too, such as 6.1 in bullseye-security."""
PARTS = ("linux-image", "linux-binary", "linux-modules", "linux-base")
"""The packages of a kernel. From 6.19 on linux-image is empty, and the others contain it;
linux-base has its configuration."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that is here: its version as in `uname -r`, the image, and its modules' folder
    (`lib/modules/VERSION`)."""

    name: str
    version: str
    image: Path
    modules: Path


@dataclass(frozen=True)
class Known:
    """A kernel that a suite has: `version` is `6.1.0-50`, `name` the name for `--kernel`."""

    suite: str
    version: str

    @property
    def name(self) -> str:
        """Major and minor: `6.1`."""
        return ".".join(self.version.split(".")[:2])

    @property
    def release(self) -> str:
        """Its name in `uname -r`, and in the names of its packages."""
        return f"{self.version}-cloud-amd64"


def cache() -> Path:
    """The folder for all of it (XDG Base Directory, XDG_CACHE_HOME)."""
    return debian.cache() / "kernels"


def find(name: str, progress: Progress) -> Kernel:
    """The kernel of a name: a suite (`bookworm`), a version (`6.1`), or the path of an image with
    its modules beside it. Fetches it at first use, and later takes what is here.

    Raises UsageError for an unknown name, LabError and Unavailable if it can't fetch it."""
    if "/" in name:
        return local(Path(name))
    if kernel := _kept(name):
        return kernel
    with alone("kernels", progress):
        return _kept(name) or _fetch(name, progress)


def fetch(name: str, progress: Progress) -> Kernel:
    """The newest kernel of a suite or version that the archive has now; or one of your own.

    Raises as `find` does."""
    if "/" in name:
        return local(Path(name))
    with alone("kernels", progress):
        return _fetch(name, progress)


def _fetch(name: str, progress: Progress) -> Kernel:
    if name in SUITES:
        suite_of(name).update(0.0)
        known = own(name, suite_of(name).depends(META))
    else:
        known = choose(name, available(SUITES, progress, 0.0))
    kernel = _fetched(known.release)
    if kernel is None:
        progress(f"fetching Linux {known.version} from {known.suite}")
        suite = suite_of(known.suite)
        packages = [f"{part}-{known.release}" for part in PARTS]
        with assembled(cache() / "images" / known.release) as folder:
            suite.unpack([p for p in packages if p in suite.packages], folder / "packages")
            _sort_out(folder / "packages", known.release, folder)
        kernel = _fetched(known.release)
        assert kernel
    usual = _release(known.name)  # an older one, by its exact name, does not take its place
    newer = usual is None or age(known.release) >= age(usual)
    for alias in {known.name, name} if newer else {name}:
        link = cache() / "names" / alias
        with kept(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            new = link.with_name(".new")  # which is no name of a kernel
            new.write_text(known.release)
            new.rename(link)
    return kernel


def available(suites: Iterable[str], progress: Progress, patience: float = FRESH) -> list[Known]:
    """The newest kernel of each minor version in these suites, by lists that are no older than
    `patience` seconds."""
    found = []
    for name in suites:
        suite = suite_of(name)
        if not suite.fresh(patience):
            progress(f"asking for the packages of {name}")
        suite.update(patience)
        found += newest(name, suite.packages)
    return found


def newest(suite: str, packages: Iterable[str]) -> list[Known]:
    """The newest kernel of each minor version, oldest first, from the names of packages."""
    versions = {match[1] for name in packages if (match := PACKAGE.fullmatch(name))}
    latest = {Known(suite, v).name: Known(suite, v) for v in sorted(versions, key=age)}
    return list(latest.values())


def age(version: str) -> tuple[int, ...]:
    """By which versions and their names are sorted: the older is less."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def own(suite: str, packages: Iterable[str]) -> Known:
    """A suite's own kernel, from what META depends on. Raises LabError."""
    for kernel in newest(suite, packages):
        return kernel
    raise LabError(f"{suite} has no package {META} now", "see labctl kernels list")


def choose(name: str, known: list[Known]) -> Known:
    """The newest kernel of a version. Raises UsageError."""
    matching = [k for k in known if name in (k.name, k.version, k.release)]
    if matching:
        return max(matching, key=lambda kernel: age(kernel.version))
    names = [*SUITES, *dict.fromkeys(kernel.name for kernel in known)]
    raise UsageError(
        f"--kernel {name}: not known", f"allowed: {', '.join(names)}, or the path of a bzImage"
    )


def local(image: Path) -> Kernel:
    """A kernel of one's own. Its modules are in `modules` or `lib/modules/VERSION` beside it, or
    in /lib/modules. Raises UsageError."""
    try:
        version = read_version(image)
    except OSError as exc:
        raise UsageError(f"{image}: {exc.strerror}", "give the path of a bzImage") from exc
    places = (
        image.parent / "modules",
        image.parent / "lib" / "modules" / version,
        image.parent.parent / "lib" / "modules" / version,
        Path("/lib/modules") / version,
    )
    for modules in places:
        if modules.is_dir():
            return Kernel(str(image), version, image.resolve(), modules.resolve())
    raise UsageError(
        f"{image}: no modules of Linux {version}",
        f"put them where one of these names leads: {', '.join(map(str, places))}",
    )


def read_version(image: Path) -> str:
    """What `uname -r` will say with this image (Documentation/arch/x86/boot.rst). Raises OSError
    and UsageError."""
    with image.open("rb") as file:
        head = file.read(0x10000)
    if head[0x1FE:0x200] != b"\x55\xaa" or head[0x202:0x206] != b"HdrS":
        raise UsageError(f"{image}: no bzImage", "give the path of one (x86)")
    start = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    return head[start : start + 256].split(b"\0")[0].split(b" ")[0].decode("ascii", "replace")


def here() -> list[str]:
    """The releases of the kernels that were fetched."""
    return sorted(path.name for path in (cache() / "images").glob("[0-9]*"))


def named() -> dict[str, str]:
    """The releases of kernels that were fetched, by the names that lead to them."""
    found = ((path.name, _release(path.name)) for path in (cache() / "names").glob("*"))
    return {name: release for name, release in found if release and _fetched(release)}


def suite_of(name: str) -> Suite:
    """A suite's packages."""
    return Suite(name, cache() / "apt")


@contextmanager
def assembled(target: Path) -> Iterator[Path]:
    """A folder to fill, that becomes `target` when it is whole; of two that make it at the same
    time, the first to be ready stays. Raises LabError for a full disk and the like."""
    with kept(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(".new-*"):  # by one that was killed
            if time.time() - left.stat().st_mtime > FRESH:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as temporary:
            folder = Path(temporary, "it")
            folder.mkdir()
            yield folder
            if not target.exists():
                folder.rename(target)


def _sort_out(packages: Path, release: str, folder: Path) -> None:
    """Keeps only the image and the modules of unpacked packages."""
    for top in (packages, packages / "usr"):
        if (image := top / "boot" / f"vmlinuz-{release}").exists():
            image.rename(folder / "vmlinuz")
        if (config := top / "boot" / f"config-{release}").exists():
            config.rename(folder / config.name)
        if (image := top / "lib" / "modules" / release / "vmlinuz").exists():
            image.rename(folder / "vmlinuz")
        if (modules := top / "lib" / "modules" / release).is_dir():
            modules.rename(folder / "modules")
    shutil.rmtree(packages)
    if missing := [n for n in ("vmlinuz", "modules") if not (folder / n).exists()]:
        raise LabError(f"the packages of Linux {release} hold no {' and no '.join(missing)}")


def _kept(name: str) -> Kernel | None:
    """The kernel that was fetched by this name, if it is here."""
    return _fetched(_release(name) or name)


def _release(name: str) -> str | None:
    try:
        return (cache() / "names" / name).read_text()
    except OSError:
        return None


def _fetched(release: str) -> Kernel | None:
    folder = cache() / "images" / release
    if not release or not folder.is_dir():
        return None
    return Kernel(release, release, folder / "vmlinuz", folder / "modules")
