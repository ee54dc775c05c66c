"""`process: {P: OUTCOME}`: what a process does, or how it ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, WrapValidator

from labctl.ground import errnos
from labctl.ground.patterns import TooSlow
from labctl.ground.plain import shown
from labctl.language.facts import AWAITING, NEVER_STARTED, Facts, Range
from labctl.language.predicates.called import BLOCKED, STILL, Asked, Called, check
from labctl.language.predicates.finding import QUOTED, WIDTH, Claimed, Finding, Result, cut
from labctl.language.values import (
    Count,
    Label,
    Model,
    Regex,
    SignalName,
    Text,
    choices,
    problem,
    shaped,
    unknown,
)
from labctl.record.events import CallEvent
from labctl.record.history import History, ProcessState

NOT_RECORDED = "are not recorded; have it write less, or into a file"
EARLIER = "what it called before it was watched is not recorded"
FAILING = {"socket", "bind", "listen", "accept", "connect"}
"""Calls whose failures a program's claims are about."""
STATES = ("running", "awaiting", "exited", "ok")
OUTCOMES = (*STATES, *errnos.NAMES)


UNTOLD = {"get", "poll", "nonblock", "use", "repeat", "exec"}
"""Calls that only the peer program tells."""
Calls = Annotated[dict[Text, Text], Field(min_length=1), shaped("CallsClaim")]
Errno = Annotated[Text, shaped("Errno")]


