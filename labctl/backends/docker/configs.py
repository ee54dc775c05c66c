"""What the containers of a lab are made from, as the engine's API has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from labctl.backends import MEM_LIMIT, PIDS_LIMIT, HostSpec, ProcessSpec
from labctl.backends.docker import images

CONFINED: dict[str, Any] = {
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges"],
    "LogConfig": {"Type": "none"},
}
# With AppArmor, engines' profile for containers forbids what both of these need: to write below
# /proc/sys (a holder), and to mount (the tracer). See profiles/apparmor in moby.
BEYOND_APPARMOR = {**CONFINED, "SecurityOpt": [*CONFINED["SecurityOpt"], "apparmor=unconfined"]}


def limited(memory: int = MEM_LIMIT, processes: int = PIDS_LIMIT) -> dict[str, Any]:
    """Bounds of a container, without more memory on a disk."""
    return {"Memory": memory, "MemorySwap": memory, "PidsLimit": processes}


TETHERED = {"OpenStdin": True, "StdinOnce": True, "AttachStdin": True}
ENDED_AT_ONCE = {"StopSignal": "SIGKILL"}
"""Podman removes no container that runs before it has had ten seconds to heed this signal."""

NOBODY = "65534:65534"

LENDS: dict[str, Any] = {"Volumes": {images.LENT: {}}}
"""A holder's Python for other images, as a volume that they can't write to; it has no name, and is
removed with its containers."""

# What engines protect by default (opencontainers: linux.readonlyPaths), except /proc/sys/net.
OF_PROC = [f"/proc/{name}" for name in ("bus", "fs", "irq", "sysrq-trigger")]
OF_SYSCTLS = [f"/proc/sys/{name}" for name in ("abi", "debug", "dev", "fs", "kernel", "user", "vm")]
PROTECTED = {"ReadonlyPaths": [*OF_PROC, *OF_SYSCTLS]}
PROTECTED_BY_PODMAN = {
    "SecurityOpt": [
        *BEYOND_APPARMOR["SecurityOpt"], "unmask=/proc/sys", "mask=" + ":".join(OF_SYSCTLS)
    ]
}  # fmt: skip
"""Podman takes no list of paths to protect."""


def holder(host: HostSpec, built: images.Images, podman: bool) -> dict[str, Any]:
    return {
        "Image": built.host,
        "Cmd": ["--tether"],
        "Hostname": host.name,
        **TETHERED,
        **ENDED_AT_ONCE,
        "HostConfig": {
            **BEYOND_APPARMOR,
            **limited(),
            "CapAdd": ["NET_ADMIN", "NET_RAW"],
            # /etc/hosts has all names: no other name may leave the lab, nor take long.
            "Dns": ["127.0.0.1"],
            "DnsOptions": ["timeout:1", "attempts:1"],
            **(PROTECTED_BY_PODMAN if podman else PROTECTED),
            "Sysctls": {
                "net.ipv4.ip_unprivileged_port_start": "0",
                "net.ipv6.conf.all.disable_ipv6": "0",
            },
        },
    }


def of_service(config: dict[str, Any], own: Mapping[str, Any], below: Mapping[str, Any]) -> None:
    """Makes a holder's configuration that of a service's host: its own names and servers of names
    count."""
    sysctls = config["HostConfig"]["Sysctls"] | below["Sysctls"]
    config |= own
    config["HostConfig"] |= {**below, "Sysctls": sysctls}


def tracer(words: Sequence[str], built: images.Images) -> dict[str, Any]:
    return {
        "Image": built.host,
        "Entrypoint": ["python3", "-IS", "/usr/local/lib/labctl/tracer.pyc"],
        "Cmd": [*words],
        "NetworkDisabled": True,  # or the engine starts two programs to set up a network of nothing
        **TETHERED,
        "HostConfig": {
            **BEYOND_APPARMOR,
            "CapAdd": ["SYS_ADMIN"],
            "NetworkMode": "none",
        },
    }


def guest(image: str, words: Sequence[str]) -> dict[str, Any]:
    """QEMU, which needs nothing but memory and a processor."""
    return {
        "Image": image,
        "Cmd": [*words],
        "User": NOBODY,
        "NetworkDisabled": True,
        **TETHERED,
        **ENDED_AT_ONCE,
        "HostConfig": {**CONFINED, **limited(), "NetworkMode": "none", "AutoRemove": True},
    }


def program(
    process: ProcessSpec,
    built: images.Images,
    holder: str,
    commands: Mapping[str, images.Command],
) -> dict[str, Any]:
    config: dict[str, Any] = {"Image": process.image or built.peer}
    words = process.run
    if process.image:
        # Health checks do not belong to the lab: they are clients of their own.
        config |= {"Healthcheck": {"Test": ["NONE"]}, "Entrypoint": list(images.LENT_PEER)}
        words = commands[process.image].words(process.run)
    watch = [f"--watch={process.watch}"] if process.watch else []
    job = ["calls", process.calls] if words is None else ["run", *watch, "--", *words]
    config |= {"Cmd": ["--tether", "--held", *job], **TETHERED}
    if process.uid is not None:
        config["User"] = f"{process.uid}:{process.uid}"
    return {
        **config,
        **ENDED_AT_ONCE,
        "Env": [f"{name}={value}" for name, value in process.env.items()],
        "HostConfig": {
            **CONFINED,
            **limited(process.mem_limit, process.pids_limit),
            "CapAdd": list(process.rights),
            "NetworkMode": f"container:{holder}",
            "Init": False,  # peer.py is an init of its own
            "VolumesFrom": [f"{holder}:ro"] if process.image else [],
        },
    }
