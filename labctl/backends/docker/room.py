"""How many labs an engine has room for, and how many it has already."""

from __future__ import annotations

from contextlib import closing

from labctl.backends import EngineAt
from labctl.backends.docker import engine
from labctl.backends.docker.engine import translated
from labctl.backends.docker.sweep import LEASE, RUN
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError

A_CORE = 8
"""Labs for each processor: most of them wait for TCP's timers most of the time."""
A_LAB = 128 << 20
"""Bytes of memory for each lab: one of two hosts and two processes takes about 40 MB."""
NETWORKS = 32
"""About as many networks as an engine has."""


@dataclass(frozen=True)
class Room:
    """An engine's kernel and processors, how many labs it has room for, and how many of ours it had
    when we asked."""

    kernel: str
    cores: int
    labs: int
    taken: int = 0

    @classmethod
    def of(cls, at: EngineAt) -> Room:
        """Raises Unavailable, LabError and UsageError."""
        with closing(engine.connect(where=at.where)) as client, translated("tell of its room"):
            info = client.info()
            running = client.containers(filters={"label": LEASE})
        most = min(A_CORE * info["NCPU"], info["MemTotal"] // A_LAB, NETWORKS)
        taken = {container["Labels"].get(RUN) for container in running}
        return cls(info["KernelVersion"], info["NCPU"], max(1, most), len(taken))

    @property
    def free(self) -> int:
        """How many more it has room for."""
        return max(0, self.labs - self.taken)

    def share(self, ours: int) -> float:
        """How full it is if it also has so many labs of ours."""
        return (self.taken + ours) / self.labs


def answers(at: EngineAt) -> bool:
    """Whether an engine answers, within a moment."""
    try:
        engine.connect(engine.FIRST_DEADLINE, at.where).close()
    except LabError:
        return False
    return True
