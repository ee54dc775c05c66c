"""What a main process leaves when it ends still belongs to its process, on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.document import Document
from labctl.scenario import load_document
from tests.contract.test_lessons import BACKENDS, report, run

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
TWICE = HEAD + "  - start: daemon\n"

backends = pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=mark) for name, mark in BACKENDS]
)


@backends
def test_stop_asks_it_to_end(backend: str, tmp_path: Path) -> None:
    (case,) = load_document(Document("daemon", TERM), TERM, "daemon", {})
    result = run(case, backend, tmp_path)
    assert result.result == "pass", report(result)


@backends
def test_it_is_in_the_way_of_another_start(backend: str, tmp_path: Path) -> None:
    (case,) = load_document(Document("daemon", TWICE), TWICE, "daemon", {})
    result = run(case, backend, tmp_path)
    assert result.result == "fail", report(result)
    assert "what its main process left still runs; use restart" in result.verdicts[-1].actual
