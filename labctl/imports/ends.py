"""Whose address is whose, and what a NAT made of it, by the times of what passed.

No file says on which of a connection's two ends it was captured. But an answer follows at once
where it is given, and after a round trip where it was asked for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from socket import AF_INET, AF_INET6, inet_pton

from labctl.ground.data import dataclass
from labctl.imports.census import Head
from labctl.probes.observations import Key, Observation
from labctl.probes.packets import read_packet
from labctl.probes.pairing import address_of

NEAR = 0.05
"""Seconds between a segment and the next one of the other side, at most, for the times to tell: in
so short a time no clock drifts far."""
SURE, COMMON, GUESS = 1000.0, 1.0, 1e-6
"""What a link's header says counts so much more than times, in seconds, and a time to live a tenth
of it; so much that an address is in all connections, opens some and accepts others; and so much
less a guess."""
TELLING = 1e-2
"""Seconds by which an answer comes sooner than another, at least, for that to tell: a busy machine
takes some milliseconds for one that it gives at once."""
INITIAL = (64, 128, 255)
"""What hosts send as the time to live. (RFC 1700; Windows and others)"""


@dataclass(frozen=True)
class Seen:
    """A segment in one of the files: the number of its connection, its head, and what it says."""

    number: int
    head: Head
    what: Observation


def read(heads: Iterable[tuple[int, Head]], host: str) -> list[Seen]:
    """The segments of a file."""
    found = []
    for number, head in heads:
        what = read_packet(host, head.nanos / 1e9, head.ip, head.length)
        if what is not None:
            found.append(Seen(number, head, what))
    return found


def inside(seen: Seen) -> bool:
    """Whether it never leaves its host."""
    return bool(seen.what.scope)


Pair = tuple[Seen, Seen]
"""One segment in two files."""


def pairs(one: Sequence[Seen], other: Sequence[Seen]) -> dict[int, list[Pair]]:
    """The segments that are in both files and without an equal, by connection, in order of time.
    What a host has sent again differs by its mark at least, if no NAT has changed that."""
    found: dict[int, list[Pair]] = defaultdict(list)
    singles, paired = _single(other), set[int]()
    for key, seen in _single(one).items():
        if key in singles and id(seen) not in paired:
            paired.add(id(seen))
            found[seen.number].append((seen, singles[key]))
    for each in found.values():
        each.sort(key=lambda pair: pair[0].head.nanos)
    return found


def _single(segments: Sequence[Seen]) -> dict[Key, Seen]:
    """Those that nothing else in the file equals, by all that no NAT changes; and by their marks,
    too, those that something does."""
    found: dict[Key, Seen] = {}
    marked: dict[Key, Seen] = {}
    times: Counter[Key] = Counter()
    for seen in segments:
        if inside(seen):
            continue
        what = seen.what
        key = seen.number, what.seq, what.ack, what.flags, what.length, what.window, what.timestamps
        times.update((key, (*key, what.mark)))
        found[key] = marked[*key, what.mark] = seen
    return {key: seen for key, seen in [*found.items(), *marked.items()] if times[key] == 1}


# --- Behind a NAT ---------------------------------------------------------------------------------

Ends = tuple[str, str]


Names = tuple[dict[str, str], dict[str, str]]
"""How ends are to be called, by how each file calls them."""


def translated(matched: Mapping[int, Sequence[Pair]]) -> dict[int, Names]:
    """For each connection that has other ends in the second file, and by file: how each end is to
    be called there, so that both files call it as it calls itself."""
    found = {}
    for number, segments in matched.items():
        mine, theirs = segments[0][0].what, segments[0][1].what
        same_family = ("[" in mine.source) == ("[" in theirs.source)
        if (mine.source, mine.target) == (theirs.source, theirs.target) or not same_family:
            continue
        here = _nearer(segments, mine.source) >= 0  # the first file is at `mine.source`
        source = mine.source if here else theirs.source
        target = theirs.target if here else mine.target
        found[number] = (
            {mine.source: source, mine.target: target},
            {theirs.source: source, theirs.target: target},
        )
    return found


def renamed(segments: Iterable[Seen], names: Mapping[int, Mapping[str, str]]) -> Iterator[Seen]:
    """The segments, with ends as they are to be called."""
    for seen in segments:
        known = names.get(seen.number, {})
        what = seen.what
        if known:
            source, target = known[what.source], known[what.target]
            ip = _readdressed(seen.head.ip, source, target)
            head = seen.head._replace(ip=ip)
            seen = Seen(seen.number, head, replace(what, source=source, target=target))
        yield seen


def _readdressed(ip: bytes, source: str, target: str) -> bytes:
    """A packet's head with other ends of the same family."""
    family, begin = (AF_INET6, 8) if ip[0] >> 4 == 6 else (AF_INET, 12)
    ports = 40 if family == AF_INET6 else 4 * (ip[0] & 0xF)
    packed = b"".join(inet_pton(family, address_of(end)) for end in (source, target))
    numbers = b"".join(int(end.rpartition(":")[2]).to_bytes(2, "big") for end in (source, target))
    return ip[:begin] + packed + ip[begin + len(packed) : ports] + numbers + ip[ports + 4 :]


