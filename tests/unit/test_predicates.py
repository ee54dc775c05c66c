"""Every kind of claim: held, not held, undecided."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from labctl.ground.errors import ScenarioError
from labctl.language.endpoints import parse_endpoint
from labctl.language.predicates import Claim, Predicate, summary
from labctl.language.predicates.held import held_at
from labctl.language.predicates.sockets import SocketsClaim
from labctl.probes.sockets import Address, State, parse_ss
from labctl.record.events import (
    AddressEvent,
    CallEvent,
    CountersEvent,
    Event,
    SocketsEvent,
    StateEvent,
    TroubleEvent,
)
from labctl.record.history import History
from labctl.record.moments import Moment
from tests.claimed import LAB, claim, judge
from tests.fake import HEADER, tcp
from tests.unit.test_processes_claims import FAILED

LISTEN = tcp("LISTEN", ":8000", recv_q=2, send_q=20)
ESTAB = tcp("ESTAB", "198.18.0.2:8000", "198.18.0.3:40000", recv_q=5)
MAPPED = tcp("ESTAB", "[::ffff:198.18.0.2]:8000", "[::ffff:198.18.0.3]:40001", send_q=1000)
SIX = tcp("CLOSE-WAIT", "[fd00::2]:8000", "[fd00::3]:40002")
SECOND = tcp("FIN-WAIT-1", "198.18.0.4:9000", "198.18.0.3:40003", send_q=9)
TIME_WAIT = tcp("TIME-WAIT", "198.18.0.2:8000", "198.18.0.3:40004", more="timer:(timewait,59sec,0)")
SECOND_SIX = tcp("FIN-WAIT-1", "[fd00::4]:9000", "[fd00::3]:40003")
LISTEN_SIX = tcp("LISTEN", "*:8001")
BOUND = tcp("UNCONN", "198.18.0.2:7000")
RESOLVER = tcp("LISTEN", "127.0.0.11:33333")


def seen(*lines: str, host: str = "server") -> SocketsEvent:
    return SocketsEvent(1.0, host, "look", "\n".join([HEADER, *lines]))


# Sockets


@pytest.mark.parametrize(
    ("pattern", "lines", "holds"),
    [
        # A state: at least one socket in it, and no connection in another.
        ("ESTAB", [ESTAB], True),
        ("ESTAB", [ESTAB, MAPPED, LISTEN, BOUND], True),
        ("ESTAB", [ESTAB, TIME_WAIT], False),
        ("ESTAB", [LISTEN], False),
        ("ESTAB", [], False),
        ("established", [ESTAB], True),
        ("Fin_Wait1", [SECOND], True),
        ("CLOSED", [BOUND], True),
        # LISTEN looks at listeners alone.
        ("LISTEN", [LISTEN, ESTAB, TIME_WAIT], True),
        ("LISTEN", [ESTAB], False),
        ("LISTEN", [RESOLVER], False),
        # none: no socket but listeners.
        ("none", [LISTEN, RESOLVER, BOUND], True),
        ("none", [], True),
        ("none", [TIME_WAIT], False),
        # Lists
        ("[LISTEN, ESTAB]", [LISTEN, ESTAB], True),
        ("[LISTEN, ESTAB]", [ESTAB], False),
        ("[LISTEN, ESTAB]", [LISTEN, ESTAB, SIX], False),
        ("[ESTAB, CLOSE_WAIT]", [ESTAB, SIX], True),
        ("[ESTAB, CLOSE_WAIT]", [ESTAB], False),
        ("[LISTEN, {state: ESTAB}]", [LISTEN, ESTAB, SIX], True),
        ("[ESTAB, {state: TIME-WAIT, count: 1}]", [ESTAB, TIME_WAIT], True),
        ("[ESTAB, {state: TIME-WAIT, count: 1}]", [ESTAB, TIME_WAIT, SIX], False),
        ("[none]", [LISTEN], True),
        # A mapping: so many of these, whatever else there is.
        ("{state: ESTAB}", [ESTAB, SIX], True),
        ("{state: ESTAB, count: 2}", [ESTAB, MAPPED, SIX], True),
        ("{state: ESTAB, count: 1}", [ESTAB, MAPPED], False),
        ("{state: ESTAB, count: 0}", [SIX], True),
        ("{state: ESTAB, count: 0}", [ESTAB], False),
        ('{state: ESTAB, count: ">=2"}', [ESTAB, MAPPED], True),
        ('{state: ESTAB, count: "<2"}', [ESTAB, MAPPED], False),
        ('{state: ESTAB, count: "!=2"}', [ESTAB], True),
        ("{count: 3}", [ESTAB, SIX, TIME_WAIT, LISTEN, BOUND], True),
        ("{recv-q: 5}", [ESTAB], True),
        ('{recv-q: ">5"}', [ESTAB], False),
        ('{state: LISTEN, recv-q: 2, send-q: ">=20"}', [LISTEN], True),
        ('{send-q: ">999"}', [ESTAB, MAPPED], True),
        ('{send-q: ">999", recv-q: ">0"}', [ESTAB, MAPPED], False),
        ("{timer: timewait}", [TIME_WAIT], True),
        ("{timer: on}", [TIME_WAIT], False),
        ("{timer: timewait}", [ESTAB], False),
        # Addresses
        ('{local: ":8000"}', [ESTAB], True),
        ('{local: ":8001"}', [ESTAB], False),
        ("{local: server}", [ESTAB], True),
        ('{local: "server:8000"}', [MAPPED], True),
        ('{local: "server:8000"}', [SIX], True),
        ("{local: client}", [ESTAB], False),
        ("{local: server.2}", [SECOND], True),
        ("{local: server.2}", [ESTAB], False),
        ("{local: server.v6}", [SIX], True),
        ("{local: server.v6}", [ESTAB], False),
        ('{local: "server.v6:8000", peer: client.v6}', [SIX], True),
        ("{local: 198.18.0.2}", [ESTAB], True),
        ("{local: 198.18.0.2}", [MAPPED], True),
        ('{local: "198.18.0.2:9000"}', [ESTAB], False),
        ('{local: "fd00::2"}', [SIX], True),
        ('{local: "[fd00::2]:8000"}', [SIX], True),
        ('{local: "[fd00::2]:8001"}', [SIX], False),
        ('{local: "[fd00::2]"}', [SIX], True),
        ("{local: server.2}", [SECOND_SIX], False),
        ("{local: server.2.v6}", [SECOND_SIX], True),
        ("{local: server.2.v6}", [SECOND], False),
        ('{local: "FD00:0000::2"}', [SIX], True),
        ('{local: "[fd00:0:0:0:0:0:0:2]:8000"}', [SIX], True),
        ('{local: "[fd00::0.0.0.2]:8000"}', [SIX], True),
        ('{local: "[::ffff:198.18.0.2]:8000"}', [ESTAB], True),
        ('{local: "[::FFFF:C612:2]"}', [MAPPED], True),
        ('{local: "[0::0]:8001", state: LISTEN}', [LISTEN_SIX], True),
        ('{local: "*:8001", state: LISTEN}', [LISTEN_SIX], True),
        ('{local: "*", state: LISTEN}', [LISTEN], True),
        ('{local: "0.0.0.0", state: LISTEN}', [LISTEN], True),
        ('{local: "0.0.0.0", state: LISTEN}', [LISTEN_SIX], False),
        ('{local: "*"}', [ESTAB, SIX, MAPPED], False),
        ('{local: "localhost:80"}', [tcp("ESTAB", "127.0.0.1:80", "127.0.0.1:9")], True),
        ('{local: "localhost:80"}', [tcp("ESTAB", "[::1]:80", "[::1]:9")], True),
        ('{local: "localhost:8000"}', [ESTAB, SIX], False),
        ('{peer: "client:40000"}', [ESTAB], True),
        ('{peer: "client:40000"}', [MAPPED], False),
        ('{state: LISTEN, local: ":8000", peer: ":*"}', [LISTEN], True),
    ],
)
def test_sockets(pattern: str, lines: list[str], holds: bool) -> None:
    found = judge(f"{{sockets: {{server: {pattern}}}}}", seen(*lines))
    assert found.result == ("pass" if holds else "fail")
    assert found.what == f"server: {found.expected}"
    assert len(found.evidence) == sum(line != RESOLVER for line in lines)


@pytest.mark.parametrize(
    ("pattern", "lines", "listed", "unlisted"),
    [
        ("{state: UNCONN, count: 0}", [], "pass", "unknown"),
        ("{state: UNCONN, count: 0}", [BOUND], "fail", "fail"),
        ("UNCONN", [], "fail", "unknown"),
        ("UNCONN", [BOUND], "pass", "pass"),
        ("[UNCONN, LISTEN]", [LISTEN, ESTAB], "fail", "fail"),
        ("{state: UNCONN, count: 1}", [BOUND], "pass", "unknown"),
        ("{state: UNCONN, count: '>=1'}", [BOUND], "pass", "pass"),
        ("{state: UNCONN, count: '<2'}", [], "pass", "unknown"),
        ("{state: UNCONN, count: '!=3'}", [], "pass", "unknown"),
        ("none", [], "pass", "pass"),
        ("LISTEN", [LISTEN], "pass", "pass"),
    ],
)
def test_sockets_that_this_ss_can_not_list(
    pattern: str, lines: list[str], listed: str, unlisted: str
) -> None:
    text = f"{{sockets: {{server: {pattern}}}}}"
    assert judge(text, seen(*lines)).result == unlisted
    able = replace(LAB, environment={"probes": ["ss", "bound"]})
    assert judge(text, able, seen(*lines)).result == listed
    if unlisted == "unknown":
        assert "lists no socket that is bound and no more" in judge(text, seen(*lines)).actual


def test_the_evidence_of_many_sockets() -> None:
    ports = range(9000, 9080)
    waiting = [tcp("TIME-WAIT", f"198.18.0.2:{port}", "198.18.0.3:80") for port in ports]
    found = judge("{sockets: {server: TIME-WAIT}}", seen(*waiting))
    assert found.actual == "80 x TIME-WAIT"
    assert len(found.evidence) == 51
    assert found.evidence[-1] == "and 30 more"
    found = judge("{sockets: {server: TIME-WAIT}}", seen(*waiting[:50]))
    assert len(found.evidence) == 50
    assert "more" not in found.evidence[-1]


def test_sockets_that_were_not_seen() -> None:
    text = "{sockets: {server: none}}"
    assert judge(text).result == "unknown"
    assert judge(text, seen(host="client")).result == "unknown"
    trouble = TroubleEvent(2.0, "server", "ss", "Cannot open netlink socket")
    found = judge(text, seen(), trouble)
    assert (found.result, found.actual) == ("unknown", "Cannot open netlink socket")


def test_the_latest_look_counts() -> None:
    assert judge("{sockets: {server: none}}", seen(ESTAB), seen()).result == "pass"
    assert judge("{sockets: {server: none}}").actual == "no look at its sockets"


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("ESTAB", "ESTAB"),
        ("none", "no connection"),
        ("[LISTEN, {state: ESTAB, count: '>=3'}]", "LISTEN and >=3 x ESTAB"),
        ("{count: 3, recv-q: '>0', send-q: 0}", "3 x connection recv-q >0 send-q 0"),
        ("{timer: persist, local: ':80', peer: client}",
         "connection timer persist local :80 peer client"),
    ],
)  # fmt: skip
def test_patterns_in_words(pattern: str, words: str) -> None:
    assert judge(f"{{sockets: {{server: {pattern}}}}}").expected == words


def test_summary() -> None:
    def of(*lines: str) -> str:
        return summary(parse_ss("\n".join([HEADER, *lines])))

    assert of() == "no sockets"
    assert of(LISTEN, TIME_WAIT, TIME_WAIT) == "LISTEN accept queue 2/20, 2 x TIME-WAIT"
    assert of(ESTAB, MAPPED) == "ESTAB recv-q 5, ESTAB send-q 1000"
    many = [tcp(state, ":1", "10.0.0.1:1") for state in State]
    assert of(*many).endswith(f"and {len(many)} sockets in all")


@pytest.mark.parametrize(
    "pattern",
    [
        "{local: nobody}", "{peer: 'sevrer:80'}", "{peer: server.3}", "{timer: off}",
        "{state: none}", "{local: ':09000'}", "{local: ':0'}", "{local: ':99999'}", "{local: ''}",
        "{local: ':'}", "{local: 8000}", "{local: ':*'}", "{local: ':8000x'}", "{local: ':٨'}",
        "{local: '[server]:80'}", "{local: '[198.18.0.2]:80'}", "{local: '[]:80'}",
        "{local: '[fd00::2]80'}", "{local: '[fd00::2'}", "{local: 'fd00::2::'}", "{local: '1.2.3'}",
        "{local: '198.018.0.2'}", "{local: '198.18.0.256'}", "{local: '[fe80::1%eth0]:80'}",
        "{local: 'server:80:80'}", "{local: ' server'}", "{local: SERVER}", "{peer: ':*'}",
        "{state: LISTEN, peer: client}", "{state: UNCONN, peer: ':80'}",
        "{state: ESTAB, peer: 'client:*'}", "{local: server.v6.2}", "{local: [server]}",
    ],
)  # fmt: skip
def test_sockets_that_can_not_be(pattern: str) -> None:
    with pytest.raises(ScenarioError):
        claim(f"{{sockets: {{server: {pattern}}}}}")


@given(st.ip_addresses(), st.integers(1, 65535), st.booleans(), st.data())
def test_every_spelling_of_an_address_is_the_address(
    address: IPv4Address | IPv6Address, port: int, brackets: bool, data: st.DataObject
) -> None:
    """And another address is none of them."""
    spellings = [str(address)]
    if address.version == 6:
        spellings += [address.exploded, address.exploded.upper(), str(address).upper()]
        spellings = [f"[{s}]" if brackets else s for s in spellings]
    else:
        mapped = IPv6Address(f"::ffff:{address}")
        spellings += [f"[{s}]" for s in (mapped, mapped.exploded, f"::FFFF:{address}")]
    written = data.draw(st.sampled_from(spellings))
    if written.startswith("[") or address.version == 4:
        written = data.draw(st.sampled_from([written, f"{written}:{port}"]))
    place = parse_endpoint(written, {"server": 1, "client": 1})
    assert place.covers(Address(str(address), port), set())
    assert not place.covers(Address(str(type(address)(int(address) ^ 1)), port), set())
    assert place.covers(Address(str(address), port % 65535 + 1), set()) == (not place.port)


def test_an_address_that_was_added_is_the_hosts() -> None:
    here = seen(tcp("ESTAB", "10.0.0.1:8000", "198.18.0.3:40000"))
    there = seen(tcp("ESTAB", "198.18.0.3:40000", "10.0.0.1:8000"), host="client")
    added = AddressEvent(0.5, "server", "10.0.0.1")
    mine = "{sockets: {server: {state: ESTAB, local: server}}}"
    peer = '{sockets: {client: {state: ESTAB, peer: "server:8000"}}}'
    for text in (mine, peer):
        assert judge(text, here, there).result == "fail"
        assert judge(text, added, here, there).result == "pass"
        assert judge(text.replace("server}}", "server.2}}"), added, here).result == "fail" or (
            text is peer
        )


# Counters


@pytest.mark.parametrize(
    ("wanted", "result"), [("1", "fail"), ("2", "pass"), ('">=1"', "pass"), ("0", "fail")]
)
def test_counters(wanted: str, result: str) -> None:
    events = [
        CountersEvent(0.0, "server", {"TcpExtTCPAbortOnClose": 7, "TcpActiveOpens": 0}),
        SocketsEvent(1.0, "server", "change", HEADER, {"TcpExtTCPAbortOnClose": 8}),
        SocketsEvent(2.0, "server", "change", HEADER, {"TcpActiveOpens": 1}),
        SocketsEvent(3.0, "server", "change", HEADER, {"TcpExtTCPAbortOnClose": 9}),
    ]
    found = judge(f"{{counters: {{server: {{TcpExtTCPAbortOnClose: {wanted}}}}}}}", *events)
    assert (found.result, found.actual) == (result, "2")
    assert found.what == f"server: {found.expected}"


def test_counters_that_are_not_there() -> None:
    events = [CountersEvent(0.0, "client", {"TcpActiveOpens": 0})]
    assert judge("{counters: {client: {TcpActiveOpens: 0}}}", *events).result == "pass"
    assert judge("{counters: {client: {TcpNoSuch: 0}}}", *events).result == "unknown"
    assert judge("{counters: {server: {TcpActiveOpens: 0}}}", *events).result == "unknown"


# Several subjects, and none


def test_each_subject_has_a_finding() -> None:
    predicate = claim(
        "{sockets: {server: none, client: ESTAB}, process: {client: ok, other: running},"
        " counters: {server: {A: 1, B: 2}}}"
    )
    assert [finding.what for finding in predicate.judge(History())] == [
        "server: no connection", "client: ESTAB", "client: ok", "other: running",
        "server: A grew by 1", "server: B grew by 2",
    ]  # fmt: skip
    assert predicate.hosts == {"server", "client"}


@pytest.mark.parametrize(
    "text",
    [
        "{}", "{sockets: {}}", "{process: {}}", "{counters: {}}", "{counters: {server: {}}}",
        "{sockets: {server: []}}", "{process: {server: {}}}",
        "{sockets: }", "{process: {server: {exit: }}}", "{sockets: {server: {state: }}}",
    ],
)  # fmt: skip
def test_what_claims_nothing_is_a_mistake(text: str) -> None:
    """It would always hold."""
    with pytest.raises(ScenarioError):
        claim(text)


def test_predicates_do_not_change_the_history() -> None:
    events: list[Event] = [LAB, seen(ESTAB), *FAILED]
    history = History(events)
    for text in ("{sockets: {server: ESTAB}}", "{process: {server: EADDRINUSE}}"):
        assert claim(text).judge(history) == claim(text).judge(history)
    assert [*history.events] == events


# What a claim is about


SOCKETS, COUNTED = "{sockets: {server: none}}", "{counters: {server: {TcpActiveOpens: 2}}}"
PROCESS, WALKED = "{process: {server: ok}}", "{path: {server: [ESTAB]}}"
LOOK, ELSEWHERE = seen(), seen(host="client")
CALL = CallEvent(1.0, "server", "server", 2, "done", "close", "close")
STATE = StateEvent(1.0, "server", "10.0.0.1:80", "10.0.0.2:1", "ESTAB", "CLOSE-WAIT")


@pytest.mark.parametrize(
    ("text", "heeded"),
    [
        (SOCKETS, [LOOK, CountersEvent(1.0, "server", {})]),
        (COUNTED, [LOOK, CountersEvent(1.0, "server", {})]),
        (PROCESS, [CALL]),
        ("{segments: {flags: FIN}}", []),
        (WALKED, [LOOK, ELSEWHERE, CountersEvent(1.0, "server", {}), CALL, STATE,
                  replace(CALL, process="client")]),
        ("{lasted: {server: ESTAB, for: 1s}}",
         [LOOK, ELSEWHERE, CountersEvent(1.0, "server", {}), CALL, STATE,
          replace(CALL, process="client")]),
    ],
)  # fmt: skip
def test_a_claim_heeds_what_may_change_it(text: str, heeded: list[Event]) -> None:
    """Trouble and addresses may change any."""
    events = [LOOK, ELSEWHERE, CountersEvent(1.0, "server", {}), CALL, STATE,
              replace(CALL, process="client")]  # fmt: skip
    found = claim(text)
    assert [event for event in events if found.heeds(event)] == heeded
    assert found.heeds(TroubleEvent(1.0, "client", "ss", "no ss"))
    assert found.heeds(AddressEvent(1.0, "client", "10.0.0.9"))


@pytest.mark.parametrize(
    ("text", "event", "earliest"),
    [
        (COUNTED, replace(LOOK, since=0.4), 0.4),
        (COUNTED, LOOK, 1.0),
        (COUNTED, CALL, 1.0),
        (SOCKETS, replace(LOOK, since=0.4), 1.0),  # sockets are as they are when looked at
        ("{counters: {server: {TcpActiveOpens: 2}}, sockets: {server: none}}",
         replace(LOOK, since=0.4), 1.0),
    ],
)  # fmt: skip
def test_counters_may_have_grown_since_the_last_look(
    text: str, event: Event, earliest: float
) -> None:
    assert claim(text).earliest(event) == earliest


def test_what_a_claim_counts_from() -> None:
    assert claim("{segments: {flags: FIN}}").labels == frozenset()
    assert claim(SOCKETS).labels == frozenset()


@pytest.mark.parametrize(
    ("text", "hosts"),
    [(SOCKETS, {"server"}), (COUNTED, {"server"}), (PROCESS, set()), (WALKED, {"server"}),
     ("{lasted: {client: ESTAB, for: 1s}, sockets: {server: none}}", {"client", "server"})],
)  # fmt: skip
def test_the_hosts_of_a_claim(text: str, hosts: set[str]) -> None:
    assert claim(text).hosts == hosts


def test_a_predicate_is_one_already() -> None:
    """As those are that come from Python."""
    found = claim(SOCKETS)
    assert found.sockets
    assert TypeAdapter(Claim).validate_python(found) is found
    assert (
        TypeAdapter(SocketsClaim).validate_python(found.sockets["server"])
        is (found.sockets["server"])
    )


def test_an_empty_claim_is_a_mistake() -> None:
    with pytest.raises(ScenarioError) as raised:
        claim("{}")
    assert "an empty mapping claims nothing" in str(raised.value.mistakes[0])


# Since when


def held(text: str, *events: Event, start: float = 0.0, begun: float = 0.0) -> Moment | None:
    return held_at(claim(text), History([LAB, *events]), start, begun)


def looks(*shown: tuple[float, bool]) -> list[Event]:
    """Looks at the server that show a connection, or none."""
    return [replace(seen(*([ESTAB] if there else [])), t=t) for t, there in shown]


@pytest.mark.parametrize(
    ("shown", "start", "moment"),
    [
        ([(1.0, True), (2.0, False)], 0.0, 2.0),
        ([(1.0, False), (2.0, False)], 0.0, 1.0),
        ([(1.0, False), (2.0, True), (3.0, False)], 0.0, 3.0),  # the last time counts
        ([(1.0, False), (2.0, False)], 1.5, 2.0),
        ([(1.0, False), (2.0, True)], 0.0, 1.0),  # it did, if only for a while
        ([(1.0, True), (2.0, True)], 0.0, None),
        ([], 0.0, None),
    ],
)
def test_since_when_a_claim_holds(
    shown: list[tuple[float, bool]], start: float, moment: float | None
) -> None:
    found = held(SOCKETS, *looks(*shown), start=start)
    assert found == (None if moment is None else Moment(moment, moment))


def test_what_held_before_the_wait_began_and_no_more_is_no_hold() -> None:
    """A look from before tells nothing of what is so now."""
    shown = looks((1.0, False), (2.0, True))
    assert held(SOCKETS, *shown, begun=1.0)
    assert held(SOCKETS, *shown, begun=1.5) is None
    before = [*looks((1.0, False)), replace(CALL, t=2.0)]
    assert held(SOCKETS, *before, begun=1.0)


def test_a_counter_held_at_some_time_since_the_last_look() -> None:
    events = [
        CountersEvent(0.1, "server", {"TcpActiveOpens": 0}),
        replace(seen(), t=2.0, since=1.5, counters={"TcpActiveOpens": 2}),
    ]
    assert held(COUNTED, *events) == Moment(1.5, 2.0)
    assert held(COUNTED, *events, start=1.8) == Moment(1.8, 2.0)


EACH = {
    "sockets": "{sockets: {server: ESTAB}}",
    "process": "{process: {server: running}}",
    "counters": "{counters: {server: {X: 1}}}",
    "segments": "{segments: {flags: FIN}}",
    "lasted": "{lasted: {server: ESTAB, for: 1s}}",
    "path": "{path: {server: [ESTAB]}}",
}


def test_every_key_of_a_predicate_is_judged() -> None:
    """A key that `judge` forgets would hold always."""
    assert EACH.keys() == Predicate.model_fields.keys(), "a new key wants a claim in EACH"
    for key, text in EACH.items():
        found = claim(text).judge(History([LAB]))
        assert [finding.result for finding in found] != [], f"Predicate.judge leaves out {key}"
        assert "pass" not in [finding.result for finding in found]
