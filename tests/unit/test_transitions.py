"""Traced transitions, looks and captures, joined; and what is claimed of them."""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from labctl.backends import Channel, Message
from labctl.backends.capabilities import Lack
from labctl.ground.errors import ScenarioError
from labctl.language.facts import Range
from labctl.language.predicates import Finding, Predicate
from labctl.probes.sockets import State
from labctl.record.events import Event, LabEvent, SocketsEvent, StateEvent, TroubleEvent
from labctl.record.history import History
from labctl.record.looks import FOLLOWING, SAMPLING, reachable
from labctl.record.moments import Moment
from labctl.record.timelines import Timeline, missable, timelines
from tests.fake import HEADER, FakeBackend, FakeChannel, play, scenario, tcp

HERE, THERE = "198.18.0.2:8000", "198.18.0.3:40000"
ROOT = "tracing needs root; run it as root, or use --backend docker"

PASSIVE = ["LISTEN", "SYN-RECV", "ESTAB", "CLOSE-WAIT", "LAST-ACK", "UNCONN"]
ACTIVE = ["LISTEN", "SYN-RECV", "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "UNCONN"]


def lab(*probes: str) -> LabEvent:
    return LabEvent(
        0.0, "2026-01-01T00:00:00Z", "fake", {"probes": ["ss", *probes]},
        {"server": "198.18.0.2", "server.v6": "fd00::2", "client": "198.18.0.3"},
    )  # fmt: skip


def walk(
    *states: str, start: float = 1.0, step: float = 0.001, local: str = HERE, remote: str = THERE
) -> list[Event]:
    """The transitions through these states, one each `step` seconds."""
    return [
        StateEvent(round(start + number * step, 6), "server", local, remote, old, new)
        for number, (old, new) in enumerate(pairwise(states))
    ]


def look(t: float, *lines: str) -> SocketsEvent:
    return SocketsEvent(t, "server", "change", "\n".join([HEADER, *lines]))


def shown(state: str, more: str = "", local: str = HERE, remote: str = THERE) -> str:
    return tcp(state, local, remote, more=more)


def mini(state: str, left: str = "59sec") -> str:
    return shown(state, f"timer:(timewait,{left},0)")


def packet(t: float, source: str, target: str, flags: int, seq: int, ack: int) -> bytes:
    """A captured segment, as a record of pcap-savefile(5)."""
    ends = []
    for place in (source, target):
        host, _, port = place.rpartition(":")
        family = socket.AF_INET6 if "[" in host else socket.AF_INET
        ends.append((socket.inet_pton(family, host.strip("[]")), int(port)))
    (here, sport), (there, dport) = ends
    segment = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 1000, 0, 0)
    if len(here) == 4:
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, here, there)
    else:
        header = struct.pack("!IHBB16s16s", 6 << 28, 20, 6, 64, here, there)
    kind = b"\x08\x00" if len(here) == 4 else b"\x86\xdd"
    frame = bytes(12) + kind + header + segment
    return struct.pack("<IIII", int(t), round(t % 1 * 1e9), len(frame), len(frame)) + frame


FIN, SYN, RST, ACK = 1, 2, 4, 16


def history(*events: Event, packets: bytes = b"", probes: tuple[str, ...] = ("trace",)) -> History:
    """Without packets of its own each transition has one that bears it out."""
    found = History([lab(*probes), *sorted(events, key=lambda event: event.t)])
    told = [e for e in events if isinstance(e, StateEvent) and not e.local.endswith(":0")]
    borne = b"".join(packet(e.t, e.local, e.remote, ACK, 1, 1) for e in told)
    found.add_packets(found.now, "server", packets or borne)
    return found


def one(*events: Event, **more: Any) -> Timeline:
    (found,) = timelines(history(*events, **more), "server")
    return found


def spans(timeline: Timeline) -> list[tuple[str, float, float, float, float]]:
    """State, begin and end, each as bounds."""
    ends = [span.end or Moment(math.inf, math.inf) for span in timeline.spans]
    return [
        (str(s.state), s.begin.earliest, s.begin.latest, e.earliest, e.latest)
        for s, e in zip(timeline.spans, ends, strict=True)
    ]


