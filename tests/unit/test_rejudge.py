"""A record is judged again by what is left of it, by the scenario as it is now, and by how it
ended."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.judge.check import Verdict, overall
from labctl.judge.rejudge import _matched, judge
from labctl.judge.result import RunResult
from labctl.record.store import RunFolder, new_folder
from labctl.run.runner import Session, Silent
from tests.fake import FakeBackend, play, scenario, tcp
from tests.reported import RUN

SERVER, CLIENT = "198.18.0.2:8000", "198.18.0.3:40000"
LESSON = """\
title: A lesson
hosts:
  server: {calls: "socket; bind :8000; listen 5; await"}
  client: {run: cat}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - expect: {process: {server: running}}
  - kill: server
    as: killed
  - wait: {sockets: {server: none}}
    since: killed
    within: 1s..5s
  - expect: {sockets: {client: none}}
expect:
  - segments: {flags: RST, count: 0}
  - sockets: {server: none}
"""
STEPS = yaml.safe_load(LESSON)["steps"]


def backend() -> FakeBackend:
    def is_killed(lab: FakeBackend) -> None:
        lab.sockets("server", tcp("FIN-WAIT-2", SERVER, CLIENT))
        lab.sockets("server", later=1.5)

    listens = tcp("LISTEN", ":8000")
    return FakeBackend(
        {"start server": lambda lab: lab.sockets("server", listens), "kill server": is_killed}
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run that passed."""
    found = play(LESSON, backend(), tmp_path_factory.mktemp("runs"))
    assert found.result == "pass"
    return found


@pytest.fixture
def copy(run: RunResult, tmp_path: Path) -> Path:
    """Its record, to be spoilt."""
    return Path(shutil.copytree(run.folder, tmp_path / "copy"))


def test_what_counts_from_a_step_that_was_left_out_is_left_out_again(tmp_path: Path) -> None:
    text = LESSON.replace("as: killed", "as: killed\n    when: {backend: docker}")
    found = play(text, backend(), tmp_path)
    assert found.result == "pass"
    again = judge(found.folder)
    assert [(v.what, v.result) for v in again] == [(v.what, v.result) for v in found.verdicts]
    assert [v.what for v in again if v.result == "skip"] == ["server: no connection"]


def result(verdicts: list[Verdict]) -> str:
    return overall(verdict.result for verdict in verdicts)


def told(verdicts: list[Verdict], result: str) -> dict[str, str]:
    """What is claimed, and what was seen, of the verdicts with a result."""
    return {v.what: v.actual for v in verdicts if v.result == result}


def ended(folder: Path, **how: Any) -> None:
    """Has a record say that it ended so."""
    document = json.loads((folder / "result.json").read_text())
    document["runs"][0].update(how)
    (folder / "result.json").write_text(json.dumps(document))


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "scenario.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_a_whole_record_is_judged_as_it_was(run: RunResult, copy: Path) -> None:
    assert told(judge(copy), "pass").keys() == {v.what for v in run.verdicts}
    assert result(judge(copy)) == "pass"


# --- How it ended ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "wanted", "what", "saw"),
    [
        ({"result": "error", "reason": "interrupted"}, "unknown", "the run", "interrupted"),
        ({"result": "error", "reason": "no room"}, "unknown", "the run", "no room"),
        ({"result": "skip", "reason": "no root"}, "unknown", "the run", "skip: no root"),
        ({"result": "error", "reason": None}, "unknown", "the run", "it says no reason"),
        ({"result": "skip", "reason": None}, "unknown", "the run", "skip: it says no reason"),
        ({"result": "unknown", "reason": "not told"}, "unknown", "the run", "unknown: not told"),
        (
            {"result": "fail", "reason": "AssertionError: 1"},
            "fail",
            "the test",
            "AssertionError: 1",
        ),
    ],
)
def test_how_it_ended(copy: Path, how: dict[str, str], wanted: str, what: str, saw: str) -> None:
    ended(copy, **how)
    verdicts = judge(copy)
    assert result(verdicts) == wanted
    assert told(verdicts, wanted)[what] == saw
    whole = {v.what: v.result for v in verdicts if "RST" in v.what or v.what == "server: no conn"}
    assert set(whole.values()) <= {"unknown"}, "nobody saw the end"


