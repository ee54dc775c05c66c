"""Captures from elsewhere become a run: one file for each host, or one alone.

A run directory of an import has what one of a lab has, as far as segments tell it: who has which
address, each host's packets by one clock, and for each file what is known of its clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from struct import Struct

from labctl.ground.data import dataclass
from labctl.ground.errors import UsageError
from labctl.imports.calls import read_calls, ways_of
from labctl.imports.census import MOST_PACKETS, Tally, Wanted, choose, count, gather
from labctl.imports.census import Key as CensusKey
from labctl.imports.clocks import Clock, Point, compare
from labctl.imports.ends import (
    Names,
    Pair,
    Seen,
    inside,
    owners,
    pairs,
    read,
    renamed,
    translated,
    unmarked,
    unplaced,
)
from labctl.imports.files import LATEST, NANO, Capture
from labctl.imports.looks import read_looks
from labctl.judge import annotated
from labctl.judge.causes.rules import causes
from labctl.judge.result import RunResult, document
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.probes.observations import FLIGHT
from labctl.probes.pairing import address_of
from labctl.probes.segments import Captures
from labctl.record.events import VERSION, CaptureEvent, Event, LabEvent, NetEvent, SocketsEvent
from labctl.record.history import History
from labctl.record.store import RunFolder, writing

BACKEND = "import"
OTHERS = "peer"
"""The host that has all addresses of which no file is."""
RECORD = Struct("<IIII")  # pcap-savefile(5)
LATER = 3600.0
"""Seconds after the end of a capture in which a look without a time may have been."""
EDGE = 2e-6
"""Seconds after its last packet until which a file is taken to go: times of a run are no finer."""
UNEVEN = 0.1
"""Seconds by which something may arrive before it left, for two captures to be told as one: clocks
are slewed (adjtime(3)). What is less than that is part of the bound."""
ETHERNET = {4: bytes(12) + b"\x08\x00", 6: bytes(12) + b"\x86\xdd"}


@dataclass(frozen=True)
class _File:
    """A host's file: its segments, its clock beside that of the first file, from when to when it
    goes (nanoseconds), and the addresses of the host."""

    host: str
    path: Path
    segments: Sequence[Seen]
    clock: Clock
    addresses: frozenset[str]

    def at(self, nanos: int) -> int:
        """A time of the file, by the clock of the first file."""
        return nanos - round(self.clock.ahead(nanos / NANO) * NANO)

    def seconds(self, t: float) -> float:
        """The same of a time in seconds."""
        return self.at(round(t * NANO)) / NANO

    @property
    def span(self) -> tuple[float, float]:
        """When its first and its last segment were seen, by its own clock."""
        return self.segments[0].head.nanos / NANO, self.segments[-1].head.nanos / NANO

    @property
    def bounds(self) -> tuple[int, int]:
        """When its first and its last segment were seen, by that clock."""
        return self.at(self.segments[0].head.nanos), self.at(self.segments[-1].head.nanos)


@dataclass(frozen=True)
class Imported:
    """What is to be recorded: the files, what is to be said of them, and how many seconds longer
    than in a lab segments may be under way; and `beside` the captures looks and calls, with times
    in seconds since 1970, by the first file's clock."""

    files: Sequence[_File]
    notes: Sequence[str]
    slow: float
    beside: Sequence[Event] = ()

    @property
    def hosts(self) -> list[str]:
        """All hosts."""
        return list(dict.fromkeys(name.partition(".")[0] for name in self.addresses))

    @property
    def addresses(self) -> dict[str, str]:
        """The addresses by name, as a lab has them. A host without one of its own has loopback."""
        found: dict[str, str] = {}
        owned: set[str] = set()
        for file in self.files:
            owned |= file.addresses
            found |= _named(file.host, sorted(file.addresses) or ["127.0.0.1"])
        others = {
            address_of(end)
            for file in self.files for seen in file.segments if not inside(seen)
            for end in (seen.what.source, seen.what.target)
        }  # fmt: skip
        return found | _named(OTHERS, sorted(others - owned))

    @property
    def begun(self) -> int:
        """When the first thing happened, in nanoseconds since 1970."""
        first = min((round(event.t * NANO) for event in self.beside), default=LATEST)
        return min(first, *(file.bounds[0] for file in self.files))


def _named(host: str, addresses: Sequence[str]) -> dict[str, str]:
    return {
        host if number == 1 else f"{host}.{number}": address
        for number, address in enumerate(addresses, 1)
    }


