"""The options that a kernel must be built with to be a guest, checked before QEMU boots it.

A kernel's configuration is beside it: where `make install` and Debian put it (`config-VERSION`),
where Fedora and Debian since 6.19 do (`config` of its modules), or at the top of the tree where it
was built (`.config`, if it is no newer than the image). An option that is not mentioned there may
be one that this Linux does not leave open. So only `# CONFIG_X is not set` is a lack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from labctl.ground.errors import LabError
from labctl.run.guests import Kernel

LINE = re.compile(r"(?:# )?CONFIG_(\w+)(?:=(\S+)| is not set)")


class Option(NamedTuple):
    """One option, what it is for, and what it is called as modules; without a name of a module the
    guest needs it before modules are loaded."""

    name: str
    what: str
    modules: tuple[str, ...] = ()


EVERY = (
    Option("64BIT", "the guest's programs"),
    Option("BLK_DEV_INITRD", "all its files"),
    Option("BINFMT_ELF", "programs"),
    Option("BINFMT_SCRIPT", "its first program, a script"),
    Option("DEVTMPFS", "`/dev`"),
    Option("PROC_FS", "`/proc`"),
    Option("SYSFS", "`/sys`"),
    Option("TMPFS", "folders of a lab's own"),
    Option("PCI", "virtio"),
    Option("VIRTIO_MENU", "virtio"),
    Option("VIRTIO_PCI", "virtio", ("virtio_pci",)),
    Option("TTY", "the console, and the port to the controller"),
    Option("VIRTIO_CONSOLE", "the port to the controller", ("virtio_console",)),
    Option("NAMESPACES", "hosts and processes"),
    Option("NET_NS", "hosts"),
    Option("PID_NS", "processes"),
    Option("IPC_NS", "hosts and processes"),
    Option("SECCOMP", "what a lab's programs may not do"),
    Option("NET", "TCP"),
    Option("INET", "TCP"),
    Option("UNIX", "labctl's programs in the guest", ("unix",)),
    Option("PACKET", "captures", ("af_packet",)),
    Option("NETDEVICES", "links"),
    Option("NET_CORE", "links"),
    Option("VETH", "links", ("veth",)),
    Option("BRIDGE", "the network between hosts", ("bridge",)),
    Option("INET_DIAG", "`ss`", ("tcp_diag", "inet_diag")),
)
"""What every guest needs."""

SOME = (
    Option("DUMMY", "interfaces that a scenario adds", ("dummy",)),
    Option("NF_TABLES", "`drop`", (
        "crc32c_generic", "nf_tables", "nf_tables_set", "nft_counter", "nft_objref",
    )),
    Option("NF_TABLES_INET", "`drop`"),
    Option("NFT_LIMIT", "`drop` with a `count`", ("nft_limit",)),
    Option("NFT_QUOTA", "rules of a scenario's own", ("nft_quota",)),
    Option("NFT_NUMGEN", "rules of a scenario's own", ("nft_numgen",)),
    Option("NFT_CT", "rules of a scenario's own", ("nft_ct",)),
    Option("NFT_LOG", "which segments a `drop` lost", ("nft_log",)),
    Option("NETFILTER_NETLINK_LOG", "which segments a `drop` lost", ("nfnetlink_log",)),
    Option("NFT_REJECT", "`reject`", ("nft_reject_inet", "nft_reject_netdev")),
    Option("NFT_NAT", "the capability `nat`", ("nft_chain_nat", "nft_nat")),
    Option("NFT_MASQ", "the capability `nat`", ("nft_masq",)),
    Option("NFT_QUEUE", "rules of a scenario's own", ("nft_queue",)),
    Option("NFT_BRIDGE_META", "rules of a scenario's own", ("nft_meta_bridge",)),
    Option("NET_SCH_NETEM", "`net`", ("sch_netem",)),
    Option("NET_SCH_TBF", "queues of a scenario's own", ("sch_tbf",)),
    Option("NET_SCH_FQ", "queues of a scenario's own", ("sch_fq",)),
    Option("TCP_CONG_BBR", "this congestion control", ("tcp_bbr",)),
    Option("TCP_CONG_DCTCP", "this congestion control", ("tcp_dctcp",)),
    Option("TCP_MD5SIG", "the socket option TCP_MD5SIG"),
    Option("FTRACE", "the capability `tracing`"),
    Option("SERIAL_8250_CONSOLE", "`console.txt`, and the words of a guest that boots"),
)  # fmt: skip
"""What only some scenarios need. Agents say so when one lacks it."""

MODULES = tuple(chain.from_iterable(option.modules for option in (*EVERY, *SOME)))
"""If a kernel lacks one, it is built in, or only the things that need it will miss it."""


def demand(kernel: Kernel) -> None:
    """Raises LabError if the kernel's configuration says that it can't be a guest."""
    if (file := configuration(kernel)) is None:
        return
    if lacks := lacking(read(file), module_files(kernel.modules)):
        raise LabError(
            f"Linux {kernel.version} lacks {', '.join(lacks)}, by {file}",
            "every guest needs these: build them, and install the modules (docs/kernels.md)",
        )


def configuration(kernel: Kernel) -> Path | None:
    """The file with a kernel's configuration, if it is there."""
    beside = kernel.image.parent
    for file in (beside / f"config-{kernel.version}", kernel.modules / "config"):
        if file.is_file():
            return file
    if beside.parts[-3:] == ("arch", "x86", "boot"):
        file = beside.parents[2] / ".config"
        if file.is_file() and file.stat().st_mtime <= kernel.image.stat().st_mtime:
            return file
    return None


def read(file: Path) -> dict[str, str]:
    """The options of a configuration, each without `CONFIG_`, and `n` for one that is not set.
    Raises LabError."""
    try:
        text = file.read_text("utf-8", "replace")
    except OSError as exc:
        raise LabError(f"{file} can't be read: {exc.strerror}", "make it readable") from exc
    found = filter(None, map(LINE.fullmatch, text.splitlines()))
    return {match[1]: match[2] or "n" for match in found}


def lacking(options: Mapping[str, str], modules: Mapping[str, Path]) -> list[str]:
    """What a guest would lack, one phrase each, by the options of a kernel and its modules."""
    lacks = []
    for name, what, known in EVERY:
        value, how = options.get(name), "=m or =y" if known else "=y"
        if value == "n" or (value == "m" and not known):
            lacks.append(f"CONFIG_{name} ({how}: {what.replace('`', '')})")
        elif value == "m" and (absent := [m for m in known if m not in modules]):
            lacks.append(f"the module {absent[0]} of CONFIG_{name}=m ({what.replace('`', '')})")
    return lacks


def module_files(folder: Path) -> dict[str, Path]:
    """The modules in a folder and below it, by their names."""
    return {
        re.sub(r"\.ko(\.\w+)?$", "", path.name).replace("-", "_"): path
        for path in folder.rglob("*.ko*")
    }
