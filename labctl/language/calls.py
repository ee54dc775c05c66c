"""The language of socket calls: the peer program's own parser, so that there is only one."""

from __future__ import annotations

from typing import Any, NamedTuple

from labctl.ground.resources import peer_module


class Call(NamedTuple):
    """One call: see `Call` of images/peer/calls.py."""

    name: str
    args: tuple[Any, ...]
    tolerant: bool
    text: str
    offset: int


def peer() -> Any:
    """The peer program's calls as a module."""
    return peer_module("calls")


class CallError(ValueError):
    """A line that is no call; `offset` is its number in the text, from 0 on."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset


def parse_calls(text: str) -> list[Call]:
    """The calls of a text. Raises CallError."""
    try:
        return [Call(*call) for call in peer().parse(text)]
    except peer().CallError as exc:
        raise CallError(exc.offset, str(exc)) from exc
