"""What this machine can do. Each check tries the thing itself; versions prove nothing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from labctl.backends import backend_class, debian
from labctl.backends.capabilities import CAPABILITIES
from labctl.backends.netns import backend as netns
from labctl.ground import invoked
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, Unavailable
from labctl.ground.installed import namesakes, stranger
from labctl.ground.resources import home, images
from labctl.lab.faults import Drop, End
from labctl.run import guests
from labctl.run.guests import apt, qemu, root
from labctl.run.places import DEFAULT_OS


@dataclass(frozen=True)
class Check:
    """One thing: whether it works, what was found, what its lack costs, what to do."""

    name: str
    ok: bool
    found: str
    cost: str
    hint: str


MACOS_SOCKETS = {
    "Docker Desktop": ".docker/run/docker.sock",
    "colima": ".colima/default/docker.sock",
    "OrbStack": ".orbstack/run/docker.sock",
    "Podman": ".local/share/containers/podman/machine/podman.sock",
    "Rancher Desktop": ".rd/docker.sock",
}
"""The sockets of the engines for macOS, below the home folder; see docs/macos.md."""


def examine() -> list[Check]:
    """All checks, in order. On macOS only an engine can replace what is missing."""
    checks = [check() for check in CHECKS]
    if sys.platform == "darwin":
        hint = "needs Linux: use --backend docker, whose engine has one"
        works = ("name", "docker", "compose", "kernels")
        checks = [c if c.ok or c.name in works else replace(c, hint=hint) for c in checks]
    return checks


def _docker() -> Check:
    found = backend_class("docker").describe_engine()
    return Check(
        "docker",
        found is not None,
        found or f"no engine answers at {os.environ.get('DOCKER_HOST', 'the default address')}",
        "no --backend docker, no images of your own",
        _engine_hint(),
    )


def _compose() -> Check:
    from labctl.backends.docker import project

    known, found = CAPABILITIES["compose"], project.version()
    here = found or f"no {project.NAME} that runs"
    return Check("compose", found is not None, here, known.cost, known.hint)


def _engine_hint() -> str:
    """How to get an engine; on macOS, which sockets there are."""
    if sys.platform == "darwin":
        found = {name: home() / path for name, path in MACOS_SOCKETS.items()}
        sockets = [
            f"export DOCKER_HOST=unix://{path} ({name}; start it, if it does not answer)"
            for name, path in found.items()
            if path.exists() and os.environ.get("DOCKER_HOST") != f"unix://{path}"
        ]
        known = "start Docker Desktop, colima or OrbStack, or set DOCKER_HOST"
        return ", or ".join(sockets) or known
    return "start Docker, or set DOCKER_HOST"


def _netns() -> Check:
    lack = netns.unavailable()
    how = "user namespace" if netns.user_flags() else "as root"
    return Check(
        "netns",
        lack is None,
        lack.reason if lack else f"namespaces, {how}",
        "no --backend netns: an engine is needed",
        lack.hint if lack else "",
    )


def _uids() -> Check:
    lack = netns.unavailable() or netns.one_user_only()
    found, hint = lack or (CAPABILITIES["uids"].what, "")
    return replace(_capability("uids", lack is None, found), hint=hint)


def _capability(name: str, ok: bool, found: str) -> Check:
    """Whether namespaces have a capability."""
    known = CAPABILITIES[name]
    return Check(name, ok, found, known.cost, known.hint)


def _in_namespace(script: str, said: str = "") -> subprocess.CompletedProcess[str] | None:
    if netns.unavailable():
        return None
    command = ["unshare", *netns.unshare_flags(), "--", "sh", "-c", script]
    return subprocess.run(command, input=said, capture_output=True, text=True, check=False)


def _nft() -> Check:
    """Drops segments by their flags, their payload and their count, as a run does."""
    end = End(("192.0.2.1", "2001:db8::1"), 80)
    drops = [
        Drop(end, None, "output", frozenset({"SYN"}), count=1),
        Drop(None, end, "input", frozenset({"data"})),
    ]
    rules = "".join(drop.rules(n).replace(drop.log(n), "") for n, drop in enumerate(drops))
    return _nftables("nft", "nftables", "nft -f - && nft list counters", rules)


def _nat() -> Check:
    """Translates addresses, as a router does."""
    rules = "table inet t { chain c { type nat hook postrouting priority 100; masquerade; }; }"
    return _nftables("nat", "nftables with NAT", "nft -f -", rules)


def _nftables(name: str, what: str, script: str, rules: str) -> Check:
    done = _in_namespace(script, rules)
    ok = done is not None and done.returncode == 0
    if done is None:
        found = "no namespaces to try it in"
    else:
        found = what if ok else f"nft does not work: {_first(done.stderr, done.returncode)}"
    return _capability(name, ok, found)


def _first(said: str, status: int) -> str:
    return (said.strip().splitlines() or [f"status {status}"])[0]


def _netem() -> Check:
    done = _in_namespace("ip link set lo up; tc qdisc add dev lo root netem delay 1ms")
    ok = done is not None and done.returncode == 0
    found = "delay and loss by tc" if ok else "this kernel or machine has no netem"
    return _capability("netem", ok, found)


def _tracing() -> Check:
    events = Path("/sys/kernel/tracing/events/sock/inet_sock_set_state")
    mounted = subprocess.run(
        ["unshare", "--mount", "sh", "-c",
         f"mount -t tracefs tracefs /sys/kernel/tracing; test -d {events}"],
        capture_output=True, check=False,
    ) if shutil.which("unshare") else None  # fmt: skip
    ok = mounted is not None and mounted.returncode == 0
    found = "sock:inet_sock_set_state" if ok else "tracefs can't be mounted"
    return _capability("tracing", ok, found)


def _calls() -> Check:
    """Watches a program's calls, as supervisors do."""
    cost = "the calls of programs are not seen: claims about them are unknown"
    ok, found = False, "Linux traces programs, this system does not"
    if sys.platform == "linux":
        peer = [sys.executable, "-IS", str(images() / "peer" / "peer.py")]
        done = subprocess.run(
            [*peer, "run", "--watch=calls", "--", "true"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = [json.loads(line) for line in done.stdout.splitlines()]
        ok = any(message.get("watch") for message in said)
        reasons = [message["text"] for message in said if message["kind"] == "unseen"]
        found = "ptrace(2) and seccomp(2)" if ok else next(iter(reasons), done.stderr.strip())
    reason, _, hint = found.partition("; ")
    return Check("calls", ok, reason, cost, hint)


def _mmdebstrap() -> Check:
    """Makes an empty root: it needs the same rights, mirror and keys as any other."""
    found, ok, hint = "a root of Debian's packages", True, ""
    try:
        debian.trial()
    except LabError as exc:
        ok, found, hint = False, exc.message, exc.hint
    cost = "images can be built only where a registry answers, and guests not at all"
    return Check("mmdebstrap", ok, found, cost, hint)


def _kernels() -> Check:
    here = guests.here()
    ok, hint = True, ""
    try:
        try:
            emulator = f"QEMU {qemu.version()}"
        except Unavailable:
            if not backend_class("docker").answers():
                raise
            emulator = "QEMU in containers"
        found = f"{emulator}; {', '.join(here) or 'no kernel fetched yet'}"
        root.demand(root.suite_for(DEFAULT_OS))
        if not here:
            apt.keyring()
            apt.archive()
    except LabError as exc:
        ok, found, hint = False, exc.message, exc.hint
    return Check("kernels", ok, found, "no --kernel, no --virtual-time", hint)


def _python() -> Check:
    return Check("python", True, f"{platform.python_version()} on {platform.platform()}", "", "")


def _name() -> Check:
    """Whether `labctl` means this program, for a shell and for Python."""
    if others := namesakes():
        found = f"{', '.join(others)} is installed too, with files of the same names"
        hint = f"pip uninstall {' '.join(others)}, then pip install --force-reinstall labctl-tcp"
        return Check("name", False, found, "parts of one run in the other", hint)
    other = stranger()
    found = f"{other} is another program" if other else "no other labctl on the PATH"
    hint = f"call this one as {invoked.command()}, or put it first on the PATH"
    return Check("name", other is None, found, "`labctl` starts that one", hint)


CHECKS: list[Callable[[], Check]] = [
    _python,
    _name,
    _docker,
    _compose,
    _netns,
    _uids,
    _nft,
    _nat,
    _netem,
    _tracing,
    _calls,
    _mmdebstrap,
    _kernels,
]
