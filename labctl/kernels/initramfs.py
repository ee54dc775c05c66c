"""What a guest begins with: busybox, the modules that a lab needs in their order, and labctl.

Uncompressed, so that neither side spends time on it.
"""

from __future__ import annotations

import io
import lzma
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from labctl import resources
from labctl.errors import LabError

MODULES = (
    "virtio_pci", "virtio_blk", "virtio_console", "squashfs", "overlay",  # to get to the root
    "af_packet", "veth", "bridge", "dummy", "tcp_diag", "inet_diag", "crc32c_generic",
    "nf_tables", "nf_tables_set", "nft_counter", "nft_limit", "nft_quota", "nft_numgen", "nft_ct",
    "nft_log", "nft_reject_inet", "nft_reject_netdev", "nft_queue", "nft_meta_bridge",
    "sch_netem", "sch_tbf", "sch_fq", "tcp_bbr", "tcp_dctcp",
)  # fmt: skip
"""Those that a kernel has not are built in, or are missed by what needs them alone."""

DEPENDS = re.compile(rb"\0depends=([\w,-]*)\0")

INIT = """\
#!/bin/busybox sh
PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /lower /upper /root
/bin/busybox --install -s /bin
failed() { echo "labctl: $1"; exit 1; }
mount -t devtmpfs dev /dev && mount -t proc proc /proc && mount -t sysfs sysfs /sys ||
    failed "this kernel can't mount /dev, /proc and /sys"
while read module; do
    insmod "/modules/$module" || failed "the module $module can't be loaded"
done < /modules/order
mount -t squashfs -o ro /dev/vda /lower || failed "the root can't be mounted"
mount -t tmpfs tmpfs /upper && mkdir /upper/files /upper/work &&
    mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root ||
    failed "the root can't be made writable"
mkdir -p /root/opt
mv /labctl /root/opt/labctl
for place in dev proc sys; do mount --move /$place /root/$place; done
for place in run tmp; do mount -t tmpfs tmpfs /root/$place; done
exec switch_root /root /bin/sh -c '
    ip link set lo up
    test -e /etc/hosts || : > /etc/hosts
    cd /opt/labctl
    PYTHONPATH=/opt/labctl:/opt/site HOME=/root python3 -S -m labctl.kernels.guest
    echo "labctl: the guest ended with $?"' < /dev/console > /dev/console 2>&1
"""


def build(target: Path, busybox: Path, modules: Path) -> None:
    """Writes the initramfs of a kernel. Raises OSError, and LabError for a bad module."""
    files: dict[str, bytes] = {"bin/busybox": busybox.read_bytes(), "init": INIT.encode()}
    paths = {
        re.sub(r"\.ko(\.\w+)?$", "", path.name).replace("-", "_"): path
        for path in modules.rglob("*.ko*")
    }
    contents: dict[str, bytes] = {}

    def needs(name: str) -> list[str]:
        contents[name] = _module(paths[name])
        return dependencies(contents[name])

    order = in_order([name for name in MODULES if name in paths], needs)
    files["modules/order"] = "".join(f"{name}\n" for name in order).encode()
    files |= {f"modules/{name}": contents[name] for name in order}
    files |= {f"labctl/{name}": content for name, content in sources().items()}
    target.write_bytes(archive(files))


def sources() -> dict[str, bytes]:
    """labctl's own program, and what it runs inside a lab."""
    package, images = resources.PACKAGE, resources.images()
    found = {f"labctl/{p.relative_to(package)}": p for p in package.rglob("*.py")}
    found = {name: path for name, path in found.items() if "_data" not in path.parts}
    found |= {f"images/{p.relative_to(images)}": p for p in images.rglob("*.py")}
    return {name: path.read_bytes() for name, path in sorted(found.items())}


def dependencies(module: bytes) -> list[str]:
    """The modules that one needs, by what it says of itself (modinfo(8))."""
    found = DEPENDS.search(module)
    return [n.replace("-", "_") for n in found[1].decode().split(",") if n] if found else []


def in_order(wanted: Iterable[str], needs: Callable[[str], Iterable[str]]) -> list[str]:
    """All that is wanted, each after what it needs."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in order:
            for other in needs(name):
                visit(other)
            order[name] = None

    for name in wanted:
        visit(name)
    return list(order)


def archive(files: Mapping[str, bytes]) -> bytes:
    """A cpio archive, as kernels read it (Documentation/driver-api/early-userspace/buffer-format).
    Everything in it may be executed."""
    out = io.BytesIO()
    folders = {str(f) for name in files for f in Path(name).parents if str(f) != "."}
    entries: list[tuple[str, int, bytes]] = [(name, 0o40755, b"") for name in sorted(folders)]
    entries += [(name, 0o100755, content) for name, content in files.items()]
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        out.write(b"070701" + b"".join(b"%08x" % field for field in fields) + encoded)
        out.write(bytes(-out.tell() % 4))
        out.write(content)
        out.write(bytes(-out.tell() % 4))
    return out.getvalue()


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
        raise LabError(f"{path} can't be decompressed; install the package zstd") from exc
