"""The life of each process, from the events: the calls that it is in, how it ended, what it wrote
last. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field

from labctl.ground.data import dataclass
from labctl.language.calls import CallError, parse_calls
from labctl.language.scenario import Scenario
from labctl.language.steps import Kill, Pause, Restart, Resume, Signal, Stop
from labctl.record.events import CallEvent, Event, OutputEvent, ProcessEvent, StepEvent
from labctl.record.log import Log

TAIL = 4000
"""How many of the last characters of its output to keep."""


@dataclass
class Life:
    """A process since its latest start. `blocked` is the call that each of its tasks is in,
    `within` the call in which its main process ended."""

    host: str
    started: float
    end: ProcessEvent | None = None
    gone: bool = False
    blocked: dict[int, CallEvent] = field(default_factory=dict)
    within: CallEvent | None = None
    calls: list[CallEvent] = field(default_factory=list)
    output: str = ""
    asked: bool = False
    frozen: float | None = None

    @property
    def failed(self) -> CallEvent | None:
        """Its last failed call. Programs try options that there are not, and mean no harm."""
        failed = (c for c in reversed(self.calls) if c.errno and (c.name != "set" or c.fd is None))
        return next(failed, None)

    def apply(self, event: Event) -> None:
        """Takes in one event of this process."""
        match event:
            case OutputEvent():
                self.output = (self.output + event.text)[-TAIL:]
            case CallEvent(phase="enter"):
                self.blocked[event.task] = event
            case CallEvent():
                self.blocked.pop(event.task, None)
                self.calls.append(event)
            case ProcessEvent(phase="exit"):
                self.end = event
                self.within = self.blocked.pop(event.pid or 0, None)
            case ProcessEvent():
                self.gone = True
                if self.end is None:
                    self.end, self.within = event, next(iter(self.blocked.values()), None)
                self.blocked.clear()


def lives(scenario: Scenario, events: Log) -> dict[str, Life]:
    """The life of each process that was started."""
    found: dict[str, Life] = {}
    for event in events.of(ProcessEvent, CallEvent, OutputEvent, StepEvent):
        if isinstance(event, ProcessEvent) and event.phase == "start":
            found[event.process] = Life(event.host, event.t)
        elif isinstance(event, ProcessEvent | CallEvent | OutputEvent):
            if (life := found.get(event.process)) and event.start is None:
                life.apply(event)
        elif isinstance(event, StepEvent) and event.index < len(scenario.steps):
            _note_step(scenario.steps[event.index], event, found)
    return found


def _note_step(step: object, event: StepEvent, found: dict[str, Life]) -> None:
    """Notes what a step does to processes, if their own events do not say so."""
    names: Iterable[str] = ()
    match step:
        case Kill(kill=name) | Stop(stop=name) | Restart(restart=name):
            names = [name]
        case Signal(signal=signals):
            names = signals
        case Pause(pause=name) | Resume(resume=name):
            if event.phase == "end" and event.outcome == "done" and name in found:
                found[name].frozen = event.t if isinstance(step, Pause) else None
    for name in names:
        if event.phase == "begin" and name in found and found[name].end is None:
            found[name].asked = True


def target(call: CallEvent) -> tuple[str, int]:
    """The host and port of a `connect`, as they were written; empty for other calls."""
    if call.name == "connect":
        try:
            host, port = parse_calls(call.call)[0].args
        except (CallError, ValueError, LookupError):
            return "", 0
        return host, port
    return "", 0
