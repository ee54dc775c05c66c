"""From a step that makes the network fail to what hosts are told, and back to a verdict."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.backends import Message, address_names
from labctl.ground.errors import ScenarioError
from labctl.lab.crafting import Crafted, Position
from labctl.lab.faults import Drop, End, Netem, tallied
from labctl.lab.icmp import ANSWERS
from labctl.language.document import Document
from labctl.language.facts import Range
from labctl.language.predicates.lost import Lost
from labctl.language.scenario import load_document
from labctl.language.steps.faults import Drop as DropStep
from labctl.probes.conversations import Conversation, conversations
from labctl.probes.observations import FLAG_BITS, MODULUS, Injection, Known, Observation
from labctl.probes.packets import read_packet
from labctl.probes.segments import match
from labctl.record.events import AddressEvent, LabEvent, TallyEvent, TroubleEvent
from labctl.record.history import History
from tests.conftest import no_namespaces
from tests.fake import FakeBackend, play, scenario
from tests.sighted import CLIENT as CLIENT_END
from tests.sighted import EPOCH, HANDSHAKE, OWNERS, both, one, record, seen, segments
from tests.sighted import SERVER as SERVER_END

SERVER = End(("198.18.0.2", "fd00::2"), 8000)
CLIENT = End(("198.18.0.3", "fd00::3"))


# --- Drops ----------------------------------------------------------------------------------------


def lines(drop: Drop) -> list[str]:
    return [line.strip() for line in drop.rules(3).splitlines()]


def test_a_drop_is_a_table() -> None:
    to_client = "ip daddr { 198.18.0.3 } tcp flags & 0x1 == 0x1 jump lose"
    assert lines(Drop(SERVER, CLIENT, "input", frozenset({"FIN"}), count=2)) == [
        "table inet labctl_drop_3 {",
        "counter lost { }",
        "chain lose {",
        "limit rate 1/day burst 2 packets counter name lost "
        'log prefix "3" group 7 snaplen 128 drop',
        "}",
        "chain match {",
        "type filter hook input priority 0",
        f"ip saddr {{ 198.18.0.2 }} tcp sport 8000 {to_client}",
        f"ip6 saddr {{ fd00::2 }} tcp sport 8000 "
        f"{to_client.replace('ip ', 'ip6 ').replace('198.18.0.3', 'fd00::3')}",
        "}",
        "}",
    ]  # fmt: skip


def test_bare_segments_have_no_other_flag_and_no_data() -> None:
    found = lines(Drop(CLIENT, None, "output", frozenset({"ACK"}), bare=True))
    assert "ip saddr { 198.18.0.3 } tcp flags & 0x3f == 0x10 jump sized" in found
    assert "tcp doff 8 ip length == 52 jump lose" in found
    assert "tcp doff 8 ip6 length == 32 jump lose" in found


def test_data_is_what_is_longer_than_headers() -> None:
    found = lines(Drop(None, SERVER, "input", frozenset({"data"})))
    assert "ip daddr { 198.18.0.2 } tcp dport 8000 tcp flags & 0x0 == 0x0 jump sized" in found
    assert "tcp doff 15 ip length > 80 jump lose" in found


def test_what_is_refused_is_counted_once_for_both_families() -> None:
    answer = ANSWERS["host-unreachable"]
    found = lines(Drop(CLIENT, None, "input", frozenset({"SYN"}), count=2, answer=answer))
    assert found[2:8] == [
        "chain refuse {",
        "reject with icmp type host-unreachable",
        "reject with icmpv6 type addr-unreachable",
        "}",
        "chain lose {",
        "limit rate 1/day burst 2 packets counter name lost "
        'log prefix "3" group 7 snaplen 128 jump refuse',
    ]


def test_what_a_step_sent_is_told_from_what_a_kernel_sends() -> None:
    """By the identification, which a kernel may choose too, and by a TTL that none does."""
    forged = "ip id 427 ip ttl > 200"
    spared = lines(Drop(CLIENT, None, "input", injected=False))
    place = spared.index("chain match {")
    assert spared[place + 2 : place + 4] == [
        f"{forged} return", "ip6 flowlabel 427 ip6 hoplimit > 200 return"
    ]  # fmt: skip
    only = lines(Drop(CLIENT, None, "input", injected=True))
    assert f"ip saddr {{ 198.18.0.3 }} {forged} tcp flags & 0x0 == 0x0 jump lose" in only
    assert not [line for line in only if "return" in line]


def test_a_drop_that_may_lose_none() -> None:
    history = History([LabEvent(0.0, "", "fake", {}, {}), TallyEvent(1.0, "client", 0, 2)])
    for least, most, result, expected in (
        (0, 3, "pass", "at most 3 segments lost"), (1, None, "pass", "at least 1 segment lost"),
        (3, 3, "fail", "3 segments lost"),
    ):  # fmt: skip
        (finding,) = Lost(0, "drop", least, most).judge(history)
        assert (finding.result, finding.expected) == (result, expected)
        assert finding.measured.count == Range(2, 2)
    (none,) = Lost(5, "reject", 0, 3, done="rejected").judge(history)
    assert (none.result, none.actual) == ("pass", "0 segments rejected")


def test_ends_of_different_families_have_nothing_in_common() -> None:
    found = lines(Drop(End(("198.18.0.2",)), End(("fd00::3",)), "input"))
    assert not [line for line in found if "saddr" in line]


@st.composite
def drops(draw: st.DrawFn) -> Drop:
    ends = st.builds(
        End,
        st.sampled_from([("198.18.0.2",), ("fd00::2",), ("198.18.0.2", "198.18.0.9", "fd00::2")]),
        st.none() | st.integers(1, 65535),
    )
    flags = draw(st.frozensets(st.sampled_from([*FLAG_BITS, "data"])))
    return Drop(
        draw(ends),
        draw(st.none() | ends),
        draw(st.sampled_from(["input", "output"])),
        flags,
        bool(flags) and "data" not in flags and draw(st.booleans()),
        draw(st.none() | st.integers(1, 10_000)),
        draw(st.none() | st.booleans()),
        draw(st.sampled_from([(), *ANSWERS.values()])),
    )


@pytest.mark.netns
@pytest.mark.skipif(bool(no_namespaces()) or not shutil.which("nft"), reason="nft is missing")
@settings(max_examples=20, deadline=None)
@given(st.lists(drops(), min_size=3, max_size=3))
def test_nft_takes_every_drop(found: list[Drop]) -> None:
    rules = "\n".join(drop.rules(number) for number, drop in enumerate(found))
    command = ["unshare", "--user", "--map-root-user", "--net", "nft", "--check", "--file", "-"]
    done = subprocess.run(command, input=rules, text=True, capture_output=True, check=False)
    assert not done.stderr


# --- What hosts answer ----------------------------------------------------------------------------


def test_the_counter_tells_what_was_not_reported() -> None:
    history = History()
    first = list(tallied(history, 1.0, "client", {"4": 2}))
    assert first == [
        TallyEvent(1.0, "client", 4, 2),
        TroubleEvent(1.0, "client", "capture", "2 of 2 lost segments were not reported"),
    ]
    history.add(first[0])
    assert not list(tallied(history, 2.0, "client", {"4": 2}))


LESSON = """\
title: Losses
hosts: {server: {}, client: {}}
steps:
  - drop: {from: client, to: server, flags: FIN, count: 1}
    as: no FIN
  - heal: no FIN
