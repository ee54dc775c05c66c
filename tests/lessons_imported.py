"""A lesson's own captures, stripped of everything else, imported: what that says against what the
whole record does."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from labctl.imports import importing
from labctl.imports.census import Wanted
from labctl.judge import recorded
from labctl.judge.causes.cause import Cause
from labctl.judge.causes.rules import causes
from labctl.judge.result import RunResult
from labctl.probes.observations import stays_inside
from labctl.probes.segments import FILE_HEADER
from labctl.probes.sockets import Ends
from labctl.record.timelines import Timeline, timelines
from labctl.reports.ladder import rows
from labctl.reports.rows import UNKNOWN, Bar

RECORD = struct.Struct("<IIII")
AHEAD, DRIFT = 3.0, 50e-6
"""How the second capture's clock is off."""
SLACK = 0.1
"""Seconds between a packet's capture and what a busy kernel makes of it."""
FLOAT = 1e-6
"""Seconds to which times since 1970 are exact as floats."""
MAYBE = {"reset-unread", "reset-linger", "reset-queue", "time-wait-overflow", "orphans-limit"}
"""What the whole record may say where segments only say that a program closed it, or had."""
ENDS = ("reset-", "connect-", "timeout-", "no-answer")
"""How the causes begin that say why a connection ended."""


@dataclass
class Stripped:
    """An import of one or two of a lesson's captures, and the record that it comes from. `hosts`
    are the real names of the import's hosts: one stands for all that were not captured."""

    whole: RunResult
    run: RunResult
    found: importing.Imported
    hosts: dict[str, list[str]]

    @cached_property
    def own(self) -> dict[str, str]:
        """How an end calls itself, by what it is called beyond a NAT."""
        found: dict[str, str] = {}
        for segment in self.whole.history.segments():
            if segment.way and segment.way.names:
                source, target = segment.way.names[-1]
                found |= {source: segment.source, segment.target: target}
        return found

    def named(self, ends: Ends) -> Ends:
        """A connection's ends, as they call themselves."""
        local, remote = (self.own.get(end, end) for end in ends)
        return local, remote

    @property
    def later(self) -> float:
        """How many seconds the import begins after the record."""
        mine, theirs = self.run.history.lab, self.whole.history.lab
        assert mine and theirs
        return mine.epoch - theirs.epoch


