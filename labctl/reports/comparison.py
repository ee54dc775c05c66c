"""Results of the same cases at several places, side by side: from result documents to rows.

A row is about one thing, and has a cell for each place. It differs if the cells of two places do:
results, claims and sysctls if they are not the same, durations by more than the tolerance of
`lasted`, counters if only one grew at all, since how much differs from run to run. An empty cell
was not seen there, and differs from nothing; neither does a place that could not run. But a sysctl
that a kernel lacks does differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from labctl.ground.data import dataclass
from labctl.ground.names import told_apart
from labctl.ground.reading import typed
from labctl.judge.check import TOLD, Verdict
from labctl.judge.recorded import case_of
from labctl.language.predicates.states import LEAST_TOLERANCE, TOLERANCE
from labctl.reports.rows import claim_words
from labctl.run.places import NEVER_RUN, NOT_RUN, Seen

Kind = Literal["result", "claim", "duration", "counter", "sysctl"]
TITLES: dict[Kind, str] = {
    "result": "Results",
    "claim": "Claims",
    "duration": "Durations",
    "counter": "Counters",
    "sysctl": "Sysctls of a new host",
}
ABSENT = "not there"
JUDGED = ("pass", "fail", "unknown")
NOT_GOOD = ("fail", "unknown", "error", NOT_RUN, NEVER_RUN)


@dataclass(frozen=True)
class Row:
    """One thing, with a cell for each place. `case` is empty if it is about the place itself.
    `results` are the results with which the cells of results and claims begin."""

    kind: Kind
    case: str
    what: str
    cells: tuple[str, ...]
    differs: bool
    results: tuple[str, ...] = ()

    @property
    def first(self) -> bool:
        """Whether to show it first: it differs, or did not pass."""
        return self.differs or any(result in NOT_GOOD for result in self.results)


@dataclass(frozen=True)
class Section:
    """Rows of a kind, as a table; `results` has the result in each cell, or nothing."""

    kind: Kind
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    results: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Comparison:
    """Places, and rows in order of their kind."""

    places: tuple[Seen, ...]
    rows: tuple[Row, ...]

    def sections(self, first: bool) -> list[Section]:
        """The rows to show first, or all."""
        names = [place.name for place in self.places]
        found = []
        for kind, title in TITLES.items():
            rows = [row for row in self.rows if row.kind == kind and (row.first or not first)]
            columns = [("scenario", [row.case for row in rows]), ("what", [r.what for r in rows])]
            kept = [(head, cells) for head, cells in columns if any(cells)]
            heads = [*(head for head, _ in kept), *names]
            cells = [[*(c[i] for _, c in kept), *row.cells] for i, row in enumerate(rows)]
            results = [[*[""] * len(kept), *(row.results or [""] * len(row.cells))] for row in rows]
            if rows:
                found.append(Section(kind, title, heads, cells, results))
        return found

    @property
    def nothing(self) -> str:
        """What to say if there is no row to show first; else empty."""
        if self.sections(first=True):
            return ""
        results = {result for r in self.rows if r.kind == "result" for result in r.results}
        if results <= {"skip"}:
            return "Nothing could be run at any of these places."
        skipped = [place.name for place in self.places if place.reason]
        rest = f" Not everything could be run: see {', '.join(skipped)}." if skipped else ""
        return f"Nothing differs, and nothing failed.{rest}"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "version": "1",
            "places": [{"result": p.result, **_without_blank(asdict(p))} for p in self.places],
            "rows": [asdict(row) for row in self.rows],
        }


def _without_blank(place: dict[str, Any]) -> dict[str, Any]:
    del place["blank"]  # the cells have it
    return place


Case = tuple[str, str]
"""A case of a comparison: its label, and its file. Two may have the same label."""


def compare(places: Sequence[Seen], cases: Iterable[Case] = ()) -> Comparison:
    """All rows from the documents of some places, and at least one for each of these cases."""
    runs = [{_case(run): run for run in place.document["runs"]} for place in places]
    rows: list[Row] = []
    found = list(dict.fromkeys([*cases, *(case for known in runs for case in known)]))
    for identity, case in zip(found, told_apart(found), strict=True):
        at = [known.get(identity) for known in runs]
        rows.append(_results(case, at, places))
        rows += _rows("claim", case, [dict(_claims(run)) for run in at], _differ)
        rows += _rows("duration", case, [dict(_durations(run)) for run in at], _apart, _span)
        rows += _rows("counter", case, _counters(at), _one_sided, str)
    sysctls = sorted({name for place in places for name in place.sysctls})
    rows += _rows(
        "sysctl", "",
        [{n: p.sysctls.get(n, ABSENT) for n in sysctls} if p.sysctls else {} for p in places],
        _unlike,
    )  # fmt: skip
    return Comparison(tuple(places), tuple(sorted(rows, key=lambda row: [*TITLES].index(row.kind))))


@dataclass(frozen=True)
class Outcome:
    """A result, and what to say about it."""

    result: str
    words: str = ""

    def __str__(self) -> str:
        return f"{self.result}: {self.words}" if self.words else self.result


Span = tuple[float, float]
"""How many seconds at least, and at most."""


def _results(case: str, runs: Sequence[Mapping[str, Any] | None], places: Sequence[Seen]) -> Row:
    found = [
        Outcome(run["result"], run.get("reason") or "") if run else Outcome(place.blank)
        for run, place in zip(runs, places, strict=True)
    ]
    known = [cell for cell, run in zip(found, runs, strict=True) if run]
    cells, results = tuple(map(str, found)), tuple(cell.result for cell in found)
    return Row("result", case, "", cells, _differ(known), results)


def _rows(
    kind: Kind,
    case: str,
    columns: Sequence[Mapping[str, Any]],
    differ: Callable[[list[Any]], bool],
    words: Callable[[Any], str] = str,
) -> Iterator[Row]:
    """A row for each thing for which some column has a value."""
    for what in dict.fromkeys(name for column in columns for name in column):
        values = [column[what] for column in columns if what in column]
        found = [column.get(what) for column in columns]
        cells = tuple("" if value is None else words(value) for value in found)
        results = tuple(value.result if isinstance(value, Outcome) else "" for value in found)
        yield Row(kind, case, what, cells, differ(values), results if any(results) else ())


def _unlike(values: list[object]) -> bool:
    return len(set(values)) > 1


def _differ(outcomes: list[Outcome]) -> bool:
    return _unlike([outcome.result for outcome in outcomes])


def _apart(spans: list[Span]) -> bool:
    begin, end = max(low for low, _ in spans), min(high for _, high in spans)
    return begin - end > max(LEAST_TOLERANCE, TOLERANCE * end)


def _one_sided(counts: list[int]) -> bool:
    return any(counts) and not all(counts)


def _case(run: Mapping[str, Any]) -> Case:
    case, name = case_of(run), str(run["scenario"])
    return f"{name} ({case})" if case else name, str(run.get("source", ""))


def _verdicts(run: Mapping[str, Any] | None) -> Iterator[tuple[str, Verdict]]:
    """The verdicts of a run by their claims and lines; equal ones are numbered."""
    count: Counter[str] = Counter()
    for found in run["verdicts"] if run else ():
        verdict = typed(Verdict, found)
        words = f"{claim_words(verdict)} (line {verdict.source.rpartition(':')[2]})"
        count[words] += 1
        yield words if count[words] == 1 else f"{words} #{count[words]}", verdict


def _claims(run: Mapping[str, Any] | None) -> Iterator[tuple[str, Outcome]]:
    for words, verdict in _verdicts(run):
        yield words, Outcome(verdict.result, "" if verdict.result == "pass" else verdict.actual)


def _durations(run: Mapping[str, Any] | None) -> Iterator[tuple[str, Span]]:
    """The measured durations, without those that are too short to ever differ."""
    for words, verdict in _verdicts(run):
        measured = verdict.measured.after_seconds or verdict.measured.lasted_seconds
        if measured is None:
            continue
        low, high = measured.low, math.inf if measured.high is None else measured.high
        if high >= LEAST_TOLERANCE:
            yield words, (high if high - low <= TOLD else low, high)


def _span(span: Span) -> str:
    low, high = span
    if high == math.inf:
        return f"{low:.2f} s or more"
    return f"{low:.2f} s" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}..{high:.2f} s"


def _counters(runs: Sequence[Mapping[str, Any] | None]) -> list[dict[str, int]]:
    """How much each counter grew that grew anywhere; 0 if nothing says that it did."""
    told = [
        {
            f"{host}: {counter}": grown
            for host, counters in run["counted"].items()
            for counter, grown in counters.items()
        }
        if run and run.get("counted") is not None and run["result"] in JUDGED else None
        for run in runs
    ]  # fmt: skip
    names = list(_names(told))
    return [{n: found.get(n, 0) for n in names} if found is not None else {} for found in told]


def _names(columns: Iterable[Mapping[str, int] | None]) -> Iterable[str]:
    return dict.fromkeys(name for column in columns if column for name in column)
