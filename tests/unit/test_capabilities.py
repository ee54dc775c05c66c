"""The table of capabilities: who probes them knows them all, and no others."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from labctl.backends.capabilities import CAPABILITIES
from labctl.run.doctor import CHECKS

HOST = Path(__file__).parents[2] / "images" / "host"


def test_agents_probe_what_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HOST))
    probes = runpy.run_path(str(HOST / "faults.py"))["PROBES"]
    assert probes.keys() == {n for n, known in CAPABILITIES.items() if known.probed == "agent"}


def test_doctor_checks_each() -> None:
    checks = {check.__name__.strip("_") for check in CHECKS}
    assert {known.check for known in CAPABILITIES.values()} <= checks
