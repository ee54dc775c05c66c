"""Files of captures: every form that tcpdump and Wireshark write, and those that nobody does."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labctl.ground.errors import UsageError
from labctl.imports.census import Wanted, count, heads
from labctl.imports.files import LARGEST, Capture, Packet
from tests.captured import (
    CLIENT,
    SERVER,
    block,
    closed,
    frames,
    handshake,
    imported,
    pcap,
    pcapng,
)
from tests.damaged import damaged

SENT = [*handshake(), *closed(1.0)]
FRAMES = frames(SENT, SERVER)
TAG = b"\x81\x00\x00\x05"


def read(path: Path) -> list[Packet]:
    return list(Capture(path).packets())


def times(path: Path) -> list[float]:
    return [round(packet.nanos / 1e9, 6) for packet in read(path)]


WANTED = [round(t, 6) for t, _ in FRAMES]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("nanos", [True, False])
def test_pcap(tmp_path: Path, order: str, nanos: bool) -> None:
    path = pcap(tmp_path / "a.pcap", FRAMES, order=order, nanos=nanos)
    assert times(path) == WANTED
    assert [packet.data for packet in read(path)] == [data for _, data in FRAMES]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("options", "unit"),
    [(b"", 1e6), ((9, 1, 9), 1e9), ((9, 1, 0x80 | 30), float(1 << 30)), ((9, 1, 3), 1e3)],
)
def test_pcapng(tmp_path: Path, order: str, options: tuple[int, ...], unit: float) -> None:
    told = struct.pack(f"{order}HHBxxx", *options) if options else b""
    path = pcapng(tmp_path / "a.pcapng", FRAMES, order=order, options=told, unit=unit)
    assert times(path) == pytest.approx(WANTED, abs=max(1e-6, 1 / unit))


def test_pcapng_counts_from_an_offset(tmp_path: Path) -> None:
    told = struct.pack("<HHq", 14, 8, 1000)
    path = pcapng(tmp_path / "a.pcapng", [(t - 1000, data) for t, data in FRAMES], options=told)
    assert times(path) == WANTED


def test_each_interface_has_a_clock_of_its_own(tmp_path: Path) -> None:
    """dpkt takes the first one's for all."""
    path = pcapng(tmp_path / "a.pcapng", FRAMES[:1])
    nanos = block(1, struct.pack("<HHI", 101, 0, 0) + struct.pack("<HHBxxx", 9, 1, 9))
    high, low = divmod(round(FRAMES[1][0] * 1e9), 1 << 32)
    data = FRAMES[1][1][14:]
    other = block(6, struct.pack("<IIIII", 1, high, low, len(data), len(data)) + data)
    path.write_bytes(path.read_bytes() + nanos + block(5, bytes(8)) + other)
    assert times(path) == WANTED[:2]
    assert [packet.link for packet in read(path)] == [1, 101]


def test_gzip(tmp_path: Path) -> None:
    path = pcap(tmp_path / "a.pcap", FRAMES)
    packed = tmp_path / "a.pcap.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == read(path)


LINKED: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "vlan": (1, lambda frame: frame[:12] + TAG + frame[12:]),
    "vlans": (1, lambda frame: frame[:12] + b"\x88\xa8\x00\x01" + TAG + frame[12:]),
    "cooked": (113, lambda frame: b"\x00\x04" + bytes(12) + frame[12:]),
    "cooked 2": (276, lambda frame: frame[12:14] + bytes(8) + b"\x04" + bytes(9) + frame[14:]),
    "raw": (101, lambda frame: frame[14:]),
    "ipv4": (228, lambda frame: frame[14:]),
    "null": (0, lambda frame: b"\x02\x00\x00\x00" + frame[14:]),
    "loop": (108, lambda frame: b"\x00\x00\x00\x02" + frame[14:]),
}


@pytest.mark.parametrize("kind", LINKED)
def test_links(tmp_path: Path, kind: str) -> None:
    link, made = LINKED[kind]
    plain = pcap(tmp_path / "plain.pcap", FRAMES)
    path = pcap(tmp_path / "a.pcap", [(t, made(data)) for t, data in FRAMES], link=link)
    wanted = [seen for _, seen in heads(Capture(plain), Wanted())]
    assert [seen for _, seen in heads(Capture(path), Wanted())] == wanted
    outgoing = {head.outgoing for head, _ in heads(Capture(path), Wanted())}
    assert outgoing == ({True} if "cooked" in kind else {None})


def test_ipv6(tmp_path: Path) -> None:
    client, server = "[fd00::3]:40000", "[fd00::2]:8000"
    path = pcap(tmp_path / "a.pcap", frames(handshake(0.0, client, server), server))
    (tally,) = count(Capture(path), Wanted()).values()
    assert tally.packets == 3


def test_what_is_cut_off_behind_its_headers(tmp_path: Path) -> None:
    sent = [*handshake(), *closed(1.0)]
    path = pcap(tmp_path / "a.pcap", frames(sent, SERVER), snap=54)
    assert len(list(heads(Capture(path), Wanted()))) == len(sent)


@pytest.mark.parametrize("version", [0x35, 0x55, 0x75, 0xF5])
def test_what_is_no_ip_is_no_segment(tmp_path: Path, version: int) -> None:
    (t, first), *others = frames([*handshake(), *closed(1.0)], SERVER)
    path = pcap(tmp_path / "a", [(t, first[:14] + bytes([version]) + first[15:]), *others])
    assert len(list(heads(Capture(path), Wanted()))) == len(others)


