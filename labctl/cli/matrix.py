"""The command `labctl matrix`."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from labctl.cli.arguments import (
    as_one,
    compose_option,
    engine_option,
    folder_option,
    form_option,
    jobs_option,
    offering,
    set_option,
    shipped_names,
)
from labctl.ground.data import dataclass

if TYPE_CHECKING:
    from labctl.reports.comparison import Comparison


@dataclass(frozen=True)
class Asked:
    """The arguments of `labctl matrix`."""

    paths: tuple[str, ...]
    os: tuple[str, ...]
    backend: tuple[str, ...]
    kernel: tuple[str, ...]
    virtual_time: bool
    engines: tuple[str, ...]
    sets: tuple[str, ...]
    compose: Path | None
    jobs: int | None
    form: str
    out: Path | None
    show: bool
    github: bool


@click.command()
@click.argument(
    "paths", nargs=-1, metavar="[PATH...]", shell_complete=offering(shipped_names, ".yaml")
)
@click.option(
    "--os", multiple=True, metavar="IMAGE", help="With this system: on Docker, or in each guest."
)
@click.option("--backend", multiple=True, metavar="NAME", help="On docker or netns.")
@click.option("--kernel", multiple=True, metavar="NAME", help="On another kernel, in QEMU.")
@click.option("--virtual-time", is_flag=True, help="In QEMU: waiting takes no time.")
@engine_option
@set_option
@compose_option
@jobs_option("How many cases of a place to run at once, 1 to 32; in as many guests.")
@form_option(["table", "json", "markdown", "html"], "How the comparison is written to stdout.")
@folder_option("Where results are kept, and gone on from.")
@click.option("--show", is_flag=True, help="Compare what is there, and run nothing.")
@click.option("--github", is_flag=True, help="Print the places for a workflow's strategy.matrix.")
@as_one(Asked)
def matrix(asked: Asked) -> int:
    """Run scenarios at several places, and compare: what differs comes first.

    --os, --backend and --kernel add places, and take several names each, separated by commas. Each
    --kernel runs with each --os, and so does Docker, where it is named or there is no --kernel.
    With none of them: Docker and namespaces. No PATH is all shipped scenarios. A second call runs
    only what has no result yet. Several --engine are one place: each case runs on one of them.

    \b
    Examples:
      labctl matrix fin_wait_2
      labctl matrix scenarios --os debian:11,debian:12 --backend netns
      labctl matrix tw_reuse --kernel 5.10,6.1,7.3 --virtual-time
      labctl matrix scenarios --format html > matrix.html
      labctl matrix --kernel 5.10,6.1 --os debian:11,debian:12
      labctl matrix --os debian:11,debian:12 --github
      labctl matrix --os debian:11,debian:12 --engine a=ONE --engine b=OTHER
    """
    from labctl.cli.arguments import find, parse_sets
    from labctl.cli.exits import EXIT, INTERRUPTED
    from labctl.ground.children import possible, run
    from labctl.ground.output import tell
    from labctl.ground.resources import scenarios
    from labctl.reports.progress import Screen, alongside
    from labctl.run import matrix as flow
    from labctl.run import workflow
    from labctl.run.orders import Orders
    from labctl.run.places import children as children_of
    from labctl.run.places import github as github_matrix
    from labctl.run.places import places as places_of
    from labctl.run.runner import WAS_INTERRUPTED

    places = places_of(asked.backend, asked.os, asked.kernel, asked.virtual_time, asked.engines)
    if asked.github:
        click.echo(json.dumps(github_matrix(places)))
        return 0
    chosen = parse_sets(asked.sets, "--set")
    files = find(asked.paths or [str(scenarios())], scenarios())
    loaded = workflow.load_all(files, chosen, asked.compose)
    cases = workflow.keep_short_cases(loaded, asked.virtual_time, tell)
    out = asked.out or flow.folder_of_all()
    whole = flow.Matrix(cases, chosen, out)
    interrupted = False
    if not asked.show:
        cores = os.cpu_count() or 1
        children = children_of(places, cores) if possible() else []
        told = [*map(str, files), "--out", str(out), *(f"--set={text}" for text in asked.sets)]
        told += ["--compose", str(asked.compose)] if asked.compose else []
        told += ["--jobs", str(asked.jobs or 1)]  # the others are beside each
        commands = {place.name: ["matrix", *told, *place.options] for place in children}
        try:
            with workflow.interruptible():
                for place in places:
                    if place not in children:
                        whole.fill(place, Orders(Screen(), jobs=asked.jobs))
                if commands:
                    with alongside(list(commands)) as say:
                        run(commands, cores, say)
        except KeyboardInterrupt:
            interrupted = True

    from labctl.judge.check import overall
    from labctl.reports.comparison import compare

    found = compare(
        [whole.seen(place) for place in places], [(case.label, case.source) for case in cases]
    )
    _show(found, asked.form)
    if interrupted:
        tell(f"labctl: {WAS_INTERRUPTED}")
    return INTERRUPTED if interrupted else EXIT[overall(place.result for place in found.places)]


def _show(found: Comparison, form: str) -> None:
    """Shows it on stdout, and in GitHub's step summary if there is one."""
    from labctl.ground.output import show
    from labctl.reports import html, markdown, step_summary
    from labctl.reports.tables import console
    from labctl.reports.terminal import print_comparison

    def write() -> None:
        if form == "table":
            print_comparison(found, console())
        elif form == "json":
            click.echo(json.dumps(found.as_json(), indent=1))
        elif form == "html":
            click.echo(html.comparison(found).encode(), nl=False)  # in the encoding it declares
        else:
            click.echo(markdown.comparison(found), nl=False)

    show("the comparison", write)
    step_summary.add(partial(markdown.comparison, found))
