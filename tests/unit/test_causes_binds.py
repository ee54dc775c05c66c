"""Why a bind, a listen or a connect found no room: which socket is named, and when none is."""

from __future__ import annotations

import pytest

from labctl.judge.causes.rules import causes
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.record.events import Event, LabEvent, ProcessEvent
from labctl.record.history import History
from tests.caused import (
    ADDRESSES,
    CLIENT,
    IN_USE,
    LISTEN,
    SERVER,
    bind_fails,
    call,
    calls,
    close,
    ended,
    established,
    handshake,
    ids,
    look,
    only,
    owner,
    told,
    trace,
)
from tests.fake import tcp
from tests.walked import ACK, Sent

SERVES = "socket; bind :8000; listen 5; accept"
REUSES = "socket; set SO_REUSEADDR; bind :8000; listen 5; accept"
TIME_WAIT = tcp("TIME-WAIT", SERVER, CLIENT, more="timer:(timewait,59sec,0)")


def old(texts: str = SERVES) -> list[Event]:
    """A server served one connection, closed it first, and ended. It listened before that began,
    and all after that came later."""
    before, listen, after = texts.partition("; listen 5")
    return [
        *calls(0.5, "old", before + listen, "server"),
        *(calls(1.01, "old", after[2:], "server")[1:] if after else []),
        *calls(0.99, "client", "socket; connect server:8000"),
        *established(1.0),
        *trace(2.0, "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "UNCONN"),
        *trace(2.0 + 5e-5, "ESTAB", "CLOSE-WAIT", "LAST-ACK", "UNCONN", ends=(CLIENT, SERVER)),
        look(2.01, TIME_WAIT), look(2.02, host="client"),
        ended(2.1, "old", "server", exit=0, left=False),
    ]  # fmt: skip


OLD = [*handshake(1.0), *close(2.0)]


def test_a_time_wait_is_named_and_both_that_lack_the_option() -> None:
    cause = only(told([*old(), *bind_fails(3.0, "new", TIME_WAIT)], OLD), "bind")
    assert (cause.id, cause.host) == ("bind-time-wait", "server")
    assert cause.connection == f"{SERVER} -> {CLIENT}"
    assert cause.certain
    for words in (
        "new: bind :8000 failed", "timewait timer 59.0 s left", "of old", "server closed first in",
        "the old socket and the new one had no SO_REUSEADDR",
    ):  # fmt: skip
        assert words in cause.text
    assert "on the server that made the old connection too" in cause.cure


@pytest.mark.parametrize(
    ("was", "wants", "lacks"),
    [
        (SERVES, "socket; set SO_REUSEADDR; bind :8000", "the old socket had no"),
        (REUSES, "socket; bind :8000", "the new one had no"),
        (REUSES, "socket; set SO_REUSEADDR 0 || continue; bind :8000", "the new one had no"),
        (f"{REUSES}; set SO_REUSEADDR 0", "socket; set SO_REUSEADDR; bind :8000", "the old"),
        (REUSES, "socket; set SO_REUSEADDR; bind :8000", ""),
        (f"{SERVES}; set SO_REUSEADDR", "socket; set SO_REUSEADDR; bind :8000", ""),
        (REUSES, "socket; set SO_REUSEPORT; bind :8000", "the new one had no"),
    ],
)
def test_the_options_of_the_connection_count_and_not_those_of_its_listener(
    was: str, wants: str, lacks: str
) -> None:
    history = told([*old(was), *bind_fails(3.0, "new", TIME_WAIT, texts=wants)], OLD)
    assert [lacks in cause.text for cause in causes(history) if cause.id == "bind-time-wait"] == (
        [True] if lacks else []
    )


def test_what_is_set_on_a_listener_after_the_handshake_is_not_the_connection_s() -> None:
    was = [*old("socket; bind :8000; listen 5"), call(1.5, "old", "set SO_REUSEADDR", "server"),
           call(1.6, "old", "accept", "server", local=SERVER, peer=CLIENT)]  # fmt: skip
    fails = bind_fails(3.0, "new", TIME_WAIT, texts="socket; set SO_REUSEADDR; bind :8000")
    assert "the old socket had no" in only(told([*was, *fails], OLD), "bind").text


def test_an_older_start_s_options_are_not_those_of_the_connection() -> None:
    first = [*calls(0.1, "old", REUSES.removesuffix("; accept"), "server"),
             ended(0.3, "old", "server", exit=0)]  # fmt: skip
    fails = bind_fails(3.0, "old", TIME_WAIT, texts="socket; set SO_REUSEADDR; bind :8000",
                       host="server")  # fmt: skip
    assert "the old socket had no" in only(told([*first, *old(), *fails], OLD), "bind").text


def test_a_socket_of_a_program_is_certain_only_if_options_cannot_matter() -> None:
    plain = told(bind_fails(3.0, "new", TIME_WAIT))
    assert only(plain, "bind").certain
    assert "old socket" not in only(plain, "bind").text
    reuse = told(bind_fails(3.0, "new", TIME_WAIT, texts="socket; set SO_REUSEADDR; bind :8000"))
    assert not only(reuse, "bind").certain
    assert "would tell" in only(reuse, "bind").text


def test_of_a_socket_whose_making_nobody_saw_no_option_is_said() -> None:
    cause = only(told(bind_fails(3.0, "new", TIME_WAIT, texts="bind :8000")), "bind")
    assert not cause.certain
    assert "had no SO_REUSEADDR" not in cause.text


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ("FIN-WAIT-1", "bind-fin-wait"), ("FIN-WAIT-2", "bind-fin-wait"),
        ("CLOSING", "bind-last-ack"), ("LAST-ACK", "bind-last-ack"),
        ("ESTAB", "bind-connection"), ("CLOSE-WAIT", "bind-connection"),
    ],
)  # fmt: skip
def test_each_state_has_its_rule(state: str, name: str) -> None:
    cause = only(told(bind_fails(3.0, "new", tcp(state, SERVER, CLIENT))), "bind")
    assert (cause.id, cause.connection) == (name, f"{SERVER} -> {CLIENT}")
    assert f"blocked by {state} {SERVER}" in cause.text


