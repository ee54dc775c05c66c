"""Records that mean harm end in a sentence that names the file and the line."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl import reports
from labctl.ground.errors import UsageError
from labctl.judge import recorded
from labctl.record import events
from labctl.record.events import StateEvent
from labctl.record.lines import read_events
from labctl.record.store import new_folder
from tests import fuzz
from tests.reported import RUN, full
from tests.unit.test_bounds import make

SEED = int(os.environ.get("LABCTL_FUZZ_SEED") or random.randrange(10**6))
MUTANTS, PARTS = 160, 4


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of a recorded run, to be changed."""
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def rewritten(path: Path, change: Callable[[dict[str, object]], object], line: int = 1) -> None:
    """Changes one line of a file of JSON lines."""
    lines = path.read_text().splitlines()
    found = json.loads(lines[line - 1])
    change(found)
    lines[line - 1] = json.dumps(found)
    path.write_text("\n".join([*lines, ""]))


def test_what_is_in_order_is_read(run: Path) -> None:
    assert list(fuzz.faults(run)) == []


@pytest.mark.parametrize("part", range(PARTS))
def test_mutants(part: int, tmp_path: Path) -> None:
    """Each test run tries others; LABCTL_FUZZ_SEED tries them again."""
    other = Path(shutil.copytree(RUN, tmp_path / "bases" / "full"))
    lines = [event.to_json() for event in full().events]
    (other / "history.jsonl").write_text("\n".join([*lines, ""]))
    assert list(fuzz.faults(other)) == []
    numbers = range(part, MUTANTS, PARTS)
    for number, what, copy in fuzz.mutants([RUN, other], SEED, numbers, tmp_path):
        found = list(fuzz.faults(copy))
        assert not found, f"LABCTL_FUZZ_SEED={SEED}: mutant {number} ({what}): {found[0]}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": "soon"}, "t: a number is wanted, not 'soon'"),
        ({"t": float("nan")}, "NaN is no number to reckon with"),
        ({"t": 1e300}, r"1e\+300 is no number to reckon with"),
        ({"t": 10**400}, "is too large"),
        ({"host": ["server"]}, r"host: a text is wanted, not \['server'\]"),
        ({"host": "elsewhere"}, "unknown host 'elsewhere'; this lab has: server, client"),
        ({"kind": "nothing"}, "its kind is 'nothing'; there are lab, step"),
        ({"kind": {}}, "its kind is '{}'"),
        ({"more": 1}, "more: no such key is known"),
        ({"values": {"TcpActiveOpens": "x"}}, "a whole number is wanted, not 'x'"),
        ({"values": {"x": json.loads("[" * 41 + "]" * 41)}}, "nested deeper than 40 levels"),
    ],
)
def test_a_line_that_is_wrong(run: Path, change: dict[str, object], message: str) -> None:
    """All of a line is checked, by the types of its event."""
    rewritten(run / "history.jsonl", lambda event: event.update(change), 2)
    with pytest.raises(UsageError, match=rf"run: history\.jsonl:2: .*{message}"):
        recorded.load(run)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("sockets", {"text": "ESTAB what is this\n"}, "line 1 of ss is not understood"),
        ("lab", {"environment": {"probes": "trace"}}, "probes a list"),
        ("step", {"phase": "middle"}, "phase: allowed is 'begin' or 'end', not 'middle'"),
    ],
)
def test_an_event_that_is_wrong(
    run: Path, kind: str, change: dict[str, object], message: str
) -> None:
    path = run / "history.jsonl"
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    line = kinds.index(kind) + 1
    rewritten(path, lambda event: event.update(change), line)
    with pytest.raises(UsageError, match=rf"run: history\.jsonl:{line}: no event: .*{message}"):
        recorded.load(run)


NEXT, LAST = events.VERSION + 1, events.VERSION


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            NEXT,
            f"a newer labctl (history version {NEXT}; this one reads up to {LAST}): update labctl",
        ),
        (0, "an older labctl (history version 0; this one reads from 1 on): run it again"),
    ],
)
def test_a_history_of_another_version(run: Path, version: int, message: str) -> None:
    """Whatever else there may be in it."""
    change = {"version": version, "rack": {"height": 42}}
    rewritten(run / "history.jsonl", lambda event: event.update(change))
    with pytest.raises(UsageError) as caught:
        recorded.load(run)
    assert str(caught.value) == f"{run}: history.jsonl: written by {message}"


def test_a_result_of_another_version(run: Path) -> None:
    (run / "result.json").write_text('{"version": "2", "cases": []}')
    with pytest.raises(UsageError) as caught:
        recorded.load(run)
    assert str(caught.value) == (
        f"{run}/result.json: written by a newer labctl (result version 2; this one reads up to 1): "
        "update labctl"
    )


