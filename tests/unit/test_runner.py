"""Running and judging, over a fake backend. `play` checks what holds of every run: see fake.py."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from labctl.ground.errors import UsageError
from labctl.ground.resources import default_folder
from labctl.judge.check import check, overall
from labctl.judge.explain import explain
from labctl.judge.recorded import load
from labctl.judge.result import document
from labctl.lab.lab import SETTLING, Lab
from labctl.language.predicates.held import held_at
from labctl.record.events import (
    CallEvent,
    CountersEvent,
    Event,
    ExecEvent,
    ProcessEvent,
    SocketsEvent,
    StepEvent,
)
from labctl.record.history import History
from labctl.record.store import new_folder
from labctl.run.runner import Silent
from tests.fake import HEADER, FakeBackend, play, scenario, tcp
from tests.played import (
    CLIENT,
    ESTAB,
    FIN_WAIT_2,
    LISTEN,
    RESOLVER,
    SERVER,
    Play,
    lesson,
    outcomes,
    told,
)

RUN = Path(__file__).parent / "data" / "run"


# Waiting


def test_a_wait_that_holds(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN, RESOLVER)})
    found = watch("- start: server\n- wait: {sockets: {server: LISTEN}}\n", fake)
    assert (found.result, found.reason) == ("pass", None)
    (verdict,) = found.verdicts
    assert (verdict.what, verdict.expected) == ("server: LISTEN", "LISTEN within 5 s")
    assert verdict.actual.startswith("LISTEN after 0.")
    assert verdict.source == "lesson.yaml:8"
    assert verdict.evidence == ("LISTEN 0.0.0.0:8000",)
    assert outcomes(found) == ["done", "held"]


def test_a_wait_for_what_comes_later(watch: Play) -> None:
    fake = FakeBackend({"look server": [lambda lab: lab.sockets("server", LISTEN)]})
    found = watch("- wait: {sockets: {server: LISTEN}}\n", fake)
    assert told(found) == [("server: LISTEN", "pass")]


@pytest.mark.parametrize(
    ("later", "within", "result"),
    [
        (5.0, "4.5s..7s", "pass"), (4.4, "4.5s..7s", "fail"), (7.1, "4.5s..7s", "fail"),
        (5.0, "4s", "fail"), (3.9, "4s", "pass"), (0.0, "10ms..1s", "fail"),
    ],
)  # fmt: skip
def test_a_wait_measures_when_it_became_true(
    watch: Play, later: float, within: str, result: str
) -> None:
    """What happened counts, by the lab's clock, and not when labctl learned of it."""
    fake = FakeBackend(
        {"kill server": lambda lab: (lab.sockets("server", FIN_WAIT_2),
                                     lab.sockets("server", later=later))}
    )  # fmt: skip
    found = watch(
        "- start: server\n- kill: server\n  as: killed\n"
        f"- wait: {{sockets: {{server: none}}}}\n  since: killed\n  within: {within}\n"
        "- note: after\n",
        fake,
    )
    (verdict,) = found.verdicts
    assert verdict.result == found.result == result
    assert verdict.expected.endswith(" of killed")
    seconds = float(verdict.actual.split(" after ")[1].split()[0])
    assert later - 0.5 < seconds <= later + 0.05
    assert outcomes(found) == ["done", "done", "held", "done"]


def test_a_wait_that_comes_late_still_measures(watch: Play) -> None:
    fake = FakeBackend({"kill server": lambda lab: lab.sockets("server", later=0.1)})
    found = watch(
        "- start: server\n- kill: server\n  as: killed\n- sleep: 300ms\n"
        "- wait: {sockets: {server: none}}\n  since: killed\n  within: 200ms\n",
        fake,
    )
    (verdict,) = found.verdicts
    assert verdict.result == "pass"
    assert verdict.at > 0.3


def test_a_wait_for_what_never_comes_ends_the_steps(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN, FIN_WAIT_2)})
    found = watch(
        "- start: server\n- wait: {sockets: {server: none, client: none}}\n  within: 30ms\n"
        "- start: client\n",
        fake,
        "expect:\n- process: {client: running}\n",
    )
    assert found.result == "fail"
    assert outcomes(found) == ["done", "timeout"]
    assert "start client" not in fake.log
    first, second, last = found.verdicts
    assert (first.result, first.expected) == ("fail", "no connection within 0.03 s")
    assert first.actual.startswith("LISTEN, FIN-WAIT-2 until 0.")
    assert first.evidence[1] == (
        "FIN-WAIT-2 198.18.0.2:8000 -> 198.18.0.3:40000, timewait timer 4.5 s left"
    )
    assert (second.result, second.actual) == ("pass", "no sockets")
    assert (last.result, last.actual) == ("fail", "never started")


