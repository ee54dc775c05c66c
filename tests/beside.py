"""`labctl watch` beside programs and containers of somebody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest

from labctl.backends.docker import images
from labctl.backends.docker.sweep import LEASE
from labctl.judge.recorded import load
from labctl.record.history import History
from labctl.run.places import DEFAULT_OS

DEADLINE = 60.0
IN_A_NETWORK = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]

# Each waits for a line, does its work, and says a line.
PROGRAM = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = socket.create_server(("127.0.0.1", 8000))
other = socket.create_server(("127.0.0.1", 8001))
def packets():
    (line,) = [line for line in open("/proc/net/dev") if "lo:" in line]
    return int(line.replace(":", " ").split()[2])
print("ready", flush=True)
"""


class Program:
    """A program in a network of its own."""

    def __init__(self, text: str) -> None:
        self._process = subprocess.Popen(
            [*IN_A_NETWORK, sys.executable, "-c", PROGRAM + text],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.hear() == "ready"

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def program() -> Iterator[Callable[[str], Program]]:
    begun: list[Program] = []

    def begin(text: str) -> Program:
        begun.append(Program(text))
        return begun[-1]

    yield begin
    for each in begun:
        each.end()


class Watch:
    """A `labctl watch` under way."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        environment = {**os.environ, "XDG_STATE_HOME": str(folder.parent / "state")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "labctl", "watch", *words, "--out", str(folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip

    def await_line(self, piece: str) -> None:
        """Waits until it says that."""
        assert self.process.stderr
        said = []
        for line in self.process.stderr:
            said.append(line)
            if piece in line:
                return
        pytest.fail(f"it never said {piece!r}: {''.join(said)}")

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ends it; returns its status."""
        self.process.send_signal(number)
        self.process.communicate(timeout=DEADLINE)
        return self.process.returncode

    @property
    def record(self) -> Path:
        (found,) = self.folder.iterdir()
        return found

    @property
    def history(self) -> History:
        return load(self.record).history


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watch]]:
    begun: list[Watch] = []

    def begin(*words: str) -> Watch:
        begun.append(Watch(tmp_path / f"watch-{len(begun)}", *words))
        return begun[-1]

    yield begin
    for each in begun:
        each.process.kill()
        each.process.communicate()


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


SERVE = """
import socket
server = socket.create_server(("", 8000))
while True:
    near, _ = server.accept()
    near.recv(10)
    near.close()
"""
CONNECT = """
import socket, sys
with socket.create_connection((sys.argv[1], 8000)) as near:
    near.send(b"x")
    near.recv(1)
"""


class Containers:
    """Containers of somebody else, on a network of their own."""

    def __init__(self) -> None:
        self.client = docker.from_env()
        self.mark = f"watched-{uuid.uuid4().hex[:8]}"
        self._image = images.ensure(self.client.api, DEFAULT_OS, print).peer
        self._network = self.client.networks.create(self.mark)
        self._made: dict[str, Any] = {}

    def run(self, name: str, network: str = "", **labels: str) -> str:
        """Starts a server, on their network or in another network mode; returns its name."""
        whole = f"{self.mark}_{name}"
        self._made[whole] = self.client.containers.run(
            self._image, ["-c", SERVE], entrypoint="python3", name=whole, detach=True,
            network_mode=network or self.mark,
            labels={k.replace("_", "."): v for k, v in labels.items()},
        )  # fmt: skip
        return whole

    def restart(self, name: str) -> None:
        self._made[name].restart(timeout=0)

    def remove(self, name: str) -> None:
        self._made.pop(name).remove(force=True)

    def connect(self, name: str, to: str) -> None:
        """One connects to another, as soon as that listens."""

        def done() -> bool:
            command = ["python3", "-c", CONNECT, to]
            return bool(self._made[name].exec_run(command).exit_code == 0)

        eventually(done, f"{name} never reaches {to}")

    def text(self, name: str, *command: str) -> str:
        return str(self._made[name].exec_run([*command]).output.decode())

    def watchers(self) -> list[str]:
        """What is there beside these containers, and began with them."""
        found = self.client.api.containers(all=True, filters={"label": LEASE})
        beside = {f"container:{made.id}" for made in self._made.values()}
        return [c["Names"][0] for c in found if c["HostConfig"]["NetworkMode"] in beside]

    def close(self) -> None:
        for made in self._made.values():
            made.remove(force=True)
        self._network.remove()


@pytest.fixture
def containers() -> Iterator[Containers]:
    with closing(Containers()) as found, closing(found.client):
        yield found
