"""pcapng: one file with the packets of several interfaces, a comment for each, and names.

The format is draft-ietf-opsawg-pcapng. dpkt can write it too, but has no block for names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, ip_address

from labctl.ground.data import dataclass

ETHERNET, NANOSECONDS = 1, 9
SECTION, INTERFACE, NAMES, PACKET = 0x0A0D0D0A, 1, 4, 6
COMMENT, NAME, RESOLUTION, PROGRAM, FLAGS = 1, 2, 9, 4, 2
"""The numbers of options; each kind of block has its own from 2 on."""
IPV4, IPV6 = 1, 2
INBOUND, OUTBOUND = 1, 2


@dataclass(frozen=True, slots=True)
class Packet:
    """An Ethernet frame, or its head: `length` bytes were on the wire. `at` is in nanoseconds since
    1970, `interface` a number from 0 on, `direction` INBOUND, OUTBOUND or 0 if that is unknown."""

    at: int
    interface: int
    frame: bytes
    length: int
    direction: int = 0
    comment: str = ""


def head(interfaces: Sequence[str], names: Mapping[str, str], comment: str) -> bytes:
    """The beginning of a file: its section, an interface for each name, and what addresses are
    called."""
    version = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
    section = version + _options([(COMMENT, comment.encode()), (PROGRAM, b"labctl")])
    made = [
        struct.pack("<HHI", ETHERNET, 0, 0)
        + _options([(NAME, name.encode()), (RESOLUTION, bytes([NANOSECONDS]))])
        for name in interfaces
    ]
    records = b""
    for address, name in names.items():
        parsed = ip_address(address)
        kind = IPV4 if isinstance(parsed, IPv4Address) else IPV6
        records += _field(kind, parsed.packed + name.encode() + b"\0")
    return b"".join(
        [
            _block(SECTION, section),
            *(_block(INTERFACE, each) for each in made),
            _block(NAMES, records + bytes(4)),
        ]
    )


def blocks(packets: Iterable[Packet]) -> Iterator[bytes]:
    """What follows: a block for each packet."""
    for packet in packets:
        fixed = struct.pack(
            "<IIIII", packet.interface, packet.at >> 32, packet.at & 0xFFFFFFFF, len(packet.frame),
            packet.length,
        )  # fmt: skip
        options = [(COMMENT, packet.comment.encode())] if packet.comment else []
        if packet.direction:
            options.append((FLAGS, struct.pack("<I", packet.direction)))
        yield _block(PACKET, fixed + _padded(packet.frame) + _options(options))


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _options(options: Iterable[tuple[int, bytes]]) -> bytes:
    found = b"".join(_field(number, value) for number, value in options)
    return found + bytes(4) if found else b""


def _field(number: int, value: bytes) -> bytes:
    value = value[:0xFFFF]
    return struct.pack("<HH", number, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
