"""`path: {HOST: [STATE...]}`, `lasted: {HOST: STATE, for: DURATION}`: states of connections."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, WrapValidator

from labctl.ground.data import dataclass
from labctl.ground.plain import shown
from labctl.language.facts import Facts, seconds_range
from labctl.language.predicates.finding import Claimed, Finding, Result
from labctl.language.values import Duration, Model, known, names, problem, shaped
from labctl.probes.sockets import State
from labctl.record.history import History
from labctl.record.looks import SAMPLING, reachable
from labctl.record.timelines import CLOSED, Timeline, missable, timelines, unseen
from labctl.record.traced import traced_beside

SHOWN = 3
"""How many connections a finding shows."""


@dataclass(frozen=True)
class _Judged:
    """The result of a claim for one connection, in words, and for how many seconds it held."""

    result: Result
    words: str
    timeline: Timeline
    seconds: tuple[float, float] | None = None


def _some_connection(
    claimed: Claimed,
    history: History,
    judge: Callable[[Timeline], _Judged],
    brief: bool,
) -> Finding:
    """The finding for a claim that holds if some connection of a host confirms it. `brief`: a
    connection may be enough that is too short for any look, and gone by the end."""
    host = claimed.subject
    judged = [judge(timeline) for timeline in timelines(history, host)]
    walks = [each.timeline for each in judged]
    results: list[Result] = [each.result for each in judged]
    if brief and "pass" not in results and unseen(history, host, walks):
        results.append("unknown")
    result: Result = next((r for r in ("pass", "unknown") if r in results), "fail")
    deciding = [each for each in judged if each.result == result]
    lines_of = [each.timeline for each in deciding]
    counts = Counter(each.words for each in deciding)
    seen = [f"{n} x {words}" if n > 1 else words for words, n in counts.most_common(SHOWN)]
    seen += [f"{len(counts) - SHOWN} others"] if len(counts) > SHOWN else []
    actual = "; ".join(seen) or "no connection"
    if result == "unknown" and not (deciding and all(t.complete for t in lines_of)):
        trouble = history.trouble.get((host, "trace"))
        told_why = [t.gap for t in lines_of if t.gap] + ([trouble.text] if trouble else [])
        actual += ", as far as was seen: " + (told_why or ["this was not traced"])[0]
    if result != "pass" and (others := traced_beside(history, host).others):
        actual += f"; left out: {others} that neither ss nor a capture here saw"
    lines = [line for timeline in lines_of[:SHOWN] for line in _lines(timeline)]
    return Finding(result, claimed, actual, tuple(lines), _measured(deciding))


def _measured(deciding: Sequence[_Judged]) -> Facts:
    """Facts about those connections: their states, if all are alike, and the bounds of how long
    they lasted."""
    walks = {each.timeline.walk for each in deciding}
    spans = [each.seconds for each in deciding if each.seconds]
    low, high = min((a for a, _ in spans), default=0.0), max((b for _, b in spans), default=0.0)
    return Facts(
        states=walks.pop() if len(walks) == 1 else (),
        lasted_seconds=seconds_range(low, high) if spans else None,
        connections=tuple(each.timeline.ends for each in deciding[:SHOWN]),
    )


def _lines(timeline: Timeline) -> Iterator[str]:
    yield timeline.name
    for span in timeline.spans:
        yield f"  {span.state} from {span.begin} s to {f'{span.end} s' if span.end else 'the end'}"


@dataclass(frozen=True)
class Path:
    """The states that a connection goes through, from the first of them on, and whether nothing is
    left of it then."""

    states: tuple[State, ...]
    closed: bool

    def judge(self, host: str, history: History) -> Finding:
        """The finding for one host: that some connection of it went through exactly these."""
        claimed = Claimed(host, str(self), (host,), Facts(states=self._walk))
        return _some_connection(claimed, history, self._judge, self.closed)

    def _judge(self, timeline: Timeline) -> _Judged:
        result = self._result(timeline)
        return _Judged(result, ", ".join(timeline.walk), timeline)

    def _result(self, timeline: Timeline) -> Result:
        seen = list(timeline.states)
        while seen and seen[0] not in self.states and reachable(seen[0], self.states[0]):
            del seen[0]
        ends_so = self.closed == timeline.closed or timeline.gap
        if not ends_so or not _in_order(seen, self.states):
            return "fail"
        exact = tuple(seen) == self.states
        if timeline.complete:
            return "pass" if exact else "fail"
        steps = pairwise([*seen, None] if self.closed else seen)
        certain = exact and not timeline.gap and not any(missable(a, b) for a, b in steps if a)
        return "pass" if certain else "unknown"

    @property
    def _walk(self) -> tuple[str, ...]:
        return (*self.states, *([CLOSED] if self.closed else []))

    def __str__(self) -> str:
        return ", ".join(self._walk)


def parse_state(value: Any) -> State:
    """A state in any usual spelling."""
    try:
        return State.parse(str(value))
    except ValueError as exc:
        raise problem(str(exc)) from exc


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
    by default a tenth of it, and half a second at least."""

    host: str
    state: State
    duration: float
    tolerance: float

    def judge(self, history: History) -> Finding:
        """The finding: that some connection of the host was in that state for so long."""
        low, high = self.duration - self.tolerance, self.duration + self.tolerance

        def judge(timeline: Timeline) -> _Judged:
            span = next((s for s in timeline.spans if s.state is self.state), None)
            if span is None:
                missed = not timeline.complete and low <= SAMPLING
                words = f"never in {self.state}"
                return _Judged("unknown" if missed else "fail", words, timeline)
            now = history.now - history.apart([self.host, *history.clocks])
            shortest, longest = seconds = span.lasted(now)
            decided = shortest >= low and longest <= high and not timeline.gap
            result: Result = "pass" if decided else "unknown"
            if shortest > high or longest < low:
                result = "fail"
            return _Judged(result, _seconds(shortest, longest), timeline, seconds)

        wanted = Facts(states=(self.state,), lasted_seconds=seconds_range(max(0.0, low), high))
        claimed = Claimed(self.host, str(self), (self.host,), wanted)
        return _some_connection(claimed, history, judge, low <= SAMPLING)

    def __str__(self) -> str:
        return f"{self.state} for {self.duration:g} s, give or take {self.tolerance:g} s"


def _seconds(shortest: float, longest: float) -> str:
    if longest == math.inf:
        return f"{shortest:.3f} s so far"
    if longest - shortest < 1e-9:
        return f"{shortest:.6f} s"
    return f"{shortest:.3f}..{longest:.3f} s"


class LastedPattern(Model):
    """The keys beside the host in `lasted`."""

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


PathClaim = Annotated[
    Path,
    WrapValidator(lambda v, _: _path(v)),
    shaped("PathClaim"),
]

LastedClaim = Annotated[
    Lasted,
    WrapValidator(lambda v, _, info: _lasted(v, info)),
    shaped("LastedClaim"),
]