def _nearer(segments: Sequence[Pair], end: str) -> float:
    """By how many seconds an end is nearer to the first file than the other end is; negative if the
    second file is nearer to it. `end` is as in the first file."""
    found = 0.0
    for (a, b), (c, d) in pairwise(segments):
        if a.what.source == c.what.source:
            continue
        here, there = (c.head.nanos - a.head.nanos) / 1e9, (d.head.nanos - b.head.nanos) / 1e9
        if 0 <= here < NEAR and 0 <= there < NEAR:
            found += (here - there) * (1 if a.what.source == end else -1)
    return found


def unmarked(seen: Seen) -> Seen:
    """A segment without the identification of its IP packet, which something on the way changed."""
    ip = seen.head.ip
    if ip[0] >> 4 == 6:
        return seen
    head = seen.head._replace(ip=ip[:4] + bytes(2) + ip[6:])
    return replace(seen, head=head)


# --- Owners ---------------------------------------------------------------------------------------


ASKING = "client"
"""The name of a host that opens connections."""
Vote = tuple[str, str, float]
"""Two addresses, and how much speaks for it that the first is the one of a file's host."""


def owners(
    files: Sequence[Sequence[Seen]], matched: Mapping[int, Sequence[Pair]]
) -> list[set[str]]:
    """The addresses of each file's own host: those nearer to it. An address that is in one file
    alone, and in it beside one that is its host's, is somebody else's. If nothing else tells, a
    host called `client` opens connections, and any other accepts them."""
    asks = [any(seen.what.host == ASKING for seen in segments[:1]) for segments in files]
    votes, talks = [], list[Mapping[int, list[Seen]]]()
    for number, both in matched.items():
        end = both[0][0].what.source
        value = _nearer(both, end)
        if value == 0:  # no two of them answer each other, so it is as with each file alone
            talks = talks or [_conversations(segments) for segments in files]
            mine, theirs = (
                _local(talk[number], asking) * (1 if _ends(talk[number])[0] == end else -1)
                for talk, asking in zip(talks, asks, strict=True)
            )
            value = mine - theirs
        votes.append((address_of(end), address_of(both[0][0].what.target), value))
    found = [*_settled(votes)][: len(files)]
    for place, segments in enumerate(files):
        known = set().union(*found)
        found[place] |= _settled(list(_alone(segments, known, asks[place])))[0]
    return found


def _settled(votes: Sequence[Vote]) -> tuple[set[str], set[str]]:
    """The addresses of a host, and those of others: first those for which most speaks."""
    for_it: dict[str, float] = defaultdict(float)
    beside: dict[str, set[str]] = defaultdict(set)
    for one, other, value in votes:
        for_it[one] += value
        for_it[other] -= value
        beside[one].add(other)
        beside[other].add(one)
    found: tuple[set[str], set[str]] = set(), set()
    for address in sorted(for_it, key=lambda a: -abs(for_it[a])):
        if not any(address in side for side in found):
            side = 0 if for_it[address] > 0 else 1
            found[side].add(address)
            found[1 - side].update(beside[address] - found[side])
    return found


