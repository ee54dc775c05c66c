"""Steps that make the network fail. What they do is done by the agents of the hosts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, model_validator

from labctl import faults
from labctl.history import StepEvent, TroubleEvent
from labctl.predicates.lost import Lost
from labctl.predicates.segments import Flags
from labctl.steps.base import Step, StepFailed
from labctl.values import Label, Model, host_names, names, problem, shown, unknown

if TYPE_CHECKING:
    from labctl.history import History
    from labctl.lab import Lab

MOST_LOST = 10_000


@dataclass(frozen=True)
class End:
    """`server`, `server.v6` or `server:8000`: where segments come from, or go to."""

    name: str
    port: int | None

    @property
    def host(self) -> str:
        """The host that it is on."""
        return self.name.partition(".")[0]

    def resolve(self, history: History) -> faults.End:
        """Its addresses: all of a host's where the name is no more than that."""
        return faults.End(tuple(sorted(history.addresses(self.name))), self.port)

    def __str__(self) -> str:
        return self.name if self.port is None else f"{self.name}:{self.port}"


def _end(value: Any, info: ValidationInfo) -> End:
    if isinstance(value, End):
        return value
    known = list(host_names(names(info).hosts))
    match = re.fullmatch(r"([^:]+)(?::(\d{1,5}))?", value) if isinstance(value, str) else None
    port = int(match[2]) if match and match[2] else None
    if not match or (port is not None and not 0 < port < 65536):
        raise problem(f"{shown(value)} is no side of a connection; allowed: HOST or HOST:PORT")
    if match[1] not in known:
        raise problem(unknown("host", match[1], known))
    return End(match[1], port)


Side = Annotated[End, BeforeValidator(_end), WithJsonSchema({"type": "string"})]


class DropPattern(Model):
    """Which segments are lost, where, and how many."""

    from_: Side | None = Field(None, alias="from")
    to: Side | None = None
    flags: Flags = ()
    bare: bool = False
    count: Annotated[int, Field(ge=1, le=MOST_LOST, strict=True)] | None = None
    at: Literal["sender", "receiver"] = "receiver"

    @model_validator(mode="after")
    def _decided(self, info: ValidationInfo) -> DropPattern:
        if self.from_ is None and self.to is None:
            raise problem("a drop needs 'from' or 'to', or both; each a HOST or HOST:PORT")
        if self.bare and (not self.flags or "data" in self.flags):
            raise problem("'bare' segments have the flags in 'flags' and nothing else; name some")
        if self.count is not None and len(self.places(list(names(info).hosts))) > 1:
            missing = "to" if self.at == "receiver" else "from"
            raise problem(f"'count' counts on one host; say which, by {missing!r}")
        return self

    @property
    def _end(self) -> End | None:
        return self.to if self.at == "receiver" else self.from_

    def places(self, hosts: list[str]) -> list[str]:
        """The hosts, among these, where segments are lost."""
        if self._end is not None:
            return [self._end.host]
        other = self.from_ or self.to
        assert other
        return [host for host in hosts if host != other.host]

    def compiled(self, history: History) -> faults.Drop:
        """For nftables."""
        return faults.Drop(
            self.from_.resolve(history) if self.from_ else None,
            self.to.resolve(history) if self.to else None,
            "input" if self.at == "receiver" else "output",
            frozenset(self.flags),
            self.bare,
            self.count,
        )

    def __str__(self) -> str:
        words = [f"{self.count} x"] if self.count else []
        words += ["bare"] if self.bare else []
        words += [" ".join(self.flags) or "all"]
        words += [f"from {self.from_}"] if self.from_ else []
        words += [f"to {self.to}"] if self.to else []
        words += ["at the sender"] if self.at == "sender" else []
        return " ".join(words)


class Drop(Step):
    """Loses segments, by meaning, until it is healed or has lost as many as it should. That it
    lost some is a claim, judged at the end of the run."""

    verb = "drop"
    need = "nft"
    drop: DropPattern

    def act(self, lab: Lab) -> None:
        number = lab.history.step
        compiled = self.drop.compiled(lab.history)
        log, rules = compiled.log(number), compiled.rules(number)
        for host in self.drop.places(list(lab.scenario.hosts)):
            group = faults.LOG_GROUP
            answer = lab.fault(host, "drop", number=number, group=group, log=log, rules=rules)
            if answer["unlogged"]:
                lab.emit(TroubleEvent(lab.now(), host, "capture", answer["unlogged"]))

    def in_the_end(self, index: int) -> Lost:
        return Lost(index, str(self), self.drop.count)


class Heal(Step):
    """Ends a drop, by its label, or all that is wrong with segments."""

    verb = "heal"
    heal: Label
    everything: ClassVar[str] = "all"

    def act(self, lab: Lab) -> None:
        ends = [e for e in lab.history.events if isinstance(e, StepEvent) and e.phase == "end"]
        numbers = [e.index for e in ends if self.heal in (self.everything, e.label)]
        if not numbers and self.heal != self.everything:
            raise StepFailed(str(self), f"a drop named {self.heal!r}", "it was left out")
        for host in lab.scenario.hosts:
            lab.tally(host, lab.fault(host, "heal", numbers=numbers)["lost"])
