"""Whose refusal it was: which listener counts, and which error tells of which host."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document
from labctl.record.events import CallEvent, Event, LossEvent, ResetEvent, StepEvent
from tests.caused import (
    CLIENT,
    LISTEN,
    SERVER,
    call,
    calls,
    established,
    handshake,
    ids,
    listened,
    look,
    only,
    told,
)
from tests.fake import tcp
from tests.walked import ACK, RST, SYN, Sent

# --- Which listener counts ------------------------------------------------------------------------

ASKS = [Sent(3.2499, CLIENT, SERVER, SYN), Sent(3.25, SERVER, CLIENT, RST | ACK, 0, 1)]
DENIED = ResetEvent(3.25, "server", SERVER, CLIENT, "NO_SOCKET")
ANOTHER = LISTEN.replace("ino:1", "ino:2")
LOCAL = tcp("LISTEN", "127.0.0.1:8000", more="ino:3")
REFUSED, FIREWALL, ELSEWHERE = (
    "nobody listened on port 8000", "a firewall of server does", "no connections to 198.18.0.2",
)  # fmt: skip


def stayed(*lines: str) -> list[Event]:
    """These sockets were there before the RST, and after it."""
    return [look(0.5, *lines), look(4.0, *lines)]


@pytest.mark.parametrize(
    ("events", "words"),
    [
        # What stays is no listener on that port, so it takes nothing.
        (stayed(tcp("LISTEN", ":8001", more="ino:5")), REFUSED),
        (stayed(tcp("TIME-WAIT", SERVER, "198.18.0.3:40009")), REFUSED),
        (stayed(tcp("ESTAB", ":8001", "198.18.0.3:40009", more="ino:5")), REFUSED),
        (stayed(LISTEN, tcp("LISTEN", ":8001", more="ino:5")), FIREWALL),
        # Of several, who takes connections to that address.
        (stayed(LOCAL, LISTEN), "LISTEN 0.0.0.0:8000, accept queue 0/5, takes connections"),
        (stayed(LOCAL), f"LISTEN 127.0.0.1:8000, accept queue 0/0, takes {ELSEWHERE}"),
        (stayed(LOCAL, tcp("LISTEN", "198.18.0.4:8000", more="ino:4")),
         f"LISTEN 198.18.0.4:8000, accept queue 0/0 take {ELSEWHERE}"),
        # What was there before it or after it alone may have been there then.
        ([look(0.5, LISTEN)], ""),
        ([look(4.0, LISTEN)], ""),
        ([look(3.25, LISTEN)], FIREWALL),  # and what was there at that very moment was
        # Of one link nobody knows whether the SYN came by that.
        (stayed(tcp("LISTEN", "0.0.0.0%eth0:8000", more="ino:5")), ""),
    ],
)  # fmt: skip
def test_what_was_there_as_a_rst_left(events: list[Event], words: str) -> None:
    history = told([*events, look(9.0, host="client")], ASKS)
    assert ids(history) == (["connect-refused"] if words else [])
    assert not words or words in only(history).text


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([look(0.5), *listened(3.25), look(4.0, LISTEN)], False),  # it began right then
        ([*listened(1.0, 3.25), look(4.0)], False),
        ([look(0.5), *listened(3.26), look(4.0, LISTEN)], True),
        ([*listened(1.0, 3.24), look(4.0)], True),
    ],
)
def test_a_listener_that_began_or_ended_as_the_rst_left(events: list[Event], found: bool) -> None:
    assert ids(told(events, ASKS)) == (["connect-refused"] if found else [])


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([look(0.5), look(3.2, LISTEN), look(3.4)], REFUSED),  # it may have gone a moment before
        ([look(0.5), look(3.2), look(3.4, LISTEN)], REFUSED),
        # Of one at another address the sentence would have to speak.
        ([look(0.5), look(3.2, LOCAL), look(3.4)], ""),
        ([look(0.5), look(3.2), look(3.4, LOCAL)], ""),
        (stayed(LOCAL), ELSEWHERE),
        (stayed(LISTEN), ""),  # who says the truth?
        ([look(0.5, LISTEN), look(4.0, ANOTHER)], REFUSED),  # between the two nobody did
        ([look(0.5), *listened(1.0), look(4.0, ANOTHER)], ""),  # the trace knows of no end
    ],
)
def test_the_kernel_says_that_nobody_listened(events: list[Event], words: str) -> None:
    history = told([*events, DENIED], ASKS)
    assert ids(history) == (["connect-refused"] if words else [])
    assert not words or words in only(history).text
    assert not words or only(history).evidence[2] == "the kernel's reason: NO_SOCKET"


@pytest.mark.parametrize(
    ("local", "peer", "firewall"),
    [("[::]:8000", "[::]:*", True), ("*:8000", "*:*", True), ("[fd00::2]:8000", "[::]:*", True),
     ("0.0.0.0:8000", "0.0.0.0:*", False), ("[fd00::9]:8000", "[::]:*", False)],
)  # fmt: skip
def test_who_takes_connections_of_ipv6(local: str, peer: str, firewall: bool) -> None:
    ends = {SERVER: "[fd00::2]:8000", CLIENT: "[fd00::3]:40000"}
    six = [replace(s, source=ends[s.source], target=ends[s.target]) for s in ASKS]
    text = only(told(stayed(tcp("LISTEN", local, peer, more="ino:5")), six)).text
    assert (FIREWALL in text, "take" in text and "no connections to [fd00::2]" in text) == (
        firewall, not firewall,
    )  # fmt: skip


def test_three_listeners_are_named_at_most() -> None:
    lines = [tcp("LISTEN", f"127.0.0.{n}:8000", more=f"ino:{n}") for n in range(1, 6)]
    assert only(told(stayed(*lines), ASKS)).text.count("LISTEN") == 3


# --- Which error tells of which host --------------------------------------------------------------

TRIES = [Sent(t, CLIENT, SERVER, SYN) for t in (1.0, 2.0)]
GOT, SENT = {"IcmpInDestUnreachs": 1}, {"IcmpOutDestUnreachs": 1}
TARGETS = {4: ("tcp", "connect server:8000"), 6: ("tcp6", "connect server.v6:8000")}


def fails(errno: str, ip: int = 4, host: str = "client") -> list[Event]:
    kind, text = TARGETS[ip]
    error: dict[str, Any] = {"errno": errno, "error": errno}
    return [*calls(0.9, host, f"socket {kind}"), call(4.0, host, text, **error)]


def counted(host: str = "client", /, **counters: int) -> Event:
    grown: dict[str, Any] = {**counters}
    return look(4.5, host=host, **grown)


def test_how_the_call_failed_is_said_and_its_last_tries() -> None:
    tries = [Sent(1.0 + n / 2, CLIENT, SERVER, SYN) for n in range(4)]
    cause = only(told([*fails("ECONNREFUSED"), counted(**GOT)], tries))
    assert "connect server:8000 failed with ECONNREFUSED" in cause.text
    assert [line.split()[0] for line in cause.evidence] == ["1.500000", "2.000000", "2.500000"]


@pytest.mark.parametrize("ip", [4, 6])
def test_of_two_families_each_has_its_own_counters(ip: int) -> None:
    mine, other = ("6", "") if ip == 6 else ("", "6")
    no_route = fails("ENETUNREACH", ip)
    assert ids(told([*no_route, counted(**{f"Ip{mine}OutNoRoutes": 1})])) == ["no-route"]
    assert ids(told([*no_route, counted(**{f"Ip{other}OutNoRoutes": 1})])) == []
    refused, both = fails("ECONNREFUSED", ip), {"InDestUnreachs": 1, "OutDestUnreachs": 1}
    for family, found in ((mine, ["connect-refused"]), (other, [])):
        own: dict[str, Any] = {f"Icmp{family}{name}": count for name, count in both.items()}
        assert ids(told([*refused, counted(**own)])) == found
    asks = only(told([*fails("EHOSTUNREACH", ip), counted()])).text
    assert ("(neighbour discovery)" in asks, "(ARP)" in asks) == (ip == 6, ip == 4)


@pytest.mark.parametrize(
    ("errno", "sent", "counters", "found", "certain"),
    [
        ("EHOSTUNREACH", TRIES, {**GOT, **SENT}, "no-answer", True),
        ("EHOSTUNREACH", TRIES, GOT, "connect-refused", True),
        ("EHOSTUNREACH", TRIES, {}, "", True),
        ("ECONNREFUSED", TRIES, {**GOT, **SENT}, "", True),  # its own error is none of that kind
        ("ECONNREFUSED", TRIES, GOT, "connect-refused", True),
        ("ECONNREFUSED", [], {}, "", True),
        ("EHOSTUNREACH", [], {}, "no-answer", False),
        ("EHOSTUNREACH", [], {**GOT, **SENT}, "no-answer", True),
    ],
)
def test_what_own_and_foreign_errors_tell(
    errno: str, sent: Sequence[Sent], counters: dict[str, int], found: str, certain: bool
) -> None:
    history = told([*fails(errno), counted(**counters)], sent)
    assert ids(history) == ([found] if found else [])
    assert not found or only(history).certain is certain
    assert not found or ("nothing of it left" in only(history).text) is (not sent)


@pytest.mark.parametrize(("took", "found"), [(0.001, "no-route"), (3.0, "no-answer")])
def test_a_route_that_refuses_does_so_at_once(took: float, found: str) -> None:
    """Before it says that nobody has an address, a host asks for a while."""
    *before, failed = fails("EHOSTUNREACH")
    assert isinstance(failed, CallEvent)
    asks = replace(failed, t=failed.t - took, phase="enter", errno=None, error=None)
    mine = [*(e for e in before if e.t < asks.t), asks, failed]
    assert ids(told([*mine, counted()])) == [found]
    other = replace(failed, t=failed.t + 0.001, process="other")
    assert "no-route" not in ids(told([*mine, other, counted()])), "both waited for one answer"


@pytest.mark.parametrize(
    ("segment", "found"),
    [
        (Sent(2.1, SERVER, CLIENT, RST | ACK, 0, 1), []),
        (Sent(2.1, SERVER, CLIENT, RST | ACK, 0, 1, fate="lost"), ["connect-refused"]),
        (Sent(2.1, CLIENT, SERVER, RST, 1), ["connect-refused"]),  # its own one refuses nothing
        (Sent(2.1, SERVER, CLIENT, ACK, 1, 1), ["connect-refused"]),
    ],
)
def test_only_a_rst_that_came_refused_it(segment: Sent, found: list[str]) -> None:
    events = [*fails("ECONNREFUSED"), counted(**GOT), counted("server", **SENT)]
    history = told([*events, look(9.0, LISTEN), look(0.5, LISTEN)], [*TRIES, segment])
    assert [c for c in ids(history) if c == "connect-refused"] == found


def test_a_call_of_which_no_socket_is_known_is_not_explained() -> None:
    *_, failed = fails("ECONNREFUSED")
    assert ids(told([failed, counted(**GOT)], TRIES)) == []


def test_who_sent_the_errors_is_named_if_only_one_did() -> None:
    known = [counted(**GOT), counted("server", **SENT)]
    cause = only(told([*fails("ECONNREFUSED"), *known], TRIES))
    assert cause.text.endswith("server answered its SYN by an ICMP error, as a firewall does "
                               "(reject)")  # fmt: skip
    assert cause.cure == "look at the rules (nft list ruleset) of server"
    assert cause.evidence[-1] == "ICMP errors sent by server"


# --- Calls on a connection ------------------------------------------------------------------------

UNREACHABLE: dict[str, Any] = {"errno": "EHOSTUNREACH", "error": "No route to host"}


def speaks(*more: Event, **end: Any) -> list[Event]:
    """A client's call on its connection fails, and nothing of it has left."""
    return [*calls(0.998, "client", "socket; connect server:8000"), *established(1.0), *more,
            call(4.0, "client", 'send "x"', **(end or UNREACHABLE))]  # fmt: skip


