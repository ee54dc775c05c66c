"""Clocks of several machines: how far they are apart, and what they can't decide."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.backends import Channel, Message, ProcessSpec
from labctl.ground.resources import images
from labctl.judge.check import check
from labctl.judge.result import RunResult
from labctl.lab.clocks import TRIPS, Clock, Trip, fastest
from labctl.language.predicates import SegmentsPattern
from labctl.probes.conversations import conversations
from labctl.probes.packets import shifted
from labctl.record.events import ClockEvent, StepEvent
from labctl.record.history import History
from labctl.reports.ladder import ladder_of
from labctl.reports.ladder_text import text
from tests.caused import CLIENT, SERVER, captured, close, handshake, look, told
from tests.fake import FakeBackend, FakeChannel, play, scenario, tcp
from tests.walked import ACK, Sent

TINY = 1e-9
delays = st.floats(0.0, 0.1)
aheads = st.floats(-5000.0, 5000.0)
slopes = st.floats(-5e-4, 5e-4)


def trips(ahead: float, ways: list[tuple[float, float]], start: float = 0.0) -> list[Trip]:
    """What a clock says that is `ahead`, with what each question and each answer takes."""
    return [
        (start + n, start + n + there + ahead, start + n + there + back)
        for n, (there, back) in enumerate(ways)
    ]


# --- How far they are apart -----------------------------------------------------------------------


@given(aheads, st.lists(st.tuples(delays, delays), min_size=1, max_size=TRIPS))
def test_an_offset_is_right_to_within_its_bound(
    ahead: float, ways: list[tuple[float, float]]
) -> None:
    found = fastest(trips(ahead, ways))
    assert abs(found.ahead - ahead) <= found.bound + TINY
    assert found.bound <= min(map(sum, ways)) / 2 + TINY


@given(aheads, slopes, delays, delays, st.floats(1.0, 600.0), st.floats(0.0, 1.0))
def test_a_clock_that_drifts(
    ahead: float, slope: float, first: float, last: float, seconds: float, part: float
) -> None:
    """At any time between two measurements the first one is right to within the bound of both."""
    begin = fastest(trips(ahead, [(first, 0.0)]))
    end = fastest(trips(ahead + slope * seconds, [(0.0, last)], seconds))
    found = begin.kept_until(end)
    assert found.ahead == begin.ahead
    assert abs(found.ahead - (ahead + slope * seconds * part)) <= found.bound + TINY


def asked(aheads: Mapping[str, float], log: list[str] | None = None) -> Clock:
    """The clock of a lab whose hosts are each on a machine of their own."""

    def tell(host: str) -> float:
        (log if log is not None else []).append(host)
        return time.monotonic() + aheads[host]

    clock = Clock()
    clock.synchronize({host: f"on {host}" for host in aheads}, tell)
    return clock


def test_moments_of_two_machines_are_put_on_one_clock() -> None:
    clock = asked({"a": 5000.0, "b": -300.0})
    now = time.monotonic()
    moments = [clock.of("a", now + 5000.0), clock.of("b", now - 300.0), now - clock.origin]
    (a, b) = clock.told()
    assert max(moments) - min(moments) <= a.bound + b.bound + TINY
    assert (a.host, a.machine, b.machine) == ("a", "on a", "on b")


def test_the_end_has_what_a_clock_gained() -> None:
    aheads = {"a": 0.0, "b": 10.0}

    def tell(host: str) -> float:
        return time.monotonic() + aheads[host]

    clock = Clock()
    clock.synchronize({"a": "one", "b": "two"}, tell)
    before = {event.host: event for event in clock.told()}
    aheads["b"] += 0.25
    clock.compare_again(tell)
    after = {event.host: event for event in clock.told()}
    assert after["b"].ahead == before["b"].ahead
    assert 0.25 - before["b"].bound <= after["b"].bound <= 0.26
    assert after["a"].bound < 0.2


def test_hosts_of_one_machine_have_one_clock() -> None:
    """It is asked once, if it may be ours, and nothing of it is in the record."""
    for ahead, times in ((0.0, 1), (5000.0, TRIPS)):
        log: list[str] = []

        def tell(host: str, ahead: float = ahead, log: list[str] = log) -> float:
            log.append(host)
            return time.monotonic() + ahead

        clock = Clock()
        clock.synchronize({"a": "", "b": ""}, tell)
        assert (log, clock.told()) == (["a"] * times, [])
        clock.compare_again(tell)
        assert len(log) == times
        now = time.monotonic()
        assert clock.of("a", now + ahead) == clock.of("b", now + ahead)
        assert abs(clock.of("a", now + ahead) - (now - clock.origin)) < 0.1


def test_a_far_machine_is_asked_for_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, log = [0.0], list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def tell(host: str) -> float:
        now[0] += 1.0
        log.append(host)
        return now[0]

    Clock().synchronize({"a": "one", "b": "two"}, tell)
    assert sorted(log) == ["a", "a", "b", "b"]


def test_wall_clocks_of_several_machines() -> None:
    clock = asked({"a": 0.0, "b": 5000.0})
    now = time.monotonic()
    found = clock.epochs({"a": (now, 1e9), "b": (now + 5000.0, 1e9 + 7.5)})
    assert found["b"] - found["a"] == pytest.approx(7.5, abs=0.1)
    assert found["a"] == pytest.approx(1e9 - (now - clock.origin), abs=0.1)


@given(st.integers(-(10**9), 10**9))
def test_packets_are_moved(nanos: int) -> None:
    records = captured(handshake(1.5))["server"]
    moved = shifted(records, nanos / 1e9)
    assert shifted(moved, -nanos / 1e9) == records
    assert (moved == records) is (nanos == 0)


# --- What they can't decide -----------------------------------------------------------------------


def clocks(**bounds: float) -> list[ClockEvent]:
    return [ClockEvent(0.0, host, f"on {host}", 0.0, bound) for host, bound in bounds.items()]


def test_how_far_moments_may_be_apart() -> None:
    found = History()
    assert found.apart() == found.apart(["server", "client"]) == 0.0
    found.know(clocks(server=0.25, client=0.5))
    assert found.apart(["server", "client"]) == found.apart() == 0.75
    assert found.apart(["server"]) == found.apart(["server", "server"]) == 0.0
    assert found.apart(["server", ""]) == found.apart([None, "server"]) == 0.25
    found.know([ClockEvent(9.0, "third", "on client", 0.0, 0.5)])
    assert found.apart(["third", "client"]) == 0.0
    found.know(clocks(server=0.125))
    assert found.apart(["server", ""]) == 0.25  # the widest holds for all of a run


class TwoMachines(FakeBackend):
    machines: ClassVar = {"server": 5000.0, "client": -70.0}


LISTENS = """\
title: t
hosts: {server: {calls: await}, client: {calls: await}}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
    as: listening
  - start: client
  - wait: {sockets: {HOST: ESTAB}}
    since: listening
    within: 0s..250ms
