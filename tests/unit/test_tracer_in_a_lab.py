"""A lab and its tracer: what it tells, what it misses, and that it may not be had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from labctl.backends import Channel, Message
from labctl.backends.capabilities import Lack
from labctl.probes.sockets import State
from labctl.record.events import LabEvent, StateEvent
from labctl.record.history import History
from labctl.record.timelines import timelines
from tests.fake import FakeBackend, FakeChannel, play
from tests.unit.test_states_claims import LOOKS, UNTRACED, judge
from tests.walked import ACK, HERE, PASSIVE, SYN, THERE, history, look, packet, walk

# --- The tracer in a lab --------------------------------------------------------------------------


class Traced(FakeBackend):
    """A fake whose tracer says one thing at first, others when it is flushed, and then may end; or
    that has none."""

    def __init__(
        self, first: Message | Lack | None, rest: Sequence[Message] = (), ends: bool = False
    ) -> None:
        super().__init__()
        self._first, self._rest, self._ends = first, rest, ends

    def trace(self) -> dict[str, Channel | Lack]:
        if isinstance(self._first, Lack):
            return {"": self._first}

        def obey(message: Message) -> None:
            for said in self._rest if message["do"] == "flush" else ():
                channel.say(**{"t": self.time(), **said})
            channel.say(kind="reply", id=message["id"], t=self.time())
            if self._ends:
                channel.close()

        channel = FakeChannel(obey)
        if self._first:
            channel.say(t=self.time(), **self._first)
        if not self._first or self._first["kind"] == "refused":
            channel.close()
        return {"": channel}


IDLE = """\
title: t
hosts: {server: {calls: await}, client: {calls: await}}
steps:
  - sleep: 50ms
"""
MOVE = {"local": "[fd00::2]:80", "remote": "[fd00::3]:9", "old": "ESTAB", "new": "FIN-WAIT-1"}


def test_what_the_tracer_says_is_recorded_by_host(tmp_path: Path) -> None:
    fake = Traced({"kind": "hello"}, [{"kind": "state", **MOVE}])
    found = play(IDLE, fake, tmp_path)
    assert "trace" in found.environment["probes"]
    (event,) = [e for e in found.history.events if isinstance(e, StateEvent)]
    assert (event.host, event.local, event.new) == ("server", "[fd00::2]:80", "FIN-WAIT-1")
    assert 0 <= event.t <= found.history.now


def test_what_the_tracer_lost_is_lost_for_all_hosts(tmp_path: Path) -> None:
    lost = {"kind": "trouble", "probe": "trace", "text": "3 transitions were lost"}
    found = play(IDLE, Traced({"kind": "hello"}, [lost]), tmp_path)
    assert found.result == "pass" and "trace" in found.environment["probes"]
    assert {host for host, probe in found.history.trouble if probe == "trace"} == {
        "server", "client",
    }  # fmt: skip


NO_TRACER = [
    (Traced(Lack("tracing needs root", "be root")), "tracing needs root; be root"),
    (Traced({"kind": "refused", "reason": "no tracing: no such file"}), "no tracing: no such file"),
    (Traced(None), "the tracer ended"),
]


@pytest.mark.parametrize(("fake", "reason"), NO_TRACER)
def test_a_lab_without_a_tracer_says_why(fake: Traced, reason: str, tmp_path: Path) -> None:
    found = play(IDLE, fake, tmp_path)
    assert found.result == "pass" and "trace" not in found.environment["probes"]
    assert found.history.trouble["client", "trace"].text.startswith(reason)


@pytest.mark.parametrize(("fake", "reason"), NO_TRACER)
def test_a_scenario_may_need_tracing(fake: Traced, reason: str, tmp_path: Path) -> None:
    found = play(IDLE + "needs: [tracing]\n", fake, tmp_path)
    assert found.result == "skip" and found.reason and found.reason.startswith(reason)


def test_a_tracer_that_ends_leaves_a_gap(tmp_path: Path) -> None:
    found = play(IDLE, Traced({"kind": "hello"}, ends=True), tmp_path)
    assert found.result == "pass"
    assert found.history.trouble["server", "trace"].text.startswith("the tracer ended")


@pytest.mark.parametrize(("port", "result"), [(40000, "fail"), (40001, "unknown")])
def test_without_tracing_the_wire_tells_of_other_connections(port: int, result: str) -> None:
    """All that a capture has is what was looked at: then nothing was missed."""
    here, there = HERE, f"198.18.0.3:{port}"
    packets = packet(1.5, there, here, ACK, (1, 1))
    found = history(UNTRACED, *LOOKS, packets=packets, probes=("capture",))
    claim = "path: {server: [ESTAB, CLOSE-WAIT, LAST-ACK, closed]}"
    assert judge(claim, found).result == result


def test_what_no_other_probe_bears_out_is_somebody_elses() -> None:
    """The tracepoint tells of all sockets of the machine that have the lab's addresses."""
    foreign = walk(*PASSIVE, remote="198.18.0.3:50000")
    ours = packet(5.0, THERE, HERE, ACK, (1, 1))  # at another time, and of another connection
    found = history(*foreign, look(1.2), packets=ours, probes=("trace", "capture"))
    assert timelines(found, "server") == []
    finding = judge("path: {server: [ESTAB, CLOSE-WAIT, LAST-ACK, closed]}", found)
    assert finding.result == "fail"
    assert "left out: 1 that neither ss nor a capture here saw" in finding.actual
    late = packet(5.0, "198.18.0.3:50000", HERE, ACK, (1, 1))  # the same ends, much later
    found = history(*foreign, look(1.2), packets=late, probes=("trace", "capture"))
    assert timelines(found, "server") == []
    blind = history(*foreign, look(1.2), packets=ours, probes=("trace",))
    finding = judge("path: {server: [ESTAB, CLOSE-WAIT, LAST-ACK, closed]}", blind)
    assert finding.result == "unknown"


