"""From each host's capture to the segments that went from one host to another.

Captures see a segment where it leaves, where it arrives, and on hosts that forward it. This puts
these sights together by everything that there is: addresses, numbers, flags, length, window, IPv4
identification and timestamp. If several are equal in all of that, it pairs as many as possible, in
their order, and then so that they were under way as short as possible. Segments that come later
than they should, since something held them up, it pairs with what is left then. It does the same
with the parts of a large segment that a host on the way cuts up, and with the whole that one makes
of several (GSO, GRO).

A host reports itself what it loses on purpose (nfnetlink_log). A capture sees a segment that is
lost as it comes in, since packet(7) is before that hook, but none that is lost as it leaves.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, pairwise

from labctl.ground.data import dataclass
from labctl.probes.alignment import align
from labctl.probes.observations import (
    MODULUS,
    Hop,
    Injection,
    Key,
    Known,
    Loss,
    Observation,
    Way,
    first_seen,
)
from labctl.probes.owners import Owners

EARLY = 0.01
"""Seconds by which a segment may seem to arrive before it left: two captures, two moments."""
REPORTED = 0.5
"""Seconds between a capture of a segment and the report of its loss or injection, at most."""
FORWARDED = 1.0
"""Seconds that a host may take to forward a segment."""
IDENTS = 1 << 16
STRAIGHT = [(True, False), (False, True)]
"""Of nearly all segments there are two sights: on the host that sends it, and its receiver."""


@dataclass(slots=True)
class Passage:
    """A segment on its way: when it left and arrived, in seconds of the run, from which host to
    which, and which steps lost or sent it. `sent` is None if no capture saw it leave. `sights` are
    all of it, in order of time; what `follows`, `passed_on` and `way` are, Segment says."""

    seen: Observation
    sent: float | None
    arrived: float | None
    sender: str | None
    receiver: str | None
    drop: int | None
    injection: Injection | None
    sights: Sequence[_Sight]
    follows: bool = False
    passed_on: bool = False
    way: Way | None = None


@dataclass(slots=True, eq=False)
class _Sight:
    """One observation, at `at` seconds of the run, and what reports say of it. `made`: its host
    sent it in the name of another."""

    seen: Observation
    at: float
    loss: Loss | None = None
    injection: Injection | None = None
    made: bool = False


def passages(observations: Iterable[Observation], known: Known) -> list[Passage]:
    """The segments on the wire, in order of time."""
    sights = [_Sight(each, each.at - known.origin) for each in observations]
    _report(sights, known)
    sights.sort(key=lambda sight: sight.at)
    alike: dict[Key, list[_Sight]] = defaultdict(list)
    for sight in sights:
        alike[sight.seen.key].append(sight)
    pairing = _Pairing(alike, known)
    found = [passage for group in alike.values() for passage in pairing.of(group)]
    found = _rejoined(found, EARLY + known.apart, known.flight)
    if pairing.forwards:
        pairing.follow(found)
    return sorted(found, key=lambda passage: first_seen(passage.sent, passage.arrived))


def owner(endpoint: str, owners: Mapping[str, str], seen_by: str, t: float) -> str | None:
    """The host of an endpoint, at that time; a loopback address belongs to whoever sees it."""
    address = address_of(endpoint)
    if is_loopback(address):
        return seen_by
    return owners.at(address, t) if isinstance(owners, Owners) else owners.get(address)


def address_of(endpoint: str) -> str:
    """The address of `ADDRESS:PORT`."""
    return endpoint.rpartition(":")[0].strip("[]")


def is_loopback(address: str) -> bool:
    """Whether an address never leaves its host (RFC 1122, section 3.2.1.3; RFC 4291, 2.5.3)."""
    return address.startswith("127.") or address == "::1"


class _Pairing:
    """Pairs sights of equal segments. `alike` are all sights, each group in order of time."""

    def __init__(self, alike: Mapping[Key, Sequence[_Sight]], known: Known) -> None:
        self._alike = alike
        owners = known.owners
        self._owners = owners if isinstance(owners, Owners) else Owners(owners)
        self._flight = known.flight
        self._named = known.named
        self._early = EARLY + known.apart
        self._settled: dict[str, str | None] = {}
        """Endpoints whose host is the same at all times, whoever sees them."""
        self.forwards = False
        """Whether hosts saw what was neither from them nor for them."""

    def of(self, group: Sequence[_Sight]) -> Iterator[Passage]:
        """The passages of segments that nothing distinguishes."""
        ends = [self._ends(sight) for sight in group]
        if ends == STRAIGHT and not (group[0].loss or group[1].injection):
            yield self._passage(group[0], group[0].at, group[1])
            return
        leaving: list[_Sight] = []
        coming: list[_Sight] = []
        passing: list[_Sight] = []
        for sight, (here, there) in zip(group, ends, strict=True):
            if here and there:
                yield self._passage(sight, sight.at, sight)
            elif here or sight.injection:
                leaving.append(sight)
            else:
                (coming if there else passing).append(sight)
        between: Sequence[_Sight] = ()
        if passing:
            self.forwards = True
            leaving, coming = self._passed(passing, leaving, coming)
            used = {*map(id, leaving), *map(id, coming)}
            between = [sight for sight in passing if id(sight) not in used]
            coming = sorted([*coming, *(s for s in between if s.loss)], key=lambda s: s.at)
        lost = [sight for sight in leaving if sight.loss]
        leaving = [sight for sight in leaving if not sight.loss]
        times = [sight.at for sight in leaving], [sight.at for sight in coming]
        partner = dict(align(*times, self._early, self._flight))
        partner |= self._late(*times, partner)
        for sight in lost:
            yield self._passage(sight, sight.at, None)
        for number, sight in enumerate(leaving):
            passage = self._passage(
                sight, sight.at, coming[partner[number]] if number in partner else None
            )
            if between:
                until = leaving[number + 1].at if number + 1 < len(leaving) else math.inf
                passage.sights = sorted(
                    {*passage.sights, *(s for s in between if sight.at <= s.at + EARLY < until)},
                    key=lambda s: s.at,
                )
            yield passage
        for number in set(range(len(coming))).difference(partner.values()):
            yield self._passage(coming[number], None, coming[number])

    def _late(
        self, left: Sequence[float], came: Sequence[float], partner: Mapping[int, int]
    ) -> dict[int, int]:
        """Pairs for sights that have none: segments that came later than they should. One that came
        soon after another one had left, which has come too, is a duplicate of that."""
        alone = [i for i in range(len(left)) if i not in partner]
        late = []
        for j in sorted(set(range(len(came))).difference(partner.values())):
            before = bisect_right(left, came[j] + self._early)
            if before and came[j] - left[before - 1] > self._flight:
                late.append(j)
        found = align([left[i] for i in alone], [came[j] for j in late], self._early, math.inf)
        return {alone[i]: late[j] for i, j in found}

    def _ends(self, sight: _Sight) -> tuple[bool, bool]:
        """Whether its host is its sender, and whether it is its receiver."""
        seen = sight.seen
        source, target = self._owner(seen.source, sight), self._owner(seen.target, sight)
        return source == seen.host, target == seen.host

    def _owner(self, endpoint: str, sight: _Sight) -> str | None:
        """The host of one of a sight's ends."""
        seen = sight.seen
        if seen.selfsame:
            return seen.host
        if endpoint in self._settled:
            return self._settled[endpoint]
        found = owner(endpoint, self._owners, seen.host, sight.at)
        address = address_of(endpoint)
        if self._owners.settled(address) and not is_loopback(address):
            self._settled[endpoint] = found
        return found

    def _passed(
        self, passing: Sequence[_Sight], leaving: list[_Sight], coming: list[_Sight]
    ) -> tuple[list[_Sight], list[_Sight]]:
        """Where segments leave and arrive that were seen by hosts which are neither their sender
        nor their receiver. Such a host forwards them, refuses them in the name of another, or has
        addresses that nobody reported."""
        first, last = passing[0].seen.host, passing[-1].seen.host
        if not leaving:
            leaving = [sight for sight in passing if sight.seen.host == first]
            if owner(passing[0].seen.source, self._owners, first, passing[0].at) is not None:
                rewritten = [sight for sight in leaving if self._rewritten(sight, -1)]
                leaving = rewritten or _made(leaving)
            passing = [sight for sight in passing if sight.seen.host != first]
        if passing and not coming:
            coming = [sight for sight in passing if sight.seen.host == last]
            if owner(passing[0].seen.target, self._owners, last, passing[0].at) is not None:
                coming = [s for s in coming if self._rewritten(s, 1) or self._stands_in(s)]
        return leaving, coming

    def _stands_in(self, sight: _Sight) -> bool:
        """Whether its host takes it in place of its receiver, as a transparent proxy does: the
        proxy speaks in the receiver's name."""
        return (sight.seen.host, sight.seen.target) in self._stand_ins

    @cached_property
    def _stand_ins(self) -> set[tuple[str, str]]:
        """Hosts, and the endpoints in whose name they send more than RSTs."""
        found = set()
        for group in self._alike.values():
            ends = [self._ends(sight) for sight in group]
            passing = [s for s, (here, there) in zip(group, ends, strict=True) if not there]
            if passing and not any(here for here, _ in ends) and "RST" not in passing[0].seen.flags:
                first = passing[0].seen.host
                here = [sight for sight in passing if sight.seen.host == first]
                said = _made([sight for sight in here if not self._rewritten(sight, -1)])
                found |= {(first, sight.seen.source) for sight in said}
        return found

    def _rewritten(self, sight: _Sight, later: int) -> bool:
        """Whether its host saw the same segment shortly before (-1) or after (1) under other
        addresses."""
        return bool(self._others(sight, later))

    @cached_property
    def _bodies(self) -> Mapping[tuple[str, Key], Sequence[_Sight]]:
        found: dict[tuple[str, Key], list[_Sight]] = defaultdict(list)
        for sight in sorted(chain.from_iterable(self._alike.values()), key=lambda s: s.at):
            found[sight.seen.host, sight.seen.body].append(sight)
        return found

    def _passage(self, sight: _Sight, sent: float | None, end: _Sight | None) -> Passage:
        """`end` is the sight where it arrived. The hosts are those of the addresses if these are
        known, else those that saw it first and last."""
        seen, came = sight.seen, end or sight
        last = end.seen.host if end else None
        receiver = self._owner(seen.target, came) or last
        if end and receiver != last and self._stands_in(end):
            receiver = last
        return Passage(
            seen,
            sent,
            None if came.loss or end is None else end.at,
            seen.host
            if sight.made
            else self._owner(seen.source, sight) or (None if sent is None else seen.host),
            receiver,
            came.loss.drop if came.loss else None,
            sight.injection,
            [sight] if came is sight else [sight, came],
        )

    def follow(self, found: Sequence[Passage]) -> None:
        """Gives segments their ways: what hosts forwarded, and under which other addresses."""
        begins = {id(passage.sights[0]): passage for passage in found}
        after: dict[int, Passage] = {}
        for passage in found:
            following = begins.get(id(self._passed_on(passage.sights[-1])))
            if following is not None and not following.follows:
                after[id(passage)], following.follows = following, True
        for passage in found:
            if passage.follows:
                continue
            legs = [passage]
            while onward := after.get(id(legs[-1])):
                legs.append(onward)
            last = legs[-1]
            hops = _hops([s for each in legs for s in each.sights], {passage.sender, last.receiver})
            if hops:
                names = tuple((each.seen.source, each.seen.target) for each in legs[1:])
                passage.way = Way(hops, names, last.receiver, last.arrived, last.drop)
            for before, following in pairwise(legs if self._named else ()):
                before.receiver, before.passed_on = before.sights[-1].seen.host, True
                following.sender = following.sights[0].seen.host

    def _passed_on(self, sight: _Sight) -> _Sight | None:
        """The same segment, as its host passed it on under other addresses."""
        return min(self._others(sight, 1), key=lambda s: abs(s.at - sight.at), default=None)

    def _others(self, sight: _Sight, later: int) -> list[_Sight]:
        """The same segment under other addresses, as its host saw it shortly before (-1) or after
        (1): NAT changes nothing else."""
        seen = sight.seen
        return [
            other for other in self._bodies.get((seen.host, seen.body), ())
            if -EARLY <= later * (other.at - sight.at) <= FORWARDED
            and (other.seen.source, other.seen.target) != (seen.source, seen.target)
        ]  # fmt: skip


