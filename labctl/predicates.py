"""What a scenario can claim: every kind of expectation, judged purely from a History.

To add one: a class with `judge`, a field in Predicate. A predicate may name several subjects; each
gives one Finding. What the history can't decide is `unknown`, never passed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, WrapValidator

from labctl import errnos
from labctl.explain import describe_socket
from labctl.history import CallEvent, History, ProcessState
from labctl.probes.segments import Segment
from labctl.probes.sockets import Address, Socket, State
from labctl.probes.transitions import SAMPLING, Timeline, missable, reachable, timelines
from labctl.values import (
    Comparison,
    Count,
    Duration,
    HostName,
    Label,
    Model,
    ProcessName,
    Regex,
    SignalName,
    StateName,
    Text,
    host_names,
    known,
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
        if trouble := history.trouble.get((host, "ss")):
            return Finding("unknown", what, str(self), trouble.text)
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


# --- segments -------------------------------------------------------------------------------------


def _flags(value: Any) -> tuple[str, ...]:
    words = value if isinstance(value, list) else re.split(r"[\s,+|]+", str(value).strip())
    for word in words:
        if word not in SEGMENT_FLAGS:
            raise problem(unknown("flag", word, SEGMENT_FLAGS))
    return tuple(words)


SEGMENT_FLAGS = ("SYN", "ACK", "FIN", "RST", "PSH", "URG", "data")
Flags = Annotated[
    tuple[str, ...], BeforeValidator(_flags), WithJsonSchema({"type": ["string", "array"]})
]


class SegmentsPattern(Model):
    """Segments of one kind that were sent, and how many."""

    from_: HostName | None = Field(None, alias="from")
    to: HostName | None = None
    flags: Flags | None = None
    count: Count | None = None
    at_least: Annotated[int, Field(ge=0, strict=True)] | None = None
    at_most: Annotated[int, Field(ge=0, strict=True)] | None = None
    retransmitted: bool | None = None
    lost: bool | None = None
    data: bool | None = None
    since: Label | None = None

    def judge(self, history: History) -> Finding:
        """The finding, from the captures of all hosts."""
        subject = self.from_ or self.to or "segments"
        what = f"{subject}: {self}"
        if troubles := [t.text for (_, probe), t in history.trouble.items() if probe == "capture"]:
            return Finding("unknown", what, str(self), "; ".join(troubles))
        if self.since is not None and self.since not in history.labels:
            return Finding("unknown", what, str(self), f"nothing is labelled {self.since!r}")
        start = history.labels[self.since] if self.since else float("-inf")
        found = [s for s in history.segments() if s.time >= start and self.matches(s)]
        lines = tuple(f"{s.time:.6f} {s.sender} -> {s.receiver}: {s.summary}" for s in found[:12])
        return _finding(self.enough(len(found)), what, str(self), str(len(found)), *lines)

    def matches(self, segment: Segment) -> bool:
        """Whether a segment is one of these."""
        wanted = set(self.flags or ())
        has_data = segment.length > 0
        return (
            segment.t is not None
            and self.from_ in (None, segment.sender)
            and self.to in (None, segment.receiver)
            and wanted - {"data"} <= set(segment.flags)
            and ("data" not in wanted or has_data)
            and self.data in (None, has_data)
            and self.retransmitted in (None, segment.retransmitted)
            and self.lost in (None, segment.lost)
        )

    def enough(self, count: int) -> bool:
        """Whether there are as many as wanted; one or more where nothing is said."""
        bounds = [self.at_least is None or count >= self.at_least]
        bounds += [self.at_most is None or count <= self.at_most]
        bounds += [self.count is None or self.count.holds(count)]
        said = (self.at_least, self.at_most, self.count) != (None, None, None)
        return all(bounds) and (said or count >= 1)

    def __str__(self) -> str:
        words = [f"{self.count} x"] if self.count else []
        words += [f"at least {self.at_least}"] if self.at_least is not None else []
        words += [f"at most {self.at_most}"] if self.at_most is not None else []
        words += [" ".join(self.flags or ("segment",))]
        for name in ("retransmitted", "lost", "data"):
            value = getattr(self, name)
            words += [name if value else f"not {name}"] if value is not None else []
        words += [f"from {self.from_}"] if self.from_ else []
        words += [f"to {self.to}"] if self.to else []
        words += [f"since {self.since}"] if self.since else []
        return " ".join(words)


# --- lasted and path ------------------------------------------------------------------------------

SHOWN = 3
"""How many connections a finding shows."""


def _some_connection(
    claim: Path | Lasted,
    host: str,
    history: History,
    judge: Callable[[Timeline], tuple[Result, str]],
    brief: bool,
) -> Finding:
    """The finding for a claim that some connection of a host bears out. `judge` tells what one of
    them says to it, and in what words; `brief`: so short a one would do that no look sees it."""
    judged = [(*judge(timeline), timeline) for timeline in timelines(history, host)]
    results = [result for result, _, _ in judged]
    trouble = history.trouble.get((host, "trace"))
    unseen: list[Result] = ["unknown"] if trouble and brief and not judged else []
    result: Result = next((r for r in ("pass", "unknown") if r in [*results, *unseen]), "fail")
    deciding = [(words, timeline) for r, words, timeline in judged if r == result]
    counts = Counter(words for words, _ in deciding)
    seen = [f"{n} x {words}" if n > 1 else words for words, n in counts.most_common(SHOWN)]
    seen += [f"{len(counts) - SHOWN} others"] if len(counts) > SHOWN else []
    actual = "; ".join(seen) or "no connection"
    if result == "unknown" and not (judged and all(t.complete for _, t in deciding)):
        reasons = [t.gap for _, t in deciding if t.gap] + ([trouble.text] if trouble else [])
        actual += ", as far as was seen: " + (reasons or ["this was not traced"])[0]
    lines = [line for _, timeline in deciding[:SHOWN] for line in _told(timeline)]
    return Finding(result, f"{host}: {claim}", str(claim), actual, tuple(lines))


def _told(timeline: Timeline) -> Iterator[str]:
    yield timeline.name
    for span in timeline.spans:
        yield f"  {span.state} from {span.begin} s to {f'{span.end} s' if span.end else 'the end'}"


@dataclass(frozen=True)
class Path:
    """The states that a connection walks through, from the first of them on, and whether nothing is
    left of it then."""

    states: tuple[State, ...]
    closed: bool

    def judge(self, host: str, history: History) -> Finding:
        """The finding for one host: that some connection of it walked exactly so."""
        return _some_connection(self, host, history, self._judge, True)

    def _judge(self, timeline: Timeline) -> tuple[Result, str]:
        seen = list(timeline.states)
        while seen and seen[0] not in self.states and reachable(seen[0], self.states[0]):
            del seen[0]
        words = _walk(timeline.states, timeline.closed)
        ends_so = self.closed == timeline.closed or timeline.gap
        if not ends_so or not _in_order(seen, self.states):
            return "fail", words
        exact = tuple(seen) == self.states
        if timeline.complete:
            return "pass" if exact else "fail", words
        steps = pairwise([*seen, None] if self.closed else seen)
        certain = exact and not timeline.gap and not any(missable(a, b) for a, b in steps if a)
        return "pass" if certain else "unknown", words

    def __str__(self) -> str:
        return _walk(self.states, self.closed)


def parse_state(value: Any) -> State:
    """A state in any usual spelling."""
    try:
        return State.parse(str(value))
    except ValueError as exc:
        raise problem(str(exc)) from exc


def _walk(states: Iterable[State], closed: bool) -> str:
    return ", ".join([*states, *(["closed"] if closed else [])])


def _in_order(part: Sequence[State], whole: Sequence[State]) -> bool:
    rest = iter(whole)
    return all(state in rest for state in part)


def _path(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, list) or not value:
        raise problem(f"a list of states is wanted here, in order, not {shown(value)}")
    states = [State.UNCONN if item == "closed" else parse_state(item) for item in value]
    closed = states[-1] is State.UNCONN
    walked = states[:-1] if closed else states
    if not walked:
        raise problem("'closed' alone is no path; name the states before it")
    for before, state in pairwise([None, *walked]):
        if state is State.UNCONN:
            raise problem("'closed' ends a path; nothing comes after it")
        if state is State.LISTEN:
            raise problem("LISTEN is no state of a connection; a path begins after it")
        if before and state and not reachable(before, state):
            raise problem(f"an impossible path: {state} can't come after {before}")
    return Path(tuple(walked), closed)


LEAST_TOLERANCE = 0.5
TOLERANCE = 0.1


@dataclass(frozen=True)
class Lasted:
    """How many seconds a connection of a host is in a state: `duration`, give or take `tolerance`;
    where that is not said, a tenth of it, and half a second at least."""

    host: str
    state: State
    duration: float
    tolerance: float

    def judge(self, history: History) -> Finding:
        """The finding: that some connection of the host was in that state for so long."""
        low, high = self.duration - self.tolerance, self.duration + self.tolerance

        def judge(timeline: Timeline) -> tuple[Result, str]:
            span = next((s for s in timeline.spans if s.state is self.state), None)
            if span is None:
                missed = not timeline.complete and low <= SAMPLING
                return "unknown" if missed else "fail", f"never in {self.state}"
            shortest, longest = span.lasted(history.now)
            words = _seconds(shortest, longest)
            if shortest > high or longest < low:
                return "fail", words
            decided = shortest >= low and longest <= high and not timeline.gap
            return "pass" if decided else "unknown", words

        return _some_connection(self, self.host, history, judge, low <= SAMPLING)

    def __str__(self) -> str:
        return f"{self.state} for {self.duration:g} s, give or take {self.tolerance:g} s"


def _seconds(shortest: float, longest: float) -> str:
    if longest == math.inf:
        return f"{shortest:.3f} s so far"
    if longest - shortest < 1e-9:
        return f"{shortest:.6f} s"
    return f"{shortest:.3f}..{longest:.3f} s"


class LastedPattern(Model):
    """What stands beside the host in `lasted`."""

    for_: Duration = Field(alias="for")
    tolerance: Duration | None = None


def _lasted(value: Any, info: ValidationInfo) -> Lasted:
    if isinstance(value, Lasted):
        return value
    if not isinstance(value, Mapping):
        raise problem(
            f"a mapping of a host, 'for' and 'tolerance' is wanted here, not {shown(value)}"
        )
    rest = {key: item for key, item in value.items() if key in LastedPattern._keys()}
    hosts = [key for key in value if key not in rest]
    if len(hosts) != 1:
        raise problem(f"one host and its state are wanted beside 'for', not {len(hosts)}")
    (host,) = hosts
    known("host", host, names(info).hosts)
    state = parse_state(value[host])
    if state in (State.LISTEN, State.UNCONN):
        raise problem(f"{state} is no state of a connection; none of them lasts")
    pattern = LastedPattern.model_validate(rest, context=info.context)
    tolerance = pattern.tolerance
    if tolerance is None:
        tolerance = max(LEAST_TOLERANCE, TOLERANCE * pattern.for_)
    return Lasted(host, state, pattern.for_, tolerance)


# --- predicate ------------------------------------------------------------------------------------

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
PathClaim = Annotated[
    Path,
    WrapValidator(lambda v, _: _path(v)),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1}),
]
LastedClaim = Annotated[
    Lasted,
    WrapValidator(lambda v, _, info: _lasted(v, info)),
    WithJsonSchema(
        {
            "description": "a host and its state, for how long, and the tolerance",
            "type": "object",
            "required": ["for"],
        }
    ),
]


class Predicate(Model):
    """One or more subjects, all of which must hold."""

    sockets: Annotated[dict[HostName, SocketsClaim], SOME] | None = None
    process: Annotated[dict[ProcessName, ProcessClaim], SOME] | None = None
    counters: Annotated[dict[HostName, Annotated[dict[Text, Count], SOME]], SOME] | None = None
    segments: SegmentsPattern | None = None
    lasted: LastedClaim | None = None
    path: Annotated[dict[HostName, PathClaim], SOME] | None = None

    @property
    def traced(self) -> bool:
        """Whether it is about single transitions, of which there can be thousands."""
        return self.lasted is not None or self.path is not None

    def judge(self, history: History) -> list[Finding]:
        """A finding for each subject, from what is known at the end of `history`."""
        found = [s.judge(host, history) for host, s in (self.sockets or {}).items()]
        found += [p.judge(name, history) for name, p in (self.process or {}).items()]
        for host, counters in (self.counters or {}).items():
            found += [judge_counter(host, c, w, history) for c, w in counters.items()]
        found += [self.segments.judge(history)] if self.segments else []
        found += [self.lasted.judge(history)] if self.lasted else []
        found += [path.judge(host, history) for host, path in (self.path or {}).items()]
        return found

    @property
    def hosts(self) -> set[str]:
        """The hosts whose sockets, counters or connections it is about."""
        lasted = {self.lasted.host} if self.lasted else set()
        return {*(self.sockets or {}), *(self.counters or {}), *(self.path or {}), *lasted}


def parse_predicate(value: Any, handler: Any, info: ValidationInfo) -> Predicate:
    """A predicate from plain data."""
    if isinstance(value, Predicate):
        return value
    if isinstance(value, dict):
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
