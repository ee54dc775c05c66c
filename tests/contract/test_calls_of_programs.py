"""Programs that know nothing of labctl: their calls are judged and explained like the peer's."""

from __future__ import annotations

from pathlib import Path

from labctl.judge.result import RunResult
from tests.contract import real_backends
from tests.contract.test_lessons import played, report

TEXT = """\
title: Programs
hosts:
  server:
    processes:
      old:
        {watch}
        run:
          - python3
          - -c
          - |
            import os, socket, time
            s = socket.socket(); s.bind(("", 8000)); s.listen(5); s.set_inheritable(True)
            if os.fork() == 0: time.sleep(600)
            c, _ = s.accept(); c.recv(1); os._exit(3)
      new:
        uid: 1000
        run: [python3, -c, "import socket; s = socket.socket(); s.bind(('', 8000))"]
  client:
    run:
      - python3
      - -c
      - |
        import socket, time
        c = socket.create_connection(("server", 8000)); c.send(b"x"); c.recv(1)
        socket.create_connection(("server", 8001))
steps:
  - start: old
  - wait: {{sockets: {{server: LISTEN}}}}
  - start: client
  - wait: {{process: {{client: ECONNREFUSED, old: {{exit: 3}}}}}}
  - start: new
  - wait: {{process: {{new: exited}}}}
expect:
  - process: {{new: {{call: {{socket: ok, bind: EADDRINUSE}}, errno: EADDRINUSE, exit: 1}}}}
  - process: {{old: {{call: {{bind: ok, listen: ok, accept: ok}}}}}}
  - process: {{client: {{call: {{connect: ok}}}}}}
  - process: {{new: ENOTCONN}}
  - process: {{client: {{received: 0}}}}
"""


def judged(backend: str, watch: str, folder: Path) -> RunResult:
    text = TEXT.format(watch=watch)
    return played(text, backend, folder)


@real_backends
def test_what_they_call_is_known_and_why_it_failed(backend: str, tmp_path: Path) -> None:
    result = judged(backend, "env: {}", tmp_path)
    assert [v.result for v in result.verdicts[-5:]] == [
        "pass", "pass", "fail", "fail", "unknown"
    ], report(result)  # fmt: skip
    refused, unread = (v.actual for v in (result.verdicts[-3], result.verdicts[-1]))
    assert refused.startswith("connect: ECONNREFUSED")
    assert "watch: io" in unread
    (blocked,) = [cause for cause in result.causes if cause.id.startswith("bind-")]
    assert blocked.id == "bind-child", blocked
    assert blocked.text.startswith("new: bind :8000 failed with EADDRINUSE")


@real_backends
def test_unwatched_calls_are_not_guessed(backend: str, tmp_path: Path) -> None:
    result = judged(backend, "calls: off", tmp_path)
    assert [v.result for v in result.verdicts[-5:]] == [
        "pass", "unknown", "fail", "fail", "unknown"
    ], report(result)  # fmt: skip
    assert "calls are not seen" in result.verdicts[-4].actual
