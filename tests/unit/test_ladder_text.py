"""The ladder at a terminal: its head, its width, its colours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from labctl.judge import recorded
from labctl.judge.check import Verdict
from labctl.judge.result import RunResult
from labctl.reports import ladder, ladder_text
from labctl.reports.ladder_text import HOP, ladders, styled_ladders, wrap
from labctl.reports.signs import STATES
from tests.reported import ADDRESSES, RUN, full, inward, recorded_run, rows
from tests.terminals import on_a_terminal

FAILED = Verdict(
    "fail",
    "server: TIME-WAIT",
    "TIME-WAIT",
    "FIN-WAIT-2",
    0.3,
    "a.yaml:7",
    ("FIN-WAIT-2 x",),
    subject="server",
)
COLOUR = re.compile(r"\x1b\[[\d;]*?(?<!\d)(?:3|4|9|10)\d[\d;]*m")


def test_it_begins_with_what_ran_what_came_of_it_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    run = recorded_run(full(), result="fail", verdicts=(FAILED,), beside=("it is so", "and " * 40))
    head = ladders([run]).split("\n\n")[0].splitlines()
    assert head[0] == "fin_wait_2  FIN_WAIT_2 on the server, because the client never closes"
    assert head[1] == "FAIL  5.8 s on netns, kernel 6.1.0, Debian GNU/Linux 12 (bookworm)"
    assert head[2] == "  ✗ a.yaml:7: server: expected TIME-WAIT, saw FIN-WAIT-2"
    assert head[3] == "  Why: it is so"
    assert head[4].startswith("  Why: and and")
    assert len(head) == 6
    assert max(map(cell_len, head)) <= 90


def test_it_says_why_there_is_no_ladder() -> None:
    run = replace(recorded_run(full()), result="skip", reason="no root", hosts=())
    assert "SKIP: no root  5.8 s on netns" in ladders([run])


@pytest.mark.parametrize("columns", [60, 80, 120, 250, 1000])
@pytest.mark.parametrize("hosts", [("server", "client"), tuple(ADDRESSES)], ids=len)
def test_it_is_as_wide_as_reads_well(columns: int, hosts: tuple[str, ...]) -> None:
    for history in (full(), inward()):
        found = ladder_text.text(ladder.rows(history, hosts), columns)
        widths = {cell_len(line) for line in found.splitlines()}
        assert max(widths) <= min(columns, 60 + HOP * (len(hosts) - 1))


def test_broad_letters_take_two_cells() -> None:
    assert wrap("漢字漢字 漢字", 8) == ["漢字漢字", "漢字"]
    assert wrap("漢字" * 5, 7) == ["漢字漢", "字漢字", "漢字漢", "字"]
    assert wrap("a b c d", 3, most=1) == ["a …"]
    assert wrap("", 3) == [""]


def styles(run: RunResult, words: str) -> set[str]:
    """The styles in which some words stand."""
    found = styled_ladders([run], 120)
    return {
        str(span.style)
        for at in re.finditer(re.escape(words), found.plain)
        for span in found.spans
        if span.start <= at.start() < span.end
    }


def test_states_failures_and_losses_have_colours() -> None:
    run = recorded.load(RUN)
    for state, colour in STATES.items():
        assert styles(run, f"[{state}") <= {colour.style}
    assert styles(run, "[CLOSE-WAIT]") == {STATES["CLOSE-WAIT"].style}
    other = recorded_run(full(), result="fail", verdicts=(FAILED,))
    assert styles(other, "FAIL") == {"bold red"}
    assert styles(other, "✗ server: TIME-WAIT") == {"bold red"}
    assert styles(other, "✗ a.yaml:7") == {"bold red"}
    assert styles(other, "[lost]") == {"red"}
    assert styles(other, "[retransmitted]") == {"yellow"}


def test_segments_inside_a_host_turn_back_there() -> None:
    found = ladder_text.text(rows(inward()), 100).splitlines()
    syn = next(line for line in found if ":40000 → :8000 SYN seq 0" in line)
    assert re.search(r"\[SYN-SENT #2 :40000\] │ ↩ #2 :40000 → :8000 SYN seq 0 +│$", syn)
    assert any(re.search(r"│ +#3 :9000 → :41000 SYN ACK seq 0 ack 1 ↪ │", line) for line in found)
    assert any("│ ✗ #2 :40000 → :8000 FIN" in line or "[lost]" in line for line in found)
    plain = ladder_text.text(rows(inward()), 100, unicode=False)
    assert plain.isascii()
    assert "< #2 :40000 > :8000 SYN" in plain


def test_what_ss_saw_stands_there() -> None:
    text = " ".join(ladder_text.text(rows(inward()), 120).split())
    assert "accept queue of :9000: 6/5, full" in text
    assert "ss: full: LISTEN 0.0.0.0:9000, accept queue 6/5, full; ESTAB" in text


def test_a_terminal_has_colours_and_nothing_else_has(tmp_path: Path) -> None:
    report = ("report", str(RUN))
    shown = on_a_terminal(120, *report)
    assert COLOUR.search(shown)
    assert "FIN_WAIT_2 on the server" in shown
    for text in (
        on_a_terminal(120, *report, NO_COLOR="1"),
        on_a_terminal(120, *report, "--no-color"),
        on_a_terminal(120, "--no-color", *report),
        on_a_terminal(120, *report, TERM="dumb"),
        on_a_terminal(120, "list", "--no-color"),
    ):
        assert not COLOUR.search(text)
    out = tmp_path / "out.txt"
    command = [sys.executable, "-m", "labctl", *report]
    wide = {**os.environ, "COLUMNS": "120"}
    piped = subprocess.run(command, env=wide, capture_output=True, text=True, check=True).stdout
    subprocess.run([*command, "--out", str(out)], check=True)
    assert "\x1b" not in piped + out.read_text("utf-8")
    bare = re.sub(r"\x1b\[[\d;]*m", "", shown).replace("\r\n", "\n")
    assert [line.rstrip() for line in bare.splitlines()][:12] == piped.splitlines()[:12]


def test_no_line_is_wider_than_the_terminal() -> None:
    shown = re.sub(r"\x1b\[[\d;]*m", "", on_a_terminal(80, "report", str(RUN)))
    assert max(cell_len(line) for line in shown.splitlines()) <= 80
