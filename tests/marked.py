"""Runs of labctl that are marked, so that everything that comes of them can be found, however they
end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labctl.backends.docker.sweep import LEASE

DEADLINE = 120.0
"""Seconds, on a busy machine: an engine may take a minute to remove what four labs have."""
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
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "LABCTL_TEST_MARK": self.mark,
            "XDG_RUNTIME_DIR": str(self.folder / "runtime"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            **self.variables,
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
                all=True, filters={"label": LEASE}, ignore_removed=True
            )
            everything += client.networks.list(filters={"label": LEASE})
            everything += client.volumes.list(filters={"label": LEASE})
            ours = str(self.folder)
            return [x.name for x in everything if ours in labels(x.attrs).get(LEASE, "")]
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
