"""The names of sockets: `use` must name one that a call of the same process has given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from labctl.language.calls import CallError, each_of, named_by, parse_calls
from labctl.language.document import Expanded, Path_
from labctl.language.values import unknown


def misnamed(expanded: Expanded) -> Iterator[tuple[int, str]]:
    """The line and the message of each mistake. A `call` step may use the names of those before
    it, whatever `when` says."""
    known: dict[str, dict[str, None]] = defaultdict(dict)
    for process, text, path in texts(expanded.data):
        for line, offset in lines(text):
            for call in line:
                if name := named_by(call):
                    known[process][name] = None
                if call.name == "use" and call.args[0] not in known[process]:
                    message = unknown("name of a socket", call.args[0], known[process])
                    yield expanded.line_in(path, offset), message


def texts(data: Any) -> Iterator[tuple[str, str, Path_]]:
    """The calls of each process, and those of steps, in order."""
    for name, host in pairs(data, "hosts"):
        programs: list[tuple[str, Any, Path_]] = [(name, host, ("hosts", name))]
        for process, program in pairs(host, "processes"):
            programs.append((process, program, ("hosts", name, "processes", process)))
        for process, program, path in programs:
            if isinstance(program, dict) and isinstance(program.get("calls"), str):
                yield process, program["calls"], (*path, "calls")
    steps = data.get("steps")
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        for process, text in pairs(step, "call"):
            if isinstance(text, str):
                yield process, text, ("steps", index, "call", process)


def pairs(data: Any, key: str) -> list[tuple[str, Any]]:
    """What is below a key, if that is a mapping."""
    found = data.get(key) if isinstance(data, dict) else None
    return list(found.items()) if isinstance(found, dict) else []


def lines(text: str) -> Iterator[tuple[list[Any], int]]:
    """The calls of each line that can be read: others are mistakes already."""
    for offset, line in enumerate(text.split("\n")):
        try:
            yield list(each_of(parse_calls(line))), offset
        except CallError:
            continue
