"""The commands: their help, their exit statuses, and what they print."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from labctl import __version__
from labctl.cli import EXIT, main
from labctl.document import Document
from labctl.reports.terminal import console, print_runs
from labctl.resources import scenarios
from labctl.runner import RunResult, document
from labctl.scenario import load, load_document, schema
from tests.fake import FakeBackend, play, tcp
from tests.golden import HERE as GOLDEN
from tests.golden import agrees

SHIPPED = sorted(scenarios().rglob("*.yaml"))
COLOURS = re.compile(r"\x1b\[[0-9;]*m")

Labctl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user of its own, and no engine."""
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def labctl(environment: Path, capsys: pytest.CaptureFixture[str]) -> Labctl:
    """Runs a command: its status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments), prog_name="labctl")
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def program(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same as a program of its own."""
    return subprocess.run(
        [sys.executable, "-m", "labctl", *arguments],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


# Help


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command, by the words that choose it."""
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(labctl: Labctl, path: tuple[str, ...], option: str) -> None:
    status, out, err = labctl(*path, option)
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: {' '.join(('labctl', *path))} ")
    paragraphs = out.split("\n\n")
    assert len(paragraphs[1].split()) >= 4, "what it does"
    for line in out.splitlines():
        assert len(line) <= 80


def test_options_are_explained() -> None:
    for path in commands():
        command: Any = main
        for word in path:
            command = command.commands[word]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not command.hidden:
                assert parameter.help or parameter.name == "form", (path, parameter.name)


def test_help_of_all_names_every_command(labctl: Labctl) -> None:
    _, out, _ = labctl("--help")
    for path in commands():
        assert path[:1] in ((), ("_hold",)) or f"\n  {path[0]} " in out
    assert "_hold" not in out


def test_help_is_quick() -> None:
    """It imports none of what only a run needs."""
    script = """
import sys
from labctl.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.splitlines()[-1].split())
    assert "labctl.cli" in modules
    assert not modules & {"pydantic", "rich", "docker", "yaml", "requests", "labctl.scenario"}


def test_version(labctl: Labctl) -> None:
    assert labctl("--version") == (0, f"labctl, version {__version__}\n", "")


# Exit statuses


def test_a_status_for_every_result() -> None:
    assert EXIT == {"pass": 0, "fail": 1, "unknown": 3, "skip": 3, "error": 4}


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"], ["run"], ["run", "--nonsense"], ["run", "x", "--backend", "lxc"],
        ["run", "x", "--format", "xml"], ["run", "no-such-scenario"], ["validate"],
        ["validate", "no-such-scenario"], ["list", "--format", "xml"], ["shell"],
        ["shell", "server"], ["shell", "server", "--run", "x"], ["images", "nonsense"],
        ["run", "fin_wait_2", "--set", "x"], ["run", "fin_wait_2", "--set", "no_such=1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_usage(labctl: Labctl, arguments: list[str], environment: Path) -> None:
    status, out, err = labctl(*arguments)
    assert (status, out) == (2, "")
    assert err
    assert "Traceback" not in err
    assert not (environment / "labctl" / "runs").exists()


def test_no_arguments_at_all(labctl: Labctl) -> None:
    status, out, err = labctl()
    assert status == 2
    assert "Usage: labctl" in out + err


def test_nothing_is_up(labctl: Labctl) -> None:
    assert labctl("ps") == (0, "no lab is up\n", "")
    assert labctl("down") == (0, "", "")
    status, out, err = labctl("shell", "server")
    assert (status, out) == (2, "")
    assert err == "labctl: no lab is up; start one with: labctl up\n"


def test_no_engine_is_unavailable(labctl: Labctl) -> None:
    status, out, err = labctl("images", "build")
    assert (status, out) == (3, "")
    assert err.startswith("labctl: ")
    assert "Traceback" not in err


# The catalogue and the language


def test_list(labctl: Labctl) -> None:
    status, out, err = labctl("list", "--format", "json")
    assert (status, err) == (0, "")
    entries = json.loads(out)
    assert [entry["name"] for entry in entries] == [path.stem for path in SHIPPED]
    for entry in entries:
        assert entry["title"]
        assert entry["variants"] >= 1
        assert Path(entry["source"]).is_file()
    status, table, _ = labctl("list")
    assert status == 0
    for entry in entries:
        assert entry["name"] in table
        assert entry["title"].split()[0] in table


def test_validate(labctl: Labctl) -> None:
    status, out, err = labctl("validate", str(scenarios()))
    assert (status, err) == (0, "")
    cases = sum(len(load(path)) for path in SHIPPED)
    assert out == f"{len(SHIPPED)} scenarios, {cases} cases: valid\n"
    status, out, _ = labctl("validate", "fin_wait_2")
    assert (status, out.split(",")[0]) == (0, "1 scenario")


def test_schema(labctl: Labctl) -> None:
    status, out, err = labctl("schema")
    assert (status, err) == (0, "")
    assert json.loads(out) == schema()
    found = schema()
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(found["required"]) == {"title", "hosts", "steps"}
    assert found["additionalProperties"] is False
    references = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', out))
    assert references <= set(found["$defs"])


def test_schema_is_a_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())


