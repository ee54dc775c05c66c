"""Several networks: the ways between them, and what went through a router, as it was captured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from labctl.backends import HostSpec
from labctl.backends.networks import Networks
from labctl.language.document import Document
from labctl.language.predicates.segments import SegmentsPattern
from labctl.language.scenario import load_document
from labctl.language.values import Names
from labctl.probes.observations import Observation
from labctl.record.events import LabEvent
from labctl.record.history import History
from labctl.reports.ladder import rows
from labctl.reports.rows import Arrow
from tests.caused import PROBES, look, only, said
from tests.fake import tcp
from tests.sighted import EPOCH, one, record

MEMBERS = {"inside": ["client", "gate"], "outside": ["gate", "server"]}
PLACES = {
    "client": "198.18.1.3", "gate": "198.18.1.2", "gate.2": "198.18.2.2", "server": "198.18.2.3",
    "gate.inside": "198.18.1.2", "gate.outside": "198.18.2.2",
}  # fmt: skip
CLIENT, GATE, SERVER = "198.18.1.3:40000", "198.18.2.2:40000", "198.18.2.3:8000"
DATA = "server PSH ACK 901 101 len 4"
HOP = 1e-4
"""Seconds from one capture to the next."""
FAR = 10.0
CHAIN = Networks([
    HostSpec("server", networks=("c",)),
    HostSpec("home", networks=("a",)),
    HostSpec("nat", networks=("a", "b"), router="nat"),
    HostSpec("core", networks=("b", "c"), router="plain"),
    HostSpec("island", networks=("d",)),
    HostSpec("other", networks=("d",)),
])  # fmt: skip


# --- Ways -----------------------------------------------------------------------------------------


def test_ways_lead_through_the_nearest_routers_and_never_into_a_nat() -> None:
    assert CHAIN.ways("home") == {"b": ("nat", "a"), "c": ("nat", "a")}
    assert CHAIN.ways("server") == {"b": ("core", "c")}
    assert CHAIN.ways("nat") == {"c": ("core", "b")}
    assert CHAIN.path("home", "server") == ["nat", "core"]
    assert CHAIN.path("server", "home") == CHAIN.path("home", "nat") == []


def test_a_name_means_the_network_of_both_or_the_nearest_with_a_way() -> None:
    pairs = [("home", "nat"), ("server", "nat"), ("home", "core"), ("server", "home")]
    assert [CHAIN.meeting(*pair) for pair in pairs] == ["a", "b", "b", None]
    assert CHAIN.apart("home", "island") and not CHAIN.apart("home", "server")
    assert CHAIN.hidden_by("home") == [("nat", "b")] and CHAIN.hidden_by("server") == []


def test_routers_are_between_those_whom_they_connect() -> None:
    names = ["server", "home", "nat", "core", "island", "other"]
    assert CHAIN.in_order(names) == ["server", "core", "nat", "home", "island", "other"]
    assert Networks([]).in_order(["b", "a"]) == ["b", "a"]


def test_a_record_keeps_which_network_is_the_first() -> None:
    members, routers = CHAIN.told
    assert members and routers and [*members] == ["a", "d", "b", "c"]
    again = Networks.recorded(members, routers)
    assert again.hidden_by("home") == CHAIN.hidden_by("home")
    assert Networks([HostSpec("a"), HostSpec("b")]).told == (None, None)


# --- What went through a router -------------------------------------------------------------------


def through(at: float, text: str, kind: str, until: str = "", mark: int = 0) -> list[Observation]:
    """The captures of a segment of the client or the server; `until`: the host that lost it."""
    first = replace(one(at, text, mark=mark), source=CLIENT, target=SERVER)
    last = replace(first, source=GATE) if kind == "nat" else first
    hosts = [("client", first), ("gate", first), ("gate", last), ("server", last)]
    if text.startswith("server"):
        hosts = [(h, replace(o, source=o.target, target=o.source)) for h, o in reversed(hosts)]
    names = [host for host, _ in hosts]
    hosts = hosts[: names.index(until) + 1] if until else hosts
    return [replace(o, host=h, at=o.at + n * HOP) for n, (h, o) in enumerate(hosts)]


def handshake(kind: str) -> list[Observation]:
    texts = ("client SYN 100 0", "server SYN ACK 900 101", "client ACK 101 901")
    return [o for n, text in enumerate(texts) for o in through(1 + n / 100, text, kind, mark=n)]


def history(seen: Sequence[Observation], kind: str = "nat") -> History:
    lab = LabEvent(
        0.0, "2026-01-01T00:00:00Z", "fake", {"probes": [*PROBES]}, PLACES, EPOCH,
        networks=MEMBERS, routers={"gate": "nat" if kind == "nat" else "plain"},
    )  # fmt: skip
    found = History([lab])
    for host in MEMBERS["inside"] + MEMBERS["outside"][1:]:
        mine = sorted((o for o in seen if o.host == host), key=lambda o: o.at)
        found.add_packets(FAR, host, b"".join(map(record, mine)))
    return found


def count(found: History, **pattern: object) -> str:
    names = Names(dict.fromkeys(("client", "gate", "server"), 1), {})
    return SegmentsPattern.model_validate(pattern, context=names).judge(found).actual


@pytest.mark.parametrize("kind", ["plain", "nat"])
def test_segments_count_from_end_to_end_and_from_hop_to_hop(kind: str) -> None:
    seen = handshake(kind)
    seen += through(2, "client PSH ACK 101 901 len 5", kind, "client", mark=7)
    seen += through(3, "client PSH ACK 101 901 len 5", kind, "gate", mark=8)
    seen += through(4, "client PSH ACK 101 901 len 5", kind, mark=9)
    found = history(seen, kind)
    for pair in (("client", "server"), ("client", "gate"), ("gate", "server")):
        ends = dict(zip(("from", "to"), pair, strict=True))
        lost = {"client": {"gate": "1", "server": "2"}, "gate": {"server": "1"}}
        assert count(found, **ends, flags="SYN") == "1"
        assert count(found, **ends, lost=True) == lost[pair[0]][pair[1]]
    assert count(found, to="server", flags="SYN") == count(found, to="client", flags="SYN") == "1"
    assert count(found, **{"from": "gate"}, to="client") == "1"
    assert count(found, **{"from": "client"}, data=True, retransmitted=True) == "2"


@pytest.mark.parametrize("kind", ["plain", "nat"])
def test_the_ladder_shows_each_hop_and_one_connection(kind: str) -> None:
    ladder = rows(history(handshake(kind), kind), ("client", "gate", "server"))
    arrows = [(row.sender, row.receiver) for row in ladder.rows if isinstance(row, Arrow)]
    there = [("client", "gate"), ("gate", "server")]
    assert arrows == [*there, *(hop[::-1] for hop in reversed(there)), *there]
    assert ladder.connections == ((CLIENT, SERVER),)


# --- A NAT that has forgotten ---------------------------------------------------------------------


def answered(kind: str, data: str = DATA, *more: Observation) -> History:
    """The server speaks after a long silence, and the router answers by an RST."""
    name = GATE if kind == "nat" else CLIENT
    came = [replace(o, source=SERVER, target=name) for o in through(5, data, kind, "gate", mark=50)]
    rst = replace(one(5.0005, "client RST 101 0", mark=60), source=name, target=SERVER)
    refused = [replace(rst, host=h, at=rst.at + n * HOP) for n, h in enumerate(("gate", "server"))]
    return history([*handshake(kind), *more, *came, *refused], kind)


def test_a_nat_that_answers_for_a_connection_that_it_had_passed_on_has_forgotten_it() -> None:
    cause = only(answered("nat"), "nat-")
    assert (cause.id, cause.host, cause.certain) == ("nat-forgot", "gate", True)
    assert f"had passed on {CLIENT} -> {SERVER} as {GATE} -> {SERVER}" in cause.text
    assert "4.0 s after the last segment" in cause.text
    assert f"{CLIENT} does not hear of it" in cause.text
    assert cause.connection == f"{CLIENT} -> {SERVER}"


EARLIER = through(2, "server PSH ACK 901 101 len 4", "nat", mark=40)


@pytest.mark.parametrize(
    ("data", "more", "known"),
    [
        ("server ACK 900 101", [], True),  # a keepalive probe
        ("server ACK 899 101", [], False),
        ("server PSH ACK 902 101 len 4", [], False),
        ("server PSH ACK 905 101 len 4", EARLIER, True),
        ("server PSH ACK 901 101 len 4", EARLIER, False),  # again
        ("server PSH ACK 901 105 len 4", [], False),  # it has heard what nobody saw
    ],
)
def test_what_comes_next_in_its_connection_a_nat_should_have_known(
    data: str, more: list[Observation], known: bool
) -> None:
    assert bool(said(answered("nat", data, *more), "nat-")) is known


def test_a_nat_has_not_forgotten_what_nobody_had_answered() -> None:
    came = [replace(o, source=SERVER, target=GATE) for o in through(5, DATA, "nat", "gate", mark=9)]
    rst = replace(one(5.0005, "client RST 101 0", mark=60), source=GATE, target=SERVER)
    refused = [replace(rst, host=h, at=rst.at + n * HOP) for n, h in enumerate(("gate", "server"))]
    syn = through(1, "client SYN 100 0", "nat")
    assert said(history([*syn, *came, *refused]), "nat-") == []


def refused(kind: str) -> History:
    """The server answers data by an RST, which goes back through the router."""
    data = through(5, "client PSH ACK 101 901 len 4", kind, mark=50)
    rst = through(data[-1].at - EPOCH + HOP, "server RST 901 0", kind, mark=60)
    found = history([*handshake(kind), *data, *rst], kind)
    for t in (0.5, 9.0):
        found.add(look(t))
    return found


@pytest.mark.parametrize("kind", ["plain", "nat"])
def test_an_rst_that_a_router_passes_on_is_its_sender_s_alone(kind: str) -> None:
    cause = only(refused(kind), "reset")
    assert (cause.id, cause.host) == ("reset-no-socket", "server")


@pytest.mark.parametrize(
    "found",
    [
        answered("nat", "server PSH ACK 5901 101 len 4"),  # outside the window: not understood
        answered("nat", DATA, *through(2, "client FIN ACK 101 901", "nat")),
        answered("plain"),
    ],
    ids=["out of order", "closed", "no NAT"],
)  # fmt: skip
def test_where_it_may_know_it_nothing_is_said(found: History) -> None:
    assert said(found, "nat-") == []


STRICT = """\
title: t
networks: {inside: [client, gate], outside: [gate, server]}
hosts:
  server: {}
  gate:
    router: nat
    sysctls:
      net.netfilter.nf_conntrack_tcp_loose: LOOSE
      net.netfilter.nf_conntrack_tcp_timeout_established: TIMEOUT
  client: {}
