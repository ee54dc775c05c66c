"""A real guest: Debian's kernel in QEMU, and what it hands back.

A boot takes long without KVM, so all of this runs in CI, and where LABCTL_TEST_ALL is set. The
machine's own cache is used: what it takes to make a guest is fetched once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest

from labctl.backends import EngineAt
from labctl.backends.docker.sweep import LEASE
from labctl.ground.errors import LabError
from labctl.record.events import ExecEvent
from labctl.record.lines import read_events
from labctl.reports.progress import Screen
from labctl.run import guests
from labctl.run.guests import contained, qemu, root, runs
from labctl.run.orders import Orders
from labctl.run.places import Place
from tests.contract.false_claims import OF_HOURS, FalseClaim
from tests.contract.test_bare_controller import renounce

pytestmark = [
    pytest.mark.guest, pytest.mark.slow, pytest.mark.ci,
    pytest.mark.xdist_group("guests"),  # one at a time: each keeps a core busy
]  # fmt: skip

KERNEL = "bookworm"
LESSONS = ("fin_wait_2", "lost_last_ack", "hours/syn_retries")
LONGEST = 1800.0


def labctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "labctl", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=LONGEST,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fetched() -> str:
    """The kernel's release; skips where no guest can be had, with the reason."""
    return fetch(KERNEL)


def fetch(kernel: str) -> str:
    """The release of a kernel by name; skips where no guest can be had, with the reason."""
    try:
        qemu.version()
        root.ensure("bookworm", print)
        return guests.find(kernel, print).version
    except LabError as exc:
        pytest.skip(str(exc))


LOOK_AROUND = """\
title: What the agent of a host is run by, and what it finds in its environment
hosts: {server: {}, client: {}}
steps:
  - exec: {server: "set -- $(xargs -0 < /proc/$PPID/cmdline); $1 -V; env"}
"""


@pytest.mark.parametrize("kernel", ["5.10", "trixie-backports"])
def test_lessons_pass_on_an_old_kernel_and_on_a_new_one(tmp_path: Path, kernel: str) -> None:
    """A state that is waited for, segments that are traced, one that is lost, and minutes that
    take none."""
    release = fetch(kernel)
    found = run(tmp_path, *LESSONS, "--virtual-time", kernel=kernel)
    assert {case["result"] for case in found} == {"pass"}
    assert {case["environment"]["kernel"] for case in found} == {release}


def run(
    tmp_path: Path, *arguments: str, kernel: str = KERNEL, jobs: int = 1
) -> list[dict[str, Any]]:
    out = ("--out", str(tmp_path), "--format", "json", "--jobs", str(jobs))
    done = labctl("run", *arguments, "--kernel", kernel, *out)
    assert done.returncode == 0, done.stderr + done.stdout
    runs: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    return runs


def test_a_scenario_runs_on_another_kernel(tmp_path: Path, fetched: str) -> None:
    """By a clock that is real: nothing in this lesson is a matter of seconds."""
    (found,) = run(tmp_path, "time_wait_on_the_client")
    assert found["result"] == "pass"
    assert found["backend"] == "netns"
    assert found["environment"]["kernel"] == fetched != os.uname().release
    assert {"ss", "capture", "trace"} <= set(found["environment"]["probes"])
    folder = Path(found["dir"])
    assert folder.parent == tmp_path
    names = {path.name for path in folder.iterdir()}
    assert {"scenario.yaml", "history.jsonl", "result.json", "server.ss", "server.pcap"} <= names
    assert labctl("check", str(folder)).returncode == 0


def test_waiting_takes_no_time_where_time_is_virtual(tmp_path: Path, fetched: str) -> None:
    """Two cases in one boot, and durations as on a clock that is real."""
    found = run(tmp_path, "fin_wait_2", "eaddrinuse_time_wait", "--virtual-time")
    assert [case["result"] for case in found] == ["pass", "pass"]
    assert all("virtual time" in case["environment"]["engine"] for case in found)
    short, long = (case["lab_seconds"] for case in found)
    assert 5.0 < short < 60.0 < long < 70.0