"""


@pytest.fixture(scope="module", params=["client", "server"])
def waited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A wait for a state of a host that came 0.2 s after another one of the server."""

    def listens(lab: FakeBackend) -> None:
        times.append(lab.time())
        lab.sockets("server", tcp("LISTEN", ":80"))

    def connects(lab: FakeBackend) -> None:
        later = times[0] + 0.2 - lab.time()
        lab.sockets(request.param, tcp("ESTAB", ":80", "198.18.0.9:9"), later=later)

    times: list[float] = []
    fake = TwoMachines({"start server": listens, "start client": connects})
    return play(LISTENS.replace("HOST", request.param), fake, tmp_path_factory.mktemp("waited"))


def judged(run: RunResult, bound: float) -> str:
    """The result of its wait if each clock may be off by so much."""
    host = "client" if "client" in run.verdicts[-1].what else "server"
    chosen = scenario(LISTENS.replace("HOST", host))
    events = [
        replace(event, bound=bound) if isinstance(event, ClockEvent) else event
        for event in run.history.events
    ]
    return check(chosen, events)[-1].result


def test_what_the_bound_decides(waited: RunResult) -> None:
    assert waited.result == "pass"
    assert judged(waited, 1e-5) == "pass"


def test_what_the_bound_can_t_decide_is_unknown(waited: RunResult) -> None:
    """Moments of one machine are compared by one clock, whatever the bound."""
    one = "server" in waited.verdicts[-1].what
    assert judged(waited, 0.06) == judged(waited, 3.0) == ("pass" if one else "unknown")


def test_what_drifted_counts_from_the_beginning(waited: RunResult) -> None:
    """The bound at the end is the one for all claims."""
    *events, last = waited.history.events
    assert isinstance(last, ClockEvent) and last.host == "client"
    wide = [*events, replace(last, bound=0.2)]
    one = "server" in waited.verdicts[-1].what
    chosen = scenario(LISTENS.replace("HOST", "server" if one else "client"))
    assert check(chosen, wide)[-1].result == ("pass" if one else "unknown")


def test_the_record_has_the_clocks_at_the_beginning_and_at_the_end(waited: RunResult) -> None:
    told = [event for event in waited.history.events if isinstance(event, ClockEvent)]
    assert [event.host for event in told] == ["server", "client"] * 2
    for event in told:
        assert abs(event.ahead - TwoMachines.machines[event.host]) <= event.bound
    assert all(-0.1 < event.t < 30 for event in waited.history.events)
    first, second = text(ladder_of(waited), 100).splitlines()[:2]
    assert first.startswith("clocks of server (server), client (client): order is known to within")
    assert second.split() == ["server", "client"]


