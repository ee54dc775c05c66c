"""Good scenarios: params, variants, labels, names; and that no text at all breaks the loader."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.backends import HostSpec
from labctl.ground.errors import ScenarioError, UsageError
from labctl.language.document import Document
from labctl.language.predicates import SocketPattern
from labctl.language.scenario import Scenario, load, load_document
from labctl.language.steps import STEPS, Call, Kill, Sleep, Wait
from labctl.language.steps import Sysctl as SysctlStep
from labctl.language.steps.faults import Deaf
from labctl.language.values import Within
from labctl.probes.sockets import State
from labctl.run.workflow import keep_short_cases, load_all

LESSON = """\
# A comment
title: FIN_WAIT_2 on the server, because the client never closes
about: |
  The server is killed while connected.
refs: [RFC 9293 section 3.6, "tcp(7): tcp_fin_timeout"]

params:
  fin_timeout: 5
  port: 8000

hosts:
  server:
    sysctls: {net.ipv4.tcp_fin_timeout: "${fin_timeout}"}
    calls: |
      socket
      bind :${port}
      listen 20
      accept
      recv
      send "I am server" x 24
      wait
  client:
    calls: |
      socket
      connect server:${port}
      send "I am client"
      wait                     # blocked: never reads the end, never closes

steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
  - wait: {sockets: {server: ESTAB, client: ESTAB}}
  - kill: server
    as: killed
  - expect: {sockets: {server: FIN-WAIT-2, client: CLOSE-WAIT}}
  - snapshot: half closed
  - restart: server
  - wait: {process: {server: EADDRINUSE}}
  - wait: {sockets: {server: none}}
    since: killed
    within: 4.5s..7s           # an orphan lives tcp_fin_timeout seconds

expect:
  - process: {client: running}
