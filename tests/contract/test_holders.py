"""Who holds a socket is known on every backend, without a capability."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.judge.result import RunResult
from labctl.record.events import HoldersEvent, ProcessEvent
from labctl.reports.ladder import ladder_of
from tests.contract import real_backends
from tests.contract.test_lessons import played, report

CHILD = """\
title: A child holds the listener after its parent has died
hosts:
  server:
    processes:
      old: OLD
      new: {calls: "socket; set SO_REUSEADDR; bind :8000; listen 20; wait"}
  client: {}
steps:
  - start: old
  - wait: {process: {old: FORKED}}
  - snapshot: both
  - signal: {old: KILL}
  - wait: {process: {old: {signal: KILL}}}
  - start: new
  - wait: {process: {new: EADDRINUSE}}
  - snapshot: the child
  - expect: {sockets: {server: {state: LISTEN, count: 0}}}    # false: it still listens
"""
CALLS = """{calls: "socket; set SO_REUSEADDR; bind :8000; listen 7; fork; wait"}"""
PROGRAM = """
        run:
          - python3
          - -c
          - |
            import os, socket, time
            s = socket.socket()
            s.bind(("", 8000))
            s.listen(7)
            os.fork() and print("forked", flush=True)
            time.sleep(1000)
"""
KINDS = {"calls": (CALLS, "{call: {fork: ok}}"), "program": (PROGRAM, "{output: forked}")}


def seen(result: RunResult, host: str = "server") -> list[tuple[str, ...]]:
    """What each look with a caption showed of a host."""
    return [look.lines for look in ladder_of(result).looks if look.host == host]


def main(result: RunResult, process: str) -> int | None:
    """The pid of a main process."""
    starts = (e for e in result.history.events if isinstance(e, ProcessEvent))
    return next(e.pid for e in starts if (e.process, e.phase) == (process, "start"))


@real_backends
@pytest.mark.parametrize("kind", KINDS)
def test_a_child_that_holds_a_listener_is_named(backend: str, kind: str, tmp_path: Path) -> None:
    old, forked = KINDS[kind]
    result = played(CHILD.replace("OLD", old).replace("FORKED", forked), backend, tmp_path)
    assert [v.result for v in result.verdicts] == ["pass"] * 3 + ["fail"], report(result)
    (both,), (blocked,), (child,) = seen(result)
    parent = f"old (pid {main(result, 'old')}, python"
    assert both.startswith(f"LISTEN 0.0.0.0:8000, accept queue 0/7, held by {parent}")
    assert " and old (pid " in both
    (cause,) = (cause for cause in result.causes if cause.id == "bind-child")
    ((_, (holder,)),) = ((each.ends, each.by) for each in cause.holders)
    assert (holder.process, holder.command[:6], cause.certain) == ("old", "python", True)
    assert (parent in str(holder), len(holder.descriptors)) == (False, 1)
    line = f"LISTEN 0.0.0.0:8000, accept queue 0/7, held by {holder}"
    assert (blocked, child, cause.evidence) == (line, line, (line,))
    assert f"blocked by {line}: a child of old has it open" in cause.text
    failed = result.verdicts[-1]
    assert failed.evidence == (line,)
    assert [each.by for each in failed.measured.holders] == [(holder,)]
    for file in ("result.json", "history.jsonl"):
        assert str(holder.pid) in (result.folder / file).read_text()


UNREAD = """\
title: A process that does not let others read its descriptors
hosts:
  server:
    run:
      - python3
      - -c
      - |
        import ctypes, socket, time
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: as after a change of its user
        s = socket.socket()
        s.bind(("", 8000))
        s.listen(7)
        time.sleep(1000)
  client: {}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - snapshot: all
"""


@real_backends
def test_where_nobody_can_know_nobody_is_named(backend: str, tmp_path: Path) -> None:
    result = played(UNREAD, backend, tmp_path)
    assert result.result == "pass", report(result)
    assert seen(result) == [("LISTEN 0.0.0.0:8000, accept queue 0/7",)]
    reports = [e for e in result.history.events if isinstance(e, HoldersEvent)]
    assert (reports[-1].sockets, reports[-1].unread) == ({}, [main(result, "server")])


OTHERS = """\
title: Processes of other users
hosts:
  server: {uid: 1234, calls: "socket; bind :8000; listen 7; accept; wait"}
  client:
    uid: 1235
    run:
      - python3
      - -c
      - |
        import socket, time
        s = socket.create_connection(("server", 8000))
        time.sleep(1000)
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {sockets: {server: ESTAB, client: ESTAB}, process: {server: {call: {accept: ok}}}}
  - snapshot: all
"""


@real_backends
def test_of_any_user(backend: str, tmp_path: Path) -> None:
    result = played(OTHERS, backend, tmp_path)
    if result.result == "skip":
        pytest.skip(str(result.reason))
    assert result.result == "pass", report(result)
    for host, count in (("server", 2), ("client", 1)):
        (lines,) = seen(result, host)
        assert len(lines) == count
        words = f"held by {host} (pid {main(result, host)}, python"
        assert all(words in line for line in lines)
