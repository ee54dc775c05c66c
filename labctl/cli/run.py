"""The command `labctl run`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from labctl.cli.arguments import (
    as_one,
    backend_option,
    folder_option,
    form_option,
    jobs_option,
    os_option,
    scenarios_argument,
    set_option,
)
from labctl.cli.exits import EXIT, INTERRUPTED
from labctl.ground.output import keep, show, tell

if TYPE_CHECKING:
    from labctl.judge.result import RunResult


@dataclass(frozen=True)
class Asked:
    """What `labctl run` was told."""

    paths: tuple[str, ...]
    backend: str
    os: str | None
    sets: tuple[str, ...]
    kernel: str | None
    virtual_time: bool
    keep: bool
    jobs: int | None
    form: str
    out: Path | None
    junit: Path | None
    html: Path | None


@click.command()
@scenarios_argument
@backend_option
@os_option
@set_option
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
@form_option(["table", "json"], "How the results are written to stdout.")
@folder_option("Where to record runs.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Also JUnit XML.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also HTML.")
@as_one(Asked)
def run(asked: Asked) -> int:
    """Run scenarios: files, folders, or names from `labctl list`.

    \b
    Examples:
      labctl run scenarios/fin_wait_2.yaml
      labctl run so_reuseaddr --backend netns
      labctl run fin_wait_2 --set fin_timeout=6
      labctl run scenarios -j 8
      labctl run eaddrinuse_time_wait --kernel 6.1 --virtual-time
    """
    import time

    if asked.backend == "netns" and not asked.kernel:
        from labctl.backends.netns.launcher import start_ahead

        start_ahead()
    from labctl.cli import chosen
    from labctl.cli.arguments import find, parse_sets
    from labctl.ground.resources import scenarios
    from labctl.judge.result import document
    from labctl.reports.progress import Screen
    from labctl.run import dispatch, places, workflow
    from labctl.run.orders import Orders
    from labctl.run.runner import WAS_INTERRUPTED, Interrupted

    params = parse_sets(asked.sets, "--set")
    cases = workflow.load_all(find(asked.paths, scenarios()), params)
    place = places.place(asked.backend, asked.os, asked.kernel, asked.virtual_time)
    cases = workflow.keep_short_cases(cases, asked.virtual_time, tell)
    began = time.monotonic()
    out = asked.out or workflow.together(cases)
    orders = Orders(Screen(), out, asked.jobs, asked.keep, params)
    cut_short = ""
    try:
        with workflow.interruptible():
            results = dispatch.run(cases, place, orders)
    except Interrupted as exc:
        results = exc.results
        decided = sum(run.reason != WAS_INTERRUPTED for run in results)
        cut_short = f"{WAS_INTERRUPTED} when {decided} of {len(cases)} cases were decided"

    chosen.remember([result.folder for result in results])

    def table() -> None:
        from labctl.reports.tables import console
        from labctl.reports.terminal import print_runs

        print_runs(results, console(), time.monotonic() - began, cut_short)

    found = document(results, cut_short)
    if asked.form == "json":
        show("the results", lambda: print(json.dumps(found, indent=1)))
    elif results:
        show("the table", table)
    also(results, {"junit": asked.junit, "html": asked.html})
    if cut_short:
        tell(f"labctl: {WAS_INTERRUPTED}")
    return INTERRUPTED if cut_short else EXIT[found["result"]]


def also(results: list[RunResult], files: dict[str, Path | None]) -> None:
    """Writes the reports that were asked for, and GitHub's step summary where it wants one."""
    from labctl import reports
    from labctl.reports import step_summary

    wanted = {name: path for name, path in files.items() if path}
    if not results or not (wanted or step_summary.wanted()):
        return
    from labctl.judge.recorded import reloaded, told_apart
    from labctl.reports.markdown import summary

    recorded: list[RunResult] = []

    def read(found: RunResult) -> None:
        recorded.append(reloaded(found))

    for found in results:
        keep(f"{found.label} in the reports", partial(read, found))
    for name, path in wanted.items():
        keep(str(path), partial(reports.write, name, recorded, path))
    step_summary.add(partial(summary, told_apart(recorded)))
