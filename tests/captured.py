"""Captures as tcpdump and Wireshark write them, made by hand; and what an import makes of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from labctl.imports import importing
from labctl.imports.census import Wanted
from labctl.judge.recorded import load
from labctl.judge.result import RunResult
from tests.walked import ACK, FIN, SYN, Sent

SERVER, CLIENT = "10.0.0.2:8000", "10.0.0.3:40000"
NEAR = 100e-6
"""Seconds from one host to the other."""
BEGUN = 1_700_000_000.0


def handshake(t: float = 0.0, client: str = CLIENT, server: str = SERVER) -> list[Sent]:
    return [
        Sent(t, client, server, SYN, 100),
        Sent(t + 2 * NEAR, server, client, SYN | ACK, 900, 101),
        Sent(t + 4 * NEAR, client, server, ACK, 101, 901),
    ]


def closed(t: float, first: str = CLIENT, last: str = SERVER) -> list[Sent]:
    """A connection without data is closed, by one side and the other; each FIN has an ACK of its
    own."""
    seq, ack = (101, 901) if first == CLIENT else (901, 101)
    return [
        Sent(t, first, last, FIN | ACK, seq, ack),
        Sent(t + 2 * NEAR, last, first, ACK, ack, seq + 1),
        Sent(t + 0.1, last, first, FIN | ACK, ack, seq + 1),
        Sent(t + 0.1 + 2 * NEAR, first, last, ACK, seq + 1, ack + 1),
    ]


def frames(sent: Iterable[Sent], here: str, ahead: float = 0.0, drift: float = 0.0
           ) -> list[tuple[float, bytes]]:  # fmt: skip
    """What the host with this end captures of them, and when by its clock: Ethernet frames."""
    found = []
    for each in sent:
        mine = each.source.rpartition(":")[0] == here.rpartition(":")[0]
        if each.fate == "lost" and not mine:
            continue
        t = each.t if mine else each.t + NEAR
        found.append((BEGUN + t + ahead + drift * t, each.frame()))
    return sorted(found)


def pcap(path: Path, found: Iterable[tuple[float, bytes]], link: int = 1, order: str = "<",
         nanos: bool = True, snap: int = 65535) -> Path:  # fmt: skip
    """A pcap file of packets and their times."""
    magic, unit = (0xA1B23C4D, 1e9) if nanos else (0xA1B2C3D4, 1e6)
    head = struct.pack(f"{order}IHHIIII", magic, 2, 4, 0, 0, snap, link)
    records = (
        struct.pack(f"{order}IIII", *ticks(t, unit), len(d[:snap]), len(d)) + d[:snap]
        for t, d in found
    )
    path.write_bytes(head + b"".join(records))
    return path


def ticks(t: float, unit: float) -> tuple[int, int]:
    whole = round(t * unit)
    return whole // int(unit), whole % int(unit)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A block of pcapng."""
    body += bytes(-len(body) % 4)
    size = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + size + body + size


def pcapng(path: Path, found: Iterable[tuple[float, bytes]], link: int = 1, order: str = "<",
           options: bytes = b"", unit: float = 1e6) -> Path:  # fmt: skip
    """A pcapng file with one interface, which has these options."""
    section = block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)
    interface = block(1, struct.pack(f"{order}HHI", link, 0, 0) + options, order)
    packets = b""
    for t, data in found:
        high, low = divmod(round(t * unit), 1 << 32)
        head = struct.pack(f"{order}IIIII", 0, high, low, len(data), len(data))
        packets += block(6, head + data, order)
    path.write_bytes(section + interface + packets)
    return path


def imported(folder: Path, files: Mapping[str, Path], wanted: Wanted | None = None) -> RunResult:
    """The run that an import makes of these files."""
    run = folder / "run"
    run.mkdir()
    importing.record(importing.load(files, wanted or Wanted()), run)
    return load(run)


def both(folder: Path, sent: Sequence[Sent], ahead: float = 3.0, drift: float = 50e-6
         ) -> RunResult:  # fmt: skip
    """The run of both ends' captures, the client's by a clock of its own."""
    server = pcap(folder / "a.pcap", frames(sent, SERVER))
    client = pcap(folder / "b.pcap", frames(sent, CLIENT, ahead, drift))
    return imported(folder, {"server": server, "client": client})


def alone(folder: Path, sent: Sequence[Sent], host: str = "server") -> RunResult:
    """The run of one end's capture."""
    here = SERVER if host == "server" else CLIENT
    return imported(folder, {host: pcap(folder / "a.pcap", frames(sent, here))})
