"""Judges real servers by the lessons of scenarios/servers: `make servers`, or ARGS='--only nginx'.

Every server runs with a minimal configuration in a temporary folder, as an ordinary user, on hosts
made of namespaces: run it as root. Prints the table of docs/servers.md, and how each failure was
seen. A server that is not installed is left out, and says so. Exit status 1 if a lab fails; a
server that fails a lesson is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LABCTL = [sys.executable, "-m", "labctl"]
UID = 65534  # nobody's, who is in every /etc/passwd: initdb(1) asks for the name
ANSWER = 4_000_000
PATIENCE = 600
FOLDERS = ("/usr/bin", "/usr/sbin", *map(str, Path("/usr/lib/postgresql").glob("*/bin")))
"""Where Debian's packages put them; what else is on the PATH may be closed to another user."""

# The cases, as rows: the lesson, its variant, and whether it ends by the server's own signal.
ROWS: dict[tuple[str, str, bool], str] = {
    ("restart_time_wait", "kill", False): "restart after SIGKILL, under `TIME_WAIT`",
    ("restart_time_wait", "stop", False): "restart after SIGTERM, under `TIME_WAIT`",
    ("restart_client_never_closes", "", False): "restart under `FIN_WAIT_2`",
    ("client_vanishes", "", False): "the client's host vanishes",
    ("half_close", "", False): "half-closed client gets its answer",
    ("close_wait_leak", "after_answer", False): "client closes after its answer",
    ("close_wait_leak", "in_request", False): "client closes within a request",
    ("graceful_stop", "idle", False): "SIGTERM, idle client",
    ("graceful_stop", "answering", False): "SIGTERM, answer on its way",
    ("graceful_stop", "idle", True): "its graceful signal, idle client",
    ("graceful_stop", "answering", True): "its graceful signal, answer on its way",
}  # fmt: skip

NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    server {{ listen 80; root {folder}; }}
}}
"""
# It answers by itself, without a server behind it: so a buffer must hold the large answer.
HAPROXY = """\
global
    tune.bufsize 8388608
    maxconn 20
defaults
    mode http
    timeout connect 60s
    timeout client 60s
    timeout server 60s
frontend web
    bind :80
    http-request return content-type text/plain file {folder}/big if {{ path /big }}
    http-request return content-type text/plain string hello
"""


class Missing(Exception):
    """A server that is not installed here: the mend."""


@dataclass(frozen=True)
class Server:
    """A server to judge: what it is called, where it comes from, how it is asked for its version.

    `prepare` puts into a folder what it needs there and returns its command line. `says` are the
    params of the lessons in which it differs from a web server; `graceful` is the signal by which
    it ends gracefully by its own manual, where that is not TERM."""

    name: str
    program: str
    package: str
    version: tuple[str, ...]
    prepare: Callable[[str, Path], str]
    port: int
    graceful: str | None = None
    says: Mapping[str, str] = field(default_factory=dict)

    def path(self) -> str:
        """Where its program is. Raises Missing."""
        found = shutil.which(self.program, path=os.pathsep.join(FOLDERS))
        if found is None:
            raise Missing(f"{self.name} is not here; apt-get install {self.package}")
        return found


def nginx(path: str, folder: Path) -> str:
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
    return f"{path} -p {folder} -c nginx.conf -e stderr"


def redis(path: str, folder: Path) -> str:
    return f"{path} --port 6379 --protected-mode no --save '' --dir {folder}"


def http_server(path: str, folder: Path) -> str:
    return f"{path} -m http.server --directory {folder} 8000"


def postgresql(path: str, folder: Path) -> str:
    data = folder / "data"
    command = [
        str(Path(path).with_name("initdb")),
        "-D",
        str(data),
        "-U",
        "postgres",
        "-A",
        "trust",
    ]
    subprocess.run(command, user=UID, group=UID, extra_groups=[], check=True, capture_output=True)
    with (data / "pg_hba.conf").open("a") as file:
        file.write("host all all all trust\n")
    return f"{path} -D {data} -c listen_addresses=* -c unix_socket_directories="


def haproxy(path: str, folder: Path) -> str:
    (folder / "haproxy.cfg").write_text(HAPROXY.format(folder=folder))
    return f"{path} -W -db -f {folder}/haproxy.cfg"


def message(kind: str, *texts: str) -> str:
    """A message of PostgreSQL's protocol 3.0, as `send` writes it."""
    length = 4 + sum(len(text) + 1 for text in texts)
    head = kind + "".join(f"\\x{byte:02x}" for byte in length.to_bytes(4, "big"))
    return head + "".join(text + "\\x00" for text in texts)


STARTUP = r"\x00\x00\x00\x17\x00\x03\x00\x00user\x00postgres\x00\x00"
TERMINATE = message("X")
BIG = {"big_request": r"GET /big HTTP/1.0\r\n\r\n"}
SERVERS = [
    Server("http.server", "python3", "python3", ("--version",), http_server, 8000, "INT", BIG),
    Server("nginx", "nginx", "nginx-light", ("-v",), nginx, 80, "QUIT", BIG),
    Server("HAProxy", "haproxy", "haproxy", ("-v",), haproxy, 80, "USR1", BIG),
    Server(
        "Redis", "redis-server", "redis-server", ("--version",), redis, 6379, None,
        {
            "opening": r"PING\r\n",
            "request": r"PING\r\n",
            "big_request": rf"SETRANGE k {ANSWER} x\r\nGET k\r\nQUIT\r\n",
        },
    ),
    Server(
        "PostgreSQL", "postgres", "postgresql", ("--version",), postgresql, 5432, "INT",
        {
            "ready": "ready to accept connections",  # it listens sooner, and turns clients away
            "opening": STARTUP,
            "request": STARTUP + message("Q", "select 1"),
            "big_request": STARTUP
            + message("Q", f"select repeat('x', {ANSWER})")
            + TERMINATE,
        },
    ),
]  # fmt: skip

