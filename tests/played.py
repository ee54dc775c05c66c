"""Scenarios that are played over a fake backend, and what came of them."""

from __future__ import annotations

from collections.abc import Callable

from labctl.judge.result import RunResult
from labctl.record.events import StepEvent
from tests.fake import tcp

LISTEN = tcp("LISTEN", ":8000")
SERVER, CLIENT = "198.18.0.2:8000", "198.18.0.3:40000"
ESTAB = tcp("ESTAB", SERVER, CLIENT)
FIN_WAIT_2 = tcp("FIN-WAIT-2", SERVER, CLIENT, more="timer:(timewait,4.500sec,0)")
RESOLVER = tcp("LISTEN", "127.0.0.11:33333")

Play = Callable[..., RunResult]
Labctl = Callable[..., tuple[int, str, str]]
"""A command's words to its status, stdout and stderr."""


def lesson(steps: str, more: str = "") -> str:
    """A scenario with these steps."""
    return f"""\
title: A lesson
hosts:
  server: {{calls: "socket; bind :8000; listen 5; await"}}
  client: {{run: cat}}
{more}
steps:
{steps}"""


def told(found: RunResult) -> list[tuple[str, str]]:
    """What was claimed, and what came of it."""
    return [(verdict.what, verdict.result) for verdict in found.verdicts]


def outcomes(found: RunResult) -> list[str | None]:
    """How each step ended, as far as the steps went."""
    events = [e for e in found.history.events if isinstance(e, StepEvent) and e.phase == "end"]
    assert [e.index for e in events] == list(range(len(events)))
    return [e.outcome for e in events]
