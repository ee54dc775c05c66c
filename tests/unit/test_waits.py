"""Waits and expectations: by when a thing happened."""

from __future__ import annotations

import threading

import pytest

from labctl.judge.check import check
from labctl.judge.recorded import load
from labctl.lab.observing import SETTLING
from labctl.language.predicates.held import held_at
from labctl.record.events import (
    Event,
    SocketsEvent,
    StepEvent,
)
from labctl.record.history import History
from tests.fake import HEADER, FakeBackend, scenario
from tests.played import (
    ESTAB,
    FIN_WAIT_2,
    LISTEN,
    RESOLVER,
    Play,
    lesson,
    outcomes,
    told,
)
from tests.reported import RUN
from tests.walked import ACK, FIN, HERE, THERE, history, look, packet

# Waiting


def test_a_wait_that_holds(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN, RESOLVER)})
    found = watch("- start: server\n- wait: {sockets: {server: LISTEN}}\n", fake)
    assert (found.result, found.reason) == ("pass", None)
    (verdict,) = found.verdicts
    assert (verdict.what, verdict.expected) == ("server: LISTEN", "LISTEN within 5 s")
    assert verdict.actual.startswith("LISTEN accept queue 0/0 after 0.")
    assert verdict.source == "lesson.yaml:8"
    assert verdict.evidence == ("LISTEN 0.0.0.0:8000, accept queue 0/0",)
    assert outcomes(found) == ["done", "held"]


def test_a_wait_for_what_comes_later(watch: Play) -> None:
    fake = FakeBackend({"look server": [lambda lab: lab.sockets("server", LISTEN)]})
    found = watch("- wait: {sockets: {server: LISTEN}}\n", fake)
    assert told(found) == [("server: LISTEN", "pass")]


@pytest.mark.parametrize(
    ("later", "within", "result"),
    [
        (5.0, "4.5s..7s", "pass"), (4.4, "4.5s..7s", "fail"), (7.1, "4.5s..7s", "fail"),
        (5.0, "4s", "fail"), (3.9, "4s", "pass"), (0.0, "10ms..1s", "fail"),
    ],
)  # fmt: skip
def test_a_wait_measures_when_it_became_true(
    watch: Play, later: float, within: str, result: str
) -> None:
    """What happened counts, by the lab's clock, and not when labctl learned of it."""
    fake = FakeBackend(
        {"kill server": lambda lab: (lab.sockets("server", FIN_WAIT_2),
                                     lab.sockets("server", later=later))}
    )  # fmt: skip
    found = watch(
        "- start: server\n- kill: server\n  as: killed\n"
        f"- wait: {{sockets: {{server: none}}}}\n  since: killed\n  within: {within}\n"
        "- note: after\n",
        fake,
    )
    (verdict,) = found.verdicts
    assert verdict.result == found.result == result
    assert verdict.expected.endswith(" of killed")
    seconds = float(verdict.actual.split(" after ")[1].split()[0])
    assert later - 0.5 < seconds <= later + 0.05
    assert outcomes(found) == ["done", "done", "held", "done"]


def test_a_wait_that_comes_late_still_measures(watch: Play) -> None:
    fake = FakeBackend({"kill server": lambda lab: lab.sockets("server", later=0.1)})
    found = watch(
        "- start: server\n- kill: server\n  as: killed\n- sleep: 300ms\n"
        "- wait: {sockets: {server: none}}\n  since: killed\n  within: 200ms\n",
        fake,
    )
    (verdict,) = found.verdicts
    assert verdict.result == "pass"
    assert verdict.at > 0.3


