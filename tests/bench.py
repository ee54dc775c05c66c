"""Compares labctl with what one would use instead: `make bench`, or ARGS='--only a,c -n 3'.

    a  a whole `labctl run` against a shell script that does the same by hand
    b  a lab on a Docker engine against the same containers by Compose
    c  hosts on namespaces, up and down, against Mininet; what a host and a lab of many take
    d  what a recorded run takes, to judge and to draw, and whether that grows linearly
    e  traffic in a lab, which captures and traces, against bare namespaces
    f  a lesson in a guest against the same on namespaces
    g  a server whose calls are watched against the same unwatched
    h  an import of captures with a million packets
    i  round trips between two containers beside a load: watched, by tcpdump captured, and not
    j  a lab with many connections, and whether what it takes grows linearly

Machines differ, so what counts is ratios within one run. The sides take turns, A B A B, each sample
in fresh processes; a ratio is the median over the pairs, and the spread its least and greatest.
What can't be measured here is skipped, and says why. Exit status 1 if a tool fails; a goal that is
missed is no failure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from labctl.backends.docker import engine, images
from labctl.backends.netns import backend as netns
from labctl.ground.errors import LabctlError
from labctl.run.guests import qemu
from labctl.run.places import DEFAULT_OS
from tests import bench_calls, bench_hosts, bench_imports, bench_records, bench_traffic, bench_watch
from tests.bench_records import EVENTS_EACH, cost
from tests.bench_rows import Row, Rows

ROOT = Path(__file__).resolve().parent.parent
SCENARIO = ROOT / "scenarios" / "fin_wait_2.yaml"
SCRIPT = ROOT / "tests" / "bench_fin_wait_2.sh"
LABCTL = [sys.executable, "-m", "labctl"]
PATIENCE = 120
WIDTH = 100
PAIRS = 5
PAIRS_ON_DOCKER = 3  # of samples that take seven seconds each

# The services of compose.yaml: up, the client when the server listens, and down again.
BY_LABCTL = """\
title: What compose.yaml starts
hosts:
  server: {calls: 'socket; bind :8000; listen 20; accept; recv; send "I am server" x 24; wait'}
  client: {calls: 'socket; connect server:8000; send "I am client"; recv until eof; close'}
steps:
  - start: server
  - wait: {sockets: {server: LISTEN}}
  - start: client
"""

SYSTEM_PYTHON = "/usr/bin/python3"  # the one that a distribution's Mininet belongs to
# Nothing of Mininet is left, however it ends.
OWN_NAMESPACES = [
    "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"
]  # fmt: skip


class Skip(Exception):
    """What can't be measured here: the reason and the mend."""


class ToolFailed(Exception):
    """A tool that was there did not do its work."""


def take_turns(pairs: int, *sides: Callable[[], float]) -> list[list[float]]:
    """The samples of each side."""
    rounds = [[side() for side in sides] for _ in range(pairs)]
    return [list(samples) for samples in zip(*rounds, strict=True)]