def load(captures: Mapping[str, Path], wanted: Wanted) -> Imported:
    """Reads one capture, or two of the same connections, by the names of their hosts. Raises
    UsageError."""
    files = {host: Capture(path) for host, path in captures.items()}
    counted = [_counted(file, wanted, len(files) > 1) for file in files.values()]
    chosen = choose(counted)
    notes, seen = [], []
    for (host, file), numbers in zip(files.items(), chosen.numbers, strict=True):
        heads, beyond = gather(file, wanted, numbers, MOST_PACKETS // len(files))
        seen.append(read(heads, host))
        if beyond:
            notes.append(f"the last {beyond:,} packets of {file.path.name} had no room")
    if chosen.left_out:
        notes.append(
            f"{chosen.left_out:,} connections, with {chosen.packets:,} packets, are left out: "
            "those that end badly come first; --port and --host choose others"
        )
    matched = pairs(*seen) if len(seen) == 2 else {}
    if names := translated(matched):
        for side in range(2):
            seen[side] = list(renamed(seen[side], {n: each[side] for n, each in names.items()}))
        matched = pairs(*seen)
        notes += _translations(names.values(), list(files))
    if any(a.what.mark[0] != b.what.mark[0] for each in matched.values() for a, b in each):
        seen = [[unmarked(s) for s in each] for each in seen]
    mine = owners(seen, matched)
    clocks = [Clock(), *([_clock(matched, mine[1], seen[1], files)] if len(seen) == 2 else [])]
    found = [
        _File(host, file.path, segments, clock, frozenset(own))
        for (host, file), segments, clock, own in zip(
            files.items(), seen, clocks, mine, strict=True
        )
    ]
    notes += [
        f"{file.path.name} is cut short within its last packet, at byte {file.torn}"
        for file in files.values()
        if file.torn is not None
    ]
    if len(seen) == 1 and (crossed := unplaced(seen[0])):
        here, there = sorted(crossed, key=lambda end: address_of(end) not in mine[0])
        notes.append(
            f"{here} and {there} both opened their connection, and nothing tells at which of them "
            f"{found[0].path.name} was captured: the first is taken for {found[0].host}'s"
        )
    notes += [f"{each.host}'s clock is {each.clock} of {found[0].host}'s" for each in found[1:]]
    return Imported(found, notes, _slow(matched, found))


def with_looks(found: Imported, files: Mapping[str, Path]) -> Imported:
    """The same, with looks by `ss` on hosts that have a capture. Raises UsageError."""
    looks = []
    for host, path in files.items():
        file = _captured(found, host, f"--ss {host}={path}")
        begin, end = file.span
        for saved in read_looks(path, (begin, end + LATER)):
            looks.append(SocketsEvent(file.seconds(saved.at), host, "look", saved.text))
    return replace(found, beside=[*found.beside, *looks])


def with_calls(found: Imported, files: Mapping[str, Path]) -> Imported:
    """The same, with the calls that strace saw on hosts that have a capture. Raises UsageError."""
    calls = []
    for host, path in files.items():
        file = _captured(found, host, f"--strace {host}={path}")
        asked = [
            (seen.head.nanos / NANO, seen.what.source, seen.what.target)
            for seen in file.segments if seen.what.flags == ("SYN",)
        ]  # fmt: skip
        for event in read_calls(path, host, file.span, ways_of(asked)):
            calls.append(replace(event, t=file.seconds(event.t)))
    return replace(found, beside=[*found.beside, *calls])


def _captured(found: Imported, host: str, word: str) -> _File:
    """A host's file."""
    captured = {file.host: file for file in found.files}
    if host not in captured:
        raise UsageError(f"{word}: no capture of that host", f"there are: {', '.join(captured)}")
    return captured[host]


def _counted(file: Capture, wanted: Wanted, several: bool) -> dict[CensusKey, Tally]:
    """The connections of a file. Raises UsageError if there are none."""
    found = count(file, wanted)
    if not found:
        which = " that --port and --host choose" if wanted != Wanted() else ""
        hint = "give the other file alone" if several else ""
        if file.cut is not None:
            which += f": of a packet it has {file.cut} bytes"
            hint = "capture more of each, as by tcpdump -s 128"
        raise UsageError(f"{file.path}: it has no TCP segment{which}", hint)
    return found


def _clock(
    matched: Mapping[int, Sequence[Pair]],
    theirs: set[str],
    seen: Sequence[Seen],
    files: Mapping[str, Capture],
) -> Clock:
    """The second file's clock beside the first one's, for all that is `seen` in it."""
    there: list[Point] = []
    back: list[Point] = []
    for segments in matched.values():
        for one, other in segments:
            point = other.head.nanos / NANO, (other.head.nanos - one.head.nanos) / NANO
            (back if address_of(other.what.source) in theirs else there).append(point)
    first, second = (str(file.path) for file in files.values())
    if not there and not back:
        raise UsageError(
            f"{first} and {second} have no segment in common",
            "give the two ends of the same connections, or one file alone",
        )
    found = compare(there, back, (seen[0].head.nanos / NANO, seen[-1].head.nanos / NANO))
    if found.early > UNEVEN:
        raise UsageError(
            f"{first} and {second} fit no two even clocks: by any, something arrives "
            f"{found.early:.3f} s before it left; {UNEVEN} s is allowed",
            "somebody set one of the clocks meanwhile: cut the captures at that moment "
            "(editcap -A, -B), or give one file alone",
        )
    return found


def _slow(matched: Mapping[int, Sequence[Pair]], files: Sequence[_File]) -> float:
    """How many seconds longer segments were under way than in a lab, at most."""
    longest = max(
        (
            abs(files[1].at(b.head.nanos) - a.head.nanos)
            for each in matched.values()
            for a, b in each
        ),
        default=0,
    )
    return max(0.0, 2 * longest / NANO - FLIGHT)


def _translations(names: Iterable[Names], hosts: Sequence[str]) -> Iterator[str]:
    """What a NAT made of addresses, each once."""
    told: dict[str, None] = {}
    for sides in names:
        for host, known in zip(hosts, sides, strict=True):
            for here, there in known.items():
                if here != there:
                    told[f"a NAT lies between: {there} is {here} in the capture of {host}"] = None
    shown = list(told)
    yield from shown[:3]
    if len(shown) > 3:
        yield f"and {len(shown) - 3:,} ends more are others behind that NAT"


# --- The record -----------------------------------------------------------------------------------


def record(found: Imported, folder: Path) -> None:
    """Writes a run directory, into this folder. Raises UsageError and LabError."""
    text = _scenario(found)
    with RunFolder(folder, text) as run:
        events = list(_events(found))
        for event in events:
            run.add(event)
        for file in found.files:
            run.add_packets(file.host, b"".join(_records(file)))
        result = _result(found, folder, text, events)
        with writing(folder):
            annotated.write(result)
        run.finish(document([result]))


def _scenario(found: Imported) -> str:
    names = " ".join(f"{file.host}={file.path.name}" for file in found.files)
    known = found.hosts if len(found.hosts) > 1 else [*found.hosts, OTHERS]  # it needs two
    hosts = ", ".join(f"{host}: {{}}" for host in known)
    title = "".join(sign for sign in names if sign.isprintable() and sign not in '"\\$')
    return f'title: "{title}"\nhosts: {{{hosts}}}\nsteps: []\n'


def _events(found: Imported) -> Iterator[Event]:
    begun = found.begun
    started = datetime.fromtimestamp(begun / NANO, UTC).isoformat(timespec="milliseconds")
    environment = {"kernel": None, "os": None, "engine": None, "probes": ["capture", "loopback"]}
    yield LabEvent(
        0.0, started.replace("+00:00", "Z"), BACKEND, environment, found.addresses,
        begun / NANO, VERSION,
    )  # fmt: skip
    if found.slow:
        yield NetEvent(0.0, found.files[0].host, round(found.slow, 6))
    ends = [replace(each, t=max(0.0, round(each.t - begun / NANO, 6))) for each in found.beside]
    for file in found.files:
        since, until = ((bound - begun) / NANO for bound in file.bounds)
        until = round(until + EDGE, 6)
        clock = file.clock
        ends.append(
            CaptureEvent(
                until, file.host, file.path.name, since,
                round(clock.ahead(file.segments[0].head.nanos / NANO), 9), clock.drift,
                None if clock.bound == math.inf else clock.bound,
            )
        )  # fmt: skip
    yield from sorted(ends, key=lambda event: event.t)


def _records(file: _File) -> Iterator[bytes]:
    """A host's packets, as a lab's capture has them."""
    for seen in file.segments:
        seconds, nanos = divmod(file.at(seen.head.nanos), NANO)
        ip = seen.head.ip
        frame = ETHERNET[ip[0] >> 4] + ip
        length = max(len(frame), seen.head.length + 14)
        yield RECORD.pack(seconds, nanos, len(frame), length) + frame


def _result(found: Imported, folder: Path, text: str, events: Sequence[Event]) -> RunResult:
    (case,) = load_document(Document(str(folder / "scenario.yaml"), text), text, folder.name, {})
    history = History(events, Captures.load(folder))
    lab = history.lab
    assert lab
    return RunResult.of(
        case,
        folder=folder,
        result="unknown",
        reason=None,
        backend=BACKEND,
        environment=lab.environment,
        started=lab.started,
        seconds=events[-1].t,
        lab_seconds=events[-1].t,
        beside=tuple(found.notes),
        causes=tuple(causes(history)),
        history=history,
    )
