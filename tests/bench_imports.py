"""Captures of two hosts, as large as a benchmark wants them: what it takes to import them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.walked import ACK, FIN, RST, SYN, packet

SERVER, CLIENT = "10.0.0.2:80", "10.0.0.3"
NEAR = 100e-6
"""Seconds from one host to the other."""
EACH = 250
"""Segments of a connection, about."""
HEAD = struct.pack("<IHH8xII", 0xA1B23C4D, 2, 4, 65535, 1)


def captures(folder: Path, packets: int) -> list[str]:
    """Writes a capture of each end, both together of so many packets; and how to import them."""
    with ExitStack() as stack:
        files = {
            host: stack.enter_context((folder / f"{host}.pcap").open("wb"))
            for host in ("server", "client")
        }
        for file in files.values():
            file.write(HEAD)
        t = 1_700_000_000.0
        for number in range(packets // (2 * EACH)):
            for source, target, flags, numbers in connection(number):
                t += 4 * NEAR
                for host, file in files.items():
                    at = t if (source == SERVER) == (host == "server") else t + NEAR
                    late = 3.0 if host == "client" else 0.0
                    file.write(packet(at + late, source, target, flags, numbers)[: 16 + 54])
    return [f"{host}={folder / host}.pcap" for host in files]


Made = tuple[str, str, int, tuple[int, ...]]


def connection(number: int) -> Iterator[Made]:
    """The segments of one: a request, a long answer, and its end; every tenth is reset."""
    client = f"{CLIENT}:{1024 + number % 60_000}"
    mine, theirs = 1000 * number, 2000 * number
    yield client, SERVER, SYN, (mine, 0)
    yield SERVER, client, SYN | ACK, (theirs, mine + 1)
    yield client, SERVER, ACK, (mine + 1, theirs + 1)
    for n in range((EACH - 6) // 2):
        yield SERVER, client, ACK, (theirs + 1 + n, mine + 1)
        yield client, SERVER, ACK, (mine + 1, theirs + 2 + n)
    end = theirs + 1 + (EACH - 6) // 2
    if number % 10 == 0:
        yield SERVER, client, RST | ACK, (end, mine + 1)
        return
    yield SERVER, client, FIN | ACK, (end, mine + 1)
    yield client, SERVER, FIN | ACK, (mine + 1, end + 1)
    yield SERVER, client, ACK, (end + 1, mine + 2)
