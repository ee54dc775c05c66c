"""What is claimed of segments, and what is found; while a lab is up and in a record."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labctl.judge import recorded, rejudge
from labctl.language.document import Document
from labctl.language.facts import Range
from labctl.language.predicates import Finding, Predicate
from labctl.language.scenario import load_document
from labctl.probes.observations import FLIGHT
from labctl.record.events import (
    CallEvent,
    Event,
    InjectEvent,
    LabEvent,
    StateEvent,
    StepEvent,
    TroubleEvent,
)
from labctl.record.history import History
from tests.fake import FakeBackend, play, scenario
from tests.reported import RUN
from tests.sighted import CLIENT, EPOCH, HANDSHAKE, NAMES, SERVER, both, one, record, seen

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


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("flags: SYN ACK", "SYN ACK"),
        ("from: server", "segment from server"),
        ("to: server", "segment to server"),
        ("from: client, to: server", "segment from client to server"),
        ("count: 2", "2 x segment"),
        ('count: "<2"', "<2 x segment"),
        ("at_least: 0, at_most: 3", "at least 0 at most 3 segment"),
        ("flags: FIN, retransmitted: false", "FIN not retransmitted"),
        ("flags: FIN, lost: true, data: false", "FIN lost not data"),
        ("flags: RST, injected: true", "RST injected"),
        ("flags: ACK, since: killed, since_first: SYN ACK",
         "ACK since killed since the first SYN ACK"),
    ],
)  # fmt: skip
def test_a_claim_in_words(pattern: str, words: str) -> None:
    assert judge(f"{{{pattern}}}").expected == words


@pytest.mark.parametrize(
    ("pattern", "subject", "about"),
    [
        ("from: server", "server", ("server",)),
        ("to: server", "server", ("server",)),
        ("from: client, to: server", "client", ("client", "server")),
        ("flags: FIN", "segments", ()),
    ],
)
def test_whom_a_claim_is_about(pattern: str, subject: str, about: tuple[str, ...]) -> None:
    claimed = judge(f"{{{pattern}}}").claimed
    assert (claimed.subject, claimed.about) == (subject, about)


@pytest.mark.parametrize(
    ("pattern", "low", "high"),
    [
        ("flags: FIN", 1, None), ("at_least: 3", 3, None), ("at_most: 3", 0, 3),
        ("at_least: 2, at_most: 3", 2, 3), ("count: 2", 2, 2), ('count: ">=2"', 2, None),
    ],
)  # fmt: skip
def test_what_is_wanted_as_data(pattern: str, low: int, high: int | None) -> None:
    wanted = judge(f"{{{pattern}}}").claimed.wanted.count
    assert wanted == Range(low, high)


def test_what_was_found_as_data() -> None:
    finding = judge("{flags: FIN, at_most: 5}")
    assert finding.measured.count == Range(2, 2)
    assert finding.measured.connections == ((SERVER, CLIENT),)


def test_twelve_segments_are_evidence() -> None:
    found = History([LAB])
    for number in range(14):
        o = one(0.1 + number / 100, f"client ACK {1000 + number} 7001 len 1")
        for each in both(o):
            found.captures.add(each.host, record(each))
    found.reach(5.0)
    (finding,) = claim("{from: client, data: true, count: 14}").judge(found)
    assert finding.result == "pass"
    assert len(finding.evidence) == 12


@pytest.mark.parametrize(
    ("first", "count", "result"), [("SYN ACK", 4, "pass"), ("FIN", 1, "pass"), ("URG", 0, "fail")]
)
def test_what_counts_from_the_first_of_its_kind(first: str, count: int, result: str) -> None:
    """Where there is none, nothing can be claimed of what follows it."""
    finding = judge(f"{{flags: ACK, from: client, since_first: {first}, at_most: {count}}}")
    assert finding.result == result
    if result == "fail":
        assert finding.actual == f"no {first}"


def crafted(at: float) -> History:
    """What was captured, and an RST that a step had the client send."""
    reset = one(at, "client RST 1006 0", mark=5)
    data = base64.b64encode(record(reset)[30:]).decode()
    found = history(KILLED, InjectEvent(at, "client", data, 6, 0))
    for each in both(reset):
        found.captures.add(each.host, record(each))
    return found


def test_what_was_injected_is_claimed_as_such() -> None:
    found = crafted(0.85)
    for pattern, result in (
        ("flags: RST, injected: true, count: 1", "pass"),
        ("flags: RST, injected: true, from: client, to: server", "pass"),
        ("flags: RST, injected: false, count: 0", "pass"),
        ("flags: FIN, injected: true, count: 0", "pass"),
    ):
        (finding,) = claim(f"{{{pattern}}}").judge(found)
        assert finding.result == result, pattern


def test_what_is_under_way_decides_nothing_yet() -> None:
    found = History([LAB])
    data = one(0.4, "client ACK 1001 7001 len 5")
    found.captures.add("client", record(data))
    found.reach(0.45)
    for pattern, result in (
        ("data: true", "pass"),
        ("lost: true", "unknown"),
        ("lost: false", "unknown"),
        ("lost: true, at_most: 1", "pass"),
        ("lost: true, at_least: 2", "fail"),
        ("lost: true, from: server, count: 0", "pass"),
    ):
        (finding,) = claim(f"{{{pattern}}}").judge(found)
        assert finding.result == result, pattern
    (finding,) = claim("{lost: true}").judge(found)
    assert finding.actual == "0, and 1 still under way; wait a moment before"
    assert finding.measured.count == Range(0, 1)


def turns(pattern: str) -> list[float]:
    predicate = claim(f"{{{pattern}}}").segments
    assert predicate
    return [round(t, 3) for t in predicate.turns(history(KILLED))]


def test_a_claim_turns_where_the_count_comes_to_be_enough_or_too_much() -> None:
    assert turns("flags: FIN") == [0.5]
    assert turns("flags: FIN, at_least: 2") == [0.7]
    assert turns("flags: FIN, at_most: 1") == [0.7]
    assert turns("flags: FIN, count: 1") == [0.5, 0.7]
    assert turns("flags: URG") == []
    assert turns("flags: FIN, since: killed, count: 2") == [0.7]


def test_a_loss_is_known_when_nothing_can_come_any_more() -> None:
    """And that nothing was lost, when it came."""
    assert turns("flags: FIN, lost: true") == [0.5 + FLIGHT]
    assert turns("flags: FIN, lost: false") == [0.7]


def test_what_was_not_captured_is_unknown() -> None:
    trouble = TroubleEvent(0.1, "client", "capture", "3 packets were not captured")
    for text in ("{flags: FIN}", "{flags: RST, count: 0}", "{flags: FIN, at_most: 1}"):
        finding = judge(text, trouble)
        assert (finding.result, finding.actual) == ("unknown", "3 packets were not captured")
    assert judge("{flags: FIN}", TroubleEvent(0.1, "client", "ss", "no ss")).result == "pass"


def test_what_is_sent_at_the_moment_of_a_label_counts() -> None:
    (fin,) = [s for s in history(KILLED).segments() if s.summary.startswith("FIN") and s.lost]
    assert fin.t is not None
    found = history(replace(KILLED, t=fin.t))
    for pattern, count in (("flags: FIN, since: killed", 2), ("since: killed", 3)):
        (finding,) = claim(f"{{{pattern}, count: {count}}}").judge(found)
        assert finding.result == "pass"


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
        (
            FakeBackend(answers={"setup": {"capture": "packets can't be captured"}}),
            "packets can't be captured",
        ),
        (FakeBackend(answers={"flush": {"dropped": 7}}), "7 packets were not captured"),
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
