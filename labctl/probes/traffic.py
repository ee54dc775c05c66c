"""Whose each captured packet is, found without reading it whole: there may be hundreds of thousands
of them, and a picture shows few.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from functools import partial
from io import FileIO
from itertools import chain, compress, islice
from mmap import ACCESS_READ, MADV_DONTNEED, mmap
from socket import IPPROTO_TCP
from struct import Struct

from labctl.ground.data import dataclass
from labctl.probes.observations import FLAG_BITS, Observation
from labctl.probes.owners import Owners
from labctl.probes.packets import ETHERNET, IP_TYPES, RECORD, endpoints, read_packet
from labctl.probes.pairing import owner
from labctl.probes.sockets import Ends

HEAD = Struct("<8xI4x12xHB5xHxB2x12s9xB6x")
"""A pcap record with TCP in IPv4 without options: its length, what it is, which fragment and which
protocol, the ends as they are on the wire, and the flags. Python has small numbers already, and
would have to make others."""
HEAD_KEPT = HEAD.size - RECORD.size
IPV4_TYPE, FIRST_BYTE = 0x0008, 0x45
WHOLE = {0x0000, 0x0040}
"""Fields of what is no fragment: without and with `don't fragment`."""
SYN, SYN_ACK = FLAG_BITS["SYN"], FLAG_BITS["SYN"] | FLAG_BITS["ACK"]

BATCH = 3_000
"""How many packets to put together at once, about."""
PART = 1 << 20
"""How many bytes of a file to sort before they are left to the kernel."""

Chosen = Callable[[Ends], bool]
"""Whether a connection matters, by its ends: the same both ways round."""


@dataclass
class _Host:
    """A host's capture: its records, where each begins that holds TCP, and whose it is, by number.
    `syns` are the places of SYNs among these; `here` says which numbers there are. Somebody may
    write its `size` bytes to a file."""

    records: bytearray | mmap = field(default_factory=bytearray)
    read: int = 0
    size: int = 0
    file: FileIO | None = None
    begins: array[int] = field(default_factory=lambda: array("Q"))
    numbers: array[int] = field(default_factory=lambda: array("I"))
    syns: array[int] = field(default_factory=lambda: array("I"))
    here: bytearray = field(default_factory=bytearray)

    def leave(self) -> None:
        """Leaves what was read of a file to the kernel, which has it still."""
        if isinstance(self.records, mmap):
            self.records.madvise(MADV_DONTNEED)

    def each(self, begins: Iterable[int]) -> Iterator[int]:
        """The places of some of its records, in order, to read one after the other: no more of a
        file is in memory than some of them."""
        places = iter(begins)
        while part := [*islice(places, BATCH)]:
            yield from part
            self.leave()


class Traffic:
    """The packets that hosts captured, by source and target. Times are CLOCK_REALTIME."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = defaultdict(_Host)
        self._numbers: dict[bytes | Ends, int] = {}
        self._ends: list[Ends] = []
        self._first: array[float] = array("d")
        self._syns: dict[str, tuple[int, dict[Ends, list[tuple[float, int]]]]] = {}

    def add(self, host: str, records: bytes | memoryview) -> None:
        """Takes in more of a host's capture: whole records."""
        each = self._hosts[host]
        each.size += len(records)
        if each.file is None:
            if isinstance(each.records, mmap):
                each.records = bytearray(each.records)
            each.records += records

    def map(self, host: str, file: mmap, begin: int) -> None:
        """Takes in a host's capture, whose records begin there in a file."""
        self._hosts[host] = _Host(file, begin, len(file))

    def follow(self, host: str, file: FileIO) -> None:
        """From now on somebody writes what is added of a host to a file, before it is read here."""
        begin = file.tell()
        self._hosts[host] = _Host(read=begin, size=begin, file=file)

    def settle(self) -> None:
        """Nobody writes to files any more, and they will be closed."""
        for each in self._hosts.values():
            if each.file:
                each.records, each.file = mmap(each.file.fileno(), 0, access=ACCESS_READ), None

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return sum(each.size for each in self._hosts.values())

    def first(self) -> Iterator[tuple[float, Ends]]:
        """Each source and target, and when something between them was first seen."""
        self._sort()
        return zip(self._first, self._ends, strict=True)

    def syns(self, host: str, ends: Ends) -> list[tuple[float, int]]:
        """When a host captured SYNs without ACK between two ends, and their numbers."""
        self._sort()
        each = self._hosts[host]
        known = self._syns.get(host)
        if known is None or known[0] != len(each.syns):
            found: dict[Ends, list[tuple[float, int]]] = defaultdict(list)
            for begin in each.each(map(each.begins.__getitem__, each.syns)):
                if seen := _read(host, each.records, begin):
                    found[seen.source, seen.target].append((seen.at, seen.seq))
            known = self._syns[host] = len(each.syns), found
        return known[1].get(ends, [])

    def moments(self, host: str, chosen: Chosen) -> array[float]:
        """When a host captured something, unless it was `chosen`; in order."""
        wanted, each = self._wanted(chosen), self._hosts[host]
        left = (not wanted[number] for number in each.numbers)
        times = (_time(each.records, begin) for begin in each.each(compress(each.begins, left)))
        return array("d", sorted(times))

    def observations(self, chosen: Chosen | None = None) -> Iterator[Observation]:
        """The segments of all connections, or of those that are `chosen`, host by host."""
        wanted = self._wanted(chosen)
        places = {
            host: array("Q", compress(each.begins, map(wanted.__getitem__, each.numbers)))
            for host, each in self._hosts.items()
        }
        return self._all(places)

    def batches(self) -> Iterator[tuple[Chosen, Iterable[Observation]]]:
        """The segments of some connections at a time, and which those are: to put all together at
        once takes too much memory. The last batch are those that nobody captured."""
        self._sort()
        count = Counter(chain.from_iterable(each.numbers for each in self._hosts.values()))
        batch: dict[Ends, int] = {}
        last, room = 0, BATCH
        for number, ends in enumerate(self._ends):
            if ends not in batch:
                if room <= 0:
                    last, room = last + 1, BATCH
                batch[ends] = batch[ends[::-1]] = last
            room -= count[number]
        places = [{host: array("Q") for host in self._hosts} for _ in range(last + 2)]
        for host, each in self._hosts.items():
            for begin, number in zip(each.begins, each.numbers, strict=True):
                places[batch[self._ends[number]]][host].append(begin)
        for n, hosts in enumerate(places):
            yield partial(_belongs, batch, last + 1, n), self._all(hosts)

    def _all(self, places: Mapping[str, array[int]]) -> Iterator[Observation]:
        for host, begins in places.items():
            each = self._hosts[host]
            found = (_read(host, each.records, begin) for begin in each.each(begins))
            yield from filter(None, found)

    def forwarded(self, owners: Mapping[str, str]) -> bool:
        """Whether a host captured what was neither from it nor for it, or may have: then a segment
        may have other ends elsewhere."""
        self._sort()
        if isinstance(owners, Owners) and not all(map(owners.settled, owners)):
            return True
        return any(
            host not in (owner(f"{address}:0", owners, host, 0.0) for address in pair)
            for host, each in self._hosts.items()
            for pair in {
                (source.rpartition(":")[0], target.rpartition(":")[0])
                for source, target in compress(self._ends, each.here)
            }
        )

    def _wanted(self, chosen: Chosen | None) -> bytearray:
        self._sort()
        return bytearray(chosen is None or chosen(ends) for ends in self._ends)

    def _sort(self) -> None:
        for host, each in self._hosts.items():
            if each.read < each.size and each.file:
                each.records = mmap(each.file.fileno(), 0, access=ACCESS_READ)
            while each.read < each.size:
                self._sort_more(host, each)
                each.leave()

    def _sort_more(self, host: str, each: _Host) -> None:
        records, begin, most = each.records, each.read, len(each.records)
        until = min(begin + PART, most)
        here, known, unpack = each.here, self._numbers.get, HEAD.unpack_from
        here.extend(bytes(len(self._ends) - len(here)))
        while begin < until and begin + RECORD.size <= most:
            key: bytes | Ends | None = None
            flags = 0
            if begin + HEAD.size <= most:
                kept, kind, first, part, protocol, key, flags = unpack(records, begin)
                if (
                    first != FIRST_BYTE
                    or protocol != IPPROTO_TCP
                    or kind != IPV4_TYPE
                    or part not in WHOLE
                    or kept < HEAD_KEPT
                ):
                    key = None
            else:
                _, _, kept, _ = RECORD.unpack_from(records, begin)
            following = begin + RECORD.size + kept
            if following > most:
                break
            if key is None and (found := _read(host, records, begin)):
                key = found.source, found.target
                flags = sum(FLAG_BITS[name] for name in found.flags)
            if key is not None:
                number = known(key)
                if number is None or not here[number]:
                    number = self._here(each, key, _time(each.records, begin))
                if flags & SYN_ACK == SYN:
                    each.syns.append(len(each.begins))
                each.begins.append(begin)
                each.numbers.append(number)
            begin = following
        each.read = begin if until <= begin < most else most  # one that was cut short ends them

    def _here(self, each: _Host, key: bytes | Ends, t: float) -> int:
        """The number of a source and a target that a host has not seen before `t`."""
        number = self._numbers.setdefault(key, len(self._ends))
        if number == len(self._ends):
            self._ends.append(key if isinstance(key, tuple) else endpoints(key))
            self._first.append(t)
            each.here.append(1)
        self._first[number] = min(t, self._first[number])
        each.here[number] = 1
        return number


def _belongs(batch: Mapping[Ends, int], unknown: int, number: int, ends: Ends) -> bool:
    return batch.get(ends, unknown) == number


def _time(records: bytearray | mmap, begin: int) -> float:
    seconds, nanos, _, _ = RECORD.unpack_from(records, begin)
    return float(seconds + nanos / 1e9)


def _read(host: str, records: bytearray | mmap, begin: int) -> Observation | None:
    """The segment in the record that begins there, if there is one."""
    seconds, nanos, kept, length = RECORD.unpack_from(records, begin)
    begin += RECORD.size
    frame = bytes(records[begin : begin + kept])
    if frame[ETHERNET - 2 : ETHERNET] not in IP_TYPES:
        return None
    return read_packet(host, seconds + nanos / 1e9, frame[ETHERNET:], length - ETHERNET)