def _alone(segments: Sequence[Seen], known: set[str], asks: bool) -> Iterator[Vote]:
    """What speaks for the addresses that only this file tells of."""
    strangers = (
        seen for seen in segments
        if not {address_of(seen.what.source), address_of(seen.what.target)} & known
    )  # fmt: skip
    found = list(_conversations(strangers).values())
    both = [(address_of(source), address_of(target)) for source, target in map(_ends, found)]
    openers, others = {source for source, _ in both}, {target for _, target in both}
    between = {a for a in openers & others if all(a in ends for ends in both)}
    for conversation, (source, target) in zip(found, both, strict=True):
        value = _local(conversation, asks)
        if abs(value) < SURE / 10 and len(between) == 1:  # times may be those of a busy machine
            value = COMMON if source in between else -COMMON
        yield source, target, value


def _conversations(segments: Iterable[Seen]) -> dict[int, list[Seen]]:
    """The segments that go from one host to another, by connection."""
    found: dict[int, list[Seen]] = defaultdict(list)
    for seen in segments:
        if not inside(seen):
            found[seen.number].append(seen)
    return found


def _ends(conversation: Sequence[Seen]) -> Ends:
    """The end that opened a connection, and the other one: by its SYN, else by the greater port."""
    for seen in conversation:
        if "SYN" in seen.what.flags:
            both = seen.what.source, seen.what.target
            return both if "ACK" not in seen.what.flags else both[::-1]
    first = conversation[0].what
    if _port(first.source) < _port(first.target):
        return first.target, first.source
    return first.source, first.target


def _port(end: str) -> int:
    return int(end.rpartition(":")[2])


def _local(conversation: Sequence[Seen], asks: bool) -> float:
    """How much speaks for it that the host that captured a connection is the one that opened it;
    negative for the other one. If nothing tells, `asks` does."""
    opener, _ = _ends(conversation)
    told = [s for s in conversation if s.head.outgoing is not None]
    if told:
        return SURE if (told[0].what.source == opener) == bool(told[0].head.outgoing) else -SURE
    fresh = {seen.what.source == opener: _is_fresh(seen.head.ip) for seen in conversation}
    if len(fresh) == 2 and fresh[True] != fresh[False]:
        return SURE / 10 if fresh[True] else -SURE / 10
    later = _sooner(conversation, opener)
    if abs(later) > TELLING:
        return later
    return GUESS if asks else -GUESS


def _sooner(conversation: Sequence[Seen], opener: str) -> float:
    """By how many seconds the end that opened a connection answered the other end's SYN ACK sooner
    than that had answered its SYN; 0 if they did not, or if a SYN followed the SYN ACK: which of
    them an answer is for, nobody knows (RFC 6298, section 3)."""
    syn: Seen | None = None
    synack: Seen | None = None
    for seen in conversation:
        mine, opens = seen.what.source == opener, "SYN" in seen.what.flags
        if mine and opens and synack is None:
            syn = seen
        elif mine and not opens and syn and synack:
            first, second, third = (s.head.nanos / 1e9 for s in (syn, synack, seen))
            return (second - first) - (third - second)
        elif synack and opens:
            return 0.0
        elif syn and opens and not mine and "ACK" in seen.what.flags:
            synack = seen
    return 0.0


def unplaced(segments: Sequence[Seen]) -> Ends | None:
    """The ends of a connection that both opened, if nothing tells at which of them a file was
    captured. That its host opens connections, or does not, does not tell that either."""
    if any(abs(value) > GUESS for _, _, value in _alone(segments, set(), False)):
        return None
    for conversation in _conversations(segments).values():
        if len({s.what.source for s in conversation if s.what.flags == ("SYN",)}) == 2:
            return _ends(conversation)
    return None


def _is_fresh(ip: bytes) -> bool:
    """Whether no router seems to have forwarded a packet."""
    return ip[7 if ip[0] >> 4 == 6 else 8] in INITIAL
