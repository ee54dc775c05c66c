"""Every socket's states over time, from the kernel's tracepoint and from looks by `ss`.

The tracepoint has each transition of a full socket at its moment, but sees no TIME-WAIT and no
FIN-WAIT-2 of a socket that has shrunk to a minisocket: for it those close (see tcp_time_wait() in
the kernel's tcp_minisocks.c). `ss` sees those, between two looks; what it sees is put at the
segment that brought it about (RFC 9293, section 3.10) where there is one, a listener's beginning
and end at the call and the process's end, and all else at the look. SYN-RECV begins with the SYN:
until the handshake is done, the tracepoint sees none of it (inet_reqsk_alloc()).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from labctl.probes.observations import Segment
from labctl.probes.sockets import Address, Ends, SsParseError, State
from labctl.record.events import CallEvent, ProcessEvent, SocketsEvent, StateEvent
from labctl.record.history import History
from labctl.record.traced import told

FIN_SENT = (State.FIN_WAIT_1, State.LAST_ACK)
FIN_CAME = (State.CLOSE_WAIT, State.CLOSING)


@dataclass(frozen=True, slots=True)
class Change:
    """A socket is in `state` from `t` on, in seconds of the run; None is the end of it. `exact`
    where the kernel said so, otherwise it was seen by a look at `seen`. `by_syn`: when a SYN came,
    as its answer tells."""

    t: float
    host: str
    ends: Ends
    state: str | None
    exact: bool
    seen: float
    by_syn: bool = False


@dataclass(slots=True)
class _Track:
    """One socket so far: `traced` if the tracepoint tells of it, `mini` while it is one that the
    tracepoint has seen close and `ss` still sees."""

    traced: bool = False
    mini: bool = False
    inode: int = 0
    changes: list[Change] = field(default_factory=list)

    @property
    def state(self) -> str | None:
        return self.changes[-1].state if self.changes else None


def changes(
    history: History, segments: Sequence[Segment], chosen: Callable[[Ends], bool] = lambda _: True
) -> list[Change]:
    """All changes of all sockets, or of the `chosen` ones, in order of time."""
    tracks: dict[tuple[str, Ends], _Track] = defaultdict(_Track)
    live: dict[str, dict[Ends, None]] = defaultdict(dict)  # what has a state now, of each host
    nexts = _next_looks(history)
    causes = _Causes(history, segments)
    heard: list[StateEvent | SocketsEvent] = [
        event for host in history.hosts for event in told(history, host).events
    ]
    heard += [e for e in history.events if isinstance(e, SocketsEvent)]
    for event in heard:
        if isinstance(event, StateEvent) and chosen(ends_of(event)):
            tracks[event.host, ends_of(event)].traced = True
    for event in sorted(heard, key=lambda e: e.t):
        if isinstance(event, StateEvent):
            if not chosen(ends_of(event)):
                continue
            _transition(event, tracks)
            touched: Iterable[Ends] = [ends_of(event)]
        else:
            hosts = list(live[event.host])
            touched = _look(event, tracks, hosts, nexts[id(event)], causes, chosen)
        for key in touched:
            if (event.host, key) in tracks and tracks[event.host, key].state:
                live[event.host][key] = None
            else:
                live[event.host].pop(key, None)
    found = (change for track in tracks.values() for change in _requested(track.changes, causes))
    return sorted(found, key=lambda change: change.t)


def _requested(found: Sequence[Change], causes: _Causes) -> Iterator[Change]:
    """The changes of a socket, with SYN-RECV from the SYN on wherever the kernel told what came of
    that: it tells of SYN-RECV when the handshake is done, or (as 6.1) not at all."""
    before: Change | None = None
    for change in found:
        fresh = before is None or before.state is None
        if fresh and change.exact and change.state in (State.SYN_RECV, State.ESTAB):
            t = causes.request(change.host, change.ends, before.t if before else 0.0, change.t)
            if t is not None:
                before = replace(change, t=t, state=State.SYN_RECV, exact=False, by_syn=True)
                yield before
                if change.state == State.SYN_RECV:
                    continue
        yield change
        before = change


def _transition(event: StateEvent, tracks: dict[tuple[str, Ends], _Track]) -> None:
    ends = ends_of(event)
    track = tracks[event.host, ends]
    track.mini = False
    state = None if event.new == State.UNCONN else event.new
    if state != track.state:
        track.changes.append(Change(event.t, event.host, ends, state, True, event.t))


def _look(
    event: SocketsEvent,
    tracks: dict[tuple[str, Ends], _Track],
    live: Sequence[Ends],
    before: float,
    causes: _Causes,
    chosen: Callable[[Ends], bool],
) -> Iterable[Ends]:
    """What a look adds: all of a socket that is not traced, and of one that is what it is after
    the kernel's last word on it. `live` are the host's sockets until now, `before` is when it was
    looked at next. Returns the sockets that it tells of."""
    try:
        found = ((s.ends, s) for s in event.sockets if s.state is not State.UNCONN)
        sockets = {key: socket for key, socket in found if chosen(key)}
    except SsParseError:
        return []
    host = event.host
    seen = {key: str(socket.state) for key, socket in sockets.items()}
    for key, socket in sockets.items():
        track = tracks[host, key]
        other = socket.inode and track.inode and socket.inode != track.inode
        if other and track.state and not track.traced:  # One ended and the next began unseen.
            after = track.changes[-1].t
            t = causes.find(host, key, track.state, None, after, before)
            track.changes.append(Change(t or event.t, host, key, None, False, event.t))
        track.inode = socket.inode or track.inode
    for key in live:
        seen.setdefault(key, "")
    for key, word in seen.items():
        track, state = tracks[host, key], word or None
        last = track.changes[-1] if track.changes else None
        if state == track.state or (last and last.t > event.t):
            continue
        if track.traced and not track.mini:
            if last and last.state is None:  # A minisocket took over from the full one.
                track.mini = True
                track.changes.pop()
                if state != track.state:
                    track.changes.append(Change(last.t, host, key, state, False, event.t))
                continue
            if last or state != State.SYN_RECV:
                continue
        after = last.t if last else 0.0
        t = causes.find(host, key, track.state, state, after, before)
        t = event.t if t is None else t
        track.changes.append(Change(t, host, key, state, False, event.t))
    return seen


def _next_looks(history: History) -> dict[int, float]:
    """When the host of each look was looked at next, by the look's id()."""
    upcoming: dict[str, float] = {}
    found: dict[int, float] = {}
    looks = [e for e in history.events if isinstance(e, SocketsEvent)]
    for look in sorted(looks, key=lambda e: e.t, reverse=True):
        found[id(look)] = upcoming.get(look.host, float("inf"))
        upcoming[look.host] = look.t
    return found


