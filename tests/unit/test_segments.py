"""From captures to segments, and what is claimed of them."""

from __future__ import annotations

import shutil
import socket
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.judge import recorded, rejudge
from labctl.language.document import Document
from labctl.language.predicates import Finding, Predicate
from labctl.language.scenario import load_document
from labctl.probes.observations import FLAG_BITS, MODULUS, Known, Observation, Segment
from labctl.probes.packets import read_packets
from labctl.probes.segments import FILE_HEADER, Captures, match
from labctl.record.events import CallEvent, Event, LabEvent, StateEvent, StepEvent, TroubleEvent
from labctl.record.history import History
from tests.fake import FakeBackend, play, scenario

RUN = Path(__file__).parent / "data" / "run"
SERVER, CLIENT = "198.18.0.2:8000", "198.18.0.3:40000"
SERVER_6, CLIENT_6 = "[fd00::2]:8000", "[fd00::3]:40000"
NAMES = {
    "server": "198.18.0.2", "server.v6": "fd00::2", "client": "198.18.0.3", "client.v6": "fd00::3",
}  # fmt: skip
OWNERS = {address: name.partition(".")[0] for name, address in NAMES.items()}
EPOCH = 1_700_000_000.0
LAG = 0.0001

BITS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}


def one(at: float, text: str, window: int = 500, mark: int = 0, v6: bool = False) -> Observation:
    """What its sender sees of `client FIN ACK 5 1 len 3`: who sends, what, its numbers."""
    words = text.split()
    length = int(words.pop()) if "len" in words else 0
    sender, *flags = [word for word in words if word.isalpha() and word != "len"]
    seq, ack = [int(word) for word in words if word.isdigit()]
    ends = (SERVER_6, CLIENT_6) if v6 else (SERVER, CLIENT)
    source, target = ends if sender == "server" else ends[::-1]
    return Observation(
        sender, EPOCH + at, source, target, seq % MODULUS, ack % MODULUS, tuple(flags), length,
        window, (mark, 0),
    )  # fmt: skip


def seen(observation: Observation) -> Observation:
    """The same where it arrives."""
    other = "client" if observation.host == "server" else "server"
    return replace(observation, host=other, at=observation.at + LAG)


def both(*observations: Observation) -> list[Observation]:
    """All of them, sent and arrived."""
    return [each for o in observations for each in (o, seen(o))]


def segments(*observations: Observation) -> list[Segment]:
    return match(observations, Known(OWNERS, EPOCH))


def record(o: Observation) -> bytes:
    """An observation as a record of pcap-savefile(5)."""
    (here, sport), (there, dport) = map(_place, (o.source, o.target))
    bits = sum(BITS[flag] for flag in o.flags)
    options = struct.pack("!BBBBII", 1, 1, 8, 10, o.mark[1], 0) if o.mark[1] else b""
    offset = 5 + len(options) // 4
    tcp = struct.pack("!HHIIBBHHH", sport, dport, o.seq, o.ack, offset << 4, bits, o.window, 0, 0)
    length = len(tcp + options) + o.length
    if len(here) == 4:
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, o.mark[0], 0, 64, 6, 0, here, there)
    else:
        ip = struct.pack("!IHBB16s16s", 6 << 28, length, 6, 64, here, there)
    kind = b"\x08\x00" if len(here) == 4 else b"\x86\xdd"
    frame = bytes(12) + kind + ip + tcp + options  # as captured: without the data
    whole = len(frame) + o.length
    return struct.pack("<IIII", int(o.at), round(o.at % 1 * 1e9), len(frame), whole) + frame


def _place(endpoint: str) -> tuple[bytes, int]:
    host, _, port = endpoint.rpartition(":")
    family = socket.AF_INET6 if "[" in host else socket.AF_INET
    return socket.inet_pton(family, host.strip("[]")), int(port)


HANDSHAKE = [
    one(0.1, "client SYN 1000 0"), one(0.2, "server SYN ACK 7000 1001"),
    one(0.3, "client ACK 1001 7001"),
]  # fmt: skip


# --- Matching -------------------------------------------------------------------------------------


