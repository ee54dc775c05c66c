"""What `labctl run` shows of results, on a terminal and off one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from labctl.ground import invoked
from labctl.judge.result import RunResult, document
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.reports.tables import console
from labctl.reports.terminal import print_runs
from tests.fake import FakeBackend, play, tcp
from tests.golden import HERE as GOLDEN
from tests.golden import agrees
from tests.terminals import on_a_terminal
from tests.unit.test_cli import program

MEASURED = r'("measured": \{\s+"after_seconds": \{\s+"low":) [\d.e-]+(,\s+"high":) [\d.e-]+'
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


# Reports


LESSON = """\
title: A restarted server can't bind
variants: [{reuse: none}, {reuse: both}]
hosts:
  server: {calls: "socket; bind :8000; listen 5; accept; wait"}
  client: {calls: "socket; connect server:8000; wait"}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - kill: server
    as: killed
  - expect: {sockets: {server: FIN-WAIT-2, client: none}}
  - snapshot: half [closed]
  - restart: server
  - wait: {process: {server: EADDRINUSE}}
    when: {variant: {reuse: none}}
  - wait: {sockets: {server: none}}
    since: killed
    within: 4.5s..7s
expect:
  - counters: {server: {TcpActiveOpens: 0, TcpNoSuch: 1}}
"""
SERVER, CLIENT = "198.18.0.2:8000", "198.18.0.3:40000"
HALF_CLOSED = tcp("FIN-WAIT-2", SERVER, CLIENT, more="timer:(timewait,4.500sec,0)")


def lessons(out: Path) -> list[RunResult]:
    """A run that passes but for what nobody can know, and one that fails in several ways."""

    def listens(lab: FakeBackend) -> object:
        return lab.sockets("server", tcp("LISTEN", ":8000", send_q=5))

    def is_killed(lab: FakeBackend) -> None:
        lab.sockets("server", HALF_CLOSED)

    def can_not_bind(lab: FakeBackend) -> None:
        lab.call("server", "bind :8000", errno="EADDRINUSE", error="Address already in use")
        lab.exit("server", 98)

    def looked(lab: FakeBackend) -> None:
        if lab.log[-1] == "look server" and lab.log.count("start server") == 2:
            lab.sockets("server", later=4.9)

    def binds(lab: FakeBackend) -> None:
        lab.call("server", "bind :8000", local="0.0.0.0:8000")
        lab.sockets("client", tcp("CLOSE-WAIT", CLIENT, SERVER, recv_q=12))
        lab.sockets("server", later=3.0)

    first, second = load_document(Document("lesson.yaml", LESSON), LESSON, "lesson", {})
    good: dict[str, Any] = {
        "start server": [listens, can_not_bind],
        "kill server": is_killed,
        "look server": looked,
    }
    bad: dict[str, Any] = {
        "start server": [listens, binds],
        "kill server": lambda lab: lab.sockets("server"),
    }
    return [play(first, FakeBackend(good), out), play(second, FakeBackend(bad), out)]


def timeless(text: str, out: Path) -> str:
    """A text without what differs from run to run."""
    text = text.replace(str(out), "RUNS").replace(f": {invoked.command()} ", ": labctl ")
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2026-01-01T00:00:00Z", text)
    text = re.sub(r"\b(after|until|at|since) \d+\.\d{3} s", r"\1 T.TTT s", text)
    text = re.sub(r"^([✓✗?-]  )\d+\.\d{3} s", r"\1T.TTT s", text, flags=re.MULTILINE)
    text = re.sub(r"  at \d+\.\d{3} s$", "  at T.TTT s", text, flags=re.MULTILINE)
    text = re.sub(r"(  |in )\d+\.\d s( on|$)", r"\1T.T s\2", text, flags=re.MULTILINE)
    text = re.sub(r"(reuse \w+ +)\d+\.\d *$", r"\1T.T", text, flags=re.MULTILINE)
    text = re.sub(r'"(at|seconds|lab_seconds)": [\d.]+', r'"\1": 0', text)
    text = re.sub(r'"\d\.\d{3} ', '"T.TTT ', text)
    text = re.sub(MEASURED, r"\1 0\2 0", text)
    return re.sub(r"^(    )\d\.\d{3} ", r"\1T.TTT ", text, flags=re.MULTILINE)


def printed(runs: list[RunResult], capsys: pytest.CaptureFixture[str], out: Path) -> str:
    print_runs(runs, console(), sum(run.seconds for run in runs))
    text = capsys.readouterr().out
    assert "\x1b" not in text
    lines = [line.rstrip() for line in timeless(text, out).splitlines()]
    return "\n".join(lines) + "\n"


@pytest.mark.usefixtures("environment")
def test_the_terminal_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")  # where the tests run in a wide terminal too
    runs = lessons(tmp_path)
    for name, chosen in {"good": runs[:1], "bad": runs[1:], "both": runs}.items():
        assert agrees(GOLDEN / f"report-{name}.txt", printed(chosen, capsys, tmp_path))


def test_the_document(tmp_path: Path) -> None:
    text = json.dumps(document(lessons(tmp_path)), indent=1) + "\n"
    assert agrees(GOLDEN / "document.json", timeless(text, tmp_path))


def test_what_is_shown_has_no_markup_of_its_own(
    tmp_path: Path, environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Square brackets are rich's; in titles, captions and outputs they are text."""
    text = (
        "title: a [bold]title[/] [/]\nhosts: {server: {run: cat}, client: {}}\n"
        "steps:\n  - start: server\n  - snapshot: '[red]caption[/]'\n"
        "  - expect: {process: {server: {output: '[?][/]'}}}\n"
    )
    (case,) = load_document(Document("lesson.yaml", text), text, "[a]", {})
    fake = FakeBackend({"start server": lambda lab: lab.output("server", "[green]out[/]\n")})
    print_runs([play(case, fake, tmp_path)], console(), 1.0)
    out = capsys.readouterr().out
    for shown in ("a [bold]title[/] [/]", "[red]caption[/]", "'[?][/]'", "[green]out[/]"):
        assert shown in out


def test_no_color(environment: Path) -> None:
    for arguments in (["list"], ["validate", "fin_wait_2"], ["run", "nothing"], ["--help"]):
        done = program(*arguments, NO_COLOR="1")
        assert "\x1b" not in done.stdout + done.stderr


def test_no_color_on_a_terminal(environment: Path) -> None:
    assert COLOURS.search(on_a_terminal(100, "list"))
    for code in COLOURS.findall(on_a_terminal(100, "list", NO_COLOR="1")):
        assert not re.search(r"[\[;](3|4|9|10)\d", code), "a colour"
    assert "\x1b" not in on_a_terminal(100, "list", TERM="dumb")


def test_a_reader_that_goes_away(environment: Path) -> None:
    """As in `labctl schema | head -1`: no traceback, and the status of SIGPIPE."""
    with subprocess.Popen(
        [sys.executable, "-m", "labctl", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_an_old_locale(environment: Path) -> None:
    done = program("list", PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
