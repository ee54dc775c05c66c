"""Why a host refused a connection, and why a connect had no way to its host: nobody listened there,
a firewall, no route, no neighbour (RFC 9293, section 3.10.7.1; RFC 1122, section 4.2.3.9)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from labctl.ground import errnos
from labctl.ground.data import dataclass
from labctl.judge.causes.cause import Cause, Scene, line
from labctl.judge.causes.descriptors import Descriptor, arguments
from labctl.judge.causes.reset import Reset
from labctl.judge.causes.silence import (
    KEPT_BACK,
    RULES,
    Silence,
    asked,
    kept_back,
    spoke,
    timed_out,
)
from labctl.language.steps.faults import Reject
from labctl.language.steps.injecting import Inject
from labctl.probes.observations import Segment
from labctl.probes.sockets import Address, Socket
from labctl.record.events import CallEvent, SocketsEvent, StepEvent
from labctl.record.holders import told

NOBODY = "RFC 9293, section 3.10.7.1; tcp_v4_send_reset() in net/ipv4/tcp_ipv4.c"
REJECTED = "nftables: reject; nf_send_reset() and nf_send_unreach() in net/ipv4/netfilter"
ERRORS = "RFC 1122, section 4.2.3.9; tcp_v4_err() in net/ipv4/tcp_ipv4.c; icmp(7)"
NEIGHBOUR = "arp(7); arp_error_report() in net/ipv4/arp.c"
ROUTE = "ip-route(8); __ip_queue_xmit() in net/ipv4/ip_output.c"
START = "start the server first, or have the client try again"
ASKED = 0.5
"""Seconds that a host asks for the address of another one on its network, at least (arp(7))."""
TOGETHER = 0.1
"""Seconds in which all fail that waited for one answer: who came last waited for a moment only."""
MORE = 3
FAILED = ("EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED", "ETIMEDOUT")
"""What a connect fails with that had no way, or got an ICMP error (icmp_err_convert)."""


def refused(reset: Reset, syn: Segment) -> Cause | None:
    """Why a host answered a SYN by an RST: nobody listened at that port, or at another address
    alone; or somebody did, and so it was not TCP."""
    host, scene, rst = reset.host, reset.scene, reset.segment
    if scene.history.imported:
        return None  # looks are rare there, and a listener may have come and gone
    if not scene.looks(host) or {(host, "ss"), (host, "trace")} & scene.history.trouble.keys():
        return None
    port = rst.source.rpartition(":")[2]
    cause = Cause(
        "connect-refused", host, reset.t, f"{host} refused {syn.source} -> {syn.target}", START,
        f"{syn.source} -> {syn.target}", reset.proof(syn), (NOBODY,),
    )  # fmt: skip
    if known := _stayed(host, int(port), reset.t, scene):
        return _in_spite(cause, reset, *known)
    if any(begin <= reset.t <= end for begin, end in _listened(reset)):
        return None
    return replace(cause, text=f"{cause.text}: nobody listened on port {port} there")


def _in_spite(
    cause: Cause, reset: Reset, look: SocketsEvent, sockets: list[Socket]
) -> Cause | None:
    """Somebody listened at that port."""
    asked_at = reset.segment.source
    taking = [each for each in sockets if takes(each.local, asked_at)]
    if taking and reset.reason:
        return None
    shown, holders = told(reset.scene.history, look, (taking or sockets)[:MORE])
    cause = replace(cause, evidence=(*cause.evidence, *shown), holders=holders)
    whom, _, port = asked_at.rpartition(":")
    if not taking:
        one = f"{shown[0]}, takes" if len(shown) == 1 else f"{'; '.join(shown)} take"
        return replace(
            cause, text=f"{cause.text}: {one} no connections to {whom}, and nobody else has port "
            f"{port}",
            cure="bind the server to that address or to the wildcard, or connect to where it "
            "listens",
        )  # fmt: skip
    return replace(
        cause, text=f"{cause.text}, though {shown[0]}, takes connections to {whom}: TCP answers "
        f"none of them by an RST, a firewall of {cause.host} does (reject with tcp reset)",
        cure=f"{RULES} of {cause.host}", refs=(REJECTED,),
    )  # fmt: skip


def _listened(reset: Reset) -> Iterator[tuple[float, float]]:
    """From when to when its host may have had a listener on that port. If the kernel says that it
    had none, one for that address must have been there for certain."""
    port = reset.segment.source.rpartition(":")[2]
    for each in reset.scene.listeners(reset.host):
        span = each.spans[0]
        if each.local.rpartition(":")[2] != port:
            continue
        if reset.reason == "NO_SOCKET" and each.local in (f":{port}", reset.segment.source):
            yield span.begin.latest, span.end.earliest if span.end else math.inf
        else:
            yield span.begin.earliest, span.end.latest if span.end else math.inf


def _stayed(
    host: str, port: int, t: float, scene: Scene
) -> tuple[SocketsEvent, list[Socket]] | None:
    """The listeners on a port, if the looks before and after a moment show the same."""
    looks = scene.looks(host)
    before = next((look for look in reversed(looks) if look.t <= t), None)
    after = next((look for look in looks if look.t >= t), None)
    if before is None or after is None:
        return None
    there, then = (
        [s for s in look.sockets if s.is_listener and s.local.port == port]
        for look in (before, after)
    )
    same = {(s.local, s.inode) for s in there} == {(s.local, s.inode) for s in then}
    return (after, then) if then and same and not any(s.local.interface for s in then) else None


def stranger(segment: Segment, scene: Scene) -> str | None:
    """In whose name a host sent a segment, if that is another host of the lab."""
    owner = scene.history.owners.get(segment.source.rpartition(":")[0].strip("[]"))
    return owner if owner != segment.sender else None


def takes(local: Address, target: str) -> bool:
    """Whether a listener there takes a connection to that end."""
    host = target.rpartition(":")[0].strip("[]")
    everywhere = ("*", "::") if ":" in host else ("*", "0.0.0.0")
    return local.host in everywhere or local.unmapped == host


# --- Calls that no RST refused --------------------------------------------------------------------


def causes(scene: Scene) -> Iterator[Cause]:
    """A cause for each connect that had no way to its host, or that an ICMP error refused; and for
    calls on a connection of which nothing leaves any more."""
    for call in scene.calls(errno=...):
        if call.errno in FAILED and scene.captured(call.host):
            mine = scene.descriptors.of(call)
            if mine and (attempt := _attempt(call, mine, scene)) and (found := attempt.cause):
                yield found


def _attempt(call: CallEvent, mine: Descriptor, scene: Scene) -> _Attempt | None:
    """What a call was about, if that is known, and if it is not about what was sent in vain."""
    if call.name == "connect":
        tries = asked(call, mine, scene)
        target = scene.address(str((*arguments(call.call), "")[0]), call.host)
        return _Attempt(call, target, tries[0] if tries else [], scene) if len(tries) < 2 else None
    silence = Silence(spoke(call, mine, scene), call.host, call.t, scene)
    if mine.ends is None or silence.sent or not timed_out(call, scene):
        return None
    return _Attempt(call, mine.ends[1].rpartition(":")[0].strip("[]"), [], scene)


@dataclass(frozen=True)
class _Attempt:
    """A connect that failed, and what was sent for it and came back."""

    call: CallEvent
    target: str
    segments: Sequence[Segment]
    scene: Scene

    @property
    def reset(self) -> bool:
        """Whether an RST refused it."""
        host = self.call.host
        return any(
            "RST" in s.flags and s.receiver == host and s.arrived is not None
            for s in self.segments
        )  # fmt: skip

    def errors(self, way: str, host: str = "") -> int:
        """How many ICMP errors a host, by default its own, has got (`In`) or sent (`Out`)."""
        kind = "Icmp6" if ":" in self.target else "Icmp"
        return self.scene.grown(host or self.call.host, f"{kind}{way}DestUnreachs")

    @property
    def cause(self) -> Cause | None:
        """Why it failed. An error that a host finds itself, it sends to itself (ipv4_link_failure()
        in net/ipv4/route.c)."""
        own, errno = self.errors("Out"), self.call.errno
        foreign = self.errors("In") - own
        if self.reset:
            return None
        if not self.segments:
            if errno == "ENETUNREACH":
                return self._no_route()
            if errno == "ECONNREFUSED":
                why = f"a rule of {self.call.host} itself refuses what it sends (reject)"
                return self._refused(why, f"{RULES} there") if own else None
            if errno == "EHOSTUNREACH" and not own and self._at_once:
                return self._refusing_route()
            return self._no_neighbour(own) if own or self.call.name == "connect" else None
        if why := self._by_step:
            return self._refused(why, "")
        if errno == "EHOSTUNREACH" and own and not foreign:
            return self._no_neighbour(own)
        by_icmp = errno != "ETIMEDOUT" and foreign > 0 and not own
        return self._by_icmp() if by_icmp else None

    def _told(self, name: str, why: str, cure: str, ref: str, *proof: str) -> Cause:
        call, ends = self.call, None
        if self.segments:
            ends = f"{self.segments[0].source} -> {self.segments[0].target}"
        text = f"{call.process}: {call.call} failed with {errnos.describe(call.errno or '')}: {why}"
        lines = tuple(map(line, self.segments[-MORE:]))
        return Cause(name, call.host, call.t, text, cure, ends, (*lines, *proof), (ref,))

    def _no_route(self) -> Cause | None:
        counter = "Ip6OutNoRoutes" if ":" in self.target else "IpOutNoRoutes"
        host, grown = self.call.host, self.scene.grown(self.call.host, counter)
        if not grown:
            return None
        cut = self.scene.cut_off(host, self.call.t)
        why = f"{host} has no route to {self.target}"
        why += "" if cut is None else f": it has been cut off since {cut:.3f} s"
        cure = f"look at the routes of {host} and at its links: ip route get {self.target}"
        return self._told("no-route", why, cure, ROUTE, f"{counter}: {grown}")

    @property
    def _at_once(self) -> bool:
        """Whether it failed before anybody can have been asked in vain."""
        call = self.call
        entered = [
            each.t for each in self.scene.history.events.of(CallEvent, phase="enter")
            if (each.process, each.task, each.name) == (call.process, call.task, call.name)
            and each.t <= call.t
        ]  # fmt: skip
        others = (
            each for each in self.scene.calls(host=call.host, name="connect", errno="EHOSTUNREACH")
            if (each.process, each.task) != (call.process, call.task)
            and abs(each.t - call.t) < TOGETHER
        )  # fmt: skip
        soon = bool(entered) and call.t - entered[-1] < ASKED
        return call.name == "connect" and soon and not any(others)

    def _refusing_route(self) -> Cause:
        host = self.call.host
        why = f"a route of {host} refuses {self.target}, it seems, as nobody was asked for it"
        cure = f"look for a route of type unreachable: ip route get {self.target}, on {host}"
        return replace(self._told("no-route", why, cure, ROUTE), certain=False)

    @property
    def _cut(self) -> str:
        """Since when the host of that address is cut off, if it is."""
        owner = self.scene.history.owners.get(self.target)
        cut = self.scene.cut_off(owner, self.call.t) if owner else None
        return "" if cut is None else f"; {owner} has been cut off since {cut:.3f} s"

    def _no_neighbour(self, own: int) -> Cause:
        host, asks = self.call.host, "neighbour discovery" if ":" in self.target else "ARP"
        why = "" if self.segments else f"nothing of it left {host}: "
        why += f"nobody answers for {self.target}, or for the router to it, when {host} asks its "
        why += f"network ({asks})"
        port = str((*arguments(self.call.call), "")[1])
        remote = f"[{self.target}]:{port}" if ":" in self.target else f"{self.target}:{port}"
        if not self.segments and self.scene.kept_back(host, remote):
            why = f"nothing of it left {host}: {kept_back(host)}"
            return self._told("no-answer", why, f"{RULES} of {host}", KEPT_BACK)
        if not own:  # the kernel has not said so
            why += f", or a rule of {host} loses what it sends"
        cure = f"look at the neighbours of {host} (ip neigh), and at its rules (nft list ruleset)"
        proof = f"its own ICMP errors: {own}"
        cut = self._cut
        found = self._told("no-answer", why + cut, "" if cut else cure, NEIGHBOUR, proof)
        return replace(found, certain=own > 0)

    @property
    def _by_step(self) -> str:
        """The step that answered its SYN by ICMP, or sent such an error about it; if one did."""
        steps = self.scene.scenario.steps if self.scene.scenario else ()
        for segment in self.segments:
            if segment.dropped is not None and segment.dropped < len(steps):
                step = steps[segment.dropped]
                if isinstance(step, Reject) and step.reject.with_ != "rst":
                    return f"a step refused its SYN by ICMP ({step.reject.with_})"
        for event in self.scene.history.events.of(StepEvent) if steps else ():
            if event.outcome == "done" and event.t <= self.call.t:
                step = steps[event.index]
                if isinstance(step, Inject) and step.inject.icmp:
                    return f"a step sent an ICMP error ({step.inject.icmp})"
        return ""

    def _by_icmp(self) -> Cause:
        sent = [h for h in self.scene.history.hosts if self.errors("Out", h)]
        who = sent[0] if len(sent) == 1 else "a host on the way"
        why = f"{who} answered its SYN by an ICMP error, as a firewall does (reject)"
        if self.call.errno != "ECONNREFUSED":
            why += f", or a router that finds no way on{self._cut}"
        cure = "" if self._cut else f"{RULES} of {who}"
        return self._refused(why, cure, *(f"ICMP errors sent by {h}" for h in sent))

    def _refused(self, why: str, cure: str, *proof: str) -> Cause:
        return self._told("connect-refused", why, cure, ERRORS, *proof)
