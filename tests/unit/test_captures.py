"""Captures: packets as they are read, grow, and are recorded."""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.judge import recorded
from labctl.probes.observations import PLAIN, Known, Loss, Observation
from labctl.probes.packets import RECORD, STAMPED_ALONE, read_packet, torn_at
from labctl.probes.segments import FILE_HEADER, Captures
from labctl.probes.traffic import Traffic
from tests.fake import FakeBackend, play, scenario
from tests.reported import RUN
from tests.sighted import EPOCH, HANDSHAKE, OWNERS, one, record, seen
from tests.unit.test_segments import any_observation

# --- Captures -------------------------------------------------------------------------------------


def read_packets(host: str, records: bytes) -> list[Observation]:
    """The segments in a host's capture."""
    traffic = Traffic()
    traffic.add(host, records)
    return list(traffic.observations())


@given(st.lists(any_observation(), max_size=5))
def test_packets_are_read_as_they_were_captured(observations: list[Observation]) -> None:
    v6 = [
        replace(
            o,
            mark=(0 if "[" in o.source else o.mark[0], o.mark[1]),
            timestamps=(o.mark[1], 0) if o.mark[1] else None,
            header=STAMPED_ALONE if o.mark[1] else PLAIN,
        )
        for o in observations
    ]
    read = read_packets("server", b"".join(map(record, v6)))
    assert [o.at for o in read] == pytest.approx([o.at for o in v6], abs=1e-6)
    assert read == [replace(o, host="server", at=r.at) for o, r in zip(v6, read, strict=True)]


def test_other_packets_are_left_out() -> None:
    good = record(HANDSHAKE[0])
    udp = good[: 16 + 14 + 9] + b"\x11" + good[16 + 14 + 10 :]
    arp = good[: 16 + 12] + b"\x08\x06" + good[16 + 14 :]
    assert len(read_packets("server", udp + arp + good)) == 1
    traffic = Traffic()
    traffic.add("server", udp + arp)
    assert [*traffic.first()] == []
    assert (read_packets("server", b"")) == []


def test_segments_beyond_what_ip_can_say() -> None:
    """A super-segment (BIG TCP, RFC 2675 without the option) has no length of its own."""
    o = one(0.1, "client ACK 1 1 len 100")
    data = bytearray(record(o))
    struct.pack_into("!H", data, 16 + 14 + 2, 0)
    (found,) = read_packets("client", bytes(data))
    assert found.length == 100


STAMPED = one(0.1, "client ACK 1 1 len 100", mark=7)
SEALED = replace(STAMPED, mark=(7, 9))
"""With timestamps, as record() writes them."""


def packet(o: Observation) -> bytes:
    """An IP packet, as captured."""
    return record(o)[RECORD.size + 14 :]


@pytest.mark.parametrize("cut", [1, 4, 12, 30, 60])
def test_a_record_that_was_cut_short_is_the_end(cut: int) -> None:
    good, torn = record(HANDSHAKE[0]), record(SEALED)
    assert len([*read_packets("server", good + torn)]) == 2
    assert len([*read_packets("server", good + torn[:-cut])]) == 1
    assert torn_at(good + torn) is None
    assert torn_at(good + torn[:-cut]) == len(good)
    assert torn_at(b"") is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says what of a file is in memory")
def test_of_a_capture_one_part_after_the_other_is_in_memory() -> None:
    packets, found = b"".join(map(record, HANDSHAKE)), Traffic()
    with TemporaryFile(buffering=0) as file:
        size = sum(file.write(packets * 16) for _ in range(800))
        file.truncate(size - 1)
        found.map("client", mmap(file.fileno(), 0, access=ACCESS_READ), 0)
        seen = enumerate(found.observations(), 1)
        at_once = {number: resident(file) for number, _ in seen if number % 2400 in (0, 2399)}
    assert [*at_once][-1] == 800 * 16 * len(HANDSHAKE) - 1  # the last record is cut short
    assert 0 < max(at_once.values()) < size / 2


def resident(file: IO[bytes]) -> int:
    """How many bytes of a file are mapped and in memory (proc_pid_smaps(5))."""
    text = Path("/proc/self/smaps").read_text("utf-8")
    mine = text.partition(f" {os.fstat(file.fileno()).st_ino} ")[2]
    return 1024 * int(mine.partition("\nRss:")[2].split()[0])


def test_a_record_that_says_what_can_not_be_is_torn() -> None:
    """More bytes kept than there were, or a second of as many nanoseconds."""
    good = record(HANDSHAKE[0])
    seconds, _, kept, whole = RECORD.unpack_from(good)
    frame = good[RECORD.size :]
    for fine in (RECORD.pack(seconds, 999_999_999, kept, whole), RECORD.pack(0, 0, kept, kept)):
        assert torn_at(fine + frame) is None
    for odd in (RECORD.pack(seconds, 10**9, kept, whole), RECORD.pack(0, 0, kept, kept - 1)):
        assert torn_at(good + odd + frame) == len(good)


def test_the_time_of_a_packet_is_to_the_nanosecond() -> None:
    good = record(HANDSHAKE[0])
    kept, whole = RECORD.unpack_from(good)[2:]
    (found,) = read_packets(
        "server", RECORD.pack(5, 250_000_000, kept, whole) + good[RECORD.size :]
    )
    assert found.at == 5.25


@pytest.mark.parametrize("v6", [False, True])
def test_what_has_no_whole_header_is_no_segment(v6: bool) -> None:
    data = packet(one(0.1, "client ACK 1 1 len 100", v6=v6))
    assert read_packet("client", 0.0, data)
    for length in range(len(data)):
        assert read_packet("client", 0.0, data[:length]) is None


