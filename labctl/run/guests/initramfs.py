"""The contents of a guest: a root, the modules that a lab needs in their order, and labctl; all in
memory, so that nothing in a guest waits for a disk. A virtual clock would jump meanwhile.

It is not compressed, so that neither side spends time on that.
"""

from __future__ import annotations

import importlib.util
import lzma
import py_compile
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from stat import S_IFDIR as FOLDER
from stat import S_IFREG as FILE
from typing import IO

from labctl.ground import resources
from labctl.ground.errors import LabError
from labctl.run.guests import kconfig

SIGNED = b"~Module signature appended~\n"
DEPENDS = re.compile(rb"\0depends=([\w,-]*)\0")

INIT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
failed() { echo "labctl: $1"; exit 1; }
mount -t devtmpfs dev /dev && mount -t proc proc /proc && mount -t sysfs sysfs /sys ||
    failed "this kernel can't mount /dev, /proc and /sys"
test -e /etc/hosts || : > /etc/hosts
mount -t tracefs tracefs /sys/kernel/tracing 2> /dev/null
ip link set lo up
cd /opt/labctl
set -- python3
if test -e /opt/usr; then
    # A Python of another system, which takes itself for this one's: that is what it starts in labs.
    export PYTHONHOME=/opt/usr
    libraries=$PYTHONHOME/lib/x86_64-linux-gnu
    set -- $libraries/ld-linux-x86-64.so.2 --library-path $libraries --argv0 /usr/bin/python3 \
        $PYTHONHOME/bin/python3.*
fi
echo "labctl: Python starts"
PYTHONPATH=/opt/labctl:/opt/site "$@" -S -c '
import os, pydantic, yaml
os.write(2, b"labctl: its libraries are there\\n")
from labctl.run.guests import guest
guest.main()
'
echo "labctl: the guest ended with $?"
"""


def build(target: Path, roots: Iterable[Path], modules: Path) -> None:
    """Writes the initramfs of a kernel: a root's archives, and after them the files of the kernel
    and of labctl.

    Raises OSError, and LabError for a bad module."""
    files: dict[str, bytes] = {"init": INIT.encode()}
    paths = kconfig.module_files(modules)
    contents: dict[str, bytes] = {}

    def needs(name: str) -> list[str]:
        contents[name] = unsigned(_module(paths[name]))
        return [other for other in dependencies(contents[name]) if other in paths]

    order = in_order([name for name in kconfig.MODULES if name in paths], needs)
    files["modules/order"] = "".join(f"{name}\n" for name in order).encode()
    files |= {f"modules/{name}": contents[name] for name in order}
    own = sources()
    files |= {f"opt/labctl/{name}": content for name, content in {**own, **compiled(own)}.items()}
    with target.open("wb") as out:
        for root in roots:
            with root.open("rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
        archive = Archive(out)
        folders = {str(f) for name in files for f in Path(name).parents if str(f) != "."}
        for name in sorted(folders):
            archive.add(name, FOLDER | 0o755)
        for name, content in files.items():
            archive.add(name, FILE | 0o755, content)
        archive.end()


def sources() -> dict[str, bytes]:
    """labctl's own program, and the programs that it runs inside a lab."""
    package, images = resources.PACKAGE, resources.images()
    found = {f"labctl/{p.relative_to(package)}": p for p in package.rglob("*.py")}
    found = {name: path for name, path in found.items() if "_data" not in path.parts}
    found |= {f"images/{p.relative_to(images)}": p for p in images.rglob("*.py")}
    return {name: path.read_bytes() for name, path in sorted(found.items())}


def compiled(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """The byte code of Python files, at the place where a guest's Python of this version finds it;
    another version compiles them itself, which takes seconds there."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        source, code = Path(folder, "source.py"), Path(folder, "code.pyc")
        for name, content in sources.items():
            source.write_bytes(content)
            py_compile.compile(
                str(source), str(code), f"/opt/labctl/{name}", doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )  # fmt: skip
            found[importlib.util.cache_from_source(name)] = code.read_bytes()
    return found


def dependencies(module: bytes) -> list[str]:
    """The modules that a module needs, by its own data (modinfo(8))."""
    found = DEPENDS.search(module)
    return [n.replace("-", "_") for n in found[1].decode().split(",") if n] if found else []


def in_order(wanted: Iterable[str], needs: Callable[[str], Iterable[str]]) -> list[str]:
    """All wanted modules, each after those that it needs."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in order:
            for other in needs(name):
                visit(other)
            order[name] = None

    for name in wanted:
        visit(name)
    return list(order)


class Archive:
    """A cpio archive, as kernels read it (Documentation/driver-api/early-userspace/buffer-format):
    a file may contain several, one after the other."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._number = 0

    def add(self, name: str, mode: int, content: bytes = b"") -> None:
        """Adds a file with its mode as in stat(2); the content of a symlink is its target."""
        self._number += 1
        path = name.encode() + b"\0"
        fields = (self._number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
        for part in (head, content):
            self._out.write(part + bytes(-len(part) % 4))

    def end(self) -> None:
        """Ends the archive."""
        self.add("TRAILER!!!", 0)


def unsigned(module: bytes) -> bytes:
    """A module without its signature. An emulated processor takes long to verify it, and nobody
    requires it (struct module_signature, include/linux/module_signature.h)."""
    if not module.endswith(SIGNED):
        return module
    end = len(module) - len(SIGNED) - 12
    return module[: end - int.from_bytes(module[end + 8 : end + 12], "big")]


def _module(path: Path) -> bytes:
    if path.suffix == ".ko":
        return path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".gz":
        import gzip

        return gzip.decompress(path.read_bytes())
    try:
        return subprocess.run(
            ["zstd", "--decompress", "--stdout", path], capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as exc:
        raise LabError(f"{path} can't be decompressed", "install the package zstd") from exc
