"""Results of the same cases at several places, side by side: from result documents to rows.

A row is about one thing, and has a cell for each place. It differs where the cells of two places
do: results, claims and sysctls by what they say, durations by more than the tolerance that `lasted`
has, counters by whether they grew at all, since how much differs from run to run. An empty cell is
a thing that was not seen there, and differs from nothing, as does a place that could not be had; a
sysctl that a kernel has not does differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from labctl.ground.names import told_apart
from labctl.ground.reading import typed
from labctl.judge.check import Verdict
from labctl.judge.recorded import case_of
from labctl.language.predicates.states import LEAST_TOLERANCE, TOLERANCE
from labctl.reports.rungs import claim_words
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
NOT_GOOD = ("fail", "unknown", "error", NOT_RUN, NEVER_RUN)

WAITED = re.compile(r" after (\d+\.\d+) s$")
LASTED = re.compile(r" for [\d.]+ s, give or take ")
SPAN = re.compile(r"(\d+\.\d+)(?:\.\.(\d+\.\d+))? s( so far)?")
COUNTED = re.compile(r"(\S+) .*\((\w+): (\d{1,20})\)")
"""What the verdicts of waits and of `lasted` say that they saw (check.py, predicates/states.py),
and how explain.py tells of a counter."""


@dataclass(frozen=True)
class Row:
    """One thing, with a cell for each place. `case` is empty where it is about the place itself."""

    kind: Kind
    case: str
    what: str
    cells: tuple[str, ...]
    differs: bool

    @property
    def first(self) -> bool:
        """Whether it is to be shown first: it differs, or did not pass."""
        return self.differs or (
            self.kind in ("result", "claim")
            and any(cell.partition(":")[0] in NOT_GOOD for cell in self.cells)
        )


@dataclass(frozen=True)
class Section:
    """Rows of a kind, as a table."""

    kind: Kind
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Comparison:
    """Places, and rows in order of their kind."""

    places: tuple[Seen, ...]
    rows: tuple[Row, ...]

    def sections(self, first: bool) -> list[Section]:
        """The rows to be shown first, or all."""
        names = [place.name for place in self.places]
        found = []
        for kind, title in TITLES.items():
            rows = [row for row in self.rows if row.kind == kind and (row.first or not first)]
            columns = [("scenario", [row.case for row in rows]), ("what", [r.what for r in rows])]
            kept = [(head, cells) for head, cells in columns if any(cells)]
            heads = [*(head for head, _ in kept), *names]
            cells = [[*(c[i] for _, c in kept), *row.cells] for i, row in enumerate(rows)]
            if rows:
                found.append(Section(kind, title, heads, cells))
        return found

    @property
    def nothing(self) -> str:
        """What there is to say where no row is to be shown first; else empty."""
        if self.sections(first=True):
            return ""
        results = {
            cell.partition(":")[0] for r in self.rows if r.kind == "result" for cell in r.cells
        }
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
"""A case of a comparison: its label, and the file that it is from. Two may have the same label."""


def compare(places: Sequence[Seen], cases: Iterable[Case] = ()) -> Comparison:
    """All rows that the documents of some places give, and one at least for each of these cases."""
    runs = [{_case(run): run for run in place.document["runs"]} for place in places]
    rows: list[Row] = []
    found = list(dict.fromkeys([*cases, *(case for known in runs for case in known)]))
    for identity, case in zip(found, told_apart(found), strict=True):
        at = [known.get(identity) for known in runs]
        rows.append(_results(case, at, places))
        rows += _rows("claim", case, [dict(_claims(run)) for run in at], _unlike)
        rows += _rows("duration", case, [dict(_durations(run)) for run in at], _apart, _span)
        rows += _rows("counter", case, _counters(at), _one_sided, str)
    sysctls = sorted({name for place in places for name in place.sysctls})
    rows += _rows(
        "sysctl", "",
        [{n: p.sysctls.get(n, ABSENT) for n in sysctls} if p.sysctls else {} for p in places],
        _unlike,
    )  # fmt: skip
    return Comparison(tuple(places), tuple(sorted(rows, key=lambda row: [*TITLES].index(row.kind))))


Span = tuple[float, float]
"""At least and at most so many seconds."""


def _results(case: str, runs: Sequence[Mapping[str, Any] | None], places: Sequence[Seen]) -> Row:
    found = [_result(run) if run else "" for run in runs]
    cells = tuple(cell or place.blank for cell, place in zip(found, places, strict=True))
    return Row("result", case, "", cells, _unlike([cell for cell in found if cell]))


def _rows(
    kind: Kind,
    case: str,
    columns: Sequence[Mapping[str, Any]],
    differ: Callable[[list[Any]], bool],
    words: Callable[[Any], str] = str,
) -> Iterator[Row]:
    """A row for each thing that some column has a value for."""
    for what in dict.fromkeys(name for column in columns for name in column):
        values = [column[what] for column in columns if what in column]
        cells = tuple(words(column[what]) if what in column else "" for column in columns)
        yield Row(kind, case, what, cells, differ(values))


def _unlike(values: list[str]) -> bool:
    return len({value.partition(":")[0] for value in values}) > 1


def _apart(spans: list[Span]) -> bool:
    begin, end = max(low for low, _ in spans), min(high for _, high in spans)
    return begin - end > max(LEAST_TOLERANCE, TOLERANCE * end)


def _one_sided(counts: list[int]) -> bool:
    return any(counts) and not all(counts)


def _case(run: Mapping[str, Any]) -> Case:
    case, name = case_of(run), str(run["scenario"])
    return f"{name} ({case})" if case else name, str(run.get("source", ""))


def _result(run: Mapping[str, Any]) -> str:
    return f"{run['result']}: {run['reason']}" if run.get("reason") else str(run["result"])


def _verdicts(run: Mapping[str, Any] | None) -> Iterator[tuple[str, Verdict]]:
    """The verdicts of a run by what they claim, and where; those that are alike are numbered."""
    count: Counter[str] = Counter()
    for found in run["verdicts"] if run else ():
        verdict = typed(Verdict, found)
        words = f"{claim_words(verdict)} (line {verdict.source.rpartition(':')[2]})"
        count[words] += 1
        yield words if count[words] == 1 else f"{words} #{count[words]}", verdict


def _claims(run: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    for words, verdict in _verdicts(run):
        passed = verdict.result == "pass"
        yield words, "pass" if passed else f"{verdict.result}: {verdict.actual}"


def _durations(run: Mapping[str, Any] | None) -> Iterator[tuple[str, Span]]:
    """What was measured. Shorter ones than could ever differ are left out."""
    for words, verdict in _verdicts(run):
        waited = WAITED.search(verdict.actual)
        if waited:
            spans = [(float(waited[1]), float(waited[1]))]
        elif LASTED.search(verdict.what):
            spans = [
                (float(low), float("inf") if so_far else float(high or low))
                for low, high, so_far in SPAN.findall(verdict.actual)
            ]
        else:
            continue
        if spans and max(high for _, high in spans) >= LEAST_TOLERANCE:
            yield words, (min(low for low, _ in spans), max(high for _, high in spans))


def _span(span: Span) -> str:
    low, high = span
    if high == float("inf"):
        return f"{low:.2f} s or more"
    return f"{low:.2f} s" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}..{high:.2f} s"


def _counters(runs: Sequence[Mapping[str, Any] | None]) -> list[dict[str, int]]:
    """By how much each counter grew that grew anywhere; by 0 where nobody tells that it did."""
    told = [
        {f"{m[1]}: {m[2]}": int(m[3]) for s in run["why"] if (m := COUNTED.fullmatch(s))}
        if run and run["result"] in ("pass", "fail", "unknown") else None
        for run in runs
    ]  # fmt: skip
    names = list(_names(told))
    return [{n: found.get(n, 0) for n in names} if found is not None else {} for found in told]


def _names(columns: Iterable[Mapping[str, int] | None]) -> Iterable[str]:
    return dict.fromkeys(name for column in columns if column for name in column)