# --- Timelines ------------------------------------------------------------------------------------


def test_a_traced_connection_is_told_to_the_microsecond() -> None:
    found = one(*walk(*PASSIVE), look(0.95), look(1.2))
    assert found.name == f"{HERE} -> {THERE}"
    assert found.complete and found.closed
    assert spans(found) == [
        ("SYN-RECV", 0.95, 1.0, 1.001, 1.001),  # the request came at some time before
        ("ESTAB", 1.001, 1.001, 1.002, 1.002),
        ("CLOSE-WAIT", 1.002, 1.002, 1.003, 1.003),
        ("LAST-ACK", 1.003, 1.003, 1.004, 1.004),
    ]
    assert str(found.spans[0].begin) == "0.950..1.000"
    assert str(found.spans[1].begin) == "1.001000"


def test_an_old_kernel_begins_where_the_handshake_ends() -> None:
    found = one(*walk(*PASSIVE[1:], start=1.001), look(0.95), look(1.2))
    assert found.complete
    assert found.states == one(*walk(*PASSIVE), look(0.95), look(1.2)).states
    assert spans(found)[0] == ("SYN-RECV", 0.95, 1.001, 1.001, 1.001)


def test_a_request_that_looks_saw_began_then() -> None:
    looks = [look(0.35), look(0.4, shown("SYN-RECV")), look(0.9, shown("SYN-RECV"))]
    found = one(*walk(*PASSIVE), *looks)
    assert found.spans[0].begin == Moment(0.35, 0.5)
    assert found.spans[0].lasted(9.0) == (pytest.approx(0.501), pytest.approx(0.651))


def test_connect_has_no_port_at_first() -> None:
    early = walk("UNCONN", "SYN-SENT", local="198.18.0.2:0", remote="198.18.0.3:80")
    rest = walk("SYN-SENT", "ESTAB", "UNCONN", start=1.5, local="198.18.0.2:33000",
                remote="198.18.0.3:80")  # fmt: skip
    found = one(*early, *rest)
    assert found.local == "198.18.0.2:33000"
    assert found.states == (State.SYN_SENT, State.ESTAB)
    assert found.spans[0].lasted(9.0) == (0.5, 0.5)


def test_a_connect_that_never_had_a_port_is_no_connection() -> None:
    place: dict[str, Any] = {"local": "198.18.0.2:0", "remote": "198.18.0.3:80"}
    failed = walk("UNCONN", "SYN-SENT", "UNCONN", **place)
    again = walk("UNCONN", "SYN-SENT", start=2.0, **place)
    rest = walk("SYN-SENT", "ESTAB", start=2.5, local="198.18.0.2:33000", remote="198.18.0.3:80")
    assert one(*failed, *again, *rest).spans[0].begin == Moment(2.0, 2.0)


def test_time_wait_follows_where_the_trace_ends() -> None:
    found = one(*walk(*ACTIVE), look(1.02, mini("TIME-WAIT")), look(61.5))
    assert found.states[-2:] == (State.FIN_WAIT_2, State.TIME_WAIT)
    assert spans(found)[-2:] == [
        ("FIN-WAIT-2", 1.003, 1.003, 1.004, pytest.approx(1.02 + SAMPLING)),
        ("TIME-WAIT", 1.004, pytest.approx(1.02 + SAMPLING), 61.5 - SAMPLING, 61.5 + SAMPLING),
    ]
    assert found.complete and found.closed


def test_time_wait_that_is_still_there_has_no_end() -> None:
    found = one(*walk(*ACTIVE), look(1.02, mini("TIME-WAIT")))
    assert found.spans[-1].end is None and not found.closed
    assert found.spans[-1].lasted(11.12) == (pytest.approx(10.0), math.inf)


def test_an_orphan_waits_on_as_a_minisocket() -> None:
    looks = [look(1.02, mini("FIN-WAIT-2", "5sec")), look(3.0, mini("TIME-WAIT")), look(63.0)]
    found = one(*walk(*ACTIVE), *looks)
    assert spans(found)[-2:] == [
        ("FIN-WAIT-2", 1.003, 1.003, 3.0 - SAMPLING, 3.0 + SAMPLING),
        ("TIME-WAIT", 3.0 - SAMPLING, 3.0 + SAMPLING, 63.0 - SAMPLING, 63.0 + SAMPLING),
    ]