def test_a_wait_for_what_never_comes_ends_the_steps(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN, FIN_WAIT_2)})
    found = watch(
        "- start: server\n- wait: {sockets: {server: none, client: none}}\n  within: 30ms\n"
        "- start: client\n",
        fake,
        "expect:\n- process: {client: running}\n",
    )
    assert found.result == "fail"
    assert outcomes(found) == ["done", "timeout"]
    assert "start client" not in fake.log
    first, second, last = found.verdicts
    assert (first.result, first.expected) == ("fail", "no connection within 0.03 s")
    assert first.actual.startswith("LISTEN accept queue 0/0, FIN-WAIT-2 until 0.")
    assert first.evidence[1] == (
        "FIN-WAIT-2 198.18.0.2:8000 -> 198.18.0.3:40000, timewait timer 4.5 s left"
    )
    assert (second.result, second.actual) == ("pass", "no sockets")
    assert (last.result, last.actual) == ("fail", "never started")


def test_a_wait_looks_once_more_at_its_end(watch: Play) -> None:
    """An agent that noticed nothing does not make a wait fail."""
    fake = FakeBackend({"look server": [lambda lab: lab.unnoticed("server", LISTEN)]})
    found = watch("- wait: {sockets: {server: LISTEN}}\n  within: 20ms\n", fake)
    assert found.result in ("pass", "fail")  # held, though perhaps a moment too late
    assert outcomes(found) == ["held"]


def test_a_wait_of_several_subjects(watch: Play) -> None:
    fake = FakeBackend(
        {
            "start server": lambda lab: lab.sockets("server", LISTEN),
            "look server": [lambda lab: (lab.sockets("server", ESTAB),
                                         lab.call("server", "socket", errno="EMFILE"),
                                         lab.exit("server", 24),
                                         lab.count("client", TcpActiveOpens=2))],
        }
    )  # fmt: skip
    found = watch(
        "- start: server\n"
        "- wait:\n"
        "    sockets: {server: ESTAB}\n"
        "    process: {server: EMFILE}\n"
        "    counters: {client: {TcpActiveOpens: 2}}\n",
        fake,
    )
    assert told(found) == [
        ("server: ESTAB", "pass"), ("server: EMFILE", "pass"),
        ("client: TcpActiveOpens grew by 2", "pass"),
    ]  # fmt: skip


def test_news_from_before_the_wait(watch: Play) -> None:
    """What a process did while its start was awaited is older than the wait for it."""
    fake = FakeBackend({"start client": lambda lab: lab.exit("client", 3, later=-0.001)})
    found = watch("- start: client\n- wait: {process: {client: {exit: 3}}}\n", fake)
    assert told(found) == [("client: exit 3", "pass")]
    ends = [e for e in found.history.events if isinstance(e, StepEvent)]
    assert [e.t for e in ends] == sorted(e.t for e in ends)


def looks(*moments: tuple[float, str]) -> list[Event]:
    """What `ss` on a server said, and when."""
    return [SocketsEvent(t, "server", "change", line) for t, line in moments]


@pytest.mark.parametrize(
    ("moments", "start", "since"),
    [
        ([(1.0, LISTEN)], 0.0, 1.0),
        ([(1.0, ""), (2.0, LISTEN), (3.0, LISTEN)], 0.0, 2.0),
        ([(1.0, LISTEN), (2.0, ""), (3.0, LISTEN)], 0.0, 3.0),
        ([(1.0, LISTEN), (2.0, LISTEN)], 1.5, 2.0),
        ([(1.0, LISTEN), (2.0, "")], 0.0, 1.0),  # it did hold
        ([(1.0, LISTEN)], 1.5, None),
        ([], 0.0, None),
        ([(1.0, ""), (0.9, LISTEN), (4.0, LISTEN)], 1.0, 1.0),  # news that was under way
    ],
)
def test_held_since(moments: list[tuple[float, str]], start: float, since: float | None) -> None:
    claim = scenario(lesson("- wait: {sockets: {server: LISTEN}}\n")).steps[0].claim
    assert claim
    held = held_at(claim, History(looks(*moments)), start, start)
    assert (held and held.latest) == since


