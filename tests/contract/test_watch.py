"""`labctl watch` beside real programs: what it records, and that nothing of it stays."""

from __future__ import annotations

import os
import re
import signal
import socket
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
from labctl.judge.recorded import load
from labctl.judge.rejudge import judge
from labctl.probes.segments import FILE_HEADER
from labctl.probes.traffic import Traffic
from labctl.record.events import CallEvent, ProcessEvent, SocketsEvent, StateEvent, TroubleEvent
from labctl.record.history import History
from labctl.run.places import DEFAULT_OS
from tests.terminals import on_a_terminal

DEADLINE = 60.0
IN_A_NETWORK = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]
BUSY = 30_000
COLOUR = re.compile(r"\x1b\[(?:\d+;)*3\d")

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
CONNECTS = """
input()
near = socket.create_connection(("127.0.0.1", 8000))
far, _ = server.accept()
socket.create_connection(("127.0.0.1", 8001)).close()
near.shutdown(socket.SHUT_WR)
print("done", flush=True)
input()
"""
TALKS = f"""
near = socket.create_connection(("127.0.0.1", 8000))
near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
far, _ = server.accept()
input()
before = packets()
while packets() - before < {BUSY}:
    for _ in range(100):
        near.send(b"x"); far.recv(1); far.send(b"y"); near.recv(1)
print(packets() - before, flush=True)
input()
print(packets() - before, flush=True)
input()
"""
# Each of these fails a call, or has the other end of a connection fail one, and runs on.
BINDS = """
input()
new = socket.socket()
try:
    new.bind(("127.0.0.1", 8000))
except OSError as exc:
    print(exc.errno, flush=True)
input()
print("runs on", flush=True)
input()
"""
RESETS = """
import struct
input()
reached = socket.create_server(("", 8080))
print("listens", flush=True)
far, _ = reached.accept()
far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
far.close()
input()
"""
IS_RESET = """
input()
near = socket.create_connection(("198.18.0.1", 8080))
try:
    near.recv(1)
except OSError as exc:
    print(exc.errno, flush=True)
input()
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


def seen(history: History) -> set[str]:
    """All states that looks showed."""
    looks = [event for event in history.events if isinstance(event, SocketsEvent)]
    return {str(socket.state) for look in looks for socket in look.sockets}


def children(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(child) for child in text.split()}


@pytest.mark.netns
def test_the_network_of_a_process(
    program: Callable[[str], Program], watch: Callable[..., Watch], tmp_path: Path
) -> None:
    watched = program(CONNECTS)
    found = watch("--pid", str(watched.pid), "--port", "8000")
    found.await_line("LISTEN 127.0.0.1:8000")
    watched.go_on()
    assert watched.hear() == "done"
    found.await_line("FIN-WAIT-2")
    assert found.end() == 0
    host, history = f"pid-{watched.pid}", found.history
    assert load(found.record).result == "pass"
    assert {"LISTEN", "FIN-WAIT-2", "CLOSE-WAIT"} <= seen(history)
    ports = {s.local.port for s in history.sockets[host].sockets if str(s.state) == "LISTEN"}
    assert ports == {8000}
    sent = [(s.source, s.target, " ".join(s.flags)) for s in history.segments()]
    assert [flags for _, _, flags in sent][:3] == ["SYN", "SYN ACK", "ACK"]
    assert all(":8000" in source + target for source, target, _ in sent)
    traced = [event for event in history.events if isinstance(event, StateEvent)]
    assert all(":8000" in event.local + event.remote for event in traced)
    assert traced or (host, "trace") in history.trouble
    claims = tmp_path / "claims.yaml"
    claims.write_text(
        f"title: t\nhosts: {{{host}: {{run: python3}}}}\nsteps: []\nexpect:\n"
        f"  - sockets: {{{host}: [LISTEN, FIN-WAIT-2, CLOSE-WAIT]}}\n"
        f"  - process: {{{host}: running}}\n"
    )
    assert [verdict.result for verdict in judge(found.record, claims)] == ["pass", "unknown"]


@pytest.mark.netns
def test_every_packet_is_captured_or_counted(
    program: Callable[[str], Program], watch: Callable[..., Watch]
) -> None:
    watched = program(TALKS)
    found = watch("--pid", str(watched.pid))
    found.await_line("ESTAB")
    watched.go_on()
    least = int(watched.hear())
    assert found.end() == 0
    watched.go_on()
    most = int(watched.hear())  # the kernel may have acknowledged something since
    host, history = f"pid-{watched.pid}", found.history
    data = (found.record / f"{host}.pcap").read_bytes()[len(FILE_HEADER) :]
    missed = [
        int(event.text.split()[0])
        for event in history.events
        if isinstance(event, TroubleEvent) and "packets were not captured" in event.text
    ]
    traffic = Traffic()
    traffic.add(host, data)
    assert least <= len([*traffic.observations()]) + sum(missed) <= most


@pytest.mark.netns
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays(
    program: Callable[[str], Program], watch: Callable[..., Watch], how: signal.Signals
) -> None:
    watched = program(CONNECTS)
    found = watch("--pid", str(watched.pid))
    found.await_line("LISTEN")
    ours = children(found.process.pid)
    assert ours
    found.end(how)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ours), "watchers stay")
    assert load(found.record).hosts == (f"pid-{watched.pid}",)


@pytest.mark.netns
def test_it_ends_with_what_it_watches(
    program: Callable[[str], Program], watch: Callable[..., Watch]
) -> None:
    watched = program(CONNECTS)
    found = watch("--pid", str(watched.pid))
    found.await_line("LISTEN")
    watched.end()
    found.process.communicate(timeout=DEADLINE)
    assert found.process.returncode == 0


@pytest.mark.netns
def test_a_process_and_this_machine(
    program: Callable[[str], Program], watch: Callable[..., Watch]
) -> None:
    watched = program(CONNECTS)
    found = watch("--pid", str(watched.pid), "--here", "--port", "8000")
    found.await_line("LISTEN 127.0.0.1:8000")
    assert found.end() == 0
    assert set(load(found.record).hosts) == {"here", f"pid-{watched.pid}"}


@pytest.mark.netns
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_calls_of_a_process_that_runs_on(
    program: Callable[[str], Program], watch: Callable[..., Watch], how: signal.Signals
) -> None:
    watched = program(BINDS)
    found = watch("--pid", str(watched.pid), "--calls")
    found.await_line("calls are recorded from")
    watched.go_on()
    assert watched.hear() == "98"  # EADDRINUSE
    if how == signal.SIGINT:
        assert found.end() == 0
        assert [cause.id for cause in load(found.record).causes] == ["bind-listener"]
    else:
        found.end(how)
    eventually(lambda: "TracerPid:\t0\n" in Path(f"/proc/{watched.pid}/status").read_text(), "held")
    watched.go_on()
    assert watched.hear() == "runs on"


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="only root joins two networks")
def test_a_reset_and_the_call_that_it_fails(
    program: Callable[[str], Program], watch: Callable[..., Watch]
) -> None:
    server, client = program(RESETS), program(IS_RESET)
    pids = [server.pid, client.pid]
    subprocess.run(
        ["ip", "link", "add", "v", "netns", str(pids[0]), "type", "veth", "peer", "v", "netns",
         str(pids[1])], check=True,
    )  # fmt: skip
    for number, pid in enumerate(pids, 1):
        batch = f"addr add 198.18.0.{number}/24 dev v\nlink set v up\n"
        subprocess.run(
            ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"],
            input=batch, text=True, check=True,
        )  # fmt: skip
    found = watch("--calls", *(word for pid in pids for word in ("--pid", str(pid))))
    found.await_line(f"pid-{pids[1]}: calls are recorded")
    found.await_line("LISTEN")
    server.go_on()
    assert server.hear() == "listens"
    client.go_on()
    assert client.hear() == "104"  # ECONNRESET
    assert found.end() == 0
    (cause,) = load(found.record).causes
    assert (cause.id, cause.host) == ("reset-linger", f"pid-{pids[0]}")
    failed = [e for e in found.history.events if isinstance(e, CallEvent) and e.errno]
    assert [(e.host, e.call, e.errno) for e in failed] == [(f"pid-{pids[1]}", "recv", "ECONNRESET")]


@pytest.mark.netns
def test_the_calls_of_what_holds_a_port(
    watch: Callable[..., Watch],
) -> None:
    text = 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], '
    text += "flush=True); a, _ = s.accept(); a.close(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        port = int(server.stdout.readline())
        found = watch("--here", "--port", str(port), "--calls")
        found.await_line("LISTEN")
        status = Path(f"/proc/{server.pid}/status")
        eventually(lambda: "TracerPid:\t0\n" not in status.read_text(), "nothing attaches")
        socket.create_connection(("127.0.0.1", port)).close()
        found.await_line("TIME-WAIT")
        assert found.end() == 0
        server.kill()
    told = [e for e in found.history.events if isinstance(e, CallEvent) and e.phase == "done"]
    assert [(e.pid, e.name) for e in told] == [
        (server.pid, name) for name in ("has", "accept", "close")
    ]


@pytest.mark.netns
def test_what_shares_a_network_is_one_host(watch: Callable[..., Watch]) -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        found = watch("--pid", str(child.pid), "--pid", str(os.getpid()))
        _, said = found.process.communicate(timeout=DEADLINE)
    finally:
        child.kill()
        child.wait()
    assert found.process.returncode == 2
    assert "both have the address" in said


@pytest.mark.netns
def test_on_a_terminal(program: Callable[[str], Program], tmp_path: Path) -> None:
    """Live, with owners where they can be seen; in colour unless that is unwanted."""
    watched = program(CONNECTS)
    watched.go_on()
    assert watched.hear() == "done"
    words = ("watch", "--pid", str(watched.pid), "--for", "1s", "--out", str(tmp_path))
    shown = on_a_terminal(160, *words)
    assert "watching for 0 s; Ctrl-C ends it" in shown
    assert "LISTEN 127.0.0.1:8000, accept queue 0/128, held by pid-" in shown
    assert "\x1b[1mWhat ran on" in shown
    assert COLOUR.search(shown)
    assert not COLOUR.search(on_a_terminal(160, *words, NO_COLOR="1"))


# --- Containers -----------------------------------------------------------------------------------

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
        found = self.client.api.containers(all=True, filters={"label": "labctl.lease"})
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


@pytest.mark.docker
def test_containers_on_one_clock(containers: Containers, watch: Callable[..., Watch]) -> None:
    web, db = containers.run("web"), containers.run("db")
    before = containers.text(web, "cat", "/etc/hosts", "/etc/resolv.conf")
    found = watch("--container", web, "--container", db)
    found.await_line("web: ")
    containers.connect(web, db)
    found.await_line("TIME-WAIT")
    assert containers.watchers()
    assert found.end() == 0
    eventually(lambda: not containers.watchers(), "watchers stay")
    assert containers.text(web, "cat", "/etc/hosts", "/etc/resolv.conf") == before
    hosts = load(found.record).hosts
    assert [host.rpartition("-")[2] for host in hosts] == ["web", "db"]
    segments = found.history.segments()
    assert {(s.sender, s.receiver) for s in segments} == {hosts, hosts[::-1]}
    assert all(s.t is not None and s.arrived is not None for s in segments)
    assert "127.0.0.11" not in str(found.history.sockets[hosts[0]].sockets)


@pytest.mark.docker
def test_a_container_that_is_started_again(
    containers: Containers, watch: Callable[..., Watch]
) -> None:
    web, db = containers.run("web"), containers.run("db")
    found = watch("--container", web, "--container", db)
    found.await_line("LISTEN")
    containers.restart(web)
    found.await_line("was started again")
    containers.connect(db, web)
    found.await_line("TIME-WAIT")
    eventually(lambda: len(containers.watchers()) == 2, "the watcher before stays")
    assert found.end() == 0
    host = web.replace("_", "-")
    history = found.history
    assert (history.growth(host, "TcpPassiveOpens") or 0) >= 1
    assert (host, "capture") in history.trouble
    assert [s for s in history.segments() if s.receiver == host and "SYN" in s.flags]


@pytest.mark.docker
def test_a_project(containers: Containers, watch: Callable[..., Watch]) -> None:
    """Its containers are called as its services are, and stay that when they are made anew. What
    shares the network of another is no host of its own."""

    def service(name: str, of: str, network: str = "") -> str:
        project = {"com_docker_compose_project": containers.mark}
        return containers.run(name, network, **project, com_docker_compose_service=of)

    web = service("1", "web")
    db = service("2", "db")
    service("4", "beside", f"container:{web}")
    found = watch("--compose", containers.mark)
    found.await_line("db: ")
    containers.remove(db)
    service("3", "db")
    found.await_line("db was started again")
    service("5", "cache")
    found.await_line("has no cache, which came later")
    found.await_line("cache: ")
    assert found.end() == 0
    first, second = sorted(found.folder.iterdir(), key=lambda each: len(each.name))
    assert load(first).hosts == ("db", "web")
    assert load(second).hosts == ("db", "web", "cache")


@pytest.mark.docker
def test_the_calls_of_a_container(containers: Containers, watch: Callable[..., Watch]) -> None:
    web, db = containers.run("web"), containers.run("db")
    found = watch("--container", web, "--container", db, "--calls")
    found.await_line("calls are recorded from")
    found.await_line("calls are recorded from")
    containers.connect(db, web)
    found.await_line("TIME-WAIT")
    containers.restart(web)
    found.await_line("calls are recorded from")
    containers.connect(db, web)
    assert found.end() == 0
    eventually(lambda: not containers.watchers(), "something stays")
    host = web.replace("_", "-")
    told = [
        e.call if isinstance(e, CallEvent) else e.phase
        for e in found.history.events
        if isinstance(e, CallEvent | ProcessEvent) and e.host == host and e.phase != "enter"
    ]
    ended = told.index("exit")
    done = ["has tcp listening SO_REUSEADDR=1", "accept", "close", "exit by signal 9"]
    assert told[:ended] == ["start", *done]
    assert told[ended : ended + 3] == ["exit", "gone", "start"]
    assert "accept" in told[ended:]


@pytest.mark.docker
def test_a_controller_that_is_killed_leaves_nothing(
    containers: Containers, watch: Callable[..., Watch]
) -> None:
    web = containers.run("web")
    found = watch("--container", web)
    found.await_line("LISTEN")
    assert containers.watchers()
    found.end(signal.SIGKILL)
    eventually(lambda: not containers.watchers(), "a watcher stays")


@pytest.mark.docker
def test_no_such_container(containers: Containers, watch: Callable[..., Watch]) -> None:
    web = containers.run("web")
    found = watch("--container", "nosuch")
    _, said = found.process.communicate(timeout=DEADLINE)
    assert found.process.returncode == 2
    assert "no container 'nosuch' is running" in said
    assert web in said