"""
HOSTS = "hosts: {server: {calls: socket}, client: {calls: socket}}\n"


def cases(text: str, **sets: str) -> list[Scenario]:
    return load_document(Document("lesson.yaml", text), text, "lesson", sets)


def case(text: str, **sets: str) -> Scenario:
    (found,) = cases(text, **sets)
    return found


def small(steps: str, more: str = "") -> Scenario:
    return case(f"title: small\n{more}{HOSTS}steps:\n{steps}")


def test_a_lesson() -> None:
    lesson = case(LESSON)
    assert lesson.title == "FIN_WAIT_2 on the server, because the client never closes"
    assert lesson.about == "The server is killed while connected."
    assert lesson.refs == ("RFC 9293 section 3.6", "tcp(7): tcp_fin_timeout")
    assert (lesson.name, lesson.label, lesson.variant) == ("lesson", "lesson", {})
    assert lesson.spec.hosts == [HostSpec("server"), HostSpec("client")]
    assert list(lesson.processes) == ["server", "client"]
    assert lesson.processes["client"].calls == (
        'socket\nconnect server:8000\nsend "I am client"\n'
        "wait                     # blocked: never reads the end, never closes\n"
    )
    assert [step.verb for step in lesson.steps] == [
        "start", "wait", "start", "wait", "kill", "expect", "snapshot", "restart", "wait", "wait"
    ]  # fmt: skip
    assert lesson.needs == frozenset()
    last = lesson.steps[-1]
    assert isinstance(last, Wait)
    assert (last.within, last.since) == (Within(4.5, 7.0), "killed")
    lines = LESSON.splitlines()
    for source, text in [
        (lesson.step_sources[0], "- start: server"),
        (lesson.step_sources[-1], "none"),
        (lesson.expect_sources[0], "client: running"),
    ]:
        file, _, line = source.rpartition(":")
        assert file == lesson.source
        assert text in lines[int(line) - 1]


def test_a_file_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "fin_wait_2.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + LESSON.replace("\n", "\r\n").encode())
    (found,) = load(file)
    assert (found.name, found.source) == ("fin_wait_2", str(file))
    assert found.steps == case(LESSON).steps
    assert found.step_sources[0].startswith(f"{file}:")


# Params


def test_a_whole_scalar_keeps_its_type() -> None:
    text = f"title: t\nparams: {{n: 5, yes: true}}\n{HOSTS}steps:\n  - sleep: ${{n}}\n"
    assert case(text).steps[0].sleep == 5.0  # type: ignore[attr-defined]
    wrong = text.replace("sleep: ${n}", "sleep: ${yes}")
    with pytest.raises(ScenarioError, match="True is no duration"):
        case(wrong)


def test_params_stand_anywhere() -> None:
    text = """\
    title: "${who} ${n}: ${text}"
    params: {who: server, n: 3, text: "${who} and ${n}", key: tcp_fin_timeout, half: 0.5}
    hosts:
      ${who}:
        sysctls: {"net.ipv4.${key}": "${n}"}
        calls: |
          socket
          connect ${who}:800${n}  # ${who}
          send "${text}" x ${n}
      client: {run: [echo, "${n}", "${half}", $n, "$${n}"], env: {"${who}": "${n}"}}
    steps:
      - kill: ${who}
        as: at ${n}
      - wait: {sockets: {"${who}": none}}
        since: at ${n}
        within: ${n}s..1${n}
    """
    found = case(text)
    assert found.title == "server 3: server and 3"
    assert found.hosts["server"].sysctls == {"net.ipv4.tcp_fin_timeout": "3"}
    assert found.processes["server"].calls == (
        'socket\nconnect server:8003  # server\nsend "server and 3" x 3\n'
    )
    assert found.processes["client"].run == ("echo", "3", "0.5", "$n", "$3")
    assert found.processes["client"].env == {"server": "3"}
    kill, wait = found.steps
    assert isinstance(kill, Kill)
    assert isinstance(wait, Wait)
    assert (kill.kill, kill.as_) == ("server", "at 3")
    assert wait.within == Within(3.0, 13.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", "7"), ("0x10", "0x10"), ("1_000", "1_000"), ('"7"', "7"), ("007", "007"),
        ("-1", "-1"), ("6.20", "6.20"), ("true", "true"), ("~", "~"), ("1:30", "1:30"),
        ("'6.20'", "6.20"),
        ("word", "word"), ("a: b", "a: b"), ("[1, 2]", "[1, 2]"), ("a b", "a b"), ("", ""),
        ("2026-01-01", "2026-01-01"), ("2026-99-99", "2026-99-99"), ("!!bool x", "x"),
        ("!!int ''", "!!int ''"), ("*x", "*x"), ("[" * 5000, "[" * 5000), ("9" * 5000, "9" * 5000),
        ("'", "'"), ("\t", "\t"), ("- a", "- a"), ("a=b", "a=b"),
    ],
)  # fmt: skip
def test_sets_are_read_like_yaml(text: str, value: str) -> None:
    lesson = f"title: t\nparams: {{x: 1}}\n{HOSTS}steps:\n  - exec: {{server: 'echo ${{x}}'}}\n"
    assert case(lesson, x=text).steps[0].exec == {"server": f"echo {value}"}  # type: ignore[attr-defined]


def test_sets_override_params_and_variants() -> None:
    text = f"title: t\nparams: {{n: 1}}\nvariants: [{{n: 2}}, {{n: 3}}]\n{HOSTS}steps: []\n"
    assert [found.variant for found in cases(text)] == [{"n": 2}, {"n": 3}]
    assert [found.variant for found in cases(text, n="4")] == [{"n": 4}]
    with pytest.raises(UsageError, match="--set m: unknown param 'm'; allowed: n"):
        cases(text, m="4")


def test_booleans_and_nothing_by_set() -> None:
    text = f"title: t\nparams: {{x: 1}}\n{HOSTS}steps:\n  - sleep: ${{x}}\n"
    words = {"true": "True", "False": "False", "~": "nothing", "null": "nothing", "off": "'off'"}
    for word, shown in words.items():
        said = f"lesson.yaml:5: --set x={word}: {shown} is no duration"
        with pytest.raises(ScenarioError, match=said):
            case(text, x=word)


# Variants


def test_variants_are_cases() -> None:
    text = f"""\
title: reuse
params: {{new: plain}}
variants:
  - {{old: plain, new: both}}
  - {{old: both}}
  - {{old: plain, new: both}}
{HOSTS}
steps:
  - note: ${{old}} and ${{new}}
  - note: only with both
    when: {{variant: {{old: both}}}}
