"""Names of one thing alone, and reports of runs with one label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl import reports
from labctl.cli.commands import main
from labctl.ground.names import told_apart
from labctl.judge import recorded
from labctl.judge.result import RunResult
from labctl.reports.progress import PlainBoard
from tests.fake import FakeBackend, play, scenario
from tests.reported import RUN

words = st.sampled_from(["a", "b", "a, b", "a #2", "a, a", ""])


@given(st.lists(st.tuples(words, words, words) | st.tuples(words, words) | st.tuples(words)))
def test_no_two_have_one_name(things: list[tuple[str, ...]]) -> None:
    names = told_apart(things)
    assert len(set(names)) == len(names) == len(things)
    for name, thing in zip(names, things, strict=True):
        assert name.startswith(thing[0])


@given(st.lists(words, unique=True))
def test_what_differs_stays_as_it_is(names: list[str]) -> None:
    assert told_apart([name] for name in names) == names


def test_as_much_as_it_takes() -> None:
    assert told_apart([("x", "one/x.yaml"), ("x", "two/x.yaml"), ("y", "y.yaml")]) == [
        "x, one/x.yaml", "x, two/x.yaml", "y"
    ]  # fmt: skip
    assert told_apart([("x", "x.yaml", "x"), ("x", "x.yaml", "x-2")]) == [
        "x, x", "x, x-2"
    ]  # fmt: skip
    assert told_apart([("x",), ("x",), ("x #2",)]) == ["x", "x #3", "x #2"]


def test_reports_of_runs_with_one_label(tmp_path: Path) -> None:
    """A suite, a page, a row and a heading for each, and each is called otherwise."""
    run = recorded.load(RUN)
    runs = [replace(run, source=f"{name}/x.yaml", title=name) for name in ("one", "two")]
    runs.append(replace(runs[0], folder=tmp_path / "again"))
    names = ["fin_wait_2, one/x.yaml, run", "fin_wait_2, two/x.yaml"]
    names.append("fin_wait_2, one/x.yaml, again")
    assert [found.label for found in recorded.told_apart(runs)] == names
    suites = list(ElementTree.fromstring(reports.render("junit", runs)))
    assert [suite.get("name") for suite in suites] == names
    assert [len(suite.findall("testcase")) for suite in suites] == [len(run.verdicts)] * 3
    classes = [{case.get("classname") for case in suite.findall("testcase")} for suite in suites]
    assert classes == [{name} for name in names]
    for form in ("markdown", "html", "ladder"):
        text = reports.render(form, runs).replace("\\", "")
        assert all(name in text for name in names), form
    reports.write("html", runs, tmp_path / "index.html")
    assert len(list(tmp_path.glob("*.html"))) == 4


def test_runs_of_one_case_have_what_was_set_and_when_they_began() -> None:
    run = recorded.load(RUN)
    runs = [
        replace(run, sets={"run": name, "port": "80"}, started=started)
        for name, started in (("nginx", "1"), ("haproxy", "2"), ("nginx", "3"))
    ]
    assert [found.label for found in recorded.told_apart([*runs, replace(run, sets={})])] == [
        "fin_wait_2, run=nginx, port=80, 1", "fin_wait_2, run=haproxy, port=80",
        "fin_wait_2, run=nginx, port=80, 3", "fin_wait_2, defaults",
    ]  # fmt: skip
    assert [found.label for found in recorded.told_apart(runs)][1] == "fin_wait_2, run=haproxy"


def test_progress_of_cases_with_one_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "title: x\nhosts: {a: {}, b: {}}\nsteps: []\n"
    cases = [replace(scenario(text), source=f"{name}/x.yaml") for name in ("one", "two")]
    results: list[RunResult] = [play(case, FakeBackend(), tmp_path) for case in cases]
    board = PlainBoard(cases)
    for number, found in enumerate(results):
        board.ended(number, found)
    said = capsys.readouterr().err
    assert [line[8:].partition("  ")[0] for line in said.splitlines()] == [
        "lesson, one/x.yaml", "lesson, two/x.yaml"
    ]  # fmt: skip


def test_a_page_that_somebody_else_wrote_stays(tmp_path: Path) -> None:
    """Pages beside an index are called after runs; a second time they are written again."""
    (tmp_path / "one.html").write_text("mine")
    runs = [replace(recorded.load(RUN), folder=Path(name)) for name in ("one", "two")]
    for _ in range(2):
        reports.write("html", runs, tmp_path / "index.html")
        found = sorted(path.name for path in tmp_path.iterdir())
        assert found == ["index.html", "one-2.html", "one.html", "two.html"]
    assert (tmp_path / "one.html").read_text() == "mine"


def test_pages_of_several_runs_take_a_file(tmp_path: Path) -> None:
    """None is put beside a device; and an index that stands nowhere leads nowhere."""
    device = tmp_path / "device"
    device.symlink_to("/dev/null")
    runs = [replace(recorded.load(RUN), folder=Path(name)) for name in ("one", "two")]
    with pytest.raises(OSError, match="several runs are an index and a page each"):
        reports.write("html", runs, device)
    assert [path.name for path in tmp_path.iterdir()] == ["device"]
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(RUN), str(RUN), "--format", "html"], prog_name="labctl")