def test_of_two_connections_who_closed_this_one_first_is_told() -> None:
    other = "198.18.0.3:40001"
    first = [*established(0.2, other), *trace(0.4, "ESTAB", "CLOSE-WAIT", ends=(SERVER, other)),
             *trace(0.3, "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", ends=(other, SERVER))]  # fmt: skip
    history = told([*first, *old(), *bind_fails(3.0, "new", TIME_WAIT)],
                   [*handshake(0.2, other), *OLD])  # fmt: skip
    assert "server closed first in this connection" in only(history, "bind").text


def test_who_closed_first_is_told_of_this_incarnation() -> None:
    again = [
        *established(3.0), *trace(4.0, "ESTAB", "CLOSE-WAIT", "LAST-ACK"),
        look(4.01, tcp("LAST-ACK", SERVER, CLIENT)),
    ]  # fmt: skip
    fails = bind_fails(4.2, "new", tcp("LAST-ACK", SERVER, CLIENT))
    wire = [*OLD, *handshake(3.0, start=5000), Sent(4.0, CLIENT, SERVER, ACK | 1, 1, 1, start=5000)]
    cause = only(told([*old(), *again, *fails], wire), "bind")
    assert (cause.id, "its peer closed first" in cause.text) == ("bind-last-ack", True)


@pytest.mark.parametrize(
    ("texts", "line", "named"),
    [
        ("socket; bind server:8000", tcp("TIME-WAIT", "198.18.0.4:8000", CLIENT), False),
        ("socket; bind server.2:8000", tcp("TIME-WAIT", "198.18.0.4:8000", CLIENT), True),
        ("socket; bind :8000", tcp("TIME-WAIT", "198.18.0.4:8000", CLIENT), True),
        ("socket; bind :8001", TIME_WAIT, False),
        ("socket; bind :8000", tcp("ESTAB", "198.18.0.2:40000", "198.18.0.3:8000"), False),
        ("socket; bind :8000", tcp("TIME-WAIT", "[::ffff:198.18.0.2]:8000",
                                   "[::ffff:198.18.0.3]:40000"), True),
        ("socket; bind :8000", tcp("LISTEN", "[::]:8000", "[::]:*"), False),
        ("socket tcp6; set IPV6_V6ONLY; bind [::]:8000", tcp("LISTEN", ":8000"), False),
        ("socket tcp6; set IPV6_V6ONLY; bind [::]:8000", tcp("LISTEN", "*:8000", "*:*"), True),
        ("socket tcp6; bind :8000", tcp("LISTEN", "[::]:8000", "[::]:*"), True),
        ("socket tcp6; bind server.v6:8000", tcp("LISTEN", "[fd00::2]:8000", "[::]:*"), True),
        ("socket tcp6; bind server.v6:8000", tcp("LISTEN", "[fd00::4]:8000", "[::]:*"), False),
        ("socket tcp6; bind server.v6:8000", tcp("LISTEN", ":8000"), False),
        # A bare name is an IPv4-mapped address for such a socket.
        ("socket tcp6; bind server:8000", tcp("LISTEN", "[fd00::2]:8000", "[::]:*"), False),
        ("socket tcp6; bind server:8000", tcp("LISTEN", ":8000"), True),
        ("socket; bind server:8000", tcp("LISTEN", "[::ffff:198.18.0.2]:8000", "[::]:*"), True),
        ("socket; set SO_BINDTODEVICE eth1; bind :8000", tcp("LISTEN", "0.0.0.0%eth0:8000"), False),
    ],
)  # fmt: skip
def test_only_a_socket_that_overlaps_is_named(texts: str, line: str, named: bool) -> None:
    assert bool(ids(told(bind_fails(3.0, "new", line, texts=texts)))) is named