def test_segments_near_their_beginning_are_doubtful() -> None:
    claim = SegmentsPattern.model_construct(flags=("FIN",), since="killed", at_least=2)
    label = StepEvent(2.0, 0, "end", "kill server", label="killed", outcome="done")

    def result(bound: float, at: float) -> str:
        events = [*clocks(server=bound, client=bound), label, look(3.0)]
        found = told(events, [*handshake(1.0), *close(at, CLIENT, SERVER)])
        return claim.judge(found).result

    assert (result(0.01, 2.1), result(0.01, 1.9)) == ("pass", "fail")
    assert (result(0.2, 2.1), result(0.2, 1.9)) == ("unknown", "unknown")


def test_the_trace_has_the_clock_of_the_kernel(tmp_path: Path) -> None:
    """A tracer in a time namespace adds what its own clock has beyond that."""
    file = images() / "host" / "tracer.py"
    spec = importlib.util.spec_from_file_location("tracer", file)
    assert spec and spec.loader
    tracer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tracer)
    offsets = tmp_path / "timens_offsets"
    assert tracer.ahead(str(offsets)) == 0.0
    offsets.write_text("monotonic        5000   250000000\nboottime         5000         0\n")
    assert tracer.ahead(str(offsets)) == 5000.25
    offsets.write_text("monotonic         -70         0\n")
    assert tracer.ahead(str(offsets)) == -70.0


# --- When a step acted ----------------------------------------------------------------------------

LATE = 0.3


class Far(TwoMachines):
    """What is asked for comes late, and the answer at once."""

    def spawn(self, process: ProcessSpec) -> Channel:
        time.sleep(LATE)
        channel = super().spawn(process)
        assert isinstance(channel, FakeChannel)
        obey = channel.obey

        def later(message: Message) -> None:
            time.sleep(LATE)
            obey(message)

        channel.obey = later
        return channel


ACTS = """\
title: t
hosts: {server: {calls: await}, client: {}}
steps:
  - start: server
    as: started
  - call: {server: "close"}
    as: called
  - signal: {server: HUP}
    as: signalled
  - kill: server
    as: killed
  - note: hello
    as: noted
"""


def test_the_label_of_a_step_is_when_it_acted_by_its_hosts_clock(tmp_path: Path) -> None:
    """And not when labctl asked for it, or had the answer."""

    def hangs(lab: FakeBackend) -> None:
        """The main process lives on."""

    fake = Far(
        {
            "start server": lambda lab: lab.call("server", "await", done=False),
            "call server close": lambda lab: lab.call("server", "close"),
            "signal server HUP": hangs,
        }
    )
    found = play(ACTS, fake, tmp_path)
    assert found.result == "pass"
    steps = [event for event in found.history.events if isinstance(event, StepEvent)]
    assert [(step.label, step.host) for step in steps[1::2]] == [
        ("started", "server"), ("called", "server"), ("signalled", "server"),
        ("killed", "server"), ("noted", None),
    ]  # fmt: skip
    for begin, end in zip(steps[:-2:2], steps[1:-2:2], strict=True):
        assert end.moment is not None and begin.t + LATE - 0.05 < end.moment <= end.t + 0.05
    assert steps[-1].moment == steps[-2].t
    assert found.history.labels["killed"] == steps[-3].moment


FAULTS = """\
title: t
hosts: {server: {}, client: {}}
steps:
  - exec: {client: "true"}
    as: ran
  - sysctl: {server: {net.ipv4.tcp_fin_timeout: 5}}
    as: set
  - drop: {to: server}
    as: lost
  - heal: lost
    as: healed
"""


def test_the_label_of_a_fault_is_right_before_its_agent_acts(tmp_path: Path) -> None:
    """Not after: what comes of it must count."""
    slow = {name: lambda lab: time.sleep(LATE) for name in ("exec client true", "drop server")}
    fake = TwoMachines(slow, {"exec": {"exit": 0, "output": ""}})
    found = play(FAULTS, fake, tmp_path)
    ends = [e for e in found.history.events if isinstance(e, StepEvent) and e.phase == "end"]
    assert [end.host for end in ends] == ["client", "server", "server", "server"]
    asked = [what.split()[0] for what in fake.log if what.split()[0] in ("clock", "exec", "drop")]
    assert asked[asked.index("exec") - 1] == asked[asked.index("drop") - 1] == "clock"


