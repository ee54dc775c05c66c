"""The language of socket calls: the peer program's own parser, so that there is only one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from labctl.ground.resources import peer_module

REPEATS = re.compile(r"repeat\b").match


class Call(NamedTuple):
    """One call: see `Call` of images/peer/calls.py."""

    name: str
    args: tuple[Any, ...]
    tolerant: bool
    text: str
    offset: int


def peer() -> Any:
    """The peer program's calls as a module."""
    return peer_module("calls", "options")


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


def each_read(line: str) -> Iterator[Call | str]:
    """Each call of a line, or what is wrong with it. What a `repeat` repeats is one with it."""
    try:
        found = [source for _, source in peer().statements(line, 0)]
    except peer().CallError as exc:
        yield str(exc)
        return
    for text in [line] if any(map(REPEATS, found)) else found:
        try:
            yield from each_of(parse_calls(text))
        except CallError as exc:
            yield str(exc)


def each_of(calls: Iterable[Call]) -> Iterator[Call]:
    """The calls, and instead of a `repeat` those that it repeats."""
    for call in calls:
        if call.name == "repeat":
            yield from (Call(*inner)._replace(offset=call.offset) for inner in call.args[1])
        else:
            yield call


def host_of(call: Call) -> str:
    """The host that a call names; empty for none."""
    match call:
        case Call("bind" | "connect", (str(host), _)):
            return host
        case Call("send", (_, _, _, _, (str(host), _))):
            return host
        case Call("set", ("TCP_MD5SIG", (str(host), _))):
            return host
    return ""


def named_by(call: Call) -> str:
    """The name that a call gives to the socket that it makes; empty for none."""
    given = {"socket": call.args[1:], "accept": call.args}.get(call.name, ())
    return str(given[0]) if given else ""
