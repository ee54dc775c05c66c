"""Judges real servers by the lessons of scenarios/servers: `make servers`, or ARGS='--only nginx'.

Every server runs with a minimal configuration in a temporary folder, as an ordinary user, on hosts
made of namespaces: run it as root. Prints the tables of docs/servers.md, and how each failure was
seen. A server that is not installed is left out, and says so. Exit status 1 if a lab fails; a
server that fails a lesson is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.served import ANSWER, PLAIN, SERVERS, UID, Missing, Server, told

ROOT = Path(__file__).resolve().parent.parent
LABCTL = [sys.executable, "-m", "labctl"]
PATIENCE = 600
RESTART = "servers/restart_time_wait"

# The cases, as rows: the lesson, its variant, and whether it ends by the server's own signal.
ROWS: dict[tuple[str, str, bool], str] = {
    ("restart_time_wait", "kill", False): "restart after SIGKILL, under `TIME_WAIT`",
    ("restart_time_wait", "stop", False): "restart after SIGTERM, under `TIME_WAIT`",
    ("restart_client_never_closes", "", False): "restart under `FIN_WAIT_2`",
    ("client_vanishes", "", False): "the client's host vanishes",
    ("half_close", "", False): "half-closed client gets its answer",
    ("close_wait_leak", "after_answer", False): "client closes after its answer",
    ("close_wait_leak", "in_request", False): "client closes within a request",
    ("graceful_stop", "idle", False): "SIGTERM, idle client",
    ("graceful_stop", "answering", False): "SIGTERM, answer on its way",
    ("graceful_stop", "idle", True): "its graceful signal, idle client",
    ("graceful_stop", "answering", True): "its graceful signal, answer on its way",
}  # fmt: skip

Row = tuple[str, str, bool]


@dataclass(frozen=True)
class Failure:
    """How a server failed a case: in a few words and in full, and the causes that labctl named."""

    words: str
    causes: str
    seen: str


@dataclass
class Judged:
    """What a server did in each case, and what the records of all its runs say of its calls."""

    server: Server
    cells: dict[Row, str] = field(default_factory=dict)
    failures: dict[Row, Failure] = field(default_factory=dict)
    sockets: list[told.Socket] = field(default_factory=list)
    unseen: set[str] = field(default_factory=set)
    starts: list[float] = field(default_factory=list)

    def add(self, run: Mapping[str, Any], own: bool) -> None:
        """Takes in a run. `own`: it was ended by the server's own signal."""
        (variant,) = run["variant"].values() or [""]
        row = run["scenario"], variant, own
        events = run["events"]
        self.sockets += told.sockets(events)
        self.unseen |= told.unseen(events)
        self.starts += told.starts(events)
        forced = any("SIGTERM had not ended it" in v["actual"] for v in run["verdicts"])
        self.cells[row] = "pass, but by SIGKILL after 10 s" if forced else "pass"
        if run["result"] == "pass":
            return
        worst = next((v for v in run["verdicts"] if v["result"] == run["result"]), None)
        if worst is None:
            self.cells[row] = str(run["reason"])
            return
        said = "".join(e["text"] for e in events if e["kind"] == "output")
        words = reason(worst, said)
        ids = dict.fromkeys(
            f"`{cause['id']}`" + ("" if cause["certain"] else "?") for cause in run["causes"]
        )
        seen = f"{worst['what']}: expected {worst['expected']}, saw {worst['actual']}"
        self.cells[row] = f"FAIL: {words}"
        self.failures[row] = Failure(words, ", ".join(ids) or "–", seen)


def judge(server: Server, lessons: str, out: Path, scenarios: Path) -> Judged:
    """What it does in each case, recorded below `out`. Raises Missing."""
    path = server.path()
    judged = Judged(server)
    with tempfile.TemporaryDirectory(prefix="labctl-") as made:
        folder = Path(made)
        os.chown(folder, UID, UID)
        (folder / "big").write_bytes(b"x" * ANSWER)
        (folder / "index.html").write_text("hello\n")
        run = server.prepare(path, folder)
        sets = {**server.says, "run": run, "port": str(server.port), "uid": str(UID)}
        if lessons != RESTART:
            sets["answer"] = str(ANSWER)
        for each in labctl(scenarios / lessons, sets, out, server.jobs):
            judged.add(each, False)
        if server.graceful:
            sets.pop("request", "")  # which this lesson does not have
            sets["signal"] = server.graceful
            for each in labctl(scenarios / "servers/graceful_stop", sets, out, server.jobs):
                judged.add(each, True)
    return judged


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