def test_simultaneous_closers_enter_time_wait_when_the_trace_ends() -> None:
    states = ["LISTEN", "SYN-RECV", "ESTAB", "FIN-WAIT-1", "CLOSING", "UNCONN"]
    found = one(*walk(*states), look(1.02, mini("TIME-WAIT")))
    assert found.spans[-1].begin == Moment(1.004, 1.004)


def test_an_orphan_that_ran_out_of_time_had_no_time_wait() -> None:
    looks = [look(1.02, mini("FIN-WAIT-2", "5sec")), look(6.0)]
    packets = packet(0.99, THERE, HERE, SYN, 100, 0) + packet(0.995, HERE, THERE, SYN | ACK, 7, 101)
    found = one(*walk(*ACTIVE), *looks, packets=packets, probes=("trace", "capture"))
    assert found.states[-1] is State.FIN_WAIT_2 and found.closed and found.complete
    assert found.spans[-1].end == Moment(6.0 - SAMPLING, 6.0 + SAMPLING)


def test_a_time_wait_that_no_look_saw_is_read_off_the_wire() -> None:
    packets = b"".join(
        [
            packet(0.99, THERE, HERE, SYN, 100, 0),
            packet(0.995, HERE, THERE, SYN | ACK, 7, 101),
            packet(1.002, HERE, THERE, FIN | ACK, 8, 101),
            packet(1.0035, THERE, HERE, FIN | ACK, 101, 9),
            packet(1.0038, HERE, THERE, ACK, 9, 102),
            packet(1.0041, THERE, HERE, RST, 102, 0),
        ]
    )
    found = one(*walk(*ACTIVE), look(1.05), packets=packets, probes=("trace", "capture"))
    assert found.states[-1] is State.TIME_WAIT and found.closed and found.complete
    assert found.spans[-1].begin == Moment(1.004, 1.004)
    assert found.spans[-1].lasted(9.0) == (0.0, pytest.approx(0.046 + SAMPLING))


@pytest.mark.parametrize("state", ["FIN-WAIT-2", "CLOSING"])
def test_without_a_capture_a_short_time_wait_can_be_missed(state: str) -> None:
    found = one(*walk("UNCONN", "SYN-SENT", "ESTAB", "FIN-WAIT-1", state, "UNCONN"), look(1.05))
    assert found.gap == "a short TIME-WAIT may have been missed"
    assert not found.complete


def test_where_no_look_follows_nothing_is_known() -> None:
    found = one(*walk(*ACTIVE), look(0.5))
    assert found.gap == "no look tells what followed FIN-WAIT-2"


def test_incarnations_are_told_apart() -> None:
    second = [*walk(*PASSIVE, start=2.0)]
    found = timelines(history(*walk(*PASSIVE), look(1.5), *second, look(3.0)), "server")
    assert [(t.incarnation, t.spans[1].begin.latest) for t in found] == [(1, 1.001), (2, 2.001)]
    assert found[1].name.endswith("(#2)")


def test_a_time_wait_ends_where_the_next_incarnation_begins() -> None:
    events = [*walk(*ACTIVE), look(1.02, mini("TIME-WAIT")), *walk(*ACTIVE[:3], start=1.5)]
    first, second = timelines(history(*events), "server")
    assert first.spans[-1].end == Moment(1.5 - SAMPLING, 1.5)  # sooner, a look would show it
    assert second.states == (State.SYN_RECV, State.ESTAB)


def test_what_was_there_before_the_lab_is_not_its_own() -> None:
    assert timelines(history(*walk("FIN-WAIT-1", "UNCONN"), look(2.0)), "server") == []


def test_losses_leave_a_gap() -> None:
    trouble = TroubleEvent(1.5, "server", "trace", "3 transitions were lost")
    events = [*walk("ESTAB", "FIN-WAIT-1", "FIN-WAIT-2"), trouble, look(1.6)]
    later = walk(*PASSIVE, start=2.0, remote="198.18.0.3:40001")
    first, second = timelines(history(*events, *later, look(2.5)), "server")
    assert first.gap == "3 transitions were lost" and not first.complete
    assert first.states[0] is State.ESTAB
    assert second.gap is None and second.complete


