"""Processes that a stop had to kill."""

from __future__ import annotations

from collections.abc import Iterator

from labctl.judge.causes.cause import Cause, Scene
from labctl.language.steps import stopping
from labctl.record.events import ProcessEvent, StepEvent


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each `stop` whose process its signal had not ended when its patience was over.
    What a main process left, which is killed too, is none."""
    begun: StepEvent | None = None
    starts: dict[str, ProcessEvent] = {}
    for event in scene.history.events.of(StepEvent, ProcessEvent):
        if isinstance(event, StepEvent):
            begun = event if (event.verb, event.phase) == ("stop", "begin") else None
        elif isinstance(event, ProcessEvent) and event.phase == "start":
            starts[event.process] = event
        elif begun and isinstance(event, ProcessEvent):
            if begun.text != f"stop {event.process}" or event.start is not None:
                continue
            patience = event.t - begun.t
            signal, grace = stopping(starts.get(event.process))
            if event.signal == "KILL" and patience >= grace:
                yield Cause(
                    "stopped-by-force", event.host, event.t,
                    f"{event.process} did not end within {patience:.1f} s of SIG{signal}, so it "
                    "was killed",
                    f"on SIG{signal} stop accepting, answer what is under way, close what is idle, "
                    "end",
                    evidence=(begun.text,), refs=("signal(7)",),
                )  # fmt: skip
            begun = None
