"""A server on Python's socketserver, as short as it can be: lines.py [REUSE]."""

import socketserver
import sys
from pathlib import Path


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        big = b"/big" in self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        self.wfile.write(Path("big").read_bytes() if big else b"hello\n")


socketserver.ThreadingTCPServer.allow_reuse_address = "REUSE" in sys.argv
with socketserver.ThreadingTCPServer(("", 8000), Handler) as server:
    server.serve_forever()
