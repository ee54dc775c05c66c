"""What it costs a server that its calls are watched: python -m tests.bench_calls SERVER KEPT WATCH

As a program it starts nginx or Redis below a supervisor, in a network namespace of its own, and
says how many seconds a request of a load generator takes: on connections that are kept, or with one
connection for each request. WATCH is `calls`, `off`, or `strace`, which traces the same calls;
or `attached` or `strace-p`, which attach to the server when it runs, as `labctl watch --calls` and
strace do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from labctl.ground.resources import images

PORT = 8000
REQUESTS = {True: 300_000, False: 30_000}
STRACES = ("strace", "strace-p")
"""For comparison alone: a tenth of the requests, as these may take fifty times as long."""
AT_ONCE = 16
PATIENCE = 20.0
NGINX = """\
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log;
events {{}}
http {{
    access_log off; keepalive_requests 1000000;
    server {{ listen 8000; root {folder}; }}
}}
"""
CALLS = "socket,bind,listen,accept,accept4,connect,shutdown,setsockopt,getsockopt,close"
STRACE = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-ttt", "--signal=none", "-o", "/dev/null"]
SERVERS = {"nginx": "ab", "redis-server": "redis-benchmark"}
"""What is measured, and what makes the requests."""


def command(server: str, folder: Path) -> list[str]:
    """The command line of a server."""
    if server == "redis-server":
        return [server, "--port", str(PORT), "--save", "", "--bind", "127.0.0.1"]
    folder.chmod(0o755)
    (folder / "index.html").write_text("hello\n")
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
    return [server, "-c", str(folder / "nginx.conf")]


def load(server: str, kept: bool, watch: str) -> list[str]:
    """The command line of its load generator."""
    count, at_once = str(REQUESTS[kept] // (10 if watch in STRACES else 1)), str(AT_ONCE)
    if server == "redis-server":
        keep = "1" if kept else "0"
        return ["redis-benchmark", "-p", str(PORT), "-t", "get", "-n", count, "-c", at_once,
                "-k", keep, "--csv"]  # fmt: skip
    keeping = ["-k"] if kept else []
    return ["ab", "-q", *keeping, "-n", count, "-c", at_once, f"http://127.0.0.1:{PORT}/"]


def rate(said: str) -> float:
    """The requests a second, as a generator says."""
    found = re.search(r"Requests per second:\s*([\d.]+)", said) or re.search(
        r'"GET","([\d.]+)', said
    )
    if not found:
        raise ValueError(f"no rate: {said[-500:]}")
    return float(found[1])


def supervised(watch: str, words: Sequence[str]) -> list[str]:
    """The command line of a program below a supervisor."""
    peer = [sys.executable, "-IS", str(images() / "peer" / "peer.py"), "--tether", "run"]
    if watch == "calls":
        return [*peer, "--watch=calls", "--", *words]
    return [*peer, "--", *([*STRACE, "-e", f"trace={CALLS}"] if watch == "strace" else []), *words]


def attached(watch: str) -> subprocess.Popen[bytes] | None:
    """What has attached to the server, if anything is to."""
    listening = ["ss", "-Hltnp", f"sport = {PORT}"]
    said = subprocess.run(listening, capture_output=True, check=True, text=True).stdout
    pids = [int(pid) for pid in re.findall(r"pid=(\d+)", said)]
    if watch == "strace-p":
        command = ["strace", "-f", "-qq", "-ttt", "--signal=none", "-o", "/dev/null"]
        tracer = subprocess.Popen([*command, "-e", f"trace={CALLS}", *(f"-p{pid}" for pid in pids)])
    elif watch == "attached":
        tracer = subprocess.Popen(
            [sys.executable, "-IS", str(images() / "peer" / "attach.py")],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert tracer.stdin
        tracer.stdin.write(json.dumps({"do": "attach", "id": 1, "pids": pids}).encode() + b"\n")
        tracer.stdin.flush()
    else:
        return None
    deadline = time.monotonic() + PATIENCE
    while "TracerPid:\t0\n" in Path(f"/proc/{pids[-1]}/status").read_text():
        if time.monotonic() > deadline:
            sys.exit(f"{watch} does not attach")
        time.sleep(0.02)
    return tracer


def main() -> None:
    server, kept, watch = sys.argv[1], sys.argv[2] == "kept", sys.argv[3]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        words = supervised(watch, command(server, Path(folder)))
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + PATIENCE
            listening = ["ss", "-Hltn", f"sport = {PORT}"]
            while not subprocess.run(listening, capture_output=True, check=True).stdout:
                if time.monotonic() > deadline or process.poll() is not None:
                    sys.exit(f"{server} does not listen")
                time.sleep(0.02)
            tracer = attached(watch)
            done = subprocess.run(
                load(server, kept, watch), capture_output=True, text=True, check=True,
                env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
            print(1 / rate(done.stdout))
            assert process.stdin
            process.stdin.close()
            if tracer:
                tracer.kill()
                tracer.communicate()


if __name__ == "__main__":
    main()
