"""One lab over several engines: three of our own in a swarm, each with another clock."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import docker
import pytest

from labctl.backends import EngineAt
from labctl.backends.docker import images
from labctl.backends.docker.sweep import LEASE
from labctl.backends.lease import abandoned, leases
from labctl.ground.resources import catalogue, scenarios
from labctl.judge.recorded import load as load_run
from labctl.judge.result import RunResult
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load, load_document
from labctl.record.events import ClockEvent
from labctl.run import dispatch
from labctl.run.doctor_engines import examine_engines
from labctl.run.orders import Orders
from labctl.run.places import DEFAULT_OS, Place
from labctl.run.runner import Silent
from labctl.run.workers import Doing
from labctl.run.workflow import run_case, sweep_all
from tests.certificates import context
from tests.contract.test_backends import DEADLINE
from tests.contract.test_lessons import report
from tests.engines import AHEAD, Engine, Swarm, swarm
from tests.unit.test_jobs import Log

pytestmark = [pytest.mark.docker, pytest.mark.ci, pytest.mark.xdist_group("engines")]

LESSONS = {"fin_wait_2": 0, "state_walk": 1, "endings/nat_forgets": 2, "old_duplicate": 0}
NAMES = ("left", "right", "third")


@pytest.fixture(scope="module")
def engines() -> Iterator[Swarm]:
    source = docker.from_env()
    built = images.ensure(source.api, DEFAULT_OS, print)
    with swarm([built.host, built.peer], source) as found:
        yield found
    source.close()


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of its own: those of others stay, and their sweeps do not read these."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def places(engines: Swarm) -> dict[str, EngineAt]:
    """The first two engines."""
    return dict([*all_places(engines).items()][:2])


def all_places(engines: Swarm) -> dict[str, EngineAt]:
    named = zip(NAMES, engines.engines, strict=True)
    return {name: EngineAt(name, engine.where) for name, engine in named}


def run(case: Scenario, engines: Swarm, folder: Path) -> RunResult:
    place = Place("docker", engines=tuple(places(engines).values()))
    return run_case(case, place, folder, Silent(), print)


def left(engine: Engine) -> list[str]:
    """What an engine has of runs. An engine goes on to show a network of its swarm for a moment
    after that is removed."""
    labelled: dict[str, Any] = {"filters": {"label": LEASE}}
    client, deadline = engine.client, time.monotonic() + DEADLINE
    while True:
        found: list[Any] = client.containers.list(all=True, **labelled)
        found += client.networks.list(**labelled)
        if not found or time.monotonic() > deadline:
            return [thing.name for thing in found]
        time.sleep(0.05)


def containers(engine: Engine) -> list[Any]:
    """Those of runs. The swarm keeps their network until all its nodes are back."""
    return engine.client.containers.list(all=True, filters={"label": LEASE})


@pytest.mark.parametrize(("name", "first"), LESSONS.items())
def test_lessons_on_several_engines(name: str, first: int, engines: Swarm, tmp_path: Path) -> None:
    """Their hosts are on different ones in turn, from `first` on; of these a lesson with two hosts
    leaves one out, which may be the manager, or the one with the controller's clock."""
    case = next(iter(load(catalogue(scenarios())[name])))
    at = [*all_places(engines).values()]
    place = Place("docker", engines=(*at[first:], *at[:first]))
    found = run_case(case, place, tmp_path, Silent(), print)
    assert found.result == "pass", report(found)
    clocks = [e for e in found.history.events if isinstance(e, ClockEvent)]
    used = [at.name for at in place.engines][: len(case.spec.hosts)]
    assert {clock.machine for clock in clocks} == {*used}
    assert_true_offsets(clocks)
    assert all(-1.0 < event.t < 600.0 for event in found.history.events)
    assert not any(map(left, engines.engines))


def assert_true_offsets(clocks: Iterable[ClockEvent]) -> None:
    """All engines are on one kernel, so their clocks are exactly so far apart."""
    ahead = dict(zip(NAMES, AHEAD, strict=True))
    for one, other in itertools.combinations(
        {clock.machine: clock for clock in clocks}.values(), 2
    ):
        apart = ahead[other.machine] - ahead[one.machine]
        assert abs(other.ahead - one.ahead - apart) <= one.bound + other.bound < 0.25