@pytest.mark.parametrize(("start", "since"), [(0.5, 1.0), (3.0, None)])
def test_segments_were_enough_before_a_wait_began_and_are_too_many(
    start: float, since: float | None
) -> None:
    steps = "- wait: {segments: {from: server, flags: FIN, count: 1}}\n"
    claim = scenario(lesson(steps)).steps[0].claim
    assert claim
    past = history(look(5.0), packets=b"".join(packet(t, HERE, THERE, FIN | ACK, (1, 1))
                                               for t in (1.0, 2.0)))  # fmt: skip
    held = held_at(claim, past, start)
    assert (held and held.latest) == since


@pytest.mark.parametrize(
    "step", ["process: {server: ok}", "sockets: {server: LISTEN}", "counters: {server: {X: 1}}"]
)
def test_a_wait_heeds_all_that_may_change_it(step: str) -> None:
    """What it does not heed leaves what is found as it is."""
    claim = scenario(lesson(f"- wait: {{{step}}}\n")).steps[0].claim
    assert claim
    run = load(RUN).history
    history = History(captures=run.captures)
    before: object = None
    heeded = 0
    for event in run.events:
        history.add(event)
        found = claim.judge(history)
        assert claim.heeds(event) or found == before or before is None, event
        heeded += claim.heeds(event)
        before = found
    assert 0 < heeded < len(run.events)


# Expecting


def test_an_expectation_that_fails_goes_on(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN, ESTAB)})
    found = watch(
        "- start: server\n- expect: {sockets: {server: none}}\n- note: still here\n", fake
    )
    assert told(found) == [("server: no connection", "fail")]
    assert found.verdicts[0].actual == "LISTEN accept queue 0/0, ESTAB"
    assert outcomes(found) == ["done", "done", "done"]
    assert found.lab_seconds >= SETTLING


def test_an_expectation_waits_for_what_is_in_flight(watch: Play) -> None:
    def soon(lab: FakeBackend) -> None:
        threading.Timer(0.01, lab.sockets, ("server", FIN_WAIT_2)).start()

    fake = FakeBackend({"look server": [soon]})
    found = watch("- expect: {sockets: {server: FIN-WAIT-2}}\n", fake)
    assert found.result == "pass"
    assert found.lab_seconds > 0.01


def test_final_expectations_see_the_whole_history(watch: Play) -> None:
    fake = FakeBackend(
        {
            "start client": lambda lab: (lab.output("client", "one\ntwo\n"), lab.exit("client")),
            "look client": [lambda lab: lab.count("client", TcpActiveOpens=3)],
        }
    )
    more = """\
expect:
- process: {client: {output: "^two$", exit: 0}}
- counters: {client: {TcpActiveOpens: ">=3", TcpExtTCPAbortOnClose: 0, TcpExtNoSuch: 0}}
"""
    found = watch("- start: client\n- wait: {process: {client: ok}}\n", fake, more)
    assert [(v.what, v.result, v.actual) for v in found.verdicts[1:]] == [
        ("client: exit 0, output '^two$'", "pass", "exit 0, output 'two'"),
        ("client: TcpActiveOpens grew by >=3", "pass", "3"),
        ("client: TcpExtTCPAbortOnClose grew by 0", "pass", "0"),
        ("client: TcpExtNoSuch grew by 0", "unknown", "this kernel has no counter TcpExtNoSuch"),
    ]
    assert found.result == "unknown"
    assert found.verdicts[1].source == "lesson.yaml:6"


def test_a_wait_that_held_in_hindsight_alone_is_unknown() -> None:
    """The steps ended there, so what they would have shown is not known."""
    text = "wait server no connection"
    case = scenario(lesson("- wait: {sockets: {server: none}}\n- note: not reached\n"))
    events = [
        StepEvent(0.1, 0, "begin", text),
        SocketsEvent(5.0, "server", "look", HEADER),
        StepEvent(5.1, 0, "end", text, outcome="timeout"),
    ]
    (verdict,) = check(case, events)
    assert (verdict.result, verdict.actual) == (
        "unknown", "no sockets, only seen when the wait was over"
    )  # fmt: skip
