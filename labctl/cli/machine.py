"""The commands for what a machine has, and for what it gets: `doctor`, `images`, `kernels`."""

from __future__ import annotations

import json

import click

from labctl.cli.arguments import engine_option, os_option
from labctl.ground.errors import LabError
from labctl.ground.output import tell


@click.command()
@engine_option
@click.option("--format", "form", default="table", type=click.Choice(["table", "json"]))
def doctor(engines: tuple[str, ...], form: str) -> int:
    """What this machine can do, what each lack costs, and how to mend it. With --engine: the same
    of these engines, and whether hosts of one reach those of another.

    \b
    Examples:
      labctl doctor
      labctl doctor --format json
      labctl doctor --engine left=ONE --engine right=OTHER
    """
    from dataclasses import asdict

    from labctl.run.doctor import examine
    from labctl.run.doctor_engines import examine_engines
    from labctl.run.places import engines_at

    checks = examine_engines(engines_at(engines), tell) if engines else examine()
    if form == "json":
        click.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        from labctl.reports.tables import console, print_checks

        print_checks(console(), checks)
    if engines:
        return 0 if all(check.ok for check in checks) else 3
    return 0 if any(check.ok for check in checks if check.name in ("docker", "netns")) else 3


@click.group()
def images() -> None:
    """The images that the Docker backend uses."""


@images.command("build")
@os_option
def images_build(os: str | None) -> None:
    """Build the image pair for an operating system, unless it is there.

    \b
    Examples:
      labctl images build
      labctl images build --os debian:13
    """
    from labctl.backends.docker.backend import build_images
    from labctl.run.places import DEFAULT_OS

    for tag in build_images(os or DEFAULT_OS, tell):
        click.echo(tag)


@click.group("kernels")
def kernels_() -> None:
    """Other kernels to run on, in QEMU."""


@kernels_.command("list")
@click.option("--format", "form", default="table", type=click.Choice(["table", "json"]))
def kernels_list(form: str) -> None:
    """What --kernel takes: what is here, and what Debian's mirror has, by lists of a day at most.

    \b
    Examples:
      labctl kernels list
      labctl kernels list --format json
    """
    from dataclasses import asdict

    from labctl.run.guests import listed, qemu, root
    from labctl.run.places import DEFAULT_OS

    rows = listed.kernels(tell)
    if form == "json":
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    from labctl.reports.tables import console, print_table

    cells = [[", ".join(row.names) or "(none)", row.version, row.where] for row in rows]
    print_table(console(), ["--kernel", "version", "where"], cells)
    try:
        qemu.version()
        root.demand(root.suite_for(DEFAULT_OS))
    except LabError as exc:
        tell(f"none of them boots here: {exc}")


@kernels_.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--os", metavar="IMAGE", help="The guest's Debian.  [default: debian:12]")
def kernels_fetch(names: tuple[str, ...], os: str | None) -> None:
    """Fetch kernels, and what else a guest needs: the newest of a suite or a version.

    \b
    Examples:
      labctl kernels fetch 6.1
      labctl kernels fetch bookworm trixie --os debian:13
    """
    from labctl.run import guests, workflow
    from labctl.run.guests import root
    from labctl.run.places import DEFAULT_OS

    suite = root.suite_for(os or DEFAULT_OS)
    root.demand(suite)
    with workflow.interruptible():
        for name in names:
            click.echo(guests.fetch(name, tell).version)
        root.ensure(suite, tell)


COMMANDS: tuple[click.Command, ...] = (doctor, images, kernels_)