def test_a_missing_link_leaves_a_gap() -> None:
    trouble = TroubleEvent(0.5, "server", "trace", "1 transitions were lost")
    broken = [*walk("LISTEN", "SYN-RECV", "ESTAB"), *walk("LAST-ACK", "UNCONN", start=2.0)]
    assert one(trouble, *broken, look(3.0)).gap == "a transition is missing"


def test_looks_alone_tell_what_they_show() -> None:
    looks = [look(0.9), look(1.0, shown("ESTAB")), look(2.0, shown("FIN-WAIT-2")), look(5.0)]
    found = one(*looks, probes=())
    assert not found.traced and not found.complete and found.closed
    assert spans(found) == [
        ("ESTAB", pytest.approx(0.9), 1.0 + SAMPLING, 2.0 - SAMPLING, 2.0 + SAMPLING),
        ("FIN-WAIT-2", 2.0 - SAMPLING, 2.0 + SAMPLING, 5.0 - SAMPLING, 5.0 + SAMPLING),
    ]


@pytest.mark.parametrize(
    "second",
    [
        shown("ESTAB", "ino:5 sk:2"),  # another socket
        shown("SYN-SENT", "ino:4 sk:1"),  # no way back
    ],
)
def test_looks_alone_tell_incarnations_apart(second: str) -> None:
    looks = [look(1.0, shown("ESTAB", "ino:4 sk:1")), look(2.0, second)]
    assert [t.incarnation for t in timelines(history(*looks, probes=()), "server")] == [1, 2]


def test_a_mapped_address_is_the_plain_one() -> None:
    mapped = tcp("TIME-WAIT", f"[::ffff:198.18.0.2]:{8000}", "[::ffff:198.18.0.3]:40000",
                 more="timer:(timewait,59sec,0)")  # fmt: skip
    assert one(*walk(*ACTIVE), look(1.02, mapped)).states[-1] is State.TIME_WAIT


def test_a_request_that_never_came_to_anything_is_seen_by_looks_alone() -> None:
    found = one(look(1.0, shown("SYN-RECV")), look(3.0))
    assert found.states == (State.SYN_RECV,) and found.closed


def test_listeners_are_no_connections() -> None:
    events = walk("UNCONN", "LISTEN", "UNCONN", remote="0.0.0.0:0")
    assert timelines(history(*events, look(2.0, tcp("LISTEN", ":8000"))), "server") == []


def test_every_state_leads_to_the_end() -> None:
    assert FOLLOWING.keys() == set(State) - {State.LISTEN, State.UNCONN}
    assert reachable(State.SYN_SENT, State.TIME_WAIT)
    assert not reachable(State.TIME_WAIT, State.ESTAB)
    assert missable(State.ESTAB, State.FIN_WAIT_2)
    assert not missable(State.FIN_WAIT_1, State.FIN_WAIT_2)
    assert missable(State.FIN_WAIT_2, None)
    assert not missable(State.LAST_ACK, None)


# --- Claims ---------------------------------------------------------------------------------------


def claim(text: str) -> Predicate:
    (found,) = scenario(f"""\
title: t
hosts: {{server: {{calls: await}}, client: {{calls: await}}}}
steps: []
expect:
  - {text}
""").expect
    return found


def judge(text: str, found: History) -> Finding:
    (finding,) = claim(text).judge(found)
    return finding


WALKED = "ESTAB, FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT"
TRACED = history(*walk(*ACTIVE), look(1.02, mini("TIME-WAIT")), look(61.0))
WAITING = history(*walk(*ACTIVE), look(1.02, mini("TIME-WAIT")), look(11.0, mini("TIME-WAIT")))
PASSED = history(*walk(*PASSIVE), look(2.0))
UNTRACED = TroubleEvent(0.0, "server", "trace", ROOT)


