"""Which kernels there are for a scenario: the running one, those that were fetched, files of this
machine, and what Debian's mirror has."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from labctl.backends import Progress
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, UsageError
from labctl.run import guests
from labctl.run.guests import SUITES, Kernel, Known, age, kconfig

FILES = ("boot/vmlinuz-*", "lib/modules/*/vmlinuz")
"""Where distributions put kernels; the first of two of the same version counts."""


@dataclass(frozen=True)
class Listed:
    """A kernel: what `--kernel` calls it now, best name first; its version as in `uname -r`;
    whether it is `running`, `here` because it was fetched, a `file`, or `offered` by `suite`; and
    what keeps it from being a guest, if that is known."""

    names: list[str]
    version: str
    state: str
    suite: str | None = None
    lack: str | None = None

    @property
    def where(self) -> str:
        """Its state in words."""
        words = {
            "running": "runs this machine",
            "here": "here",
            "file": "a file of this machine",
            "offered": f"to be fetched from {self.suite}",
        }
        return words[self.state] + (f"; {self.lack}" if self.lack else "")


def kernels(progress: Progress) -> list[Listed]:
    """All of them. If the mirror does not answer, only what is here, and says so."""
    offered: list[Known] = []
    owned: dict[str, Known] = {}
    try:
        offered = guests.available(SUITES, progress)
        for suite in SUITES:
            with suppress(LabError):  # it has none now
                owned[suite] = guests.own(suite, guests.suite_of(suite).depends(guests.META))
    except LabError as exc:
        progress(f"{exc}; only what is here is listed")
    running = [Listed([], os.uname().release, "running")] if sys.platform == "linux" else []
    return [*running, *files(), *arranged(guests.named(), guests.here(), offered, owned)]


def arranged(
    names: Mapping[str, str], fetched: Iterable[str], offered: list[Known], own: Mapping[str, Known]
) -> list[Listed]:
    """What was fetched, and then what is offered, the oldest first, each with the names by which
    `find` takes it: `names` lead to what was fetched, `own` are the suites' own kernels."""
    newest = {kernel.name: guests.choose(kernel.name, offered) for kernel in offered}
    words = {**{name: k.release for name, k in (newest | dict(own)).items()}, **names}
    called: dict[str, list[str]] = {}
    for name in sorted(words, key=lambda name: (name in SUITES, age(name))):
        called.setdefault(words[name], []).append(name)
    rows = [Listed(called.get(r, [r]), r, "here") for r in sorted(fetched, key=age)]
    there = {row.version for row in rows}
    return rows + [
        Listed(called.get(k.release, [k.version]), k.release, "offered", k.suite)
        for k in sorted(set(offered) | set(own.values()), key=lambda k: age(k.version))
        if k.release not in there
    ]


def files(top: Path = Path("/")) -> Iterator[Listed]:
    """The files of this machine that `--kernel` takes."""
    seen = set()
    for path in (path for pattern in FILES for path in sorted(top.glob(pattern))):
        with suppress(UsageError):  # it can't be read, or has no modules
            kernel = guests.local(path)
            if kernel.version not in seen:
                seen.add(kernel.version)
                yield Listed([str(path)], kernel.version, "file", lack=lack(kernel))


def lack(kernel: Kernel) -> str | None:
    """Why a kernel can't be a guest, if its configuration says so."""
    try:
        kconfig.demand(kernel)
    except LabError as exc:
        return exc.message
    return None
