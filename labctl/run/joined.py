"""Whether hosts of one engine of a swarm reach those of another."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from labctl.backends import EngineAt, HostSpec, Progress
from labctl.backends.docker import engine
from labctl.lab.lab import Lab
from labctl.record.events import ExecEvent
from labctl.run.bare import bare
from labctl.run.places import Place

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


def apart(ats: Sequence[EngineAt], progress: Progress) -> Apart | None:
    """Brings up a lab with a host on each engine, and connects from each to each: the first that
    does not reach another. Raises LabError if there can be no such lab."""
    hosts = [HostSpec(f"host-{number}", engine=at.name) for number, at in enumerate(ats, 1)]
    with bare(Place("docker", engines=tuple(ats)), hosts, progress) as lab:
        tried = (_connected(lab, *pair) for pair in permutations(hosts, 2))
        return next(filter(None, tried), None)  # the first: each takes seconds


def _connected(lab: Lab, here: HostSpec, there: HostSpec) -> Apart | None:
    lab.exec(here.name, f"python3 -c {shlex.quote(CONNECT.format(there.name))}")
    event = lab.history.events[-1]
    assert isinstance(event, ExecEvent)
    if (code := event.output.strip()) == str(errno.ECONNREFUSED):
        return None
    unknown = (f"can't connect to its hosts: {code}", engine.PORTS)
    why, port = BLOCKED.get(int(code) if code.isdecimal() else 0, unknown)
    return Apart(str(here.engine), str(there.engine), why, f"between them, open {port}")
