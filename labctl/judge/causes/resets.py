"""Why a host reset a connection: by what came right before the RST, and what the host had then
(RFC 9293, section 3.10.7; RFC 2525, section 2.17; RFC 1337).

A kernel that gives up a connection of its own sends RST and ACK (tcp_send_active_reset()); one that
answers a segment that has an ACK sends an RST alone (RFC 9293, section 3.10.7.1). A RST after which
the socket lives on was none of its kernel's TCP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from labctl.ground.written import count
from labctl.judge.causes import nats
from labctl.judge.causes.cause import Cause, Scene, asked_for, line
from labctl.judge.causes.refusals import NOBODY, REJECTED, refused, stranger
from labctl.judge.causes.reset import AT_ONCE, CLOSED, NO_SOCKET, Reset
from labctl.judge.causes.silence import RULES
from labctl.probes.observations import Segment, begins
from labctl.probes.sockets import State
from labctl.record.timelines import is_traced

MOST = 20
"""Connections that a host reset, at most, which are looked at."""
UNREAD = "RFC 2525, section 2.17; tcp_close() in net/ipv4/tcp.c"
LINGER = "socket(7), SO_LINGER; tcp_close() in net/ipv4/tcp.c"
LINGER2 = "tcp(7), TCP_LINGER2; tcp_rcv_state_process() in net/ipv4/tcp_input.c"
LATE = "RFC 9293, section 3.10.7; tcp_rcv_state_process() in net/ipv4/tcp_input.c"
DISCONNECT = "connect(2), AF_UNSPEC; tcp_disconnect() in net/ipv4/tcp.c"
ABORTED = "ss(8), --kill; tcp_abort() in net/ipv4/tcp.c"
QUEUED = "inet_csk_listen_stop() in net/ipv4/inet_connection_sock.c"
MIGRATE = (
    "accept what waits before the listener closes; net.ipv4.tcp_migrate_req moves it to another "
    "listener with SO_REUSEPORT"
)
ORPHANS = "tcp(7), tcp_max_orphans and tcp_mem; tcp_check_oom() in net/ipv4/tcp.c"


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each RST of a host in a connection, each kind once, if it is known: up to the
    first one that its kernel sent, and that its peer has taken."""
    asked: Counter[str | None] = Counter()
    for segments in scene.conversations:
        over: dict[str | None, float] = {}
        told: set[tuple[str, str]] = set()
        for number, segment in enumerate(segments):
            host = segment.sender
            if segment.follows:
                continue  # a NAT passed it on
            if "RST" in segment.flags and asked[host] < MOST:
                if host in over and not _lives_on(segments, number, over[host]):
                    continue
                asked[host] += 1
                if not segment.injected and not segment.lost:
                    over[host] = segment.arrived or segment.time
                reset = Reset(number, segments, scene)
                found = _of(reset)
                if found is None and scene.history.without_calls:
                    found = _likely(reset)
                if found and (found.host, found.id) not in told:
                    told.add((found.host, found.id))
                    yield found


def _lives_on(segments: Sequence[Segment], number: int, since: float) -> bool:
    """Whether the peer of who sent a RST has itself sent something before it and after that moment,
    so that it took no RST that had come to it by then."""
    before = (segments[n] for n in reversed(range(number)))
    late = takewhile(lambda s: s.time > since + AT_ONCE, before)
    return any(s.source == segments[number].target and not s.injected for s in late)