def test_what_was_sent_and_arrived_is_one_segment() -> None:
    first, second, third = segments(*both(*HANDSHAKE))
    assert (first.sender, first.receiver) == ("client", "server")
    assert (first.source, first.target) == (CLIENT, SERVER)
    assert first.t == pytest.approx(0.1, abs=1e-6)
    assert first.arrived == pytest.approx(0.1 + LAG, abs=1e-6)
    assert not first.lost
    assert [s.summary for s in (first, second, third)] == [
        "SYN seq 0", "SYN ACK seq 0 ack 1", "ACK seq 1 ack 1"
    ]  # fmt: skip


def test_captures_may_come_in_any_order() -> None:
    observations = both(*HANDSHAKE)
    assert segments(*reversed(observations)) == segments(*observations)


def test_what_never_arrives_is_lost() -> None:
    found = segments(*both(*HANDSHAKE), one(0.4, "client PSH ACK 1001 7001 len 5"))
    assert [s.lost for s in found] == [False, False, False, True]
    assert found[-1].summary == "PSH ACK seq 1 ack 1 len 5 [lost]"


@pytest.mark.parametrize("text", ["PSH ACK 1001 7001 len 5", "FIN ACK 1001 7001"])
def test_a_retransmission_repeats_what_was_lost(text: str) -> None:
    first, again = one(0.4, f"client {text}", mark=1), one(0.6, f"client {text}", mark=2)
    found = segments(*both(*HANDSHAKE), first, *both(again))[-2:]
    assert [(s.lost, s.retransmitted) for s in found] == [(True, False), (False, True)]
    assert found[1].arrived == pytest.approx(0.6 + LAG, abs=1e-6)


def test_a_retransmission_that_nothing_tells_from_the_first_is_paired_in_order() -> None:
    first = one(0.4, "client FIN ACK 1001 7001")
    again = replace(first, at=first.at + LAG / 2)
    found = segments(*both(*HANDSHAKE), *both(first), *both(again))[-2:]
    assert [(s.lost, s.retransmitted) for s in found] == [(False, False), (False, True)]


def test_more_than_what_was_sent_is_no_retransmission() -> None:
    first = one(0.4, "client ACK 1001 7001 len 10")
    following = one(0.5, "client ACK 1011 7001 len 10")
    assert not any(s.retransmitted for s in segments(*both(*HANDSHAKE, first, following)))


def test_duplicate_acks() -> None:
    ack = "client ACK 1001 7011"
    found = segments(
        *both(*HANDSHAKE, one(0.4, "server ACK 7001 1001 len 10")),
        *both(one(0.5, ack, mark=1), one(0.6, ack, mark=2), one(0.7, ack, window=600, mark=3)),
    )
    assert [s.duplicate_ack for s in found[-3:]] == [False, True, False]  # the last: more room
    assert found[-2].summary == "ACK seq 1 ack 11 [duplicate ACK]"


def test_zero_windows_and_probes_of_them() -> None:
    found = segments(
        *both(
            *HANDSHAKE,
            one(0.4, "server ACK 7001 1001 len 10"),
            one(0.5, "client ACK 1001 7011", window=0),
            one(0.7, "server ACK 7010 1001"),
            one(0.8, "client ACK 1001 7011", window=0, mark=1),
            one(0.9, "client RST 1001 0", window=0),
        )
    )
    assert [s.zero_window for s in found[3:]] == [False, True, False, True, False]
    assert [s.probe for s in found[3:]] == [False, False, True, False, False]
    assert not any(s.retransmitted for s in found)
    assert found[5].summary == "ACK seq 10 ack 1 [window probe]"


def test_a_probe_needs_a_window_that_is_closed() -> None:
    keepalive = one(0.7, "server ACK 7000 1001")
    assert not segments(*both(*HANDSHAKE, keepalive))[-1].probe


def test_what_nobody_sent_was_injected() -> None:
    found = segments(*both(*HANDSHAKE), seen(one(0.5, "client RST 1001 0")))[-1]
    assert found.t is None
    assert found.arrived == pytest.approx(0.5 + LAG, abs=1e-6)
    assert (found.sender, found.receiver) == ("client", "server")  # as it claims
    assert not found.lost


def test_strangers_own_nothing() -> None:
    stray = replace(seen(one(0.5, "client SYN 1 0")), source="203.0.113.9:1")
    (found,) = segments(stray)
    assert (found.sender, found.receiver, found.t) == (None, "server", None)