class ProcessPattern(Model):
    """What a process does, or how it ended, in more detail."""

    model_config = ConfigDict(
        json_schema_extra={
            "minProperties": 1,
            "not": {
                "properties": {"state": {"enum": ["running", "awaiting"]}},
                "required": ["state"],
                "anyOf": [{"required": ["exit"]}, {"required": ["signal"]}],
            },
            "dependentRequired": {"since": ["call"]},
        }
    )

    exit: Annotated[int, Field(ge=0, le=255, strict=True)] | None = None
    signal: SignalName | None = None
    output: Regex | None = None
    call: Calls | None = None
    since: Label | None = None
    received: Count | None = None
    state: Literal["running", "awaiting", "exited", "ok"] | None = None
    errno: Errno | None = None

    def judge(self, name: str, history: History) -> Finding:
        """The finding for one process."""
        claimed = Claimed(name, str(self), (name,), self._wanted)
        state = history.processes.get(name)
        if state is None and history.without_calls:
            return Finding("unknown", claimed, history.without_calls)
        if state is None:
            never = Facts(process=NEVER_STARTED)
            return Finding("fail", claimed, NEVER_STARTED, measured=never)
        if self.since is not None and self.since not in history.labels:
            return Finding("unknown", claimed, f"{self.since!r} was not reached")
        since = history.labels[self.since] if self.since is not None else 0.0
        checks = list(self._checks(state, since, history.now))
        results = [result for result, _ in checks]
        result: Result = "fail" if False in results else "unknown" if None in results else "pass"
        actual = ", ".join(dict.fromkeys(text for _, text in checks))
        return Finding(result, claimed, actual, _log(state), self._measured(state, since))

    @property
    def blocks(self) -> bool:
        """Whether time alone may make it true: a call that goes on is blocked after a while."""
        return BLOCKED in (self.call or {}).values()

    def turns(self, name: str, history: History) -> list[float]:
        """When that was, of each call that it makes."""
        if not self.blocks:
            return []
        calls = history.events.of(CallEvent, process=name, phase="enter")
        return [call.t + STILL for call in calls]

    @property
    def _called(self) -> Mapping[str, Called]:
        return {key: Called(Asked.parse(key), want) for key, want in (self.call or {}).items()}

    @property
    def _wanted(self) -> Facts:
        return Facts(
            process="exited" if self.state == "ok" else self.state,
            exit=0 if self.state == "ok" else self.exit,
            signal=self.signal,
            errno=self.errno,
            calls=self.call or {},
            output=self.output,
            received_bytes=self.received.bounds if self.received else None,
        )

    def _measured(self, state: ProcessState, since: float) -> Facts:
        ended = "killed" if state.signal else "exited"
        waits = self.state == AWAITING and state.awaits
        failed = _failed(self.errno, state) or _failed(None, state)
        received = state.received
        return Facts(
            process=AWAITING if waits else "running" if state.running else ended,
            exit=state.exit,
            signal=state.signal,
            errno=failed.errno if failed else None,
            calls={key: called.seen(state, since) for key, called in self._called.items()},
            output=_found(self.output, state) if self.output is not None else None,
            received_bytes=Range(received, received) if self.received else None,
        )

    def _checks(
        self, state: ProcessState, since: float, now: float
    ) -> Iterator[tuple[bool | None, str]]:
        ended = _ended(state)
        if self.state == "running":
            yield state.running, ended
        if self.state == AWAITING:
            yield state.awaits, f"{ended}, ready for a call" if state.awaits else ended
        if self.state == "exited":
            yield not state.running, ended
        if self.state == "ok":
            yield not state.running and state.exit == 0, ended
        if self.exit is not None:
            yield not state.running and state.exit == self.exit, ended
        if self.signal is not None:
            yield not state.running and state.signal == self.signal, ended
        if self.output is not None:
            yield _written(self.output, state)
        about_calls = (self.errno, self.call, self.received) != (None, None, None)
        if about_calls and not (state.calls or state.entered or state.watch):
            why = state.unseen.text if state.unseen else "judge exit or output"
            yield None, f"{ended}; its calls are not seen: {why}"
            return
        if self.errno is not None:
            if failed := _failed(self.errno, state):
                yield True, _failure(failed)
            else:
                missed = state.unseen and not {*state.unseen.but} >= FAILING
                why = _missed(state) if missed else EARLIER if state.joined else ""
                yield (None, why) if why else (False, ended)
        for key, called in self._called.items():
            if unknown_why := _unrecorded(called.asked.name, state):
                yield None, f"{key}: {unknown_why}"
            else:
                holds, actual = called.judge(state, since, now)
                yield holds, f"{key}: {errnos.describe(actual)}"
        if self.received is not None and (unknown_why := _unrecorded("recv", state)):
            yield None, f"received: {unknown_why}"
        elif self.received is not None:
            received = state.received
            reading = [call for call in state.under_way.values() if _reads_on(call)]
            most = received + sum(map(_at_most, reading))
            if reading and not self.received.settled(received, most):
                yield (
                    None,
                    f"received {received}, and what {reading[0].call} has; wait until it is done",
                )
            else:
                yield self.received.holds(received), f"received {received}"

    def __str__(self) -> str:
        words = [self.state or self.errno or ""]
        words += [f"exit {self.exit}"] if self.exit is not None else []
        words += [f"signal {self.signal}"] if self.signal else []
        words += [f"output {self.output!r}"] if self.output is not None else []
        words += [f"{name} {wanted}" for name, wanted in (self.call or {}).items()]
        words += [f"since {self.since}"] if self.since else []
        words += [f"received {self.received}"] if self.received else []
        return ", ".join(filter(None, words))


def _failed(errno: str | None, state: ProcessState) -> CallEvent | None:
    """The call that failed, with this error number or any: the last one of a process that makes
    calls; of a program, the last of those that are the last ones of their names, as it goes on to
    close its sockets."""
    last = state.last.values() if state.watch else [*state.latest][-1:]
    begun = None if state.watch else state.entered
    if begun and (begun.name != "repeat" or any(call.t < begun.t for call in last)):
        return None  # a repeat begins before the calls in it
    found = [call for call in last if call.errno and errno in (None, call.errno)]
    return max(found, key=lambda call: call.t, default=None)


def _missed(state: ProcessState) -> str:
    return f"not all its calls are seen: {state.unseen.text}" if state.unseen else ""


