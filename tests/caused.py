"""Histories by hand, and the causes that the rules find in them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from labctl.judge.causes.cause import Cause
from labctl.judge.causes.rules import causes
from labctl.language.calls import parse_calls
from labctl.language.scenario import Scenario
from labctl.record.events import (
    CallEvent,
    CountersEvent,
    Event,
    HoldersEvent,
    LabEvent,
    ProcessEvent,
    SocketsEvent,
    StateEvent,
)
from labctl.record.history import History
from tests.fake import HEADER, tcp
from tests.walked import ACK, FIN, SYN, Sent

SERVER, CLIENT = "198.18.0.2:8000", "198.18.0.3:40000"
PROBES = ("ss", "capture", "loopback", "trace")
ADDRESSES = {
    "server": "198.18.0.2", "server.2": "198.18.0.4", "server.v6": "fd00::2",
    "client": "198.18.0.3", "client.v6": "fd00::3", "backend": "198.18.0.5",
}  # fmt: skip
IN_USE: dict[str, Any] = {"errno": "EADDRINUSE", "error": "Address already in use"}
LATER = 5e-5
"""Seconds that a segment is under way."""
LISTEN = tcp("LISTEN", ":8000", send_q=5, more="ino:1")


def handshake(t: float, client: str = CLIENT, server: str = SERVER, start: int = 0) -> list[Sent]:
    return [
        Sent(t, client, server, SYN, 0, 0, start=start),
        Sent(t + 1e-4, server, client, SYN | ACK, 0, 1, start=start),
        Sent(t + 2e-4, client, server, ACK, 1, 1, start=start),
    ]


def close(t: float, first: str = SERVER, last: str = CLIENT, start: int = 0) -> list[Sent]:
    """A connection without data is closed, by one side and the other."""
    return [
        Sent(t, first, last, FIN | ACK, 1, 1, start=start),
        Sent(t + 1e-4, last, first, FIN | ACK, 1, 2, start=start),
        Sent(t + 2e-4, first, last, ACK, 2, 2, start=start),
    ]


def owner(end: str) -> str:
    host = end.rpartition(":")[0].strip("[]")
    return next((n.partition(".")[0] for n, a in ADDRESSES.items() if a == host), "")


def captured(sent: Iterable[Sent], deaf: Sequence[str] = ()) -> dict[str, bytes]:
    """What each host captured of them, whose numbers count from its first ones; the `deaf` ones
    nothing."""
    found: dict[str, list[tuple[float, bytes]]] = {}
    for each in sent:
        base = {host: 1000 * number + each.start for number, host in enumerate(ADDRESSES, 1)}
        here, there = owner(each.source), owner(each.target)
        seq = base.get(here, 77) + each.seq
        ack = base.get(there, 77) + each.ack if each.flags & ACK else 0
        at = [(here, each.t)] if each.fate != "foreign" else []
        at += [(there, each.t + LATER)] if each.fate != "lost" else []
        for host, t in at:
            if host and host not in deaf:
                record = replace(each, t=t, seq=seq, ack=ack).record()
                found.setdefault(host, []).append((t, record))
    return {host: b"".join(d for _, d in sorted(all_)) for host, all_ in found.items()}


def trace(t: float, *states: str, ends: tuple[str, str] = (SERVER, CLIENT), step: float = 1e-4
          ) -> list[Event]:  # fmt: skip
    """A socket of the first end's host came to these states, one each `step` seconds from `t`."""
    host = owner(ends[0])
    return [
        StateEvent(round(t + n * step, 6), host, *ends, old, new)
        for n, (old, new) in enumerate(pairwise(states))
    ]


def established(t: float, client: str = CLIENT, server: str = SERVER) -> list[Event]:
    """Both sides of a connection come to ESTAB."""
    return [
        *trace(t, "UNCONN", "SYN-SENT", "ESTAB", ends=(client, server)),
        *trace(t + 1.5e-4, "LISTEN", "SYN-RECV", "ESTAB", ends=(server, client)),
    ]


def listened(t: float, end: float | None = None) -> list[Event]:
    """A listener at port 8000 of the server, until it ends."""
    found: list[Event] = [StateEvent(t, "server", "0.0.0.0:8000", "0.0.0.0:0", "UNCONN", "LISTEN")]
    if end is not None:
        found.append(StateEvent(end, "server", "0.0.0.0:8000", "0.0.0.0:0", "LISTEN", "UNCONN"))
    return [*found, look(t + 0.01, LISTEN)]


