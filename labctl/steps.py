"""What a scenario can do: every kind of step, and the STEPS table.

To add one: a class with `act`, and its name in STEPS. A step acts through the Lab alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from labctl.calls import parse_calls
from labctl.predicates import Claim, Predicate
from labctl.values import (
    Calls,
    Duration,
    HostName,
    Label,
    Model,
    ProcessName,
    SignalName,
    SysctlKey,
    SysctlValue,
    Text,
    Within,
    WithinRange,
    problem,
    shown,
)

if TYPE_CHECKING:
    from labctl.lab import Lab

Outcome = Literal["done", "held", "timeout"]
STOP_PATIENCE = 10.0
DEFAULT_WITHIN = Within(0.0, 5.0)
BLOCKING = {"accept", "connect", "recv", "send", "sleep", "wait", "await", "fork"}
BLOCKED_AFTER = 0.2
PATIENCE = 5.0


class StepFailed(Exception):
    """A step that could not be done because the scenario assumed what is not so."""

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(f"{what}: expected {expected}, saw {actual}")
        self.what, self.expected, self.actual = what, expected, actual


KERNEL = re.compile(r"(>=|<=|==|!=|>|<)?\s*(\d+(?:\.\d+)*)")


def _kernel(value: Any) -> str:
    if isinstance(value, float):
        raise problem(f"{value} may have lost a digit; put the version in quotation marks")
    if not isinstance(value, str | int) or not KERNEL.fullmatch(str(value).strip()):
        raise problem(f'{shown(value)} is no kernel version; allowed: ">=6.14", "<6.1"')
    return str(value).strip()


def version(text: str) -> tuple[int, ...]:
    """The numbers that a kernel release begins with."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match.group().split("."))) if match else ()


class When(Model):
    """Where a step runs; everywhere else it is left out."""

    kernel: Annotated[str, BeforeValidator(_kernel), WithJsonSchema({"type": "string"})] | None = (
        None
    )
    backend: Text | None = None
    variant: dict[str, Any] | None = None

    def lacking(self, kernel: str, backend: str, variant: dict[str, Any]) -> str | None:
        """Why a step does not run here, or None where it does."""
        if self.kernel and not _kernel_fits(self.kernel, kernel):
            return f"kernel {kernel} is not {self.kernel}"
        if self.backend and self.backend != backend:
            return f"backend {backend} is not {self.backend}"
        for name, value in (self.variant or {}).items():
            if variant.get(name) != value:
                return f"variant has {name} {variant.get(name)!r}, not {value!r}"
        return None


def _kernel_fits(wanted: str, kernel: str) -> bool:
    from labctl.values import OPERATORS

    match = KERNEL.fullmatch(wanted)
    assert match
    ours, theirs = version(kernel), version(match.group(2))
    ours = ours[: len(theirs)]
    compare: Any = OPERATORS[match.group(1) or "=="]
    return bool(compare(ours, theirs))


class Step(Model):
    """One verb, and the modifiers that every verb takes."""

    verb: ClassVar[str]
    as_: Label | None = Field(None, alias="as")
    when: When | None = None

    def act(self, lab: Lab) -> Outcome | None:
        """Does it. Raises StepFailed, LabError."""
        raise NotImplementedError

    @property
    def claim(self) -> Predicate | None:
        """What it claims, if it is a wait or an expectation."""
        return None

    @property
    def starts(self) -> list[str]:
        """The processes that it starts."""
        return []

    @property
    def least(self) -> float:
        """About how many seconds it takes at least, if all goes well."""
        return 0.0

    def __str__(self) -> str:
        value = getattr(self, self.verb)
        if isinstance(value, dict):
            value = "; ".join(f"{name}: {_short(item)}" for name, item in value.items())
        return f"{self.verb} {value}"


def _short(item: Any) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{key} = {value}" for key, value in item.items())
    return str(item)


