"""What the kernel's tracepoint reported, by connection, and which of it belongs to the lab.

The tracepoint reports all sockets of the machine, and knows no network namespace: if somebody else
uses the lab's addresses, that shows up too. So a report counts only if a second probe confirms it:
a look of `ss` or a capture on that host, from about that time, with the same two ends.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache

from labctl.ground.data import dataclass
from labctl.probes.observations import Segment
from labctl.probes.packed import Made, Segments
from labctl.probes.sockets import Ends, State, StateName
from labctl.probes.traffic import Chosen
from labctl.record.ends import ends_of
from labctl.record.events import SocketsEvent, StateEvent
from labctl.record.history import History

NEAR = 0.1
"""Seconds between a report of the tracepoint and what another probe saw of it, at most. An agent
looks within that time after a change."""


class Life(Made[StateEvent]):
    """The transitions of one full socket. Few lives differ in more than their times and ends."""

    __slots__ = ("_socket", "_times", "_walk")

    def __init__(self, events: Iterable[StateEvent] = ()) -> None:
        self._socket: tuple[str, str, str] = "", "", ""
        self._times, self._walk = array("d"), _once(())
        for event in events:
            self.append(event)

    def append(self, event: StateEvent) -> None:
        """Takes in the next one."""
        if not self._walk:
            self._socket = event.host, event.local, event.remote
        self._times.append(event.t)
        self._walk = _once((*self._walk, (event.old, event.new)))

    @property
    def begun(self) -> float:
        """When its first transition was."""
        return self._times[0]

    @property
    def state(self) -> StateName:
        """The state that it came to last."""
        return self._walk[-1][1]

    @property
    def born(self) -> bool:
        """Whether its first transition is known. Older kernels do not report that a full socket
        begins in SYN-RECV, where it stays for microseconds (inet_csk_clone_lock())."""
        return self._walk[0][0] in (State.UNCONN, State.LISTEN, State.SYN_RECV)

    @property
    def over(self) -> bool:
        """Whether it is no full socket any more."""
        return self.state == State.UNCONN

    @property
    def listens(self) -> bool:
        """Whether it is a listener, and no connection."""
        return State.LISTEN in self._walk[0] and self._walk[0][1] != State.SYN_RECV

    def around(self, t: float) -> bool:
        """Whether it was there at about that time."""
        return self.begun - NEAR <= t and (not self.over or t <= self._times[-1] + NEAR)

    def overlaps(self, other: Life) -> bool:
        """Whether another one was there at the same time."""
        at_once = other.begun < self._times[-1] and self.begun < other._times[-1]
        return at_once and other is not self

    def _at(self, number: int) -> StateEvent:
        return StateEvent(self._times[number], *self._socket, *self._walk[number])

    def __len__(self) -> int:
        return len(self._times)


Walk = tuple[tuple[StateName, StateName], ...]


@lru_cache(1 << 10)
def _once(walk: Walk) -> Walk:
    return walk


@dataclass(frozen=True)
class Told:
    """What the tracepoint reported of a host's sockets. `others` counts the lives that no other
    probe confirms."""

    lives: dict[Ends, list[Life]]
    listeners: Sequence[Life]
    others: int

    @property
    def events(self) -> list[StateEvent]:
        """All transitions, in order of time."""
        each = [life for lives in self.lives.values() for life in lives]
        found = (event for life in (*each, *self.listeners) for event in life)
        return sorted(found, key=lambda event: event.t)


def traced_lives(history: History, host: str, chosen: Chosen | None = None) -> Told:
    """What the tracepoint reported of a host, up to the history's end, or of the `chosen`
    connections and listeners."""
    found = _told(history, host, chosen)
    upto = len(history.events), history.now, chosen
    history.derived[f"told {host}"] = upto, replace(found, lives={})
    return found


def traced_beside(history: History, host: str, chosen: Chosen | None = None) -> Told:
    """The same without the lives of connections, which take much memory."""
    upto, found = history.derived.get(f"told {host}", (None, None))
    if upto != (len(history.events), history.now, chosen):
        found = traced_lives(history, host, chosen)
    told: Told = found
    return told


def _told(history: History, host: str, chosen: Chosen | None) -> Told:
    wire = Wire(history, host, chosen)
    # All connections of a lab are younger than its trace. One that was already there belongs to
    # somebody who had these addresses before; unless the report of its birth was lost.
    unborn = any((host, probe) in history.trouble for probe in ("ss", "trace"))
    lives = _lives(history.events.of(StateEvent, host=host), wire, chosen)
    doubtful = [(key, life) for key, each in lives.items() for life in each if life.born or unborn]
    looks = [look for look in history.events.of(SocketsEvent) if look.host == host]
    seen = _seen(doubtful, looks)
    kept = [(key, life) for key, life in doubtful if id(life) in seen or wire.crossed(key, life)]
    connections: dict[Ends, list[Life]] = defaultdict(list)
    for key, life in kept:
        if not life.listens:
            connections[key].append(life)
    listeners = [life for _, life in kept if life.listens]
    return Told(connections, listeners, len(doubtful) - len(kept))


def _seen(doubtful: Iterable[tuple[Ends, Life]], looks: Iterable[SocketsEvent]) -> set[int]:
    """The lives that a look confirms, by id(). There may be thousands of both, so this compares
    only words of a look: each end is a word."""
    found: set[int] = set()
    waiting = sorted(doubtful, key=lambda pair: pair[1].begun, reverse=True)
    there: list[tuple[Ends, Life]] = []
    for look in sorted(looks, key=lambda look: look.t):
        while waiting and waiting[-1][1].begun - NEAR <= look.t:
            there.append(waiting.pop())
        there = [(key, life) for key, life in there if life.around(look.t)]
        if not there:
            continue
        words = set(map(_bare, look.text.split()))
        left = []
        for key, life in there:
            listener = life.listens and _listens(key[0], words)
            if listener or words.issuperset(map(_bare, key)):
                found.add(id(life))
            else:
                left.append((key, life))
        there = left
    return found


def _bare(end: str) -> str:
    """An end as `ss` or the tracepoint writes it, without brackets, and with plain IPv4
    addresses."""
    return end.replace("[::ffff:", "").replace("[", "").replace("]", "")


def _listens(local: str, words: set[str]) -> bool:
    port = local.rpartition(":")[2]
    return "LISTEN" in words and any(word.endswith(f":{port}") for word in words)


class Wire:
    """The segments on a host's wire, or those of `chosen` connections. Reading captures takes time,
    so this reads them only when asked."""

    def __init__(self, history: History, host: str, chosen: Chosen | None = None) -> None:
        self._history, self._host, self._chosen = history, host, chosen
        self.complete = history.captured(host)

    @cached_property
    def _segments(self) -> Segments:
        return self._history.segments(self._chosen)

    def flow(self, ends: Ends, among: Segments | None = None) -> list[Segment]:
        """The segments that the host sent or received from one end to another."""
        return [
            segment
            for segment in (among or self._segments).of(ends)
            if self._host in (segment.sender, segment.receiver)
            and not segment.only_through(self._host)
        ]

    @property
    def connections(self) -> set[Ends]:
        """The ends of all connections with a segment that left or came, the host's own end first. A
        host that only sent RSTs had no socket."""
        found = set()
        for ends in self._segments.ends:
            if segments := self.flow(ends):
                key = ends if segments[0].sender == self._host else ends[::-1]
                said = self.flow(key)
                if not said or any("RST" not in segment.flags for segment in said):
                    found.add(key)
        return found

    @cached_property
    def _told_of(self) -> set[Ends]:
        """The ends of all that the tracepoint reported of the host."""
        events = self._history.events.of(StateEvent, host=self._host)
        return {(event.local, event.remote) for event in events}

    @cached_property
    def _by_end(self) -> Mapping[str, Sequence[Ends]]:
        found: dict[str, list[Ends]] = defaultdict(list)
        for _, ends in self._history.first_captured():
            found[ends[0]].append(ends)
            found[ends[1]].append(ends)
        return found

    def crossed(self, key: Ends, life: Life) -> bool:
        """Whether a segment between these ends left or came while a socket lived. The host's own
        NAT may change the end that is not the opener's before a capture sees it. Then the
        tracepoint reported none of the segment's ends."""
        if self._around(life, (key, key[::-1]), self._segments):
            return True
        opener = key[0] if life[0].old == State.UNCONN else key[1]
        others = {
            ends
            for ends in self._by_end.get(opener, ())
            if life.born and not {ends, ends[::-1]} & self._told_of
        }
        if not others:
            return False
        chosen = self._chosen and others.__contains__
        return self._around(life, others, self._history.segments(chosen))

    def _around(self, life: Life, between: Iterable[Ends], among: Segments) -> bool:
        return any(
            life.around(t)
            for ends in between
            for segment in self.flow(ends, among)
            for t in (segment.t, segment.arrived)
            if t is not None
        )

    def first_syn(self, key: Ends, until: float) -> float | None:
        """When the connection that was established, or refused, at `until` sent its first SYN."""
        sent = [syn for syn in self._history.syns(self._host, key) if syn[0] <= until]
        return next((t for t, number in sent if number == sent[-1][1]), None) if sent else None

    def end_taken(self, key: Ends, since: float, until: float) -> tuple[float, float] | None:
        """When the host accepted the FIN of its peer: its arrival, and its acknowledgement. An
        acknowledgement from before it came is for an old number, and does not count."""
        local, remote = key
        said = [segment for segment in self.flow((local, remote)) if segment.t is not None]
        for fin in self.flow((remote, local)):
            if "FIN" in fin.flags and fin.arrived is not None and since <= fin.arrived < until:
                for number, answer in enumerate(covering := _covering(said, fin)):
                    if answer.t is not None and answer.t >= fin.arrived:
                        if all(answer.base != before.base for before in covering[:number]):
                            return fin.arrived, answer.t
                        break
        return None