def test_a_wait_looks_once_more_at_its_end(watch: Play) -> None:
    """An agent that noticed nothing does not make a wait fail."""
    fake = FakeBackend(
        {"look server": [lambda lab: setattr(lab._hosts["server"], "lines", (LISTEN,))]}
    )
    found = watch("- wait: {sockets: {server: LISTEN}}\n  within: 20ms\n", fake)
    assert found.result in ("pass", "fail")  # held, though perhaps a moment too late
    assert outcomes(found) == ["held"]


def test_a_wait_of_several_subjects(watch: Play) -> None:
    fake = FakeBackend(
        {
            "start server": lambda lab: lab.sockets("server", LISTEN),
            "look server": [lambda lab: (lab.sockets("server", ESTAB),
                                         lab.call("server", "socket", errno="EMFILE"),
                                         lab.exit("server", 24),
                                         lab.count("client", TcpActiveOpens=2))],
        }
    )  # fmt: skip
    found = watch(
        "- start: server\n"
        "- wait:\n"
        "    sockets: {server: ESTAB}\n"
        "    process: {server: EMFILE}\n"
        "    counters: {client: {TcpActiveOpens: 2}}\n",
        fake,
    )
    assert told(found) == [
        ("server: ESTAB", "pass"), ("server: EMFILE", "pass"),
        ("client: TcpActiveOpens grew by 2", "pass"),
    ]  # fmt: skip


def test_news_from_before_the_wait(watch: Play) -> None:
    """What a process did while its start was awaited is older than the wait for it."""
    fake = FakeBackend({"start client": lambda lab: lab.exit("client", 3, later=-0.001)})
    found = watch("- start: client\n- wait: {process: {client: {exit: 3}}}\n", fake)
    assert told(found) == [("client: exit 3", "pass")]
    ends = [e for e in found.history.events if isinstance(e, StepEvent)]
    assert [e.t for e in ends] == sorted(e.t for e in ends)


def looks(*moments: tuple[float, str]) -> list[Event]:
    """What `ss` on a server said, and when."""
    return [SocketsEvent(t, "server", "change", line) for t, line in moments]


@pytest.mark.parametrize(
    ("moments", "start", "since"),
    [
        ([(1.0, LISTEN)], 0.0, 1.0),
        ([(1.0, ""), (2.0, LISTEN), (3.0, LISTEN)], 0.0, 2.0),
        ([(1.0, LISTEN), (2.0, ""), (3.0, LISTEN)], 0.0, 3.0),
        ([(1.0, LISTEN), (2.0, LISTEN)], 1.5, 2.0),
        ([(1.0, LISTEN), (2.0, "")], 0.0, 1.0),  # it did hold
        ([(1.0, LISTEN)], 1.5, None),
        ([], 0.0, None),
        ([(1.0, ""), (0.9, LISTEN), (4.0, LISTEN)], 1.0, 1.0),  # news that was under way
    ],
)
def test_held_since(moments: list[tuple[float, str]], start: float, since: float | None) -> None:
    claim = scenario(lesson("- wait: {sockets: {server: LISTEN}}\n")).steps[0].claim
    assert claim
    held = held_at(claim, History(looks(*moments)), start, start)
    assert (held and held.latest) == since


@pytest.mark.parametrize(
    "step", ["process: {server: ok}", "sockets: {server: LISTEN}", "counters: {server: {X: 1}}"]
)
def test_a_wait_heeds_all_that_may_change_it(step: str) -> None:
    """What it does not heed leaves what is found as it is."""
    claim = scenario(lesson(f"- wait: {{{step}}}\n")).steps[0].claim
    assert claim
    run = load(RUN).history
    history = History(captures=run.captures)
    before: object = None
    heeded = 0
    for event in run.events:
        history.add(event)
        found = claim.judge(history)
        assert claim.heeds(event) or found == before or before is None, event
        heeded += claim.heeds(event)
        before = found
    assert 0 < heeded < len(run.events)


# Expecting


def test_an_expectation_that_fails_goes_on(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN, ESTAB)})
    found = watch(
        "- start: server\n- expect: {sockets: {server: none}}\n- note: still here\n", fake
    )
    assert told(found) == [("server: no connection", "fail")]
    assert found.verdicts[0].actual == "LISTEN, ESTAB"
    assert outcomes(found) == ["done", "done", "done"]
    assert found.lab_seconds >= SETTLING


