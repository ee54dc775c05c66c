"""A scenario's skeleton from a record: its hosts, calls, losses and signals, in their order, with
waits for the states that were seen. It is a beginning, for a person to go on with."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from labctl.ground.data import dataclass
from labctl.ground.errors import UsageError
from labctl.ground.plain import plain
from labctl.judge.causes.cause import Scene
from labctl.judge.causes.descriptors import Descriptor
from labctl.judge.result import RunResult
from labctl.language.scenario import Scenario
from labctl.probes.observations import Segment, begins
from labctl.probes.sockets import Ends, State
from labctl.record.events import CallEvent, InjectEvent, ProcessEvent, StepEvent
from labctl.record.history import History
from labctl.record.moments import Moment
from labctl.record.timelines import CLOCKS
from labctl.reports.choosing import PAUSE, Act, bursts, call_step, chosen, had, unblocked, wait_for

MOST = 200
"""So many connections a person can read about."""
BY_TIMER = {State.FIN_WAIT_2: 1.0, State.TIME_WAIT: 60.0}
"""States that a timer ends, and the seconds that it takes at least. One that may be over by then
can be waited for, as no step ended it (include/net/tcp.h: TCP_TIMEWAIT_LEN)."""
TRANSIENT = 0.05
"""Seconds that a state lasts, at least, if a step waits for it."""
ASYNC = (
    "await", "wait", "sleep", "fork", "exit", "return", "get", "exec", "has", "repeat"
)  # fmt: skip
"""Calls that become something else, or nothing."""
SAID = {"disconnect": "connect none", "send": "send 1 bytes"}
"""Calls by other words: a failed write, too, of which nobody saw the size."""
ENDS_BY_STEP = ("kill", "restart", "stop", "signal")
KEPT = ("sysctl", "exec", "cut", "join", "pause", "resume")
"""Steps that neither a call nor a segment shows: the record's scenario has them."""


@dataclass(frozen=True)
class _Guess:
    """A connection, and the host and the name of the process at each of its ends."""

    segments: Sequence[Segment]
    client: tuple[str, str]
    server: tuple[str, str]


def skeleton(run: RunResult, scenario: Scenario | None) -> str:
    """The text of a scenario that does what was seen in a run. `scenario` is the record's own, if
    it has one: what it says of its hosts is kept. Raises UsageError if nothing ran, or if
    the run has more than MOST connections."""
    count = len({frozenset(ends) for _, ends in run.history.first_captured()})
    if count > MOST:
        raise UsageError(f"{run.folder}: {count:,} connections; a scenario has {MOST} at most",
                         "watch or import fewer: --port, --host")  # fmt: skip
    made = _Skeleton(run.history, scenario)
    acts = chosen(unblocked(made.acts()))
    if not acts:
        if count:
            raise UsageError(f"{run.folder}: no call, and of no connection the beginning",
                             "watch from before they connect, or with --calls")  # fmt: skip
        reason = f": {run.reason}" if run.reason else ""
        raise UsageError(f"{run.folder}: nothing ran there{reason}",
                         "name a run that did something")  # fmt: skip
    lines = [
        f"title: {json.dumps(plain('Again: ' + run.title))}",
        *made.networks(),
        "hosts:",
        *made.hosts(),
        "steps:",
        *(f"  - {line}" for line in made.steps(acts)),
    ]
    return "\n".join(lines) + "\n"