def test_it_was_cut_short(copy: Path) -> None:
    (copy / "result.json").unlink()
    verdicts = judge(copy)
    assert result(verdicts) == "unknown"
    assert told(verdicts, "unknown")["the run"] == "the run was cut short: it left no result"


def test_steps_that_were_not_reached(tmp_path: Path) -> None:
    """Each is said, with its line; also where a failure outranks them."""

    def interrupt(lab: FakeBackend) -> None:
        raise KeyboardInterrupt

    reactions = {"start server": lambda lab: lab.sockets("server", tcp("LISTEN", ":8000"))}
    case = scenario(LESSON)
    with RunFolder(new_folder(tmp_path, "cut"), LESSON) as folder, pytest.raises(KeyboardInterrupt):
        fake = FakeBackend({**reactions, "kill server": interrupt})
        Session(case, fake, folder, Silent()).run()
    verdicts = judge(folder.path)
    assert result(verdicts) == "unknown"
    unknown = told(verdicts, "unknown")
    path = folder.path / "scenario.yaml"
    assert unknown["kill server"] == "it was not over when the record ended"
    assert unknown["expect client no connection"] == f"not reached: the steps ended at {path}:9"
    assert unknown["the run"] == "interrupted"
    sources = [v.source for v in verdicts if v.actual.startswith("not reached")]
    assert sources == [f"{path}:11", f"{path}:14"]

    wrong = LESSON.replace("{server: none}}\n    since", "{server: ESTAB}}\n    since")
    found = play(wrong.replace("1s..5s", "100ms"), FakeBackend(reactions), tmp_path)
    assert found.result == "fail"
    verdicts = judge(found.folder)
    assert result(verdicts) == "fail"
    assert told(verdicts, "unknown")["expect client no connection"].startswith("not reached: ")


# --- What is left of it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:9])]
)
@pytest.mark.parametrize("host", ["server", "client"])
def test_a_capture_that_is_not_whole(
    copy: Path, host: str, spoil: Callable[[Path], object]
) -> None:
    spoil(copy / f"{host}.pcap")
    unknown = told(judge(copy), "unknown")
    assert list(unknown) == ["segments: 0 x RST"]
    assert unknown["segments: 0 x RST"].startswith(f"{host}.pcap is ")


def test_a_look_that_is_not_whole(copy: Path) -> None:
    path = copy / "client.ss"
    path.write_text(path.read_text()[:-1])
    unknown = told(judge(copy), "unknown")
    assert list(unknown) == ["client: no connection"]
    size = path.stat().st_size
    assert unknown["client: no connection"] == (
        f"client.ss is cut short, to {size} of {size + 1} bytes"
    )


def test_a_history_that_is_not_whole(copy: Path) -> None:
    """What is missing may have been anywhere in it."""
    path = copy / "history.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for left in (lines[:-1], [x for x in lines if '"sockets"' not in x], lines[:1], []):
        path.write_text("".join(left))
        verdicts = judge(copy)
        assert {v.result for v in verdicts} == {"unknown"}


def test_a_history_that_is_missing(copy: Path) -> None:
    (copy / "history.jsonl").unlink()
    verdicts = judge(copy)
    assert {v.result for v in verdicts} == {"unknown"}
    assert "no lab came up, but history.jsonl is missing" in {v.actual for v in verdicts}


def test_a_look_that_is_missing_of_a_run_without_a_result(copy: Path) -> None:
    for name in ("result.json", "server.ss"):
        (copy / name).unlink()
    assert told(judge(copy), "unknown")["server: LISTEN"] == "server.ss is missing"


