"""The kinds of a ladder's rows, and the words that every picture has for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from functools import cached_property

from labctl.ground.data import dataclass
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
    """A segment, or `count` equal ones; then it has no `flags`. `t` is when it left (or came, if no
    capture saw it leave), `arrived` when it (the last of them) arrived, None if it never did.
    `sender` is None for one that no host of the lab sent. `connection` counts from 1, see
    Ladder.connections. `octets` is the size of its data. One that stays in its host has `ports`,
    which show its way: `:40312 → :8000`."""

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
        """Whether it left and never arrived."""
        return "lost" in self.marks


@dataclass(frozen=True, slots=True)
class Call(Row):
    """A process begins a socket call; `until` is when it was done, None if it never was. `result`
    is written as by strace(1). A call that waits has a Return of its own later."""

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
        """The host of the call."""
        return self.call.host


@dataclass(frozen=True, slots=True)
class Life(Row):
    """A process starts or ends."""

    host: str
    text: str
    ended: bool


@dataclass(frozen=True, slots=True)
class Bar(Row):
    """A socket is in `state` (in the spelling of `ss`; empty: it is gone) until `until`, which is
    None if the run ended first. `exact`: the kernel's tracepoint says so. Otherwise `ss` showed it
    at `seen`, or the SYN did (`by_syn`), or else the peer's FIN. `inferred`: only segments tell of
    it. `connection` counts from 1, and is 0 for a listener."""

    until: float | None
    host: str
    ends: Ends
    connection: int
    state: str
    exact: bool
    seen: float | None
    by_syn: bool = False
    inferred: bool = False


@dataclass(frozen=True, slots=True)
class Step(Row):
    """A step of the scenario: an act when it begins, a wait or an expectation when it ends."""

    text: str
    outcome: str
    label: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Judged(Row):
    """The moment at which a claim was judged; and, if it did not hold, what its processes had done
    last, line by line."""

    verdict: Verdict
    claim: str
    processes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Look(Row):
    """What `ss` showed on a host at a moment with a caption."""

    host: str
    caption: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Note(Row):
    """What a program wrote, how full an accept queue is, or what nobody can see (`trouble`)."""

    host: str
    text: str
    trouble: bool


@dataclass(frozen=True, slots=True)
class Gap(Row):
    """Nothing happens until `until`: drawn short, named in full. If it is not `quiet`, things
    happen that the picture leaves out."""

    until: float
    quiet: bool = True


@dataclass(frozen=True, slots=True)
class Left(Row):
    """Here something is left out; `text` says what, and where to see it."""

    text: str


MARKS = 3
"""How many causes to name beside a row at most."""


@dataclass(frozen=True)
class Ladder:
    """Everything in order of time. `connections` names the two ends of each connection, from the
    first one on: the caller's end comes first if its SYN was seen. `marks` has the causes that rows
    prove, as numbers from 1 on, by the numbers of the rows. `clocks` says how far clocks may be
    apart, if hosts have several."""

    hosts: tuple[str, ...]
    rows: tuple[Row, ...]
    connections: tuple[Ends, ...]
    marks: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    clocks: str = ""

    def mark(self, rows: Iterable[int]) -> str:
        """`[1,2]`, the causes that some rows prove; empty if there are none, and no more than
        MARKS."""
        found = sorted({number for row in rows for number in self.marks.get(row, ())})
        more = "…" if len(found) > MARKS else ""
        return f"[{','.join(map(str, found[:MARKS]))}{more}]" if found else ""

    def proof(self, cause: int) -> list[tuple[int, Row]]:
        """The rows that prove a cause, and their numbers."""
        return [(n, row) for n, row in enumerate(self.rows) if cause in self.marks.get(n, ())]

    @cached_property
    def inward(self) -> frozenset[int]:
        """The connections of hosts to themselves."""
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
        """The looks with a caption."""
        return [row for row in self.rows if isinstance(row, Look)]

    @property
    def left(self) -> list[str]:
        """What is left out, in words."""
        return [row.text for row in self.rows if isinstance(row, Left)]

    @property
    def states(self) -> list[str]:
        """The states that sockets were in, each once, in order of appearance."""
        states = (r.state for r in self.rows if isinstance(r, Bar))
        return [state for state in dict.fromkeys(states) if state not in ("", UNKNOWN)]

    def number(self, connection: int) -> str:
        """`#2`, to distinguish connections; empty if there is at most one."""
        return f"#{connection}" if connection and len(self.connections) > 1 else ""


# --- Words ----------------------------------------------------------------------------------------


def arrow_words(ladder: Ladder, arrow: Arrow) -> str:
    """`#2 FIN ACK seq 1 ack 12 [lost]`."""
    marks = f"[{', '.join(arrow.marks)}]" if arrow.marks else ""
    return " ".join(filter(None, (unmarked_words(ladder, arrow), marks)))


def unmarked_words(ladder: Ladder, arrow: Arrow) -> str:
    """`#2 FIN ACK seq 1 ack 12`."""
    return " ".join(filter(None, (ladder.number(arrow.connection), arrow.ports, arrow.label)))


UNKNOWN = "unknown"
"""In the place of a state: nobody knows whether the socket is still in the last one."""
INFERRED = "~"
"""Before a state that is inferred from segments."""


def state_words(ladder: Ladder, bar: Bar) -> str:
    """`FIN-WAIT-2 #2`; a listener with its address; `gone` for a socket that is gone. A state that
    is inferred has a sign before it."""
    name = bar.ends[0] if not bar.ends[1] else ladder.number(bar.connection)
    if bar.connection in ladder.inward:  # both of its ends are here
        name = f"{name} {port(bar.ends[0])}"
    sign = INFERRED if bar.inferred and bar.state != UNKNOWN else ""
    return f"{sign}{bar.state or 'gone'} {name}".strip()


def port(endpoint: str) -> str:
    """`:8000`, from an address with its port."""
    return f":{endpoint.rpartition(':')[2]}"


def call_words(call: Call) -> str:
    """`bind :8000 = EADDRINUSE`; if it waits, only the call."""
    return f"{call.text} …" if call.waits else f"{call.text} = {call.result}"


def return_words(call: Call) -> str:
    """`accept = from 198.18.0.3:40312`."""
    return f"{call.text} = {call.result}"


def step_words(step: Step) -> str:
    """`kill server (killed)`; if it was not done, why."""
    label = f" ({step.label})" if step.label else ""
    what = "" if step.outcome in ("done", "held") else f": {step.outcome} {step.detail}".rstrip()
    return f"{step.text}{label}{what}"


def gap_words(gap: Gap) -> str:
    """`3.2 s without news`."""
    return f"{gap.until - gap.t:.1f} s {'without news' if gap.quiet else 'of what is left out'}"


def claim_words(verdict: Verdict) -> str:
    """The claim, with its subject and its tolerance. Older results have no subject."""
    return plain(f"{verdict.subject}: {verdict.expected}" if verdict.subject else verdict.what)


def behind(verdicts: Iterable[Verdict]) -> Iterator[tuple[Verdict, list[str]]]:
    """Each verdict with its evidence, and with what its processes did last, as lines."""
    for verdict, found in last_done(verdicts):
        lines = (plain(line) for line in account_lines(found, verdict.evidence))
        yield verdict, [*verdict.evidence, *lines]


def last_done(verdicts: Iterable[Verdict]) -> Iterator[tuple[Verdict, list[Account]]]:
    """Each verdict with what its processes did last, but nothing about a process twice."""
    known: set[Account] = set()
    for verdict in verdicts:
        found = [account for account in verdict.processes if account not in known]
        known.update(found)
        yield verdict, found
