"""Calls that strace(1) wrote down: from its lines to events."""

from __future__ import annotations

import errno
import os
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from labctl.ground import errnos
from labctl.ground.data import dataclass
from labctl.ground.errors import UsageError
from labctl.ground.plain import shown
from labctl.ground.reading import MAX_RESULT, read_file
from labctl.record.events import CallEvent, Event, ProcessEvent, UnseenEvent

LONGEST = 1 << 16
"""Octets of a line, at most."""
NEAR = 0.1
"""Seconds between a call and what its connection then sends, at most."""
DAY, ZONE = 86_400.0, 900.0
"""Seconds of a day, and by how many seconds zones differ."""
TTT = "trace with `strace -f -ttt`"
LINE = re.compile(
    r"(?:\[pid +(\d{1,9})\] |(\d{1,9}) )? *"
    r"(?:(\d{9,10}\.\d{1,9})|(\d\d):(\d\d):(\d\d(?:\.\d{1,9})?)) (.*)",
    re.ASCII,
)
DONE = re.compile(r"(\w+)\((.*)\) += +(-?\w+|\?)(?: (E[A-Z0-9]+))?.*", re.ASCII)
BEGUN = re.compile(r"(\w+)\((.*) <unfinished \.\.\.>", re.ASCII)
RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)", re.ASCII)
GONE = re.compile(r"\+\+\+ (?:exited with (\d+)|killed by SIG(\w+)).* \+\+\+", re.ASCII)
NO_CALL = ("--- ", "strace: ", "<detached ...>")
FOUR = re.compile(r'sa_family=AF_INET, sin_port=htons\((\d+)\), sin_addr=inet_addr\("([\d.]+)"\)')
SIX = re.compile(r'sin6_port=htons\((\d+)\).*?inet_pton\(AF_INET6, "([\da-fA-F:.]+)"')
LINGER = re.compile(r"\{l_onoff=(\d+), l_linger=(\d+)\}")
ENDS = {"SHUT_RD": "rd", "SHUT_WR": "wr", "SHUT_RDWR": "rdwr"}
READS = {"read", "readv", "recv", "recvfrom", "recvmsg"}
WRITES = {"write", "writev", "send", "sendto", "sendmsg"}
FORKS = {"clone", "clone3", "fork", "vfork"}
SEEN = ["socket", "bind", "listen", "accept", "connect", "shutdown", "set"]
"""The calls that strace tells by `trace=network`."""


@dataclass(frozen=True)
class _Call:
    """A line, or two, of strace: which thread did what, from when to when, and what came of it."""

    line: int
    thread: int
    t: float
    until: float
    name: str
    args: str
    result: int
    errno: str | None

    @property
    def fd(self) -> int:
        """The descriptor that it names first; negative if it names none."""
        found = re.match(r"\d{1,9}", self.args)
        return int(found[0]) if found else -1

    @property
    def words(self) -> list[str]:
        """What it was given, as far as no comma stands within that."""
        return [word.strip() for word in self.args.split(",")]


Ways = Mapping[str, Sequence[tuple[float, str, str]]]
"""Who asked for connections, by either end: when, from where, to where; in order of time."""


def read_calls(path: Path, host: str, span: tuple[float, float], ways: Ways) -> list[Event]:
    """The events in a file of strace, of one program of a host, with times in seconds since 1970.
    `span` is what the host's capture shows, for times without a date. Raises UsageError, with the
    line."""
    try:
        text = read_file(path, MAX_RESULT).decode("utf-8", "replace")
    except OSError as exc:
        raise UsageError(f"{path}: can't be read: {exc.strerror}") from exc
    found = list(_Strace(path, span).entries(text.splitlines()))
    if not found:
        raise UsageError(f"{path}: it has no line of strace with a time", TTT)
    return list(_Program(host, ways, found).events())


_Entry = _Call | tuple[float, int, re.Match[str]]
"""A call, or that a thread is gone: when, which, and how."""