def test_an_expectation_waits_for_what_is_in_flight(watch: Play) -> None:
    def soon(lab: FakeBackend) -> None:
        threading.Timer(0.01, lab.sockets, ("server", FIN_WAIT_2)).start()

    fake = FakeBackend({"look server": [soon]})
    found = watch("- expect: {sockets: {server: FIN-WAIT-2}}\n", fake)
    assert found.result == "pass"
    assert found.lab_seconds > 0.01


def test_final_expectations_see_the_whole_history(watch: Play) -> None:
    fake = FakeBackend(
        {
            "start client": lambda lab: (lab.output("client", "one\ntwo\n"), lab.exit("client")),
            "look client": [lambda lab: lab.count("client", TcpActiveOpens=3)],
        }
    )
    more = """\
expect:
- process: {client: {output: "^two$", exit: 0}}
- counters: {client: {TcpActiveOpens: ">=3", TcpExtTCPAbortOnClose: 0, TcpExtNoSuch: 0}}
"""
    found = watch("- start: client\n- wait: {process: {client: ok}}\n", fake, more)
    assert [(v.what, v.result, v.actual) for v in found.verdicts[1:]] == [
        ("client: exit 0, output '^two$'", "pass", "exit 0, output 'two'"),
        ("client: TcpActiveOpens grew by >=3", "pass", "3"),
        ("client: TcpExtTCPAbortOnClose grew by 0", "pass", "0"),
        ("client: TcpExtNoSuch grew by 0", "unknown", "this kernel has no counter TcpExtNoSuch"),
    ]
    assert found.result == "unknown"
    assert found.verdicts[1].source == "lesson.yaml:6"


# Steps


def test_every_kind_of_step(watch: Play) -> None:
    fake = FakeBackend(
        {
            "start server": lambda lab: lab.call("server", "await", done=False),
            "call server close || continue": lambda lab: lab.call("server", "close", errno="EBADF"),
            "call server shutdown wr": lambda lab: lab.call("server", "shutdown wr"),
            "signal server TERM": [lambda lab: None, lambda lab: lab.killed("server", "TERM")],
        },
        outputs={"ip -br a": "lo UP\n"},
    )
    found = watch(
        """\
- start: server
- pause: server
- resume: server
- call: {server: "close || continue; shutdown wr"}
- exec: {server: "ip -br a"}
- exec: {client: "false"}
  status: any
- sysctl: {client: {net.ipv4.tcp_fin_timeout: 3, net.core.somaxconn: 5}}
- signal: {server: TERM}
- snapshot: half way
- restart: server
- stop: server
- stop: server
- kill: client
- sleep: 1ms
- note: the end
""",
        fake,
    )
    assert (found.result, found.verdicts) == ("pass", ())
    assert outcomes(found) == ["done"] * 15
    assert [word for word in fake.log if not word.startswith(("setup", "clock"))] == [
        "up", "prepare server", "start server", "freeze server", "thaw server",
        "call server close || continue", "call server shutdown wr",
        "exec server ip -br a", "exec client false",
        "sysctl client net.ipv4.tcp_fin_timeout net.core.somaxconn", "signal server TERM",
        "look server", "look client", "kill server", "prepare server", "start server",
        "signal server TERM",
        "kill server", "look server", "look client", "flush server", "flush client", "down",
    ]  # fmt: skip
    executed = [e for e in found.history.events if isinstance(e, ExecEvent)]
    assert [(e.host, e.exit, e.output) for e in executed] == [
        ("server", 0, "lo UP\n"), ("client", 127, "not found\n")
    ]  # fmt: skip
    texts = (found.folder / "server.ss").read_text()
    assert "half way\nState Recv-Q" in texts


def test_steps_for_other_places_are_left_out(watch: Play) -> None:
    found = watch(
        """\
- wait: {sockets: {server: ESTAB}}
  when: {kernel: ">=6.14"}
- expect: {process: {client: ok}}
  when: {backend: docker}
- start: client
  when: {kernel: "<6.14"}
""",
        FakeBackend(kernel="6.1.0-13-amd64"),
    )
    assert [(v.result, v.actual) for v in found.verdicts] == [
        ("skip", "kernel 6.1.0-13-amd64 is not >=6.14"), ("skip", "backend fake is not docker")
    ]  # fmt: skip
    assert outcomes(found) == ["skipped", "skipped", "done"]
    assert found.result == "skip"


