"""What a ladder shows of a huge run: the rule for it, in one place.

A reader can't look at thousands of connections, and most of them are alike. So a ladder has all
steps and claims, some connections, and a word on what it leaves out. The run's folder has the rest,
which is judged all the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from labctl.judge.check import Verdict
from labctl.probes.observations import Segment
from labctl.probes.sockets import Ends, SsParseError
from labctl.record.ends import ends_of
from labctl.record.events import CallEvent, SocketsEvent, StateEvent
from labctl.record.history import History
from labctl.reports.rows import Bar, Judged, Left, Look, Row, Step

CONNECTIONS = 100
"""How many connections to draw at most: first those that calls, faults and verdicts are about, then
those that lost something or were reset, then the first ones of the run."""
ROWS = 20_000
"""How many rows to draw at most, from the beginning and from the end."""
LOOK_LINES = 50
"""How many sockets of a captioned look to show at most."""
WHERE = "the run's folder has all of it"


@dataclass(frozen=True)
class Drawn:
    """The connections to draw, by their ends, both ways round; None means all. `row` reports the
    others, and `missing` are the moments at which one of those sent a segment or changed, in
    order."""

    connections: frozenset[Ends] | None = None
    row: Left | None = None
    missing: Sequence[float] = ()

    def has(self, connection: Ends) -> bool:
        """Whether to draw a connection, or a listener."""
        return self.connections is None or not connection[1] or connection in self.connections

    def quiet(self, since: float, until: float) -> bool:
        """Whether nothing was left out between two moments."""
        return bisect_right(self.missing, since) == bisect_right(self.missing, until)


def choose(history: History, segments: Sequence[Segment], verdicts: Sequence[Verdict]) -> Drawn:
    """Chooses the connections of a run to draw."""
    first: dict[Ends, float] = {}
    for t, connection in _seen(history, segments):
        key = _key(connection)
        if t < first.get(key, float("inf")):
            first[key] = t
    if len(first) <= CONNECTIONS:
        return Drawn()
    about = _about(history, segments, verdicts)
    bad = {_key((s.source, s.target)) for s in segments if "RST" in s.flags or s.lost}
    order = sorted(first, key=lambda key: (key not in about, key not in bad, first[key]))
    chosen, others = order[:CONNECTIONS], order[CONNECTIONS:]
    drawn = frozenset(chosen) | {key[::-1] for key in chosen}
    left = [s.time for s in segments if (s.source, s.target) not in drawn]
    changes = [e.t for e in history.events if isinstance(e, StateEvent) and ends_of(e) not in drawn]
    words = (
        f"{len(others):,} of {len(first):,} connections, and {len(left):,} segments of theirs, are"
        f" not drawn: {WHERE}"
    )
    begin = min(first[key] for key in others)
    return Drawn(drawn, Left(begin, words), sorted([*left, *changes]))


def _key(connection: Ends) -> Ends:
    return connection if connection[0] < connection[1] else connection[::-1]


def _seen(history: History, segments: Iterable[Segment]) -> Iterator[tuple[float, Ends]]:
    """Connections, and when something was seen of them."""
    for segment in segments:
        yield segment.time, (segment.source, segment.target)
    probes = history.lab.environment.get("probes", ()) if history.lab else ()
    others = {"capture", "trace"}
    all_told = others <= {*probes} and not any(probe in others for _, probe in history.trouble)
    known: set[tuple[object, object]] = set()
    for event in history.events:
        if isinstance(event, StateEvent):
            found = ends_of(event)
            if found[1] and not found[0].endswith(":0"):
                yield event.t, found
        elif isinstance(event, SocketsEvent) and not all_told:  # or it shows no others
            try:
                sockets = event.sockets
            except SsParseError:
                continue
            for socket in sockets:
                both = socket.local, socket.remote
                if socket.connection and both not in known:
                    known.add(both)
                    yield event.t, socket.ends


def _about(
    history: History, segments: Iterable[Segment], verdicts: Iterable[Verdict]
) -> frozenset[Ends]:
    """The connections that single calls, faults or verdicts are about."""
    found = {
        _key((e.local, e.peer))
        for e in history.events
        if isinstance(e, CallEvent) and e.local and e.peer
    }
    found |= {_key((s.source, s.target)) for s in segments if s.injected or s.dropped is not None}
    found |= {_key(ends) for verdict in verdicts for ends in verdict.measured.connections}
    return frozenset(found)


def lines(told: Sequence[str]) -> tuple[str, ...]:
    """The lines of a look; if there are too many, a word on the rest."""
    if len(told) <= LOOK_LINES:
        return tuple(told)
    return (*told[:LOOK_LINES], f"and {len(told) - LOOK_LINES:,} more")


def cut(found: Sequence[Row]) -> Sequence[Row]:
    """The rows. If there are too many, a word replaces those in the middle, except steps, claims,
    and states that outlast them."""
    if len(found) <= ROWS:
        return found
    head, amid, tail = found[: ROWS // 2], found[ROWS // 2 : -ROWS // 2], found[-ROWS // 2 :]
    until = tail[0].t
    kept = [
        row
        for row in amid
        if isinstance(row, Step | Judged | Look | Left)
        or (isinstance(row, Bar) and (row.until is None or row.until >= until))
    ]
    words = f"{len(amid) - len(kept):,} rows are left out from here to {until:.3f} s: {WHERE}"
    return [*head, Left(amid[0].t, words), *kept, *tail]
