"""The command `labctl run`."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from labctl.cli.arguments import (
    as_one,
    backend_option,
    compose_option,
    engine_option,
    folder_option,
    form_option,
    jobs_option,
    os_option,
    scenarios_argument,
    set_option,
)
from labctl.cli.exits import EXIT, INTERRUPTED
from labctl.ground.data import dataclass
from labctl.ground.output import tell

UNTESTABLE = 125
"""A commit that `git bisect run` shall leave out."""


@dataclass(frozen=True)
class Asked:
    """The arguments of `labctl run`."""

    paths: tuple[str, ...]
    backend: str
    os: str | None
    sets: tuple[str, ...]
    compose: Path | None
    engines: tuple[str, ...]
    kernel: str | None
    virtual_time: bool
    keep: bool
    jobs: int | None
    form: str
    out: Path | None
    junit: Path | None
    html: Path | None
    bisect: bool


@click.command()
@scenarios_argument
@backend_option
@os_option
@set_option
@compose_option
@engine_option
@click.option(
    "--kernel",
    metavar="NAME",
    help="On another kernel, in QEMU: see `kernels list`. There, --os is a guest's Debian.",
)
@click.option(
    "--virtual-time", is_flag=True, help="In QEMU: waiting takes no time; only work does."
)
@click.option("--keep", is_flag=True, help="Keep the lab up afterwards, until Ctrl-C.")
@jobs_option("How many cases to run at once, 1 to 32; as many as suit the machine by default.")
@form_option(["table", "json", "ktap"], "How the results are written to stdout.")
@folder_option("Where to record runs.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Also JUnit XML.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also HTML.")
@click.option("--bisect", is_flag=True, help="For `git bisect run`: exit with 0, 1 or 125.")
@as_one(Asked)
def run(asked: Asked) -> int:
    """Run scenarios: files, folders, or names from `labctl list`.

    With several --engine, a single case has its hosts on all of them, by a swarm. Of several cases
    each is on the one that is least full, unless its hosts say `engine`.

    \b
    Examples:
      labctl run scenarios/fin_wait_2.yaml
      labctl run so_reuseaddr --backend netns
      labctl run fin_wait_2 --set fin_timeout=6
      labctl run scenarios -j 8
      labctl run fin_wait_2 --engine left=ONE --engine right=OTHER
      labctl run scenarios -j 32 --engine left=ONE --engine right=OTHER
      labctl run eaddrinuse_time_wait --kernel 6.1 --virtual-time
      git bisect run labctl run mine.yaml --bisect
    """
    return _for_bisect(asked) if asked.bisect else _run(asked)


def _for_bisect(asked: Asked) -> int:
    """The status for `git bisect run`: 0 is good, 1 bad, and what says neither is 125. Ctrl-C ends
    the bisection."""
    from labctl.ground.crash import netted
    from labctl.ground.errors import LabctlError

    try:
        with netted():
            status = _run(asked)
    except LabctlError as exc:
        tell(f"labctl: {exc}")
        return UNTESTABLE
    return status if status in (EXIT["pass"], EXIT["fail"], INTERRUPTED) else UNTESTABLE


def _run(asked: Asked) -> int:
    import time

    if asked.backend == "netns" and not asked.kernel:
        from labctl.backends.netns.launcher import start_ahead

        start_ahead()
    gc.disable()
    from labctl.cli import chosen
    from labctl.cli.arguments import find, parse_sets
    from labctl.cli.results import Wanted, give, why_cut_short
    from labctl.ground.resources import scenarios
    from labctl.reports.progress import Screen
    from labctl.run import dispatch, places, workflow
    from labctl.run.orders import Orders
    from labctl.run.runner import Interrupted

    gc.freeze()  # what is imported stays: looking for garbage in it takes long
    gc.enable()
    params = parse_sets(asked.sets, "--set")
    cases = workflow.load_all(find(asked.paths, scenarios()), params, asked.compose)
    place = places.place(asked.backend, asked.os, asked.kernel, asked.virtual_time, asked.engines)
    cases = workflow.keep_short_cases(cases, asked.virtual_time, tell)
    began = time.monotonic()
    out = asked.out or workflow.together(cases)
    orders = Orders(Screen(), out, asked.jobs, asked.keep, params)
    cut_short = ""
    try:
        with workflow.interruptible():
            results = dispatch.run(cases, place, orders)
    except Interrupted as exc:
        results, cut_short = exc.results, why_cut_short(exc.results, len(cases))
    chosen.remember([result.folder for result in results])
    wanted = Wanted(asked.form, asked.junit, asked.html)
    return give(results, wanted, time.monotonic() - began, cut_short)
