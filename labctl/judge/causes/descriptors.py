"""The TCP sockets that processes opened, as their calls tell: options, ends, and when they closed.

A socket that was accepted has the options that its listener had when the connection began; what is
set on it later is its own. A child has what its parent had open. The peer program's calls act on
its current socket; those of other programs name a descriptor."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field, replace
from functools import lru_cache
from typing import Any

from labctl.ground.data import dataclass
from labctl.language.calls import CallError, parse_calls
from labctl.probes.sockets import Ends, canonical
from labctl.record.events import CallEvent, Event, ProcessEvent, UnseenEvent

Task = tuple[str, int, str, int | None]
"""What is called once at a time: by a process, a task, its name, and of which descriptor."""
NOTHING: tuple[array[float], list[Descriptor | None]] = array("d"), []
Begun = Callable[[str, Ends, float], float]
"""When the connection began, on a host, with these ends, that was accepted at a time."""


@lru_cache(1 << 12)
def arguments(call: str) -> tuple[Any, ...]:
    """What a call was given; empty if nothing can be read."""
    try:
        return tuple(parse_calls(call)[0].args)
    except (CallError, LookupError):
        return ()


def end_of(text: str) -> str:
    """An end that a call reports, in the spelling of segments."""
    host, _, port = text.rpartition(":")
    host = canonical(host.strip("[]"))
    host = "" if host in ("0.0.0.0", "::") else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(eq=False)
class Descriptor:
    """A TCP socket of a process. `start` is the number of the process's start; `made`, `listening`
    and `closed` are when it was made, began to listen, and was closed by all that had it; from
    `lost` on, nobody would have seen that."""

    process: str
    host: str
    start: int
    made: float
    family: int = 4
    settings: list[tuple[float, str, str]] = field(default_factory=list)
    bound: CallEvent | None = None
    connected: CallEvent | None = None
    accepted: CallEvent | None = None
    listening: float = math.inf
    closed: float = math.inf
    lost: float = math.inf
    udp: bool = False
    holders: set[int] = field(default_factory=set)

    def option(self, name: str, t: float) -> str:
        """The value of an option at that time; `0` if nobody had set it."""
        found = [value for at, option, value in self.settings if option == name and at <= t]
        return found[-1] if found else "0"

    def has(self, name: str, t: float) -> bool:
        """Whether an option was on."""
        return self.option(name, t).split()[:1] != ["0"]

    def open_at(self, t: float) -> bool:
        """Whether some process surely had it open."""
        return self.made <= t < min(self.closed, self.lost)

    @property
    def local(self) -> str:
        """Where it is bound; empty if nothing says so."""
        for call in (self.accepted, self.connected, self.bound):
            if call is not None and call.local and not call.errno:
                return end_of(call.local)
        return ""

    @property
    def port(self) -> int:
        """Its local port, or 0."""
        return int(self.local.rpartition(":")[2] or 0)

    @property
    def ends(self) -> Ends | None:
        """The ends of its connection."""
        call = self.accepted or self.connected
        if call is None or call.errno or not call.local or not call.peer:
            return None
        return end_of(call.local), end_of(call.peer)

    @property
    def chosen_port(self) -> bool:
        """Whether the kernel chose its port for an outgoing connection."""
        return self.connected is not None and (self.bound is None or asks_for(self.bound) == 0)


def asks_for(bind: CallEvent) -> int | None:
    """The port that a bind asked for."""
    given = arguments(bind.call)
    return int(given[1]) if len(given) == 2 else None


@dataclass
class _Program:
    """One of a process's programs: its sockets, as images/peer/program.py has them, or by
    number."""

    current: Descriptor | None = None
    listener: Descriptor | None = None
    open: list[Descriptor] = field(default_factory=list)
    numbered: dict[int, Descriptor] = field(default_factory=dict)
    named: dict[str, Descriptor] = field(default_factory=dict)

    def inherit(self, child: int) -> _Program:
        """The same sockets, for a child."""
        for each in self.open:
            each.holders.add(child)
        return replace(
            self, open=list(self.open), numbered=dict(self.numbered), named=dict(self.named)
        )

    def use(self, name: str) -> None:
        """A named socket is current; if it listens, it is the listener again."""
        self.current = self.named.get(name)
        if self.current and self.current.listening < math.inf:
            self.listener = self.current

    def drop(self, gone: Descriptor | None, pid: int, t: float) -> None:
        """Closes a socket."""
        if gone in self.open:
            self.open.remove(gone)
            gone.holders.discard(pid)
            if not gone.holders:
                gone.closed = min(gone.closed, t)
        self.numbered = {fd: each for fd, each in self.numbered.items() if each is not gone}
        self.listener = None if gone is self.listener else self.listener
        self.current = self.listener if gone is self.current else self.current


class Descriptors:
    """All descriptors of a history, in order; `of` has the one that a call acted on."""

    def __init__(self, events: Iterable[Event], begun: Begun) -> None:
        self.all: list[Descriptor] = []
        self._acted: dict[Task, tuple[array[float], list[Descriptor | None]]] = {}
        self._begun = begun
        self._starts: Counter[str] = Counter()
        self._programs: dict[tuple[str, int], dict[int, _Program]] = {}
        self._watched: set[tuple[str, int]] = set()
        self._unseen: dict[tuple[str, int], bool] = {}
        for event in events:
            self.take(event)

    def take(self, event: Event) -> None:
        """Takes in the next event."""
        if isinstance(event, ProcessEvent):
            self._process(event)
        elif isinstance(event, CallEvent) and event.phase == "done":
            self._call(event)
        elif isinstance(event, UnseenEvent):
            self._miss(event)

    def of(self, call: CallEvent) -> Descriptor | None:
        """The socket that a call acted on; for `accept` the new one."""
        times, found = self._acted.get(_task(call), NOTHING)
        place = bisect_left(times, call.t)
        return found[place] if place < len(times) and times[place] == call.t else None

    def forget(self) -> None:
        """Forgets what was made and what calls acted on, but not what is open."""
        self.all.clear()
        self._acted.clear()

    def _acts(self, call: CallEvent, mine: Descriptor | None) -> None:
        """Notes the socket that a call acted on."""
        times, found = self._acted.setdefault(_task(call), (array("d"), []))
        place = bisect_left(times, call.t)
        if place < len(times) and times[place] == call.t:
            found[place] = mine
        else:
            times.insert(place, call.t)
            found.insert(place, mine)

    def _process(self, event: ProcessEvent) -> None:
        if event.phase == "start":
            self._starts[event.process] += 1
            if event.watch:
                self._watched.add((event.process, self._starts[event.process]))
            return
        programs = self._programs.get(self._start(event), {})
        if event.phase == "gone" or not event.left:
            for program in programs.values():
                for each in program.open:
                    each.closed = min(each.closed, event.t)
        elif event.pid in programs and self._start(event) in self._watched:
            self._end(programs[event.pid], event.pid, event.t)

    def _start(self, event: ProcessEvent | CallEvent | UnseenEvent) -> tuple[str, int]:
        return event.process, event.start or self._starts[event.process]

    @staticmethod
    def _end(program: _Program, pid: int, t: float) -> None:
        for each in list(program.open):
            program.drop(each, pid, t)

    def _miss(self, event: UnseenEvent) -> None:
        """From now on sockets may be closed, or have options set, that nobody sees. Then only what
        listens is known."""
        start = self._start(event)
        blind = "set" not in event.but
        self._unseen[start] = blind or self._unseen.get(start, False)
        for program in self._programs.get(start, {}).values():
            for fd, each in list(program.numbered.items()):
                each.lost = min(each.lost, event.t)
                if blind and each.listening == math.inf:
                    del program.numbered[fd]

    def _numbered(self, call: CallEvent, programs: dict[int, _Program]) -> None:
        """A call of any program."""
        program = programs.setdefault(call.pid, _Program())
        if call.name == "fork" and call.result:
            programs[call.result] = program.inherit(call.result)
            return
        if call.name == "exit":
            self._end(program, call.pid, call.t)
            return
        if call.name == "has":
            self._has(call, program, programs)
            return
        mine = program.numbered.get(-1 if call.fd is None else call.fd)
        self._acts(call, mine)
        if call.name == "close":  # whatever it returns: close(2), NOTES
            program.drop(mine, call.pid, call.t)
        elif call.name in ("socket", "accept") and not call.errno:
            number = call.fd if call.name == "socket" else call.result
            if self._unseen.get(self._start(call)) or number is None:
                return
            made = Descriptor(call.process, call.host, self._start(call)[1], call.t)
            if call.name == "accept":
                if mine is None:
                    return
                made = self._accepted(call, made.start, mine)
            else:
                made.family = 6 if "tcp6" in arguments(call.call) else 4
            if self._start(call) in self._unseen:
                made.lost = call.t
            self._adopt(made, program, call)
            program.numbered[number] = made
        elif mine:
            _note(call, mine)

    def _has(self, call: CallEvent, program: _Program, programs: Mapping[int, _Program]) -> None:
        """A process had a socket before anybody saw its calls (`tell_held` in
        images/peer/attach.py); or the same as another process, by a descriptor of that."""
        assert call.fd is not None
        _, family, *words = call.call.split()
        if family == "the":
            fd, pid = int(words[-3]), int(words[-1])
            same = programs[pid].numbered.get(fd) if pid in programs else None
            if same:
                same.holders.add(call.pid)
                program.open.append(same)
                program.numbered[call.fd] = same
            return
        made = Descriptor(call.process, call.host, self._start(call)[1], call.t, bound=call)
        made.family = 6 if family == "tcp6" else 4
        made.accepted = call if call.peer else None
        made.listening = call.t if "listening" in words else math.inf
        options = (word.partition("=") for word in words if "=" in word)
        made.settings = [(call.t, name, value.replace(",", " ")) for name, _, value in options]
        self._adopt(made, program, call)
        program.numbered[call.fd] = made

    def _call(self, call: CallEvent) -> None:
        number = call.start or self._starts[call.process]
        programs = self._programs.setdefault((call.process, number), {})
        if self._start(call) in self._watched:
            self._numbered(call, programs)
            return
        if call.pid not in programs:
            self._fork(programs, call.pid)
        program = programs[call.pid]
        if call.name == "fork" and call.result:
            if call.result not in programs:
                self._fork(programs, call.result)
            if program.current is not program.listener:
                program.drop(program.current, call.pid, call.t)
            return
        if call.name == "use" and not call.errno:
            program.use(*arguments(call.call))
        self._acts(call, program.current)
        if call.name == "close":
            gone = program.listener if "listener" in arguments(call.call) else program.current
            self._acts(call, gone)
            if not call.errno:
                program.drop(gone, call.pid, call.t)
        elif call.name == "socket" and not call.errno:
            kind, *name = arguments(call.call) or ("tcp",)
            made = Descriptor(call.process, call.host, number, call.t)
            made.family, made.udp = 6 if kind.endswith("6") else 4, kind.startswith("udp")
            self._adopt(made, program, call)
            program.named |= dict.fromkeys(name, made)
        elif call.name == "accept" and not call.errno:
            made = self._accepted(call, number, program.listener or program.current)
            self._adopt(made, program, call)
            program.named |= dict.fromkeys(arguments(call.call), made)
        elif program.current:
            _note(call, program.current)
            if call.name == "listen" and not call.errno:
                program.listener = program.current

    @staticmethod
    def _fork(programs: dict[int, _Program], child: int) -> None:
        programs[child] = next(iter(programs.values()), _Program()).inherit(child)

    def _adopt(self, made: Descriptor, program: _Program, call: CallEvent) -> None:
        made.holders.add(call.pid)
        program.current = made
        self._acts(call, made)
        program.open.append(made)
        self.all += [] if made.udp else [made]

    def _accepted(self, call: CallEvent, number: int, listener: Descriptor | None) -> Descriptor:
        made = Descriptor(call.process, call.host, number, call.t, accepted=call)
        if listener:
            since = call.t
            if made.ends:
                since = self._begun(call.host, made.ends, call.t)
            made.settings = [setting for setting in listener.settings if setting[0] <= since]
            made.family, made.bound = listener.family, listener.bound
        return made


def followed(events: Iterable[Event]) -> Iterator[tuple[CallEvent, Descriptor | None]]:
    """Each call, and the socket that it acted on, whose options are of no interest. What is over
    is forgotten."""
    known = Descriptors((), lambda host, ends, t: t)
    for event in events:
        known.take(event)
        if isinstance(event, CallEvent):
            yield event, known.of(event)
            known.forget()


def _task(call: CallEvent) -> Task:
    return call.process, call.task, call.name, call.fd


def _note(call: CallEvent, mine: Descriptor) -> None:
    """What a call does with the socket that it acts on."""
    if call.name == "set" and not call.errno:
        words = call.call.partition("||")[0].split()
        mine.settings.append((call.t, words[1].strip("'\""), " ".join(words[2:]) or "1"))
    elif call.name == "bind" and (mine.bound is None or not call.errno):
        mine.bound = call
    elif call.name == "listen" and not call.errno:
        mine.listening = min(mine.listening, call.t)
    elif call.name == "connect" or (call.name == "send" and call.peer):  # by MSG_FASTOPEN
        mine.connected = call