@pytest.mark.parametrize("bind", ['bind ":8000"', "bind server:8000 || continue", "bind :8000"])
def test_binds_of_every_spelling_are_known(bind: str) -> None:
    assert ids(told(bind_fails(3.0, "new", LISTEN, texts=f"socket; {bind}"))) == ["bind-listener"]


def test_a_listener_is_named_with_its_process_and_comes_first() -> None:
    first = calls(0.5, "first", "socket; bind :8000; listen 5", "server")
    cause = only(told([*first, *bind_fails(3.0, "new", TIME_WAIT, LISTEN)]), "bind")
    assert (cause.id, cause.connection, cause.certain) == ("bind-listener", None, True)
    assert "blocked by LISTEN 0.0.0.0:8000, accept queue 0/5, of first" in cause.text
    assert "also by TIME-WAIT" in cause.text


def test_what_is_open_is_named_before_what_is_over() -> None:
    open_ = tcp("ESTAB", SERVER, "198.18.0.3:40001")
    cause = only(told(bind_fails(3.0, "new", TIME_WAIT, open_)), "bind")
    assert (cause.id, "also by TIME-WAIT" in cause.text) == ("bind-connection", True)


def test_of_two_listeners_on_one_port_the_right_process_is_named() -> None:
    lines = [tcp("LISTEN", "198.18.0.2:8000"), tcp("LISTEN", "198.18.0.4:8000")]
    both = [*calls(0.5, "one", "socket; bind server:8000; listen 5", "server"),
            *calls(0.6, "two", "socket; bind server.2:8000; listen 5", "server")]  # fmt: skip
    cause = only(told([*both, *bind_fails(3.0, "new", *lines)]), "bind")
    one, two = (f"LISTEN 198.18.0.{n}:8000, accept queue 0/0" for n in (2, 4))
    assert f"{one}, of one; also by {two}" in cause.text


def test_a_listener_whose_process_has_ended_is_of_nobody_who_is_known() -> None:
    first = [*calls(0.5, "first", "socket; bind :8000; listen 5", "server"),
             ended(1.0, "first", "server", exit=0)]  # fmt: skip
    assert "of first" not in only(told([*first, *bind_fails(3.0, "new", LISTEN)]), "bind").text


@pytest.mark.parametrize("option", ["", "set SO_REUSEADDR; "])
def test_a_listen_that_fails_is_blocked_by_the_listener_and_not_by_itself(option: str) -> None:
    lines = [tcp("UNCONN", ":8000"), LISTEN]
    events = bind_fails(3.0, "new", *lines, texts=f"socket; {option}bind :8000; listen 5")
    assert ids(told(events)) == []  # where it wanted to listen is not known
    at = events[-2].t
    events[-2] = call(at, "new", "listen 5", "server", **IN_USE, local="0.0.0.0:8000")
    cause = only(told(events))
    assert (cause.id, "UNCONN" in cause.text) == ("bind-listener", False)


