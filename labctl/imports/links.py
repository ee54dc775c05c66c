"""What lies before the IP header of a packet, by link type (www.tcpdump.org/linktypes.html)."""

from __future__ import annotations

from collections.abc import Callable

ETHERNET, NULL, LOOP, COOKED, COOKED_2 = 1, 0, 108, 113, 276
RAW = (12, 14, 101, 228, 229)
"""Plain IP: BSD's two numbers, the common one, IPv4 and IPv6."""
IP_TYPES = (b"\x08\x00", b"\x86\xdd")
TAGS = (b"\x81\x00", b"\x88\xa8", b"\x91\x00")
"""What marks a VLAN's tag (IEEE 802.1Q), also one within another."""
OUTGOING = 4
"""The type of packets that the capturing host sent (packet(7), PACKET_OUTGOING)."""

Place = tuple[int, bool | None]
"""Where the IP header begins, negative if there is none; and whether the host that captured it sent
it (true) or received it, if the link's header says so."""
NOWHERE: Place = -1, None


def _tagged(data: bytes, at: int) -> int:
    """Where IP begins, if the type of what follows stands at `at`."""
    for _ in range(4):
        kind = data[at : at + 2]
        if kind in IP_TYPES:
            return at + 2
        if kind not in TAGS:
            break
        at += 4
    return -1


def _ethernet(data: bytes) -> Place:
    return _tagged(data, 12), None


def _cooked(data: bytes) -> Place:
    if len(data) < 16:
        return NOWHERE
    return _tagged(data, 14), int.from_bytes(data[:2], "big") == OUTGOING


def _cooked_2(data: bytes) -> Place:
    if len(data) < 20:
        return NOWHERE
    begin = 20
    if data[:2] in TAGS:  # the tag follows the header
        begin = _tagged(data, 22)
    elif data[:2] not in IP_TYPES:
        begin = -1
    return begin, data[10] == OUTGOING


def _loopback(data: bytes) -> Place:
    return (4, None) if data[4:5] and data[4] >> 4 in (4, 6) else NOWHERE


def _raw(data: bytes) -> Place:
    return (0, None) if data and data[0] >> 4 in (4, 6) else NOWHERE


LINKS: dict[int, Callable[[bytes], Place]] = {
    ETHERNET: _ethernet,
    COOKED: _cooked,
    COOKED_2: _cooked_2,
    NULL: _loopback,
    LOOP: _loopback,
    **dict.fromkeys(RAW, _raw),
}
KNOWN = "Ethernet, Linux cooked (v1, v2), raw IP and loopback"
