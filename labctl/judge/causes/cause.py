"""What a cause is, and what the rules that find causes look at."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from labctl.ground import errnos
from labctl.ground.data import dataclass
from labctl.judge.causes.conversations import Conversations
from labctl.judge.causes.descriptors import Descriptor, Descriptors
from labctl.language.scenario import Scenario
from labctl.language.steps import Pause, Resume, Sysctl
from labctl.language.steps.faults import Cut, Join
from labctl.probes.holders import Held
from labctl.probes.observations import Segment, begins, stays_inside
from labctl.probes.packed import Segments
from labctl.probes.sockets import Ends, Socket, SsParseError, State
from labctl.record.events import (
    CallEvent,
    FateEvent,
    ProcessEvent,
    ResetEvent,
    SocketsEvent,
    StepEvent,
    UnseenEvent,
)
from labctl.record.history import History
from labctl.record.kept import Timelines
from labctl.record.listeners import listeners
from labctl.record.looks import Looks
from labctl.record.timelines import Timeline, unsorted


@dataclass(frozen=True)
class Cause:
    """Why one connection, one bind or one listener came to what it did.

    `id` names the rule that found it. `at` is in seconds of the run. `connection` has the ends of a
    connection, `LOCAL -> REMOTE`. `text` is the whole cause as one sentence, `cure` what to do.
    `evidence` says by what it is known: lines of the record. `holders` says who held which of the
    sockets that it speaks of, as far as that is known. `refs` says where it is written: RFCs, man
    pages, functions of the kernel. If the record does not decide it, `certain` is false and
    `text` says what would."""

    id: str
    host: str
    at: float
    text: str
    cure: str = ""
    connection: str | None = None
    evidence: tuple[str, ...] = ()
    refs: tuple[str, ...] = ()
    certain: bool = True
    holders: tuple[Held, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As the result document has it."""
        found = asdict(self)
        return {**found, **{key: list(found[key]) for key in ("evidence", "refs", "holders")}}

    @property
    def brief(self) -> str:
        """The text, with the bare names of error numbers."""
        return errnos.bare(self.text)

    @property
    def sentence(self) -> str:
        """The text, and the cure."""
        return f"{self.text}; {self.cure}" if self.cure else self.text


Side = tuple[str, Timeline]
"""A connection as a host saw it."""