def test_of_a_listener_for_each_family_the_right_process_is_named() -> None:
    both = [
        *calls(0.5, "four", "socket; bind :8000; listen 5", "server"),
        *calls(0.6, "six", "socket tcp6; set IPV6_V6ONLY; bind [::]:8000; listen 5", "server"),
    ]
    lines = [tcp("LISTEN", "[::]:8000", "[::]:*"), LISTEN]
    cause = only(told([*both, *bind_fails(3.0, "new", *lines)]), "bind")
    assert "LISTEN 0.0.0.0:8000, accept queue 0/5, of four" in cause.text


def test_an_earlier_connection_of_these_ends_lends_its_options_to_none() -> None:
    """The second one waited in the queue of a listener without the option."""
    first = [
        *calls(0.1, "old", "socket; bind :8000; listen 5", "server"), *established(0.2),
        call(0.3, "old", "accept", "server", local=SERVER, peer=CLIENT),
        call(0.31, "old", "set SO_REUSEADDR", "server"), call(0.4, "old", "close", "server"),
        *trace(0.4, "ESTAB", "CLOSE-WAIT", "LAST-ACK", "UNCONN"), look(0.5, LISTEN),
    ]  # fmt: skip
    second = [*established(1.0), *trace(2.0, "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "UNCONN"),
              look(2.01, TIME_WAIT), ended(2.0, "old", "server", exit=0, left=False)]  # fmt: skip
    fails = bind_fails(3.0, "new", TIME_WAIT, texts="socket; set SO_REUSEADDR; bind :8000")
    wire = [*handshake(0.2, start=9000), *close(0.4, CLIENT, SERVER, start=9000), *OLD]
    assert "the old socket had no" in only(told([*first, *second, *fails], wire), "bind").text


def forked(left: bool, signal: str = "KILL") -> list[Event]:
    """A parent that listened, accepted and forked has ended."""
    return [
        *calls(0.5, "parent", SERVES, "server"),
        call(1.0, "parent", "fork", "server", result=7),
        call(1.1, "parent", "close listener", "server", pid=7),
        ended(2.0, "parent", "server", signal=signal, left=left),
    ]


ESTAB = tcp("ESTAB", SERVER, CLIENT, more="ino:5")


def test_a_child_that_has_the_connection_is_named() -> None:
    cause = only(told([*forked(True), *bind_fails(3.0, "new", ESTAB)]), "bind")
    assert (cause.id, cause.certain) == ("bind-child", True)
    assert (
        "a child of parent has it open since its main process was killed by SIGKILL" in cause.text
    )
    assert "SOCK_CLOEXEC" in cause.cure


def test_a_child_of_somebody_else_is_not() -> None:
    other = calls(0.4, "other", "socket; bind :8000; listen 5", "server")
    parent = [*calls(0.5, "parent", "socket; bind :9000; listen 5", "server"),
              ended(2.0, "parent", "server", signal="KILL", left=True)]  # fmt: skip
    cause = only(told([*other, *parent, *bind_fails(3.0, "new", LISTEN)]), "bind")
    assert (cause.id, "of other" in cause.text) == ("bind-listener", True)
    gone = [*forked(True), ProcessEvent(2.5, "parent", "server", "gone", signal="KILL")]
    assert "bind-child" not in ids(told([*gone, *bind_fails(3.0, "new", ESTAB)]))


@pytest.mark.parametrize("alone", [True, False])
def test_a_program_s_child_is_at_most_likely(alone: bool) -> None:
    events = [
        ProcessEvent(0.5, "nginx", "server", "start", pid=2),
        ended(2.0, "nginx", "server", exit=0, left=True),
        *([] if alone else [ProcessEvent(0.6, "other", "server", "start", pid=2)]),
        *bind_fails(3.0, "new", LISTEN),
    ]
    cause = only(told(events), "bind")
    assert (cause.id, cause.certain) == (
        ("bind-child", False) if alone else ("bind-listener", True)
    )


BINDS = "socket; bind :8000"


@pytest.mark.parametrize(
    ("other", "wants", "named"),
    [
        (calls(0.5, "other", BINDS, "server"), BINDS, True),
        (calls(0.5, "other", "socket; bind 127.0.0.1:8000", "server"), BINDS, True),
        (calls(0.5, "other", "socket tcp6; bind [::]:8000", "server"), BINDS, True),
        (calls(0.5, "other", "socket tcp6; set IPV6_V6ONLY; bind [::]:8000", "server"), BINDS,
         False),
        (calls(0.5, "other", BINDS, "server"), "socket tcp6; set IPV6_V6ONLY; bind [::]:8000",
         False),
        ([*calls(0.5, "other", "socket", "server"), call(0.6, "other", "bind :8000", "server")],
         BINDS, False),  # where, nobody knows
        (calls(0.5, "other", BINDS, "client"), BINDS, False),
        (calls(0.5, "other", "socket; bind :8001", "server"), BINDS, False),
        (calls(0.5, "other", f"{BINDS}; close", "server"), BINDS, False),
        ([*calls(0.5, "other", BINDS, "server"), ended(1.0, "other", "server", exit=0)], BINDS,
         False),
        ([*calls(0.5, "other", BINDS, "server"), ended(1.0, "other", "server", exit=0),
          *calls(1.5, "other", "socket", "server")], BINDS, False),
        (calls(0.5, "other", "socket; set SO_REUSEADDR; bind :8000", "server"),
         "socket; set SO_REUSEADDR; bind :8000", False),
        (calls(0.5, "other", "socket udp; bind :8000", "server"), BINDS, False),
        (calls(0.5, "other", BINDS, "server"), "socket udp; bind :8000", False),
        (calls(0.5, "other", "socket as a; bind :8000; socket; bind :9000; use a; close",
               "server"), BINDS, False),
        (calls(0.5, "other", "socket as a; bind :8000; socket; bind :9000; close",
               "server"), BINDS, True),
        (calls(3.5, "other", BINDS, "server"), BINDS, False),
        (calls(3.0005, "other", BINDS, "server"), BINDS, False),
        (calls(0.5, "other", f"{BINDS}; listen 5", "server"), BINDS, False),
    ],
)  # fmt: skip
def test_what_ss_does_not_list_is_told_by_its_call(
    other: list[Event], wants: str, named: bool
) -> None:
    history = told([*other, *bind_fails(3.0, "new", texts=wants)])
    assert ids(history) == (["bind-bound"] if named else [])
    for cause in causes(history):
        assert "a socket of other that is bound (bind " in cause.text


def test_a_listener_for_both_families_and_ones_for_each() -> None:
    both, four = tcp("LISTEN", "*:8000", "*:*"), tcp("LISTEN", ":8000")
    six = tcp("LISTEN", "[::]:8000", "[::]:*")
    wants = {4: "socket; bind :8000", 6: "socket tcp6; bind [::]:8000"}
    for family, line, name in [
        (4, both, "bind-dual-stack"), (6, four, "bind-dual-stack"), (6, six, "bind-listener"),
        (6, both, "bind-listener"), (4, four, "bind-listener"),
    ]:  # fmt: skip
        history = told(bind_fails(3.0, "new", line, texts=wants[family]))
        assert ids(history) == [name], (family, line)
        assert ("IPV6_V6ONLY" in only(history).cure) is (name == "bind-dual-stack")


OUTGOING = tcp("ESTAB", "198.18.0.2:8000", "198.18.0.3:9000")


def outgoing(texts: str) -> list[Event]:
    """The server has an outgoing connection from its port 8000."""
    return calls(0.5, "agent", texts, "server", client=SERVER, server="198.18.0.3:9000")


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        ("socket; connect client:9000", "bind-outgoing"),
        ("socket; bind :0 || continue; connect client:9000", "bind-outgoing"),
        ("socket; bind :8000; connect client:9000", "bind-connection"),
    ],
)
def test_an_outgoing_connection_is_told_if_the_kernel_chose_its_port(texts: str, name: str) -> None:
    wire = handshake(0.5005, SERVER, "198.18.0.3:9000")
    cause = only(told([*outgoing(texts), *bind_fails(3.0, "new", OUTGOING)], wire), "bind")
    assert (cause.id, "of agent" in cause.text) == (name, True)
    assert ("ip_local_reserved_ports" in cause.cure) is (name == "bind-outgoing")