def off(content: bytes, ahead: float, drift: float) -> bytes:
    """A capture by a clock that is ahead, and gains."""
    found, at, begun = [FILE_HEADER], len(FILE_HEADER), 0
    while at < len(content):
        seconds, nanos, kept, length = RECORD.unpack_from(content, at)
        t = seconds * 10**9 + nanos
        begun = begun or t
        t += round(ahead * 1e9) + round(drift * (t - begun))
        found.append(RECORD.pack(t // 10**9, t % 10**9, kept, length))
        found.append(content[at + RECORD.size : at + RECORD.size + kept])
        at += RECORD.size + kept
    return b"".join(found)


def stripped(run: Path, folder: Path, only: str = "") -> Stripped | None:
    """Imports the first two captures of a recorded run, of hosts that pass nothing on, or only one
    of these; None if it has none with segments."""
    whole = recorded.load(run)
    contents = {host: (run / f"{host}.pcap").read_bytes() for host in whole.hosts}
    between = {hop.host for s in whole.history.segments() if s.way for hop in s.way.hops}
    captured = [
        host for host, c in contents.items() if len(c) > len(FILE_HEADER) and host not in between
    ][:2]
    files: dict[str, Path] = {}
    for host in (host for host in captured if only in ("", host)):
        late = bool(files)
        files[host] = folder / f"{host}.pcap"
        files[host].write_bytes(off(contents[host], AHEAD * late, DRIFT * late))
    if not files:
        return None
    out = folder / "imported"
    out.mkdir()
    found = importing.load(files, Wanted())
    importing.record(found, out)
    others = [host for host in whole.hosts if host not in files and host not in between]
    hosts = {host: [host] for host in files} | {importing.OTHERS: others}
    return Stripped(whole, recorded.load(out), found, hosts)


def clock(found: Stripped) -> Iterator[str]:
    """Where the offset is not within its bound."""
    for file in found.found.files[1:]:
        times = [segment.head.nanos / 1e9 for segment in file.segments]
        for t in (times[0], times[-1]):
            ahead = AHEAD + DRIFT * (t - times[0]) / (1 + DRIFT)
            error = abs(file.clock.ahead(t) - ahead)
            if error > file.clock.bound + FLOAT:
                yield f"{file.host}: off by {error:.6f} s, and not {file.clock.bound:.6f} s at most"


def contradictions(found: Stripped) -> Iterator[str]:
    """Each state in the import's picture that the connection was not in then, by the record."""
    history = found.run.history
    bound = max(file.clock.bound for file in found.found.files)
    for host, real in found.hosts.items():
        true = truth(found, real)
        # What a host holds back (netem) shows late, even in its own capture.
        slack = (
            SLACK
            + bound
            + max((found.whole.history.slowed.get(each, 0.0) for each in real), default=0.0)
        )
        for bar in rows(history, found.run.hosts).rows:
            if not isinstance(bar, Bar) or bar.host != host or bar.state in ("", UNKNOWN):
                continue
            until = history.now if bar.until is None else bar.until
            mine = true[found.named(bar.ends)]
            if any(not timeline.traced for timeline in mine):
                continue  # only looks saw it, now and then
            if not mine and stays_inside(*bar.ends):
                continue  # the trace does not say whose it is, and no look saw it
            begin, end = bar.t + found.later, until + found.later
            if not any(_had(timeline, bar.state, begin, end, slack) for timeline in mine):
                had = [f"{s.state} {s.begin}-{s.end}" for t in mine for s in t.spans]
                yield f"{host} {bar.ends}: {bar.state} {begin:.4f}-{end:.4f}; in truth {had}"


def truth(found: Stripped, hosts: Sequence[str]) -> dict[Ends, list[Timeline]]:
    """The record's connections of some hosts, by their ends on the wire as these call themselves: a
    host's own NAT may have given them other ones."""
    history = found.whole.history
    segments = history.segments()
    wire = {(s.source, s.target) for s in segments} | {(s.target, s.source) for s in segments}
    other = dict(wire)
    told: dict[Ends, list[Timeline]] = defaultdict(list)
    for timeline in (t for host in hosts for t in timelines(history, host)):
        local, remote = timeline.ends
        known = timeline.ends in wire
        told[found.named((local, remote if known else other.get(local, remote)))].append(timeline)
    return told


def _had(timeline: Timeline, state: str, begin: float, end: float, slack: float) -> bool:
    """Whether a connection may have been in a state all that time."""
    last = timeline.spans[-1].end
    if timeline.gap and last and last.earliest - slack <= begin:
        return True  # the record does not know what followed
    return any(
        span.state == state
        and span.begin.earliest - slack <= begin
        and (span.end is None or end <= span.end.latest + slack)
        for span in timeline.spans
    )


def missing(found: Stripped) -> Iterator[str]:
    """The connections of captured hosts of which the import shows nothing."""
    for file in found.found.files:
        mine = {found.named(timeline.ends) for timeline in timelines(found.run.history, file.host)}
        for ends, told in truth(found, found.hosts[file.host]).items():
            if ends not in mine:
                yield f"{file.host}: {', '.join(f'{each.name}, {each.walk}' for each in told)}"


def wrong_causes(found: Stripped) -> Iterator[str]:
    """Causes that the record does not bear out. What is not certain may stand where the record has
    nothing to say of the connection, or something that segments do not show."""
    whole = causes(found.whole.history, recorded.scenario_of(found.whole))
    true: dict[frozenset[str], set[str]] = {}
    between = {*found.whole.hosts} - {host for hosts in found.hosts.values() for host in hosts}
    for cause in whole:
        # An RST of a NAT is one that neither end of the connection sent.
        true.setdefault(_pair(found, cause), set()).update(
            {cause.id, "reset-crafted" if cause.host in between else cause.id}
        )
    for cause in causes(found.run.history):
        known = true.get(_pair(found, cause), set())
        told = {each for each in known if each.startswith(ENDS)}
        if cause.id == "reset-no-socket" and _had_none(found, cause):
            continue  # also where a step refused what came before the kernel could
        if cause.id not in known and (cause.certain or told - MAYBE):
            yield f"{cause.id}: {cause.text}; in truth {sorted(known)}"


def _had_none(found: Stripped, cause: Cause) -> bool:
    """Whether by the record the connection of a cause had ended by then on its host."""
    local, _, remote = (cause.connection or "").partition(" -> ")
    told = truth(found, found.hosts[cause.host])[found.named((local, remote))]
    ends = [each.spans[-1].end for each in told]
    return bool(ends) and all(end and end.latest <= cause.at + found.later for end in ends)


def _pair(found: Stripped, cause: Cause) -> frozenset[str]:
    """The ends of its connection: if both sides closed at once, either may come first."""
    return frozenset(found.own.get(end, end) for end in (cause.connection or "").split(" -> "))


def ids(found: Stripped) -> list[str]:
    """The causes of an import."""
    return sorted({cause.id for cause in causes(found.run.history)})
