"""Run a command with a Docker engine at hand: python tests/engine.py COMMAND...

1. Where an engine answers, at DOCKER_HOST or the default socket, the command is just run; with
   CI=true, as root on Debian or Ubuntu, the other packages that the tests need come first.
2. Else, as root on Debian or Ubuntu, a dockerd of our own runs for as long as the command; the
   packages that it and the tests need are installed first. Its images are kept from run to run.
3. Else the command runs with LABCTL_TEST_NO_ENGINE saying why, for conftest.py to skip by. With
   CI=true that is a failure instead.

Our dockerd has network, mount and process namespaces of its own: its bridge, firewall rules, mounts
and containers end with it, however it ends, and other engines and networks are left alone. Its
network leads nowhere, so it can't pull: it is for images that are built on this side.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn

import docker
import requests
from docker.constants import MINIMUM_DOCKER_API_VERSION

PACKAGES = {
    "dockerd": "docker.io",
    "docker-compose": "docker-compose",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "tcpdump": "tcpdump",
    "qemu-system-x86_64": "qemu-system-x86",
    "tshark": "tshark",
    "chromium": "chromium",
    "cpio": "cpio",
    "newuidmap": "uidmap",
    "openssl": "openssl",
}
NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

# Process 1 of the namespaces. It stops dockerd when the harness closes our standard input or dies.
# A /run of its own hides the containerd of the machine, whose containers would be started outside.
INIT = """
mount -t tmpfs tmpfs /run && ip link set lo up || exit
exec 3<&0
dockerd "$@" &
dockerd=$!
{ cat; kill "$dockerd"; } <&3 &
wait "$dockerd"
status=$?
find /sys/fs/cgroup -depth -type d -path '*/labctl-engine*' -exec rmdir {} +
exit "$status"
"""
# RFC 2544 set 198.18.0.0/15 aside for tests, so the lab shadows no address that anyone uses.
DOCKERD_OPTIONS = [
    "--default-address-pool=base=198.19.0.0/17,size=26",
    "--bip=198.19.255.1/24",
    "--cgroup-parent=labctl-engine",
]
PING_TIMEOUT = 5
START_DEADLINE = 60
STOP_DEADLINE = 30


class NoEngineError(Exception):
    """No engine can be had here; the message says why, and how to get one."""


def main(command: list[str]) -> NoReturn:
    if not command:
        sys.exit("usage: python tests/engine.py COMMAND...")
    if not shutil.which(command[0]):
        sys.exit(f"engine: no such command: {command[0]}")
    environment = dict(os.environ)
    try:
        if problem := engine_problem():
            run_with_own_engine(command, environment, problem)
        elif os.environ.get("CI") == "true" and can_install():
            install_packages(tool for tool in PACKAGES if tool != "dockerd")
    except NoEngineError as exc:
        if os.environ.get("CI") == "true":
            sys.exit(f"engine: CI must have a Docker engine: {exc}")
        environment["LABCTL_TEST_NO_ENGINE"] = str(exc)
    except KeyboardInterrupt:
        sys.exit(130)
    os.execvpe(command[0], command, environment)


def run_with_own_engine(command: list[str], environment: dict[str, str], problem: str) -> None:
    """Runs the command and exits with its status, or returns if an engine answers by now."""
    if not can_install():
        raise NoEngineError(
            f"{problem}; start Docker, set DOCKER_HOST, or run as root on Debian or Ubuntu"
        )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    # su(1) may leave the administrator's programs out.
    os.environ["PATH"] = environment["PATH"] = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode:
        raise NoEngineError(f"{problem}; and this machine forbids namespaces, which dockerd needs")
    install_packages(PACKAGES)
    if engine_problem():  # the package may have started one
        with own_engine() as host:
            sys.exit(run(command, environment | {"DOCKER_HOST": host}))


def engine_problem() -> str | None:
    """Why no engine answers, or None if one does."""
    try:
        docker.from_env(timeout=PING_TIMEOUT).ping()
    except (docker.errors.DockerException, requests.RequestException):
        return f"no Docker engine answers at {os.environ.get('DOCKER_HOST', 'the default socket')}"
    return None


def can_install() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    release = platform.freedesktop_os_release()
    return "debian" in [release["ID"], *release.get("ID_LIKE", "").split()]


def install_packages(tools: Iterable[str]) -> None:
    missing = [PACKAGES[tool] for tool in tools if not shutil.which(tool)]
    if not missing:
        return
    print("engine: installing", *missing, file=sys.stderr, flush=True)
    apt_get = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    for action in (["update"], ["install", "--no-install-recommends", *missing]):
        done = subprocess.run(
            [*apt_get, *action],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode:  # an update that failed may have left enough to install from
        raise NoEngineError(f"apt-get can't install {' '.join(missing)}: {last_line(done.stdout)}")


@contextmanager
def own_engine() -> Iterator[str]:
    """A dockerd of our own: yields its DOCKER_HOST, and stops it in the end."""
    with (
        tempfile.TemporaryDirectory(
            prefix="labctl-engine-", ignore_cleanup_errors=True
        ) as temporary,
        claim_log(Path(temporary)) as log,
    ):
        folder = Path(log.name).parent
        print(f"engine: starting dockerd, with its data in {folder}", file=sys.stderr, flush=True)
        host = f"unix://{temporary}/docker.sock"
        options = [f"--data-root={folder}/data", f"--host={host}", *DOCKERD_OPTIONS]
        with subprocess.Popen(
            [*NAMESPACES, "sh", "-c", INIT, "sh", *options],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the command; then it is dockerd's turn
        ) as process:
            assert process.stdin
            try:
                client = await_engine(host, process, Path(log.name))
                remove_containers(client)  # of a run that was killed
                try:
                    yield host
                finally:
                    with suppress(docker.errors.DockerException, requests.RequestException):
                        remove_containers(client)  # dockerd would wait 10 s for each
            finally:
                process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_DEADLINE)
                process.kill()


def claim_log(temporary: Path) -> IO[str]:
    """The log of dockerd, beside its data: in the cache, or where that is taken, in `temporary`.

    The lock on it lasts until the last process that writes to it has ended.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labctl" / "engine"
    cache.mkdir(parents=True, exist_ok=True)
    log = (cache / "dockerd.log").open("a")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        return (temporary / "dockerd.log").open("a")
    log.truncate(0)
    return log


def await_engine(host: str, process: subprocess.Popen[bytes], log: Path) -> docker.DockerClient:
    deadline = time.monotonic() + START_DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(docker.errors.DockerException, requests.RequestException, OSError):
            with socket.socket(socket.AF_UNIX) as trial:  # docker leaves one that fails open
                trial.connect(host.removeprefix("unix://"))
            with closing(docker.APIClient(host, version=MINIMUM_DOCKER_API_VERSION)) as asking:
                asking.ping()
            return docker.DockerClient(host)
        time.sleep(0.1)
    raise NoEngineError(f"dockerd does not start: {last_line(log.read_text(errors='replace'))}")


def remove_containers(client: docker.DockerClient) -> None:
    for container in client.containers.list(all=True, ignore_removed=True):
        container.remove(force=True, v=True)
    client.networks.prune()


def run(command: list[str], environment: dict[str, str]) -> int:
    """The command's exit status, as a shell has it."""
    process = subprocess.Popen(command, env=environment)
    try:
        status = process.wait()
    except KeyboardInterrupt:  # the command got it too, from the terminal
        status = process.wait()
    except SystemExit:
        process.terminate()
        process.wait()
        raise
    return status if status >= 0 else 128 - status


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]


if __name__ == "__main__":
    main(sys.argv[1:])
