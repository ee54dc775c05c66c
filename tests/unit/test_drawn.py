"""What is drawn of a run with many connections: some of them, as exactly as if all were."""

from __future__ import annotations

import tracemalloc
from base64 import b64encode
from pathlib import Path

import pytest

from labctl.judge import recorded
from labctl.judge.check import Verdict
from labctl.language.facts import Facts
from labctl.probes.observations import Known, Loss
from labctl.probes.packets import ETHERNET, RECORD, read_packet
from labctl.probes.segments import match
from labctl.probes.sockets import Ends
from labctl.probes.traffic import Chosen
from labctl.record.events import CallEvent, LossEvent, ProcessEvent, StateEvent
from labctl.record.history import History
from labctl.record.listeners import listeners
from labctl.record.timelines import timelines
from labctl.record.traced import traced_lives
from labctl.reports import html, ladder_text
from labctl.reports.drawn import CONNECTIONS
from labctl.reports.ladder import ladder_of
from labctl.reports.rows import Gap, Left
from tests import bench_records
from tests.fake import tcp
from tests.reported import SERVER, crowd, history, look, recorded_run
from tests.walked import ACK, SYN, packet


def test_of_thousands_of_connections_some_are_drawn_and_the_others_told_of() -> None:
    few, all_of_them = (
        recorded_run(history(segments=crowd(count))) for count in (CONNECTIONS, CONNECTIONS + 700)
    )
    assert ladder_of(few).left == []
    assert len(ladder_of(few).connections) == len(ladder_of(all_of_them).connections) == CONNECTIONS
    words = "700 of 800 connections, and 2,800 captured packets of theirs, are not drawn"
    (left,) = ladder_of(all_of_them).left
    assert left.startswith(words)
    (row,) = (row for row in ladder_of(all_of_them).rows if isinstance(row, Left))
    assert row.t == pytest.approx(1 + CONNECTIONS / 1e3)
    assert "700 of 800 connections" in ladder_text.text(ladder_of(all_of_them), 200)
    assert words in html.page(all_of_them)
    assert len(html.page(all_of_them)) < 1.1 * len(html.page(few))


def test_connections_that_something_is_about_are_drawn_before_others() -> None:
    segments = crowd(CONNECTIONS + 700)
    syn = packet(2.5, "198.18.0.3:20799", SERVER, SYN, (0, 0))[RECORD.size + ETHERNET :]
    lost = LossEvent(2.5, "server", b64encode(syn).decode(), drop=3)
    measured = Facts(connections=((SERVER, "198.18.0.3:20798"),))
    verdict = Verdict("pass", "server: ESTAB", "ESTAB", "ESTAB", 2.0, "x.yaml:1", measured=measured)
    called = CallEvent(2.2, "client", "client", 1, "done", "connect", "connect",
                       local="198.18.0.3:20797", peer=SERVER)  # fmt: skip
    run = recorded_run(history(called, lost, segments=segments), verdicts=(verdict,))
    callers = {end for ends in ladder_of(run).connections for end in ends}
    assert {f"198.18.0.3:{port}" for port in (20000, 20797, 20798, 20799)} <= callers
    assert len(ladder_of(run).connections) == CONNECTIONS


def test_a_time_in_which_only_what_is_left_out_goes_on_is_not_called_quiet() -> None:
    segments = crowd(CONNECTIONS + 700)
    ended = ProcessEvent(30.0, "client", "client", "start")
    run = recorded_run(history(ended, segments=segments))
    assert [gap.quiet for gap in ladder_of(run).rows if isinstance(gap, Gap)][-1] is False
    assert "of what is left out" in html.page(run)


# --- Some of many ---------------------------------------------------------------------------------

HOSTS = ("server", "client")


def some(ends: Ends) -> bool:
    """A third of the connections of a benchmark, both ways round, and all listeners."""
    ports = [int(end.rpartition(":")[2]) for end in ends if end]
    return len(ends) != len(ports) or max(p for p in ports if p != 8000) % 3 == 0


@pytest.fixture(name="busy")
def _busy(tmp_path: Path) -> History:
    """Connections that overlap: two or three have no port yet at a time."""
    folder = bench_records.record(tmp_path / "run", 60)
    (folder / "result.json").write_text('{"runs": [{"result": "pass"}]}')
    return recorded.load(folder).history