def output_of(command: Sequence[str]) -> str:
    """What a command writes to stdout. Raises ToolFailed."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise ToolFailed(f"{command[0]}: not done in {PATIENCE} s") from exc
    if done.returncode:
        said = done.stdout.strip().splitlines()[-3:] + done.stderr.strip().splitlines()[-3:]
        raise ToolFailed(f"{command[0]}: status {done.returncode}: {' / '.join(said)}")
    return done.stdout


def seconds(*commands: Sequence[str]) -> float:
    """How long commands take, one after the other."""
    begin = time.monotonic()
    for command in commands:
        output_of(command)
    return time.monotonic() - begin


# --- What is compared -----------------------------------------------------------------------------


def lesson_on_namespaces(pairs: int) -> Rows:
    need_namespaces()
    lesson = Lesson("netns")
    ours, script = take_turns(pairs, lesson.run, lambda: seconds([str(SCRIPT)]))
    yield Row("a  labctl run fin_wait_2 : shell script", ours, script, 1.15)
    yield Row("a  labctl run less the lesson's own wait", ours, lesson.waits, 0.6, operator.sub)


def lesson_on_docker(pairs: int) -> Rows:
    need_images()
    lesson = Lesson("docker")
    (ours,) = take_turns(min(pairs, PAIRS_ON_DOCKER), lesson.run)
    yield Row("a  the same on a Docker engine", ours, lesson.waits, 1.5, operator.sub)


class Lesson:
    """Runs the scenario as a user does; `waits`: how long TCP itself had it wait each time."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.waits: list[float] = []

    def run(self) -> float:
        with tempfile.TemporaryDirectory() as out:
            command = [*LABCTL, "run", str(SCENARIO), "--backend", self.backend, "--out", out]
            taken = seconds(command)
            (folder,) = Path(out).iterdir()
            (run,) = json.loads((folder / "result.json").read_text("utf-8"))["runs"]
            history = (folder / "history.jsonl").read_text("utf-8")
        (killed,) = [e for e in map(json.loads, history.splitlines()) if e.get("label") == "killed"]
        (forgotten,) = [v for v in run["verdicts"] if v["expected"].endswith("of killed")]
        self.waits.append(forgotten["at"] - killed["t"])
        return taken


def containers(pairs: int) -> Rows:
    built = need_images()
    compose = need_compose()
    project = f"labctl-bench-{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder, "compose.yaml")
        scenario.write_text(BY_LABCTL, "utf-8")
        run = [*LABCTL, "run", str(scenario), "--backend", "docker", "--out", folder]
        same_images = {
            "server-host": {"image": built.host},
            "client-host": {"image": built.host},
            "server": {"image": built.peer},
            "client": {"image": built.peer},
        }
        depends_on = {"server": {"condition": "service_started"}}
        unwaiting = {**same_images, "client": {"image": built.peer, "depends_on": depends_on}}

        def by_compose(name: str, services: object) -> Callable[[], float]:
            override = Path(folder, f"{name}.json")
            override.write_text(json.dumps({"services": services}), "utf-8")
            files = ["-f", str(ROOT / "compose.yaml"), "-f", str(override)]
            command = [*compose, *files, "--project-directory", str(ROOT), "-p", project]
            down = [*command, "down", "-t", "0"]

            def sample() -> float:
                try:
                    return seconds([*command, "up", "-d"], down)
                except BaseException:
                    subprocess.run(down, capture_output=True, check=False)
                    raise

            return sample

        ours, waiting, hasty = take_turns(
            pairs,
            lambda: seconds(run),
            by_compose("waiting", same_images),
            by_compose("unwaiting", unwaiting),
        )
    yield Row(f"b  labctl run : {' '.join(compose)} up, down", ours, waiting, 0.75)
    yield Row("b  the same, without waiting for health", ours, hasty, 0.75)


def hosts(pairs: int) -> Rows:
    need_mininet()
    need_namespaces()
    rounds = ((2, 3 * pairs, 0.6), (10, pairs, 0.4), (50, pairs, 0.2), (200, 1, 0.2))
    for count, times, goal in rounds:
        labctl = [sys.executable, "-c", bench_hosts.BY_LABCTL, str(count)]
        mininet = [*OWN_NAMESPACES, SYSTEM_PYTHON, "-c", bench_hosts.BY_MININET, str(count)]
        ours, theirs = take_turns(times, partial(told, labctl), partial(told, mininet))
        yield Row(f"c  {count} hosts, labctl : Mininet", ours, theirs, goal)


def each_host(pairs: int) -> Rows:
    need_namespaces()
    found = {}
    for count in HOSTS:
        command = [sys.executable, "-c", bench_hosts.BY_LABCTL, str(count)]
        samples = [output_of(command).split() for _ in range(pairs)]
        found[count] = [[float(words[n]) / count for words in samples] for n in (1, 0)]
    yield from per_one("host", found, HOSTS[-2])


