"""A lab in use: a backend's hosts and processes, with everything they report turned into events.

Threads: one reader a channel does nothing but put messages on a queue; everything else happens in
the thread that calls Lab, which takes them off (`pump`) and so orders and records all events.
"""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from labctl.backends import (
    USUAL_REST,
    Backend,
    Channel,
    HostLink,
    Lack,
    Message,
    MissingHere,
    address_names,
    hosts_text,
    wire,
)
from labctl.backends.wire import NoMessage
from labctl.errors import LabError, Refused, located
from labctl.ground import errnos
from labctl.ground.crash import netted
from labctl.ground.limits import explained
from labctl.judge.check import held_at
from labctl.lab import messages
from labctl.lab.faults import MENDS, tallied
from labctl.lab.messages import fitting
from labctl.language.predicates import Predicate
from labctl.language.scenario import Scenario
from labctl.language.steps import Outcome
from labctl.language.values import Within
from labctl.record.events import (
    AddressEvent,
    CallEvent,
    CountersEvent,
    Event,
    ExecEvent,
    LabEvent,
    ProcessEvent,
    TroubleEvent,
)
from labctl.record.history import History

stopping = threading.Event()
"""Set when a signal asked to stop. The exception that it raised may be lost, where Python can raise
none (in a finalizer): so `pump` asks again, every HEARTBEAT seconds or as often as agents poll."""

HEARTBEAT = 1.0
ANSWER_DEADLINE = 20.0
EXEC_DEADLINE = 600.0
COUNTER_PERIOD = 0.03
AGENT_REST = 2
"""By how much longer than it works each agent rests, times the number of hosts: so that together
they take half a core at most."""
NO_MESSAGE = "said what is no message, or something in the lab wrote into its stream"
TRACER = "the tracer"
"""What it is called among the hosts' agents; no host has such a name."""
FORBIDDEN = {
    "EACCES": "a security module (SELinux, AppArmor) may forbid it, see its audit log",
    "EROFS": "the engine lets no container set any: take another one",
}
"""What helps where no value of a sysctl can be set."""
VALUES = "ip-sysctl.rst tells what it takes"
SETTLING = 0.25
"""What "now" means to an expectation: an acknowledgement may be delayed by 200 ms (TCP_DELACK_MAX
in include/net/tcp.h; RFC 9293, section 3.8.6.3 allows 500), and a state may hang on it."""


@dataclass(frozen=True)
class _Source:
    """Where a message comes from: a host's agent, or one start of a process, from 1 on."""

    host: str
    process: str | None
    channel: Channel
    start: int = 0

    def __str__(self) -> str:
        if self.process is not None:
            return f"process {self.process}"
        return TRACER if self.host == TRACER else f"the agent of host {self.host}"


_Said = Message | Exception | None
"""A message; what broke its channel; or None for the channel's end."""


