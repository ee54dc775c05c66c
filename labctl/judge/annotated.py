"""All captures of a run as one file for Wireshark: each host an interface, each packet with a
comment that says what labctl knows of it."""

from __future__ import annotations

import base64
import math
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from heapq import merge
from itertools import chain
from pathlib import Path
from sys import intern
from typing import Any

from labctl.ground.errors import UsageError
from labctl.ground.output import write_file
from labctl.ground.plain import plain
from labctl.ground.reading import MAX_RECORD, open_file
from labctl.judge.causes.descriptors import followed
from labctl.judge.result import RunResult
from labctl.probes.observations import Key, Observation, Segment
from labctl.probes.packed import Places
from labctl.probes.packets import ETHERNET, RECORD, read_packet
from labctl.probes.pairing import REPORTED
from labctl.probes.pcapng import INBOUND, OUTBOUND, Packet, blocks, head
from labctl.probes.segments import FILE_HEADER
from labctl.probes.sockets import State
from labctl.record.events import (
    CallEvent,
    LabEvent,
    LossEvent,
    ProcessEvent,
    StepEvent,
    UnseenEvent,
)
from labctl.record.history import SINCE, WATCH, History
from labctl.record.kept import Timelines
from labctl.record.moments import Moment
from labctl.record.timelines import CLOCKS, CLOSED, Timeline, unsorted

NAME = "run.pcapng"
"""The file of a run's folder."""
MOST = 4 << 20
"""Bytes of captures up to which every run writes that file; `labctl report` has no such limit."""
IP_TYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
NANO = 1_000_000_000
LATE = 0.05
"""Seconds between a packet and the state that it caused, at most: either may be told late."""
DATA = "data"
Spot = tuple[str, str, str, float]
"""A packet: its host, its ends, and when it passed there."""
ACTS: Mapping[str, tuple[str, ...]] = {
    "SYN": ("connect",),
    "FIN": ("close", "shutdown", "exit"),
    "RST": ("close", "shutdown", "exit", "connect"),
    DATA: ("send", "write", "sendto", "sendmsg", "writev"),
}
"""The calls that send a segment, by what it has."""
SENDING = {name for names in ACTS.values() for name in names}
BEFORE: Mapping[str, tuple[tuple[bool, str], ...]] = {
    State.SYN_SENT: ((True, "SYN"),),
    State.SYN_RECV: ((False, "SYN"),),
    State.ESTAB: ((False, "ACK"),),
    State.FIN_WAIT_1: ((True, "FIN"),),
    State.FIN_WAIT_2: ((False, "ACK"),),
    State.CLOSE_WAIT: ((False, "FIN"),),
    State.LAST_ACK: ((True, "FIN"),),
    State.CLOSING: ((False, "FIN"),),
    State.TIME_WAIT: ((False, "FIN"), (False, "ACK")),
    CLOSED: ((False, "RST"), (True, "RST")),
}
"""What a host sent (True) or received that brings it into a state (RFC 9293, section 3.3.2)."""


def write(run: RunResult) -> None:
    """Writes the file into a run's folder, unless its captures are large or nothing was captured.
    Raises OSError and UsageError."""
    size = sum(path.stat().st_size for path in run.folder.glob("*.pcap"))
    if run.history.lab is not None and 0 < size <= MOST:
        write_file(run.folder / NAME, capture(run))


def capture(run: RunResult) -> Iterator[bytes]:
    """The file, part by part. Raises UsageError if there are no captures, or they can't be read."""
    captures = sorted(run.folder.glob("*.pcap"))
    if run.history.lab is None or not captures:
        raise UsageError(f"{run.folder}: no packets were captured", "run it where captures work")
    hosts = [path.stem for path in captures]
    names = {address: name for name, address in run.history.lab.addresses.items()}
    comments = _Comments(run.history)
    streams = [_packets(number, path, comments) for number, path in enumerate(captures)]
    packets = merge(*streams, comments.unseen(hosts), key=lambda packet: packet.at)
    words = [*_begun(run.history.lab), *(plain(cause.text) for cause in run.causes)]
    return chain([head(hosts, names, "\n".join(words))], blocks(packets))


