"""What containers do for a lab, and what they can't do to anybody else."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from labctl.backends import BackendOptions
from labctl.backends.docker import engine, images
from labctl.backends.docker.backend import DockerBackend
from labctl.backends.docker.sweep import DOMAIN, RUN, sweep
from labctl.ground.errors import LabError
from labctl.ground.resources import scenarios
from labctl.lab.lab import Lab
from labctl.language.scenario import load
from labctl.record.events import ExecEvent, OutputEvent, ProcessEvent
from labctl.record.history import History
from labctl.run.places import DEFAULT_OS, Place
from labctl.run.runner import Silent
from labctl.run.workflow import run_case
from tests.contract.test_backends import DEADLINE, LAB, SERVER_AND_CLIENT
from tests.marked import eventually

pytestmark = pytest.mark.docker


@pytest.fixture
def run() -> str:
    """A name for a run that nobody else has."""
    return uuid.uuid4().hex[:8]


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    found = docker.from_env()
    yield found
    found.close()


@pytest.fixture(scope="module")
def foreign_image(client: docker.DockerClient) -> Iterator[str]:
    """An image that is none of ours: a Debian with a shell for an entry point."""
    built = images.ensure(client.api, DEFAULT_OS, print)
    tag = f"labctl-test:{uuid.uuid4().hex[:8]}"
    container = client.containers.create(built.peer)
    container.commit(*tag.split(":"), changes='ENTRYPOINT ["sh", "-c"]')
    container.remove()
    yield tag
    client.images.remove(tag)


def backend(run: str, folder: Path) -> DockerBackend:
    return DockerBackend(BackendOptions(run, f"test:{folder}", folder, DEFAULT_OS, print))


@contextmanager
def lab(run: str, folder: Path, hosts: str) -> Iterator[Lab]:
    path = folder / "lab.yaml"
    path.write_text(LAB.format(hosts=hosts.rstrip()))
    (scenario,) = load(path)
    with Lab(scenario.spec, backend(run, folder), History(), print, print) as found:
        yield found


def on_host(lab: Lab, host: str, command: str) -> ExecEvent:
    lab.exec(host, command)
    event = lab.history.events[-1]
    assert isinstance(event, ExecEvent)
    return event


def ends(lab: Lab, process: str) -> str:
    """Starts a process and returns its output, when it has ended well."""
    lab.start(process)
    assert lab.pump_until(lambda: not lab.running(process), lab.now() + DEADLINE)
    state = lab.history.processes[process]
    assert (state.exit, state.signal) == (0, None), state.output
    return state.output


def left(client: docker.DockerClient, run: str) -> list[str]:
    found: list[Any] = client.containers.list(all=True, filters={"label": f"{RUN}={run}"})
    found += client.networks.list(filters={"label": f"{RUN}={run}"})
    return [thing.name for thing in found]


# --- Hosts and processes --------------------------------------------------------------------------


def test_a_process_has_no_rights_and_its_own_user(run: str, tmp_path: Path) -> None:
    hosts = """\
  a:
    processes:
      root: {run: cat /proc/self/status}
      user: {run: cat /proc/self/status, uid: 1234}
      bind: {calls: "socket; bind :80; listen 1", uid: 1234}
  b: {}
