"""Segments as hosts' captures have them."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

from labctl.probes.observations import MODULUS, Known, Observation, Segment
from labctl.probes.segments import match

SERVER, CLIENT = "198.18.0.2:8000", "198.18.0.3:40000"
SERVER_6, CLIENT_6 = "[fd00::2]:8000", "[fd00::3]:40000"
NAMES = {
    "server": "198.18.0.2", "server.v6": "fd00::2", "client": "198.18.0.3", "client.v6": "fd00::3",
}  # fmt: skip
OWNERS = {address: name.partition(".")[0] for name, address in NAMES.items()}
EPOCH = 1_700_000_000.0
LAG = 0.0001

CONGESTION = {"ECE": 0x40, "CWR": 0x80, "AE": 0x100}
FIELDS = {"ECT1": 1, "ECT0": 2, "CE": 3}
WRITTEN = {
    "mss": bytes([2, 4, 5, 180]), "sack": bytes([4, 2]), "md5": bytes([19, 18, *range(16)]),
    "fastopen": bytes([34, 2]),
}  # fmt: skip
"""How options are written; timestamps are those of the observation."""
BITS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}


def one(at: float, text: str, window: int = 500, mark: int = 0, v6: bool = False) -> Observation:
    """What its sender sees of `client FIN ACK 5 1 len 3`: who sends, what, its numbers."""
    words = text.split()
    length = int(words.pop()) if "len" in words else 0
    sender, *flags = [word for word in words if word.isalpha() and word != "len"]
    seq, ack = [int(word) for word in words if word.isdigit()]
    ends = (SERVER_6, CLIENT_6) if v6 else (SERVER, CLIENT)
    source, target = ends if sender == "server" else ends[::-1]
    return Observation(
        sender, EPOCH + at, source, target, seq % MODULUS, ack % MODULUS, tuple(flags), length,
        window, (mark, 0),
    )  # fmt: skip


def seen(observation: Observation) -> Observation:
    """The same where it arrives."""
    other = "client" if observation.host == "server" else "server"
    return replace(observation, host=other, at=observation.at + LAG)


def both(*observations: Observation) -> list[Observation]:
    """All of them, sent and arrived."""
    return [each for o in observations for each in (o, seen(o))]


def segments(*observations: Observation) -> list[Segment]:
    return match(observations, Known(OWNERS, EPOCH))


def record(o: Observation) -> bytes:
    """An observation as a record of pcap-savefile(5)."""
    (here, sport), (there, dport) = map(_place, (o.source, o.target))
    bits = sum(BITS[flag] for flag in o.flags)
    bits += sum(bit for name, bit in CONGESTION.items() if name in o.header.ecn)
    congestion = sum(FIELDS.get(name, 0) for name in o.header.ecn)
    value, echo = o.timestamps or (o.mark[1], 0)
    options = struct.pack("!BBBBII", 1, 1, 8, 10, value, echo) if value or o.timestamps else b""
    for name in o.header.options or ():
        options += {"wscale": bytes([3, 3, o.header.scale or 0])}.get(name, WRITTEN.get(name, b""))
    options += bytes(-len(options) % 4)
    offset = 5 + len(options) // 4
    head = offset << 12 | bits
    tcp = struct.pack("!HHIIHHHH", sport, dport, o.seq, o.ack, head, o.window, 0, 0)
    length = len(tcp + options) + o.length
    if len(here) == 4:
        ident = o.mark[0]
        ip = struct.pack(
            "!BBHHHBBH4s4s", 0x45, congestion, 20 + length, ident, 0, 64, 6, 0, here, there
        )
    else:
        ip = struct.pack("!IHBB16s16s", 6 << 28 | congestion << 20, length, 6, 64, here, there)
    kind = b"\x08\x00" if len(here) == 4 else b"\x86\xdd"
    frame = bytes(12) + kind + ip + tcp + options  # as captured: maybe without the data
    whole = len(frame) + o.length
    if o.header.options is None:
        frame = frame[: -len(options)]
    frame += o.data
    return struct.pack("<IIII", int(o.at), round(o.at % 1 * 1e9), len(frame), whole) + frame


def _place(endpoint: str) -> tuple[bytes, int]:
    host, _, port = endpoint.rpartition(":")
    family = socket.AF_INET6 if "[" in host else socket.AF_INET
    return socket.inet_pton(family, host.strip("[]")), int(port)


HANDSHAKE = [
    one(0.1, "client SYN 1000 0"), one(0.2, "server SYN ACK 7000 1001"),
    one(0.3, "client ACK 1001 7001"),
]  # fmt: skip
