"""Why things went as they did."""

from __future__ import annotations

from typing import Any

import pytest

from labctl.judge.explain import explain
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
