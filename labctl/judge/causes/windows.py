"""Segments whose numbers did not fit, so that the kernel did not do what they ask for: RSTs, SYNs
for a connection that is open, and acknowledgements (RFC 5961)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from labctl.ground.data import dataclass
from labctl.judge.causes.cause import Cause, Scene, line
from labctl.probes.observations import MODULUS, Segment, begins
from labctl.probes.sockets import State

RESET = "RFC 5961, section 3.2; tcp_validate_incoming() in net/ipv4/tcp_input.c"
SYN = "RFC 5961, section 4.2; tcp_validate_incoming() in net/ipv4/tcp_input.c"
ACK = "RFC 9293, section 3.10.7.4; tcp_ack() in net/ipv4/tcp_input.c"
OLD = "RFC 5961, section 5.2; tcp_ack() in net/ipv4/tcp_input.c"
COUNTER = "TcpExtTCPChallengeACK"
OPEN = (State.ESTAB, State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSE_WAIT, State.LAST_ACK)
AT_ONCE = 0.01
"""Seconds from such a segment to its answer, at most, on a busy machine."""
AFTER = 0.25
"""Seconds that a connection lives on after a segment that did it no harm, at least."""
HALF = MODULUS // 2
LARGEST = 1 << 30
"""A window of which nobody knows the scale has no more bytes (RFC 7323, section 2.3)."""
TRIED, MOST = 3, 20
"""Segments of one kind that are looked at in a connection, and that are told of of a host."""


@dataclass
class _Said:
    """What one end of a connection has sent so far: the number that follows, the last one that it
    acknowledged, and its largest window."""

    following: int = 0
    acked: int = 0
    window: int = 0

    def add(self, segment: Segment) -> None:
        """It has sent this, too."""
        end = segment.seq + segment.length + len({"SYN", "FIN"} & {*segment.flags})
        if 0 < (end - self.following) % MODULUS < HALF:
            self.following = end
        if "ACK" in segment.flags:
            scale = segment.origin.scale
            window = LARGEST if scale is None else segment.window << scale
            self.acked, self.window = segment.ack, max(self.window, window)

    @property
    def late(self) -> int:
        """How far back it may still acknowledge: its window, or all that it ever had (RFC 5961,
        section 5.2)."""
        return min(self.window, self.acked - 1)


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for the first RST, the first SYN, and the first ACK of each kind, in each connection
    that a host did not take."""
    told: Counter[tuple[str, str]] = Counter()
    for segments in scene.conversations:
        tried: Counter[tuple[str, str]] = Counter()
        said: dict[str, _Said] = {}
        for segment in segments:
            host, kind = segment.receiver, _kind(segment, said)
            if not segment.crafted:
                said.setdefault(segment.source, _Said()).add(segment)
            if kind is None or host is None or segment.arrived is None or segment.inside:
                continue
            tried[host, kind] += 1
            if tried[host, kind] > TRIED or told[host, kind] >= MOST:
                continue
            if found := KINDS[kind](segment, host, scene):
                tried[host, kind] = TRIED
                told[host, kind] += 1
                yield found


def _kind(segment: Segment, said: Mapping[str, _Said]) -> str | None:
    """What a segment may be that is not taken, after its ends have said that."""
    if "RST" in segment.flags:
        return "RST"
    if begins(segment):
        return "SYN"
    mine, theirs = said.get(segment.source), said.get(segment.target)
    if theirs is None or segment.retransmitted or "ACK" not in segment.flags:
        return None
    if 0 < (segment.ack - theirs.following) % MODULUS < HALF:
        return "ACK"
    if mine is None or (segment.seq - mine.following) % MODULUS >= HALF:
        return None
    return "OLD" if mine.late < (mine.acked - segment.ack) % MODULUS < HALF else None


def _rst(rst: Segment, host: str, scene: Scene) -> Cause | None:
    """A RST with another number than the one that was due, which the host answered by an ACK, or
    after which the connection lived on."""
    came = rst.arrived or 0.0
    segments = scene.conversation(host, (rst.target, rst.source), came)
    due = _due(segments, rst)
    counts = not scene.history.imported  # of a capture from elsewhere nobody knows the counters
    answer = _answer(rst, segments, host, scene) if counts else _at_once(rst, segments, host)
    until = answer.time if answer else came + AFTER
    if due is None or rst.seq == due or not _open(rst, host, scene, until):
        return None
    fates = [f for f in scene.fates.get((host, (rst.target, rst.source)), ())
             if came - AT_ONCE < f.t < came + AT_ONCE]  # fmt: skip
    if any(fate.did == "reset" for fate in fates):
        return None
    reason = next((f.reason for f in fates if f.did == "discard" and f.reason), "")
    if answer is None and not reason and (host, "trace") in scene.history.trouble:
        return None  # whether it lives on, looks alone tell too late
    did = (
        f"{host} answered it by a challenge ACK" if answer
        else f"{host} dropped it, as a segment beside the window, and the connection went on"
    )  # fmt: skip
    did += f" (the kernel says: {reason})" if reason else ""
    return Cause(
        "reset-window", host, came,
        f"{host} did not take the RST of {rst.source} -> {rst.target}: its number is "
        f"{_apart(rst.seq, due)} the one that was due, {due}, so {did}",
        "send an RST with exactly the number that is due: nothing else in the window resets a "
        "connection",
        f"{rst.target} -> {rst.source}", (line(rst), *([line(answer)] if answer else [])), (RESET,),
    )  # fmt: skip


