"""Judges real clients and proxies by the lessons of scenarios/clients and scenarios/proxies:
`make clients`, or ARGS='--only curl'.

They run as the servers of tests/servers.py do: run it as root. Prints the tables of
docs/clients.md, and how each failure was seen. Exit status 1 if a lab fails; a client or proxy that
fails a lesson is no failure.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from tests import judging
from tests.asking import CLIENTS, PROXIES
from tests.judging import ROOT, Judged, Row, labctl
from tests.served import UID, Program

LESSONS = ROOT / "scenarios/clients"
VANISHES = "notices_dead_peer"
SECONDS = "2"
LIMIT = {"curl": f" -m {SECONDS}", "psycopg2": None}
"""How a client is told its time limit: else as the last argument, and psycopg2 has none."""
ELSEWHERE = "it keeps no connection"

# The cases, as rows: the lesson, its variant, and whether the client is told a time limit.
OF_CLIENTS: dict[Row, str] = {
    ("retries_idle_race", "", False): "the kept connection was closed unseen",
    ("survives_restart", "", False): "the server was restarted",
    (VANISHES, "", False): "the server vanishes in mid-answer",
    (VANISHES, "", True): f"the same, with a time limit of {SECONDS} s",
    ("closes_too", 1, False): "the server closes, the client is idle",
    ("closes_too", 2, False): "the server closes, the client asks again",
    ("reuses_connection", "", False): "six requests over one connection",
}

IDLE = "80s"
OF_PROXIES: dict[Row, str] = {
    ("passes_half_close", ""): "the client shuts down its writing side",
    ("passes_resets", "server"): "the server resets in mid-answer",
    ("passes_resets", "client"): "the client resets before the answer",
    ("keeps_idle", ""): f"both are idle for {IDLE}",
}


def judge_client(client: Program, out: Path) -> Judged:
    """What a client does in each case, recorded below `out`. Raises Missing."""
    judged = Judged(client)
    limit = LIMIT.get(client.name, f" {SECONDS}")
    with judging.prepared(client) as (_, run):
        sets = {**client.says, "run": run, "port": str(client.port), "uid": str(UID)}
        sets["timeout"] = "8s"
        found = [(each, False) for each in labctl(LESSONS, sets, out, client.jobs)]
        if limit:
            sets["run"] = run + limit
            kept = {name: text for name, text in sets.items() if name not in ("answer", "greeting")}
            found += [(each, True) for each in labctl(LESSONS / VANISHES, kept, out, 1)]
    for each, limited in found:
        (variant,) = each["variant"].values() or [""]
        row = each["scenario"], variant, limited
        judged.add(each, row, reason)
        if row in judged.failures and judged.failures[row].words == ELSEWHERE:
            judged.cells[row] = "–"
    return judged


def judge_proxy(proxy: Program, out: Path) -> Judged:
    """The same of a proxy."""
    judged = Judged(proxy)
    with judging.prepared(proxy) as (_, run):
        sets = {"run": run, "port": str(proxy.port), "uid": str(UID), "idle": IDLE}
        for each in labctl(ROOT / "scenarios/proxies", sets, out, proxy.jobs):
            (variant,) = each["variant"].values() or [""]
            judged.add(each, (each["scenario"], variant), of_proxy)
    return judged


def reason(verdict: Mapping[str, str], said: str) -> str:
    """A client's failure in a few words, from its verdict and from what it said."""
    what, actual = verdict["what"], verdict["actual"]
    errors = [line for line in said.splitlines() if line and line != "ok"]
    if "SYN" in what:
        return f"{actual} connections"
    if "RST" in what:
        return ELSEWHERE
    if errors and "0 x" not in what:
        return f"`{errors[0].strip()}`"
    return of_proxy(verdict, said)


def of_proxy(verdict: Mapping[str, str], said: str) -> str:
    """The same of a proxy."""
    what, actual = verdict["what"], verdict["actual"]
    if "0 x" in what:
        stays = [state for state in ("CLOSE-WAIT", "ESTAB") if state in actual]
        return f"`{stays[0]}` stays" if stays else actual
    if what.startswith("server: recv"):
        return "the server gets no request"
    if "2nd recv" in what:
        return "the client reads an end" if "recv: 0" in actual else actual
    if "ECONNRESET" in what:
        return "the client reads an end, and no error" if "ok" in actual else "the client waits"
    if found := re.search(r"received (\d+)", actual):
        return f"{int(found[1]):,} bytes of the answer"
    return f"{what}: {actual}"


def main() -> None:
    options = judging.parser(__doc__, [*CLIENTS, *PROXIES]).parse_args()
    for kind, programs, judge, rows in (
        ("client", CLIENTS, judge_client, OF_CLIENTS),
        ("proxy", PROXIES, judge_proxy, OF_PROXIES),
    ):
        judged = judging.each(programs, options, judge)
        if judged:
            judging.show(judging.by_lessons(judged, rows))
            judging.show_failures(judged, rows, kind)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
