"""Reports can't change a result: what can't be written is told in a line, and everything else comes
out."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl import reports
from labctl.cli.results import Wanted, give, why_cut_short
from labctl.judge import recorded
from labctl.judge.result import RunResult
from labctl.language.document import Document
from labctl.language.scenario import load, load_document
from labctl.reports import markdown, step_summary
from labctl.reports.comparison import Comparison, Row
from labctl.reports.progress import Screen
from labctl.reports.step_summary import LIMIT, Part, fitted
from labctl.run import dispatch
from labctl.run.orders import Orders
from labctl.run.places import Place
from labctl.run.runner import WAS_INTERRUPTED
from tests import refusing
from tests.fake import FakeBackend, play
from tests.reported import NASTY, RUN

WRONG = """\
title: Nobody listens [/]
hosts: {server: {}, client: {}}
steps:
  - expect: {sockets: {server: LISTEN}}
"""
RIGHT = WRONG.replace("LISTEN", "none")


@pytest.fixture(autouse=True)
def no_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GITHUB_STEP_SUMMARY", "GITHUB_SERVER_URL"):
        monkeypatch.delenv(variable, raising=False)


def judged(stdout: Any, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`labctl check` of a record, by a program of its own, to this stdout."""
    return subprocess.run(
        [sys.executable, "-m", "labctl", "check", *arguments], env={**os.environ, **variables},
        stdout=stdout, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip


def other(tmp_path: Path) -> str:
    """A record of a claim that does not hold."""
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG)
    (case,) = load(path)
    return str(play(case, FakeBackend(), tmp_path).folder)


# --- Where stdout takes nothing -------------------------------------------------------------------


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_full_disk(tmp_path: Path, form: str) -> None:
    for record, status in ((str(RUN), 0), (other(tmp_path), 1)):
        with Path("/dev/full").open("w") as full:
            done = judged(full, record, "--format", form)
        assert done.returncode == status
        assert done.stderr == "labctl: the verdicts can't be written: No space left on device\n"


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    for record, status in ((str(RUN), 0), (other(tmp_path), 1)):
        reading, writing = os.pipe()
        os.close(reading)
        done = judged(writing, record)
        os.close(writing)
        assert done.returncode == status
        assert done.stderr == "labctl: the verdicts can't be written: Broken pipe\n"


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", ">&- 2>&-", ">/dev/full 2>&1", "2>&-"])
def test_what_is_closed(closed: str, tmp_path: Path) -> None:
    for record, status in ((str(RUN), 0), (other(tmp_path), 1)):
        command = f"exec {sys.executable} -m labctl check {record} {closed}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_an_encoding_without_the_signs(tmp_path: Path, variables: dict[str, str]) -> None:
    for record, status, sign in ((str(RUN), 0, "+ "), (other(tmp_path), 1, "x ")):
        with (tmp_path / "out").open("w") as out:
            done = judged(out, record, **variables)
        assert (done.returncode, done.stderr) == (status, "")
        text = (tmp_path / "out").read_text("ascii")
        assert [line for line in text.splitlines() if line.startswith(sign)]


@pytest.mark.parametrize("form", ["html", "junit"])
def test_what_says_its_encoding_has_it(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "labctl", "report", str(RUN), "--format", form],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.decode("utf-8") == reports.render(form, [recorded.load(RUN)])
    assert form != "html" or not done.stdout.isascii()


@pytest.mark.parametrize("command", [["list"], ["schema"], ["--help"], ["ps"]])
def test_other_commands_say_that_nothing_came_out(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "labctl", *command], stdout=full, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "labctl: this can't be written: No space left on device\n"


@pytest.mark.parametrize(
    "command", ["list", "schema", "--help", "ps", f"report {RUN}", f"report {RUN} --format html"]
)
def test_a_closed_stdout_is_no_success(command: str) -> None:
    """To Python it is None, to which `print` writes in silence."""
    words = f"exec {sys.executable} -m labctl {command} >&-"
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "labctl: this can't be written: stdout is closed\n"


def test_what_is_for_a_closed_stderr_does_not_go_to_stdout() -> None:
    words = f"exec {sys.executable} -m labctl show no_such_lesson 2>&-"
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


