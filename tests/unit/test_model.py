"""Small histories of two hosts, made by chance by somebody who knows the truth: no claim may pass
that is false, none may fail that is true, and what is judged live is judged so afterwards."""

from __future__ import annotations

import base64
import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from labctl.language.predicates import Predicate
from labctl.language.predicates.held import held_at
from labctl.language.predicates.segments import SegmentsPattern
from labctl.language.predicates.states import Lasted, Path
from labctl.language.values import Comparison
from labctl.probes.observations import FLIGHT, Observation
from labctl.probes.segments import Captures
from labctl.probes.sockets import State
from labctl.record.events import Event, LabEvent, LossEvent, SocketsEvent, StateEvent, StepEvent
from labctl.record.history import History
from tests import CI
from tests.fake import HEADER, tcp
from tests.sighted import EPOCH, NAMES, record

MANY = CI or "LABCTL_TEST_ALL" in os.environ
HISTORIES = 10_000 if MANY else 1_600
PARTS = 8
SEED = int(os.environ.get("LABCTL_TEST_SEED", "1"))  # others have found what was wrong so far
SERVER, CLIENT = ("198.18.0.2:8000", "[fd00::2]:8000"), ("198.18.0.3:40000", "[fd00::3]:40000")
REPORT = 14  # where the IP header begins in a frame


@dataclass
class Sent:
    """A segment, and what really became of it. `seen` is what its sender's capture would have."""

    seen: Observation
    t: float
    fate: str  # arrives, net, sender, receiver
    again: bool
    arrivals: list[float] = field(default_factory=list)

    @property
    def lost(self) -> bool:
        return self.fate != "arrives"


