"""The commands: their help, their exit statuses, and what they print."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest

from labctl import __version__
from labctl.cli.commands import _also as also
from labctl.cli.commands import main
from labctl.cli.exits import EXIT
from labctl.ground import invoked
from labctl.ground.resources import catalogue, scenarios
from labctl.judge import recorded
from labctl.judge.result import RunResult, document
from labctl.language.document import Document
from labctl.language.params import Given
from labctl.language.scenario import load, load_document
from labctl.language.schema import schema
from labctl.record.events import TroubleEvent
from labctl.reports import junit
from labctl.reports.tables import console
from labctl.reports.terminal import print_runs
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
from labctl.cli.commands import main
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
    assert "labctl.cli.commands" in modules
    assert not modules & {
        *("pydantic", "rich", "docker", "yaml", "requests", "dpkt", "jinja2"),
        "labctl.language.scenario",
    }


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
        ["check"], ["check", "x", "--format", "html"], ["report"], ["report", "x"],
        ["report", "x", "--format", "pdf"], ["run", "fin_wait_2", "--set", "x"],
        ["run", "fin_wait_2", "--set", "no_such=1"],
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


def test_up_ends_as_what_it_started_did() -> None:
    done = program("up", "--backend", "docker", DOCKER_HOST="unix:///nowhere.sock")
    assert (done.returncode, done.stdout) == (EXIT["skip"], "")
    assert done.stderr.startswith("labctl: no Docker engine answers at unix:///nowhere.sock")
    assert len(done.stderr.splitlines()) == 1


def test_list(labctl: Labctl) -> None:
    status, out, err = labctl("list", "--format", "json")
    assert (status, err) == (0, "")
    entries = json.loads(out)
    assert {entry["name"] for entry in entries} == catalogue(scenarios()).keys()
    themes = [entry["theme"] for entry in entries]
    assert themes == sorted(themes)
    assert all(themes)
    for entry in entries:
        assert entry["title"]
        assert entry["seconds"] > 0
        assert entry["variants"] >= 1
        assert Path(entry["source"]).is_file()
    status, table, _ = labctl("list")
    assert status == 0
    for entry in entries:
        assert entry["name"] in table
        assert entry["theme"] in table
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


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_fit_the_schema(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    read = Document.read(path)
    validator.validate(read.expand(None).data)
    for choice in Given(read).choices({}):
        validator.validate(read.expand(choice.params).data)


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
    text = text.replace(str(out), "RUNS").replace(f"all: {invoked.command()} ", "all: labctl ")
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2026-01-01T00:00:00Z", text)
    text = re.sub(r"\b(after|until|at|since) \d+\.\d{3} s", r"\1 T.TTT s", text)
    text = re.sub(r"^([✓✗?-]  )\d+\.\d{3} s", r"\1T.TTT s", text, flags=re.MULTILINE)
    text = re.sub(r"  at \d+\.\d{3} s$", "  at T.TTT s", text, flags=re.MULTILINE)
    text = re.sub(r"(  |in )\d+\.\d s( on|$)", r"\1T.T s\2", text, flags=re.MULTILINE)
    text = re.sub(r"(reuse \w+ +)\d+\.\d *$", r"\1T.T", text, flags=re.MULTILINE)
    text = re.sub(r'"(at|seconds|lab_seconds)": [\d.]+', r'"\1": 0', text)
    text = re.sub(r'"\d\.\d{3} ', '"T.TTT ', text)
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


# Recorded runs


RUN = Path(__file__).parent / "data" / "run"
FORMATS = ["ladder", "html", "junit", "markdown", "mermaid"]


def copied(folder: Path, edit: Callable[[str], str] = str, more: str = "") -> str:
    """A copy of the recorded run, with its scenario edited, and more events."""
    shutil.copytree(RUN, folder)
    scenario = folder / "scenario.yaml"
    scenario.write_text(edit(scenario.read_text()))
    with (folder / "history.jsonl").open("a") as file:
        file.write(more)
    return str(folder)


def test_check(labctl: Labctl) -> None:
    status, out, err = labctl("check", str(RUN))
    assert (status, err) == (0, "")
    assert out.count("✓") == 9
    assert "server: at least 1 FIN from server" in out


def test_check_for_programs(labctl: Labctl) -> None:
    status, out, err = labctl("check", str(RUN), str(RUN), "--format", "json")
    assert (status, err) == (0, "")
    first, second = json.loads(out)
    assert first == second
    (run,) = json.loads((RUN / "result.json").read_text())["runs"]
    assert [(v["what"], v["actual"]) for v in first] == [
        (v["what"], v["actual"]) for v in run["verdicts"]
    ]


def test_check_of_another_claim(labctl: Labctl, tmp_path: Path) -> None:
    """A record can be asked what nobody asked when it was made."""
    more = "  - segments: {flags: RST, count: 0}\n  - segments: {flags: FIN, count: 7}\n"
    status, out, _ = labctl("check", copied(tmp_path / "run", lambda text: text + more))
    assert status == EXIT["fail"]
    assert re.search(r"^✓ .* segments: 0 x RST +0 *$", out, re.MULTILINE)
    assert re.search(r"^✗ .* segments: 7 x FIN +2 *$", out, re.MULTILINE)


def test_check_of_what_can_not_be_known(labctl: Labctl, tmp_path: Path) -> None:
    lost = TroubleEvent(9.0, "server", "capture", "3 packets were not captured").to_json()
    folder = copied(tmp_path / "run", more=f"{lost}\n")
    status, out, _ = labctl("check", str(RUN), folder)
    assert status == EXIT["unknown"]
    assert "3 packets were not captured" in out


@pytest.mark.parametrize("command", ["check", "report"])
def test_a_folder_that_is_no_run(labctl: Labctl, tmp_path: Path, command: str) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        status, out, err = labctl(command, str(RUN), str(folder))
        assert (status, out) == (2, "")
        assert err.startswith(f"labctl: {folder}: no recorded run: ")
        assert "give a folder that `labctl run` recorded" in err


def test_check_of_a_scenario_that_is_none(labctl: Labctl, tmp_path: Path) -> None:
    folder = copied(tmp_path / "run", lambda text: text.replace("flags: FIN", "flags: FINN"))
    status, out, err = labctl("check", folder)
    assert (status, out) == (2, "")
    assert "unknown flag 'FINN'" in err
    assert labctl("report", folder)[0] == 0


@pytest.mark.parametrize("form", FORMATS)
def test_report(labctl: Labctl, tmp_path: Path, form: str) -> None:
    status, out, err = labctl("report", str(RUN), "--format", form)
    assert (status, err) == (0, "")
    assert "FIN" in out
    assert out.endswith("\n")
    assert "\x1b" not in out
    file = tmp_path / "file"
    assert labctl("report", str(RUN), "--format", form, "--out", str(file)) == (0, "", "")
    assert file.read_text("utf-8") == out


def test_report_is_a_ladder_unless_told_otherwise(labctl: Labctl) -> None:
    assert labctl("report", str(RUN)) == labctl("report", str(RUN), "--format", "ladder")


def test_report_of_a_run_that_failed(labctl: Labctl, tmp_path: Path) -> None:
    """It shows what was; to judge is `check`'s."""
    folder = Path(copied(tmp_path / "run"))
    result = folder / "result.json"
    result.write_text(result.read_text().replace('"result": "pass"', '"result": "fail"'))
    assert labctl("report", str(folder))[0] == 0


