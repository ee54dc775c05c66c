"""What it costs three containers that they are watched: how long a byte takes from one to another
and back, all the time and seldom, and an HTTP request on an open connection."""

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
import http.server, socket, threading
class Web(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"x" * 100)
def serve(near):
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := near.recv(4096):
        near.sendall(data)
web = http.server.ThreadingHTTPServer(("", 8001), Web)
threading.Thread(target=web.serve_forever, daemon=True).start()
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
import http.client, socket, statistics, sys, time
near = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]))
near.connect()
near.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
def byte():
    near.sock.send(b"x")
    near.sock.recv(1)
def request():
    near.request("GET", "/")
    near.getresponse().read()
trip = request if near.port == 8001 else byte
gap, took, begun = float(sys.argv[3]), [], time.perf_counter()
while (began := time.perf_counter()) < begun + 6:
    trip()
    if began > begun + 2:  # the watch knows this connection by then
        took.append(time.perf_counter() - began)
    time.sleep(gap)
print(statistics.median(took) * 1e6)
"""
KINDS = {"byte": (8000, 0.0005), "request": (8001, 0.0005), "seldom": (8000, 0.15)}
"""The port, and seconds from one round trip to the next."""
DUMP = ["-Z", "root", "-i", "eth0", "-s", "176", "-w", "/dev/null", "tcp"]


@contextmanager
def containers(image: str) -> Iterator[Callable[[str], list[Callable[[], float]]]]:
    """Three containers and a load between two of them. By its kind, what measures a round trip
    beside it, in microseconds: while all three are watched, while tcpdump captures in each, and
    while nobody does."""
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
            names = [container.name for container in made]

            def sides(kind: str) -> list[Callable[[], float]]:
                ping = partial(round_trip, made[0], f"{mark}-db", *KINDS[kind])
                return [
                    partial(watched, ping, names), partial(dumped, ping, image, client, names), ping
                ]  # fmt: skip

            yield sides
        finally:
            for container in made:
                container.remove(force=True)
            network.remove()


def round_trip(container: Any, to: str, port: int, gap: float) -> float:
    """The median, in microseconds."""
    done = container.exec_run(["python3", "-c", PING, to, str(port), str(gap)])
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


def dumped(measure: Callable[[], float], image: str, client: Any, names: list[str]) -> float:
    """What it measures while tcpdump captures in each, and nobody watches."""
    made: list[Any] = []
    try:
        for name in names:
            made.append(
                client.containers.run(
                    image, DUMP, entrypoint="tcpdump", network_mode=f"container:{name}", detach=True
                )
            )
        for container in made:
            next(line for line in container.logs(stream=True, follow=True) if b"listening" in line)
        return measure()
    finally:
        for container in made:
            container.remove(force=True)