def traced(busy: History, host: str, chosen: Chosen | None = None
           ) -> dict[Ends, list[list[StateEvent]]]:  # fmt: skip
    """The transitions of each socket there, by its ends."""
    found = traced_lives(busy, host, chosen).lives
    return {key: [[*life] for life in lives] for key, lives in found.items()}


def test_some_connections_are_as_they_are_among_all(busy: History) -> None:
    whole = busy.segments()
    assert busy.segments(some) == [s for s in whole if some((s.source, s.target))]
    assert 0 < len(busy.segments(some)) < len(whole)
    for host in HOSTS:
        lives = {key: walks for key, walks in traced(busy, host).items() if some(key)}
        assert traced(busy, host, some) == lives
        alone = timelines(busy, host, some)
        assert alone == [t for t in timelines(busy, host) if some(t.ends)]
        assert listeners(busy, host, some) == listeners(busy, host)
        assert len(alone) == 20
        assert all(t.complete for t in alone)


def test_what_is_put_together_in_batches_is_as_if_it_were_at_once(tmp_path: Path) -> None:
    """Also what a step lost that nobody captured, of a connection that is in no batch."""
    busy = recorded.load(bench_records.record(tmp_path / "run", 1500)).history
    syn = packet(2.0, "198.18.0.3:7", SERVER, SYN, (0, 0))[RECORD.size + ETHERNET :]
    lost = read_packet("client", 2.0, syn)
    assert lost
    known = Known(busy.owners, 0.0, [Loss(0, lost)])
    traffic = busy.captures.traffic
    assert len(list(traffic.batches())) > 3
    whole, parts = match(traffic.observations(), known), busy.captures.segments(known).segments
    assert [s.time for s in parts] == [s.time for s in whole]
    assert {*parts} == {*whole}
    assert len(whole) == 1500 * 6 + 1


def test_what_is_not_drawn_takes_little_memory(tmp_path: Path) -> None:
    """Some 1,500 bytes for each connection, to know of it; to draw it takes six times as many."""

    def peak(connections: int) -> int:
        folder = bench_records.record(tmp_path / str(connections), connections)
        run = recorded.load(folder)
        tracemalloc.start()
        ladder_of(run)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(1600) - peak(400) < (1600 - 400) * 4000


def test_a_capture_of_what_is_forwarded_is_read_whole(busy: History) -> None:
    """A host on the way may have rewritten the ends of what is asked for."""
    foreign = packet(2.0, "203.0.113.1:70", "203.0.113.2:80", ACK, (1, 1))
    traffic = busy.captures.traffic
    assert not traffic.forwarded(busy.owners)
    busy.add_packets(busy.now, "client", foreign)
    assert traffic.forwarded(busy.owners)
    assert busy.segments(some) == [s for s in busy.segments() if some((s.source, s.target))]


def test_what_is_not_chosen_is_known_by_its_moments(busy: History) -> None:
    others = [s for s in busy.segments() if not some((s.source, s.target))]
    for host in HOSTS:
        there = [s.t if s.sender == host else s.arrived for s in others]
        assert list(busy.captured_without(host, some)) == pytest.approx(sorted(filter(None, there)))


def test_addresses_that_moved_are_read_whole(busy: History) -> None:
    assert not busy.captures.traffic.forwarded(busy.owners)
    moved = busy.owners.moved("198.18.0.2", "client", 2.0)
    assert busy.captures.traffic.forwarded(moved)


def test_who_had_no_port_yet_is_the_same_among_some_as_among_all() -> None:
    """If no capture has the SYNs, the first to begin is the first to be established."""
    unnamed = [StateEvent(t, "client", "198.18.0.3:0", SERVER, "UNCONN", "SYN-SENT")
               for t in (1.0, 1.1)]  # fmt: skip
    named = [StateEvent(t, "client", f"198.18.0.3:{port}", SERVER, "SYN-SENT", "ESTAB")
             for t, port in ((1.2, 2000), (1.3, 3000))]  # fmt: skip
    seen = [tcp("ESTAB", e.local, SERVER) for e in named]
    busy = history(*unnamed, *named, look(1.35, "client", *seen))
    (whole,) = (each for (local, _), each in traced(busy, "client").items()
                if local == "198.18.0.3:3000")  # fmt: skip
    (alone,) = traced(busy, "client", some).values()
    assert whole == alone
    assert alone[0][0].t == 1.1
