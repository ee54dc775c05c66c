"""Captures: packets as they are read, grow, and are recorded."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.judge import recorded
from labctl.probes.observations import Known, Observation
from labctl.probes.packets import read_packets
from labctl.probes.segments import FILE_HEADER, Captures
from tests.fake import FakeBackend, play, scenario
from tests.reported import RUN
from tests.sighted import EPOCH, HANDSHAKE, OWNERS, one, record, seen
from tests.unit.test_segments import any_observation

# --- Captures -------------------------------------------------------------------------------------


@given(st.lists(any_observation(), max_size=5))
def test_packets_are_read_as_they_were_captured(observations: list[Observation]) -> None:
    v6 = [
        replace(
            o,
            mark=(0 if "[" in o.source else o.mark[0], o.mark[1]),
            timestamps=(o.mark[1], 0) if o.mark[1] else None,
        )
        for o in observations
    ]
    read = list(read_packets("server", b"".join(map(record, v6))))
    assert [o.at for o in read] == pytest.approx([o.at for o in v6], abs=1e-6)
    assert read == [replace(o, host="server", at=r.at) for o, r in zip(v6, read, strict=True)]


def test_other_packets_are_left_out() -> None:
    good = record(HANDSHAKE[0])
    udp = good[: 16 + 14 + 9] + b"\x11" + good[16 + 14 + 10 :]
    arp = good[: 16 + 12] + b"\x08\x06" + good[16 + 14 :]
    assert len(list(read_packets("server", udp + arp + good))) == 1
    assert list(read_packets("server", b"")) == []


def test_segments_beyond_what_ip_can_say() -> None:
    """A super-segment (BIG TCP, RFC 2675 without the option) has no length of its own."""
    o = one(0.1, "client ACK 1 1 len 100")
    data = bytearray(record(o))
    struct.pack_into("!H", data, 16 + 14 + 2, 0)
    (found,) = read_packets("client", bytes(data))
    assert found.length == 100


@pytest.mark.parametrize("host", ["server", "client"])
def test_the_captures_of_a_run(host: str) -> None:
    data = (RUN / f"{host}.pcap").read_bytes()
    assert data.startswith(FILE_HEADER)
    found = list(read_packets(host, data[len(FILE_HEADER) :]))
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
    assert captures.segments(Known(OWNERS, EPOCH)) == []
    for number, o in enumerate(HANDSHAKE, 1):
        captures.add("client", record(o if o.host == "client" else seen(o)))
        assert len(captures.segments(Known(OWNERS, EPOCH))) == number


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
    assert len(list(read_packets("client", data[len(FILE_HEADER) :]))) == 1