def look(t: float, *lines: str, host: str = "server", caption: str | None = None, **counters: int
         ) -> SocketsEvent:  # fmt: skip
    text = "\n".join([HEADER, *lines])
    return SocketsEvent(t, host, "look", text, counters, caption)


def call(t: float, process: str, text: str, host: str = "", pid: int = 2, **more: Any
         ) -> CallEvent:  # fmt: skip
    """A call that ended."""
    name = parse_calls(text)[0].name
    return CallEvent(t, process, host or process, pid, "done", text, name, **more)


def calls(t: float, process: str, texts: str, host: str = "", **ends: str) -> list[Event]:
    """A process starts, and does these calls, one each millisecond. Connections are from `client`
    to `server`, which may be said."""
    client, server = ends.get("client", CLIENT), ends.get("server", SERVER)
    found: list[Event] = [ProcessEvent(t, process, host or process, "start", pid=2)]
    for number, text in enumerate(texts.split(";"), 1):
        parsed = parse_calls(text)[0]
        more: dict[str, Any] = {}
        if parsed.name == "bind":
            address, port = parsed.args
            address = ADDRESSES.get(address, address) or "0.0.0.0"
            address = f"[{address}]" if ":" in address else address
            more = {"local": f"{address}:{port or client.rpartition(':')[2]}"}
        elif parsed.name == "accept":
            more = {"local": server, "peer": client}
        elif parsed.name == "connect":
            more = {"local": client, "peer": server}
        found.append(call(t + number / 1000, process, text.strip(), host, **more))
    return found


def ended(t: float, process: str, host: str = "", **more: Any) -> ProcessEvent:
    """The main process exits."""
    return ProcessEvent(t, process, host or process, "exit", pid=2, **more)


def holds(t: float, process: str, sockets: Mapping[int, Mapping[int, int]], host: str = "server",
          start: int | None = None) -> HoldersEvent:  # fmt: skip
    """What a process has open: the inodes, by pid and descriptor."""
    found = {
        str(pid): {str(n): inode for n, inode in each.items()} for pid, each in sockets.items()
    }
    commands = dict.fromkeys(found, "nginx")
    return HoldersEvent(t, process, host, commands, found, [], start=start)


def bind_fails(t: float, process: str, *lines: str, texts: str = "socket; bind :8000",
               host: str = "server") -> list[Event]:  # fmt: skip
    """A process starts, its last call fails with EADDRINUSE, and a look shows these sockets."""
    *before, last = texts.split(";")
    events = calls(t, process, ";".join(before), host) if before else []
    at, text = t + len(events) / 1000, last.strip()
    return [
        *events,
        call(at, process, text, host, errno=IN_USE["errno"], error=IN_USE["error"]),
        look(at + 0.01, *lines, host=host, caption=text),
    ]


def told(events: Iterable[Event], sent: Iterable[Sent] = (), probes: Sequence[str] = PROBES,
         deaf: Sequence[str] = ()) -> History:  # fmt: skip
    """The history of these events and segments. Counters begin at 0."""
    ordered = sorted(events, key=lambda event: event.t)
    names = {n for e in ordered if isinstance(e, SocketsEvent) for n in e.counters}
    lab = LabEvent(0.0, "2026-01-01T00:00:00Z", "fake", {"probes": [*probes]}, ADDRESSES)
    counters = [CountersEvent(0.0, host, dict.fromkeys(names, 0)) for host in ("server", "client")]
    found = History([lab, *counters, *ordered])
    for host, records in captured(sent, deaf).items():
        found.add_packets(found.now, host, records)
    return found


def said(history: History, group: str = "", scenario: Scenario | None = None) -> list[Cause]:
    """The causes whose ids begin so; without that, all but who closed first."""
    every = causes(history, scenario)
    return [c for c in every if c.id.startswith(group) and (group or c.id != "closed-first")]


def only(history: History, group: str = "", scenario: Scenario | None = None) -> Cause:
    """The only one of them."""
    (cause,) = said(history, group, scenario)
    return cause


def ids(history: History, group: str = "") -> list[str]:
    """Their ids."""
    return [cause.id for cause in said(history, group)]


def function_calls(history: History) -> int:
    """How many it takes to find all causes of a history."""
    history.segments()
    made: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, _: made.update((event,)))
    causes(history)
    sys.setprofile(None)
    return made["call"]
