"""What stands in the way of a run, and how it ends then, over a fake backend."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import SkipTest

import pytest

from labctl.backends import Message
from labctl.backends.capabilities import Lack
from labctl.judge import recorded
from labctl.judge.check import NotKnown, NotPassed
from labctl.record.events import StepEvent, TroubleEvent
from labctl.record.lines import read_events
from labctl.record.store import RunFolder, new_folder
from labctl.run.runner import Session, Silent, outcome
from tests.fake import FakeBackend, play, scenario
from tests.played import LISTEN, Play, lesson, told

UNKNOWN: dict[str, Message] = {"sysctl": {"missing": ["net.ipv4.tcp_new"]}}


class Halted(FakeBackend):
    REASON = "the engine right does not answer any more"

    def stopped(self) -> str:
        return self.REASON


def refused(errno: str) -> dict[str, Message]:
    return {"sysctl": {"failed": {"net.ipv4.tcp_new": errno}}}


def test_a_capability_that_is_missing(watch: Play) -> None:
    lacks = {"images": Lack("there are no images here", "use another backend")}
    fake = FakeBackend(lacks=lacks)
    found = watch("- start: server\n", fake, "needs: [images]\n")
    assert (found.result, found.reason) == ("skip", "there are no images here; use another backend")
    assert found.as_json()["hint"] == "use another backend"
    assert recorded.load(found.folder).hint == "use another backend"
    assert fake.log == []
    assert found.environment == {"kernel": "6.1.0-fake", "os": "Fake OS 1", "engine": None}
    assert watch("- start: server\n", FakeBackend(lacks=lacks)).result == "pass"


@pytest.mark.parametrize(
    ("steps", "fake", "result", "reason"),
    [
        ("- sysctl: {server: {net.ipv4.tcp_new: 1}}\n", FakeBackend(answers=UNKNOWN, kernel="5.10"),
         "skip", "kernel 5.10 has no net.ipv4.tcp_new; run it on another kernel"),
        ("- sysctl: {server: {net.ipv4.tcp_new: 99}}\n",
         FakeBackend(answers=refused("EINVAL")),
         "error", "lesson.yaml:7: server: can't set net.ipv4.tcp_new to '99': EINVAL (22); "
         "ip-sysctl.rst tells what it takes"),
        ("- sysctl: {server: {net.ipv4.tcp_new: 1}}\n",
         FakeBackend(answers=refused("EACCES")),
         "error", "lesson.yaml:7: server: can't set net.ipv4.tcp_new to '1': EACCES (13); a "
         "security module (SELinux, AppArmor) may forbid it, see its audit log"),
        ("- start: client\n", FakeBackend({"start client": lambda lab: lab.dies("server")}),
         "error", "the agent of host server ended"),
        ("- note: a\n", FakeBackend({"up": lambda lab: lab.dies("client")}),
         "error", "the agent of host client ended"),
    ],
)  # fmt: skip
def test_a_lab_that_fails(
    watch: Play, steps: str, fake: FakeBackend, result: str, reason: str
) -> None:
    found = watch(f"{steps}- sleep: 3\n", fake)
    assert (found.result, found.reason) == (result, reason)
    assert fake.log[-1] == "down"
    assert found.as_json()["reason"] == reason


def test_a_process_that_seems_to_end_as_its_engine_does(watch: Play) -> None:
    """It was not killed: nobody knows."""
    steps = "- start: client\n- wait: {process: {client: {signal: KILL}}}\n- sleep: 3\n"
    assert watch(steps, FakeBackend({"start client": lambda lab: lab.gone("client")})).result == (
        "pass"
    )
    fake = Halted({"start client": lambda lab: lab.gone("client")})
    found = watch(steps, fake)
    assert (found.result, found.reason) == ("error", Halted.REASON)
    assert [verdict.result for verdict in found.verdicts] == []


def test_a_value_that_a_host_can_not_have_is_told_by_its_line(tmp_path: Path) -> None:
    text = (
        "title: t\nhosts:\n  server: {sysctls: {net.ipv4.tcp_new: soon}}\n  client: {}\nsteps: []\n"
    )
    found = play(text, FakeBackend(answers=refused("EINVAL")), tmp_path)
    assert str(found.reason).startswith(
        "lesson.yaml:3: server: can't set net.ipv4.tcp_new to 'soon'"
    )


def test_sysctls_of_hosts(tmp_path: Path) -> None:
    text = "title: t\nhosts: {server: {sysctls: {net.ipv4.tcp_new: 1}}, client: {}}\nsteps: []\n"
    fake = FakeBackend()
    assert play(text, fake, tmp_path).result == "pass"
    assert fake.log.index("sysctl server net.ipv4.tcp_new") < fake.log.index("look server")
    found = play(text, FakeBackend(answers=UNKNOWN), tmp_path)
    assert (found.result, [*found.history.events]) == ("skip", [])


def test_a_run_that_was_skipped_claims_nothing(watch: Play) -> None:
    fake = FakeBackend(answers=UNKNOWN)
    found = watch(
        "- sysctl: {server: {net.ipv4.tcp_new: 1}}\n", fake, "expect:\n- process: {client: ok}\n"
    )
    assert (found.result, found.verdicts) == ("skip", ())


def test_what_had_failed_before_the_rest_could_not_be_had_stays_a_failure(watch: Play) -> None:
    missing = "- sysctl: {server: {net.ipv4.tcp_new: 1}}\n"
    claim = "- expect: {sockets: {server: LISTEN}}\n"
    found = watch(claim + missing, FakeBackend(answers=UNKNOWN, kernel="5.10"))
    why = "kernel 5.10 has no net.ipv4.tcp_new; run it on another kernel"
    assert (found.result, found.reason) == ("fail", None)
    assert [(v.what, v.result) for v in found.verdicts] == [
        ("server: LISTEN", "fail"), ("sysctl server: net.ipv4.tcp_new = 1", "unknown"),
    ]  # fmt: skip
    assert found.verdicts[1].actual == why
    assert found.verdicts[1].source == "lesson.yaml:8"
    listens = {"start server": lambda lab: lab.sockets("server", LISTEN)}
    fake = FakeBackend(listens, UNKNOWN, "5.10")
    found = watch(f"- start: server\n{claim}{missing}", fake)
    assert (found.result, found.reason, found.verdicts) == ("skip", why, ())


def test_of_a_lab_that_never_came_up_nothing_is_known(watch: Play) -> None:
    fake = FakeBackend({"up": lambda lab: lab.dies("client")})
    expect = "expect:\n- segments: {from: client, flags: FIN, count: 0}\n"
    found = watch("- note: a\n", fake, expect)
    assert found.result == "error"
    assert [(v.result, v.actual) for v in found.verdicts] == [("unknown", "no lab came up")]


@pytest.mark.parametrize(("answers", "trouble"), [(True, set()), (False, {"server", "client"})])
def test_what_was_captured_by_a_run_that_breaks_off(
    watch: Play, answers: bool, trouble: set[str]
) -> None:
    """All of it is taken in, or the record says that it may lack some."""

    def breaks(lab: FakeBackend) -> None:
        if not answers:
            lab.dies("server")
        else:
            raise KeyError("a fault")

    fake = FakeBackend({"start client": breaks})
    found = watch("- start: client\n- note: b\n", fake)
    assert found.result == "error"
    assert {host for host, probe in found.history.trouble if probe == "end"} == trouble


def test_ss_that_is_not_understood(watch: Play) -> None:
    fake = FakeBackend({"up": lambda lab: lab.sockets("server", "ESTAB what is this?")})
    found = watch("- wait: {sockets: {server: none}}\n  within: 10ms\n", fake)
    assert found.result == "unknown"


def test_a_probe_in_trouble_decides_nothing(watch: Play) -> None:
    fake = FakeBackend({"look server": lambda lab: lab.trouble("server", "ss: no such thing")})
    found = watch("- wait: {sockets: {server: none}}\n  within: 10ms\n", fake)
    assert told(found)[0] in {
        ("server: no connection", "pass"),
        ("server: no connection", "unknown"),
    }
    found = watch("- note: a\n- expect: {sockets: {server: none}}\n", fake)
    assert any(isinstance(e, TroubleEvent) for e in found.history.events)


@pytest.mark.parametrize("stop", [KeyboardInterrupt("SIGTERM"), KeyboardInterrupt()])
def test_an_interruption(tmp_path: Path, stop: BaseException) -> None:
    def interrupt(lab: FakeBackend) -> None:
        raise stop

    fake = FakeBackend({"start client": interrupt})
    case = scenario(lesson("- start: server\n- start: client\n- note: not reached\n"))
    with (
        RunFolder(new_folder(tmp_path, "cut"), case.text) as folder,
        pytest.raises(KeyboardInterrupt) as caught,
    ):
        Session(case, fake, folder, Silent()).run()
    assert caught.value is stop
    assert fake.log[-1] == "down"
    (recorded,) = json.loads((tmp_path / "cut" / "result.json").read_text())["runs"]
    assert (recorded["result"], recorded["reason"]) == ("error", "interrupted")
    events = list(read_events((tmp_path / "cut" / "history.jsonl").read_text().splitlines()))
    assert [e.text for e in events if isinstance(e, StepEvent)] == [
        "start server", "start server", "start client"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cause", "result", "reason"),
    [
        (NotPassed("x.py:1: of another lab\nmore"), "fail", "x.py:1: of another lab"),
        (AssertionError("1 == 2\nmore"), "fail", "AssertionError: 1 == 2"),
        (AssertionError(), "fail", "AssertionError"),
        (SkipTest("not here"), "skip", "not here"),
        (pytest.skip.Exception("not now"), "skip", "not now"),
        (pytest.fail.Exception("so"), "fail", "Failed: so"),
        (SystemExit(3), "error", "SystemExit: 3"),
        (TimeoutError(), "error", "TimeoutError"),
        (KeyboardInterrupt("x"), "error", "interrupted"),
        (NotKnown("what"), "unknown", "what"),
    ],
    ids=repr,
)
def test_what_ends_a_run_is_in_its_result(
    tmp_path: Path, cause: BaseException, result: str, reason: str
) -> None:
    case = scenario(lesson("- start: server\n"))
    with RunFolder(new_folder(tmp_path, "x"), case.text) as folder:
        session = Session(case, FakeBackend(), folder, Silent())
        with pytest.raises(type(cause)) as caught, session.up():
            raise cause
    assert caught.value is cause
    assert (session.result.result, session.result.reason) == (result, reason)
    (recorded,) = json.loads((folder.path / "result.json").read_text())["runs"]
    assert (recorded["result"], recorded["reason"]) == (result, reason)


def test_an_exception_that_can_not_be_shown(tmp_path: Path) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert outcome(Broken()) == ("error", "Broken: it can't be shown", None)


def test_an_interruption_while_the_lab_goes_down(tmp_path: Path) -> None:
    def interrupt(lab: FakeBackend) -> None:
        raise KeyboardInterrupt("again")

    fake = FakeBackend({"down": [interrupt]})
    case = scenario(lesson("- start: server\n"))
    place = new_folder(tmp_path, "cut")
    with RunFolder(place, case.text) as folder, pytest.raises(KeyboardInterrupt):
        Session(case, fake, folder, Silent()).run()
    assert fake.log[-2:] == ["down", "down"]
    assert (tmp_path / "cut" / "result.json").exists()


def test_an_interruption_while_the_lab_comes_up(tmp_path: Path) -> None:
    def interrupt(lab: FakeBackend) -> None:
        raise KeyboardInterrupt("early")

    fake = FakeBackend({"up": interrupt})
    case = scenario(lesson("- start: server\n"))
    place = new_folder(tmp_path, "cut")
    with RunFolder(place, case.text) as folder, pytest.raises(KeyboardInterrupt):
        Session(case, fake, folder, Silent()).run()
    assert fake.log == ["up", "down"]


def test_a_disk_that_is_full_while_a_run_is_recorded(tmp_path: Path) -> None:
    fake = FakeBackend()
    case = scenario(lesson("- start: server\n"))
    place = new_folder(tmp_path, "full")
    (place / "history.jsonl").symlink_to("/dev/full")  # full(4)
    with RunFolder(place, case.text) as folder:
        found = Session(case, fake, folder, Silent()).run()
    assert found.result == "error"
    assert found.reason == (
        f"{place}: the run can't be recorded: No space left on device; make room, or use --out DIR"
    )
    assert fake.log[-1] == "down"


def test_a_disk_that_is_full_when_the_result_is_written(tmp_path: Path) -> None:
    fake = FakeBackend()
    case = scenario(lesson("- start: server\n"))
    place = new_folder(tmp_path, "full")
    (place / "result.json.partial").symlink_to("/dev/full")
    with RunFolder(place, case.text) as folder:
        found = Session(case, fake, folder, Silent()).run()
    assert (found.result, found.reason) == (
        "error",
        f"{place}: the run can't be recorded: No space left on device; make room, or use --out DIR",
    )
    assert fake.log[-1] == "down"
    assert not (place / "result.json").exists()
