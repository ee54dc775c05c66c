"""Several Docker engines of our own, joined to a swarm: each in namespaces of its own, with a veth
to a bridge in one more. Nothing of it is on the machine's network, and all of it ends with us.

    bridge, in a network namespace of its own, where it is 198.18.0.254
      |-- 198.18.0.1: engine 1, a manager
      |-- 198.18.0.2: engine 2, a worker
      `-- 198.18.0.3: engine 3, a worker

Each has a clock of its own, see AHEAD.

See engine.py for how one is started.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import docker

from tests.certificates import Keys, authority, signed
from tests.engine import DOCKERD_OPTIONS, INIT, NAMESPACES, STOP_DEADLINE, await_engine

BRIDGE = """
ip link add bridge type bridge && ip address add 198.18.0.254/24 dev bridge &&
ip link set bridge up && echo up && exec cat
"""
JOINED = "read -r _\n"
"""The first line of input says that it is on the bridge: a node of a swarm needs that to start."""
AHEAD = (0, 5000, 77777)
"""By how many seconds the clocks of engines are ahead of the machine's: time_namespaces(7)."""
HOOK = "type filter hook input priority -200;"
SHARED = Path("/dev/shm")
ADDRESS, PORT = "198.18.0.{}", 2376
POOL, SIZE = "198.19.128.0/17", 26
"""Never a swarm without: its default pool is 10.0.0.0/8."""


@dataclass
class Engine:
    """One of them, whose clock is so many seconds `ahead`."""

    number: int
    folder: Path
    socket: Path
    ahead: int
    keys: Keys
    process: subprocess.Popen[bytes] | None = None
    client: docker.DockerClient = field(init=False)

    @property
    def where(self) -> str:
        return f"unix://{self.socket}"

    @property
    def address(self) -> str:
        return ADDRESS.format(self.number)

    @property
    def url(self) -> str:
        """Where it answers on the bridge, behind TLS."""
        return f"tcp://{self.address}:{PORT}"

    def has_images_of(self, other: Engine) -> None:
        """Takes the images of another before it starts; files are never changed in place."""
        (self.folder / "data").mkdir()
        for part in ("image", "overlay2"):
            source = other.folder / "data" / part
            subprocess.run(["cp", "-al", source, self.folder / "data"], check=True)

    def start(self, bridge: int) -> None:
        """Starts it, with whatever it had before, and joins it to the bridge of that process."""
        log = self.folder / "dockerd.log"
        options = [
            f"--data-root={self.folder}/data", f"--host={self.where}", f"--host={self.url}",
            "--tlsverify", f"--tlscacert={self.keys.ca}", f"--tlscert={self.keys.cert}",
            f"--tlskey={self.keys.key}", *DOCKERD_OPTIONS,
        ]  # fmt: skip
        clock = ["--time", f"--monotonic={self.ahead}", f"--boottime={self.ahead}"]
        with log.open("ab") as said:
            self.process = subprocess.Popen(
                [
                    *NAMESPACES,
                    "--uts",
                    *(clock if self.ahead else ()),
                    "sh",
                    "-c",
                    JOINED + INIT,
                    "sh",
                    *options,
                ],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        await_namespace(self.process.pid)
        end = f"to{self.number}"
        _inside(bridge, "ip link del", end, check=False)
        peer = f"type veth peer name eth0 netns {self.process.pid}"
        _inside(bridge, f"ip link add {end} {peer}")
        _inside(bridge, f"ip link set {end} master bridge up")
        _inside(self.process.pid, f"ip address add {self.address}/24 dev eth0")
        _inside(self.process.pid, "ip link set eth0 up")
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        self.client = await_engine(self.where, self.process, log)

    def kill(self) -> None:
        """Ends it and all that it has, at once: the first process of its namespaces is killed."""
        assert self.process and self.process.stdin
        self.client.close()
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process = None


def await_namespace(pid: int) -> None:
    """Waits until a process has a network namespace of its own."""
    deadline, ours = time.monotonic() + STOP_DEADLINE, Path("/proc/self/ns/net").readlink()
    while Path(f"/proc/{pid}/ns/net").readlink() == ours:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _inside(pid: int, *words: str, check: bool = True) -> None:
    command = ["nsenter", "-t", str(pid), "-n", *" ".join(words).split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr


@dataclass
class Swarm:
    """A bridge, and the engines on it, which answer there too, to clients with these `keys`."""

    bridge: int
    engines: Sequence[Engine]
    keys: Keys

    def start(self, engine: Engine) -> None:
        engine.start(self.bridge)

    def beside(self, *words: object) -> list[str]:
        """The command that runs one on the bridge's network."""
        return ["nsenter", "-t", str(self.bridge), "-n", *map(str, words)]

    def plug(self, engine: Engine, state: str) -> None:
        """Puts the link between an engine and the bridge `up` or `down`."""
        _inside(self.bridge, f"ip link set to{engine.number} {state}")

    def block(self, engine: Engine, rule: str) -> None:
        """Has an engine's namespace drop what arrives by a rule of nft(8), or nothing."""
        assert engine.process
        text = "add table inet block\ndelete table inet block\n"
        if rule:
            text += f"table inet block {{ chain in {{\n{HOOK}\n{rule} drop\n}}\n}}\n"
        command = ["nsenter", "-t", str(engine.process.pid), "-n", "nft", "-f", "-"]
        subprocess.run(command, input=text.encode(), check=True)


@contextmanager
def swarm(images: Sequence[str], source: docker.DockerClient) -> Iterator[Swarm]:
    """Three engines in a swarm, each with another clock. They get images from `source`."""
    memory = SHARED if SHARED.is_dir() else None  # faster to fill, and to remove
    with tempfile.TemporaryDirectory("", "labctl-swarm-", memory, True) as folder:
        bridge = subprocess.Popen(
            ["unshare", "--net", "--fork", "--kill-child", "sh", "-c", BRIDGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert bridge.stdin and bridge.stdout
        found: list[Engine] = []
        try:
            assert bridge.stdout.readline() == b"up\n"
            ours = authority(Path(folder), "ours")
            client = signed(ours, "client")
            for number, ahead in enumerate(AHEAD, 1):
                own = Path(folder) / str(number)
                own.mkdir()
                keys = signed(ours, str(number), ADDRESS.format(number))
                engine = Engine(number, own, own / "docker.sock", ahead, keys)
                found.append(engine)
                if number > 1:
                    engine.has_images_of(found[0])
                engine.start(bridge.pid)
                if number == 1:
                    copied(images, source, engine.client)
            _join(found)
            yield Swarm(bridge.pid, found, client)
        finally:
            for engine in found:
                if engine.process:
                    engine.kill()  # an end in order takes a swarm half a minute
            bridge.stdin.close()
            bridge.wait(STOP_DEADLINE)
            bridge.stdout.close()


def _join(engines: Sequence[Engine]) -> None:
    first, *others = engines
    at = f"{first.address}:2377"
    first.client.swarm.init(at, default_addr_pool=[POOL], subnet_size=SIZE)
    first.client.swarm.reload()
    token = first.client.swarm.attrs["JoinTokens"]["Worker"]
    for each in others:
        each.client.swarm.join([at], token, advertise_addr=each.address)


def copied(images: Sequence[str], source: docker.DockerClient, other: docker.DockerClient) -> None:
    """Saves images of one engine, and loads them at another."""
    where = f"{source.api.base_url}/v{source.api.api_version}/images/get"
    with source.api.get(where, params={"names": list(images)}, stream=True) as saved:
        other.images.load(cast(Any, saved.iter_content(1 << 20)))
