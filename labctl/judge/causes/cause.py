"""What a cause is, and what the rules that find causes look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from labctl.probes.observations import Segment
from labctl.record.events import CallEvent, ProcessEvent, SocketsEvent
from labctl.record.history import History
from labctl.record.timelines import Timeline, timelines


@dataclass(frozen=True)
class Cause:
    """Why one connection, one bind or one listener came to what it did.

    `id` names the rule that found it. `at` is in seconds of the run. `connection` has the ends of a
    connection, `LOCAL -> REMOTE`. `text` is the whole cause as one sentence, `cure` what to do.
    `evidence` says by what it is known: lines of the record. `refs` says where it is written: RFCs,
    man pages, functions of the kernel. If the record does not decide it, `certain` is false and
    `text` says what would."""

    id: str
    host: str
    at: float
    text: str
    cure: str = ""
    connection: str | None = None
    evidence: tuple[str, ...] = ()
    refs: tuple[str, ...] = ()
    certain: bool = True

    def as_json(self) -> dict[str, Any]:
        """As the result document has it."""
        return {**asdict(self), "evidence": list(self.evidence), "refs": list(self.refs)}

    @property
    def sentence(self) -> str:
        """The text, and the cure."""
        return f"{self.text}; {self.cure}" if self.cure else self.text


@dataclass
class Descriptor:
    """A TCP socket that a process opened, as its calls tell: which options were set on it before it
    was bound or connected, and what was done with it."""

    process: str
    host: str
    family: int = 4
    options: dict[str, str] = field(default_factory=dict)
    bound: CallEvent | None = None
    listening: bool = False
    connected: CallEvent | None = None
    closed: bool = False

    @property
    def local(self) -> str:
        """Where it is bound or connected from; empty if nothing says so."""
        for call in (self.connected, self.bound):
            if call is not None and call.local and not call.errno:
                return call.local
        return ""


class Scene:
    """A history, and what several rules want to know of it, each thing reconstructed once."""

    def __init__(self, history: History) -> None:
        self.history = history
        self._timelines: dict[str, list[Timeline]] = {}

    @cached_property
    def segments(self) -> Sequence[Segment]:
        """All segments, in order of time."""
        return self.history.segments()

    @cached_property
    def by_connection(self) -> dict[frozenset[str], list[Segment]]:
        """The segments between two ends, in both directions."""
        found: dict[frozenset[str], list[Segment]] = defaultdict(list)
        for segment in self.segments:
            found[frozenset((segment.source, segment.target))].append(segment)
        return found

    def timelines(self, host: str) -> list[Timeline]:
        """The life of each connection of a host."""
        if host not in self._timelines:
            self._timelines[host] = timelines(self.history, host)
        return self._timelines[host]

    @cached_property
    def calls(self) -> list[CallEvent]:
        """All calls that ended."""
        found = (e for e in self.history.events if isinstance(e, CallEvent))
        return [call for call in found if call.phase == "done"]

    @cached_property
    def starts(self) -> dict[str, list[float]]:
        """When each process was started."""
        found: dict[str, list[float]] = defaultdict(list)
        for event in self.history.events:
            if isinstance(event, ProcessEvent) and event.phase == "start":
                found[event.process].append(event.t)
        return found

    def looks(self, host: str) -> Iterator[SocketsEvent]:
        """What `ss` showed there, look by look."""
        for event in self.history.events:
            if isinstance(event, SocketsEvent) and event.host == host:
                yield event

    def grown(self, host: str, *counters: str) -> int:
        """By how much these counters have grown, all together."""
        return sum(self.history.growth(host, counter) or 0 for counter in counters)

    def descriptors(self, until: float) -> list[Descriptor]:
        """The sockets that processes opened by calls that ended up to `until`, those of earlier
        starts of a process too: the kernel may keep something of them. A process that forks has its
        sockets twice: that is left out."""
        found: dict[tuple[str, int, int], list[Descriptor]] = defaultdict(list)
        for call in self.calls:
            if call.t > until:
                break
            number = call.start or sum(t <= call.t for t in self.starts.get(call.process, ()))
            mine = found[call.process, number, 0]
            words = call.call.split()
            if call.name == "socket" and not call.errno:
                family = 6 if "tcp6" in words else 4
                mine.append(Descriptor(call.process, call.host, family))
            elif not mine:
                continue
            elif call.name == "set" and not call.errno and len(words) > 1:
                mine[-1].options[words[1]] = " ".join(words[2:]) or "1"
            elif call.name == "bind":
                mine[-1].bound = call
            elif call.name == "listen" and not call.errno:
                mine[-1].listening = True
            elif call.name == "connect":
                mine[-1].connected = call
            elif call.name == "close" and not call.errno and not mine[-1].listening:
                mine[-1].closed = True
        return [each for group in found.values() for each in group]
