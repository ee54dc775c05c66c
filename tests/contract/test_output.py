"""What programs write, in whatever pieces and however much of it, on every backend."""

from __future__ import annotations

from pathlib import Path

from tests.contract import real_backends
from tests.contract.test_lessons import played, report

FLOOD = """\
title: A program says that it is done, behind a flood
hosts:
  server:
    run:
      - python3
      - -c
      - |
        import os, time
        line, begun = b"x" * 60000 + b"\\n", time.monotonic()
        os.write(1, b"begun\\n")
        while time.monotonic() < begun + 2:
            os.write(1, line)
        os.write(1, b"done\\n")
        time.sleep(600)
  client: {}
steps:
  - start: server
  - wait: {process: {server: {output: ^done$}}}
    within: 30s
  - expect: {process: {server: {output: ^begun$}}}
  - expect: {process: {server: {output: ^xdone}}}
  - expect: {process: {server: {output: y}}}
"""
PIECES = """\
title: A character in two pieces, a long line of them, and a signal without a name
hosts:
  server:
    processes:
      pieces:
        run:
          - python3
          - -c
          - import os, time; os.write(1, b"caf\\xc3"); time.sleep(.3); os.write(1, b"\\xa9\\n")
      long:
        run:
          - python3
          - -c
          - import sys; sys.stdout.buffer.write(("a" + chr(233) * 200000 + "\\n").encode())
      killed: {run: [sh, -c, "kill -35 $$"]}
  client: {}
steps:
  - start: pieces
  - start: long
  - start: killed
  - wait: {process: {pieces: exited, long: exited, killed: exited}}
    within: 20s
expect:
  - process: {pieces: {output: ^café$}}
  - process: {long: {output: ^aé+$}}
  - process: {killed: {signal: KILL}}
"""


@real_backends
def test_what_came_after_a_flood_is_found(backend: str, tmp_path: Path) -> None:
    result = played(FLOOD, backend, tmp_path)
    found = [verdict.result for verdict in result.verdicts]
    assert found == ["pass", "pass", "unknown", "unknown"], report(result)
    assert "bytes of it are not recorded; have it write less" in result.verdicts[-1].actual
    record = (result.folder / "history.jsonl").stat().st_size
    assert record < 6_000_000


@real_backends
def test_pieces_and_signals(backend: str, tmp_path: Path) -> None:
    result = played(PIECES, backend, tmp_path)
    assert [verdict.result for verdict in result.verdicts] == ["pass"] * 5 + ["fail"], report(
        result
    )
    assert result.verdicts[-1].actual == "killed by SIGRTMIN+1"
