"""Captured packets: from the bytes to Observations.

There may be a hundred thousand of them while somebody waits. So this reads headers itself.
"""

from __future__ import annotations

from functools import lru_cache
from socket import AF_INET, AF_INET6, IPPROTO_TCP, inet_ntop
from struct import Struct
from sys import intern

from labctl.probes.observations import (
    ECN_FIELDS,
    ECN_FLAGS,
    FLAG_BITS,
    OPTIONS,
    PLAIN,
    Header,
    Observation,
)
from labctl.probes.sockets import Ends

RECORD = Struct("<IIII")  # pcap-savefile(5), with nanoseconds
NANO = 1_000_000_000
ETHERNET = 14
IP_TYPES = {b"\x08\x00", b"\x86\xdd"}
IPV4 = Struct("!BBHHHxB2x4s4s")  # RFC 791, section 3.1
FOLLOWING = 0x1FFF
"""The offset of a fragment: only the first begins with TCP's header."""
IPV6 = Struct("!HxxHBx16s16s")  # RFC 8200, section 3
TCP = Struct("!HHIIBBH4x")  # RFC 9293, section 3.1
ENDS = Struct("!4s4sHH")
STAMPED = b"\x01\x01\x08\x0a"
"""How options begin that are two NOPs and the timestamps (RFC 7323, appendix A)."""
STAMPS = Struct("!II")
STAMPED_ALONE = Header(options=("timestamps",))
END, NOP = 0, 1
SCALE, TIMESTAMPS, EXPERIMENT = 3, 8, 254
LARGEST_SCALE = 14
"""A larger shift counts as this (RFC 7323, section 2.3)."""
FAST_OPEN = b"\xf9\x89"
"""How an experimental option begins that is Fast Open's (RFC 7413, appendix A)."""


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


def torn_at(records: bytes | memoryview) -> int | None:
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
        kind, carried, protocol, source, target = IPV6.unpack_from(data)
        carried = carried or whole - start
        kind >>= 4
    else:
        if len(data) < IPV4.size:
            return None
        first, kind, total, ident, fragment, protocol, source, target = IPV4.unpack_from(data)
        if fragment & FOLLOWING:
            return None
        start = 4 * (first & 0xF)
        carried = (total or whole) - start
    if protocol != IPPROTO_TCP or len(data) < start + TCP.size:
        return None
    sport, dport, seq, ack, offset, flags, window = TCP.unpack_from(data, start)
    congestion = kind & 3 | (offset & 1) << 4 | (flags & 0xC0) >> 4
    offset = offset >> 4 << 2
    timestamps, header = _options(data[start + TCP.size : start + offset], offset - TCP.size)
    if congestion:
        header = _header(_ecn(congestion), header.options, header.scale)
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
        header,
        _same(data[start + offset : start + carried]),
    )


def endpoints(key: bytes) -> Ends:
    """The source and the target that IPv4 addresses and ports are, as they are on the wire."""
    source, target, sport, dport = ENDS.unpack(key)
    return _endpoint(source, sport), _endpoint(target, dport)


def _options(options: bytes, whole: int) -> tuple[tuple[int, int] | None, Header]:
    """The timestamps among `whole` bytes of options (RFC 9293, section 3.1), and which these are,
    as far as they were captured."""
    if not options:
        return None, PLAIN if not whole else _header((), None, None)
    if options[:4] == STAMPED and len(options) == whole == 12:
        return STAMPS.unpack_from(options, 4), STAMPED_ALONE
    found: dict[str, None] = {}
    timestamps, scale, place = None, None, 0
    while place < len(options) and options[place] != END:
        kind = options[place]
        if kind == NOP:
            place += 1
            continue
        length = options[place + 1] if place + 1 < len(options) else 0
        value = options[place + 2 : place + length]
        if length < 2 or len(value) < length - 2:
            break  # cut off, or no option
        if kind == TIMESTAMPS and len(value) == STAMPS.size:
            timestamps = STAMPS.unpack(value)
        if kind == SCALE and len(value) == 1:
            scale = min(value[0], LARGEST_SCALE)
        name = "fastopen" if kind == EXPERIMENT and value[:2] == FAST_OPEN else OPTIONS.get(kind)
        found |= {name: None} if name else {}
        place += length
    return timestamps, _header((), tuple(found) if len(options) == whole else None, scale)


# Equal values share memory: there may be hundreds of thousands of segments.
_header = lru_cache(1 << 8)(Header)


@lru_cache(1 << 8)
def _same(data: bytes) -> bytes:
    return data


@lru_cache(1 << 5)
def _ecn(bits: int) -> tuple[str, ...]:
    """The names of five bits: IP's two, then ECE, CWR and AE."""
    field = ECN_FIELDS[bits & 3]
    flags = tuple(name for n, name in enumerate(ECN_FLAGS) if bits & 4 << n)
    return (*flags, field) if field else flags


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