ADDRESSES = """\
title: Every address of a host
hosts:
  server:
    engine: left
    addresses: 2
    processes:
      four: {calls: "socket; bind 0.0.0.0:80; listen 5; accept; accept; wait"}
      six: {calls: "socket tcp6; bind [::]:81; listen 5; accept; accept; wait"}
  client:
    engine: right
    addresses: 2
    processes:
      first: {calls: "socket; bind client.2:0; connect server:80; wait"}
      second: {calls: "socket; connect server.2:80; wait"}
      third: {calls: "socket tcp6; bind client.2.v6:0; connect server.v6:81; wait"}
      fourth: {calls: "socket tcp6; connect server.2.v6:81; wait"}
steps:
  - start: four
  - start: six
  - wait: {sockets: {server: {state: LISTEN, count: 2}}}
  - start: first
  - start: second
  - start: third
  - start: fourth
  - wait: {sockets: {client: {state: ESTAB, count: 4}}}
"""


WAITS = """\
title: Waits for what never comes
hosts: {server: {engine: left, calls: "socket; bind :80; listen 5; wait"}, client: {engine: right}}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - wait: {sockets: {client: ESTAB}}
    within: 60s
"""


def scenario(text: str) -> Scenario:
    (found,) = load_document(Document("lab.yaml", text), text, "lab", {})
    return found


def checks(engines: Swarm) -> dict[str, tuple[bool, str]]:
    found = examine_engines([*places(engines).values()], print)
    return {check.name: (check.ok, check.hint) for check in found}


def test_doctor_says_that_engines_are_one_swarm(engines: Swarm) -> None:
    assert {name: ok for name, (ok, _) in checks(engines).items()} == {
        "left": True, "right": True, "swarm": True, "overlay": True
    }  # fmt: skip


SILENCE = """\
title: Waits for a SYN that is not answered
hosts:
  server: {calls: "socket; bind :80; listen 5; wait", engine: left}
  client: {calls: "socket; connect server:80", engine: right}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {sockets: {client: SYN-SENT}}
"""


@pytest.mark.parametrize("text", ["fails", "passes"])
def test_a_case_whose_engines_are_apart(text: str, engines: Swarm, tmp_path: Path) -> None:
    """It is an error that names the port, by what `doctor` looks for; and no verdict."""
    there = engines.engines[1]
    engines.block(there, "udp dport 4789")
    try:
        fails, passes = WAITS.replace("60s", "1s"), SILENCE
        found = run(scenario({"fails": fails, "passes": passes}[text]), engines, tmp_path)
    finally:
        engines.block(there, "")
    assert {verdict.result for verdict in found.verdicts} >= {text[:4]}
    assert (found.result, found.reason, found.hint) == (
        "error",
        "left and right: the first gets no answer from its hosts; between them, open 4789/udp",
        "between them, open 4789/udp",
    )


def test_addresses_of_both_families(engines: Swarm, tmp_path: Path) -> None:
    """Each address of a host is reached from the other engine: those that Docker knows, and those
    that agents add."""
    found = run(scenario(ADDRESSES), engines, tmp_path)
    assert found.result == "pass", report(found)
    assert found.history.lab and len(found.history.lab.addresses) == 8


def test_a_single_engine_needs_no_swarm(engines: Swarm, tmp_path: Path) -> None:
    """It is the one that is named; its clock is another, and there is only that one."""
    place = Place("docker", engines=(places(engines)["right"],))
    found = run_case(scenario(ADDRESSES), place, tmp_path, Silent(), print)
    assert found.result == "pass", report(found)
    assert not found.history.clocks
    assert all(-1.0 < event.t < 60.0 for event in found.history.events)


SLEEPS = """\
title: Listens for a while
hosts: {server: {calls: "socket; bind :80; listen 5; wait"}, client: {}}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - sleep: 2s
  - expect: {sockets: {server: LISTEN}}
"""


class Watching(Log):
    """A display that calls `act` when a case sleeps."""

    def __init__(self, act: Callable[[int], None] = lambda _: None) -> None:
        super().__init__()
        self._act = act

    def case(self, case: Scenario) -> Any:
        raise AssertionError("several cases, on engines")

    def cases(self, cases: Sequence[Scenario]) -> nullcontext[Log]:
        return nullcontext(self)

    def doing(self, number: int, step: Doing) -> None:
        super().doing(number, step)
        if step.text.startswith("sleep"):
            self._act(number)