def _challenge(segment: Segment, host: str, scene: Scene) -> Segment | None:
    """The ACK by which a host answered a segment at once, its connection being open before and
    after."""
    came, ends = segment.arrived or 0.0, (segment.target, segment.source)
    answer = _answer(segment, scene.conversation(host, ends, came), host, scene)
    return answer if answer and _open(segment, host, scene, came) else None


def _syn(syn: Segment, host: str, scene: Scene) -> Cause | None:
    """A SYN for a connection that was open there, to which the answer was an ACK alone."""
    came, answer = syn.arrived or 0.0, _challenge(syn, host, scene)
    if answer is None:
        return None
    number = syn.seq if syn.crafted else 0
    # A SYN of its kernel's begins a count of its own, in which the answer's number is.
    due = f"{_apart(answer.ack, number)} the SYN's own"
    return Cause(
        "challenge-ack", host, came,
        f"{host} answered a SYN of {syn.source} by a challenge ACK: it has an open connection of "
        f"these ends, in which the number that was due is {due}; a client that knows nothing of "
        "that connection answers the ACK by an RST, which ends it",
        "close the old connection, or connect from another port",
        f"{syn.target} -> {syn.source}", (line(syn), line(answer)), (SYN,),
    )  # fmt: skip


def _ack(ack: Segment, host: str, scene: Scene) -> Cause | None:
    """An acknowledgement of what the host had never sent."""
    came, answer = ack.arrived or 0.0, _challenge(ack, host, scene)
    if answer is None or not scene.captured(host):
        return None
    return Cause(
        "challenge-ack", host, came,
        f"{host} answered a segment of {ack.source} by a challenge ACK: it acknowledges all up to "
        f"number {ack.ack}, and {host} had sent no more than up to {answer.seq}: something else "
        "has sent data in its name",
        "", f"{ack.target} -> {ack.source}", (line(ack), line(answer)), (ACK,),
    )  # fmt: skip


def _old(ack: Segment, host: str, scene: Scene) -> Cause | None:
    """An acknowledgement that is too old."""
    came, answer = ack.arrived or 0.0, _challenge(ack, host, scene)
    if answer is None:
        return None
    before = reversed(scene.conversation(host, (ack.target, ack.source), came))
    acked = next(s.ack for s in before
                 if s.source == ack.source and s.time < ack.time and not s.crafted)  # fmt: skip
    return Cause(
        "challenge-ack", host, came,
        f"{host} answered a segment of {ack.source} by a challenge ACK: its acknowledgement is "
        f"{_apart(ack.ack, acked)} the last one, {acked}, and so too old: it comes very late, or "
        "something else has sent it",
        "", f"{ack.target} -> {ack.source}", (line(ack), line(answer)), (OLD,),
    )  # fmt: skip


KINDS = {"RST": _rst, "SYN": _syn, "ACK": _ack, "OLD": _old}
"""The rule for each kind of segment."""


def _due(segments: Sequence[Segment], rst: Segment) -> int | None:
    """The number that the receiver of a RST waited for: what it had acknowledged last, if that was
    all that had come."""
    host, came = rst.receiver, rst.arrived or 0.0
    acks = [s.ack for s in segments
            if s.source == rst.target and s.sender == host and "ACK" in s.flags
            and not s.crafted and "RST" not in s.flags and s.time < came]  # fmt: skip
    most = max(
        (s.seq + s.length + ("SYN" in s.flags) + ("FIN" in s.flags) for s in segments
         if s.source == rst.source and "RST" not in s.flags and not s.crafted
         and s.arrived is not None and s.arrived < came),
        default=None,
    )  # fmt: skip
    return acks[-1] if acks and acks[-1] == most else None


def _apart(number: int, due: int) -> str:
    after = (number - due) % MODULUS
    return f"{after} after" if after < HALF else f"{MODULUS - after} before"


def _open(segment: Segment, host: str, scene: Scene, until: float) -> bool:
    """Whether a host had the connection open when a segment came, and up to a moment."""
    came = segment.arrived or 0.0
    if scene.history.now < until:
        return False
    known = scene.between(host, (segment.target, segment.source))
    spans = [span for timeline in known for span in timeline.spans if span.state in OPEN]
    return all(
        any(s.begin.latest <= t and (s.end is None or t <= s.end.earliest) for s in spans)
        for t in (came, until)
    )


def _answer(
    segment: Segment, segments: Sequence[Segment], host: str, scene: Scene
) -> Segment | None:
    """The ACK alone by which a host answered at once, if its kernel counted such answers. In an
    open connection a SYN has no other answer; the one that opened it has a SYN ACK."""
    known = scene.grown(host, COUNTER) or (
        scene.history.imported
        and begins(segment)
        and not any("SYN" in s.flags and s.ack == segment.seq + 1 for s in segments)
    )
    return _at_once(segment, segments, host) if known else None


def _at_once(segment: Segment, segments: Sequence[Segment], host: str) -> Segment | None:
    """The ACK alone that a host sent at once when a segment had come."""
    came = segment.arrived or 0.0
    return next(
        (s for s in segments
         if s.source == segment.target and s.sender == host and s.flags == ("ACK",)
         and not s.length and not s.crafted and came <= s.time < came + AT_ONCE),
        None,
    )  # fmt: skip
