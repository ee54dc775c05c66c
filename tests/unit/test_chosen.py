"""Which recorded runs are meant."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.cli import chosen
from labctl.ground.errors import UsageError
from labctl.ground.resources import default_folder

Record = Callable[..., Path]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Records a run below the default folder, of that name and case. The later, the newer."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    count = 0

    def make(name: str, case: str | None, parent: Path | None = None) -> Path:
        nonlocal count
        count += 1
        folder = (parent or default_folder()) / name
        folder.mkdir(parents=True)
        (folder / chosen.HISTORY).touch()
        os.utime(folder / chosen.HISTORY, (count, count))
        if case:
            (folder / "result.json").write_text(json.dumps({"runs": [{"scenario": case}]}))
        return folder

    return make


def test_a_folder_and_a_folder_of_folders(record: Record, tmp_path: Path) -> None:
    one, two = record("1", "a", tmp_path / "out"), record("2/deep", "b", tmp_path / "out")
    assert chosen.find([str(one)], False) == [one]
    assert chosen.find(["out"], False) == [Path("out/1"), Path("out/2/deep")]
    assert chosen.find([str(two), str(two)], False) == [two, two]


def test_a_run_that_has_lost_its_history_is_not_passed_over(record: Record, tmp_path: Path) -> None:
    """Among others it is for `check` to say what is missing."""
    one, two = record("a-1", "a", tmp_path / "out"), record("a-2", "a", tmp_path / "out")
    (two / "scenario.yaml").touch()
    chosen.remember([one, two])
    (two / chosen.HISTORY).unlink()
    assert chosen.find(["out"], False) == [Path("out/a-1"), Path("out/a-2")]
    assert chosen.find([], True) == [one, two]
    assert chosen.find(["a"], False) == [one]


def test_a_folder_is_no_run_of_another_that_is_called_like_it(
    record: Record, tmp_path: Path
) -> None:
    """Whatever is wrong with it."""
    record("20260101T000000-a", "a")
    spoilt = record("a", "a", tmp_path / "out")
    (spoilt / "scenario.yaml").touch()
    (spoilt / chosen.HISTORY).unlink()
    (tmp_path / "empty/a").mkdir(parents=True)
    for text in (str(spoilt), "out/a", "empty/a", "/none/a", "./a"):
        assert chosen.find([text], False) == [Path(text)]
    shutil.copytree(spoilt, "a")
    assert chosen.find(["a"], False) == [Path("a")]


def test_a_case_that_is_named_with_a_folder_is_of_a_file_there(record: Record) -> None:
    runs = [record(f"2026010{n}T000000-leak", "leak") for n in (1, 2)]
    for run, folder in zip(runs, ("/home/ada/servers", "mine"), strict=True):
        document = {"runs": [{"scenario": "leak", "source": f"{folder}/leak.yaml"}]}
        (run / "result.json").write_text(json.dumps(document))
    assert chosen.find(["servers/leak"], False) == [runs[0]]
    assert chosen.find(["mine/leak"], False) == [runs[1]]
    with pytest.raises(UsageError, match="no run of such a case"):
        chosen.find(["out/leak"], False)


def test_a_name_is_its_newest_run(record: Record) -> None:
    old = record("20260101T000000-leak", "leak")
    new = record("20260101T000001-leak", "leak")
    other = record("20260101T000002-leak_more", "leak_more")
    assert chosen.find(["leak"], False) == [new]
    assert chosen.find(["leak_more"], False) == [other]
    assert chosen.find(["servers/leak"], False) == [new]
    Path("leak").mkdir()  # with nothing in it
    assert chosen.find(["leak"], False) == [new]
    assert old not in chosen.find(["leak", "leak_more"], False)


def test_the_variants_of_one_command_belong_together(record: Record) -> None:
    record("20260101T000000-reuse-old", "reuse")
    together = default_folder() / "20260101T000001-3-cases"
    record("other", "other", together)
    plain, both = record("reuse-plain", "reuse", together), record("reuse-both", "reuse", together)
    assert chosen.find(["reuse"], False) == [both, plain]
    assert chosen.find(["reuse-plain"], False) == [plain]


def test_a_run_that_was_cut_short_has_its_folders_name(record: Record) -> None:
    cut = record("20260101T000000-leak", None)
    assert chosen.find(["leak"], False) == [cut]
    (cut / "result.json").write_text("[]")
    assert chosen.find(["leak"], False) == [cut]


def test_the_last_ones_are_known_wherever_they_were_recorded(
    record: Record, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="nothing was recorded yet"):
        chosen.find([], True)
    one, two = record("a-one", "a", tmp_path / "out"), record("a-two", "a", tmp_path / "out")
    chosen.remember([one, two])
    record("20260101T000002-b", "b")
    assert chosen.find([], True) == [one, two]
    assert chosen.find(["a"], False) == [one, two]
    assert chosen.find([str(two)], True) == [one, two, two]
    shutil.rmtree(one)
    assert chosen.find([], True) == [two]


def test_what_is_nowhere_says_what_there_is(record: Record, tmp_path: Path) -> None:
    record("20260101T000000-close_wait_leak", "close_wait_leak")
    with pytest.raises(UsageError, match="did you mean 'close_wait_leak'") as caught:
        chosen.find(["close_wait_leek"], False)
    assert "--last" in str(caught.value)
    with pytest.raises(UsageError, match="no run is named"):
        chosen.find([], False)
    # What is wrong with these is for who reads them to say.
    (tmp_path / "empty").mkdir()
    for text in ("empty", "./none", "/none"):
        assert chosen.find([text], False) == [Path(text)]


def test_that_nothing_can_be_remembered_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / chosen.HISTORY).touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    chosen.remember([tmp_path])


def test_what_was_not_recorded_is_not_the_last(record: Record, tmp_path: Path) -> None:
    one = record("1", "a", tmp_path / "out")
    chosen.remember([one])
    chosen.remember([tmp_path / "none", tmp_path / "out"])
    assert chosen.find([], True) == [one]


def test_a_folder_that_can_not_be_read_offers_no_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """root may read all folders, but none whose name is too long."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ("x" * 300)))
    assert chosen.names() == []
