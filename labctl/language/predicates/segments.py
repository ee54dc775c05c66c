"""`segments: {...}`: what went over the wire, by the captures of all hosts."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from labctl.ground.data import dataclass
from labctl.language.facts import Facts, Range
from labctl.language.predicates.finding import Claimed, Finding, Result
from labctl.language.predicates.pattern import BARE, SOME, Flags, SegmentPattern, has
from labctl.language.values import Count, Duration, Label, Percent, problem
from labctl.probes.observations import Segment, connections, is_another
from labctl.probes.packed import Segments
from labctl.record.history import History

TOLERANCE = 20.0
"""By how many percent a pause may differ: a kernel's timers are an eighth late at most
(kernel/time/timer.c), and a busy machine adds to that."""

SHOWN = 8
"""How many pauses a finding shows."""


@dataclass(frozen=True)
class _Match:
    """A segment that matches, or may (not `sure`), and when that was clear."""

    segment: Segment
    sure: bool
    at: float


class SegmentsPattern(SegmentPattern):
    """Segments of one kind that were sent, how many, and how far apart."""

    model_config = ConfigDict(
        json_schema_extra={
            **BARE,
            "dependentRequired": {"spaced": ["from"], "tolerance": ["spaced"]},
        }
    )

    count: Count | None = None
    at_least: Annotated[int, Field(ge=0, strict=True)] | None = None
    at_most: Annotated[int, Field(ge=0, strict=True)] | None = None
    since: Label | None = None
    since_first: Flags | None = None
    spaced: Annotated[tuple[Duration, ...], SOME] | None = None
    tolerance: Percent | None = None

    @model_validator(mode="after")
    def _countable(self) -> SegmentsPattern:
        if self.at_most is not None and (self.at_least or 0) > self.at_most:
            raise problem(f"at_least {self.at_least}, at_most {self.at_most}: an impossible range")
        if self.spaced is not None and self.from_ is None:
            raise problem("'spaced' needs 'from': pauses are those of one sender, by its clock")
        if self.tolerance is not None and self.spaced is None:
            raise problem("'tolerance' is that of 'spaced'; add it, or leave 'tolerance' out")
        return self

    def judge(self, history: History) -> Finding:
        """The finding, from the captures of all hosts."""
        subject = self.from_ or self.to or "segments"
        about = tuple(host for host in (self.from_, self.to) if host)
        wants = Facts(count=self._bounds, pauses_seconds=self.spaced or ())
        claimed = Claimed(subject, str(self), about, wants)
        if troubles := [t.text for (_, probe), t in history.trouble.items() if probe == "capture"]:
            return Finding("unknown", claimed, "; ".join(troubles))
        if self.since is not None and self.since not in history.labels:
            return Finding("unknown", claimed, f"nothing is labelled {self.since!r}")
        segments, doubtful = self._since(history)
        if self.since_first is not None and not segments:
            return Finding("fail", claimed, f"no {' '.join(self.since_first)}")
        counted = self._matching(segments, history)
        unsure = [s for s in doubtful if self.matches(s) is not False]
        matching = [*unsure, *(match.segment for match in counted)]
        certain = sum(match.sure for match in counted)
        inside = [
            host for host in history.hosts if {*about} <= {host} and history.misses_inside(host)
        ]
        known = history.imported or history.hosts
        unseen = [host for host in history.hosts if host not in known]
        blind = self.to not in unseen and self.from_ in (None, *unseen) and bool(unseen)
        most = None if inside or blind else len(matching)
        spacing, pauses = self._spacing(counted)
        if self.spaced and (unsure or (spacing == "fail" and most is None)):
            spacing = "unknown"  # there may be one more
        measured = Facts(
            count=Range(certain, most), connections=connections(matching[:12]),
            pauses_seconds=pauses,
        )  # fmt: skip
        lines = tuple(
            f"{s.time:.6f} {s.sender} -> {s.receiver}: {s.summary}" for s in matching[:12]
        )
        counts = self._telling(certain, math.inf if most is None else most)
        results = {self.enough(count) for count in counts}
        if results == {False} or (results == {True} and spacing != "unknown"):
            result: Result = spacing if results == {True} else "fail"
            return Finding(result, claimed, str(certain) + _apart(pauses), lines, measured)
        if inside:
            text = f"{', '.join(inside)} has a connection to itself that was not captured"
            text += "; move one of its ends elsewhere"
            return Finding("unknown", claimed, text, (), measured)
        text = str(certain)
        if blind or any(s.unseen for s in matching if self.matches(s) is None):
            text += f", and what {', '.join(unseen) or 'one end'} sent or got is not all known"
            hint = "import a capture of it, too" if history.imported else "watch it, too"
            return Finding("unknown", claimed, f"{text}; {hint}", lines, measured)
        lacking = [s for s in matching if self.fits(s) is None]
        if unsure:
            text += f", and {len(unsure)} so near the beginning that the clocks can't tell"
        elif lacking:
            text += f", and {len(lacking)} of which the captures lack what this asks: how their "
            text += "connections began, or all of their bytes"
        elif any(s.pending for s in matching):
            text += f", and {len(matching) - certain} still under way; wait a moment before"
        else:
            left = sum(s.t is None for s in matching) or len(matching) - certain
            text += f", and {left} of which nobody knows when they left"
        return Finding("unknown", claimed, text, lines, measured)

    def found(self, history: History) -> list[Segment]:
        """The segments that match, in order."""
        return [m.segment for m in self._matching(self._since(history)[0], history) if m.sure]

    def turns(self, history: History) -> list[float]:
        """The moments, up to now, when there were just enough of them, or just too many."""
        found = [m for m in self._matching(self._since(history)[0], history) if m.sure]
        found.sort(key=lambda match: match.at)
        return [
            match.at for number, match in enumerate(found)
            if self._holds(found[: number + 1]) != self._holds(found[:number])
        ]  # fmt: skip

    def _holds(self, found: Sequence[_Match]) -> bool:
        return self.enough(len(found)) and self._spacing(found)[0] == "pass"

    def _matching(self, segments: Sequence[Segment], history: History) -> list[_Match]:
        """Those that match, or may, and that are followed by what should follow them."""
        found = {
            number: (s, sure)
            for number, s in enumerate(segments) if (sure := self.matches(s)) is not False
        }  # fmt: skip
        if self.then is None:
            return [_Match(s, sure is True, self._known(s, history)) for s, sure in found.values()]
        groups = {_ends(s): _Group(history) for s, _ in found.values()}
        places, matches = [], []
        for number, s in enumerate(segments):
            if group := groups.get(_ends(s)):
                if group.over(s):
                    group = groups[_ends(s)] = _Group(history)
                if number in found:
                    places.append((*found[number], group, len(group.segments)))
                group.append(s)
        for s, sure, group, place in places:
            last = group.following(self.then, place, sure=True) if sure else None
            perhaps = last or group.following(self.then, place, sure=False)
            if perhaps is not None:
                at = max(self._known(s, history), perhaps.time)
                matches.append(_Match(s, last is not None, at))
        return matches

    def _spacing(self, found: Iterable[_Match]) -> tuple[Result, tuple[float, ...]]:
        """Whether segments of some connection are as far apart as they should be, and how far those
        are that decide it."""
        if self.spaced is None:
            return "pass", ()
        groups: dict[tuple[object, ...], list[_Match]] = defaultdict(list)
        for match in found:
            groups[(*_ends(match.segment), match.segment.origin.seq)].append(match)
        most: tuple[float, ...] = ()
        unknown = False
        for group in groups.values():
            times = [m.segment.t for m in group if m.segment.t is not None]
            pauses = tuple(round(after - before, 6) for before, after in pairwise(times))
            if len(times) < len(group) or not all(match.sure for match in group):
                unknown |= len(group) > len(self.spaced)
            elif self._fit(pauses):
                return "pass", pauses
            most = max(most, pauses, key=len)
        return "unknown" if unknown else "fail", most

    def _fit(self, pauses: Sequence[float]) -> bool:
        share = (TOLERANCE if self.tolerance is None else self.tolerance) / 100
        wanted = self.spaced or ()
        close = (abs(a - b) <= share * b for a, b in zip(pauses, wanted, strict=False))
        return len(pauses) >= len(wanted) and all(close)

    def _known(self, segment: Segment, history: History) -> float:
        """When it was clear that a segment is one of these."""
        if self.lost is None or segment.arrived is None:
            return segment.time + (history.flight if self.lost else 0.0)
        return segment.arrived

    def _since(self, history: History) -> tuple[Sequence[Segment], list[Segment]]:
        """All segments from where this begins to count, none if no step set that label; and those
        of which the clocks of several machines can't tell whether they were before. What had
        arrived where it began, by the clock there, left before; what its receiver sent after it
        had the first segment left afterwards."""
        start = history.labels.get(self.since, math.inf) if self.since else -math.inf
        whose = history.whose.get(self.since or "")
        segments = self._seen(history)
        begin, first = segments.position(start), None
        if wanted := self.since_first:
            following = enumerate(segments[begin:], begin)
            found = ((n, s) for n, s in following if has(s, wanted))
            begin, first = next(found, (len(segments), None))
            start, whose = (first.time, first.sender) if first else (math.inf, None)
        if not history.clocks:
            return segments[begin:], []

        def apart(segment: Segment) -> float:
            return history.apart([segment.sender, whose] if wanted or whose else None)

        near = {
            n: s for n, s in enumerate(segments) if apart(s) and abs(s.time - start) <= apart(s)
        }
        before = {
            n for n, s in near.items()
            if s.arrived is not None and s.arrived <= start and s.receiver == whose
            and not (wanted and has(s, wanted))
        }  # fmt: skip
        after = {
            n for n, s in near.items()
            if first and first.arrived is not None and s.sender == first.receiver
            and s.t is not None and s.t >= first.arrived
        }  # fmt: skip
        sure = (s for n, s in enumerate(segments) if n in after or (n >= begin and n not in near))
        return [*sure], [s for n, s in near.items() if n not in before | after]

    def _seen(self, history: History) -> Segments:
        """All segments from end to end, or, if a router is named, from hop to hop."""
        segments, routers = history.segments(whole=True), history.networks.routers
        if not {*self.named} & {*routers}:
            return segments
        return Segments(leg for segment in segments for leg in history.legs(segment))

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
        words += [super().__str__()]
        words += [f"since {self.since}"] if self.since else []
        words += [f"since the first {' '.join(self.since_first)}"] if self.since_first else []
        if self.spaced is not None:
            words += ["spaced " + ", ".join(f"{pause:g} s" for pause in self.spaced)]
            words += [f"to {self.tolerance:g}%"] if self.tolerance is not None else []
        return " ".join(words)


def _ends(segment: Segment) -> tuple[object, ...]:
    return segment.scope, *sorted((segment.source, segment.target))


class _Group:
    """The segments of a connection, in order."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.segments: list[Segment] = []
        self._first: dict[str, Segment] = {}
        self._matching: dict[tuple[int, bool], list[int]] = {}

    def over(self, segment: Segment) -> bool:
        """Whether a segment is a SYN for another connection of the same ends."""
        before = self._first.get(segment.source)
        return before is not None and is_another(segment, before)

    def append(self, segment: Segment) -> None:
        """Takes in the next one."""
        self.segments.append(segment)
        if not segment.crafted:
            self._first.setdefault(segment.source, segment)

    def following(self, pattern: SegmentPattern, place: int, *, sure: bool) -> Segment | None:
        """The last of those that follow the segment at a place as a pattern says: surely, or as far
        as anybody can know."""
        key = id(pattern), sure
        if key not in self._matching:
            kinds = (True,) if sure else (True, None)
            self._matching[key] = [
                number for number, s in enumerate(self.segments) if pattern.matches(s) in kinds
            ]
        found = self._next(self._matching[key], place, sure)
        if found is None or pattern.then is None:
            return None if found is None else self.segments[found]
        return self.following(pattern.then, found, sure=sure)

    def _next(self, among: Sequence[int], place: int, sure: bool) -> int | None:
        """The first of these numbers that was sent after the segment at a place."""
        if not self._history.clocks:
            later = bisect_right(among, place)
            return among[later] if later < len(among) else None
        first = self.segments[place]
        for number in among:
            segment = self.segments[number]
            gap = self._history.apart([first.sender, segment.sender])
            after = segment.time - first.time
            if number != place and (
                after >= (gap if sure else -gap) if gap else number > place
            ):  # fmt: skip
                return number
        return None


def _apart(pauses: Sequence[float]) -> str:
    return f"; {', '.join(f'{pause:.3g} s' for pause in pauses[:SHOWN])} apart" if pauses else ""
