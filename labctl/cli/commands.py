"""The commands. Only this module exits, and reports errors."""

from __future__ import annotations

import gc
import io
import json
import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from labctl.cli import labs, machine
from labctl.cli.arguments import (
    Port,
    compose_option,
    form_option,
    last_option,
    offering,
    runs_argument,
    scenarios_argument,
    shipped_names,
)
from labctl.cli.exits import EXIT, INTERRUPTED
from labctl.cli.grading import grade
from labctl.cli.imports import import_
from labctl.cli.matrix import matrix
from labctl.cli.run import run
from labctl.cli.tour import tour
from labctl.cli.watch import watch
from labctl.ground.output import UNWRITABLE, flush, prepare, show, silence, tell
from labctl.ground.plain import plain_lines

NO_COLOR = "--no-color"


class Commands(click.Group):
    """The group of commands, with labctl's exit statuses for its exceptions."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes the option that may stand anywhere: before a command or after it."""
        end = args.index("--") if "--" in args else len(args)
        if NO_COLOR in args[:end]:
            ctx.color = False
            args = [*(word for word in args[:end] if word != NO_COLOR), *args[end:]]
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Runs a command; see README for what each exit status means."""
        from labctl.ground import crash
        from labctl.ground.errors import LabctlError
        from labctl.ground.invoked import see_all_tools

        see_all_tools()
        gc.set_threshold(50_000)  # what is imported stays: looking for garbage in it takes long
        prepare()
        crash.prepare(tell)
        try:
            status = super().main(*args, **{**extra, "standalone_mode": False})
            flush()
        except click.exceptions.Abort:
            _exit(INTERRUPTED, "interrupted")
        except click.ClickException as exc:
            words = io.StringIO()
            exc.show(words)
            tell(words.getvalue().rstrip("\n"))
            _exit(exc.exit_code)
        except LabctlError as exc:
            _exit(exc.exit_status, str(exc))
        except Exception as exc:
            if isinstance(exc, OSError) and exc.errno in UNWRITABLE and exc.filename is None:
                silence(sys.stdout)
                _exit(2, f"this can't be written: {exc.strerror}")
            _exit(EXIT["error"], crash.sentence(exc))
        finally:
            gc.freeze()  # and Python does not look through it once more as it ends
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the chosen command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            silence(sys.stdout)
            _exit(141)  # the status that shells give for SIGPIPE


def _exit(status: int, message: str = "") -> NoReturn:
    if message:
        tell(message if _located(message.partition("\n")[0]) else f"labctl: {message}")
    sys.exit(status)


def _located(line: str) -> bool:
    parts = line.split(":", 2)
    return len(parts) == 3 and parts[1].isdigit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="labctl-tcp", prog_name="labctl")
@click.option(NO_COLOR, is_flag=True, expose_value=False, help="No colours, as with NO_COLOR set.")
def main() -> None:
    """A lab for TCP connections that end badly.

    \b
    Examples:
      labctl run fin_wait_2                 # one lesson, by name
      labctl run scenarios --format json    # all of a folder, for programs
      labctl report --last                  # what happened, as a picture
      labctl list                           # what there is to see
      labctl up; labctl shell server        # two hosts for your own hands
      labctl doctor                         # what this machine can do

    Exit status: 0 all passed, 1 an expectation failed, 2 bad usage or scenario, 3 something is
    unknown or could not run, 4 the lab itself failed, 130 interrupted.
    """


@main.command()
@runs_argument
@last_option
@click.option(
    "--scenario",
    "claims",
    type=click.Path(path_type=Path),
    metavar="CLAIMS",
    help="Judge what this file claims, not what the run's own scenario does.",
)
@click.option("--format", "form", default="table", type=click.Choice(["table", "json"]))
def check(runs: tuple[str, ...], last: bool, claims: Path | None, form: str) -> int:
    """Judge recorded runs again, from their folders alone. RUN is as in `labctl report`.

    \b
    Examples:
      labctl check --last
      labctl show fin_wait_2 > claims.yaml
      labctl check fin_wait_2 --scenario claims.yaml
    """
    from labctl.cli import chosen
    from labctl.judge.check import overall
    from labctl.judge.rejudge import judge

    judged = [judge(folder, claims) for folder in chosen.find(runs, last)]
    verdicts = [verdict for found in judged for verdict in found]

    def write() -> None:
        from labctl.reports.tables import console
        from labctl.reports.terminal import print_verdicts

        if form == "json":
            click.echo(json.dumps([[v.as_json() for v in found] for found in judged], indent=1))
        else:
            print_verdicts(verdicts, console())

    show("the verdicts", write)
    return EXIT[overall(verdict.result for verdict in verdicts)]


@main.command()
@runs_argument
@last_option
@form_option(["text", "json"], "How the causes are written to stdout.")
def explain(runs: tuple[str, ...], last: bool, form: str) -> None:
    """Say what caused what in recorded runs: binds that failed, resets, silence, states that stay.

    RUN is as in `labctl report`. Each cause says by what it is known, and what to do.

    \b
    Examples:
      labctl explain --last
      labctl explain fin_wait_2 --format json
    """
    from labctl.cli import chosen
    from labctl.judge.causes.rules import causes
    from labctl.judge.recorded import load, scenario_of

    found = [
        (run.label, causes(run.history, scenario_of(run)))
        for run in map(load, chosen.find(runs, last))
    ]

    def write() -> None:
        from labctl.reports.tables import console
        from labctl.reports.terminal import print_causes

        if form == "json":
            click.echo(json.dumps([[c.as_json() for c in each] for _, each in found], indent=1))
        else:
            print_causes(found, console())

    show("the causes", write)


@main.command()
@click.argument("port", type=Port())
@click.option("--container", metavar="NAME", help="In this container's network, and not here.")
@form_option(["text", "json"], "How it is written to stdout.")
def blame(port: int, container: str | None, form: str) -> int:
    """Say what holds a port: who, for how long, and what to do. It needs no lab.

    \b
    Examples:
      labctl blame 8000
      labctl blame 80 --container web

    Exit status: 0 if nothing holds the port, 1 if something does.
    """
    from labctl.run.blame import blame

    found = blame(port, container)

    def write() -> None:
        from labctl.reports.tables import console
        from labctl.reports.terminal import print_holders

        if form == "json":
            click.echo(json.dumps([holder.as_json() for holder in found], indent=1))
        else:
            print_holders(port, found, console())

    show("what holds the port", write)
    return 1 if found else 0


@main.command()
@runs_argument
@last_option
@click.option(
    "--format",
    "form",
    default="ladder",
    show_default=True,
    type=click.Choice(["ladder", "html", "junit", "ktap", "markdown", "mermaid", "pcapng"]),
    help="What to make of it.",
)
@click.option("--out", metavar="FILE", help="Instead of stdout.")
@click.option("--blank", is_flag=True, help="A ladder with gaps, to fill in: see `labctl grade`.")
def report(runs: tuple[str, ...], last: bool, form: str, out: str | None, blank: bool) -> None:
    """Render recorded runs, from their folders alone.

    RUN is the folder of a run, a folder of such folders, or the name of a case: of that the newest
    run.

    \b
    Examples:
      labctl report --last
      labctl report fin_wait_2
      labctl report fin_wait_2 --format html --out fin_wait_2.html
      labctl report --last --format pcapng --out run.pcapng
      labctl report --last --blank > sheet.txt
    """
    from labctl import reports
    from labctl.cli import chosen
    from labctl.ground.errors import UsageError
    from labctl.ground.output import write_file
    from labctl.judge import annotated
    from labctl.judge.recorded import load

    recorded = [load(folder) for folder in chosen.find(runs, last)]
    if blank and form != "ladder":
        raise UsageError(f"--blank is a ladder, not {form}", "leave --format out")
    form = "blank" if blank else form
    if form == "html" and len(recorded) > 1 and not out:
        raise UsageError("several runs as HTML are an index and a page each", "name it: --out FILE")
    if form == "pcapng" and len(recorded) > 1:
        raise UsageError("a capture is of one run", "name it: labctl report RUN --format pcapng")
    if out:
        file = Path(out)
        try:
            if form == "html" and len(recorded) > 1 and (out.endswith("/") or file.is_dir()):
                file.mkdir(exist_ok=True)
                file /= "index.html"
            if form == "pcapng":
                write_file(file, annotated.capture(recorded[0]))
            else:
                reports.write(form, recorded, file)
        except OSError as exc:
            raise UsageError(f"{out}: can't be written: {exc.strerror}") from exc
    elif form == "pcapng":
        for part in annotated.capture(recorded[0]):
            click.echo(part, nl=False)
    elif form == "ladder":
        from labctl.reports.terminal import print_ladders

        print_ladders(recorded)
    else:
        text = reports.render(form, recorded)
        # A page and XML declare their encoding themselves.
        click.echo(text.encode() if form in ("html", "junit") else text, nl=False)


@main.command("scenario")
@runs_argument
@last_option
def scenario_(runs: tuple[str, ...], last: bool) -> None:
    """Print a scenario that does again what a recorded run shows, to begin with.

    It has the run's hosts, the calls of its processes, their ends, the segments that were lost or
    crafted, and waits for the states that were seen. RUN is as in `labctl report`.

    \b
    Examples:
      labctl scenario --last > again.yaml; labctl run again.yaml
    """
    from labctl.cli import chosen
    from labctl.ground.errors import UsageError
    from labctl.judge.recorded import load, scenario_of
    from labctl.reports.skeleton import skeleton

    folders = chosen.find(runs, last)
    if len(folders) > 1:
        raise UsageError("a scenario is of one run", "name it: labctl scenario RUN")
    run = load(folders[0])
    click.echo(skeleton(run, scenario_of(run)), nl=False)


@main.command()
@scenarios_argument
@compose_option
def validate(paths: tuple[str, ...], compose: Path | None) -> None:
    """Check scenarios without running them: every error at once, with file and line.

    \b
    Examples:
      labctl validate scenarios
      labctl show fin_wait_2 > mine.yaml; labctl validate mine.yaml
    """
    from labctl.cli.arguments import find
    from labctl.ground.resources import scenarios
    from labctl.ground.written import count
    from labctl.run import workflow

    files = find(paths, scenarios())
    cases = workflow.load_all(files, {}, compose)
    click.echo(f"{count(len(files), 'scenario')}, {count(len(cases), 'case')}: valid")


@main.command("show")
@click.argument("name", shell_complete=offering(shipped_names))
def show_(name: str) -> None:
    """Print a shipped scenario, or all of a folder of them.

    \b
    Examples:
      labctl show fin_wait_2
      labctl show fin_wait_2 > mine.yaml    # to begin one of your own with
    """
    from labctl.cli.arguments import find
    from labctl.ground.resources import scenarios
    from labctl.language.document import Document

    files = find([name], scenarios())
    for file in files:
        if len(files) > 1:
            click.echo(f"# {file.name}")
        text = Document.read(file).text
        click.echo(plain_lines(text) if sys.stdout.isatty() else text, nl=False)


@main.command("list")
@click.option("--format", "form", default="table", type=click.Choice(["table", "json"]))
def list_(form: str) -> None:
    """The catalogue of shipped scenarios by theme, a line each. The time is about what all of its
    cases take, one after the other.

    \b
    Examples:
      labctl list
      labctl list --format json
    """
    from dataclasses import asdict
    from itertools import groupby

    from labctl.ground.resources import scenarios
    from labctl.language.catalogue import entries

    found = entries(scenarios())
    if form == "json":
        click.echo(json.dumps([asdict(entry) for entry in found], indent=1))
        return
    from labctl.reports.tables import console, print_table

    out = console()
    for theme, lessons in groupby(found, lambda entry: entry.theme):
        rows = [[x.name, str(x.variants), _rounded(x.seconds), x.title] for x in lessons]
        print_table(out, ["name", "cases", "time", "title"], rows, theme)


def _rounded(seconds: float) -> str:
    return f"{math.ceil(seconds)} s" if seconds < 600 else f"{math.ceil(seconds / 60)} min"


SCHEMAS_AT = "https://github.com/labctl-tcp/labctl/raw/main/docs"
SCHEMAS = {
    "scenario": "labctl.language.schema",
    "history": "labctl.record.schema",
    "result": "labctl.judge.schema",
}


@main.command()
@click.argument("what", default="scenario", type=click.Choice([*SCHEMAS]), metavar="[WHAT]")
def schema(what: str) -> None:
    """The JSON Schema of the language, for editors. WHAT is `scenario`, or for programs that read
    what runs leave: `history`, a line of history.jsonl, or `result`, the result document.

    \b
    Examples:
      labctl schema > scenario.schema.json
      labctl schema history
    """
    made = {"$id": f"{SCHEMAS_AT}/{what}.schema.json", **import_module(SCHEMAS[what]).schema()}
    click.echo(json.dumps(made, indent=1, sort_keys=True))


for command in (*labs.COMMANDS, *machine.COMMANDS, grade, import_, matrix, run, tour, watch):
    main.add_command(command)
