"""The pytest plugin and labs in Python, on real stacks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest

import labctl
from labctl.ground.errors import ScenarioError, UsageError
from labctl.ground.invoked import command
from labctl.judge.rejudge import judge
from labctl.language.scenario import load
from labctl.probes.sockets import State
from labctl.record.events import ExecEvent, StepEvent
from tests.contract import REAL, real_backends
from tests.marked import DEADLINE, Bench, eventually
from tests.unit.test_docs import ROOT, blocks

pytest_plugins = ["pytester"]

HOSTS = {
    "server": {"calls": "socket; bind :8000; listen 5; accept; await"},
    "client": {"calls": "socket; connect server:8000; await"},
}
CONNECTED = """\
title: Two ends
hosts:
  server: {calls: "socket; bind :8000; listen 5; accept; await"}
  client: {calls: "socket; connect server:8000; await"}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {sockets: {server: ESTAB, client: ESTAB}}
"""
GOOD = (
    CONNECTED.replace("hosts:", "variants: [{end: kill}, {end: stop}]\nhosts:", 1)
    + """\
  - ${end}: server
  - wait: {sockets: {server: FIN-WAIT-2, client: CLOSE-WAIT}}
"""
)
WRONG = CONNECTED + "  - expect: {sockets: {client: TIME-WAIT}}\n"
UNKNOWN = CONNECTED + "  - expect: {counters: {client: {TcpExtNoSuchThing: 1}}}\n"
HERE_NOT = CONNECTED.replace("client: {", "client: {sysctls: {net.ipv4.no_such: 1}, ")
REFUSED = CONNECTED.replace("client: {", "client: {sysctls: {net.ipv4.tcp_fin_timeout: no}, ")
SLOW = CONNECTED + "  - sleep: 60s\n"


@pytest.fixture(params=REAL)
def up(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., labctl.Lab]:
    """A lab on each backend, still to be entered."""
    return partial(labctl.Lab, backend=request.param, out=tmp_path)


def line_of(text: str) -> str:
    """`file:line` of the line of this file that holds `text`, which stands here once beside."""
    here = Path(__file__)
    (number,) = [
        n for n, line in enumerate(here.read_text().splitlines(), 1)
        if line.strip().startswith(text)
    ]  # fmt: skip
    return f"{here.relative_to(ROOT)}:{number}"


# --- Labs in Python -------------------------------------------------------------------------------


def test_a_test_of_ones_own(up: Callable[..., labctl.Lab]) -> None:
    with up(hosts=HOSTS) as lab:
        lab.start("server")
        lab.wait(sockets={"server": "LISTEN"})
        assert [socket.state for socket in lab.sockets("server")] == [State.LISTEN]
        lab.start("client")
        lab.wait({"sockets": {"server": "ESTAB"}}, within="10s")
        lab.call("client", 'send "hello"')
        lab.call({"server": "recv 5"})
        lab.pause("client")
        lab.resume("client")
        lab.sysctl("server", {"net.ipv4.tcp_fin_timeout": 2})
        done = lab.exec("server", "cat /proc/sys/net/ipv4/tcp_fin_timeout; exit 3", status=3)
        assert (done.exit, done.output) == (3, "2\n")
        lab.note("now it ends")
        lab.kill("server", as_="killed")
        lab.expect(sockets={"server": "FIN-WAIT-2", "client": "CLOSE-WAIT"})
        lab.snapshot("half closed")
        (fin,) = lab.segments(from_="server", flags="FIN")
        assert (fin.sender, fin.receiver, fin.lost) == ("server", "client", False)
        assert lab.segments(from_="client", flags="FIN", since="killed") == ()
        lab.wait(sockets={"server": "none"}, since="killed", within="1.5s..5s")
        lab.do({"signal": {"client": "TERM"}})
        lab.wait(process={"client": {"signal": "TERM"}})
        assert len(lab.events(ExecEvent)) == 1
        with pytest.raises(UsageError, match="a lab is brought up once"):
            lab.__enter__()
    with pytest.raises(UsageError, match="the lab is not up"):
        lab.start("server")
    ends = [event for event in lab.events(StepEvent) if event.phase == "end"]
    folder = lab.folder
    (found,) = json.loads((folder / "result.json").read_text())["runs"]
    assert (found["result"], found["scenario"]) == ("pass", "test_a_test_of_ones_own")
    assert all(v["source"].startswith("tests/contract/test_testing.py:") for v in found["verdicts"])
    (again,) = load(folder / "scenario.yaml")
    assert [str(step) for step in again.steps] == [event.text for event in ends]
    assert [v.result for v in judge(folder)] == ["pass"] * len(found["verdicts"])


def test_a_command_that_fails(up: Callable[..., labctl.Lab]) -> None:
    with up(hosts=HOSTS) as lab:
        assert lab.exec("server", "echo no; exit 3", status="any").exit == 3
        with pytest.raises(AssertionError, match="expected status 0, saw status 3, output 'no'"):
            lab.exec("server", "echo no; exit 3")
    (found,) = json.loads((lab.folder / "result.json").read_text())["runs"]
    assert found["result"] == "fail", "also where the test went on"


def test_a_claim_that_does_not_hold(up: Callable[..., labctl.Lab]) -> None:
    with pytest.raises(AssertionError) as caught:
        with up(CONNECTED) as lab:
            folder = lab.folder
            lab.expect(sockets={"client": "TIME-WAIT"})
    first, second, *_ = str(caught.value).splitlines()
    where = line_of('lab.expect(sockets={"client": "TIME-WAIT"})')
    assert first == f"{where}: client: expected TIME-WAIT, saw ESTAB"
    assert second.startswith("    ESTAB ")
    assert f"{command()} report {folder}" in str(caught.value)
    (ladder,) = caught.value.__notes__
    assert "SYN ACK seq 0 ack 1" in ladder
    assert "✗ client: TIME-WAIT" in ladder
    (found,) = json.loads((folder / "result.json").read_text())["runs"]
    assert (found["result"], found.get("reason")) == ("fail", None)


def test_a_claim_that_is_unknown(up: Callable[..., labctl.Lab]) -> None:
    with pytest.raises(AssertionError, match=r"expected .*, unknown: "):
        with up(CONNECTED) as lab:
            lab.expect(counters={"client": {"TcpExtNoSuchThing": 1}})


def test_a_claim_of_the_whole_history(up: Callable[..., labctl.Lab]) -> None:
    """It is judged at the end; and a claim that failed, and was caught, is in the result."""
    with pytest.raises(AssertionError, match=r"<scenario of test_.*>:\d+: server: expected none|2"):
        with up(CONNECTED + "expect: [{segments: {from: server, flags: FIN, count: 2}}]\n") as lab:
            folder = lab.folder
            with pytest.raises(AssertionError):
                lab.wait(sockets={"server": "none"}, within="100ms")
            lab.kill("server")
    (found,) = json.loads((folder / "result.json").read_text())["runs"]
    wrong = [v["what"] for v in found["verdicts"] if v["result"] == "fail"]
    assert wrong == ["server: no connection", "server: 2 x FIN from server"]


def test_a_mistake_does_nothing(up: Callable[..., labctl.Lab]) -> None:
    with up(hosts=HOSTS) as lab:
        verbs: Any = lab
        mistakes: list[tuple[Callable[[], object], str]] = [
            (lambda: lab.start("sever"), "unknown process 'sever'; .*did you mean 'server'"),
            (lambda: verbs.wait(sokets={}), "unknown key 'sokets'; .*did you mean 'sockets'"),
            (lambda: verbs.kill("server", az="x"), "unknown key 'az'; allowed: process, as_, when"),
            (lambda: lab.wait(sockets={"server": "none"}, since="x"), "no earlier 'as' sets"),
            (lambda: lab.exec("client", "echo ${HOME}"), "unknown param"),
            (lambda: lab.do({"kil": "server"}), "unknown verb 'kil'"),
            (lambda: lab.segments(from_="nobody"), "unknown host 'nobody'"),
        ]
        for act, message in mistakes:
            with pytest.raises(ScenarioError, match=rf"^tests/contract/.*:\d+: .*{message}"):
                act()
        assert lab.events(StepEvent) == ()


@pytest.mark.netns
def test_a_wrong_type_does_nothing(tmp_path: Path) -> None:
    """Whatever is given, it is a UsageError with the caller's line; and no keyword is ignored."""
    with labctl.Lab(hosts=HOSTS, backend="netns", out=tmp_path) as lab:
        verbs: Any = lab
        for act in (
            lambda: verbs.do("kill"), lambda: verbs.do(None), lambda: verbs.do({1: "server"}),
            lambda: verbs.do({"kill": {"server"}}), verbs.kill, lambda: verbs.kill(7),
            lambda: verbs.kill(None), lambda: verbs.kill(b"server"), lambda: verbs.kill(["server"]),
            lambda: verbs.kill("server", "client"), lambda: verbs.kill("server", "client", "x"),
            lambda: verbs.kill("server", kill="client"), lambda: verbs.kill("server", as_=7),
            lambda: verbs.kill("server", as_="a", **{"as": "b"}),
            lambda: verbs.kill("server", now=True), lambda: verbs.kill("server", start="client"),
            lambda: verbs.sleep("soon"), lambda: verbs.sleep(float("nan")),
            lambda: verbs.sleep(1, 2), lambda: verbs.note("\ud800"),
            lambda: verbs.wait({"sockets": {"server": "none"}}, process={"server": "running"}),
            lambda: verbs.wait(sockets={"server": object()}), lambda: verbs.wait(sockets=[1]),
            lambda: verbs.wait(sockets={"server": "none"}, within=lambda: 1),
            lambda: verbs.exec("client", 7.5j), lambda: verbs.exec(["client"], "true"),
            lambda: verbs.exec("client", "true", within="5s"), lambda: verbs.sysctl("client", 7),
            lambda: verbs.sockets(7), lambda: verbs.sockets(["server"]),
            lambda: verbs.segments(flags=7), lambda: verbs.segments(flags=object()),
            lambda: verbs.segments(count=1), lambda: verbs.segments(at_most=1),
            lambda: verbs.segments(from_="client", **{"from": "server"}),
            lambda: verbs.events("sockets"), lambda: verbs.events(int),
            lambda: verbs.events(StepEvent(0.0, 0, "begin", "x")),
        ):  # fmt: skip
            with pytest.raises(UsageError, match=r"^tests/contract/test_testing\.py:\d+: ."):
                act()
        assert lab.events(StepEvent) == ()


