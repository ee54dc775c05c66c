"""What a scenario can do to the machine that it runs on: docs/security.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from subprocess import PIPE

import docker as docker_engine
import pytest
import yaml

from labctl.backends.docker import images
from labctl.ground.errors import ScenarioError
from labctl.judge.result import RunResult
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.record.events import ExecEvent, OutputEvent
from labctl.run.places import DEFAULT_OS
from tests.contract import real_backends
from tests.contract.test_lessons import played, report
from tests.marked import eventually

netns = pytest.mark.parametrize("backend", [pytest.param("netns", marks=pytest.mark.netns)])
docker = pytest.mark.parametrize("backend", [pytest.param("docker", marks=pytest.mark.docker)])

ATTACK = """\
import ctypes, glob, os

def attempt(name, how):
    try:
        how()
    except OSError as exc:
        print("failed", name, exc.errno)
    else:
        print("did", name)

def write(path, flags=os.O_WRONLY):
    os.close(os.open(path, flags))

def mount(source, target, kind, flags):
    if ctypes.CDLL(None, use_errno=True).mount(source, target, kind, flags, None):
        raise OSError(ctypes.get_errno(), "mount")

for path in ("/etc/passwd", "/proc/sys/vm/swappiness", "/proc/sys/kernel/core_pattern",
             "/proc/sysrq-trigger", *glob.glob("/proc/irq/*/smp_affinity")[:1],
             *glob.glob("/sys/kernel/mm/transparent_hugepage/enabled")):
    attempt("write " + path, lambda: write(path))
for folder in ("/", "/etc", "/root", "/var/lib", os.getcwd()):
    attempt("make a file in " + folder,
            lambda: write(os.path.join(folder, "made-by-a-lab"), os.O_CREAT | os.O_WRONLY))
for path in ("/etc", "/"):
    attempt("remount " + path, lambda: mount(None, path.encode(), None, 32 | 4096))
attempt("mount a proc", lambda: mount(b"proc", b"/mnt", b"proc", 0))
for path in glob.glob("/dev/[svx]d*") + ["/dev/mem", "/dev/kmsg", "/dev/fuse"]:
    attempt("open " + path, lambda: write(path))
for path in ("/run/docker.sock", "/var/run/docker.sock"):
    print("reached" if os.path.exists(path) else "hidden", path)
for path in ("/tmp", "/run", "/dev/shm"):
    print("in", path, sorted(os.listdir(path)))
    attempt("own " + path, lambda: write(path + "/mine", os.O_CREAT | os.O_WRONLY))
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *words):
    if libc.syscall(number, *words) < 0:
        raise OSError(ctypes.get_errno(), "syscall")

def unlink():
    for name in ("null", "fd", "ptmx"):
        os.unlink("/dev/" + name)

attempt("unlink in /dev", unlink)
if os.uname().machine == "x86_64":
    for flags in (0x10000000, 0x10020000):
        attempt("unshare %x" % flags, lambda: call(272, flags))
    attempt("join a keyring", lambda: call(250, 1, 0))
    attempt("read a keyring", lambda: call(250, 11, -3, 0, 0))
attempt("own sysctl", lambda: write("/proc/sys/net/ipv4/tcp_fin_timeout"))
attempt("see others", lambda: os.kill(-1, 0) if len([x for x in os.listdir("/proc") if
        x.isdigit()]) > 2 else write("/proc/none"))