def _of(reset: Reset) -> Cause | None:
    segment = reset.segment
    if segment.crafted:
        return Cause(
            "reset-crafted", reset.host, reset.t,
            f"a step sent the RST of {reset.name}: no kernel did", "", reset.name,
            (line(segment),),
        )  # fmt: skip
    if lost := reset.rejected:
        return reset.cause(
            "reset-crafted",
            f"a step refused {_what(lost)} from {lost.source}, and answered in its place "
            "(reject with rst): its TCP sent no RST",
            "", REJECTED, lost,
        )  # fmt: skip
    asked = reset.answered if reset.answered and begins(reset.answered) else None
    if segment.inside and not asked and not reset.ended:
        return None
    if segment.t is None:
        return None if segment.unseen else _foreign(reset)
    if owner := stranger(segment, reset.scene):
        name = "connect-refused" if all(map(begins, reset.before)) else "reset-crafted"
        return reset.cause(
            name, f"{owner} did not: {reset.host}, which forwards, answered in its name, as a "
            "firewall does (reject with tcp reset)",
            f"{RULES} of {reset.host}", REJECTED, *reset.before[-1:],
        )  # fmt: skip
    if asked:
        return refused(reset, asked) if reset.may_be(*NO_SOCKET) else None
    if reset.ended:
        found = (rule(reset) for rule, reasons in ENDED.items() if reset.may_be(*reasons))
        told = next(filter(None, found), None)
        if told or reset.reason not in NO_SOCKET:  # else it had ended an instant before
            return told
    if reset.outlived and reset.reason is None:
        return reset.cause(
            "reset-crafted",
            f"its socket stayed in {reset.state}, so TCP did not send it; a firewall of that host "
            "may have (reject with tcp reset)",
            "", REJECTED,
        )  # fmt: skip
    if reset.answered and reset.may_be(*NO_SOCKET):
        return _nobody(reset, reset.answered)
    return None


def _foreign(reset: Reset) -> Cause | None:
    """A RST that arrived, and which the host in whose name it came did not send."""
    if not reset.scene.captured(reset.host) or reset.segment.receiver is None:
        return None
    return Cause(
        "reset-crafted", reset.segment.receiver, reset.t,
        f"{reset.segment.receiver} received an RST of {reset.name}, which {reset.host} did not "
        "send: something between them did",
        "", reset.name, (line(reset.segment),),
    )  # fmt: skip


def _nobody(reset: Reset, answered: Segment) -> Cause | None:
    """A RST to what came for a connection of which this host knows nothing, or nothing any more."""
    scene, host = reset.scene, reset.host
    if not {(host, "trace"), (host, "capture"), (host, "ss")}.isdisjoint(scene.history.trouble):
        return None
    last = reset.timeline.spans[-1] if reset.timeline else None
    if last is None and (forgotten := _forgotten(reset, answered) or _half_open(reset)):
        return forgotten
    if last and last.end and last.end.latest <= reset.t:
        if any("SYN" in s.flags and s.time > last.end.latest for s in reset.sent):
            return None  # it may have a socket for what was asked since then
        then = f"it ended there at {last.end.at:.3f} s, in {last.state}"
    elif last or not is_traced(scene.history) or (reset.spoke and reset.listened):
        return None  # a request for a connection may have come to nothing, which no trace shows
    else:
        then = "it never had one: a NAT may have forgotten it, or did not know the segment"
    return Cause(
        "reset-no-socket", host, reset.t,
        f"{host} answered {_what(answered)} from {answered.source} by an RST: it has no socket for "
        f"{reset.name}; {then}",
        "", reset.name, reset.proof(answered), (NOBODY,),
    )  # fmt: skip


def _what(segment: Segment) -> str:
    return count(segment.length, "byte") if segment.length else " ".join(segment.flags)


def _forgotten(reset: Reset, answered: Segment) -> Cause | None:
    """A NAT that had passed a connection on answers its next segment itself. One that is out of
    order it may not have understood, and a FIN or an RST may have told it that all is over."""
    behind = reset.scene.translated.get((reset.host, reset.ends))
    before = [s for s in reset.came if s is not answered]
    gone = any({"FIN", "RST"} & {*s.flags} for s in before + reset.sent)
    if behind is None or not before or gone or answered.crafted:
        return None
    following = max(s.seq + s.length + ("SYN" in s.flags) for s in before)
    if answered.seq not in (following, following - 1) or answered.ack != before[-1].ack:
        return None
    idle = answered.time - max(s.time for s in before + reset.sent)
    return Cause(
        "nat-forgot", reset.host, reset.t,
        f"{reset.host} had passed on {' -> '.join(behind)} as {reset.name}, and has forgotten it: "
        f"it answered what came {idle:.1f} s after the last segment by an RST of its own; "
        f"{behind[0]} does not hear of it",
        nats.CURE, f"{behind[0]} -> {behind[1]}", reset.proof(answered), (nats.IDLE,),
    )  # fmt: skip


