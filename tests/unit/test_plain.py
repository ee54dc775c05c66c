"""Whatever texts hold, nothing of it commands a terminal or breaks a file."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from labctl.ground.errors import UsageError
from labctl.ground.output import tell
from labctl.ground.plain import plain, plain_lines
from labctl.judge import recorded
from labctl.judge.causes.cause import Cause
from labctl.judge.result import RunResult, document
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document
from labctl.record.history import History
from labctl.reports import REPORTS, render, terminal
from labctl.reports.comparison import compare
from labctl.reports.html import comparison as compared_page
from labctl.reports.markdown import comparison as compared_text
from labctl.reports.progress import PlainBoard, PlainProgress
from labctl.reports.tables import PIPE_WIDTH, console, print_checks, print_table
from labctl.run.doctor import Check
from labctl.run.places import Seen
from labctl.testing.recording import failure_text, why_lines
from tests.fake import FakeBackend, play, tcp

CONTROLS = "\x1b[31m \x1b]0;TITLE\x07 \x9b2J \x00 \r \x7f"
HIDDEN = "\u202e\u2066\u2028\udc9b\ufffe"
EVIL = f"{CONTROLS} {HIDDEN} [/red] [bold]x"
COMMANDS = {*map(chr, (*range(32), *range(127, 160))), *HIDDEN} - {"\n"}


def harmless(text: str) -> bool:
    """Whether nothing in a text is more than letters and ends of lines."""
    return not COMMANDS & set(text)


@given(st.text(st.characters(exclude_categories=[])))
def test_plain_text_is_letters_and_blanks(text: str) -> None:
    found = plain(text)
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in found)
    assert plain(found) == found
    assert plain_lines(text).count("\n") == text.count("\n")
    assert harmless(plain_lines(text))
    found.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Füße, 漢字, no\u00a0break", "Füße, 漢字, no\u00a0break"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b31m\x00", r"\x9b31m\x00"),
        ("txt\u202egnp.exe", r"txt\u202egnp.exe"),
        ("\udc80", r"\udc80"),
    ],
)
def test_what_is_no_text_is_shown_as_python_writes_it(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_lines_stay_and_tabs_become_blanks() -> None:
    assert plain_lines("a\tb\n\tc\x07\n") == "a       b\n        c\\x07\n"


def test_errors_and_what_is_told_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    assert harmless(str(UsageError(EVIL)))
    tell(f"{EVIL}\nnext")
    err = capsys.readouterr().err
    assert harmless(err)
    assert err.endswith("\nnext\n")


SCENARIO = """\
title: "a \\e[31mtitle\\a \\u202e [/red]"
about: "about \\e[31m"
variants: [{x: "[/red]\\e[2J"}, {x: "[fd00::1]"}]
hosts:
  server: {run: cat}
  client: {calls: "socket; connect server:9"}
steps:
  - start: server
  - note: "a note \\e[31m <b>x</b> [/]"
  - snapshot: "cap \\e]0;CAP\\a<img src=x onerror=alert(1)> [/blue]"
    as: "lab \\e[5m<i>"
  - exec: {client: "printf \\e[7m"}
  - start: client
  - expect: {process: {server: {output: "zz\\e"}}}
  - expect: {process: {client: ok}}
"""


def attacked(out: Path) -> list[RunResult]:
    """Runs of a scenario that means harm, with programs that do."""

    def writes(lab: FakeBackend) -> None:
        lab.output("server", f"out {EVIL}\n<script>alert(1)</script>\n")
        lab.sockets("server", tcp("ESTAB", "198.18.0.2:9", "198.18.0.3:8"))
        lab.trouble("server", f"no {EVIL}")

    def refused(lab: FakeBackend) -> None:
        lab.call("client", "connect server:9", errno="ECONNREFUSED", error=EVIL)
        lab.exit("client", 111)

    script = {"start server": writes, "start client": refused}
    answers = {"exec client printf \x1b[7m": {"exit": 0, "output": EVIL}}
    return [play(case, FakeBackend(script, answers), out) for case in cases()]


def cases() -> list[Scenario]:
    return load_document(Document(f"{EVIL}.yaml", SCENARIO), SCENARIO, f"a{EVIL}", {})


@pytest.fixture
def runs(tmp_path: Path) -> list[RunResult]:
    found = attacked(tmp_path)
    assert [run.result for run in found] == ["fail", "fail"]
    return found


@pytest.mark.parametrize("number", [1, 2])
def test_a_table_commands_no_terminal(
    runs: list[RunResult], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is a value in brackets markup."""
    terminal.print_runs(runs[:number], console(), 1.0)
    out = capsys.readouterr().out
    assert harmless(out)
    assert "[/red]" in out
    assert r"\x1b]0;CAP\x07" in out
    assert max(map(len, out.splitlines())) <= PIPE_WIDTH or "report" in out


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_letters_and_ends_of_lines(runs: list[RunResult], name: str) -> None:
    loaded = [recorded.load(run.folder) for run in runs]
    for text in (render(name, loaded), render(name, loaded[:1])):
        assert harmless(text)
        assert r"\x1b" in text.replace("#92;", "\\")  # which is how mermaid has it


def test_progress_commands_no_terminal(
    runs: list[RunResult], capsys: pytest.CaptureFixture[str]
) -> None:
    run, case = runs[0], cases()[0]
    live = terminal.LiveProgress(case, console())
    board = terminal.LiveBoard([case], console())
    lines = terminal.LastLines(["a\x1b"], console())
    history = History()
    for event in run.history.events:
        history.add(event)
        PlainProgress(case).event(event, history)
        live.event(event, history)
        console().print(live._draw())
    PlainBoard([case]).ended(0, run)
    board.begun(0)
    board.say(EVIL)
    lines.say("a\x1b", EVIL)
    for shown in (board, lines):
        console().print(shown._draw())
    captured = capsys.readouterr()
    assert harmless(captured.out)
    assert harmless(captured.err)
    assert r"\x1b" in captured.err


def test_other_tables_command_no_terminal(
    runs: list[RunResult], capsys: pytest.CaptureFixture[str]
) -> None:
    out = console()
    print_checks(out, [Check(EVIL, False, EVIL, EVIL, EVIL)])
    print_table(out, [EVIL], [[EVIL]], EVIL)
    seen = Seen(f"a {EVIL}", EVIL, {"kernel": EVIL, "os": EVIL}, document(runs), {EVIL: EVIL})
    other = Seen("b", None, {}, document(runs[:1]), {})
    found = compare([seen, other])
    terminal.print_comparison(found, out)
    out.print(f"a line {EVIL}", Text(EVIL))
    text = capsys.readouterr().out
    assert harmless(text)
    assert r"\x1b[31m" in text
    assert harmless(compared_page(found))
    assert harmless(compared_text(found))


def test_what_pytest_shows_is_plain(runs: list[RunResult]) -> None:
    causes = [Cause("reset-late-data", EVIL, 1.0, EVIL, EVIL)] * 4
    why = why_lines([*enumerate(causes, 1)], [EVIL], Path(EVIL))
    assert harmless(failure_text(runs[0].verdicts, why, Path(EVIL)))
