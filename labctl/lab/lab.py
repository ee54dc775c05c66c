"""A lab in use: a backend's hosts and processes. It turns everything that they report into
events."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from labctl.backends import (
    USUAL_REST,
    Backend,
    Channel,
    HostLink,
    Message,
    ProcessSpec,
    address_names,
    hosts_text,
    protocol,
)
from labctl.backends.capabilities import CAPABILITIES
from labctl.backends.networks import FORWARDING, Networks, Wiring
from labctl.backends.protocol import SUPERVISOR
from labctl.backends.wire import A, Command, asked
from labctl.ground import errnos
from labctl.ground.crash import netted
from labctl.ground.errors import LabError, MissingHere, Refused, located
from labctl.lab.happened import happened
from labctl.lab.messaging import ANSWER_DEADLINE, HEARTBEAT, Source, surely
from labctl.lab.observing import SETTLING, Observing
from labctl.lab.probing import bound_listed, is_known, probes
from labctl.lab.questions import Questions
from labctl.lab.spec import LabSpec
from labctl.probes.packets import shifted
from labctl.record.events import (
    VERSION,
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

EXEC_DEADLINE = 600.0
FORBIDDEN = {
    "EACCES": "a security module (SELinux, AppArmor) may forbid it, see its audit log",
    "EROFS": "the engine lets no container set any: take another one",
}
"""What helps if no value of a sysctl can be set."""
CALLED = 5.0
"""How many seconds to wait for the word that a call has begun."""
VALUES = "ip-sysctl.rst tells what it takes"


class Lab(Observing):
    """Used in a `with`: brings the hosts up and takes everything down.

    It calls `record` with every event, in order, after the history has taken it in. Methods raise
    LabError if the lab itself fails.
    """

    def __init__(
        self,
        spec: LabSpec,
        backend: Backend,
        history: History,
        record: Callable[[Event], None],
        record_packets: Callable[[str, bytes], None],
    ) -> None:
        super().__init__(history, backend.stopped)
        self.spec = spec
        self._backend = backend
        self._record = record
        self._record_packets = record_packets
        self._starts = list(spec.starts)
        self._links: dict[str, HostLink] = {}
        self._running: dict[str, Channel] = {}  # the latest start of each process
        self._left: dict[str, list[Channel]] = {}  # earlier starts of which something lives on
        self._counts: Counter[str] = Counter()  # starts
        self._frozen: set[str] = set()
        self._killing = ""  # the process that a step kills now
        self._questions = Questions(self._inbox)
        self._hellos: dict[str, protocol.AgentHello] = {}
        self._epochs: dict[str, float] = {}  # when the run began, by the clocks of captures
        self._blaming: set[int] = set()
        self._proven: set[str] = set()  # capabilities
        self._marking = False
        self._mark: int | None = None  # the question whose answer is the mark

    @netted()
    def __enter__(self) -> Lab:
        try:
            self._up()
        except BaseException as exc:
            surely(self._backend.down, exc)
            raise
        return self

    @netted()
    def __exit__(self, _: object, because: BaseException | None, __: object) -> None:
        self._closing = True
        surely(self._backend.down, because)

    def _up(self) -> None:
        started = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._links = self._backend.up(self.spec.hosts, list(self.spec.processes.values()))
        rests = (link.longest_rest for link in self._links.values())
        self._inbox.heartbeat = max(HEARTBEAT, *rests)
        for name in dict.fromkeys(self._starts):
            self._backend.prepare(self.spec.processes[name])
        for name, link in self._links.items():
            self._agents[name] = link.channel
            self._inbox.listen(Source(f"the agent of host {name}", name, link.channel))
        self._inbox.expect(lambda: len(self._hellos) == len(self._links), "an agent's first word")
        self._clock.synchronize(self._machines, self._time_at)
        self._wiring = Wiring(Networks(self.spec.hosts), self._links)
        names = address_names({name: (link.ipv4, link.ipv6) for name, link in self._links.items()})
        names |= self._wiring.names()
        self.require(self.spec.needs)
        place = self._backend.environment()
        ready = self._set_up(names, not is_known(place))
        self._set_sysctls()
        untraced = self._tracer.start(self._backend.trace(), names, self._machines)
        if untraced and "tracing" in self.spec.needs:
            raise MissingHere(*untraced)
        self._epochs = self._clock.epochs({name: (h.t, h.wall) for name, h in self._hellos.items()})
        epoch = next(iter(self._epochs.values()))
        found = probes(ready, self._tracer.trace, bound_listed(place, ready))
        environment = {**place, "probes": found}
        name = self._backend.name
        networks = self._wiring.networks.told
        self.emit(
            LabEvent(self.now(), started, name, environment, names, epoch, VERSION, *networks)
        )
        self._tell_clocks()
        for name, hello in self._hellos.items():
            self.emit(CountersEvent(self.now(), name, hello.counters))
        for name, answer in ready.items():
            if answer.capture:
                self.emit(TroubleEvent(self.now(), name, "capture", answer.capture))
        self._tracer.begin()
        if services := [spec for spec in self.spec.processes.values() if spec.service]:
            self._start(services, self._backend.begin)

    @property
    def _machines(self) -> dict[str, str]:
        return {name: link.machine for name, link in self._links.items()}

    def _set_up(self, names: Mapping[str, str], bound: bool) -> dict[str, protocol.Ready]:
        """Makes the agents begin; returns their answers. The first finds out whether `ss` lists
        sockets that are only `bound`, if that is wanted."""
        links, wiring = self._links, self._wiring
        first = next(iter(links))
        self._ask_all(
            {
                name: protocol.SetNetwork(
                    hosts_text({**names, **wiring.seen_by(name)}) if link.hosts_file else None,
                    link.batch + wiring.batch(name),
                    wiring.translation(name),
                )
                for name, link in links.items()
            }
        )
        return self._ask_all(
            {
                name: protocol.SetUp(link.longest_rest, len(links), bound and name == first)
                for name, link in links.items()
            }
        )

    def _set_sysctls(self) -> None:
        for host in self.spec.hosts:
            if host.router:
                self.sysctl(host.name, FORWARDING)
        common: dict[str, str] = {}
        for name, (values, source) in self.spec.sysctls.items():
            with located(source):
                for key in self.sysctl(name, values):
                    if common.setdefault(key, values[key]) != values[key]:
                        raise Refused(f"{name}: {key} belongs to the whole machine, and "
                                      f"another host sets it to {common[key]!r}")  # fmt: skip

    @property
    def hosts(self) -> list[str]:
        """The names of its hosts."""
        return [host.name for host in self.spec.hosts]

    @property
    def holders(self) -> dict[str, str]:
        """The process or container that `labctl shell` enters, by host."""
        return {name: link.holder for name, link in self._links.items()}

    # --- What steps do ---------------------------------------------------------------------------

    def running(self, process: str) -> bool:
        """Whether the main process of a process runs."""
        self.pump(0)
        state = self.history.processes.get(process)
        return state is not None and state.running

    def lives(self, process: str) -> bool:
        """Whether anything of a process runs: its main process, or what it left."""
        self.pump(0)
        return bool(self._supervisors(process))

    def has_left(self, process: str) -> bool:
        """Whether a main process has ended, and something that it started lives on."""
        state = self.history.processes.get(process)
        return self.lives(process) and state is not None and not state.running and state.left

    def awaiting(self, process: str) -> bool:
        """Whether a process is in `await`; waits a moment for one that is on its way there."""

        def there() -> bool:
            state = self.history.processes.get(process)
            return bool(state and state.running and state.obeys)

        return self.running(process) and self.pump_until(there, self.now() + 1.0)

    def condition(self, process: str) -> str:
        """What a process does, in a word or two."""
        state = self.history.processes.get(process)
        return state.condition if state else "it was never started"

    def start(self, process: str) -> None:
        """Starts a process, beside what its earlier starts left, and returns when it has begun."""
        if process in self._running:
            self._left.setdefault(process, []).append(self._running.pop(process))
        if process in self._starts:
            self._starts.remove(process)
        self._start([self.spec.processes[process]])

    def _start(
        self, specs: Sequence[ProcessSpec], begin: Callable[[], None] = lambda: None
    ) -> None:
        seen, names = len(self.history.events), [spec.name for spec in specs]
        for name, spec in zip(names, specs, strict=True):
            channel = self._running[name] = self._backend.spawn(spec)
            self._counts[name] += 1
            self._frozen.discard(name)
            about = f"process {name}", spec.host, channel, name, self._counts[name]
            self._inbox.listen(Source(*about))
        begin()

        def said() -> Iterator[ProcessEvent]:
            told = (e for e in self.history.events.since(seen) if isinstance(e, ProcessEvent))
            return (e for e in told if e.start is None)

        self._inbox.expect(
            lambda: {*names} <= {event.process for event in said()},
            f"the start of {', '.join(names)}",
        )
        first = next(event for event in said() if event.process == names[0])
        self._acted(first.host, first.t)

    def kill(self, process: str) -> None:
        """Sends SIGKILL to all of a process, of all its starts; returns when it is gone and the
        record says so."""
        if self.lives(process):
            asked = self._ask_when(process, protocol.KillAll())
            self._questions.wait(asked)
            self._killing = process
            self._backend.kill(self.spec.processes[process])
            self._inbox.expect(lambda: not self.lives(process), f"the end of {process}")
            self._killing = ""

    def signal(self, process: str, name: str) -> None:
        """Sends a signal to the main process alone."""
        asked = self._ask_when(process, protocol.TellAll())
        self._backend.signal(self.spec.processes[process], name)
        self._questions.wait(asked)

    def end(self, process: str) -> None:
        """Sends SIGTERM to what main processes left."""
        for channel in self._supervisors(process):
            channel.send(protocol.End().as_json())

    def freeze(self, process: str, frozen: bool) -> None:
        """Stops or continues everything in a process."""
        if self._backend.freeze(self.spec.processes[process], frozen):
            self._questions.settle(self._supervisors(process))
        (self._frozen.add if frozen else self._frozen.discard)(process)

    def call(self, process: str, call: str, patience: float) -> None:
        """Makes a process in `await` do one more call; returns when it is done, or blocked for
        `patience` seconds."""
        state, seen = self.history.processes[process], len(self.history.events)
        done = len(state.calls)
        self._running[process].send(protocol.DoCall(call).as_json())
        if self._marking:
            self.pump_until(lambda: self._begun(process, seen) is not None, self.now() + CALLED)
            if begun := self._begun(process, seen):
                self._acted(begun.host, begun.t)
        self.pump_until(lambda: len(state.calls) > done or not state.running, self.now() + patience)

    def _begun(self, process: str, seen: int) -> CallEvent | None:
        """The first call that a process has begun since then."""
        said = (e for e in self.history.events.since(seen) if isinstance(e, CallEvent))
        return next((e for e in said if e.process == process and e.name != "await"), None)

    def exec(self, host: str, command: str) -> None:
        """Runs a shell command on a host and records its output."""
        answer = self._ask(host, protocol.Exec(command), EXEC_DEADLINE)
        t, left_out = self._clock.of(host, answer.t), answer.left_out or None
        self.emit(ExecEvent(t, host, command, answer.exit, answer.output, left_out))

    def sysctl(self, host: str, values: Mapping[str, str]) -> list[str]:
        """Sets sysctls, and returns those that are for all hosts at once. Raises MissingHere if
        there is no such sysctl here."""
        answer = self._ask(host, protocol.SetSysctls(dict(values)))
        failed = answer.failed
        for readable, keys in ((False, answer.missing), (True, answer.readable)):
            for key in keys:
                try:
                    self._backend.sysctl(key, values[key], readable)
                except OSError as exc:
                    failed[key] = errno.errorcode.get(exc.errno or 0, str(exc))
        for key, reason in failed.items():
            text = f"{host}: can't set {key} to {values[key]!r}: {errnos.describe(reason)}"
            raise Refused(text, FORBIDDEN.get(reason, VALUES))
        return [*answer.missing, *answer.readable]

    def fault(self, host: str, fault: protocol.Fault[A]) -> A:
        """Makes a host do a fault; the answer's `t` is when."""
        answer = self._ask(host, fault)
        return answer.model_copy(update={"t": self._clock.of(host, answer.t)})

    def device(self, host: str, network: str) -> str:
        """A host's interface in a network, as its agent takes it."""
        return self._links[host].ends[network].device

    def require(self, needs: Iterable[str]) -> None:
        """Raises MissingHere for the first of these capabilities that the hosts say they lack."""
        wanted = sorted(n for n in {*needs} - self._proven if CAPABILITIES[n].probed == "agent")
        if wanted:
            host = next(iter(self._links))
            answer = self._ask_all({host: protocol.Probe(wanted)})[host]
            for need, reason in answer.missing.items():
                raise MissingHere(reason, CAPABILITIES[need].hint)
            self._proven.update(wanted)

    def look(self, hosts: Iterable[str] | None = None, caption: str | None = None) -> None:
        chosen = [*(self._links if hosts is None else hosts)]
        asked = self._ask_holders(chosen)
        self.count(chosen, caption, fresh=hosts is None)
        self._questions.wait(asked)

    def blame(self) -> None:
        """Waits for the looks at what blocked a call: in the next step it may be gone."""
        self._inbox.expect(lambda: not self._blaming, "a look at what blocked a call")
        self._questions.wait()

    def hear(self, processes: Iterable[str]) -> None:
        chosen = [process for process in processes if process in self._running]
        able = [p for p in chosen if self._answers(p)]
        self._questions.settle([self._running[p] for p in able])
        if able != chosen:  # nobody can ask the others: a moment must be enough
            self.pump_until(lambda: False, self.now() + SETTLING)

    # --- When a step acts ------------------------------------------------------------------------

    @contextmanager
    def marked(self) -> Iterator[None]:
        """During a `with`: `acted` becomes the moment right before the first thing that is done to
        a host, by its clock."""
        self.acted, self._marking = None, True
        try:
            yield
        finally:
            self._marking, self._mark = False, None

    def _acted(self, host: str, t: float) -> None:
        if self._marking and self.acted is None:
            self.acted = host, t

    def _ask_when(self, process: str, command: Command[protocol.Done]) -> list[int]:
        """Asks a supervisor for the time right before it does something, or is made to; returns the
        question. It may end before it answers."""
        if not self._marking or process not in self._running or not self._answers(process):
            return []
        self._mark = self._questions.ask(self._running[process], command)
        return [self._mark]

    # --- Messages --------------------------------------------------------------------------------

    def _ask(self, host: str, command: Command[A], patience: float = ANSWER_DEADLINE) -> A:
        """Makes an agent do something. It tells the time right before, if that is the mark."""
        when = self._marking and self._inbox.post(self._agents[host], protocol.TellTime())
        answer = self._ask_all({host: command}, patience)[host]
        if when and (told := self._inbox.reply(when)):
            self._acted(host, self._clock.of(host, protocol.TellTime().answered(told).t))
        return answer

    def _supervisors(self, process: str) -> list[Channel]:
        """Those of all its starts of which something lives."""
        return [c for c in (self._running.get(process), *self._left.get(process, ())) if c]

    def _answers(self, process: str) -> bool:
        """Whether a process has a supervisor that answers now."""
        return process not in self._frozen and not self.spec.processes[process].image

    def _ask_holders(self, hosts: Collection[str]) -> list[int]:
        """Asks all that runs on these hosts which sockets it holds; returns the questions."""
        return [
            self._questions.ask(channel, protocol.TellHolders())
            for process, spec in self.spec.processes.items()
            if spec.host in hosts and self._answers(process)
            for channel in self._supervisors(process)
        ]

    def _hear(self, source: Source, message: Message | None) -> None:
        if source.process is None:
            self._take_host(source.host, message)
        elif message and self._questions.answered(source.channel, message):
            if asked(message) == self._mark:
                t = protocol.Done.of(message).t
                self._acted(source.host, self._clock.of(source.host, t))
        elif self._running.get(source.process) is source.channel:
            self._take_process(source.process, source.host, message)
        elif source.channel in self._left.get(source.process, ()):
            self._take_left(source, source.process, message)

    def _take_host(self, host: str, message: Message | None) -> None:
        if message is None:
            if not self._closing:
                raise LabError(self._backend.stopped() or f"the agent of host {host} ended")
            return
        if (number := asked(message)) is not None:
            if number in self._blaming:
                self._blaming.remove(number)
            else:
                self._inbox.take_reply(number, message)
            return
        said = protocol.AGENT.heard(message)
        if isinstance(said, protocol.AgentHello):
            self._hellos[host] = said
        elif self.history.lab is None:
            pass  # Sockets of a host that is still being set up
        elif isinstance(said, protocol.Packets):
            first = next(iter(self._epochs.values()))
            records = shifted(said.records, first - self._epochs[host])
            self.history.add_packets(self._clock.of(host, said.t), host, records)
            self._record_packets(host, records)
        else:
            event = happened(said, self._clock.of(host, said.t), self.history, host=host)
            if not isinstance(event, AddressEvent):
                self.emit(event)
            elif self.history.owners.get(event.address) != host:
                self.emit(event)
                self._tracer.watch_too(event)

    def _take_process(self, process: str, host: str, message: Message | None) -> None:
        if message is None:
            self._doubt(process)
            self._questions.forget(self._running.pop(process))
            self.emit(ProcessEvent(self.now(), process, host, "gone", signal="KILL"))
            self._wake(host)
            if process in self._starts and not self._closing:
                self._backend.prepare(self.spec.processes[process])
            return
        said = SUPERVISOR.heard(message)
        event = happened(said, self._clock.of(host, said.t), process=process, host=host)
        self.emit(event)
        if isinstance(event, CallEvent | ProcessEvent):
            self._wake(host)
        if isinstance(event, CallEvent) and event.errno == "EADDRINUSE":
            look = protocol.Look(event.call)
            self._blaming.add(self._inbox.post(self._agents[host], look))
            self._ask_holders([host])

    def _doubt(self, process: str) -> None:
        """Raises LabError if a process seems to be gone only since its backend is."""
        state = self.history.processes.get(process)
        expected = self._closing or process == self._killing or not (state and state.running)
        if not expected and (why := self._backend.stopped()):
            raise LabError(why)

    def _take_left(self, source: Source, process: str, message: Message | None) -> None:
        """Takes in a message of what an earlier start of a process left."""
        where: dict[str, Any] = {"process": process, "host": source.host, "start": source.start}
        if message is None:
            self._left[process].remove(source.channel)
            self._questions.forget(source.channel)
            self.emit(ProcessEvent(self.now(), phase="gone", signal="KILL", **where))
        else:
            said = SUPERVISOR.heard(message)
            self.emit(happened(said, self._clock.of(source.host, said.t), **where))
        self._wake(source.host)

    def _wake(self, host: str) -> None:
        """Tells an agent in a long rest that a socket may have changed without a segment."""
        if self._links[host].longest_rest > USUAL_REST:
            self._inbox.post(self._agents[host], protocol.Wake())
