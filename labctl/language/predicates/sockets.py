"""`sockets: {HOST: STATE}`: a host's sockets, by the last look of `ss`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from labctl.ground.data import dataclass
from labctl.language.endpoints import ANY, Endpoint, parse_endpoint, parse_port
from labctl.language.facts import Facts, Range
from labctl.language.predicates.finding import Claimed, Finding, Result
from labctl.language.values import Comparison, Count, Model, StateName, names, problem, shaped
from labctl.probes.sockets import (
    RESOLVER,
    Socket,
    State,
    accept_queue,
)
from labctl.record.history import History
from labctl.record.holders import told


def _place(value: Any, info: ValidationInfo) -> Endpoint:
    return value if isinstance(value, Endpoint) else parse_endpoint(value, names(info).places)


AnyEndpoint = Annotated[Endpoint, BeforeValidator(_place), shaped("AnyEndpoint")]
EVIDENCE = 50
"""How many sockets a verdict shows."""
SOME, NO_CONNECTION = Comparison(">=", 1), Comparison("==", 0)
BOUND = "bound"
"""The probe of sockets that are only bound."""
UNLISTED = (
    "; this ss lists no socket that is bound and no more: take a newer one (--os), and a kernel of "
    "6.8 or later"
)
TimerName = Literal["on", "keepalive", "timewait", "persist", "unknown"]


class SocketPattern(Model):
    """Sockets of one kind, and how many there must be."""

    state: StateName | None = None
    count: Count | None = None
    recv_q: Count | None = Field(None, alias="recv-q")
    send_q: Count | None = Field(None, alias="send-q")
    timer: TimerName | None = None
    local: AnyEndpoint | None = None
    peer: AnyEndpoint | None = None

    @model_validator(mode="after")
    def _possible(self) -> SocketPattern:
        """A pattern that no socket can match would always pass if it claims that there is none."""
        alone = self.state in (State.LISTEN, State.UNCONN)
        if self.peer and alone and (self.peer.host, self.peer.port) != ("", ANY):
            raise problem(f"a socket in {self.state} has no peer; leave it out")
        if self.peer and self.peer.port == ANY and not alone:
            raise problem("the peer of a connection has a port; name it, or leave it out")
        if self.local and self.local.port == ANY:
            raise problem("a socket has a port; name it, or leave it out")
        if RESOLVER in (self.local and self.local.host, self.peer and self.peer.host):
            raise problem(f"no socket of {RESOLVER} counts: an engine's resolver has that address; "
                          "take another one")  # fmt: skip
        return self

    def matches(self, socket: Socket, history: History) -> bool:
        """Whether a socket is one of these."""
        if self.state is None:
            if not socket.connection:
                return False
        elif socket.state != self.state:
            return False
        if self.timer is not None and (socket.timer is None or socket.timer.name != self.timer):
            return False
        return (
            (self.recv_q is None or self.recv_q.holds(socket.recv_q))
            and (self.send_q is None or self.send_q.holds(socket.send_q))
            and all(
                place is None or place.covers(end, history.addresses(place.host))
                for place, end in ((self.local, socket.local), (self.peer, socket.remote))
            )
        )

    def misses(self, socket: Socket, history: History) -> bool:
        """Whether a socket in this state is at another local place than it should be."""
        if self.local is None or self.state not in (None, socket.state):
            return False
        return not self.local.covers(socket.local, history.addresses(self.local.host))

    @property
    def listens(self) -> int | None:
        """The port at which a listener must be; None if it claims no such thing."""
        if self.state is not State.LISTEN or self.local is None or self.wanted.holds(0):
            return None
        return parse_port(self.local.port)

    @property
    def wanted(self) -> Comparison:
        """How many there must be; by default one or more."""
        return self.count or SOME

    def __str__(self) -> str:
        words = [f"{self.count} x"] if self.count else []
        words.append(str(self.state or "connection"))
        for name, value in (("recv-q", self.recv_q), ("send-q", self.send_q)):
            words += [f"{name} {value}"] if value else []
        for name, text in (("timer", self.timer), ("local", self.local), ("peer", self.peer)):
            words += [f"{name} {text}"] if text else []
        return " ".join(words)


def _pattern(value: Any, info: ValidationInfo) -> SocketPattern | Literal["none"]:
    if value == "none":
        return "none"
    if isinstance(value, str):
        return SocketPattern.model_validate({"state": value}, context=info.context)
    return SocketPattern.model_validate(value, context=info.context)


def _patterns(value: Any, info: ValidationInfo) -> HostSockets:
    items = value if isinstance(value, list) else [value]
    if not items:
        raise problem("an empty list claims nothing; allowed: a state, none, a mapping, a list")
    patterns = tuple(_pattern(item, info) for item in items)
    bare = frozenset(
        p.state for p, item in zip(patterns, items, strict=True)
        if isinstance(item, str) and isinstance(p, SocketPattern) and p.state
    )  # fmt: skip
    if "none" in patterns and len(patterns) > 1:
        raise problem("'none' stands alone; it can't be in a list with others")
    return HostSockets(patterns, bare)


@dataclass(frozen=True)
class HostSockets:
    """What one host's sockets must be. `bare` are the states named without a mapping: if there are
    any, no connection may be in a state that is not named."""

    patterns: tuple[SocketPattern | Literal["none"], ...]
    bare: frozenset[State]

    def judge(self, host: str, history: History) -> Finding:
        """The finding for one host."""
        states = (p.state for p in self.patterns if isinstance(p, SocketPattern))
        bounds = [NO_CONNECTION if p == "none" else p.wanted for p in self.patterns]
        wanted = Facts(
            states=tuple(state for state in states if state),
            count=bounds[0].bounds if len(bounds) == 1 else None,
            listens=tuple(p.listens for p in self.patterns if p != "none" and p.listens),
        )
        claimed = Claimed(host, str(self), (host,), wanted)
        seen = history.sockets.get(host)
        if seen is None:
            why = "no look at its sockets"
            if history.imported:
                why = "a capture shows no sockets; import a look of ss with it (--ss)"
            return Finding("unknown", claimed, why)
        if trouble := history.trouble.get((host, "ss")):
            return Finding("unknown", claimed, trouble.text)
        connections = [s for s in seen.sockets if s.connection]
        counts = [
            len(connections) if p == "none" else sum(p.matches(s, history) for s in seen.sockets)
            for p in self.patterns
        ]
        results = [
            self._judge(pattern, count, history)
            for pattern, count in zip(self.patterns, counts, strict=True)
        ]
        if self.bare and self.bare != {State.LISTEN}:
            named = {p.state for p in self.patterns if isinstance(p, SocketPattern)}
            results += ["fail"] * any(s.state not in named for s in connections)
        result: Result = next((r for r in ("fail", "unknown") if r in results), "pass")
        shown = seen.sockets[:EVIDENCE]
        lines, holders = told(history, seen, shown)
        if len(seen.sockets) > EVIDENCE:
            lines = (*lines, f"and {len(seen.sockets) - EVIDENCE} more")
        away = {
            socket for pattern, judged in zip(self.patterns, results, strict=False)
            for socket in seen.sockets
            if judged == "fail" and pattern != "none" and pattern.misses(socket, history)
        }  # fmt: skip
        actual = summary(seen.sockets, away) + (UNLISTED if result == "unknown" else "")
        measured = Facts(
            count=Range(counts[0], counts[0]) if len(counts) == 1 else None,
            sockets=dict(Counter(s.state for s in seen.sockets)),
            connections=tuple(s.ends for s in shown if s.connection),
            holders=holders,
        )
        return Finding(result, claimed, actual, lines, measured)

    def _judge(
        self, pattern: SocketPattern | Literal["none"], count: int, history: History
    ) -> Result:
        """The result of one of the patterns, if so many sockets match it."""
        if pattern == "none":
            return "fail" if count else "pass"
        listed = pattern.state is not State.UNCONN or history.watched_by(BOUND)
        if not listed and not pattern.wanted.settled(count):
            return "unknown"
        return "pass" if pattern.wanted.holds(count) else "fail"

    def __str__(self) -> str:
        return " and ".join("no connection" if p == "none" else str(p) for p in self.patterns)


def summary(sockets: Sequence[Socket], away: Collection[Socket] = ()) -> str:
    """`LISTEN accept queue 0/20, 2 x TIME-WAIT`, or `no sockets`. Those that are `away` from where
    they should be have their local ends: `LISTEN :9100 accept queue 0/20`."""
    counts = Counter(
        _kind(s, f" {s.local.end}" if s in away else "")
        for s in sorted(sockets, key=lambda s: not s.is_listener)
    )
    words = [name if n == 1 else f"{n} x {name}" for name, n in counts.items()]
    if len(words) > 6:
        words = [*words[:5], f"and {len(sockets)} sockets in all"]
    return ", ".join(words) or "no sockets"


def _kind(socket: Socket, place: str) -> str:
    if socket.is_listener:
        return f"LISTEN{place} accept queue {accept_queue(socket)}"
    queue = f" recv-q {socket.recv_q}" if socket.recv_q else ""
    queue += f" send-q {socket.send_q}" if socket.send_q else ""
    return f"{socket.state}{place}{queue}"


SocketsClaim = Annotated[
    HostSockets,
    BeforeValidator(lambda v, info: v if isinstance(v, HostSockets) else _patterns(v, info)),
    shaped("SocketsClaim"),
]
