"""What several engines can do together: whether each answers, whether they are one swarm, and
whether hosts of one reach those of another."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import permutations

from labctl.backends import EngineAt, HostSpec, Progress
from labctl.backends.docker import engine
from labctl.backends.docker.nodes import product
from labctl.ground.errors import LabctlError, LabError
from labctl.lab.lab import Lab
from labctl.record.events import ExecEvent
from labctl.run import workflow
from labctl.run.doctor import Check
from labctl.run.places import Place

CONNECT = """\
import socket
trial = socket.socket()
trial.settimeout(4)
print(trial.connect_ex(("{}", 9)))
"""
"""Whether a host is reached: nobody listens, so its kernel refuses."""
OVERLAY = "overlay"
COST = "no lab with hosts on these engines"
BLOCKED = {
    errno.EHOSTUNREACH: ("does not learn where its hosts are", "7946/tcp and udp"),
    errno.EAGAIN: ("gets no answer from its hosts", "4789/udp"),
}
"""How a connection fails, what it means, and which port it needs. Engines tell each other by the
first where hosts are (gossip), and carry their packets by the second (VXLAN)."""


def examine_engines(ats: Sequence[EngineAt], progress: Progress) -> list[Check]:
    """A check for each engine; with several, one more for what joins them."""
    found = [_engine(at) for at in ats]
    if len(ats) > 1 and all(check.ok for check in found):
        found += _together(ats, progress)
    return found


def _engine(at: EngineAt) -> Check:
    try:
        with closing(engine.connect(engine.PING_DEADLINE, at.where)) as client:
            version = client.version()
    except LabctlError as exc:
        return Check(at.name, False, exc.message, COST, exc.hint or "")
    return Check(at.name, True, f"{product(version)}, API {version['ApiVersion']}", "", "")


def check_joined(ats: Sequence[EngineAt], progress: Progress) -> None:
    """Raises LabError if hosts of one do not reach those of another."""
    for check in _together(ats, progress):
        if check.name == OVERLAY and not check.ok:
            raise LabError(check.found, check.hint)


def _together(ats: Sequence[EngineAt], progress: Progress) -> Iterator[Check]:
    """Brings up a lab with a host on each, and connects from each to each."""
    hosts = [HostSpec(f"host-{number}", engine=at.name) for number, at in enumerate(ats, 1)]
    try:
        with workflow.bare(Place("docker", engines=tuple(ats)), hosts, progress) as lab:
            yield Check("swarm", True, "one swarm, with its manager among them", "", "")
            bad = filter(None, (_connected(lab, *pair) for pair in permutations(hosts, 2)))
            found = next(bad, None)  # the first one: each takes seconds
    except LabError as exc:
        yield Check("swarm", False, exc.message, COST, exc.hint or "")
        return
    yield found or Check(OVERLAY, True, "hosts of each connect to those of the others", "", "")


def _connected(lab: Lab, here: HostSpec, there: HostSpec) -> Check | None:
    """What is wrong if one host does not reach another; None if it does."""
    lab.exec(here.name, f"python3 -c {shlex.quote(CONNECT.format(there.name))}")
    event = lab.history.events[-1]
    assert isinstance(event, ExecEvent)
    if (code := event.output.strip()) == str(errno.ECONNREFUSED):
        return None
    unknown = (f"can't connect to its hosts: {code}", engine.PORTS)
    why, port = BLOCKED.get(int(code) if code.isdecimal() else 0, unknown)
    return Check(
        OVERLAY, False, f"{here.engine} and {there.engine}: the first {why}",
        "connections between hosts of these engines time out", f"between them, open {port}",
    )  # fmt: skip
