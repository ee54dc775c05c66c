"""What the controller says to the launcher and to the world of a lab (both are world.py), and they
to it; see protocol.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from labctl.backends.protocol import Done, Hello
from labctl.backends.wire import Answer, Command, Program, Said


class Began(Said, kind="began", added=11):
    """A lab's processes: the world, and the tracer if there is one."""

    pids: list[int]


class Launch(Command[Answer], do="launch", added=11):
    """Forks a lab, with this argument of the tracer, and this environment. `rights`: all that its
    processes may keep, see Rights. Began is the answer."""

    run: str
    environ: Mapping[str, str]
    rights: Sequence[int]


class Gone(Said, kind="gone"):
    """All of a process is gone; its supervisor ended with this status (wait(2))."""

    name: str
    pid: int
    status: int


class Forked(Answer):
    """The new process."""

    pid: int


class End(TypedDict):
    """An interface of a host: its addresses, each with the length of its network, and the bridge to
    which it leads. The first one to name a bridge makes it."""

    device: str
    bridge: str
    addresses: Sequence[str]


class AddHost(Command[Forked], do="host"):
    """Makes a network namespace with these sysctls, interfaces and an agent, which gets the channel
    of this message, and a file that is /etc/hosts there: the agent writes it."""

    name: str
    sysctls: Mapping[str, str]
    ends: Sequence[End]


class Work(TypedDict):
    """Socket calls, or else a program, with `env` beside its environment; whether to tell its
    calls."""

    calls: str | None
    run: Sequence[str] | None
    env: Mapping[str, str]
    watch: Literal["calls", "io"] | None


class Rights(TypedDict):
    """Another user, or None; and the capabilities(7) that are kept, by number."""

    uid: int | None
    kept: Sequence[int]


class Spawn(Command[Forked], do="spawn"):
    """Starts a process below a supervisor, which gets the channel of this message."""

    name: str
    host: str
    what: Work
    rights: Rights


class Kill(Command[Done], do="kill"):
    """Sends SIGKILL to a supervisor and all below it; a Gone follows when that is over."""

    pid: int


LAUNCHER = Program((Began,), (Launch,))
WORLD = Program((Hello, Gone), (AddHost, Spawn, Kill))
