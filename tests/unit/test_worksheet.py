"""A sheet with gaps, and its marks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labctl.judge.causes.cause import Cause
from labctl.judge.recorded import load
from labctl.probes.sockets import State
from labctl.reports.ladder import ladder_of
from labctl.reports.worksheet import HEAD, blank, marks
from tests.played import Labctl
from tests.reported import RUN

WANTED = [
    "LISTEN", "SYN", "SYN ACK", "ESTAB", "ESTAB", "ACK", "PSH ACK", "ACK", "FIN-WAIT-1",
    "FIN PSH ACK", "CLOSE-WAIT", "FIN PSH ACK", "FIN-WAIT-2", "ACK", "LISTEN",
]  # fmt: skip


def filled(answers: dict[int, str]) -> str:
    """The sheet, with these answers in it."""
    lines = blank(load(RUN)).splitlines()
    return "\n".join(
        f"{line} {answers.get(int(line[:-1]), '')}" if line[:-1].isdigit() else line
        for line in lines
    )


def test_nothing_on_the_sheet_says_what_is_left_out() -> None:
    sheet = blank(load(RUN)).removeprefix(HEAD)
    assert [word for word in (*State, "SYN", "FIN-", "FIN ", "PSH") if word in sheet] == []
    drawn = [line for line in sheet.splitlines() if "│" in line]
    assert len(drawn) > 20
    assert len({line.index("│") for line in drawn}) == 1, "gaps are as wide as what stood there"
    assert len({line.rindex("│") for line in drawn}) == 1


def test_causes_are_not_on_the_sheet() -> None:
    """Not even where the rows are that prove them: some of those are left out."""
    run = load(RUN)
    look = ladder_of(run).looks[-1]
    cause = Cause("closed-first", look.host, look.t, "told", evidence=look.lines)
    found = replace(run, causes=(cause,))
    assert ladder_of(found).marks, "it is proven"
    assert blank(found) == blank(run)


def test_answers_are_marked(tmp_path: Path, labctl: Labctl) -> None:
    assert [mark.wanted for mark in marks(load(RUN), "")] == WANTED
    sheet = tmp_path / "sheet.txt"
    sheet.write_text(filled(dict(enumerate(WANTED, 1))))
    assert labctl("grade", str(sheet), str(RUN)) == (0, "15 of 15 are right\n", "")
    sheet.write_text(filled({1: "LISTEN", 4: "SYN-RECV", 9: "FIN"}))
    status, told, _ = labctl("grade", str(sheet), str(RUN))
    assert status == 1
    assert "4: ESTAB, not SYN-RECV\n" in told
    assert "9: FIN-WAIT-1, not FIN\n" in told
    assert "2: SYN, not empty\n" in told
    assert told.endswith("\n1 of 15 are right\n")
    sheet.write_text(filled({}))
    assert labctl("grade", str(sheet), str(RUN))[0] == 0


@pytest.mark.parametrize(
    ("number", "given", "right"),
    [
        (9, "fin_wait1", True), (9, "FIN_WAIT_2", False), (5, "ESTABLISHED", True),
        (3, "ack,syn", True), (3, "SYN", False), (3, "SYN ACK FIN", False), (2, "", False),
    ],
)  # fmt: skip
def test_as_anybody_spells_it(number: int, given: str, right: bool) -> None:
    assert marks(load(RUN), f"{number}: {given}")[number - 1].right == right


def test_mistakes(tmp_path: Path, labctl: Labctl) -> None:
    status, _, told = labctl("grade", str(tmp_path / "none.txt"), str(RUN))
    assert (status, "can't be read" in told) == (2, True)
    none = f"labctl: {tmp_path}/none.txt: can't be read: No such file or directory\n"
    assert labctl("grade", str(tmp_path / "none.txt")) == (2, "", none)
    (tmp_path / "sheet.txt").write_text("1: LISTEN")
    status, _, told = labctl("grade", str(tmp_path / "sheet.txt"), str(RUN), str(RUN.parent))
    assert status == 2


def test_into_a_file_and_as_a_ladder_alone(tmp_path: Path, labctl: Labctl) -> None:
    sheet = tmp_path / "sheet.txt"
    assert labctl("report", str(RUN), "--blank", "--out", str(sheet)) == (0, "", "")
    assert sheet.read_text() == blank(load(RUN))
    status, told, err = labctl("report", str(RUN), "--blank", "--format", "html")
    assert (status, told) == (2, "")
    assert "--blank is a ladder, not html; leave --format out" in err