steps: []
"""


@pytest.mark.parametrize(
    ("loose", "timeout", "until", "known"),
    [
        (0, 3, "gate", ["nat-forgot"]),
        (1, 3, "gate", []),  # it would pick it up
        (0, 5, "gate", []),  # it remembers for longer
        (0, 3, "client", []),  # it never came there
        (0, 3, "", []),
    ],
)
def test_a_strict_nat_that_passes_nothing_on(
    loose: int, timeout: int, until: str, known: list[str]
) -> None:
    text = STRICT.replace("LOOSE", str(loose)).replace("TIMEOUT", str(timeout))
    (case,) = load_document(Document("t.yaml", text), text, "t", {})
    late = through(5, "client PSH ACK 101 901 len 4", "nat", until, mark=50)
    causes = said(history([*handshake("nat"), *late]), "nat-", case)
    assert [cause.id for cause in causes] == known
    assert all("after 4.0 s without a segment it took 4 bytes" in each.text for each in causes)


def test_a_nat_that_has_forgotten_nothing_as_nothing_was_before() -> None:
    text = STRICT.replace("LOOSE", "0").replace("TIMEOUT", "3")
    (case,) = load_document(Document("t.yaml", text), text, "t", {})
    alone = through(5, "client PSH ACK 101 901 len 4", "nat", "gate", mark=50)
    assert said(history(alone), "nat-", case) == []
    fin = through(5, "client FIN ACK 101 901", "nat", "gate", mark=50)
    (cause,) = said(history([*handshake("nat"), *fin]), "nat-", case)
    assert "it took FIN ACK and passed nothing on" in cause.text


def test_for_how_long_a_nat_remembers_must_be_known() -> None:
    text = STRICT.replace("LOOSE", "0").replace(
        "      net.netfilter.nf_conntrack_tcp_timeout_established: TIMEOUT\n", ""
    )
    (case,) = load_document(Document("t.yaml", text), text, "t", {})
    late = through(5, "client PSH ACK 101 901 len 4", "nat", "gate", mark=50)
    assert said(history([*handshake("nat"), *late]), "nat-", case) == []


def test_a_nat_that_had_a_socket_of_its_own_there_has_forgotten_nothing() -> None:
    for own, found in ((False, ["nat-forgot"]), (True, [])):
        known = answered("nat")
        for t in (1.5, 4.0):
            lines = [tcp("ESTAB", GATE, SERVER, more="ino:5")] if own and t < 2 else []
            known.add(look(t, *lines, host="gate"))
        assert [cause.id for cause in said(known, "nat-")] == found