KEEPS = """\
import signal, sys
from labctl.backends.lease import Lease
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
with Lease(sys.argv[1], "up", "lab", "netns", "now"):
    print("up", flush=True)
    signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells a process's beginning")
@pytest.mark.parametrize("closed", [">/dev/full", ">&-"])
def test_all_is_taken_down_whoever_listens(environment: Path, closed: str) -> None:
    """What can't be told keeps nothing from being done."""
    with ExitStack() as stack:
        engine = stack.enter_context(refusing.engine(environment / "no-engine.sock"))
        keepers = []
        for name in "ab":
            keeper = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", KEEPS, name], stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(keeper.kill)
            assert keeper.stdout and keeper.stdout.readline() == "up\n"
            keepers.append(keeper)
        words = f"exec {sys.executable} -m labctl down {closed}"
        done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=False)
        assert [keeper.wait(10) for keeper in keepers] == [0, 0]
    assert done.returncode == 0
    (told,) = done.stderr.splitlines()
    assert told.startswith("labctl: what is done can't be written")
    assert [path for path in engine.asked if path.endswith("/networks")], "it was swept"


# --- What `labctl run` writes ---------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """What `labctl run` makes of cases that were played over a fake, with these files to write:
    its status, stdout and stderr."""

    def command(
        text: str, form: str = "table", interrupted: bool = False, **files: str
    ) -> tuple[int, str, str]:
        document = Document("lesson.yaml", text)
        cases = load_document(document, text, "lesson", {})
        results = [play(case, FakeBackend(), tmp_path / "runs") for case in cases]
        cut_short = ""
        if interrupted:
            other = replace(results[1], result="error", reason=WAS_INTERRUPTED)
            results = [results[0], other]
            cut_short = why_cut_short(results, len(cases))
        wanted = Wanted(form, **{name: Path(path) for name, path in files.items()})
        status = give(results, wanted, 1.0, cut_short)
        return status, *capsys.readouterr()

    return command


@pytest.mark.parametrize(("text", "status"), [(RIGHT, 0), (WRONG, 1)])
def test_what_can_not_be_written_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, status: int
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", f"{tmp_path}/none/summary.md")
    code, out, err = run(text, junit=f"{tmp_path}/none/junit.xml", html="/dev/full")
    assert code == status
    assert ("PASS", "FAIL")[status] in out
    assert err.splitlines() == [
        f"labctl: {tmp_path}/none/junit.xml can't be written: No such file or directory",
        "labctl: /dev/full can't be written: No space left on device",
        f"labctl: GITHUB_STEP_SUMMARY {tmp_path}/none/summary.md can't be written: "
        "No such file or directory",
    ]


def test_a_report_waits_for_no_reader(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pipe))
    code, _, err = run(WRONG, junit=str(pipe), html=str(pipe))
    assert code == 1
    lost = "can't be written: nobody reads from it"
    assert err.splitlines() == [
        f"labctl: {n}{pipe} {lost}" for n in ("", "", "GITHUB_STEP_SUMMARY ")
    ]
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert run(WRONG, junit=str(pipe))[0] == 1
    assert b"Nobody listens" in os.read(reader, 1 << 16)
    os.close(reader)


def test_files_are_written_although_the_table_is_not(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong there."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise ValueError("a mistake\nof ours")

    monkeypatch.setattr(sys, "stdout", Broken())
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", f"{tmp_path}/summary.md")
    code, out, err = run(WRONG, junit=f"{tmp_path}/j.xml", html=f"{tmp_path}/h.html")
    assert (code, out) == (1, "")
    fault = "a fault of labctl itself: ValueError: a mistake of ours; please report it"
    assert err.startswith(f"labctl: the table can't be written: {fault}")
    assert len(err.splitlines()) == 1
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("failures") == "1"
    assert "Nobody listens" in (tmp_path / "h.html").read_text()
    assert "Nobody listens" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("answers", "result", "reason"),
    [
        (False, "skip", "no Docker engine answers"),
        (True, "error", "the engine did not provide the images: this engine is broken"),
    ],
)
def test_several_cases_without_an_engine_have_results(
    environment: Path, answers: bool, result: str, reason: str
) -> None:
    """As one has: each is in all reports, with the reason."""
    cases = load_document(Document("lesson.yaml", VARIANTS), VARIANTS, "lesson", {})
    with refusing.engine(environment / "no-engine.sock") if answers else nullcontext():
        found = dispatch.run(cases, Place("docker", "debian:12"), Orders(Screen(), jobs=1))
    assert [run.result for run in found] == [result] * 3
    assert all(str(run.reason).startswith(reason) for run in found)


VARIANTS = RIGHT.replace("hosts", "variants: [{n: 1}, {n: 2}, {n: 3}]\nhosts", 1)


def test_an_interruption_and_its_reports(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decided is in all of them, and none says that all is well."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", f"{tmp_path}/summary.md")
    files = {"junit": f"{tmp_path}/j.xml", "html": f"{tmp_path}/h.html"}
    code, out, err = run(VARIANTS, interrupted=True, **files)
    assert (code, err) == (130, "labctl: interrupted\n")
    assert "pass" in out
    assert "interrupted when 1 of 3 cases were decided" in out
    for name in ("j.xml", "h.html", "summary.md"):
        assert (tmp_path / name).read_text().count("lesson") >= 2
    code, out, _ = run(VARIANTS, "json", interrupted=True)
    found = json.loads(out)
    assert (code, found["result"]) == (130, "error")
    assert found["reason"] == "interrupted when 1 of 3 cases were decided"
    assert [run["result"] for run in found["runs"]] == ["pass", "error"]


# --- The summary of a step ------------------------------------------------------------------------


def many(count: int, **more: Any) -> list[RunResult]:
    run = recorded.load(RUN)
    return [replace(run, title=f"{NASTY} {n}", **more) for n in range(count)]


def test_a_summary_that_fits_is_whole() -> None:
    runs = many(3)
    assert markdown.summary(runs, LIMIT) == markdown.summary(runs)


def test_a_summary_keeps_within_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [*many(300), *many(3, result="fail", folder=Path("runs") / ("é" * 300))]
    whole = markdown.summary(runs)
    assert len(whole.encode()) > LIMIT
    text = markdown.summary(runs, LIMIT)
    assert LIMIT * 0.95 < len(text.encode()) <= LIMIT
    assert text.count("❌ fail |") == 3
    assert text.count("✅ pass |") >= 300, "every run has its row"
    failed = text.split("\n## ")[-3:]
    assert all("```mermaid" in section for section in failed), "what failed comes first"
    assert "**Left out here: " in text
    assert "labctl report " in text
    assert "artifacts" not in text
    for name, value in {"SERVER_URL": "https://h", "REPOSITORY": "o/r", "RUN_ID": "7"}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    text = markdown.summary(runs, LIMIT)
    assert "(https://h/o/r/actions/runs/7#artifacts)" in text
    assert len(text.encode()) <= LIMIT


def test_a_comparison_keeps_within_its_room() -> None:
    rows = tuple(Row("claim", f"case {n}", "é" * 50, ("pass",) * 5, n % 7 == 0)
                 for n in range(8000))  # fmt: skip
    text = markdown.comparison(Comparison((), rows), LIMIT)
    assert len(text.encode()) <= LIMIT
    first, everything = text.split("<details>")
    assert first.count("| case ") == sum(row.first for row in rows)
    assert 0 < everything.count("| case ") < len(rows)
    assert "rows of tables.** A step's summary takes 1 MiB." in text
    assert text.rstrip().splitlines()[-1].startswith("**Left out here: ")
    assert "</details>" in text


def test_a_step_that_has_said_much_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    file.write_bytes(b"x" * (LIMIT - 20_000))
    runs = many(10)
    step_summary.add(lambda room: markdown.summary(runs, room))
    assert LIMIT - 20_000 < file.stat().st_size <= LIMIT
    assert "Left out here: 10 runs" in file.read_text()
    file.write_bytes(b"x" * LIMIT)
    step_summary.add(lambda room: markdown.summary(runs, room))
    assert file.stat().st_size == LIMIT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"labctl: GITHUB_STEP_SUMMARY {file} can't be written: ")
    assert "no room left in 1 MiB" in line


texts = st.text("aé\n|", max_size=400)


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 4), texts), min_size=1, max_size=3), max_size=30),
    st.integers(6000, 20_000),
)
def test_what_is_fitted_fits(versions: list[list[tuple[int, str]]], room: int) -> None:
    """In whatever room: not a byte more, and nothing is left out in silence."""
    parts = [Part(sorted(v, key=lambda x: (x[0], len(x[1].encode())))) for v in versions]
    told: list[int] = []
    text = fitted(parts, room, lambda cut: told.extend(cut) or "left out")
    assert len(text.encode()) <= room
    whole = "\n".join(part.whole for part in parts)
    assert text == whole if not told else text.endswith("left out")


def test_signs_have_a_stand_in_of_their_width() -> None:
    from rich.cells import cell_len

    from labctl.ground.output import ASCII

    for sign, plain in ASCII.items():
        assert cell_len(sign) == cell_len(plain) == 1