Cells = dict[tuple[str, str, bool], str]


def judge(server: Server, out: Path, remarks: list[str]) -> Cells:
    """What it does in each case, recorded below `out`. Adds to `remarks` how a failure was seen.
    Raises Missing."""
    path = server.path()
    cells: Cells = {}
    with tempfile.TemporaryDirectory(prefix="labctl-") as made:
        folder = Path(made)
        os.chown(folder, UID, UID)
        (folder / "big").write_bytes(b"x" * ANSWER)
        (folder / "index.html").write_text("hello\n")
        run = server.prepare(path, folder)
        sets = {**server.says, "run": run, "port": str(server.port), "uid": str(UID)}
        sets["answer"] = str(ANSWER)
        found = [(run, False) for run in labctl("servers", sets, out)]
        if server.graceful:
            sets.pop("request", "")  # which this lesson does not have
            sets["signal"] = server.graceful
            found += [(run, True) for run in labctl("servers/graceful_stop", sets, out)]
    for result, own in found:
        (variant,) = result["variant"].values() or [""]
        row = result["scenario"], variant, own
        forced = any("SIGTERM had not ended it" in v["actual"] for v in result["verdicts"])
        cells[row] = "pass, but by SIGKILL after 10 s" if forced else "pass"
        if result["result"] != "pass":
            worst = (v for v in result["verdicts"] if v["result"] == result["result"])
            verdict = next(worst, None)
            cells[row] = (
                f"FAIL: {reason(verdict, result['said'])}" if verdict else str(result["reason"])
            )
            if verdict:
                seen = f"{verdict['what']}: expected {verdict['expected']}, saw {verdict['actual']}"
                remarks.append(f"{server.name}, {ROWS[row]}: {seen}")
    return cells


def labctl(lessons: str, sets: Mapping[str, str], out: Path) -> list[Any]:
    """The runs of lessons with these params, as labctl reports them, and in `said` what the
    programs wrote. Raises RuntimeError where there are none."""
    command = [*LABCTL, "run", lessons, "--backend", "netns", "--format", "json", f"--out={out}"]
    command += [f"--set={name}={value}" for name, value in sets.items()]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.returncode not in (0, 1, 3):
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    runs: list[Any] = json.loads(done.stdout)["runs"]
    for run in runs:
        history = Path(run["dir"], "history.jsonl").read_text("utf-8").splitlines()
        run["said"] = "".join(e["text"] for e in map(json.loads, history) if e["kind"] == "output")
    return runs


def reason(verdict: Mapping[str, str], said: str) -> str:
    """A failure in a few words, from its verdict and from what the server said."""
    what, actual = verdict["what"], verdict["actual"]
    if "RST" in what:
        return "RST"
    if "ECONNRESET" in actual:
        return "RST, and the client has an error"
    if found := re.search(r"received (\d+)", actual):
        return f"{int(found[1]):,} bytes of the answer"
    if "not done" in actual:
        return "the client sees no end"
    if "exited" in what:
        return "still runs"
    if "LISTEN" in what:
        return "`EADDRINUSE`" if "in use" in said else "does not listen"
    if "0 x" in what:
        stays = [state for state in ("CLOSE-WAIT", "ESTAB") if state in actual]
        return f"`{stays[0]}` stays" if stays else actual
    return f"{what}: {actual}"


def table(servers: list[Server], cells: Mapping[str, Cells]) -> Iterator[str]:
    """Rows of Markdown."""
    yield f"| | {' | '.join(server.name for server in servers)} |"
    yield f"| --- |{' --- |' * len(servers)}"
    for row, title in ROWS.items():
        values = []
        for server in servers:
            value = cells[server.name].get(row, "–")
            values.append(f"{server.graceful}: {value}" if row[2] and server.graceful else value)
        yield f"| {title} | {' | '.join(values)} |"


def version(server: Server) -> str:
    asked = subprocess.run(
        [server.path(), *server.version], capture_output=True, text=True, check=False
    )
    found = re.search(r"\d+(\.\d+)+", asked.stdout + asked.stderr)
    return f"{server.name} {found[0] if found else '?'}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [server.name for server in SERVERS]
    parser.add_argument("--only", action="append", choices=names, help="default: all")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to keep the recorded runs")
    options = parser.parse_args()
    chosen = options.only or names
    if os.geteuid():
        print("servers: run this as root: the servers run as another user", file=sys.stderr)
        return 2
    cells: dict[str, Cells] = {}
    judged: list[Server] = []
    remarks: list[str] = []
    for server in SERVERS:
        if server.name not in chosen:
            continue
        print(f"servers: {server.name}", file=sys.stderr)
        try:
            with tempfile.TemporaryDirectory(prefix="labctl-") as made:
                cells[server.name] = judge(server, (options.out or Path(made)).resolve(), remarks)
            judged.append(server)
        except Missing as exc:
            print(f"servers: left out: {exc}", file=sys.stderr)
        except (RuntimeError, subprocess.SubprocessError) as exc:
            print(f"servers: {server.name}: the lab failed: {exc}", file=sys.stderr)
            return 1
    print("\n".join(table(judged, cells)))
    print(f"\n{', '.join(map(version, judged))}; kernel {os.uname().release}.\n")
    print("\n".join(f"- {remark}" for remark in remarks))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