class Start(Step):
    """Runs a process."""

    verb = "start"
    start: ProcessName

    def act(self, lab: Lab) -> None:
        if lab.running(self.start):
            raise StepFailed(str(self), f"{self.start} not running", "it runs already; use restart")
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
    """SIGKILL to everything in a process."""

    verb = "kill"
    kill: ProcessName

    def act(self, lab: Lab) -> None:
        lab.kill(self.kill)


class Stop(Step):
    """SIGTERM to the main process; SIGKILL to all that is left when it ended, or after 10 s."""

    verb = "stop"
    stop: ProcessName

    def act(self, lab: Lab) -> None:
        if lab.running(self.stop):
            lab.signal(self.stop, "TERM")
            lab.pump_until(lambda: not lab.running(self.stop), lab.now() + STOP_PATIENCE)
        lab.kill(self.stop)


class Signal(Step):
    """A signal to the main process alone: its children live on."""

    verb = "signal"
    signal: dict[ProcessName, SignalName]

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
    """One more socket call for a process that is in `await`."""

    verb = "call"
    call: dict[ProcessName, Calls]

    def act(self, lab: Lab) -> None:
        for process, text in self.call.items():
            if not lab.awaiting(process):
                expected = f"{process} running, in await"
                raise StepFailed(str(self), expected, lab.condition(process))
            for call in parse_calls(text):
                lab.call(process, call.text, BLOCKED_AFTER if call.name in BLOCKING else PATIENCE)


class Exec(Step):
    """A command on a host, by its shell; its output is recorded."""

    verb = "exec"
    exec: dict[HostName, Text]

    def act(self, lab: Lab) -> None:
        for host, command in self.exec.items():
            lab.exec(host, command)


class Sysctl(Step):
    """Sets sysctls at run time."""

    verb = "sysctl"
    sysctl: dict[HostName, dict[SysctlKey, SysctlValue]]

    def act(self, lab: Lab) -> None:
        for host, values in self.sysctl.items():
            lab.sysctl(host, values)


class Snapshot(Step):
    """`ss` from every side, into the record, under a caption."""

    verb = "snapshot"
    snapshot: Text

    def act(self, lab: Lab) -> None:
        lab.look(caption=self.snapshot)


class Wait(Step):
    """Polls until a predicate holds; where it never does, the steps end."""

    verb = "wait"
    wait: Claim
    within: WithinRange = DEFAULT_WITHIN
    since: Label | None = None

    def act(self, lab: Lab) -> Outcome:
        if self.since is not None and self.since not in lab.history.labels:
            raise StepFailed(str(self), f"a step named {self.since!r}", "it was left out")
        return lab.wait(self.wait, self.within, self.since)

    @property
    def claim(self) -> Predicate:
        return self.wait

    @property
    def least(self) -> float:
        return self.within.low

    def __str__(self) -> str:
        timing = f" within {self.within}" if self.within != DEFAULT_WITHIN else ""
        return f"wait {_claim(self.wait)}{timing}" + (f" of {self.since}" if self.since else "")


class Expect(Step):
    """Judges a predicate now, once what is in flight has arrived."""

    verb = "expect"
    expect: Claim

    def act(self, lab: Lab) -> None:
        lab.settle(self.expect)

    @property
    def claim(self) -> Predicate:
        return self.expect

    def __str__(self) -> str:
        return f"expect {_claim(self.expect)}"


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

    def act(self, lab: Lab) -> None:
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

    def act(self, lab: Lab) -> None:
        pass


STEPS: dict[str, type[Step]] = {
    step.verb: step
    for step in (
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
        Snapshot,
        Wait,
        Expect,
        Sleep,
        Note,
    )
}

NOT_YET = {
    "drop": "losing segments is",
    "heal": "losing segments is",
    "net": "network emulation is",
    "cut": "cutting links is",
    "join": "cutting links is",
    "inject": "crafting segments is",
}
"""Verbs of the language that this version does not do, with the subject of the refusal."""