# --- RSTs by which a connection ended where they were sent ----------------------------------------


def _linger(reset: Reset) -> Cause | None:
    maker = reset.maker
    if maker is None or not reset.active or not reset.closed(maker):
        return None
    on, *seconds = maker.option("SO_LINGER", reset.t).split()
    if on == "0" or seconds != ["0"]:
        return None
    then = ", after it had shut it down for sending" if reset.fin else " and no FIN"
    return reset.cause(
        "reset-linger",
        f"{maker.process} closed it with SO_LINGER {on} 0, which sends an RST{then}",
        "leave SO_LINGER as it is", LINGER,
    )  # fmt: skip


def _linger2(reset: Reset) -> Cause | None:
    maker, fin, answered = reset.maker, reset.fin, reset.answered
    if maker is None or fin is None or maker.closed - CLOSED > reset.t:
        return None
    if not maker.option("TCP_LINGER2", reset.t).startswith("-"):
        return None
    acknowledged = answered is not None and answered.ack >= fin.seq + fin.length + 1
    if not acknowledged and not (reset.active and reset.closed(maker)):
        return None
    return reset.cause(
        "reset-linger",
        f"{maker.process} closed it with TCP_LINGER2 below 0, which ends it by an RST as soon as "
        "its FIN is acknowledged",
        "leave TCP_LINGER2 as it is", LINGER2,
    )  # fmt: skip


def _late(reset: Reset) -> Cause | None:
    answered = reset.answered or reset.guessed
    if answered is None or not answered.length or reset.fin is None:
        return None
    if reset.state not in (State.FIN_WAIT_1, State.FIN_WAIT_2):
        return None
    found = reset.cause(
        "reset-late-data",
        f"{count(answered.length, 'byte')} came for a socket that was closed already, or shut down "
        f"for reading ({reset.state}), so nobody will read them",
        "let the side that closes first read to the end, or shut down its sending half only",
        LATE, answered,
    )  # fmt: skip
    return replace(found, certain=reset.answered is not None)


def _queued(reset: Reset) -> Cause | None:
    """In an accept queue a connection has no inode."""
    _, inode, _ = reset.last_seen
    if not reset.active or reset.fin or inode != 0 or not _listener_ended(reset, reset.t):
        return None
    if reset.scene.descriptor(reset.host, reset.ends, reset.t):
        return None
    return reset.cause(
        "reset-queue", "its listener was closed while nobody had accepted it", MIGRATE, QUEUED
    )  # fmt: skip


def _half_open(reset: Reset) -> Cause | None:
    """What would have completed its handshake came when its listener was closed. A listener that
    is there then answers it as something strange."""
    timeline, answered = reset.timeline, reset.answered
    synack = next((s for s in reset.sent if {"SYN", "ACK"} <= {*s.flags}), None)
    if answered is None or synack is None or not _listener_ended(reset, synack.time):
        return None
    if timeline is not None and timeline.states != (State.SYN_RECV,):  # a cookie leaves none
        return None
    return reset.cause(
        "reset-queue", "its listener was closed before its handshake was done, so what "
        f"{answered.source} sent then was for nobody",
        MIGRATE, QUEUED, answered,
    )  # fmt: skip


def _unread(reset: Reset) -> Cause | None:
    """If the host closed as many connections with unread data as it reset, this was one of them.
    If not, a look right before must have shown the data."""
    counted = reset.scene.grown(reset.host, "TcpExtTCPAbortOnClose")
    maker, (unread, _, exact) = reset.maker, reset.last_seen
    if not counted or not reset.active:
        return None
    if maker and reset.reason is None and not reset.closed(maker):
        return None  # a kernel's reason counts also where another process got the descriptor
    sure = reset.reason is not None or counted >= reset.scene.given_up[reset.host]
    if not sure and not (maker and exact and unread > 0):
        return None
    told = f"{count(unread, 'byte')} {'was' if unread == 1 else 'were'}"
    data = told if exact and unread > 0 else "data was"
    return reset.cause(
        "reset-unread",
        f"{data} unread when the socket closed, so it ended by an RST"
        + ("" if reset.fin else " and not by a FIN"),
        "read to the end of file before close, or shutdown and wait", UNREAD,
    )  # fmt: skip


