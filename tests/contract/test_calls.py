"""The peer program's calls in a lab, and what is claimed of them."""

from __future__ import annotations

from pathlib import Path

from tests.contract import real_backends
from tests.contract.test_lessons import played, report

TEXT = """\
title: Calls
hosts:
  server:
    sysctls: {net.ipv4.tcp_fastopen: 3}
    processes:
      two:
        calls: |
          socket tcp as a; set TCP_FASTOPEN 5; bind :8000; listen 5
          socket tcp as b; bind :8001; listen 5
          use a; accept as one; use b; accept; use one; recv; await
      many:
        calls: |
          repeat 5: socket; set SO_REUSEPORT; bind :9000; listen 1
          socket udp; bind :9000; socket mptcp; bind :9001; listen 1
          accept as first; connect none; accept
      heir: {calls: "socket; bind :7000; listen 1; fork; exec sleep 1h"}
      late: {calls: "socket; bind :7000"}
  client:
    processes:
      fast:
        calls: |
          socket; send "cookie" fastopen server:8000; close
          socket as quick; set TCP_FASTOPEN_CONNECT; connect server:8000; send "in the SYN"
          await
      slow: {calls: "socket; connect server:8001; nonblock; recv || continue; poll in 50ms; await"}
      refused:
        calls: |
          socket; nonblock; connect server:8002 || continue; poll out; get SO_ERROR; get SO_ERROR
          wait
      reset: {calls: "socket; connect server:9001; recv"}
steps:
  - start: two
  - wait: {process: {two: {call: {accept: blocked}}}}
  - start: fast
  - wait: {process: {fast: awaiting}}
  - wait: {process: {two: {call: {1st accept: ok, accept: blocked}}}}
  - start: slow
  - wait: {process: {two: awaiting, slow: awaiting}}
  - start: refused
  - wait: {process: {refused: {call: {wait: blocked}}}}
  - start: many
  - wait: {process: {many: {call: {accept: blocked}}}}
  - expect: {sockets: {server: {state: LISTEN, local: ":9000", count: 5}}}
  - start: reset
  - wait: {process: {reset: ECONNRESET}}
  - {note: now, as: now}
  - call: {slow: "poll in 20ms; get SIOCINQ; get SO_ERROR"}
  - start: heir
  - wait: {process: {heir: {call: {exec: blocked}}}}
  - signal: {heir: KILL}
  - start: late
  - wait: {process: {late: EADDRINUSE}}
expect:
"""
TRUE = [
    "segments: {from: client, to: server, flags: [SYN, data], count: 1}",
    "process: {refused: {call: {1st connect: EINPROGRESS, 1st get SO_ERROR: ECONNREFUSED}}}",
    "process: {refused: {call: {1st poll out: out err hup, 2nd get: 0, wait: blocked}}}",
    "process: {slow: {call: {1st poll: none, get SIOCINQ: 0, 1st get: 0}, since: now}}",
    "process: {slow: {call: {recv: EAGAIN, connect: ok}}}",
    "process: {many: {call: {repeat: ok, connect none: ok, 1st accept: ok, 5th listen: ok}}}",
    'process: {fast: {call: {1st send: 6, send: ">9", 2nd send: "<11"}}}',
]
FALSE = [
    "process: {slow: {call: {recv: EAGAIN}, since: now}}",  # that was before
    "process: {slow: {call: {recv: blocked}}}",
    "process: {refused: {call: {get SO_ERROR: ECONNREFUSED}}}",  # the last one found 0
    "process: {refused: {call: {2nd connect: EINPROGRESS}}}",
    "process: {refused: {call: {poll: in}}}",
    "process: {two: {call: {accept: blocked}}}",
    "process: {many: {call: {9th listen: ok}}}",
    "process: {fast: {call: {send: 11}}}",
]


@real_backends
def test_calls_and_what_they_found(backend: str, tmp_path: Path) -> None:
    claims = "".join(f"  - {claim}\n" for claim in (*TRUE, *FALSE))
    result = played(TEXT + claims, backend, tmp_path)
    results = [v.result for v in result.verdicts]
    assert results[: -len(FALSE)] == ["pass"] * (len(results) - len(FALSE)), report(result)
    assert results[-len(FALSE) :] == ["fail"] * len(FALSE), report(result)
    (blocked,) = [cause for cause in result.causes if cause.id.startswith("bind-")]
    assert blocked.id == "bind-child", report(result)
