"""Judges real servers by the lessons of scenarios/servers: `make servers`, or ARGS='--only nginx'.

Every server runs with a minimal configuration in a temporary folder, as an ordinary user, on hosts
made of namespaces: run it as root. Prints the tables of docs/servers.md, and how each failure was
seen. A server that is not installed is left out, and says so. Exit status 1 if a lab fails; a
server that fails a lesson is no failure.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import judging
from tests.judging import ROOT, Row, labctl
from tests.served import ANSWER, PLAIN, SERVERS, UID, Program, told

RESTART = "servers/restart_time_wait"

# The cases, as rows: the lesson, its variant, and whether it ends by the server's own signal.
ROWS: dict[Row, str] = {
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


@dataclass
class Judged(judging.Judged):
    """What a server did in each case, and what the records of all its runs say of its calls."""

    sockets: list[told.Socket] = field(default_factory=list)
    unseen: set[str] = field(default_factory=set)
    starts: list[float] = field(default_factory=list)

    def read(self, run: Mapping[str, Any], own: str | None) -> None:
        """Takes in a run. `own`: the server's own signal, if that has ended it."""
        (variant,) = run["variant"].values() or [""]
        row = run["scenario"], variant, own is not None
        events = run["events"]
        self.sockets += told.sockets(events)
        self.unseen |= told.unseen(events)
        self.starts += told.starts(events)
        self.add(run, row, reason)
        if own:
            self.cells[row] = f"{own}: {self.cells[row]}"


def judge(server: Program, out: Path, scenarios: Path) -> Judged:
    """What it does in each case, recorded below `out`. Raises Missing."""
    judged = Judged(server)
    lessons = "servers" if server in SERVERS else RESTART
    with judging.prepared(server) as (folder, run):
        (folder / "big").write_bytes(b"x" * ANSWER)
        (folder / "index.html").write_text("hello\n")
        sets = {**server.says, "run": run, "port": str(server.port), "uid": str(UID)}
        if lessons != RESTART:
            sets["answer"] = str(ANSWER)
        for each in labctl(scenarios / lessons, sets, out, server.jobs):
            judged.read(each, None)
        if server.graceful:
            sets.pop("request", "")  # which this lesson does not have
            sets["signal"] = server.graceful
            for each in labctl(scenarios / "servers/graceful_stop", sets, out, server.jobs):
                judged.read(each, server.graceful)
    return judged


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
        name = each.program.name
        yield f"| {name} | {told.reuse(each.sockets)} | {listeners} | {connections} | {median} |"


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


def main() -> None:
    parser = judging.parser(__doc__, [*SERVERS, *PLAIN])
    parser.add_argument("--unwatched", action="store_true", help="do not watch the servers' calls")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labctl-") as made:
        scenarios = unwatched(Path(made)) if options.unwatched else ROOT / "scenarios"
        programs = [*SERVERS, *PLAIN]
        judged = judging.each(programs, options, lambda server, out: judge(server, out, scenarios))
    whole = [each for each in judged if each.program in SERVERS]
    judging.show(by_calls(judged), judging.by_lessons(whole, ROWS))
    judging.show_failures(judged, ROWS, "server")
    for each in judged:
        for text in sorted(each.unseen):
            print(f"- {each.program.name}, unseen: {text}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