def _orphaned(reset: Reset) -> Cause | None:
    """If the host gave up as many orphans for want of room as it reset connections, this was one of
    them."""
    counted = reset.scene.grown(reset.host, "TcpExtTCPAbortOnMemory")
    if not reset.active or not (counted or reset.reason):
        return None
    if reset.reason is None and counted < reset.scene.given_up[reset.host]:
        return None
    most = reset.scene.setting(reset.host, "net.ipv4.tcp_max_orphans", reset.t)
    limit = f"net.ipv4.tcp_max_orphans, {most}," if most else "net.ipv4.tcp_max_orphans"
    doubt = "" if most else ": the kernel's log would tell which"
    found = reset.cause(
        "orphans-limit",
        "no process had it open any more, and there were more such orphans than "
        f"{limit} allows, or no memory for one (net.ipv4.tcp_mem){doubt}",
        "raise the limit, or leave fewer connections behind whose peer does not close", ORPHANS,
    )  # fmt: skip
    counter = (f"TcpExtTCPAbortOnMemory: {counted}",) if counted else ()
    return replace(found, evidence=(*found.evidence, *counter), certain=most is not None)


# --- RSTs of which only segments tell -------------------------------------------------------------


def _likely(reset: Reset) -> Cause | None:
    """What most often lies behind such a RST, and what would tell."""
    if reset.segment.injected:
        return None
    if reset.state is State.SYN_SENT and not reset.refuses_synack:
        return None  # it answers what its SYN does not fit
    if asked := asked_for(reset.segment, reset.before):
        name, port = f"{asked.source} -> {asked.target}", asked.target.rpartition(":")[2]
        found = Cause(
            "connect-refused", reset.host, reset.t,
            f"{reset.host} refused {name}: nobody listened on port {port} there, or a firewall "
            "refused in its name: its sockets and rules would tell",
            "start the server first, or have the client try again", name, reset.proof(asked),
            (NOBODY,),
        )  # fmt: skip
    elif reset.went_on:
        found = reset.cause(
            "reset-crafted",
            "it went on with the connection afterwards, so its socket did not send it; a firewall "
            "(reject with tcp reset) or a NAT may have, in its name: their rules would tell",
            "", REJECTED, *reset.later[:1],
        )  # fmt: skip
    elif late := _late(reset):
        found = late
    elif not reset.active and (answered := reset.answered or reset.guessed):
        tries = _tries(reset, answered)
        given_up = f", maybe as its {_what(tries[0])} had no answer" if tries else ""
        found = reset.cause(
            "reset-no-socket",
            f"by then it had no socket for what {answered.source} sent, or had closed it"
            f"{given_up}: its sockets or calls would tell since when",
            "", NOBODY, *tries[-2:], answered,
        )  # fmt: skip
    elif probes := _unanswered_probes(reset):
        found = reset.cause(
            "timeout-keepalive",
            f"{count(len(probes), 'keepalive probe')} had no answer, so it gave up",
            "", "tcp(7), SO_KEEPALIVE", *probes[-3:],
        )  # fmt: skip
    elif reset.active and reset.spoke and (reset.may_have_data or not reset.fin):
        ways = "with SO_LINGER 1 0"
        if reset.may_have_data:
            ways = f"with data unread, or {ways}"
        if reset.fin:
            ways += ", after it had shut it down for sending"
        elif not reset.scene.opened(reset.host, reset.ends, reset.t) and not any(
            segment.length for segment in reset.sent
        ):
            ways += ", or its listener closed before it was accepted"
        found = reset.cause(
            "reset-by-close", f"its program closed it {ways}: its calls would tell",
            "read to the end of file before close, and leave SO_LINGER as it is", UNREAD,
        )  # fmt: skip
    else:
        return None
    return replace(found, certain=False)


