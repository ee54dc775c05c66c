"""One RST, and what is known of its connection right before it, and after."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from labctl.judge.causes.cause import Cause, Scene, line
from labctl.judge.causes.descriptors import Descriptor
from labctl.language.steps.faults import Reject
from labctl.probes.observations import Segment, begins
from labctl.probes.sockets import State
from labctl.record.events import ResetEvent
from labctl.record.timelines import Timeline

UNSAID = "NOT_SPECIFIED"
LISTENER = "TCP_FLAGS, of a listener"
"""An ACK found nothing but a listener, for which it means nothing (net/ipv4/tcp_input.c,
tcp_rcv_state_process())."""
NO_SOCKET = "NO_SOCKET", LISTENER
"""The kernel's reasons where it had no socket for the connection."""
AT_ONCE = 0.01
"""Seconds from what a kernel answers to its answer, at most, on a busy machine."""
BEFORE = 1e-3
"""Seconds by which the end of a socket surely was before what a capture has next."""
CLOSED = 0.25
"""Seconds from a RST to the report of what closed its socket, at most."""


class Reset:
    """The segment of a connection with this number, a RST, and what is known right before, and
    after."""

    def __init__(self, number: int, segments: Sequence[Segment], scene: Scene) -> None:
        segment, before = segments[number], segments[:number]
        self.segment, self.before, self._segments, self.scene = segment, before, segments, scene
        self.host, self.t = segment.sender or "", segment.time
        self.ends = segment.source, segment.target
        self.name = f"{segment.source} -> {segment.target}"
        self.active = "ACK" in segment.flags
        mine = [s for s in before if s.source == segment.source]
        self.sent = [s for s in mine if s.sender == self.host and not s.crafted]
        theirs = [s for s in before if s.source == segment.target and s.receiver == self.host]
        came = [s for s in theirs if s.arrived and s.arrived <= self.t]
        self.came = sorted(came, key=lambda s: s.arrived or 0.0)

    @cached_property
    def reason(self) -> str | None:
        """Why the kernel says that it sent it; None if it does not say."""
        near = [
            event for event in self.scene.resets
            if event.host == self.host and abs(event.t - self.t) < AT_ONCE
        ]  # fmt: skip
        found = [event.reason for event in near if (event.local, event.remote) == self.ends]
        if any(self._listeners(e) for e in near) and not (found or self.active or self.outlived):
            return LISTENER
        return found[0] if found and found[0] != UNSAID else None

    def _listeners(self, event: ResetEvent) -> bool:
        """Whether a listener on the connection's port sent this RST, to an ACK."""
        port = self.segment.source.rpartition(":")[2]
        ends = event.local.rpartition(":")[2], event.remote.rpartition(":")[2]
        return event.reason == "TCP_FLAGS" and ends == (port, "0")

    def may_be(self, *reasons: str) -> bool:
        """Whether the kernel's own reason is one of these, or not known."""
        return self.reason is None or self.reason in reasons

    @property
    def trigger(self) -> Segment | None:
        """What it may answer."""
        last = self.came[-1] if self.came else None
        return last if last and self.t - (last.arrived or 0.0) < AT_ONCE else None

    @property
    def answered(self) -> Segment | None:
        """What it answers for certain."""
        last = self.trigger
        return last if last and self.active == ("ACK" not in last.flags) else None

    @property
    def guessed(self) -> Segment | None:
        """What it answers if nobody saw what came to its host: it has the number that this
        acknowledged (RFC 9293, section 3.10.7.1)."""
        theirs = [s for s in self.before if s.source == self.segment.target]
        last = theirs[-1] if theirs and not self.active else None
        fits = last and last.unseen and "ACK" in last.flags and last.ack == self.segment.seq
        return last if fits else None

    @property
    def refuses_synack(self) -> bool:
        """Whether it answers a SYN ACK that fits its host's SYN."""
        last, syn = self.answered or self.guessed, next(filter(begins, self.before), None)
        return (
            last is not None and syn is not None and "SYN" in last.flags
            and syn.source == self.segment.source and last.ack == syn.seq + 1
        )  # fmt: skip

    @property
    def may_have_data(self) -> bool:
        """Whether data came, or may have come where nobody saw what did."""
        return any(
            s.length and (s.unseen if s.arrived is None else s.arrived <= self.t)
            for s in self.before if s.source == self.segment.target
        )  # fmt: skip

    @property
    def rejected(self) -> Segment | None:
        """What a step refused right then by an RST."""
        steps = self.scene.scenario.steps if self.scene.scenario else ()
        for last in reversed(self.before):
            if last.dropped is None or last.source != self.segment.target:
                continue
            step = steps[last.dropped] if last.dropped < len(steps) else None
            by_reset = isinstance(step, Reject) and step.reject.with_ == "rst"
            at_once = self.t - last.time < AT_ONCE and self.active == ("ACK" not in last.flags)
            return last if by_reset and at_once else None
        return None

    @property
    def fin(self) -> Segment | None:
        """The FIN that its host had sent."""
        return next((s for s in self.sent if "FIN" in s.flags), None)

    @cached_property
    def timeline(self) -> Timeline | None:
        """The connection as its host had it."""
        return self.scene.timeline(self.host, self.ends, self.t)

    @property
    def spoke(self) -> bool:
        """Whether its host sent something else before: as who was asked, or as a NAT."""
        return any("RST" not in segment.flags for segment in self.sent)

    @property
    def listened(self) -> bool:
        """Whether its host ever had a listener on that port."""
        port = self.segment.source.rpartition(":")[2]
        return any(
            each.local.rpartition(":")[2] == port for each in self.scene.listeners(self.host)
        )

    @property
    def ended(self) -> bool:
        """Whether the connection ended there by the RST, and not before what that answers came."""
        end = self.timeline.spans[-1].end if self.timeline else None
        came = self.answered.arrived if self.answered else None
        if end is None or (came is not None and end.latest < came - BEFORE):
            return False
        return end.earliest - AT_ONCE <= self.t <= end.latest + AT_ONCE

    @property
    def outlived(self) -> bool:
        """Whether the connection certainly lived on there, in a state in which TCP sends no RST."""
        trouble = (self.host, "trace") in self.scene.history.trouble
        if not self.timeline or not self.timeline.complete or trouble:
            return False
        return (
            any(
                span.state in (State.ESTAB, State.CLOSE_WAIT)
                and span.begin.latest < self.t
                and (span.end is None or span.end.earliest > self.t + CLOSED)
                for span in self.timeline.spans
            )
            and self.scene.history.now > self.t + CLOSED
        )

    @property
    def later(self) -> list[Segment]:
        """What its host sent of the connection afterwards, as if it had not sent the RST."""
        return [
            s for s in self._segments
            if s.sender == self.host and s.source == self.segment.source
            and s.time > self.t + AT_ONCE and not s.injected and not {"SYN", "RST"} & {*s.flags}
        ]  # fmt: skip

    @property
    def went_on(self) -> bool:
        """Whether its host went on with the connection, though the RST has the number that is due,
        and so tells the peer that all is over."""
        due = max((s.seq + s.length + ("SYN" in s.flags) for s in self.sent), default=None)
        return bool(self.later) and self.segment.seq == due

    @property
    def state(self) -> State | None:
        """The state that the connection was in right before."""
        spans = self.timeline.spans if self.timeline else ()
        found = [span.state for span in spans if span.begin.earliest < self.t - 1e-6]
        return found[-1] if found else None

    @property
    def maker(self) -> Descriptor | None:
        """The descriptor of the connection, or of the listener that had not accepted it."""
        return self.scene.maker(self.host, self.ends, self.t)

    def closed(self, maker: Descriptor) -> bool:
        """Whether a program closed it then."""
        return abs(maker.closed - self.t) < CLOSED

    @property
    def last_seen(self) -> tuple[int, int | None, bool]:
        """How many bytes were unread when a look showed it last, its inode, and whether nothing
        came and no `recv` ended since."""
        seen = [(t, s) for t, s in self.scene.seen(self.host, self.ends) if t <= self.t]
        since = self.timeline.spans[0].begin.earliest if self.timeline else 0.0
        if not seen or seen[-1][0] < since:
            return 0, None, False
        t, socket = seen[-1]
        fins = sum("FIN" in s.flags for s in self.came)
        maker = self.maker
        read = any(
            t <= call.t <= self.t and self.scene.descriptors.of(call) is maker
            for call in self.scene.calls(name="recv")
        )
        late = any(s.length and (s.arrived or 0.0) >= t for s in self.came)
        # A FIN counts as one byte there (tcp_diag_get_info()).
        return socket.recv_q - (1 if fins else 0), socket.inode, not read and not late

    def cause(self, name: str, why: str, cure: str, ref: str, *proof: Segment) -> Cause:
        """A cause of this host's."""
        text = f"{self.host} reset {self.name}: {why}"
        return Cause(name, self.host, self.t, text, cure, self.name, self.proof(*proof), (ref,))

    def proof(self, *segments: Segment) -> tuple[str, ...]:
        """What led to it, itself, and why the kernel says that it sent it."""
        lines = tuple(line(s) for s in (*segments, self.segment))
        return (*lines, f"the kernel's reason: {self.reason}") if self.reason else lines
