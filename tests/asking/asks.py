"""Clients on libraries for Python: asks.py LIBRARY ADDRESS REQUESTS [SECONDS].

Makes so many requests, one after another, each within so many seconds if that is given, and writes
for each `ok` or its error. Then it keeps what it has, and does nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from importlib import import_module

PAUSE = 0.3
"""Seconds between two requests."""
Ask = Callable[[], object]


def of_http_client(address: str, seconds: float | None) -> Ask:
    server = HTTPConnection(address.split("/")[2], timeout=seconds)

    def ask() -> None:
        server.request("GET", "/")
        server.getresponse().read()

    return ask


def of_urlopen(address: str, seconds: float | None) -> Ask:
    return lambda: urllib.request.urlopen(address, timeout=seconds).read()


def of_requests(address: str, seconds: float | None) -> Ask:
    session = import_module("requests").Session()
    return lambda: session.get(address, timeout=seconds)


def of_urllib3(address: str, seconds: float | None) -> Ask:
    given = {"timeout": seconds} if seconds else {}
    pool = import_module("urllib3").PoolManager(**given)
    return lambda: pool.request("GET", address)


def of_httpx(address: str, seconds: float | None) -> Ask:
    given = {"timeout": seconds} if seconds else {}
    client = import_module("httpx").Client(**given)
    return lambda: client.get(address)


def of_redis(address: str, seconds: float | None) -> Ask:
    ask: Ask = import_module("redis").Redis.from_url(address, socket_timeout=seconds).ping
    return ask


def of_psycopg2(address: str, seconds: float | None) -> Ask:
    pool = import_module("psycopg2.pool").SimpleConnectionPool(1, 1, address)

    def ask() -> None:
        connection = pool.getconn()
        connection.autocommit = True
        try:
            connection.cursor().execute("SET search_path TO public")
        finally:
            pool.putconn(connection)

    return ask


async def aiohttp(address: str, requests: int, seconds: float | None) -> None:
    module = import_module("aiohttp")
    given = {"timeout": module.ClientTimeout(total=seconds)} if seconds else {}
    async with module.ClientSession(**given) as session:
        for _ in range(requests):
            with told():
                async with session.get(address) as response:
                    await response.read()
            await asyncio.sleep(PAUSE)
        await asyncio.sleep(600)


@contextlib.contextmanager
def told() -> Iterator[None]:
    try:
        yield
        print("ok", flush=True)
    except Exception as exc:
        print(f"{type(exc).__name__}: {exc}", flush=True)


def main(library: str, address: str, requests: str, seconds: str = "") -> None:
    limit = float(seconds) if seconds else None
    if library == "aiohttp":
        asyncio.run(aiohttp(address, int(requests), limit))
    ask = globals()[f"of_{library}"](address, limit)
    for _ in range(int(requests)):
        with told():
            ask()
        time.sleep(PAUSE)
    time.sleep(600)


main(*sys.argv[1:])