"""
    first, second = cases(text)
    assert first.label == "lesson (old plain, new both)"
    assert second.label == "lesson (old both)"
    assert str(first.steps[0]) == "note plain and both"
    assert str(second.steps[0]) == "note both and plain"
    assert first.steps[1].when
    assert first.steps[1].when.lacking("6.1", "netns", dict(first.variant)) is not None
    assert first.steps[1].when.lacking("6.1", "netns", dict(second.variant)) is None


def test_the_mistakes_of_every_variant() -> None:
    text = f"title: t\nvariants: [{{who: server}}, {{who: nobody}}, {{who: none}}]\n{HOSTS}steps:\n"
    with pytest.raises(ScenarioError) as caught:
        cases(text + "  - kill: ${who}\n  - kill: him\n")
    assert [(m.line, m.message.split(";")[0]) for m in caught.value.mistakes] == [
        (5, "unknown process 'nobody'"),
        (5, "unknown process 'none'"),
        (6, "unknown process 'him'"),
    ]


def test_keys_are_words_as_they_are_written() -> None:
    text = "title: t\nhosts: {no: {calls: socket}, null: {}}\nsteps:\n  - start: no\n"
    assert list(case(text).hosts) == ["no", "null"]


def test_words_that_yaml_takes_for_truth_values() -> None:
    found = small("  - note: on\n  - note: No\n  - wait: {sockets: {server: {timer: on}}}\n")
    assert [str(step) for step in found.steps] == [
        "note on", "note No", "wait server connection timer on"
    ]  # fmt: skip


def test_a_step_of_every_kind() -> None:
    steps = {
        "start": "server", "restart": "server", "kill": "server", "stop": "server",
        "signal": "{server: SIGTERM}", "pause": "server", "resume": "server",
        "call": "{server: close}", "exec": "{server: ss}", "snapshot": "now", "sleep": "10ms",
        "sysctl": "{server: {net.ipv4.tcp_fin_timeout: 3}}", "note": "that",
        "drop": "{from: server, flags: FIN, count: 2, at: sender}", "heal": "all",
        "reject": "{to: server, at_most: 3, injected: false, with: host-unreachable}",
        "net": "{server: {delay: 50ms, loss: 1.5%}, client: {}}", "cut": "server", "join": "server",
        "inject": "{from: client, to: 'server:8000', flags: ACK, seq: next-1, ack: 5, payload: é}",
        "wait": "{sockets: {server: none}}", "expect": "{process: {server: ok}}",
    }  # fmt: skip
    assert steps.keys() == STEPS.keys(), "add a step here, and its words below"
    found = small("".join(f"  - {verb}: {value}\n" for verb, value in steps.items()))
    assert [str(step) for step in found.steps] == [
        "start server", "restart server", "kill server", "stop server", "signal server: TERM",
        "pause server", "resume server", "call server: close", "exec server: ss", "snapshot now",
        "sleep 0.01 s", "sysctl server: net.ipv4.tcp_fin_timeout = 3", "note that",
        "drop 2 x FIN from server at the sender", "heal all",
        "reject at most 3 x all not injected to server with host-unreachable",
        "net server: delay 50000us loss 1.5%; client: as it was", "cut server", "join server",
        "inject ACK seq next-1 ack 5 len 2 from client to server:8000",
        "wait server no connection", "expect server ok",
    ]  # fmt: skip
    assert isinstance(found.steps[7], Call)
    assert isinstance(found.steps[10], Sleep)
    assert isinstance(found.steps[11], SysctlStep)


def test_modifiers() -> None:
    found = small(
        "  - note: a\n    as: a label of words\n"
        "  - wait: {process: {server: ok}}\n    since: a label of words\n    within: 2m\n"
        '    when: {kernel: ">=6.14", backend: docker}\n'
    )
    wait = found.steps[1]
    assert isinstance(wait, Wait)
    assert (wait.since, wait.within) == ("a label of words", Within(0.0, 120.0))
    assert str(wait) == "wait server ok within 120 s of a label of words"
    assert wait.when
    assert wait.when.lacking("6.1.0", "docker", {}) == "kernel 6.1.0 is not >=6.14"
    assert wait.when.lacking("6.14.3-arch1", "docker", {}) is None
    assert wait.when.lacking("6.14.3", "netns", {}) == "backend netns is not docker"


@pytest.mark.parametrize(
    ("wanted", "kernel", "fits"),
    [
        (">=6.14", "6.14.0", True), (">=6.14", "6.9", False), ("<6.1", "5.10.1", True),
        ("<=6.1", "6.1.99", True), (">6.1", "6.1.99", False), ("==6.1", "6.1.5", True),
        ("6.1", "6.10", False), ("!=6.1", "6.10", True), ("<=6.1.5", "6.1", True),
        (">=7", "6.18.44-fc", False), (">= 6", "6.18.44-fc", True),
    ],
)  # fmt: skip
def test_kernels(wanted: str, kernel: str, fits: bool) -> None:
    found = small(f'  - note: a\n    when: {{kernel: "{wanted}"}}\n')
    assert found.steps[0].when
    assert (found.steps[0].when.lacking(kernel, "netns", {}) is None) == fits


# Merges and aliases


def test_merged_keys() -> None:
    text = """\
title: merged
params:
  base: &base {a: 1, b: 2}
  more: &more {b: 3, c: 4}