def written(path: Path) -> Mapping[str, Any]:
    """A shipped scenario as its author wrote it, its params filled in."""
    read = Document.read(path)
    params = read.expand(None).data
    first = (params.get("variants") or [{}])[0]
    data: Mapping[str, Any] = read.expand({**params.get("params", {}), **first}).data
    return data


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_fit_the_schema(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(schema()).validate(written(path))


@pytest.mark.parametrize(
    "steps",
    [
        "[{strat: server}]", "[{start: server, stop: server}]", "[7]", "{}", "[{wait: LISTEN}]",
        "[{wait: {sockts: {server: none}}}]", "[{note: a, within: 5s}]", "[{call: close}]",
        "[{signal: {server: TREM}}]",
    ],
)  # fmt: skip
def test_the_schema_finds_mistakes(steps: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    text = f"title: t\nhosts: {{server: {{calls: close}}, client: {{}}}}\nsteps: {steps}\n"
    validator = jsonschema.Draft202012Validator(schema())
    assert list(validator.iter_errors(Document("t", text).expand(None).data))


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
    good = {
        "start server": [listens, can_not_bind],
        "kill server": is_killed,
        "look server": looked,
    }
    bad = {"start server": [listens, binds], "kill server": lambda lab: lab.sockets("server")}
    return [play(first, FakeBackend(good), out), play(second, FakeBackend(bad), out)]


def timeless(text: str, out: Path) -> str:
    """A text without what differs from run to run."""
    text = text.replace(str(out), "RUNS")
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2026-01-01T00:00:00Z", text)
    text = re.sub(r"\b(after|until) \d+\.\d{3} s", r"\1 T.TTT s", text)
    text = re.sub(r"^([✓✗?-]  )\d+\.\d{3} s", r"\1T.TTT s", text, flags=re.MULTILINE)
    text = re.sub(r"  at \d+\.\d{3} s$", "  at T.TTT s", text, flags=re.MULTILINE)
    text = re.sub(r"(  |in )\d+\.\d s( on|$)", r"\1T.T s\2", text, flags=re.MULTILINE)
    text = re.sub(r"(reuse \w+ +)\d+\.\d *$", r"\1T.T", text, flags=re.MULTILINE)
    text = re.sub(r'"(at|seconds|lab_seconds)": [\d.]+', r'"\1": 0', text)
    text = re.sub(r'"\d\.\d{3} ', '"T.TTT ', text)
    return re.sub(r"^(    )\d\.\d{3} ", r"\1T.TTT ", text, flags=re.MULTILINE)


def printed(runs: list[RunResult], capsys: pytest.CaptureFixture[str], out: Path) -> str:
    print_runs(runs, console())
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
    print_runs([play(case, fake, tmp_path)], console())
    out = capsys.readouterr().out
    for shown in ("a [bold]title[/] [/]", "[red]caption[/]", "'[?][/]'", "[green]out[/]"):
        assert shown in out


def test_no_color(environment: Path) -> None:
    for arguments in (["list"], ["validate", "fin_wait_2"], ["run", "nothing"], ["--help"]):
        done = program(*arguments, NO_COLOR="1")
        assert "\x1b" not in done.stdout + done.stderr


def on_a_terminal(environment: Mapping[str, str]) -> str:
    """What `labctl list` writes to a terminal."""
    controller, terminal = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment}
    with subprocess.Popen(
        [sys.executable, "-m", "labctl", "list"], env=variables, stdout=terminal
    ):  # fmt: skip
        os.close(terminal)
        output = b""
        try:
            while data := os.read(controller, 65536):
                output += data
        except OSError:  # EIO: the other end is closed
            pass
    os.close(controller)
    return output.decode()


def test_no_color_on_a_terminal(environment: Path) -> None:
    assert COLOURS.search(on_a_terminal({}))
    for code in COLOURS.findall(on_a_terminal({"NO_COLOR": "1"})):
        assert not re.search(r"[\[;](3|4|9|10)\d", code), "a colour"
    assert "\x1b" not in on_a_terminal({"TERM": "dumb"})


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
