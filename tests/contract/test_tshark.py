"""tshark and labctl read captures alike, and where they do not, it shows. The captures of all
lessons are held against tshark where those are run: see test_lessons.py."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from labctl.judge import annotated, recorded
from labctl.probes.segments import FILE_HEADER
from tests import tshark
from tests.contract import real_backends
from tests.contract.test_lessons import played, report
from tests.lessons_imported import stripped

RUN = Path(__file__).parents[1] / "unit" / "data" / "run"

pytestmark = pytest.mark.skipif(tshark.MISSING is not None, reason=str(tshark.MISSING))


def without(pcap: bytes, number: int) -> bytes:
    """A capture without one of its frames, counted from 1."""
    records, at = [], len(FILE_HEADER)
    while at < len(pcap):
        end = at + 16 + struct.unpack_from("<8xI", pcap, at)[0]
        records.append(pcap[at:end])
        at = end
    del records[number - 1]
    return FILE_HEADER + b"".join(records)


def test_agreement() -> None:
    assert tshark.disagreements(recorded.load(RUN).history, RUN) == []


def test_agreement_on_what_is_imported(tmp_path: Path) -> None:
    """By one clock, and with the same numbers and repetitions."""
    found = stripped(RUN, tmp_path)
    assert found
    assert tshark.disagreements(found.run.history, found.run.folder) == []


def test_another_segment_is_noticed_and_so_is_another_retransmission(tmp_path: Path) -> None:
    """Of two FINs in the server's capture the second repeats the first. tshark gets it alone."""
    history = recorded.load(RUN).history
    first, again = (n for n, s in enumerate(history.segments(), 1) if "FIN" in s.flags)
    shutil.copytree(RUN, tmp_path, dirs_exist_ok=True)
    server = tmp_path / "server.pcap"
    server.write_bytes(without(server.read_bytes(), first))
    lost, repeats, new = tshark.disagreements(history, tmp_path)
    for line, who, said in (
        (lost, "labctl", False), (repeats, "labctl", True), (new, "tshark", False)
    ):  # fmt: skip
        assert line.startswith(f"server.pcap: {who} alone: ")
        assert line.endswith(f"seq=188, ack=12, length=77, again={said})")
    assert again == first + 1


LOST = """\
title: The server's first FIN is lost as it leaves, and an RST is crafted
hosts:
  server: {calls: "socket; bind :8000; listen 5; accept; recv; wait"}
  client: {calls: "socket; connect server:8000; send 'hello'; wait"}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {process: {server: {call: {recv: ok}}}}
  - drop: {from: server, to: client, flags: FIN, count: 1, at: sender}
  - kill: server
  - wait: {sockets: {client: CLOSE-WAIT}}
  - inject: {from: client, to: server, flags: RST, seq: next}
  - wait: {sockets: {server: none}}
"""


@real_backends
def test_wireshark_reads_what_labctl_knows(backend: str, tmp_path: Path) -> None:
    result = played(LOST, backend, tmp_path)
    assert result.result == "pass", report(result)
    told = tshark.annotated(result.folder / annotated.NAME)
    fins = [
        (interface, sender.partition(".")[0], comment.rpartition("; step ")[0])
        for interface, sender, flags, comment in told
        if "FIN" in flags or "RST" in flags
    ]
    assert fins == [
        ("server", "server", "server: FIN-WAIT-1; lost; lost by step 5"),
        ("server", "server", "retransmitted"),
        ("client", "server", "client: CLOSE-WAIT"),
        ("client", "client", "crafted by a step"),
        ("server", "client", "server: closed"),
    ]
    syns = [(interface, comment) for interface, _, flags, comment in told if flags == {"SYN"}]
    assert syns[0][1].startswith("client: SYN-SENT; client: connect server:8000; step ")
    assert syns[1][1].startswith("server: SYN-RECV; step ")