@pytest.mark.parametrize(
    ("system", "name", "python"),
    [
        ("debian:11", "Debian GNU/Linux 11 (bullseye)", "Python 3.9"),
        ("debian:13", "Debian GNU/Linux 13 (trixie)", "Python 3.13"),
    ],
)
def test_a_guest_has_the_system_that_is_asked_for(
    tmp_path: Path, fetched: str, system: str, name: str, python: str
) -> None:
    """Its labs, too: the agent's Python is that system's, also where labctl needs a newer one."""
    look = tmp_path / "look.yaml"
    look.write_text(LOOK_AROUND)
    lesson, seen = run(tmp_path, "fin_wait_2", str(look), "--virtual-time", "--os", system)
    assert [lesson["result"], seen["result"]] == ["pass", "pass"]
    assert lesson["environment"]["kernel"] == fetched
    assert lesson["environment"]["os"] == name
    events = read_events((Path(seen["dir"]) / "history.jsonl").read_text().splitlines())
    (output,) = [event.output for event in events if isinstance(event, ExecEvent)]
    assert output.startswith(python)
    assert "PYTHON" not in output


def test_hours_pass(tmp_path: Path, fetched: str) -> None:
    """In two guests."""
    found = run(tmp_path, "hours", "--virtual-time", jobs=2)
    assert {case["result"] for case in found} == {"pass"}
    assert sum(case["lab_seconds"] for case in found) > 50 * sum(case["seconds"] for case in found)


@pytest.mark.parametrize("claim", OF_HOURS, ids=str)
def test_false_claims_of_hours_fail(claim: FalseClaim, tmp_path: Path, fetched: str) -> None:
    (result,) = runs.run_all(
        [claim.whole], Place("netns", "", KERNEL, True), Orders(Screen(), tmp_path)
    )
    assert result.result == "fail", result.verdicts
    assert claim.blamed in [v.what for v in result.verdicts if v.result == "fail"], result.verdicts


LOST_AND_LATE = """\
title: A link that is slow, and a SYN that is lost on it
hosts:
  server: {calls: "socket; bind :80; listen 1; accept; wait"}
  client: {calls: "socket; connect server:80; wait"}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - net: {client: {delay: 20ms}}
  - drop: {from: client, to: server, flags: SYN, count: 1}
  - start: client
  - wait: {sockets: {client: ESTAB}}
"""


def test_faults_are_made_in_a_guest_too(tmp_path: Path, fetched: str) -> None:
    """Its kernel has the modules of nftables and netem that drops and links need."""
    scenario = tmp_path / "lost.yaml"
    scenario.write_text(LOST_AND_LATE)
    (found,) = run(tmp_path, str(scenario), "--virtual-time")
    assert found["result"] == "pass", found
    assert found["lab_seconds"] > 1.0  # RFC 6298, section 2.1: until the SYN is sent again


NEVER_WAITS = """\
title: A server that writes without pause to a client that keeps reading
hosts:
  server: {calls: "socket; bind :80; listen 1; accept; send \\"x\\" x 65536 forever"}
  client: {calls: "socket; connect server:80; recv until eof"}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - sleep: 600s
"""


