"""A recorded run of many connections, as large as a benchmark wants it: what it takes to judge and
to draw it, and whether that grows linearly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from labctl.probes.listings import Listing
from labctl.record.events import VERSION, Event, LabEvent, SocketsEvent, StateEvent, StepEvent
from labctl.record.store import RunFolder
from tests.fake import HEADER, tcp
from tests.walked import ACK, FIN, SYN, packet

SERVER, CLIENT = "198.18.0.2:8000", "198.18.0.3"
OPENED = ("UNCONN", "SYN-SENT", "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "UNCONN")
ACCEPTED = ("LISTEN", "SYN-RECV", "ESTAB", "CLOSE-WAIT", "LAST-ACK", "UNCONN")
EVENTS_EACH = 10
"""Events of a connection."""
LOOK_EACH = 100
"""Connections from one look of a host to the next."""
EVERY = 0.0005
"""Seconds from one connection to the next, each of which takes ten times as long."""
RATE, MINUTE, LOOKS = 50, 60.0, 10
"""Of a busy host: connections a second, how long each waits in TIME-WAIT, and looks a second."""
SCENARIO = """\
title: Many connections
hosts: {server: {}, client: {}}
steps:
  - note: the end
expect:
  - path: {server: [ESTAB, CLOSE-WAIT, LAST-ACK]}
  - segments: {from: client, flags: FIN, at_least: 10}
  - segments: {from: client, lost: true, count: 0}
  - sockets: {server: none}
"""


def record(folder: Path, connections: int) -> Path:
    """Writes such a run, as labctl would have."""
    return _written(folder, each(connections), connections * EVERY + 1)


def busy(folder: Path, seconds: float) -> Path:
    """Writes a run of so many seconds with RATE connections a second, and so with hundreds of
    sockets in TIME-WAIT, as labctl would have."""
    return _written(folder, busily(seconds), seconds + 1)


def _written(folder: Path, found: Iterable[tuple[float, Happened]], over: float) -> Path:
    folder.mkdir()
    hosts = {"server": "198.18.0.2", "client": CLIENT}
    listings = {host: Listing() for host in hosts}
    packets: dict[str, list[bytes]] = {host: [] for host in hosts}
    with RunFolder(folder, SCENARIO) as run:
        environment = {"kernel": "6.1.0", "os": "Debian", "engine": None, "probes": PROBES}
        started = "2026-01-01T00:00:00Z"
        run.add(LabEvent(0.0, started, "netns", environment, hosts, version=VERSION))
        for host in hosts:
            run.add(SocketsEvent(0.001, host, "look", HEADER))
        for t, each in sorted(found, key=lambda pair: pair[0]):
            if isinstance(each, tuple):
                packets[each[0]].append(each[1])
            elif isinstance(each, SocketsEvent) and (
                less := listings[each.host].difference(t, each.text)
            ):
                run.add(replace(each, text=less[0], gone=less[1]))
            else:
                run.add(each)
        for host, records in packets.items():
            run.add_packets(host, b"".join(records))
        for phase in ("begin", "end"):
            run.add(StepEvent(over, 0, phase, "note the end", verb="note"))
        for host in hosts:
            run.add(SocketsEvent(over + 0.01, host, "look", HEADER))
    return folder


Happened = Event | tuple[str, bytes]
"""An event, or a packet that a host captured."""
PROBES = ["ss", "capture", "trace"]


def each(connections: int, every: float = EVERY) -> Iterator[tuple[float, Happened]]:
    """All that happens, with its time."""
    for number in range(connections):
        began = 1 + number * every
        client = f"{CLIENT}:{1024 + number % 60_000}"
        for host, states in (("client", OPENED), ("server", ACCEPTED)):
            ends = (client, SERVER) if host == "client" else (SERVER, client)
            for index, (old, new) in enumerate(pairwise(states)):
                t = round(began + index * EVERY * 2 + (0.0001 if host == "server" else 0), 6)
                local = f"{CLIENT}:0" if new == "SYN-SENT" else ends[0]  # as kernels report it
                yield t, StateEvent(t, host, local, ends[1], old, new)
        segments = (
            (client, SERVER, SYN, 0, 0), (SERVER, client, SYN | ACK, 0, 1),
            (client, SERVER, ACK, 1, 1), (client, SERVER, FIN | ACK, 1, 1),
            (SERVER, client, FIN | ACK, 1, 2), (client, SERVER, ACK, 2, 2),
        )  # fmt: skip
        for index, (source, target, flags, seq, ack) in enumerate(segments):
            t = began + index * EVERY * 1.5 + 1e-5
            base = number << 8
            data = (source, target, flags, (base + seq, base + ack))
            sender, receiver = ("client", "server")[:: 1 if source == client else -1]
            yield t, (sender, packet(t, *data))
            yield t + 5e-5, (receiver, packet(t + 5e-5, *data))
        if number % LOOK_EACH == 0:
            for host in ("server", "client"):
                ends = (SERVER, client) if host == "server" else (client, SERVER)
                t = round(began + EVERY * 3, 6)
                yield t, SocketsEvent(t, host, "change", f"{HEADER}\n{tcp('ESTAB', *ends)}")


def busily(seconds: float) -> Iterator[tuple[float, Happened]]:
    """All that happens where a client ends RATE connections a second first, with its time."""
    for t, found in each(round(seconds * RATE), 1 / RATE):
        if not isinstance(found, SocketsEvent):
            yield t, found
    for number in range(1, round(seconds * LOOKS)):
        t = 1 + number / LOOKS
        lines = [HEADER]
        for n in range(max(0, int((t - 1 - MINUTE) * RATE)), int((t - 1) * RATE)):
            left = int(MINUTE - (t - 1 - n / RATE))
            more = f"timer:(timewait,{left}sec,0) ino:0 sk:{n:x}"
            lines.append(tcp("TIME-WAIT", f"{CLIENT}:{1024 + n % 60_000}", SERVER, more))
        yield t, SocketsEvent(t, "client", "change", "\n\n".join(lines) + "\n")


@dataclass(frozen=True)
class Cost:
    """Of one command: seconds of CPU time, and megabytes of memory at most."""

    seconds: float
    megabytes: float


# A process's peak of memory begins with that of the process that made it (fs/exec.c: exec_mmap()):
# a small one has to.
MEASURED = """\
import os, sys
null = os.open(os.devnull, os.O_RDWR)
quiet = [(os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""


def cost(command: Sequence[str]) -> Cost:
    """What a command takes; what it writes is of no interest. Raises ChildProcessError where it
    fails."""
    measuring = [sys.executable, "-ISc", MEASURED, *command]
    told = subprocess.run(measuring, stdout=subprocess.PIPE, text=True, check=True).stdout
    status, seconds, megabytes = told.split()
    if status not in ("0", "3"):  # a run that is cut short is never a pass
        raise ChildProcessError(f"{' '.join(command)}: status {status}")
    return Cost(float(seconds), float(megabytes))
