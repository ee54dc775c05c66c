"""Hosts that are services of a Compose project: what is refused before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labctl.backends import Service
from labctl.ground.errors import LabError, ScenarioError
from labctl.language.scenario import Scenario
from labctl.run.matrix import Matrix
from labctl.run.places import Place
from labctl.run.workflow import load_all
from tests.fake import FakeBackend, play
from tests.played import Labctl

PROJECT = """\
services:
  api:
    image: api
    deploy: {replicas: 1}
  many:
    image: api
    deploy:
      mode: replicated
      replicas: 3
  scaled: {image: api, scale: 2}
  theirs:
    image: api
    network_mode: host
  chosen:
    image: api
    deploy: {replicas: "${N:-2}"}
"""
SCENARIO = """\
title: A project
compose: {file}
hosts:
  server: {{{server}}}
  client: {{calls: "socket; connect server:80"}}
steps:
  - kill: server
"""


def load(folder: Path, server: str, project: str = PROJECT, file: str = "compose.yaml") -> Scenario:
    (folder / "compose.yaml").write_text(project)
    path = folder / "s.yaml"
    path.write_text(SCENARIO.format(server=server, file=file))
    (case,) = load_all([path], {})
    return case


def refused(folder: Path, server: str, **more: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        load(folder, server, **more)
    (mistake,) = caught.value.mistakes
    return str(mistake).removeprefix(f"{folder}/")


def test_a_service_is_a_process_of_its_host(tmp_path: Path) -> None:
    case = load(tmp_path, "service: api, sysctls: {net.ipv4.tcp_fin_timeout: 5}")
    spec = case.processes["server"]
    assert spec.service == Service(str(tmp_path / "compose.yaml"), "api")
    assert (spec.host, spec.watch, spec.run, spec.calls) == ("server", "calls", None, None)
    assert "compose" in case.needs
    assert case.processes["client"].service is None


def test_its_calls_may_be_off_and_processes_beside_it(tmp_path: Path) -> None:
    case = load(tmp_path, "service: api, calls: off, processes: {beside: {calls: socket}}")
    assert case.processes["server"].watch is None
    assert case.processes["beside"].service is None


def test_what_else_compose_says_is_read_by_compose(tmp_path: Path) -> None:
    assert load(tmp_path, "service: chosen").processes["server"].service
    included = "include: [more.yaml]\n" + PROJECT
    assert load(tmp_path, "service: other", included).processes["server"].service


@pytest.mark.parametrize(
    ("server", "line"),
    [
        ("service: ap", "s.yaml:4: unknown service 'ap'; allowed: api, many"),
        ("service: many", "compose.yaml:9: many can't be the host server: it is 3 containers"),
        ("service: scaled", "compose.yaml:10: scaled can't be the host server: it is 2 containers"),
        ("service: theirs", "compose.yaml:13: theirs can't be the host server: its network is"),
        ("service: api, run: x", "s.yaml:4: 'service' and 'run' exclude each other"),
        ("service: api, uid: 5", "s.yaml:4: 'service' and 'uid' exclude each other"),
        ("service: api, addresses: 2", "s.yaml:4: the networks of a project give its"),
    ],
)
def test_what_is_no_host(tmp_path: Path, server: str, line: str) -> None:
    assert refused(tmp_path, server).startswith(line)


def test_every_host_has_an_address_on_each_network(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    (tmp_path / "compose.yaml").write_text(PROJECT)
    text = SCENARIO.format(server="service: api", file="compose.yaml")
    path.write_text(text.replace("client: {", "client: {addresses: 2, "))
    with pytest.raises(ScenarioError, match=r"s.yaml:5: the networks of a project give its"):
        load_all([path], {})


@pytest.mark.parametrize("name", ["server.v6", "server.2", "client.v6"])
def test_its_host_has_one_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "compose.yaml").write_text(PROJECT)
    path = tmp_path / "s.yaml"
    text = SCENARIO.format(server="service: api", file="compose.yaml")
    path.write_text(text.replace("connect server:80", f"connect {name}:80"))
    with pytest.raises(ScenarioError, match=f"unknown host '{name}'; allowed: server, client"):
        load_all([path], {})
    path.write_text(text + f"  - expect: {{sockets: {{client: {{peer: '{name}:80'}}}}}}\n")
    with pytest.raises(ScenarioError, match=f"{name}"):
        load_all([path], {})


def test_a_service_is_one_host(tmp_path: Path) -> None:
    line = "s.yaml:5: the service 'api' is two hosts; keep one"
    assert refused(tmp_path, "service: api}\n  two: {service: api") == line


def test_a_project_of_the_command_line(tmp_path: Path) -> None:
    load(tmp_path, "service: api")
    other = tmp_path / "other.yaml"
    other.write_text("services: {other: {image: x}}")
    with pytest.raises(ScenarioError, match="unknown service 'api'; allowed: other"):
        load_all([tmp_path / "s.yaml"], {}, other)
    (tmp_path / "s.yaml").write_text(SCENARIO.format(server="service: other", file='""'))
    (case,) = load_all([tmp_path / "s.yaml"], {}, other)
    assert case.processes["server"].service == Service(str(other), "other")


def test_a_project_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path, "service: api", file="other.yaml").startswith("s.yaml:2: ")
    assert "No such file" in refused(tmp_path, "service: api", file="other.yaml")
    assert refused(tmp_path, "service: api", file='""').startswith("s.yaml:4: server is a service")
    assert refused(tmp_path, "service: api", project="- x").startswith("compose.yaml:1: ")


RUNS = """\
title: A project runs before the first step
compose: compose.yaml
hosts:
  server: {service: api}
  other: {service: many}
  client: {calls: "socket; await"}
