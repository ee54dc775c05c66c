"""Several cases at once, over a fake backend: order, pace, and how workers end."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from labctl.backends import Progress
from labctl.ground.errors import LabError, UsageError
from labctl.judge.result import RunResult, document
from labctl.language.scenario import Scenario
from labctl.record.store import RunFolder, new_folder
from labctl.run.runner import Interrupted, Session, Watcher
from labctl.run.workers import A_CORE, CHEAP, MOST, Doing, Pace, Task, Work, pace, run_all
from labctl.run.workflow import interruptible
from tests.fake import FakeBackend, scenario

DEADLINE = 20.0
ALL = Pace(4, 4)


def case(title: str, steps: str = "- note: hello") -> Scenario:
    return scenario(f"title: {title}\nhosts: {{a: {{}}, b: {{}}}}\nsteps:\n{steps}\n")


def play(path: Path, chosen: Scenario, watcher: Watcher, progress: Progress) -> RunResult:
    with RunFolder(path, chosen.text) as folder:
        return Session(chosen, FakeBackend(), folder, watcher).run()


def until(path: Path, text: str = "") -> None:
    """Waits for a file, and for a text in it."""
    deadline = time.monotonic() + DEADLINE
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.005)


class Log:
    """A board that remembers."""

    def __init__(self) -> None:
        self.log: list[tuple[str, object]] = []
        self.ticks = 0

    def begun(self, number: int) -> None:
        self.log.append(("begun", number))

    def doing(self, number: int, step: Doing) -> None:
        self.log.append((step.text, number))

    def say(self, line: str) -> None:
        self.log.append(("say", line))

    def ended(self, number: int, result: RunResult) -> None:
        self.log.append((result.result, number))

    def tick(self) -> None:
        self.ticks += 1


def together(
    cases: list[Scenario],
    out: Path,
    work: Work = play,
    board: Log | None = None,
    pace: Pace = ALL,
    **more: Any,
) -> list[RunResult]:
    """Runs cases in a folder each."""
    return run_all(
        cases, Task(work, "fake", lambda chosen: new_folder(out, chosen.title), **more),
        pace, board or Log(),
    )  # fmt: skip


def meeting(
    out: Path, path: Path, chosen: Scenario, watcher: Watcher, progress: Progress
) -> RunResult:
    """Is done only while another is, too."""
    (out / f"{chosen.title}.here").touch()
    until(out / f"{'two' if chosen.title == 'one' else 'one'}.here")
    return play(path, chosen, watcher, progress)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_they_run_at_once_and_results_keep_their_order(tmp_path: Path, method: str) -> None:
    cases = [case("one", "- sleep: 0.2s"), case("two")]
    found = together(cases, tmp_path, partial(meeting, tmp_path), method=method)
    assert [result.title for result in found] == [case.title for case in cases]
    assert [result.result for result in found] == ["pass", "pass"]
    assert [result.folder for result in found] == [tmp_path / "one", tmp_path / "two"]
    for result in found:
        recorded = json.loads((result.folder / "result.json").read_text())
        assert recorded.pop("files").keys() == {"history.jsonl", "a.ss", "b.ss", "a.pcap", "b.pcap"}
        assert recorded == json.loads(json.dumps(document([result])))


def alone(
    out: Path, path: Path, chosen: Scenario, watcher: Watcher, progress: Progress
) -> RunResult:
    """Fails where two others run beside it."""
    mine = out / f"{os.getpid()}.busy"
    mine.touch()
    beside = len(list(out.glob("*.busy"))) - 1
    result = play(path, chosen, watcher, progress)
    mine.unlink()
    assert beside < 2
    return result


def test_never_more_at_once_than_are_wanted(tmp_path: Path) -> None:
    cases = [case(f"c{n}", "- sleep: 0.05s") for n in range(6)]
    board = Log()
    found = together(cases, tmp_path, partial(alone, tmp_path), board=board, pace=Pace(2, 4))
    assert [result.result for result in found] == ["pass"] * 6
    assert [result.title for result in found] == [f"c{n}" for n in range(6)]


def test_those_that_take_longest_begin_first(tmp_path: Path) -> None:
    steps = "- start: p\n- wait: {sockets: {a: none}}\n  within: 0.2s..5s"
    long = scenario(
        "title: long\nhosts: {a: {processes: {p: {run: cat}}}, b: {}}\nsteps:\n" + steps + "\n"
    )
    assert (long.least, case("s", "- sleep: 3s\n- sleep: 1s").least) == (0.2, 4.0)
    cases = [case("one"), case("two", "- sleep: 0.1s"), long, case("three")]
    board = Log()
    together(cases, tmp_path, board=board, pace=Pace(1, 4))
    assert [number for what, number in board.log if what == "begun"] == [2, 1, 0, 3]


def test_so_many_come_up_at_once(tmp_path: Path) -> None:
    board = Log()
    together([case("one"), case("two"), case("three")], tmp_path, board=board, pace=Pace(4, 1))
    told = [(what, number) for what, number in board.log if what in ("begun", "note hello")]
    assert told == [
        (what, number) for number in range(3) for what in ("begun", "note hello")
    ]  # fmt: skip


def talking(path: Path, chosen: Scenario, watcher: Watcher, progress: Progress) -> RunResult:
    progress("a base is built")
    return play(path, chosen, watcher, progress)


def test_what_a_board_is_told(tmp_path: Path) -> None:
    board = Log()
    together([case("one", "- note: first\n- note: second")], tmp_path, talking, board=board)
    assert board.log == [
        ("begun", 0), ("say", "a base is built"), ("note first", 0), ("note second", 0), ("pass", 0)
    ]  # fmt: skip
    assert board.ticks


def test_a_failure_brings_its_history_along(tmp_path: Path) -> None:
    wrong = case("wrong", "- snapshot: now\n- expect: {sockets: {a: LISTEN}}")
    good, bad = together([case("good"), wrong], tmp_path)
    assert (good.result, bad.result) == ("pass", "fail")
    assert any(event.kind == "sockets" for event in bad.history.events)
    assert not good.history.events


def killed(path: Path, chosen: Scenario, watcher: Watcher, progress: Progress) -> RunResult:
    result = play(path, chosen, watcher, progress)
    if chosen.title == "bad":
        (path / "result.json").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def killed_early(path: Path, chosen: Scenario, watcher: Watcher, progress: Progress) -> RunResult:
    if chosen.title == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return play(path, chosen, watcher, progress)


@pytest.mark.parametrize("work", [killed, killed_early])
def test_a_worker_that_is_killed_is_an_error_of_its_case_alone(tmp_path: Path, work: Work) -> None:
    found = together([case("one"), case("bad"), case("two")], tmp_path, work)
    assert [result.result for result in found] == ["pass", "error", "pass"]
    assert found[1].reason == "its process was killed by SIGKILL"
    (recorded,) = json.loads((tmp_path / "bad" / "result.json").read_text())["runs"]
    assert recorded == json.loads(json.dumps(found[1].as_json()))
    assert bool(found[1].history.events) == (work is killed)


def broken(path: Path, chosen: Scenario, watcher: Watcher, progress: Progress) -> RunResult:
    raise ZeroDivisionError("a mistake of ours")


def test_a_worker_that_fails_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sentence; the traceback is kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (found,) = together([case("one")], tmp_path, broken)
    (crash,) = (tmp_path / "labctl" / "crashes").iterdir()
    assert (found.result, found.reason) == (
        "error",
        "a fault of labctl itself: ZeroDivisionError: a mistake of ours; please report it, with "
        f"{crash}",
    )
    assert "in broken" in crash.read_text()
    assert capfd.readouterr().err == ""


def refusing(path: Path, chosen: Scenario, watcher: Watcher, progress: Progress) -> RunResult:
    """One can't run, when the other is on its way and has more to tell than a pipe holds."""
    if chosen.title == "one":
        until(path.parent / "two.here")
        raise LabError("no room")
    (path.parent / "two.here").touch()
    try:
        return play(path, chosen, watcher, progress)
    finally:
        progress("x" * 1_000_000)