"""
    with lab(run, tmp_path, hosts) as found:
        root, user = (status(ends(found, name)) for name in ("root", "user"))
        for line in (root, user):
            assert {int(line[key], 16) for key in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
            assert line["NoNewPrivs"] == "1"
        assert root["Uid"].split() == ["0"] * 4
        assert user["Uid"].split() == user["Gid"].split() == ["1234"] * 4
        assert user["Groups"].split() in ([], ["1234"])
        ends(found, "bind")  # as anybody: ports below 1024 take no right here


def status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_a_host_can_set_its_network_and_nothing_else(run: str, tmp_path: Path) -> None:
    with lab(run, tmp_path, "  a: {}\n  b: {}\n") as found:
        found.sysctl("a", {"net.ipv4.tcp_fin_timeout": "7"})
        assert on_host(found, "a", "cat /proc/sys/net/ipv4/tcp_fin_timeout").output == "7\n"
        assert on_host(found, "b", "cat /proc/sys/net/ipv4/tcp_fin_timeout").output != "7\n"
        assert on_host(found, "a", "nft add table ip t && nft list tables").exit == 0
        assert on_host(found, "a", "hostname").output == "a\n"
        for name in ("kernel/core_pattern", "vm/overcommit_memory", "fs/file-max"):
            same = on_host(found, "a", f"cat /proc/sys/{name} > /proc/sys/{name}")
            assert same.exit != 0, name
        here = status(on_host(found, "a", "cat /proc/self/status").output)
        assert int(here["CapEff"], 16) == 1 << 12 | 1 << 13  # NET_ADMIN, NET_RAW


def test_a_lookup_of_nothing_stays_inside_and_is_quick(run: str, tmp_path: Path) -> None:
    hosts = "  a: {run: getent ahosts nobody.example}\n  b: {}\n"
    with lab(run, tmp_path, hosts) as found:
        on_host(found, "a", "nft add table ip t; nft 'add chain ip t o {type filter hook output "
                "priority 0;}'; nft add rule ip t o oifname eth0 udp dport 53 counter")  # fmt: skip
        begin = found.now()
        found.start("a")
        assert found.pump_until(lambda: not found.running("a"), found.now() + DEADLINE)
        assert found.now() - begin < 5
        assert "counter packets 0" in on_host(found, "a", "nft list table ip t").output


def test_another_image_tells_as_much_as_its_container(
    run: str, tmp_path: Path, foreign_image: str
) -> None:
    hosts = f"""\
  a:
    processes:
      speaks:
        image: {foreign_image}
        run: ["echo $WHO; echo trouble >&2; exit 3"]
        env: {{WHO: me}}
      waits:
        image: {foreign_image}
        run: ["trap 'exit 4' TERM; echo up; while :; do sleep 0.02; done"]
      dies: {{image: {foreign_image}, run: ["echo up; exec sleep 1000"]}}
  b: {{}}
"""
    with lab(run, tmp_path, hosts) as found:
        states = found.history.processes

        def until(condition: Callable[[], bool]) -> None:
            assert found.pump_until(condition, found.now() + DEADLINE)

        for _ in range(2):
            found.start("speaks")
            until(lambda: not found.running("speaks"))
            assert states["speaks"].exit == 3
            assert sorted(states["speaks"].output.split()) == ["me", "trouble"]
        for name in ("waits", "dies"):
            found.start(name)
            until(lambda name=name: "up" in states[name].output)  # type: ignore[misc]
            found.signal(name, "TERM")
            until(lambda name=name: not states[name].running)  # type: ignore[misc]
        assert (states["waits"].exit, states["waits"].signal) == (4, None)
        assert (states["dies"].exit, states["dies"].signal) == (None, "TERM")
        found.start("dies")
        found.kill("dies")
        assert (states["dies"].exit, states["dies"].signal) == (None, "KILL")
        for name in states:
            told = [
                e
                for e in found.history.events
                if isinstance(e, (ProcessEvent, OutputEvent)) and e.process == name
                if not (isinstance(e, ProcessEvent) and e.phase == "gone")  # when that was heard
            ]
            assert told == sorted(told, key=lambda e: e.t)
            assert 0 < told[0].t < told[-1].t < found.now()


def test_an_image_that_is_nowhere_is_an_error_with_a_mend(run: str, tmp_path: Path) -> None:
    hosts = "  a: {image: 'localhost:1/labctl/nowhere:1', run: 'true'}\n  b: {}\n"
    with pytest.raises(LabError, match="docker load"):
        with lab(run, tmp_path, hosts):
            pass


def test_a_server_in_an_image_of_its_own_is_judged(
    client: docker.DockerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.image import DockerImage

    peer = images.ensure(client.api, DEFAULT_OS, print).peer
    dockerfile = f'FROM {peer}\nENTRYPOINT ["python3", "-m", "http.server"]\nCMD ["80"]\n'
    (tmp_path / "Dockerfile").write_text(dockerfile)
    with DockerImage(tmp_path, tag=f"labctl-test:{uuid.uuid4().hex[:8]}") as image:
        sets = {"image": str(image), "run": "--bind 0.0.0.0 8000"}  # of no use without the image
        (case,) = load(scenarios() / "servers" / "half_close.yaml", sets)
        assert case.needs == {"images"}
        result = run_case(case, Place("docker"), tmp_path / "out", Silent(), print)
    assert result.result == "pass", [verdict.actual for verdict in result.verdicts]


# --- The end --------------------------------------------------------------------------------------


class Now(KeyboardInterrupt):
    """A moment chosen at random."""


@pytest.mark.parametrize("after", [0.03, 0.1, 0.15, 0.25, 0.4, 0.7])
def test_a_lab_can_be_taken_down_at_any_moment(
    run: str, tmp_path: Path, client: docker.DockerClient, after: float
) -> None:
    def interrupt(*_: object) -> None:
        raise Now

    def play() -> None:
        with lab(run, tmp_path, SERVER_AND_CLIENT) as found:
            found.start("server")
            time.sleep(DEADLINE)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        with pytest.raises(Now):
            play()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with warnings.catch_warnings():  # a request that was cut leaves its socket to the program's end
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    # What had just begun to be made as the interrupt came ends with its streams.
    assert eventually(lambda: left(client, run) == []), left(client, run)


def test_the_containers_of_a_killed_controller_end_by_themselves(
    run: str, tmp_path: Path, client: docker.DockerClient
) -> None:
    code = f"""
