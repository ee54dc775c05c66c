"""Connections that walked through their states, as the trace, looks and captures tell."""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from labctl.record.events import Event, LabEvent, SocketsEvent, StateEvent
from labctl.record.history import History
from labctl.record.moments import Moment
from labctl.record.timelines import Timeline, timelines
from tests.fake import HEADER, tcp

HERE, THERE = "198.18.0.2:8000", "198.18.0.3:40000"
ROOT = "tracing needs root; run it as root, or use --backend docker"

PASSIVE = ["LISTEN", "SYN-RECV", "ESTAB", "CLOSE-WAIT", "LAST-ACK", "UNCONN"]
ACTIVE = ["LISTEN", "SYN-RECV", "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "UNCONN"]


def lab(*probes: str) -> LabEvent:
    return LabEvent(
        0.0, "2026-01-01T00:00:00Z", "fake", {"probes": ["ss", *probes]},
        {"server": "198.18.0.2", "server.v6": "fd00::2", "client": "198.18.0.3"},
    )  # fmt: skip


def walk(
    *states: str, start: float = 1.0, step: float = 0.001, local: str = HERE, remote: str = THERE
) -> list[Event]:
    """The transitions through these states, one each `step` seconds."""
    return [
        StateEvent(round(start + number * step, 6), "server", local, remote, old, new)
        for number, (old, new) in enumerate(pairwise(states))
    ]


def look(t: float, *lines: str) -> SocketsEvent:
    return SocketsEvent(t, "server", "change", "\n".join([HEADER, *lines]))


def shown(state: str, more: str = "", local: str = HERE, remote: str = THERE) -> str:
    return tcp(state, local, remote, more=more)


def mini(state: str, left: str = "59sec") -> str:
    return shown(state, f"timer:(timewait,{left},0)")


FIN, SYN, RST, ACK = 1, 2, 4, 16


@dataclass(frozen=True)
class Sent:
    """A segment: when it left, its ends, its flags and numbers, and how many bytes of data it has.
    `fate`: `lost` on its way, or `foreign`, if no host sent it. Where numbers count from the first
    ones of each host, those differ by `start`."""

    t: float
    source: str
    target: str
    flags: int
    seq: int = 0
    ack: int = 0
    data: int = 0
    fate: str = ""
    start: int = 0
    window: int = 1000

    def frame(self) -> bytes:
        """As an Ethernet frame, by its numbers as they are."""
        ends = []
        for place in (self.source, self.target):
            host, _, port = place.rpartition(":")
            family = socket.AF_INET6 if "[" in host else socket.AF_INET
            ends.append((socket.inet_pton(family, host.strip("[]")), int(port)))
        (here, sport), (there, dport) = ends
        numbers = sport, dport, self.seq, self.ack, 5 << 4, self.flags, self.window, 0, 0
        segment = struct.pack("!HHIIBBHHH", *numbers) + bytes(self.data)
        size = len(segment)
        if len(here) == 4:
            header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + size, 0, 0, 64, 6, 0, here, there)
        else:
            header = struct.pack("!IHBB16s16s", 6 << 28, size, 6, 64, here, there)
        kind = b"\x08\x00" if len(here) == 4 else b"\x86\xdd"
        return bytes(12) + kind + header + segment

    def record(self) -> bytes:
        """As a record of pcap-savefile(5) that was captured as it left."""
        frame, t = self.frame(), self.t
        return struct.pack("<IIII", int(t), round(t % 1 * 1e9), len(frame), len(frame)) + frame


def packet(t: float, source: str, target: str, flags: int, numbers: Sequence[int]) -> bytes:
    """A captured segment as a record; its `numbers` are the sequence number, the acknowledgement,
    and how many bytes of data it has, by default none."""
    seq, ack, *more = numbers
    return Sent(t, source, target, flags, seq, ack, sum(more)).record()


def history(*events: Event, packets: bytes = b"", probes: tuple[str, ...] = ("trace",)) -> History:
    """Without packets of its own each transition has one that bears it out."""
    found = History([lab(*probes), *sorted(events, key=lambda event: event.t)])
    told = [e for e in events if isinstance(e, StateEvent) and not e.local.endswith(":0")]
    borne = b"".join(packet(e.t, e.local, e.remote, ACK, (1, 1)) for e in told)
    found.add_packets(found.now, "server", packets or borne)
    return found


def one(*events: Event, **more: Any) -> Timeline:
    (found,) = timelines(history(*events, **more), "server")
    return found


def spans(timeline: Timeline) -> list[tuple[str, float, float, float, float]]:
    """State, begin and end, each as bounds."""
    ends = [span.end or Moment(math.inf, math.inf) for span in timeline.spans]
    return [
        (str(s.state), s.begin.earliest, s.begin.latest, e.earliest, e.latest)
        for s, e in zip(timeline.spans, ends, strict=True)
    ]