def test_what_one_worker_raises_is_the_result_of_its_case(tmp_path: Path) -> None:
    found = together([case("one"), case("two")], tmp_path, refusing)
    assert [(run.result, run.reason) for run in found] == [("error", "no room"), ("pass", None)]
    (recorded,) = json.loads((tmp_path / "one" / "result.json").read_text())["runs"]
    assert (recorded["result"], recorded["reason"]) == ("error", "no room")


def full(path: Path, chosen: Scenario, watcher: Watcher, progress: Progress) -> RunResult:
    raise UsageError("no room")


def test_what_all_workers_raise_comes_out(tmp_path: Path) -> None:
    """Nothing has run then."""
    with pytest.raises(UsageError, match="no room"):
        together([case("one"), case("two")], tmp_path, full)


def stopping(
    out: Path, path: Path, chosen: Scenario, watcher: Watcher, progress: Progress
) -> RunResult:
    """Ends at once, is interrupted amid its steps, or interrupts them all as soon as one has ended
    and another sleeps."""
    if chosen.title == "one":
        return play(path, chosen, watcher, progress)
    if chosen.title == "two":
        return run_in_session(path, chosen, watcher)
    until(out / "one" / "result.json")
    until(out / "two" / "history.jsonl", "sleep 60 s")
    os.kill(os.getppid(), signal.SIGINT)
    return run_in_session(path, chosen, watcher)


