"""What is claimed of the numbers, options and data of segments, of their order and of the pauses
between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from labctl.ground.errors import ScenarioError
from labctl.language.predicates import Finding
from labctl.probes.observations import Header, Injection, Known, Observation, Segment
from labctl.probes.packets import STAMPED_ALONE, read_packet
from labctl.probes.segments import match
from labctl.record.events import CallEvent, ClockEvent, Event, LabEvent
from labctl.record.history import History
from tests.fake import scenario
from tests.sighted import EPOCH, HANDSHAKE, NAMES, OWNERS, both, one, record

LAB = LabEvent(0.0, "2026-01-01T00:00:00Z", "fake", {"probes": ["ss", "capture"]}, NAMES, EPOCH)
SYNS = ("mss", "sack", "wscale", "timestamps")


def stamped(o: Observation, value: int, echo: int, **header: object) -> Observation:
    """The same with timestamps, and with what else its header says."""
    known = replace(STAMPED_ALONE, **header) if header else STAMPED_ALONE  # type: ignore[arg-type]
    return replace(o, timestamps=(value, echo), mark=(o.mark[0], value), header=known)


OPENING = [
    stamped(one(0.1, "client SYN 1000 0"), 50, 0, options=SYNS, scale=7, ecn=("ECE", "CWR")),
    stamped(one(0.2, "server SYN ACK 7000 1001"), 900, 50, options=SYNS, scale=3, ecn=("ECE",)),
    stamped(one(0.3, "client ACK 1001 7001", window=10), 51, 900),
]
TALK = [
    *OPENING,
    replace(stamped(one(0.4, "client PSH ACK 1001 7001 len 5", window=10), 60, 900, ecn=("CE",)),
            data=b"hello"),
    stamped(one(0.5, "server ACK 7001 1006", window=20), 910, 60),
    stamped(one(0.6, "server FIN ACK 7001 1006", window=0), 911, 60),
]  # fmt: skip


def history(observations: Sequence[Observation], *events: Event) -> History:
    found = History([LAB, *events])
    for host in ("server", "client"):
        records = b"".join(record(o) for o in both(*observations) if o.host == host)
        found.add_packets(100.0, host, records)
    return found


def judge(text: str, observations: Sequence[Observation] = TALK, *events: Event) -> Finding:
    case = scenario(
        "title: t\nhosts: {server: {}, client: {}}\n"
        f"steps: [{{expect: {{segments: {text}}}}}]\n"
    )
    (finding,) = case.steps[0].judge(history(observations, *events))
    return finding


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("seq: 0", 2), ("seq: 1", 4), ("from: server, seq: 1", 2), ('seq: ">1"', 0),
        ("ack: 1", 3), ("ack: 6", 2), ("ack: 0", 0), ('length: ">=5"', 1), ("length: 0", 5),
        ("window: 500", 2), ("window: 1280", 2), ("window: 160", 1), ("window: 0", 1),
        ("tsval: 0", 2), ("from: client, tsval: 10", 1), ("from: server, tsval: 10", 1),
        ("from: server, tsecr: 10", 2), ("tsecr: 0", 3), ("flags: SYN, tsecr: 0", 1),
        ("ecn: {ECE: true}", 2), ("ecn: {ECE: true, CWR: false}", 1), ("ecn: {CE: true}", 1),
        ("ecn: {AE: true}", 0), ("ecn: {ECE: false, CE: false}", 3),
        ("options: {mss: true}", 2), ("options: {timestamps: true}", 6),
        ("options: {md5: true}", 0),
        ("options: {mss: false, wscale: false}", 4),
        ("payload: ^hell", 1), ("payload: ^ell", 0), ("payload: o$", 1),
        ("flags: ACK, bare: true", 2), ("flags: FIN ACK, bare: true", 1),
        ("flags: SYN, bare: true", 1),
        ("flags: FIN, then: {from: client}", 0), ("flags: SYN, then: {flags: FIN}", 2),
        ("flags: SYN, then: {flags: SYN ACK, then: {from: client, bare: true, flags: ACK}}", 1),
        ("flags: SYN ACK, then: {flags: SYN}", 0),
        ("from: client, then: {from: client, data: true}", 2),
    ],
)  # fmt: skip
def test_what_matches(pattern: str, count: int) -> None:
    finding = judge(f"{{{pattern}, count: {count}}}")
    assert (finding.result, finding.actual) == ("pass", str(count))
    assert judge(f"{{{pattern}, count: {count + 1}}}").result == "fail"


def test_what_asks_whether_the_other_side_is_there_or_has_room() -> None:
    idle = [*HANDSHAKE, one(0.4, "server ACK 7001 1001"), one(9.0, "client ACK 1000 7001")]
    assert judge("{keepalive: true, count: 1}", idle).result == "pass"
    assert judge("{probe: true, count: 0}", idle).result == "pass"
    full = [
        *HANDSHAKE, one(0.4, "client ACK 1001 7001 len 5"),
        one(0.5, "server ACK 7001 1006", window=0), one(1.0, "client ACK 1005 7001"),
    ]  # fmt: skip
    assert judge("{probe: true, count: 1}", full).result == "pass"
    assert judge("{keepalive: true, count: 0}", full).result == "pass"
    assert judge("{from: client, probe: false, count: 4}", full).result == "fail"


def test_what_no_capture_has_is_unknown() -> None:
    """Without the SYNs numbers count from a guess; without all bytes options and data are one."""
    middle = TALK[3:]
    for pattern in (
        "seq: 1",
        "ack: 1",
        "window: 1280",
        "tsval: 0",
        "tsecr: 0",
        "seq: 77, count: 0",
    ):
        found = judge(f"{{{pattern}}}", middle)
        assert found.result == "unknown", pattern
        assert "captures lack what this asks" in found.actual
    for pattern in (
        "length: 5",
        "window: 0",
        "payload: hello",
        "flags: FIN, options: {mss: false}",
    ):
        assert judge(f"{{{pattern}}}", middle).result == "pass", pattern
    assert judge("{seq: 1, flags: URG}", middle).result == "fail"


def test_a_packet_that_was_cut() -> None:
    short = replace(one(0.4, "client ACK 1001 7001 len 99"), data=b"GET / HTTP")
    opening = [*OPENING, short]
    assert judge("{payload: ^GET}", opening).result == "pass"
    for pattern in ("HTTP$", "HTTP", "GET.*", "Host"):
        assert judge(f"{{payload: '{pattern}'}}", opening).result == "unknown", pattern
    cut = replace(OPENING[0], header=Header(options=None), timestamps=(50, 0))
    for pattern in ("options: {md5: false}", "options: {mss: true}", "tsval: 0"):
        assert judge(f"{{flags: SYN, {pattern}}}", [cut]).result == "unknown", pattern


def test_one_sided_window_scale_counts_for_none() -> None:
    plain = replace(OPENING[1], header=Header(options=("mss",)))
    talk = [OPENING[0], plain, *OPENING[2:]]
    assert judge("{window: 10}", talk).result == "pass"


def test_options_as_they_are_written() -> None:
    def options(data: str) -> Header:
        words = bytes.fromhex(data)
        head = bytes.fromhex(
            "45000000000000004006 0000 0a000001 0a000002 00010002 00000000 00000000"
        )
        doff = (5 + len(words) // 4) << 4
        found = read_packet("a", 0.0, head + bytes([doff, 2, 0, 0, 0, 0, 0, 0]) + words, 60)
        assert found
        return found.header

    assert options("020405b4 0103030f").options == ("mss", "wscale")
    assert options("020405b4 0103030f").scale == 14
    assert options("2202 1e04 0000 0101").options == ("fastopen", "mptcp")
    assert options("fe04f989 ac04ac04 ac020101").options == ("fastopen", "accecn")
    assert options("fe041234").options == ()
    assert options("050a0000 00000000 00010101").options == ("sack",)
    assert options("00000000").options == ()
    assert options("08ff0101").options == ()
    assert options("0800 0101").options == ()


# --- Injected beginnings --------------------------------------------------------------------------


def segments(*observations: Observation, made: Observation) -> list[Segment]:
    injection = Injection(0, 1 if "ACK" in made.flags else 0, made)
    seen = both(*observations, made)
    return match(seen, Known(OWNERS, EPOCH, injections=[injection]))


def test_an_injected_syn_begins_the_numbers_of_a_silent_end() -> None:
    syn = stamped(one(0.1, "client SYN 1000 0"), 50, 0, options=SYNS, scale=7)
    answer = stamped(one(0.2, "server SYN ACK 5000000 1001"), 7, 50, options=SYNS, scale=2)
    data = stamped(one(0.3, "client ACK 1001 5000001 len 9", window=3), 51, 7)
    crafted, real, last = (
        segments(syn, data, made=answer)[1],
        *segments(syn, data, made=answer)[::2],
    )
    assert (crafted.crafted, crafted.base, crafted.origin.guessed) == (True, (5000000, 1000), ())
    assert real.origin.guessed == ()
    assert (last.seq, last.ack, last.origin.scale, last.origin.tsecr) == (1, 1, 7, 7)


def test_an_injected_syn_that_was_answered_has_begun_a_connection() -> None:
    """Another one is part of that; after one that nobody answered it begins anew."""
    first, second = one(0.1, "client SYN 1000 0"), one(0.4, "client SYN 3000 0")
    answer = one(0.2, "server SYN ACK 7000 1001")
    late = one(0.5, "server ACK 7001 3001")
    reports = [Injection(0, 0, first), Injection(2000, 0, second)]
    for talk, ack in (([first, answer, second, late], 2001), ([first, second, late], 1)):
        found = match(both(*talk), Known(OWNERS, EPOCH, injections=reports))
        assert found[-1].ack == ack


def test_what_a_step_sent_counts_for_its_receiver_if_it_fits() -> None:
    """Of a peer that steps make up, nothing else tells what its window is, and what it has."""
    syn, done = one(0.1, "client SYN 1000 0"), one(0.3, "client ACK 1001 7001")
    talk = [syn, one(0.2, "server SYN ACK 7000 1001"), done]
    asks = one(9.0, "server ACK 7000 1001")
    shut = one(0.4, "client ACK 1001 7001", window=0)
    for last, ack, probe, keepalive in (
        (shut, 1, True, False), (one(0.4, "client ACK 1001 7001"), 1, False, True),
        (one(0.4, "client ACK 99001 7001", window=0), 1, False, True),  # beside the window
        (one(0.4, f"client ACK {1001 + 65535} 7001", window=0), 1, True, False),
        (one(0.4, f"client ACK {1001 + 65536} 7001", window=0), 1, False, True),
        (one(0.4, "client ACK 1001 7901", window=0), 901, False, True),  # what was never sent
        (one(0.4, "client RST ACK 1001 7001", window=0), 1, False, True),
    ):  # fmt: skip
        made = [Injection(0, 0, syn), Injection(1, 1, done), Injection(1, ack, last)]
        found = match(both(*talk, last, asks), Known(OWNERS, EPOCH, injections=made))[-1]
        assert (found.probe, found.keepalive) == (probe, keepalive)
    never = match([*both(*talk, asks), shut],  # it was lost
                  Known(OWNERS, EPOCH, injections=[Injection(0, 0, syn), Injection(1, 1, done),
                                                   Injection(1, 1, shut)]))  # fmt: skip
    assert [(s.probe, s.keepalive) for s in never if s.seq == 0 and s.time > 1] == [(False, True)]


def test_an_injected_syn_into_a_connection_begins_nothing() -> None:
    stray = one(0.35, "client SYN 9999 0")
    found = segments(*TALK, made=stray)
    assert [s.seq for s in found if s.data] == [1]
    assert all(not s.origin.guessed for s in found)


# --- Pauses ---------------------------------------------------------------------------------------


def syns(*times: float, port: int = 40000) -> list[Observation]:
    found = [one(t, "client SYN 1000 0", mark=n) for n, t in enumerate(times)]
    return [replace(o, source=f"198.18.0.3:{port}") for o in found]


@pytest.mark.parametrize(
    ("pattern", "result"),
    [
        ("spaced: [1s, 2s, 4s]", "pass"), ("spaced: [1s, 2s]", "pass"), ("spaced: [1.2s]", "pass"),
        ("spaced: [1s, 2s, 4s, 8s]", "fail"), ("spaced: [2s, 4s]", "fail"),
        ("spaced: [1.3]", "fail"), ("spaced: [1.25]", "pass"),
        ("spaced: [1.3], tolerance: 25%", "pass"), ("spaced: [1s], tolerance: 1%", "pass"),
        ("spaced: [1.1], tolerance: 1%", "fail"), ("spaced: [1s, 2s, 4s], count: 4", "pass"),
        ("spaced: [1s, 2s, 4s], count: 3", "fail"), ("flags: FIN, spaced: [1s]", "fail"),
    ],
)  # fmt: skip
def test_pauses(pattern: str, result: str) -> None:
    finding = judge(f"{{from: client, {pattern}}}", syns(1.0, 2.0, 4.0, 8.0))
    assert finding.result == result, finding
    if "FIN" not in pattern:
        assert finding.measured.pauses_seconds == (1.0, 2.0, 4.0)
        assert finding.actual == "4; 1 s, 2 s, 4 s apart"


def test_pauses_are_told_to_the_microsecond() -> None:
    assert judge("{from: client, spaced: [1s]}", syns(1.0, 2.0000004)).measured.pauses_seconds == (
        1.0,
    )


def test_pauses_are_those_of_one_connection() -> None:
    two = [*syns(1.0, 2.0), *syns(3.0, 5.0, port=40001)]
    assert judge("{from: client, spaced: [2s]}", two).result == "pass"
    assert judge("{from: client, spaced: [1s, 1s]}", two).result == "fail"


def test_pauses_that_nobody_saw_are_unknown() -> None:
    """A connection of a host to itself may have them; a segment at the label may be the first."""
    inside = CallEvent(0.1, "p", "client", 2, "done", "connect :80", "connect", peer="127.0.0.1:80")
    for wanted, result in (("1s, 2s", "pass"), ("3s", "unknown")):
        text = f"{{from: client, spaced: [{wanted}]}}"
        assert judge(text, syns(1.0, 2.0, 4.0), inside).result == result
    clocks = [ClockEvent(0.0, host, host, 0.0, 0.1) for host in ("server", "client")]
    text = "{from: client, spaced: [1s, 2s], since_first: SYN}"
    assert judge(text, syns(1.0, 2.0, 4.0)).result == "pass"
    other = replace(one(0.99999, "server SYN 1 0"), target="198.18.0.3:40000")
    assert judge(text, [other, *syns(1.0, 2.0, 4.0)], *clocks).result == "unknown"


def test_pauses_come_to_be_long_enough() -> None:
    case = scenario(
        "title: t\nhosts: {server: {}, client: {}}\n"
        "steps: [{wait: {segments: {from: client, spaced: [1s, 2s]}}}]\n"
    )
    claim = case.steps[0].claim
    assert claim and claim.segments
    assert claim.segments.turns(history(syns(1.0, 2.0, 4.0))) == [pytest.approx(4.0)]
    assert claim.segments.turns(history(syns(1.0, 2.0, 3.0))) == []


def test_order_beyond_what_clocks_tell_is_unknown() -> None:
    clocks = [ClockEvent(0.0, host, host, 0.0, 0.2) for host in ("server", "client")]
    pattern = "{flags: data, then: {from: server, bare: true, flags: ACK}}"
    assert judge(pattern).result == "pass"
    assert judge(pattern, TALK, *clocks).result == "unknown"
    near = [ClockEvent(0.0, host, host, 0.0, 0.01) for host in ("server", "client")]
    assert judge(pattern, TALK, *near).result == "pass"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("seq: next", "'next' is no number to compare with"),
        ("options: {}", "one or more are wanted here"),
        ("options: {mms: true}", "unknown option 'mms'.*did you mean 'mss'"),
        ("ecn: {ECN: true}", "unknown ECN bit 'ECN'.*did you mean 'ECE'"),
        ("bare: true", "'bare' segments have the flags in 'flags' and nothing else"),
        ("flags: FIN, bare: true, data: true", "an impossible segment"),
        ("flags: FIN, bare: true, length: 3", "an impossible segment"),
        ("data: false, payload: x", "an impossible segment"),
        ("data: true, length: 0", "an impossible segment"),
        ("data: false, flags: data", "an impossible segment"),
        ("flags: data, length: '<1'", "an impossible segment"),
        ("flags: FIN, bare: true, ack: 3", "'ack' counts only with the flag ACK"),
        ("payload: (", "is no regular expression"),
        ("then: {count: 3}", "unknown key 'count'"),
        ("then: {flgas: ACK}", "unknown key 'flgas'.*did you mean 'flags'"),
        ("spaced: [1s]", "'spaced' needs 'from'"),
        ("from: client, spaced: []", "one or more are wanted here"),
        ("from: client, tolerance: 5%", "'tolerance' is that of 'spaced'"),
        ("from: client, spaced: [1s], tolerance: 5", "is no percentage"),
    ],
)
def test_mistakes(pattern: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        judge(f"{{{pattern}}}")
