"""`segments: {...}`: what went over the wire, by the captures of all hosts."""

from __future__ import annotations

import math
import re
from itertools import dropwhile
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from labctl.language.facts import Facts, Range
from labctl.language.predicates.finding import Claimed, Finding, decided
from labctl.language.values import Count, HostName, Label, Model, Truth, problem, shaped, unknown
from labctl.probes.observations import Segment, connections
from labctl.record.history import History


def _flags(value: Any) -> tuple[str, ...]:
    words = value if isinstance(value, list) else re.split(r"[\s,+|]+", str(value).strip())
    for word in words:
        if word not in SEGMENT_FLAGS:
            raise problem(unknown("flag", word, SEGMENT_FLAGS))
    return tuple(words)


SEGMENT_FLAGS = ("SYN", "ACK", "FIN", "RST", "PSH", "URG", "data")
Flags = Annotated[tuple[str, ...], BeforeValidator(_flags), shaped("Flags")]


class SegmentsPattern(Model):
    """Segments of one kind that were sent, and how many."""

    from_: HostName | None = Field(None, alias="from")
    to: HostName | None = None
    flags: Flags | None = None
    count: Count | None = None
    at_least: Annotated[int, Field(ge=0, strict=True)] | None = None
    at_most: Annotated[int, Field(ge=0, strict=True)] | None = None
    retransmitted: Truth | None = None
    lost: Truth | None = None
    data: Truth | None = None
    injected: Truth = False
    since: Label | None = None
    since_first: Flags | None = None

    @model_validator(mode="after")
    def _possible(self) -> SegmentsPattern:
        if self.at_most is not None and (self.at_least or 0) > self.at_most:
            raise problem(f"at_least {self.at_least}, at_most {self.at_most}: an impossible range")
        # A pattern that no segment can match would always pass if it claims that there is none.
        if self.data is False and "data" in (self.flags or ()):
            raise problem("with the flag data, but without data: an impossible segment")
        if self.injected and self.retransmitted:
            raise problem("injected and retransmitted: an impossible segment; what an inject sends "
                          "is no part of what the host has sent")  # fmt: skip
        return self

    def judge(self, history: History) -> Finding:
        """The finding, from the captures of all hosts."""
        subject = self.from_ or self.to or "segments"
        about = tuple(host for host in (self.from_, self.to) if host)
        claimed = Claimed(subject, str(self), about, Facts(count=self._bounds))
        if troubles := [t.text for (_, probe), t in history.trouble.items() if probe == "capture"]:
            return Finding("unknown", claimed, "; ".join(troubles))
        if self.since is not None and self.since not in history.labels:
            return Finding("unknown", claimed, f"nothing is labelled {self.since!r}")
        segments, doubtful = self._since(history)
        if self.since_first is not None and not segments:
            return Finding("fail", claimed, f"no {' '.join(self.since_first)}")
        matching = [s for s in [*doubtful, *segments] if self.matches(s) is not False]
        certain = sum(self.matches(s) is True for s in segments)
        clocks = len([s for s in doubtful if s in matching])
        inside = [
            host for host in history.hosts if {*about} <= {host} and history.misses_inside(host)
        ]
        known = history.imported or history.hosts
        unseen = [host for host in history.hosts if host not in known]
        blind = self.to not in unseen and self.from_ in (None, *unseen) and bool(unseen)
        counts = self._telling(certain, math.inf if inside or blind else len(matching))
        results = {self.enough(count) for count in counts}
        lines = tuple(
            f"{s.time:.6f} {s.sender} -> {s.receiver}: {s.summary}" for s in matching[:12]
        )
        most = None if inside or blind else len(matching)
        ends = connections(matching[:12])
        measured = Facts(count=Range(certain, most), connections=ends)
        if len(results) == 1:
            return decided(results.pop(), claimed, str(certain), measured, *lines)
        if inside:
            text = f"{', '.join(inside)} has a connection to itself that was not captured"
            text += "; move one of its ends elsewhere"
            return Finding("unknown", claimed, text, (), measured)
        if blind or any(s.unseen for s in matching if self.matches(s) is None):
            text = (
                f"{certain}, and what {', '.join(unseen) or 'one end'} sent or got is not all known"
            )
            hint = "import a capture of it, too" if history.imported else "watch it, too"
            return Finding("unknown", claimed, f"{text}; {hint}", lines, measured)
        text = f"{certain}, and {len(matching) - certain} still under way; wait a moment before"
        if clocks:
            text = f"{certain}, and {clocks} so near the beginning that the clocks can't tell"
        return Finding("unknown", claimed, text, lines, measured)

    def found(self, history: History) -> list[Segment]:
        """The segments that match, in order."""
        return [s for s in self._since(history)[0] if self.matches(s)]

    def turns(self, history: History) -> list[float]:
        """The moments, up to now, when there were just enough of them, or just too many."""
        times = sorted(self._known(segment, history) for segment in self.found(history))
        return [
            time for count, time in enumerate(times, 1)
            if self.enough(count) != self.enough(count - 1)
        ]  # fmt: skip

    def _known(self, segment: Segment, history: History) -> float:
        """When it was clear that a segment is one of these."""
        if self.lost is None or segment.arrived is None:
            return segment.time + (history.flight if self.lost else 0.0)
        return segment.arrived

    def _since(self, history: History) -> tuple[list[Segment], list[Segment]]:
        """All segments from where this begins to count, none if no step set that label; and those
        of which the clocks of several machines can't tell whether they were before."""
        start = history.labels.get(self.since, math.inf) if self.since else -math.inf
        whose = history.whose.get(self.since or "")
        segments = history.segments()
        counted = [s for s in segments if s.time >= start]
        if wanted := self.since_first:
            counted = list(dropwhile(lambda s: not _has(s, wanted), counted))
            start, whose = (counted[0].time, counted[0].sender) if counted else (math.inf, None)

        def apart(segment: Segment) -> float:
            return history.apart([segment.sender, whose] if wanted or whose else None)

        doubtful = [
            s for s in segments
            if history.clocks and apart(s) and abs(s.time - start) <= apart(s)
        ]  # fmt: skip
        return [s for s in counted if s not in doubtful], doubtful

    def matches(self, segment: Segment) -> bool | None:
        """Whether a segment is one of these; None if that depends on whether it will arrive."""
        matches = (
            (segment.t is not None or segment.unseen)
            and segment.crafted == self.injected
            and self.from_ in (None, segment.sender)
            and self.to in (None, segment.receiver)
            and _has(segment, self.flags or ())
            and self.data in (None, segment.length > 0)
            and self.retransmitted in (None, segment.retransmitted)
        )
        if matches and self.lost is not None:
            doubtful = segment.pending or (segment.unseen and segment.arrived is None)
            return None if doubtful else self.lost == segment.lost
        return matches

    def enough(self, count: int) -> bool:
        """Whether there are as many as wanted; by default one or more."""
        bounds = [self.at_least is None or count >= self.at_least]
        bounds += [self.at_most is None or count <= self.at_most]
        bounds += [self.count is None or self.count.holds(count)]
        said = (self.at_least, self.at_most, self.count) != (None, None, None)
        return all(bounds) and (said or count >= 1)

    @property
    def _bounds(self) -> Range | None:
        """How many are wanted; None if two bounds are no range."""
        if self.count is not None:
            return self.count.bounds
        least = self.at_least if self.at_least is not None else 0 if self.at_most is not None else 1
        return Range(least, self.at_most)

    def _telling(self, low: int, high: float) -> set[int]:
        """Some counts in this range, enough for all of it: the claim's result does not change
        between two neighbours."""
        bounds = [1, self.at_least, self.at_most, self.count.number if self.count else None]
        near = {bound + n for bound in bounds if bound is not None for n in (-1, 0, 1)}
        return {low, *(count for count in near if low <= count <= high)} | (
            {int(high)} if high != math.inf else set()
        )

    def __str__(self) -> str:
        words = [f"{self.count} x"] if self.count else []
        words += [f"at least {self.at_least}"] if self.at_least is not None else []
        words += [f"at most {self.at_most}"] if self.at_most is not None else []
        words += [" ".join(self.flags or ("segment",))]
        for name in ("retransmitted", "lost", "data"):
            value = getattr(self, name)
            words += [name if value else f"not {name}"] if value is not None else []
        words += ["injected"] if self.injected else []
        words += [f"from {self.from_}"] if self.from_ else []
        words += [f"to {self.to}"] if self.to else []
        words += [f"since {self.since}"] if self.since else []
        words += [f"since the first {' '.join(self.since_first)}"] if self.since_first else []
        return " ".join(words)


def _has(segment: Segment, flags: tuple[str, ...]) -> bool:
    return set(flags) <= {*segment.flags, *(["data"] if segment.length else [])}
