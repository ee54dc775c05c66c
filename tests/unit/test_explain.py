"""Why things went as they did, in sentences."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from labctl.judge.causes.cause import Cause
from labctl.judge.check import Verdict
from labctl.judge.explain import COUNTED, beside, counted, first_reason, foremost, sentences
from labctl.language.facts import Facts
from labctl.record.events import CountersEvent, FateEvent, ProcessEvent, SocketsEvent
from labctl.record.history import History
from labctl.reports.terminal import print_causes
from tests.fake import HEADER, FakeBackend, tcp
from tests.played import CLIENT, ESTAB, SERVER, Play


def grown(**counters: int) -> History:
    """The server's counters have grown by so much."""
    return History([
        CountersEvent(0.0, "server", dict.fromkeys(COUNTED, 3)),
        SocketsEvent(0.1, "server", "change", HEADER, {c: 3 + by for c, by in counters.items()}),
        SocketsEvent(0.1, "client", "change", HEADER),
    ])  # fmt: skip


@pytest.mark.parametrize("counter", COUNTED)
def test_what_the_kernel_counted_is_explained(counter: str) -> None:
    history = grown(**{counter: 2})
    assert beside(history, []) == [f"server {COUNTED[counter]} ({counter}: 2)"]
    assert counted(history) == {"server": {counter: 2}}
    assert beside(grown(), []) == []


def test_the_kernel_says_of_which_connections_segments_were_sent_again() -> None:
    history = grown(TcpRetransSegs=2)
    words = COUNTED["TcpRetransSegs"]
    history.add(FateEvent(0.2, "server", SERVER, CLIENT, "discard", "TCP_OLD_DATA"))
    assert beside(history, []) == [f"server {words} (TcpRetransSegs: 2)"]
    history.add(FateEvent(0.2, "server", SERVER, CLIENT, "retransmit"))
    assert beside(history, []) == [f"server {words}, of {SERVER} -> {CLIENT} (TcpRetransSegs: 2)"]
    history.add(FateEvent(0.3, "server", SERVER, f"{CLIENT}1", "retransmit", "EPERM"))
    assert beside(history, []) == [
        f"server {words}, of 2 connections, which failed by EPERM (TcpRetransSegs: 2)"
    ]


def test_what_was_sent_again_is_told_of_this_host_and_this_counter() -> None:
    history = grown(TcpRetransSegs=2, TcpExtTWRecycled=1)
    again = [FateEvent(0.2, host, SERVER, f"{CLIENT}{n}", "retransmit")
             for n, host in enumerate(("server", "client"))]  # fmt: skip
    for event in again:
        history.add(event)
    assert sorted(text.partition(", of ")[2] for text in beside(history, [])) == [
        "", f"{SERVER} -> {CLIENT}0 (TcpRetransSegs: 2)"
    ]  # fmt: skip


def test_a_cause_is_its_text_and_its_cure() -> None:
    found = [
        Cause("reset-crafted", "server", 1.0, "a step sent it"),
        Cause("bind-listener", "server", 2.0, "it is taken", "stop it"),
    ]
    assert sentences(found, ["and so", "and so"]) == [
        "a step sent it", "it is taken; stop it", "and so",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "name", "told"),
    [
        ("server", "reset-unread", False), ("client", "reset-unread", True),
        ("server", "reset-linger", True),
    ],
)  # fmt: skip
def test_a_counter_of_which_a_cause_speaks_is_not_told_again(
    host: str, name: str, told: bool
) -> None:
    found = beside(grown(TcpExtTCPAbortOnClose=1), [Cause(name, host, 1.0, "why")])
    assert (found != []) is told


STATES = Verdict(
    "pass", "", "", "", 1.0, "", subject="server", wanted=Facts(sockets={"FIN-WAIT-2": 1})
)
FAILS = Verdict("pass", "", "", "", 1.0, "", subject="new", measured=Facts(errno="EADDRINUSE"))
CAUSES = [
    Cause("closed-first", "server", 1.0, "who"), Cause("reset-unread", "client", 1.0, "data"),
    Cause("fin-wait-2-held", "server", 2.0, "held"),
    Cause("bind-listener", "server", 3.0, "taken", "stop it"),
    Cause("bind-other", "server", 3.0, "taken", "wait", f"{SERVER} -> {CLIENT}"),
]  # fmt: skip
ABOUT_SERVER = Verdict("pass", "", "", "", 1.0, "", subject="x", about=("server",))


