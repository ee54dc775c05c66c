"""Which connections a capture has, and which of them to import: those that end badly first.

There may be millions of packets. So this counts in a first pass, and only what is chosen is kept in
a second one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from socket import AF_INET, AF_INET6, IPPROTO_TCP, inet_pton
from typing import NamedTuple

from labctl.ground.data import dataclass
from labctl.ground.errors import UsageError
from labctl.imports.files import Capture
from labctl.imports.links import KNOWN, LINKS
from labctl.probes.observations import FLAG_BITS, MODULUS
from labctl.probes.packets import FOLLOWING, IPV4, IPV6, TCP

MOST_CONNECTIONS = 100_000
MOST_PACKETS = 150_000
"""Packets of all files together that a run gets, at most: so many take a report some seconds, and
some hundred megabytes."""
HEADERS = 128
"""Octets from the IP header on that are kept: its largest, and TCP's with its options."""
ONCE = 1_000_000
"""Nanoseconds between the captures of one packet on several interfaces of a host, at most."""
MANY = 10_000
OPENINGS = 6
"""Segments of a connection by which it is known again elsewhere."""
SYN, FIN, RST, ACK = (FLAG_BITS[name] for name in ("SYN", "FIN", "RST", "ACK"))

Key = bytes
"""A connection in one file: the end that compares lower, and the other one. Each is an address with
a port."""


@dataclass(frozen=True)
class Wanted:
    """Which packets count: those from or to one of these ports and one of these addresses, if there
    are any."""

    ports: frozenset[int] = frozenset()
    addresses: frozenset[str] = frozenset()

    @property
    def places(self) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """The same as on the wire. Raises UsageError for what is no address."""
        packed = set()
        for text in self.addresses:
            try:
                packed.add(inet_pton(AF_INET6 if ":" in text else AF_INET, text))
            except OSError as exc:
                raise UsageError(f"--host {text}: no IPv4 or IPv6 address") from exc
        return frozenset(port.to_bytes(2, "big") for port in self.ports), frozenset(packed)


class Glance(NamedTuple):
    """What a first look at a packet shows: its ends, its flags as bits, its number, the one that it
    acknowledges, and how much data it has."""

    source: bytes
    target: bytes
    flags: int
    seq: int
    ack: int
    length: int


def glance(ip: bytes, whole: int) -> Glance | None:
    """See Glance. None for what is no TCP segment; `whole` is the length of the IP packet."""
    if b"\x60" <= ip[:1] < b"\x70":
        if len(ip) < IPV6.size + TCP.size:
            return None
        _, total, protocol, source, target = IPV6.unpack_from(ip)
        start, carried = IPV6.size, total or whole - IPV6.size
    else:
        if len(ip) < IPV4.size or not b"\x40" <= ip[:1] < b"\x50":
            return None
        first, _, total, _, fragment, protocol, source, target = IPV4.unpack_from(ip)
        start = 4 * (first & 0xF)
        if fragment & FOLLOWING or start < IPV4.size or len(ip) < start + TCP.size:
            return None
        carried = (total or whole) - start
    offset = ip[start + 12] >> 4 << 2
    if protocol != IPPROTO_TCP or carried < offset or offset < 20:
        return None
    ports = ip[start : start + 4]
    _, _, seq, ack, _, flags, _ = TCP.unpack_from(ip, start)
    return Glance(source + ports[:2], target + ports[2:], flags, seq, ack, carried - offset)


@dataclass(slots=True)
class Tally:
    """A connection in one file. `first` is when its first packet was seen, in nanoseconds;
    `openings` are its first segments, by all that no NAT changes. `flags` are all that it ever had,
    `again` how often a number was sent that was sent before."""

    first: int
    packets: int = 0
    flags: int = 0
    fins: int = 0
    again: int = 0
    openings: list[int] = field(default_factory=list)
    following: list[int | None] = field(default_factory=lambda: [None, None])

    def take(self, seen: Glance, back: bool) -> None:
        """Takes in the next packet, of one of the two directions."""
        self.packets += 1
        self.flags |= seen.flags
        if len(self.openings) < OPENINGS:
            self.openings.append(hash((seen.flags, seen.seq, seen.ack, seen.length)))
        if seen.flags & FIN:
            self.fins |= 1 << back
        span = seen.length + bool(seen.flags & (SYN | FIN))
        if span and not seen.flags & RST:
            end, known = (seen.seq + span) % MODULUS, self.following[back]
            if known is not None and not 0 < (end - known) % MODULUS < MODULUS // 2:
                self.again += not seen.flags & SYN or end == known
            else:
                self.following[back] = end

    @property
    def trouble(self) -> int:
        """How badly it ends: 3 by a reset or without an answer, 2 if it does not end and something
        was repeated, 1 if something was repeated, 0 if nothing of that is so."""
        if self.flags & RST or not self.flags & ACK:
            return 3
        return 0 if not self.again else 1 if self.fins == 3 else 2


def key_of(seen: Glance) -> tuple[Key, bool]:
    """A packet's connection, and whether it goes from the second end to the first."""
    if seen.source < seen.target:
        return seen.source + seen.target, False
    return seen.target + seen.source, True


class Head(NamedTuple):
    """The head of a packet: when (nanoseconds), the IP header and what follows, the IP packet's
    whole length, and whether the capturing host sent it, if its link tells."""

    nanos: int
    ip: bytes
    length: int
    outgoing: bool | None