class _Skeleton:
    def __init__(self, history: History, scenario: Scenario | None) -> None:
        self._history, self._scenario = history, scenario
        self._scene = Scene(history)
        self._sockets: dict[tuple[int, int | None], Descriptor] = {}
        self._names: dict[str, str] = {}
        if history.lab:
            self._names = {a: n for n, a in history.lab.addresses.items()}

    # --- Hosts ------------------------------------------------------------------------------------

    def networks(self) -> Iterator[str]:
        """The line of `networks`, if there are several."""
        if members := self._history.networks.members:
            yield f"networks: {json.dumps(members)}"

    def hosts(self) -> Iterator[str]:
        """The lines of `hosts`."""
        processes: dict[str, list[str]] = defaultdict(list)
        for event in self._history.events.of(ProcessEvent):
            if event.process not in processes[event.host]:
                processes[event.host].append(event.process)
        for (named, _), process in self._guessed.items():
            if process not in processes[named or ""]:
                processes[named or ""].append(process)
        for host in self._history.hosts:
            lines = [*self._body(host, processes[host])]
            yield f"  {host}:" if lines else f"  {host}: {{}}"
            yield from lines
        if len(self._history.hosts) == 1:  # a scenario has two at least
            yield "  other: {}" if "peer" in self._history.hosts else "  peer: {}"

    def _body(self, host: str, processes: Sequence[str]) -> Iterator[str]:
        routers = self._history.networks.routers
        known = self._scenario.hosts.get(host) if self._scenario else None
        if host in routers:
            yield f"    router: {routers[host]}"
        if known and known.sysctls:
            yield f"    sysctls: {json.dumps(dict(known.sysctls))}"
        count = sum(name.partition(".")[0] == host and not name.endswith(".v6")
                    for name in self._names.values())  # fmt: skip
        if count > 1 and host not in routers:
            yield f"    addresses: {count}"
        if processes:
            yield "    processes:"
        for name in processes:
            spec = self._scenario.processes.get(name) if self._scenario else None
            uid = f", uid: {spec.uid}" if spec and spec.uid is not None else ""
            yield f"      {name}: {{calls: await{uid}}}"

    # --- What was done ----------------------------------------------------------------------------

    def acts(self) -> list[Act]:
        """All that was done, each thing when it began."""
        return [
            *self._guess(),
            *self._lives(),
            *self._calls(),
            *self._children(),
            *self._data(),
            *self._faults(),
            *self._crafted(),
            *self._kept(),
        ]

    def _lives(self) -> Iterator[Act]:
        """Starts, and ends that no call explains."""
        over: set[str] = set()
        last: dict[str, CallEvent] = {}
        stopped = 0.0  # when the last step began that ends processes
        for event in self._history.events.of(CallEvent, StepEvent, ProcessEvent):
            if isinstance(event, CallEvent):
                last[event.process] = event
            elif isinstance(event, StepEvent) and event.verb in ENDS_BY_STEP:
                stopped = event.t if event.phase == "begin" else stopped
            if not isinstance(event, ProcessEvent) or event.start is not None:
                continue
            name, call = event.process, last.get(event.process)
            if event.phase == "start":
                over.discard(name)
                yield Act(event.t, f"start: {name}")
            elif name not in over:
                over.add(name)
                since = call.t if call else 0.0
                by_step = stopped if event.signal and stopped >= since else event.t
                t = max(since, min(by_step, self._first_end(event.host, since, event.t)))
                if event.phase == "gone":
                    yield Act(t, f"kill: {name}", name, event.t, last=True)
                elif event.signal:
                    yield Act(t, f"signal: {{{name}: {event.signal}}}", name, event.t, last=True)
                elif not (call and call.errno and call.fd is None):  # that ended it
                    yield Act(t, call_step(name, f"exit {event.exit or 0}"), name, t, last=True)

    def _first_end(self, host: str, since: float, until: float) -> float:
        """Just before a host's first FIN or RST between two moments, or the second of them."""
        for s in self._scene.segments:
            if s.sender == host and since <= s.time <= until and {"FIN", "RST"} & {*s.flags}:
                return s.time - CLOCKS
        return until

    def _calls(self) -> Iterator[Act]:
        """The calls of each process, as if one task had made them all."""
        begun: dict[tuple[str, int], CallEvent] = {}
        for event in self._history.events.of(CallEvent, ProcessEvent):
            if isinstance(event, ProcessEvent) and event.phase != "start":
                for key in [key for key in begun if key[0] == event.process]:
                    yield from self._act(begun.pop(key), event.t)
            if not isinstance(event, CallEvent):
                continue
            key = event.process, event.task
            if event.phase == "enter":
                begun[key] = event
            else:
                start = begun.pop(key, event)
                yield from self._act(event, event.t, start.t)
        for start in begun.values():
            yield from self._act(start, math.inf)

    def _children(self) -> Iterator[Act]:
        """What closed as a child ended that was seen with its program: no call did."""
        mains = {event.pid for event in self._history.events.of(ProcessEvent)}
        for ended in self._history.events.of(CallEvent, name="exit"):
            if ended.pid in mains or ended.phase != "done":
                continue
            for mine in self._scene.descriptors.all:
                if mine.process == ended.process and mine.closed == ended.t:
                    since = max(mine.made, ended.t - PAUSE)
                    t = self._first_end(ended.host, since, ended.t)
                    text = "close listener" if mine.listening < ended.t else "close"
                    step = call_step(mine.process, text)
                    yield Act(t, step, mine.process, t, does=text, mine=mine)

    def _act(self, call: CallEvent, done: float, t: float | None = None) -> Iterator[Act]:
        """A call that began at `t`, if the language has words for it."""
        mine = self._meant(call)
        if mine and call.name == "close" and call.phase == "done" and mine.closed > call.t:
            return  # another process has it open
        for made in had(call) if mine else ():
            step = call_step(call.process, self._named(made, call))
            yield Act(call.t, step, call.process, call.t, does=made, mine=mine)
        if text := self._again(call):
            ends = bool(call.errno) and "continue" not in text
            step, began = call_step(call.process, text), call.t if t is None else t
            yield Act(began, step, call.process, done, ends, text, mine)

    def _meant(self, call: CallEvent) -> Descriptor | None:
        """The socket that a call by descriptor acts on, also one that goes on still."""
        if call.fd is None or call.phase == "enter":
            return self._sockets.get((call.pid, call.fd)) if call.name != "accept" else None
        mine = self._scene.descriptors.of(call)
        number = call.result if call.name == "accept" else call.fd
        if mine and number is not None:
            self._sockets[call.pid, number] = mine
        return mine

    def _again(self, event: CallEvent) -> str:
        """A call in the language's own words; empty if it has none."""
        if event.name in ASYNC:
            return ""
        text = re.sub(r"\s*\|\|\s*continue$", "", event.call)
        goes_on = event.fd is not None or text != event.call
        text = SAID.get(event.name if event.name == "disconnect" else text, text)
        if event.fd is not None:
            text = self._named(text, event)
        return f"{text} || continue" if event.errno and goes_on else text

    def _named(self, text: str, event: CallEvent) -> str:
        mine = self._scene.descriptors.of(event)
        if event.name == "close" and mine and mine.listening < event.t:
            return "close listener"
        for address, name in self._names.items():
            end = re.escape(f"[{address}]" if ":" in address else address)
            text = re.sub(rf"(?<![0-9a-f.:]){end}(?=:)", name, text)
        return text

    def _data(self) -> Iterator[Act]:
        """What programs sent and read whose reads and writes nobody watched: the segments tell."""
        blind = {
            (event.process, event.host) for event in self._history.events.of(ProcessEvent)
            if event.watch == "calls"
        } | {(process, host) for (host, _), process in self._guessed.items()}  # fmt: skip
        for segments in self._scene.conversations:
            data = [s for s in segments if s.length and not s.retransmitted and not s.crafted]
            for burst in bursts(data):
                first, last = burst[0], burst[-1]
                octets = sum(s.length for s in burst)
                writer, mine = self._owner(first.sender, (first.source, first.target), first.time)
                if (writer, first.sender) in blind:
                    text = f"send {octets} bytes"
                    yield Act(first.time, call_step(writer, text), writer, last.time, does=text,
                              mine=mine)  # fmt: skip
                there = first.target, first.source
                reader, mine = self._owner(first.receiver, there, last.time)
                reads = (reader, first.receiver) in blind and not self._unread(first.receiver, last)
                if reads and last.arrived is not None:
                    t = max(last.arrived, self._made(first.receiver, there))
                    text = f"recv {octets}"
                    yield Act(t, call_step(reader, text), reader, t, does=text, mine=mine)

    def _owner(self, host: str | None, ends: Ends, t: float) -> tuple[str, Descriptor | None]:
        """The process whose connection that was, as its calls tell, empty if they don't; and its
        socket."""
        mine = self._scene.descriptor(host, ends, t + PAUSE) if host else None
        return (mine.process if mine else self._guessed.get((host, ends), "")), mine

    def _made(self, host: str | None, ends: Ends) -> float:
        """When a connection had come to its process."""
        mine = self._scene.descriptor(host, ends, math.inf) if host else None
        return mine.made if mine else 0.0

    def _aborted(self, host: str | None, ends: Ends, t: float) -> bool:
        """Whether a connection was closed after that with data unread, as its kernel says."""
        return any(
            (reset.host, reset.local, reset.remote) == (host, *ends) and reset.t > t
            for reset in self._scene.resets if reset.reason == "TCP_ABORT_ON_CLOSE"
        )  # fmt: skip

    def _unread(self, host: str | None, last: Segment) -> bool:
        """Whether data stayed in the socket that received it: a look shows it, or the RST does that
        its kernel sends as it closes (RFC 1122, section 4.2.2.13)."""
        ends, t = (last.target, last.source), last.arrived or 0.0
        looks = [  # a FIN counts as one byte (tcp_diag_get_info())
            s.recv_q - (s.state is State.CLOSE_WAIT) for at, s in self._scene.seen(host or "", ends)
            if at > t + TRANSIENT and s.state in (State.ESTAB, State.CLOSE_WAIT)
        ]  # fmt: skip
        segments = self._scene.conversation(host or "", ends, t)
        after = [s for s in segments if s.source == ends[0] and s.time > t]
        more = any(s.source == ends[1] and s.length and s.time > last.time for s in segments)
        said = not more and self._aborted(host, ends, t)
        return said or any(looks[-1:]) or any("RST" in s.flags for s in after[:1])

    @cached_property
    def _silent(self) -> list[_Guess]:
        """Connections of hosts of which no call and no process was told."""
        events = self._history.events
        told = {event.host for event in events.of(ProcessEvent)}
        told |= {call.host for call in events.of(CallEvent)}
        found = []
        for number, segments in enumerate(self._scene.conversations, 1):
            syn = segments[0]
            client, server = self._host(syn.source), self._host(syn.target)
            if syn.inside and syn.sender:
                client = server = syn.sender
            if begins(syn) and not syn.crafted and not {client, server} & told:
                port = syn.target.rpartition(":")[2]
                found.append(
                    _Guess(segments, (client, f"{client}_{number}"), (server, f"{server}_{port}"))
                )
        return found

    @cached_property
    def _guessed(self) -> dict[tuple[str | None, Ends], str]:
        """Processes that nobody told of, by the ends of their connections."""
        found: dict[tuple[str | None, Ends], str] = {}
        for each in self._silent:
            ends = each.segments[0].source, each.segments[0].target
            for (host, process), mine in ((each.server, ends[::-1]), (each.client, ends)):
                found[host, mine] = process
        return found

    def _guess(self) -> Iterator[Act]:
        """What programs did of which there are only segments: a server for each port, and a client
        for each connection, whose calls the SYNs, FINs and RSTs tell."""
        listening: set[str] = set()
        for each in self._silent:
            syn, (server, there), (_, here) = each.segments[0], each.server, each.client
            port, t = syn.target.rpartition(":")[2], syn.time - CLOCKS
            if there not in listening:
                listening.add(there)
                yield Act(t, f"start: {there}")
                for call in ("socket", "set SO_REUSEADDR", f"bind :{port}", "listen 20"):
                    yield Act(t, call_step(there, call), there, t)
            sides: dict[bool, list[Segment]] = {True: [], False: []}
            for segment in each.segments:
                sides[segment.source == syn.source].append(segment)
            asked, answered = sides[True], sides[False]
            done = answered[0].time if answered else math.inf
            yield Act(syn.time - CLOCKS / 2, f"start: {here}")
            for call in ("socket", f"connect {server}:{port}"):
                yield Act(syn.time - CLOCKS / 2, call_step(here, call), here, done)
            if any("SYN" not in s.flags for s in asked):
                yield Act(syn.time, call_step(there, "accept"), there, done)
            yield from self._guessed_end(here, asked)
            yield from self._guessed_end(there, answered)

    def _guessed_end(self, process: str, sent: Sequence[Segment]) -> Iterator[Act]:
        """How a process ended a connection, by the first FIN or RST that it sent."""
        first = next((s for s in sent if {"FIN", "RST"} & {*s.flags} and not s.crafted), None)
        if first is None:
            return
        t = first.time - CLOCKS  # the kernel tells of the state first
        unread = self._aborted(first.sender, (first.source, first.target), t - CLOCKS)
        if "FIN" not in first.flags and not unread:
            yield Act(t, call_step(process, "set SO_LINGER 1 0"), process, t)
        yield Act(t, call_step(process, "close"), process, t)

    def _faults(self) -> Iterator[Act]:
        """A drop for each row of lost segments that look alike."""
        last: tuple[str, float] | None = None
        counts: dict[tuple[str, float], int] = {}
        segments = [s for s in self._scene.segments if s.sender and not s.crafted]
        for segment in segments:
            if not segment.lost:
                continue
            done = self._scenario and self._scenario.steps and segment.dropped is None
            if done or segment.t is None or not segment.receiver:  # what cut the link is a step
                continue
            look = self._drop(segment)
            if last is None or last[0] != look:
                last = look, segment.t
            counts[last] = counts.get(last, 0) + 1
        for (look, t), count in counts.items():
            later = any(s.time > t and not s.lost and self._drop(s) == look for s in segments)
            some = f", count: {count}" if later else ""  # or all from then on
            yield Act(t - PAUSE / 100, f"drop: {{{look}{some}}}")

    @staticmethod
    def _drop(segment: Segment) -> str:
        words = [f"from: {segment.sender}", f"to: {segment.receiver}"]
        flags = [flag for flag in segment.flags if flag in ("SYN", "FIN", "RST")]
        if flags:
            words.append(f"flags: {' '.join(flags)}")
        elif segment.length:
            words.append("flags: data")
        else:
            words.append("flags: ACK, bare: true")
        return ", ".join(words)

    def _crafted(self) -> Iterator[Act]:
        for event in self._history.events.of(InjectEvent):
            if seen := event.observation:
                source, target = (self._host(end) for end in (seen.source, seen.target))
                numbers = f"seq: {event.seq}" + (
                    f", ack: {event.ack}" if "ACK" in seen.flags else ""
                )
                length = f", payload: {'x' * seen.length}" if seen.length else ""
                yield Act(
                    event.t, f"inject: {{from: {source}, to: {target}, "
                    f"flags: {' '.join(seen.flags)}, {numbers}{length}}}",
                )  # fmt: skip

    def _host(self, endpoint: str) -> str:
        address = endpoint.rpartition(":")[0].strip("[]")
        return self._history.owners.get(address, address)

    def _kept(self) -> Iterator[Act]:
        """The steps of the record's scenario that acted on hosts."""
        begun: dict[int, float] = {}
        for event in self._history.events.of(StepEvent):
            if not self._scenario or event.verb not in KEPT:
                continue
            if event.phase == "begin":
                begun[event.index] = event.t
            elif event.outcome == "done" and event.index < len(self._scenario.steps):
                step = self._scenario.steps[event.index]
                said = step.model_dump(mode="json", by_alias=True, exclude_unset=True)
                words = f"{event.verb}: {json.dumps(said[event.verb])}"
                yield Act(begun.get(event.index, event.t), words)

    # --- Steps ------------------------------------------------------------------------------------

    def steps(self, acts: Sequence[Act]) -> Iterator[str]:
        """The acts, each after what had happened before it."""
        busy: dict[str, Act] = {}
        shown: Mapping[str, tuple[str, ...]] = {}
        before = 0.0
        for act in acts:
            queued = act.of if act.step.startswith("call") else ""  # it does one after the other
            ready = {
                process: "exited" if call.last else "awaiting"
                for process, call in busy.items() if call.done <= act.t and process != queued
            }  # fmt: skip
            if ready and not act.step.startswith("drop"):
                yield f"wait: {{process: {json.dumps(ready)}}}"
                for process in ready:
                    del busy[process]
            states, since = self._states(act.t)
            if states and states != shown:
                shown = states
                yield wait_for(states, act.t - before)
            quiet = act.t - max(before, since)
            if quiet >= PAUSE:
                yield f"sleep: {max(1, round(1000 * quiet))}ms"
            yield act.step
            before = max(before, act.t)
            if act.of:
                busy[act.of] = act
        states, since = self._states(self._history.now)
        if states and states != shown:
            yield wait_for(states, self._history.now - before)
        if (rest := self._history.now - max(before, since)) >= PAUSE:
            yield f"sleep: {round(1000 * rest)}ms"

    def _states(self, t: float) -> tuple[dict[str, tuple[str, ...]], float]:
        """The states of each host's connections at that time, and since when they are so. What
        lasts for a moment only is left out. So is LISTEN: the call that makes it is a step."""
        found: dict[str, list[str]] = {}
        since, moving = 0.0, set[str]()
        for host in self._history.hosts:
            for timeline in self._scene.timelines(host):
                for span in timeline.spans:
                    begin, end = span.begin, span.end or Moment(math.inf, math.inf)
                    timer = t - begin.latest >= BY_TIMER.get(span.state, math.inf)
                    over = end.earliest if timer else end.latest
                    unsure = begin.earliest < t <= begin.latest or end.earliest <= t < over
                    if begin.latest < t < end.earliest and end.at - begin.at >= TRANSIENT:
                        found.setdefault(host, []).append(span.state)
                        since = max(since, begin.at)
                    elif unsure or begin.latest < t < end.earliest:
                        moving.add(host)
                    elif over <= t:
                        found.setdefault(host, [])
                        since = max(since, end.at)
        told = {h: tuple(sorted(each)) for h, each in found.items() if h not in moving}
        return told, since
