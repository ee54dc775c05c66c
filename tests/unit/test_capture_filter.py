"""Which packets a capture takes: here runs the program that the kernel is given for that."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from labctl.ground.resources import images
from labctl.probes.packets import RECORD
from tests.sighted import one, record
from tests.unit.test_protocol import loaded

OUTGOING, OTHERHOST, TO_US = 4, 3, 0
SYN = one(0.1, "client SYN 0 0")
SYN_6 = one(0.1, "client SYN 0 0", v6=True)
CAPTURES: Any = loaded(images() / "host" / "captures.py")


def frame(observation: Any = SYN) -> bytes:
    return record(observation)[RECORD.size :]


def takes(data: bytes, interface: str = "eth0", ports: tuple[int, ...] = (), kind: int = 0) -> bool:
    """Whether the program takes a frame (Documentation/networking/filter.rst)."""
    codes = CAPTURES.program(interface, ports)
    accumulator = index = at = 0
    while True:
        code, yes, no, value = codes[at]
        assert 0 <= yes < 256
        assert 0 <= no < 256
        at += 1
        if code == 0x06:
            return bool(value)
        if code == 0x30 and value == CAPTURES.KIND:
            accumulator = kind
        elif code == 0x30:
            accumulator = data[value]
        elif code == 0x28:
            (accumulator,) = struct.unpack_from("!H", data, value)
        elif code == 0x48:
            (accumulator,) = struct.unpack_from("!H", data, index + value)
        elif code == 0xB1:
            index = 4 * (data[value] & 15)
        elif code == 0x01:
            index = value
        elif code == 0x05:
            at += value
        else:
            assert code == 0x15
            at += yes if accumulator == value else no


@pytest.mark.parametrize("observation", [SYN, SYN_6])
@pytest.mark.parametrize(
    ("ports", "taken"),
    [
        ((), True),
        ((8000,), True),
        ((40000,), True),
        ((1, 2, 8000), True),
        ((40000, 1), True),
        ((8001,), False),
        ((1, 2, 3), False),
        (tuple(range(1, CAPTURES.MOST_PORTS + 1)), False),
        ((*range(1, CAPTURES.MOST_PORTS), 8000), True),
    ],
)
def test_ports(observation: Any, ports: tuple[int, ...], taken: bool) -> None:
    assert takes(frame(observation), ports=ports) == taken


def test_options_of_ip_come_before_the_ports() -> None:
    data = bytearray(frame())
    data[14] = 0x46
    data[34:34] = bytes(4)
    assert takes(bytes(data), ports=(8000,))
    assert not takes(bytes(data), ports=(0,))


def test_other_protocols() -> None:
    udp, udp_6, arp = bytearray(frame()), bytearray(frame(SYN_6)), bytearray(frame())
    udp[23], udp_6[20] = 17, 17
    arp[12:14] = b"\x08\x06"
    for ports in ((), (8000,)):
        assert not takes(bytes(udp), ports=ports)
        assert not takes(bytes(udp_6), ports=ports)
        assert not takes(bytes(arp), ports=ports)


@pytest.mark.parametrize(
    ("interface", "kind", "taken"),
    [
        ("eth0", TO_US, True), ("eth0", OUTGOING, True), ("eth0", OTHERHOST, False),
        ("ens3", OTHERHOST, False), ("lo", TO_US, True), ("lo", OUTGOING, False),
    ],
)  # fmt: skip
def test_no_packet_is_captured_twice_on_an_interface(
    interface: str, kind: int, taken: bool
) -> None:
    assert takes(frame(replace(SYN)), interface, kind=kind) == taken
