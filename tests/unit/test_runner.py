"""Running and judging, over a fake backend. `play` checks what holds of every run: see fake.py."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from labctl.ground.errors import UsageError
from labctl.ground.resources import default_folder
from labctl.judge.check import overall
from labctl.judge.result import document
from labctl.lab.lab import Lab
from labctl.record.events import (
    CallEvent,
    Event,
    ExecEvent,
    OutputEvent,
    StepEvent,
)
from labctl.record.history import History
from labctl.record.store import new_folder
from labctl.run.runner import Silent
from tests.fake import FakeBackend, Script, play
from tests.played import (
    ESTAB,
    LISTEN,
    Play,
    lesson,
    outcomes,
)

# Steps


def test_every_kind_of_step(watch: Play) -> None:
    fake = FakeBackend(
        {
            "start server": lambda lab: lab.call("server", "await", done=False),
            "call server close || continue": lambda lab: lab.call("server", "close", errno="EBADF"),
            "call server shutdown wr": lambda lab: lab.call("server", "shutdown wr"),
            "signal server TERM": [lambda lab: None, lambda lab: lab.killed("server", "TERM")],
        },
        {"exec server ip -br a": {"exit": 0, "output": "lo UP\n"}},
    )
    found = watch(
        """\
- start: server
- pause: server
- resume: server
- call: {server: "close || continue; shutdown wr"}
- exec: {server: "ip -br a"}
- exec: {client: "false"}
  status: any
- sysctl: {client: {net.ipv4.tcp_fin_timeout: 3, net.core.somaxconn: 5}}
- signal: {server: TERM}
- snapshot: half way
- restart: server
- stop: server
- stop: server
- kill: client
- sleep: 1ms
- note: the end
""",
        fake,
    )
    assert (found.result, found.verdicts) == ("pass", ())
    assert outcomes(found) == ["done"] * 15
    assert [word for word in fake.log if not word.startswith(("network", "setup", "clock"))] == [
        "up", "prepare server", "start server", "freeze server", "thaw server",
        "call server close || continue", "call server shutdown wr",
        "exec server ip -br a", "exec client false",
        "sysctl client net.ipv4.tcp_fin_timeout net.core.somaxconn", "signal server TERM",
        "look server", "look client", "kill server", "prepare server", "start server",
        "signal server TERM",
        "kill server", "look server", "look client", "flush server", "flush client", "down",
    ]  # fmt: skip
    executed = [e for e in found.history.events if isinstance(e, ExecEvent)]
    assert [(e.host, e.exit, e.output) for e in executed] == [
        ("server", 0, "lo UP\n"), ("client", 127, "not found\n")
    ]  # fmt: skip
    texts = (found.folder / "server.ss").read_text()
    assert "half way\nState Recv-Q" in texts


def test_steps_for_other_places_are_left_out(watch: Play) -> None:
    found = watch(
        """\
- wait: {sockets: {server: ESTAB}}
  when: {kernel: ">=6.14"}
- expect: {process: {client: ok}}
  when: {backend: docker}
- start: client
  when: {kernel: "<6.14"}
