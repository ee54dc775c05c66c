"""Files of captures: pcap and pcapng, also compressed by gzip, as tcpdump and Wireshark write them
(draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng).

This reads one packet at a time, so memory does not grow with the file. dpkt reads pcapng too, but
takes all times by the first interface, and believes any length that a file claims.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import IO, NamedTuple, cast

from labctl.ground.data import dataclass
from labctl.ground.errors import UsageError

LARGEST = 1 << 24
"""Octets of one packet or block, at most. tcpdump refuses larger packets than 256 KiB."""
INTERFACES = 1 << 12
NANO = 1_000_000_000
LATEST = 1 << 63
"""Nanoseconds: no clock of a capture shows the year 2262."""
GZIP = b"\x1f\x8b"
SECTION = 0x0A0D0D0A
PCAP = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
"""The first word of a pcap file, and how many nanoseconds its fractions of a second count."""
PCAPNG_ORDER = 0x1A2B3C4D
OLD, SIMPLE, INTERFACE, ENHANCED = 2, 3, 1, 6
"""Kinds of blocks of pcapng."""
RESOLUTION, SHIFT = 9, 14
"""Options of an interface: in what its times count, and seconds to add to them."""


class Packet(NamedTuple):
    """A captured packet: when (nanoseconds since 1970), its link type, its head as far as the file
    has it, and how long it was."""

    nanos: int
    link: int
    data: bytes
    length: int


@dataclass
class Capture:
    """A file. Once all was read, `torn` is where it was cut short within its last packet, and `cut`
    how many bytes it has of a packet that may be a TCP segment, but has too few to tell."""

    path: Path
    torn: int | None = None
    cut: int | None = None

    def packets(self) -> Iterator[Packet]:
        """Its packets, in the file's order. Raises UsageError, with the place, for what is no
        capture."""
        with _opened(self.path) as file:
            reader = _Reader(self, file)
            try:
                yield from reader.packets()
            except EOFError:  # also gzip's own
                self.torn = reader.begun
            except (OSError, zlib.error) as exc:
                raise reader.error(f"it can't be read on: {exc}") from exc


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            if not path.is_file():
                raise UsageError(f"{path}: this is no file")
            packed = file.read(2) == GZIP
            file.seek(0)
            if packed:
                with gzip.open(file) as unpacked:
                    yield cast(IO[bytes], unpacked)
            else:
                yield file
    except OSError as exc:
        raise UsageError(f"{path}: can't be read: {exc.strerror or exc}") from exc


@dataclass(frozen=True)
class _Interface:
    """An interface of a pcapng file: its link type, in what its times count (`unit` of them are a
    second), and how many nanoseconds to add."""

    link: int
    unit: int = 1_000_000
    shift: int = 0

    def nanos(self, high: int, low: int) -> int:
        """A time of the file."""
        return ((high << 32) | low) * NANO // self.unit + self.shift


class _Reader:
    """A place in a file: `at` is where it reads on, `begun` where the packet or block began."""

    def __init__(self, capture: Capture, file: IO[bytes]) -> None:
        self._path, self._file = capture.path, file
        self.at = self.begun = 0

    def error(self, what: str) -> UsageError:
        """The error about the packet or block that begins here."""
        return UsageError(f"{self._path}: at byte {self.begun}: {what}")

    def take(self, size: int) -> bytes:
        """The next octets. Raises EOFError if the file has no more."""
        found = self._file.read(size)
        self.at += len(found)
        if len(found) < size:
            raise EOFError
        return found

    def packets(self) -> Iterator[Packet]:
        """All packets, from the file's beginning on."""
        try:
            first = self.take(4)
        except EOFError:
            raise self.error("it is empty, and no capture") from None
        for order in "<>":
            (word,) = Struct(f"{order}I").unpack(first)
            if word in PCAP:
                return self._pcap(order, PCAP[word])
            if word == SECTION:
                return self._pcapng()
        raise self.error(f"it begins with {first.hex(' ')}, and is neither pcap nor pcapng")

    # --- pcap -------------------------------------------------------------------------------------

    def _pcap(self, order: str, tick: int) -> Iterator[Packet]:
        try:
            major, minor, _, link = Struct(f"{order}HH12sI").unpack(self.take(20))
        except EOFError:
            raise self.error("the head of the file is cut short") from None
        if major != 2:
            raise self.error(f"pcap of version {major}.{minor}; this reads version 2")
        record, link = Struct(f"{order}IIII"), link & 0xFFFF
        while head := self._head(16):
            seconds, fraction, kept, length = record.unpack(head)
            if kept > LARGEST:
                raise self.error(f"a packet of {kept} bytes; the most is {LARGEST}")
            if fraction * tick >= NANO:
                raise self.error("a time with more than a second's fraction")
            yield Packet(seconds * NANO + fraction * tick, link, self.take(kept), length)

    def _head(self, size: int) -> bytes:
        """The head of the next packet or block; empty at the file's end."""
        self.begun = self.at
        found = self._file.read(size)
        self.at += len(found)
        if found and len(found) < size:
            raise EOFError
        return found

    # --- pcapng -----------------------------------------------------------------------------------

    def _pcapng(self) -> Iterator[Packet]:
        order, interfaces = "<", list[_Interface]()
        head = Struct("<I").pack(SECTION) + self.take(4)
        while head:
            kind = int.from_bytes(head[:4], "little" if order == "<" else "big")
            if kind == SECTION:
                magic = self.take(4)
                order = "<" if int.from_bytes(magic, "little") == PCAPNG_ORDER else ">"
                if order == ">" and int.from_bytes(magic, "big") != PCAPNG_ORDER:
                    raise self.error(f"a section with the byte order {magic.hex(' ')}")
                interfaces = []
            body = self._body(order, head, 4 if kind == SECTION else 0)
            if kind == INTERFACE:
                if len(interfaces) >= INTERFACES:
                    raise self.error(f"more than {INTERFACES} interfaces")
                interfaces.append(self._interface(order, body))
            elif kind in (ENHANCED, OLD):
                yield self._packet(order, kind, body, interfaces)
            elif kind == SIMPLE:
                raise self.error("a packet without a time (a simple packet block)")
            head = self._head(8)

    def _body(self, order: str, head: bytes, taken: int) -> bytes:
        """What a block has between its two lengths, beyond the octets `taken`."""
        (size,) = Struct(f"{order}I").unpack(head[4:])
        if size % 4 or not 12 + taken <= size <= LARGEST:
            raise self.error(f"a block of {size} bytes")
        body, end = self.take(size - 12 - taken), self.take(4)
        if end != head[4:]:
            raise self.error("a block whose two lengths differ")
        return body

    def _interface(self, order: str, body: bytes) -> _Interface:
        if len(body) < 8:
            raise self.error("an interface that is cut short")
        link, _, _ = Struct(f"{order}HHI").unpack_from(body)
        unit, shift, at = 1_000_000, 0, 8
        while at + 4 <= len(body):
            code, size = Struct(f"{order}HH").unpack_from(body, at)
            value = body[at + 4 : at + 4 + size]
            if len(value) < size:
                raise self.error("an option that is longer than its block")
            if code == RESOLUTION and size == 1:
                power = value[0] & 0x7F
                if power > 63:
                    raise self.error(f"times that count a second's part number {value[0]}")
                unit = (2 if value[0] & 0x80 else 10) ** power
            elif code == SHIFT and size == 8:
                (seconds,) = Struct(f"{order}q").unpack(value)
                shift = seconds * NANO
            elif not code:
                break
            at += 4 + size + -size % 4
        return _Interface(link, unit, shift)

    def _packet(self, order: str, kind: int, body: bytes, interfaces: list[_Interface]) -> Packet:
        if len(body) < 20:
            raise self.error("a packet block that is cut short")
        form = Struct(f"{order}IIIII" if kind == ENHANCED else f"{order}HxxIIII")
        number, high, low, kept, length = form.unpack_from(body)
        if number >= len(interfaces):
            raise self.error(f"a packet of interface {number}; there are {len(interfaces)}")
        if kept > len(body) - 20:
            raise self.error(f"a packet of {kept} bytes in a block that has {len(body) - 20}")
        nanos = interfaces[number].nanos(high, low)
        if not 0 <= nanos < LATEST:
            raise self.error("a time that no clock shows")
        return Packet(nanos, interfaces[number].link, body[20 : 20 + kept], length)