def heads(capture: Capture, wanted: Wanted) -> Iterator[tuple[Head, Glance]]:
    """The wanted TCP segments of a file, in its order. Raises UsageError."""
    ports, addresses = wanted.places
    for number, packet in enumerate(capture.packets(), 1):
        where = LINKS.get(packet.link)
        if where is None:
            raise UsageError(
                f"{capture.path}: packet {number} has link type {packet.link}; known are {KNOWN}"
            )
        begin, outgoing = where(packet.data)
        if begin < 0:
            continue
        whole = packet.length - begin
        ip = packet.data[begin : begin + HEADERS]
        seen = glance(ip, whole)
        if seen is None:
            if len(packet.data) < packet.length:
                capture.cut = len(packet.data)
            continue
        if ports and not {seen.source[-2:], seen.target[-2:]} & ports:
            continue
        if addresses and not {seen.source[:-2], seen.target[:-2]} & addresses:
            continue
        yield Head(packet.nanos, ip, whole, outgoing), seen


def count(capture: Capture, wanted: Wanted) -> dict[Key, Tally]:
    """The connections of a file, in order of their first packets. Raises UsageError."""
    found: dict[Key, Tally] = {}
    for head, seen in heads(capture, wanted):
        key, back = key_of(seen)
        tally = found.get(key)
        if tally is None:
            if len(found) >= MOST_CONNECTIONS:
                raise UsageError(
                    f"{capture.path}: more than {MOST_CONNECTIONS:,} connections",
                    "choose some of them by --port or --host",
                )
            tally = found[key] = Tally(head.nanos)
        tally.take(seen, back)
    return found


def partners(one: dict[Key, Tally], other: dict[Key, Tally]) -> dict[Key, Key]:
    """Which connection of another file each of a file's is: the one of the same ends, or behind a
    NAT the only one that begins in the same way."""
    found = {key: key for key in one if key in other}
    alone: dict[int, list[Key]] = {}
    for key, tally in other.items():
        if key not in one:
            for opening in tally.openings:
                alone.setdefault(opening, []).append(key)
    for key, tally in one.items():
        if key not in found:
            same = {each for opening in tally.openings for each in alone.get(opening, ())}
            if len(same) == 1:
                found[key] = same.pop()
    return found


@dataclass(frozen=True)
class Chosen:
    """The connections of each file to import, by key: the same number for the same connection. And
    how many are left out, and how many packets."""

    numbers: Sequence[dict[Key, int]]
    left_out: int = 0
    packets: int = 0


def choose(counted: Sequence[dict[Key, Tally]], most: int = MOST_PACKETS) -> Chosen:
    """As many connections as there is room for: first those that end badly, then the first."""
    pairs = partners(*counted) if len(counted) == 2 else {}
    groups = [[key, pairs.get(key)] for key in counted[0]]
    if len(counted) == 2:
        there = set(pairs.values())
        groups += [[None, key] for key in counted[1] if key not in there]

    def tallies(group: Sequence[Key | None]) -> list[Tally]:
        return [c[key] for c, key in zip(counted, group, strict=False) if key is not None]

    groups.sort(
        key=lambda g: (-max(t.trouble for t in tallies(g)), min(t.first for t in tallies(g)))
    )
    numbers: list[dict[Key, int]] = [{} for _ in counted]
    room, left_out, packets = most, 0, 0
    for number, group in enumerate(groups):
        size = sum(tally.packets for tally in tallies(group))
        if size > room and number:
            left_out, packets = left_out + 1, packets + size
            continue
        room -= size
        for mine, key in zip(numbers, group, strict=False):
            if key is not None:
                mine[key] = number
    return Chosen(numbers, left_out, packets)


def _unrouted(ip: bytes) -> bytes:
    """A packet's head without what routers change: the time to live, and IPv4's checksum."""
    return ip[:7] + ip[8:] if ip[0] >> 4 == 6 else ip[:8] + ip[9:10] + ip[12:]


def _distinct(ip: bytes, seen: Glance) -> bool:
    """Whether a host would not send the same once more at once: an acknowledgement alone it may."""
    counted = ip[0] >> 4 == 4 and ip[4:6] != b"\0\0"
    return counted or bool(seen.length or seen.flags & (SYN | FIN))


def gather(
    capture: Capture, wanted: Wanted, numbers: dict[Key, int], most: int = MOST_PACKETS
) -> tuple[list[tuple[int, Head]], int]:
    """The heads of the chosen connections, with their numbers, in order of time; and how many
    packets had no room. A packet that was captured on several interfaces counts once. Raises
    UsageError."""
    latest: dict[bytes, int] = {}
    found: list[tuple[int, Head]] = []
    beyond = 0
    for head, seen in heads(capture, wanted):
        number = numbers.get(key_of(seen)[0])
        if number is None:
            continue
        same = _unrouted(head.ip)
        before, latest[same] = latest.get(same), head.nanos
        if before is not None and abs(head.nanos - before) < ONCE and _distinct(head.ip, seen):
            continue
        if len(latest) > MANY:
            latest = {ip: nanos for ip, nanos in latest.items() if head.nanos - nanos < ONCE}
        if len(found) >= most:
            beyond += 1
            continue
        found.append((number, head))
    found.sort(key=lambda pair: pair[1].nanos)
    return found, beyond
