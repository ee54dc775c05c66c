"""What nobody foresaw, and what a limit of the system refuses, end in a sentence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import pytest

from labctl.cli.commands import Commands
from labctl.ground import crash
from labctl.ground.crash import netted, sentence
from labctl.ground.errors import LabError, UsageError
from labctl.ground.limits import ROOM
from labctl.ground.output import tell
from labctl.judge.recorded import reloaded
from labctl.judge.result import RunResult, unperformed
from labctl.language.document import Document
from labctl.language.predicates.finding import Finding
from labctl.language.scenario import Scenario, load_document
from labctl.language.steps import Note
from labctl.record.history import History
from labctl.record.store import RunFolder
from labctl.run.orders import one_by_one
from labctl.run.runner import Session, Silent
from tests.fake import FakeBackend, play
from tests.played import lesson

TEXT = lesson("- start: server\n")
FULL = OSError(errno.ENOSPC, "No space left on device")
NO_ROOM = "; ".join(ROOM)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "labctl" / "crashes"


def case(name: str = "lesson") -> Scenario:
    (found,) = load_document(Document("lesson.yaml", TEXT), TEXT, name, {})
    return found


def test_a_limit_of_the_system_is_no_fault_of_ours(state: Path) -> None:
    assert sentence(FULL) == NO_ROOM
    assert not state.exists()


def test_a_fault_of_ours_keeps_its_traceback(state: Path) -> None:
    with pytest.raises(LabError) as caught, netted():
        raise ZeroDivisionError("a mistake\nof ours")
    (kept,) = state.iterdir()
    assert str(caught.value) == (
        "a fault of labctl itself: ZeroDivisionError: a mistake of ours; please report it, with "
        f"{kept}"
    )
    assert "test_a_fault_of_ours" in kept.read_text()


def test_a_traceback_that_can_not_be_kept(state: Path) -> None:
    state.parent.parent.write_text("in the way")
    said = sentence(KeyError("x"))
    assert said.startswith("a fault of labctl itself: KeyError: 'x'; please report it (its traceb")


def test_what_is_told_already_stays_as_it_is() -> None:
    with pytest.raises(UsageError, match=r"^no$"), netted():
        raise UsageError("no")
    with pytest.raises(KeyboardInterrupt), netted():
        raise KeyboardInterrupt


def mistake(*_: object) -> None:
    raise LookupError("a mistake")


def test_a_command_ends_in_a_sentence(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    labctl = Commands(commands={"fails": click.Command("fails", callback=mistake)})
    with pytest.raises(SystemExit) as ended:
        labctl.main(["fails"])
    (kept,) = state.iterdir()
    assert ended.value.code == 4
    said = "labctl: a fault of labctl itself: LookupError: a mistake; please report it, with"
    assert capsys.readouterr() == ("", f"{said} {kept}\n")


def test_so_does_a_thread(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise FULL

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    crash.prepare(tell)
    thread = threading.Thread(target=fails)
    thread.start()
    thread.join()
    assert capsys.readouterr().err == f"labctl: {NO_ROOM}\n"


def test_a_command_that_can_not_begin(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ImportError('broken')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "labctl", "list"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("labctl: can't begin: ImportError broken;")


# --- Of several cases one breaks ------------------------------------------------------------------


def runs(out: Path, fails: Exception, *at: int) -> Callable[[Scenario], RunResult]:
    """Runs cases, but those with these numbers."""

    def run(chosen: Scenario) -> RunResult:
        if int(chosen.name) in at:
            raise fails
        folder = out / chosen.name
        folder.mkdir()
        return play(chosen, FakeBackend(), folder)

    return run


@pytest.mark.parametrize("fails", [UsageError("no room"), LabError("no room"), FULL])
def test_what_breaks_later_leaves_the_others(tmp_path: Path, fails: Exception) -> None:
    found = one_by_one([case(str(n)) for n in range(4)], runs(tmp_path, fails, 1, 2))
    assert [run.result for run in found] == ["pass", "error", "error", "pass"]
    assert "no room" in (found[1].reason or "") or found[1].reason == NO_ROOM
    assert found[2].folder == tmp_path / "0"


def test_where_the_first_can_not_run_none_can(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no room"):
        one_by_one([case("0"), case("1")], runs(tmp_path, UsageError("no room"), 0))


def test_a_case_without_a_record_is_in_reports_too(tmp_path: Path) -> None:
    found = reloaded(unperformed(case(), "error", "no room", "netns", tmp_path / "none"))
    assert (found.label, found.result, found.reason) == ("lesson", "error", "no room")
    assert found.hosts == ("server", "client")


class Unjudged(Note):
    """A step that labctl fails to judge."""

    def judge(self, history: History) -> list[Finding]:
        raise LookupError("a mistake")


@pytest.mark.parametrize("kind", ["judging", "steps"])
def test_a_mistake_of_ours_is_an_error_of_its_case(tmp_path: Path, kind: str) -> None:
    chosen, fake = case(), FakeBackend({"start server": mistake})
    if kind == "judging":
        chosen = replace(chosen, steps=(Unjudged.model_validate({"note": "a"}),))
    with RunFolder(tmp_path, chosen.text) as folder:
        found = Session(chosen, fake, folder, Silent()).run()
    assert found.result == "error"
    assert (found.reason or "").startswith("a fault of labctl itself: LookupError: a mistake;")
    assert (found.folder / "result.json").exists()


def test_files_that_can_not_grow(tmp_path: Path) -> None:
    """setrlimit(2): what is recorded until then stays, and the reason is told."""
    program = """\
import resource, sys
from pathlib import Path
from labctl.run.runner import Session, Silent
from labctl.record.store import RunFolder
from tests.fake import FakeBackend
from tests.unit.test_crash import case
resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
with RunFolder(Path(sys.argv[1]), "") as folder:
    print(Session(case(), FakeBackend(), folder, Silent()).run().reason)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "the run can't be recorded: a file grew too large; raise the limit" in done.stdout, (
        done.stderr
    )
    assert done.stderr == ""