@pytest.mark.netns
def test_a_claim_of_another_thread_is_not_lost(tmp_path: Path) -> None:
    """It is refused there, and the `with` can't end well."""
    caught: list[BaseException] = []

    def claim() -> None:
        try:
            lab.expect(sockets={"server": "LISTEN"})
        except BaseException as exc:
            caught.append(exc)

    with pytest.raises(UsageError, match=r"^tests/.*: a lab is of the thread that brought it up; "):
        with labctl.Lab(hosts=HOSTS, backend="netns", out=tmp_path) as lab:
            thread = threading.Thread(target=claim)
            thread.start()
            thread.join()
            lab.expect(sockets={"server": "none"})
    assert [type(exc) for exc in caught] == [UsageError]
    (found,) = json.loads((lab.folder / "result.json").read_text())["runs"]
    assert found["result"] == "error"
    assert found["reason"].endswith("use it there, or a lab for each")


def test_what_can_not_run_here_is_skipped(up: Callable[..., labctl.Lab]) -> None:
    with pytest.raises(SkipTest, match=r"has no net\.ipv4\.no_such; run it on another kernel"):
        up(HERE_NOT).__enter__()
    with pytest.raises(SkipTest, match="no_such"):
        with up(hosts=HOSTS) as lab:
            folder = lab.folder
            lab.sysctl("client", {"net.ipv4.no_such": 1})
    assert json.loads((folder / "result.json").read_text())["result"] == "skip"


