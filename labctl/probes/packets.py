"""Captured packets: from the bytes to Observations.

There may be a hundred thousand of them while somebody waits. So this reads headers itself, and
leaves to dpkt only options other than the usual timestamps.
"""

from __future__ import annotations

from functools import lru_cache
from socket import AF_INET, AF_INET6, IPPROTO_TCP, inet_ntop
from struct import Struct
from sys import intern

from labctl.probes.observations import FLAG_BITS, Observation
from labctl.probes.sockets import Ends

RECORD = Struct("<IIII")  # pcap-savefile(5), with nanoseconds
NANO = 1_000_000_000
ETHERNET = 14
IP_TYPES = {b"\x08\x00", b"\x86\xdd"}
IPV4 = Struct("!BxHHHxB2x4s4s")  # RFC 791, section 3.1
FOLLOWING = 0x1FFF
"""The offset of a fragment: only the first begins with TCP's header."""
IPV6 = Struct("!xxxxHBx16s16s")  # RFC 8200, section 3
TCP = Struct("!HHIIBBH4x")  # RFC 9293, section 3.1
ENDS = Struct("!4s4sHH")
STAMPED = b"\x01\x01\x08\x0a"
"""How options begin that are two NOPs and the timestamps (RFC 7323, appendix A)."""
STAMPS = Struct("!II")


def shifted(records: bytes, seconds: float) -> bytes:
    """The same pcap records, each so many seconds later."""
    if not seconds:
        return records
    found, place, later = bytearray(records), 0, round(seconds * NANO)
    while place < len(found):
        whole, rest, kept, length = RECORD.unpack_from(found, place)
        RECORD.pack_into(found, place, *divmod(whole * NANO + rest + later, NANO), kept, length)
        place += RECORD.size + kept
    return bytes(found)


def torn_at(records: bytes) -> int | None:
    """Where the first broken pcap record begins; None if all are whole."""
    begin = 0
    while begin < len(records):
        if begin + RECORD.size > len(records):
            return begin
        _, nanos, kept, length = RECORD.unpack_from(records, begin)
        end = begin + RECORD.size + kept
        if kept > length or nanos >= NANO or end > len(records):
            return begin
        begin = end
    return None


def read_packet(host: str, at: float, data: bytes, whole: int = 0) -> Observation | None:
    """The TCP segment in an IP packet or its head, if there is one. `whole` is the packet's length
    on the wire: a super-segment beyond 64 KiB does not contain its own length."""
    if data[:1] >= b"\x60":
        if len(data) < IPV6.size:
            return None
        ident, start = 0, IPV6.size
        carried, protocol, source, target = IPV6.unpack_from(data)
        carried = carried or whole - start
    else:
        if len(data) < IPV4.size:
            return None
        first, total, ident, fragment, protocol, source, target = IPV4.unpack_from(data)
        if fragment & FOLLOWING:
            return None
        start = 4 * (first & 0xF)
        carried = (total or whole) - start
    if protocol != IPPROTO_TCP or len(data) < start + TCP.size:
        return None
    sport, dport, seq, ack, offset, flags, window = TCP.unpack_from(data, start)
    offset = offset >> 4 << 2
    timestamps = _timestamps(data[start + TCP.size : start + offset])
    return Observation(
        host,
        at,
        _endpoint(source, sport),
        _endpoint(target, dport),
        seq,
        ack,
        _flags(flags),
        carried - offset,
        window,
        (ident, timestamps[0] if timestamps else 0),
        timestamps,
    )


def endpoints(key: bytes) -> Ends:
    """The source and the target that IPv4 addresses and ports are, as they are on the wire."""
    source, target, sport, dport = ENDS.unpack(key)
    return _endpoint(source, sport), _endpoint(target, dport)


def _timestamps(options: bytes) -> tuple[int, int] | None:
    if options[:4] == STAMPED and len(options) >= 12:
        value, echo = STAMPS.unpack_from(options, 4)
        return value, echo
    if not options:
        return None
    from dpkt.tcp import TCP_OPT_TIMESTAMP, parse_opts

    for option in parse_opts(options):
        if option and option[0] == TCP_OPT_TIMESTAMP and len(option[1]) == 8:
            value, echo = STAMPS.unpack(option[1])
            return value, echo
    return None


# Equal values share memory: there may be hundreds of thousands of segments.
@lru_cache(1 << 8)
def _flags(bits: int) -> tuple[str, ...]:
    return tuple(name for name, bit in FLAG_BITS.items() if bits & bit)


def _endpoint(address: bytes, port: int) -> str:
    return intern(f"{_host(address)}:{port}")


@lru_cache(1 << 10)
def _host(address: bytes) -> str:
    if len(address) == 4:
        return inet_ntop(AF_INET, address)
    return f"[{inet_ntop(AF_INET6, address)}]"
