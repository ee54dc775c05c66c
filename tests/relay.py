"""A relay before the socket of an engine, which passes everything on late, both ways:

    python tests/relay.py SOCKET ENGINE SECONDS

It says `up` when it listens, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


async def relay(path: str, engine: str, delay: float) -> None:
    loop = asyncio.get_running_loop()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            loop.call_later(delay, writer.write, data)
        loop.call_later(delay, writer.write_eof)

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(engine)
        await asyncio.gather(pass_on(reader, there[1]), pass_on(there[0], writer))

    async with await asyncio.start_unix_server(both, path):
        print("up", flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def relayed(folder: Path, engine: str, delay: float) -> Iterator[str]:
    """The URL of a relay before the engine at a URL, as long as a `with`."""
    path = folder / "relay.sock"
    words = [sys.executable, __file__, str(path), engine.removeprefix("unix://"), str(delay)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"up\n"
        yield f"unix://{path}"


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1], sys.argv[2], float(sys.argv[3])))