steps:
  - kill: server
  - start: server
"""


def test_all_services_run_before_the_first_step(tmp_path: Path) -> None:
    fake = FakeBackend()
    assert play(RUNS, fake, tmp_path).result == "pass"
    acts = [did for did in fake.log if did.split()[0] in ("start", "begin", "kill", "step")]
    assert acts == ["start server", "start other", "begin", "kill server", "start server"]


def test_a_project_that_does_not_come_up_is_an_error(tmp_path: Path) -> None:
    def fails(_: FakeBackend) -> None:
        raise LabError("Compose did not bring the project up: no", "look")

    fake = FakeBackend({"begin": fails})
    found = play(RUNS, fake, tmp_path)
    assert (found.result, found.reason) == (
        "error",
        "Compose did not bring the project up: no; look",
    )
    assert "kill server" not in fake.log


def test_other_services_are_other_cases(tmp_path: Path) -> None:
    """Results are gone on from only if the Compose file has not changed."""
    case = load(tmp_path, "service: api")
    file = tmp_path / "compose.yaml"
    first = replace(case, compose="")

    def folder(*cases: Scenario) -> Path:
        return Matrix(cases, {}, tmp_path).folder(Place("docker"))

    found = [folder(first), folder(case)]
    for text in ("services: {a: {image: a}}", "services: {a: {image: b}}"):
        file.write_text(text)
        found.append(folder(case))
        assert folder(case, first) == found[-1]
    assert len({*found}) == 4


@pytest.mark.parametrize("file", ["compose.yaml", "lacking.yaml"])
def test_a_matrix_takes_another_compose_file(tmp_path: Path, labctl: Labctl, file: str) -> None:
    (tmp_path / "compose.yaml").write_text(PROJECT)
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO.format(server="service: api", file="nowhere.yaml"))
    words = ("--backend", "netns", "--show", "--out", str(tmp_path / "out"))
    status, out, err = labctl("matrix", str(path), "--compose", str(tmp_path / file), *words)
    if file == "compose.yaml":
        assert "never run" in out
    else:
        assert status == 2
        assert "lacking.yaml: No such file" in err