@pytest.mark.parametrize(
    ("steps", "what", "expected", "actual"),
    [
        ("- start: server\n- start: server\n", "start server", "server not running",
         "it runs already; use restart"),
        ("- call: {client: close}\n", "call client: close", "client running, in await",
         "it was never started"),
        ("- start: client\n- call: {client: close}\n", "call client: close",
         "client running, in await", "it runs, but not in await"),
        ("- signal: {client: TERM}\n", "signal client: TERM", "client running",
         "it was never started"),
    ],
)  # fmt: skip
def test_steps_that_assume_what_is_not_so(
    watch: Play, steps: str, what: str, expected: str, actual: str
) -> None:
    found = watch(f"{steps}- note: not reached\n")
    assert found.result == "fail"
    (verdict,) = found.verdicts
    assert (verdict.what, verdict.expected, verdict.actual) == (what, expected, actual)
    assert outcomes(found)[-1] == "failed"
    assert len(outcomes(found)) == steps.count("\n")


def test_signals_to_what_has_ended(watch: Play) -> None:
    fake = FakeBackend({"start client": lambda lab: lab.exit("client", 4)})
    found = watch(
        "- start: client\n- wait: {process: {client: exited}}\n- signal: {client: HUP}\n", fake
    )
    assert found.verdicts[-1].actual == "it ended with 4"


def test_labels_name_the_moment_when_a_step_begins_to_act(watch: Play) -> None:
    found = watch("- sleep: 20ms\n  as: slept\n- note: a\n  as: noted\n")
    labels = found.history.labels
    assert list(labels) == ["slept", "noted"]
    assert labels["slept"] + 0.02 <= labels["noted"]


def test_the_label_of_a_call_names_when_it_was_asked_for(watch: Play) -> None:
    """Whatever it takes, and whether it blocks or not."""

    def slowly(lab: FakeBackend) -> None:
        lab.call("server", "shutdown wr")
        time.sleep(0.2)

    fake = FakeBackend(
        {
            "start server": lambda lab: lab.call("server", "await", done=False),
            "call server shutdown wr": slowly,
            "call server accept": lambda lab: lab.call("server", "accept", done=False),
        }
    )
    found = watch(
        "- start: server\n- wait: {process: {server: running}}\n"
        "- call: {server: shutdown wr}\n  as: shut\n- call: {server: accept}\n  as: left\n",
        fake,
    )
    events = found.history.events
    calls = [e for e in events if isinstance(e, CallEvent) and e.phase == "enter"]
    labels = found.history.labels
    assert [call.name for call in calls] == ["await", "shutdown", "accept"]
    assert calls[0].t <= labels["shut"] <= calls[1].t <= labels["left"] <= calls[2].t


def test_a_process_that_is_started_again_is_a_new_one(watch: Play) -> None:
    fake = FakeBackend(
        {
            "start server": [
                lambda lab: (lab.call("server", "bind :8000"), lab.output("server", "first")),
                lambda lab: lab.call("server", "accept", done=False),
            ],
            "kill server": [lambda lab: None],
        }
    )
    found = watch(
        "- start: server\n- wait: {process: {server: {call: {bind: ok}}}}\n- restart: server\n"
        "- wait: {process: {server: running}}\n",
        fake,
        "expect:\n- process: {server: {call: {bind: ok}}}\n",
    )
    assert [(v.result, v.actual.split(" after")[0]) for v in found.verdicts] == [
        ("pass", "bind: ok"), ("pass", "running, in accept"), ("fail", "bind: not done")
    ]  # fmt: skip


def test_a_process_that_is_gone_without_a_word(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.gone("server")})
    found = watch("- start: server\n- wait: {process: {server: {signal: KILL}}}\n", fake)
    assert found.verdicts[0].actual.startswith("killed by SIGKILL after")
    assert found.result == "pass"


# What a run leaves