def test_an_outgoing_connection_of_a_program_is_known_by_its_syn() -> None:
    events = bind_fails(3.0, "new", OUTGOING)
    cause = only(told(events, handshake(0.5005, SERVER, "198.18.0.3:9000")), "bind")
    assert (cause.id, cause.certain) == ("bind-outgoing", False)
    came = only(told(events, handshake(0.5005, "198.18.0.3:9000", SERVER)), "bind")
    assert came.id == "bind-connection"
    assert only(told(events), "bind").id == "bind-connection"


def test_a_connection_to_itself_is_told_if_the_kernel_chose_its_port() -> None:
    line = tcp("ESTAB", SERVER, SERVER)
    wire = [Sent(0.5005, SERVER, SERVER, 2)]
    opens = trace(0.5004, "UNCONN", "SYN-SENT", "SYN-RECV", "ESTAB", ends=(SERVER, SERVER))
    for texts, name in [
        ("socket; connect server:8000", "bind-self-connection"),
        ("socket; bind :8000; connect server:8000", "bind-connection"),
    ]:
        mine = calls(0.5, "loop", texts, "server", client=SERVER, server=SERVER)
        assert ids(told([*mine, *opens, *bind_fails(3.0, "new", line)], wire), "bind") == [name]


SHARES = "socket; set SO_REUSEPORT; bind :8000"