class Scene:
    """A history with its scenario, if that is known, and what several rules want to know of them,
    each thing reconstructed once."""

    def __init__(self, history: History, scenario: Scenario | None = None) -> None:
        self.history, self.scenario = history, scenario
        self._timelines: dict[str, Timelines] = {}
        self._looks: dict[str, list[SocketsEvent]] = {}
        self._sightings: dict[str, Looks] = {}
        self._listeners: dict[str, list[Timeline]] = {}

    @cached_property
    def segments(self) -> Segments:
        """All segments, in order of time."""
        return self.history.segments()

    @cached_property
    def translated(self) -> dict[tuple[str, Ends], Ends]:
        """The connections that a NAT passed on, by its host and the ends that it gave them."""
        return {
            (hop.host, name): (segment.source, segment.target)
            for segment in (self.segments if self.segments.ways else ()) if segment.way
            for hop in segment.way.hops for name in segment.way.names
        }  # fmt: skip

    @cached_property
    def conversations(self) -> Conversations:
        """The segments of each connection, in both directions."""
        return Conversations(self.segments)

    @cached_property
    def given_up(self) -> Counter[str | None]:
        """How many connections each host ended by a RST of its own accord, and so with an ACK."""
        found: Counter[str | None] = Counter()
        for segments in self.conversations:
            kept = {s.sender for s in segments if "RST" not in s.flags}
            gave = {s.sender for s in segments if {"RST", "ACK"} <= {*s.flags} and not s.crafted}
            found.update(gave & kept)
        return found

    def conversation(self, host: str, ends: Ends, t: float) -> list[Segment]:
        """The segments of the connection that a host had between these ends at that time."""
        for each in self.conversations.between(ends):
            if each[0].time <= t and each[0].scope in ("", host):
                return each
        return []

    def timelines(self, host: str) -> Timelines:
        """The life of each connection of a host."""
        if host not in self._timelines:
            self._timelines[host] = Timelines(unsorted(self.history, host))
        return self._timelines[host]

    def between(self, host: str, ends: Ends) -> list[Timeline]:
        """The lives of the connections that a host had between these ends, in order."""
        known = self.timelines(host)
        return [known[number] for number in known.of(ends)]

    def timeline(self, host: str, ends: Ends, t: float) -> Timeline | None:
        """The latest of those that had begun by then."""
        found = [e for e in self.between(host, ends) if e.spans[0].begin.earliest <= t]
        return found[-1] if found else None

    def opened(self, host: str, ends: Ends, t: float) -> bool | None:
        """Whether this host opened that connection, by its first SYN or state; None if neither is
        known."""
        for segment in self.conversation(host, ends, t):
            if begins(segment) and not segment.crafted:
                return segment.source == ends[0]
        timeline = self.timeline(host, ends, t)
        if timeline and timeline.states[0] in (State.SYN_SENT, State.SYN_RECV):
            return timeline.states[0] is State.SYN_SENT
        return None

    @cached_property
    def _pairs(self) -> list[tuple[float, tuple[tuple[str, int], ...]]]:
        """When each connection began, and the numbers of its timelines."""
        left: dict[tuple[str, Ends], list[tuple[str, int]]] = {}
        found: list[tuple[float, tuple[tuple[str, int], ...]]] = []
        for host in self.history.hosts:
            for number, timeline in enumerate(self.timelines(host)):
                scope = host if stays_inside(*timeline.ends) else ""
                mates = left.get((scope, timeline.ends[::-1]), [])
                each = ((mate, self.timelines(mate[0])[mate[1]]) for mate in mates)
                near = [(mate, other) for mate, other in each if _together(other, timeline)]
                if near:
                    mate, other = min(near, key=lambda m: abs(_start(m[1]) - _start(timeline)))
                    mates.remove(mate)
                    found.append((_start(other), (mate, (host, number))))
                else:
                    left.setdefault((scope, timeline.ends), []).append((host, number))
        found += [
            (_start(self.timelines(side[0])[side[1]]), (side,))
            for sides in left.values() for side in sides
        ]  # fmt: skip
        return sorted(found, key=lambda pair: pair[0])

    def pairs(self) -> Iterator[list[Side]]:
        """Each connection, by one or both of its sides."""
        for _, sides in self._pairs:
            yield [(host, self.timelines(host)[number]) for host, number in sides]

    @property
    def several(self) -> bool:
        """Whether there is more than one connection."""
        return len(self._pairs) > 1

    def sides(self, host: str, timeline: Timeline) -> list[Side]:
        """Both sides of a connection, or the one that is known."""
        numbers = self.timelines(host).of(timeline.ends)
        mine = {(host, n) for n in numbers if self.timelines(host)[n] == timeline}
        sides = next((sides for _, sides in self._pairs if mine & {*sides}), ())
        return [(host, self.timelines(host)[number]) for host, number in sides]

    def listeners(self, host: str) -> list[Timeline]:
        """The life of each listener of a host."""
        if host not in self._listeners:
            self._listeners[host] = listeners(self.history, host)
        return self._listeners[host]

    @cached_property
    def resets(self) -> list[ResetEvent]:
        """Each RST of which the kernel said why it sent it."""
        return [*self.history.events.of(ResetEvent)]

    @cached_property
    def fates(self) -> dict[tuple[str, Ends], list[FateEvent]]:
        """What the kernel says that it did with segments, by host and connection."""
        found: dict[tuple[str, Ends], list[FateEvent]] = defaultdict(list)
        for event in self.history.events.of(FateEvent):
            found[event.host, (event.local, event.remote)].append(event)
        return found

    def kept_back(self, host: str, remote: str) -> bool:
        """Whether a rule of that host kept back what it sent to that end: then sending it again
        fails with EPERM (nf_hook_slow() in net/netfilter/core.c)."""
        return any(
            fate.did == "retransmit" and fate.reason == "EPERM"
            for (where, ends), fates in self.fates.items() if (where, ends[1]) == (host, remote)
            for fate in fates
        )  # fmt: skip

    def calls(self, **having: object) -> Iterator[CallEvent]:
        """The calls that ended, of a kind that has these values; see `Rows.numbers`."""
        return self.history.events.of(CallEvent, phase="done", **having)

    def look(self, host: str, t: float, soon: float) -> SocketsEvent | None:
        """What was there then: a look within `soon` seconds after it, or the last before."""
        looks = self.looks(host)
        number = bisect_left(looks, t, key=lambda look: look.t)
        if number < len(looks) and looks[number].t <= t + soon:
            return looks[number]
        return looks[number - 1] if number else None

    def looks(self, host: str) -> list[SocketsEvent]:
        """What `ss` showed there, look by look, as far as it can be read."""
        if not self._looks:
            for event in self.history.events.of(SocketsEvent):
                if readable(event):
                    self._looks.setdefault(event.host, []).append(event)
        return self._looks.get(host, [])

    def seen(self, host: str, ends: Ends) -> list[tuple[float, Socket]]:
        """When looks showed a connection, and its socket then."""
        if host not in self._sightings:
            self._sightings[host] = Looks(self.history, host)
        return list(self._sightings[host].shown(ends))

    def captured(self, host: str | None) -> bool:
        """Whether all segments of a host were captured."""
        return host in self.history.hosts and self.history.captured(str(host))

    def grown(self, host: str, *counters: str) -> int:
        """By how much these counters have grown, all together."""
        return sum(self.history.growth(host, counter) or 0 for counter in counters)

    def setting(self, host: str, key: str, t: float) -> str | None:
        """What the scenario had set a sysctl of a host to by then; None if nothing says so."""
        if self.scenario is None:
            return None
        value = self.scenario.hosts[host].sysctls.get(key) if host in self.scenario.hosts else None
        for event in self.history.events.of(StepEvent):
            if event.t > t:
                break
            if event.outcome == "done":
                step = self.scenario.steps[event.index]
                if isinstance(step, Sysctl):
                    value = step.sysctl.get(host, {}).get(key, value)
        return value

    def cut_off(self, host: str, t: float) -> float | None:
        """Since when a host's link was down then, by the scenario's steps; None if it was not."""
        since, names = None, {host, *self.history.networks.only(host)}
        for event in self.history.events.of(StepEvent) if self.scenario else ():
            if event.outcome == "done" and event.t <= t:
                match self.scenario.steps[event.index] if self.scenario else None:
                    case Cut(cut=name) if name in names:
                        since = event.t if event.moment is None else event.moment
                    case Join(join=name) if name in names:
                        since = None
        return since

    def paused(self, process: str, t: float) -> bool:
        """Whether a step had frozen a process then."""
        found = False
        for event in self.history.events.of(StepEvent) if self.scenario else ():
            if event.outcome == "done" and event.t <= t:
                match self.scenario.steps[event.index] if self.scenario else None:
                    case Pause(pause=name) if name == process:
                        found = True
                    case Resume(resume=name) if name == process:
                        found = False
        return found

    def address(self, name: str, viewer: str) -> str:
        """What a name in a host's call means: an address of the lab's, or the name itself."""
        host, dot, six = name.partition(".v6")
        networks, lab = self.history.networks, self.history.lab
        if {viewer, host} <= {each.name for each in networks.hosts}:
            name = f"{host}.{networks.meeting(viewer, host)}{dot}{six}"
        return lab.addresses.get(name, name) if lab else name

    def uid(self, process: str) -> int | None:
        """The user that a process runs as; None if that is its image's own, or not known."""
        spec = self.scenario.processes.get(process) if self.scenario else None
        if spec is None or (spec.uid is None and spec.image):
            return None
        return spec.uid or 0

    @cached_property
    def descriptors(self) -> Descriptors:
        """The sockets that processes opened by calls."""
        events = self.history.events.of(ProcessEvent, CallEvent, UnseenEvent)
        return Descriptors(events, self._begun)

    def _begun(self, host: str, ends: Ends, t: float) -> float:
        timeline = self.timeline(host, ends, t)
        return min(t, timeline.spans[0].begin.at) if timeline else t

    @cached_property
    def _connected(self) -> dict[tuple[str, Ends], list[Descriptor]]:
        found: dict[tuple[str, Ends], list[Descriptor]] = defaultdict(list)
        for each in self.descriptors.all:
            if ends := each.ends:
                found[each.host, ends].append(each)
        return found

    def descriptor(self, host: str, ends: Ends, t: float) -> Descriptor | None:
        """The socket of that connection, if some process made or accepted it."""
        timeline = self.timeline(host, ends, t)
        since = timeline.spans[0].begin.earliest if timeline else 0.0
        found = [
            each for each in self._connected.get((host, ends), ())
            if (call := each.accepted or each.connected) and since <= call.t and each.made <= t
        ]  # fmt: skip
        return found[-1] if found else None

    @cached_property
    def _listening(self) -> list[Descriptor]:
        return [each for each in self.descriptors.all if each.listening < math.inf]

    def listening(self, host: str, local: str, t: float) -> Descriptor | None:
        """The listener at that end, or at that port of all addresses, if it is the only one."""
        port = local.rpartition(":")[2]
        found = [
            each for each in self._listening
            if each.host == host and each.listening <= t < each.closed
            and each.local in (local, f":{port}")
        ]  # fmt: skip
        return found[0] if len(found) == 1 else None

    def maker(self, host: str, ends: Ends, t: float) -> Descriptor | None:
        """The socket that a connection is, or the listener from which nobody has accepted it."""
        if found := self.descriptor(host, ends, t):
            return found
        if self.opened(host, ends, t):
            return None
        timeline = self.timeline(host, ends, t)
        return self.listening(host, ends[0], timeline.spans[0].begin.at if timeline else t)