def test_what_never_waits_is_ended_with_the_reason(tmp_path: Path, fetched: str) -> None:
    scenario = tmp_path / "busy.yaml"
    scenario.write_text(NEVER_WAITS)
    out = ("--out", str(tmp_path), "--format", "json")
    done = labctl("run", str(scenario), "--kernel", KERNEL, "--virtual-time", *out)
    assert done.returncode == 4
    (case,) = json.loads(done.stdout)["runs"]
    assert "never waits" in case["reason"]
    assert "every" in case["reason"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_guest_ends_with_its_controller(
    tmp_path: Path, fetched: str, number: int, status: int
) -> None:
    command = ["run", "eaddrinuse_time_wait", "--kernel", KERNEL, "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "labctl", *command], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + LONGEST
    history = tmp_path / "eaddrinuse_time_wait" / "history.jsonl"
    while not (history.exists() and history.stat().st_size):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    (guest,) = children(process.pid)
    process.send_signal(number)
    assert process.wait(60) == status
    while Path(f"/proc/{guest}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (history.parent / "result.json").exists() == (number == signal.SIGINT)


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def bare(tmp_path: Path, fetched: str) -> dict[str, str]:
    """The environment of a controller without a program: it has an engine's socket, and the files
    of a guest. The engine has the image with QEMU: where nothing can be pulled, that takes tools
    of the machine."""
    contained.cores(EngineAt(), print)
    home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "runtime"), "PATH": ""}
    return {**os.environ, **home, "XDG_CACHE_HOME": str(guests.cache().parent.parent)}


def at_the_engine() -> list[Any]:
    """The containers of guests: other tests have theirs."""
    with closing(docker.from_env()) as client:
        found = client.containers.list(all=True, filters={"label": LEASE}, ignore_removed=True)
    return [each for each in found if each.attrs["Config"]["Image"].startswith("labctl/qemu:")]


def gone() -> bool:
    """Whether the engine has no guest, at the latest in a moment."""
    deadline = time.monotonic() + 20.0
    while at_the_engine():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.docker
def test_a_guest_at_an_engine(fetched: str, bare: dict[str, str]) -> None:
    """By a controller that has no right, no program, and no kernel but this machine's."""
    done = subprocess.run(
        [sys.executable, "-m", "labctl", "run", "fin_wait_2", "--kernel", KERNEL, "--virtual-time",
         "--format", "json"],
        env=bare, preexec_fn=renounce, capture_output=True, text=True, check=False, timeout=LONGEST,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (case,) = json.loads(done.stdout)["runs"]
    assert (case["result"], case["environment"]["kernel"]) == ("pass", fetched)
    assert "in a container of " in case["environment"]["engine"]
    assert gone()


@pytest.mark.docker
def test_a_guest_at_an_engine_may_do_nothing_and_ends_with_its_controller(
    bare: dict[str, str],
) -> None:
    """However that ends: the engine itself removes it."""
    with subprocess.Popen(
        [sys.executable, "-m", "labctl", "run", "fin_wait_2", "--kernel", KERNEL], env=bare,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + LONGEST
        while not (found := [c for c in at_the_engine() if c.status == "running"]):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.kill()
    has = found[0].attrs["HostConfig"]
    assert not (has["Privileged"] or has["Binds"] or has["Devices"] or has["CapAdd"])
    assert (has["CapDrop"], has["NetworkMode"], bool(has["Memory"])) == (["ALL"], "none", True)
    assert gone()


ORPHANS = """\
title: With more orphans than the machine allows, they end by an RST
hosts:
  server:
    sysctls: {net.ipv4.tcp_max_orphans: 1}
    processes:
      first: {calls: "socket; bind :8000; listen 9; accept; accept; accept; wait"}
      last: {calls: "socket; bind :9000; listen 9; accept; wait"}
  client:
    processes:
      a: {calls: "socket; connect server:8000; wait"}
      b: {calls: "socket; connect server:8000; wait"}
      c: {calls: "socket; connect server:8000; wait"}
      d: {calls: "socket; connect server:9000; wait"}
steps:
  - start: first
  - start: last
  - wait: {sockets: {server: {state: LISTEN, count: 2}}}
  - start: a
  - start: b
  - start: c
  - start: d
  - wait: {sockets: {server: {state: ESTAB, count: 4}}}
  - cut: client                # no FIN is answered
  - kill: first
  - wait: {sockets: {server: {state: FIN-WAIT-1, count: 3}}}
  - sleep: 1s                  # the kernel counts its orphans every 0.1 s
  - kill: last
  - wait: {counters: {server: {TcpExtTCPAbortOnMemory: ">=1"}}}
expect:
  - segments: {from: server, flags: RST}
"""


def test_a_sysctl_of_the_whole_machine_is_the_labs_until_the_case_is_over(
    tmp_path: Path, fetched: str
) -> None:
    """Which has its effect; the next case in the same guest has the kernel's own value again."""
    limited, unlimited = tmp_path / "limited.yaml", tmp_path / "unlimited.yaml"
    limited.write_text(ORPHANS)
    unlimited.write_text(ORPHANS.replace("    sysctls: {net.ipv4.tcp_max_orphans: 1}\n", ""))
    done = labctl(
        "run", str(limited), str(unlimited), "--kernel", KERNEL, "--virtual-time",
        "--out", str(tmp_path), "--format", "json",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr + done.stdout
    first, second = json.loads(done.stdout)["runs"]
    assert first["result"] == "pass"
    assert [(v["what"], v["result"]) for v in second["verdicts"][-2:]] == [
        ("server: TcpExtTCPAbortOnMemory grew by >=1", "fail"), ("server: RST from server", "fail"),
    ]  # fmt: skip
