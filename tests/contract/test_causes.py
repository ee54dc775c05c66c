"""Causes of what real kernels did, on every backend."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest

from labctl.judge.causes.cause import Cause
from labctl.judge.causes.rules import causes
from labctl.judge.recorded import load, scenario_of
from tests.contract import real_backends
from tests.contract.test_lessons import played, report


def found_in(text: str, backend: str, folder: Path, **sets: Any) -> dict[str, list[Cause]]:
    """The causes of a scenario's run by their ids, which its record tells as well."""
    result = played(text, backend, folder, **sets)
    assert result.result == "pass", report(result)
    recorded = load(result.folder)
    assert tuple(causes(recorded.history, scenario_of(recorded))) == result.causes
    found: dict[str, list[Cause]] = {}
    for cause in result.causes:
        found.setdefault(cause.id, []).append(cause)
    return found


IDLE = """\
title: A client's request and the server's FIN cross
hosts:
  server:
    calls: |
      socket
      bind :8000
      listen 5
      accept
      recv
      send "answer"
      set SO_RCVTIMEO 600ms
      recv || continue
      close
      wait
  client: {calls: "socket; connect server:8000; send 'first'; recv; await"}
steps:
  - drop: {from: server, to: client, flags: FIN, count: 1}  # as if it were slow
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {process: {server: {call: {close: ok}}}}
  - call: {client: send "second"}
  - wait: {segments: {from: server, flags: RST, count: ">0"}}
"""

PROXY = """\
title: A proxy between a client and a backend, one of which ends
params: {half: shutdown wr, ends: backend}
hosts:
  client: {calls: "socket; connect proxy:80; send 'ask now'; await"}
  proxy: {calls: "socket; bind :80; listen 5; accept; await"}
  backend: {calls: "socket; bind :8000; listen 5; accept; recv; await"}
steps:
  - start: backend
  - start: proxy
  - wait: {sockets: {backend: LISTEN, proxy: LISTEN}}
  - start: client
  - wait: {process: {proxy: {call: {accept: ok}}, client: {call: {send: ok}}}}
  - call: {proxy: "recv; socket; connect backend:8000; send 'forwarded'"}
  - wait: {process: {backend: {call: {recv: ok}}}}
  - call: {client: "${half}; recv || continue"}
  - call: {backend: "${ends}"}
  - call: {proxy: exit 0}  # nothing that takes long stands between: the rule asks for half a second
  - wait: {process: {proxy: exited, client: {call: {recv: ok}}}}
"""

CHALLENGE = """\
title: RSTs and SYNs whose numbers do not fit
hosts:
  server: {calls: "socket; bind :8000; listen 5; accept; recv; wait"}
  client: {calls: "socket; connect server:8000; send 'hello'; wait"}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {process: {server: {call: {recv: ok}}}}
  - wait: {segments: {from: server, flags: ACK, count: ">=2"}}  # it has acknowledged that
  - inject: {from: client, to: server, flags: RST, seq: next+100}
  - wait: {counters: {server: {TcpExtTCPChallengeACK: ">=1"}}}
  - sleep: 600ms                # the kernel answers one in half a second (tcp_invalid_ratelimit)
  - inject: {from: client, to: server, flags: SYN, seq: next+5}
  - wait: {counters: {server: {TcpExtTCPChallengeACK: ">=2"}}}
"""


@real_backends
def test_a_request_crosses_the_end_of_an_idle_connection(backend: str, tmp_path: Path) -> None:
    (cause,) = found_in(IDLE, backend, tmp_path)["idle-race"]
    assert cause.host == "client" and cause.certain
    assert "a request of 6 bytes" in cause.text and "after 0." in cause.text


@real_backends
@pytest.mark.parametrize(
    ("half", "ends", "name", "words"),
    [
        ("sleep 1ms", "close", "proxy-cut", "the last 7 bytes in it, of client,"),
        ("shutdown wr", "sleep 1ms", "half-close-cut", "the last 9 bytes in it, of proxy,"),
        ("sleep 1ms", "sleep 1ms", "", ""),
    ],
)  # fmt: skip
def test_a_proxy_cuts_a_connection(
    half: str, ends: str, name: str, words: str, backend: str, tmp_path: Path
) -> None:
    found = found_in(PROXY, backend, tmp_path, half=half, ends=ends)
    assert found.keys() & {"proxy-cut", "half-close-cut"} == {name} - {""}
    for cause in found.get(name, []):
        assert cause.host == "proxy" and cause.certain and words in cause.text, cause


@real_backends
def test_segments_that_did_not_fit(backend: str, tmp_path: Path) -> None:
    found = found_in(CHALLENGE, backend, tmp_path)
    (reset,), (syn,) = found["reset-window"], found["challenge-ack"]
    assert "its number is 100 after the one that was due, 6, so server answered it" in reset.text
    assert "the number that was due is 5 before the SYN's own" in syn.text
    kernel = tuple(map(int, platform.release().split(".")[:2]))
    if backend == "docker" or os.geteuid() == 0:  # it is traced
        assert ("(the kernel says: TCP_RESET)" in reset.text) == (kernel >= (6, 11))