def _start(timeline: Timeline) -> float:
    return timeline.spans[0].begin.at


def _together(one: Timeline, other: Timeline) -> bool:
    """Whether two may be the sides of one connection: they were there at the same time."""

    def bounds(timeline: Timeline) -> tuple[float, float]:
        end = timeline.spans[-1].end
        return timeline.spans[0].begin.earliest, end.latest if end else float("inf")

    (begin, end), (start, stop) = bounds(one), bounds(other)
    return begin <= stop and start <= end and one.local != one.remote


def readable(look: SocketsEvent) -> bool:
    """Whether a look says anything."""
    try:
        return look.came is not None
    except SsParseError:
        return False


def line(segment: Segment) -> str:
    """A segment as evidence. Of one that may still arrive nothing is said, as later it has."""
    told = segment._replace(pending=False, arrived=segment.time) if segment.pending else segment
    return f"{segment.time:.6f} {segment.sender or '?'}: {told.summary}"


def asked_for(rst: Segment, before: Sequence[Segment]) -> Segment | None:
    """The SYN that an RST answers by its number, with or without its data, if nothing came between:
    wherever the captures are, it is known by that (RFC 9293, section 3.10.7.1)."""
    last = before[-1] if before else None
    asks = last and begins(last) and last.source == rst.target
    answers = asks and last and rst.ack in (last.seq + 1, last.seq + 1 + last.length)
    return last if answers and "ACK" in rst.flags else None