def test_filters(tmp_path: Path) -> None:
    sent = [*handshake(), *handshake(0.5, "10.0.0.9:40001", "10.0.0.2:9000")]
    path = pcap(tmp_path / "a.pcap", [*frames(sent, SERVER)])

    def found(**wanted: frozenset[object]) -> int:
        return len(count(Capture(path), Wanted(**wanted)))  # type: ignore[arg-type]

    assert found() == 2
    assert found(ports=frozenset([8000])) == 1
    assert found(addresses=frozenset(["10.0.0.9"])) == 1
    assert found(ports=frozenset([8000]), addresses=frozenset(["10.0.0.9"])) == 0
    with pytest.raises(UsageError, match="--host here: no IPv4 or IPv6 address"):
        found(addresses=frozenset(["here"]))


# --- What is damaged ------------------------------------------------------------------------------


def test_a_file_that_ends_within_a_packet(tmp_path: Path) -> None:
    path = pcap(tmp_path / "a.pcap", FRAMES)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    capture = Capture(path)
    assert len(list(capture.packets())) == len(FRAMES) - 1
    assert capture.torn == len(whole) - len(FRAMES[-1][1]) - 16


def test_gzip_that_is_cut_short(tmp_path: Path) -> None:
    path = pcap(tmp_path / "a.pcap", FRAMES)
    packed = gzip.compress(path.read_bytes(), 0)
    path.write_bytes(packed[:-100])
    capture = Capture(path)
    assert 0 < len(list(capture.packets())) < len(FRAMES)
    assert capture.torn


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at byte 0: it is empty, and no capture"),
        (b"GET / HTTP/1.1", "at byte 0: it begins with 47 45 54 20, and is neither pcap nor"),
        (struct.pack("<I", 0xA1B2C3D4), "at byte 0: the head of the file is cut short"),
        (struct.pack("<IHH16x", 0xA1B2C3D4, 1, 0), "at byte 0: pcap of version 1.0"),
        (struct.pack("<IHH12xIIIII", 0xA1B2C3D4, 2, 4, 1, 0, 0, 1 << 31, 9),
         "at byte 24: a packet of 2147483648 bytes"),
        (struct.pack("<IHH12xIIIII", 0xA1B2C3D4, 2, 4, 1, 0, 10**6, 0, 0), "at byte 24: a time"),
        (struct.pack("<III", 0x0A0D0D0A, 28, 7), "at byte 0: a section with the byte order 07"),
        (struct.pack("<III", 0x0A0D0D0A, 1 << 30, 0x1A2B3C4D), "at byte 0: a block of 1073741824"),
        (block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(6, bytes(20)),
         "at byte 28: a packet of interface 0; there are 0"),
        (block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(3, bytes(8)),
         "at byte 28: a packet without a time"),
        (block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))[:-4] + b"1234",
         "at byte 0: a block whose two lengths differ"),
        (gzip.compress(bytes(200), mtime=0), "at byte 0: it begins with 00 00 00 00"),
        (b"\x1f\x8bno gzip at all", "at byte 0: it can't be read on"),
    ],
)  # fmt: skip
def test_what_is_no_capture(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(content)
    with pytest.raises(UsageError) as found:
        read(path)
    assert f"{path}: {message}" in str(found.value)


def test_a_link_that_nobody_knows(tmp_path: Path) -> None:
    path = pcap(tmp_path / "a.pcap", FRAMES, link=105)
    with pytest.raises(UsageError, match="packet 1 has link type 105; known are Ethernet"):
        count(Capture(path), Wanted())


@pytest.mark.parametrize("name", ["missing.pcap", "."])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="can't be read: "):
        read(tmp_path / name)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_is_too_much(tmp_path: Path, data: st.DataObject) -> None:
    """A file of which some bytes are others is read, or an error that names it."""
    new = data.draw(st.booleans())
    path = pcapng(tmp_path / "a", FRAMES) if new else pcap(tmp_path / "a", FRAMES)
    path.write_bytes(damaged(path.read_bytes(), data))
    try:
        count(Capture(path), Wanted())
    except UsageError as exc:
        assert str(exc).startswith(f"{path}: ")


def test_a_claimed_length_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    head = struct.pack("<IHH12xI", 0xA1B2C3D4, 2, 4, 1)
    path.write_bytes(head + struct.pack("<IIII", 0, 0, LARGEST, LARGEST))
    tracemalloc.start()
    read(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 * LARGEST


# --- What others read and write -------------------------------------------------------------------

needs_editcap = pytest.mark.skipif(not shutil.which("editcap"), reason="editcap is not on the PATH")


@needs_editcap
@pytest.mark.parametrize("form", ["pcapng", "pcap", "nsecpcap"])
def test_what_wireshark_writes(tmp_path: Path, form: str) -> None:
    path = pcap(tmp_path / "a.pcap", FRAMES)
    other = tmp_path / "b.pcap"
    subprocess.run(["editcap", "-F", form, path, other], check=True)
    assert times(other) == pytest.approx(WANTED, abs=2e-6)
    assert {end for key in count(Capture(other), Wanted()) for end in (key[4:6], key[10:12])} == {
        int(end.rpartition(":")[2]).to_bytes(2, "big") for end in (SERVER, CLIENT)
    }


def test_packets_of_which_too_little_was_captured(tmp_path: Path) -> None:
    path = pcap(tmp_path / "a.pcap", FRAMES, snap=40)
    with pytest.raises(UsageError, match="no TCP segment: of a packet it has 40") as found:
        imported(tmp_path, {"server": path})
    assert "tcpdump -s 128" in found.value.hint