def _tries(reset: Reset, answered: Segment) -> list[Segment]:
    """What its host had sent again and again right before that came."""
    before = reset.before[: reset.before.index(answered)]
    quiet = takewhile(lambda s: s.source == answered.target, reversed(before))
    found = [s for s in quiet if s.length or "FIN" in s.flags][::-1]
    return [s for s in found if s.seq == found[-1].seq] if found and found[-1].retransmitted else []


def _unanswered_probes(reset: Reset) -> list[Segment]:
    """The keepalive probes that its host had sent last, since it last heard from its peer."""
    heard = reset.came[-1].arrived or 0.0 if reset.came else 0.0
    found = takewhile(lambda s: s.keepalive and s.time > heard, reversed(reset.sent))
    return [*found][::-1]


def _disconnected(reset: Reset) -> Cause | None:
    """A program's connect to AF_UNSPEC, which also ends a connection."""
    mine = reset.maker
    if mine is None or not reset.active or not any(
        abs(call.t - reset.t) < CLOSED and reset.scene.descriptors.of(call) is mine
        for call in reset.scene.calls(name="disconnect")
    ):  # fmt: skip
        return None
    return reset.cause(
        "reset-by-close", f"{mine.process} disconnected it, by a connect to AF_UNSPEC, which ends "
        "a connection by an RST",
        "close it, or shut it down", DISCONNECT,
    )  # fmt: skip


def _aborted(reset: Reset) -> Cause | None:
    """Its process still has it open, and has not ended it: the kernel says so by its reason, or by
    the error of the next call."""
    t, mine = reset.t, reset.scene.descriptor(reset.host, reset.ends, reset.t)
    if mine is None or not reset.active or not mine.open_at(t + CLOSED):
        return None
    told = reset.reason is not None or any(
        call.t >= t and reset.scene.descriptors.of(call) is mine
        for call in reset.scene.calls(errno="ECONNABORTED")
    )  # fmt: skip
    if not told or reset.scene.history.now < t + CLOSED:
        return None
    return reset.cause(
        "reset-by-close", f"{mine.process} still had it open: something else ended it, as "
        "ss --kill does (SOCK_DESTROY)",
        "", ABORTED,
    )  # fmt: skip


ENDED: dict[Callable[[Reset], Cause | None], tuple[str, ...]] = {
    _linger: ("TCP_STATE", "TCP_DISCONNECT_WITH_DATA"),
    _linger2: ("TCP_ABORT_ON_DATA", "TCP_ABORT_ON_LINGER"),
    _late: ("TCP_ABORT_ON_DATA", "TCP_TIMEWAIT_SOCKET"),
    _queued: ("TCP_STATE", "TCP_DISCONNECT_WITH_DATA"),
    _half_open: NO_SOCKET,
    _unread: ("TCP_ABORT_ON_CLOSE",),
    _orphaned: ("TCP_ABORT_ON_MEMORY",),
    _disconnected: ("TCP_STATE", "TCP_DISCONNECT_WITH_DATA"),
    _aborted: ("TCP_STATE",),
}
"""Each with the kernel's reasons that go with it; the first that knows says it."""


def _listener_ended(reset: Reset, since: float) -> bool:
    """Whether a listener on its port ended between that time and the RST, as calls tell, or the
    last one there."""
    port = reset.segment.source.rpartition(":")[2]
    closed = (
        each.closed for each in reset.scene.descriptors.all
        if each.host == reset.host and each.listening < reset.t and str(each.port) == port
    )  # fmt: skip
    if any(since - CLOSED < t < reset.t + CLOSED for t in closed):
        return True
    ends = [
        each.spans[-1].end for each in reset.scene.listeners(reset.host)
        if each.local.rpartition(":")[2] == port
    ]  # fmt: skip
    return any(
        end and since <= end.latest + CLOSED and end.earliest - CLOSED <= reset.t for end in ends
    )