def test_addresses_that_are_used_again() -> None:
    later = [
        one(5.1, "client SYN 900000 0"), one(5.2, "server SYN ACK 400000 900001"),
        one(5.3, "client ACK 900001 400001"), one(5.4, "server PSH ACK 400001 900001 len 3"),
    ]  # fmt: skip
    found = segments(*both(*HANDSHAKE, *later))[3:]
    assert [(s.seq, s.ack) for s in found] == [(0, 0), (0, 1), (1, 1), (1, 1)]
    assert not any(s.retransmitted for s in found)


def test_a_syn_that_is_repeated_opens_nothing_new() -> None:
    again = one(1.1, "client SYN 1000 0", mark=1)
    found = segments(one(0.1, "client SYN 1000 0"), *both(again))
    assert [(s.seq, s.retransmitted, s.lost) for s in found] == [(0, False, True), (0, True, False)]


def test_numbers_that_wrap() -> None:
    top = MODULUS - 3
    found = segments(
        *both(
            one(0.1, f"client SYN {top} 0"),
            one(0.2, f"server SYN ACK {top} {top + 1}"),
            one(0.3, f"client ACK {top + 1} {top + 1} len 5"),
            one(0.4, f"client ACK {top + 6} {top + 1} len 5"),
            one(0.5, f"server ACK {top + 1} {top + 11}"),
            one(0.6, f"client ACK {top + 1} {top + 1} len 5", mark=1),
        )
    )
    assert [(s.seq, s.ack) for s in found] == [(0, 0), (0, 1), (1, 1), (6, 1), (1, 11), (1, 1)]
    assert [s.retransmitted for s in found] == [False] * 5 + [True]


def test_ipv6() -> None:
    found = segments(*both(*(one(0.1 * n, t, v6=True) for n, t in enumerate((
        "client SYN 1000 0", "server SYN ACK 7000 1001", "client ACK 1001 7001"))))
    )  # fmt: skip
    assert [(s.sender, s.receiver, s.seq, s.ack) for s in found] == [
        ("client", "server", 0, 0), ("server", "client", 0, 1), ("client", "server", 1, 1)
    ]  # fmt: skip
    assert found[0].target == SERVER_6


def test_a_connection_whose_beginning_was_not_captured() -> None:
    found = segments(*both(one(0.1, "server FIN ACK 7001 1001"), one(0.2, "client ACK 1001 7002")))
    assert [(s.seq, s.ack) for s in found] == [(1, 1), (1, 2)]


