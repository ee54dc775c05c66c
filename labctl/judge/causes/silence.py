"""Calls and connections that ended with ETIMEDOUT: what had no answer, and which timer gave up
(RFC 9293, section 3.8.3; RFC 1122, section 4.2.3.6; tcp(7))."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

from labctl.ground import errnos
from labctl.ground.written import count
from labctl.judge.causes.cause import Cause, Scene, line
from labctl.judge.causes.descriptors import Descriptor, arguments
from labctl.probes.observations import Segment, begins
from labctl.probes.sockets import State
from labctl.record.events import CallEvent

SYN = "tcp(7), tcp_syn_retries"
USER = "tcp(7), TCP_USER_TIMEOUT; RFC 5482"
KEEPALIVE = "tcp(7), SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT"
GIVING_UP = (
    State.ESTAB, State.CLOSE_WAIT, State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK
)  # fmt: skip
"""The states in which a side waits for an acknowledgement."""
PATIENT = 1.0
"""Seconds after which no answer to a first SYN is worth a word: then it is sent again."""
SHOWN = 3
"""Connections of a host that wait, at most, that are told of."""
SLACK = 0.3
"""Seconds by which a timer may seem to end early: it begins with what is sent, not acknowledged."""
PROBES = "tcp(7), TCP_USER_TIMEOUT; tcp_probe_timer() in net/ipv4/tcp_timer.c"
UNDER_WAY = ("EINPROGRESS", "EALREADY")
"""Errors of a connect that goes on."""
SOFT = ("EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED")
"""Errors of ICMP that a connection forgives."""
RETRIES = "tcp(7), tcp_retries2, tcp_orphan_retries; RFC 1122, section 4.2.3.5"

RULES = "look at the rules (nft list ruleset)"
KEPT_BACK = "nftables: drop; nf_hook_slow() in net/netfilter/core.c"
ABORTED = "TcpExtTCPAbortOnTimeout"


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each call that timed out, and for each connection of which no call tells that."""
    told = [*_calls(scene)]
    known = {cause.connection for cause in told} | _refused(scene)
    if scene.history.without_calls:
        told += (cause for cause in _in_vain(scene) if cause.connection not in known)
    for host in scene.history.hosts:
        told += _given_up(host, scene)
    yield from told
    known |= {cause.connection for cause in told}
    for host in scene.history.hosts:
        found = (c for c in _waiting(host, scene) if c.connection not in known)
        yield from islice(found, SHOWN)


def _refused(scene: Scene) -> set[str | None]:
    """Connections that an ICMP error ended, as a connect tells: that was their answer."""
    return {
        f"{each[0].source} -> {each[0].target}"
        for call in scene.calls(name="connect", errno=...) if call.errno in SOFT
        if (mine := scene.descriptors.of(call))
        for each in asked(call, mine, scene)
    }  # fmt: skip


def _in_vain(scene: Scene) -> Iterator[Cause]:
    """Connections that somebody asked for, as far as only segments tell: without any answer."""
    for segments in scene.conversations:
        host, source = segments[0].sender, segments[0].source
        if host is None or not all(begins(s) and s.source == source for s in segments):
            continue
        if scene.history.now - segments[0].time < PATIENT or segments[0].inside:
            continue
        errors, icmp = _icmp(host, source, scene)
        tries = f"{len(segments)} SYNs" if len(segments) > 1 else "its SYN"
        name = f"{source} -> {segments[0].target}"
        yield Cause(
            "no-answer", host, segments[-1].time,
            f"{host} had no answer to {tries} of {name}; {_fate(segments, 0, scene)}{icmp}", "",
            name, tuple(map(line, segments[-3:])), (SYN,),
            certain=scene.captured(host) and not errors,
        )  # fmt: skip


def _icmp(host: str, source: str, scene: Scene) -> tuple[int | None, str]:
    """How many ICMP errors a host got, None if nobody knows, and what they may mean for a SYN."""
    counter = "Icmp6InDestUnreachs" if source.startswith("[") else "IcmpInDestUnreachs"
    errors = scene.history.growth(host, counter)
    if errors:
        return errors, f"; an ICMP error may have been its answer ({counter}: {errors})"
    return errors, "" if errors == 0 else "; an ICMP error would not show here"