print("environ", sorted(os.environ))
print("over", flush=True)
"""
OWN = {"own /tmp", "own /run", "own /dev/shm"}


def scenario(run: str, **more: object) -> str:
    return yaml.safe_dump(
        {
            "title": "A program that would do more than it may",
            "hosts": {
                "server": {"run": ["python3", "-c", run], "env": {"MINE": "1"}, **more},
                "client": {},
            },
            "steps": [
                {"start": "server"},
                {"wait": {"process": {"server": {"output": "over"}}}, "within": "60s"},
            ],
        }
    )


def said(result: RunResult) -> str:
    assert result.result == "pass", report(result)
    assert result.history
    return "".join(e.text for e in result.history.events if isinstance(e, OutputEvent))


@pytest.mark.parametrize("rights", [[], ["CHOWN", "DAC_OVERRIDE", "SETUID", "SYS_CHROOT"]])
@real_backends
def test_a_program_changes_nothing_outside(
    backend: str, rights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_CONTROLLER", "1")
    text = said(played(scenario(ATTACK, rights=rights), backend, tmp_path))
    did = set(re.findall(r"^did (.*)$", text, re.MULTILINE))
    inside = did - OWN - {"own sysctl"}
    if backend == "docker":  # its files are the container's own, and gone with it
        own = ("make a file", "write /etc/passwd", "unlink in /dev")
        inside -= {name for name in did if name.startswith(own)}
    else:  # of /var it has a copy
        inside -= {"make a file in /var/lib"}
    for folder in ("/", "/etc", "/root", "/var/lib", str(Path.cwd())):
        assert not Path(folder, "made-by-a-lab").exists()
    assert not inside, text
    assert did >= OWN, text
    assert "reached" not in text
    if backend == "netns":
        for folder in ("/tmp", "/run"):
            assert f"in {folder} []" in text or str(tmp_path).startswith(folder), text
    assert "MINE" in text
    assert "A_SECRET" not in text


@real_backends
def test_a_command_changes_nothing_outside(backend: str, tmp_path: Path) -> None:
    process = {"calls": "socket; bind :8000; listen 5; wait"}
    others = dict.fromkeys("abcdefgh", process)
    text = yaml.safe_dump(
        {
            "title": "A command that would do more than it may",
            "hosts": {"server": {}, "client": {}, **others},
            "steps": [{"start": name} for name in others] + [
                {"exec": {"server": command}, "status": "any"}
                for command in (
                    "echo 1 > /proc/sys/vm/swappiness", "echo x > /proc/sys/kernel/core_pattern",
                    "mount -o remount,rw /", "mount -t tmpfs none /mnt", "ls /dev/vda /dev/sda",
                    "chroot / true", "unshare --user true", "cat /proc/1/environ",
                    "test $(ls -d /proc/[0-9]* | wc -l) -gt 8",  # others' are among them
                )
            ] + [{"exec": {"server": "grep CapEff /proc/self/status"}}],
        }
    )  # fmt: skip
    result = played(text, backend, tmp_path)
    assert result.result == "pass", report(result)
    assert result.history
    done = [event for event in result.history.events if isinstance(event, ExecEvent)]
    statuses = {event.command: event.exit for event in done}
    assert 0 not in [*statuses.values()][:-1], statuses
    assert done[-1].output == "CapEff:\t0000000000003000\n", "NET_ADMIN and NET_RAW"


REACH = """\
import socket, sys
sys.argv.append(socket.gethostbyname("server").rpartition(".")[0] + ".1")
for address in sys.argv[2:]:
    with socket.socket() as tried:
        tried.settimeout(1)
        try:
            tried.connect((address, int(sys.argv[1])))
            print("reached", address)
        except OSError as exc:
            print("failed", address, exc)
print("over", flush=True)
"""


SERVICE = """\
import re, socket, subprocess
text = subprocess.check_output(["ip", "-4", "-o", "address"]).decode()
found = [a for a in re.findall(r"inet ([0-9.]+)/", text) if not a.startswith("127.")]
with socket.create_server(("0.0.0.0", 0), backlog=100) as listening:
    print(listening.getsockname()[1], *found, flush=True)
    input()
