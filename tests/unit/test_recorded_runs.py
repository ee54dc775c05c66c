"""`labctl check` and `labctl report`: recorded runs, judged and shown again."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labctl.cli.exits import EXIT
from labctl.cli.results import write_reports
from labctl.judge import recorded
from labctl.record.events import TroubleEvent
from labctl.reports import junit
from tests.golden import HERE as GOLDEN
from tests.golden import agrees
from tests.played import Labctl
from tests.unit.test_table_of_results import lessons, timeless

# Recorded runs


RUN = Path(__file__).parent / "data" / "run"
FORMATS = ["ladder", "html", "junit", "markdown", "mermaid"]


def copied(folder: Path, edit: Callable[[str], str] = str, more: str = "") -> str:
    """A copy of the recorded run, with its scenario edited, and more events."""
    shutil.copytree(RUN, folder)
    scenario = folder / "scenario.yaml"
    scenario.write_text(edit(scenario.read_text()))
    with (folder / "history.jsonl").open("a") as file:
        file.write(more)
    return str(folder)


def test_check(labctl: Labctl) -> None:
    status, out, err = labctl("check", str(RUN))
    assert (status, err) == (0, "")
    assert out.count("✓") == 9
    assert "server: at least 1 FIN from server" in out


def test_check_for_programs(labctl: Labctl) -> None:
    status, out, err = labctl("check", str(RUN), str(RUN), "--format", "json")
    assert (status, err) == (0, "")
    first, second = json.loads(out)
    assert first == second
    (run,) = json.loads((RUN / "result.json").read_text())["runs"]
    assert [(v["what"], v["actual"]) for v in first] == [
        (v["what"], v["actual"]) for v in run["verdicts"]
    ]


def test_check_of_another_claim(labctl: Labctl, tmp_path: Path) -> None:
    """A record can be asked what nobody asked when it was made."""
    more = "  - segments: {flags: RST, count: 0}\n  - segments: {flags: FIN, count: 7}\n"
    status, out, _ = labctl("check", copied(tmp_path / "run", lambda text: text + more))
    assert status == EXIT["fail"]
    assert re.search(r"^✓ .* segments: 0 x RST +0 *$", out, re.MULTILINE)
    assert re.search(r"^✗ .* segments: 7 x FIN +2 *$", out, re.MULTILINE)


def test_check_of_what_can_not_be_known(labctl: Labctl, tmp_path: Path) -> None:
    lost = TroubleEvent(9.0, "server", "capture", "3 packets were not captured").to_json()
    folder = copied(tmp_path / "run", more=f"{lost}\n")
    status, out, _ = labctl("check", str(RUN), folder)
    assert status == EXIT["unknown"]
    assert "3 packets were not captured" in out


@pytest.mark.parametrize("command", ["check", "report"])
def test_a_folder_that_is_no_run(labctl: Labctl, tmp_path: Path, command: str) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        status, out, err = labctl(command, str(RUN), str(folder))
        assert (status, out) == (2, "")
        assert err.startswith(f"labctl: {folder}: no recorded run: ")
        assert "give a folder that `labctl run` recorded" in err


def test_check_of_a_scenario_that_is_none(labctl: Labctl, tmp_path: Path) -> None:
    folder = copied(tmp_path / "run", lambda text: text.replace("flags: FIN", "flags: FINN"))
    status, out, err = labctl("check", folder)
    assert (status, out) == (2, "")
    assert "unknown flag 'FINN'" in err
    assert labctl("report", folder)[0] == 0


@pytest.mark.parametrize("form", FORMATS)
def test_report(labctl: Labctl, tmp_path: Path, form: str) -> None:
    status, out, err = labctl("report", str(RUN), "--format", form)
    assert (status, err) == (0, "")
    assert "FIN" in out
    assert out.endswith("\n")
    assert "\x1b" not in out
    file = tmp_path / "file"
    assert labctl("report", str(RUN), "--format", form, "--out", str(file)) == (0, "", "")
    assert file.read_text("utf-8") == out


def test_report_is_a_ladder_unless_told_otherwise(labctl: Labctl) -> None:
    assert labctl("report", str(RUN)) == labctl("report", str(RUN), "--format", "ladder")


def test_report_of_a_run_that_failed(labctl: Labctl, tmp_path: Path) -> None:
    """It shows what was; to judge is `check`'s."""
    folder = Path(copied(tmp_path / "run"))
    result = folder / "result.json"
    result.write_text(result.read_text().replace('"result": "pass"', '"result": "fail"'))
    assert labctl("report", str(folder))[0] == 0


def test_several_runs_are_pages_and_an_index(labctl: Labctl, tmp_path: Path) -> None:
    folders = [copied(tmp_path / name) for name in ("one", "two")]
    site = tmp_path / "site"
    index = site / "index.html"
    for out in (f"{site}/", str(site), str(index)):
        assert labctl("report", *folders, "--format", "html", "--out", out) == (0, "", "")
    assert sorted(path.name for path in site.iterdir()) == ["index.html", "one.html", "two.html"]
    text = index.read_text("utf-8")
    assert 'href="one.html"' in text
    assert 'href="two.html"' in text
    assert "<svg" in (site / "one.html").read_text("utf-8")


def test_a_report_that_can_not_be_written(labctl: Labctl, tmp_path: Path) -> None:
    file = tmp_path / "none" / "file.html"
    status, out, err = labctl("report", str(RUN), "--format", "html", "--out", str(file))
    assert (status, out) == (2, "")
    assert err == f"labctl: {file}: can't be written: No such file or directory\n"


def test_junit(tmp_path: Path) -> None:
    """Golden, and as others read it."""
    runs = [recorded.load(result.folder) for result in lessons(tmp_path)]
    text = junit.document(runs)
    timeless_text = re.sub(r'(time(stamp)?)="[^"]*"', r'\1="T"', timeless(text, tmp_path))
    timeless_text = re.sub(r"^(\d\.\d{3}) ", "T.TTT ", timeless_text, flags=re.MULTILINE)
    assert agrees(GOLDEN / "report.junit.xml", timeless_text)
    suites = ElementTree.fromstring(text)
    assert suites.tag == "testsuites"
    counts = {key: int(suites.get(key, "")) for key in ("tests", "failures", "errors")}
    verdicts = Counter(v.result for run in runs for v in run.verdicts)
    assert counts == {
        "tests": verdicts.total(), "failures": verdicts["fail"], "errors": verdicts["unknown"]
    }  # fmt: skip


def test_reports_of_a_run_at_once(
    tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `labctl run --junit --html` writes, and the summary where CI wants one."""
    runs = lessons(tmp_path / "runs")
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    write_reports(runs, {"junit": tmp_path / "junit.xml", "html": tmp_path / "index.html"})
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().tag == "testsuites"
    assert 'href="lesson-2.html"' in (tmp_path / "index.html").read_text("utf-8")
    assert (tmp_path / "lesson-2.html").exists()
    assert summary.read_text("utf-8").startswith("before\n## 2 runs\n")
