"""Hosts that are services of somebody's own Compose project, while that project itself runs."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

import labctl
from labctl.backends.docker import images, project
from labctl.backends.docker.sweep import LEASE
from labctl.judge.result import RunResult
from labctl.language.scenario import load
from labctl.run.places import DEFAULT_OS, Place
from labctl.run.runner import Silent
from labctl.run.workflow import run_case
from tests.contract.test_lessons import report, run
from tests.marked import Bench, eventually

pytestmark = pytest.mark.docker

KILLS = 8

SERVE = """\
import os, pathlib, socket, sys, threading
ours, behind = int(sys.argv[1]), sys.argv[2:]
lines = pathlib.Path("/data/lines")

def talk(connection):
    said, other = connection.makefile("rb"), None
    if behind:
        host, _, port = behind[0].partition(":")
        other = socket.create_connection((host, int(port)))
        heard = other.makefile("rb")
    for line in said:
        if other:
            other.sendall(line)
            line = heard.readline()
        else:
            with lines.open("ab") as file:
                file.write(line)
        if not line:
            break
        connection.sendall(os.environ["NAME"].encode() + b" " + line)
    for each in (connection, other) if other else (connection,):
        each.shutdown(socket.SHUT_RDWR)
        each.close()

if not behind:
    print("knows", len(lines.read_text().splitlines()) if lines.exists() else 0, flush=True)
listener = socket.socket()
if os.environ.get("AGAIN"):
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("", ours))
listener.listen(20)
while True:
    threading.Thread(target=talk, args=listener.accept()[:1], daemon=True).start()
"""
DOCKERFILE = """\
FROM {base}
COPY serve.py /serve.py
ENV NAME=nobody
ENTRYPOINT ["python3", "-u", "/serve.py"]
CMD ["5432"]
"""
COMPOSE = """\
services:
  web:
    image: {image}
    container_name: {name}-web
    command: ["8080", "api:8000"]
    environment: {{NAME: "$$web"}}
    depends_on: {{api: {{condition: service_healthy}}}}
    networks: {{front: {{aliases: [www]}}}}
    ports: ["127.0.0.1:{port}:8080"]
    stop_signal: SIGUSR1
    stop_grace_period: 1m
  api:
    image: {image}
    command: 8000 store:5432
    environment: [NAME=api]
    depends_on: [db]
    networks: [front, back]
    restart: always
    deploy: {{restart_policy: {{condition: any}}}}
    healthcheck:
      test: [CMD, grep, -q, ":1F40 00000000:0000 0A", /proc/net/tcp]
      interval: 200ms
      retries: 1000 # a busy machine may take long to start a program
  db:
    image: {image}
    env_file: db.env
    networks: {{back: {{aliases: [store]}}}}
    volumes: ["data:/data"]
networks:
  front: {{}}
  back: {{internal: true}}
volumes: {{data: {{}}}}
"""
HOSTS = """\
compose: compose.yaml
hosts:
  web: {service: web}
  api: {service: api}
  db: {service: db}
  client: {calls: "socket; connect web:8080; await"}
"""
SCENARIO = f"""\
title: Each service of a shop is killed, and started again
{HOSTS}
params: {{hello: 'send "hello\\n"; recv'}}
steps:
  - wait: {{sockets: {{web: LISTEN, api: LISTEN, db: LISTEN}}}}
    within: 60s
  - expect: {{process: {{db: {{output: knows 0}}}}}}
  - start: client
  - call: {{client: "${{hello}}"}}
  - wait: {{process: {{client: {{received: 18}}}}}}   # $web api db hello
    within: 30s
  - kill: db
  - wait: {{sockets: {{db: FIN-WAIT-2}}}}
  - start: db
  - wait: {{process: {{db: {{output: knows 1}}}}}}
  - wait: {{process: {{db: EADDRINUSE}}}}
  - kill: api
  - restart: api
  - wait: {{process: {{api: EADDRINUSE}}}}
  - kill: web
  - call: {{client: close}}
  - wait: {{sockets: {{web: TIME-WAIT}}}}
  - restart: web
  - wait: {{process: {{web: EADDRINUSE}}}}
