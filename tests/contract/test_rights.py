"""A process keeps the rights that it is given, and no others, on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import real_backends
from tests.contract.test_lessons import played, report

TEXT = """\
title: What a process may do
hosts:
  server:
    processes:
      none: {run: cat /proc/self/status}
      some: {run: cat /proc/self/status, rights: [CHOWN, SETUID]}
      user: {run: cat /proc/self/status, rights: [CHOWN, SETUID], uid: 1234}
  client: {}
steps:
  - start: none
  - start: some
  - start: user
  - wait: {process: {none: ok, some: ok, user: ok}}
expect:
  - process: {none: {output: '^CapEff:\\t0{16}$'}, some: {output: '^CapEff:\\t0{14}81$'}}
  - process: {none: {output: '^CapBnd:\\t0{16}$'}, some: {output: '^CapBnd:\\t0{14}81$'}}
  - process: {user: {output: '^CapEff:\\t0{16}$'}}
"""


@real_backends
def test_rights(backend: str, tmp_path: Path) -> None:
    result = played(TEXT, backend, tmp_path)
    if result.result == "skip":
        pytest.skip(result.reason or "")
    assert result.result == "pass", report(result)
