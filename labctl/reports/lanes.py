"""The hosts of a drawing, and the lanes for the states of their sockets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from labctl.ground.data import dataclass
from labctl.probes.sockets import Ends
from labctl.reports.rows import Bar, Ladder

LANE = 11.0


@dataclass
class Host:
    """A host's column: its lifeline at `x`, lanes for bars on the `outward` side of it (-1 is to
    the left), and words at `words_at`. `lanes`: see `_assign`."""

    name: str
    x: float = 0.0
    outward: int = 1
    lanes: dict[Ends, tuple[list[float], list[int]]] = field(default_factory=dict)
    lane: float = LANE
    width: float = LANE
    words_at: float = 0.0
    anchor: str = "start"
    waiting_at: float = 0.0


def hosts(ladder: Ladder, lanes: float) -> dict[str, Host]:
    """The hosts of a ladder; their lanes are so many pixels wide at most."""
    found = {name: Host(name) for name in ladder.hosts}
    for host in found.values():
        spans = _spans([r for r in ladder.rows if isinstance(r, Bar) and r.host == host.name])
        count = max(1, _assign(spans, host.lanes))
        host.lane = min(LANE, lanes / count)
        host.width = host.lane * count
    return found


def _spans(bars: Sequence[Bar]) -> list[tuple[float, float, Ends]]:
    """When each socket began, and when it ended."""
    spans: list[tuple[float, float, Ends]] = []
    since: dict[Ends, float] = {}
    for bar in bars:
        if bar.state:
            since.setdefault(bar.ends, bar.t)
        elif bar.ends in since:
            spans.append((since.pop(bar.ends), bar.t, bar.ends))
    return spans + [(t, float("inf"), ends) for ends, t in since.items()]


def _assign(
    spans: Sequence[tuple[float, float, Ends]], lanes: dict[Ends, tuple[list[float], list[int]]]
) -> int:
    """Gives each span the first free lane: for each socket the beginnings of its spans, and their
    lanes. Returns how many lanes there are."""
    ends: list[float] = []
    for since, until, socket in sorted(spans, key=lambda span: span[0]):
        lane = next((n for n, end in enumerate(ends) if end <= since), len(ends))
        ends[lane : lane + 1] = [until]
        starts, numbers = lanes.setdefault(socket, ([], []))
        starts.append(since)
        numbers.append(lane)
    return len(ends)