"""
EVERY_STEP = f"""\
title: What steps do to services
{HOSTS}
params: {{hello: 'send "hello\\n"; recv'}}
steps:
  - wait: {{sockets: {{web: LISTEN, api: LISTEN, db: LISTEN}}}}
    within: 60s
  - pause: api
  - start: client
  - call: {{client: "${{hello}}"}}
  - wait: {{process: {{web: {{call: {{connect: ok}}}}}}}}
  - expect: {{process: {{client: {{received: 0}}}}}}
  - resume: api
  - wait: {{process: {{client: {{received: 18}}}}}}
    within: 30s
  - exec: {{web: ip route show default}}
    output: via
  - cut: web
  - exec: {{web: ip route show default}}
    output: ^$
  - join: web
  - exec: {{web: ip route show default}}
    output: via
  - cut: api                      # of both of its networks
  - call: {{client: "${{hello}}"}}
  - expect: {{process: {{client: {{received: 18}}}}}}
  - join: api
  - wait: {{process: {{client: {{received: 36}}}}}}
    within: 30s
  - drop: {{from: db, to: api, flags: data, count: 1}}
  - call: {{client: "${{hello}}"}}
  - wait: {{process: {{client: {{received: 54}}}}}}
    within: 30s
  - expect: {{segments: {{from: db, to: api, lost: true, count: 1}}}}
  - sysctl: {{db: {{net.ipv4.tcp_fin_timeout: 7}}}}
  - exec: {{db: cat /proc/sys/net/ipv4/tcp_fin_timeout}}
    output: ^7$
  - exec: {{client: "getent hosts www && getent hosts store && getent hosts {{name}}-web"}}
  - signal: {{api: TERM}}
  - wait: {{process: {{api: {{signal: TERM}}}}}}
  - start: api
  - wait: {{process: {{api: EADDRINUSE}}}}
  - stop: web
  - wait: {{process: {{web: {{signal: USR1}}}}}}
"""


ASK = """\
import socket
with socket.create_connection(("localhost", 8080)) as connection:
    connection.sendall(b"theirs\\n")
    assert connection.recv(99) == b"$web api db theirs\\n"
