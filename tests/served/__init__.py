"""The servers that tests/servers.py judges: where each comes from, and how little it is told.

Each runs as an ordinary user in a temporary folder. What has to be written for a server that is a
library stands beside this file, in the server's language."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
UID = 65534  # nobody's, who is in every /etc/passwd: initdb(1) asks for the name
ANSWER = 4_000_000
FOLDERS = ("/usr/bin", "/usr/sbin", *map(str, Path("/usr/lib/postgresql").glob("*/bin")))
"""Where Debian's packages put them; what else is on the PATH may be closed to another user."""

NGINX = """\
{first}daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    {http}
}}
{last}"""
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
    """A program that is not installed here: the mend."""


@dataclass(frozen=True)
class Program:
    """A server, client or proxy to judge: what it is called, where it comes from, how it is asked
    for its version.

    `prepare` puts into a folder what it needs there and returns its command line. `says` are the
    params of the lessons in which it differs from a web server; `graceful` is the signal by which
    it ends gracefully by its own manual, where that is not TERM; so many `jobs` may use its
    folder at once."""

    name: str
    program: str
    package: str
    version: tuple[str, ...]
    prepare: Callable[[str, Path], str]
    port: int
    graceful: str | None = None
    says: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 2

    def path(self) -> str:
        """Where its program is. Raises Missing."""
        found = shutil.which(self.program, path=os.pathsep.join(FOLDERS))
        if found is None:
            raise Missing(f"{self.name} is not here; apt-get install {self.package}")
        return found


def nginx_with(path: str, folder: Path, http: str, first: str = "", last: str = "") -> str:
    """Its command line, with this in its configuration: for HTTP, at the top and at the end."""
    text = NGINX.format(folder=folder, http=http, first=first, last=last)
    (folder / "nginx.conf").write_text(text)
    return f"{path} -p {folder} -c nginx.conf -e stderr"


def nginx(path: str, folder: Path) -> str:
    return nginx_with(path, folder, f"server {{ listen 80; root {folder}; }}")


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


def written(command: str, beside: Path = HERE) -> Callable[[str, Path], str]:
    """What is written here, or in another folder, and how it is run in a folder of its own, where
    `{path}` is its program."""

    def prepare(path: str, folder: Path) -> str:
        for file in beside.iterdir():
            if file.is_file():
                shutil.copy(file, folder)
        return f"env -C {folder} {command.format(path=path, folder=folder)}"

    return prepare


def compiled(
    compiler: str, source: str, command: str, beside: Path = HERE
) -> Callable[[str, Path], str]:
    """The same of what is compiled first. No module is fetched for it."""

    def prepare(path: str, folder: Path) -> str:
        run = written(command, beside)(path, folder)
        with tempfile.TemporaryDirectory(prefix="labctl-") as cache:
            environ = {**os.environ, "GO111MODULE": "off", "GOPROXY": "off", "GOCACHE": cache}
            subprocess.run(
                [*shlex.split(compiler.format(beside=Path(path).parent)), source],
                cwd=folder, env=environ, check=True, capture_output=True,
            )  # fmt: skip
        return run

    return prepare


def message(kind: str, *texts: str) -> str:
    """A message of PostgreSQL's protocol 3.0, as `send` writes it."""
    length = 4 + sum(len(text) + 1 for text in texts)
    head = kind + "".join(f"\\x{byte:02x}" for byte in length.to_bytes(4, "big"))
    return head + "".join(text + "\\x00" for text in texts)


STARTUP = r"\x00\x00\x00\x17\x00\x03\x00\x00user\x00postgres\x00\x00"
TERMINATE = message("X")
BIG = {"big_request": r"GET /big HTTP/1.0\r\n\r\n"}
GO = "{beside}/go build"
JAVAC = "{beside}/javac"
SERVERS = [
    Program("http.server", "python3", "python3", ("--version",), http_server, 8000, "INT", BIG),
    Program("nginx", "nginx", "nginx-light", ("-v",), nginx, 80, "QUIT", BIG),
    Program("HAProxy", "haproxy", "haproxy", ("-v",), haproxy, 80, "USR1", BIG),
    Program(
        "Redis", "redis-server", "redis-server", ("--version",), redis, 6379, None,
        {
            "opening": r"PING\r\n",
            "request": r"PING\r\n",
            "big_request": rf"SETRANGE k {ANSWER} x\r\nGET k\r\nQUIT\r\n",
        },
    ),
    Program(
        "PostgreSQL", "postgres", "postgresql", ("--version",), postgresql, 5432, "INT",
        {
            "ready": "ready to accept connections",  # it listens sooner, and turns clients away
            "opening": STARTUP,
            "request": STARTUP + message("Q", "select 1"),
            "big_request": STARTUP
            + message("Q", f"select repeat('x', {ANSWER})")
            + TERMINATE,
        },
        jobs=1,
    ),
    Program(
        "socketserver", "python3", "python3", ("--version",),
        written("{path} lines.py REUSE"), 8000, "INT", BIG,
    ),
    Program(
        "gunicorn", "gunicorn", "gunicorn", ("--version",),
        written("{path} --bind 0.0.0.0:8000 web:wsgi"), 8000, None, BIG,
    ),
    Program(
        "uvicorn", "uvicorn", "uvicorn", ("--version",),
        written("{path} --host 0.0.0.0 web:asgi"), 8000, None, BIG,
    ),
    Program(
        "Node http", "node", "nodejs", ("--version",), written("{path} server.js"), 8000, None, BIG
    ),
    Program(
        "Go net/http", "go", "golang-go", ("version",),
        compiled(GO, "server.go", "{folder}/server"), 8000, None, BIG,
    ),
    Program(
        "Java HttpServer", "java", "default-jdk-headless", ("--version",),
        compiled(JAVAC, "Server.java", "{path} Server"), 8000, None, BIG,
    ),
]  # fmt: skip
PLAIN = [
    Program(
        "socketserver as it comes", "python3", "python3",
        ("--version",), written("{path} lines.py"), 8000,
    ),
    Program(
        "Java ServerSocket", "java", "default-jdk-headless", ("--version",),
        compiled(JAVAC, "Plain.java", "{path} Plain"), 8000,
    ),
    Program(
        "Go ListenConfig", "go", "golang-go", ("version",),
        compiled(GO, "plain.go", "{folder}/plain"), 8000,
    ),
]  # fmt: skip
"""Without SO_REUSEADDR, where a server has a switch for that: they show how a restart fails."""
