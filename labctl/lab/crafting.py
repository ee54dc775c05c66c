"""Packets that a step makes a host send: segments, and ICMP errors about connections. Pure: from
what a connection has sent so far to bytes."""

from __future__ import annotations

import struct
from importlib import import_module
from ipaddress import ip_address
from socket import IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP
from typing import TYPE_CHECKING, Any

from labctl.ground.data import dataclass
from labctl.lab.faults import FORGED_HOPS, FORGED_ID, address_of
from labctl.lab.icmp import Error
from labctl.probes.conversations import Conversation, Direction
from labctl.probes.observations import ECN_FIELDS, ECN_FLAGS, FLAG_BITS, MODULUS, Segment

if TYPE_CHECKING:
    from dpkt.ip import IP
    from dpkt.ip6 import IP6

NOP, MSS, SCALE, SACK, TIMESTAMPS, MD5, FAST_OPEN = 1, 2, 3, 4, 8, 19, 34
LONGEST_OPTIONS = 40
"""Bytes (RFC 9293, section 3.1)."""
FIRST_STAMP = 1000
"""The first TSval of an end that has sent none."""
ECE = 0x40


@dataclass(frozen=True)
class Position:
    """A number: `offset` from the connection's first one or, if `ahead`, from the one that its end
    would send next; for a timestamp, from the last one."""

    offset: int = 0
    ahead: bool = True

    def of(self, first: int, following: int) -> int:
        """How far after the first one it is."""
        start = following - first if self.ahead else 0
        return (start + self.offset) % MODULUS

    def said(self, word: str) -> str:
        """Itself in words, such as `next+5`."""
        if not self.ahead:
            return str(self.offset)
        return f"{word}{self.offset:+d}" if self.offset else word

    def __str__(self) -> str:
        return self.said("next")


@dataclass(frozen=True)
class Stamps:
    """Timestamps (RFC 7323): TSval counts from the first of the end that sends them, or from its
    last, and TSecr so from those of the other end."""

    value: Position = Position()
    echo: Position = Position()


@dataclass(frozen=True)
class Options:
    """The options of a segment. `stamps` is False for none, and True for those of the connection,
    if it has some. `raw` are whole options."""

    mss: int | None = None
    wscale: int | None = None
    sack: bool = False
    stamps: Stamps | bool = True
    fastopen: bytes | None = None
    md5: bytes | None = None
    raw: bytes = b""

    def packed(self, stamps: tuple[int, int] | None) -> bytes:
        """As they are written, with these timestamps, in whole words."""
        found = b"" if self.mss is None else struct.pack("!BBH", MSS, 4, self.mss)
        found += b"" if self.wscale is None else bytes([SCALE, 3, self.wscale])
        found += bytes([SACK, 2]) if self.sack else b""
        found += b"" if stamps is None else struct.pack("!BBII", TIMESTAMPS, 10, *stamps)
        for kind, value in ((FAST_OPEN, self.fastopen), (MD5, self.md5)):
            found += b"" if value is None else bytes([kind, 2 + len(value)]) + value
        found += self.raw
        return bytes([NOP] * (-len(found) % 4)) + found

    def __str__(self) -> str:
        words = [
            f"{name} {value}"
            for name, value in (("mss", self.mss), ("wscale", self.wscale)) if value is not None
        ] + (["sack"] if self.sack else [])  # fmt: skip
        if isinstance(self.stamps, Stamps):
            words += [f"tsval {self.stamps.value.said('last')}"]
            words += [f"tsecr {self.stamps.echo.said('last')}"]
        elif not self.stamps:
            words += ["no timestamps"]
        for name, value in (("fastopen", self.fastopen), ("md5", self.md5), ("raw", self.raw)):
            words += [] if value is None or (name == "raw" and not value) else [
                f"{name} {value.hex()}".rstrip()
            ]  # fmt: skip
        return " ".join(words)