def test_the_folder_of_a_run(watch: Play, tmp_path: Path) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN)})
    steps = "- start: server\n- wait: {sockets: {server: LISTEN}}\n- snapshot: it listens\n"
    first, second = watch(steps, fake), watch(steps, FakeBackend(fake._script))
    assert (first.folder, second.folder) == (tmp_path / "lesson", tmp_path / "lesson-2")
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "client.pcap", "client.ss", "history.jsonl", "result.json", "scenario.yaml", "server.pcap",
        "server.ss",
    ]  # fmt: skip
    files = json.loads((first.folder / "result.json").read_text())["files"]
    assert files == {
        name: (first.folder / name).stat().st_size
        for host in ("client", "server")
        for name in (f"{host}.pcap", f"{host}.ss", "history.jsonl")
    }
    assert (first.folder / "scenario.yaml").read_text() == lesson(steps)
    kinds = [json.loads(line) for line in (first.folder / "history.jsonl").open()]
    assert [e["kind"] for e in kinds[:3]] == ["lab", "counters", "counters"]
    assert all({"t", "kind"} <= e.keys() for e in kinds)
    titles = [line for line in (first.folder / "server.ss").open() if line.startswith("#")]
    assert titles[-2].endswith("it listens\n")
    assert titles[-1].endswith("look\n")


def test_addresses_are_recorded(watch: Play) -> None:
    found = watch("- note: a\n")
    assert found.history.lab
    assert found.history.lab.addresses == {
        "server": "198.18.0.2", "server.v6": "fd00::2",
        "client": "198.18.0.3", "client.v6": "fd00::3",
    }  # fmt: skip


def test_a_lab_with_another_clock(tmp_path: Path) -> None:
    """The engine may be elsewhere: its clock counts, from when the run began."""
    fake = FakeBackend(
        {"kill server": lambda lab: (lab.sockets("server", ESTAB), lab.sockets("server", later=2))},
        clock=5000.0,
    )
    steps = (
        "- start: server\n- kill: server\n  as: k\n- wait: {sockets: {server: none}}\n  since: k\n"
    )
    found = play(lesson(f"{steps}  within: 1s..3s\n"), fake, tmp_path)
    assert found.result == "pass"
    assert 0 < found.lab_seconds < 3
    assert all(-0.1 < event.t < 3 for event in found.history.events)


def test_a_wait_that_held_in_hindsight_alone_is_unknown() -> None:
    """The steps ended there, so what they would have shown is not known."""
    text = "wait server no connection"
    case = scenario(lesson("- wait: {sockets: {server: none}}\n- note: not reached\n"))
    events = [
        StepEvent(0.1, 0, "begin", text),
        SocketsEvent(5.0, "server", "look", HEADER),
        StepEvent(5.1, 0, "end", text, outcome="timeout"),
    ]
    (verdict,) = check(case, events)
    assert (verdict.result, verdict.actual) == (
        "unknown", "no sockets, only seen when the wait was over"
    )  # fmt: skip


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


def test_watchers_see_everything(tmp_path: Path) -> None:
    class Watcher(Silent):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def event(self, event: Event, history: History) -> None:
            assert history.events[-1] is event
            self.seen.append(event.kind)

        def up(self, lab: Lab) -> None:
            self.seen.append(f"up {' '.join(lab.holders.values())}")

        def done(self, lab: Lab) -> None:
            self.seen.append("done")

    watcher = Watcher()
    found = play(lesson("- note: a\n"), FakeBackend(), tmp_path, watcher)
    assert watcher.seen[3] == "up holder of server holder of client"
    assert watcher.seen[-1] == "done"
    assert [kind for kind in watcher.seen if kind in ("lab", "step", "sockets", "counters")] == [
        event.kind for event in found.history.events
    ]


# Results of results


def test_overall() -> None:
    order = ["error", "fail", "unknown", "pass", "skip"]
    for index, worst in enumerate(order):
        assert overall(reversed(order[index:])) == worst
        assert overall([worst]) == worst
    assert overall([]) == "pass"


def test_the_document(watch: Play) -> None:
    good, bad = watch("- note: a\n"), watch("- start: client\n- start: client\n")
    whole = document([good, bad])
    assert (whole["version"], whole["result"]) == ("1", "fail")
    assert [entry["result"] for entry in whole["runs"]] == ["pass", "fail"]
    (verdict,) = whole["runs"][1]["verdicts"]
    assert verdict.keys() == {
        "result", "what", "expected", "actual", "at", "source", "evidence", "processes"
    }  # fmt: skip
    assert document([])["result"] == "pass"


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"can't write there: .*; use --out DIR"):
        new_folder(tmp_path / "file" / "below", "name")


def test_the_names_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "a lesson/../with ${odd} name=é"
    assert new_folder(tmp_path, odd) == tmp_path / "a-lesson-..-with-odd-name="
    assert new_folder(tmp_path, odd) == tmp_path / "a-lesson-..-with-odd-name=-2"
    assert len(new_folder(tmp_path, "x" * 300).name) == 100
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "labctl" / "runs"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_folder() == Path("/home/me/.local/state/labctl/runs")
