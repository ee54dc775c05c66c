"""What the controller and the program in a guest (guest.py) say to each other; see protocol.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labctl.backends.protocol import Packets
from labctl.backends.wire import Answer, Command, Program, Said


class Booted(Said, kind="booted", added=8):
    """It waits for a Greet."""


class Greeted(Said, kind="ready", added=8):
    """It waits for cases, on this kernel."""

    kernel: str


class Tick(Said, kind="tick", added=8):
    """Its clock has come to `t`: it is alive."""


class Happened(Said, kind="event", added=8):
    """An event, as a line of history.jsonl."""

    line: str


class Captured(Packets, kind="captured", added=8):
    """What a host captured."""

    host: str


class CaseEnded(Said, kind="ended", added=8):
    """How a case ended: the fields of `Ended` (run/runner.py)."""

    how: dict[str, Any]


class Greet(Command[Answer], do="hello", added=8):
    """Sets the clock to `wall`, mixes the random numbers with `seed` (hex), and says what the guest
    runs in. Greeted is the answer."""

    wall: float
    seed: str
    engine: str
    virtual: bool


class RunCase(Command[Answer], do="case", added=8):
    """Runs one case of a scenario's text, with the params that were set."""

    source: str
    name: str
    text: str
    sets: Mapping[str, str]
    case: str


GUEST = Program((Booted, Greeted, Tick, Happened, Captured, CaseEnded), (Greet, RunCase))