"""
"""A service at every address of the machine where it runs; it tells its port and them."""


@pytest.fixture
def service(backend: str) -> Iterator[list[str]]:
    """The port and the addresses of a service of the machine where the lab will be."""
    if backend == "netns":
        command = [sys.executable, "-c", SERVICE]
        with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
            assert process.stdin
            assert process.stdout
            yield process.stdout.readline().split()
            process.stdin.close()
        return
    with closing(docker_engine.from_env()) as client:
        built = images.ensure(client.api, DEFAULT_OS, print)
        made = client.containers.run(
            built.host, ["-c", SERVICE], entrypoint="python3", network_mode="host",
            stdin_open=True, detach=True,
        )  # fmt: skip
        try:
            assert eventually(lambda: b"\n" in made.logs())
            yield made.logs().decode().split()
        finally:
            made.remove(force=True)


@real_backends
def test_nothing_but_the_hosts_answers(backend: str, service: list[str], tmp_path: Path) -> None:
    """The gateway of the lab's network does not, either: its address is the host's own, with 1 for
    its last number."""
    port, *addresses = service
    text = yaml.safe_load(scenario(REACH))
    text["hosts"]["server"]["run"] += [port, *addresses, "172.17.0.1"]
    found = said(played(yaml.safe_dump(text), backend, tmp_path))
    assert found.count("failed") == len(addresses) + 2, found
    assert "reached" not in found


@docker
def test_memory_and_processes_have_bounds(backend: str, tmp_path: Path) -> None:
    seen = (
        "import glob\nfor name in ('memory/memory.limit_in_bytes', 'memory.max', 'pids/pids.max', "
        "'pids.max'):\n for path in glob.glob('/sys/fs/cgroup/' + name):\n"
        "  print('bound', open(path).read().strip())\nprint('over', flush=True)"
    )
    usual = said(played(scenario(seen), backend, tmp_path / "usual"))
    assert re.findall(r"bound (\d+)", usual) == ["2147483648", "4096"]
    asked = said(
        played(scenario(seen, mem_limit="64m", pids_limit=33), backend, tmp_path / "asked")
    )
    assert re.findall(r"bound (\d+)", asked) == ["67108864", "33"]


@pytest.mark.parametrize("written", ["5m", "2 gib", "-1", "1.5g", "true"])
def test_sizes_that_are_none(written: str) -> None:
    text = scenario("pass").replace("env:", f"mem_limit: {written}\n    env:")
    with pytest.raises(ScenarioError, match="no size of memory; allowed: 512m, 2g, 6m at least"):
        load_document(Document("x", text), text, "x", {})


@netns
@pytest.mark.skipif(os.geteuid() != 0, reason="others can't reach what is root's")
def test_what_is_on_the_path_below_tmp_is_seen(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools" / "bin"
    tools.mkdir(parents=True)
    (tools / "mytool").write_text("#!/bin/sh\ncat $(dirname $0)/../lib/word\n")
    (tools / "mytool").chmod(0o755)
    (tmp_path / "tools" / "lib").mkdir()
    (tmp_path / "tools" / "lib" / "word").write_text("from beside it\nover\n")
    (tmp_path / "secret").write_text("hidden")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    text = yaml.safe_load(scenario(""))
    text["hosts"]["server"]["run"] = ["mytool"]
    assert "from beside it" in said(played(yaml.safe_dump(text), backend, tmp_path / "out"))
    text["hosts"]["server"]["run"] = ["sh", "-c", f"cat {tmp_path}/secret; echo over"]
    assert "hidden" not in said(played(yaml.safe_dump(text), backend, tmp_path / "out2"))


@netns
def test_odd_ways_to_what_is_below_tmp(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A venv behind a symbolic link, in the current folder; a file, a loop and a name that is too
    long on PATH; and a folder that only root may enter."""
    real, here = tmp_path / "real", tmp_path / "here"
    (real / "bin").mkdir(parents=True)
    here.mkdir()
    (here / ".venv").symlink_to("../real")
    (real / "bin" / "mytool").write_text("#!/bin/sh\necho found by $(pwd); echo over\n")
    (real / "bin" / "mytool").chmod(0o755)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "linked").symlink_to("real")
    odd = [f"{tmp_path}/{name}/bin" for name in ("file", "loop", "x" * 300, "none")]
    monkeypatch.setenv("PATH", ":".join([*odd, f"{here}/.venv/bin", os.environ["PATH"]]))
    monkeypatch.chdir(here)
    text = yaml.safe_load(scenario(""))
    text["hosts"]["server"]["run"] = ["mytool"]
    found = said(played(yaml.safe_dump(text), backend, tmp_path / "out"))
    assert f"found by {here}" in found
    monkeypatch.setenv("PATH", f"{tmp_path}/linked/bin:{os.environ['PATH']}")
    text["hosts"]["server"]["run"] = [f"{tmp_path}/linked/bin/mytool"]
    assert "found by" in said(played(yaml.safe_dump(text), backend, tmp_path / "linked-out"))
    if os.geteuid() == 0:
        tmp_path.chmod(0o700)
        text["hosts"]["server"]["run"] = ["sh", "-c", f"cat {real}/bin/mytool; echo over"]
        text["hosts"]["server"]["uid"] = 1234
        assert "found" not in said(played(yaml.safe_dump(text), backend, tmp_path / "out2"))