@pytest.mark.parametrize(
    ("at", "bytes_", "why"),
    [
        (0, b"?" * 24, "server.pcap is no capture of labctl"),
        (24, b"?" * 32, "server.pcap holds no packet at byte 24"),
        (24, bytes(8) + (99).to_bytes(4, "little") * 2, "server.pcap holds no packet at byte 24"),
    ],
)
def test_a_capture_that_holds_something_else(copy: Path, at: int, bytes_: bytes, why: str) -> None:
    """However long it is: neither that there are packets nor that there are none is told by it."""
    path = copy / "server.pcap"
    path.write_bytes(path.read_bytes()[:at] + bytes_)
    document = json.loads((copy / "result.json").read_text())
    document["files"]["server.pcap"] = path.stat().st_size
    (copy / "result.json").write_text(json.dumps(document))
    assert told(judge(copy), "unknown") == {"segments: 0 x RST": why}


def test_an_older_record_says_not_how_long_it_was() -> None:
    assert result(judge(RUN)) == "pass"


def test_an_older_record_without_a_capture(tmp_path: Path) -> None:
    """The lab's own event says what it was watched with."""
    folder = Path(shutil.copytree(RUN, tmp_path / "old"))
    (folder / "server.pcap").unlink()
    history = folder / "history.jsonl"
    history.write_text(history.read_text().replace('"engine": null', '"probes": ["capture"]', 1))
    unknown = told(judge(folder), "unknown")
    assert unknown == {"server: at least 1 FIN from server": "server.pcap is missing"}


