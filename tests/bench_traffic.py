"""Many short connections, in a lab or between two bare network namespaces: as a program it does the
latter, in a network namespace of its own, and says how long the connections took."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

CONNECTIONS = 2_000
SERVE = """
import socket
server = socket.create_server(("", 8000), backlog=100)
while True:
    server.accept()[0].close()
"""
CONNECT = f"""
import socket, sys, time
began = time.monotonic()
for _ in range({CONNECTIONS}):
    with socket.create_connection((sys.argv[1], 8000)) as s:
        s.recv(1)
print(time.monotonic() - began)
"""
SCENARIO = f"""\
title: Many short connections
hosts:
  server: {{run: [{sys.executable}, -c, {json.dumps(SERVE)}]}}
  client: {{run: [{sys.executable}, -c, {json.dumps(CONNECT)}, server]}}
steps:
  - start: server
  - wait: {{sockets: {{server: LISTEN}}}}
  - start: client
  - wait: {{process: {{client: exited}}}}
    within: 100s
"""
BUSY = """\
title: Fifty connections a second
params: {seconds: 60}
hosts:
  server:
    run:
      - python3
      - -c
      - |
        import socket
        server = socket.create_server(("", 8000), backlog=100)
        while True:
            server.accept()[0].close()
  client:
    run:
      - python3
      - -c
      - |
        import socket, sys, time
        began = time.monotonic()
        for n in range(50 * int(sys.argv[1])):
            time.sleep(max(0, began + n / 50 - time.monotonic()))
            with socket.create_connection(("server", 8000)) as s:
                s.recv(1)
      - "${seconds}"
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {process: {client: exited}}
    within: 1000s
expect:
  - segments: {from: client, lost: true, count: 0}
"""
CLONE_NEWNET = 0x40000000


def seconds_in(history: Path) -> float:
    """How long the client said that it took, in a recorded run."""
    events = map(json.loads, history.read_text("utf-8").splitlines())
    said = [e for e in events if e["kind"] == "output" and e["process"] == "client"]
    return float("".join(e["text"] for e in said))


def listening() -> bool:
    """Whether somebody does here, on the server's port."""
    command = ["ss", "-Hltn", "sport = 8000"]
    return bool(subprocess.run(command, capture_output=True, check=True).stdout)


def main() -> None:
    ours, theirs = socket.socketpair()
    client = os.fork()
    if not client:
        ctypes.CDLL(None).unshare(CLONE_NEWNET)
        theirs.send(b"x")
        theirs.recv(1)
        os.execv(sys.executable, [sys.executable, "-c", CONNECT, "198.18.0.1"])
    ours.recv(1)
    for words in (
        f"link add name near type veth peer name far netns {client}",
        "addr add 198.18.0.1/24 dev near",
        "link set near up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    inside = ["nsenter", "--net", "--target", str(client), "ip"]
    for words in ("addr add 198.18.0.2/24 dev far", "link set far up"):
        subprocess.run([*inside, *words.split()], check=True)
    with subprocess.Popen([sys.executable, "-c", SERVE]) as server:
        while not listening():
            time.sleep(0.01)
        ours.send(b"x")
        os.waitpid(client, 0)
        server.kill()


if __name__ == "__main__":
    main()
