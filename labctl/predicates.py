"""What a scenario can claim: every kind of expectation, judged purely from a History.

To add one: a class with `judge`, a field in Predicate. A predicate may name several subjects; each
gives one Finding. What the history can't decide is `unknown`, never passed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, WrapValidator

from labctl import errnos
from labctl.explain import describe_socket
from labctl.history import CallEvent, History, ProcessState
from labctl.probes.sockets import Address, Socket, State
from labctl.values import (
    Comparison,
    Count,
    HostName,
    Model,
    ProcessName,
    Regex,
    SignalName,
    StateName,
    Text,
    host_names,
    names,
    problem,
    resolvable,
    shown,
    unknown,
)

Result = Literal["pass", "fail", "unknown", "skip"]


@dataclass(frozen=True)
class Finding:
    """What was claimed of one subject, what was seen, and the evidence, a line each."""

    result: Result
    what: str
    expected: str
    actual: str
    evidence: tuple[str, ...] = field(default=())


def _finding(holds: bool, what: str, expected: str, actual: str, *evidence: str) -> Finding:
    return Finding("pass" if holds else "fail", what, expected, actual, evidence)


# --- sockets --------------------------------------------------------------------------------------


def _place(value: Any, info: ValidationInfo) -> str:
    host, _ = _split(str(value))
    known = list(host_names(names(info).hosts))
    if host not in ("", "*", *known) and not resolvable(host, known):
        raise problem(unknown("host", host, known))
    return str(value)


def _split(place: str) -> tuple[str, str]:
    """Host and port of `server`, `server:8000`, `:8000`, `198.18.0.2` or `[fd00::2]:8000`."""
    match = re.fullmatch(r"(?:\[(.*)\]|([^:]*)):(\d+|\*)", place)
    return (match[1] or match[2] or "", match[3]) if match else (place.strip("[]"), "")


Place = Annotated[str, BeforeValidator(_place), WithJsonSchema({"type": "string"})]


TimerName = Literal["on", "keepalive", "timewait", "persist", "unknown"]


class SocketPattern(Model):
    """Sockets of one kind, and how many there must be."""

    state: StateName | None = None
    count: Count | None = None
    recv_q: Count | None = Field(None, alias="recv-q")
    send_q: Count | None = Field(None, alias="send-q")
    timer: TimerName | None = None
    local: Place | None = None
    peer: Place | None = None

    def matches(self, socket: Socket, history: History) -> bool:
        """Whether a socket is one of these."""
        if self.state is None:
            if not socket.connection:
                return False
        elif socket.state != self.state:
            return False
        if self.timer is not None and (socket.timer is None or socket.timer.name != self.timer):
            return False
        return (
            (self.recv_q is None or self.recv_q.holds(socket.recv_q))
            and (self.send_q is None or self.send_q.holds(socket.send_q))
            and (self.local is None or _at(socket.local, self.local, history))
            and (self.peer is None or _at(socket.remote, self.peer, history))
        )

    def enough(self, count: int) -> bool:
        """Whether there are as many as wanted; one or more where nothing is said."""
        return self.count.holds(count) if self.count else count >= 1

    def __str__(self) -> str:
        words = [f"{self.count} x"] if self.count else []
        words.append(str(self.state or "connection"))
        for name, value in (("recv-q", self.recv_q), ("send-q", self.send_q)):
            words += [f"{name} {value}"] if value else []
        for name, text in (("timer", self.timer), ("local", self.local), ("peer", self.peer)):
            words += [f"{name} {text}"] if text else []
        return " ".join(words)


def _at(address: Address, wanted: str, history: History) -> bool:
    """Whether an address is the wanted one."""
    host, port = _split(wanted)
    if port and str(address.port if address.port is not None else "*") != port:
        return False
    if host in ("", address.host, address.unmapped):
        return True
    return bool({address.host, address.unmapped} & history.addresses(host))


def _pattern(value: Any, info: ValidationInfo) -> SocketPattern | Literal["none"]:
    if value == "none":
        return "none"
    if isinstance(value, str):
        return SocketPattern.model_validate({"state": value}, context=info.context)
    return SocketPattern.model_validate(value, context=info.context)


def _patterns(value: Any, info: ValidationInfo) -> HostSockets:
    items = value if isinstance(value, list) else [value]
    if not items:
        raise problem("an empty list claims nothing; allowed: a state, none, a mapping, a list")
    patterns = tuple(_pattern(item, info) for item in items)
    bare = frozenset(
        p.state for p, item in zip(patterns, items, strict=True)
        if isinstance(item, str) and isinstance(p, SocketPattern) and p.state
    )  # fmt: skip
    if "none" in patterns and len(patterns) > 1:
        raise problem("'none' stands alone; it can't be in a list with others")
    return HostSockets(patterns, bare)


@dataclass(frozen=True)
class HostSockets:
    """What one host's sockets must be. `bare` are the states named without a mapping: then no
    connection may be in a state that is not named."""

    patterns: tuple[SocketPattern | Literal["none"], ...]
    bare: frozenset[State]

    def judge(self, host: str, history: History) -> Finding:
        """The finding for one host."""
        what = f"{host}: {self}"
        seen = history.sockets.get(host)
        if seen is None:
            return Finding("unknown", what, str(self), "no look at its sockets")
        if host in history.trouble:
            return Finding("unknown", what, str(self), history.trouble[host].text)
        connections = [s for s in seen.sockets if s.connection]
        holds = all(self._holds(pattern, seen.sockets, history) for pattern in self.patterns)
        if self.bare and self.bare != {State.LISTEN}:
            named = {p.state for p in self.patterns if isinstance(p, SocketPattern)}
            holds = holds and all(s.state in named for s in connections)
        lines = tuple(describe_socket(s) for s in seen.sockets)
        return Finding("pass" if holds else "fail", what, str(self), summary(seen.sockets), lines)

    def _holds(
        self, pattern: SocketPattern | Literal["none"], sockets: Sequence[Socket], history: History
    ) -> bool:
        if pattern == "none":
            return not any(s.connection for s in sockets)
        return pattern.enough(sum(pattern.matches(s, history) for s in sockets))

    def __str__(self) -> str:
        return " and ".join("no connection" if p == "none" else str(p) for p in self.patterns)


def summary(sockets: Sequence[Socket]) -> str:
    """`LISTEN, 2 x TIME-WAIT`, or `no sockets`."""
    counts: dict[str, int] = {}
    for socket in sockets:
        queue = f" recv-q {socket.recv_q}" if socket.recv_q and not socket.is_listener else ""
        queue += f" send-q {socket.send_q}" if socket.send_q and not socket.is_listener else ""
        counts[f"{socket.state}{queue}"] = counts.get(f"{socket.state}{queue}", 0) + 1
    words = [name if n == 1 else f"{n} x {name}" for name, n in counts.items()]
    if len(words) > 6:
        words = [*words[:5], f"and {len(sockets)} sockets in all"]
    return ", ".join(words) or "no sockets"


# --- process --------------------------------------------------------------------------------------


class ProcessPattern(Model):
    """How a process is, in more detail."""

    exit: int | None = None
    signal: SignalName | None = None
    output: Regex | None = None
    call: dict[Text, Text] | None = None
    state: Literal["running", "exited", "ok"] | None = None
    errno: Text | None = None

    def judge(self, name: str, history: History) -> Finding:
        """The finding for one process."""
        what = f"{name}: {self}"
        state = history.processes.get(name)
        if state is None:
            return Finding("fail", what, str(self), "never started")
        checks = list(self._checks(state))
        results = [result for result, _ in checks]
        result: Result = "fail" if False in results else "unknown" if None in results else "pass"
        actual = ", ".join(dict.fromkeys(text for _, text in checks))
        return Finding(result, what, str(self), actual, _log(state))

    def _checks(self, state: ProcessState) -> Iterator[tuple[bool | None, str]]:
        ended = _ended(state)
        if self.state == "running":
            yield state.running, ended
        if self.state == "exited":
            yield not state.running, ended
        if self.state == "ok":
            yield not state.running and state.exit == 0, ended
        if self.exit is not None:
            yield not state.running and state.exit == self.exit, ended
        if self.signal is not None:
            yield not state.running and state.signal == self.signal, ended
        if self.output is not None:
            found = re.search(self.output, state.output, re.MULTILINE)
            line = found[0] if found else state.output.strip().rpartition("\n")[2]
            yield found is not None, f"output {line!r}"
        if self.errno is not None:
            if not state.calls and not state.entered:
                decided = None if not state.running else False
                yield decided, f"{ended}; a program's calls are not seen, judge exit or output"
            else:
                last = state.calls[-1] if state.calls and not state.entered else None
                failed = last is not None and last.errno == self.errno
                yield failed, _failure(last) if last and failed else ended
        for name, wanted in (self.call or {}).items():
            calls = [call for call in state.calls if call.name == name]
            actual = (calls[-1].errno or "ok") if calls else "not done"
            yield actual == wanted, f"{name}: {actual}"

    def __str__(self) -> str:
        words = [self.state or self.errno or ""]
        words += [f"exit {self.exit}"] if self.exit is not None else []
        words += [f"signal {self.signal}"] if self.signal else []
        words += [f"output {self.output!r}"] if self.output else []
        words += [f"{name} {wanted}" for name, wanted in (self.call or {}).items()]
        return ", ".join(filter(None, words))


def _ended(state: ProcessState) -> str:
    if state.running:
        return f"running, in {state.entered.call}" if state.entered else "running"
    if state.signal:
        return f"killed by SIG{state.signal}"
    last = state.calls[-1] if state.calls else None
    return _failure(last) if last and last.errno and state.exit else f"exit {state.exit}"


def _failure(call: CallEvent) -> str:
    return f"{call.call}: {errnos.describe(call.errno or '')}"


def _log(state: ProcessState) -> tuple[str, ...]:
    lines = [f"{call.t:.3f} {call.call}: {call.errno or 'ok'}" for call in state.calls[-8:]]
    if state.entered:
        lines.append(f"{state.entered.t:.3f} {state.entered.call}: blocked")
    return (*lines, *state.output.splitlines()[-8:])


def _process_pattern(value: Any, info: ValidationInfo) -> ProcessPattern:
    if isinstance(value, str):
        if value in ("running", "exited", "ok"):
            return ProcessPattern(state=value)  # type: ignore[arg-type]
        if value in errnos.NAMES:
            return ProcessPattern(errno=value)
        raise problem(unknown("outcome", value, ["running", "exited", "ok", *errnos.NAMES]))
    pattern = ProcessPattern.model_validate(value, context=info.context)
    if not pattern.model_fields_set:
        raise problem("an empty mapping claims nothing; allowed: exit, signal, output, call")
    if pattern.errno is not None and pattern.errno not in errnos.NAMES:
        raise problem(unknown("errno", pattern.errno, errnos.NAMES))
    for name, outcome in (pattern.call or {}).items():
        _check_call(name, outcome)
    return pattern


def _check_call(name: str, outcome: str) -> None:
    from labctl.calls import peer

    if name not in peer().CALLS:
        raise problem(unknown("call", name, peer().CALLS))
    if outcome != "ok" and outcome not in errnos.NAMES:
        raise problem(unknown("outcome", outcome, ["ok", *errnos.NAMES]))


# --- counters -------------------------------------------------------------------------------------


def judge_counter(host: str, counter: str, wanted: Comparison, history: History) -> Finding:
    """The finding for one counter of one host."""
    expected = f"{counter} grew by {wanted}"
    what = f"{host}: {expected}"
    growth = history.growth(host, counter)
    if growth is None:
        actual = f"this kernel has no counter {counter}"
        return Finding("unknown", what, expected, actual)
    return _finding(wanted.holds(growth), what, expected, str(growth))


# --- predicate ------------------------------------------------------------------------------------

NOT_YET = {
    "segments": "captures are",
    "lasted": "state durations are",
    "path": "state paths are",
}
"""Kinds of the language that this version does not judge, with the subject of the refusal."""

SOME = Field(min_length=1)
"""A subject that names nothing would claim nothing, and always hold."""

SocketsClaim = Annotated[
    HostSockets,
    BeforeValidator(lambda v, info: v if isinstance(v, HostSockets) else _patterns(v, info)),
    WithJsonSchema(
        {
            "description": "a state, none, a mapping, or a list of them",
            "type": ["string", "object", "array"],
        }
    ),
]
ProcessClaim = Annotated[
    ProcessPattern,
    WrapValidator(
        lambda v, _, info: v if isinstance(v, ProcessPattern) else _process_pattern(v, info)
    ),
    WithJsonSchema(
        {
            "description": "running, exited, ok, an errno, or a mapping",
            "type": ["string", "object"],
        }
    ),
]


class Predicate(Model):
    """One or more subjects, all of which must hold."""

    sockets: Annotated[dict[HostName, SocketsClaim], SOME] | None = None
    process: Annotated[dict[ProcessName, ProcessClaim], SOME] | None = None
    counters: Annotated[dict[HostName, Annotated[dict[Text, Count], SOME]], SOME] | None = None

    def judge(self, history: History) -> list[Finding]:
        """A finding for each subject, from what is known at the end of `history`."""
        found = [s.judge(host, history) for host, s in (self.sockets or {}).items()]
        found += [p.judge(name, history) for name, p in (self.process or {}).items()]
        for host, counters in (self.counters or {}).items():
            found += [judge_counter(host, c, w, history) for c, w in counters.items()]
        return found

    @property
    def hosts(self) -> set[str]:
        """The hosts whose sockets or counters it is about."""
        return {*(self.sockets or {}), *(self.counters or {})}


def parse_predicate(value: Any, handler: Any, info: ValidationInfo) -> Predicate:
    """A predicate from plain data."""
    if isinstance(value, Predicate):
        return value
    if isinstance(value, dict):
        for name, subject in NOT_YET.items():
            if name in value:
                raise problem(f"{name!r} is not supported yet: {subject} later work")
        if not value:
            raise problem(
                "an empty mapping claims nothing; allowed: " + ", ".join(Predicate._keys())
            )
    elif value is None or not isinstance(value, dict):
        raise problem(
            f"a predicate is a mapping ({', '.join(Predicate._keys())}), not {shown(value)}"
        )
    return Predicate.model_validate(value, context=info.context)


Claim = Annotated[Predicate, WrapValidator(parse_predicate)]