@pytest.mark.parametrize(
    ("states", "found", "result"),
    [
        (f"{WALKED}, closed", TRACED, "pass"),
        (f"{WALKED}", TRACED, "fail"),  # nothing is left
        ("FIN-WAIT-2, TIME-WAIT, closed", TRACED, "pass"),  # from the first named one on
        ("FIN_WAIT_1, fin-wait-2, TIME_WAIT, closed", TRACED, "pass"),
        ("FIN-WAIT-2, closed", TRACED, "fail"),
        ("ESTAB, FIN-WAIT-1, CLOSING, TIME-WAIT, closed", TRACED, "fail"),
        ("SYN-SENT, ESTAB, FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT, closed", TRACED, "fail"),
        (WALKED, WAITING, "pass"),
        (f"{WALKED}, closed", WAITING, "fail"),
        ("ESTAB, CLOSE-WAIT, LAST-ACK, closed", PASSED, "pass"),
        ("ESTAB, CLOSE-WAIT, closed", PASSED, "fail"),
        ("ESTAB, closed", history(look(1.0)), "fail"),
    ],
)
def test_path(states: str, found: History, result: str) -> None:
    finding = judge(f"path: {{server: [{states}]}}", found)
    assert finding.result == result
    assert finding.what == f"server: {finding.expected}"


def test_a_path_that_was_not_walked_is_told_beside_the_one_that_was() -> None:
    finding = judge("path: {server: [ESTAB, FIN-WAIT-1, closed]}", TRACED)
    assert finding.actual == f"SYN-RECV, {WALKED}, closed"
    assert finding.evidence[0] == f"{HERE} -> {THERE}"
    assert finding.evidence[2] == "  ESTAB from 1.001000 s to 1.002000 s"


def test_paths_and_times_as_data() -> None:
    finding = judge("path: {server: [ESTAB, FIN-WAIT-1, closed]}", TRACED)
    assert finding.claimed.wanted.states == ("ESTAB", "FIN-WAIT-1", "closed")
    assert ", ".join(finding.measured.states) == f"SYN-RECV, {WALKED}, closed"
    assert finding.measured.connections == ((HERE, THERE),)
    finding = judge("lasted: {server: TIME-WAIT, for: 60s, tolerance: 2s}", TRACED)
    assert finding.claimed.wanted.lasted_seconds == Range(58.0, 62.0)
    assert finding.measured.lasted_seconds == Range(59.78, 60.096)
    still = judge("lasted: {server: TIME-WAIT, for: 5s}", WAITING).measured.lasted_seconds
    assert still == Range(9.88)
    never = judge("lasted: {server: CLOSE-WAIT, for: 1s}", TRACED).measured
    assert never.lasted_seconds is None
    other = walk("LISTEN", "SYN-RECV", "ESTAB", "UNCONN", step=3, remote="198.18.0.3:40001")
    finding = judge("lasted: {server: ESTAB, for: 60s}", history(*walk(*PASSIVE), *other))
    assert (finding.measured.lasted_seconds, finding.measured.states) == (Range(0.001, 3.0), ())


def test_one_connection_that_walked_so_is_enough() -> None:
    other = walk("LISTEN", "SYN-RECV", "ESTAB", "UNCONN", remote="198.18.0.3:40001")
    both = history(*walk(*PASSIVE), *other, look(2.0))
    finding = judge("path: {server: [ESTAB, CLOSE-WAIT, LAST-ACK, closed]}", both)
    assert (finding.result, len(finding.evidence)) == ("pass", 5)


def test_many_paths_are_counted() -> None:
    events: list[Event] = []
    for number in range(7):
        events += walk(*PASSIVE, remote=f"198.18.0.3:{40000 + number}")
    finding = judge("path: {server: [ESTAB, closed]}", history(*events, look(2.0)))
    assert finding.actual == "7 x SYN-RECV, ESTAB, CLOSE-WAIT, LAST-ACK, closed"


