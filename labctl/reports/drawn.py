"""What a ladder shows of a huge run: the rule for it, in one place.

A reader can't look at thousands of connections, and most of them are alike. So a ladder has all
steps and claims, some connections, and a word on what it leaves out. The run's folder has the rest,
which is judged all the same.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field

from labctl.ground.data import dataclass
from labctl.judge.check import Verdict
from labctl.probes.sockets import Ends, SsParseError
from labctl.probes.traffic import Chosen
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
    others. `passed` are the moments at which each host captured something of those, in order, and
    `changed` when they changed."""

    connections: frozenset[Ends] | None = None
    row: Left | None = None
    passed: Mapping[str, Sequence[float]] = field(default_factory=dict)
    changed: Sequence[float] = ()

    @property
    def chosen(self) -> Chosen | None:
        """Whether to draw a connection, or a listener; None if all are drawn."""
        return None if self.connections is None else self._has

    def _has(self, connection: Ends) -> bool:
        return not connection[1] or connection in (self.connections or ())

    def quiet(self, since: float, until: float) -> bool:
        """Whether nothing was left out between two moments."""
        return not any(
            happened(moments, since, until) for moments in (*self.passed.values(), self.changed)
        )


def happened(moments: Sequence[float], since: float, until: float) -> bool:
    """Whether one of some moments, in order, is between two others."""
    return bisect_left(moments, since) != bisect_left(moments, until)


def choose(history: History, verdicts: Sequence[Verdict]) -> Drawn:
    """Chooses the connections of a run to draw, before anything of the others is read."""
    first: dict[Ends, float] = {}
    for t, connection in _seen(history):
        key = _key(connection)
        if t < first.get(key, float("inf")):
            first[key] = t
    if len(first) <= CONNECTIONS:
        return Drawn()
    about = _about(history, verdicts)
    segments = history.segments() if history.imported else ()
    bad = {_key((s.source, s.target)) for s in segments if "RST" in s.flags or s.lost}
    order = sorted(first, key=lambda key: (key not in about, key not in bad, first[key]))
    chosen, others = order[:CONNECTIONS], order[CONNECTIONS:]
    drawn = frozenset(chosen) | {key[::-1] for key in chosen}
    passed = {host: history.captured_without(host, drawn.__contains__) for host in history.hosts}
    changes = (e.t for e in history.events.of(StateEvent) if ends_of(e) not in drawn)
    packets = sum(map(len, passed.values()))
    words = (
        f"{len(others):,} of {len(first):,} connections, and {packets:,} captured packets of"
        f" theirs, are not drawn: {WHERE}"
    )
    begin = min(first[key] for key in others)
    return Drawn(drawn, Left(begin, words), passed, array("d", sorted(changes)))


def _key(connection: Ends) -> Ends:
    return connection if connection[0] < connection[1] else connection[::-1]


def _seen(history: History) -> Iterator[tuple[float, Ends]]:
    """Connections, and when something was seen of them."""
    yield from history.first_captured()
    probes = history.lab.environment.get("probes", ()) if history.lab else ()
    others = {"capture", "trace"}
    all_told = others <= {*probes} and not any(probe in others for _, probe in history.trouble)
    known: set[tuple[object, object]] = set()
    for change in history.events.of(StateEvent):
        found = ends_of(change)
        if found[1] and not found[0].endswith(":0"):
            yield change.t, found
    for event in () if all_told else history.events.of(SocketsEvent):  # or they show no others
        try:
            sockets = event.came
        except SsParseError:
            continue
        for socket in sockets:
            both = socket.local, socket.remote
            if socket.connection and both not in known:
                known.add(both)
                yield event.t, socket.ends


def _about(history: History, verdicts: Iterable[Verdict]) -> frozenset[Ends]:
    """The connections that single calls, faults or verdicts are about."""
    found = {_key((e.local, e.peer)) for e in history.events.of(CallEvent) if e.local and e.peer}
    faults = (e.observation for e in (*history.losses, *history.injected))
    found |= {_key((seen.source, seen.target)) for seen in faults if seen}
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
