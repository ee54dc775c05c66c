"""A Docker engine that answers, has what it is told, and refuses whatever else it is asked for."""

from __future__ import annotations

import json
import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Thread

LISTS: dict[str, object] = {
    "/containers/json": [],
    "/networks": [],
    "/volumes": {"Volumes": None},
    "/_ping": "OK",
}
"""What it has of each kind, by the ends of the paths that ask for it."""


class Engine(socketserver.ThreadingUnixStreamServer):
    """`asked` has the paths of all requests."""

    def __init__(self, path: Path, has: dict[str, object]) -> None:
        super().__init__(str(path), Answer)
        self.has = LISTS | has
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        found = [has for end, has in self.server.has.items() if path.endswith(end)]
        body = json.dumps(found[0] if found else {"message": "this engine is broken"}).encode()
        self.send_response(200 if found else 500)
        self.send_header("Api-Version", "1.41")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class WantsKeys(Answer):
    """What dockerd says behind TLS to who speaks none."""

    def do_GET(self) -> None:
        self.send_response(400)
        self.end_headers()
        self.wfile.write(b"Client sent an HTTP request to an HTTPS server.\n")


@contextmanager
def engine(path: Path, **has: object) -> Iterator[Engine]:
    """An engine at a socket of this path, with what it `has`, by the ends of paths."""
    with Engine(path, {f"/{end}": what for end, what in has.items()}) as found:
        thread = Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield found
        finally:
            found.shutdown()
            thread.join()
