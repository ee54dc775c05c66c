"""What a watch shows: live, each host's sockets with their timers, queues and owners; or a line for
what changed; and the causes in the end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding

from labctl.ground.invoked import command
from labctl.ground.output import tell
from labctl.judge.result import RunResult
from labctl.probes.sockets import Socket, describe_socket
from labctl.record.events import Event, SocketsEvent
from labctl.record.history import History
from labctl.record.holders import described, held_by
from labctl.reports import tables
from labctl.reports.terminal import Drawn, by_host, one_line, print_causes

if TYPE_CHECKING:
    from labctl.lab.watching import Watching
    from labctl.run.watch import Viewer

LINES = 12
"""How many lines one look takes at most: sockets that are new or changed, or all of a host's."""


@contextmanager
def viewer(lab: Watching) -> Iterator[Viewer]:
    """Shows a watch on stderr: live if that is a terminal, otherwise plain lines."""
    if sys.stderr is not None and sys.stderr.isatty():
        with LiveWatch(lab, tables.console(stderr=True)) as live:
            yield live
    else:
        yield PlainWatch()


class PlainWatch:
    """A line for each socket that is new, has another state or is gone."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[tuple[str, str], Socket]] = {}

    def event(self, event: Event, history: History) -> None:
        """See `Viewer`."""
        if not isinstance(event, SocketsEvent):
            return
        before = self._seen.get(event.host, {})
        now = {socket.ends: socket for socket in event.sockets}
        self._seen[event.host] = now
        lines = [
            described(history, event, socket)
            for ends, socket in now.items()
            if ends not in before or before[ends].state != socket.state
        ]
        lines += [f"gone: {describe_socket(s)}" for ends, s in before.items() if ends not in now]
        more = len(lines) - LINES
        for line in [*lines[:LINES], *([f"and {more} more"] if more > 0 else [])]:
            self.say(f"{event.host}: {event.t:8.3f} s  {line}")

    def say(self, line: str) -> None:
        """See `Viewer`."""
        tell(line)

    def tick(self) -> None:
        """See `Viewer`."""


class LiveWatch(Drawn):
    """Each host's sockets, with their timers counting down."""

    def __init__(self, lab: Watching, out: Console) -> None:
        self._lab = lab
        self._said = ""
        super().__init__(out, auto_refresh=False)

    def event(self, event: Event, history: History) -> None:
        """See `Viewer`."""

    def say(self, line: str) -> None:
        """See `Viewer`."""
        self._said = line

    def tick(self) -> None:
        """See `Viewer`. It draws in this thread, in which the history grows."""
        self._live.refresh()

    def _draw(self) -> RenderableType:
        history, now = self._lab.history, self._lab.now()
        if history.lab is None:
            return one_line("attached", "bold")
        lines = [
            (host, line)
            for host in history.hosts
            for line in _lines(history, history.sockets.get(host), now)
        ]
        title = one_line(f"watching for {now:.0f} s; Ctrl-C ends it", "bold")
        said = [one_line(self._said, "dim")] if self._said else []
        return Group(title, *said, Padding(by_host(lines), (0, 0, 0, 2)))


def _lines(history: History, look: SocketsEvent | None, now: float) -> list[str]:
    if look is None:
        return ["not seen yet"]
    sockets = look.sockets
    lines = [
        describe_socket(s, age=now - look.t, holders=held_by(history, look.host, s, look.t))
        for s in sockets[:LINES]
    ]
    if len(sockets) > LINES:
        lines.append(f"and {len(sockets) - LINES} more")
    return lines or ["no sockets"]


def print_watch(results: Sequence[RunResult], out: Console) -> None:
    """What caused what in the last record, and where all of them are."""
    last = results[-1]
    print_causes([(last.title, last.causes)], out)
    for sentence in last.beside:
        out.print(Padding(tables.words(sentence), (0, 0, 0, 2)))
    if last.result == "error":
        out.print(tables.words(f"it ended early: {last.reason}", "red"))
    for result in results:
        words = f"{command()} report {shlex.quote(str(result.folder))}"
        out.print(tables.words(f"  recorded, {result.lab_seconds:.1f} s: {words}"), soft_wrap=True)
