"""Places: where cases run, and what is known of them there."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labctl.backends import BACKENDS, EngineAt, choose
from labctl.ground.data import dataclass
from labctl.ground.errors import UsageError
from labctl.language.values import unknown

DEFAULT_OS = "debian:12"
NOT_RUN, NEVER_RUN = "not run", "never run"
"""What to say of a case that has no run at a place; and if nobody tried the place."""


@dataclass(frozen=True)
class Place:
    """Where cases run: Docker with images of an `os`, on one engine or on several; namespaces here;
    or a guest with a `kernel` and a root of an `os` or of the default one, whose QEMU runs here, or
    in a container of an engine if the backend is Docker."""

    backend: str
    os: str = ""
    kernel: str = ""
    virtual: bool = False
    engines: tuple[EngineAt, ...] = ()

    @property
    def name(self) -> str:
        """`docker debian:12`, `docker on left, right`, `netns`, `kernel 6.1`, `kernel 6.1,
        debian:11, virtual time`."""
        if self.kernel:
            clock = "virtual time" if self.virtual else ""
            return ", ".join(filter(None, (f"kernel {self.kernel}", self.os, clock)))
        on = "on " + ", ".join(at.name for at in self.engines) if self.engines else ""
        return " ".join(filter(None, (self.backend, self.os, on)))

    @property
    def slug(self) -> str:
        """The same for names of files; no other place has it."""
        plain = re.sub(r"[^A-Za-z0-9._]+", "-", self.name).strip("-")
        clear = re.fullmatch(r"[A-Za-z0-9._:, ]+", self.name)
        return plain if clear else f"{plain}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"

    @property
    def system(self) -> str:
        """The operating system of its images, or of a guest's root."""
        return self.os or DEFAULT_OS

    @property
    def options(self) -> list[str]:
        """The options of `labctl matrix` that choose only this place."""
        system = ["--os", self.os] if self.os else []
        if self.kernel:
            return ["--kernel", self.kernel, *system, *(["--virtual-time"] if self.virtual else [])]
        return [
            *(system or ["--backend", self.backend]),
            *(f"--engine={at}" for at in self.engines),
        ]


def engines_at(texts: Iterable[str]) -> tuple[EngineAt, ...]:
    """The engines of a command line, each `NAME=WHERE`, or WHERE alone. Raises UsageError."""
    found = tuple(map(EngineAt.parse, texts))
    for key in ("name", "where"):
        for said, times in Counter(getattr(at, key) for at in found).items():
            if times > 1 or not said:
                raise UsageError(f"--engine {said or '(nothing)'}: each engine once, and its name")
    return found


def place(
    backend: str, os: str | None, kernel: str | None, virtual: bool, engines: Iterable[str] = ()
) -> Place:
    """The one place of a command line. Raises UsageError for options that conflict."""
    named = engines_at(engines)
    if named and backend == "netns":
        raise UsageError("--engine is for Docker", "leave --engine out, or --backend netns")
    if virtual and not kernel:
        raise UsageError("--virtual-time needs a guest", "choose its kernel: --kernel NAME")
    if kernel and len(named) > 1:
        raise UsageError("--kernel runs its guests at one engine", "leave the other --engine out")
    if named or (kernel and backend == "docker"):
        return Place("docker", os or "", kernel or "", virtual, named)
    if kernel:
        return Place("netns", os or "", kernel, virtual)
    return Place(choose(backend, os), os or "")


def places(
    backends: Iterable[str],
    systems: Iterable[str],
    kernels: Iterable[str],
    virtual: bool,
    engines: Iterable[str] = (),
) -> list[Place]:
    """The places that were asked for, each once; each text may name several, separated by commas,
    but for `engines`, which are those of Docker.

    Every system runs on Docker, if that is wanted or there is no guest, and in every guest that can
    have it. Without a system they have the default. Without anything the places are all backends;
    but with engines Docker alone. Raises UsageError."""
    wanted, oses, guests = map(_split, (backends, systems, kernels))
    if virtual and not guests:
        raise UsageError("--virtual-time needs a guest", "choose its kernel: --kernel NAME")
    for name in wanted:
        if name not in BACKENDS:
            raise UsageError(f"--backend {name}: {unknown('backend', name, sorted(BACKENDS))}")
    named = engines_at(engines)
    if not (wanted or oses or guests):
        wanted = ["docker"] if named else list(BACKENDS)
    docker = "docker" in wanted or bool(oses and not guests)
    if named and not docker:
        raise UsageError("--engine is for Docker", "leave --engine out, or add --backend docker")
    containers = (oses or [DEFAULT_OS]) if docker else []
    from labctl.backends.docker import images
    from labctl.run.guests import root

    # A system that no guest can have is for Docker; without Docker it is a mistake.
    roots = {root.suite_for(os): os for os in oses if images.suite_name(os) or not docker}
    systems = list(roots.values()) or [""]
    return [
        *(Place("docker", os, engines=named) for os in containers),
        *(Place(name) for name in wanted if name != "docker"),
        *(Place("netns", os, kernel, virtual) for kernel in guests for os in systems),
    ]


def children(found: Sequence[Place], cores: int) -> list[Place]:
    """The places to run at the same time, each in a process of its own: guests, which have one
    processor each."""
    guests = [place for place in found if place.kernel]
    return guests if min(len(guests), cores) > 1 else []


def _split(texts: Iterable[str]) -> list[str]:
    names = (name.strip() for text in texts for name in text.split(","))
    return list(dict.fromkeys(filter(None, names)))


def github(found: Sequence[Place]) -> dict[str, Any]:
    """For `strategy.matrix` of a GitHub workflow: an entry for each place."""
    return {
        "include": [
            {
                "place": place.name,
                "slug": place.slug,
                "args": shlex.join(place.options),
                "guest": bool(place.kernel),
            }
            for place in found
        ]
    }


@dataclass(frozen=True)
class Seen:
    """What is known of a place: its `environment` and result document in the form of runs; its
    sysctls; why there is not more, if so; and what to say of a case that has not run there."""

    name: str
    reason: str | None
    environment: Mapping[str, Any]
    document: Mapping[str, Any]
    sysctls: Mapping[str, str]
    blank: str = "skip"

    @property
    def result(self) -> str:
        """The result of all cases together; unknown if nothing was ever run."""
        return str(self.document["result"])

    @property
    def kernel(self) -> str:
        """Its kernel's release, empty if not known."""
        return str(self.environment.get("kernel") or "")

    @property
    def system(self) -> str:
        """Its operating system, and the engine if there is one."""
        return ", ".join(filter(None, map(self.environment.get, ("os", "engine"))))
