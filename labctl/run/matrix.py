"""Cases over places: kernels, operating systems of images, backends.

    DIR/PLACE-KEY/RUN/         the runs of a place, as `labctl run` records them
    DIR/PLACE-KEY/result.json  the result document of the place: its latest runs of the cases

KEY stands for this labctl and for the params that were set. So a second call runs only cases
without a result there: new ones, interrupted ones, and those that could not run.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from labctl.ground.errors import LabctlError, LabError, UsageError
from labctl.ground.reading import MAX_RECORD, open_file, read_file
from labctl.ground.resources import default_folder
from labctl.judge.check import overall
from labctl.judge.recorded import case_of, read_result
from labctl.judge.result import RunResult, document, unperformed
from labctl.language.document import MAX_BYTES, Document
from labctl.language.scenario import Scenario, load_document
from labctl.record.events import ExecEvent
from labctl.record.lines import read_events
from labctl.record.store import RunFolder, writing
from labctl.run import dispatch, workflow
from labctl.run.guests.initramfs import sources
from labctl.run.orders import Orders
from labctl.run.places import NEVER_RUN, NOT_RUN, Place, Seen

SYSCTLS = (
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    *(
        f"net.ipv4.tcp_{name}"
        for name in (
            "abort_on_overflow", "challenge_ack_limit", "congestion_control", "ecn", "fin_timeout",
            "invalid_ratelimit", "keepalive_intvl", "keepalive_probes", "keepalive_time",
            "max_syn_backlog", "max_tw_buckets", "orphan_retries", "retries1", "retries2",
            "rfc1337", "rmem", "rto_max_ms", "rto_min_us", "syn_retries", "synack_retries",
            "syncookies", "timestamps", "tw_reuse", "tw_reuse_delay", "wmem",
        )
    ),
)  # fmt: skip
"""Sysctls on which the ends of connections depend (ip-sysctl.rst)."""

LOOK = """\
title: What a place is like while nobody has changed it
hosts: {server: {}, client: {}}
steps:
  - exec: {server: cd /proc/sys/net && grep -s . core/somaxconn ipv4/ip_local_port_range ipv4/tcp_*}
    status: any                 # 2 where a file is missing, or closed
"""
"""The case to run first: if it can't run, no other can."""


def folder_of_all() -> Path:
    """The folder for results without `--out`."""
    return default_folder().parent / "matrix"


