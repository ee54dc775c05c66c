"""What claims on segments say of real stacks: numbers, options, order and pauses; and what becomes
of segments that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import real_backends
from tests.contract.test_faults import V4, V6, passes, run, words

STEPS = """
  - call: {server: 'send "hello"', client: 'recv 5'}
  - drop: {from: server, flags: FIN, count: 3}
  - call: {server: close}
  - wait: {sockets: {server: FIN-WAIT-2}}
expect:
"""
TRUE = """\
  - segments:
      from: client
      flags: SYN
      bare: true
      seq: 0
      window: ">1000"
      options: {mss: true, wscale: true, sack: true, timestamps: true, fastopen: false, md5: false}
      ecn: {ECE: false, AE: false, CE: false}
      then: {flags: SYN ACK, ack: 1, then: {from: client, flags: ACK, bare: true, ack: 1}}
  - segments: {from: server, seq: 1, ack: 1, length: 5, payload: ^hello$, tsval: ">=0"}
  - segments: {from: client, flags: ACK, bare: true, ack: 6, window: ">1000", tsecr: ">=0"}
  - segments: {from: server, flags: FIN, retransmitted: true, spaced: [200ms, 400ms]}
"""
FALSE = """\
  - segments: {from: client, flags: SYN, seq: 1}
  - segments: {from: client, flags: SYN, window: 0}
  - segments: {from: client, flags: SYN, options: {timestamps: false}}
  - segments: {from: client, flags: SYN, ecn: {ECE: true}}
  - segments: {from: server, length: 4}
  - segments: {from: server, payload: ^hello$, then: {from: server, payload: ^hello$}}
  - segments: {from: client, flags: ACK, bare: true, ack: 7, then: {flags: SYN}}
  - segments: {from: server, flags: FIN, retransmitted: true, spaced: [200ms, 200ms]}
"""


@real_backends
@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_numbers_order_and_pauses(backend: str, family: dict[str, str], tmp_path: Path) -> None:
    passes(run(STEPS + TRUE, backend, tmp_path, family))


@real_backends
def test_what_is_false_of_them_fails(backend: str, tmp_path: Path) -> None:
    found = run(STEPS + FALSE, backend, tmp_path)
    results = [v.result for v in found.verdicts]
    assert results[-9:] == ["pass", *["fail"] * 8], words(found)


BACKOFFS = """
title: Backoffs
hosts:
  server:
    calls: socket; set SO_RCVBUF 8192; bind :8000; listen 20; accept; await
  client:
    processes:
      deaf: {calls: socket; connect server:8000}
      idle: {calls: socket; set SO_KEEPALIVE; set TCP_KEEPIDLE 1; set TCP_KEEPINTVL 1;
                    connect server:8000; await}
      busy: {calls: socket; connect server:8000; send 100000 bytes; await}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: idle
  - wait: {segments: {from: client, keepalive: true, spaced: [1s]}}
  - drop: {to: "client", at_most: 100}
  - wait: {segments: {from: client, keepalive: true, spaced: [1s, 1s]}}
  - heal: all
  - start: busy
  - call: {server: accept}
  - wait: {segments: {from: client, probe: true, spaced: [PROBES]}}
  - drop: {to: "server:8000", flags: SYN, at_most: 100}
  - start: deaf
  - wait: {segments: {from: client, flags: SYN, lost: true, spaced: [1s, 1s]}}
    within: 10s
"""


@pytest.mark.ci
@pytest.mark.netns
@pytest.mark.parametrize(("probes", "result"), [("400ms, 800ms", "pass"), ("400ms, 400ms", "fail")])
def test_backoffs(probes: str, result: str, tmp_path: Path) -> None:
    text = BACKOFFS.replace("PROBES", probes)
    found = run(text, "netns", tmp_path, {}, hosts="")
    assert found.result == result, words(found)


# --- Rejections -----------------------------------------------------------------------------------

REFUSED = """
title: Refused
hosts:
  server: {{calls: socket {family}; bind :8000; listen 20; accept; await}}
  client:
    processes:
      first: {{calls: "socket {family}; connect server{suffix}:8000"}}
      second: {{calls: "socket {family}; connect server{suffix}:8000"}}
      third: {{calls: "socket {family}; connect server{suffix}:8000; await"}}
steps:
  - start: server
  - wait: {{sockets: {{server: LISTEN}}}}
  - reject: {{to: "server:8000", flags: SYN, count: 1, with: rst}}
  - start: first
  - wait: {{process: {{first: ECONNREFUSED}}}}
  - drop: {{to: "server:8000", flags: SYN, count: 1}}
    as: unheard
  - start: second
  - wait: {{segments: {{from: client, flags: SYN, lost: true, since: unheard}}}}
  - reject: {{to: "server:8000", flags: SYN, count: 1, with: admin-prohibited}}
  - wait: {{process: {{second: {errno}}}}}
  - reject: {{to: "server:8000", flags: SYN, at_most: 3, injected: true, with: port-unreachable}}
  - start: third
  - wait: {{sockets: {{server: ESTAB, client: ESTAB}}}}
expect:
  - segments: {{from: client, flags: SYN, lost: true, count: {lost}}}
  - segments: {{from: server, flags: RST, ack: 1, count: 1}}
"""


@pytest.mark.netns
@pytest.mark.parametrize(
    ("family", "suffix", "errno", "lost", "result"),
    [
        ("tcp", "", "EHOSTUNREACH", 3, "pass"),
        ("tcp6", ".v6", "EACCES", 3, "pass"),
        ("tcp", "", "EHOSTUNREACH", 2, "fail"),
    ],
)
def test_refused_segments(
    family: str, suffix: str, errno: str, lost: int, result: str, tmp_path: Path
) -> None:
    text = REFUSED.format(family=family, suffix=suffix, errno=errno, lost=lost)
    found = run(text, "netns", tmp_path, {}, hosts="")
    assert found.result == result, words(found)
    if result == "pass":
        assert [v.actual for v in found.verdicts if v.what.startswith("reject")] == [
            "1 segment rejected", "1 segment rejected", "0 segments rejected"
        ]  # fmt: skip
