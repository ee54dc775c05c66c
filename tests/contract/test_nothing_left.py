"""Whatever ends a controller, nothing of its lab stays, and no other lab is touched."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import REAL
from tests.marked import AT_ONCE, DEADLINE, SCENARIO, Bench, eventually

KILLS = 20


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
    assert "on netns" not in down.stdout  # other tests use the same engine


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
