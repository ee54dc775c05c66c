"""What rules look at: of one host, one connection and one moment, and of no other."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest

from labctl.ground import errnos
from labctl.judge.causes.cause import Cause, Scene, line, readable
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document
from labctl.probes.sockets import State
from labctl.record.events import CallEvent, Event, InjectEvent, StepEvent
from tests.caused import (
    CLIENT,
    LISTEN,
    SERVER,
    call,
    calls,
    established,
    handshake,
    listened,
    look,
    told,
    trace,
)
from tests.fake import tcp
from tests.reported import segment
from tests.walked import ACK, RST, SYN, Sent, packet

HERE, BACK = (SERVER, CLIENT), (CLIENT, SERVER)
OTHER = "198.18.0.3:40001"


def scene(*events: Event, sent: list[Sent] | None = None, case: Scenario | None = None, **more: Any
          ) -> Scene:  # fmt: skip
    return Scene(told(events, sent or [], **more), case)


def scenario(hosts: str = "{server: {}, client: {}}", *steps: str) -> Scenario:
    text = f"title: x\nhosts: {hosts}\nsteps: [{', '.join(steps or ['{note: nothing}'])}]\n"
    return load_document(Document("few", text), text, "few", {})[0]


def done(t: float, index: int, outcome: Any = "done", **more: Any) -> StepEvent:
    return StepEvent(t, index, "end", f"step {index}", outcome=outcome, **more)


# --- A cause --------------------------------------------------------------------------------------


def test_a_cause_in_one_sentence() -> None:
    told_of = f"bind failed with {errnos.describe('EADDRINUSE')}"
    cause = Cause("x", "server", 1.0, told_of)
    assert (cause.sentence, cause.brief) == (told_of, "bind failed with EADDRINUSE")
    assert replace(cause, text="a", cure="b").sentence == "a; b"


def test_a_segment_as_evidence() -> None:
    plain = segment(1.0, "client ACK 1 1")
    assert line(plain) == "1.000000 client: ACK seq 1 ack 1"
    assert line(plain._replace(sender=None, arrived=2.0, t=None)).startswith("2.000000 ?: ACK")
    lost = plain._replace(arrived=None)
    assert line(lost).endswith("[lost]")
    assert line(lost._replace(pending=True)) == line(plain)  # as it may still arrive


def test_a_look_that_nobody_can_read_says_nothing() -> None:
    assert readable(look(1.0, LISTEN)) is True
    assert readable(look(1.0, "no such line")) is False


# --- Connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "count"),
    [
        ([*handshake(1.0), Sent(2.0, SERVER, CLIENT, RST | ACK, 1, 1)], 1),
        ([*handshake(1.0), Sent(2.0, SERVER, CLIENT, RST, 1)], 0),  # an answer
        ([Sent(1.0, CLIENT, SERVER, SYN), Sent(1.1, SERVER, CLIENT, RST | ACK, 0, 1)], 0),
        ([*handshake(1.0), *handshake(1.5, OTHER),
          *(Sent(2.0, SERVER, end, RST | ACK, 1, 1) for end in (CLIENT, OTHER))], 2),
    ],
)  # fmt: skip
def test_connections_that_a_host_gave_up(sent: list[Sent], count: int) -> None:
    assert scene(look(9.0), sent=sent).given_up["server"] == count


def test_what_a_step_resets_its_host_has_not_given_up() -> None:
    frame = packet(2.0, SERVER, CLIENT, RST | ACK, (1001, 4001))[16 + 14 :]
    made = InjectEvent(2.0, "server", b64encode(frame).decode(), 1, 1)
    sent = [*handshake(1.0), Sent(2.0, SERVER, CLIENT, RST | ACK, 1, 1)]
    assert scene(made, look(9.0), sent=sent).given_up["server"] == 0


def test_the_conversation_of_a_moment() -> None:
    """Of several between the same ends: the last that had begun."""
    sent = [*handshake(1.0), *handshake(2.0, start=9000)]
    found = scene(look(9.0), sent=sent)
    for t, begun in ((0.5, None), (1.0, 1.0), (1.5, 1.0), (2.0, 2.0), (9.0, 2.0)):
        segments = found.conversation("server", HERE, t)
        assert (segments[0].time if segments else None) == begun
        assert segments == found.conversation("client", BACK, t)


def test_inside_each_host_is_a_conversation_of_its_own() -> None:
    history = told([look(9.0)])
    for host, t in (("server", 1.0), ("client", 2.0)):
        history.add_packets(9.0, host, Sent(t, "127.0.0.1:1", "127.0.0.1:2", SYN).record())
    found = Scene(history)
    for host, t in (("server", 1.0), ("client", 2.0)):
        (only,) = found.conversation(host, ("127.0.0.1:1", "127.0.0.1:2"), 9.0)
        assert (only.sender, only.time) == (host, t)
    assert found.conversation("backend", ("127.0.0.1:1", "127.0.0.1:2"), 9.0) == []


TWICE = [*established(1.0), *trace(1.5, "ESTAB", "UNCONN"), *established(2.0),
         *trace(1.5, "ESTAB", "UNCONN", ends=BACK)]  # fmt: skip


def test_the_timeline_of_a_moment() -> None:
    found = scene(*TWICE, look(9.0), sent=[*handshake(1.0), *handshake(2.0, start=9000)])
    assert [each.incarnation for each in found.between("server", HERE)] == [1, 2]
    second = found.between("server", HERE)[1].spans[0].begin.earliest
    for t, number in ((0.5, None), (1.4, 1), (1.9, 1), (second, 2), (9.0, 2)):
        timeline = found.timeline("server", HERE, t)
        assert (timeline.incarnation if timeline else None) == number
    assert found.between("server", (SERVER, OTHER)) == []


def test_each_thing_is_put_together_once() -> None:
    found = scene(*established(1.0), *listened(0.5), look(9.0), sent=handshake(1.0))
    assert found.timelines("server") is found.timelines("server")
    assert found.listeners("server") is found.listeners("server")
    assert found.looks("server") is found.looks("server")
    assert found.looks("nobody") == []


@pytest.mark.parametrize(
    ("events", "sent", "client"),
    [
        ([], handshake(1.0), True),
        ([], [], None),
        ([], handshake(1.0)[1:], None),  # its SYN was not captured
        (trace(1.0, "UNCONN", "SYN-SENT", "ESTAB", ends=BACK), [], True),
        (trace(1.0, "LISTEN", "SYN-RECV", "ESTAB", ends=BACK), [], False),
        ([look(1.0, tcp("ESTAB", *BACK), host="client")], [], None),
        (trace(1.0, "LISTEN", "SYN-RECV", "ESTAB", ends=BACK), handshake(1.0), True),
    ],
)
def test_who_opened_a_connection(
    events: list[Event], sent: list[Sent], client: bool | None
) -> None:
    seen = [look(1.1, tcp("ESTAB", *BACK), host="client")] if events else []
    found = scene(*events, *seen, look(9.0), sent=sent)
    assert found.opened("client", BACK, 5.0) is client


def test_a_syn_that_a_step_sent_opened_nothing() -> None:
    frame = packet(0.9, SERVER, CLIENT, SYN, (500, 0))[16 + 14 :]
    made = InjectEvent(0.9, "server", b64encode(frame).decode(), 0, 0)
    sent = [Sent(0.9, SERVER, CLIENT, SYN, -500, 0), *handshake(1.0)]
    found = scene(made, look(9.0), sent=[replace(s, start=0) for s in sent])
    assert found.opened("client", BACK, 5.0) is not False


def test_sides_of_one_connection_were_there_at_the_same_time() -> None:
    """Else they are those of two, of which each has lost the other side."""
    born = {HERE: ("LISTEN", "SYN-RECV", "ESTAB"), BACK: ("UNCONN", "SYN-SENT", "ESTAB")}
    for first, last in ((HERE, BACK), (BACK, HERE)):
        host = "client" if last is BACK else "server"
        sides = [*trace(1.0, *born[first], "UNCONN", ends=first, step=0.25),
                 look(2.5, tcp("ESTAB", *last), host=host)]  # fmt: skip
        for began, count in ((1.25, 1), (1.5, 1), (2.0, 2)):
            later = trace(began, *born[last], ends=last)
            found = scene(*sides, *later, look(9.0), sent=handshake(1.0))
            assert [len(each) for each in found.pairs()] == ([2] if count == 1 else [1, 1])


def test_a_socket_that_is_connected_to_itself_has_no_other_side() -> None:
    ends = ("127.0.0.1:5", "127.0.0.1:5")
    twice = [tcp("ESTAB", *ends, more=f"ino:{n}") for n in (1, 2)]
    found = scene(look(1.0, twice[0]), look(2.0), look(3.0, twice[1]), probes=("ss",))
    assert [len(sides) for sides in found.pairs()] == [1, 1]


# --- Calls and looks ------------------------------------------------------------------------------


def test_only_calls_that_ended_count() -> None:
    enters = CallEvent(1.0, "server", "server", 2, "enter", "accept", "accept")
    found = scene(enters, call(2.0, "server", "accept"), look(9.0))
    assert [*found.calls()] == [call(2.0, "server", "accept")]


def test_what_was_there_at_a_moment() -> None:
    """A look soon after it, or the last before."""
    looks = [look(1.0), look(2.0), look(4.0)]
    found = scene(*looks)
    for t, number in ((0.5, 0), (1.0, 0), (1.5, 1), (2.0, 1), (2.5, 1), (3.5, 2), (9.0, 2)):
        assert found.look("server", t, 0.5) is looks[number]
    assert found.look("server", 0.4, 0.5) is None
    assert found.look("client", 1.0, 0.5) is None


# --- What the scenario says -----------------------------------------------------------------------

KEY = "net.ipv4.tcp_abort_on_overflow"


def sets(value: int, host: str = "server", key: str = KEY) -> str:
    return f"{{sysctl: {{{host}: {{{key}: {value}}}}}}}"


@pytest.mark.parametrize(
    ("events", "t", "value"),
    [
        ([], 5.0, "1"),
        ([done(2.0, 0)], 5.0, "2"),
        ([done(2.0, 0), done(3.0, 1)], 5.0, "3"),
        ([done(2.0, 0), done(3.0, 1)], 2.5, "2"),
        ([done(2.0, 0)], 2.0, "2"),
        ([done(2.0, 0)], 1.9, "1"),
        ([done(2.0, 0, "failed")], 5.0, "1"),
        ([done(2.0, 2), done(2.1, 3), done(2.2, 4)], 5.0, "1"),  # of another key, host, kind
    ],
)
def test_what_a_sysctl_was_set_to(events: list[Event], t: float, value: str) -> None:
    case = scenario(
        f"{{server: {{sysctls: {{{KEY}: 1}}}}, client: {{}}}}", sets(2), sets(3),
        sets(7, key="net.ipv4.tcp_syncookies"), sets(8, "client"), "{note: nothing}",
    )  # fmt: skip
    found = scene(*events, look(9.0), case=case)
    assert found.setting("server", KEY, t) == value
    assert found.setting("nobody", KEY, t) is None
    assert scene(*events, look(9.0)).setting("server", KEY, t) is None


@pytest.mark.parametrize(
    ("events", "t", "since"),
    [
        ([], 5.0, None),
        ([done(2.0, 0)], 5.0, 2.0),
        ([done(2.0, 0, moment=1.75)], 5.0, 1.75),
        ([done(2.0, 0)], 2.0, 2.0),
        ([done(2.0, 0)], 1.9, None),
        ([done(2.0, 0, "failed")], 5.0, None),
        ([done(2.0, 0), done(3.0, 1)], 5.0, None),
        ([done(2.0, 0), done(3.0, 1)], 2.5, 2.0),
        ([done(2.0, 2)], 5.0, None),  # the other host
        ([done(2.0, 0), done(3.0, 3)], 5.0, 2.0),
    ],
)
def test_since_when_a_host_is_cut_off(events: list[Event], t: float, since: float | None) -> None:
    cuts = ("{cut: client}", "{join: client}", "{cut: server}", "{join: server}")
    found = scene(*events, look(9.0), case=scenario("{server: {}, client: {}}", *cuts))
    assert found.cut_off("client", t) == since
    assert scene(*events, look(9.0)).cut_off("client", t) is None


@pytest.mark.parametrize(
    ("server", "uid"),
    [
        ("{run: cat}", 0),
        ("{run: cat, uid: 7}", 7),
        ("{run: cat, image: nginx}", None),  # that of its image
        ("{run: cat, image: nginx, uid: 7}", 7),
    ],
)
def test_the_user_of_a_process(server: str, uid: int | None) -> None:
    found = scene(look(9.0), case=scenario(f"{{server: {server}, client: {{}}}}"))
    assert found.uid("server") == uid
    assert found.uid("nobody") is None
    assert scene(look(9.0)).uid("server") is None


# --- Whose socket it is ---------------------------------------------------------------------------

SERVES = calls(0.5, "server", "socket; bind :8000; listen 5")
ACCEPT = call(1.1, "server", "accept", local=SERVER, peer=CLIENT)


def test_a_connection_has_the_options_that_its_listener_had_when_it_began() -> None:
    for t, had in ((0.9, True), (1.0002, False), (1.05, False)):
        sets_it = call(t, "server", "set SO_KEEPALIVE")
        found = scene(*SERVES, *established(1.0), sets_it, ACCEPT, look(9.0), sent=handshake(1.0))
        mine = found.descriptor("server", HERE, 5.0)
        assert mine and mine.has("SO_KEEPALIVE", 5.0) is had
        listener = found.listening("server", SERVER, 5.0)
        assert listener and listener.has("SO_KEEPALIVE", 5.0)


def test_whose_connection_it_was_then() -> None:
    """Of two between the same ends each has its own socket."""
    again = replace(ACCEPT, t=2.1)
    found = scene(*SERVES, *TWICE, ACCEPT, again, look(9.0),
                  sent=[*handshake(1.0), *handshake(2.0, start=9000)])  # fmt: skip
    for t, made in ((1.05, None), (1.1, 1.1), (1.9, 1.1), (2.05, None), (2.1, 2.1), (9.0, 2.1)):
        mine = found.descriptor("server", HERE, t)
        assert (mine.made if mine else None) == made


def test_without_states_the_calls_tell() -> None:
    early = calls(0.25, "server", "socket; bind :8000; listen 5")
    accept = replace(ACCEPT, t=0.5)
    mine = scene(*early, accept, look(9.0)).descriptor("server", HERE, 5.0)
    assert mine and mine.made == 0.5


@pytest.mark.parametrize(
    ("events", "t", "found"),
    [
        (SERVES, 5.0, True),
        (SERVES, 0.503, True),  # as listen returned
        (SERVES, 0.5029, False),
        ([*SERVES, call(3.0, "server", "close listener")], 2.9, True),
        ([*SERVES, call(3.0, "server", "close listener")], 3.0, False),
        (calls(0.5, "server", "socket; bind 198.18.0.2:8000; listen 5"), 5.0, True),
        (calls(0.5, "server", "socket; bind 198.18.0.4:8000; listen 5"), 5.0, False),
        (calls(0.5, "server", "socket; bind :8001; listen 5"), 5.0, False),
        (calls(0.5, "server", "socket; bind :8000; listen 5", "client"), 5.0, False),
        (calls(0.5, "server", "socket; bind :8000"), 5.0, False),
        ([*SERVES, *calls(0.6, "other", "socket; bind :8000; listen 5", "server")], 5.0, False),
        ([*SERVES, *calls(0.6, "other", "socket; bind :8000; listen 5", "client")], 5.0, True),
    ],
)
def test_the_only_listener_at_an_end(events: list[Event], t: float, found: bool) -> None:
    mine = scene(*events, look(9.0)).listening("server", SERVER, t)
    assert bool(mine) is found
    assert not mine or mine.process == "server"


def test_what_a_connection_was_made_of() -> None:
    """Its own socket; else the listener that it waits for, as it began; of one that its host
    opened none."""
    begun = [*SERVES, *established(1.0)]
    sent = handshake(1.0)
    accepted = scene(*begun, ACCEPT, look(9.0), sent=sent).maker("server", HERE, 5.0)
    assert accepted and accepted.accepted
    closed = [*begun, call(3.0, "server", "close listener"), look(9.0)]
    for t in (2.0, 5.0):
        waits = scene(*closed, sent=sent).maker("server", HERE, t)
        assert waits and waits.listening < 1.0
    bare = [*SERVES, call(3.0, "server", "close listener"), look(9.0)]  # no state of it is known
    assert scene(*bare, sent=sent).maker("server", HERE, 2.0)
    assert scene(*bare, sent=sent).maker("server", HERE, 5.0) is None
    out = [Sent(s.t, *(HERE if s.source == CLIENT else BACK), s.flags) for s in sent]
    assert scene(*SERVES, look(9.0), sent=out).maker("server", HERE, 5.0) is None


def test_states_by_which_a_connection_is_known() -> None:
    found = scene(*established(1.0), look(9.0), sent=handshake(1.0))
    assert found.timelines("client")[0].states == (State.SYN_SENT, State.ESTAB)
