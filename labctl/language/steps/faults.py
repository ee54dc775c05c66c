"""Steps that make the network fail. The agents of the hosts do the work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from labctl.backends import protocol
from labctl.ground.data import dataclass
from labctl.ground.plain import shown
from labctl.lab import faults, icmp
from labctl.language.endpoints import parse_port
from labctl.language.predicates import SOME
from labctl.language.predicates.lost import Lost
from labctl.language.predicates.pattern import BARE, Flags, check_bare
from labctl.language.steps.base import Step
from labctl.language.values import (
    Label,
    Model,
    Percent,
    Truth,
    known,
    names,
    parse_duration,
    problem,
    shaped,
    unknown,
)
from labctl.record.events import NetEvent, StepEvent, TroubleEvent

if TYPE_CHECKING:
    from labctl.lab.lab import Lab
    from labctl.record.history import History

MOST_LOST = 10_000


@dataclass(frozen=True)
class End:
    """`server`, `server.v6` or `server:8000`: where segments come from, or go to."""

    name: str
    port: int | None

    @property
    def host(self) -> str:
        """Its host."""
        return self.name.partition(".")[0]

    def resolve(self, history: History, here: bool = False) -> faults.End:
        """Its addresses; a bare host name means all of the host's, and those that others see if it
        is behind a NAT. `here`: the host itself acts on them, so addresses that it gets later
        count, too."""
        found = {*history.addresses(self.name)}
        for router, network in history.networks.hidden_by(self.host):
            found |= history.addresses(f"{router}.{network}")
            found |= history.addresses(f"{router}.{network}.v6")
        return faults.End(tuple(sorted(found)), self.port, here and self.name == self.host)

    def end(self, history: History) -> str:
        """The one end that it stands for; empty without a port."""
        address = history.lab.addresses.get(self.name, "") if history.lab else ""
        shown = f"[{address}]" if ":" in address else address
        return f"{shown}:{self.port}" if shown and self.port is not None else ""

    def __str__(self) -> str:
        return self.name if self.port is None else f"{self.name}:{self.port}"


def _end(value: Any, info: ValidationInfo) -> End:
    if isinstance(value, End):
        return value
    hosts = names(info).places
    name, colon, digits = value.partition(":") if isinstance(value, str) else ("", "", "")
    port = parse_port(digits)
    if not name or (colon and port is None):
        raise problem(f"{shown(value)} is no side of a connection; allowed: HOST or HOST:PORT, "
                      "a port from 1 to 65535 and no zeros that are not needed")  # fmt: skip
    if name not in hosts:
        raise problem(unknown("host", name, hosts))
    return End(name, port)


Side = Annotated[End, BeforeValidator(_end), shaped("Side")]
SENDER, RECEIVER = "sender", "receiver"


def _place(value: Any, info: ValidationInfo) -> str:
    """`sender`, `receiver`, or a router, maybe one of its links: `gate`, `gate.outside`."""
    found = [SENDER, RECEIVER]
    for host, networks in names(info).networks.items():
        if len(networks) > 1:
            found += [host, *(f"{host}.{network}" for network in networks)]
    return known("place", value, dict.fromkeys(found))


Place = Annotated[str, BeforeValidator(_place), shaped("Name")]


def _link(value: Any, info: ValidationInfo) -> str:
    """`gate`: all links of a host; `gate.outside`: one; `outside`: all links of a network."""
    mine = names(info).networks
    found = dict.fromkeys([*names(info).hosts, *(n for each in mine.values() for n in each)])
    found |= dict.fromkeys(f"{host}.{network}" for host in mine for network in mine[host])
    return known("link" if mine else "host", value, found)


LinkName = Annotated[str, BeforeValidator(_link), shaped("Name")]


def linked(name: str, lab: Lab) -> list[tuple[str, str]]:
    """The hosts of links, and the device of each there; none for all of a host's."""
    host, _, network = name.partition(".")
    if network:
        return [(host, lab.device(host, network))]
    if host in lab.hosts:
        return [(host, "")]
    return [(each, lab.device(each, name)) for each in lab.history.networks.members[name]]


def _answer(value: Any) -> str:
    return known("answer", value, icmp.ANSWERS)


Answer = Annotated[str, BeforeValidator(_answer), shaped("Answer")]