TIMES = st.integers(0, 10).map(lambda n: EPOCH + n / 8)
NUMBERS = st.sampled_from([0, 1, 2, 1000, MODULUS // 2, MODULUS - 1])
OBSERVATIONS = st.builds(
    lambda host, at, ends, seq, ack, flags, length, window, mark: Observation(
        host, at, ends[0], ends[1], seq, ack, tuple(f for f in FLAG_BITS if f in flags), length,
        window, mark,
    ),
    st.sampled_from(["server", "client"]), TIMES,
    st.sampled_from([(SERVER, CLIENT), (CLIENT, SERVER), (SERVER_6, CLIENT_6)]), NUMBERS, NUMBERS,
    st.sets(st.sampled_from(sorted(BITS))), st.sampled_from([0, 1, 1448]),
    st.sampled_from([0, 500]), st.tuples(st.sampled_from([0, 1]), st.sampled_from([0, 9])),
)  # fmt: skip


def sightings(found: Iterable[Segment]) -> Counter[tuple[Any, ...]]:
    """What is left of the observations in segments: who saw what, and when."""
    left: Counter[tuple[Any, ...]] = Counter()
    for s in found:
        what = (s.source, s.target, s.flags, s.length, s.window)
        left.update((at, *what) for at in (s.t, s.arrived) if at is not None)
    return left


@given(st.lists(OBSERVATIONS, max_size=12))
def test_nothing_is_lost_or_invented(observations: list[Observation]) -> None:
    found = match(observations, Known(OWNERS, EPOCH))
    assert sightings(found) == Counter(
        (o.at - EPOCH, o.source, o.target, o.flags, o.length, o.window) for o in observations
    )
    assert [s.time for s in found] == sorted(s.time for s in found)
    for s in found:
        assert s.t is not None or s.arrived is not None
        assert s.t is None or s.arrived is None or s.t <= s.arrived
        assert 0 <= s.seq < MODULUS
        assert 0 <= s.ack < MODULUS
        assert s.summary


# --- Captures -------------------------------------------------------------------------------------


@given(st.lists(OBSERVATIONS, max_size=5))
def test_packets_are_read_as_they_were_captured(observations: list[Observation]) -> None:
    v6 = [
        replace(
            o,
            mark=(0 if "[" in o.source else o.mark[0], o.mark[1]),
            timestamps=(o.mark[1], 0) if o.mark[1] else None,
        )
        for o in observations
    ]
    read = list(read_packets("server", b"".join(map(record, v6))))
    assert [o.at for o in read] == pytest.approx([o.at for o in v6], abs=1e-6)
    assert read == [replace(o, host="server", at=r.at) for o, r in zip(v6, read, strict=True)]


def test_other_packets_are_left_out() -> None:
    good = record(HANDSHAKE[0])
    udp = good[: 16 + 14 + 9] + b"\x11" + good[16 + 14 + 10 :]
    arp = good[: 16 + 12] + b"\x08\x06" + good[16 + 14 :]
    assert len(list(read_packets("server", udp + arp + good))) == 1
    assert list(read_packets("server", b"")) == []


def test_segments_beyond_what_ip_can_say() -> None:
    """A super-segment (BIG TCP, RFC 2675 without the option) has no length of its own."""
    o = one(0.1, "client ACK 1 1 len 100")
    data = bytearray(record(o))
    struct.pack_into("!H", data, 16 + 14 + 2, 0)
    (found,) = read_packets("client", bytes(data))
    assert found.length == 100


@pytest.mark.parametrize("host", ["server", "client"])
def test_the_captures_of_a_run(host: str) -> None:
    data = (RUN / f"{host}.pcap").read_bytes()
    assert data.startswith(FILE_HEADER)
    found = list(read_packets(host, data[len(FILE_HEADER) :]))
    assert [" ".join(o.flags) for o in found[:3]] == ["SYN", "SYN ACK", "ACK"]
    sent = sum(o.length for o in found if o.source.endswith(":8000") and "FIN" not in o.flags)
    assert sent == 187


def test_the_segments_of_a_run() -> None:
    found = recorded.load(RUN).history.segments()
    assert len(found) > 30
    assert not any(s.lost or s.t is None for s in found)
    assert {(s.sender, s.receiver) for s in found} == {("server", "client"), ("client", "server")}
    assert [s.time for s in found] == sorted(s.time for s in found)


def test_captures_grow() -> None:
    captures = Captures()
    assert captures.segments(Known(OWNERS, EPOCH)) == []
    for number, o in enumerate(HANDSHAKE, 1):
        captures.add("client", record(o if o.host == "client" else seen(o)))
        assert len(captures.segments(Known(OWNERS, EPOCH))) == number


def test_what_a_run_captures_is_recorded(tmp_path: Path) -> None:
    def connected(lab: FakeBackend) -> None:
        now = lab.time() - EPOCH
        syn = replace(HANDSHAKE[0], at=EPOCH + now, source="198.18.0.3:40000")
        lab.packets("client", record(syn))

    case = scenario(
        "title: t\nhosts: {server: {}, client: {run: cat}}\nsteps: [{start: client}]\n"
        "expect: [{segments: {from: client, flags: SYN, count: 1}}]\n"
    )
    found = play(case, FakeBackend({"start client": connected}), tmp_path)
    data = (found.folder / "client.pcap").read_bytes()
    assert data.startswith(FILE_HEADER)
    assert len(list(read_packets("client", data[len(FILE_HEADER) :]))) == 1


# --- The predicate --------------------------------------------------------------------------------

LAB = LabEvent(0.0, "2026-01-01T00:00:00Z", "fake", {"probes": ["ss", "capture"]}, NAMES, EPOCH)
KILLED = StepEvent(0.45, 0, "end", "kill server", label="killed", outcome="done")
TRAFFIC = [
    *both(*HANDSHAKE),
    *both(one(0.4, "client PSH ACK 1001 7001 len 5")),
    one(0.5, "server FIN ACK 7001 1006", mark=1),
    *both(one(0.7, "server FIN ACK 7001 1006", mark=2)),
    *both(one(0.8, "client ACK 1006 7002")),
    seen(one(0.9, "client RST 1006 0")),
]


def history(*events: Event) -> History:
    found = History([LAB, *events])
    for host in ("server", "client"):
        records = b"".join(record(o) for o in TRAFFIC if o.host == host)
        found.add_packets(1.0, host, records)
    return found


def claim(text: str) -> Predicate:
    """A predicate on segments, after a step that is labelled `killed` and one that is left out."""
    case = scenario(
        "title: t\nhosts: {server: {run: cat}, client: {}}\n"
        "steps: [{kill: server, as: killed}, {note: x, as: never}]\n"
        f"expect: [{{segments: {text}}}]\n"
    )
    return case.expect[0]


def judge(text: str, *events: Event) -> Finding:
    (finding,) = claim(text).judge(history(KILLED, *events))
    return finding


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("flags: SYN", 2),
        ("flags: SYN ACK", 1),
        ("flags: [SYN, ACK]", 1),
        ('flags: "SYN,ACK"', 1),
        ("flags: data", 1),
        ("flags: PSH data", 1),
        ("flags: URG", 0),
        ("flags: RST", 0),  # injected: nobody in the lab sent it
        ("flags: FIN", 2),
        ("flags: FIN, retransmitted: true", 1),
        ("flags: FIN, retransmitted: false", 1),
        ("flags: FIN, lost: true", 1),
        ("flags: FIN, lost: false", 1),
        ("lost: true, retransmitted: true", 0),
        ("flags: FIN, from: server", 2),
        ("flags: FIN, to: server", 0),
        ("from: client", 4),
        ("to: client", 3),
        ("from: client, to: server, data: true", 1),
        ("from: client, data: false", 3),
        ("since: killed", 3),
        ("since: killed, flags: FIN", 2),
        ("since: killed, flags: SYN", 0),
    ],
)
def test_what_matches(pattern: str, count: int) -> None:
    finding = judge(f"{{{pattern}, count: {count}}}")
    assert finding.result == "pass", finding
    assert finding.actual == str(count)
    assert len(finding.evidence) == count
    assert judge(f"{{{pattern}, count: {count + 1}}}").result == "fail"
    assert judge(f"{{{pattern}}}").result == ("pass" if count else "fail")


