"""What a ladder consists of: the kinds of row, and the words that every picture has for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from labctl.ground.plain import plain
from labctl.judge.accounts import Account, account_lines
from labctl.judge.check import Verdict
from labctl.probes.sockets import Ends


@dataclass(frozen=True, slots=True)
class Row:
    """Something at `t`, in seconds of the run."""

    t: float


@dataclass(frozen=True, slots=True)
class Arrow(Row):
    """A segment, or `count` like ones; then it has no `flags`. `t` is when it left (or came, where
    no capture saw it leave), `arrived` when it (the last of them) came, None where it never did.
    `sender` is None for one that no host of the lab sent. `connection` counts from 1, see
    Ladder.connections. `octets` are of its data. One that stays in its host has `ports`, which tell
    its way: `:40312 → :8000`."""

    arrived: float | None
    sender: str | None
    receiver: str | None
    connection: int
    flags: tuple[str, ...]
    numbers: str
    octets: int
    marks: tuple[str, ...] = ()
    count: int = 1
    ports: str = ""

    @property
    def label(self) -> str:
        """`FIN ACK seq 1 ack 12`."""
        return " ".join(filter(None, (*self.flags, self.numbers)))

    @property
    def inward(self) -> bool:
        """Whether it stays in its host."""
        return self.sender is not None and self.sender == self.receiver

    @property
    def lost(self) -> bool:
        """Whether it left and never came."""
        return "lost" in self.marks


@dataclass(frozen=True, slots=True)
class Call(Row):
    """A process enters a socket call; `until` is when it was done, None where it never was.
    `result` is as strace(1) would put it. A call that waits has a Return of its own later."""

    until: float | None
    host: str
    text: str
    result: str
    failed: bool
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Return(Row):
    """A call that waited is done."""

    call: Call

    @property
    def host(self) -> str:
        """Where."""
        return self.call.host


@dataclass(frozen=True, slots=True)
class Life(Row):
    """A process starts or ends."""

    host: str
    text: str
    ended: bool


@dataclass(frozen=True, slots=True)
class Bar(Row):
    """A socket is in `state` (as `ss` spells it; empty: it is gone) until `until`, which is None
    where the run ended first. `exact` where the kernel's tracepoint said so, otherwise seen by
    `ss` at `seen`, or `by_syn`, or else by the peer's FIN. `connection` counts from 1, 0 for a
    listener."""

    until: float | None
    host: str
    ends: Ends
    connection: int
    state: str
    exact: bool
    seen: float | None
    by_syn: bool = False


@dataclass(frozen=True, slots=True)
class Step(Row):
    """A step of the scenario: an act when it begins, a wait or an expectation when it ends."""

    text: str
    outcome: str
    label: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Judged(Row):
    """The moment that a claim was judged at; and what its processes had done last, line by line,
    where it did not hold."""

    verdict: Verdict
    claim: str
    processes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Look(Row):
    """What `ss` saw on a host at a moment that has a caption."""

    host: str
    caption: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Note(Row):
    """What a program wrote, how full an accept queue is, or what there is no seeing (`trouble`)."""

    host: str
    text: str
    trouble: bool


@dataclass(frozen=True, slots=True)
class Gap(Row):
    """Nothing happens until `until`: drawn short, named in full. Where it is not `quiet`, things
    happen that are left out."""

    until: float
    quiet: bool = True


@dataclass(frozen=True, slots=True)
class Left(Row):
    """Here something is left out; `text` says what, and where it can be seen."""

    text: str


@dataclass(frozen=True)
class Ladder:
    """Everything in order of time. `connections` names the two ends of each connection, from the
    first one on: the caller's end first where its SYN was seen."""

    hosts: tuple[str, ...]
    rows: tuple[Row, ...]
    connections: tuple[Ends, ...]

    @cached_property
    def inward(self) -> frozenset[int]:
        """The connections that a host has with itself."""
        found = {row.connection for row in self.rows if isinstance(row, Arrow) and row.inward}
        bars = {(r.host, r.ends) for r in self.rows if isinstance(r, Bar) and r.connection}
        return frozenset(found) | {
            number
            for number, ends in enumerate(self.connections, 1)
            for host in self.hosts
            if (host, ends) in bars and (host, ends[::-1]) in bars
        }

    @property
    def looks(self) -> list[Look]:
        """The looks that have a caption."""
        return [row for row in self.rows if isinstance(row, Look)]

    @property
    def left(self) -> list[str]:
        """What is left out, in words."""
        return [row.text for row in self.rows if isinstance(row, Left)]

    @property
    def states(self) -> list[str]:
        """The states that sockets were in, each once, in order of appearance."""
        return list(dict.fromkeys(r.state for r in self.rows if isinstance(r, Bar) and r.state))

    def number(self, connection: int) -> str:
        """`#2`, to tell connections apart; nothing where there is one at most."""
        return f"#{connection}" if connection and len(self.connections) > 1 else ""