def test_several_runs_are_pages_and_an_index(labctl: Labctl, tmp_path: Path) -> None:
    folders = [copied(tmp_path / name) for name in ("one", "two")]
    site = tmp_path / "site"
    site.mkdir()
    index = site / "index.html"
    assert labctl("report", *folders, "--format", "html", "--out", str(index)) == (0, "", "")
    assert sorted(path.name for path in site.iterdir()) == ["index.html", "one.html", "two.html"]
    text = index.read_text("utf-8")
    assert 'href="one.html"' in text
    assert 'href="two.html"' in text
    assert "<svg" in (site / "one.html").read_text("utf-8")


def test_a_report_that_can_not_be_written(labctl: Labctl, tmp_path: Path) -> None:
    file = tmp_path / "none" / "file.html"
    status, out, err = labctl("report", str(RUN), "--format", "html", "--out", str(file))
    assert (status, out) == (2, "")
    assert err == f"labctl: {file}: can't be written: No such file or directory\n"


def test_junit(tmp_path: Path) -> None:
    """Golden, and as others read it."""
    runs = [recorded.load(result.folder) for result in lessons(tmp_path)]
    text = junit.document(runs)
    timeless_text = re.sub(r'(time(stamp)?)="[^"]*"', r'\1="T"', timeless(text, tmp_path))
    timeless_text = re.sub(r"^(\d\.\d{3}) ", "T.TTT ", timeless_text, flags=re.MULTILINE)
    assert agrees(GOLDEN / "report.junit.xml", timeless_text)
    suites = ElementTree.fromstring(text)
    assert suites.tag == "testsuites"
    counts = {key: int(suites.get(key, "")) for key in ("tests", "failures", "errors")}
    verdicts = Counter(v.result for run in runs for v in run.verdicts)
    assert counts == {
        "tests": verdicts.total(), "failures": verdicts["fail"], "errors": verdicts["unknown"]
    }  # fmt: skip


