"""What it costs three containers that they are watched: how long a byte takes from one to another
and back."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import docker

NAMES = ("web", "db", "cache")
ECHO = """
import socket, threading
def serve(near):
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := near.recv(4096):
        near.sendall(data)
server = socket.create_server(("", 8000))
while True:
    threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
"""
LOAD = """
import socket, sys, time
near = socket.create_connection((sys.argv[1], 8000))
near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
until = time.monotonic()
while True:
    for _ in range(10):
        near.send(b"x" * 100)
        near.recv(100)
    until += 10 / float(sys.argv[2])
    time.sleep(max(0, until - time.monotonic()))
"""
RATE = 3000
"""Round trips a second of the load: as many watched as unwatched."""
PING = """
import socket, statistics, sys, time
near = socket.create_connection((sys.argv[1], 8000))
near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
took = []
for _ in range(3000):
    began = time.perf_counter()
    near.send(b"x")
    near.recv(1)
    took.append(time.perf_counter() - began)
    time.sleep(0.0005)
print(statistics.median(took) * 1e6)
"""


@contextmanager
def containers(image: str) -> Iterator[tuple[Callable[[], float], Callable[[], float]]]:
    """Three containers, a load between two of them, and what measures a round trip beside it, in
    microseconds: while all three are watched, and while nobody does."""
    mark = f"bench-{uuid.uuid4().hex[:8]}"
    with closing(docker.from_env()) as client:
        network = client.networks.create(mark)
        made: list[Any] = []
        try:
            for name in NAMES:
                made.append(
                    client.containers.run(
                        image, ["-c", ECHO], entrypoint="python3", name=f"{mark}-{name}",
                        detach=True, network=mark,
                    )
                )  # fmt: skip
            made[2].exec_run(["python3", "-c", LOAD, f"{mark}-web", str(RATE)], detach=True)
            ping = partial(round_trip, made[0], f"{mark}-db")
            yield partial(watched, ping, [container.name for container in made]), ping
        finally:
            for container in made:
                container.remove(force=True)
            network.remove()


def round_trip(container: Any, to: str) -> float:
    """The median, in microseconds."""
    done = container.exec_run(["python3", "-c", PING, to])
    return float(done.output)


def watched(measure: Callable[[], float], names: list[str]) -> float:
    """What something measures while containers are watched."""
    words = [word for name in names for word in ("--container", name)]
    with (
        tempfile.TemporaryDirectory() as out,
        subprocess.Popen(
            [sys.executable, "-m", "labctl", "watch", *words, "--out", out],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as watch,
    ):  # fmt: skip
        assert watch.stderr
        for _ in names:  # each listens
            watch.stderr.readline()
        try:
            return measure()
        finally:
            watch.send_signal(signal.SIGINT)
            watch.communicate()