def test_a_label_of_one_machine_and_a_state_of_another(tmp_path: Path) -> None:
    """Both clocks' bounds count; for a state of the label's own machine none does."""

    def result(host: str, **bounds: float) -> str:
        chosen = scenario(
            "title: t\nhosts: {server: {calls: await}, client: {}}\nsteps:\n"
            "  - start: server\n    as: begun\n"
            f"  - wait: {{sockets: {{{host}: LISTEN}}}}\n    since: begun\n    within: 0s..400ms\n"
        )
        events = [
            *clocks(**bounds),
            StepEvent(0.9, 0, "begin", "start server", verb="start"),
            StepEvent(1.1, 0, "end", "start server", label="begun", outcome="done", moment=1.0,
                      verb="start", host="server"),
            StepEvent(1.1, 1, "begin", "wait", verb="wait"),
            look(1.0, host=host), look(1.28, host=host), look(1.3, tcp("LISTEN", ":80"), host=host),
            StepEvent(1.35, 1, "end", "wait", outcome="held", verb="wait"),
        ]  # fmt: skip
        return check(chosen, told(events, []).events)[-1].result

    assert result("client", server=0.01, client=0.05) == "pass"
    assert result("client", server=0.2, client=0.05) == "unknown"
    assert result("server", server=0.2, client=0.05) == "pass"


def test_states_of_two_machines_at_once(tmp_path: Path) -> None:
    """When both held, either clock may have told: so its bound is one of each claim."""
    chosen = scenario(
        "title: t\nhosts: {server: {calls: await}, client: {}}\nsteps:\n"
        "  - start: server\n    as: begun\n"
        "  - wait: {sockets: {server: LISTEN, client: LISTEN}}\n    since: begun\n"
        "    within: 0s..400ms\n"
    )

    def results(bound: float) -> list[str]:
        listens = tcp("LISTEN", ":80")
        events = [
            *clocks(server=0.01, client=bound),
            StepEvent(0.9, 0, "begin", "start server", verb="start"),
            StepEvent(1.1, 0, "end", "start server", label="begun", outcome="done", moment=1.0,
                      verb="start", host="server"),
            StepEvent(1.1, 1, "begin", "wait", verb="wait"),
            look(1.1), look(1.1, host="client"), look(1.12, listens),
            look(1.28, host="client"), look(1.3, listens, host="client"),
            StepEvent(1.35, 1, "end", "wait", outcome="held", verb="wait"),
        ]  # fmt: skip
        return [each.result for each in check(chosen, told(events, []).events)]

    assert results(0.05) == ["pass", "pass"]
    assert results(0.2) == ["unknown", "unknown"]


def test_segments_since_a_label_of_their_own_machine_are_certain() -> None:
    claim = SegmentsPattern.model_construct(flags=("FIN",), since="killed", at_least=1)

    def result(whose: str | None) -> str:
        label = StepEvent(2.0, 0, "end", "kill", label="killed", outcome="done", host=whose)
        events = [*clocks(server=0.2, client=0.2), label, look(3.0)]
        found = told(events, [*handshake(1.0), *close(2.1, CLIENT, SERVER)[:1]])
        return claim.judge(found).result

    assert (result("client"), result("server"), result(None)) == ("pass", "unknown", "unknown")


def test_what_answers_the_first_segment_and_what_it_answers_are_told_apart() -> None:
    """By the clock of one end each, whatever the bound: an ACK of the client had come to the
    server before its FIN left, and the client's own FIN left when that had come. What crosses it
    is not told apart."""

    def result(count: int, left: float) -> str:
        claim = SegmentsPattern.model_construct(since_first=("FIN",), at_least=count, at_most=count)
        ack = Sent(left, CLIENT, SERVER, ACK, 1, 1)
        sent = [*handshake(1.0), ack, *close(2.0, SERVER, CLIENT)]
        events = [*clocks(server=0.2, client=0.2), look(3.0)]
        return claim.judge(told(events, sorted(sent, key=lambda each: each.t))).result

    assert (result(3, 1.9998), result(4, 1.9998)) == ("pass", "fail")
    for crosses in (1.99998, 2.00002):
        assert (result(3, crosses), result(4, crosses)) == ("unknown", "unknown")


def test_an_answer_is_not_before_what_it_answers() -> None:
    """By a clock that is off by more than a segment is under way: else a connection would be two,
    and its SYN a retransmission."""
    sent = [*handshake(1.0), *close(2.0), *handshake(3.0, start=10**6)]
    for off in (-4e-4, 4e-4):
        found = told([*clocks(server=1e-3, client=1e-3), look(4.0)])
        for host, records in captured(sent).items():
            found.add_packets(4.0, host, shifted(records, off) if host == "client" else records)
        segments = found.segments()
        assert [s.flags for s in segments[:3]] == [("SYN",), ("SYN", "ACK"), ("ACK",)]
        assert not any(segment.retransmitted for segment in segments)
        assert len(conversations(segments)) == 2