expect:
  - segments: {from: client, flags: FIN, lost: true, count: 1}
"""


def packet(at: float, text: str, v6: bool = False) -> bytes:
    """The head of a packet, without its frame."""
    return record(one(at, text, v6=v6))[16 + 14 :]


def lost(host: str, count: int) -> dict[str, Message]:
    """What an agent answers of the first drop."""
    return {f"{asked} {host}": {"lost": {"0": count}} for asked in ("flush", "heal")}


@pytest.mark.parametrize("place", ["server", "client"])
def test_a_reported_loss_is_a_lost_segment(place: str, tmp_path: Path) -> None:
    def lose(lab: FakeBackend) -> None:
        wall = time.time()
        fin = replace(one(0.4, "client FIN ACK 1001 7001"), at=wall)
        handshake = [replace(o, at=wall - 0.1) for o in HANDSHAKE if o.host == "client"]
        lab.packets("client", *map(record, handshake))
        if place == "server":  # Both captures see it.
            lab.packets("client", record(fin))
            lab.packets("server", record(both(fin)[1]))
        lab.loses(place, 0, packet(0.4, "client FIN ACK 1001 7001"))

    at = ", at: sender" if place == "client" else ""
    backend = FakeBackend({f"drop {place}": lose}, lost(place, 1))
    found = play(LESSON.replace("count: 1}\n    as", f"count: 1{at}}}\n    as"), backend, tmp_path)
    assert [(v.result, v.what, v.actual) for v in found.verdicts] == [
        (
            "pass",
            f"drop 1 x FIN from client to server{' at the sender' if at else ''}",
            "1 segment lost",
        ),
        ("pass", "client: 1 x FIN lost from client", "1"),
    ]
    assert [e for e in backend.log if "drop" in e or "heal" in e] == [
        f"drop {place}", "heal server", "heal client"
    ]  # fmt: skip
    assert re.search("client -> server: FIN ACK seq", found.verdicts[0].evidence[0])


def test_a_drop_that_lost_too_few_has_failed(tmp_path: Path) -> None:
    found = play(LESSON, FakeBackend(answers=lost("server", 0)), tmp_path)
    assert found.verdicts[0].result == "fail"
    assert found.verdicts[0].expected == "1 segment lost"
    assert found.verdicts[0].source == "lesson.yaml:4"


def test_a_count_is_enough_for_a_drop_but_not_for_segments(tmp_path: Path) -> None:
    unlogged = {"drop": {"unlogged": "the kernel has no log of packets"}}
    backend = FakeBackend(answers={**lost("server", 1), **unlogged})
    found = play(LESSON, backend, tmp_path)
    assert [(v.result, v.actual) for v in found.verdicts] == [
        ("pass", "1 segment lost"),
        ("unknown", "1 of 1 lost segments were not reported"),
    ]


def test_a_run_that_ended_before_anybody_counted_decides_nothing() -> None:
    history = History([LabEvent(0.0, "", "fake", {}, {})])
    (finding,) = Lost(0, "drop FIN from client").judge(history)
    assert (finding.result, finding.actual) == ("unknown", "the run ended first")
    assert finding.expected == "at least 1 segment lost"


def test_without_nft_there_is_no_run(tmp_path: Path) -> None:
    backend = FakeBackend(answers={"probe": {"missing": {"nft": "nft is not on the PATH"}}})
    found = play(LESSON, backend, tmp_path)
    assert not any(done.startswith(("start", "drop")) for done in backend.log)
    assert (found.result, found.reason) == (
        "skip", "nft is not on the PATH; install the package nftables, on a kernel with nf_tables"
    )  # fmt: skip


def test_a_drop_of_another_variant_needs_nothing() -> None:
    step = "drop: {from: client, flags: FIN}, when: {variant: {way: lossy}}"
    text = f"""
