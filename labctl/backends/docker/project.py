"""A Compose project in a lab. Compose, the program, reads it, makes its containers and volumes, and
starts them in its own order. The networks and the holders on them are the lab's own. Its removal
takes no Compose: everything has labels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from labctl.backends import HostSpec, ProcessSpec, Progress
from labctl.backends.capabilities import CAPABILITIES, Lack
from labctl.backends.docker import configs, images
from labctl.backends.docker.compose import Made, Plan
from labctl.backends.docker.engine import translated
from labctl.backends.docker.sweep import RUN
from labctl.ground import children
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, Unavailable
from labctl.ground.resources import home

if TYPE_CHECKING:
    from docker.api.client import APIClient

NAME = "docker-compose"
PLUGINS = [
    Path("/usr") / rest / "docker" / "cli-plugins"
    for rest in ("local/lib", "local/libexec", "lib", "libexec")
]
SERVICE = "com.docker.compose.service"
HINT = "`labctl doctor` says which Compose it is; `labctl report --last` shows what services did"
ABSENT = Lack("no Docker Compose here", CAPABILITIES["compose"].hint)


def find() -> Path | None:
    """Compose: the user's own plugin of Docker, the program of the extra `compose`, a
    plugin of this machine, or what is on the PATH."""
    own = Path(os.environ.get("DOCKER_CONFIG") or home() / ".docker") / "cli-plugins"
    for folder in (own, Path(sys.executable).parent, *PLUGINS):
        if os.access(folder / NAME, os.X_OK):
            return folder / NAME
    found = shutil.which(NAME)
    return Path(found) if found else None


def version() -> str | None:
    """The version of Compose and where it is; None if there is none, or it does not run."""
    program = find()
    if program is None:
        return None
    try:
        done = subprocess.run([program, "version", "--short"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"Compose {done.stdout.decode().strip().removeprefix('v')}, {program}"


def absent() -> Lack | None:
    """Why no project can run here, if so."""
    return None if find() else ABSENT


@dataclass(frozen=True)
class Compose:
    """Compose, for a project's file."""

    program: Path
    file: Path

    @classmethod
    def of(cls, file: str) -> Compose:
        """Raises Unavailable without Compose."""
        program = find()
        if program is None:
            raise Unavailable(*ABSENT)
        return cls(program, Path(file).absolute())

    def config(self) -> dict[str, Any]:
        """The project as Compose reads it; each service has its `image`. Raises LabError."""
        words = ["-f", str(self.file), "config"]
        try:
            found = json.loads(self._run([*words, "--format", "json"], "read the project"))
            prefix = f"{found['name']}-"
        except (LabError, ValueError):  # Compose 1 prints YAML, and not the name
            found = yaml.safe_load(self._run(words, "read the project"))
            prefix = f"{self._old_name()}_"
        for name, service in found["services"].items():
            service.setdefault("image", prefix + name)
        return dict(found)

    def build(self, service: str) -> None:
        """Builds the image of a service, under the project's own name. Raises LabError."""
        self._run(["-f", str(self.file), "build", service], f"build the image of {service}")

    def create(self, name: str, document: Mapping[str, Any]) -> None:
        """Makes all that a project has, under a name. Raises LabError."""
        self._up(name, document, "--no-start")

    def start(self, name: str, document: Mapping[str, Any]) -> None:
        """Starts it; returns when everything has begun, and is as healthy as others in it want.
        Raises LabError."""
        self._up(name, document, "-d")

    def _up(self, name: str, document: Mapping[str, Any], how: str) -> None:
        words = ["-p", name, "-f", "-", "up", how]
        self._run(words, "bring the project up", json.dumps(document))

    def _run(self, words: list[str], action: str, said: str = "") -> str:
        """What it prints. An interruption ends it, and so does the end of this process. `action`
        completes "Compose did not ..."."""
        with subprocess.Popen(
            [*(children.TETHERED if children.possible() else ()), self.program, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.file.parent,
            start_new_session=True,  # Ctrl-C is for us
        ) as process:
            try:
                printed, complained = process.communicate(said)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise LabError(f"Compose did not {action}: {reason(complained)}", HINT)
        return printed

    def _old_name(self) -> str:
        """What Compose 1 calls the project."""
        text = os.environ.get("COMPOSE_PROJECT_NAME") or self.file.parent.name
        return re.sub(r"[^-_a-z0-9]", "", text.lower())


def reason(complained: str) -> str:
    """Why Compose failed: its last line; what Compose 1 adds then does not count."""
    lines = [line.strip() for line in complained.splitlines() if line.strip()]
    for line, after in pairwise(lines):
        if line.startswith("ERROR: "):
            return line.removeprefix("ERROR: ")
        if line.endswith("because:"):
            return f"{line} {after}"
    return lines[-1] if lines else "it does not say why"


class Project:
    """A project in a lab: what it is there, and what it was made from."""

    def __init__(self, compose: Compose, plan: Plan) -> None:
        self.plan = plan
        self._compose = compose
        self._commands: dict[str, images.Command] = {}
        self._name, self._document = "", dict[str, Any]()

    @classmethod
    def read(cls, processes: Sequence[ProcessSpec]) -> Project | None:
        """The project of these processes, if some are services. Raises LabError."""
        held = {process.service.name: process for process in processes if process.service}
        files = {process.service.file for process in processes if process.service}
        if not files:
            return None
        (file,) = files
        compose = Compose.of(file)
        return cls(compose, Plan.of(compose.config(), held))

    @property
    def hosts(self) -> set[str]:
        """The hosts that are services."""
        return {process.host for process in self.plan.held.values()}

    def provide(self, client: APIClient, progress: Progress) -> None:
        """Has the images that are still missing built or pulled. Raises LabError."""
        if self.plan.said:
            progress(f"{self._compose.file.name}: {self.plan.said}")
        for name, service in self.plan.services.items():
            image = service["image"]
            if "build" in service and not images.present(client, image):
                progress(f"building {image}")
                self._compose.build(name)
            self._commands[name] = images.obtain(client, image, progress)

    def create_network(
        self, client: APIClient, name: str, key: str, labels: Mapping[str, str]
    ) -> str:
        """Makes a network of the project, by another name, and returns its id."""
        from docker.types import IPAMConfig, IPAMPool

        how = self.plan.networks()[key]
        pools = [
            IPAMPool(pool["subnet"], pool.get("ip_range"), pool.get("gateway"))
            for pool in how["pools"]
        ]
        made = client.create_network(
            name,
            driver="bridge",
            internal=how["internal"],
            options=how["options"],
            ipam=IPAMConfig(pool_configs=pools),
            labels=dict(labels),
        )
        return str(made["Id"])

    def joins(self, host: str, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The networks of a host, and how it is known there; makes its holder's configuration that
        of its service."""
        for service, process in self.plan.held.items():
            if process.host == host:
                configs.of_service(config, *self.plan.holder(service))
        return self.plan.joins(HostSpec(host))

    def create(self, client: APIClient, name: str, made: Made) -> dict[str, str]:
        """Has Compose make everything else; returns the containers by process."""
        self._name, self._document = name.lower(), self.plan.transformed(made, self._commands)
        self._compose.create(self._name, self._document)
        with translated("list the project's containers"):
            filters = {"label": [f"{RUN}={made.labels[RUN]}"]}
            listed = client.containers(all=True, filters=filters)
        ids = {found["Labels"].get(SERVICE): str(found["Id"]) for found in listed}
        return {process.name: ids[service] for service, process in self.plan.held.items()}

    def start(self) -> None:
        """Has Compose start everything; see `Compose.start`."""
        self._compose.start(self._name, self._document)
