"""What a scenario can do: every kind of step, and the STEPS table.

To add one, write a class with `act`, and its name in STEPS. A step acts only through the Lab.
Classes that take long to make have a module of their own below this, and STEPS its name: most
scenarios have no such step, and do without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

from labctl.language.calls import parse_calls
from labctl.language.facts import Facts
from labctl.language.predicates import SOME, Claim, Finding, Predicate
from labctl.language.predicates.executed import Executed, Status
from labctl.language.predicates.finding import Claimed
from labctl.language.steps.base import Outcome, Step, StepFailed, When
from labctl.language.steps.waiting import settle, wait
from labctl.language.values import (
    Calls,
    Duration,
    HostName,
    Label,
    ProcessName,
    Regex,
    SignalName,
    SysctlKey,
    SysctlValue,
    Text,
    Within,
    WithinRange,
)
from labctl.record.events import Event, ProcessEvent, StepEvent
from labctl.record.history import History, ProcessState

if TYPE_CHECKING:
    from labctl.lab.lab import Lab
    from labctl.lab.observing import Observing

__all__ = [
    "DEFAULT_WITHIN", "LOOKING", "STEPS", "Outcome", "Step", "StepFailed", "Wait", "When",
    "modifiers",
]  # fmt: skip

STOP_PATIENCE = 10.0
END_PATIENCE = 5.0  # for a process that has ended, until its backend says so
DEFAULT_WITHIN = Within(0.0, 5.0)
BLOCKING = {
    "accept", "close", "connect", "poll", "recv", "send", "sleep", "wait", "await", "fork",
    "repeat", "exec",
}  # fmt: skip
BLOCKED_AFTER = 0.2
PATIENCE = 5.0


class Start(Step):
    """Runs a process, beside what an earlier start of it has left."""

    verb = "start"
    start: ProcessName

    def act(self, lab: Lab) -> None:
        if lab.running(self.start):
            raise StepFailed(str(self), f"{self.start} not running", "it runs already; use restart")
        if not lab.has_left(self.start):
            lab.pump_until(lambda: not lab.lives(self.start), lab.now() + END_PATIENCE)
        lab.start(self.start)

    @property
    def starts(self) -> list[str]:
        return [self.start]


class Restart(Step):
    """Runs a process again on the same host, killing it first if anything of it still runs."""

    verb = "restart"
    restart: ProcessName

    def act(self, lab: Lab) -> None:
        lab.kill(self.restart)
        lab.start(self.restart)

    @property
    def starts(self) -> list[str]:
        return [self.restart]


class Kill(Step):
    """Sends SIGKILL to everything in a process."""

    verb = "kill"
    kill: ProcessName

    def act(self, lab: Lab) -> None:
        lab.kill(self.kill)


class Stop(Step):
    """Sends SIGTERM to the main process, or, if that has ended, to what it left; when it has ended,
    or after 10 s, sends SIGKILL to all that is left. To a service it sends the signal that its
    project or its image says, and waits as long as the project says."""

    verb = "stop"
    stop: ProcessName

    def act(self, lab: Lab) -> None:
        signal, patience = stopping(lab.history.processes.get(self.stop))
        deadline = lab.now() + patience
        if lab.running(self.stop):
            lab.signal(self.stop, signal)
            lab.pump_until(lambda: not lab.running(self.stop), deadline)
        elif lab.lives(self.stop):
            lab.end(self.stop)
            lab.pump_until(lambda: not lab.lives(self.stop), deadline)
        lab.kill(self.stop)

    def judge(self, history: History) -> list[Finding]:
        begun = next((e.t for e in history.events.latest(StepEvent) if _begins(e)), 0.0)
        own = history.events.latest(ProcessEvent)
        last = next((e for e in own if e.process == self.stop and e.start is None), None)
        signal, patience = stopping(history.processes.get(self.stop))
        if last is None or last.phase == "start" or last.t - begun < patience:
            return []
        expected = f"SIG{signal}, and SIGKILL after {patience:g} s"
        what = f"{self.stop}: stopped by {expected}"
        actual = f"SIGKILL after {last.t - begun:.1f} s: SIG{signal} had not ended it"
        claimed = Claimed(self.stop, expected, self.about, Facts(process="killed"), what)
        measured = Facts(process="killed", signal="KILL", until_seconds=round(last.t - begun, 6))
        return [Finding("pass", claimed, actual, measured=measured)]


def stopping(process: ProcessState | ProcessEvent | None) -> tuple[str, float]:
    """The signal that asks a process to end, and the seconds that it may take then."""
    signal, grace = (process.stop, process.grace) if process else (None, None)
    return signal or "TERM", STOP_PATIENCE if grace is None else grace


def _begins(event: Event) -> bool:
    return isinstance(event, StepEvent) and event.phase == "begin"


class Signal(Step):
    """Sends a signal to the main process alone: its children live on."""

    verb = "signal"
    signal: Annotated[dict[ProcessName, SignalName], SOME]

    def act(self, lab: Lab) -> None:
        for process, name in self.signal.items():
            if not lab.running(process):
                raise StepFailed(str(self), f"{process} running", lab.condition(process))
            lab.signal(process, name)


class Pause(Step):
    """Freezes everything in a process."""

    verb = "pause"
    pause: ProcessName

    def act(self, lab: Lab) -> None:
        lab.freeze(self.pause, True)


class Resume(Step):
    """Thaws a process."""

    verb = "resume"
    resume: ProcessName

    def act(self, lab: Lab) -> None:
        lab.freeze(self.resume, False)


class Call(Step):
    """Makes one more socket call, or several, in a process that is in `await`. If it ends by one of
    them, the rest is not made."""

    verb = "call"
    call: Annotated[dict[ProcessName, Calls], SOME]

    def act(self, lab: Lab) -> None:
        for process, text in self.call.items():
            if not lab.awaiting(process):
                expected = f"{process} running, in await"
                raise StepFailed(str(self), expected, lab.condition(process))
            for call in parse_calls(text):
                if not lab.running(process):
                    break  # it has ended, by a call before or otherwise
                lab.call(process, call.text, BLOCKED_AFTER if call.name in BLOCKING else PATIENCE)


class Exec(Step):
    """Runs a command on a host, in its shell. If it fails, that is a failed claim, unless `status`
    says which status is wanted; `output` judges what it wrote."""

    verb = "exec"
    exec: Annotated[dict[HostName, Text], SOME]
    status: Status | None = None
    output: Regex | None = None

    def act(self, lab: Lab) -> None:
        for host, command in self.exec.items():
            lab.exec(host, command)

    def judge(self, history: History) -> list[Finding]:
        wanted = Executed(0 if self.status is None else self.status, self.output)
        found = [wanted.judge(host, c, history) for host, c in self.exec.items()]
        claims = self.output is not None or self.status not in (None, "any")
        return [f for f in found if claims or f.result == "fail"]


class Sysctl(Step):
    """Sets sysctls at run time."""

    verb = "sysctl"
    sysctl: Annotated[dict[HostName, Annotated[dict[SysctlKey, SysctlValue], SOME]], SOME]

    def act(self, lab: Lab) -> None:
        for host, values in self.sysctl.items():
            lab.sysctl(host, values)


class Snapshot(Step):
    """Puts `ss` of every host into the record, under a caption."""

    verb = "snapshot"
    snapshot: Text

    def act(self, lab: Observing) -> None:
        lab.look(caption=self.snapshot)


class Wait(Step):
    """Polls until a predicate holds; if it never does, the steps end."""

    verb = "wait"
    wait: Claim
    within: WithinRange = DEFAULT_WITHIN
    since: Label | None = None
    hint: Text | None = None

    def act(self, lab: Observing) -> Outcome:
        return wait(lab, self.wait, self.within, self.since)

    @property
    def claim(self) -> Predicate:
        return self.wait

    def judge(self, history: History) -> list[Finding]:
        return _hinted(super().judge(history), self.hint)

    @property
    def labels(self) -> frozenset[str]:
        return self.wait.labels | ({self.since} if self.since else set())

    @property
    def least(self) -> float:
        return self.within.low

    def __str__(self) -> str:
        timing = f" within {self.within}" if self.within != DEFAULT_WITHIN else ""
        return f"wait {_claim(self.wait)}{timing}" + (f" of {self.since}" if self.since else "")


class Expect(Step):
    """Judges a predicate now, once segments on their way have arrived."""

    verb = "expect"
    expect: Claim
    hint: Text | None = None

    def act(self, lab: Observing) -> None:
        settle(lab, self.expect)

    @property
    def claim(self) -> Predicate:
        return self.expect

    def judge(self, history: History) -> list[Finding]:
        return _hinted(super().judge(history), self.hint)

    def __str__(self) -> str:
        return f"expect {_claim(self.expect)}"


def _hinted(found: list[Finding], hint: str | None) -> list[Finding]:
    """Findings; those that do not pass get the hint."""
    return [
        replace(f, evidence=(*f.evidence, f"hint: {hint}")) if hint and f.result != "pass" else f
        for f in found
    ]


def _claim(predicate: Predicate) -> str:
    words = [f"{host} {s}" for host, s in (predicate.sockets or {}).items()]
    words += [f"{name} {p}" for name, p in (predicate.process or {}).items()]
    for host, counters in (predicate.counters or {}).items():
        words += [f"{host} {name} {count}" for name, count in counters.items()]
    words += [str(predicate.segments)] if predicate.segments else []
    words += [f"{predicate.lasted.host} {predicate.lasted}"] if predicate.lasted else []
    words += [f"{host} {path}" for host, path in (predicate.path or {}).items()]
    return ", ".join(words)


class Sleep(Step):
    """Lets time pass."""

    verb = "sleep"
    sleep: Duration

    def act(self, lab: Observing) -> None:
        lab.pump_until(lambda: False, lab.now() + self.sleep)

    @property
    def least(self) -> float:
        return self.sleep

    def __str__(self) -> str:
        return f"sleep {self.sleep:g} s"


class Note(Step):
    """A remark in the record."""

    verb = "note"
    note: Text

    def act(self, lab: Observing) -> None:
        pass


LOOKING = (Snapshot, Wait, Expect, Sleep, Note)
"""Steps that do nothing to what they observe, and so may observe what runs already."""


class _Kinds(Mapping[str, type[Step]]):
    """Kinds of step by their verbs. Instead of some it gets the verb and the module that has the
    class, which is named like the verb."""

    def __init__(self, *kinds: type[Step] | tuple[str, str]) -> None:
        self._kinds: dict[str, type[Step] | str] = dict(
            kind if isinstance(kind, tuple) else (kind.verb, kind) for kind in kinds
        )

    def __getitem__(self, verb: str) -> type[Step]:
        kind = self._kinds[verb]
        if isinstance(kind, str):
            found: type[Step] = getattr(import_module(f"{__name__}.{kind}"), verb.capitalize())
            return found
        return kind

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


STEPS = _Kinds(
    Start,
    Restart,
    Kill,
    Stop,
    Signal,
    Pause,
    Resume,
    Call,
    Exec,
    Sysctl,
    ("drop", "faults"),
    ("reject", "faults"),
    ("heal", "faults"),
    ("net", "faults"),
    ("cut", "faults"),
    ("join", "faults"),
    ("inject", "injecting"),
    Snapshot,
    Wait,
    Expect,
    Sleep,
    Note,
)


@cache
def modifiers() -> frozenset[str]:
    """The keys that stand beside a verb."""
    keys = (field.alias or name for step in STEPS.values()
            for name, field in step.model_fields.items())  # fmt: skip
    return frozenset(keys) - STEPS.keys()
