"""What runs already, to be watched: the Watched protocol, and the names of hosts.

Something Watched starts a watcher (images/host/watch.py) in the network of each of its hosts, and
has no other part in them: it makes no host, sets nothing there, and leaves nothing behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from labctl.backends import Channel
from labctl.backends.capabilities import Lack

LONGEST = 50
TRACED_EVERY = "0.1"
"""Seconds between two reads of a tracer beside what runs: see images/host/tracer.py."""


class Watched(Protocol):
    """What is watched, by the names of its hosts; only these ports, if there are any. Methods raise
    LabError."""

    backend: str
    ports: Sequence[int]

    @property
    def names(self) -> Sequence[str]:
        """They grow with what is `added`."""

    def environment(self) -> dict[str, str | None]:
        """See `Backend`."""

    def attach(self, name: str) -> Channel:
        """Starts a watcher in the network that this host has now."""

    def detach(self, channel: Channel) -> None:
        """Ends a watcher."""

    def trace(self) -> Channel | Lack:
        """Starts a tracer (images/host/tracer.py), or says why there is none. Called once."""

    def calls(self, name: str) -> Channel | Lack:
        """Starts what tells the calls of processes of this host (images/peer/attach.py), or says
        why there is none."""

    def roots(self, name: str) -> Sequence[int]:
        """The processes whose calls to tell, with all that they start; none where it is those that
        hold the sockets."""

    def again(self, sure: bool = False) -> list[str]:
        """The hosts that were started again since they were attached to, as far as that was heard
        of; or, to be `sure`, all. That one does not run any more by then is for `attach` to say."""

    def added(self) -> list[str]:
        """The hosts that have come to it since the last call, and are among its names now."""

    def forget(self, name: str) -> None:
        """Takes out a host that could not be attached to."""

    def over(self) -> bool:
        """Whether nothing of it runs any more, or ever will."""

    def why(self) -> str:
        """What a program of ours said last on its standard error."""

    def down(self) -> None:
        """Ends all that it started. May be called at any time, also twice."""


def host_names(wanted: Iterable[str]) -> list[str]:
    """Names as a scenario may give them to hosts, each once: letters, digits and hyphens."""
    found: list[str] = []
    for text in wanted:
        plain = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:LONGEST].strip("-") or "host"
        name = f"host-{plain}" if plain.isdecimal() or plain.lower() == "localhost" else plain
        number = 2
        while name.lower() in {other.lower() for other in found}:
            name, number = f"{plain}-{number}", number + 1
        found.append(name)
    return found


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