def reason(verdict: Mapping[str, str], said: str) -> str:
    """A failure in a few words, from its verdict and from what the server said."""
    what, actual = verdict["what"], verdict["actual"]
    if "RST" in what:
        return "RST"
    if "ECONNRESET" in actual:
        return "RST, and the client has an error"
    if found := re.search(r"received (\d+)", actual):
        return f"{int(found[1]):,} bytes of the answer"
    if "not done" in actual:
        return "the client sees no end"
    if "exited" in what:
        return "still runs"
    if "LISTEN" in what:
        return (
            "`EADDRINUSE`"
            if re.search("EADDRINUSE|ddress already in use", said)
            else "does not listen"
        )
    if "0 x" in what:
        stays = [state for state in ("CLOSE-WAIT", "ESTAB") if state in actual]
        return f"`{stays[0]}` stays" if stays else actual
    return f"{what}: {actual}"


def by_calls(judged: list[Judged]) -> Iterator[str]:
    """What each server sets on its sockets, by its own calls, and when it listens."""
    yield "| | `SO_REUSEADDR` | other options of listeners | of connections | listens after |"
    yield "| --- | --- | --- | --- | --- |"
    for each in judged:
        listeners, connections = (told.others(each.sockets, accepted) for accepted in (False, True))
        median = f"{statistics.median(each.starts):.2f} s" if each.starts else "?"
        name = each.server.name
        yield f"| {name} | {told.reuse(each.sockets)} | {listeners} | {connections} | {median} |"


def by_lessons(judged: list[Judged]) -> Iterator[str]:
    """What each server did in each case."""
    yield f"| | {' | '.join(each.server.name for each in judged)} |"
    yield f"| --- |{' --- |' * len(judged)}"
    for row, title in ROWS.items():
        values = []
        for each in judged:
            value = "FAIL" if row in each.failures else each.cells.get(row, "–")
            signal = each.server.graceful
            values.append(f"{signal}: {value}" if row[2] and signal else value)
        yield f"| {title} | {' | '.join(values)} |"


def by_failures(judged: list[Judged]) -> Iterator[str]:
    """What failed, and the causes that labctl named; `?` if one is not certain."""
    yield "| | server | saw | causes |"
    yield "| --- | --- | --- | --- |"
    for row, title in ROWS.items():
        alike: dict[tuple[str, str], list[str]] = {}
        for each in judged:
            if failure := each.failures.get(row):
                alike.setdefault((failure.words, failure.causes), []).append(each.server.name)
        for (words, causes), names in alike.items():
            yield f"| {title} | {', '.join(names)} | {words} | {causes} |"


def version(server: Server) -> str:
    asked = subprocess.run(
        [server.path(), *server.version], capture_output=True, text=True, check=False
    )
    found = re.search(r"\d+(\.\d+)+", asked.stdout + asked.stderr)
    return f"{server.name} {found[0] if found else '?'}"


def unwatched(folder: Path) -> Path:
    """The lessons once more, with a server whose calls nobody watches."""
    for lesson in (ROOT / "scenarios/servers").iterdir():
        text = lesson.read_text("utf-8")
        (folder / "servers").mkdir(exist_ok=True)
        changed = text.replace("    run: ${run}\n", "    run: ${run}\n    watch: off\n")
        if changed == text:
            raise RuntimeError(f"{lesson.name} has no line `run: ${{run}}`")
        (folder / "servers" / lesson.name).write_text(changed, "utf-8")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [server.name for server in SERVERS + PLAIN]
    parser.add_argument("--only", action="append", choices=names, help="default: all")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to keep the recorded runs")
    parser.add_argument("--unwatched", action="store_true", help="do not watch the servers' calls")
    options = parser.parse_args()
    if os.geteuid():
        print("servers: run this as root: the servers run as another user", file=sys.stderr)
        return 2
    judged: list[Judged] = []
    with tempfile.TemporaryDirectory(prefix="labctl-") as made:
        scenarios = unwatched(Path(made)) if options.unwatched else ROOT / "scenarios"
        for server in SERVERS + PLAIN:
            if server.name not in (options.only or names):
                continue
            print(f"servers: {server.name}", file=sys.stderr)
            lessons = "servers" if server in SERVERS else RESTART
            out = (options.out or Path(made, "runs")).resolve() / re.sub(r"\W+", "-", server.name)
            try:
                judged.append(judge(server, lessons, out, scenarios))
            except Missing as exc:
                print(f"servers: left out: {exc}", file=sys.stderr)
            except (RuntimeError, subprocess.SubprocessError) as exc:
                print(f"servers: {server.name}: the lab failed: {exc}", file=sys.stderr)
                return 1
    show(judged)
    return 0


def show(judged: list[Judged]) -> None:
    """Prints the tables, and how each failure was seen."""
    tables = by_calls(judged), by_lessons([j for j in judged if j.server in SERVERS])
    for table in (*tables, by_failures(judged)):
        print("\n".join(table), end="\n\n")
    versions = (version(each.server) for each in judged if each.server in SERVERS)
    print(f"{', '.join(versions)}; kernel {os.uname().release}.\n")
    for each in judged:
        for row, failure in each.failures.items():
            print(f"- {each.server.name}, {ROWS[row]}: {failure.seen}")
        for text in sorted(each.unseen):
            print(f"- {each.server.name}, unseen: {text}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