def ends_of(event: StateEvent) -> Ends:
    """The ends of a socket that went from one state to another, spelled so too."""
    remote = _plain(event.remote)
    return _plain(event.local), "" if remote.endswith((":0", ":None")) else remote


@lru_cache(1 << 16)
def _plain(endpoint: str) -> str:
    host, _, port = endpoint.rpartition(":")
    return Address(host.strip("[]"), int(port) if port.isdigit() else None).end


class _Causes:
    """What can have brought a state about: the segments of each socket; for listeners calls of
    listen() and ends of processes."""

    def __init__(self, history: History, segments: Iterable[Segment]) -> None:
        self._listens: dict[str, list[float]] = defaultdict(list)
        self._ends: dict[str, list[float]] = defaultdict(list)
        for event in history.events:
            if isinstance(event, ProcessEvent) and event.phase != "start":
                self._ends[event.host].append(event.t)
            elif isinstance(event, CallEvent) and event.name == "listen" and event.phase == "done":
                self._listens[event.host].append(event.t)
        self._cookies = {
            host for host in history.sockets if history.growth(host, "TcpExtSyncookiesSent")
        }
        self._by_socket: Mapping[tuple[str, Ends], list[tuple[float, bool, Segment]]]
        found = defaultdict(list)
        for segment in segments:
            if segment.sender and segment.t is not None:
                key = (segment.sender, (segment.source, segment.target))
                found[key].append((segment.t, True, segment))
            if segment.receiver and segment.arrived is not None:
                key = (segment.receiver, (segment.target, segment.source))
                found[key].append((segment.arrived, False, segment))
        for moments in found.values():
            moments.sort(key=lambda moment: moment[0])
        self._by_socket = found

    def request(self, host: str, key: Ends, after: float, before: float) -> float | None:
        """When the SYN came, between two moments, that a socket first answered by a SYN ACK. With
        SYN cookies nothing is kept for it, so there is none."""
        syn = None
        moments = self._by_socket.get((host, key), [])
        for t, sent, segment in moments[bisect_left(moments, after, key=lambda m: m[0]) :]:
            if t > before:
                break
            if "SYN" not in segment.flags:
                continue
            if not sent:
                syn = t
            elif "ACK" in segment.flags:
                return None if host in self._cookies else syn
        return None

    def find(
        self, host: str, key: Ends, old: str | None, new: str | None, after: float, before: float
    ) -> float | None:
        """When, between two moments, that happened which took a socket to a state."""
        if not key[1]:
            times = (self._listens if new else self._ends)[host]
            return next((t for t in times if after < t < before), None)
        moments = self._by_socket.get((host, key), [])
        start = bisect_left(moments, after, key=lambda moment: moment[0])
        passed = ((t, sent, s) for t, sent, s in moments[start:] if t < before)
        return next(_causing(passed, old, new), None)


def _causing(
    passed: Iterable[tuple[float, bool, Segment]], old: str | None, new: str | None
) -> Iterator[float]:
    """The moments in `passed` at which RFC 9293 goes from one state to the other."""
    opened = old == State.SYN_SENT
    fin_end: int | None = None
    fin_came, acknowledged = old in (State.CLOSE_WAIT, State.LAST_ACK), old == State.FIN_WAIT_2
    known = old in FIN_SENT or old == State.CLOSING  # whose FIN left before
    for t, sent, segment in passed:
        flags = segment.flags
        if "RST" in flags:
            if new is None:
                yield t
            continue
        if sent:
            opened |= flags == ("SYN",)
            if "FIN" in flags:
                fin_end = segment.seq + segment.length + 1
            if (new == State.SYN_SENT and flags == ("SYN",)) or (
                new in FIN_SENT and "FIN" in flags
            ):
                yield t
            continue
        fin_came |= "FIN" in flags
        if "ACK" in flags and (known if fin_end is None else segment.ack >= fin_end):
            acknowledged = True
        if (
            (new == State.SYN_RECV and flags == ("SYN",))
            or (new == State.ESTAB and "ACK" in flags and ("SYN" in flags) == opened)
            or (new in FIN_CAME and "FIN" in flags)
            or (new == State.FIN_WAIT_2 and acknowledged)
            or (new == State.TIME_WAIT and acknowledged and fin_came)
            or (new is None and old == State.LAST_ACK and acknowledged)
        ):
            yield t