@pytest.mark.parametrize(
    "event",
    [
        CallEvent(0.1, "p", "server", 2, "done", "accept", "accept", peer="127.0.0.1:5"),
        CallEvent(0.1, "p", "server", 2, "done", "connect :80", "connect", peer="198.18.0.2:80"),
        StateEvent(0.1, "server", "[::1]:80", "[::1]:5", "SYN-RECV", "ESTAB"),
    ],
)  # fmt: skip
def test_what_crosses_no_link_is_not_judged(event: Event) -> None:
    """Unless more of it would make no difference."""
    for pattern in ("flags: SYN, count: 2", "flags: RST", "from: server, count: 99",
                    "flags: FIN, at_most: 2", "flags: FIN, since_first: RST"):  # fmt: skip
        found = judge(f"{{{pattern}}}", event)
        assert found.result == "unknown", pattern
        assert "server has a connection to itself" in found.actual
    for pattern in ("from: client", "from: server, to: client", "to: client", "flags: FIN",
                    "from: server, at_least: 1", 'flags: FIN, count: ">=2"'):  # fmt: skip
        assert judge(f"{{{pattern}}}", event).result == "pass", pattern
    for pattern in ("flags: FIN, at_most: 1", "flags: FIN, count: 1", 'flags: FIN, count: "<2"'):
        assert judge(f"{{{pattern}}}", event).result == "fail", pattern
    outside = CallEvent(0.1, "p", "server", 2, "done", "accept", "accept", peer="198.18.0.3:5")
    assert judge("{flags: SYN, count: 2}", outside).result == "pass"


@pytest.mark.parametrize(
    ("bounds", "result"),
    [
        ("at_least: 2", "pass"), ("at_least: 3", "fail"), ("at_most: 2", "pass"),
        ("at_most: 1", "fail"), ("at_least: 1, at_most: 2", "pass"), ("at_least: 0", "pass"),
        ('count: ">=2"', "pass"), ('count: ">2"', "fail"), ('count: "!=2"', "fail"),
    ],
)  # fmt: skip
def test_how_many(bounds: str, result: str) -> None:
    assert judge(f"{{flags: FIN, {bounds}}}").result == result


