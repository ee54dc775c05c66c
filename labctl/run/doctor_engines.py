"""What several engines can do together: whether each answers, whether they are one swarm, and
whether hosts of one reach those of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from labctl.backends import EngineAt, Progress
from labctl.backends.docker import engine
from labctl.backends.docker.nodes import product
from labctl.ground.errors import LabctlError, LabError
from labctl.run.doctor import Check
from labctl.run.joined import apart

COST = "no lab with hosts on these engines"


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


def _together(ats: Sequence[EngineAt], progress: Progress) -> Iterator[Check]:
    try:
        found = apart(ats, progress)
    except LabError as exc:
        yield Check("swarm", False, exc.message, COST, exc.hint or "")
        return
    yield Check("swarm", True, "one swarm, with its manager among them", "", "")
    if found:
        cost = "connections between hosts of these engines time out"
        yield Check("overlay", False, str(found), cost, found.hint)
    else:
        yield Check("overlay", True, "hosts of each connect to those of the others", "", "")