class World:
    """What two hosts do, by chance, and what captures and reports have of it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.version = chance.random() < 0.3
        self.stamped = chance.random() < 0.7
        self.ends = {"server": SERVER[self.version], "client": CLIENT[self.version]}
        self.idents = {host: chance.randrange(1 << 16) for host in self.ends}
        self.next = {host: chance.randrange(1 << 32) for host in self.ends}
        self.t = 0.5
        self.sent: list[Sent] = []
        self.furthest: dict[str, int] = {}  # what each has sent, counted from its first number
        self.first = dict(self.next)
        self.strays: list[Observation] = []
        self._talk()

    def _talk(self) -> None:
        self._send("client", ("SYN",))
        self._send("server", ("SYN", "ACK"))
        self._send("client", ("ACK",))
        for _ in range(self.chance.randrange(12)):
            host = self.chance.choice(["server", "client"])
            what = self.chance.choice(["data", "data", "ack", "fin", "rst", "repeat", "stray"])
            if what == "data":
                self._send(host, ("PSH", "ACK"), self.chance.randrange(1, 1000))
            elif what == "ack":
                self._send(host, ("ACK",))
            elif what == "fin":
                self._send(host, ("FIN", "ACK"))
            elif what == "rst":
                self._send(host, ("RST",), ahead=self.chance.choice([0, 0, 5000]))
            elif what == "repeat":
                self._repeat(host)
            else:
                self._stray(host)

    def _later(self, low: float, high: float) -> None:
        """Where nothing else tells the order, a host has told by then of what it lost."""
        if self.sent and self.sent[-1].fate == "sender":
            special = {"SYN", "RST"} & set(self.sent[-1].seen.flags)
            low = max(low, 0.0011 if self.stamped and not special else 0.006)
        self.t += self.chance.uniform(low, max(low, high))

    def _send(self, host: str, flags: tuple[str, ...], length: int = 0, ahead: int = 0) -> None:
        self._later(0.0005, self.chance.choice([0.002, 0.1, 0.4]))
        seq = self.next[host] + ahead
        span = length + ("SYN" in flags) + ("FIN" in flags)
        if "RST" not in flags:
            self.next[host] += span
        self._put(host, flags, seq, length, again=False)

    def _repeat(self, host: str) -> None:
        mine = [s for s in self.sent if s.seen.host == host and s.seen.span]
        if mine:
            self._later(0.3, 0.6)  # no kernel repeats much sooner (RFC 6298; TCP_RTO_MIN)
            first = self.chance.choice(mine).seen
            self._put(host, first.flags, first.seq, first.length, again=True)

    def _stray(self, host: str) -> None:
        """What nobody in the lab sent, but arrives as if this host had."""
        self._later(0.001, 0.1)
        seen = self._observation(host, ("ACK",), self.next[host] + 77, 9, EPOCH + self.t)
        self.strays.append(replace(seen, host=self._other(host)))

    def _other(self, host: str) -> str:
        return "server" if host == "client" else "client"

    def _observation(
        self, host: str, flags: tuple[str, ...], seq: int, length: int, at: float
    ) -> Observation:
        bare = flags == ("RST",)  # of a socket that is not there
        self.idents[host] = (self.idents[host] + 1) % (1 << 16)
        ident = 0 if self.version or bare else self.idents[host]
        stamp = 1 + int(at * 1000) % (1 << 31) if self.stamped and not bare else 0
        ack = self.next[self._other(host)] % (1 << 32) if "ACK" in flags else 0
        return Observation(
            host, at, self.ends[host], self.ends[self._other(host)], seq % (1 << 32), ack, flags,
            length, 500, (ident, stamp), (stamp, 0) if stamp else None,
        )  # fmt: skip

    def _put(self, host: str, flags: tuple[str, ...], seq: int, length: int, again: bool) -> None:
        fate = self.chance.choice(["arrives"] * 5 + ["net", "sender", "receiver"])
        seen = self._observation(host, flags, seq, length, EPOCH + self.t)
        sent = Sent(seen, self.t, fate, again)
        if fate in ("arrives", "receiver"):
            sent.arrivals.append(self.t + self.chance.uniform(1e-5, 0.04))
            # What has no mark can't be told from its own copy.
            if fate == "arrives" and any(seen.mark) and self.chance.random() < 0.1:
                sent.arrivals.append(sent.arrivals[0] + self.chance.uniform(1e-5, 0.04))
        self.sent.append(sent)

    # --- What is recorded -------------------------------------------------------------------------

    def captured(self, host: str, until: float = math.inf) -> bytes:
        """What this host captured up to a moment."""
        found = [stray for stray in self.strays if stray.host == host]
        for sent in self.sent:
            if sent.seen.host == host and sent.fate != "sender":
                found.append(sent.seen)
            elif sent.seen.host != host:
                found += [replace(sent.seen, host=host, at=EPOCH + t) for t in sent.arrivals]
        found = [each for each in found if each.at <= EPOCH + until]
        return b"".join(record(each) for each in sorted(found, key=lambda each: each.at))

    def reports(self) -> Iterator[LossEvent]:
        """What hosts tell of what they lost on purpose, each in order."""
        latest = 0.0
        for sent in self.sent:
            if sent.fate in ("sender", "receiver"):
                at = latest = max(latest, sent.t + self.chance.uniform(0, 0.005))
                host = sent.seen.host
                if sent.fate == "receiver":
                    at, host = sent.arrivals[0], self._other(host)
                data = base64.b64encode(record(sent.seen)[16 + REPORT :]).decode()
                yield LossEvent(at, host, data, 0)

    def events(self) -> list[Event]:
        probes = {"probes": ["ss", "capture", "loopback", "trace"]}
        lab = LabEvent(0.0, "", "fake", probes, NAMES, EPOCH)
        return [lab, *sorted(self.reports(), key=lambda event: event.t)]


def claims(world: World) -> Iterator[tuple[SegmentsPattern, list[Sent]]]:
    """Claims by chance, and the segments that each is about."""
    chance = world.chance
    for _ in range(4):
        sender = chance.choice([None, "server", "client"])
        flags = chance.choice([None, ("SYN",), ("FIN",), ("RST",), ("data",), ("ACK",)])
        lost, again = chance.choice([None, True, False]), chance.choice([None, True, False])
        found = [
            s for s in world.sent
            if sender in (None, s.seen.host)
            and (not flags or flags[0] in s.seen.flags or (flags[0] == "data" and s.seen.length))
            and lost in (None, s.lost)
            and again in (None, s.again)
        ]  # fmt: skip
        number = max(0, len(found) + chance.choice([-1, 0, 0, 1]))
        operator = chance.choice(["==", ">=", "<=", ">", "<", "!="])
        pattern = SegmentsPattern.model_construct(
            from_=sender, flags=flags, lost=lost, retransmitted=again,
            count=Comparison(operator, number),
        )  # fmt: skip
        yield pattern, found


@pytest.mark.parametrize("part", range(PARTS))
def test_no_claim_about_segments_is_judged_wrongly(part: int) -> None:
    undecided = 0
    for number in range(HISTORIES // PARTS):
        name = f"LABCTL_TEST_SEED={SEED}, history {part}.{number}"
        chance = random.Random(f"{SEED} {part} {number}")
        world = World(chance)
        events = world.events()
        over = world.t + 1.0
        for moment in (over, chance.uniform(0.5, over)):
            if any(0 <= moment - s.t < 0.01 for s in world.sent if s.fate == "sender"):
                continue  # its host is about to tell of it
            past = [event for event in events if event.t <= moment]
            live = History(past)
            whole = Captures()
            for host in world.ends:
                live.add_packets(moment, host, world.captured(host, moment))
                whole.add(host, world.captured(host))
            again = History(past, whole)
            again.reach(moment)
            for pattern, found in claims(world):
                count = sum(s.t <= moment for s in found)
                truth = pattern.enough(count)
                for history in (live, again):
                    result = pattern.judge(history).result
                    if result == "unknown":
                        assert any(moment - FLIGHT <= s.t <= moment for s in world.sent), name
                        undecided += 1
                    else:
                        assert (result == "pass") == truth, (name, pattern, count, history is live)
    assert undecided < HISTORIES  # of eight a history


@pytest.mark.parametrize("part", range(PARTS))
def test_a_wait_for_segments_measures_when_they_were(part: int) -> None:
    for number in range(HISTORIES // PARTS // 10):
        name = f"LABCTL_TEST_SEED={SEED}, history {part}.{number}"
        chance = random.Random(f"wait {SEED} {part} {number}")
        world = World(chance)
        data = sorted(s.t for s in world.sent if s.seen.host == "client" and s.seen.length)
        if not data:
            continue
        wanted = chance.randrange(1, len(data) + 1)
        pattern = SegmentsPattern.model_construct(from_="client", flags=("data",), at_least=wanted)
        claim = Predicate.model_construct(segments=pattern)
        end = StepEvent(world.t + 1.0, 0, "end", "wait")
        history = History([*world.events(), StepEvent(0.1, 0, "begin", "wait"), end])
        for host in world.ends:
            history.add_packets(end.t, host, world.captured(host))
        held = held_at(claim, history, 0.1, 0.1)
        assert held is not None, name
        late = 0.006 if any(s.fate == "sender" for s in world.sent) else 1e-5  # a report's delay
        assert abs(held.latest - data[wanted - 1]) < late, name


# --- States ---------------------------------------------------------------------------------------

ENDS = [
    ("FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT"), ("FIN-WAIT-1", "CLOSING", "TIME-WAIT"),
    ("CLOSE-WAIT", "LAST-ACK"), (), ("FIN-WAIT-1",), ("CLOSE-WAIT",),
]  # fmt: skip


FIN_TAKEN = ("FIN-WAIT-2", "TIME-WAIT")


class Walk:
    """One connection of the server through its states, and what each probe had of it."""

    def __init__(self, chance: random.Random, start: float) -> None:
        self.remote = f"198.18.0.3:{chance.randrange(32768, 61000)}"
        self.states = [chance.choice(["SYN-RECV", "SYN-SENT"]), "ESTAB", *chance.choice(ENDS)]
        self.times = [start]
        for _ in self.states:
            step = chance.choice([0.00005, 0.003, 0.2, 1.0]) * chance.uniform(0.5, 1.5)
            self.times.append(self.times[-1] + step)
        self.closed = chance.random() < 0.7
        if not self.closed:
            self.times[-1] = math.inf

    def at(self, t: float) -> str | None:
        """The state at a moment."""
        spans = zip(self.states, self.times, self.times[1:], strict=False)
        return next((state for state, begin, end in spans if begin <= t < end), None)

    def trace(self) -> Iterator[StateEvent]:
        """What the tracepoint tells: nothing of minisockets."""
        before = "LISTEN" if self.states[0] == "SYN-RECV" else "UNCONN"
        for state, t in zip(self.states, self.times, strict=False):
            new = "UNCONN" if state == "TIME-WAIT" else state
            yield StateEvent(t, "server", SERVER[0], self.remote, before, new)
            before = new
        if self.closed and before != "UNCONN":
            yield StateEvent(self.times[-1], "server", SERVER[0], self.remote, before, "UNCONN")

    def line(self, t: float) -> str | None:
        """What `ss` shows at a moment."""
        state = self.at(t)
        timer = "timer:(timewait,59sec,0)" if state == "TIME-WAIT" else ""
        return tcp(state, SERVER[0], self.remote, more=timer) if state else None

    def segments(self) -> Iterator[Observation]:
        """Something of it was on the wire whenever it changed; where the peer's FIN did that, it
        was, and the acknowledgement of it."""
        taken = 0
        for before, state, t in zip(
            ["", *self.states], [*self.states, ""], self.times, strict=True
        ):
            if t == math.inf:
                continue
            fin = state in ("CLOSE-WAIT", "CLOSING") or (before, state) == FIN_TAKEN
            if fin:
                yield from self._both("client", t - 1e-6, ("FIN", "ACK"), 100, 1)
                taken = 101
            yield from self._both("server", t + 1e-6 * fin, ("ACK",), 1, taken or 100)

    def _both(
        self, sender: str, t: float, flags: tuple[str, ...], seq: int, ack: int
    ) -> Iterator[Observation]:
        source, target = SERVER[0], self.remote
        if sender == "client":
            source, target = target, source
        for host in ("server", "client"):
            at = EPOCH + t - (1e-6 if host == sender else 0.0)
            yield Observation(host, at, source, target, seq, ack, flags, 0, 9, (0, int(t * 1e6)))


def look(t: float, walks: list[Walk]) -> SocketsEvent:
    lines = [line for walk in walks if (line := walk.line(t))]
    return SocketsEvent(t, "server", "change", "\n".join([HEADER, *lines]))


def lived(chance: random.Random, traced: bool) -> tuple[History, list[Walk], float]:
    """Connections one after the other, looked at within 25 ms of each change that lasts so long."""
    walks, start = [], 1.0
    for _ in range(chance.randrange(1, 3)):
        walks.append(Walk(chance, start))
        start = max(t for t in walks[-1].times if t < math.inf) + chance.uniform(0.3, 1.0)
    end = start + 1.0
    moments = sorted(t for walk in walks for t in walk.times if t < end)
    looks = [look(0.5, walks), *(look(t + chance.uniform(0.004, 0.025), walks) for t in moments)]
    probes = ["ss", "capture", "loopback", *(["trace"] if traced else [])]
    lab = LabEvent(0.0, "", "fake", {"probes": probes}, NAMES, EPOCH)
    events: list[Event] = [*looks, look(end, walks)]
    if traced:
        events += [event for walk in walks for event in walk.trace()]
        foreign = Walk(chance, chance.uniform(0.5, end))  # somebody else's, with our address
        events += [event for event in foreign.trace() if event.t < end]
    history = History([lab, *sorted(events, key=lambda event: event.t)])
    seen = sorted((s for walk in walks for s in walk.segments()), key=lambda s: s.at)
    for host in ("server", "client"):
        history.add_packets(end, host, b"".join(record(s) for s in seen if s.host == host))
    return history, walks, end


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("part", range(PARTS // 2))
def test_no_claim_about_states_is_judged_wrongly(part: int, traced: bool) -> None:
    decided = 0
    for number in range(HISTORIES // PARTS // 2):
        name = f"LABCTL_TEST_SEED={SEED}, history {part}.{number}"
        chance = random.Random(f"states {SEED} {part} {number} {traced}")
        history, walks, end = lived(chance, traced)
        other = Walk(chance, 1.0)
        for claimed in (*walks, other):
            path = Path(tuple(State(state) for state in claimed.states), claimed.closed)
            truth = any(
                (walk.states, walk.closed) == (claimed.states, claimed.closed)
                or (walk.closed == claimed.closed and ends_so(walk.states, claimed.states))
                for walk in walks
            )
            result = path.judge("server", history).result
            assert result == "unknown" or (result == "pass") == truth, (name, claimed.states)
            decided += result != "unknown"
            index = chance.randrange(len(claimed.states))
            state = claimed.states[index]
            length = min(claimed.times[index + 1], end) - claimed.times[index]
            lasted = Lasted("server", State(state), length, max(0.3, length / 5))
            durations = [
                min(walk.times[n + 1], end) - walk.times[n]
                for walk in walks for n, s in enumerate(walk.states) if s == state
            ]  # fmt: skip
            true = any(abs(d - length) <= lasted.tolerance for d in durations)
            result = lasted.judge(history).result
            if all(walk.closed for walk in walks):
                assert result == "unknown" or (result == "pass") == true, (name, state, length)
    assert decided > HISTORIES // PARTS // 4


def ends_so(walked: list[str], claimed: list[str]) -> bool:
    """A path may begin later than the connection did."""
    return walked[-len(claimed) :] == claimed
