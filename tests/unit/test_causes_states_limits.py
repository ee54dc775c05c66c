"""Who closed first, and what kept a connection: what is told of one is not another's."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace

import pytest

from labctl.judge.causes.cause import Cause
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.record.events import Event, HoldersEvent, InjectEvent, ProcessEvent, StepEvent
from tests.caused import (
    CLIENT,
    LISTEN,
    SERVER,
    call,
    calls,
    close,
    ended,
    established,
    handshake,
    ids,
    look,
    only,
    said,
    told,
    trace,
)
from tests.fake import tcp
from tests.walked import ACK, FIN, RST, Sent, packet

HERE, BACK = f"{SERVER} -> {CLIENT}", (CLIENT, SERVER)
FIRST = ("ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "UNCONN")
LAST = ("ESTAB", "CLOSE-WAIT", "LAST-ACK", "UNCONN")
CROSS = ("ESTAB", "FIN-WAIT-1", "CLOSING", "UNCONN")

# --- Who closed first -----------------------------------------------------------------------------


def closed(count: int, server: Sequence[str] = FIRST) -> list[Cause]:
    """What is said of so many connections, one each tenth of a second."""
    events: list[Event] = [look(9.0)]
    wire: list[Sent] = []
    for n in range(count):
        end, t = f"198.18.0.3:{40000 + n}", 1.0 + n / 8
        events += [*established(t, end), *trace(t + 0.0625, *server, ends=(SERVER, end))]
        wire += [*handshake(t, end), *close(t + 0.0625, SERVER, end)]
    return said(told(events, wire), "closed")


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(("count", "more"), [(3, ""), (4, "1 connection"), (6, "3 connections")])
def test_three_are_told_and_how_many_more_there_are(count: int, more: str, at_once: bool) -> None:
    causes = closed(count, CROSS if at_once else FIRST)
    who = "server and its peer closed at once" if at_once else "server closed first"
    assert [c.text for c in causes[3:]] == ([f"{who} in {more} more"] if more else [])
    assert [c.at for c in causes] == [1.0625 + n / 8 for n in (0, 1, 2, *[count - 1] * bool(more))]


def test_of_several_each_is_named() -> None:
    (alone,) = closed(1)
    assert alone.text.startswith("server closed first: seen in FIN-WAIT-1, FIN-WAIT-2")
    for cause in closed(2):
        assert cause.text.startswith(f"server closed first in {cause.connection}: seen in")


ALL = "server closed first: seen in FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT"


def walked(server: Sequence[str], client: Sequence[str], t: float = 2.0) -> list[Event]:
    return [*established(t - 1), *trace(t, *server), *trace(t, *client, ends=BACK), look(9.0),
            look(9.0, host="client")]  # fmt: skip


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (LAST, f"{ALL}; client in CLOSE-WAIT, LAST-ACK"),
        (LAST[:2], f"{ALL}; client in CLOSE-WAIT"),
        (("ESTAB", "UNCONN"), ALL),
        (FIRST, "server and client closed at once: each sent its FIN before the other's came"),
    ],
)  # fmt: skip
def test_what_both_sides_were_seen_in(client: Sequence[str], words: str) -> None:
    cause = only(told(walked(FIRST, client), [*handshake(1.0), *close(2.0)]), "closed")
    assert (cause.text, cause.at, cause.certain) == (words, 2.0, True)


def test_a_host_that_talks_with_itself_is_no_peer_of_its_own() -> None:
    """Over two of its addresses."""
    ends = (SERVER, "198.18.0.4:40000")
    events: list[Event] = [*established(1.0, ends[1]), look(9.0)]
    sides = [*trace(2.0, *FIRST, ends=ends), *trace(2.0, *LAST, ends=ends[::-1])]
    wire = [*handshake(1.0, ends[1]), *close(2.0, *ends)]
    text = only(told([*events, *sides], wire), "closed").text
    assert text == ALL
    both = [*trace(2.0, *FIRST, ends=ends), *trace(2.0, *FIRST, ends=ends[::-1])]
    assert "server and its peer closed at once" in only(told([*events, *both], wire), "closed").text


@pytest.mark.parametrize(
    ("states", "certain"),
    [
        (["FIN-WAIT-1"], False),
        (["FIN-WAIT-2"], True),  # its FIN was acknowledged, and none had come
        (["TIME-WAIT"], True),
        (["FIN-WAIT-1", "FIN-WAIT-2"], True),
        (["CLOSING"], True),
    ],
)
def test_what_looks_at_one_side_tell(states: list[str], certain: bool) -> None:
    looks = [look(1.0 + n / 10, tcp(state, SERVER, CLIENT)) for n, state in enumerate(states)]
    cause = only(told([look(0.5), *looks], probes=("ss",)), "closed")
    at_once = "closed at once" in cause.text
    assert (cause.certain, at_once) == (certain, states == ["CLOSING"])
    assert at_once or f"seen in {', '.join(states)}" in cause.text
    assert cause.text.count("would tell whether both did at once") == (not certain)


# --- States that last -----------------------------------------------------------------------------

HALF = [*handshake(1.0), *close(2.0, CLIENT, SERVER)[:1], Sent(2.0001, SERVER, CLIENT, ACK, 1, 2)]
SHUT = [*handshake(1.0), *close(2.0)[:1], Sent(2.0001, CLIENT, SERVER, ACK, 1, 2)]


def half(*more: Event, end: float | None = None) -> list[Event]:
    """The client has closed its side; the server has not, up to `end`."""
    ends = trace(end, "CLOSE-WAIT", "LAST-ACK", "UNCONN") if end else []
    return [*established(1.0), *trace(2.0, "ESTAB", "CLOSE-WAIT"), *ends, *more, look(9.0)]


def shown(t: float, recv_q: int = 1, inode: int = 7, state: str = "CLOSE-WAIT") -> Event:
    return look(t, LISTEN, tcp(state, SERVER, CLIENT, recv_q=recv_q, more=f"ino:{inode}"))


@pytest.mark.parametrize(
    ("looks", "unread"),
    [
        ([], ""),
        ([shown(2.0, 5)], "4 bytes"),
        ([shown(3.0, 5), shown(4.0, 9)], "8 bytes"),
        ([shown(7.0, 5)], "4 bytes"),  # at the very moment at which it was over
        ([shown(1.5, 9, state="ESTAB"), shown(2.5, 3)], "2 bytes"),
        ([shown(1.5, 9, state="ESTAB")], ""),
    ],
)
def test_only_looks_at_that_state_tell_of_it(looks: list[Event], unread: str) -> None:
    cause = only(told(half(*looks, end=7.0), HALF), "close-wait")
    assert "on server was in CLOSE-WAIT for 5.0 s" in cause.text
    assert cause.text.count("unread") == bool(unread) and unread in cause.text
    assert (len(cause.evidence), cause.holders) == (bool(unread), ())


def test_what_looks_showed_of_connections_before_and_after_is_not_this_one_s() -> None:
    others = [
        e for t in (0.25, 8.0) for e in (
            *established(t), *trace(t + 0.125, *LAST, step=0.125), shown(t + 0.1875, 9)
        )
    ]  # fmt: skip
    wire = [*HALF, *(s for t in (0.25, 8.0) for s in handshake(t, start=int(9000 * t)))]
    cause = only(told([*half(end=7.0), *others], wire), "close-wait")
    assert "was in CLOSE-WAIT for 5.0 s" in cause.text and "unread" not in cause.text


def test_a_state_that_may_last_is_none_that_is_told_of() -> None:
    ends = [*trace(2.0, *CROSS[:3]), *trace(2.0, *FIRST, ends=BACK)]
    waits = look(4.0, host="client"), look(4.0, tcp("CLOSING", SERVER, CLIENT))
    events = [*established(1.0), *ends, *waits, look(9.0, tcp("CLOSING", SERVER, CLIENT))]
    assert ids(told(events, [*handshake(1.0), *close(2.0)])) == []


@pytest.mark.parametrize(
    ("talk", "held"),
    [
        (Sent(8.5, SERVER, CLIENT, ACK | 8, 1, 2, data=1), False),
        (Sent(8.0, SERVER, CLIENT, ACK | 8, 1, 2, data=1), True),  # a second ago
        (Sent(8.5, SERVER, CLIENT, ACK, 1, 2), True),
        (Sent(8.5, CLIENT, SERVER, ACK | 8, 2, 1, data=1), True),
    ],
)
def test_who_goes_on_to_send_is_half_closed(talk: Sent, held: bool) -> None:
    history = told(half(shown(8.9)), [*HALF, talk])
    assert ids(history, "close-wait") == (["close-wait-held"] if held else [])


@pytest.mark.parametrize(("pause", "held"), [(1.9, False), (0.9, True)])
def test_who_sends_now_and_then_is_half_closed_for_some_pauses_more(pause: float, held: bool
                                                                    ) -> None:  # fmt: skip
    """The last data is 2.5 s old."""
    talk = [Sent(6.5 - n * pause, SERVER, CLIENT, ACK | 8, 3 - n, 2, data=1) for n in (2, 1, 0)]
    history = told(half(shown(8.9)), [*HALF, *talk])
    assert ids(history, "close-wait") == (["close-wait-held"] if held else [])


SERVES = calls(0.5, "web", "socket; bind :8000; listen 5", "server")
ACCEPTS = call(1.01, "web", "accept", "server", local=SERVER, peer=CLIENT)


def test_who_accepted_it_after_a_look_has_it() -> None:
    for accepts, words in (([], "nobody has accepted it here"), ([ACCEPTS], "and web has not")):
        events = half(*SERVES, *accepts, shown(2.5, inode=0))
        assert words in only(told(events, HALF), "close-wait").text


def test_who_read_the_end_read_it_from_this_one_and_long_before_it_was_over() -> None:
    for before, t, cure in (
        ([*SERVES, ACCEPTS], 4.4, "close it"),
        ([*SERVES, ACCEPTS], 4.6, "read to the end of file and close"),  # only as it closed
        ([], 4.4, "read to the end of file and close"),  # of a socket that nobody knows
    ):
        reads = call(t, "web", "recv", "server", result=0, eof=True)
        events = half(*before, reads, shown(2.5), end=7.0)
        assert only(told(events, HALF), "close-wait").cure == cure


def waiting(*more: Event, end: float | None = None) -> list[Event]:
    """The server has closed its side, at 2.0; the client has not."""
    moves = trace(1.5, *FIRST[:3], step=0.5)
    ends = trace(end, "FIN-WAIT-2", "UNCONN") if end else []
    return [*established(1.0), *moves, *ends, *more, look(9.0)]


def mini(t: float, state: str = "FIN-WAIT-2") -> Event:
    return look(t, tcp(state, SERVER, CLIENT, more="timer:(timewait,4.500sec,0) ino:0"))


def test_without_a_look_nobody_knows_whose_a_fin_wait_2_is() -> None:
    assert ids(told(waiting(), SHUT), "fin-wait-2") == []
    assert ids(told(waiting(mini(4.0)), SHUT), "fin-wait-2") == ["fin-wait-2-orphan"]


@pytest.mark.parametrize(
    ("more", "came"),
    [
        ([], True),
        ([Sent(3.0, CLIENT, SERVER, FIN | ACK, 1, 2, fate="lost")], False),
        ([Sent(1.4, SERVER, CLIENT, FIN | ACK, 1, 1, fate="lost")], True),  # its own, which it sent
        ([Sent(3.0, CLIENT, SERVER, ACK | 8, 1, 2, 5, fate="lost")], True),  # again
        ([Sent(7.0, CLIENT, SERVER, FIN | ACK, 1, 2)], True),  # which ended that state
        ([Sent(7.5, CLIENT, SERVER, FIN | ACK, 1, 2, fate="lost")], True),  # too late for it
    ],
)
def test_whether_the_fin_of_the_peer_was_lost(more: list[Sent], came: bool) -> None:
    ends = [mini(6.0), mini(7.05, "TIME-WAIT")]
    text = only(told(waiting(*ends, end=7.0), [*SHUT, *more]), "fin-wait-2").text
    assert ("its peer has not closed" in text, "FIN of its peer has not come" in text) == (
        came, not came,
    )  # fmt: skip


@pytest.mark.parametrize(("t", "since"), [(2.99, ""), (3.0, " since 3.0 s"), (4.0, " since 4.0 s")])
def test_since_when_nobody_has_it_open(t: float, since: str) -> None:
    held = look(t, tcp("FIN-WAIT-2", SERVER, CLIENT, more="ino:7"))
    text = only(told(waiting(held, mini(6.0)), SHUT), "fin-wait-2").text
    assert f"nobody has it open here{since}, so it" in text


def test_a_last_ack_waits_for_its_own_fin_alone() -> None:
    """What its peer sent before is none."""
    line = tcp("LAST-ACK", SERVER, CLIENT, more="timer:(on,1sec,5) ino:0")
    events = [*established(1.0), *trace(2.0, *LAST[:3]), look(2.5, line), look(9.0, line)]
    assert ids(told(events, HALF), "last-ack") == []
    own = Sent(2.001, SERVER, CLIENT, FIN | ACK, 1, 2, fate="lost")
    assert ids(told(events, [*HALF, own]), "last-ack") == ["last-ack-unanswered"]


# --- Open, and nobody there -----------------------------------------------------------------------

CUTTING = "title: x\nhosts: {server: {}, client: {}}\nsteps: [{cut: client}]\n"
CUT = StepEvent(2.01, 0, "end", "cut client", None, "done", moment=2.0, verb="cut")
OPEN = tcp("ESTAB", SERVER, CLIENT, more="ino:7")


def gone(*events: Event, sent: Sequence[Sent] = ()) -> list[Cause]:
    (scenario,) = load_document(Document("cut", CUTTING), CUTTING, "cut", {})
    return said(told(events, [*handshake(1.0), *sent]), "gone", scenario)


SEEN = [look(1.5, OPEN), look(9.0, OPEN)]


def test_what_the_one_who_is_cut_off_sends_tells_nobody() -> None:
    lost = Sent(3.0, CLIENT, SERVER, ACK | 8, 1, 1, 5, fate="lost")
    assert len(gone(*established(1.0), *SEEN, CUT, sent=[lost])) == 1


def test_without_a_look_nobody_knows_whether_a_timer_runs() -> None:
    assert gone(*established(1.0), look(9.0, host="client"), CUT) == []


def test_of_a_stranger_nobody_knows_whether_it_is_gone() -> None:
    stranger = "203.0.113.9:40000"
    line = tcp("ESTAB", SERVER, stranger, more="ino:7")
    events = [*established(1.0, stranger)[2:], look(1.5, line), look(9.0, line)]
    assert said(told(events, handshake(1.0, stranger)), "gone") == []


@pytest.mark.parametrize(
    ("states", "since"),
    [
        (("ESTAB", "UNCONN"), "2.000"),
        (("ESTAB", "CLOSE-WAIT", "UNCONN"), "2.500"),
        ((), ""),  # nothing was ever seen of it there
    ],
)
def test_since_when_a_peer_has_had_no_socket(states: Sequence[str], since: str) -> None:
    both = established(1.0)
    there = [*both, *trace(2.0, *states, ends=BACK, step=0.5)] if states else both[2:]
    found = gone(*there, *SEEN, look(5.0, host="client"))
    assert [f"since {since} s" in cause.text for cause in found] == ([True] if since else [])


def test_a_rst_that_a_step_sent_to_the_peer_tells_the_other_side_nothing() -> None:
    frame = packet(2.0, SERVER, CLIENT, RST, (1001, 0))[16 + 14 :]
    injected = InjectEvent(2.0, "server", b64encode(frame).decode(), 1, 0)
    over = trace(2.001, "ESTAB", "UNCONN", ends=BACK)
    sent = [Sent(2.0, SERVER, CLIENT, RST, 1)]
    found = gone(*established(1.0), *over, *SEEN, injected, look(5.0, host="client"), sent=sent)
    assert len(found) == 1
    real = replace(sent[0], source=CLIENT, target=SERVER)
    assert gone(*established(1.0), *over, *SEEN, look(5.0, host="client"), sent=[real]) == []


# --- Open, as a child inherited it ----------------------------------------------------------------

OPEN = tcp("ESTAB", SERVER, CLIENT, more="ino:7")
CLOSES = call(2.0, "server", "close", fd=4)
ENDS = ended(2.0, "server", exit=0, left=True)


def inherited(*more: Event, fd: int = 4, command: str = "sleep", sent: Sequence[Sent] = ()
              ) -> list[Cause]:  # fmt: skip
    """A child has a connection open that its parent, a program, had accepted."""
    begun = [
        ProcessEvent(0.5, "server", "server", "start", pid=2, watch="calls"),
        call(0.6, "server", "socket tcp", fd=3),
        call(0.7, "server", "bind :8000", fd=3, local="0.0.0.0:8000"),
        call(0.8, "server", "listen 5", fd=3), *established(1.0),
        call(1.1, "server", "accept", fd=3, result=4, local=SERVER, peer=CLIENT),
        replace(call(1.2, "server", "fork", fd=3), fd=None, result=9),
    ]  # fmt: skip
    names = {"2": "python", "9": command}
    holds = [
        HoldersEvent(t, "server", "server", names, {"2": own, "9": {str(fd): 7}}, [])
        for t, own in ((1.5, {"4": 7}), (5.0, {}))
    ]
    waits = any(each.flags & FIN for each in sent)
    shown = tcp("CLOSE-WAIT", SERVER, CLIENT, recv_q=1, more="ino:7") if waits else OPEN
    looks = [look(1.5, OPEN), look(5.0, shown)]
    wire = [*handshake(1.0), *sent]
    group = "close-wait" if waits else "open"
    return said(told([*begun, *holds, *looks, *more], wire), group)


def test_a_child_that_inherited_a_connection_keeps_its_fin_from_being_sent() -> None:
    (cause,) = inherited(CLOSES)
    assert (cause.host, cause.connection, cause.certain) == ("server", HERE, True)
    assert "server closed it at 2.000 s, but server (pid 9, sleep, fd 4), which" in cause.text
    (cause,) = inherited(ENDS, fd=3, command="python")
    assert "server ended at 2.000 s, but server (pid 9, python, fd 3), which" in cause.text


def test_a_child_that_inherited_a_connection_keeps_it_in_close_wait_too() -> None:
    comes = trace(1.8, "ESTAB", "CLOSE-WAIT")
    fin = [Sent(1.8, CLIENT, SERVER, FIN | ACK, 1, 1), Sent(1.8001, SERVER, CLIENT, ACK, 1, 2)]
    (cause,) = inherited(CLOSES, *comes, sent=fin)
    words = "its peer has closed, and server closed it at 2.000 s, but server (pid 9, sleep"
    assert words in cause.text and "SOCK_CLOEXEC" in cause.cure
    (cause,) = inherited(*comes, sent=fin)
    assert cause.cure == "read to the end of file and close"


def test_a_child_that_serves_a_connection_keeps_nothing() -> None:
    """A worker of the same program, one that was given it as its input, or one that speaks."""
    assert inherited() == []
    assert inherited(CLOSES, command="python") == []
    assert inherited(CLOSES, fd=3) == []
    assert inherited(replace(CLOSES, t=4.5)) == []
    assert inherited(ENDS, sent=[Sent(3.0, SERVER, CLIENT, ACK, 1, 1, data=5)]) == []