def labs_at_once(_: int) -> Rows:
    need_namespaces()
    found = {}
    for count in LABS:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(count):
                lab = f"{BY_LABCTL}  - sleep: {HELD} s\n"  # so that they are there at once
                Path(folder, f"lab{number}.yaml").write_text(lab, "utf-8")
            run = [*LABCTL, "run", folder, "--backend", "netns", "-j", str(count)]
            taken = seconds([*run, "--out", f"{folder}/once"]) - HELD
            found[count] = [[taken / count], [bench_hosts.peak([*run, "--out", folder]) / count]]
    yield from per_one("lab", found, LABS[0])


def per_one(what: str, found: dict[int, list[list[float]]], base: int) -> Rows:
    """The time and the memory that each of so many hosts or labs takes, beside each of `base`."""
    for count in (count for count in found if count != base):
        for n, unit, factor in ((0, "ms", 1000), (1, "MB", 1)):
            ours, theirs = ([factor * x for x in found[c][n]] for c in (count, base))
            name = f"c  a {what}, {count} of them : {base} of them, {unit}"
            yield Row(name, ours, theirs, 1.2 if count > base else None, unit=unit)


def told(command: Sequence[str]) -> float:
    """How long a program says that it took, without its imports."""
    return float(output_of(command).split()[-1])


def records(_: int) -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        few, many, flood = (
            str(bench_records.record(Path(folder, f"run{count}"), count // EVENTS_EACH))
            for count in (10**5, 10**6, 28_000 * EVENTS_EACH)
        )
        for what in (["check"], *(["report", "--format", form] for form in FORMS)):
            small, large = (cost([*LABCTL, *what, run]) for run in (few, many))
            name = f"d  {what[-1]}: 10^6 events : 10^5"
            yield Row(name, [large.seconds], [small.seconds], LINEAR)
            yield Row(f"{name}, MB", [large.megabytes], [small.megabytes], LINEAR, unit="MB")
        page = cost([*LABCTL, "report", "--format", "html", flood])
        yield Row("d  a page of 28,000 connections : 5 s", [page.seconds], [5.0], 1.0)
        yield Row("d  the same : 200 MB", [page.megabytes], [200.0], 1.0, unit="MB")
        busy = bench_records.busy(Path(folder, "busy"), 600)
        size = (busy / "history.jsonl").stat().st_size / 1e6
        yield Row("d  a history of 10 busy minutes : 100 MB", [size], [100.0], 1.0, unit="MB")
        for what in (["check"], ["explain"], *(["report", "--format", form] for form in FORMS)):
            found = cost([*LABCTL, *what, str(busy)])
            name = f"d  {what[-1]} of it : 200 MB"
            yield Row(name, [found.megabytes], [200.0], 1.0, unit="MB")
    ours, theirs = take_turns(5, lambda: seconds([*LABCTL, "list"]), lambda: seconds(START))
    yield Row("d  labctl list : start of Python", ours, theirs, 0.3, operator.sub)
    ours, theirs = take_turns(5, lambda: seconds([*LABCTL, "--help"]), lambda: seconds(START))
    yield Row("d  labctl --help : start of Python", ours, theirs, 0.1, operator.sub)


def busy_lab(_: int) -> Rows:
    need_namespaces()
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder, "busy.yaml")
        scenario.write_text(bench_traffic.BUSY, "utf-8")
        run = [*LABCTL, "run", str(scenario), "--backend", "netns"]
        short, long = (
            cost([*run, "--set", f"seconds={seconds}", "--out", str(Path(folder, str(seconds)))])
            for seconds in (20, 80)
        )
    name = "j  a lab at 50 connections a second, 80 s : 20 s"
    yield Row(name, [long.seconds], [short.seconds], 5.0)
    yield Row("j  the same, MB", [long.megabytes], [short.megabytes], 2.0, unit="MB")


def traffic(pairs: int) -> Rows:
    need_namespaces()
    if os.geteuid():
        raise Skip("bare namespaces take root; run this as root")
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder, "traffic.yaml")
        scenario.write_text(bench_traffic.SCENARIO, "utf-8")
        number = itertools.count()

        def in_a_lab() -> float:
            out = Path(folder, str(next(number)))
            output_of([*LABCTL, "run", str(scenario), "--backend", "netns", "--out", str(out)])
            return bench_traffic.seconds_in(next(out.glob("*/history.jsonl")))

        bare = [*OWN_NAMESPACES, sys.executable, bench_traffic.__file__]
        ours, theirs = take_turns(pairs, in_a_lab, partial(told, bare))
    yield Row("e  connections in a lab : bare namespaces", ours, theirs, 8.0)