def test_records_from_before_there_were_versions(run: Path) -> None:
    path = run / "result.json"
    rewritten(run / "history.jsonl", lambda event: event.pop("version", None))
    path.write_text(path.read_text().replace(' "version": "1",\n', ""))
    found = recorded.load(run)
    assert (found.result, found.history.lab and found.history.lab.version) == ("pass", 1)


@pytest.mark.parametrize("version", ["x", None, 1.5, [], "9" * 5000])
def test_what_is_no_version(run: Path, version: object) -> None:
    (run / "result.json").write_text(json.dumps({"version": version, "runs": [{"result": "pass"}]}))
    with pytest.raises(UsageError, match=r"result\.json: no result document|version"):
        recorded.load(run)
    (run / "result.json").unlink()
    rewritten(run / "history.jsonl", lambda event: event.update(version=version))
    with pytest.raises(UsageError, match=r"history\.jsonl:1: no event"):
        recorded.load(run)


def test_a_state_that_there_is_not() -> None:
    line = StateEvent(1.0, "h", "198.18.0.2:80", "198.18.0.3:80", "ESTAB", "SLEEPING").to_json()
    with pytest.raises(UsageError, match=r"jsonl:1: no event: new: .*'SLEEPING' is not a valid St"):
        list(read_events([line]))


def test_a_history_that_is_nested_beyond_all_bounds(run: Path) -> None:
    (run / "history.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(UsageError, match=r"history\.jsonl:1: no event: nested deeper than"):
        recorded.load(run)


def test_bytes_that_are_no_text(run: Path) -> None:
    path = run / "history.jsonl"
    path.write_bytes(path.read_bytes().replace(b"server", b"s\xff\xfe", 1))
    with pytest.raises(UsageError, match=r"history\.jsonl:1: no event: .*utf-8"):
        recorded.load(run)


def test_half_a_character_is_shown_as_none(run: Path) -> None:
    """No report could be written with it."""
    path = run / "result.json"
    found = json.loads(path.read_text())
    found["runs"][0]["title"] = "so \ud800 so"
    path.write_text(json.dumps(found))
    assert "so ? so" in reports.render("markdown", [recorded.load(run)])


def test_a_scenario_with_a_step_less(run: Path) -> None:
    """What the record has no moment for is not known, and nothing breaks."""
    path = run / "scenario.yaml"
    kept, steps = path.read_text().split("steps:\n")
    path.write_text(f"{kept}steps:\n{steps.splitlines()[0]}\n")
    assert list(fuzz.faults(run)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "it: an object is wanted"),
        ('{"runs": []}', "it has no run"),
        ('{"runs": [3]}', "runs.0: an object is wanted, not 3"),
        ('{"runs": [{}]}', "runs.0.result is missing"),
        ('{"runs": [{"result": "great"}]}', "allowed is 'pass', .* not 'great'"),
        ('{"runs": [{"result": "pass", "seconds": Infinity}]}', "Infinity is no number"),
        ('{"runs": [{"result": "pass", "verdicts": [{}]}]}', "verdicts.0.result is missing"),
        ('{"runs": [{"result": "pass", "why": "x"}]}', "why: a list is wanted, not 'x'"),
        ('{"runs": [{"result": "pass", "sets": {"a": []}}]}', "sets.a: a text is wanted"),
    ],
)
def test_a_result_that_is_wrong(run: Path, text: str, message: str) -> None:
    (run / "result.json").write_text(text)
    with pytest.raises(
        UsageError, match=rf"result\.json: no result document: .*{message}|{message}"
    ):
        recorded.load(run)


@pytest.mark.parametrize("name", ["history.jsonl", "result.json", "scenario.yaml", "server.pcap"])
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "larger than"])
def test_files_that_never_end(run: Path, name: str, kind: str) -> None:
    """Nothing waits for a writer, and nothing is read that has no end."""
    path = run / name
    path.unlink()
    make(path, kind, 10**9)
    with pytest.raises(UsageError, match=rf"{name}.*{kind}"):
        recorded.load(run)


def test_a_capture_that_was_cut_short(run: Path) -> None:
    """What is whole counts."""
    path = run / "server.pcap"
    path.write_bytes(path.read_bytes()[:-7])
    assert recorded.load(run).history.segments()


def test_a_folder_that_can_have_no_such_name() -> None:
    """From Python; a command line has no NUL in it."""
    with pytest.raises(UsageError, match=r"'a\\x00b': can't write there: embedded null byte; use"):
        new_folder(Path("a\0b"), "run")
