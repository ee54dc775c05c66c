"""Whatever ends a controller, nothing of its lab stays, and no other lab is touched."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract import REAL

KILLS = 20
DEADLINE = 30.0
AT_ONCE = 4

SCENARIO = """\
title: Two hosts, a connection, and time to be killed in
hosts:
  server:
    calls: |
      socket
      bind :8000
      listen 5
      accept
      fork
      wait
  client:
    calls: |
      socket
      connect server:8000
      wait
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {sockets: {client: ESTAB}}
  - sleep: 30s
"""


@dataclass
class Bench:
    """Runs labctl marked, so that everything that comes of it can be found."""

    backend: str
    folder: Path
    mark: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "LABCTL_TEST_MARK": self.mark,
            "XDG_RUNTIME_DIR": str(self.folder / "runtime"),
            "XDG_STATE_HOME": str(self.folder / "state"),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "labctl", *arguments]
        return subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def scenario(self) -> str:
        path = self.folder / "slow.yaml"
        path.write_text(SCENARIO)
        return str(path)

    def connected(self) -> subprocess.Popen[str]:
        """A run that has come to its long sleep."""
        out = str(self.folder / "out")
        process = self.start("run", self.scenario(), "--backend", self.backend, "--out", out)
        assert process.stderr
        for line in process.stderr:
            if "ESTAB" in line:
                return process
        raise AssertionError(f"the run ended early: {process.wait()}")

    def several(self) -> subprocess.Popen[str]:
        """As many runs at once, all in their long sleep."""
        path = Path(self.scenario())
        numbers = ", ".join(f"{{n: {n}}}" for n in range(AT_ONCE))
        slow = SCENARIO.replace("sleep: 30s", "sleep: 600s")  # until the last one is up, too
        path.write_text(f"{slow}params: {{n: 0}}\nvariants: [{numbers}]\n")
        process = self.start(
            "run", str(path), "--backend", self.backend, "-j", str(AT_ONCE),
            "--out", str(self.folder / "out"),
        )  # fmt: skip
        while sum(map(sleeps, self.recorded("history.jsonl"))) < AT_ONCE:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        return process

    def recorded(self, name: str) -> list[Path]:
        return list((self.folder / "out").glob(f"*/{name}"))

    def left(self) -> list[str]:
        """Processes, containers, networks and volumes that carry our mark."""
        return self.processes() + self.engine()

    def leases(self) -> list[dict[str, Any]]:
        return [json.loads(x.read_text()) for x in self.folder.glob("runtime/labctl/*.json")]

    def pids(self) -> list[int]:
        """Our processes. A program of a lab on namespaces has no mark, and ends with its world."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"LABCTL_TEST_MARK={self.mark}".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def processes(self) -> list[str]:
        found = []
        for pid in self.pids():
            with suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        return found

    def engine(self) -> list[str]:
        if self.backend != "docker":
            return []
        import docker

        client = docker.from_env()
        try:
            everything: list[Any] = client.containers.list(
                all=True, filters={"label": "labctl"}, ignore_removed=True
            )
            everything += client.networks.list(filters={"label": "labctl"})
            everything += client.volumes.list(filters={"label": "labctl"})
            ours = str(self.folder)
            return [x.name for x in everything if ours in labels(x.attrs).get("labctl.lease", "")]
        finally:
            client.close()


def sleeps(history: Path) -> bool:
    return '"sleep 600 s"' in history.read_text()


def labels(attributes: dict[str, object]) -> dict[str, str]:
    config = attributes.get("Config") or attributes
    found = config.get("Labels") if isinstance(config, dict) else None
    return found or {}


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(params=REAL)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    found = Bench(request.param, tmp_path, uuid.uuid4().hex)
    yield found
    found.run("down")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_cleans_up_and_keeps_its_evidence(
    bench: Bench, number: signal.Signals
) -> None:
    process = bench.connected()
    process.send_signal(number)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert bench.left() == []
    (result,) = (bench.folder / "out").glob("*/result.json")
    assert json.loads(result.read_text())["runs"][0]["reason"] == "interrupted"
    assert "ESTAB" in (result.parent / "history.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_several_runs_that_are_interrupted(bench: Bench, number: signal.Signals) -> None:
    """The controller alone is told; it tells its workers, and waits for them."""
    process = bench.several()
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err.splitlines()[-1]) == (130, "labctl: interrupted")
    assert bench.left() == []
    results = bench.recorded("result.json")
    assert len(results) == AT_ONCE
    for result in results:
        assert json.loads(result.read_text())["runs"][0]["reason"] == "interrupted"


