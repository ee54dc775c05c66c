"""What an `inject` sends: segments with any option, in the name of silent ends too, and errors."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from labctl.lab.crafting import FIRST_STAMP, Crafted, Options, Position, Stamps, craft_error
from labctl.lab.icmp import ERRORS
from labctl.language.steps import STEPS
from labctl.language.steps.base import StepFailed
from labctl.language.steps.injecting import Inject, InjectPattern
from labctl.probes.conversations import START, Conversation, conversations
from labctl.probes.observations import Injection, Known, Observation, Origin
from labctl.probes.packets import read_packet
from labctl.probes.segments import match
from labctl.record.events import InjectEvent, LabEvent
from labctl.record.history import History
from tests.fake import scenario
from tests.reported import segment
from tests.sighted import CLIENT, EPOCH, HANDSHAKE, NAMES, OWNERS, SERVER, both, one, record

SYN = replace(one(0.1, "client SYN 1000 0"), timestamps=(50, 0), mark=(0, 50))
ABS = Position(7, ahead=False)


def talk(*observations: Observation, made: tuple[Observation, ...] = ()) -> Conversation:
    """The connection that these are of, of which steps sent some."""
    reports = [Injection((o.seq - START) % 2**32, 1, o) for o in made]
    seen = both(*observations, *made)
    return conversations(match(seen, Known(OWNERS, EPOCH, (), reports)))[-1]


def craft(crafted: Crafted, where: Conversation, source: str = SERVER) -> Observation:
    _, _, packet = crafted.craft(where, source)
    found = read_packet("server", EPOCH + 0.5, packet)
    assert found
    return found


def test_an_end_that_is_silent_has_numbers_of_its_own() -> None:
    answer = craft(Crafted(("SYN", "ACK")), talk(SYN))
    assert (answer.seq, answer.ack, answer.window) == (START, 1001, 65535)
    assert answer.timestamps is None
    data = craft(Crafted(("ACK",), payload="hi"), talk(SYN, made=(answer,)))
    assert (data.seq, data.ack) == (START + 1, 1001)
    more = craft(Crafted(("ACK",)), talk(SYN, made=(answer, replace(data, at=EPOCH + 0.6))))
    assert (more.seq, more.window) == (START + 3, 65535)


def test_its_kernel_does_not_speak_for_it_by_an_rst() -> None:
    answer = craft(Crafted(("SYN", "ACK")), talk(SYN))
    reset = one(0.6, f"server RST {START + 1} 0")
    assert craft(Crafted(("ACK",)), talk(SYN, reset, made=(answer,))).seq == START + 1
    assert craft(Crafted(("ACK",)), talk(SYN, one(0.3, "server RST 9 0"))).seq == 9


def test_an_rst_may_have_any_number() -> None:
    """What follows it is what followed before."""
    reset = one(0.5, "client RST 9000 0")
    assert craft(Crafted(("ACK",)), talk(*HANDSHAKE, reset), CLIENT).seq == 1001
    answer = craft(Crafted(("SYN", "ACK")), talk(SYN))
    stray = craft(Crafted(("RST",), Position(5000)), talk(SYN, made=(answer,)))
    made = (answer, replace(stray, at=EPOCH + 0.7))
    assert craft(Crafted(("ACK",)), talk(SYN, made=made)).seq == START + 1


def test_an_end_is_where_the_other_has_acknowledged() -> None:
    middle = talk(one(0.1, "client ACK 1000 7001 len 5"), one(0.2, "client ACK 1005 7201"))
    found = Crafted(("ACK",)).craft(middle, SERVER)
    assert (craft(Crafted(("ACK",)), middle).seq, found[0]) == (7201, 201)


def test_an_answer_to_another_syn_of_a_step_begins_another_connection() -> None:
    syn = segment(1.0, "client SYN 0 0")._replace(crafted=True, origin=Origin(1000))
    first = segment(1.1, "server SYN ACK 0 1")._replace(origin=Origin(7000, 1000))
    again = segment(2.1, "server SYN ACK 0 5001")._replace(origin=Origin(90000, 1000))
    steps = [syn, first, first._replace(t=1.2), syn._replace(t=2.0, seq=5000), again]
    before, after = conversations(steps)
    assert (before.of(first.source).following, before.of(syn.source).following) == (7001, 6001)
    assert (after.of(first.source).following, after.of(syn.source).following) == (90001, 6001)


def test_two_ends_without_a_connection() -> None:
    fresh = Conversation((CLIENT, SERVER))
    assert craft(Crafted(("SYN",)), fresh, CLIENT).seq == START
    assert craft(Crafted(("RST",), ABS, absolute=True), fresh, CLIENT).seq == 7
    assert craft(Crafted(("RST",), ABS), fresh, CLIENT).seq == START + 7
    assert craft(Crafted(("RST",), Position(5), absolute=True), fresh, CLIENT).seq == START + 5


def test_absolute_numbers_are_told_as_relative_ones() -> None:
    crafted = Crafted(("ACK",), Position(1007, False), Position(7007, False), absolute=True)
    seq, ack, packet = crafted.craft(talk(*HANDSHAKE), CLIENT)
    found = read_packet("client", 0.0, packet)
    assert found and (seq, ack, found.seq, found.ack) == (7, 7, 1007, 7007)


def test_options_as_they_are_wanted() -> None:
    options = Options(
        mss=1400, wscale=3, sack=True, stamps=Stamps(), fastopen=b"", raw=bytes.fromhex("1e02")
    )
    found = craft(Crafted(("SYN", "ACK"), options=options), talk(SYN))
    assert found.header.options == ("mss", "wscale", "sack", "timestamps", "fastopen", "mptcp")
    assert (found.header.scale, found.timestamps) == (3, (FIRST_STAMP, 50))
    signed = craft(Crafted(("ACK",), options=Options(md5=bytes(16))), talk(SYN))
    assert signed.header.options == ("md5",)


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        (True, (60, 900)), (False, None), (Stamps(), (60, 900)),
        (Stamps(Position(5)), (65, 900)), (Stamps(Position(3, False)), (53, 900)),
        (Stamps(Position(-11)), (49, 900)), (Stamps(echo=Position(2, False)), (60, 902)),
        (Stamps(echo=Position(1)), (60, 906)),
    ],
)  # fmt: skip
def test_timestamps_count_from_their_first_or_last(
    stamps: Stamps | bool, expected: tuple[int, int] | None
) -> None:
    stamped = [
        SYN,
        replace(one(0.2, "server SYN ACK 7000 1001"), timestamps=(900, 50), mark=(0, 900)),
        replace(one(0.3, "client ACK 1001 7001"), timestamps=(60, 900), mark=(0, 60)),
        replace(one(0.4, "server ACK 7001 1001"), timestamps=(905, 60), mark=(0, 905)),
    ]
    crafted = Crafted(("ACK",), options=Options(stamps=stamps))
    assert craft(crafted, talk(*stamped), CLIENT).timestamps == expected


def test_bits_of_congestion_and_the_window() -> None:
    found = craft(Crafted(("ACK",), window=9, ecn=("ECE", "AE", "CE")), talk(*HANDSHAKE))
    assert (found.header.ecn, found.window) == (("ECE", "AE", "CE"), 9)
    six = [one(o.at - EPOCH, text, v6=True) for o, text in zip(HANDSHAKE, TEXTS, strict=True)]
    where = talk(*six)
    found = craft(Crafted(("ACK",), ecn=("ECT1",)), where, six[0].source)
    assert found.header.ecn == ("ECT1",)


TEXTS = ("client SYN 1000 0", "server SYN ACK 7000 1001", "client ACK 1001 7001")


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_quotes_the_last_segment(name: str, v6: bool) -> None:
    where = talk(*(one(o.at - EPOCH, t, v6=v6) for o, t in zip(HANDSHAKE, TEXTS, strict=True)))
    last = where.of(where.ends[0]).last
    assert last
    packet = craft_error(ERRORS[name], 1280, last, 1234)
    error = ERRORS[name].v6 if v6 else ERRORS[name].v4
    if error is None:
        assert packet == b""
        return
    start = 40 if v6 else 20
    assert tuple(packet[start : start + 2]) == error
    assert packet[6 if v6 else 9] == (58 if v6 else 1)
    assert int.from_bytes(packet[start + 4 : start + 8], "big") == 1280
    quoted = read_packet("client", 0.0, packet[start + 8 :])
    assert quoted and (quoted.source, quoted.target) == where.ends
    assert (quoted.seq, quoted.ack, quoted.flags) == (1234, 7001, ("ACK",))


# --- The step -------------------------------------------------------------------------------------


def pattern(text: str) -> InjectPattern:
    case = scenario(
        f"title: t\nhosts: {{server: {{}}, client: {{}}}}\nsteps: [{{inject: {text}}}]\n"
    )
    (step,) = case.steps
    assert isinstance(step, Inject) and step.verb in STEPS
    return step.inject


def history(*observations: Observation) -> History:
    found = History([LabEvent(0.0, "", "fake", {"probes": ["capture"]}, NAMES, EPOCH)])
    for host in ("server", "client"):
        found.add_packets(
            9.0, host, b"".join(record(o) for o in both(*observations) if o.host == host)
        )
    return found


def test_both_ports_begin_a_connection() -> None:
    new = pattern('{from: "client:40001", to: "server:8000", flags: SYN}')
    chosen, source, count = new.choose(history(*HANDSHAKE))
    assert chosen and (chosen.ends, source, count) == (("198.18.0.3:40001", SERVER), source, 0)
    six = pattern('{from: "client.v6:40001", to: "server.v6:8000", flags: SYN}')
    assert six.choose(history())[1] == "[fd00::3]:40001"
    for text in (
        '{from: client, to: "server:8001", flags: SYN}', "{from: client, to: server, flags: SYN}",
        '{from: "client:1", to: "server:8000", flags: SYN, connection: 1}',
        '{from: "client:1", to: "server:8000", icmp: host-unknown}',
    ):  # fmt: skip
        assert pattern(text).choose(history())[0] is None, text
    known = pattern('{from: "client:40000", to: "server:8000", flags: SYN}')
    assert known.choose(history(*HANDSHAKE))[2] == 1


def test_an_error_about_nothing_or_unknown_to_ipv6_fails() -> None:
    silent = pattern("{from: client, to: server, icmp: port-unreachable}")
    with pytest.raises(StepFailed, match="to quote"):
        silent.craft(talk(SYN), CLIENT)
    six = talk(one(0.1, "client SYN 1000 0", v6=True))
    with pytest.raises(StepFailed, match="IPv6 has no source-quench"):
        pattern("{from: server, to: client, icmp: source-quench}").craft(six, six.ends[1])


def test_an_error_is_about_the_number_that_is_wanted() -> None:
    for text, seq in (("", 1), (", seq: next", 1), (", seq: next+5", 6), (", seq: 0", 0)):
        error = pattern(f"{{from: server, to: client, icmp: host-unreachable{text}}}")
        assert error.craft(talk(*HANDSHAKE), SERVER)[0] == seq


def test_an_error_is_no_segment() -> None:
    error = pattern("{from: server, to: client, icmp: host-unreachable}")
    seq, ack, packet = error.craft(talk(*HANDSHAKE), SERVER)
    event = InjectEvent(0.5, "server", base64.b64encode(packet).decode(), seq, ack)
    assert event.observation is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flags: SYN, options: {mss: 5, sack: true, timestamps: {val: last-1, ecr: 3}}",
         "SYN seq next mss 5 sack tsval last-1 tsecr 3"),
        ('flags: ACK, window: 0, absolute: true, seq: 5, options: {timestamps: false, raw: "0101"}',
         "ACK seq 5 ack next as on the wire window 0 no timestamps raw 0101"),
        ('flags: SYN, ecn: {CE: true, ECE: false}, options: {fastopen: ""}',
         "SYN CE seq next fastopen"),
        ("icmp: fragmentation-needed, mtu: 600, seq: 4",
         "ICMP fragmentation-needed 600 about seq 4"),
    ],
)  # fmt: skip
def test_words(text: str, said: str) -> None:
    found = pattern(f"{{from: client, to: server, {text}}}")
    assert str(found) == f"{said} from client to server"
