"""The commands for labs that are up, to use by hand: `up`, `shell`, `ps`, `down`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from labctl.cli.arguments import backend_option, engine_option, os_option
from labctl.ground.output import show, tell
from labctl.ground.plain import plain

READY = "ready"


@click.command()
@backend_option
@os_option
@engine_option
def up(backend: str, os: str | None, engines: tuple[str, ...]) -> int:
    """Bring up the default lab, two hosts, to use by hand until `labctl down`.

    \b
    Examples:
      labctl up; labctl shell server -- ip address; labctl down
      labctl up --backend netns
    """
    from labctl.ground import invoked
    from labctl.ground.errors import LabError

    command = [sys.executable, "-m", "labctl", "_hold", "--backend", backend]
    command += ["--os", os] if os else []
    command += [word for engine in engines for word in ("--engine", engine)]
    holder = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert holder.stdout
    hosts = holder.stdout.readline().split()
    if not hosts or hosts[0] != READY:
        status = holder.wait()
        if status <= 0:
            raise LabError("the lab ended as soon as it was up")
        return status  # the other labctl has said why
    labctl = invoked.command()
    line = f"up: {', '.join(hosts[1:])}. Enter with: {labctl} shell {hosts[1]}. "
    show("what is up", lambda: click.echo(f"{line}End with: {labctl} down"))
    return 0


@click.command("_hold", hidden=True)
@backend_option
@os_option
@engine_option
def hold(backend: str, os: str | None, engines: tuple[str, ...]) -> None:
    """Keeps the default lab; `labctl up` runs this in the background."""
    from os import devnull, dup2

    from labctl.run import workflow
    from labctl.run.places import place

    def ready(lab: Any) -> None:
        print(READY, *lab.hosts, flush=True)
        with Path(devnull).open("w") as nowhere:
            dup2(nowhere.fileno(), 1)
            dup2(nowhere.fileno(), 2)

    with workflow.interruptible():
        workflow.hold(place(backend, os, None, False, engines), tell, ready)


@click.command()
@click.argument("host")
@click.argument("command", nargs=-1)
@click.option("--run", "chosen", metavar="RUN", help="Which lab, where several are up (labctl ps).")
def shell(host: str, command: tuple[str, ...], chosen: str | None) -> int:
    """A shell on a host of a lab that is up, or one COMMAND there.

    \b
    Examples:
      labctl up; labctl shell server
      labctl shell client -- ss -tan
    """
    from labctl.cli.shell import enter

    return enter(host, list(command), chosen)


@click.command()
def ps() -> None:
    """The labs that are up, and who runs them.

    \b
    Examples:
      labctl ps
    """
    from labctl.backends.lease import leases
    from labctl.reports.tables import console, print_table

    rows = [
        [x.run, x.kind, x.what, x.backend, " ".join(x.hosts), str(x.pid), x.started]
        for x in leases()
    ]
    if not rows:
        click.echo("no lab is up")
        return
    columns = ["run", "kind", "what", "backend", "hosts", "pid", "since"]
    print_table(console(), columns, rows)


@click.command()
@engine_option
def down(engines: tuple[str, ...]) -> None:
    """Remove everything that labctl made and nobody uses: labs that are up, and what is left of
    runs that were killed. Runs that are alive stay.

    \b
    Examples:
      labctl down
      labctl down --engine my-context
    """
    from labctl.backends.lease import leases
    from labctl.ground.errors import LabError
    from labctl.run import workflow
    from labctl.run.places import engines_at

    def say(line: str) -> None:
        show("what is done", lambda: click.echo(plain(line)))  # and do the rest in any case

    stuck = []
    for lease in list(leases()):
        if lease.kind != "up":
            say(f"left alone: {lease.what} runs, as process {lease.pid}")
            continue
        try:
            if workflow.end(lease):
                say(f"down: {lease.what} on {lease.backend}")
            else:
                stuck.append(f"process {lease.pid} did not end; kill it and try again")
        except LabError as exc:
            stuck.append(str(exc))
    lines, failures = workflow.sweep_all(engines_at(engines))
    for line in lines:
        say(f"removed: {line}")
    stuck += map(str, failures)
    if stuck:
        raise LabError("; ".join(stuck))


COMMANDS: tuple[click.Command, ...] = (up, hold, shell, ps, down)
