"""A relay before an engine. It says where it listens, and ends with its standard input:

python tests/relay.py late SOCKET ENGINE SECONDS    a socket before one; all comes late, both ways
python tests/relay.py into PID PORT                 a port here before one in a process' network
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def relay(
    listening: socket.socket, connect: Callable[[], Awaitable[Streams]], delay: float
) -> None:
    loop = asyncio.get_running_loop()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            loop.call_later(delay, writer.write, data)
        loop.call_later(delay, writer.write_eof)

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await connect()
        await asyncio.gather(pass_on(reader, there[1]), pass_on(there[0], writer))

    async with await asyncio.start_server(both, sock=listening):
        print(listening.getsockname(), flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


def late(path: str, engine: str, seconds: str) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    asyncio.run(relay(listening, lambda: asyncio.open_unix_connection(engine), float(seconds)))


def into(pid: str, port: str) -> None:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    with Path(f"/proc/{pid}/ns/net").open() as space:
        assert ctypes.CDLL(None).setns(space.fileno(), CLONE_NEWNET) == 0
    asyncio.run(relay(listening, lambda: asyncio.open_connection("127.0.0.1", int(port)), 0.0))


@contextmanager
def _running(*words: str) -> Iterator[str]:
    command = [sys.executable, __file__, *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        yield process.stdout.readline().strip()
        process.stdin.close()


@contextmanager
def delayed(folder: Path, engine: str, seconds: float) -> Iterator[str]:
    """The URL of a relay before the engine at a URL, as long as a `with`."""
    path = str(folder / "relay.sock")
    with _running("late", path, engine.removeprefix("unix://"), str(seconds)):
        yield f"unix://{path}"


@contextmanager
def entering(pid: int, port: int) -> Iterator[str]:
    """The same before a port of 127.0.0.1 in the network of a process."""
    with _running("into", str(pid), str(port)) as where:
        yield f"tcp://127.0.0.1:{where.strip('()').split()[1]}"


if __name__ == "__main__":
    if sys.argv[1] == "late":
        late(*sys.argv[2:])
    else:
        into(*sys.argv[2:])
