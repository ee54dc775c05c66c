"""What is told of processes where a run did not pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labctl.ground.reading import typed
from labctl.judge import recorded
from labctl.judge.accounts import Account, account_lines, accounts, ended_meanwhile
from labctl.judge.ends import OWN_THERE
from labctl.judge.result import RunResult
from labctl.language.facts import AWAITING, NO_FACTS, Facts
from labctl.language.predicates.finding import Claimed
from labctl.language.scenario import Scenario
from labctl.record.events import (
    CallEvent,
    Event,
    LabEvent,
    OutputEvent,
    ProcessEvent,
    SocketsEvent,
    StepEvent,
)
from labctl.record.history import History
from tests.fake import HEADER, FakeBackend, play, scenario, tcp
from tests.played import LISTEN, Play

ADDRESSES = {"server": "198.18.0.2", "client": "198.18.0.3", "other": "198.18.0.4"}


def case(server: str, client: str = "{run: cat}", steps: str = "[]") -> Scenario:
    return scenario(
        f"title: t\nhosts:\n  server: {server}\n  client: {client}\n  other: {{run: cat}}\n"
        f"steps: {steps}\n"
    )


def history(*events: Event, backend: str = "netns") -> History:
    return History([LabEvent(0.0, "", backend, {"folder": "/tmp/mine"}, ADDRESSES), *events])


def start(process: str, t: float = 1.0) -> ProcessEvent:
    return ProcessEvent(t, process, process, "start", pid=9)


def over(
    process: str, status: int | None, t: float = 2.0, signal: str | None = None
) -> list[Event]:
    return [
        ProcessEvent(t, process, process, "exit", pid=9, exit=status, signal=signal),
        ProcessEvent(t, process, process, "gone", signal="KILL"),
    ]


def call(process: str, text: str, t: float, errno: str | None = None, **more: str) -> CallEvent:
    name = text.split(maxsplit=1)[0]
    return CallEvent(t, process, process, 9, "done", text, name, errno, **more)  # type: ignore[arg-type]


def enters(process: str, text: str, t: float, pid: int = 9) -> CallEvent:
    return CallEvent(t, process, process, pid, "enter", text, text.split(maxsplit=1)[0])


def look(host: str, t: float, *locals_: str) -> SocketsEvent:
    lines = [HEADER, *(tcp("LISTEN", local) for local in locals_)]
    return SocketsEvent(t, host, "change", "\n".join(lines))


def about(name: str, wanted: Facts = NO_FACTS) -> Claimed:
    """A claim about a host or a process."""
    return Claimed(name, "something", (name,), wanted)


def conditions(found: tuple[Account, ...]) -> list[str]:
    return [account.sentence for account in found]


def test_how_processes_are_and_how_they_ended() -> None:
    found = accounts(
        case("{calls: 'socket; accept; wait'}"),
        history(
            start("server"), enters("server", "accept", 1.5), enters("server", "recv", 1.6, pid=10),
            start("client"), *over("client", 7),
            start("other"), *over("other", None, signal="TERM"),
        ),
    )  # fmt: skip
    assert conditions(found) == [
        "server runs, blocked in accept since 1.500 s, recv since 1.600 s",
        "client exited with 7 at 2.000 s",
        "other was killed by SIGTERM at 2.000 s",
    ]


def test_what_a_process_was_in_and_what_it_left() -> None:
    in_recv = [start("server"), enters("server", "recv", 1.5)]
    whole = case("{calls: 'socket; accept; recv'}")
    ended = ProcessEvent(2.0, "server", "server", "exit", pid=9, exit=1)
    (found,) = accounts(whole, history(*in_recv, ended, look("client", 4.1)))
    assert found.condition == "exited with 1 at 2.000 s, in recv; what it left still runs"
    (found,) = accounts(whole, history(*in_recv, ended))
    assert found.condition == "exited with 1 at 2.000 s, in recv"
    child = enters("server", "accept", 1.6, pid=10)
    (found,) = accounts(whole, history(*in_recv, child, ended))
    assert found.condition == "exited with 1 at 2.000 s, in recv; what it left still runs"
    gone = ProcessEvent(2.0, "server", "server", "gone", signal="KILL")
    (found,) = accounts(whole, history(*in_recv, gone))
    assert found.condition == "was killed by SIGKILL at 2.000 s, in recv"


def test_what_is_paused() -> None:
    paused = case("{run: cat}", steps="[pause: server, resume: server]")
    step = StepEvent(1.5, 0, "end", "pause server", outcome="done")
    (found,) = accounts(paused, history(start("server"), step))
    assert found.condition == "is paused since 1.500 s"
    resumed = StepEvent(1.6, 1, "end", "resume server", outcome="done")
    (found,) = accounts(paused, history(start("server"), step, resumed))
    assert found.condition == "runs"


def test_the_last_lines_and_the_last_failed_call() -> None:
    text = "".join(f"line {n}\n\n" for n in range(9)) + "x" * 1000
    (found,) = accounts(
        case("{run: cat}"),
        history(
            start("server"), call("server", "bind :1", 1.1, "EACCES"),
            call("server", "listen 1", 1.2, "EINVAL"), call("server", "socket", 1.3),
            OutputEvent(1.4, "server", "server", text),
        ),
    )  # fmt: skip
    assert found.last_failed_call == "listen 1: EINVAL (22) at 1.200 s"
    assert found.output == ("line 5", "line 6", "line 7", "line 8", "x" * 300)
    first, *lines = account_lines([found], besides=("line 6",))
    assert first == "server runs; last failed: listen 1: EINVAL (22) at 1.200 s"
    assert [line[:10] for line in lines] == ["  | line 5", "  | line 7", "  | line 8", "  | xxxxxx"]
    assert typed(Account, json.loads(json.dumps(found.as_json()))) == found


def test_only_those_that_a_claim_is_about_and_whom_they_talk_to() -> None:
    whole = case("{run: cat}", steps="[start: server, start: client]")
    told_of = history(start("server"), start("client"), start("other"))
    assert conditions(accounts(whole, told_of, about("server"))) == ["server runs"]
    talks = call("client", "connect server:8000", 1.1, peer="198.18.0.2:8000")
    told_of = history(start("server"), start("client"), start("other"), talks)
    assert [a.process for a in accounts(whole, told_of, about("server"))] == ["server", "client"]
    assert [a.process for a in accounts(whole, told_of, about("client"))] == ["client", "server"]
    assert [a.process for a in accounts(whole, told_of, about("other"))] == ["other"]
    # One that is refused is in nobody's sockets.
    told_of = history(
        start("server"), start("other"), call("other", "connect server:8000", 1.1, "ECONNREFUSED")
    )
    assert [a.process for a in accounts(whole, told_of, about("server"))] == ["server", "other"]


def test_what_was_not_started() -> None:
    steps = "[{wait: {sockets: {server: LISTEN}}}, start: server]"
    before = StepEvent(0.5, 0, "begin", "wait")
    (found,) = accounts(case("{run: cat}", steps=steps), history(before), about("server"))
    assert found.sentence == "server was not started: its start, at lesson.yaml:6, comes later"
    (found,) = accounts(case("{run: cat}"), history(before), about("server"))
    assert found.sentence == "server was not started: no step starts it"


@pytest.mark.parametrize(
    ("server", "steps", "end", "words"),
    [
        ("{run: x}", "[wait: {sockets: {server: LISTEN}}]", (2, None),
         "server exited with 2; still waiting"),
        ("{run: x}", "[wait: {process: {server: {output: ready}}}]", (None, "SEGV"),
         "server was killed by SIGSEGV; still waiting"),
        ("{run: x}", "[wait: {process: {server: {exit: 2}}}]", (2, None), None),
        ("{run: x}", "[wait: {sockets: {client: LISTEN}}]", (2, None), None),
        ("{run: x}", "[expect: {sockets: {client: LISTEN}}]", (2, None), None),
        ("{calls: socket}", "[wait: {sockets: {server: LISTEN}}]", (0, None), None),
    ],
)  # fmt: skip
def test_a_wait_whose_process_has_ended(
    server: str, steps: str, end: tuple[int | None, str | None], words: str | None
) -> None:
    ended = over("server", end[0], signal=end[1])[0]
    begun = StepEvent(1.5, 0, "begin", "wait")
    whole = case(server, steps=steps)
    assert ended_meanwhile(whole, history(start("server"), begun, ended)) == words
    over_already = StepEvent(1.6, 0, "end", "wait", outcome="held")
    assert ended_meanwhile(whole, history(start("server"), begun, over_already, ended)) is None


# --- Why ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "backend", "status", "output", "cause"),
    [
        ("pyton x.py", "netns", 127, "cannot run pyton: No such file or directory",
         "there is no program 'pyton' on this machine; correct `run`"),
        ("pyton x.py", "docker", 127, "cannot run pyton: No such file or directory",
         "there is no program 'pyton' in the peer image; correct `run`, or give it an `image` that "
         "has it"),
        ("sh -c nosuch", "netns", 127, "sh: 1: nosuch: not found",
         "its shell could not run a command on this machine; correct `run`"),
        ("/tmp/x/serve", "netns", 127, "cannot run /tmp/x/serve: No such file or directory",
         f"the lab does not show a program '/tmp/x/serve': {OWN_THERE}"),
        ("python3 /tmp/x/a.py", "netns", 2, "python3: can't open file '/tmp/x/a.py': [Errno 2] No "
         "such file or directory", "the lab does not show a file (python3: can't open file "
         f"'/tmp/x/a.py': [Errno 2] No such file or directory): {OWN_THERE}"),
        ("cat a", "netns", 1, "cat: /tmp/mine/a: No such file or directory",
         "a file is not on this machine (cat: /tmp/mine/a: No such file or directory); programs "
         "start in /tmp/mine, the current folder of labctl"),
        ("nginx", "netns", 1, 'nginx: [emerg] chown("/var/lib/nginx/body", 33) failed (30: '
         "Read-only file system)",
         "on namespaces it sees this machine read-only (nginx: [emerg] chown(\"/var/lib/nginx/body"
         "\", 33) failed (30: Read-only file system)); let it write below /tmp, or use --backend "
         "docker"),
        ("cat x", "docker", 1, "x: Read-only file system", None),
        ("/etc/hosts", "netns", 126, "cannot run /etc/hosts: Permission denied",
         "'/etc/hosts' can't be run on this machine: see that it is a program, with chmod +x"),
        ("python3 nosuch.py", "netns", 2, "python3: can't open file '/x/nosuch.py': [Errno 2] No "
         "such file or directory",
         "a file is not on this machine (python3: can't open file '/x/nosuch.py': [Errno 2] No "
         "such file or directory); programs start in /tmp/mine, the current folder of labctl"),
        ("python3 nosuch.py", "docker", 2, "No such file or directory: 'nosuch.py'",
         "a file is not in the peer image (No such file or directory: 'nosuch.py'); files of this "
         "machine are not in containers, so make an image that has it"),
        ("python3 ok.py", "netns", 0, "No such file or directory", None),
        ("curl http://localhost:8000/", "netns", 7, "curl: (7) Failed to connect to localhost",
         "localhost in its command is server itself; other hosts go by their names"),
        ("curl -s http://127.0.0.1:8000/", "netns", 7, "",
         "127.0.0.1 in its command is server itself; other hosts go by their names"),
        ("serve --bind 127.0.0.1", "netns", 1, "no such option", None),
        ("serve --bind 127.0.0.1", "netns", 0, "refused", None),
        ("curl -s http://client/", "netns", 7, "",
         "curl's 7: it could not connect; without -s it says more"),
        ("sh -c 'exit 7'", "netns", 7, "",
         "its program chose 7, and wrote nothing; see it by hand: labctl run --keep, then labctl "
         "shell server"),
        ("sh -c 'exit 7'", "netns", 7, "good bye", None),
        ("sh -c 'kill -9 $$'", "netns", 137, "Killed", "137 is what a shell says of a command that "
         "SIGKILL ended; see it by hand: labctl run --keep, then labctl shell"),
        ("cat", "netns", 0, "", None),
        ("python3 a.py", "netns", 1, "ModuleNotFoundError: No module named 'flask'",
         "the module 'flask' is not on this machine; install it there"),
        ("node a.js", "docker", 1, "Error: Cannot find module 'express'\n" + "at x\n" * 9,
         "the module 'express' is not in the peer image; install it there"),
        ("node a.js", "netns", 1, "Error: Cannot find module '/x/a.js'\n" + "at x\n" * 9,
         "a file is not on this machine (Error: Cannot find module '/x/a.js'); programs start "
         "in /tmp/mine, the current folder of labctl"),
        ("nginx -g x", "docker", 127, "[FATAL tini (6)] exec nginx failed: No such file",
         "there is no program 'nginx' in the peer image; correct `run`, or give it an `image` that "
         "has it"),
    ],
)  # fmt: skip
def test_why_a_program_ended(
    run: str, backend: str, status: int, output: str, cause: str | None
) -> None:
    said = [OutputEvent(1.5, "server", "server", output + "\n")] if output else []
    (found,) = accounts(
        case(json.dumps({"run": run})),
        history(start("server"), *said, *over("server", status), backend=backend),
    )
    assert found.cause == cause


@pytest.mark.parametrize(
    ("signal", "cause"),
    [
        ("KILL", "no step killed it; the kernel does for want of memory, which dmesg tells"),
        ("SEGV", "its program crashed (SIGSEGV)"),
        ("HUP", "no step sent it SIGHUP: another program did, or it did so itself"),
    ],
)
def test_why_a_signal(signal: str, cause: str) -> None:
    ends = over("server", None, signal=signal)
    (found,) = accounts(case("{run: cat}"), history(start("server"), *ends))
    assert found.cause == cause
    killed = case("{run: cat}", steps="[signal: {server: KILL}]")
    step = StepEvent(1.5, 0, "begin", "signal server: KILL")
    (found,) = accounts(killed, history(start("server"), step, *ends))
    assert (found.asked, found.cause) == (True, None)


LATER = "server did not listen at 8000 then, and does now; before client starts, "


@pytest.mark.parametrize(
    ("text", "looks", "cause"),
    [
        ("connect localhost:8000", [look("server", 0.5, ":8000")],
         "localhost is client itself, where nothing listened at 8000; another host goes by its "
         "name: connect server:8000"),
        ("connect 127.0.0.1:8000", [look("other", 0.5, ":8000")],
         "127.0.0.1 is client itself, where nothing listened at 8000; another host goes by its "
         "name: connect other:8000"),
        ("connect client:8000", [], "client is client itself, where nothing listened at 8000; "
         "another host goes by its name: connect server:8000"),
        ("connect server:8000", [look("server", 0.5), look("server", 1.9, ":8000")],
         f"{LATER}wait: {{sockets: {{server: LISTEN}}}}"),
        ("connect server:8000", [look("server", 0.5, ":9000")],
         "nothing listened at 8000 of server, which listens at :9000"),
        ("connect server:8000", [look("server", 0.5)],
         "nothing listened at 8000 of server, where no process was started"),
        ("connect server:8000", [look("server", 0.5, "127.0.0.1:8000")],
         "server listened at 127.0.0.1:8000 alone, which is not server; bind :8000"),
        ("connect server:8000", [look("server", 0.5, ":8000")], None),
        ("connect 203.0.113.1:8000", [], None),
    ],
)  # fmt: skip
def test_why_a_connection_was_refused(text: str, looks: list[Event], cause: str | None) -> None:
    known = [*looks, call("client", text, 1.5, "ECONNREFUSED"), *over("client", 111)]
    events = sorted([start("client"), *known], key=lambda event: event.t)
    whole = case("{run: cat}", "{calls: 'socket'}")
    found = accounts(whole, history(*events), about("client"))[0]
    assert found.cause == cause


@pytest.mark.parametrize(
    ("text", "errno", "cause"),
    [
        ("connect sever:8000", "EAI_NONAME",
         "nobody is called 'sever'; there are server, client, other; did you mean 'server'?"),
        ("connect server:8000", "EAI_NONAME", "nobody is called 'server' in the family of its "
         "socket; there are server, client, other; did you mean 'server'?"),
        ("connect server:8000", "EBADF", "`connect server:8000` had no socket to act on; `socket` "
         "makes one, `close` takes it away"),
        ("bind :80", "EACCES", None),
    ],
)  # fmt: skip
def test_why_another_call_failed(text: str, errno: str, cause: str | None) -> None:
    ends = [call("client", text, 1.5, errno), *over("client", 1)]
    found = accounts(case("{run: cat}", "{calls: 'socket'}"), history(start("client"), *ends))
    assert found[0].cause == cause


def test_why_nothing_is_seen_of_a_program_that_runs() -> None:
    whole, begun = case("{run: python3 x.py}"), history(start("server"))
    output = about("server", Facts(output="ready"))
    (found,) = accounts(whole, begun, output)
    assert found.cause == (
        "it has written nothing yet; what it wrote may wait in its buffer: python3 -u, stdbuf -oL"
    )
    assert accounts(whole, begun, about("server"))[0].cause is None
    wrote = history(start("server"), OutputEvent(1.5, "server", "server", "hello\n"))
    assert accounts(whole, wrote, output)[0].cause is None


@pytest.mark.parametrize(
    ("place", "ports", "cause"),
    [
        (":${port}", [":9100"], "it listens on :9100, and not on :8000; --set port=9100"),
        (":8000", [":9100", ":9200"], "it listens on :9100, :9200, and not on :8000"),
        (":${port}", [":9100", ":8000"], None),
        (":${port}", [], None),
    ],
)
def test_why_a_server_does_not_listen_where_it_should(
    place: str, ports: list[str], cause: str | None
) -> None:
    whole = scenario(
        "title: t\nparams: {port: 8000}\nhosts:\n  server: {run: x}\nsteps:\n"
        f"  - wait: {{sockets: {{server: {{state: LISTEN, local: '{place}'}}}}}}\n"
    )
    told_of = history(start("server"), look("server", 1.5, *ports))
    (finding,) = whole.steps[0].judge(told_of)
    assert finding.claimed.wanted.listens == (8000,)
    (found,) = accounts(whole, told_of, finding.claimed)
    assert found.cause == cause
    if cause and len(ports) == 1:
        assert finding.actual == "LISTEN :9100 accept queue 0/0"


def test_why_a_process_does_not_do_what_it_is_told() -> None:
    begun = history(start("server"), enters("server", "accept", 1.5))
    close = about("server", Facts(process=AWAITING))
    (found,) = accounts(case("{calls: socket; accept}"), begun, close)
    assert found.cause == "it does what `call` steps ask for once its own calls end with `await`"
    assert accounts(case("{calls: accept; await}"), begun, close)[0].cause is None


def test_its_own_exit() -> None:
    ends = [enters("client", "exit 7", 1.5), *over("client", 7)]
    (found,) = accounts(case("{run: cat}", "{calls: exit 7}"), history(start("client"), *ends))
    assert (found.condition, found.cause) == (
        "exited with 7 at 2.000 s", "its own call `exit 7` says so",
    )  # fmt: skip


# --- In a run -------------------------------------------------------------------------------------

HUNG = "- start: server\n- wait: {sockets: {server: LISTEN}}\n  within: 10ms\n"


def hung(watch: Play, status: int = 7) -> RunResult:
    return watch(HUNG, FakeBackend({"start server": lambda lab: lab.exit("server", status)}))


def test_a_wait_that_hangs_says_first_who_has_ended(watch: Play) -> None:
    found = hung(watch)
    (verdict,) = found.verdicts
    assert verdict.actual.startswith("server exited with 7 at 0.")
    assert "; no sockets until 0." in verdict.actual
    (account,) = verdict.processes
    assert (account.process, account.exit, account.output) == ("server", 7, ())
    assert found.why == (f"server: {account.cause}",)
    (entry,) = found.as_json()["verdicts"]
    assert entry["processes"] == [account.as_json()]
    assert recorded.load(found.folder).verdicts[0].processes == (account,)


def test_a_wait_that_hangs_says_first_who_is_paused_or_was_not_started(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN)})
    claim = "- wait: {sockets: {server: ESTAB}}\n  within: 10ms\n"
    found = watch(f"- start: server\n- pause: server\n{claim}", fake)
    assert found.verdicts[0].actual.startswith("server is paused since 0.")
    found = watch(claim)
    assert found.verdicts[0].actual.startswith("server was not started: no step starts it; no s")
    found = watch("- wait: {process: {server: ok}}\n  within: 10ms\n")
    assert found.verdicts[0].actual.startswith("never started until 0.")


def test_not_where_a_step_ended_it_or_the_claim_says_so(watch: Play) -> None:
    fake = FakeBackend({"start server": lambda lab: lab.sockets("server", LISTEN)})
    killed = "- start: server\n- kill: server\n- wait: {sockets: {server: none}}\n  within: 10ms\n"
    assert watch(killed, fake).result == "pass"
    found = watch(
        "- start: server\n- kill: server\n- wait: {sockets: {server: TIME-WAIT}}\n  within: 10ms\n"
    )
    assert found.verdicts[0].actual.startswith("no sockets until")
    ends = FakeBackend({"start server": lambda lab: lab.exit("server", 7)})
    claim = "- start: server\n- wait: {process: {server: {exit: 3}}}\n  within: 10ms\n"
    assert watch(claim, ends).verdicts[0].actual.startswith("exit 7 until")
    claim = "- start: server\n- wait: {process: {server: {output: x}}}\n  within: 10ms\n"
    words = watch(claim, ends).verdicts[0].actual
    assert words.startswith("server exited with 7 at 0.")
    assert "; output '' until 0." in words


def test_of_a_call_that_ended_it_the_call_is_told_and_then_the_end(watch: Play) -> None:
    def refused(lab: FakeBackend) -> None:
        lab.call("server", "bind :80", errno="EACCES")
        lab.exit("server", 13)

    claim = "- start: server\n- wait: {process: {server: running}}\n  within: 10ms\n"
    words = watch(claim, FakeBackend({"start server": refused})).verdicts[0].actual
    assert words.startswith("server exited with 13 at 0.")
    assert "; bind :80: EACCES" in words


def test_of_what_passed_nothing_is_told(watch: Play) -> None:
    found = watch("- start: server\n- wait: {process: {server: running}}\n")
    assert found.result == "pass"
    assert "processes" not in found.as_json()["verdicts"][0]
    assert "processes" not in found.as_json()


def test_a_lab_that_failed_tells_of_all_processes(tmp_path: Path) -> None:
    text = """\
title: t
hosts: {server: {run: cat}, client: {run: cat}}
steps: [start: server, start: client, note: a, exec: {server: b}]
"""
    fake = FakeBackend({"exec server b": lambda lab: lab.dies("server")})
    found = play(text, fake, tmp_path)
    assert found.result == "error"
    assert [a.process for a in found.processes] == ["server", "client"]
    assert found.as_json()["processes"] == [a.as_json() for a in found.processes]
    assert recorded.load(found.folder).processes == found.processes