from pathlib import Path
from tests.contract.test_docker_backend import SERVER_AND_CLIENT, lab, time
with lab({run!r}, Path({str(tmp_path)!r}), SERVER_AND_CLIENT) as found:
    found.start("server")
    print("up", flush=True)
    time.sleep(1000)
"""
    controller = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert controller.stdout
        for line in controller.stdout:
            if line == b"up\n":
                break
        assert len(running(client, run)) in (3, 4)  # the tracer is there where it may trace
    finally:
        controller.kill()
        controller.communicate()
    assert eventually(lambda: running(client, run) == [])
    assert len(left(client, run)) in (5, 6)  # for the next sweep; a tracer may be among them
    sweep(lambda name, lease, held: name == run)
    assert left(client, run) == []


def running(client: docker.DockerClient, run: str) -> list[Container]:
    return client.containers.list(filters={"label": f"{RUN}={run}"})


def test_sweep_removes_the_dead_and_asks_about_all(
    run: str, tmp_path: Path, client: docker.DockerClient
) -> None:
    dead, alive = f"{run}-dead", f"{run}-alive"
    seen: dict[str, tuple[str, bool]] = {}

    def judge(name: str, lease: str, held: bool) -> bool:
        seen[name] = (lease, held)
        return name == dead

    backends = [backend(name, tmp_path) for name in (dead, alive)]
    try:
        for found in backends:
            found.up([], [])
        lines = sweep(judge).lines
        assert f"network labctl-{dead} of {dead}" in lines
        assert all(line.endswith(f" of {dead}") for line in lines)
        assert seen[dead] == seen[alive] == (f"test:{tmp_path}", True)
        assert left(client, dead) == []
        assert f"labctl-{alive}" in left(client, alive)
        backends[0].down()  # of what is gone already
    finally:
        for found in backends:
            found.down()


def test_sweep_leaves_a_container_of_somebody_else_alone(
    run: str, tmp_path: Path, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network

    serve = "run -- python3 -u -m http.server 8000"
    peer = images.ensure(client.api, DEFAULT_OS, print).peer
    asked = []

    def judge(name: str, lease: str, held: bool) -> bool:
        asked.append(name)
        return name in (run, "yes")

    with (
        Network() as network,
        DockerContainer(peer).with_command(serve).with_network(network) as server,
    ):
        container = server.get_wrapped_container()
        # It inherits a label from its image, and is no part of any run.
        assert container.labels[f"{DOMAIN}.image"] == "yes"
        get = (
            "import urllib.request as u; "
            "print(u.urlopen('http://127.0.0.1:8000/etc/hostname').status)"
        )
        assert eventually(lambda: server.exec(["python3", "-c", get]).exit_code == 0)
        found = backend(run, tmp_path)
        try:
            found.up([], [])
            removed = sweep(judge).lines
            assert f"network labctl-{run} of {run}" in removed
            assert all(line.endswith(f" of {run}") for line in removed)
        finally:
            found.down()
        assert "image" not in asked
        assert server.exec(["python3", "-c", get]).output == b"200\n"


# --- The engine -----------------------------------------------------------------------------------


def test_an_engine_that_is_not_there_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    begin = time.monotonic()
    assert not DockerBackend.answers()
    assert time.monotonic() - begin < engine.PING_DEADLINE
    assert DockerBackend.describe_engine() is None
    assert sweep(lambda name, lease, held: True, everything=True).lines == []
    nothing = backend("nothing", tmp_path)
    with pytest.raises(LabError, match=r"no Docker engine answers at .* --backend netns"):
        nothing.up([], [])
    nothing.down()
    assert nothing.environment()["kernel"] is None
