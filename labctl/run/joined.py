"""Whether hosts of one engine of a swarm reach those of another, and cases that need that."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Sequence
from contextlib import suppress
from itertools import permutations

from labctl.backends import Backend, EngineAt, HostSpec, Progress
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError
from labctl.judge.result import RunResult
from labctl.lab.lab import Lab
from labctl.language.scenario import Scenario
from labctl.record.events import ExecEvent
from labctl.record.store import RunFolder
from labctl.run.bare import bare
from labctl.run.places import Place
from labctl.run.runner import Session, Watcher

CONNECT = """\
import socket
trial = socket.socket()
trial.settimeout(4)
print(trial.connect_ex(("{}", 9)))
"""
"""Whether a host is reached: nobody listens, so its kernel refuses."""
BLOCKED = {
    errno.EHOSTUNREACH: ("does not learn where its hosts are", "7946/tcp and udp"),
    errno.EAGAIN: ("gets no answer from its hosts", "4789/udp"),
}
"""How a connection fails, what it means, and which port it needs. Engines tell each other by the
first where hosts are (gossip), and carry their packets by the second (VXLAN)."""


@dataclass(frozen=True)
class Apart:
    """Hosts of an engine that do not reach those of another: why, and what helps."""

    here: str
    there: str
    why: str
    hint: str

    def __str__(self) -> str:
        return f"{self.here} and {self.there}: the first {self.why}"


class Spread(Session):
    """A case under way on hosts of several of these engines. If they are apart, or may have been,
    there is no verdict."""

    def __init__(
        self,
        scenario: Scenario,
        backend: Backend,
        folder: RunFolder,
        watcher: Watcher,
        engines: Sequence[EngineAt],
    ) -> None:
        super().__init__(scenario, backend, folder, watcher)
        self._engines = engines

    def _concluded(self) -> RunResult:
        found = super()._concluded()
        if found.result in ("error", "skip") or not (doubt := self._doubt(found)):
            return found
        self.ended = self.ended.broken_by(doubt)
        return super()._concluded()

    def _doubt(self, found: RunResult) -> LabError | None:
        """That two engines are apart. If the case has passed, and segments came from each to each,
        they were not."""
        machines = {host: clock.machine for host, clock in self.history.clocks.items()}
        used = [at for at in self._engines if at.name in machines.values()]
        if found.result == "pass":
            crossed = {
                (machines.get(s.sender or ""), machines.get(s.receiver or ""))
                for s in self.history.segments() if s.arrived is not None
            }  # fmt: skip
            if crossed >= set(permutations([at.name for at in used], 2)):
                return None
        with suppress(LabError):  # nobody knows
            if which := apart(used, lambda _: None):
                return LabError(str(which), which.hint)
        return None


def apart(ats: Sequence[EngineAt], progress: Progress) -> Apart | None:
    """Brings up a lab with a host on each engine, and connects from each to each: the first that
    does not reach another. Raises LabError if there can be no such lab."""
    hosts = [HostSpec(f"host-{number}", engine=at.name) for number, at in enumerate(ats, 1)]
    with bare(Place("docker", engines=tuple(ats)), hosts, progress) as lab:
        tried = (_connected(lab, *pair) for pair in permutations(hosts, 2))
        return next(filter(None, tried), None)  # the first: each takes seconds


def _connected(lab: Lab, here: HostSpec, there: HostSpec) -> Apart | None:
    from labctl.backends.docker.engine import PORTS

    lab.exec(here.name, f"python3 -c {shlex.quote(CONNECT.format(there.name))}")
    event = lab.history.events[-1]
    assert isinstance(event, ExecEvent)
    if (code := event.output.strip()) == str(errno.ECONNREFUSED):
        return None
    unknown = (f"can't connect to its hosts: {code}", PORTS)
    why, port = BLOCKED.get(int(code) if code.isdecimal() else 0, unknown)
    return Apart(str(here.engine), str(there.engine), why, f"between them, open {port}")
