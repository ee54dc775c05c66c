"""All captures of a run as one file for Wireshark: each host an interface, each packet with a
comment that says what labctl knows of it."""

from __future__ import annotations

import base64
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from heapq import merge
from pathlib import Path
from typing import Any

from labctl.ground.errors import UsageError
from labctl.ground.plain import plain
from labctl.ground.reading import MAX_RECORD, read_file
from labctl.judge.causes.cause import Scene
from labctl.judge.result import RunResult
from labctl.probes.observations import Key, Observation, Segment
from labctl.probes.packets import ETHERNET, RECORD, read_packet
from labctl.probes.pairing import REPORTED
from labctl.probes.pcapng import INBOUND, OUTBOUND, Packet, blocks, head
from labctl.probes.segments import FILE_HEADER
from labctl.probes.sockets import Ends, State
from labctl.record.events import CallEvent, LabEvent, LossEvent, StepEvent
from labctl.record.history import SINCE, WATCH
from labctl.record.moments import Moment
from labctl.record.timelines import CLOCKS, CLOSED, Timeline

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
        (run.folder / NAME).write_bytes(capture(run))


def capture(run: RunResult) -> bytes:
    """The file. Raises UsageError if there are no captures, or they can't be read."""
    captures = sorted(run.folder.glob("*.pcap"))
    if run.history.lab is None or not captures:
        raise UsageError(f"{run.folder}: no packets were captured", "run it where captures work")
    hosts = [path.stem for path in captures]
    names = {address: name for name, address in run.history.lab.addresses.items()}
    comments = _Comments(Scene(run.history))
    streams = [_packets(number, path, comments) for number, path in enumerate(captures)]
    packets = merge(*streams, comments.unseen(hosts), key=lambda packet: packet.at)
    words = [*_begun(run.history.lab), *(plain(cause.text) for cause in run.causes)]
    return b"".join([head(hosts, names, "\n".join(words)), *blocks(packets)])


def _begun(lab: LabEvent) -> Iterator[str]:
    """From when on a record of a watch has packets: what it watches began before."""
    if lab.backend == WATCH:
        yield f"packets from {lab.started} on"
    if since := lab.environment.get(SINCE):
        yield f"watched since {since}: earlier packets are in the records before, which may be gone"


def _packets(number: int, path: Path, comments: _Comments) -> Iterator[Packet]:
    """The frames of a capture, in their order."""
    records, begin, host = read_file(path, MAX_RECORD), len(FILE_HEADER), path.stem
    while begin + RECORD.size <= len(records):
        seconds, nanos, kept, length = RECORD.unpack_from(records, begin)
        begin += RECORD.size + kept
        frame = records[begin - kept : begin]
        found = read_packet(host, seconds + nanos / 1e9, frame[ETHERNET:], length - ETHERNET)
        direction, words = comments.of(found, found.at - comments.epoch) if found else (0, "")
        yield Packet(seconds * NANO + nanos, number, frame, length, direction, words)


class _Comments:
    """What is known of each packet."""

    def __init__(self, scene: Scene) -> None:
        self._scene, self._history = scene, scene.history
        self.epoch = scene.history.lab.epoch if scene.history.lab else 0.0
        self._steps = [
            event for event in scene.history.events.of(StepEvent) if event.phase == "begin"
        ]  # fmt: skip
        self._left: dict[Spot, Segment] = {}
        self._came: dict[Spot, Segment] = {}
        for s in scene.segments:
            if s.sender and s.t is not None:
                self._left[s.sender, s.source, s.target, s.t] = s
            if s.receiver and s.arrived is not None:
                self._came[s.receiver, s.source, s.target, s.arrived] = s
        self._losses: dict[Key, list[LossEvent]] = defaultdict(list)
        for loss in scene.history.losses:
            if seen := loss.observation:
                self._losses[loss.host, *seen.key].append(loss)

    def of(self, seen: Observation, t: float) -> tuple[int, str]:
        """The direction of a packet at its host, and the words about it. `t`: when it passed there,
        by the run's clock."""
        spot = seen.host, seen.source, seen.target, t
        left, came = self._left.get(spot), self._came.get(spot)
        losses = self._losses.get((seen.host, *seen.key), ())
        loss = next((e for e in losses if abs(e.t - t) <= REPORTED), None)
        words = list(self._states.get(spot, ()))
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
        for (host, source, target, t), segment in self._left.items():
            near = [
                (abs(loss.t - t), loss.data, seen)
                for loss in told.get((host, source, target, segment.dropped), ())
                if (seen := loss.observation) and abs(loss.t - t) <= REPORTED
            ]
            if near and host in hosts:
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
        ends = segment.source, segment.target
        calls = [
            call for began, call in self._calls.get((segment.sender, ends), ())
            if call.name in ACTS[kind] and began <= segment.t + CLOCKS
        ]  # fmt: skip
        return [f"{calls[-1].process}: {calls[-1].call}"] if calls else []

    @cached_property
    def _calls(self) -> dict[tuple[str | None, Ends], list[tuple[float, CallEvent]]]:
        """Calls by host and connection, and when each began."""
        found: dict[tuple[str | None, Ends], list[tuple[float, CallEvent]]] = defaultdict(list)
        begun: dict[tuple[str, int], float] = {}
        for event in self._history.events.of(CallEvent):
            if event.phase == "enter":
                begun[event.process, event.task] = event.t
            else:
                began = begun.pop((event.process, event.task), event.t)
                mine = self._scene.descriptors.of(event)
                if mine and mine.ends:
                    found[event.host, mine.ends].append((began, event))
        return found

    @cached_property
    def _states(self) -> dict[Spot, list[str]]:
        """The states that packets brought their hosts into."""
        traffic: dict[tuple[str, Ends, bool], list[tuple[Spot, Segment]]] = defaultdict(list)
        for spot, segment in self._left.items():
            traffic[spot[0], (segment.source, segment.target), True].append((spot, segment))
        for spot, segment in self._came.items():
            traffic[spot[0], (segment.target, segment.source), False].append((spot, segment))
        found: dict[Spot, list[str]] = defaultdict(list)
        for host in self._history.hosts:
            for timeline in self._scene.timelines(host):
                for before, state, moment in _turns(timeline):
                    spots = [
                        (abs(spot[3] - moment.at), spot)
                        for sent, flag in _ways(before, state)
                        for spot, segment in traffic.get((host, timeline.ends, sent), ())
                        if flag in segment.flags
                        and moment.earliest - LATE <= spot[3] <= moment.latest + _late(segment)
                    ]
                    if spots and moment.latest < math.inf:
                        how = " (inferred)" if timeline.inferred else ""
                        found[min(spots)[1]].append(f"{host}: {state}{how}")
        return found


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
