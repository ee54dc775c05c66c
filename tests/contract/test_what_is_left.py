"""What a main process leaves when it ends still belongs to its process, on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.record.events import CallEvent, ProcessEvent
from tests.contract import real_backends
from tests.contract.test_lessons import played, report, run

HEAD = """\
title: A daemon, whose parent exits as soon as it serves
hosts:
  server:
    processes:
      daemon:
        run:
          - sh
          - -c
          - |
            ( trap 'echo told to end; exit' TERM; echo serves; while :; do sleep 0.05; done ) &
  client: {}
steps:
  - start: daemon
  - wait: {process: {daemon: {state: exited, output: serves}}}
"""
TERM = (
    HEAD
    + """\
  - stop: daemon
  - expect: {process: {daemon: {output: told to end}}}
  - start: daemon
  - wait: {process: {daemon: {state: exited, output: serves}}}
"""
)
BESIDE = """\
title: A child holds the port, and its server is started again beside it
hosts:
  server:
    calls: "socket; set SO_REUSEADDR; bind :8080; listen 20; fork; sleep 300ms; sleep 1h"
  other: {calls: "socket; set SO_REUSEADDR; bind server:8080; listen 20; wait"}
steps:
  - start: server
  - wait: {process: {server: {call: {fork: ok}}}}
  - signal: {server: KILL}
  - wait: {process: {server: {signal: KILL}}}
  - start: server
  - wait: {process: {server: EADDRINUSE}}
  - wait: {process: {server: {exit: 98}}}
  - sleep: 400ms                # the child of the first start has slept so long by then
  - pause: server
  - resume: server
  - expect: {sockets: {server: LISTEN}}
  - ${end}: server
  - expect: {sockets: {server: {state: LISTEN, count: 0}}}
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - expect: {process: {server: running}}
  - signal: {server: TERM}
  - wait: {process: {server: {signal: TERM}}}
  # False: these are the first start's.
  - expect: {process: {server: {signal: KILL}}}
  - expect: {process: {server: {call: {sleep: ok}, exit: 98}}}
params: {end: kill}
"""
RESTARTED = BESIDE.replace("  - ${end}: server\n", "").replace(
    "  - expect: {sockets: {server: {state: LISTEN, count: 0}}}\n  - start: server\n",
    "  - restart: server\n",
)


@real_backends
def test_stop_asks_it_to_end(backend: str, tmp_path: Path) -> None:
    result = played(TERM, backend, tmp_path)
    assert result.result == "pass", report(result)


@real_backends
@pytest.mark.parametrize("end", ["kill", "stop", "restart"])
def test_it_lives_on_beside_another_start(backend: str, end: str, tmp_path: Path) -> None:
    text = RESTARTED if end == "restart" else BESIDE
    sets = {"end": "kill" if end == "restart" else end}
    (case,) = load_document(Document("beside", text), text, "beside", sets)
    result = run(case, backend, tmp_path)
    found = [verdict.result for verdict in result.verdicts]
    assert found == ["pass"] * (len(found) - 2) + ["fail"] * 2, report(result)
    assert any("a child of server has it open" in sentence for sentence in result.why)
    cause = next(cause for cause in result.causes if cause.id == "bind-child")
    assert [holder.start for each in cause.holders for holder in each.by] == [1]
    # What the child of the first start did is in the record, as that one's.
    calls = [e for e in result.history.events if isinstance(e, CallEvent) and e.start]
    assert {call.start for call in calls} == {1}
    assert "sleep" in {call.name for call in calls}
    gone = [e for e in result.history.events if isinstance(e, ProcessEvent) and e.phase == "gone"]
    assert [event.start for event in gone][:2] == [None, 1]


STUBBORN = """\
title: A server that heeds no SIGTERM
hosts:
  server: {run: [sh, -c, "trap '' TERM; echo up; while :; do sleep 0.05; done"]}
  client: {run: [sh, -c, "echo up; exec sleep 1000"]}
steps:
  - start: server
  - start: client
  - wait: {process: {server: {output: up}, client: {output: up}}}
  - stop: client
  - stop: server
  - expect: {process: {server: {signal: KILL}, client: {signal: TERM}}}
"""


@real_backends
def test_a_stop_by_force_is_told(backend: str, tmp_path: Path) -> None:
    result = played(STUBBORN, backend, tmp_path)
    assert result.result == "pass", report(result)
    (told,) = [v for v in result.verdicts if "stopped" in v.what]
    assert told.what == "server: stopped by SIGTERM, and SIGKILL after 10 s"
    assert told.actual.startswith("SIGKILL after 10.")
    assert told.actual.endswith("SIGTERM had not ended it")
