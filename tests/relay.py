"""A relay before an engine. It says when it listens, and ends with its standard input:

python tests/relay.py SOCKET ENGINE SECONDS    a socket before one; all comes late, both ways
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


async def relay(listening: socket.socket, engine: str, delay: float) -> None:
    loop = asyncio.get_running_loop()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            loop.call_later(delay, writer.write, data)
        loop.call_later(delay, writer.write_eof)

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(engine)
        await asyncio.gather(pass_on(reader, there[1]), pass_on(there[0], writer))

    async with await asyncio.start_server(both, sock=listening):
        print("listens", flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def delayed(folder: Path, engine: str, seconds: float) -> Iterator[str]:
    """The URL of a relay before the engine at a URL, as long as a `with`."""
    path = str(folder / "relay.sock")
    command = [sys.executable, __file__, path, engine.removeprefix("unix://"), str(seconds)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        yield f"unix://{path}"
        process.stdin.close()


if __name__ == "__main__":
    path, engine, seconds = sys.argv[1:]
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    asyncio.run(relay(listening, engine, float(seconds)))