GAVE_UP = {"TcpExtTCPAbortOnTimeout": 1}


@pytest.mark.parametrize(
    ("counters", "found"),
    [
        ({**GOT, **SENT, **GAVE_UP}, ["no-answer"]),
        ({**GOT, **SENT}, []),  # no timer ended it
        (GAVE_UP, []),  # nothing says that nobody answers for the address
    ],
)
def test_nothing_of_a_connection_leaves_any_more(
    counters: dict[str, int], found: list[str]
) -> None:
    history = told([*speaks(), counted(**counters)], handshake(1.0))
    assert ids(history) == found
    if found:
        cause = only(history)
        assert "nothing of it left client: nobody answers for 198.18.0.2, or" in cause.text
        assert 'send "x" failed with EHOSTUNREACH' in cause.text
        data = Sent(2.0, CLIENT, SERVER, ACK | 8, 1, 1, data=1, fate="lost")
        left = told([*speaks(), counted(**counters)], [*handshake(1.0), data])
        assert "no-answer" not in ids(left)  # something has left


def test_a_call_on_no_connection_has_no_way_to_lose() -> None:
    *before, failed = speaks()
    unconnected = [e for e in before if getattr(e, "name", "") != "connect"]
    history = told([*unconnected, failed, counted(**GOT, **SENT, **GAVE_UP)], handshake(1.0))
    assert ids(history) == []