@dataclass
class _Strace:
    """A file that is read line by line."""

    path: Path
    span: tuple[float, float]
    _shift: float | None = None
    _last: float = 0.0
    _open: dict[int, tuple[int, float, str, str]] = field(default_factory=dict)

    def entries(self, lines: Sequence[str]) -> Iterator[_Entry]:
        """What the lines tell. Those without a time are a program's own, or strace's."""
        for number, line in enumerate(lines, 1):
            found = LINE.fullmatch(line) if len(line) <= LONGEST else None
            if found is None:
                continue
            tagged, plain, epoch, hours, minutes, seconds, rest = found.groups()
            thread = int(tagged or plain or 0)
            clock = hours and 3600 * int(hours) + 60 * int(minutes) + float(seconds)
            t = float(epoch) if epoch else self._dated(float(clock), number)
            yield from self._entry(number, thread, t, rest)

    def _entry(self, number: int, thread: int, t: float, rest: str) -> Iterator[_Entry]:
        if gone := GONE.fullmatch(rest):
            yield t, thread, gone
        elif begun := BEGUN.fullmatch(rest):
            self._open[thread] = number, t, begun[1], begun[2]
        elif resumed := RESUMED.fullmatch(rest):
            first, since, name, args = self._open.pop(thread, (number, t, resumed[1], ""))
            yield from self._done(first, thread, (since, t), f"{name}({args}{resumed[2]}")
        elif not rest.startswith(NO_CALL):
            yield from self._done(number, thread, (t, t), rest)

    def _done(
        self, number: int, thread: int, times: tuple[float, float], text: str
    ) -> Iterator[_Call]:
        found = DONE.fullmatch(text)
        if found is None:
            raise UsageError(f"{self.path}:{number}: no line of strace: {shown(text)}")
        name, args, result, failure = found.groups()
        if result == "?":
            return  # it never returned
        value = int(result, 0) if re.fullmatch(r"-?\d{1,18}|0x[\da-f]{1,16}", result) else 0
        yield _Call(number, thread, *times, name, args, value, failure)

    def _dated(self, clock: float, number: int) -> float:
        """A time of a day: in the zone, and on the day, that the capture allows, if only one is."""
        if self._shift is None:
            begin, end = self.span
            start = begin - begin % DAY - DAY + clock
            fits = [
                n * ZONE for n in range(int(3 * DAY / ZONE))
                if begin - 60 <= start + n * ZONE <= end + 60
            ]  # fmt: skip
            if len(fits) != 1:
                raise UsageError(f"{self.path}:{number}: a time without a date", TTT)
            self._shift = start - clock + fits[0]
        if clock + self._shift < self._last - DAY / 2:
            self._shift += DAY
        self._last = clock + self._shift
        return self._last


