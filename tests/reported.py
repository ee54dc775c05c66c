"""Runs for the tests of reports: a recorded one (tests/unit/data/run), and events made up."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from labctl.judge import recorded
from labctl.judge.check import Verdict
from labctl.judge.result import RunResult
from labctl.probes.observations import Known, Segment
from labctl.probes.segments import Captures, Matched
from labctl.probes.sockets import Ends
from labctl.probes.traffic import Chosen, Traffic
from labctl.record.events import (
    CallEvent,
    Event,
    LabEvent,
    OutputEvent,
    ProcessEvent,
    SocketsEvent,
    StateEvent,
    StepEvent,
    TroubleEvent,
)
from labctl.record.history import History
from labctl.reports import ladder
from labctl.reports.rows import Bar, Ladder
from tests.fake import HEADER, tcp

RUN = Path(__file__).parent / "unit" / "data" / "run"
GOLDEN = Path(__file__).parent / "golden" / "reports"
SERVER, CLIENT = "198.18.0.2:8000", "198.18.0.3:40000"
ADDRESSES = {"server": "198.18.0.2", "client": "198.18.0.3", "proxy": "198.18.0.4"}
NASTY = "</title><script>alert('&')</script>\x1b[31m|`*_[x](y)\"#;"


class SeenTraffic(Traffic):
    """What was captured of segments that have been read already."""

    def __init__(self, segments: list[Segment]) -> None:
        super().__init__()
        self._given = segments

    def first(self) -> Iterator[tuple[float, Ends]]:
        return ((s.time, (s.source, s.target)) for s in self._given)

    def syns(self, host: str, ends: Ends) -> list[tuple[float, int]]:
        mine = (s for s in self._given if (s.source, s.target) == ends and s.sender == host)
        return [(s.t, s.base[0]) for s in mine if s.flags == ("SYN",) and s.t is not None]

    def moments(self, host: str, chosen: Chosen) -> array[float]:
        mine = [s for s in self._given if not chosen((s.source, s.target))]
        times = [s.t for s in mine if s.sender == host and s.t is not None]
        times += [s.arrived for s in mine if s.receiver == host and s.arrived is not None]
        return array("d", sorted(times))


class Seen(Captures):
    """Captures that have been read already."""

    def __init__(self, segments: list[Segment]) -> None:
        super().__init__()
        self._given = sorted(segments, key=lambda segment: segment.time)
        self.traffic = SeenTraffic(self._given)

    def segments(self, known: Known, chosen: Chosen | None = None) -> Matched:
        found = [s for s in self._given if not chosen or chosen((s.source, s.target))]
        return Matched(None, found, known.flight)


def segment(t: float, text: str, arrived: float | None = 0.0, **more: object) -> Segment:
    """`client FIN ACK 5 1 len 3`: who sends, what, its numbers. It takes 0.1 ms."""
    words = text.split()
    sender = words.pop(0)
    flags = tuple(word for word in words if word.isupper())
    numbers = [int(word) for word in words if word.isdigit()]
    ends = (SERVER, CLIENT) if sender == "server" else (CLIENT, SERVER)
    found = Segment(
        t=t,
        arrived=None if arrived is None else arrived or t + 0.0001,
        sender=sender,
        receiver="client" if sender == "server" else "server",
        source=ends[0],
        target=ends[1],
        seq=numbers[0],
        ack=numbers[1],
        flags=flags,
        length=numbers[2] if "len" in words else 0,
        window=1000,
    )
    return found._replace(**more)  # type: ignore[arg-type]


def crowd(count: int) -> list[Segment]:
    """The SYNs of so many connections, a millisecond apart, and their answers."""
    found = []
    for n in range(count):
        caller = f"198.18.0.3:{20000 + n}"
        syn = segment(1 + n / 1e3, "client SYN 0 0")
        answer = segment(1.0005 + n / 1e3, "server SYN ACK 0 1")
        found += [syn._replace(source=caller), answer._replace(target=caller)]
    return found


HANDSHAKE = [
    segment(0.1, "client SYN 0 0"),
    segment(0.1002, "server SYN ACK 0 1"),
    segment(0.1004, "client ACK 1 1"),
]
CLOSE = [
    segment(0.2, "server FIN ACK 1 1"),
    segment(0.2002, "client ACK 1 2"),
    segment(0.3, "client FIN ACK 1 2"),
    segment(0.3002, "server ACK 2 2"),
]


def history(*events: Event, segments: list[Segment] | None = None) -> History:
    """What these add up to, the lab's first word before them."""
    lab = LabEvent(0.0, "2026-01-02T03:04:05Z", "netns", {"kernel": "6.1.0"}, ADDRESSES)
    found = History([lab, *sorted(events, key=lambda e: e.t)], Seen(segments or []))
    found.add_packets(max((s.time for s in segments or []), default=0.0), "server", b"")
    return found


def look(t: float, host: str, *lines: str, caption: str | None = None) -> SocketsEvent:
    """A look at a host."""
    return SocketsEvent(t, host, "look", "\n".join([HEADER, *lines, ""]), {}, caption)


def step(t: float, text: str, end: float, outcome: str = "done", **more: object) -> list[Event]:
    """A step's beginning and end."""
    begin = StepEvent(t, round(t * 1000), "begin", text, verb=text.split(maxsplit=1)[0])
    end_of_it = replace(begin, t=end, phase="end", outcome=outcome, **more)  # type: ignore[arg-type]
    return [begin, end_of_it]


def call(t: float, done: float | None, host: str, text: str, **more: object) -> list[Event]:
    """A call's beginning, and its end if it has one."""
    name = text.split(maxsplit=1)[0]
    events: list[Event] = [CallEvent(t, host, host, 7, "enter", text, name)]
    if done is not None:
        events.append(
            CallEvent(done, host, host, 7, "done", text, name, **more)  # type: ignore[arg-type]
        )
    return events