def test_a_finding_says_what_was_wanted_and_seen() -> None:
    finding = judge("{from: server, flags: FIN, retransmitted: true, at_least: 1, since: killed}")
    expected = "at least 1 FIN retransmitted from server since killed"
    assert (finding.what, finding.expected) == (f"server: {expected}", expected)
    assert finding.actual == "1"
    assert finding.evidence == ("0.700000 server -> client: FIN ACK seq 1 ack 6 [retransmitted]",)


def test_what_was_not_captured_is_unknown() -> None:
    trouble = TroubleEvent(0.1, "client", "capture", "3 packets were not captured")
    for text in ("{flags: FIN}", "{flags: RST, count: 0}", "{flags: FIN, at_most: 1}"):
        finding = judge(text, trouble)
        assert (finding.result, finding.actual) == ("unknown", "3 packets were not captured")
    assert judge("{flags: FIN}", TroubleEvent(0.1, "client", "ss", "no ss")).result == "pass"


def test_a_label_that_was_not_set_is_unknown() -> None:
    finding = judge("{flags: FIN, since: never}")
    assert (finding.result, finding.actual) == ("unknown", "nothing is labelled 'never'")


def test_only_what_happened_so_far_counts() -> None:
    found = History([LAB])
    for o in TRAFFIC:
        found.captures.add(o.host, record(o))
    found.add(replace(KILLED, t=0.25))
    (finding,) = claim("{flags: SYN, count: 2}").judge(found)
    assert finding.result == "pass"
    (finding,) = claim("{flags: FIN, count: 0}").judge(found)
    assert finding.result == "pass"


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (FakeBackend(uncaptured="packets can't be captured"), "packets can't be captured"),
        (FakeBackend(dropped=7), "7 packets were not captured"),
    ],
    ids=["forbidden", "dropped"],
)
def test_a_lab_that_captures_badly_decides_nothing(
    tmp_path: Path, fake: FakeBackend, reason: str
) -> None:
    text = (
        "title: t\nhosts: {server: {}, client: {}}\nsteps: []\n"
        "expect: [{segments: {flags: RST, count: 0}}]\n"
    )
    found = play(text, fake, tmp_path)
    assert [v.result for v in found.verdicts] == ["unknown"]
    assert reason in found.verdicts[0].actual
    assert found.environment["probes"] == (
        ["ss", "capture", "loopback", "trace"] if reason.startswith("7") else ["ss", "trace"]
    )


# --- Judging a record -----------------------------------------------------------------------------


def test_a_recorded_run_is_judged_as_it_was() -> None:
    def told(verdicts: Iterable[Any]) -> list[tuple[Any, ...]]:
        return [(v.result, v.what, v.expected, v.actual, v.evidence) for v in verdicts]

    assert told(rejudge.judge(RUN)) == told(recorded.load(RUN).verdicts)


def test_a_recorded_run_is_judged_by_the_params_that_it_ran_with(tmp_path: Path) -> None:
    text = (
        "title: t\nparams: {how: ok}\nvariants: [{n: 1}, {n: 2}]\n"
        "hosts: {a: {run: cat}, b: {}}\nsteps:\n- start: a\n- wait: {process: {a: '${how}'}}\n"
        "- expect: {process: {a: {exit: '${n}'}}}\n"
    )
    sets = {"how": "exited", "n": "3"}
    (case,) = load_document(Document("lesson.yaml", text), text, "lesson", sets)
    found = play(case, FakeBackend({"start a": lambda lab: lab.exit("a", 3)}), tmp_path)
    assert found.result == "pass"
    assert recorded.load(found.folder).sets == sets
    assert [verdict.result for verdict in rejudge.judge(found.folder)] == ["pass", "pass"]


def test_a_record_without_a_capture_of_its_own_sees_what_the_other_saw(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    (folder / "client.pcap").unlink()
    found = recorded.load(folder).history.segments()
    assert found
    assert all(s.lost for s in found if s.sender == "server")
    assert all(s.t is None for s in found if s.sender == "client")
