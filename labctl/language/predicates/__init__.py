"""What a scenario can claim: every kind of expectation, judged purely from a History.

To add one, write a module here with a class that has `judge`, and a field in Predicate. A predicate
may name several subjects; each has one Finding. If the history can't decide a claim, it is
`unknown`, never passed.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationInfo, WrapValidator

from labctl.ground.plain import shown
from labctl.language.predicates.counters import judge_counter
from labctl.language.predicates.finding import Finding, Result
from labctl.language.predicates.process import ProcessClaim, ProcessPattern
from labctl.language.predicates.segments import SegmentsPattern
from labctl.language.predicates.sockets import SocketPattern, SocketsClaim, summary
from labctl.language.predicates.states import LastedClaim, PathClaim
from labctl.language.values import Count, HostName, Model, ProcessName, Text, names, problem
from labctl.record.events import (
    AddressEvent,
    CountersEvent,
    Event,
    SocketsEvent,
    TroubleEvent,
)
from labctl.record.history import History

__all__ = [
    "Claim",
    "Finding",
    "Predicate",
    "ProcessPattern",
    "Result",
    "SegmentsPattern",
    "SocketPattern",
    "summary",
]

SOME = Field(min_length=1)
"""Refused when empty: a subject that names nothing would claim nothing, and always hold."""


class Predicate(Model):
    """One or more subjects, all of which must hold."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    sockets: Annotated[dict[HostName, SocketsClaim], SOME] | None = None
    process: Annotated[dict[ProcessName, ProcessClaim], SOME] | None = None
    counters: Annotated[dict[HostName, Annotated[dict[Text, Count], SOME]], SOME] | None = None
    segments: SegmentsPattern | None = None
    lasted: LastedClaim | None = None
    path: Annotated[dict[HostName, PathClaim], SOME] | None = None

    @property
    def traced(self) -> bool:
        """Whether it needs single transitions, of which there can be thousands."""
        return self.lasted is not None or self.path is not None

    @property
    def labels(self) -> frozenset[str]:
        """The labels that it counts from."""
        found = [self.segments.since] if self.segments else []
        found += [pattern.since for pattern in (self.process or {}).values()]
        return frozenset(label for label in found if label is not None)

    @property
    def blocks(self) -> bool:
        """Whether it claims that a call is blocked, which time alone makes true."""
        return any(pattern.blocks for pattern in (self.process or {}).values())

    def turns(self, history: History) -> list[float]:
        """When it may have come to hold, or ceased to, beside the moments of events; in order."""
        found = self.segments.turns(history) if self.segments else []
        for name, pattern in (self.process or {}).items():
            found = [*found, *pattern.turns(name, history)]
        return sorted(found)

    def counted(self, label: str, history: History) -> list[Finding]:
        """The findings on what counts from a label."""
        found = [self.segments] if self.segments and self.segments.since == label else []
        processes = (self.process or {}).items()
        return [
            *(pattern.judge(history) for pattern in found),
            *(p.judge(name, history) for name, p in processes if p.since == label),
        ]

    def judge(self, history: History) -> list[Finding]:
        """A finding for each subject, at the end of `history`."""
        found = [s.judge(host, history) for host, s in (self.sockets or {}).items()]
        found += [p.judge(name, history) for name, p in (self.process or {}).items()]
        for host, counters in (self.counters or {}).items():
            found += [judge_counter(host, c, w, history) for c, w in counters.items()]
        found += [self.segments.judge(history)] if self.segments else []
        found += [self.lasted.judge(history)] if self.lasted else []
        found += [path.judge(host, history) for host, path in (self.path or {}).items()]
        return found

    def holds(self, history: History) -> bool:
        """Whether every subject passes."""
        return all(finding.result == "pass" for finding in self.judge(history))

    def heeds(self, event: Event) -> bool:
        """Whether an event may change what `judge` finds; segments are no events."""
        if self.traced or isinstance(event, TroubleEvent | AddressEvent):
            return True
        if isinstance(event, SocketsEvent | CountersEvent):
            return event.host in self.hosts
        return getattr(event, "process", None) in (self.process or ())

    def earliest(self, event: Event) -> float:
        """The earliest time of the change that this event is the first to report."""
        if self.counters and not self.sockets and isinstance(event, SocketsEvent | CountersEvent):
            return event.t if event.since is None else event.since
        return event.t

    @property
    def hosts(self) -> set[str]:
        """The hosts whose sockets, counters or connections it is about."""
        lasted = {self.lasted.host} if self.lasted else set()
        return {*(self.sockets or {}), *(self.counters or {}), *(self.path or {}), *lasted}


def parse_predicate(value: Any, handler: Any, info: ValidationInfo) -> Predicate:
    """A predicate from plain data."""
    if isinstance(value, Predicate):
        return value
    if isinstance(value, dict):
        if not value:
            raise problem(
                "an empty mapping claims nothing; allowed: " + ", ".join(Predicate._keys())
            )
    else:
        raise problem(
            f"a predicate is a mapping ({', '.join(Predicate._keys())}), not {shown(value)}"
        )
    subjects = {**dict.fromkeys(names(info).processes, "process"),
                **dict.fromkeys(names(info).hosts, "sockets")}  # fmt: skip
    for key in value.keys() - Predicate._keys():
        if subject := subjects.get(key):
            raise problem(
                f"{key!r} is a name; a claim says first what of it is claimed, as in "
                f"{{{subject}: {{{key}: {value[key]}}}}}"
            )
    return Predicate.model_validate(value, context=info.context)


Claim = Annotated[Predicate, WrapValidator(parse_predicate)]