@dataclass
class _Program:
    """A program of a host: which of its descriptors are TCP sockets, and what they wait for."""

    host: str
    ways: Ways
    entries: Sequence[_Entry]
    sockets: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    connecting: dict[tuple[int, int], CallEvent] = field(default_factory=dict)
    process_of: dict[int, int] = field(default_factory=dict)

    def events(self) -> Iterator[Event]:
        """Its events, in order of time."""
        calls = [each for each in self.entries if isinstance(each, _Call)]
        first = self.entries[0]
        main, begun = (first.thread, first.t) if isinstance(first, _Call) else (first[1], first[0])
        found: list[Event] = []
        for entry in self.entries:
            if isinstance(entry, _Call):
                found += self._told(entry, main)
            elif entry[1] == main:
                t, _, gone = entry
                status = int(gone[1]) if gone[1] else None
                found.append(ProcessEvent(t, self.host, self.host, "exit", main, status, gone[2]))
        yield ProcessEvent(begun, self.host, self.host, "start", main, watch="calls")
        if not any(call.name == "close" for call in calls):
            why = "strace did not trace close (-e trace=%network,%process,close)"
            yield UnseenEvent(begun, self.host, self.host, why, SEEN)
        yield from sorted(found, key=lambda event: event.t)

    def _told(self, call: _Call, main: int) -> Iterator[CallEvent]:
        process = self.process_of.get(call.thread, main)
        if call.name in FORKS:
            if call.result > 0:
                thread = "CLONE_THREAD" in call.args
                self.process_of[call.result] = process if thread else call.result
                if not thread:
                    self.sockets[call.result] = dict(self.sockets[process])
                    yield from self._both(call, process, "fork", "fork", result=call.result)
            return
        mine = self.sockets[process]
        words = call.words
        if call.name == "socket":
            family = {"AF_INET": "tcp", "AF_INET6": "tcp6"}.get(words[0])
            if family and len(words) > 1 and words[1].startswith("SOCK_STREAM") and not call.errno:
                mine[call.result] = family
                yield from self._both(call, process, "socket", f"socket {family}", fd=call.result)
            return
        told = TELLING.get(call.name)
        if told and (call.fd in mine or call.name in ("listen", "accept", "accept4")):
            yield from told(self, call, process)

    def _both(
        self, call: _Call, process: int, name: str, text: str, **more: Any
    ) -> Iterator[CallEvent]:
        """The call's beginning and its end."""
        thread = call.thread if call.thread != process else None
        fd = more.pop("fd", None if name == "fork" else call.fd)
        known = {key: more.pop(key) for key in ("peer", "local") if key in more}
        enter = CallEvent(
            call.t, self.host, self.host, process, "enter", text, name, fd=fd, thread=thread,
            **known,
        )  # fmt: skip
        yield enter
        yield replace(
            enter, t=call.until, phase="done", errno=call.errno, error=_words(call.errno), **more
        )

    def _bind(self, call: _Call, process: int) -> Iterator[CallEvent]:
        if end := _end(call.args):
            asked = end.removeprefix("0.0.0.0")
            yield from self._both(call, process, "bind", f"bind {asked}", local=end)

    def _listen(self, call: _Call, process: int) -> Iterator[CallEvent]:
        self.sockets[process].setdefault(call.fd, "tcp")
        yield from self._both(call, process, "listen", f"listen {call.words[-1]}")

    def _accept(self, call: _Call, process: int) -> Iterator[CallEvent]:
        if call.errno == "EAGAIN":
            return
        peer = _end(call.args)
        ways = self._ways(peer or "", call.until)
        local = next((to for _, source, to in ways if source == peer), None)
        if not call.errno:
            self.sockets[process][call.result] = "tcp"
        found = {"result": call.result} if not call.errno else {}
        yield from self._both(call, process, "accept", "accept", peer=peer, local=local, **found)

    def _connect(self, call: _Call, process: int) -> Iterator[CallEvent]:
        peer = _end(call.args)
        if peer is None:
            return
        ways = self._ways(peer, call.until + NEAR)
        asked = [source for t, source, to in ways if to == peer and t >= call.t - NEAR]
        local = asked[-1] if asked else None
        enter, done = self._both(
            call, process, "connect", f"connect {peer}", peer=peer, local=local
        )
        yield enter
        if call.errno == "EINPROGRESS":
            self.connecting[process, call.fd] = done
        else:
            yield done

    def _asked(self, call: _Call, process: int) -> Iterator[CallEvent]:
        """How a connect went that did not block."""
        found = re.search(r"SO_ERROR, \[(\w+)\]", call.args)
        waiting = self.connecting.pop((process, call.fd), None) if found else None
        if found and waiting:
            numbers = {str(number): name for name, number in errnos.LINUX.items()}
            name = None if found[1] == "0" else numbers.get(found[1], found[1])
            yield replace(waiting, t=call.until, errno=name, error=_words(name))

    def _ways(self, end: str, until: float) -> list[tuple[float, str, str]]:
        """The connections that one of whose ends this is, asked for by then, the latest first."""
        found = self.ways.get(end, ())
        return [*found[: bisect_right(found, until, key=lambda way: way[0])]][::-1]

    def _set(self, call: _Call, process: int) -> Iterator[CallEvent]:
        words = call.words
        if len(words) < 4 or not words[2].isidentifier():
            return
        linger, number = LINGER.search(call.args), re.search(r"\[(-?\d{1,10})\]", call.args)
        value = " ".join(linger.groups()) if linger else number[1] if number else None
        if value is not None:
            yield from self._both(call, process, "set", f"set {words[2]} {value}")

    def _shutdown(self, call: _Call, process: int) -> Iterator[CallEvent]:
        how = ENDS.get(call.words[-1].split()[0])
        if how:
            yield from self._both(call, process, "shutdown", f"shutdown {how}")

    def _close(self, call: _Call, process: int) -> Iterator[CallEvent]:
        self.sockets[process].pop(call.fd, None)
        yield from self._both(call, process, "close", "close")

    def _moved(self, call: _Call, process: int) -> Iterator[CallEvent]:
        if call.errno == "EAGAIN":
            return
        name = "recv" if call.name in READS else "send"
        found: dict[str, Any] = {} if call.errno else {"result": call.result}
        if name == "recv" and not call.errno:
            found["eof"] = call.result == 0
        yield from self._both(call, process, name, name, **found)


TELLING: dict[str, Callable[[_Program, _Call, int], Iterator[CallEvent]]] = {
    "bind": _Program._bind,
    "listen": _Program._listen,
    "accept": _Program._accept,
    "accept4": _Program._accept,
    "connect": _Program._connect,
    "getsockopt": _Program._asked,
    "setsockopt": _Program._set,
    "shutdown": _Program._shutdown,
    "close": _Program._close,
    **dict.fromkeys((*READS, *WRITES), _Program._moved),
}


def _words(name: str | None) -> str | None:
    """What an error means."""
    number = getattr(errno, name, None) if name else None
    return None if number is None else os.strerror(number)


def _end(args: str) -> str | None:
    """The address and the port in what a call was given; plain IPv4 for an IPv4-mapped address."""
    if found := FOUR.search(args):
        return f"{found[2]}:{int(found[1])}"
    if found := SIX.search(args):
        host = found[2].removeprefix("::ffff:") if "." in found[2] else found[2]
        return f"{host}:{int(found[1])}" if "." in host else f"[{host}]:{int(found[1])}"
    return None


def ways_of(asked: Sequence[tuple[float, str, str]]) -> Ways:
    """Who asked for connections: when, from where, to where; by either end."""
    found: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
    for way in sorted(asked):
        for end in dict.fromkeys(way[1:]):
            found[end].append(way)
    return found
