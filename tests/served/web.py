"""An application for gunicorn (`wsgi`), and one for uvicorn (`asgi`)."""

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any


def answer(path: str) -> bytes:
    return Path("big").read_bytes() if path == "/big" else b"hello\n"


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(
    scope: dict[str, Any], receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]
) -> None:
    if scope["type"] == "http":
        body = answer(scope["path"])
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})
