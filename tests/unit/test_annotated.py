"""One file for Wireshark: an interface a host, names, and what labctl knows of each packet."""

from __future__ import annotations

import io
import shutil
from base64 import b64encode
from pathlib import Path

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.ground.errors import UsageError
from labctl.judge import annotated
from labctl.judge.recorded import load
from labctl.probes.packets import ETHERNET, RECORD
from labctl.probes.pcapng import INBOUND, OUTBOUND, Packet, blocks, head
from labctl.probes.segments import FILE_HEADER
from labctl.record.events import LossEvent
from tests.lessons_imported import stripped
from tests.reported import RUN, recorded_run
from tests.walked import ACK, FIN, HERE, SYN, THERE, history, packet, walk


def read(content: bytes) -> tuple[list[str], list[Packet]]:
    """The interfaces and packets of a file, as dpkt reads them, which knows no block of names."""
    reader = dpkt.pcapng.Reader(io.BytesIO(content))
    names: list[str] = []
    packets = []
    file = io.BytesIO(content)
    while header := file.read(8):
        kind, length = (int.from_bytes(header[at : at + 4], "little") for at in (0, 4))
        block = header + file.read(length - 8)
        assert length % 4 == 0 and block[-4:] == header[4:]
        if kind == dpkt.pcapng.PCAPNG_BT_IDB:
            found = dpkt.pcapng.InterfaceDescriptionBlockLE(block)
            names += [o.data.decode() for o in found.opts if o.code == 2]
        elif kind == dpkt.pcapng.PCAPNG_BT_EPB:
            found = dpkt.pcapng.EnhancedPacketBlockLE(block)
            options = {option.code: option.data for option in found.opts}
            packets.append(
                Packet(
                    (found.ts_high << 32) + found.ts_low,
                    found.iface_id,
                    found.pkt_data,
                    found.pkt_len,
                    int.from_bytes(options.get(2, b""), "little"),
                    bytes(options.get(1, b"")).decode(),
                )
            )
    assert len(list(reader)) == len(packets)
    return names, packets


def test_a_comment_is_no_longer_than_a_field_can_be() -> None:
    names, _ = read(head(["server"], {}, "x" * 70_000))
    assert names == ["server"]


PACKETS = st.builds(
    Packet, at=st.integers(0, 2**63), interface=st.integers(0, 2),
    frame=st.binary(min_size=1, max_size=99), length=st.integers(100, 1 << 17),
    direction=st.sampled_from([0, INBOUND, OUTBOUND]),
    comment=st.text(st.characters(codec="ascii"), max_size=50),
)  # fmt: skip


@given(st.lists(PACKETS, max_size=5))
def test_what_is_written_is_read(packets: list[Packet]) -> None:
    names = {"198.18.0.2": "server", "fd00::2": "server.v6"}
    content = head(["server", "client", "gate"], names, "why") + b"".join(blocks(packets))
    assert read(content) == (["server", "client", "gate"], packets)


def test_a_run() -> None:
    run = load(RUN)
    content = b"".join(annotated.capture(run))
    hosts, packets = read(content)
    assert hosts == ["client", "server"]
    assert b"server\0" in content and all(cause.text.encode() in content for cause in run.causes)
    assert [p.at for p in packets] == sorted(p.at for p in packets)

    told = [(hosts[p.interface], p.direction, p.comment.split("; step ")[0]) for p in packets]
    for expected in (
        ("client", OUTBOUND, "client: connect server:8000"),
        ("client", INBOUND, "client: ESTAB"),
        ("server", INBOUND, "server: ESTAB"),
        ("client", OUTBOUND, 'client: send "I am client"'),
        ("client", INBOUND, "client: CLOSE-WAIT"),
        ("server", OUTBOUND, "server: FIN-WAIT-1"),
        ("server", OUTBOUND, "retransmitted"),
        ("server", INBOUND, "server: FIN-WAIT-2"),
    ):
        assert told.count(expected) == 1, told
    assert all("; step " in p.comment or p.comment.startswith("step ") for p in packets)


def test_without_captures_there_is_none(tmp_path: Path) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    for path in (tmp_path / "run").glob("*.pcap"):
        path.unlink()
    run = load(tmp_path / "run")
    with pytest.raises(UsageError, match="no packets were captured"):
        annotated.capture(run)
    annotated.write(run)
    assert not (tmp_path / "run" / annotated.NAME).exists()


def test_states_of_an_import_are_inferred(tmp_path: Path) -> None:
    """It has one, too, by one clock."""
    found = stripped(RUN, tmp_path)
    assert found
    hosts, packets = read((found.run.folder / annotated.NAME).read_bytes())
    told = {(hosts[p.interface], p.comment) for p in packets}
    assert ("server", "server: FIN-WAIT-1 (inferred)") in told
    assert ("client", "client: CLOSE-WAIT (inferred)") in told
    assert max(p.at for p in packets) - min(p.at for p in packets) < 2e9, "one clock was 3 s ahead"


@pytest.mark.parametrize(("late", "comment"), [(0.2, "server: FIN-WAIT-1; lost"), (0.6, "lost")])
def test_a_segment_that_was_lost_as_it_left_is_told_late(
    late: float, comment: str, tmp_path: Path
) -> None:
    """The capture does not have it. Its moment is that of the report, which may take half a second
    on a busy machine."""
    fin = packet(1.0, HERE, THERE, FIN | ACK, (1, 1))
    frame = b64encode(fin[RECORD.size + ETHERNET :]).decode()
    lost = LossEvent(3.0 + late, "server", frame, drop=0)
    walked = walk("LISTEN", "SYN-RECV", "ESTAB", "FIN-WAIT-1", start=1.0, step=1.0)
    syn = packet(1.0, THERE, HERE, SYN, (0, 0))
    found = history(*walked, lost, packets=syn, probes=("trace", "capture"))
    (tmp_path / "server.pcap").write_bytes(FILE_HEADER + syn)
    _, packets = read(b"".join(annotated.capture(recorded_run(found, folder=tmp_path))))
    assert [p.comment.split("; lost by")[0] for p in packets][-1] == comment
