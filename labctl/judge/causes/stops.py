"""Processes that a stop had to kill."""

from __future__ import annotations

from collections.abc import Iterator

from labctl.judge.causes.cause import Cause, Scene
from labctl.record.events import ProcessEvent, StepEvent


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each `stop` whose process ended by SIGKILL."""
    begun: StepEvent | None = None
    for event in scene.history.events:
        if isinstance(event, StepEvent) and event.verb == "stop":
            begun = event if event.phase == "begin" else None
        elif begun and isinstance(event, ProcessEvent) and event.signal == "KILL":
            patience = event.t - begun.t
            yield Cause(
                "stopped-by-force", event.host, event.t,
                f"{event.process} did not end within {patience:.1f} s of SIGTERM, so it was killed",
                "handle SIGTERM: stop accepting, answer what is under way, close",
                evidence=(begun.text,), refs=("signal(7)",),
            )  # fmt: skip