title: Variants
variants: [{{way: plain}}, {{way: lossy}}]
hosts: {{server: {{}}, client: {{}}}}
steps: [{{{step}}}]
"""
    plain, lossy = load_document(Document("lesson.yaml", text), text, "lesson", {})
    assert not plain.needs
    assert lossy.needs == {"nft"}


def test_every_family_has_its_names() -> None:
    names = address_names({"server": (["198.18.0.2"], ["fd00::2"])})
    history = History([LabEvent(0.0, "", "fake", {}, names)])
    assert history.addresses("server") == {"198.18.0.2", "fd00::2"}
    assert history.addresses("server.v6") == {"fd00::2"}


def test_a_name_stands_for_its_address_and_a_host_for_all_of_its_own() -> None:
    """`server.2` is no IPv6 address, and what a scenario adds to a host is the host's."""
    names = address_names(
        {
            "server": (["198.18.0.2", "198.18.0.4"], ["fd00::2", "fd00::4"]),
            "server2": (["198.18.0.3"], ["fd00::3"]),
        }
    )
    history = History([LabEvent(0.0, "", "fake", {}, names)])
    assert history.addresses("server.2") == {"198.18.0.4"}
    assert history.addresses("server.2.v6") == {"fd00::4"}
    assert history.addresses("localhost") == {"127.0.0.1", "::1"}
    assert history.addresses("nobody") == set()
    history.add(AddressEvent(1.0, "server", "10.0.0.1"))
    assert history.addresses("server") == {*history.addresses("server.2"), "198.18.0.2", "fd00::2",
                                           "fd00::4", "10.0.0.1"}  # fmt: skip
    history.add(AddressEvent(2.0, "server2", "10.0.0.1"))
    assert "10.0.0.1" not in history.addresses("server")
    assert history.addresses("server2") == {"198.18.0.3", "fd00::3", "10.0.0.1"}
    assert history.owners["10.0.0.1"] == "server2"
    assert [history.owners.at("10.0.0.1", t) for t in (0.0, 1.0, 1.9, 2.0, 9.0)] == [
        "server", "server", "server", "server2", "server2"
    ]  # fmt: skip
    history.add(AddressEvent(3.0, "server", "198.18.0.3"))
    assert [history.owners.at("198.18.0.3", t) for t in (2.9, 3.0)] == ["server2", "server"]
    assert history.addresses("server2") == {"fd00::3", "10.0.0.1"}
    assert history.owners.at("10.9.9.9", 1.0) is None