def rows(found: History, *verdicts: Verdict) -> Ladder:
    return ladder.rows(found, ("server", "client"), verdicts)


def bars(found: Ladder, host: str) -> list[tuple[str, float, bool]]:
    """The states of a host's sockets, since when, and whether the kernel said so."""
    return [
        (row.state, row.t, row.exact)
        for row in found.rows
        if isinstance(row, Bar) and row.host == host
    ]


def recorded_run(found: History, **more: object) -> RunResult:
    """A run with this history, and nothing of note besides."""
    base = recorded.load(RUN)
    run = replace(base, history=found, verdicts=(), beside=(), folder=Path("made-up"))
    return replace(run, **more)  # type: ignore[arg-type]


def golden(name: str, text: str) -> None:
    """Compares with a golden file."""
    text = text.replace(str(RUN), "RUN").replace(RUN.as_posix(), "RUN")
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name}: see UPDATE_GOLDEN above"


def inside(host: str, a: str, b: str, t: float) -> list[Segment]:
    """The segments of a connection that a host has with itself; the last one is lost."""
    told = [
        (0.0, a, b, "SYN 0 0"),
        (0.0002, b, a, "SYN ACK 0 1"),
        (0.0004, a, b, "ACK 1 1"),
        (0.01, a, b, "PSH ACK 1 1 len 10"),
        (0.0102, b, a, "ACK 1 11"),
        (0.02, a, b, "RST ACK 11 1"),
    ]
    found = [
        segment(t + later, f"{host} {text}", sender=host, receiver=host, source=source,
                target=target) for later, source, target, text in told
    ]  # fmt: skip
    return [*found, found[-2]._replace(t=t + 0.03, arrived=None)]


def inward() -> History:
    """Both hosts talk with themselves; an accept queue is full, and one thing is told twice."""
    a, b = "127.0.0.1:40000", "127.0.0.1:8000"
    queue = tcp("LISTEN", ":9000", recv_q=6, send_q=5)
    return history(
        *(TroubleEvent(0.2, host, "trace", "3 transitions were lost") for host in ADDRESSES),
        *step(0.25, "exec server: curl http://127.0.0.1:8000/", 0.26),
        StateEvent(0.3, "server", a, b, "UNCONN", "SYN-SENT"),
        StateEvent(0.3003, "server", a, b, "SYN-SENT", "ESTAB"),
        StateEvent(0.3005, "server", b, a, "LISTEN", "SYN-RECV"),
        StateEvent(0.3006, "server", b, a, "SYN-RECV", "ESTAB"),
        look(0.41, "client", queue),
        *step(0.42, "snapshot full", 0.43),
        look(0.425, "client", queue, tcp("ESTAB", CLIENT, SERVER), caption="full"),
        look(2.0, "client", queue),  # by then it is clear what was lost
        segments=[
            *HANDSHAKE,
            *inside("server", a, b, 0.3),
            *inside("client", "[::1]:41000", "[::1]:9000", 0.4),
        ],
    )


def full() -> History:
    """Everything that a ladder can show."""
    syn_lost = segment(0.05, "client SYN 0 0", None)
    data = [segment(0.11 + n / 1e4, f"server PSH ACK {1 + 10 * n} 1 len 10") for n in range(5)]
    acks = [segment(0.11005 + n / 1e4, f"client ACK 1 {11 + 10 * n}") for n in range(5)]
    odd = [
        segment(0.12, "client ACK 1 51", zero_window=True),
        segment(0.13, "server ACK 50 1 len 1", probe=True),
        segment(0.14, "server PSH ACK 41 1 len 10", retransmitted=True),
        segment(0.15, "client RST 9 0", 0.15)._replace(t=None, sender=None),
    ]
    other = segment(
        0.45, "client RST ACK 1 1", source="198.18.0.3:40001", target="198.18.0.4:80",
        receiver="proxy",
    )  # fmt: skip
    listen, estab = tcp("LISTEN", ":8000"), tcp("ESTAB", SERVER, CLIENT)
    return history(
        *step(0.01, "start server", 0.02),
        ProcessEvent(0.015, "server", "server", "start", pid=7),
        *call(0.016, 0.017, "server", "bind :8000", local="0.0.0.0:8000"),
        *call(0.018, 0.0185, "server", "listen 5"),
        *call(0.019, 0.104, "server", "accept", peer=CLIENT),
        look(0.018, "server", listen),
        *step(0.011, "wait server LISTEN", 0.018, "held"),
        ProcessEvent(0.03, "client", "client", "start", pid=7),
        *call(0.04, 0.101, "client", "connect server:8000"),
        StateEvent(0.0499, "client", "198.18.0.3:0", SERVER, "UNCONN", "SYN-SENT"),
        StateEvent(0.1004, "client", CLIENT, SERVER, "SYN-SENT", "ESTAB"),
        look(0.107, "server", listen, estab, caption="connected"),
        OutputEvent(0.16, "client", "client", "hello\nthere\n"),
        TroubleEvent(0.17, "client", "capture", "3 packets were lost"),
        *step(0.19, "kill server", 0.195, label="killed"),
        ProcessEvent(0.194, "server", "server", "gone", signal="KILL"),
        look(0.2, "server"),
        *step(0.4, "sleep 60 s", 60.4),
        *step(60.5, "kill proxy", 60.6, "failed", detail="proxy running; saw it never ran"),
        look(60.7, "server", caption="at the end"),
        segments=[syn_lost, *HANDSHAKE, *data, *acks, *odd, *CLOSE, other],
    )