def several(
    engines: Swarm, folder: Path, board: Watching, cases: Sequence[Scenario]
) -> list[RunResult]:
    place = Place("docker", engines=tuple(places(engines).values()))
    return dispatch.run([*cases], place, Orders(board, folder))


def where(found: RunResult) -> str:
    return str(found.environment["engine"]).partition("(")[2].rstrip(")")


def test_many_cases_are_each_on_one_engine(engines: Swarm, tmp_path: Path) -> None:
    """But one whose hosts name engines has all of them."""
    named = SLEEPS.replace("client: {}", "client: {engine: right}")
    found = several(engines, tmp_path, Watching(), [*[scenario(SLEEPS)] * 2, scenario(named)])
    assert [run.result for run in found] == ["pass"] * 3, report(found[0])
    assert [where(run) for run in found[:2]] == ["left", "right"]
    assert [bool(load_run(run.folder).history.clocks) for run in found] == [False, False, True]
    assert not any(map(left, engines.engines))


def test_cases_of_an_engine_that_vanishes_run_elsewhere(engines: Swarm, tmp_path: Path) -> None:
    """Once more, and their results say so. What they left is removed when it is back."""
    there = engines.engines[1]
    killed: list[int] = []

    def kill(number: int) -> None:
        if number == 1 and not killed:
            killed.append(number)
            there.kill()

    board = Watching(kill)
    found = several(engines, tmp_path, board, [scenario(SLEEPS)] * 2)
    assert [run.result for run in found] == ["pass", "pass"], report(found[1])
    assert [where(run) for run in found] == ["left", "left"]
    assert ("say", "the engine right does not answer any more: its cases run again elsewhere") in (
        board.log
    )
    assert not found[0].beside
    (why,) = found[1].beside
    first = load_run(Path(why.rpartition(" ")[2]))
    assert (first.result, first.reason) == ("error", GONE)
    assert where(first) == "right" and load_run(found[1].folder).beside == (why,)
    engines.start(there)
    lines, failures = sweep_all(())
    assert failures == [] and lines
    assert not any(map(left, engines.engines))


GONE = (
    "the engine right does not answer any more; when it is back, `labctl down` removes what it has"
)
BOUND = 30.0
"""Seconds after which a run whose engine is cut off has ended."""


def test_an_engine_that_is_cut_off(
    engines: Swarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind TLS, from the command line: nothing refuses a connection, and nothing answers. The
    case ends all the same, and all else is as with an engine that has ended."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    here, there, _ = engines.engines
    named = [(name, engine) for name, engine in zip(NAMES, engines.engines, strict=True)][:2]
    for name, engine in named:
        context(tmp_path, name, engine.url, engines.keys)
    words = [word for name, _ in named for word in ("--engine", f"{name}={name}")]
    (tmp_path / "lab.yaml").write_text(WAITS)
    labctl = engines.beside(sys.executable, "-m", "labctl")
    process = subprocess.Popen(
        [*labctl, "run", tmp_path / "lab.yaml", "--out", tmp_path / "out", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr
    assert any("wait server LISTEN" in line for line in process.stderr)
    engines.plug(there, "down")
    try:
        out, err = process.communicate(timeout=BOUND)
    finally:
        engines.plug(there, "up")
        process.kill()
    assert process.returncode == 4 and f"ERROR: {GONE}" in " ".join(out.split())
    assert "Traceback" not in err
    assert [v.result for v in load_run(tmp_path / "out" / "lab").verdicts] == ["pass"]
    assert containers(here) == []
    assert containers(there) != []
    swept = subprocess.run([*labctl, "down"], capture_output=True, text=True, check=False)
    assert swept.returncode == 0 and "removed: network labctl-" in swept.stdout, swept.stderr
    assert not any(map(left, engines.engines))


def test_a_killed_controller(engines: Swarm, tmp_path: Path) -> None:
    """`labctl down` knows from its lease where it had things."""
    file = tmp_path / "lab.yaml"
    file.write_text(WAITS)
    words = [w for n, at in places(engines).items() for w in ("--engine", f"{n}={at.where}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "labctl", "run", file, "--out", tmp_path / "out", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 3 * DEADLINE
        while not any(lease.hosts for lease in leases()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    lines, failures = sweep_all(())
    assert failures == []
    assert sum(line.startswith("container labctl-") for line in lines) >= 3
    assert sum(line.startswith("network labctl-") for line in lines) == 1
    assert not any(map(left, engines.engines))
    assert [*abandoned()] == []