def _hops(sights: Sequence[_Sight], ends: Container[str | None]) -> tuple[Hop, ...]:
    """The hosts that saw a segment on its way from one of the ends to the other."""
    there: dict[str, list[_Sight]] = {}
    for sight in sorted(sights, key=lambda sight: sight.at):
        if sight.seen.host not in ends:
            there.setdefault(sight.seen.host, []).append(sight)
    return tuple(
        Hop(host, seen[0].at, seen[-1].at if len(seen) > 1 and not seen[-1].loss else None)
        for host, seen in there.items()
    )


def _made(passing: Sequence[_Sight]) -> list[_Sight]:
    """Segments that a host made in the name of another, as firewalls and proxies do: it sees those
    once, and those that it forwards twice."""
    found = []
    times = [-math.inf, *(sight.at for sight in passing), math.inf]
    for before, sight, after in zip(times, passing, times[2:], strict=False):
        if min(sight.at - before, after - sight.at) > EARLY:
            sight.made = True
            found.append(sight)
    return found


# --- Large segments -------------------------------------------------------------------------------


def _rejoined(found: Sequence[Passage], early: float, flight: float) -> list[Passage]:
    """The same, but a segment that left whole and came in parts has arrived, and so have parts that
    came as one. All have the same header except for numbers and lengths, FIN and PSH."""
    left: dict[Key, list[tuple[float, Passage]]] = defaultdict(list)
    came: dict[Key, list[tuple[float, Passage]]] = defaultdict(list)
    for passage in found:
        seen = passage.seen
        if seen.length and passage.drop is None and passage.injection is None:
            match passage.sent, passage.arrived:
                case float(sent), None:
                    left[_header(seen)].append((sent, passage))
                case None, float(arrived):
                    came[_header(seen)].append((arrived, passage))
    used: dict[int, list[Observation]] = defaultdict(list)  # by id(): what they are parts of
    for header in left.keys() & came.keys():
        first = came[header][0][1].seen
        coming = sorted(came[header], key=lambda pair: _offset(first, pair[1].seen))
        begins = [_offset(first, part.seen) for _, part in coming]
        longest = max(part.seen.span for _, part in coming)
        # The later one first: if it repeats an earlier one, that one was lost.
        for sent, passage in sorted(left[header], key=lambda pair: pair[0], reverse=True):
            begin = _offset(first, passage.seen)
            low = bisect_left(begins, begin - longest)
            parts = [
                (arrived, part)
                for arrived, part in coming[low : bisect_left(begins, begin + passage.seen.span)]
                if -early <= arrived - sent <= flight
                and _overlap(passage.seen, part.seen)
                and not any(_overlap(passage.seen, other) for other in used[id(part)])
            ]
            if _covered(passage.seen, [part.seen for _, part in parts]):
                passage.arrived = max(arrived for arrived, _ in parts)
                for _, part in parts:
                    used[id(part)].append(passage.seen)
    return [passage for passage in found if not used.get(id(passage))]