def compiled(drop: str) -> Drop:
    """What hosts are told of a drop."""
    text = "title: t\nhosts: {server: {addresses: 2}, client: {}}\n"
    step = scenario(f"{text}steps: [{{drop: {drop}}}]\n").steps[0]
    assert isinstance(step, DropStep)
    names = address_names(
        {
            "server": (["198.18.0.2", "198.18.0.4"], ["fd00::2", "fd00::4"]),
            "client": (["198.18.0.3"], ["fd00::3"]),
        }
    )
    lab = LabEvent(0.0, "", "fake", {}, names)
    return step.drop.compiled(History([lab, AddressEvent(1.0, "client", "10.0.0.1")]))


def test_the_ends_of_a_drop() -> None:
    """All that comes to a host is for it, on whatever address."""
    whole = lines(compiled('{from: client, to: "server:8000"}'))
    assert [line for line in whole if "saddr" in line] == [
        "ip saddr { 10.0.0.1, 198.18.0.3 } ip daddr != 127.0.0.0/8 tcp dport 8000 "
        "tcp flags & 0x0 == 0x0 jump lose",
        "ip6 saddr { fd00::3 } ip6 daddr != ::1 tcp dport 8000 tcp flags & 0x0 == 0x0 jump lose",
    ]
    second = lines(compiled("{from: server.2, at: sender}"))
    assert [line for line in second if "saddr" in line] == [
        "ip saddr { 198.18.0.4 } tcp flags & 0x0 == 0x0 jump lose"
    ]
    six = lines(compiled("{to: server.2.v6}"))
    assert [line for line in six if "daddr" in line] == [
        "ip6 daddr { fd00::4 } tcp flags & 0x0 == 0x0 jump lose"
    ]


@pytest.mark.parametrize("port", ["0", "00", "09000", "65536", "99999", "x", "", "-1", "1 ", "٨"])
def test_ports_that_no_segment_has(port: str) -> None:
    with pytest.raises(ScenarioError, match="is no side of a connection; allowed: HOST or HOST:PO"):
        compiled(f'{{to: "server:{port}"}}')