LOOKS = [
    look(1.0, shown("ESTAB")), look(2.0, mini("FIN-WAIT-2")), look(3.0, mini("TIME-WAIT")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("states", "looks", "result"),
    [
        (WALKED, LOOKS, "unknown"),  # FIN-WAIT-1 was not seen
        ("FIN-WAIT-2, TIME-WAIT", LOOKS, "pass"),  # nothing fits between
        ("ESTAB, CLOSE-WAIT, LAST-ACK", LOOKS, "fail"),
        ("ESTAB, CLOSE-WAIT, LAST-ACK, closed", LOOKS, "unknown"),  # another may have been missed
        ("ESTAB, FIN-WAIT-1, FIN-WAIT-2", LOOKS, "fail"),  # and then TIME-WAIT
        (f"{WALKED}, closed", LOOKS, "unknown"),  # it is still there, but another may be gone
        (f"{WALKED}, closed", [*LOOKS, look(63.0)], "unknown"),
        ("TIME-WAIT, closed", [*LOOKS, look(63.0)], "pass"),
        ("FIN-WAIT-2, closed", [*LOOKS[:2], look(3.0)], "unknown"),  # a short TIME-WAIT
        ("FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT", LOOKS, "unknown"),
        ("ESTAB, closed", [look(1.0)], "unknown"),  # a whole connection can be missed
    ],
)
def test_path_without_tracing(states: str, looks: list[Event], result: str) -> None:
    finding = judge(f"path: {{server: [{states}]}}", history(UNTRACED, *looks, probes=()))
    assert finding.result == result
    assert finding.actual.endswith(f", as far as was seen: {ROOT}") == (result == "unknown")


def test_path_with_losses_is_unknown() -> None:
    trouble = TroubleEvent(1.5, "server", "trace", "3 transitions were lost")
    found = history(*walk(*PASSIVE), trouble, look(2.0))
    finding = judge("path: {server: [ESTAB, CLOSE-WAIT, LAST-ACK, closed]}", found)
    assert finding.result == "unknown"
    assert finding.actual.endswith("as far as was seen: 3 transitions were lost")


@pytest.mark.parametrize(
    ("text", "found", "result", "actual"),
    [
        ("{server: TIME-WAIT, for: 60s, tolerance: 2s}", TRACED, "pass", "59.780..60.096 s"),
        ("{server: TIME-WAIT, for: 60s}", TRACED, "pass", "59.780..60.096 s"),
        ("{server: TIME-WAIT, for: 30s}", TRACED, "fail", "59.780..60.096 s"),
        ("{server: TIME-WAIT, for: 60s, tolerance: 10ms}", TRACED, "unknown", "59.780..60.096 s"),
        ("{server: FIN-WAIT-1, for: 1ms, tolerance: 1ms}", TRACED, "pass", "0.001000 s"),
        ("{server: fin_wait1, for: 1s, tolerance: 10ms}", TRACED, "fail", "0.001000 s"),
        ("{server: CLOSE-WAIT, for: 1s}", TRACED, "fail", "never in CLOSE-WAIT"),
        ("{server: TIME-WAIT, for: 5s}", WAITING, "fail", "9.880 s so far"),
        ("{server: TIME-WAIT, for: 60s}", WAITING, "unknown", "9.880 s so far"),
        ("{client: ESTAB, for: 1s}", TRACED, "fail", "no connection"),
    ],
)
def test_lasted(text: str, found: History, result: str, actual: str) -> None:
    finding = judge(f"lasted: {text}", found)
    assert (finding.result, finding.actual) == (result, actual)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("{server: ESTAB, for: 1s}", "pass"),
        ("{server: ESTAB, for: 3s}", "fail"),
        ("{server: ESTAB, for: 1s, tolerance: 50ms}", "unknown"),
        ("{server: FIN-WAIT-1, for: 1s}", "fail"),  # nobody misses a second
        ("{server: FIN-WAIT-1, for: 10ms}", "unknown"),
    ],
)
def test_lasted_without_tracing(text: str, result: str) -> None:
    finding = judge(f"lasted: {text}", history(UNTRACED, look(0.9), *LOOKS, probes=()))
    assert finding.result == result
    assert (ROOT in finding.actual) == (result == "unknown")


def test_the_tolerance_is_a_tenth_and_half_a_second_at_least() -> None:
    for duration, tolerance in (("60s", 6.0), ("1s", 0.5)):
        found = claim(f"lasted: {{server: TIME-WAIT, for: {duration}}}").lasted
        assert found and found.tolerance == tolerance


