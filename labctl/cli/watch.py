"""The command `labctl watch`."""

from __future__ import annotations

from pathlib import Path

import click

from labctl.cli.arguments import Port, as_one, folder_option
from labctl.cli.exits import EXIT
from labctl.ground.data import dataclass
from labctl.ground.output import show


@dataclass(frozen=True)
class Asked:
    """The arguments of `labctl watch`."""

    containers: tuple[str, ...]
    project: str | None
    here: bool
    pids: tuple[int, ...]
    ports: tuple[int, ...]
    calls: bool
    length: str | None
    out: Path | None


@click.command()
@click.option(
    "--container",
    "containers",
    multiple=True,
    metavar="NAME",
    help="The network of this container; several on one clock.",
)
@click.option("--compose", "project", metavar="PROJECT", help="All containers of this project.")
@click.option("--here", is_flag=True, help="This machine's own network.")
@click.option(
    "--pid", "pids", multiple=True, type=click.IntRange(1), metavar="PID",
    help="The network that this process is in.",
)  # fmt: skip
@click.option(
    "--port", "ports", multiple=True, type=Port(), metavar="N",
    help="Only sockets and packets of this port.",
)  # fmt: skip
@click.option(
    "--calls", is_flag=True,
    help="Also the socket calls of what is watched. It slows them down: see docs/watch.md.",
)  # fmt: skip
@click.option("--for", "length", metavar="TIME", help="So long: 30s, 5m. Until Ctrl-C by default.")
@folder_option("Where to record it.")
@as_one(Asked)
def watch(asked: Asked) -> int:
    """Record what already runs, and say what caused what. It only looks.

    \b
    Examples:
      labctl watch --container web --container db
      labctl watch --compose shop --port 5432 --for 30s
      labctl watch --here --port 8000
      labctl watch --pid 4711 --calls

    What it records is a run: `labctl report --last` draws it, `labctl explain --last` says what
    caused what, `labctl check RUN --scenario CLAIMS.yaml` judges it.

    Exit status: 0, also after Ctrl-C; 2 for a mistake, 3 without an engine, 4 if watching failed.
    """
    from labctl.cli import chosen
    from labctl.reports.watching import print_watch, viewer
    from labctl.run import workflow
    from labctl.run.watch import Limits, Wanted, begin

    wanted = Wanted(
        asked.here, asked.pids, asked.containers, asked.project, asked.ports, calls=asked.calls
    )
    limits = Limits(seconds(asked.length))
    with workflow.interruptible():
        results = begin(wanted, asked.out, limits, viewer)
    chosen.remember([result.folder for result in results])

    def write() -> None:
        from labctl.reports.tables import console

        print_watch(results, console())

    show("what was seen", write)
    return EXIT[results[-1].result]


def seconds(length: str | None) -> float | None:
    """How long to watch. Raises UsageError."""
    from labctl.ground import durations
    from labctl.ground.errors import UsageError

    if length is None:
        return None
    found = durations.seconds(length)
    if not found:
        raise UsageError(f"--for {length}: no duration", "say 30s, 5m or 1h")
    return found