def _waiting(host: str, scene: Scene) -> Iterator[Cause]:
    """Connections that wait for an answer still, or that were closed before one came, of which no
    failed call tells."""
    failed = {
        (call.local or "").rpartition(":")[2]
        for call in scene.calls(host=host, name="connect", errno=...)
        if call.errno not in UNDER_WAY
    }
    imported = scene.history.imported
    now = min(scene.history.now, imported[host].t if host in imported else math.inf)
    for timeline in scene.timelines(host):
        last = timeline.spans[-1]
        ended = last.end is not None and last.end.latest < math.inf
        until = last.end.latest if last.end and ended else now
        asks = last.state is State.SYN_SENT and timeline.local.rpartition(":")[2] not in failed
        waits = last.state in (State.ESTAB, State.CLOSE_WAIT) and not ended
        alone = timeline.local == timeline.remote  # it hears itself
        if not (asks or waits) or alone or until - last.begin.latest < PATIENT:
            continue
        found = scene.conversation(host, timeline.ends, until)
        silence = Silence(found, host, until, scene)
        sent = silence.sent
        answers = [] if imported or not asks else _answers(found, timeline.local)
        since = (answers[0].arrived or math.inf) + SLACK if answers else math.inf
        if any(begins(s) and s.source == timeline.local and s.time > since for s in found):
            yield Cause(
                "no-answer", host, last.begin.at,
                f"{host} has sent the SYN of {timeline.name} again, though "
                f"{count(len(answers), 'SYN-ACK')} came to it: its TCP took none, so a rule of "
                f"{host}, or rp_filter, drops what comes, or it is damaged; its rules would tell",
                f"{RULES} of {host}", timeline.name,
                tuple(map(line, answers[-3:])), (SYN,), certain=False,
            )  # fmt: skip
        if asks and not sent and scene.kept_back(host, timeline.remote):
            yield Cause(
                "no-answer", host, last.begin.at,
                f"nothing of {timeline.name} left {host}: {kept_back(host)}",
                f"{RULES} of {host}", timeline.name, (), (KEPT_BACK,),
            )  # fmt: skip
        again = sum(s.retransmitted for s in sent)
        if answers or not again or asks is not all(map(begins, sent)):
            continue
        if until - sent[0].time < PATIENT:
            continue
        if imported and not (silence.heard and sent[-1].retransmitted):
            continue  # maybe its peer's side of it was not captured
        still = "had" if ended else "has had"
        what = "its SYN" if asks else _what(sent[0])
        yield Cause(
            "no-answer", host, sent[0].time,
            f"{host} {still} no answer to {what} of {timeline.name} for "
            f"{until - sent[0].time:.1f} s, and has sent it {count(len(sent), 'time')}; "
            f"{silence.fate}", "",
            timeline.name, silence.lines, (SYN if asks else RETRIES,),
            certain=scene.captured(host) or scene.captured(sent[-1].receiver),
        )  # fmt: skip


def _answers(found: Sequence[Segment], local: str) -> list[Segment]:
    """The SYN-ACKs that came to an end."""
    return [
        s for s in found
        if s.target == local and {"SYN", "ACK"} <= {*s.flags} and s.arrived is not None
    ]  # fmt: skip


def kept_back(host: str) -> str:
    """What EPERM says of segments that their own host did not let go."""
    return f"a rule of {host} itself drops what it sends (EPERM)"


def _what(segment: Segment) -> str:
    return count(segment.length, "byte") if segment.length else "its FIN"


def _given_up(host: str, scene: Scene) -> Iterator[Cause]:
    """Connections of programs whose reading nobody sees: as many as the kernel says it gave up."""
    count = scene.grown(host, ABORTED)
    late = [call for call in scene.calls(host=host, errno=...) if timed_out(call, scene)]
    if not count or not scene.captured(host):
        return
    told = {mine.ends for call in late if (mine := scene.descriptors.of(call))}
    found = []
    for timeline in scene.timelines(host):
        last = timeline.spans[-1]
        if last.end is None or last.state not in GIVING_UP or timeline.ends in told:
            continue
        silence = Silence(scene.conversation(host, timeline.ends, last.end.latest), host,
                           last.end.latest, scene)  # fmt: skip
        if silence.sent or silence.shut:
            found.append((timeline, silence))
    if len(found) != count - len(late):
        return
    for timeline, silence in found:
        t = silence.t
        if known := silence.timer(scene.descriptor(host, timeline.ends, t)):
            kind, ref, why = known
            yield Cause(
                kind, host, t, f"{host} gave up {timeline.name}: {why}", "", timeline.name,
                (*silence.lines, f"{ABORTED}: {count}"), (ref,),
            )  # fmt: skip


def timed_out(call: CallEvent, scene: Scene) -> bool:
    """Whether a timer ended a call: then it fails with the last error that ICMP had told, if there
    was any (tcp_write_err() in net/ipv4/tcp_timer.c)."""
    if call.errno == "ETIMEDOUT":
        return True
    return call.errno in SOFT and call.name != "connect" and scene.grown(call.host, ABORTED) > 0