@pytest.mark.parametrize(("offset", "segment"), [(0, True), (0x2000, True), (1, False),
                                                 (0x1000, False), (0x4000, True)])  # fmt: skip
def test_a_fragment_that_is_not_the_first_is_no_segment(offset: int, segment: bool) -> None:
    """The upper bits are flags: more fragments, don't fragment (RFC 791, section 3.1)."""
    data = bytearray(packet(HANDSHAKE[0]))
    struct.pack_into("!H", data, 6, offset)
    assert (read_packet("client", 0.0, bytes(data)) is not None) == segment


def test_options_of_ip_come_before_the_segment() -> None:
    data = packet(STAMPED)
    longer = bytes([0x46]) + data[1:2] + struct.pack("!H", 144) + data[4:20] + bytes(4) + data[20:]
    found = read_packet("client", 0.0, longer)
    assert found and (found.length, found.source) == (100, STAMPED.source)


def test_a_super_segment_of_ipv6_is_as_long_as_it_was_on_the_wire() -> None:
    data = bytearray(packet(one(0.1, "client ACK 1 1", v6=True)))
    struct.pack_into("!H", data, 4, 0)
    found = read_packet("client", 0.0, bytes(data), len(data) + 70_000)
    assert found and found.length == 70_000


@pytest.mark.parametrize(
    ("options", "timestamps"),
    [
        (b"", None),
        (b"\1\1\x08\x0a" + struct.pack("!II", 3, 4), (3, 4)),
        (b"\x08\x0a" + struct.pack("!II", 3, 4) + b"\1\1", (3, 4)),  # in another order
        (b"\2\4\5\xb4", None),  # a maximum segment size
        (b"\2\4\5\xb4\x08\x0a" + struct.pack("!II", 3, 4) + b"\1\1", (3, 4)),
        (b"\x08\x06" + struct.pack("!I", 3) + b"\1\1", None),  # too short for two
    ],
)  # fmt: skip
def test_timestamps_wherever_they_stand(options: bytes, timestamps: tuple[int, int] | None) -> None:
    data = bytearray(packet(one(0.1, "client ACK 1 1")) + options)
    data[20 + 12] = (5 + len(options) // 4) << 4
    struct.pack_into("!H", data, 2, len(data))
    found = read_packet("client", 0.0, bytes(data))
    assert found and found.timestamps == timestamps
    assert (found.length, found.mark[1]) == (0, timestamps[0] if timestamps else 0)


@pytest.mark.parametrize("host", ["server", "client"])
def test_the_captures_of_a_run(host: str) -> None:
    data = (RUN / f"{host}.pcap").read_bytes()
    assert data.startswith(FILE_HEADER)
    magic, *_, link = struct.unpack("<IHHiIII", FILE_HEADER)
    assert (magic, link) == (0xA1B23C4D, 1)  # nanoseconds; LINKTYPE_ETHERNET
    found = read_packets(host, data[len(FILE_HEADER) :])
    assert [" ".join(o.flags) for o in found[:3]] == ["SYN", "SYN ACK", "ACK"]
    sent = sum(o.length for o in found if o.source.endswith(":8000") and "FIN" not in o.flags)
    assert sent == 187


def test_the_segments_of_a_run() -> None:
    found = recorded.load(RUN).history.segments()
    assert len(found) > 30
    assert not any(s.lost or s.t is None for s in found)
    assert {(s.sender, s.receiver) for s in found} == {("server", "client"), ("client", "server")}
    assert [s.time for s in found] == sorted(s.time for s in found)


def test_captures_grow() -> None:
    captures = Captures()
    assert captures.segments(Known(OWNERS, EPOCH)).segments == []
    for number, o in enumerate(HANDSHAKE, 1):
        captures.add("client", record(o if o.host == "client" else seen(o)))
        assert len(captures.segments(Known(OWNERS, EPOCH)).segments) == number


def test_what_is_known_beside_captures_is_heeded_when_it_comes() -> None:
    captures, syn = Captures(), HANDSHAKE[0]
    captures.add("client", record(syn))
    captures.add("server", record(seen(syn)))
    (found,) = captures.segments(Known(OWNERS, EPOCH)).segments
    assert (found.dropped, found.receiver) == (None, "server")
    lossy = Known(OWNERS, EPOCH, [Loss(7, seen(syn))])
    assert [s.dropped for s in captures.segments(lossy).segments] == [7]
    assert captures.segments(lossy) is captures.segments(lossy)
    others = {address: "router" if host == "server" else host for address, host in OWNERS.items()}
    assert [s.receiver for s in captures.segments(Known(others, EPOCH)).segments] == ["router"]
    assert captures.segments(Known(OWNERS, EPOCH)).late == []
    assert captures.segments(Known(OWNERS, EPOCH, flight=1e-6)).late == [0]


def test_what_a_run_captures_is_recorded(tmp_path: Path) -> None:
    def connected(lab: FakeBackend) -> None:
        now = lab.time() - EPOCH
        syn = replace(HANDSHAKE[0], at=EPOCH + now, source="198.18.0.3:40000")
        lab.packets("client", record(syn))

    case = scenario(
        "title: t\nhosts: {server: {}, client: {run: cat}}\nsteps: [{start: client}]\n"
        "expect: [{segments: {from: client, flags: SYN, count: 1}}]\n"
    )
    found = play(case, FakeBackend({"start client": connected}), tmp_path)
    data = (found.folder / "client.pcap").read_bytes()
    assert data.startswith(FILE_HEADER)
    assert len(read_packets("client", data[len(FILE_HEADER) :])) == 1
