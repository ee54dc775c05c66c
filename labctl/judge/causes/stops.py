"""Processes that a stop had to kill."""

from __future__ import annotations

from collections.abc import Iterator

from labctl.judge.causes.cause import Cause, Scene
from labctl.language.steps import STOP_PATIENCE
from labctl.record.events import ProcessEvent, StepEvent


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each `stop` whose process SIGTERM had not ended when its patience was over. What
    a main process left, which is killed too, is none."""
    begun: StepEvent | None = None
    for event in scene.history.events:
        if isinstance(event, StepEvent):
            begun = event if (event.verb, event.phase) == ("stop", "begin") else None
        elif begun and isinstance(event, ProcessEvent) and event.phase != "start":
            if begun.text != f"stop {event.process}" or event.start is not None:
                continue
            patience = event.t - begun.t
            if event.signal == "KILL" and patience >= STOP_PATIENCE:
                yield Cause(
                    "stopped-by-force", event.host, event.t,
                    f"{event.process} did not end within {patience:.1f} s of SIGTERM, so it was "
                    "killed",
                    "on SIGTERM stop accepting, answer what is under way, close what is idle, end",
                    evidence=(begun.text,), refs=("signal(7)",),
                )  # fmt: skip
            begun = None