hosts:
  server: &host
    sysctls: &sysctls {net.ipv4.tcp_fin_timeout: 5, net.ipv4.tcp_tw_reuse: 0}
    calls: socket
  client:
    calls: close
    <<: *host
    sysctls: {<<: *sysctls, net.ipv4.tcp_tw_reuse: 1}
steps:
  - &step {note: merged}
  - {<<: [*step, {note: not this, as: label}]}
  - *step
"""
    found = case(text)
    assert found.hosts["client"].calls == "close"
    assert found.hosts["client"].sysctls == {
        "net.ipv4.tcp_fin_timeout": "5",
        "net.ipv4.tcp_tw_reuse": "1",
    }
    assert [str(step) for step in found.steps] == ["note merged"] * 3
    assert found.steps[1].as_ == "label"


def test_the_lines_of_mistakes_in_variants_and_merges() -> None:
    """The second case of a file reads it as the first one did."""
    text = """\
title: merged
variants: [{n: 1}, {n: 2}]
hosts:
  server: &host
    calls: socket
  client: {<<: *host, calls: socket}
steps: []
"""
    assert len(cases(text)) == 2


def test_each_of_several_files_takes_its_own_params(tmp_path: Path) -> None:
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for file, params in zip(files, ("{title: A, port: 1}", "{title: B}"), strict=True):
        file.write_text(f"title: ${{title}}\nparams: {params}\n{HOSTS}steps: []\n")
    found = load_all(files, {"title": "C", "port": "2"})
    assert [case.title for case in found] == ["C", "C"]
    with pytest.raises(UsageError, match="2 scenarios: --set prot: unknown param 'prot'; allowed: "
                       "port, title; did you mean 'port'"):  # fmt: skip
        load_all(files, {"prot": "2"})
    with pytest.raises(UsageError, match=r"b\.yaml: --set port: unknown param"):
        load_all(files[1:], {"port": "2"})


def test_what_a_variant_leaves_out_takes_no_time() -> None:
    steps = "- {when: {variant: {n: 1}}, sleep: 1h}\n- sleep: 2s\n"
    long, short = cases(f"title: A\nvariants: [{{n: 1}}, {{n: 2}}]\n{HOSTS}steps:\n{steps}")
    assert (long.least, short.least) == (3602.0, 2.0)


def test_what_takes_hours_is_left_out_of_many_where_time_is_real() -> None:
    (quick,) = cases(f"title: A\n{HOSTS}steps: []\n")
    (slow,) = cases(f"title: B\nneeds: [virtual_time]\n{HOSTS}steps: []\n")
    said: list[str] = []
    assert keep_short_cases([quick, slow], True, said.append) == [quick, slow]
    assert keep_short_cases([slow], False, said.append) == [slow]
    assert not said
    assert keep_short_cases([quick, slow], False, said.append) == [quick]
    assert said == [
        "cases that take hours are left out, 1: run them in a guest, --kernel NAME --virtual-time"
    ]


# Values


def test_the_kernel_of_a_crafted_peer_hears_nothing_from_the_first_step_on() -> None:
    hosts = "hosts:\n  server: {}\n  client: {peer: crafted}\n"
    found = case(f"title: B\n{hosts}steps: [sleep: 1s]\n")
    assert [str(step) for step in found.steps] == ["drop all not injected to client", "sleep 1 s"]
    assert found.step_sources == ("lesson.yaml:4", "lesson.yaml:5")
    assert found.needs == {"nft"}
    assert isinstance(found.steps[0], Deaf) and found.steps[0].in_the_end(0).least == 0
    drop = "drop: {to: client, injected: false}"
    inject = "inject: {from: 'client:1', to: 'server:2', flags: SYN}"
    for steps, count in ((f"[{drop}, {inject}]", 2), (f"[{inject}, {drop}]", 3)):
        written = case(f"title: B\n{hosts}steps: {steps}\n")
        assert (len(written.steps), written.needs) == (count, {"nft"}), "its own is enough"


def test_bare_states_and_patterns() -> None:
    found = small(
        "  - wait: {sockets: {server: fin_wait2, client: {state: TIME_WAIT, count: '>1'}}}\n"
    )
    claim = found.steps[0].claim
    assert claim
    assert claim.sockets
    assert claim.sockets["server"].bare == {State.FIN_WAIT_2}
    (pattern,) = claim.sockets["client"].patterns
    assert isinstance(pattern, SocketPattern)
    assert str(pattern) == ">1 x TIME-WAIT"
    assert claim.sockets["client"].bare == frozenset()