def test_both_with_reuseport_are_of_two_users_if_nothing_else_blocks() -> None:
    line = tcp("LISTEN", ":8000", more="uid:1001 ino:4")
    first = calls(0.5, "first", f"{SHARES}; listen 5", "server")
    cause = only(told([*first, *bind_fails(3.0, "new", line, texts=SHARES)]), "bind")
    assert (cause.id, "of first, of uid 1001" in cause.text) == ("bind-other-user", True)
    assert "the new one is of another" in cause.text
    of = "hosts: {server: {processes: {new: {calls: socket, uid: 1002}}}, client: {}}"
    text = f"title: two users\n{of}\nsteps: [{{note: nothing}}]\n"
    (scenario,) = load_document(Document("two", text), text, "two", {})
    history = told([*first, *bind_fails(3.0, "new", line, texts=SHARES)])
    assert "the new one is of uid 1002" in only(history, "bind", scenario).text
    plain = calls(0.5, "first", "socket; bind :8000; listen 5", "server")
    assert ids(told([*plain, *bind_fails(3.0, "new", line, texts=SHARES)])) == ["bind-listener"]
    first_of_both = old(SERVES.replace("; bind", "; set SO_REUSEPORT; bind"))
    assert ids(told([*first_of_both, *bind_fails(3.0, "new", TIME_WAIT, texts=SHARES)], OLD)) == []
    here = calls(0.5, "first", f"{SHARES.replace(' :', ' server:')}; listen 5", "server")
    bound = calls(0.6, "idle", "socket; bind server.2:8000", "server")
    line = tcp("LISTEN", "198.18.0.2:8000", more="uid:1001 ino:4")
    history = told([*here, *bound, *bind_fails(3.0, "new", line, texts=SHARES)])
    assert ids(history) == ["bind-bound"]


@pytest.mark.parametrize("late", [0.0, 2.5, 30.0])
def test_a_look_of_another_time_or_host_tells_nothing(late: float) -> None:
    *before, last = bind_fails(3.0, "new", LISTEN)
    other = "server" if late else "client"
    assert ids(told([*before, look(last.t + late, LISTEN, host=other, caption="bind :8000")])) == []
    again = bind_fails(33.0, "new", LISTEN)
    assert [cause.at for cause in causes(told([*before, *again]))] == [again[-2].t]


def test_binds_that_fail_at_the_same_time_on_two_hosts_are_both_told() -> None:
    ours, theirs = tcp("ESTAB", SERVER, CLIENT), tcp("ESTAB", "198.18.0.3:8000", "198.18.0.2:1")
    events = [*bind_fails(3.0, "a", ours), *bind_fails(3.0, "b", theirs, host="client")]
    texts = {cause.host: cause.text for cause in causes(told(events))}
    assert {host: owner(text.split("ESTAB ")[1].split(" ")[0]) for host, text in texts.items()} == {
        "server": "server", "client": "client",
    }  # fmt: skip


def test_a_history_without_a_lab_is_no_trouble() -> None:
    lab = LabEvent(0.0, "2026-01-01T00:00:00Z", "fake", {}, ADDRESSES)
    for first in ([], [lab]):
        history = History([*first, *bind_fails(3.0, "new", LISTEN)])
        assert [cause.id for cause in causes(history)] == ["bind-listener"]


def test_a_look_that_can_not_be_read_tells_nothing() -> None:
    events = [*bind_fails(3.0, "new", "LISTEN what?"), look(4.0, "?", TcpExtListenOverflows=1)]
    assert ids(told(events)) == []