def test_steps_say_what_they_claim() -> None:
    found = scenario("""\
title: t
hosts: {server: {calls: await}, client: {calls: await}}
steps:
  - expect:
      lasted: {server: TIME-WAIT, for: 1m, tolerance: 2s}
      path: {client: [LAST-ACK, closed]}
""")
    assert str(found.steps[0]) == (
        "expect server TIME-WAIT for 60 s, give or take 2 s, client LAST-ACK, closed"
    )


def test_claims_look_at_the_hosts_that_they_are_about() -> None:
    assert claim("{path: {client: [ESTAB]}, lasted: {server: ESTAB, for: 1s}}").hosts == {
        "server", "client",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("path: {server: ESTAB}", "a list of states is wanted here, in order, not 'ESTAB'"),
        ("path: {server: []}", "a list of states is wanted here, in order, not []"),
        ("path: {server: [ESTAB, FINWAIT]}", "did you mean FIN-WAIT-"),
        ("path: {server: [closed]}", "'closed' alone is no path"),
        ("path: {server: [ESTAB, closed, ESTAB]}", "'closed' ends a path"),
        ("path: {server: [LISTEN, ESTAB]}", "LISTEN is no state of a connection"),
        ("path: {server: [TIME-WAIT, ESTAB]}", "ESTAB can't come after TIME-WAIT"),
        ("path: {sever: [ESTAB]}", "unknown host 'sever'"),
        ("path: {}", "one or more are wanted here, not {}"),
        ("lasted: {server: ESTAB}", "'for' is missing"),
        ("lasted: {for: 1s}", "one host and its state are wanted beside 'for', not 0"),
        ("lasted: {server: ESTAB, client: ESTAB, for: 1s}", "beside 'for', not 2"),
        ("lasted: {sever: ESTAB, for: 1s}", "did you mean 'server'?"),
        ("lasted: {server: LISTEN, for: 1s}", "LISTEN is no state of a connection"),
        ("lasted: {server: STAB, for: 1s}", "did you mean ESTAB?"),
        ("lasted: {server: ESTAB, for: soon}", "'soon' is no duration"),
        ("lasted: ESTAB", "a mapping of a host, 'for' and 'tolerance' is wanted here"),
    ],
)
def test_mistakes(text: str, mistake: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        claim(text)
    assert any(mistake in str(m) for m in raised.value.mistakes), raised.value.mistakes


# --- The tracer in a lab --------------------------------------------------------------------------


class Traced(FakeBackend):
    """A fake whose tracer says one thing at first, others when it is flushed, and then may end; or
    that has none."""

    def __init__(
        self, first: Message | Lack | None, rest: Sequence[Message] = (), ends: bool = False
    ) -> None:
        super().__init__()
        self._first, self._rest, self._ends = first, rest, ends

    def trace(self) -> Channel | Lack:
        if isinstance(self._first, Lack):
            return self._first

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
        return channel


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
    packets = packet(1.5, there, here, ACK, 1, 1)
    found = history(UNTRACED, *LOOKS, packets=packets, probes=("capture",))
    claim = "path: {server: [ESTAB, CLOSE-WAIT, LAST-ACK, closed]}"
    assert judge(claim, found).result == result


def test_what_no_other_probe_bears_out_is_somebody_elses() -> None:
    """The tracepoint tells of all sockets of the machine that have the lab's addresses."""
    foreign = walk(*PASSIVE, remote="198.18.0.3:50000")
    ours = packet(5.0, THERE, HERE, ACK, 1, 1)  # at another time, and of another connection
    found = history(*foreign, look(1.2), packets=ours, probes=("trace", "capture"))
    assert timelines(found, "server") == []
    finding = judge("path: {server: [ESTAB, CLOSE-WAIT, LAST-ACK, closed]}", found)
    assert finding.result == "fail"
    assert "left out: 1 that neither ss nor a capture here saw" in finding.actual
    late = packet(5.0, "198.18.0.3:50000", HERE, ACK, 1, 1)  # the same ends, much later
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
    syns = [packet(1.0001, first, peer, SYN, 5, 0), packet(1.5001, second, peer, SYN, 9, 0)]
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