def test_ctrl_c_goes_to_all_of_them(bench: Bench) -> None:
    process = bench.several()
    workers = [lease["pid"] for lease in bench.leases()]
    assert len(workers) == AT_ONCE
    for pid in (*workers, process.pid, *workers, process.pid):
        os.kill(pid, signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert bench.left() == []


def test_the_workers_of_a_killed_controller_take_their_labs_down(bench: Bench) -> None:
    process = bench.several()
    process.kill()
    process.communicate()
    assert eventually(lambda: bench.left() == []), bench.left()
    assert len(bench.recorded("result.json")) == AT_ONCE
    down = bench.run("down")
    assert bench.backend == "docker" or down.stdout == ""  # other tests use the same engine


def test_a_killed_worker_leaves_nothing(bench: Bench) -> None:
    process = bench.several()
    first, *others = [lease["pid"] for lease in bench.leases()]
    os.kill(first, signal.SIGKILL)
    for pid in others:
        os.kill(pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 4
    assert out.count("its process was killed by SIGKILL") == 2, "in full, and in the table"
    assert bench.left() == []


def test_down_removes_what_killed_controllers_left(bench: Bench) -> None:
    chance = random.Random(20)
    for _ in range(KILLS):
        process = bench.start("run", bench.scenario(), "--backend", bench.backend)
        # A random moment is the point: between two API calls, in a fork, in the long sleep.
        time.sleep(chance.uniform(0.1, 1.6))
        process.kill()
        process.communicate()
    down = bench.run("down")
    assert down.returncode == 0, down.stderr
    assert eventually(lambda: bench.left() == []), bench.left()


def test_the_next_run_removes_what_a_killed_one_left_and_no_living_one(bench: Bench) -> None:
    living = bench.connected()
    killed = bench.connected()
    killed.kill()
    killed.communicate()
    quick = bench.folder / "quick.yaml"
    quick.write_text(SCENARIO.replace("  - sleep: 30s\n", ""))
    again = bench.run("run", str(quick), "--backend", bench.backend)
    assert again.returncode == 0, again.stderr
    down = bench.run("down")
    assert "left alone" in down.stdout
    assert living.poll() is None
    assert bench.left()
    living.send_signal(signal.SIGINT)
    living.communicate(timeout=DEADLINE)
    assert living.returncode == 130
    assert eventually(lambda: bench.left() == []), bench.left()


def test_a_failed_run_leaves_nothing(bench: Bench) -> None:
    wrong = bench.folder / "wrong.yaml"
    wrong.write_text(SCENARIO.replace("  - sleep: 30s", "  - expect: {sockets: {client: none}}"))
    done = bench.run("run", str(wrong), "--backend", bench.backend)
    assert done.returncode == 1, done.stderr
    assert bench.left() == []


def test_a_lab_for_hands(bench: Bench) -> None:
    up = bench.run("up", "--backend", bench.backend)
    assert up.returncode == 0, up.stderr
    assert "server" in bench.run("ps").stdout
    shell = bench.run("shell", "server", "--", "sh", "-c", "ip address; cat /etc/hosts")
    assert shell.returncode == 0, shell.stderr
    assert "eth0" in shell.stdout
    assert "client.v6" in shell.stdout
    assert bench.run("shell", "nobody").returncode == 2
    down = bench.run("down")
    assert down.returncode == 0, down.stderr
    assert "down: lab" in down.stdout
    assert eventually(lambda: bench.left() == []), bench.left()
    assert "no lab is up" in bench.run("ps").stdout
