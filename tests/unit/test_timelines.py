"""What is known of states, held to the truth: both ends of connections made by chance, each looked
at, captured and perhaps traced. What is judged contains the truth, and what is drawn is within."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.judge import recorded
from labctl.probes.observations import Observation
from labctl.probes.sockets import State
from labctl.record.courses import COOKIES
from labctl.record.events import CountersEvent, Event, LabEvent, SocketsEvent, StateEvent
from labctl.record.history import History
from labctl.record.looks import SAMPLING
from labctl.record.moments import Moment
from labctl.record.timelines import Timeline, timelines
from labctl.reports.ladder import rows
from labctl.reports.rows import Bar
from tests.fake import HEADER, tcp
from tests.reported import RUN
from tests.sighted import EPOCH, NAMES, record
from tests.walked import ACK, FIN, SYN, history, look, packet, shown

ENDS = {"server": "198.18.0.2:8000", "client": "198.18.0.3:40000"}
OTHER = {"server": "client", "client": "server"}
ROUNDED = 2e-6  # what is traced is told to the microsecond
LATE = 0.008  # so much after its `t` a look runs at most
Walk = list[tuple[str, float]]
"""States, each since when; at last the end, which is empty."""


@dataclass
class Flow:
    """A connection that two hosts really had, and what their captures have of it."""

    chance: random.Random
    t: float
    walks: dict[str, Walk] = field(default_factory=lambda: {"server": [], "client": []})
    packets: list[Observation] = field(default_factory=list)
    full_until: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._first = {host: self.chance.randrange(1 << 32) for host in ENDS}
        self._next = dict.fromkeys(ENDS, 0)
        self._ident = self.chance.randrange(1 << 15)
        self.over = self._live()

    def _enter(self, host: str, state: str, t: float) -> float:
        self.walks[host].append((state, t))
        return t

    def _soon(self) -> float:
        """What a host takes for something."""
        return self.chance.choice([1e-5, 1e-4, 0.002])

    def _busy(self) -> float:
        """For how long what has come waits for its socket."""
        return self.chance.choice([1e-5, 1e-5, 0.01, 0.3])

    def _idle(self) -> float:
        return self.chance.choice([0.0001, 0.003, 0.05, 0.4, 3.0]) * self.chance.uniform(0.5, 1.5)

    def _send(self, host: str, t: float, *flags: str, data: int = 0) -> float:
        """A segment leaves a host; it may be lost, and is repeated then. Returns when it comes."""
        again = "SYN" in flags or "FIN" in flags
        while True:
            self._observe(host, host, t, flags, data)
            if not again or self.chance.random() < 0.8:
                break
            t += self.chance.uniform(0.2, 1.1)
        came = t + self.chance.choice([1e-5, 2e-4, 0.01])
        self._observe(OTHER[host], host, came, flags, data)
        self._next[host] += data + ("SYN" in flags) + ("FIN" in flags)
        return came

    def _observe(self, at: str, host: str, t: float, flags: tuple[str, ...], data: int) -> None:
        mine, theirs = self._next[host], self._next[OTHER[host]]
        seq = (self._first[host] + mine) % (1 << 32)
        ack = (self._first[OTHER[host]] + theirs) % (1 << 32) if "ACK" in flags else 0
        if at == host:
            self._ident += 1
        self.packets.append(
            Observation(at, EPOCH + t, ENDS[host], ENDS[OTHER[host]], seq, ack, flags, data, 9,
                        (self._ident, 0))
        )  # fmt: skip

    # --- Its life ---------------------------------------------------------------------------------

    def _live(self) -> float:
        chance = self.chance
        self._enter("client", "SYN-SENT", self.t)
        came = self._send("client", self.t + self._soon(), "SYN")
        self._enter("server", "SYN-RECV", came + 1e-6)
        came = self._send("server", came + 2e-5, "SYN", "ACK")
        self._enter("client", "ESTAB", came + 1e-6)
        came = self._send("client", came + 2e-5, "ACK")
        t = self._enter("server", "ESTAB", came + 1e-6)
        if chance.random() < 0.5:
            t = self._send("client", t + self._idle(), "PSH", "ACK", data=100)
            t = self._send("server", t + self._soon(), "ACK")
        if chance.random() < 0.2:
            t = self._stray(t + self._idle())
        closer = chance.choice(["server", "client"])
        end = chance.choice(["close", "close", "close", "both", "reset", "open"])
        if end == "open":
            return math.inf
        if end == "reset":
            t += self._idle()
            self._enter(closer, "", t)
            came = self._send(closer, t + 1e-5, "RST", "ACK")
            return self._enter(OTHER[closer], "", came + self._busy())
        if end == "both":
            return self._close_both(closer, t + self._idle())
        return self._close(closer, t + self._idle())

    def _stray(self, t: float) -> float:
        """A FIN with an old number comes to the server, from nobody, and changes nothing."""
        self._next["client"] -= 50
        self._observe("server", "client", t, ("FIN", "ACK"), 0)
        self._next["client"] += 50
        return self._send("server", t + 1e-5, "ACK")

    def _close(self, closer: str, t: float) -> float:
        peer = OTHER[closer]
        self._enter(closer, "FIN-WAIT-1", t)
        wait = self.chance.choice([1e-5, 1e-5, 0.2, 2.0])  # for a window
        came = self._send(closer, t + wait, "FIN", "ACK")
        t = self._enter(peer, "CLOSE-WAIT", came + self._busy())
        came = self._send(peer, t + self._soon(), "ACK")
        t2 = self._enter(closer, "FIN-WAIT-2", came + self._busy())
        self.full_until[closer] = self.chance.choice([t2, math.inf])
        t = max(t + 1e-4, t2) + self._idle()
        if self.chance.random() < 0.1:
            return math.inf
        self._enter(peer, "LAST-ACK", t)
        came = self._send(peer, t + self._soon(), "FIN", "ACK")
        t = self._enter(closer, "TIME-WAIT", max(came, t2) + self._busy())
        came = self._send(closer, t + 1e-5, "ACK")
        gone = self._enter(peer, "", came + self._busy())
        t += self.chance.choice([0.00003, 1.0, 60.0])
        return max(self._enter(closer, "", t), gone)

    def _close_both(self, closer: str, t: float) -> float:
        peer = OTHER[closer]
        self._enter(closer, "FIN-WAIT-1", t)
        self._enter(peer, "FIN-WAIT-1", t + 1e-6)
        before = dict(self._next)
        came = {closer: self._send(closer, t + 1e-5, "FIN", "ACK")}
        self._next[closer] = before[closer]  # neither knows of the other's yet
        came[peer] = self._send(peer, t + 1.1e-5, "FIN", "ACK")
        self._next = {host: number + 1 for host, number in before.items()}
        t = max(came.values())
        over = 0.0
        taken = {host: self._enter(host, "CLOSING", t + self._busy()) for host in ENDS}
        come = {host: self._send(host, at + 1e-5, "ACK") for host, at in taken.items()}
        for host in ENDS:
            t = self._enter(host, "TIME-WAIT", max(come[OTHER[host]], taken[host]) + self._busy())
            over = max(over, self._enter(host, "", t + self.chance.choice([0.5, 60.0])))
        return over

    # --- What is recorded of it -------------------------------------------------------------------

    def shown(self, host: str, t: float) -> str | None:
        """What `ss` shows of it at a moment."""
        state = next((state for state, since in reversed(self.walks[host]) if since <= t), "")
        mini = state == "TIME-WAIT" or (
            state == "FIN-WAIT-2" and self.full_until.get(host, math.inf) <= t
        )
        more = "timer:(timewait,59sec,0)" if mini else ""
        return tcp(state, ENDS[host], ENDS[OTHER[host]], more=more) if state else None

    def traced(self, host: str) -> Iterator[StateEvent]:
        """What the tracepoint tells: nothing of minisockets, and of SYN-RECV when that is over."""
        walk = self.walks[host]
        old = "UNCONN"
        for (state, t), (_, following) in zip(walk, [*walk[1:], ("", math.inf)], strict=True):
            if state == "SYN-RECV":
                t, old = following, "LISTEN"
            if t == math.inf:
                return
            new = "UNCONN" if state in ("TIME-WAIT", "") else state
            if old != new:
                yield self._transition(host, t, old, new)
            old = new
            if state == "FIN-WAIT-2" and self.full_until[host] <= t:
                yield self._transition(host, t, old, "UNCONN")
                return
            if new == "UNCONN":
                return

    def _transition(self, host: str, t: float, old: str, new: str) -> StateEvent:
        return StateEvent(round(t, 6), host, ENDS[host], ENDS[OTHER[host]], old, new)


def lived(chance: random.Random, probes: Iterable[str]) -> tuple[History, list[Flow], float]:
    """Some connections, one after the other with the same ends; each change is soon looked at."""
    flows, start = [], 1.0
    for _ in range(chance.choice([1, 1, 2])):
        flows.append(Flow(chance, start))
        if flows[-1].over == math.inf:
            break
        start = flows[-1].over + chance.choice([0.2, 2.0])
    changes = [(host, t) for flow in flows for host in ENDS for _, t in flow.walks[host]]
    end = max(t for _, t in changes) + chance.choice([0.001, 0.2, 2.0])
    events: list[Event] = []
    for host in ENDS:
        times = {0.5, *(t + chance.uniform(0.004, 0.09) for at, t in changes if at == host)}
        later = 0.0
        for t in sorted(t for t in times if t < end):
            later = max(later, t + chance.choice([0.0, 0.0, 0.001, LATE]))
            lines = [line for flow in flows if (line := flow.shown(host, later))]
            events.append(SocketsEvent(t, host, "change", "\n".join([HEADER, *lines])))
        if "trace" in probes:
            events += [e for flow in flows for e in flow.traced(host) if e.t < end]
    lab = LabEvent(0.0, "", "fake", {"probes": ["ss", *probes]}, NAMES, EPOCH)
    events += [CountersEvent(0.0, host, {COOKIES: 0}) for host in ENDS]
    found = History([lab, *sorted(events, key=lambda event: event.t)])
    packets = sorted((p for flow in flows for p in flow.packets), key=lambda p: p.at)
    for host in ENDS:
        mine = (record(p) for p in packets if p.host == host and p.at < EPOCH + end)
        found.add_packets(end, host, b"".join(mine))
    return found, flows, end


def truth_of(timeline: Timeline, walks: list[Walk]) -> Walk:
    """The walk that a timeline is about."""
    begin = timeline.spans[0].begin

    def distance(walk: Walk) -> float:
        since = next((t for state, t in walk if state == timeline.states[0]), math.inf)
        return abs(since - begin.at)

    return min(walks, key=distance)


def within(t: float, moment: Moment, late: float = 0.0) -> bool:
    return moment.earliest - ROUNDED - late <= t <= moment.latest + ROUNDED


def hold(timeline: Timeline, walk: Walk, now: float, captured: bool) -> None:
    """Each of its states began and ended when it is said to have."""
    ended = {state: end for (state, _), (_, end) in pairwise(walk)}
    began = dict(walk)
    for span in timeline.spans:
        # Without a capture, a look that ran late hides how old was what was soon over.
        late = SAMPLING if span.state is State.SYN_RECV and not captured else 0.0
        assert within(began[span.state], span.begin, late), (span, walk)
        end = ended.get(span.state, math.inf)
        if span.end is None:
            assert end > now - SAMPLING - 0.01, (span, walk)
        else:
            assert within(end, span.end), (span, walk)


def agree(found: History, host: str) -> None:
    """What is drawn is what is judged."""
    drawn = [(bar.state, bar.t) for bar in rows(found, list(ENDS)).rows
             if isinstance(bar, Bar) and bar.host == host and bar.connection]  # fmt: skip
    bounds = [
        (str(span.state), span.begin) for line in timelines(found, host) for span in line.spans
    ]
    bounds += [
        ("unknown" if line.lost_sight else "", last)
        for line in timelines(found, host) if (last := line.spans[-1].end)
    ]  # fmt: skip
    assert len(drawn) == len(bounds)
    for state, moment in bounds:
        assert moment.earliest <= moment.at <= moment.latest
        assert (state, moment.at) in drawn
    for line in timelines(found, host):
        times = [span.begin.at for span in line.spans]
        assert times == sorted(times)


PROBES = [("capture", "loopback", "trace"), ("capture", "loopback"), ("trace",), ()]


@pytest.mark.parametrize("probes", PROBES)
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=100, deadline=None)
def test_what_is_drawn_is_what_is_judged_and_that_is_true(
    probes: tuple[str, ...], seed: int
) -> None:
    found, flows, now = lived(random.Random(seed), probes)
    for host in ENDS:
        walks = [flow.walks[host] for flow in flows if flow.walks[host]]
        for timeline in timelines(found, host):
            hold(timeline, truth_of(timeline, walks), now, "capture" in probes)
        agree(found, host)


def test_an_agent_that_looked_late_is_found_out_by_the_wire() -> None:
    """The FIN was taken long before anybody looked."""
    here, there = ENDS["server"], ENDS["client"]
    packets = [
        (1.0, there, here, SYN, (100, 0)), (1.001, here, there, SYN | ACK, (7, 101)),
        (1.002, there, here, ACK, (101, 8)), (1.1, there, here, FIN | ACK, (101, 8)),
        (1.101, here, there, ACK, (8, 102)),
    ]  # fmt: skip
    found = history(
        look(0.9), look(1.05, shown("ESTAB")), look(1.5, shown("CLOSE-WAIT")),
        packets=b"".join(packet(*each) for each in packets), probes=("capture",),
    )  # fmt: skip
    (timeline,) = timelines(found, "server")
    established, taken = (span.begin for span in timeline.spans)
    assert (established.earliest, established.latest) == pytest.approx((1.002, 1.101))
    assert (taken.earliest, taken.latest, taken.at) == pytest.approx((1.1, 1.101, 1.1))
    blind = history(look(0.9), look(1.05, shown("ESTAB")), look(1.5, shown("CLOSE-WAIT")))
    assert timelines(blind, "server")[0].spans[1].begin == Moment(1.5 - SAMPLING, 1.5 + SAMPLING)


def test_a_later_connection_of_its_ends_opened_nothing_before() -> None:
    here, there = ENDS["server"], ENDS["client"]
    packets = [
        (1.0, here, there, SYN, (100, 0)), (1.02, there, here, SYN | ACK, (7, 101)),
        (1.021, here, there, ACK, (101, 8)), (5.0, here, there, SYN, (900, 0)),
    ]  # fmt: skip
    found = history(
        look(0.9), look(1.01, shown("SYN-SENT")), look(1.05, shown("ESTAB")), look(6.0),
        packets=b"".join(packet(*each) for each in packets), probes=("capture",),
    )  # fmt: skip
    asked, shaken = (span.begin for span in timelines(found, "server")[0].spans)
    assert (asked.latest, shaken.earliest) == pytest.approx((1.0, 1.02))


def test_where_two_may_have_opened_it_the_wire_narrows_nothing() -> None:
    here, there = ENDS["server"], ENDS["client"]
    packets = [(t, there, here, SYN, (number, 0)) for t, number in ((1.0, 100), (1.01, 500))]
    found = history(
        look(0.9), look(1.05, shown("SYN-RECV")),
        packets=b"".join(packet(*each) for each in packets), probes=("capture",),
    )  # fmt: skip
    assert timelines(found, "server")[0].spans[0].begin == Moment(1.05 - SAMPLING, 1.05 + SAMPLING)


def test_the_recorded_run_is_judged_as_it_is_drawn() -> None:
    found = recorded.load(RUN).history
    walked = timelines(found, "server")[0].spans
    fin_wait = next(span for span in walked if span.state is State.FIN_WAIT_1)
    assert str(fin_wait.begin) == "0.035..0.053"  # its FIN left then
    for host in ENDS:
        agree(found, host)