# --- Links ----------------------------------------------------------------------------------------


def test_what_tc_is_told() -> None:
    assert Netem().words == []
    assert Netem(delay=0.05, loss=1.5).words == ["delay", "50000us", "loss", "1.5%"]
    assert Netem(delay=0.0001, rate="1mbit", reorder=25, duplicate=100).words == [
        "delay", "100us", "duplicate", "100%", "reorder", "25%", "rate", "1mbit"
    ]  # fmt: skip


# --- Injections -----------------------------------------------------------------------------------

TALK = [*HANDSHAKE, one(0.4, "client PSH ACK 1001 7001 len 5", window=77)]
LATER = [
    one(5.1, "client SYN 900000 0"), one(5.2, "server SYN ACK 400000 900001"),
    one(5.3, "client ACK 900001 400001"),
]  # fmt: skip


def connection(*observations: Observation) -> Conversation:
    return conversations(segments(*both(*observations)))[-1]


@pytest.mark.parametrize(
    ("seq", "ack", "expected"),
    [
        (Position(), Position(), (1006, 7001)),
        (Position(2), Position(-1), (1008, 7000)),
        (Position(0, ahead=False), Position(9, ahead=False), (1000, 7009)),
        (Position(-1006), Position(), (0, 7001)),
        (Position(-1007), Position(), (MODULUS - 1, 7001)),
    ],
)
def test_numbers_count_from_where_they_say(
    seq: Position, ack: Position, expected: tuple[int, int]
) -> None:
    crafted = Crafted(("PSH", "ACK"), seq, ack, "intruder")
    relative, acknowledged, data = crafted.craft(connection(*TALK), CLIENT_END)
    found = read_packet("client", 0.0, data)
    assert found
    assert (found.seq, found.ack) == expected
    assert ((relative + 1000) % MODULUS, (acknowledged + 7000) % MODULUS) == expected
    assert (found.flags, found.length, found.window) == (("PSH", "ACK"), 8, 77)


def test_an_old_connection_has_its_old_numbers() -> None:
    old, new = conversations(segments(*both(*TALK, *LATER)))
    assert old.ends == new.ends
    assert [Crafted(("RST",)).craft(c, CLIENT_END)[0] for c in (old, new)] == [6, 1]
    packets = [Crafted(("RST",)).craft(c, CLIENT_END)[2] for c in (old, new)]
    assert [o.seq for p in packets if (o := read_packet("client", 0.0, p))] == [1006, 900001]


def test_a_repeated_syn_begins_nothing() -> None:
    again = [one(0.05, "client SYN 1000 0", mark=9), *HANDSHAKE]
    assert len(conversations(segments(*both(*again)))) == 1


@given(st.integers(0, MODULUS - 1), st.integers(0, MODULUS - 1), st.integers(0, 1000))
def test_what_follows_is_right_wherever_numbers_begin(client: int, server: int, size: int) -> None:
    observations = [
        one(0.1, f"client SYN {client} 0"),
        one(0.2, f"server SYN ACK {server} {client + 1}"),
        one(0.3, f"client ACK {client + 1} {server + 1} len {size}"),
        one(0.4, f"client FIN ACK {client + 1 + size} {server + 1}"),
    ]
    sent = connection(*observations).sent[CLIENT_END]
    assert sent.following == (client + size + 2) % MODULUS


def test_each_end_sends_what_follows() -> None:
    talk = [*TALK, one(0.5, "server FIN ACK 7001 1006", window=66)]
    found = connection(*talk)
    assert found.ends == (CLIENT_END, SERVER_END)
    client, server = found.sent[CLIENT_END], found.sent[SERVER_END]
    assert (client.first, client.following, client.window) == (1000, 1006, 77)
    assert (server.first, server.following, server.window) == (7000, 7002, 66)


