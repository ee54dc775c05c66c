"""What the server does, by Python's own sockets, and in a lab."""

import socket
import threading
from collections.abc import Callable

from server import Line, Server

import labctl

CLIENT = """
socket
connect server:8000
send "a line\\n"
recv 7
close
"""


def test_each_line_comes_back() -> None:
    with Server(("127.0.0.1", 0), Line) as server:
        threading.Thread(target=server.serve_forever).start()
        with (
            socket.create_connection(server.server_address) as client,
            client.makefile("rw") as file,
        ):
            file.write("one\ntwo\n")
            file.flush()
            assert [file.readline(), file.readline()] == ["one\n", "two\n"]
        server.shutdown()


def test_a_client_that_goes_leaves_nothing(labctl_lab: Callable[..., labctl.Lab]) -> None:
    lab = labctl_lab(
        hosts={
            "server": {"run": "python3 server.py 8000"},
            "client": {"calls": CLIENT},
        }
    )
    lab.start("server")
    lab.wait(sockets={"server": "LISTEN"}, within="30s")
    lab.start("client")
    lab.wait(sockets={"client": "TIME-WAIT", "server": "LISTEN"}, within="30s")
