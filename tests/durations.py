"""How long FIN_WAIT_2 and TIME_WAIT last: python tests/durations.py OPTION...

The options are those of `labctl run`, such as --kernel 6.1 --virtual-time. Connections of each kind
begin one after the other, so that they meet the kernel's timer wheel at different moments (it is
late by up to an eighth: kernel/time/timer.c). The table in docs/kernels.md
is of this.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from labctl.judge import recorded
from labctl.probes.sockets import Address, State
from labctl.record.events import Event, SocketsEvent

KINDS = {8000: State.TIME_WAIT, 8001: State.FIN_WAIT_2}
"""The server closes first on both ports; on the second its client never does."""
SCENARIO = """\
title: How long states last, 24 connections of each kind
hosts:
  server:
    sysctls: {net.ipv4.tcp_fin_timeout: 5, net.ipv4.tcp_rfc1337: 1}
    run:
      - python3
      - -c
      - |
        import selectors, socket
        selector = selectors.DefaultSelector()
        for port in 8000, 8001:
            selector.register(socket.create_server(("", port)), selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                key.fileobj.accept()[0].close()
  client:
    run:
      - python3
      - -c
      - |
        import socket, time
        kept = []
        for number in range(24):
            with socket.create_connection(("server", 8000)) as connection:
                connection.recv(1)
            kept.append(socket.create_connection(("server", 8001)))
            time.sleep(0.375)
        time.sleep(1000)
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - sleep: 75s
"""


def lasted(events: Iterable[Event]) -> dict[State, list[float]]:
    """For how many seconds each of the server's connections was seen in the state of its port."""
    began: dict[tuple[State, Address], float] = {}
    found: dict[State, list[float]] = {state: [] for state in KINDS.values()}
    for event in events:
        if not isinstance(event, SocketsEvent) or event.host != "server":
            continue
        seen = {
            (socket.state, socket.remote)
            for socket in event.sockets
            if KINDS.get(socket.local.port or 0) is socket.state
        }
        for gone in began.keys() - seen:
            found[gone[0]].append(event.t - began.pop(gone))
        for one in seen:
            began.setdefault(one, event.t)
    return found


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder, "durations.yaml")
        scenario.write_text(SCENARIO, "utf-8")
        out = Path(folder, "out")
        command = [sys.executable, "-m", "labctl", "run", str(scenario), "--out", str(out)]
        if status := subprocess.run([*command, *sys.argv[1:]], check=False).returncode:
            return status
        run = recorded.load(out / "durations")
        found = lasted(run.history.events)
    for state, times in found.items():
        print(f"{state}: {statistics.mean(times):.2f} s, of {len(times)}; {run.where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