class Matrix:
    """Cases, and what is known of them at each place, in a folder."""

    def __init__(self, cases: Sequence[Scenario], sets: Mapping[str, str], out: Path) -> None:
        self._cases, self._sets, self._out = cases, sets, out
        (self._look,) = load_document(Document("labctl matrix", LOOK), LOOK, "place", {})
        parts: tuple[object, ...] = (list(sources().items()), sorted(sets.items()))
        if projects := {case.compose: _content(case.compose) for case in cases if case.compose}:
            parts = (*parts, sorted(projects.items()))
        self._key = _digest(repr(parts))[:8]
        self._alike = Counter(map(_identity, cases))

    def fill(self, place: Place, orders: Orders) -> None:
        """Runs the cases that have no result at a place yet. If a place can't run, records that.
        Raises UsageError if nothing can be written, and KeyboardInterrupt; keeps all results until
        then."""
        folder = self.folder(place)
        runs = runs_in(folder)
        missing = [case for case in self._cases if not _lasting(self._latest(case, runs), place)]
        say = orders.display.say
        say(f"{place.name}: {len(missing)} of {len(self._cases)} cases to run")
        try:
            if missing:
                self._run(missing, place, replace(orders, out=folder, sets=self._sets, whole=True))
        except LabctlError as exc:
            with RunFolder(workflow.new_run(self._look, folder), self._look.text) as record:
                record.finish(document([_not_had(self._look, place, exc, record.path)]))
        finally:
            seen = self.seen(place)
            if folder.is_dir():
                _write(folder / "result.json", seen.document)
        if seen.reason:
            say(f"{place.name}: {seen.reason}")

    def _run(self, cases: list[Scenario], place: Place, orders: Orders) -> None:
        if place.kernel:
            dispatch.run([self._look, *cases], place, orders)
            return
        (look,) = dispatch.run([self._look], place, replace(orders, jobs=1))
        if look.result == "pass":
            dispatch.run(cases, place, orders)

    def seen(self, place: Place) -> Seen:
        """What is known of a place, from its folder alone."""
        runs = runs_in(self.folder(place))
        found = [run for case in self._cases if (run := self._latest(case, runs))]
        look = next((run for run in reversed(runs) if run["text"] == self._look.text), None)
        blank, reason = NOT_RUN, None
        if look is None and not found:
            blank, reason = NEVER_RUN, "not run yet; leave --show out"
        elif look and look["result"] != "pass":
            blank, reason = look["result"], look.get("reason") or f"see {look['dir']}"
        results = [run["result"] for run in found]
        if len(found) < len(self._cases) or not found:
            results.append("unknown" if blank in (NOT_RUN, NEVER_RUN) else blank)
        else:
            reason = None
        document = {
            "version": "1",
            "result": overall(results),
            "runs": [{key: run[key] for key in run if key != "text"} for run in found],
        }
        environment = (found[-1] if found else look or {}).get("environment", {})
        return Seen(place.name, reason, environment, document, _sysctls(look), blank)

    def folder(self, place: Place) -> Path:
        """The folder of a place's results."""
        return self._out / f"{place.slug}-{self._key}"

    def _latest(self, case: Scenario, runs: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The latest run of a case, whatever its result. The text identifies a case and, if another
        file has the same text, the file."""
        identity = _identity(case)
        own = [
            run
            for run in runs
            if (run["scenario"], case_of(run), run["text"]) == identity
            and (self._alike[identity] == 1 or run["source"] == case.source)
        ]
        return {**own[-1], "source": case.source} if own else None


def _identity(case: Scenario) -> tuple[str, str, str]:
    return case.name, case.case, case.text


def _content(file: str) -> bytes:
    """What is in a Compose file: with other services it is another case."""
    try:
        return Path(file).read_bytes()
    except OSError:
        return b""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


NEEDED = {
    *("scenario", "source", "variant", "result", "backend", "environment", "started", "verdicts"),
    "why",
}
"""The keys of a run that a result document must have."""


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """The runs in a folder, in the form of result documents, each with the `text` of its scenario;
    the latest last. Without runs that were cut short."""
    found = []
    for path in folder.glob("*/result.json"):
        try:
            run = read_result(path)["runs"][0]
            text = read_file(path.parent / "scenario.yaml", MAX_BYTES).decode()
            written = path.stat().st_mtime_ns
        except (OSError, ValueError, UsageError):
            continue
        if run.keys() >= NEEDED:
            entry = {**run, "dir": str(path.parent), "text": text}
            found.append(((run["started"], written), entry))
    return [run for _, run in sorted(found, key=lambda entry: entry[0])]


def _lasting(run: Mapping[str, Any] | None, place: Place) -> bool:
    """Whether a run need not be repeated. The reason of a skip here may be gone since then, or
    another kernel booted; a guest stays the same."""
    if run is None or run["result"] == "error":
        return False
    here = run["backend"] == "docker" or run["environment"].get("kernel") == platform.release()
    return bool(place.kernel) or (run["result"] != "skip" and here)


def _not_had(case: Scenario, place: Place, why: LabctlError, folder: Path) -> RunResult:
    """The result at a place that could not run; an error if a lab failed there."""
    result = "error" if why.exit_status == LabError.exit_status else "skip"
    system = {"kernel": None, "os": place.os or None, "engine": None}
    found = unperformed(case, result, why, place.backend, folder)
    return replace(found, environment=system)


def _sysctls(run: Mapping[str, Any] | None) -> dict[str, str]:
    """The values that a run of LOOK saw; no entry for what a kernel does not have."""
    if run is None:
        return {}
    try:
        with open_file(Path(run["dir"]) / "history.jsonl", MAX_RECORD) as lines:
            output = "".join(e.output for e in read_events(lines) if isinstance(e, ExecEvent))
    except (OSError, UsageError):  # It is gone, or was damaged since.
        return {}
    found = (line.partition(":") for line in output.splitlines())
    values = {f"net.{p.replace('/', '.')}": " ".join(value.split()) for p, _, value in found}
    return {name: values[name] for name in SYSCTLS if name in values}


def _write(path: Path, document: Mapping[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with writing(path):
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        partial.rename(path)