def run_in_session(path: Path, chosen: Scenario, watcher: Watcher) -> RunResult:
    with RunFolder(path, chosen.text) as folder:
        session = Session(chosen, FakeBackend(), folder, watcher)
        try:
            return session.run()
        except KeyboardInterrupt as exc:
            raise Interrupted([session.result]) from exc


def test_an_interruption_keeps_what_was_decided(tmp_path: Path) -> None:
    cases = [case("one"), case("two", "- sleep: 60s"), case("three", "- sleep: 60s"), case("four")]
    with interruptible(), pytest.raises(Interrupted) as caught:
        together(cases, tmp_path, partial(stopping, tmp_path), pace=Pace(3, 4))
    found = {run.title: (run.result, run.reason) for run in caught.value.results}
    assert found == {
        "one": ("pass", None), "two": ("error", "interrupted"), "three": ("error", "interrupted"),
    }  # fmt: skip
    for run in caught.value.results:
        recorded = json.loads((run.folder / "result.json").read_text())["runs"]
        assert recorded == json.loads(json.dumps([run.as_json()]))


class Kept:
    """A work that is worth keeping: entered once in each worker. Says who did what."""

    def __init__(self, out: Path, breaks: str = "") -> None:
        self.out, self.breaks = out, breaks

    def __enter__(self) -> Kept:
        (self.out / f"{os.getpid()}.entered").touch()
        return self

    def __exit__(self, *_: object) -> None:
        (self.out / f"{os.getpid()}.left").touch()

    def __call__(
        self, path: Path, chosen: Scenario, watcher: Watcher, progress: Progress
    ) -> RunResult:
        (self.out / f"{chosen.title}.by").write_text(str(os.getpid()))
        if chosen.title == self.breaks:
            raise LabError("nothing can be had")
        if self.breaks == "killed" and chosen.title == "two":
            os.kill(os.getpid(), signal.SIGKILL)
        return play(path, chosen, watcher, progress)

    def names(self, of: str) -> set[str]:
        return {path.stem for path in self.out.glob(f"*.{of}")}


def test_a_worker_that_is_kept_does_one_case_after_another(tmp_path: Path) -> None:
    cases = [case(name, "- sleep: 0.1s") for name in ("one", "two", "three", "four", "five")]
    kept = Kept(tmp_path)
    found = together(cases, tmp_path, kept, pace=Pace(2, 2))
    assert [result.title for result in found] == [case.title for case in cases]
    assert {result.result for result in found} == {"pass"}
    assert len(kept.names("entered")) == 2
    assert kept.names("left") == kept.names("entered")


def test_a_kept_worker_that_is_killed_costs_its_case_alone(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "killed")
    found = together([case("one"), case("two"), case("three")], tmp_path, kept, pace=Pace(1, 1))
    assert [run.result for run in found] == ["pass", "error", "pass"]
    assert len(kept.names("entered")) == 2


def test_where_the_first_of_kept_workers_can_not_begin_none_does(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "one")
    with pytest.raises(LabError, match="nothing can be had"):
        together([case("one"), case("two"), case("three")], tmp_path, kept, pace=Pace(2, 1))
    assert kept.names("by") == {"one"}


@pytest.mark.parametrize("first", [True, False])
def test_a_folder_that_can_not_be_made(tmp_path: Path, first: bool) -> None:
    """Nothing can run, or one can't, and is tried once more when another has ended."""
    (tmp_path / "file").touch()
    tried = []

    def place(chosen: Scenario) -> Path:
        tried.append(chosen.title)
        if chosen.title == "one" and not first:
            return new_folder(tmp_path, "one")
        return new_folder(tmp_path / "file", "two")

    cases = [case("one", "- sleep: 1s"), case("two")]
    if first:
        with pytest.raises(UsageError, match="can't write there"):
            run_all(cases, Task(play, "fake", place), Pace(2, 2), Log())
        return
    found = run_all(cases, Task(play, "fake", place), Pace(2, 2), Log())
    assert [run.result for run in found] == ["pass", "error"]
    assert "can't write there" in (found[1].reason or "")
    assert tried == ["one", "two", "two"]


def test_the_pace() -> None:
    cores = os.cpu_count() or 1
    for backend, suits in (("docker", A_CORE), ("netns", CHEAP["netns"])):
        assert pace(backend, 1, None).at_once == 1
        assert pace(backend, 1000, None).at_once == min(suits.at_once * cores, MOST)
        assert pace(backend, 3, 32) == Pace(3, suits.starting * cores)
        assert pace(backend, 9, 2).at_once == 2
