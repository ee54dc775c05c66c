"""Histories by other clocks, and what causes say where these may be off."""

from __future__ import annotations

import pytest

from labctl.judge.causes.cause import Cause
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.record.events import ClockEvent, Event, StepEvent
from labctl.record.history import History
from labctl.record.moved import extremes
from tests.caused import (
    CLIENT,
    LATER,
    SERVER,
    close,
    established,
    handshake,
    ids,
    look,
    said,
    told,
    trace,
)  # fmt: skip
from tests.fake import tcp
from tests.unit.test_causes_cuts import CLOSES, FIRST, REFUSES, SECOND
from tests.unit.test_causes_states import CUTTING, cut_at
from tests.walked import ACK, Sent

PSH = ACK | 8


def clocks(**bounds: float) -> list[ClockEvent]:
    return [ClockEvent(0.0, host, f"on {host}", 0.0, bound) for host, bound in bounds.items()]


def moves(history: History) -> set[tuple[float, float]]:
    """By how much the looks of server and client are moved in each."""
    found = set()
    for other in extremes(history):
        at = {look.host: look.t for look in other.sockets.values()}
        found.add((round(at["server"] - 5.0, 6), round(at["client"] - 5.0, 6)))
    return found


LOOKS = [look(5.0), look(5.0, host="client")]


def test_one_machine_has_one_clock() -> None:
    assert moves(told(LOOKS)) == set()
    one = [ClockEvent(0.0, host, "here", 0.0, 0.5) for host in ("server", "client")]
    assert moves(told([*one, *LOOKS])) == set()


def test_clocks_are_as_far_off_as_their_bounds_allow() -> None:
    found = moves(told([*clocks(server=0.25, client=0.5), *LOOKS]))
    assert found == {(0.25, 0.25), (-0.25, -0.25), (0.75, 0.0), (-0.75, 0.0), (0.0, 0.75),
                     (0.0, -0.75)}  # fmt: skip


def test_no_segment_arrives_before_it_has_left() -> None:
    """So a handshake limits both ways how far the clocks may be from each other."""
    found = moves(told([*clocks(server=0.25, client=0.5), *LOOKS], handshake(1.0)))
    near = round(LATER, 6)
    assert found == {(0.25, 0.25), (-0.25, -0.25), (near, 0.0), (-near, 0.0), (0.0, near),
                     (0.0, -near)}  # fmt: skip
    only = moves(told([*clocks(server=0.25, client=0.5), *LOOKS], handshake(1.0)[:1]))
    assert (0.75, 0.0) in only and (-near, 0.0) in only and (-0.75, 0.0) not in only


def test_what_happened_at_a_host_is_moved_with_it() -> None:
    """Segments by both their ends, and the moment of a step that one of its hosts told."""
    label = StepEvent(2.0, 0, "end", "kill", label="killed", moment=1.5, host="server")
    history = told([*clocks(server=0.0, client=0.5), label, *LOOKS], handshake(1.0)[:1])
    before, after = history.segments()[0], [
        (other.segments()[0], other.labels["killed"], other.syns("client", (CLIENT, SERVER)))
        for other in extremes(history)
    ]  # fmt: skip
    assert before.t is not None and before.arrived is not None
    for segment, killed, syns in after:
        assert segment.t is not None and segment.arrived is not None
        sent, came = segment.t - before.t, segment.arrived - before.arrived
        assert (sent == 0.0) != (came == 0.0)
        assert killed == pytest.approx(1.5 + came)
        assert syns[0][0] == pytest.approx(before.t + sent)
    assert len(after) == 4


def vanished(bound: float, *sent: Sent) -> list[Cause]:
    """A server whose client's host is cut off at 2.0 by the lab's own clock."""
    (scenario,) = load_document(Document("cut", CUTTING), CUTTING, "cut", {})
    open_ = tcp("ESTAB", SERVER, CLIENT, more="ino:7")
    events: list[Event] = [*established(1.0), look(1.5, open_), cut_at(2.0), look(9.0, open_)]
    events += clocks(server=bound, client=bound)
    return said(told(events, [*handshake(1.0), *sent]), "gone", scenario)


def test_a_cause_is_silent_where_the_clocks_can_t_tell() -> None:
    """Whether the server sent that after the cut, so that it has a timer that asks."""
    last = Sent(1.95, SERVER, CLIENT, PSH, 1, 1, data=5)
    assert [cause.id for cause in vanished(0.01, last)] == ["gone-unnoticed"]
    assert vanished(0.1, last) == []
    assert [cause.id for cause in vanished(0.1)] == ["gone-unnoticed"]


def test_what_answers_came_later_whatever_the_clocks() -> None:
    """An RST after what it answers, however wide the bounds are."""
    events = [*clocks(server=0.2, client=0.2), look(0.5), look(5.0)]
    assert ids(told(events, [*FIRST, CLOSES, SECOND, REFUSES]), "idle") == ["idle-race"]


def test_causes_of_two_hosts_with_wide_bounds() -> None:
    """Who closed first, each side knows by its own clock."""
    states = ("UNCONN", "SYN-SENT", "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2")
    events = [*clocks(server=0.3, client=0.3), *trace(1.0, *states, ends=(CLIENT, SERVER)), *LOOKS]
    history = told(events, [*handshake(1.0), *close(2.0, CLIENT, SERVER)])
    found = said(history, "closed")
    assert [(cause.id, cause.host) for cause in found] == [("closed-first", "client")]
