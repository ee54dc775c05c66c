"""Every report of a recorded run, and runs that are no run.

UPDATE_GOLDEN=1 writes what the reports say now into tests/golden/reports.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from labctl.ground.errors import UsageError
from labctl.judge import recorded
from labctl.judge.check import Verdict
from labctl.probes.segments import FILE_HEADER
from labctl.record.history import History
from labctl.record.lines import read_events
from labctl.reports import html, ladder, ladder_text, markdown, mermaid
from labctl.reports.ladder import ladder_of
from labctl.reports.terminal import LiveProgress
from tests.fake import scenario
from tests.played import lesson
from tests.reported import (
    ADDRESSES,
    RUN,
    full,
    golden,
    recorded_run,
    rows,
)

# --- Golden files ---------------------------------------------------------------------------------


def test_golden_ladders() -> None:
    run = recorded.load(RUN)
    golden("fin_wait_2.txt", ladder_text.text(ladder_of(run), 100))
    golden("fin_wait_2-ascii.txt", ladder_text.text(ladder_of(run), 80, unicode=False))
    golden("everything.txt", ladder_text.text(ladder.rows(full(), tuple(ADDRESSES)), 120))


def test_golden_pages() -> None:
    run = recorded.load(RUN)
    failed = Verdict(
        "fail", "server: TIME-WAIT", "TIME-WAIT", "FIN-WAIT-2", 0.3, "a.yaml:7", ("FIN-WAIT-2 x",)
    )
    other = recorded_run(full(), hosts=tuple(ADDRESSES), result="fail", verdicts=(failed,))
    golden("fin_wait_2.html", html.page(run))
    golden("everything.html", html.page(other))
    golden("index.html", html.index([run, other]))
    golden("fin_wait_2.mmd", mermaid.diagram(run))
    golden("everything.mmd", mermaid.diagram(other))
    golden("fin_wait_2.md", markdown.summary([run]))
    golden("two.md", markdown.summary([run, other]))


# --- At a terminal --------------------------------------------------------------------------------


def test_live_progress_of_a_lab_that_is_elsewhere() -> None:
    """Of a lab in a guest there are events, and no lab to ask for the time."""
    out = Console(file=io.StringIO(), width=100)
    history = History()
    shown = LiveProgress(scenario(lesson("- start: server\n")), out)
    for event in list(read_events((RUN / "history.jsonl").read_text("utf-8").splitlines()))[:20]:
        history.add(event)
        shown.event(event, history)
    out.print(shown._draw())
    assert isinstance(out.file, io.StringIO)
    text = out.file.getvalue()
    assert "bringing the lab up" not in text
    assert "LISTEN" in text


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_text_fits(width: int) -> None:
    for hosts in (("server", "client"), tuple(ADDRESSES)):
        text = ladder_text.text(ladder.rows(full(), hosts), width)
        assert max(map(len, text.splitlines())) <= width


def test_text_without_unicode_is_ascii() -> None:
    text = ladder_text.text(rows(full()), 100, unicode=False)
    assert text.isascii()
    assert "x" in next(line for line in text.splitlines() if "[lost]" in line)


def test_styled_text_is_the_same_in_colour() -> None:
    found = rows(full())
    plain = [line.rstrip() for line in ladder_text.styled(found, 100).plain.splitlines()]
    assert plain == ladder_text.text(found, 100).splitlines()


# --- Recorded runs --------------------------------------------------------------------------------


def test_load() -> None:
    run = recorded.load(RUN)
    assert (run.label, run.result, run.hosts) == ("fin_wait_2", "pass", ("server", "client"))
    assert run.about.startswith("The server is killed")
    assert len(run.verdicts) == 9
    assert run.where == "netns, kernel 6.1.0, Debian GNU/Linux 12 (bookworm)"


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda path: path.rmdir(), "there is no such folder"),
        (lambda path: None, "no history.jsonl and no scenario.yaml in it"),
        (lambda path: shutil.copytree(RUN, path / "one"), "it holds 1, such as one"),
    ],
)
def test_a_folder_that_is_no_run(
    tmp_path: Path, arrange: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    arrange(folder)
    with pytest.raises(UsageError, match=f"{message}; give a folder that `labctl run` recorded"):
        recorded.load(folder)


def test_a_run_that_was_cut_short(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    (folder / "result.json").unlink()
    path = folder / "history.jsonl"
    path.write_text(path.read_text()[:-30])
    run = recorded.load(folder)
    assert run.result == "error"
    assert run.reason == "the run was cut short: it left no result"
    assert "cut short" in html.page(run)


@pytest.mark.parametrize("early", [False, True])
def test_what_one_host_told_last_and_the_other_did_not(tmp_path: Path, early: bool) -> None:
    """If a record ends early, nobody knows whether somebody else sent it."""
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    last = recorded.load(folder).history.segments()[-1]
    path = folder / f"{last.sender}.pcap"
    data, begin, end = path.read_bytes(), 0, len(FILE_HEADER)
    while end < len(data):
        begin, end = end, end + 16 + int.from_bytes(data[end + 8 : end + 12], "little")
    path.write_bytes(data[:begin])
    if early:
        (folder / "result.json").unlink()
    segment = recorded.load(folder).history.segments()[-1]
    assert (segment.t, segment.arrived) == (None, last.arrived)
    assert segment.unseen == early


def test_a_run_that_was_skipped(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    (folder / "history.jsonl").write_text("")
    result = json.loads((RUN / "result.json").read_text())
    result["runs"][0].update(result="skip", reason="no root", verdicts=[], why=[])
    (folder / "result.json").write_text(json.dumps(result))
    run = recorded.load(folder)
    assert (run.result, run.hosts) == ("skip", ("server", "client"))
    assert "the lab was not up" in html.page(run)
    assert "no root" in markdown.summary([run])


@pytest.mark.parametrize("text", ["", "[]", '{"runs": []}', '{"runs": [7]}', '{"runs": [{}]}'])
def test_a_result_that_is_none(tmp_path: Path, text: str) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    (folder / "result.json").write_text(text)
    with pytest.raises(UsageError, match="no result document"):
        recorded.load(folder)


def test_a_history_that_is_none(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    (folder / "history.jsonl").write_text("what\n")
    with pytest.raises(UsageError, match=re.escape(f"{folder}: history.jsonl:1: no event")):
        recorded.load(folder)
