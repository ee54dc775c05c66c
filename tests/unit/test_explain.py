"""Why things went as they did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from labctl.judge.explain import blockers, counted, explain
from labctl.probes.sockets import parse_ss
from labctl.record.events import (
    CallEvent,
    CountersEvent,
    Event,
    ProcessEvent,
    SocketsEvent,
)
from labctl.record.history import History
from tests.fake import HEADER, FakeBackend, tcp
from tests.played import (
    CLIENT,
    ESTAB,
    FIN_WAIT_2,
    SERVER,
    Play,
)


def test_what_the_kernel_counted_is_explained() -> None:
    counter = "TcpExtTCPAbortOnClose"
    events = [
        CountersEvent(0.0, "server", {counter: 3}),
        SocketsEvent(0.1, "server", "change", f"{HEADER}\n{FIN_WAIT_2}", {counter: 5}),
        SocketsEvent(0.1, "client", "change", HEADER),
    ]
    assert explain(History(events)) == [
        "server closed first: seen in FIN-WAIT-2",
        f"server closed with data that nobody had read, and so by an RST ({counter}: 2)",
    ]


def test_a_bind_that_fails_is_explained(watch: Play) -> None:
    def fail(lab: FakeBackend) -> None:
        lab.sockets(
            "server", ESTAB, tcp("TIME-WAIT", SERVER, CLIENT, more="timer:(timewait,59sec,0)")
        )
        lab.call("server", "bind :8000", errno="EADDRINUSE", error="Address already in use")
        lab.exit("server", 98)

    fake = FakeBackend({"start server": fail})
    found = watch("- start: server\n- wait: {process: {server: EADDRINUSE}}\n", fake)
    assert found.result == "pass"
    assert found.verdicts[0].actual.startswith(
        "bind :8000: EADDRINUSE (98 on Linux, 48 on macOS and the BSDs) after"
    )
    assert found.why == (
        "server: bind :8000 failed with EADDRINUSE (98 on Linux, 48 on macOS and the BSDs): "
        "blocked by ESTAB 198.18.0.2:8000 -> 198.18.0.3:40000; "
        "TIME-WAIT 198.18.0.2:8000 -> 198.18.0.3:40000, timewait timer 59.0 s left; "
        "SO_REUSEADDR on both, old and new, would let it bind",
        "server closed first: seen in TIME-WAIT",
    )


@pytest.mark.parametrize(
    ("other", "bound", "ended", "told"),
    [
        ("server", "0.0.0.0:8000", False, True), ("client", "0.0.0.0:8000", False, False),
        ("server", "0.0.0.0:8001", False, False), ("server", "0.0.0.0:8000", True, False),
        ("server", "127.0.0.1:8000", False, True), ("server", "0.0.0.0:8000", None, False),
    ],
)  # fmt: skip
def test_what_ss_does_not_list_is_told_by_its_call(
    other: str, bound: str, ended: bool | None, told: bool
) -> None:
    failed: dict[str, Any] = {"errno": "EADDRINUSE", "error": "Address already in use"}
    events = [
        ProcessEvent(0.0, "other", other, "start", pid=2),
        CallEvent(0.1, "other", other, 2, "done", "bind :8000", "bind", local=bound),
        *([ProcessEvent(0.1, "other", other, "exit", pid=2, exit=0)] if ended else []),
        *([CallEvent(0.1, "other", other, 2, "done", "close", "close")] if ended is None else []),
        ProcessEvent(0.2, "server", "server", "start", pid=3),
        CallEvent(0.2, "server", "server", 3, "done", "bind :8000", "bind", **failed),
        SocketsEvent(0.3, "server", "look", HEADER, caption="bind :8000"),
    ]
    sentence = (
        "server: bind :8000 failed with EADDRINUSE (98 on Linux, 48 on macOS and the BSDs): "
        "blocked, it seems, by other: bind :8000; a socket that is bound and does not listen is "
        "listed by ss since iproute2 6.15 alone"
    )
    assert explain(History(events)) == ([sentence] if told else [])


def seemingly(*calls: CallEvent, process: str = "other") -> bool:
    """Whether these calls, or their process, are told as what blocks a bind to 10.0.0.1:80."""
    failed = CallEvent(0.5, "b", "b", 3, "done", "bind 10.0.0.1:80", "bind", errno="EADDRINUSE")
    events = [
        ProcessEvent(0.0, process, "b", "start", pid=2), *calls, failed,
        SocketsEvent(0.6, "b", "look", HEADER, caption="bind 10.0.0.1:80"),
    ]  # fmt: skip
    return any("blocked, it seems, by " in why for why in explain(History(events)))


@pytest.mark.parametrize(
    ("name", "local", "errno", "process", "told"),
    [
        ("bind", "10.0.0.1:80", None, "other", True),
        ("bind", "0.0.0.0:80", None, "other", True),
        ("bind", "10.0.0.9:80", None, "other", False),
        ("bind", "10.0.0.1:81", None, "other", False),
        ("bind", "10.0.0.1:80", "EACCES", "other", False),
        ("bind", None, None, "other", False),
        ("connect", "10.0.0.1:80", None, "other", False),
        ("bind", "10.0.0.1:80", None, "b", False),  # its own
    ],
)
def test_what_blocks_unseen_has_bound_that_address(
    name: str, local: str | None, errno: str | None, process: str, told: bool
) -> None:
    call = CallEvent(0.1, process, "b", 2, "done", name, name, local=local, errno=errno)
    assert seemingly(call, process=process) == told


@pytest.mark.parametrize("bind", ['bind ":8000"', "bind server:8000 || continue", "bind [::]:8000"])
def test_binds_of_every_spelling_are_explained(watch: Play, bind: str) -> None:
    fake = FakeBackend(
        {
            "start server": lambda lab: (
                lab.sockets("server", ESTAB), lab.call("server", bind, errno="EADDRINUSE")
            ),
            "look server": lambda lab: None,
        }
    )  # fmt: skip
    steps = "- start: server\n- wait: {process: {server: {call: {bind: EADDRINUSE}}}}\n"
    found = watch(f"{steps}- snapshot: after\n", fake)
    assert [why.count("blocked by ESTAB 198.18.0.2:8000") for why in found.why] == [1]


def test_binds_that_fail_at_the_same_time_are_both_explained() -> None:
    def failed(host: str) -> Event:
        return CallEvent(1.0, host, host, 2, "done", "bind :80", "bind", errno="EADDRINUSE")

    def look(host: str, peer: str, caption: str | None = "bind :80") -> Event:
        text = f"{HEADER}\n{tcp('ESTAB', '10.0.0.1:80', peer)}"
        return SocketsEvent(2.0, host, "look", text, {}, caption)

    events = [failed("a"), failed("b"), look("b", "10.0.0.4:1", None), look("a", "10.0.0.2:1"),
              look("b", "10.0.0.3:1"), look("a", "10.0.0.5:1")]  # fmt: skip
    assert [why.split(" blocked by ")[1].split(";")[0] for why in explain(History(events))] == [
        "ESTAB 10.0.0.1:80 -> 10.0.0.2:1", "ESTAB 10.0.0.1:80 -> 10.0.0.3:1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("address", "local", "blocks"),
    [
        (":8000", "10.0.0.1:8000", True),
        (":8000", "10.0.0.1:8001", False),
        ("10.0.0.1:8000", ":8000", True),
        ("10.0.0.1:8000", "10.0.0.1:8000", True),
        ("10.0.0.1:8000", "10.0.0.2:8000", False),
        ("10.0.0.1:8000", "[::ffff:10.0.0.1]:8000", True),
        ("[::ffff:10.0.0.1]:8000", "10.0.0.1:8000", True),
        ("[fd00::1]:8000", "[fd00::1]:8000", True),
        ("[fd00::1]:8000", "[fd00::2]:8000", False),
        ("[fd00:0::1]:8000", "[fd00::1]:8000", True),
        ("0.0.0.0:8000", "10.0.0.2:8000", True),
    ],
)
def test_what_can_stop_a_bind_has_its_port_and_its_address(
    address: str, local: str, blocks: bool
) -> None:
    sockets = parse_ss(f"{HEADER}\n{tcp('LISTEN', local)}\n")
    assert bool(blockers(address, sockets)) == blocks


def blocked(
    *lines: str, call: str = "bind :80", local: str | None = None, before: Sequence[Event] = ()
) -> str:
    """Why a call was blocked on a host with these sockets."""
    name = call.split(maxsplit=1)[0]
    failed = CallEvent(1.0, "b", "b", 2, "done", call, name, local=local, errno="EADDRINUSE")
    look = SocketsEvent(2.0, "b", "look", "\n".join([HEADER, *lines]), {}, call)
    found = [why for why in explain(History([*before, failed, look])) if why.startswith("b: ")]
    return found[0].partition(" blocked by ")[2] if found else ""


def test_a_listener_blocks_whoever_does_not_share_its_port() -> None:
    cure = "SO_REUSEPORT on both, old and new, of one user, would let it bind"
    assert blocked(tcp("LISTEN", ":80", recv_q=1, send_q=5)) == f"LISTEN 0.0.0.0:80; {cure}"
    both = blocked(tcp("LISTEN", ":80"), tcp("ESTAB", "10.0.0.1:80", "10.0.0.2:1"))
    assert both == f"LISTEN 0.0.0.0:80; ESTAB 10.0.0.1:80 -> 10.0.0.2:1; {cure}"


@pytest.mark.parametrize(("count", "more"), [(3, ""), (4, " and 1 more"), (6, " and 3 more")])
def test_of_many_that_block_three_are_named(count: int, more: str) -> None:
    found = blocked(*(tcp("ESTAB", "10.0.0.1:80", f"10.0.0.2:{n}") for n in range(1, count + 1)))
    assert found.count("ESTAB") == 3
    assert found.split("; ")[2] == f"ESTAB 10.0.0.1:80 -> 10.0.0.2:3{more}"


def test_a_listen_is_blocked_where_its_socket_is() -> None:
    listener = tcp("LISTEN", "10.0.0.1:80")
    rows: list[tuple[str | None, bool]] = [
        ("10.0.0.1:80", True),
        ("10.0.0.1:81", False),
        (None, False),
    ]
    for local, blocks in rows:
        assert bool(blocked(listener, call="listen 5", local=local)) == blocks


@pytest.mark.parametrize(
    ("host", "call", "left", "seems"),
    [
        ("b", "bind :80", True, ""),
        ("b", "bind 10.0.0.1:80", True, ""),
        ("b", None, True, ", it seems,"),  # a program: nobody sees its calls
        ("a", "bind :80", True, None),
        ("b", "bind :81", True, None),
        ("b", "bind 10.0.0.9:80", True, None),
        ("b", "bind :80", False, None),
        ("b", "listen 5", True, None),
    ],
)
def test_a_child_may_have_a_socket_of_its_main_process(
    host: str, call: str | None, left: bool, seems: str | None
) -> None:
    local = call and call.split()[1].replace(":8", "0.0.0.0:8" if " :" in call else ":8")
    calls = (
        [CallEvent(0.2, "old", host, 2, "done", call, call.split()[0], local=local)] if call else []
    )
    for ended, how in (
        ({"exit": 3}, "ended with 3"),
        ({"signal": "KILL"}, "was killed by SIGKILL"),
    ):
        events = [
            ProcessEvent(0.1, "old", host, "start", pid=2), *calls,
            ProcessEvent(0.3, "old", host, "exit", pid=2, left=left, **ended),
        ]  # fmt: skip
        found = blocked(tcp("LISTEN", "10.0.0.1:80"), before=events, call="bind 10.0.0.1:80")
        assert ("; a child of old" in found) == (seems is not None)
        if seems is not None:
            told = f"a child of old{seems} has it open since its main process {how}: end the child"
            assert told in found
        closed = blocked(tcp("TIME-WAIT", "10.0.0.1:80", "10.0.0.2:1"), before=events)
        assert "a child" not in closed  # what no process has open


def test_a_bind_that_failed_gives_a_child_nothing() -> None:
    failed = CallEvent(0.2, "old", "b", 2, "done", "bind :80", "bind", local="0.0.0.0:80",
                       errno="EACCES")  # fmt: skip
    events = [ProcessEvent(0.1, "old", "b", "start", pid=2), failed,
              ProcessEvent(0.3, "old", "b", "exit", pid=2, exit=1, left=True)]  # fmt: skip
    assert "a child" not in blocked(tcp("LISTEN", "10.0.0.1:80"), before=events)


def test_the_first_of_several_states_in_time_says_who_closed_first() -> None:
    def look(t: float, host: str, state: str) -> Event:
        ends = ("10.0.0.1:80", "10.0.0.2:1")
        return SocketsEvent(t, host, "change", f"{HEADER}\n{tcp(state, *ends)}")

    events = [
        look(1.0, "a", "FIN-WAIT-1"), look(1.1, "b", "CLOSE-WAIT"), look(1.2, "b", "LAST-ACK"),
        look(1.3, "a", "TIME-WAIT"),
    ]  # fmt: skip
    assert explain(History(events)) == [
        "a closed first: seen in FIN-WAIT-1, TIME-WAIT; b in CLOSE-WAIT, LAST-ACK"
    ]
    assert explain(History(events[1:2])) == []


def test_both_ends_may_close_at_once() -> None:
    ends = ("10.0.0.1:80", "10.0.0.2:1")
    events = [
        SocketsEvent(t, host, "change", f"{HEADER}\n{tcp(state, *ends)}")
        for t, host, state in ((1.0, "b", "FIN-WAIT-1"), (1.1, "a", "FIN-WAIT-1"),
                               (1.2, "b", "CLOSE-WAIT"))
    ]  # fmt: skip
    assert explain(History(events)) == ["b closed first: seen in FIN-WAIT-1"]


def test_only_what_grew_is_counted() -> None:
    events = [
        CountersEvent(0.0, host, {"TcpRetransSegs": 3, "TcpExtTCPAbortOnClose": 1, "Other": 1})
        for host in ("a", "b")
    ]
    now = {"TcpRetransSegs": 4, "TcpExtTCPAbortOnClose": 1, "Other": 9}
    looks = [SocketsEvent(0.1, "a", "change", HEADER, now),
             SocketsEvent(0.1, "b", "change", HEADER, {"TcpRetransSegs": 3})]  # fmt: skip
    assert counted(History([*events, *looks])) == {"a": {"TcpRetransSegs": 1}}