def test_what_is_repeated_or_reset_changes_nothing_of_what_follows() -> None:
    """A receiver may shrink its window, but an RST has none."""
    again = one(0.6, "client PSH ACK 1001 7001 len 5", window=55, mark=1)
    reset = one(0.7, "client RST 1006 0", window=0)
    sent = connection(*TALK, again, reset).sent[CLIENT_END]
    assert (sent.following, sent.window) == (1006, 55)


def test_a_connection_without_its_syn_is_one() -> None:
    """And the same addresses begin another one by a SYN."""
    data = [one(0.4, "client ACK 1001 7001 len 5"), one(0.5, "server ACK 7001 1006")]
    assert len(conversations(segments(*both(*data)))) == 1
    answer = one(0.6, "server SYN ACK 400000 900001")
    assert len(conversations(segments(*both(*data, answer)))) == 1
    later = one(0.7, "server SYN 900000 0")
    assert len(conversations(segments(*both(*data, later)))) == 2


def test_a_syn_of_the_other_end_begins_another_one() -> None:
    ours, theirs = one(0.1, "client SYN 1000 0"), one(0.2, "server SYN 7000 0")
    assert len(conversations(segments(*both(ours, theirs)))) == 2


def test_an_injected_segment_is_of_no_conversation() -> None:
    assert conversations(segments(seen(one(0.5, "client RST 1001 0")))) == []


def test_without_timestamps_of_its_own_a_segment_leaves_the_last_ones() -> None:
    stamped = replace(one(0.4, "client ACK 1001 7001 len 5"), timestamps=(1, 2), mark=(1, 1))
    bare = one(0.5, "client ACK 1006 7001 len 5")
    assert connection(*HANDSHAKE, stamped, bare).sent[CLIENT_END].timestamps == (1, 2)
    assert connection(*HANDSHAKE).sent[CLIENT_END].timestamps is None


def test_timestamps_are_the_last_ones() -> None:
    stamped = one(0.4, "client PSH ACK 1001 7001 len 5")
    stamped = replace(stamped, timestamps=(123, 456), mark=(1, 123))
    _, _, data = Crafted(("ACK",)).craft(connection(*HANDSHAKE, stamped), CLIENT_END)
    found = read_packet("client", 0.0, data)
    assert found and found.timestamps == (123, 456)


@pytest.mark.parametrize("v6", [False, True])
def test_an_injection_is_marked_and_changes_nothing(v6: bool) -> None:
    talk = [one(o.at - EPOCH, again(o), v6=v6) for o in TALK]
    crafted = Crafted(("RST",), Position(70_000))
    seq, ack, data = crafted.craft(connection(*talk), talk[0].source)
    sent = read_packet("client", EPOCH + 0.5, data)
    assert sent
    seen = [*both(*talk), *both(sent), *both(one(0.6, "client FIN ACK 1006 7001", v6=v6))]
    found = match(
        seen, Known(OWNERS, EPOCH, (), [Injection(seq, ack, replace(sent, at=sent.at - 0.001))])
    )
    assert [s.summary for s in found[-2:]] == ["RST seq 70006 [injected]", "FIN ACK seq 6 ack 1"]
    assert [s.crafted for s in found] == [False] * 4 + [True, False]
    assert found[-2].arrived is not None


def again(o: Observation) -> str:
    """The text of an observation, see `one`."""
    length = f" len {o.length}" if o.length else ""
    return f"{o.host} {' '.join(o.flags)} {o.seq} {o.ack}{length}"


def test_nothing_to_inject_into_is_a_failed_verdict(tmp_path: Path) -> None:
    text = LESSON.partition("steps:")[0] + (
        "steps:\n  - inject: {from: client, to: server, flags: RST}\n"
    )
    found = play(text, FakeBackend(), tmp_path)
    assert [(v.result, v.what, v.expected, v.actual, v.source) for v in found.verdicts] == [
        (
            "fail", "inject RST seq next from client to server",
            "a connection between client and server", "none", "lesson.yaml:4",
        )
    ]  # fmt: skip
