"""Sysctls that no host has of its own: why, and where one can set them all the same."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from labctl.ground.errors import MissingHere, Refused

PROC = Path("/proc/sys")
GUEST = "run it in a guest, whose whole machine is the lab's: --kernel NAME"
INTERFACE = re.compile(r"net\.ipv[46]\.(?:conf|neigh)\.(?!(?:all|default|lo|eth0)\.)([^.]+)\.")
WRITABLE = 0o222
ALIKE = 0.85
"""How similar a name must be to the one that was meant, see difflib."""

OF_THE_MACHINE = (
    "net.core.bpf_jit_*", "net.core.busy_*", "net.core.default_qdisc", "net.core.dev*",
    "net.core.fb_tunnels_only_for_init_net", "net.core.flow_limit_*",
    "net.core.gro_normal_batch", "net.core.high_order_alloc_disable", "net.core.max_skb_frags",
    "net.core.mem_pcpu_rsv", "net.core.message_*", "net.core.netdev_*", "net.core.optmem_max",
    "net.core.rps_*", "net.core.[rw]mem_*", "net.core.skb_defer_max",
    "net.core.tstamp_allow_data", "net.core.warnings",
    "net.ipv4.cipso_*", "net.ipv4.fib_sync_mem", "net.ipv4.icmp_msgs_*", "net.ipv4.inet_peer_*",
    "net.ipv4.ipfrag_secret_interval", "net.ipv4.neigh.default.*", "net.ipv4.route.*",
    "net.ipv4.tcp_allowed_congestion_control", "net.ipv4.tcp_low_latency",
    "net.ipv4.tcp_max_orphans", "net.ipv4.tcp_mem", "net.ipv4.udp_mem",
    "net.ipv6.calipso_*", "net.ipv6.ip6frag_secret_interval", "net.ipv6.mld_*",
    "net.ipv6.neigh.default.*",
    "net.netfilter.nf_conntrack_buckets", "net.netfilter.nf_conntrack_expect_max",
    "net.netfilter.nf_conntrack_max", "net.netfilter.nf_log_all_netns", "net.nf_conntrack_max",
)  # fmt: skip
"""Sysctls that kernels register only for their first network namespace, or let others only read:
see register_net_sysctl(&init_net, ...) in net/ of the kernel. Newer kernels give some of these to
each namespace; there a host has them, and nobody asks here."""


def file(key: str, proc: Path = PROC) -> Path:
    """The file of a sysctl."""
    return proc.joinpath(*key.split("."))


def refusal(
    key: str, kernel: str, root: bool, readable: bool, proc: Path = PROC
) -> MissingHere | Refused:
    """What to raise if no host of a lab on `kernel` can set `key`. `root`: whether its namespaces
    are root's; `readable`: whether a host can read it all the same. `proc` has the sysctls of this
    program's kernel."""
    settable = kernel == platform.release() and _settable(file(key, proc))
    settable = settable and not INTERFACE.match(key)
    if any(fnmatchcase(key, known) for known in OF_THE_MACHINE) or (settable and root):
        whole = f"{key} belongs to the whole machine: no namespace has one of its own"
        return MissingHere(whole, GUEST)
    if settable:
        return MissingHere(f"only namespaces of root's have {key}", f"run as root, or {GUEST}")
    return absence(key, kernel, readable, proc)


def absence(key: str, kernel: str, readable: bool, proc: Path = PROC) -> MissingHere | Refused:
    """The same if the whole machine belongs to the lab."""
    if interface := INTERFACE.match(key):
        return Refused(f"a host has no interface {interface[1]}", "name eth0, lo, all or default")
    if readable:
        return Refused(f"{key} can't be set: kernel {kernel} only tells it", "leave it out")
    meant = _meant(key, proc)
    return MissingHere(f"kernel {kernel} has no {key}", f"run it on another kernel{meant}")


def _meant(key: str, proc: Path) -> str:
    """A guess at the key that was meant by an unknown one, among those that are here."""
    folder, _, name = key.rpartition(".")
    with suppress(OSError):
        here = [path.name for path in file(folder, proc).iterdir()]
        for close in get_close_matches(name, here, n=1, cutoff=ALIKE):
            return f"; did you mean {folder}.{close}?"
    return ""


def _settable(path: Path) -> bool:
    """Whether somebody can set it in this program's namespace: mostly the first."""
    try:
        return bool(path.stat().st_mode & WRITABLE)
    except OSError:
        return False