def test_reports_of_a_run_at_once(
    tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `labctl run --junit --html` writes, and the summary where CI wants one."""
    runs = lessons(tmp_path / "runs")
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    also(runs, {"junit": tmp_path / "junit.xml", "html": tmp_path / "index.html"})
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().tag == "testsuites"
    assert 'href="lesson-2.html"' in (tmp_path / "index.html").read_text("utf-8")
    assert (tmp_path / "lesson-2.html").exists()
    assert summary.read_text("utf-8").startswith("before\n## 2 runs\n")


def test_a_guest_refuses_what_it_can_not_do(labctl: Labctl) -> None:
    for options, said in (
        (("--kernel", "6.1", "-j", "2"), "one case at a time in its guest; leave --jobs 2 out"),
        (("--kernel", "6.1", "--keep"), "--kernel has no lab to keep"),
        (("--kernel", "6.1", "--backend", "docker"), "leave --backend docker out"),
        (("--kernel", "6.1", "--os", "alpine:3.20"), "allowed: debian:11, debian:12, debian:13, "),
        (("--virtual-time",), "choose its kernel: --kernel NAME"),
    ):
        status, _, err = labctl("run", "process_end", *options)
        assert status == 2
        assert said in err


def test_a_lab_to_keep_is_the_only_one(labctl: Labctl) -> None:
    status, _, err = labctl("run", "process_end", "--keep", "--jobs", "2")
    assert (status, err) == (
        2, "labctl: --keep keeps one lab at a time, so it can't go with --jobs 2\n"
    )  # fmt: skip
    for wrong in ("0", "33", "some"):
        status, _, err = labctl("run", "process_end", "-j", wrong)
        assert status == 2
        assert "'-j' / '--jobs'" in err


def test_namespaces_refuse_another_system(labctl: Labctl) -> None:
    status, _, err = labctl("run", "process_end", "--backend", "netns", "--os", "debian:11")
    assert status == 2
    assert err.startswith("labctl: namespaces run on this machine's own system, not on 'debian:11'")


def test_a_system_that_is_asked_for_wants_an_engine(
    labctl: Labctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    status, out, err = labctl("run", "process_end", "--os", "debian:12", "--format", "json")
    assert status == 3, err
    runs = json.loads(out)["runs"]
    assert {run["result"] for run in runs} == {"skip"}
    assert all("no Docker engine answers" in run["reason"] for run in runs)
