"""Claims as a scenario makes them, judged on events."""

from __future__ import annotations

from labctl.language.predicates import Finding, Predicate
from labctl.record.events import (
    Event,
    LabEvent,
)
from labctl.record.history import History
from tests.fake import scenario

LAB = LabEvent(
    0.0,
    "2026-01-01T00:00:00Z",
    "fake",
    {},
    {
        "server": "198.18.0.2", "server.2": "198.18.0.4", "server.v6": "fd00::2",
        "server.2.v6": "fd00::4", "client": "198.18.0.3", "client.v6": "fd00::3",
    },
)  # fmt: skip


def claim(text: str) -> Predicate:
    """A predicate from what stands after `wait:`, in one line."""
    found = scenario(f"""\
title: t
hosts:
  server: {{addresses: 2, calls: socket}}
  client: {{calls: socket, processes: {{other: {{run: cat}}}}}}
steps:
  - wait: {text}
""")
    predicate = found.steps[0].claim
    assert predicate
    return predicate


def judge(text: str, *events: Event) -> Finding:
    (finding,) = claim(text).judge(History([LAB, *events]))
    return finding
