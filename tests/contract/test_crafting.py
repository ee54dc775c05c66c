"""Sides of connections that steps make up, against real stacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.test_faults import run, words

CLIENT = """\
title: A client that no kernel knows
hosts:
  server: {{calls: "socket {family}; bind :8000; listen 20; accept; await"}}
  client: {{}}
steps:
  - start: server
  - wait: {{sockets: {{server: LISTEN}}}}
  - drop: {{from: client, flags: RST, at: sender, injected: false, at_most: 100}}
  - inject:
      from: "client{suffix}:40000"
      to: "server{suffix}:8000"
      flags: SYN
      options: {{mss: 1000, wscale: 5, sack: true, timestamps: true}}
  - wait: {{segments: {{from: server, flags: SYN ACK, seq: 0, ack: 1, tsecr: 0}}}}
  - inject:
      from: client
      to: server
      flags: ACK
      window: 100
      options: {{timestamps: {{val: last+3}}}}
  - wait: {{sockets: {{server: ESTAB}}}}
  - inject: {{from: client, to: server, flags: [PSH, ACK], payload: hello}}
  - call: {{server: 'recv 5; send "hi"'}}
  - wait: {{segments: {{from: server, ack: 6, payload: ^hi$, tsecr: {echo}}}}}
    within: 1s
  - inject: {{from: client, to: server, flags: [FIN, ACK]}}
  - wait: {{sockets: {{server: CLOSE-WAIT}}}}
  - inject: {{from: client, to: server, flags: RST}}
  - wait: {{sockets: {{server: none}}}}
expect:
  - segments: {{from: client, lost: false, count: 0}}
  - segments: {{from: client, injected: true, flags: ACK, window: 3200, count: 3}}
"""
SERVER = """\
title: A server that no kernel knows
hosts:
  server: {{}}
  client: {{calls: "socket {family}; connect server{suffix}:8000; await"}}
steps:
  - drop: {{to: server, injected: false}}
  - start: client
  - wait: {{segments: {{from: client, flags: SYN}}}}
  - inject:
      from: server
      to: client
      flags: [SYN, ACK]
      window: 5000
      options: {{mss: 1400, wscale: 0, timestamps: true}}
  - wait: {{sockets: {{client: ESTAB}}}}
  - inject: {{from: server, to: client, flags: [PSH, ACK], payload: hello, ecn: {{CE: true}}}}
  - call: {{client: 'recv 5; send "x"'}}
  - wait: {{segments: {{from: client, payload: x, ack: 6}}}}
  - inject: {{from: server, to: client, icmp: port-unreachable, seq: next+100000}}
  - inject: {{from: server, to: client, flags: ACK, options: {{md5: "{md5}"}}}}
  - inject: {{from: server, to: client, flags: RST, seq: next+{off}}}
  - wait: {{sockets: {{client: none}}}}
    within: 1s
expect:
  - counters: {{client: {{TcpExtOutOfWindowIcmps: 1}}}}
  - segments: {{from: server, injected: true, ecn: {{CE: true}}, count: 1}}
  - segments: {{from: server, injected: true, options: {{md5: true}}, count: 1}}
"""
V4 = {"family": "tcp", "suffix": ""}
V6 = {"family": "tcp6", "suffix": ".v6"}


@pytest.mark.netns
@pytest.mark.parametrize(
    ("text", "words_of", "result"),
    [
        (CLIENT, {**V4, "echo": 3}, "pass"), (CLIENT, {**V6, "echo": 3}, "pass"),
        (CLIENT, {**V4, "echo": 4}, "fail"),
        (SERVER, {**V4, "md5": "00" * 16, "off": 0}, "pass"),
        (SERVER, {**V6, "md5": "00" * 16, "off": 0}, "pass"),
        (SERVER, {**V4, "md5": "00" * 16, "off": 9000}, "fail"),
    ],
    ids=["client", "client v6", "false client", "server", "server v6", "false server"],
)  # fmt: skip
def test_a_side_without_a_socket(
    text: str, words_of: dict[str, str | int], result: str, tmp_path: Path
) -> None:
    found = run(text.format(**words_of), "netns", tmp_path, {}, hosts="")
    assert found.result == result, words(found)


ERRORS = """\
title: Errors about a connection
hosts:
  server: {{}}
  client: {{calls: "socket {family}; connect server{suffix}:8000"}}
steps:
  - drop: {{to: server, flags: SYN}}
  - start: client
  - wait: {{segments: {{from: client, flags: SYN}}}}
  - inject: {{from: server, to: client, icmp: {icmp}}}
  - wait: {{process: {{client: {errno}}}}}
    within: 700ms
"""


@pytest.mark.netns
@pytest.mark.parametrize(
    ("family", "icmp", "errno", "result"),
    [
        (V4, "port-unreachable", "ECONNREFUSED", "pass"),
        (V4, "protocol-unreachable", "ENOPROTOOPT", "pass"),
        (V4, "host-isolated", "ENONET", "pass"),
        (V6, "admin-prohibited", "EACCES", "pass"),
        (V6, "host-isolated", "EACCES", "fail"),
        (V4, "source-quench", "ECONNREFUSED", "fail"),
    ],
)
def test_errors_about_a_connection(
    family: dict[str, str], icmp: str, errno: str, result: str, tmp_path: Path
) -> None:
    text = ERRORS.format(**family, icmp=icmp, errno=errno)
    found = run(text, "netns", tmp_path, {}, hosts="")
    assert found.result == result, words(found)
