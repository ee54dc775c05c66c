"""Who held a socket at a time: what supervisors say of inodes, and the looks that show them.

A supervisor is asked whenever the controller asks for a look. Of its reports the nearest counts. An
earlier one holds as long as each look since then shows the inode, which another socket may get
later, and the process has not ended."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import field

from labctl.ground.data import dataclass
from labctl.probes.holders import Held, Holder
from labctl.probes.sockets import Socket, SsParseError, describe_socket
from labctl.record.events import HoldersEvent, ProcessEvent, Shown, SocketsEvent
from labctl.record.history import History

SOON = 1.0
"""Seconds after a look within which a report tells of it: both were asked for at once."""

Start = tuple[str, int]
"""A start of a process, by its name and number."""


def held_by(history: History, host: str, socket: Socket, t: float) -> tuple[Holder, ...]:
    """Those who held a socket that a look at `t` showed; empty if nobody can know."""
    return _known(history).of(host, socket, t)


def described(history: History, look: SocketsEvent, socket: Socket) -> str:
    """A socket that a look showed, with its holders, in words."""
    return describe_socket(socket, holders=held_by(history, look.host, socket, look.t))


def told(
    history: History, look: SocketsEvent, sockets: Iterable[Socket]
) -> tuple[tuple[str, ...], tuple[Held, ...]]:
    """Sockets that a look showed, each in words; and those whose holders are known, as data."""
    known, words, held = _known(history), [], []
    for socket in sockets:
        by = known.of(look.host, socket, look.t)
        words.append(describe_socket(socket, holders=by))
        if by:
            held.append(Held(socket.ends, by))
    return tuple(words), tuple(held)


def _known(history: History) -> Holders:
    if "holders" not in history.derived:
        history.derived["holders"] = None, Holders()
    found: Holders = history.derived["holders"][1]
    found.follow(history)
    return found


@dataclass
class _Host:
    """What was said of a host: reports, by inode, and when; when each inode was last reported, and
    when looks did not show it any more; and which pids ended when, -1 for all."""

    times: dict[Start, list[float]] = field(default_factory=lambda: defaultdict(list))
    reports: dict[Start, list[dict[int, list[Holder]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    reported: dict[int, float] = field(default_factory=dict)
    missed: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    shown: Shown = field(default_factory=lambda: Shown(lambda socket: bool(socket.inode)))
    ended: dict[Start, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))


class Holders:
    """What the events of a history tell of holders, as far as they have been followed."""

    def __init__(self) -> None:
        self._followed = 0
        self._starts: Counter[str] = Counter()
        self._hosts: dict[str, _Host] = defaultdict(_Host)

    def follow(self, history: History) -> None:
        """Takes in what has happened since the last time."""
        if self._followed == len(history.events):
            return
        for event in history.events.since(self._followed):
            match event:
                case SocketsEvent():
                    self._look(event)
                case HoldersEvent():
                    self._report(event)
                case ProcessEvent(phase="start"):
                    self._starts[event.process] += 1
                case ProcessEvent():
                    pid = -1 if event.phase == "gone" else event.pid or 0
                    ended = self._hosts[event.host].ended
                    ended[self._start(event)].append((event.t, pid))
        self._followed = len(history.events)

    def of(self, host: str, socket: Socket, t: float) -> tuple[Holder, ...]:
        """See `held_by`."""
        here = self._hosts.get(host)
        if not socket.inode or here is None:
            return ()
        found: list[Holder] = []
        for start, times in here.times.items():
            after = bisect_right(times, t)
            near = [n for n in (after - 1, after) if 0 <= n < len(times) and times[n] <= t + SOON]
            if not near:
                continue
            nearest = min(near, key=lambda number: abs(times[number] - t))
            said = times[nearest]
            if any(said < missed <= t for missed in here.missed.get(socket.inode, ())):
                continue
            ended = {pid for at, pid in here.ended.get(start, ()) if said < at <= t}
            told = here.reports[start][nearest].get(socket.inode, ())
            found += [holder for holder in told if not {-1, holder.pid} & ended]
        return tuple(found)

    def _look(self, event: SocketsEvent) -> None:
        here = self._hosts[event.host]
        with suppress(SsParseError):
            here.shown.follow(event)
        there = {socket.inode for _, socket in here.shown.there.values()}
        for inode in here.reported.keys() - there:
            if here.reported[inode] < event.t:
                here.missed[inode].append(event.t)
                del here.reported[inode]

    def _report(self, event: HoldersEvent) -> None:
        found: dict[int, list[Holder]] = {}
        start = self._start(event)
        for pid, sockets in event.sockets.items():
            numbers: dict[int, list[int]] = {}
            for descriptor, inode in sockets.items():
                numbers.setdefault(inode, []).append(int(descriptor))
            for inode, each in numbers.items():
                command = event.commands.get(pid, "")
                holder = Holder(*start, int(pid), command, tuple(sorted(each)))
                found.setdefault(inode, []).append(holder)
        here = self._hosts[event.host]
        here.times[start].append(event.t)
        here.reports[start].append(found)
        here.reported.update(dict.fromkeys(found, event.t))

    def _start(self, event: HoldersEvent | ProcessEvent) -> Start:
        return event.process, event.start or self._starts[event.process]
