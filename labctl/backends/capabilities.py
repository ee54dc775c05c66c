"""What a scenario may need beyond the basics, and what to say if a lab lacks it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from labctl.ground.data import dataclass


class Lack(NamedTuple):
    """What a backend or machine can't do: why, and what helps, one line each."""

    reason: str
    hint: str


@dataclass(frozen=True)
class Capability:
    """What a scenario may need. `probed` is who in a lab says whether it is there: the `backend`
    before the lab is up; the `agent` of a host, which tries it (PROBES in images/host/faults.py);
    or the `tracer`. `check` is the check of `labctl doctor` that tries it on this machine; `cost`
    is what its lack costs."""

    what: str
    probed: Literal["backend", "agent", "tracer"]
    check: str
    cost: str
    hint: str


CAPABILITIES = {
    "images": Capability(
        "processes from images of their own",
        "backend",
        "docker",
        "no images of your own",
        "use --backend docker, with a running engine",
    ),
    "compose": Capability(
        "services of a Compose project",
        "backend",
        "compose",
        "no services of your own projects",
        "use --backend docker, and install Docker Compose",
    ),
    "uids": Capability(
        "processes of other users",
        "backend",
        "uids",
        "scenarios with uid are skipped on netns",
        "run as root, or install uidmap and give this user a range in /etc/subuid and /etc/subgid",
    ),
    "nft": Capability(
        "hosts that can lose segments: nftables",
        "agent",
        "nft",
        "no lost segments on netns",
        "install the package nftables, on a kernel with nf_tables",
    ),
    "nat": Capability(
        "routers that translate addresses: nftables with NAT",
        "agent",
        "nat",
        "no router of the kind nat on netns",
        "install the package nftables, on a kernel with nft_masq",
    ),
    "netem": Capability(
        "links that can be slow or unreliable",
        "agent",
        "netem",
        "no delayed or reordered segments on netns",
        "load the module sch_netem, and install iproute2",
    ),
    "tracing": Capability(
        "every transition of a connection at its exact time",
        "tracer",
        "tracing",
        "states that last microseconds are not seen",
        "run as root, on a kernel with CONFIG_FTRACE",
    ),
    "virtual_time": Capability(
        "waiting that takes no time",
        "backend",
        "kernels",
        "no --virtual-time",
        "run them in a guest, --kernel NAME --virtual-time",
    ),
}
"""By the names that `needs` takes."""

REAL_TIME = Lack("this takes hours where time is real", CAPABILITIES["virtual_time"].hint)
"""Why there is no `virtual_time` but in a guest that has it."""
