"""The field's own tests, as scenarios: each holds on namespaces, and a false claim in one fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labctl.ground.resources import APART, scenarios, shelf
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load, load_document
from tests.contract.test_lessons import TEST_ALL, claims, report, run

FILES = {
    name.removeprefix(APART): path
    for name, path in shelf(scenarios()).items()
    if name.startswith(APART)
}
EVERYWHERE = {"fastopen_fin", "port_share", "syn_sent_queue"}
"""Scenarios that are tried everywhere. All are in CI, and all their cases where LABCTL_TEST_ALL is
set."""


HURRIED = {"conntrack_challenge_ack", "conntrack_synack_old"}
"""Their segment must come within a second, before the SYN is sent again; a busy machine is late."""


def cases() -> list[Any]:
    """The first case of each scenario, or every case."""
    return [
        pytest.param(case, id=case.label, marks=[] if name in EVERYWHERE else [pytest.mark.ci])
        for name, path in FILES.items()
        for case in load(path)[: None if TEST_ALL else 1]
    ]


@pytest.mark.netns
@pytest.mark.parametrize("case", cases())
def test_holds(case: Scenario, tmp_path: Path) -> None:
    result = run(case, "netns", tmp_path)
    if case.name in HURRIED and result.result == "fail":
        result = run(case, "netns", tmp_path)
    if result.result == "skip":
        pytest.skip(result.reason or "")
    assert result.result == "pass", report(result)
    kernel = result.environment["kernel"]
    told = sorted((v.what, v.result) for v in result.verdicts if v.result != "skip")
    assert told == sorted(claims(case, "netns", kernel)), report(result)


FALSE = [
    ("conntrack_ack_lost", "packets 0 ", "packets 1 "),
    ("conntrack_challenge_ack", "output: ^2$", "output: ^1$"),
    ("conntrack_inexact_rst", "flags: [FIN, ACK]", "flags: ACK"),
    ("conntrack_rst_invalid", "flags: RST, seq: 5", "flags: ACK, seq: 5"),
    ("conntrack_synack_old", "ack: next+643160522", "ack: next"),
    ("conntrack_synack_reuse", "flags: RST, seq: 11", "flags: RST, seq: 12"),
    ("icmp_established", 'recv: "${errno}"', "recv: ETIMEDOUT"),
    ("icmp_syn", "seq: next+5", "seq: 0"),
    ("md5_on_ack", "TcpExtTCPMD5Unexpected: 2", "TcpExtTCPMD5Unexpected: 1"),
    ("ts_invalid_ack", "ack: next+9998", "ack: next"),
    ("ts_of_the_end", "sleep: 1s", "sleep: 100ms"),
    ("windows", "late: recv 100000", "late: recv 10"),
    ("close_order", "flags: FIN, count: 1", "flags: FIN, count: 2"),
    ("fastopen_keys", "PassiveAltKey: 1", "PassiveAltKey: 2"),
    ("fastopen_to_itself", "2nd send: EADDRNOTAVAIL", "2nd send: ok"),
    ("linger_wakes", "call: {close: blocked}", "call: {recv: blocked}"),
    ("port_share", "use block; close;", "use block;"),
    ("reuseport_many", "count: 1000", "count: 1001"),
    ("siocinq_fin", "1st get SIOCINQ: 1000", "1st get SIOCINQ: 1001"),
]
"""A scenario, what its first case says, and what is not so."""


@pytest.mark.ci
@pytest.mark.netns
@pytest.mark.parametrize(("name", "old", "new"), FALSE)
def test_what_is_not_so_fails(name: str, old: str, new: str, tmp_path: Path) -> None:
    text = FILES[name].read_text("utf-8")
    assert old in text
    changed = text.replace(old, new)
    case = load_document(Document(name, changed), changed, name, {})[0]
    result = run(case, "netns", tmp_path)
    assert result.result == "fail", report(result)