def _calls(scene: Scene) -> Iterator[Cause]:
    for call in scene.calls(errno=...):
        mine = scene.descriptors.of(call)
        if mine is None or not timed_out(call, scene):
            continue
        found = _asked(call, mine, scene) if call.name == "connect" else spoke(call, mine, scene)
        silence = Silence(found, call.host, call.t, scene)
        sent = silence.sent
        failure = f"{call.process}: {call.call} failed with {errnos.describe(call.errno or '')}"
        if sent and (call.name == "connect" or all(map(begins, sent))):  # a write: Fast Open
            tries = f"{len(sent)} tries of a" if len(sent) > 1 else "one"
            kind, ref, why = "no-answer", SYN, f"{tries} SYN without an answer; {silence.fate}"
        elif known := silence.timer(mine) or (None if sent else _kept_in(call, mine, scene)):
            kind, ref, why = known
        else:
            continue
        if call.errno != "ETIMEDOUT":
            why += f"; {call.errno} is what ICMP, or no answer to ARP, had told meanwhile"
        last = (sent or silence.shut)[-1:]
        ends = (last[0].source, last[0].target) if last else mine.ends or ()
        yield Cause(
            kind, call.host, call.t, f"{failure}: {why}", "", " -> ".join(ends),
            silence.lines, (ref,),
        )  # fmt: skip


def _kept_in(call: CallEvent, mine: Descriptor, scene: Scene) -> tuple[str, str, str] | None:
    """The rule, where it is written, and which timer gave up, if the host was cut off itself: what
    it sends then no capture has."""
    since = scene.cut_off(call.host, call.t)
    if since is None or mine.ends is None:
        return None
    why = f"{call.host} itself was cut off at {since:.3f} s, so nothing could leave it"
    if mine.has("TCP_USER_TIMEOUT", call.t):
        user = mine.option("TCP_USER_TIMEOUT", call.t)
        why = f"nothing was acknowledged for TCP_USER_TIMEOUT, {user} ms; {why}"
        return "timeout-user", USER, why
    sends = (c for c in scene.calls(host=call.host, name="send") if since <= c.t <= call.t)
    if any(scene.descriptors.of(each) is mine for each in sends):
        return "timeout-retries", RETRIES, f"what it sent had no answer; {why}"
    if mine.has("SO_KEEPALIVE", call.t):
        return "timeout-keepalive", KEEPALIVE, f"keepalive probes had no answer; {why}"
    return None


def asked(call: CallEvent, mine: Descriptor, scene: Scene) -> list[list[Segment]]:
    """The connections that a connect may have asked for: whose first SYN went there meanwhile."""
    given = arguments(call.call)
    if len(given) != 2:
        return []
    address = scene.address(str(given[0]), call.host)
    target = f"[{address}]:{given[1]}" if ":" in address else f"{address}:{given[1]}"
    tries = scene.conversations.asked.get(target, ())
    first = bisect_left(tries, mine.made, key=lambda each: each[0].time)
    last = bisect_right(tries, call.t, key=lambda each: each[0].time)
    return [each for each in tries[first:last] if each[0].sender == call.host]


def _asked(call: CallEvent, mine: Descriptor, scene: Scene) -> Sequence[Segment]:
    """The connection that a connect asked for, if it is the only one."""
    found = asked(call, mine, scene)
    return found[0] if len(found) == 1 else ()


def spoke(call: CallEvent, mine: Descriptor, scene: Scene) -> Sequence[Segment]:
    return scene.conversation(call.host, mine.ends, call.t) if mine.ends else ()