@pytest.mark.parametrize(
    ("verdicts", "first"),
    [
        ([], "reset-unread"), ([STATES], "fin-wait-2-held"), ([FAILS], "bind-listener"),
        ([replace(STATES, result="fail"), FAILS], "fin-wait-2-held"),
        ([STATES, replace(FAILS, result="fail")], "bind-listener"),
        ([replace(STATES, subject="client")], "reset-unread"),
        ([ABOUT_SERVER], "fin-wait-2-held"),  # and not what is about another host
        ([replace(ABOUT_SERVER, wanted=Facts(states=("LISTEN",)))], "bind-listener"),
        ([replace(ABOUT_SERVER, wanted=Facts(states=("ESTAB",)))], "fin-wait-2-held"),
        ([replace(ABOUT_SERVER, measured=Facts(states=("LISTEN",)))], "fin-wait-2-held"),
        ([replace(ABOUT_SERVER, measured=Facts(calls={"bind": "EADDRINUSE"}))], "bind-listener"),
        ([replace(ABOUT_SERVER, measured=Facts(connections=((SERVER, CLIENT),)))], "bind-other"),
        ([replace(ABOUT_SERVER, measured=Facts(connections=((CLIENT, SERVER),)))],
         "fin-wait-2-held"),
    ],
)  # fmt: skip
def test_what_matters_for_the_verdicts_comes_first(verdicts: list[Verdict], first: str) -> None:
    history = History([ProcessEvent(0.1, "new", "server", "start", pid=2)])
    found = foremost(CAUSES, verdicts, history)
    assert found[0][1].id == first
    assert sorted(found) == [*enumerate(CAUSES, 1)]
    assert foremost(CAUSES, [], history)[-1][1].id == "closed-first"


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        (FAILS, []),  # it holds
        (replace(FAILS, result="fail"), ["Why: taken", "do: stop it"]),
        (replace(FAILS, result="unknown"), []),
        (replace(STATES, result="fail"), []),  # what is known of that has no cure
        (replace(ABOUT_SERVER, result="fail"), []),
        (replace(ABOUT_SERVER, result="fail", measured=Facts(connections=((SERVER, CLIENT),))),
         ["Why: taken", "do: wait"]),
    ],
)  # fmt: skip
def test_the_first_reason_of_a_claim_that_failed(verdict: Verdict, why: list[str]) -> None:
    history = History([ProcessEvent(0.1, "new", "server", "start", pid=2)])
    assert first_reason(verdict, CAUSES, history) == why


def test_a_run_explains_the_bind_that_failed(watch: Play) -> None:
    def fail(lab: FakeBackend) -> None:
        lab.sockets(
            "server", ESTAB, tcp("TIME-WAIT", SERVER, CLIENT, more="timer:(timewait,59sec,0)")
        )
        lab.call("server", "socket")
        lab.call("server", "bind :8000", errno="EADDRINUSE", error="Address already in use")
        lab.exit("server", 98)

    fake = FakeBackend({"start server": fail})
    found = watch("- start: server\n- wait: {process: {server: EADDRINUSE}}\n", fake)
    assert found.result == "pass"
    assert found.verdicts[0].actual.startswith(
        "bind :8000: EADDRINUSE (98 on Linux, 48 on macOS and the BSDs) after"
    )
    (why,) = [text for text in found.why if text.startswith("server: bind")]
    assert why == (
        "server: bind :8000 failed with EADDRINUSE (98 on Linux, 48 on macOS and the BSDs): "
        "blocked by ESTAB 198.18.0.2:8000 -> 198.18.0.3:40000; the new one had no SO_REUSEADDR; "
        "also by TIME-WAIT 198.18.0.2:8000 -> 198.18.0.3:40000, timewait timer 59.0 s left; "
        "set SO_REUSEADDR before bind, on the server that made the old connection too"
    )


def test_of_causes_alike_three_are_printed() -> None:
    """Alike are those of one kind at one host that have one cure, on the same grounds."""
    refusals = [Cause("connect-refused", "server", float(n), f"refused {n}") for n in range(5)]
    others = [replace(refusals[0], host="client"), replace(refusals[0], cure="another")]
    out = Console(file=StringIO(), width=100)
    print_causes([("a run", [*refusals, *others])], out)
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert sum("refused " in line and line.startswith("    ") for line in lines) == 5
    assert [line for line in lines if "alike" in line] == [
        "  2 more connect-refused alike, server (labctl explain --format json)"
    ]
    assert any("do: another" in line for line in lines)