@dataclass(frozen=True)
class Crafted:
    """A segment to inject into a connection, as if one of its ends had sent it. If `absolute`,
    numbers that count from no other are those on the wire. `ecn` has names of ECN_FLAGS, and one of
    ECN_FIELDS."""

    flags: tuple[str, ...]
    seq: Position = Position()
    ack: Position = Position()
    payload: str = ""
    options: Options = Options()
    window: int | None = None
    ecn: tuple[str, ...] = ()
    absolute: bool = False

    def craft(self, connection: Conversation, source: str) -> tuple[int, int, bytes]:
        """Its sequence and acknowledgement numbers, which count from the connection's first ones,
        and the IP packet. `source` is the end that seems to send it.

        Window and timestamps (RFC 7323) are those that the end sent last, unless others are wanted.
        So the receiver has no reason to take it for an old segment, unless the connection is an
        old one."""
        from dpkt.tcp import TCP

        target = connection.other(source)
        mine, other = connection.of(source), connection.of(target)
        acks = "ACK" in self.flags
        seq = self._number(self.seq, mine)
        ack = self._number(self.ack, other) if acks else 0
        options = self.options.packed(self._stamps(mine, other, source in connection.sent))
        here, there = address_of(source), address_of(target)
        tcp = TCP(
            sport=here[1],
            dport=there[1],
            seq=(mine.first + seq) % MODULUS,
            ack=(other.first + ack) % MODULUS if acks else 0,
            off=(TCP.__hdr_len__ + len(options)) // 4,
            win=mine.window if self.window is None else self.window,
            opts=options,
            data=self.payload.encode(),
        )
        tcp.flags = sum(FLAG_BITS[flag] for flag in self.flags)
        tcp.flags += sum(ECE << n for n, name in enumerate(ECN_FLAGS) if name in self.ecn)
        packet = _packet(here[0], there[0], tcp, IPPROTO_TCP)
        field = next((n for n, name in enumerate(ECN_FIELDS) if name in self.ecn), 0)
        setattr(packet, "tos" if hasattr(packet, "tos") else "fc", field)
        return seq, ack, bytes(packet)

    def _number(self, position: Position, direction: Direction) -> int:
        found = position.of(direction.first, direction.following)
        given = self.absolute and not position.ahead
        return (found - direction.first) % MODULUS if given else found

    def _stamps(self, mine: Direction, other: Direction, real: bool) -> tuple[int, int] | None:
        wanted = self.options.stamps
        if not wanted or (wanted is True and mine.timestamps is None):
            return None
        wanted = wanted if isinstance(wanted, Stamps) else Stamps()
        first = FIRST_STAMP if mine.stamp is None else mine.stamp
        value, echo = mine.timestamps or (first, 0)
        latest = other.timestamps[0] if other.timestamps else 0
        echo = echo if real and wanted.echo == Position() else latest
        begun = latest if other.stamp is None else other.stamp
        return (
            (first + wanted.value.of(first, value)) % MODULUS,
            (begun + wanted.echo.of(begun, echo)) % MODULUS,
        )

    def __str__(self) -> str:
        words = [*self.flags, *self.ecn, f"seq {self.seq}"]
        words += [f"ack {self.ack}"] if "ACK" in self.flags else []
        words += ["as on the wire"] if self.absolute else []
        words += [f"len {len(self.payload.encode())}"] if self.payload else []
        words += [f"window {self.window}"] if self.window is not None else []
        words += [str(self.options)] if self.options != Options() else []
        return " ".join(words)


def craft_error(error: Error, mtu: int, quoted: Segment, seq: int) -> bytes:
    """An ICMP error about a segment, from whom it was sent to, as if it had this sequence number;
    `mtu` is for fragmentation-needed. The IP packet is empty if IPv6 has no such error."""
    from dpkt.icmp import ICMP
    from dpkt.icmp6 import ICMP6
    from dpkt.tcp import TCP

    here, there = address_of(quoted.source), address_of(quoted.target)
    tcp = TCP(
        sport=here[1],
        dport=there[1],
        seq=seq,
        ack=(quoted.origin.ack + quoted.ack) % MODULUS if "ACK" in quoted.flags else 0,
        win=quoted.window,
    )
    tcp.flags = sum(FLAG_BITS[flag] for flag in quoted.flags)
    about = struct.pack("!I", mtu) + bytes(_packet(here[0], there[0], tcp, IPPROTO_TCP))
    if ":" not in here[0]:
        kind, code = error.v4
        message: Any = ICMP(type=kind, code=code, data=about)
        return bytes(_packet(there[0], here[0], message, IPPROTO_ICMP))
    if error.v6 is None:
        return b""
    message = ICMP6(type=error.v6[0], code=error.v6[1], data=about)
    return bytes(_packet(there[0], here[0], message, IPPROTO_ICMPV6))


def load_forge() -> None:
    """Imports what crafting needs, as the import takes longer than the crafting."""
    import_module("dpkt.ip6")  # and everything that it imports


def _packet(source: str, target: str, data: Any, protocol: int) -> IP | IP6:
    from dpkt.ip import IP
    from dpkt.ip6 import IP6

    src, dst = ip_address(source).packed, ip_address(target).packed
    if len(src) == 4:
        return IP(src=src, dst=dst, id=FORGED_ID, df=1, ttl=FORGED_HOPS, p=protocol, data=data)
    found = IP6(src=src, dst=dst, nxt=protocol, hlim=FORGED_HOPS, plen=len(data), data=data)
    found.flow = FORGED_ID
    return found