""",
        FakeBackend(kernel="6.1.0-13-amd64"),
    )
    assert [(v.result, v.actual) for v in found.verdicts] == [
        ("skip", "kernel 6.1.0-13-amd64 is not >=6.14"), ("skip", "backend fake is not docker")
    ]  # fmt: skip
    assert outcomes(found) == ["skipped", "skipped", "done"]
    assert found.result == "skip"


@pytest.mark.parametrize(
    ("steps", "what", "expected", "actual"),
    [
        ("- start: server\n- start: server\n", "start server", "server not running",
         "it runs already; use restart"),
        ("- call: {client: close}\n", "call client: close", "client running, in await",
         "it was never started"),
        ("- start: client\n- call: {client: close}\n", "call client: close",
         "client running, in await", "it runs, but not in await"),
        ("- signal: {client: TERM}\n", "signal client: TERM", "client running",
         "it was never started"),
    ],
)  # fmt: skip
def test_steps_that_assume_what_is_not_so(
    watch: Play, steps: str, what: str, expected: str, actual: str
) -> None:
    found = watch(f"{steps}- note: not reached\n")
    assert found.result == "fail"
    (verdict,) = found.verdicts
    assert (verdict.what, verdict.expected, verdict.actual) == (what, expected, actual)
    assert outcomes(found)[-1] == "failed"
    assert len(outcomes(found)) == steps.count("\n")


def test_signals_to_what_has_ended(watch: Play) -> None:
    fake = FakeBackend({"start client": lambda lab: lab.exit("client", 4)})
    found = watch(
        "- start: client\n- wait: {process: {client: exited}}\n- signal: {client: HUP}\n", fake
    )
    assert found.verdicts[-1].actual == "it ended with 4"


@pytest.mark.parametrize(
    ("script", "verdicts"),
    [
        ({}, []),
        ({"signal server QUIT": lambda lab: None}, ["SIGQUIT, and SIGKILL after 0.05 s"]),
    ],
)
def test_a_service_is_stopped_as_its_project_says(
    watch: Play, script: Script, verdicts: list[str]
) -> None:
    fake = FakeBackend(script)
    fake.about["server"] = {"stop": "QUIT", "grace": 0.05}
    found = watch("- start: server\n- stop: server\n", fake)
    assert (found.result, [v.expected for v in found.verdicts]) == ("pass", verdicts)
    assert [w for w in fake.log if w.startswith(("signal", "kill"))] == [
        "signal server QUIT", *(["kill server"] if verdicts else []),
    ]  # fmt: skip


def test_labels_name_the_moment_when_a_step_begins_to_act(watch: Play) -> None:
    found = watch("- sleep: 20ms\n  as: slept\n- note: a\n  as: noted\n")
    labels = found.history.labels
    assert list(labels) == ["slept", "noted"]
    assert labels["slept"] + 0.02 <= labels["noted"]


def test_the_label_of_a_call_names_when_it_was_asked_for(watch: Play) -> None:
    """Whatever it takes, and whether it blocks or not."""

    def slowly(lab: FakeBackend) -> None:
        lab.call("server", "shutdown wr")
        time.sleep(0.2)

    fake = FakeBackend(
        {
            "start server": lambda lab: lab.call("server", "await", done=False),
            "call server shutdown wr": slowly,
            "call server accept": lambda lab: lab.call("server", "accept", done=False),
        }
    )
    found = watch(
        "- start: server\n- wait: {process: {server: running}}\n"
        "- call: {server: shutdown wr}\n  as: shut\n- call: {server: accept}\n  as: left\n",
        fake,
    )
    events = found.history.events
    calls = [e for e in events if isinstance(e, CallEvent) and e.phase == "enter"]
    labels = found.history.labels
    assert [call.name for call in calls] == ["await", "shutdown", "accept"]
    assert calls[0].t <= labels["shut"] <= calls[1].t <= labels["left"] <= calls[2].t


def test_the_calls_after_one_that_ended_the_process_are_not_made(watch: Play) -> None:
    def breaks(lab: FakeBackend) -> None:
        lab.call("server", "send 9 bytes", errno="EPIPE")
        lab.gone("server")

    awaits = lambda lab: lab.call("server", "await", done=False)  # noqa: E731
    fake = FakeBackend({"start server": awaits, "call server send 9 bytes": breaks})
    found = watch("- start: server\n- call: {server: send 9 bytes; close}\n", fake)
    assert found.result == "pass"
    assert [did for did in fake.log if did.startswith("call")] == ["call server send 9 bytes"]


def test_a_process_that_is_started_again_is_a_new_one(watch: Play) -> None:
    fake = FakeBackend(
        {
            "start server": [
                lambda lab: (lab.call("server", "bind :8000"), lab.output("server", "first")),
                lambda lab: lab.call("server", "accept", done=False),
            ],
            "kill server": [lambda lab: None],
        }
    )
    found = watch(
        "- start: server\n- wait: {process: {server: {call: {bind: ok}}}}\n- restart: server\n"
        "- wait: {process: {server: running}}\n",
        fake,
        "expect:\n- process: {server: {call: {bind: ok}}}\n",
    )
    assert [(v.result, v.actual.split(" after")[0]) for v in found.verdicts] == [
        ("pass", "bind: ok"), ("pass", "running, in accept"), ("fail", "bind: not done")
    ]  # fmt: skip


def test_a_process_that_is_gone_without_a_word(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.gone("server")})
    found = watch("- start: server\n- wait: {process: {server: {signal: KILL}}}\n", fake)
    assert found.verdicts[0].actual.startswith("killed by SIGKILL after")
    assert found.result == "pass"


# What a run leaves


def test_the_folder_of_a_run(watch: Play, tmp_path: Path) -> None:
    steps = "- start: server\n- wait: {sockets: {server: LISTEN}}\n- snapshot: it listens\n"
    first, second = (
        watch(steps, FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN)}))
        for _ in range(2)
    )
    assert (first.folder, second.folder) == (tmp_path / "lesson", tmp_path / "lesson-2")
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "client.pcap", "client.ss", "history.jsonl", "result.json", "run.pcapng",
        "scenario.yaml", "server.pcap", "server.ss",
    ]  # fmt: skip
    files = json.loads((first.folder / "result.json").read_text())["files"]
    assert files == {
        name: (first.folder / name).stat().st_size
        for host in ("client", "server")
        for name in (f"{host}.pcap", f"{host}.ss", "history.jsonl")
    }
    assert (first.folder / "scenario.yaml").read_text() == lesson(steps)
    history = (first.folder / "history.jsonl").read_text()
    kinds = [json.loads(line) for line in history.splitlines()]
    assert [e["kind"] for e in kinds[:3]] == ["lab", "counters", "counters"]
    assert all({"t", "kind"} <= e.keys() for e in kinds)
    looks = (first.folder / "server.ss").read_text()
    titles = [line for line in looks.splitlines() if line.startswith("#")]
    assert titles[-2].endswith("it listens")
    assert titles[-1].endswith("look")


def test_addresses_are_recorded(watch: Play) -> None:
    found = watch("- note: a\n")
    assert found.history.lab
    assert found.history.lab.addresses == {
        "server": "198.18.0.2", "server.v6": "fd00::2",
        "client": "198.18.0.3", "client.v6": "fd00::3",
    }  # fmt: skip


class Elsewhere(FakeBackend):
    """An engine on another machine."""

    ahead = 5000.0


def test_a_lab_with_another_clock(tmp_path: Path) -> None:
    """The engine may be elsewhere: its clock counts, from when the run began."""
    fake = Elsewhere(
        {"kill server": lambda lab: (lab.sockets("server", ESTAB), lab.sockets("server", later=2))}
    )
    steps = (
        "- start: server\n- kill: server\n  as: k\n- wait: {sockets: {server: none}}\n  since: k\n"
    )
    found = play(lesson(f"{steps}  within: 1s..3s\n"), fake, tmp_path)
    assert found.result == "pass"
    assert 0 < found.lab_seconds < 3
    assert all(-0.1 < event.t < 3 for event in found.history.events)


def test_watchers_see_everything(tmp_path: Path) -> None:
    class Watcher(Silent):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def event(self, event: Event, history: History) -> None:
            assert history.events[-1] is event
            self.seen.append(event.kind)

        def up(self, lab: Lab) -> None:
            self.seen.append(f"up {' '.join(lab.holders.values())}")

        def done(self, lab: Lab) -> None:
            self.seen.append("done")

    watcher = Watcher()
    found = play(lesson("- note: a\n"), FakeBackend(), tmp_path, watcher)
    assert watcher.seen[3] == "up holder of server holder of client"
    assert watcher.seen[-1] == "done"
    assert [kind for kind in watcher.seen if kind in ("lab", "step", "sockets", "counters")] == [
        event.kind for event in found.history.events
    ]


# Results of results


def test_overall() -> None:
    order = ["error", "fail", "unknown", "pass", "skip"]
    for index, worst in enumerate(order):
        assert overall(reversed(order[index:])) == worst
        assert overall([worst]) == worst
    assert overall([]) == "pass"


def test_the_document(watch: Play) -> None:
    good, bad = watch("- note: a\n"), watch("- start: client\n- start: client\n")
    whole = document([good, bad])
    assert (whole["version"], whole["result"]) == ("1", "fail")
    assert [entry["result"] for entry in whole["runs"]] == ["pass", "fail"]
    (verdict,) = whole["runs"][1]["verdicts"]
    assert verdict.keys() == {
        "result", "what", "expected", "actual", "at", "source", "evidence", "processes",
        "subject", "about", "wanted", "measured",
    }  # fmt: skip
    assert document([])["result"] == "pass"


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"can't write there: .*; use --out DIR"):
        new_folder(tmp_path / "file" / "below", "name")


def test_the_names_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "a lesson/../with ${odd} name=é"
    assert new_folder(tmp_path, odd) == tmp_path / "a-lesson-..-with-odd-name="
    assert new_folder(tmp_path, odd) == tmp_path / "a-lesson-..-with-odd-name=-2"
    assert len(new_folder(tmp_path, "x" * 300).name) == 100
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "labctl" / "runs"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_folder() == Path("/home/me/.local/state/labctl/runs")


def test_a_pause_is_done_when_its_supervisor_says_so(watch: Play) -> None:
    def freezes(lab: FakeBackend) -> None:
        def done() -> None:
            lab.output("server", "the last\n")
            lab.speaks()

        lab.dumb("server")
        threading.Timer(0.1, done).start()

    fake = FakeBackend({"freeze server": freezes})
    found = watch("- start: server\n- pause: server\n- note: it is paused\n", fake)
    (wrote,) = (e.t for e in found.history.events if isinstance(e, OutputEvent))
    steps = [e for e in found.history.events if isinstance(e, StepEvent) and e.phase == "begin"]
    assert wrote < steps[2].t