class Silence:
    """What a host has sent in a connection since it heard from its peer, up to a time, and what
    became of it. `shut` are the probes of a window that its peer has kept closed, answered or
    not."""

    def __init__(self, found: Sequence[Segment], host: str, t: float, scene: Scene) -> None:
        self.t, self._scene = t, scene
        self.sent: list[Segment] = []
        self.shut: list[Segment] = []
        self.heard, self._lost_answers = 0.0, 0
        following, closed = 0, False
        for segment in found:
            if segment.time > t:
                break
            if segment.sender == host and segment.source == _own(found, host):
                span = segment.length + ("SYN" in segment.flags) + ("FIN" in segment.flags)
                # A bare ACK wants no answer; a keepalive probe, which repeats a number, does.
                if "RST" not in segment.flags and (span or segment.seq < following):
                    self.sent.append(segment)
                self.shut += [segment] if closed and segment.probe else []
                following = max(following, segment.seq + span)
            elif segment.arrived is not None or segment.unseen:  # maybe it came
                self.sent, self._lost_answers = [], 0
                self.heard = segment.time if segment.arrived is None else segment.arrived
                closed = segment.zero_window
                self.shut = self.shut if closed else []
            else:
                self._lost_answers += 1

    @property
    def lines(self) -> tuple[str, ...]:
        """The last of them, as evidence."""
        return tuple(map(line, (self.sent or self.shut)[-3:]))

    @property
    def fate(self) -> str:
        """What became of what had no answer."""
        return _fate(self.sent, self._lost_answers, self._scene)

    def timer(self, mine: Descriptor | None) -> tuple[str, str, str] | None:
        """The rule, where it is written, and which timer gave up."""
        sent, t = self.sent, self.t
        again = sum(s.retransmitted or s.probe for s in sent)
        probes = [s for s in sent if not s.length and "FIN" not in s.flags]
        user = mine.option("TCP_USER_TIMEOUT", t) if mine else "0"
        if user.isdecimal() and int(user) > 0:
            patience = int(user) / 1000 - SLACK
            if self.shut and t - self.shut[0].time >= patience:
                why = f"the window of its peer stayed closed for TCP_USER_TIMEOUT, {user} ms"
                return "timeout-user", PROBES, f"{why}: {len(self.shut)} probes did not open it"
            # What is sent begins the time; of an idle connection, what came last.
            since = self.heard if len(probes) == len(sent) else sent[0].time
            if not sent or t - since < patience:
                return None
            why = f"nothing was acknowledged for TCP_USER_TIMEOUT, {user} ms"
            return "timeout-user", USER, f"{why}; {self.fate}"
        if again and mine:
            why = f"{again} retransmissions without an answer (net.ipv4.tcp_retries2)"
            if mine.closed < sent[-1].time:
                why = f"{again} retransmissions without an answer, and no process had it open any "
                why += "more (net.ipv4.tcp_orphan_retries)"
            return "timeout-retries", RETRIES, f"{why}; {self.fate}"
        keepalive = mine is None or mine.has("SO_KEEPALIVE", t)
        if keepalive and probes and len(probes) == len(sent):
            apart = [round(b.time - a.time, 1) for a, b in pairwise(probes)]
            spacing = f", {min(apart)} s apart" if apart else ""
            why = f"{count(len(probes), 'keepalive probe')} had no answer{spacing}"
            return "timeout-keepalive", KEEPALIVE, f"{why}; {self.fate}"
        return None


def _own(found: Sequence[Segment], host: str) -> str:
    """The end of that host: of a connection inside it, the one that opened it."""
    first = found[0]
    return first.source if first.sender == host else first.target


def _fate(sent: Sequence[Segment], answers: int, scene: Scene) -> str:
    """What became of segments without an answer."""
    there = sent[-1].receiver
    if any(s.unseen and s.arrived is None for s in sent):
        return "whether they arrived, a capture of the peer would tell"
    lost = [s for s in sent if s.dropped is not None or s.lost]
    if not all(s.dropped is not None for s in lost) and not scene.captured(there):
        return "whether they arrived, a capture of the peer would tell"
    where = Counter(
        "lost by a drop" if s.dropped is not None else "lost on their way" for s in lost
    )
    words = ", ".join(f"{count} {what}" for what, count in where.most_common())
    if answers:
        back = f"{answers} answers of the peer were lost"
        return f"{words}, and {back}" if words else back
    if words:
        since = scene.cut_off(there, lost[0].time) if there and lost[0].dropped is None else None
        return words if since is None else f"{words}: {there} was cut off at {since:.3f} s"
    told = [f"{why} ({counter}: {count})" for counter, why in IGNORED.items()
            if there and (count := scene.grown(there, counter))]  # fmt: skip
    if told and ("Listen" not in told[0] or all(map(begins, sent))):
        return f"all arrived, and {there} dropped them: {told[0]}"
    return f"all arrived, and no segment of {there or 'the peer'} answered"


IGNORED = {
    "TcpExtTCPMD5Failure": "their signature (TCP_MD5SIG) is not by its key",
    "TcpExtTCPMD5NotFound": "they have no signature, and it wants one (TCP_MD5SIG)",
    "TcpExtTCPMD5Unexpected": "they have a signature, and it has no key for it (TCP_MD5SIG)",
    "TcpExtIPReversePathFilter": "net.ipv4.conf.*.rp_filter takes them for spoofed, as its way "
    "back to their sender is by another link",
    "TcpExtListenOverflows": "an accept queue was full",
    "TcpExtListenDrops": "no accept queue was full, but a queue of SYNs (listen's backlog, "
    "net.ipv4.tcp_max_syn_backlog, with net.ipv4.tcp_syncookies 0)",
}
"""Counters of a host that ignores what comes, and why, those first that nothing else counts in."""