def _begun(lab: LabEvent) -> Iterator[str]:
    """From when on a record of a watch has packets: what it watches began before."""
    if lab.backend == WATCH:
        yield f"packets from {lab.started} on"
    if since := lab.environment.get(SINCE):
        yield f"watched since {since}: earlier packets are in the records before, which may be gone"


def _packets(number: int, path: Path, comments: _Comments) -> Iterator[Packet]:
    """The frames of a capture, in their order."""
    host = path.stem
    with open_file(path, MAX_RECORD) as file:
        file.seek(len(FILE_HEADER))
        while len(begin := file.read(RECORD.size)) == RECORD.size:
            seconds, nanos, kept, length = RECORD.unpack(begin)
            frame = file.read(kept)
            found = read_packet(host, seconds + nanos / 1e9, frame[ETHERNET:], length - ETHERNET)
            direction, words = comments.of(found, found.at - comments.epoch) if found else (0, "")
            yield Packet(seconds * NANO + nanos, number, frame, length, direction, words)


class _Comments:
    """What is known of each packet. There may be hundreds of thousands: what segments did is kept
    by their numbers, in few bytes."""

    def __init__(self, history: History) -> None:
        self._history, self._segments = history, history.segments()
        self.epoch = history.lab.epoch if history.lab else 0.0
        self._steps = [event for event in history.events.of(StepEvent) if event.phase == "begin"]
        self._texts = Places()
        nothing = self._texts[()]
        self._sent, self._came = (
            array("I", [nothing]) * len(self._segments) for _ in ("left", "arrived")
        )  # the states that each brought about
        for host in history.hosts:
            self._turn(host)
            history.derived.clear()  # timelines take much memory
        self._losses: dict[Key, list[LossEvent]] = defaultdict(list)
        for loss in history.losses:
            if seen := loss.observation:
                self._losses[loss.host, *seen.key].append(loss)

    def of(self, seen: Observation, t: float) -> tuple[int, str]:
        """The direction of a packet at its host, and the words about it. `t`: when it passed there,
        by the run's clock."""
        host, ends = seen.host, (seen.source, seen.target)
        left = came = None
        words: list[str] = []
        for number, s in self._segments.seen_at(t):
            if (s.source, s.target) == ends and s.sender == host and s.t == t:
                left = s
                words += self._texts.things[self._sent[number]]
            if (s.source, s.target) == ends and s.receiver == host and s.arrived == t:
                came = s
                words += self._texts.things[self._came[number]]
        losses = self._losses.get((seen.host, *seen.key), ())
        loss = next((e for e in losses if abs(e.t - t) <= REPORTED), None)
        if left:
            words += [mark for mark in left.marks if mark != "injected"]
            words += ["crafted by a step"] if left.crafted else self._call(left)
        elif came and came.t is None:
            words.append("nobody in the lab sent it")
        words += [f"lost by step {loss.drop + 1}"] if loss else []
        words += self._step(t)
        return OUTBOUND if left else INBOUND if came or loss else 0, plain("; ".join(words))

    def unseen(self, hosts: Sequence[str]) -> Iterator[Packet]:
        """What steps lost as it left, which captures do not see."""
        told: dict[tuple[Any, ...], list[LossEvent]] = defaultdict(list)
        for loss in self._history.losses:
            if seen := loss.observation:
                told[loss.host, seen.source, seen.target, loss.drop].append(loss)
        for s in self._segments if told else ():
            host, t = s.sender, s.t
            if host not in hosts or t is None:
                continue
            near = [
                (abs(loss.t - t), loss.data, seen)
                for loss in told.get((host, s.source, s.target, s.dropped), ())
                if (seen := loss.observation) and abs(loss.t - t) <= REPORTED
            ]
            if near:
                _, encoded, seen = min(near, key=lambda each: each[0])
                data = base64.b64decode(encoded)
                direction, words = self.of(seen, t)
                yield Packet(
                    round((t + self.epoch) * NANO), hosts.index(host),
                    bytes(12) + IP_TYPES[data[0] >> 4] + data, ETHERNET + len(data),
                    direction, words,
                )  # fmt: skip

    def _step(self, t: float) -> list[str]:
        """The step during which, or after which, something happened."""
        number = bisect_right(self._steps, t, key=lambda step: step.t)
        if not number:
            return []
        step = self._steps[number - 1]
        return [f"step {step.index + 1}: {step.text}"]

    def _call(self, segment: Segment) -> list[str]:
        """The call that sent a segment for the first time."""
        kind = next((kind for kind in ACTS if kind in segment.flags), DATA * bool(segment.length))
        if not kind or segment.retransmitted or segment.probe or segment.t is None:
            return []
        calls = self._calls.get((segment.sender, segment.source, segment.target), ())
        words = (
            self._texts.things[text] for began, name, text in reversed(calls)
            if name in ACTS[kind] and began <= segment.t + CLOCKS
        )  # fmt: skip
        return [*next(words, ())]

    @cached_property
    def _calls(self) -> dict[tuple[str | None, str, str], list[tuple[float, str, int]]]:
        """Calls that send, by host and connection: when each began, its name, and its words."""
        found: dict[tuple[str | None, str, str], list[tuple[float, str, int]]] = defaultdict(list)
        begun: dict[tuple[str, int], float] = {}
        events = self._history.events.of(ProcessEvent, CallEvent, UnseenEvent)
        for event, mine in followed(events):
            if event.phase == "enter":
                begun[event.process, event.task] = event.t
                continue
            began = begun.pop((event.process, event.task), event.t)
            if event.name in SENDING and mine and mine.ends:
                text = self._texts[f"{event.process}: {event.call}",]
                local, peer = map(intern, mine.ends)
                found[event.host, local, peer].append((began, event.name, text))
        return found

    def _turn(self, host: str) -> None:
        """Notes the states of a host that its packets brought about."""
        for timeline in Timelines(unsorted(self._history, host)):
            traffic: dict[bool, list[tuple[Spot, int, Segment]]] = {True: [], False: []}
            source, target = timeline.ends
            numbers = self._segments.numbers(timeline.ends)
            for n, s in self._segments.numbered(numbers):
                if s.sender == host and s.t is not None:
                    traffic[True].append(((host, source, target, s.t), n, s))
            numbers = self._segments.numbers(timeline.ends[::-1])
            for n, s in self._segments.numbered(numbers):
                if s.receiver == host and s.arrived is not None:
                    traffic[False].append(((host, target, source, s.arrived), n, s))
            for before, state, moment in _turns(timeline):
                spots = [
                    (abs(spot[3] - moment.at), spot, number, sent)
                    for sent, flag in _ways(before, state)
                    for spot, number, segment in traffic[sent]
                    if flag in segment.flags
                    and moment.earliest - LATE <= spot[3] <= moment.latest + _late(segment)
                ]
                if spots and moment.latest < math.inf:
                    *_, number, sent = min(spots)
                    how = " (inferred)" if timeline.inferred else ""
                    side = self._sent if sent else self._came
                    known = self._texts.things[side[number]]
                    side[number] = self._texts[(*known, f"{host}: {state}{how}")]


def _late(segment: Segment) -> float:
    """By how much a packet may be told later than the state that it caused, in seconds. If a step
    lost it as it left, its moment is that of the report."""
    return LATE if segment.dropped is None else REPORTED


def _turns(timeline: Timeline) -> Iterator[tuple[str, str, Moment]]:
    """The states of a connection: the one before, the next, and when."""
    before = ""
    for span in timeline.spans:
        yield before, span.state, span.begin
        before = span.state
    if end := timeline.spans[-1].end:
        yield before, CLOSED, end


def _ways(before: str, state: str) -> tuple[tuple[bool, str], ...]:
    acknowledged = state == CLOSED and before in (State.LAST_ACK, State.CLOSING)
    return (*BEFORE.get(state, ()), *(((False, "ACK"),) if acknowledged else ()))
