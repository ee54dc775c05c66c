"""Which rows prove a cause, and how a ladder and a page show that."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from labctl.judge import recorded
from labctl.judge.causes.cause import Cause
from labctl.judge.causes.rules import causes
from labctl.judge.result import RunResult
from labctl.record.events import Event, ProcessEvent, StateEvent
from labctl.reports import html
from labctl.reports.ladder import ladder_of
from labctl.reports.ladder_text import ladders
from labctl.reports.rows import MARKS, Bar, Ladder, Row
from tests.fake import tcp
from tests.reported import (
    CLIENT,
    CLOSE,
    HANDSHAKE,
    RUN,
    SERVER,
    call,
    history,
    look,
    recorded_run,
    step,
)

WAITS = tcp("TIME-WAIT", SERVER, CLIENT)
NAME = f"{SERVER} -> {CLIENT}"
EVENTS: list[Event] = [
    ProcessEvent(0.01, "server", "server", "start"),
    *call(0.02, 0.03, "server", "socket"),
    *call(0.05, 0.4, "server", "recv"),
    StateEvent(0.1002, "server", SERVER, CLIENT, "LISTEN", "SYN-RECV"),
    StateEvent(0.1004, "server", SERVER, CLIENT, "SYN-RECV", "ESTAB"),
    StateEvent(0.2, "server", SERVER, CLIENT, "ESTAB", "FIN-WAIT-1"),
    *step(0.5, "stop server", 0.6),
    look(0.7, "server", WAITS, caption="early"),
    look(0.8, "server", WAITS, caption="late"),
    look(0.8, "client", WAITS, caption="elsewhere"),
]


def shown(*found: Cause) -> tuple[RunResult, Ladder]:
    run = recorded_run(history(*EVENTS, segments=[*HANDSHAKE, *CLOSE]), causes=found)
    return run, ladder_of(run)


def proof(cause: Cause) -> list[str]:
    return [words(row) for _, row in shown(cause)[1].proof(1)]


def words(row: Row) -> str:
    more = [getattr(row, name, None) or "" for name in ("caption", "state", "label")]
    return f"{type(row).__name__} {''.join(more)}".strip()


@pytest.mark.parametrize(
    ("cause", "rows"),
    [
        (Cause("a", "server", 0.03, ""), ["Call"]),
        (Cause("a", "client", 0.03, ""), []),
        (Cause("a", "server", 0.4, ""), ["Return"]),  # and not where it began to wait
        (Cause("a", "server", 0.05, ""), []),
        (Cause("a", "server", 0.01, ""), ["Life"]),
        (Cause("a", "server", 0.2, "", connection=NAME),
         ["Arrow FIN ACK seq 1 ack 1", "Bar FIN-WAIT-1"]),
        (Cause("a", "server", 0.2, "", connection=f"{CLIENT} -> {SERVER}"),
         ["Arrow FIN ACK seq 1 ack 1", "Bar FIN-WAIT-1"]),
        (Cause("a", "server", 0.2, "", connection=f"{SERVER} -> 198.18.0.9:1"), []),
        (Cause("a", "client", 0.2, "", connection=NAME), ["Arrow FIN ACK seq 1 ack 1"]),
        (Cause("a", "server", 0.0, "", evidence=("0.300000 client: FIN ACK seq 1 ack 2",)),
         ["Arrow FIN ACK seq 1 ack 2"]),
        (Cause("a", "server", 0.0, "", evidence=("0.300000 client: FIN ACK seq 1 ack 2 [lost]",)),
         []),
        (Cause("a", "server", 0.0, "", evidence=("0.300000 server: FIN ACK seq 1 ack 2",)), []),
        (Cause("a", "server", 0.78, "", evidence=(f"TIME-WAIT {NAME}",)), ["Look late"]),
        (Cause("a", "server", 0.2, "", evidence=(f"TIME-WAIT {NAME}",)), ["Look early"]),
        (Cause("a", "server", 0.9, "", evidence=("stop server",)), ["Step"]),
    ],
)  # fmt: skip
def test_rows_are_found_by_what_a_cause_has(cause: Cause, rows: list[str]) -> None:
    assert sorted(proof(cause)) == rows


def test_a_row_names_its_causes_and_not_too_many() -> None:
    _, ladder = shown(*[Cause("a", "server", 0.03, "")] * (MARKS + 1))
    (row,) = ladder.marks
    assert ladder.mark([row]) == "[1,2,3…]"
    assert ladder.mark([0]) == ladder.mark([]) == ""


def told() -> RunResult:
    """The lesson's run with what its record tells today."""
    run = recorded.load(RUN)
    return replace(run, causes=tuple(causes(run.history)), beside=("it counted",))


def test_the_head_of_a_ladder_leads_to_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    run = told()
    head, _, picture = ladders([run]).partition("\n\n")
    for number, cause in enumerate(run.causes, 1):
        assert f"Why [{number}]: {cause.text.split()[0]}" in head
        assert " ".join(head.split()).count(cause.cure) >= 1
    times = re.findall(r"rows at: (.*)", head)
    assert len(times) == len(run.causes)
    marked = {
        (n, t) for marks, t in re.findall(r"^\[([\d,]+)\] +([\d.]+)", picture, re.MULTILINE)
        for n in marks.split(",")
    }  # fmt: skip
    assert {n for n, _ in marked} == {str(n) for n, _ in enumerate(run.causes, 1)}
    assert {t for line in times for t in re.findall(r"[\d.]+(?= s)", line)} >= {
        t for _, t in marked
    }
    assert "Why: it counted" in head


def test_marks_of_rows_on_one_line_do_not_hide_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    found = (
        Cause("a", "server", 0.1999, "", connection=NAME),
        Cause("b", "server", 0.2, "", connection=NAME),
    )
    closes = StateEvent(0.1999, "server", SERVER, CLIENT, "ESTAB", "FIN-WAIT-1")
    events = [e for e in EVENTS if not (isinstance(e, StateEvent) and e.t == 0.2)]
    run = recorded_run(history(*events, closes, segments=[*HANDSHAKE, *CLOSE]), causes=found)
    assert re.search(r"^\[1,2\] 0\.200  +\[FIN-WAIT-1\] ", ladders([run]), re.MULTILINE)


def test_a_page_leads_to_its_rows_and_back() -> None:
    page = html.page(told())
    names = Counter(re.findall(r' id="([^"]*)"', page))
    assert set(names.values()) == {1}
    links = set(re.findall(r'href="#([^"]*)"', page))
    assert links <= names.keys()
    for kind in ("why-", "row-", "narrow-"):
        mine = {name for name in links if name.startswith(kind)}
        assert mine and mine == {name for name in names if name.startswith(kind)}


def test_without_causes_nothing_is_marked() -> None:
    run, ladder = shown()
    assert not ladder.marks
    assert "[1]" not in ladders([run])
    assert any(isinstance(row, Bar) for row in ladder.rows)
