"""The language of socket calls: the peer program's own parser, so that there is one of them."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any, NamedTuple

from labctl.resources import images


class Call(NamedTuple):
    """One call: see `Call` of images/peer/calls.py."""

    name: str
    args: tuple[Any, ...]
    tolerant: bool
    text: str
    offset: int


@cache
def part(name: str) -> Any:
    """A part of the peer program as a module."""
    file = images() / "peer" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"labctl_peer_{name}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peer() -> Any:
    """The peer program's calls as a module."""
    return part("calls")


class CallError(ValueError):
    """A line that is no call; `offset` is its place in the text, counted from 0."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset


def parse_calls(text: str) -> list[Call]:
    """The calls of a text. Raises CallError."""
    try:
        return [Call(*call) for call in peer().parse(text)]
    except peer().CallError as exc:
        raise CallError(exc.offset, str(exc)) from exc
