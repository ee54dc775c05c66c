"""What a record says of a server's calls, read from its events as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Events = Sequence[dict[str, Any]]


@dataclass
class Socket:
    """A socket of the server: the options that it set, with their values, and before which call:
    `bind`, `listen` or `""`. What failed is not set."""

    accepted: bool
    listens: bool = False
    at: str = "bind"
    options: dict[str, tuple[str, str]] = field(default_factory=dict)


def sockets(events: Events) -> list[Socket]:
    """All sockets that the server listened at, and that it accepted."""
    open_: dict[tuple[int, int], Socket] = {}
    found: list[Socket] = []
    for call in calls(events):
        pid, fd = call["pid"], call.get("fd", -1)
        name, result = call["name"], call.get("result", -1)
        if name == "fork" and result > 0:
            open_ |= {(result, n): s for (owner, n), s in list(open_.items()) if owner == pid}
        elif name == "socket":
            open_[pid, fd] = Socket(accepted=False)
            found.append(open_[pid, fd])
        elif name == "accept":
            open_[pid, result] = Socket(accepted=True, at="")
            found.append(open_[pid, result])
        elif name == "close":
            open_.pop((pid, fd), None)
        elif mine := open_.get((pid, fd)):
            if name == "set":
                _, option, value = call["call"].split(" ", 2)
                mine.options[option] = value, mine.at
            elif name == "bind":
                mine.at = "listen"
            elif name == "listen":
                mine.at, mine.listens = "", True
    return [socket for socket in found if socket.accepted or socket.listens]


def calls(events: Events) -> Iterator[dict[str, Any]]:
    """The server's calls that did what they should, in order."""
    for event in events:
        mine = event["kind"] == "call" and event["process"] == "server"
        if mine and event["phase"] == "done" and "errno" not in event:
            yield event


def reuse(found: Sequence[Socket]) -> str:
    """Whether and when the server's listeners set SO_REUSEADDR."""
    values = {socket.options.get("SO_REUSEADDR", ("", "")) for socket in found if socket.listens}
    words = {
        f"set to {value}, before {at}" if at else f"set to {value}, after listen" if value else "no"
        for value, at in values
    }
    return " / ".join(sorted(words)) or "not seen"


def others(found: Sequence[Socket], accepted: bool) -> str:
    """The other options that listeners set, or connections."""
    names = {
        f"{name} {value}" for socket in found if socket.accepted == accepted
        for name, (value, _) in socket.options.items() if name != "SO_REUSEADDR"
    }  # fmt: skip
    return ", ".join(f"`{name}`" for name in sorted(names)) or "–"


def unseen(events: Events) -> set[str]:
    """Why some of the server's calls are not told."""
    return {e["text"] for e in events if e["kind"] == "unseen" and e["process"] == "server"}


def starts(events: Events) -> Iterator[float]:
    """Seconds from each start of the server until a look shows that it listens."""
    begun: float | None = None
    for event in sorted(events, key=lambda event: float(event["t"])):
        if event["kind"] == "process" and event["process"] == "server":
            begun = event["t"] if event["phase"] == "start" else None
        elif event["kind"] == "sockets" and event["host"] == "server" and "LISTEN" in event["text"]:
            if begun is not None:
                yield event["t"] - begun
            begun = None
