"""What tests/servers.py and tests/clients.py share: real programs, judged by shipped lessons, and
the tables of what they did.

Every program runs in a temporary folder, as an ordinary user, on hosts made of namespaces. One that
is not installed is left out, and says so."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.served import UID, Missing, Program

ROOT = Path(__file__).resolve().parent.parent
LABCTL = [sys.executable, "-m", "labctl"]
PATIENCE = 600
WRITABLE = "/var/cache"
"""A lab has a copy of what is below /var, which its processes may write to; its /tmp is empty."""

Row = tuple[object, ...]
"""A case, as a row of a table."""
Rows = Mapping[Row, str]
"""The title of each, in order."""
J = TypeVar("J")


@dataclass(frozen=True)
class Failure:
    """How a program failed a case: in a few words and in full, and the causes that labctl named."""

    words: str
    causes: str
    seen: str


@dataclass
class Judged:
    """What a program did in each case."""

    program: Program
    cells: dict[Row, str] = field(default_factory=dict)
    failures: dict[Row, Failure] = field(default_factory=dict)

    def add(
        self, run: Mapping[str, Any], row: Row, reason: Callable[[Mapping[str, str], str], str]
    ) -> None:
        """Takes in a run. `reason` puts a failure in a few words, from its verdict and from what
        the programs said."""
        forced = any("SIGTERM had not ended it" in v["actual"] for v in run["verdicts"])
        self.cells[row] = "pass, but by SIGKILL after 10 s" if forced else "pass"
        if run["result"] == "pass":
            return
        worst = next((v for v in run["verdicts"] if v["result"] == run["result"]), None)
        if worst is None:
            self.cells[row] = str(run["reason"])
            return
        said = "".join(e["text"] for e in run["events"] if e["kind"] == "output")
        ids = dict.fromkeys(
            f"`{cause['id']}`" + ("" if cause["certain"] else "?") for cause in run["causes"]
        )
        seen = f"{worst['what']}: expected {worst['expected']}, saw {worst['actual']}"
        self.cells[row] = "FAIL"
        self.failures[row] = Failure(reason(worst, said), ", ".join(ids) or "–", seen)


@contextmanager
def prepared(program: Program) -> Iterator[tuple[Path, str]]:
    """A folder of its own for a program, and its command line. Raises Missing."""
    path = program.path()
    with tempfile.TemporaryDirectory(prefix="labctl-", dir=WRITABLE) as made:
        folder = Path(made)
        os.chown(folder, UID, UID)
        yield folder, program.prepare(path, folder)


def labctl(lessons: Path, sets: Mapping[str, str], out: Path, jobs: int) -> list[Any]:
    """The runs of lessons with these params, as labctl reports them, and their `events`. Raises
    RuntimeError where there are none."""
    path = lessons if lessons.is_dir() else lessons.with_suffix(".yaml")
    command = [*LABCTL, "run", str(path), "--backend", "netns", "--format", "json", f"--out={out}"]
    command += [f"--jobs={jobs}", *(f"--set={name}={value}" for name, value in sets.items())]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.returncode not in (0, 1, 3):
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    runs: list[Any] = json.loads(done.stdout)["runs"]
    for run in runs:
        history = Path(run["dir"], "history.jsonl").read_text("utf-8").splitlines()
        run["events"] = [json.loads(line) for line in history]
    return runs


def each(
    programs: Sequence[Program],
    options: argparse.Namespace,
    judge: Callable[[Program, Path], J],
) -> list[J]:
    """What each program did, or each of `options.only`, recorded below `options.out` if that is
    given. Ends this program where it is not root's, or where a lab fails."""
    if os.geteuid():
        sys.exit("run this as root: the programs run as another user")
    judged: list[J] = []
    with tempfile.TemporaryDirectory(prefix="labctl-") as made:
        for program in programs:
            if options.only and program.name not in options.only:
                continue
            print(program.name, file=sys.stderr)
            out = (options.out or Path(made)).resolve() / re.sub(r"\W+", "-", program.name)
            try:
                judged.append(judge(program, out))
            except Missing as exc:
                print(f"left out: {exc}", file=sys.stderr)
            except (RuntimeError, subprocess.SubprocessError) as exc:
                sys.exit(f"{program.name}: the lab failed: {exc}")
    return judged


def parser(doc: str | None, programs: Sequence[Program]) -> argparse.ArgumentParser:
    """The options that all have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    names = [program.name for program in programs]
    made.add_argument("--only", action="append", choices=names, help="default: all")
    made.add_argument("--out", type=Path, metavar="DIR", help="where to keep the recorded runs")
    return made


def by_lessons(judged: Sequence[Judged], rows: Rows) -> Iterator[str]:
    """What each program did in each case."""
    yield f"| | {' | '.join(one.program.name for one in judged)} |"
    yield f"| --- |{' --- |' * len(judged)}"
    for row, title in rows.items():
        yield f"| {title} | {' | '.join(one.cells.get(row, '–') for one in judged)} |"


def by_failures(judged: Sequence[Judged], rows: Rows, kind: str) -> Iterator[str]:
    """What failed, and the causes that labctl named; `?` if one is not certain."""
    yield f"| | {kind} | saw | causes |"
    yield "| --- | --- | --- | --- |"
    for row, title in rows.items():
        alike: dict[tuple[str, str], list[str]] = {}
        for one in judged:
            if failure := one.failures.get(row):
                alike.setdefault((failure.words, failure.causes), []).append(one.program.name)
        for (words, causes), names in alike.items():
            yield f"| {title} | {', '.join(names)} | {words} | {causes} |"


def version(program: Program) -> str:
    """Its name and version, by its own word."""
    asked = subprocess.run(
        [program.path(), *program.version], capture_output=True, text=True, check=False
    )
    found = re.search(r"\d+(\.\d+)+", asked.stdout + asked.stderr)
    return f"{program.name} {found[0] if found else '?'}"


def show(*tables: Iterable[str]) -> None:
    """Prints tables, each with an empty line after it."""
    for table in tables:
        print("\n".join(table), end="\n\n")


def show_failures(judged: Sequence[Judged], rows: Rows, kind: str) -> None:
    """Prints what failed, the versions of all, and how each failure was seen."""
    show(by_failures(judged, rows, kind))
    versions = dict.fromkeys(version(one.program) for one in judged)
    print(f"{', '.join(versions)}; kernel {os.uname().release}.\n")
    for one in judged:
        for row, failure in one.failures.items():
            print(f"- {one.program.name}, {rows[row]}: {failure.seen}")