def lesson_in_a_guest(pairs: int) -> Rows:
    need_namespaces()
    try:
        qemu.version()
    except LabctlError as exc:
        raise Skip(str(exc)) from exc
    command = [*LABCTL, "run", str(SCENARIO), "--backend", "netns"]
    guest = [*LABCTL, "run", str(SCENARIO), "--kernel", "6.1", "--virtual-time"]
    with tempfile.TemporaryDirectory() as out:
        seconds([*guest, "--out", out])  # what it needs is fetched, and its state saved
        ours, theirs = take_turns(
            pairs,
            lambda: seconds([*guest, "--out", out]),
            lambda: seconds([*command, "--out", out]),
        )
    yield Row("f  the lesson in a guest : on namespaces", ours, theirs, 2.0)


def watched_servers(pairs: int) -> Rows:
    need_namespaces()
    for server, load in bench_calls.SERVERS.items():
        if missing := [name for name in (server, load) if not shutil.which(name)]:
            raise Skip(f"no {', '.join(missing)}; install nginx-light, apache2-utils, redis")
        for kept, goal in (("kept", 1 / 0.95), ("one", 1 / 0.5)):
            command = [*OWN_NAMESPACES, sys.executable, "-m", "tests.bench_calls", server, kept]
            straces = bench_calls.STRACES if shutil.which("strace") else ()
            for watch in ("calls", "attached", *straces):
                ours, theirs = take_turns(
                    pairs, partial(told, [*command, watch]), partial(told, [*command, "off"])
                )
                name = f"g  {server}, {kept}, {watch} : unwatched"
                yield Row(name, ours, theirs, goal if watch == "calls" else None)


def captures(_: int) -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        files = bench_imports.captures(Path(folder), 10**6)
        found = cost([*LABCTL, "import", *files, "--out", folder])
        yield Row("h  import of 10^6 packets : 60 s", [found.seconds], [60.0], 1.0)
        yield Row("h  the same : 500 MB", [found.megabytes], [500.0], 1.0, unit="MB")


def beside_a_watch(pairs: int) -> Rows:
    with bench_watch.containers(need_images().peer) as sides:
        for kind in bench_watch.KINDS:
            watched, dumped, ping = sides(kind)
            ours, theirs, before, after = take_turns(pairs, watched, dumped, ping, ping)
            yield Row(f"i  {kind}, watched : tcpdump", ours, theirs, 1.05, unit="us")
            for name, found in (("watched", ours), ("tcpdump", theirs), ("neither", after)):
                yield Row(f"i  {kind}, {name} : neither", found, before, None, unit="us")


