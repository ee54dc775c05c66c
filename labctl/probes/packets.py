"""Packets as they were captured, read by dpkt: from the bytes to Observations.

To import dpkt takes a moment, so this module is imported when there is something to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop

from dpkt.dpkt import Error
from dpkt.ethernet import ETH_TYPE_IP, ETH_TYPE_IP6, Ethernet
from dpkt.ip import IP
from dpkt.ip6 import IP6
from dpkt.pcap import LEPktHdr
from dpkt.tcp import TCP, TCP_OPT_TIMESTAMP, parse_opts

from labctl.probes.segments import FLAG_BITS, Observation

RECORD, ETHERNET = LEPktHdr.__hdr_len__, Ethernet.__hdr_len__
IP_TYPES = {kind.to_bytes(2, "big") for kind in (ETH_TYPE_IP, ETH_TYPE_IP6)}


def read_packets(host: str, records: bytes) -> Iterator[Observation]:
    """The TCP segments in pcap records (without the file's header). One that was cut short while it
    was written is the end of them."""
    begin = RECORD
    while begin <= len(records):
        header = LEPktHdr(records[begin - RECORD : begin])
        frame = records[begin : begin + header.caplen]
        if len(frame) < header.caplen:
            break
        begin += header.caplen + RECORD
        # No Ethernet(frame): to guess what else a frame may be takes as long as all that follows.
        if frame[ETHERNET - 2 : ETHERNET] in IP_TYPES:
            at = header.tv_sec + header.tv_usec / 1e9
            if found := read_packet(host, at, frame[ETHERNET:], header.len - ETHERNET):
                yield found


def read_packet(host: str, at: float, data: bytes, whole: int = 0) -> Observation | None:
    """The TCP segment in an IP packet or the head of one, if there is one. `whole` is the packet's
    length on the wire, for a super-segment beyond 64 KiB: that has no length of its own."""
    try:
        packet = IP6(data) if data[:1] >= b"\x60" else IP(data)
    except Error:
        return None
    tcp = packet.data
    if not isinstance(tcp, TCP):
        return None
    if isinstance(packet, IP):
        ident, carried = packet.id, (packet.len or whole) - 4 * packet.hl
    else:
        ident, carried = 0, packet.plen or whole - packet.__hdr_len__
    timestamps = _timestamps(tcp.opts)
    return Observation(
        host,
        at,
        _endpoint(packet.src, tcp.sport),
        _endpoint(packet.dst, tcp.dport),
        tcp.seq,
        tcp.ack,
        _flags(tcp.flags),
        carried - 4 * tcp.off,
        tcp.win,
        (ident, timestamps[0] if timestamps else 0),
        timestamps,
    )


def _timestamps(options: bytes) -> tuple[int, int] | None:
    for option in parse_opts(options):
        if option and option[0] == TCP_OPT_TIMESTAMP and len(option[1]) == 8:
            return int.from_bytes(option[1][:4], "big"), int.from_bytes(option[1][4:], "big")
    return None


# Equal ones are one in memory: there may be hundreds of thousands of segments.
@lru_cache(1 << 8)
def _flags(bits: int) -> tuple[str, ...]:
    return tuple(name for name, bit in FLAG_BITS.items() if bits & bit)


@lru_cache(1 << 16)
def _endpoint(address: bytes, port: int) -> str:
    if len(address) == 4:
        return f"{inet_ntop(AF_INET, address)}:{port}"
    return f"[{inet_ntop(AF_INET6, address)}]:{port}"
