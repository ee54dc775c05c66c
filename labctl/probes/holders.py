"""Who holds a socket: a process that has it open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from labctl.ground.data import dataclass
from labctl.ground.plain import plain
from labctl.ground.reading import Checked

NAMED, NUMBERED = 3, 3
"""How many holders of a socket have a name, and how many descriptors of each a number, at most."""
Number = Annotated[str, Checked(lambda text: str(int(text)), pattern=r"^\d+$")]
"""A pid or a descriptor, as a key of JSON."""


@dataclass(frozen=True)
class Holder:
    """A process that has a socket open. `process` is the scenario's name of what started it, and
    `start` the number of that start; `pid` counts in the PID namespace of the process."""

    process: str
    start: int
    pid: int
    command: str
    descriptors: tuple[int, ...]

    def __str__(self) -> str:
        numbers = " ".join(map(str, self.descriptors[:NUMBERED]))
        more = "..." if len(self.descriptors) > NUMBERED else ""
        words = (f"pid {self.pid}", plain(self.command), f"fd {numbers}{more}")
        return f"{self.process} ({', '.join(filter(None, words))})"


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