# --- What steps do --------------------------------------------------------------------------------


def steps(*texts: str) -> Scenario:
    text = f"title: x\nhosts: {{client: {{}}, server: {{}}}}\nsteps: [{', '.join(texts)}]\n"
    return load_document(Document("few", text), text, "few", {})[0]


CUTS = "{cut: server}", "{cut: client}"


def done(t: float, index: int, verb: str, outcome: Any = "done") -> StepEvent:
    return StepEvent(t, index, "end", verb, outcome=outcome, verb=verb, moment=t)


@pytest.mark.parametrize(
    ("cut", "errno", "counters", "words"),
    [
        (1, "ENETUNREACH", {"IpOutNoRoutes": 1}, "to 198.18.0.2: it has been cut off since 1.000"),
        (0, "ENETUNREACH", {"IpOutNoRoutes": 1}, "no route to 198.18.0.2"),
        (0, "EHOSTUNREACH", {}, "; server has been cut off since 1.000 s"),
        (1, "EHOSTUNREACH", {}, "or a rule of client loses what it sends"),
    ],
)
def test_who_is_cut_off_has_no_way(
    cut: int, errno: str, counters: dict[str, int], words: str
) -> None:
    events = [done(1.0, cut, "cut"), *fails(errno), counted(**counters)]
    cause = only(told(events), "no-", steps(*CUTS))
    assert words in cause.text
    assert cause.text.count("has been cut off") == ("cut off" in words)
    assert bool(cause.cure) is (errno == "ENETUNREACH" or cut == 1)


