"""What an `exec` claims: how its command ended, and what it wrote."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema

from labctl.ground import patterns
from labctl.ground.data import dataclass
from labctl.ground.patterns import TooSlow
from labctl.ground.plain import shown
from labctl.language.facts import Facts
from labctl.language.predicates.finding import QUOTED, WIDTH, Claimed, Finding, Result, cut
from labctl.language.values import brief, problem
from labctl.record.events import ExecEvent, StepEvent
from labctl.record.history import History

SHOWN = 60
"""How many characters of a command name it."""
LINES = 12
"""How many lines of a command and of its output are evidence."""
NOT_RECORDED = "are not recorded; have it write less, or into a file"


def _status(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool)
    if value == "any" or (number and 0 <= value <= 255):
        return value
    raise problem(f"{shown(value)} is no status; allowed: any, or a number from 0 to 255")


Status = Annotated[
    int | Literal["any"],
    BeforeValidator(_status),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 255}, {"const": "any"}]}
    ),
]


@dataclass(frozen=True)
class Executed:
    """How a command should end, and a regular expression for what it writes."""

    status: int | Literal["any"]
    output: str | None

    def judge(self, host: str, command: str, history: History) -> Finding:
        """The finding on a command of the step that has just ended."""
        status = None if self.status == "any" else self.status
        wanted = Facts(exit=status, output=self.output)
        claimed = Claimed(f"{host}: {cut(brief(command), SHOWN)}", str(self), (host,), wanted)
        event = _ran(host, history)
        if event is None:
            return Finding("unknown", claimed, "it did not run")
        if event.command != command:
            return Finding("unknown", claimed, "the record has another command here")
        actual, output = [f"status {event.exit}"], None
        decided: list[bool | None] = [self.status in ("any", event.exit)]
        if self.output is not None:
            try:
                found = patterns.search(self.output, event.output)
                output = cut(found[0], QUOTED) if found else None
                actual.append(f"output {_last(event.output) if output is None else output!r}")
                decided.append(True if found else None if event.left_out else False)
            except TooSlow as exc:
                actual.append(str(exc))
                decided.append(None)
            if event.left_out and decided[-1] is None:
                actual.append(f"{event.left_out} bytes of it {NOT_RECORDED}")
        elif not decided[0]:
            actual.append(f"output {_last(event.output)!r}")
        result: Result = "fail" if False in decided else "unknown" if None in decided else "pass"
        measured = Facts(exit=event.exit, output=output)
        return Finding(result, claimed, ", ".join(actual), _evidence(event), measured)

    def __str__(self) -> str:
        words = [] if self.status == "any" else [f"status {self.status}"]
        words += [f"output {self.output!r}"] if self.output is not None else []
        return ", ".join(words) or "any status"


def _ran(host: str, history: History) -> ExecEvent | None:
    """The result of the latest step's command on a host."""
    for event in history.events.latest(StepEvent, ExecEvent):
        if isinstance(event, StepEvent) and event.phase == "begin":
            return None
        if isinstance(event, ExecEvent) and event.host == host:
            return event
    return None


def _last(text: str) -> str:
    """The last line with a word in it."""
    lines = reversed(text.splitlines())
    return cut(next((line for line in lines if re.search(r"\w", line)), "").strip(), QUOTED)


def _evidence(event: ExecEvent) -> tuple[str, ...]:
    command, output = event.command.strip().splitlines(), event.output.splitlines()
    left = len(output) - LINES
    more = (f"... {left} lines before",) if left > 0 else ()
    return tuple(cut(line, WIDTH) for line in (*command[:LINES], *more, *output[-LINES:]))