def test_connections_to_one_peer_are_told_apart_by_their_syn() -> None:
    """Neither has a port when it enters SYN-SENT; the second is established first."""
    peer, first, second = "198.18.0.2:8000", "198.18.0.3:40000", "198.18.0.3:40001"
    events = [
        StateEvent(t, "server", local, peer, old, new)
        for t, local, old, new in [
            (1.0, "198.18.0.3:0", "UNCONN", "SYN-SENT"),
            (1.5, "198.18.0.3:0", "UNCONN", "SYN-SENT"),
            (1.501, second, "SYN-SENT", "ESTAB"), (2.0, first, "SYN-SENT", "ESTAB"),
        ]
    ]  # fmt: skip
    names = {"server": "198.18.0.3", "client": "198.18.0.2"}
    lab_event = LabEvent(0.0, "", "fake", {"probes": ["ss", "trace", "capture"]}, names)
    found = History([lab_event, *events])
    syns = [packet(1.0001, first, peer, SYN, (5, 0)), packet(1.5001, second, peer, SYN, (9, 0))]
    found.add_packets(3.0, "server", b"".join(syns))
    begun = {t.local: t.spans[0].begin.latest for t in timelines(found, "server")}
    assert begun == {first: 1.0, second: 1.5}


def test_a_strangers_socket_with_the_same_ends_breaks_no_walk() -> None:
    """It came and went while ours was there, in another network namespace."""
    ours = walk(*PASSIVE, start=1.0, step=1.0)
    theirs = walk("LISTEN", "SYN-RECV", "ESTAB", "UNCONN", start=2.5)
    found = history(*ours, *theirs, look(6.0), probes=("trace", "capture"))
    walked = {t.states: t.gap for t in timelines(found, "server")}
    gap = "another socket on this machine had the same ends at the same time"
    states = (State.SYN_RECV, State.ESTAB, State.CLOSE_WAIT, State.LAST_ACK)
    assert walked == {states: gap, states[:2]: gap}  # which of the two is ours is not known
    claim = "path: {server: [SYN-RECV, ESTAB, CLOSE-WAIT, LAST-ACK, closed]}"
    assert judge(claim, found).result == "unknown"