def _unrecorded(name: str, state: ProcessState) -> str:
    """Why the record can't tell how the last call of that name ended; empty if it can."""
    if state.watch == "calls" and name in ("recv", "send"):
        return "what a program reads and writes is not seen; set 'watch: io'"
    if state.watch and name in UNTOLD:
        return f"{name} of a program is not seen"
    if state.unseen and name not in state.unseen.but:
        return _missed(state)
    return EARLIER if state.joined and name not in state.last else ""


def _ended(state: ProcessState) -> str:
    if state.running:
        return f"running, in {state.entered.call}" if state.entered else "running"
    if state.signal:
        return f"killed by SIG{state.signal}"
    failed = _failed(None, state)
    return _failure(failed) if failed and state.exit else f"exit {state.exit}"


def _reads_on(call: CallEvent) -> bool:
    """Whether a call reads more than once: it may have read something before it is done."""
    return call.name == "recv" and len(call.call.partition("||")[0].split()) > 1


def _at_most(call: CallEvent) -> float:
    """How many bytes a call reads at most: `recv 10`, `recv until eof`."""
    wanted = call.call.split()[1]
    return int(wanted) if wanted.isdecimal() else math.inf


def _failure(call: CallEvent) -> str:
    return f"{call.call}: {errnos.describe(call.errno or '')}"


def _done(call: CallEvent) -> str:
    return _failure(call) if call.errno else f"{call.call}: {call.value or 'ok'}"


def _log(state: ProcessState) -> tuple[str, ...]:
    lines = [f"{call.t:.3f} {_done(call)}" for call in state.latest]
    if state.entered:
        how = "blocked" if state.running else "not done"
        lines.append(f"{state.entered.t:.3f} {state.entered.call}: {how}")
    return (*lines, *(cut(line, WIDTH) for line in state.written.last_lines(8)))


def _found(pattern: str, state: ProcessState) -> str | None:
    """The first match of a pattern in the process's output."""
    with suppress(TooSlow):
        found = state.written.search(pattern)
        return None if found is None else cut(found, QUOTED)
    return None


def _written(pattern: str, state: ProcessState) -> tuple[bool | None, str]:
    try:
        state.written.search(pattern)
    except TooSlow as exc:
        return None, str(exc)
    if (found := _found(pattern, state)) is not None:
        return True, f"output {found!r}"
    last = state.written.last_lines(1)
    text = f"output {cut(last[0], QUOTED) if last else ''!r}"
    if left_out := state.written.left_out:
        return None, f"{text}; {left_out} bytes of it {NOT_RECORDED}"
    return False, text


def _process_pattern(value: Any, info: ValidationInfo) -> ProcessPattern:
    if isinstance(value, str):
        if value in STATES:
            return ProcessPattern(state=value)  # type: ignore[arg-type]
        if value in errnos.NAMES:
            return ProcessPattern(errno=value)
        raise problem(unknown("outcome", value, OUTCOMES))
    if not isinstance(value, Mapping):
        wanted = "an outcome is wanted here, or a mapping such as {exit: 3}"
        raise problem(f"{wanted}, not {shown(value)}; {choices(value, OUTCOMES)}")
    pattern = ProcessPattern.model_validate(value, context=info.context)
    if not pattern.model_fields_set:
        raise problem("an empty mapping claims nothing; allowed: exit, signal, output, call, "
                      "received")  # fmt: skip
    if pattern.state in ("running", AWAITING) and (pattern.exit, pattern.signal) != (None, None):
        raise problem("what is running has no exit and no signal; keep one")
    if pattern.errno is not None and pattern.errno not in errnos.NAMES:
        raise problem(unknown("errno", pattern.errno, errnos.NAMES))
    if pattern.since is not None and pattern.call is None:
        raise problem("'since' says which calls count; name them in 'call'")
    for name, outcome in (pattern.call or {}).items():
        check(name, outcome)
    return pattern


ProcessClaim = Annotated[
    ProcessPattern,
    WrapValidator(
        lambda v, _, info: v if isinstance(v, ProcessPattern) else _process_pattern(v, info)
    ),
    shaped("ProcessClaim"),
]