def test_a_router_that_finds_no_way_to_who_is_cut_off() -> None:
    for more, cured in (([done(0.5, 0, "cut")], False), ([], True)):
        history = told([*more, *fails("EHOSTUNREACH"), counted(**GOT)], TRIES)
        cause = only(history, "connect", steps(*CUTS))
        assert (bool(cause.cure), "server has been cut off" in cause.text) == (cured, not cured)


def test_of_an_address_that_nobody_has_nobody_is_cut_off() -> None:
    stranger = [*calls(0.9, "client", "socket"), call(4.0, "client", "connect 198.18.0.99:8000",
                                                      **UNREACHABLE)]  # fmt: skip
    cause = only(told([done(0.5, 0, "cut"), *stranger, counted()]), "", steps(*CUTS))
    assert "nobody answers for 198.18.0.99" in cause.text and "cut off" not in cause.text


REJECT = "{reject: {to: server, flags: SYN, with: KIND}}"
INJECT = "{inject: {from: server, to: client, icmp: port-unreachable}}"
FRAME = b64encode(replace(TRIES[0], seq=4000).frame()[14:]).decode()


@pytest.mark.parametrize(
    ("step", "index", "by_step"),
    [
        (REJECT.replace("KIND", "port-unreachable"), 0, True),
        (REJECT.replace("KIND", "rst"), 0, False),
        ("{drop: {to: server, flags: SYN}}", 0, False),
        (REJECT.replace("KIND", "port-unreachable"), 1, False),  # a step that is not there any more
    ],
)
def test_what_a_step_did_to_a_syn(step: str, index: int, by_step: bool) -> None:
    events = [*fails("ECONNREFUSED"), counted(**GOT), LossEvent(1.00005, "server", FRAME, index)]
    cause = only(told(events, TRIES[:1]), "connect", steps(step))
    assert ("a step refused its SYN by ICMP" in cause.text) is by_step
    assert bool(cause.cure) is not by_step


@pytest.mark.parametrize(
    ("step", "event", "by_step"),
    [
        (INJECT, done(1.5, 0, "inject"), True),
        (INJECT, done(4.0, 0, "inject"), True),  # until the call failed
        (INJECT, done(4.1, 0, "inject"), False),
        (INJECT, done(1.5, 0, "inject", "failed"), False),
        ("{inject: {from: server, to: client, flags: ACK}}", done(1.5, 0, "inject"), False),
        ("{cut: server}", done(1.5, 0, "cut"), False),
    ],
)
def test_an_error_that_a_step_sent(step: str, event: StepEvent, by_step: bool) -> None:
    history = told([*fails("ECONNREFUSED"), counted(**GOT), event], TRIES)
    cause = only(history, "connect", steps(step))
    assert ("a step sent an ICMP error (port-unreachable)" in cause.text) is by_step