class Lab:
    """Used in a `with`: brings the hosts up and takes everything down.

    `record` is called with every event, in order, after the history has taken it in. Methods raise
    LabError where the lab itself fails.
    """

    def __init__(
        self,
        scenario: Scenario,
        backend: Backend,
        history: History,
        record: Callable[[Event], None],
        record_packets: Callable[[str, bytes], None],
    ) -> None:
        self.scenario = scenario
        self.history = history
        self._backend = backend
        self._record = record
        self._record_packets = record_packets
        self._processes = scenario.processes
        self._starts = [process for step in scenario.steps for process in step.starts]
        self._inbox: queue.SimpleQueue[tuple[_Source, Message | Exception | None]] = (
            queue.SimpleQueue()
        )
        self._links: dict[str, HostLink] = {}
        self._agents: dict[str, Channel] = {}
        self._owners: dict[str, str] = {}
        self._traced: Message = {}  # the tracer's first word; why there is none is its `reason`
        self._running: dict[str, Channel] = {}  # the latest start of each process
        self._left: dict[str, list[Channel]] = {}  # earlier ones of which something lives on
        self._counts: Counter[str] = Counter()  # starts
        self._frozen: set[str] = set()
        self._asked: set[int] = set()  # questions to processes
        self._hellos: dict[str, Message] = {}
        self._replies: dict[int, Message] = {}
        self._ids = 0
        self._offset = 0.0  # lab clock minus ours
        self._origin = time.monotonic()
        self._blaming: set[int] = set()
        self._proven: set[str] = set()  # capabilities
        self._closing = False
        self._heartbeat = HEARTBEAT

    @netted()
    def __enter__(self) -> Lab:
        try:
            self._up()
        except BaseException:
            self._backend.down()
            raise
        return self

    @netted()
    def __exit__(self, *_: object) -> None:
        self._closing = True
        try:
            self._backend.down()
        except KeyboardInterrupt:
            self._backend.down()
            raise

    def _up(self) -> None:
        specs = self.scenario.host_specs
        started = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._links = self._backend.up(specs, list(self._processes.values()))
        self._heartbeat = max(HEARTBEAT, *(link.longest_rest for link in self._links.values()))
        for name in dict.fromkeys(self._starts):
            self._backend.prepare(self._processes[name])
        for name, link in self._links.items():
            self._agents[name] = link.channel
            self._listen(_Source(name, None, link.channel))
        self._pump_or_fail(lambda: len(self._hellos) == len(self._links), "an agent's first word")
        self._synchronize()
        names = address_names({name: (link.ipv4, link.ipv6) for name, link in self._links.items()})
        text = hosts_text(names)
        first = next(iter(self._links))  # whose ss and kernel are those of all
        ready = self._ask_all(
            {
                name: {
                    "do": "setup",
                    "rest": AGENT_REST * len(self._links),
                    "longest": link.longest_rest,
                    "share": len(self._links),
                    "batch": link.batch,
                    "hosts": text if link.hosts_file else None,
                    "bound": name == first,
                }
                for name, link in self._links.items()
            }
        )
        self.require(self.scenario.needs)
        common: dict[str, str] = {}
        for name, host in self.scenario.hosts.items():
            if host.sysctls:
                with located(self.scenario.sysctl_sources[name]):
                    for key in self.sysctl(name, host.sysctls):
                        if common.setdefault(key, host.sysctls[key]) != host.sysctls[key]:
                            raise Refused(f"{name}: {key} belongs to the whole machine, and "
                                          f"another host sets it to {common[key]!r}")  # fmt: skip
        untraced = self._trace(names)
        if untraced and "tracing" in self.scenario.needs:
            raise MissingHere(untraced)
        captured = all(answer["capture"] is None for answer in ready.values())
        probes = ["ss", *(["capture", "loopback"] if captured else [])]
        probes += [] if untraced else ["trace"]
        probes += ["bound"] if ready[first].get("bound") else []
        hello = next(iter(self._hellos.values()))
        self.emit(
            LabEvent(
                self.now(),
                started,
                self._backend.name,
                {**self._backend.environment(), "probes": probes},
                names,
                hello["wall"] - hello["t"] + self._origin,
            )
        )
        for name, hello in self._hellos.items():
            self.emit(CountersEvent(self.now(), name, hello["counters"]))
        for name, answer in ready.items():
            if answer["capture"]:
                self.emit(TroubleEvent(self.now(), name, "capture", answer["capture"]))
        if untraced:
            self._blind(self.now(), f"{untraced.reason}; {untraced.mend}")

    def _trace(self, names: Mapping[str, str]) -> Lack | None:
        """Has the tracer report the lab's sockets; returns why that can't be."""
        channel = self._backend.trace()
        if isinstance(channel, Lack):
            return channel
        self._owners = {address: name.partition(".")[0] for name, address in names.items()}
        self._agents[TRACER] = channel
        self._listen(_Source(TRACER, None, channel))
        self._pump_or_fail(lambda: bool(self._traced), "the tracer's first word")
        if "reason" not in self._traced:
            self._ask_tracer({"do": "watch", "addresses": list(names.values())})
        if reason := self._traced.get("reason"):
            self._agents.pop(TRACER, None)
            return Lack(reason, "use a kernel and an engine that allow it")
        return None

    def _ask_tracer(self, message: Message) -> None:
        """Has the tracer do something. If it can't, or ends, that is in the record."""
        self._ids += 1
        ident = self._ids
        self._agents[TRACER].send({**message, "id": ident})
        self._pump_or_fail(
            lambda: ident in self._replies or TRACER not in self._agents, "the tracer's answer"
        )
        if error := self._replies.pop(ident, {}).get("error"):
            self._blind(self.now(), error)

    def _blind(self, t: float, text: str) -> None:
        """Records that up to `t` transitions were missed, or are from now on, on whatever host."""
        if self.history.lab is None:
            self._traced = {"reason": text}
            return
        for host in self._links:
            self.emit(TroubleEvent(t, host, "trace", text))

    def _synchronize(self) -> None:
        """Finds the lab clock's offset from ours. They are one clock unless the engine is
        elsewhere; a difference within the time that asking takes counts as none."""
        host = next(iter(self._links))
        before = time.monotonic()
        answer = self._ask(host, {"do": "clock"})
        after = time.monotonic()
        difference = answer["t"] - (before + after) / 2
        if abs(difference) > (after - before) / 2:
            self._offset = difference
        self._origin = self._lab_clock()

    def _lab_clock(self) -> float:
        return time.monotonic() + self._offset

    def now(self) -> float:
        """Seconds since the run began, by the lab's clock."""
        return self._lab_clock() - self._origin

    @property
    def holders(self) -> dict[str, str]:
        """What `labctl shell` enters, by host."""
        return {name: link.holder for name, link in self._links.items()}

    # --- What steps do ---------------------------------------------------------------------------

    def running(self, process: str) -> bool:
        """Whether the main process of a process runs."""
        self.pump(0)
        state = self.history.processes.get(process)
        return state is not None and state.running

    def lives(self, process: str) -> bool:
        """Whether anything of a process runs: its main process, or what that has left."""
        self.pump(0)
        return process in self._running or bool(self._left.get(process))

    def has_left(self, process: str) -> bool:
        """Whether a main process has ended, and what it started lives on."""
        state = self.history.processes.get(process)
        return self.lives(process) and state is not None and not state.running and state.left

    def awaiting(self, process: str) -> bool:
        """Whether a process is in `await`; gives one that is on its way there a moment."""

        def there() -> bool:
            state = self.history.processes.get(process)
            return state is not None and state.running and state.obeys

        return self.running(process) and self.pump_until(there, self.now() + 1.0)

    def condition(self, process: str) -> str:
        """How a process is, in a word or two."""
        state = self.history.processes.get(process)
        return state.condition if state else "it was never started"

    def start(self, process: str) -> None:
        """Starts a process, beside what its earlier starts have left, and returns when it has
        begun."""
        spec = self._processes[process]
        if process in self._running:
            self._left.setdefault(process, []).append(self._running.pop(process))
        if process in self._starts:
            self._starts.remove(process)
        channel = self._backend.spawn(spec)
        seen = len(self.history.events)
        self._running[process] = channel
        self._counts[process] += 1
        self._frozen.discard(process)
        self._listen(_Source(spec.host, process, channel, self._counts[process]))
        self._pump_or_fail(
            lambda: any(
                isinstance(e, ProcessEvent) and e.process == process
                for e in self.history.events[seen:]
            ),
            f"the start of {process}",
        )

    def kill(self, process: str) -> None:
        """SIGKILL to all of a process, of all its starts; returns when it is gone and recorded as
        such."""
        if self.lives(process):
            self._backend.kill(self._processes[process])
            self._pump_or_fail(lambda: not self.lives(process), f"the end of {process}")

    def signal(self, process: str, name: str) -> None:
        """A signal to the main process alone."""
        self._backend.signal(self._processes[process], name)

    def end(self, process: str) -> None:
        """SIGTERM to what main processes have left."""
        for channel in (self._running.get(process), *self._left.get(process, ())):
            if channel:
                channel.send({"do": "end"})

    def freeze(self, process: str, frozen: bool) -> None:
        """Stops or continues everything in a process."""
        self._backend.freeze(self._processes[process], frozen)
        (self._frozen.add if frozen else self._frozen.discard)(process)

    def call(self, process: str, call: str, patience: float) -> None:
        """Has a process in `await` do one more call; returns when it is done, or blocked for
        `patience` seconds."""
        state = self.history.processes[process]
        done = len(state.calls)
        self._running[process].send({"do": "call", "call": call})
        self.pump_until(lambda: len(state.calls) > done or not state.running, self.now() + patience)

    def exec(self, host: str, command: str) -> None:
        """Runs a shell command on a host and records its output."""
        answer = self._ask(host, {"do": "exec", "command": command}, EXEC_DEADLINE)
        t, left_out = answer["t"] - self._origin, answer["left_out"] or None
        self.emit(ExecEvent(t, host, command, answer["exit"], answer["output"], left_out))

    def sysctl(self, host: str, values: Mapping[str, str]) -> list[str]:
        """Sets sysctls, and returns those that are for all hosts at once. Raises MissingHere for
        one that can't be had here."""
        answer = self._ask(host, {"do": "sysctl", "values": dict(values)})
        failed = answer["failed"]
        for readable, keys in ((False, answer["missing"]), (True, answer["readable"])):
            for key in keys:
                try:
                    self._backend.sysctl(key, values[key], readable)
                except OSError as exc:
                    failed[key] = errno.errorcode.get(exc.errno or 0, str(exc))
        for key, reason in failed.items():
            text = f"{host}: can't set {key} to {values[key]!r}: {errnos.describe(reason)}"
            raise Refused(f"{text}; {FORBIDDEN.get(reason, VALUES)}")
        return [*answer["missing"], *answer["readable"]]

    def fault(self, host: str, verb: str, **details: Any) -> Message:
        """Has a host do a method of Faults (images/host/faults.py); the answer's `t` is when."""
        answer = self._ask(host, {"do": "fault", "verb": verb, **details})
        return {**answer, "t": answer["t"] - self._origin}

    def require(self, needs: Iterable[str]) -> None:
        """Raises MissingHere for the first of these capabilities that the hosts say they lack."""
        if wanted := sorted({*needs} & MENDS.keys() - self._proven):
            answer = self.fault(next(iter(self._links)), "probe", what=wanted)
            for need, reason in answer["missing"].items():
                raise MissingHere(Lack(reason, MENDS[need]))
            self._proven.update(wanted)

    def look(self, hosts: Iterable[str] | None = None, caption: str | None = None) -> None:
        """Has every host report its sockets and counters now. Of some `hosts`, one where nothing
        has happened since its last report need not."""
        known = () if hosts is None else self.history.sockets
        message = {"do": "look", "caption": caption}
        chosen = self._links if hosts is None else hosts
        self._ask_all({host: {**message, "fresh": host not in known} for host in chosen})

    def blame(self) -> None:
        """Waits for the looks at what blocked a call: by the next step it may be gone."""
        self._pump_or_fail(lambda: not self._blaming, "a look at what blocked a call")

    def settle(self, predicate: Predicate) -> None:
        """Looks, and gives what is still in flight SETTLING seconds to make a predicate true."""
        self.wait(predicate, Within(0.0, SETTLING), None)

    def flush(self) -> None:
        """Takes in the rest of every capture and of the trace, and what they lost."""
        if TRACER in self._agents:
            self._ask_tracer({"do": "flush"})
        for host, answer in self._ask_all({host: {"do": "flush"} for host in self._links}).items():
            for probe, dropped in (("capture", "dropped"), ("loopback", "dropped_inside")):
                if answer[dropped]:
                    text = f"{answer[dropped]} packets were not captured"
                    self.emit(TroubleEvent(self.now(), host, probe, text))
            for event in tallied(self.history, self.now(), host, answer["lost"]):
                self.emit(event)

    def wait(self, predicate: Predicate, within: Within, since: str | None) -> Outcome:
        """Polls until a predicate holds; the upper bound counts from a label, or from now.

        What counts is when a thing happened, and not when this program came to hear of it: so it
        is over only when all have been heard that can tell of the time before its end."""
        begun = self.now()
        start = begun if since is None else self.history.labels[since]
        deadline = start + within.high
        self.look(predicate.hosts)
        while not self._holds(predicate):
            if self.now() >= deadline:
                self._hear(predicate)
                held = self._holds(predicate) or held_at(predicate, self.history, start, begun)
                return "held" if held else "timeout"
            if predicate.counters:
                self.pump(min(deadline - self.now(), COUNTER_PERIOD))
                self.look(predicate.counters)
            elif predicate.segments:
                self.pump(deadline - self.now())
            else:  # one by one: what holds now may not hold any more after the next
                self._next(deadline - self.now())
        return "held"

    def _holds(self, predicate: Predicate) -> bool:
        """Whether a predicate holds. Of what probes tell by and by it has to hold when all have
        told what they have by now, and what they have lost."""
        if not predicate.holds(self.history):
            return False
        if predicate.segments or predicate.traced:
            self.flush()
            return predicate.holds(self.history)
        return True

    def _hear(self, predicate: Predicate) -> None:
        """Takes in all that was said, up to now, by those who can tell of a predicate."""
        if predicate.segments or predicate.traced:
            self.flush()
        self.look(predicate.hosts)
        silent = 0
        for process in predicate.process or ():
            if process not in self._running:
                continue
            if process in self._frozen or self._processes[process].image:
                silent += 1
                continue
            self._ids += 1
            self._asked.add(self._ids)
            self._running[process].send({"do": "answer", "id": self._ids})
            self._pump_or_fail(
                lambda ident=self._ids, process=process: (  # type: ignore[misc]
                    ident not in self._asked or process not in self._running
                ),
                f"the answer of {process}",
            )
        if silent:  # they can't be asked: a moment must do
            self.pump_until(lambda: False, self.now() + SETTLING)

    # --- Messages --------------------------------------------------------------------------------

    def pump(self, patience: float) -> None:
        """Takes in what is there; waits for the first message, `patience` seconds or a heartbeat at
        most. Raises KeyboardInterrupt where that is due.

        What comes meanwhile is for the next time: a flood shall not keep us here."""
        if self._next(patience):
            for _ in range(self._inbox.qsize()):
                self._take(*self._inbox.get_nowait())

    def _next(self, patience: float) -> bool:
        """Takes in the next message, if one comes; see `pump`."""
        if stopping.is_set():
            raise KeyboardInterrupt
        try:
            self._take(*self._inbox.get(timeout=max(0.0, min(patience, self._heartbeat))))
        except queue.Empty:
            return False
        return True

    def pump_until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Takes in messages until a condition holds; False where it does not before `deadline`."""
        while not condition():
            if (left := deadline - self.now()) <= 0:
                return False
            self.pump(left)
        return True

    def _pump_or_fail(self, condition: Callable[[], bool], what: str) -> None:
        if not self.pump_until(condition, self.now() + ANSWER_DEADLINE):
            late = f"{what} did not come within {ANSWER_DEADLINE:g} s"
            raise LabError(self._backend.stopped() or late)

    def _ask(self, host: str, message: Message, patience: float = ANSWER_DEADLINE) -> Message:
        return self._ask_all({host: message}, patience)[host]

    def _ask_all(
        self, messages: Mapping[str, Message], patience: float = ANSWER_DEADLINE
    ) -> dict[str, Message]:
        """Sends a message to each host's agent and returns their replies."""
        ids = {}
        for host, message in messages.items():
            self._ids += 1
            ids[host] = self._ids
            self._agents[host].send({**message, "id": self._ids})
        waiting = set(ids.values())
        if not self.pump_until(lambda: waiting <= self._replies.keys(), self.now() + patience):
            late = [host for host, ident in ids.items() if ident not in self._replies]
            text = f"{', '.join(late)}: no answer to {message['do']} in {patience:g} s"
            raise LabError(self._backend.stopped() or text)
        answers = {host: self._replies.pop(ident) for host, ident in ids.items()}
        for host, answer in answers.items():
            try:
                fitting(str(message.get("verb", message["do"])), answer)
            except NoMessage as exc:
                raise LabError(f"the agent of host {host} {NO_MESSAGE}: {exc}") from exc
            if "error" in answer:
                raise LabError(f"{host}: {explained(str(answer['error']))}")
        return answers

    def _listen(self, source: _Source) -> None:
        def read() -> None:
            try:
                for message in source.channel:
                    self._inbox.put((source, message))
                self._inbox.put((source, None))
            except Exception as exc:
                self._inbox.put((source, exc))

        threading.Thread(target=read, daemon=True, name=f"read {source.host}").start()

    def _take(self, source: _Source, message: _Said) -> None:
        try:
            if isinstance(message, NoMessage | LabError):
                raise message
            if isinstance(message, Exception):
                raise LabError(f"{source}: {type(message).__name__}: {message}") from message
            if source.host == TRACER:
                self._take_trace(message)
            elif message and message["kind"] == "broken":
                text = explained(messages.no_event("broken", message)["text"])
                raise LabError(f"{source} broke: {text}")
            elif source.process is None:
                self._take_host(source.host, message)
            elif self._running.get(source.process) is source.channel:
                self._take_process(source.process, source.host, message)
            elif source.channel in self._left.get(source.process, ()):
                self._take_left(source, source.process, message)
        except NoMessage as exc:
            raise LabError(f"{source} {NO_MESSAGE}: {exc}") from exc

    def _take_host(self, host: str, message: Message | None) -> None:
        if message is None:
            if not self._closing:
                raise LabError(f"the agent of host {host} ended")
            return
        kind = message.pop("kind")
        if kind == "hello":
            self._hellos[host] = messages.no_event(kind, message)
        elif kind == "reply" and (ident := messages.ident(message)) in self._blaming:
            self._blaming.remove(ident)
        elif kind == "reply":
            self._replies[ident] = message
        elif self.history.lab is None:
            pass  # Sockets of a host that is still being set up
        else:
            t = wire.moment(message) - self._origin
            if kind == "packets":
                records = messages.packets(message)
                self.history.add_packets(t, host, records)
                self._record_packets(host, records)
            else:
                event = messages.of_host(kind, t, host, message)
                if not isinstance(event, AddressEvent):
                    self.emit(event)
                elif self.history.owners.get(event.address) != host:
                    self.emit(event)
                    self._trace_too(event)

    def _trace_too(self, event: AddressEvent) -> None:
        """Has the tracer report sockets with one address more."""
        self._owners[event.address] = event.host
        if TRACER in self._agents:
            self._ids += 1
            message = {"do": "watch", "addresses": [*self._owners], "id": self._ids}
            self._agents[TRACER].send(message)

    def _take_trace(self, message: Message | None) -> None:
        if message is None:
            if not self._closing and TRACER in self._agents and "reason" not in self._traced:
                del self._agents[TRACER]
                self._blind(self.now(), "the tracer ended")
            return
        kind = message.pop("kind")
        if kind == "hello":
            self._traced = message
        elif kind == "refused":
            self._traced = messages.no_event(kind, message)
        elif kind == "reply":
            self._replies[messages.ident(message)] = message
        elif kind == "broken":
            del self._agents[TRACER]
            self._blind(self.now(), f"the tracer broke: {messages.no_event(kind, message)['text']}")
        elif self.history.lab is not None:
            t = wire.moment(message) - self._origin
            event = messages.of_trace(kind, t, self._owners, message)
            if isinstance(event, TroubleEvent):
                self._blind(t, event.text)
            else:
                self.emit(event)

    def _take_process(self, process: str, host: str, message: Message | None) -> None:
        if message is None:
            del self._running[process]
            gone = ProcessEvent(self.now(), process, host, "gone", signal="KILL")
            self.emit(gone)
            self._wake(host)
            if process in self._starts and not self._closing:
                self._backend.prepare(self._processes[process])
            return
        kind, t = message.pop("kind"), wire.moment(message) - self._origin
        if kind == "reply" and (ident := messages.ident(message)) in self._asked:
            self._asked.remove(ident)
            return
        event = messages.of_process(kind, t, process, host, message)
        self.emit(event)
        if isinstance(event, CallEvent | ProcessEvent):
            self._wake(host)
        if isinstance(event, CallEvent) and event.errno == "EADDRINUSE":
            self._ids += 1
            self._blaming.add(self._ids)
            look = {"do": "look", "id": self._ids, "caption": event.call}
            self._agents[host].send(look)

    def _take_left(self, source: _Source, process: str, message: Message | None) -> None:
        """What an earlier start of a process has left."""
        if message is None:
            self._left[process].remove(source.channel)
            gone = ProcessEvent(
                self.now(), process, source.host, "gone", signal="KILL", start=source.start
            )
            self.emit(gone)
        else:
            kind, t = message.pop("kind"), wire.moment(message) - self._origin
            message["start"] = source.start
            self.emit(messages.of_process(kind, t, process, source.host, message))
        self._wake(source.host)

    def _wake(self, host: str) -> None:
        """Tells an agent that rests for long that a socket may have changed without a segment."""
        if self._links[host].longest_rest > USUAL_REST:
            self._ids += 1
            self._agents[host].send({"do": "wake", "id": self._ids})

    def emit(self, event: Event) -> None:
        """Takes in an event, and records it."""
        self.history.add(event)
        self._record(event)
