"""A server that answers each line with the same line: `python3 server.py PORT`."""

import socket
import socketserver
import sys


class Line(socketserver.StreamRequestHandler):
    def setup(self) -> None:
        super().setup()
        # Or the connection of a client that vanished stays for ever.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True  # or it can't be started again while an old connection ends
    daemon_threads = True


if __name__ == "__main__":
    with Server(("", int(sys.argv[1])), Line) as server:
        server.serve_forever()