def _header(seen: Observation) -> Key:
    flags = {*seen.flags} - {"FIN", "PSH"}
    ends = seen.scope, seen.source, seen.target
    return (*ends, seen.ack, seen.window, seen.timestamps, frozenset(flags))


def _offset(seen: Observation, other: Observation) -> int:
    """How far the numbers of another segment are after those of this one."""
    return (other.seq - seen.seq + MODULUS // 2) % MODULUS - MODULUS // 2


def _overlap(one: Observation, other: Observation) -> bool:
    return -other.span < _offset(one, other) < one.span


def _covered(seen: Observation, parts: Iterable[Observation]) -> bool:
    """Whether these parts have all numbers of a segment."""
    end = 0
    for begin, span in sorted((_offset(seen, part), part.span) for part in parts):
        if begin <= end:
            end = max(end, begin + span)
    return end >= seen.span


# --- Reports --------------------------------------------------------------------------------------


def _report(sights: list[_Sight], known: Known) -> None:
    """Adds each report to its sight: the one that the same host captured at about that time. A
    reported segment that no capture has becomes a sight."""
    owners, origin = known.owners, known.origin
    if not known.losses and not known.injections:
        return
    captured: dict[tuple[str, Key], list[_Sight]] = defaultdict(list)
    for sight in sights:
        captured[sight.seen.host, sight.seen.key].append(sight)
    for each in captured.values():
        each.sort(key=lambda sight: sight.at)
    left: list[_Sight] = []
    reports: dict[tuple[str, Key], list[Loss | Injection]] = defaultdict(list)
    told: list[Loss | Injection] = [*known.losses, *known.injections]
    for report in told:
        seen = report.observation
        here = owner(seen.source, owners, seen.host, seen.at - origin) == seen.host
        there = owner(seen.target, owners, seen.host, seen.at - origin) == seen.host
        if isinstance(report, Loss) and here and not there:  # it was lost before the capture
            left.append(_Sight(seen, seen.at - origin, loss=report))
        else:
            reports[seen.host, seen.key].append(report)
    for key, told in reports.items():
        told.sort(key=lambda report: report.observation.at)
        found = captured.get(key, [])
        times = [report.observation.at - origin for report in told]
        partner = dict(align(times, [sight.at for sight in found], REPORTED, REPORTED))
        for number, report in enumerate(told):
            if number in partner:
                sight = found[partner[number]]
            else:
                sight = _Sight(report.observation, times[number])
                sights.append(sight)
            if isinstance(report, Loss):
                sight.loss = report
            else:
                sight.injection = report
    _in_order(left, sights)
    sights += left


def _in_order(left: Sequence[_Sight], sights: Iterable[_Sight]) -> None:
    """The report of a segment that was lost as it left may come a moment late. But the segment was
    sent before all that are marked as later."""
    others: dict[tuple[str, ...], list[_Sight]] = defaultdict(list)
    for sight in sights if left else ():
        others[sight.seen.host, sight.seen.source, sight.seen.target].append(sight)
    for lost in left:
        seen, told = lost.seen, lost.at
        for sight in others[seen.host, seen.source, seen.target]:
            if told - REPORTED < sight.at < lost.at and _later(sight.seen, seen):
                lost.at = sight.at - 1e-6


def _later(one: Observation, other: Observation) -> bool:
    """Whether a host marked `one` of two segments of a connection as the later one: by timestamps
    (RFC 7323) or, if a socket counts its packets, by identification (RFC 791)."""
    if one.timestamps and other.timestamps:
        apart = (one.timestamps[0] - other.timestamps[0]) % MODULUS
        if apart:
            return apart < MODULUS // 2
    (a, _), (b, _) = one.mark, other.mark
    counted = a and b and not {"SYN", "RST"}.intersection(one.flags + other.flags)
    return bool(counted) and 0 < (a - b) % IDENTS < IDENTS // 2