class DropPattern(Model):
    """Which segments to lose, where, and how many."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["from"]}, {"required": ["to"]}], **BARE}
    )

    from_: Side | None = Field(None, alias="from")
    to: Side | None = None
    flags: Flags = ()
    bare: Truth = False
    count: Annotated[int, Field(ge=1, le=MOST_LOST, strict=True)] | None = None
    at_most: Annotated[int, Field(ge=1, le=MOST_LOST, strict=True)] | None = None
    injected: Truth | None = None
    at: Place = RECEIVER

    @model_validator(mode="after")
    def _decided(self, info: ValidationInfo) -> DropPattern:
        if self.from_ is None and self.to is None:
            raise problem("'from' or 'to' is needed, or both; each a HOST or HOST:PORT")
        if self.bare:
            check_bare(self.flags)
        if self.count is not None and self.at_most is not None:
            raise problem("'count' loses as many as it says, 'at_most' maybe fewer; keep one")
        counting = "count" if self.count is not None else "at_most"
        if self.limit is not None and len(self.places(list(names(info).hosts))) > 1:
            missing = "to" if self.at == RECEIVER else "from"
            raise problem(f"{counting!r} counts on one host; say which, by {missing!r}")
        router = self.router[0]
        if router and router in [end.host for end in (self.from_, self.to) if end]:
            raise problem(f"{router} forwards nothing that is from it or for it; leave 'at' out, "
                          "or name other hosts", key="at")  # fmt: skip
        return self

    @property
    def router(self) -> tuple[str, str]:
        """The host that loses what it forwards, and the network of the link where it does; empty
        without any."""
        if self.at in (SENDER, RECEIVER):
            return "", ""
        host, _, network = self.at.partition(".")
        return host, network

    @property
    def limit(self) -> int | None:
        """How many to lose before it heals itself."""
        return self.at_most if self.count is None else self.count

    @property
    def answer(self) -> list[str]:
        """The rules that refuse what is lost; none to lose it without a word."""
        return []

    @property
    def _end(self) -> End | None:
        return self.to if self.at == RECEIVER else self.from_

    def places(self, hosts: list[str]) -> list[str]:
        """Those of these hosts that lose segments."""
        if self.router[0]:
            return [self.router[0]]
        if self._end is not None:
            return [self._end.host]
        other = self.from_ or self.to
        assert other
        return [host for host in hosts if host != other.host]

    def compiled(self, history: History, device: str = "") -> faults.Drop:
        """For nftables; `device` is the link where a router loses them, if that matters."""
        return faults.Drop(
            self.from_.resolve(history, self.at == SENDER) if self.from_ else None,
            self.to.resolve(history, self.at == RECEIVER) if self.to else None,
            {RECEIVER: "input", SENDER: "output"}.get(self.at, "forward"),
            frozenset(self.flags),
            self.bare,
            self.limit,
            self.injected,
            self.answer,
            device,
        )

    def __str__(self) -> str:
        words = [f"{self.count} x"] if self.count else []
        words += [f"at most {self.at_most} x"] if self.at_most else []
        words += ["bare"] if self.bare else []
        words += [" ".join(self.flags) or "all"]
        if self.injected is not None:
            words += ["injected" if self.injected else "not injected"]
        words += [f"from {self.from_}"] if self.from_ else []
        words += [f"to {self.to}"] if self.to else []
        words += ["at the sender"] if self.at == SENDER else []
        words += [f"at {self.at}"] if self.router[0] else []
        return " ".join(words)


class RejectPattern(DropPattern):
    """Which segments to refuse, where, how many, and how."""

    with_: Answer = Field(alias="with")

    @property
    def answer(self) -> list[str]:
        return icmp.ANSWERS[self.with_]

    def __str__(self) -> str:
        return f"{super().__str__()} with {self.with_}"


class _Losing(Step):
    """A step that loses segments, as its pattern says."""

    done: ClassVar[str]

    @property
    def pattern(self) -> DropPattern:
        """Which segments."""
        found = getattr(self, self.verb)
        assert isinstance(found, DropPattern)
        return found

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"nft"})

    def act(self, lab: Lab) -> None:
        lab.require(self.needs)
        number = lab.history.step
        router, network = self.pattern.router
        device = lab.device(router, network) if network else ""
        compiled = self.pattern.compiled(lab.history, device)
        log, rules = compiled.log(number), compiled.rules(number)
        for host in self.pattern.places(lab.hosts):
            group = faults.LOG_GROUP
            answer = lab.fault(host, protocol.Drop(number, group, log, rules))
            if answer.unlogged:
                lab.emit(TroubleEvent(lab.now(), host, "capture", answer.unlogged))

    def in_the_end(self, index: int) -> Lost:
        return Lost(index, str(self), self.fewest, self.pattern.limit, self.about, self.done)

    @property
    def fewest(self) -> int:
        """How many it has to lose."""
        return 0 if self.pattern.at_most else self.pattern.count or 1

    @property
    def about(self) -> tuple[str, ...]:
        return tuple(end.host for end in (self.pattern.from_, self.pattern.to) if end)


class Drop(_Losing):
    """Loses segments, by their meaning, until it is healed or has lost as many as it should. It
    claims that it lost some, which is judged at the end of the run."""

    verb = "drop"
    done = "lost"
    drop: DropPattern


class Deaf(Drop):
    """Loses what the kernel of a crafted peer would hear: maybe nobody sends it anything."""

    @property
    def fewest(self) -> int:
        return 0


class Reject(_Losing):
    """Refuses segments: as `drop`, but their sender gets an RST or an ICMP error."""

    verb = "reject"
    done = "rejected"
    reject: RejectPattern


class Heal(Step):
    """Ends a drop or a rejection, by its label, or all of these and the effects of `net`."""

    verb = "heal"
    heal: Label
    everything: ClassVar[str] = "all"

    @property
    def labels(self) -> frozenset[str]:
        return frozenset({self.heal} - {self.everything})

    def act(self, lab: Lab) -> None:
        ends = [event for event in lab.history.events.of(StepEvent) if event.phase == "end"]
        numbers = [e.index for e in ends if self.heal in (self.everything, e.label)]
        for host in lab.hosts:
            answer = lab.fault(host, protocol.Heal(numbers))
            for event in faults.tallied(lab.history, answer.t, host, answer.lost):
                lab.emit(event)
            if self.heal == self.everything:
                lab.fault(host, protocol.Shape([]))


class Cut(Step):
    """Takes links down: those of a host, one of them, or those of a network. Their addresses stay;
    what others send there is lost."""

    verb = "cut"
    cut: LinkName

    def act(self, lab: Lab) -> None:
        for host, device in linked(self.cut, lab):
            lab.fault(host, protocol.Link(up=False, device=device))


class Join(Step):
    """Takes links up again."""

    verb = "join"
    join: LinkName

    def act(self, lab: Lab) -> None:
        for host, device in linked(self.join, lab):
            lab.fault(host, protocol.Link(up=True, device=device))


RATE = re.compile(r"\d+(?:\.\d+)?(?:[kmgt]i?)?(?:bit|bps)", re.IGNORECASE | re.ASCII)
LONGEST_DELAY = 60.0


def _rate(value: Any) -> str:
    if not isinstance(value, str) or not RATE.fullmatch(value) or not re.search("[1-9]", value):
        raise problem(f"{shown(value)} is no rate; allowed: 500kbit, 1mbit, or 1mbps for bytes")
    return value.lower()


def _delay(value: Any) -> float:
    seconds = parse_duration(value)
    if seconds > LONGEST_DELAY:
        raise problem(f"a delay of {seconds:g} s is too long; allowed: {LONGEST_DELAY:g} s at most")
    return seconds


Rate = Annotated[str, BeforeValidator(_rate), shaped("Rate")]
Delay = Annotated[float, BeforeValidator(_delay), shaped("Delay")]


class NetPattern(Model):
    """What happens to everything that leaves by a link."""

    model_config = ConfigDict(json_schema_extra={"dependentRequired": {"reorder": ["delay"]}})

    delay: Delay | None = None
    loss: Percent | None = None
    rate: Rate | None = None
    reorder: Percent | None = None
    duplicate: Percent | None = None

    @model_validator(mode="after")
    def _reorders_what_waits(self) -> NetPattern:
        if self.reorder is not None and not self.delay:
            raise problem("'reorder' needs a 'delay': some segments overtake those that wait")
        return self

    @property
    def netem(self) -> faults.Netem:
        """For tc."""
        return faults.Netem(**self.model_dump())

    def __str__(self) -> str:
        return str(self.netem)


class Net(Step):
    """Makes links slow or unreliable: those of a host, one of them, or those of a network."""

    verb = "net"
    net: Annotated[dict[LinkName, NetPattern], SOME]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"netem"} if any(p.netem.words for p in self.net.values()) else ())

    def act(self, lab: Lab) -> None:
        lab.require(self.needs)
        for name, pattern in self.net.items():
            for host, device in linked(name, lab):
                answer = lab.fault(host, protocol.Shape(pattern.netem.words, device))
                lab.emit(NetEvent(answer.t, host, pattern.netem.slowest))