FORMS = ("ladder", "html", "junit", "markdown", "mermaid")
LINEAR = 12.0
HOSTS, LABS, HELD = (2, 10, 50, 200), (1, 8, 32), 8
START = [sys.executable, "-c", ""]
PARTS: dict[str, list[Callable[[int], Rows]]] = {
    "a": [lesson_on_namespaces, lesson_on_docker],
    "b": [containers],
    "c": [hosts, each_host, labs_at_once],
    "d": [records],
    "e": [traffic],
    "f": [lesson_in_a_guest],
    "g": [watched_servers],
    "h": [captures],
    "i": [beside_a_watch],
    "j": [busy_lab],
}
NOTES = {
    "a": "The script polls every 50 ms. The lesson's own wait: from the kill until the kernel has "
    "forgotten the orphan, tcp_fin_timeout.",
    "b": "Whole processes, from the same images: labctl run of a scenario with the services of "
    "compose.yaml (loading, recording, judging and sweeping included) against up -d and "
    "down -t 0. compose.yaml starts its client when a health check, each second, has seen the "
    "server; labctl polls, and does wait in the second comparison too.",
    "c": "In process, imports left out, Mininet without controller and on a kernel bridge. Memory "
    "is that of all processes, of shared pages each one's part. Labs at once: whole runs with -j, "
    "less the seconds that each lab is kept up.",
    "d": "A synthetic record: connections that open and close, ten events and twelve packets each. "
    "Seconds of CPU time.",
    "e": "The same program makes 2,000 connections, in a lab and between two bare namespaces.",
    "f": "From the guest's saved state, with virtual time.",
    "g": "Below a supervisor, in a network namespace; by strace the same calls, for comparison.",
    "h": "Two captures of 2,000 connections, of which every tenth is reset.",
    "i": "Medians of four seconds of round trips between two of three containers: of a byte, of an "
    "HTTP request on an open connection, and of a byte every 0.15 s. The last line is the noise.",
    "j": "Both programs' calls are watched. Seconds of CPU time of labctl itself.",
}


# --- What it takes --------------------------------------------------------------------------------


def need_namespaces() -> None:
    if lack := netns.unavailable():
        raise Skip(f"{lack.reason}; {lack.hint}")


def need_images() -> images.Images:
    if not engine.answers():
        raise Skip("no Docker engine answers; start one, or set DOCKER_HOST")
    try:
        client = engine.connect()
        try:
            return images.ensure(client, DEFAULT_OS, lambda line: print(line, file=sys.stderr))
        finally:
            client.close()
    except LabctlError as exc:
        raise Skip(str(exc)) from exc


def need_compose() -> list[str]:
    """How Compose is called here: the plugin, or the program."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            asked = subprocess.run([*command, "version"], capture_output=True, check=False)
            if asked.returncode == 0:
                return command
    raise Skip("Compose is not here; install the package docker-compose")


def need_mininet() -> None:
    asked = [SYSTEM_PYTHON, "-c", "import mininet.net"]
    if not Path(SYSTEM_PYTHON).exists() or not shutil.which("mnexec"):
        raise Skip("Mininet is not here; install the package mininet")
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        raise Skip(f"{SYSTEM_PYTHON} can't import Mininet; install the package mininet")
    if os.geteuid():
        raise Skip("Mininet wants root; run this as root")


# --- The table ------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", default=",".join(PARTS), metavar="PARTS", help="such as a,c; default: all"
    )
    parser.add_argument("-n", type=int, default=PAIRS, metavar="PAIRS", help=f"default: {PAIRS}")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--only: no part {', '.join(unknown)}; allowed: {', '.join(PARTS)}")
    if options.n < 1:
        parser.error("-n: at least 1")
    table = Table(box=None, pad_edge=False)
    for column in ("", "n", "labctl", "other", "ratio", "spread", "goal", ""):
        table.add_column(column, no_wrap=True, justify="right" if column else "left")
    remarks: list[str] = []
    failed = False
    begin = time.monotonic()
    for part in parts:
        rows: list[Row] = []
        for measure in PARTS[part]:
            what = measure.__name__.replace("_", " ")
            print(f"bench: {part}, {what}", file=sys.stderr)
            try:
                rows += measure(options.n)
            except Skip as exc:
                remarks.append(f"{part}: {what}: skipped: {exc}")
            except ToolFailed as exc:
                remarks.append(f"{part}: {what}: FAILED: {exc}")
                failed = True
        for row in rows:
            table.add_row(*row.cells())
        if rows:
            remarks.append(f"{part}: {NOTES[part]}")
    console = Console(highlight=False)
    console.width = max(WIDTH, console.width)
    if table.rows:
        console.print(table)
    for remark in remarks:
        console.print(remark, markup=False)
    console.print(f"{time.monotonic() - begin:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
