"""The agent of a host, as far as it needs no host."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "images" / "host" / "agent.py"
REST = 10

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the agent runs on Linux alone")


class Diag:
    """A list of sockets that never changes, and takes its time."""

    def __init__(self, spend: Callable[[], None]) -> None:
        self.fingerprint = spend


def work() -> None:
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass


def be_kept_waiting() -> None:
    time.sleep(0.3)


def rest_after(spend: Callable[[], None]) -> float:
    """For how long the agent rests after a sample that takes so much."""
    spec = importlib.util.spec_from_file_location("agent", FILE)
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    agent = module.Agent()
    agent.diag, agent.rest = Diag(spend), REST
    agent.sample()
    return float(agent.next_sample - time.monotonic())


def test_it_rests_for_as_long_as_it_worked() -> None:
    assert rest_after(work) > 0.05 * REST / 2


def test_it_does_not_rest_for_what_others_took() -> None:
    """On a busy machine it would sleep for seconds, and see nothing."""
    assert rest_after(be_kept_waiting) < 0.3 * REST / 2
