"""Who holds a socket: a process that has it open, as its supervisor tells or its calls do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from labctl.ground.reading import Checked

NAMED, NUMBERED = 3, 3
"""How many holders of a socket have a name, and how many descriptors of each a number, at most."""
Number = Annotated[str, Checked(lambda text: str(int(text)), pattern=r"^\d+$")]
"""A pid or a descriptor, as a key of JSON."""


@dataclass(frozen=True)
class Holder:
    """A process that has a socket open. `process` is the scenario's name of what started it, and
    `start` the number of that start; `pid` counts in the PID namespace of the process. Calls tell
    no `command`, and no `descriptors`."""

    process: str
    start: int
    pid: int
    command: str = ""
    descriptors: tuple[int, ...] = ()

    def __str__(self) -> str:
        words = [f"pid {self.pid}", *([self.command] if self.command else [])]
        if self.descriptors:
            more = "..." if len(self.descriptors) > NUMBERED else ""
            words.append(f"fd {' '.join(map(str, self.descriptors[:NUMBERED]))}{more}")
        return f"{self.process} ({', '.join(words)})"


@dataclass(frozen=True)
class Held:
    """A socket, by its ends, and who holds it."""

    ends: tuple[str, str]
    by: tuple[Holder, ...]


def named(holders: Sequence[Holder]) -> str:
    """`server (pid 2, python3, fd 3) and server (pid 3, python3, fd 3)`; of many the first ones."""
    words = [str(holder) for holder in holders[:NAMED]]
    if len(holders) > NAMED:
        words.append(f"{len(holders) - NAMED} more")
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