# --- Words ----------------------------------------------------------------------------------------


def arrow_words(ladder: Ladder, arrow: Arrow) -> str:
    """`#2 FIN ACK seq 1 ack 12 [lost]`."""
    marks = f"[{', '.join(arrow.marks)}]" if arrow.marks else ""
    return " ".join(filter(None, (unmarked_words(ladder, arrow), marks)))


def unmarked_words(ladder: Ladder, arrow: Arrow) -> str:
    """`#2 FIN ACK seq 1 ack 12`."""
    return " ".join(filter(None, (ladder.number(arrow.connection), arrow.ports, arrow.label)))


def state_words(ladder: Ladder, bar: Bar) -> str:
    """`FIN-WAIT-2 #2`; a listener with its address; what is no more as `gone`."""
    name = bar.ends[0] if not bar.ends[1] else ladder.number(bar.connection)
    if bar.connection in ladder.inward:  # both of its ends are here
        name = f"{name} {port(bar.ends[0])}"
    return f"{bar.state or 'gone'} {name}".strip()


def port(endpoint: str) -> str:
    """`:8000`, of an address with its port."""
    return f":{endpoint.rpartition(':')[2]}"


def call_words(call: Call) -> str:
    """`bind :8000 = EADDRINUSE`; of one that waits what is being done."""
    return f"{call.text} …" if call.waits else f"{call.text} = {call.result}"


def return_words(call: Call) -> str:
    """`accept = from 198.18.0.3:40312`."""
    return f"{call.text} = {call.result}"


def step_words(step: Step) -> str:
    """`kill server (killed)`; of one that was not done why."""
    label = f" ({step.label})" if step.label else ""
    what = "" if step.outcome in ("done", "held") else f": {step.outcome} {step.detail}".rstrip()
    return f"{step.text}{label}{what}"


def gap_words(gap: Gap) -> str:
    """`3.2 s without news`."""
    return f"{gap.until - gap.t:.1f} s {'without news' if gap.quiet else 'of what is left out'}"


def claim_words(verdict: Verdict) -> str:
    """What was claimed, with its subject and its tolerance. Older results have no subject."""
    return plain(f"{verdict.subject}: {verdict.expected}" if verdict.subject else verdict.what)


def behind(verdicts: Iterable[Verdict]) -> Iterator[tuple[Verdict, list[str]]]:
    """Each verdict with its evidence, and with what its processes did last, as lines."""
    for verdict, found in last_done(verdicts):
        lines = (plain(line) for line in account_lines(found, verdict.evidence))
        yield verdict, [*verdict.evidence, *lines]


def last_done(verdicts: Iterable[Verdict]) -> Iterator[tuple[Verdict, list[Account]]]:
    """Each verdict with what its processes did last. What has been told of a process is not told
    again."""
    known: set[Account] = set()
    for verdict in verdicts:
        found = [account for account in verdict.processes if account not in known]
        known.update(found)
        yield verdict, found
