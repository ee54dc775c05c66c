"""Claims and what was seen of them, as data: words are only for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any

from labctl.ground.data import dataclass
from labctl.probes.holders import Held
from labctl.probes.sockets import Ends

AWAITING, NEVER_STARTED = "awaiting", "never started"
"""A process that is not `running`, `exited` or `killed`: ready for a `call`, or never started."""


@dataclass(frozen=True)
class Range:
    """`low` at least and `high` at most; None means that there is no bound, or nobody knows it."""

    low: int | float
    high: int | float | None = None


def seconds_range(low: float, high: float) -> Range:
    """Seconds, to the microsecond; without an end so far there is no `high`."""
    return Range(round(low, 6), None if high == math.inf else round(high, 6))


@dataclass(frozen=True)
class Facts:
    """What is claimed, or what was seen, as data. Only fields that apply are set.

    `after_seconds`: how long after `since` (a label; else its step's beginning) it came to hold.
    `until_seconds`: how long it did not hold. `lasted_seconds`: how long a connection was in the
    state. `count`: of segments, of sockets, or by how much a counter grew. `sockets`: how many
    there are in each state. `states`: those of a connection in order, `closed` at its end.
    `listens`: the local ports at which a listener must be.
    `process`: `running`, `exited`, `killed`, `awaiting` or `never started`. `errno`: that of its
    last call. `calls`: the results of others, by name. `output`: a regular expression, or what it
    found. `pauses_seconds`: between segments. `connections`: the ends of the connections that
    decided it. `holders`: who held which of the sockets, as far as that is known."""

    after_seconds: Range | None = None
    since: str | None = None
    until_seconds: float | None = None
    lasted_seconds: Range | None = None
    count: Range | None = None
    sockets: Mapping[str, int] = field(default_factory=dict)
    states: tuple[str, ...] = ()
    listens: tuple[int, ...] = ()
    process: str | None = None
    exit: int | None = None
    signal: str | None = None
    errno: str | None = None
    calls: Mapping[str, str] = field(default_factory=dict)
    output: str | None = None
    pauses_seconds: tuple[float, ...] = ()
    received_bytes: Range | None = None
    connections: tuple[Ends, ...] = ()
    holders: tuple[Held, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As the result document has it."""
        return _present(asdict(self))


def _present(found: Mapping[str, Any]) -> dict[str, Any]:
    pairs = ((k, _present(v) if isinstance(v, dict) else v) for k, v in found.items())
    return {key: value for key, value in pairs if value not in (None, {}, ())}


NO_FACTS = Facts()
"""For what data can't express."""