"""


@dataclass(frozen=True)
class Shop:
    """A project of somebody's, by the name of its folder."""

    folder: Path
    client: docker.DockerClient

    def compose(self, *words: str) -> None:
        program = project.find()
        assert program
        command = [str(program), "-f", f"{self.folder}/compose.yaml", *words]
        subprocess.run(command, check=True, capture_output=True)

    def open(self) -> list[Any]:
        """Starts it, and has its database know a line; see `its`."""
        self.compose("up", "-d")
        assert eventually(lambda: self._run("web", ["python3", "-c", ASK])[0] == 0)
        return self.its()

    def its(self) -> list[Any]:
        """All that the engine has of it: when it began, who uses it, and what its volume has."""
        filters: dict[str, Any] = {"label": f"com.docker.compose.project={self.folder.name}"}
        containers = self.client.containers.list(all=True, filters=filters)
        networks = self.client.networks.list(filters=filters, greedy=True)
        volumes = self.client.volumes.list(filters=filters)
        return [
            *sorted((c.id, c.attrs["State"]["StartedAt"], c.status) for c in containers),
            *sorted((n.id, sorted(n.attrs["Containers"])) for n in networks),
            *sorted((v.id, v.attrs["CreatedAt"]) for v in volumes),
            self._run("db", ["cat", "/data/lines"]),
        ]

    def _run(self, service: str, command: list[str]) -> tuple[Any, ...]:
        labels = [
            f"com.docker.compose.project={self.folder.name}",
            f"com.docker.compose.service={service}",
        ]
        (container,) = self.client.containers.list(filters={"label": labels})
        return tuple(container.exec_run(command))

    def scenario(self, text: str = SCENARIO) -> Path:
        path = self.folder / "shop.yaml"
        path.write_text(text)
        return path

    def judged(self, out: Path, text: str = SCENARIO) -> RunResult:
        (case,) = load(self.scenario(text))
        return run(case, "docker", out)

    def change(self, old: str, new: str) -> None:
        path = self.folder / "compose.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    client = docker.from_env()
    base = images.ensure(client.api, DEFAULT_OS, print).peer
    tag, archive = f"labctl-test:{uuid.uuid4().hex[:8]}", io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, text in ("serve.py", SERVE), ("Dockerfile", DOCKERFILE.format(base=base)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    archive.seek(0)
    for told in client.api.build(
        fileobj=archive, custom_context=True, tag=tag, rm=True, decode=True
    ):
        assert "error" not in told, told
    yield tag
    client.images.remove(tag)
    client.close()


@pytest.fixture
def shop(tmp_path: Path, image: str) -> Iterator[Shop]:
    name = f"shop{uuid.uuid4().hex[:6]}"
    folder = tmp_path / name
    folder.mkdir()
    port = 20000 + os.getpid() % 10000
    (folder / "compose.yaml").write_text(COMPOSE.format(image=image, name=name, port=port))
    (folder / "db.env").write_text("NAME=db\n")
    found = Shop(folder, docker.from_env())
    yield found
    found.compose("down", "-t", "0", "-v")
    found.client.close()


def test_three_services_are_killed_and_started_beside_the_project(
    shop: Shop, tmp_path: Path
) -> None:
    before = shop.open()
    assert len(before) == 7
    assert before[-1] == (0, b"theirs\n")
    bench = Bench("docker", tmp_path, uuid.uuid4().hex)
    done = bench.run("run", str(shop.scenario()), "--backend", "docker", "--format", "json")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert bench.left() == []
    assert shop.its() == before
    (found,) = json.loads(done.stdout)["runs"]
    assert {cause["host"]: cause["id"] for cause in found["causes"] if "bind" in cause["id"]} == {
        "db": "bind-fin-wait",
        "api": "bind-fin-wait",
        "web": "bind-time-wait",
    }


def test_every_step_works_on_services(shop: Shop, tmp_path: Path) -> None:
    found = shop.judged(tmp_path, EVERY_STEP.replace("{name}", shop.folder.name))
    assert found.result == "pass", report(found)


def test_a_killed_controller_leaves_nothing_that_the_next_does_not_remove(
    shop: Shop, tmp_path: Path
) -> None:
    before = shop.open()
    bench = Bench("docker", tmp_path, uuid.uuid4().hex)
    slow = SCENARIO.replace("  - kill: db\n", "  - sleep: 60s\n", 1)
    process = bench.start("run", str(shop.scenario(slow)), "--backend", "docker")
    assert process.stderr
    said = []
    for line in process.stderr:
        said.append(line)
        if "received" in line:
            break
    assert "received" in said[-1], said
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [name for name in bench.engine() if name.endswith("_data")]
    down = bench.run("down")
    assert down.returncode == 0, down.stderr
    assert eventually(lambda: bench.left() == []), bench.left()
    assert shop.its() == before


SICK = f"""\
title: A project that does not come up
{HOSTS}
steps:
  - start: client
"""
WITHOUT_DB = f"""\
title: One service is no host, another one has an address of its own
{HOSTS.replace("  db: {service: db}", "")}
params: {{hello: 'send "hello\\n"; recv'}}
steps:
  - wait: {{sockets: {{web: LISTEN, api: LISTEN}}}}
    within: 60s
  - start: client
  - call: {{client: "${{hello}}"}}
  - wait: {{process: {{client: {{received: 18}}}}}}
    within: 30s
  - exec: {{api: ip address}}
    output: 10\\.213\\.7\\.9/24
"""


@pytest.mark.ci
def test_a_service_that_is_not_healthy_is_an_error(shop: Shop, tmp_path: Path) -> None:
    shop.change("grep, -q, ", "grep, -w, ")
    shop.change("retries: 1000", "retries: 2")
    shop.change(":1F40 ", "no such ")
    bench = Bench("docker", tmp_path, uuid.uuid4().hex)
    done = bench.run("run", str(shop.scenario(SICK)), "--backend", "docker")
    assert done.returncode == 4
    assert "api-1 is unhealthy" in " ".join(done.stdout.split())
    assert bench.left() == []


@pytest.mark.ci
def test_a_controller_that_is_killed_at_any_moment(shop: Shop, tmp_path: Path) -> None:
    bench, chance = Bench("docker", tmp_path, uuid.uuid4().hex), random.Random(20)
    for _ in range(KILLS):
        process = bench.start("run", str(shop.scenario()), "--backend", "docker")
        # A random moment is the point: while Compose makes containers, or starts them.
        time.sleep(chance.uniform(0.3, 3.5))
        process.kill()
        process.communicate()
    down = bench.run("down")
    assert down.returncode == 0, down.stderr
    assert eventually(lambda: bench.left() == []), bench.left()


@pytest.mark.ci
def test_an_interruption_while_compose_waits_for_health(shop: Shop, tmp_path: Path) -> None:
    shop.change(":1F40 ", "no such ")
    bench = Bench("docker", tmp_path, uuid.uuid4().hex)
    process = bench.start("run", str(shop.scenario(SICK)), "--backend", "docker")
    filters: dict[str, Any] = {"label": "com.docker.compose.service=api", "health": "starting"}
    assert eventually(
        lambda: any(
            str(tmp_path) in c.labels.get(LEASE, "")
            for c in shop.client.containers.list(filters=filters)
        )
    )
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert bench.left() == []


@pytest.mark.ci
def test_what_is_no_host_runs_beside_the_others(shop: Shop, tmp_path: Path) -> None:
    shop.change("networks: [front, back]", "networks: {front: {ipv4_address: 10.213.7.9}, back: }")
    shop.change("front: {}\n", "front: {ipam: {config: [{subnet: 10.213.7.0/24}]}}\n")
    said: list[str] = []
    (case,) = load(shop.scenario(WITHOUT_DB))
    found = run_case(case, Place("docker"), tmp_path, Silent(), said.append)
    assert found.result == "pass", report(found)
    assert "compose.yaml: no hosts, and not watched: db" in said


@pytest.mark.ci
def test_compose_of_the_distribution(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Debian 12 that is 1.29."""
    theirs = shutil.which("docker-compose", path="/usr/bin")
    if theirs is None:
        pytest.skip("this machine has no Docker Compose of its distribution")
    (tmp_path / "cli-plugins").mkdir()
    (tmp_path / "cli-plugins" / "docker-compose").symlink_to(theirs)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    found = shop.judged(tmp_path)
    assert found.result == "pass", report(found)


@pytest.mark.ci
def test_a_project_in_a_lab_of_python(shop: Shop, tmp_path: Path) -> None:
    text = SCENARIO.replace("compose.yaml", f"{shop.folder}/compose.yaml")
    with labctl.Lab(text, backend="docker", out=tmp_path) as lab:
        lab.kill("web")
        lab.restart("web")
        lab.wait(process={"web": "EADDRINUSE"})
