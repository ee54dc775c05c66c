"""`labctl watch` beside real programs: what it records, and that nothing of it stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.judge.recorded import load
from labctl.judge.rejudge import judge
from labctl.probes.segments import FILE_HEADER
from labctl.probes.traffic import Traffic
from labctl.record.events import SocketsEvent, StateEvent, TroubleEvent
from labctl.record.history import History
from tests import beside
from tests.beside import DEADLINE, Containers, Program, Watch, eventually
from tests.terminals import on_a_terminal

program, watch, containers = beside.program, beside.watch, beside.containers
BUSY = 30_000
COLOUR = re.compile(r"\x1b\[(?:\d+;)*3\d")

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
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up one capability: setpriv(1)")
def test_where_it_may_not_capture(program: Callable[[str], Program], tmp_path: Path) -> None:
    watched, out = program(CONNECTS), tmp_path / "watch"
    watched.go_on()
    assert watched.hear() == "done"
    words = ("--pid", str(watched.pid), "--for", "1s", "--out", str(out))
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw",
         sys.executable, "-m", "labctl", "watch", *words],
        capture_output=True, text=True, check=False, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = out.iterdir()
    history = load(record).history
    assert "FIN-WAIT-2" in seen(history)
    assert (f"pid-{watched.pid}", "capture") in history.trouble


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
