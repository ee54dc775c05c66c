"""The ladder: one list of what happened on all sides, in order, for every picture.

`rows` is pure: from a History to a Ladder. A picture shows nothing that is not in the history. It
leaves out what changes nothing: looks that saw nothing new, and each of many equal segments. For a
huge run, `drawn.py` says what else it leaves out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from statistics import median

from labctl.ground import errnos
from labctl.ground.plain import plain
from labctl.judge.accounts import summed_up
from labctl.judge.check import Verdict
from labctl.judge.result import RunResult
from labctl.probes.observations import Segment
from labctl.probes.sockets import (
    Ends,
    SsParseError,
    State,
    accept_queue,
    queue_is_full,
)
from labctl.record.events import (
    CallEvent,
    LabEvent,
    OutputEvent,
    ProcessEvent,
    Shown,
    SocketsEvent,
    StepEvent,
    TroubleEvent,
)
from labctl.record.history import WATCH, History
from labctl.record.holders import described
from labctl.record.listeners import listeners
from labctl.record.log import Log
from labctl.record.moments import Moment
from labctl.record.timelines import Timeline, timelines
from labctl.reports.drawn import Drawn, choose, cut, happened, lines
from labctl.reports.proofs import marks
from labctl.reports.rows import (
    UNKNOWN,
    Arrow,
    Bar,
    Call,
    Gap,
    Judged,
    Ladder,
    Left,
    Life,
    Look,
    Note,
    Return,
    Row,
    Step,
    claim_words,
    last_done,
    port,
)

FOLD_SECONDS = 0.25
FOLD_TIMES = 10
"""A gap is folded if it is longer than both: so many seconds, and so many times the median gap."""
BLOCKED = 0.05
BLOCKED_FOR_SEGMENTS = 0.002
"""A call is shown as waiting if it takes longer than so many seconds: the second number counts if
segments came or went meanwhile."""
LIKE_SEGMENTS = 4
"""How many similar segments in a row become one arrow."""
OUTPUT_SHOWN = 200
CLAIMS = ("wait", "expect")
"""The verbs whose steps are claims."""
FULL = 99
"""More than the bits of any number."""


ORDER = (Left, Life, Step, Call, Arrow, Bar, Return, Note, Look, Judged)
"""The order of things at one moment: causes before effects."""


def ladder_of(run: RunResult) -> Ladder:
    """What happened in a run, as one picture."""
    hosts = run.history.networks.in_order(run.hosts)
    found = rows(run.history, hosts, run.verdicts, run.others)
    return replace(found, marks=marks(run.causes, found))


def rows(
    history: History,
    hosts: Sequence[str],
    verdicts: Sequence[Verdict] = (),
    others: Collection[int] = (),
) -> Ladder:
    """What happened, as rows for the hosts in this order. Verdicts take the place of the waits and
    expectations that they judge. `others` are the steps, by number, of other variants only."""
    drawn = choose(history, verdicts)
    chosen = drawn.chosen
    segments = history.segments(chosen, whole=True)
    told = [
        (host, timeline)
        for host in dict.fromkeys([*history.hosts, *history.sockets])
        for timeline in (*timelines(history, host, chosen), *listeners(history, host, chosen))
    ]
    legs = [leg for segment in segments for leg in history.legs(segment)]
    connections = _connections(segments, (timeline for _, timeline in told))
    bars = _bars(told, connections)
    # A look has the time of its beginning, and may see things a little later: its words follow.
    shown = {bar.seen: bar.t for bar in bars if bar.seen is not None and bar.t > bar.seen}
    found: list[Row] = [
        *_lives(history.events),
        *_calls(history.events, legs, drawn),
        *bars,
        *_steps(history.events, verdicts, others),
        *_notes(history, shown),
        *_troubles(history.events, hosts),
        *_queues(history.events),
        *_judged(history.events, verdicts, shown),
        *([drawn.row] if drawn.row else []),
    ]
    moments = sorted(row.t for row in found)
    found += _collapse([_arrow(s, connections) for s in legs], moments)
    rank = {kind: number for number, kind in enumerate(ORDER)}
    found.sort(key=lambda row: (row.t, rank[type(row)]))
    ordered = tuple(cut(list(_fold(found, drawn))))
    named = {number: ends for ends, number in reversed(connections.items())}
    ends = tuple(named[number] for number in sorted(named))
    return Ladder(tuple(hosts), ordered, ends, clocks=_clocks(history))


def _clocks(history: History) -> str:
    """How far the clocks of several machines may be apart, in a line."""
    machines: dict[str, list[str]] = {}
    for host, clock in history.clocks.items():
        machines.setdefault(clock.machine, []).append(host)
    each = ", ".join(f"{machine} ({' '.join(hosts)})" for machine, hosts in machines.items())
    apart = f"{history.apart():.6f} s" if machines else ""
    return plain(f"clocks of {each}: order is known to within {apart}") if machines else ""


def _connections(segments: Iterable[Segment], told: Iterable[Timeline]) -> dict[Ends, int]:
    """A number for each connection, from 1 on, by its ends in the order in which they were seen;
    the same for those that a NAT gave it."""
    found: dict[Ends, int] = {}
    names: dict[Ends, dict[Ends, None]] = defaultdict(dict)
    for s in segments:
        for name in s.way.names if s.way else ():
            names[s.source, s.target][name] = names[s.target, s.source][name[::-1]] = None
    both = sorted(
        [(s.time, (s.source, s.target)) for s in segments]
        + [(t.spans[0].begin.at, (t.local, t.remote)) for t in told if t.remote],
        key=lambda pair: pair[0],
    )
    number = 0
    for _, ends in both:
        if not _number(found, ends):
            number += 1
            found |= dict.fromkeys((ends, *names.get(ends, ())), number)
    return found


def _number(connections: dict[Ends, int], ends: Ends) -> int:
    return connections.get(ends) or connections.get(ends[::-1], 0)


# --- Segments -------------------------------------------------------------------------------------


def _arrow(segment: Segment, connections: dict[Ends, int]) -> Arrow:
    words = {
        "lost": segment.lost,
        "under way": segment.pending,
        "injected": segment.injected,
        "retransmitted": segment.retransmitted,
        "duplicate ACK": segment.duplicate_ack,
        "zero window": segment.zero_window,
        "window probe": segment.probe,
        "keepalive": segment.keepalive,
        "out of order": segment.overtaken,
    }
    return Arrow(
        segment.time,
        segment.arrived,
        segment.sender,
        segment.receiver,
        _number(connections, (segment.source, segment.target)),
        segment.flags,
        segment.numbers,
        segment.length,
        tuple(word for word, present in words.items() if present),
        ports=f"{port(segment.source)} → {port(segment.target)}"
        if segment.sender is not None and segment.sender == segment.receiver
        else "",
    )


def _plain(arrow: Arrow) -> bool:
    return not arrow.marks and not {"SYN", "FIN", "RST"} & {*arrow.flags}


def _collapse(arrows: Sequence[Arrow], others: Sequence[float]) -> Iterator[Arrow]:
    """Replaces a series of plain segments of one connection by one arrow for each direction's data
    and acknowledgements. `others` are the moments of other things, which end a series."""
    run: list[Arrow] = []
    for arrow in arrows:
        last = run[-1] if run else arrow
        joins = (
            _plain(arrow)
            and last.connection == arrow.connection
            and arrow.t - last.t < FOLD_SECONDS
            and bisect_left(others, last.t) == bisect_left(others, arrow.t)
        )
        if not joins:
            yield from _join(run)
            run = []
        if _plain(arrow):
            run.append(arrow)
        else:
            yield arrow
    yield from _join(run)


def _join(run: Sequence[Arrow]) -> Iterator[Arrow]:
    alike: dict[tuple[str | None, str, bool], list[Arrow]] = defaultdict(list)
    for arrow in run:
        alike[arrow.sender, arrow.ports, arrow.octets > 0].append(arrow)
    for (*_, data), group in alike.items():
        if len(group) < LIKE_SEGMENTS:
            yield from group
            continue
        octets = sum(arrow.octets for arrow in group)
        words = f"{len(group)} segments, {octets} bytes"
        yield replace(
            group[0],
            arrived=group[-1].arrived,
            flags=(),
            numbers=words if data else f"{len(group)} ACKs, the last {group[-1].numbers}",
            octets=octets,
            count=len(group),
        )


# --- Sockets --------------------------------------------------------------------------------------


def _bars(told: Iterable[tuple[str, Timeline]], connections: dict[Ends, int]) -> list[Bar]:
    """The states of each socket, and where it ends."""
    found = []
    for host, timeline in told:
        ends = timeline.local, timeline.remote
        number = _number(connections, ends) if timeline.remote else 0
        turns: list[tuple[str, Moment]] = []
        for span in timeline.spans:
            turns.append((span.state if span.certain else UNKNOWN, span.begin))
            if timeline.inferred and span.vague is not None:
                since = max(span.begin.at, span.vague)
                turns.append((UNKNOWN, Moment(since, since, since)))
        if last := timeline.spans[-1].end:
            turns.append((UNKNOWN if timeline.lost_sight else "", last))
        for (before, _), (state, moment) in zip([("", None), *turns], turns, strict=False):
            if state == before == UNKNOWN:
                continue
            exact = moment.guess is None and moment.seen is None
            by_syn = moment.seen is None and not exact and state == State.SYN_RECV
            found.append(
                Bar(moment.at, None, host, ends, number, state, exact, moment.seen, by_syn,
                    timeline.inferred)
            )  # fmt: skip
    found.sort(key=lambda bar: bar.t)
    following: dict[tuple[str, Ends], float] = {}
    for index in reversed(range(len(found))):
        bar = found[index]
        found[index] = replace(bar, until=following.get((bar.host, bar.ends)))
        following[bar.host, bar.ends] = bar.t
    return found


# --- Processes ------------------------------------------------------------------------------------


def _calls(events: Log, segments: Iterable[Segment], drawn: Drawn) -> Iterator[Call | Return]:
    prefix = _prefixes(events)
    traffic: dict[str | None, list[float]] = defaultdict(list)
    for s in segments:
        traffic[s.sender].append(s.time)
        traffic[s.receiver].append(s.time if s.arrived is None else s.arrived)
    for times in traffic.values():
        times.sort()
    entered: dict[tuple[str, int], CallEvent] = {}
    for event in events.of(CallEvent, ProcessEvent):
        if isinstance(event, ProcessEvent) and event.phase != "start":
            for key in [k for k in entered if k[0] == event.process]:
                yield _call(entered.pop(key), event.t, "", False, prefix)
        if not isinstance(event, CallEvent):
            continue
        key = event.process, event.task
        if event.phase == "enter":
            entered[key] = event
            continue
        start = entered.pop(key, event)
        call = _call(start, event.t, _result(event), event.errno is not None, prefix)
        passed = traffic[event.host], drawn.passed.get(event.host, ())
        crossed = any(happened(moments, start.t, event.t) for moments in passed)
        waits = event.t - start.t > (BLOCKED_FOR_SEGMENTS if crossed else BLOCKED)
        call = replace(call, waits=waits)
        yield call
        if call.waits:
            yield Return(event.t, call)
    for start in entered.values():
        yield _call(start, None, "", False, prefix)


def _call(
    start: CallEvent, until: float | None, result: str, failed: bool, prefix: dict[str, str]
) -> Call:
    text = plain(prefix.get(start.process, "") + start.call)
    return Call(start.t, until, start.host, text, result, failed, waits=not result)


def _result(event: CallEvent) -> str:
    if event.errno:
        return errnos.describe(event.errno)
    if event.eof:
        return "end of data"
    if event.name == "has":
        return " -> ".join(filter(None, (event.local, event.peer))) or "not bound"
    if event.name == "accept" and event.peer:
        return f"from {event.peer}"
    return event.value or ("ok" if event.result is None else str(event.result))


def _prefixes(events: Log) -> dict[str, str]:
    """`old: ` before what a process does, if its host has several."""
    hosts: dict[str, set[str]] = defaultdict(set)
    for event in events.of(ProcessEvent):
        hosts[event.host].add(event.process)
    return {p: f"{p}: " for host, names in hosts.items() for p in names if names != {host}}


def _lives(events: Log) -> Iterator[Life]:
    prefix = _prefixes(events)
    watched = any(event.backend == WATCH for event in islice(events.of(LabEvent), 1))
    running: set[str] = set()
    for event in events.of(ProcessEvent):
        if event.start is not None:
            continue
        if event.phase == "start":
            running.add(event.process)
            text = "watched from now on" if watched else "starts"
        elif event.process not in running:
            continue  # now what it left is gone, too
        else:
            running.discard(event.process)
            text = f"killed by SIG{event.signal}" if event.signal else f"exits with {event.exit}"
        name = prefix.get(event.process, "process: ").replace(":", "")
        yield Life(event.t, event.host, plain(name + text), event.phase != "start")


# --- Steps, looks and notes -----------------------------------------------------------------------


def _steps(events: Log, verdicts: Sequence[Verdict], others: Collection[int]) -> Iterator[Step]:
    judged = {round(verdict.at, 3) for verdict in verdicts}
    begun: dict[int, StepEvent] = {}
    for event in events.of(StepEvent):
        if event.index in others:
            continue
        if event.phase == "begin":
            begun[event.index] = event
            continue
        start = begun.pop(event.index, event)
        claims = event.verb in CLAIMS
        if claims and round(event.t, 3) in judged:
            continue
        yield _step(event.t if claims else start.t, event)
    for event in begun.values():  # interrupted
        yield _step(event.t, event)


def _step(t: float, event: StepEvent) -> Step:
    outcome = event.outcome or "interrupted"
    label = event.label and plain(event.label)
    return Step(t, plain(event.text), outcome, label, plain(event.why))


def _judged(
    events: Log, verdicts: Sequence[Verdict], shown: Mapping[float, float]
) -> Iterator[Judged]:
    # A verdict's time is rounded; its step's is not.
    exact = {round(e.t, 3): e.t for e in events.of(StepEvent) if e.phase == "end"}
    for verdict, last in last_done(verdicts):
        t = exact.get(verdict.at, verdict.at)
        processes = tuple(plain(summed_up(account)) for account in last)  # output is there
        yield Judged(shown.get(t, t), verdict, claim_words(verdict), processes)


def _notes(history: History, shown: Mapping[float, float]) -> Iterator[Note | Look]:
    prefix = _prefixes(history.events)
    for event in history.events.of(OutputEvent, SocketsEvent):
        if isinstance(event, OutputEvent) and event.text.strip():
            words = " ".join(event.text.split())[:OUTPUT_SHOWN]
            yield Note(event.t, event.host, plain(f'{prefix.get(event.process, "")}"{words}"'),
                       False)  # fmt: skip
        elif isinstance(event, SocketsEvent) and event.caption:
            t = shown.get(event.t, event.t)
            yield Look(t, event.host, plain(event.caption), _look_lines(history, event))


def _troubles(events: Log, hosts: Sequence[str]) -> Iterator[Note]:
    """What could not be seen, each thing once: most of it is reported for each host, and again and
    again."""
    told: dict[tuple[str, str], list[TroubleEvent]] = defaultdict(list)
    for event in events.of(TroubleEvent):
        told[event.probe, event.text].append(event)
    for (probe, words), found in told.items():
        first, where = found[0], dict.fromkeys(event.host for event in found)
        on = f" on {', '.join(where)}" if 1 < len(where) < len(hosts) else ""
        yield Note(first.t, first.host, plain(f"{probe}{on}: {words}"), True)


def _queues(events: Log) -> Iterator[Note]:
    """The accept queues of listeners: a note each time that one holds twice as many as in the last,
    or is full; and when it is empty after it was full."""
    told: dict[tuple[str, str], int] = {}
    shown: dict[str, Shown] = defaultdict(lambda: Shown(lambda socket: socket.is_listener))
    for event in events.of(SocketsEvent):
        try:
            shown[event.host].follow(event)
        except SsParseError:
            continue
        listeners = list(shown[event.host].sockets(event.t))
        for key in told.keys() - {(event.host, str(s.local)) for s in listeners}:
            if key[0] == event.host:
                del told[key]
        for socket in listeners:
            key, full = (event.host, str(socket.local)), queue_is_full(socket)
            level, before = FULL if full else socket.recv_q.bit_length(), told.get(key, 0)
            if level > before or (before == FULL and not level):
                told[key] = level
                words = f"accept queue of {socket.ends[0]}: {accept_queue(socket)}"
                yield Note(event.t, event.host, words, full)


def _look_lines(history: History, look: SocketsEvent) -> tuple[str, ...]:
    try:
        told = [plain(described(history, look, socket)) for socket in look.sockets]
        return lines(told) or ("no sockets",)
    except SsParseError as exc:
        return (str(exc),)


# --- Time -----------------------------------------------------------------------------------------


def _moments(row: Row) -> list[float]:
    if isinstance(row, Arrow) and row.arrived is not None:
        return [row.t, row.arrived]
    return [row.t]


def _fold(found: Sequence[Row], drawn: Drawn) -> Iterator[Row]:
    """The rows, with a Gap wherever nothing happens for a long time."""
    times = sorted({t for row in found for t in _moments(row)})
    gaps = [b - a for a, b in pairwise(times)]
    limit = max(FOLD_SECONDS, FOLD_TIMES * median(gaps)) if gaps else FOLD_SECONDS
    folds = [Gap(a, b, drawn.quiet(a, b)) for a, b in pairwise(times) if b - a > limit]
    position = 0
    for row in found:
        while position < len(folds) and folds[position].until <= row.t:
            yield folds[position]
            position += 1
        yield row
    yield from folds[position:]
