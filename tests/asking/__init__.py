"""The clients and proxies that tests/clients.py judges: where each comes from, and how little it is
told. The programs of clients that are libraries stand beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.served import GO, JAVAC, Program, compiled, message, nginx_with, written

HERE = Path(__file__).parent
WEB = "http://server:8000/ ${{requests}}"


def python(
    module: str, port: int = 8000, address: str = WEB, says: Mapping[str, str] | None = None
) -> Program:
    """A client on a library for Python, of that module."""
    version = ("-c", f"import {module}; print({module}.__version__)")
    run = written(f"{{path}} asks.py {module} {address}", HERE)
    return Program(module, "python3", f"python3-{module}", version, run, port, says=says or {})


def standard(name: str, of: str) -> Program:
    """A client of Python's standard library."""
    run = written(f"{{path}} asks.py {of} {WEB}", HERE)
    return Program(name, "python3", "python3", ("--version",), run, 8000)


def node(name: str, of: str) -> Program:
    run = written(f"{{path}} asks.js {of} {WEB}", HERE)
    return Program(name, "node", "nodejs", ("--version",), run, 8000)


def curl(path: str, folder: Path) -> str:
    """It writes `ok` if its error message is empty."""
    return f"{path} -s --rate 200/m -o /dev/null -w 'ok%{{errormsg}}\\n' http://server:8000/[1-${{requests}}]"


GO_CLIENT = compiled(GO, "asks.go", "{folder}/asks " + WEB, HERE)
JAVA_CLIENT = compiled(JAVAC, "Asks.java", "{path} Asks " + WEB, HERE)
READY = r"Z\x00\x00\x00\x05I"
GREETING = (
    r"R\x00\x00\x00\x08\x00\x00\x00\x00"  # no password
    + message("S", "client_encoding", "UTF8")
    + message("S", "DateStyle", "ISO")
    + READY
)
CLIENTS = [
    Program("curl", "curl", "curl", ("--version",), curl, 8000),
    standard("http.client", "http_client"),
    standard("urlopen", "urlopen"),
    python("urllib3"),
    python("requests"),
    python("httpx"),
    python("aiohttp"),
    node("Node http", "http"),
    node("Node fetch", "fetch"),
    Program("Go net/http", "go", "golang-go", ("version",), GO_CLIENT, 8000),
    Program(
        "Java HttpClient", "java", "default-jdk-headless", ("--version",), JAVA_CLIENT, 8000
    ),
    python(
        "redis", 6379, "redis://server:6379/ ${{requests}}",
        {"answer": r"+PONG\r\n", "half": "+PO"},
    ),
    python(
        "psycopg2", 5432,
        "'host=server user=u dbname=d sslmode=disable gssencmode=disable' ${{requests}}",
        {
            "opening": f'recv; send "{GREETING}"',
            "greeting": GREETING,
            "answer": message("C", "SET") + READY,
            "half": message("C", "SET")[:-6],
        },
    ),
]  # fmt: skip

HAPROXY = """\
defaults
    mode {mode}
    timeout connect 5s
    timeout client 50s
    timeout server 50s
listen all
    bind :8000
    server one server:9000
"""
NGINX_HTTP = """\
access_log off;
    server { listen 8001; location / { proxy_pass http://server:9000; } }"""
NGINX_STREAM = """\
stream {
    server { listen 8000; proxy_pass server:9000; }
}
"""


def haproxy(mode: str) -> Program:
    """HAProxy, with the times of Debian's configuration."""

    def prepare(path: str, folder: Path) -> str:
        (folder / "haproxy.cfg").write_text(HAPROXY.format(mode=mode))
        return f"{path} -W -db -f {folder}/haproxy.cfg"

    return Program(f"HAProxy, {mode}", "haproxy", "haproxy", ("-v",), prepare, 8000)


def nginx(kind: str, port: int) -> Program:
    def prepare(path: str, folder: Path) -> str:
        module = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"
        return nginx_with(path, folder, NGINX_HTTP, module, NGINX_STREAM)

    packages = "nginx-light libnginx-mod-stream"
    return Program(f"nginx, {kind}", "nginx", packages, ("-v",), prepare, port)


def node_proxy(name: str, more: str = "") -> Program:
    run = written(f"{{path}} proxy.js {more}", HERE)
    return Program(name, "node", "nodejs", ("--version",), run, 8000)


PROXIES = [
    haproxy("tcp"),
    haproxy("http"),
    nginx("stream", 8000),
    nginx("http", 8001),
    node_proxy("Node pipe"),
    node_proxy("Node pipe, half open", "HALF-OPEN"),
]