@settings(max_examples=60)
@given(st.data())
def test_no_damage_is_a_pass(run: RunResult, data: st.DataObject) -> None:
    """Whatever file loses whatever part of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(run.folder, Path(name) / "run"))
        files = sorted(p for p in folder.iterdir() if p.suffix in (".jsonl", ".ss", ".pcap"))
        path = data.draw(st.sampled_from(files))
        content = path.read_bytes()
        if path.suffix == ".pcap" or data.draw(st.booleans()):
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        else:
            lines = content.splitlines(keepends=True)
            del lines[data.draw(st.integers(0, len(lines) - 1))]
            path.write_bytes(b"".join(lines))
        assert result(judge(folder)) == "unknown"


# --- Another scenario -----------------------------------------------------------------------------


def test_a_claim_that_was_added_in_the_end(copy: Path) -> None:
    with (copy / "scenario.yaml").open("a") as file:
        file.write("  - sockets: {client: none}\n  - sockets: {client: LISTEN}\n")
    verdicts = judge(copy)
    assert told(verdicts, "fail") == {"client: LISTEN": "no sockets"}
    assert not told(verdicts, "unknown")


@pytest.mark.parametrize(
    ("old", "new", "unknown"),
    [
        ("  - start: server\n", "  - start: server\n  - expect: {sockets: {server: none}}\n",
         ["expect server no connection"]),
        ("  - expect: {sockets: {client: none}}\n",
         "  - expect: {sockets: {client: none}}\n  - expect: {sockets: {client: none}}\n",
         ["expect client no connection"]),
        ("  - expect: {sockets: {client: none}}\n", "  - expect: {sockets: {client: LISTEN}}\n",
         ["expect client LISTEN"]),
        ("within: 1s..5s", "within: 1s..2s", ["wait server no connection within 1..2 s of killed"]),
        # The label is of a step that was not done.
        ("kill: server", "stop: server",
         ["stop server", "wait server no connection within 1..5 s of killed"]),
        # So is the label that stands at another step now.
        ("  - kill: server\n    as: killed\n", "  - kill: server\n  - note: now\n    as: killed\n",
         ["note now", "wait server no connection within 1..5 s of killed"]),
        ("hosts:\n", "hosts:\n  proxy: {}\n", []),
        ("  - sockets: {server: none}\n", "  - segments: {from: client, count: 0}\n", []),
    ],
)  # fmt: skip
def test_what_the_record_has_no_moment_for(
    copy: Path, old: str, new: str, unknown: list[str]
) -> None:
    edit(copy, old, new)
    verdicts = judge(copy)
    assert list(told(verdicts, "unknown")) == unknown
    assert not told(verdicts, "fail")
    assert {v.actual for v in verdicts if v.result == "unknown"} <= {
        "the record has no moment for it"
    }
    lines = (copy / "scenario.yaml").read_text().splitlines()
    for verdict in verdicts:
        verb = verdict.what.split()[0]
        if verdict.result == "unknown":
            assert verb in lines[int(verdict.source.rpartition(":")[2]) - 1]


def test_a_host_that_the_record_has_not(copy: Path) -> None:
    """That nothing came from there says nothing."""
    edit(copy, "hosts:\n", "hosts:\n  proxy: {run: cat}\n")
    with (copy / "scenario.yaml").open("a") as file:
        file.write("  - segments: {from: proxy, count: 0}\n  - process: {proxy: running}\n")
    unknown = told(judge(copy), "unknown")
    assert list(unknown) == ["proxy: 0 x segment from proxy", "proxy: running"]
    assert set(unknown.values()) == {"the record has no host proxy"}


def test_a_step_less(copy: Path) -> None:
    """What says the same is judged where it was."""
    edit(copy, "  - expect: {process: {server: running}}\n", "")
    assert result(judge(copy)) == "pass"
    edit(copy, "  - start: server\n", "")
    assert result(judge(copy)) == "pass"


FALSE: tuple[dict[str, Any], ...] = (
    {"expect": {"sockets": {"server": "TIME-WAIT"}}}, {"expect": {"process": {"client": "ok"}}},
    {"wait": {"sockets": {"client": "LISTEN"}}}, {"note": "never"},
)  # fmt: skip


def test_what_the_record_knows_nothing_of_says_so(copy: Path) -> None:
    """It blames neither the kernel nor steps that ended."""
    edit(copy, "hosts:\n", "hosts:\n  third: {}\n")
    edit(copy, "steps:\n", "steps:\n  - note: new\n    as: new\n")
    with (copy / "scenario.yaml").open("a") as file:
        file.write("  - counters: {third: {TcpOutRsts: 0}}\n  - sockets: {third: none}\n")
        file.write("  - segments: {flags: RST, count: 0, since: new}\n")
    unknown = told(judge(copy), "unknown")
    for claim in ("third: TcpOutRsts grew by 0", "third: no connection"):
        assert unknown[claim] == "the record has no host third"
    assert unknown["segments: 0 x RST since new"] == "the record has no moment for 'new'"


@settings(max_examples=100)
@given(st.lists(st.sampled_from([*STEPS, *FALSE, *FALSE]), max_size=12))
def test_no_edit_makes_a_false_claim_pass(run: RunResult, steps: list[dict[str, Any]]) -> None:
    """In whatever order steps stand now: what was not done is unknown, and no more verdicts pass
    than there were moments."""
    data = yaml.safe_load(LESSON)
    seen: set[str] = set()
    for step in steps:  # labels must be set once, and before they are used
        if "as" in step and "killed" in seen:
            return
        seen |= {step["as"]} if "as" in step else set()
        if "since" in step and "killed" not in seen:
            return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(run.folder, Path(name) / "run"))
        (folder / "scenario.yaml").write_text(yaml.safe_dump({**data, "steps": steps}))
        verdicts = judge(folder)
    foreign = sum(step in FALSE for step in steps)
    assert not told(verdicts, "fail")
    assert sum(v.result == "unknown" for v in verdicts) >= foreign
    assert foreign == 0 or result(verdicts) == "unknown"
    passed = [v for v in verdicts if v.result == "pass"]
    assert len(passed) <= len(run.verdicts)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_steps_are_matched_in_order(old: list[str], new: list[str]) -> None:
    found = _matched(dict(enumerate(old)), new)
    assert all(old[a] == new[b] for a, b in found.items())
    assert [found[a] for a in sorted(found)] == sorted(set(found.values()))
    for number, (one, other) in enumerate(zip(old, new, strict=False)):
        if one != other:
            break
        assert found[number] == number