def _covering(said: Iterable[Segment], fin: Segment) -> list[Segment]:
    return [segment for segment in said if segment.ack > fin.seq + fin.length]


def _lives(
    events: Iterable[StateEvent], wire: Wire, chosen: Chosen | None
) -> dict[Ends, list[Life]]:
    found: dict[Ends, list[Life]] = defaultdict(list)
    opening: dict[Ends, list[StateEvent]] = defaultdict(list)
    opened: set[Ends] = set()  # others that chose their port before
    for event in sorted(events, key=lambda event: event.t):
        if event.old == event.new:
            continue  # tcp_close_state(): close() after shutdown() enters the same state once more
        host, _, port = event.local.rpartition(":")
        # tcp_v4_connect() enters SYN-SENT before it chooses a port, and may find none.
        if port == "0":
            if event.new == State.SYN_SENT:
                opening[host, event.remote].append(event)
            elif opening[host, event.remote]:
                opening[host, event.remote].pop()
            continue
        key = event.local, event.remote
        if chosen and not chosen(ends_of(event)):
            if event.new == State.SYN_SENT:
                opened.add(key)
            elif event.old == State.SYN_SENT and key not in opened:
                _begun(opening[host, event.remote], event, wire)
            elif event.old == State.SYN_SENT:
                opened.discard(key)
            continue
        lives = found[key]
        # Others on the machine may have the same ends at the same time: a transition goes on where
        # the last one of its socket led.
        going = [life for life in lives if not life.over]
        following = [life for life in going if life.state == event.old] or going
        born = event.old in (State.UNCONN, State.LISTEN) and event.new != State.UNCONN
        if not following or born:
            lives.append(Life())
            asked = opening[host, event.remote] if event.old == State.SYN_SENT else []
            if begun := _begun(asked, event, wire):
                lives[-1].append(replace(begun, local=event.local))
            following = lives
        following[-1].append(event)
    return found


def _begun(opening: list[StateEvent], event: StateEvent, wire: Wire) -> StateEvent | None:
    """Takes from those that had no port yet the one that has come out of SYN-SENT."""
    number = 0
    if len(opening) > 1:
        syn = wire.first_syn((event.local, event.remote), event.t)
        if syn is not None:
            number = max((i for i, e in enumerate(opening) if e.t <= syn), default=0)
    return opening.pop(number) if opening else None