ENDS = f"""\
import sys
from pathlib import Path
import labctl

with labctl.Lab({CONNECTED!r}, backend=sys.argv[1], out=Path(sys.argv[2])) as lab:
    lab.sysctl("client", {{"net.ipv4.tcp_fin_timeout": 2}})
    print("up", flush=True)
    if sys.argv[3] == "raise":
        raise RuntimeError("of the test's own")
    lab.sleep("60s")
"""


@real_backends
@pytest.mark.parametrize("end", ["raise", "interrupt"])
def test_nothing_is_left(backend: str, end: str, tmp_path: Path) -> None:
    bench = Bench(backend, tmp_path, uuid.uuid4().hex)
    program = tmp_path / "mine.py"
    program.write_text(ENDS)
    process = subprocess.Popen(
        [sys.executable, program, backend, tmp_path / "out", end],
        env=bench.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    if end == "interrupt":
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode
    assert bench.left() == []
    (found,) = json.loads((tmp_path / "out" / "mine" / "result.json").read_text())["runs"]
    reason = {"raise": "RuntimeError: of the test's own", "interrupt": "interrupted"}[end]
    assert (found["result"], found["reason"]) == ("error", reason)
    assert "SYN ACK seq 0 ack 1" in err
    assert f"labctl report {tmp_path / 'out' / 'mine'}\n" in err.partition("see it all: ")[2]


# --- The plugin -----------------------------------------------------------------------------------


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project that asks for scenarios, in a home of its own."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    pytester.makeini("[pytest]\nlabctl_scenarios = true\n")
    return pytester


def write(project: pytest.Pytester, **scenarios: str) -> None:
    for name, text in scenarios.items():
        (project.path / f"{name}.yaml").write_text(text)


@pytest.mark.netns
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_outcomes(project: pytest.Pytester, workers: tuple[str, ...]) -> None:
    write(
        project, good=GOOD, wrong=WRONG, unknown=UNKNOWN, here_not=HERE_NOT, refused=REFUSED
    )  # fmt: skip
    found = project.runpytest_subprocess("-rA", "--labctl-backend", "netns", *workers)
    found.assert_outcomes(passed=2, failed=3, skipped=1)
    found.stdout.fnmatch_lines_random(
        [
            "PASSED good.yaml::good (end kill)",
            "PASSED good.yaml::good (end stop)",
            "FAILED wrong.yaml::wrong - Failed: wrong.yaml:10: client: *",
            "wrong.yaml:10: client: expected TIME-WAIT, saw ESTAB",
            "    ESTAB * -> *:8000*",
            "recorded; see it all: *labctl report */wrong",
            "* SYN ACK seq 0 ack 1 *",
            "* ✗ client: TIME-WAIT *",
            "unknown.yaml:10: client: expected *, unknown: *TcpExtNoSuchThing*",
            "error: refused.yaml:4: client: can't set net.ipv4.tcp_fin_timeout to *",
            "SKIPPED * has no net.ipv4.no_such; run it on another kernel",
        ]
    )
    found.stdout.no_fnmatch_line("*Traceback*")
    assert not (project.path / ".local").exists(), "pytester's home is its path"


@real_backends
def test_the_fixture(project: pytest.Pytester, backend: str) -> None:
    """It ends with the test, and knows how that ended."""
    project.makepyfile(
        f"""
        import pytest

        @pytest.fixture
        def lab(labctl_lab):
            return labctl_lab({CONNECTED!r})

        def test_good(lab):
            lab.call("client", "close")
            lab.wait(sockets={{"server": "CLOSE-WAIT"}})

        def test_wrong(lab):
            assert lab.sockets("client") == "what is not so"

        def test_bad(labctl_lab):
            labctl_lab(hosts={{}})
        """
    )
    found = project.runpytest_subprocess("--labctl-backend", backend, "--labctl-out", "runs")
    found.assert_outcomes(passed=1, failed=2)
    found.stdout.fnmatch_lines(
        ["E *AssertionError: assert *", "E * SYN ACK seq 0 ack 1 *", "test_the_fixture.py:*"]
    )
    results = [json.loads(path.read_text()) for path in project.path.glob("runs/*/result.json")]
    assert sorted(document["result"] for document in results) == ["fail", "pass"]


ENDINGS = f"""
import signal, sys, unittest
import labctl, pytest

HOSTS = {HOSTS!r}


@pytest.fixture
def lab(labctl_lab):
    lab = labctl_lab(hosts=HOSTS)
    lab.start("server")
    return lab

@pytest.fixture
def broken(lab):
    raise RuntimeError("not set up")

def test_assert(lab):
    assert 1 == 2

def test_fail(lab):
    pytest.fail("by its own")

def test_fail_in_a_word(lab):
    pytest.fail("by its own", pytrace=False)

def test_skip(lab):
    pytest.skip("not today")

def test_exit(lab):
    sys.exit(3)

def test_time_out(lab):
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("Timeout > 0.5 s"))
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    lab.sleep("60s")

def test_set_up(broken):
    pass

def test_unknown(lab):
    try:
        lab.expect(counters={{"client": {{"TcpExtNoSuchThing": 1}}}})
    except AssertionError:
        pass

class Test(unittest.TestCase):
    def test_unittest(self):
        with labctl.Lab(hosts=HOSTS, backend="netns", out="runs") as lab:
            self.assertEqual(1, 2)

    def test_unittest_skips(self):
        with labctl.Lab(hosts=HOSTS, backend="netns", out="runs") as lab:
            self.skipTest("not here")
"""


@pytest.mark.netns
def test_whatever_ends_a_test_is_recorded_as_what_it_was(project: pytest.Pytester) -> None:
    project.makepyfile(ENDINGS)
    options = ("--labctl-backend", "netns", "--labctl-out", "runs")
    found = project.runpytest_subprocess(*options)
    found.assert_outcomes(failed=6, skipped=2, errors=1, passed=1)
    runs = {
        run["scenario"]: (run["result"], run.get("reason"))
        for path in project.path.glob("runs/*/result.json")
        for run in json.loads(path.read_text())["runs"]
    }
    assert runs["test_unittest"] == ("fail", "AssertionError: 1 != 2")
    assert runs["test_unittest_skips"] == ("skip", "not here")
    labs = [path.parent for path in project.path.glob("runs/lab*/result.json")]
    ends = [json.loads((lab / "result.json").read_text())["runs"][0] for lab in labs]
    assert Counter((end["result"], end.get("reason")) for end in ends) == {
        ("fail", "AssertionError: assert 1 == 2"): 1,
        ("fail", "Failed: by its own"): 2,
        ("skip", "not today"): 1,
        ("error", "SystemExit: 3"): 1,
        ("fail", "Failed: Timeout > 0.5 s"): 1,
        ("error", "RuntimeError: not set up"): 1,
        ("unknown", None): 1,
    }
    said = found.stdout.str()
    shown = [lab for lab in labs if f"labctl report {lab}\n" in said]
    assert len(shown) == 6, "all but the one that was skipped, and the one that caught its claim"
    assert said.count("process starts") >= 6, "each with its ladder"


@pytest.mark.docker
def test_scenarios_on_docker(project: pytest.Pytester) -> None:
    write(project, good=GOOD, wrong=WRONG)
    found = project.runpytest_subprocess("--labctl-backend", "docker")
    found.assert_outcomes(passed=2, failed=1)
    found.stdout.fnmatch_lines(["wrong.yaml:10: client: expected TIME-WAIT, saw ESTAB"])


@pytest.mark.netns
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_pytest(tmp_path: Path, number: signal.Signals) -> None:
    bench = Bench("netns", tmp_path, uuid.uuid4().hex)
    (tmp_path / "slow.yaml").write_text(SLOW)
    command = [sys.executable, "-m", "pytest", "--labctl", "--labctl-backend", "netns"]
    process = subprocess.Popen(
        [*command, "--labctl-out", "out", "-p", "no:cacheprovider"],
        cwd=tmp_path, env=bench.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    history = tmp_path / "out" / "slow" / "history.jsonl"
    assert eventually(lambda: history.exists() and "sleep 60 s" in history.read_text())
    process.send_signal(number)
    out, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    assert bench.left() == []
    (found,) = json.loads((history.parent / "result.json").read_text())["runs"]
    assert found["reason"] == "interrupted"


@pytest.mark.netns
def test_the_examples_of_the_docs(project: pytest.Pytester) -> None:
    pages = [ROOT / "README.md", ROOT / "docs" / "testing.md"]
    examples = [b for page in pages for b in blocks(page) if b.info == "python"]
    for example in examples:
        text = example.text.replace('backend="auto"', 'backend="netns"')
        (project.path / f"test_{example.page.stem}_{example.line}.py").write_text(text)
    found = project.runpytest_subprocess("--labctl-backend", "netns")
    found.assert_outcomes(passed=len(examples))
