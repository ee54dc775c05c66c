"""`labctl import`: captures from elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from labctl.cli.arguments import folder_option, offering, parse_files

MOST = 2


@click.command("import")
@click.argument(
    "captures", nargs=-1, required=True, metavar="HOST=FILE...", shell_complete=offering(list, "")
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Only connections with this port; may be repeated.",
)
@click.option(
    "--host",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="Only connections with this address; may be repeated.",
)
@click.option(
    "--ss",
    "looks",
    multiple=True,
    metavar="HOST=FILE",
    help="What `ss -tanoie` printed there, with a time before each look; may be repeated.",
)
@click.option(
    "--strace",
    "calls",
    multiple=True,
    metavar="HOST=FILE",
    help="What `strace -f -ttt` wrote of a program there; may be repeated.",
)
@folder_option("Record the run in a new folder below DIR.")
def import_(
    captures: tuple[str, ...],
    ports: tuple[int, ...],
    addresses: tuple[str, ...],
    looks: tuple[str, ...],
    calls: tuple[str, ...],
    out: Path | None,
) -> None:
    """Make a run of captures from elsewhere: of both ends of the same connections, or of one.

    FILE is a pcap or pcapng file, HOST what to call the host that captured it. The run's folder is
    printed; `report`, `explain` and `check` read it.

    \b
    Examples:
      labctl import server=a.pcapng client=b.pcap
      labctl import server=a.pcap.gz --port 8000
      labctl import server=a.pcap --ss server=ss.txt
      labctl report "$(labctl import server=a.pcap client=b.pcap)"
    """
    from labctl.cli import chosen
    from labctl.ground.errors import UsageError
    from labctl.ground.resources import default_folder
    from labctl.imports import importing
    from labctl.imports.census import Wanted
    from labctl.language.values import HOST_NAME
    from labctl.record.store import new_folder

    files = parse_files(captures, "import")
    if len(files) < len(captures) or len(files) > MOST:
        raise UsageError("one capture, or two of different hosts", "give HOST=FILE, or two of them")
    for name in files:
        if name == importing.OTHERS:
            raise UsageError(f"{name}: that is what all hosts without a capture are called")
        if not HOST_NAME.fullmatch(name):
            raise UsageError(
                f"{name}={files[name]}: no name for a host; allowed: letters, digits and hyphens, "
                "63 at most", "as in server=FILE",
            )  # fmt: skip
    if len({file.resolve() for file in files.values()}) < len(files):
        raise UsageError(
            "both hosts have the same capture",
            "give two, or one host alone: the others are in it as well",
        )
    wanted = Wanted(frozenset(ports), frozenset(addresses))
    found = importing.load(files, wanted)
    saved, traced = parse_files(looks, "--ss"), parse_files(calls, "--strace")
    found = importing.with_calls(importing.with_looks(found, saved), traced)
    name = "-".join(files)
    folder = new_folder(out, name) if out else new_folder(
        default_folder(), f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{name}"
    )  # fmt: skip
    importing.record(found, folder)
    chosen.remember([folder])
    click.echo(str(folder))
