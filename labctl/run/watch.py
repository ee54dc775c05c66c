"""Watching what runs already: records of it, one after the other, each of which is a run directory
as those of `labctl run` are."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import field, replace
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol, TypeGuard

from labctl.backends import BackendOptions
from labctl.backends import lease as leases
from labctl.backends.lease import Lease
from labctl.backends.netns.here import Here
from labctl.backends.watched import Watched
from labctl.ground.crash import netted
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, UsageError
from labctl.ground.output import tell
from labctl.ground.resources import default_folder
from labctl.judge.result import RunResult, document, now, unperformed
from labctl.lab.messaging import stopping, surely
from labctl.lab.watching import NO_CALLS, Watching
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document
from labctl.language.steps import LOOKING, Outcome, Step
from labctl.record.events import Event, TroubleEvent, UnseenEvent
from labctl.record.history import History
from labctl.record.store import RunFolder, new_folder
from labctl.run.places import DEFAULT_OS
from labctl.run.runner import Ended, Judged, conclude, outcome, tell_early_end
from labctl.run.workflow import gently, sweep

MOST_BYTES = 16 << 20
"""When a record is so large, the next one begins: it is all in memory too, and judging it takes a
second for each MiB."""
KEPT = 16
"""So many of the last records stay."""
MOST_PORTS = 100
"""So many a capture's program has room for."""
GOES_ON = "the watch went on in another record"
WHOSE = "--port N: of those that hold sockets of this port; or --pid instead of --here"
CAUSES = "labctl explain says what caused what in this one"
TICK = 0.25


class Viewer(Protocol):
    """Somebody who sees a watch go on."""

    def event(self, event: Event, history: History) -> None:
        """Called after every event."""

    def say(self, line: str) -> None:
        """Says what happens to the watch itself."""

    def tick(self) -> None:
        """Called a few times a second."""


@dataclass(frozen=True)
class Wanted:
    """What to watch: this machine's own network, or those of processes; or those of containers, or
    of all that are of a Compose `project`; only these ports, if there are any. `named` are
    containers by the names that their hosts get. With `calls`, also what their processes call."""

    here: bool = False
    pids: Sequence[int] = ()
    containers: Sequence[str] = ()
    project: str | None = None
    ports: Sequence[int] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    calls: bool = False

    @property
    def what(self) -> str:
        """In a word or two, also for the name of a folder."""
        own = ["here"] if self.here else []
        project = [self.project] if self.project else []
        return "-".join([*own, *map(str, self.pids), *self.containers, *self.named, *project])

    @property
    def of_engine(self) -> bool:
        """Whether an engine has it. Raises UsageError if only some of it."""
        engine, machine = self.containers or self.named or self.project, self.here or self.pids
        if engine and machine:
            raise UsageError(
                "containers and this machine's own networks may have different clocks",
                "watch them one at a time",
            )
        if not engine and not machine:
            raise UsageError("say what to watch", "--container, --compose, --pid or --here")
        return bool(engine)


@dataclass(frozen=True)
class Limits:
    """`seconds`: how long to watch, if not until somebody ends it; the size of a record in bytes,
    and how many stay."""

    seconds: float | None = None
    most_bytes: int = MOST_BYTES
    kept: int = KEPT


View = Callable[[Watching], AbstractContextManager[Viewer]]
"""Shows a watch during a `with`."""


def begin(wanted: Wanted, out: Path | None, limits: Limits, view: View) -> list[RunResult]:
    """Watches what is wanted; see `watch`. Raises UsageError."""
    now = datetime.now(UTC)
    stem = f"watch-{wanted.what}" if out else f"{now:%Y%m%dT%H%M%S}-watch-{wanted.what}"

    def folder() -> Path:
        return new_folder(out or default_folder(), stem)

    if hasattr(os, "SCHED_BATCH"):  # what is watched runs on the same processors: see sched(7)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with beside(wanted) as watched:
        return watch(watched, folder, limits, view, wanted.calls)


@contextmanager
def beside(wanted: Wanted) -> Iterator[Watched]:
    """What is wanted, to be watched once: with a lease, and all down in the end. Raises UsageError,
    LabError."""
    backend = "docker" if wanted.of_engine else "netns"
    if len(wanted.ports) > MOST_PORTS:
        raise UsageError(f"{len(wanted.ports)} ports", f"name {MOST_PORTS} at most")
    if wanted.calls and wanted.here and not wanted.ports:
        raise UsageError("--calls and --here: the calls of which processes?", WHOSE)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with Lease(leases.new_name(), "watch", wanted.what, backend, now) as lease:
        watched = _watched(wanted, lease)
        try:
            yield watched
        finally:
            surely(watched.down)


def _watched(wanted: Wanted, lease: Lease) -> Watched:
    if wanted.of_engine:
        from labctl.backends.docker.beside import Beside

        sweep()
        options = BackendOptions(lease.run, lease.text, Path(), DEFAULT_OS, tell)
        return Beside(options, wanted.containers, wanted.named, wanted.project, wanted.ports)
    pids: dict[str, int | None] = {"here": None} if wanted.here else {}
    pids |= {f"pid-{pid}": pid for pid in wanted.pids}
    return Here(lease.run, pids, wanted.ports)


def watch(
    watched: Watched,
    folder_for: Callable[[], Path],
    limits: Limits,
    view: View,
    calls: bool = False,
) -> list[RunResult]:
    """Watches until the time is over, nothing is left to watch, or somebody interrupts it; returns
    the results of the records that stay. The last one is an error if watching failed.

    Raises LabError if it can't begin, UsageError if nothing can be written."""
    results: deque[RunResult] = deque()
    over = False
    with Watching(watched, calls) as lab, gently(), view(lab) as viewer:
        until = None if limits.seconds is None else time.monotonic() + limits.seconds
        while not over:
            case = scenario_of(watched.names)
            with RunFolder(folder_for(), case.text) as folder:
                record = _Record(lab, folder, viewer)
                over = record.fill(until, limits.most_bytes)
            if not over:
                results.append(_unjudged(case, record.ended, folder))
                viewer.say(f"{folder.path} {record.why}: the next record begins")
            while len(results) >= limits.kept:
                rmtree(results.popleft().folder, ignore_errors=True)
    return [*results, conclude(case, "watch", lab.history, record.ended, folder)]


def _unjudged(case: Scenario, ended: Ended, folder: RunFolder) -> RunResult:
    """The result of a record while the watch goes on: to judge it would take too long."""
    found = replace(
        unperformed(case, "pass", LabError(GOES_ON, CAUSES), "watch", folder.path),
        environment=ended.environment,
        started=ended.started,
        seconds=ended.seconds,
        lab_seconds=ended.lab_seconds,
    )
    folder.finish(document([found]))
    return found


class _Record:
    """One record of a watch; `ended` says how it ended, `why` the next one begins."""

    ended: Ended
    why = "is full"

    def __init__(self, lab: Watching, folder: RunFolder, viewer: Viewer) -> None:
        self._lab, self._folder, self._viewer = lab, folder, viewer

    def fill(self, until: float | None, most_bytes: int) -> bool:
        """Takes in what happens until then, or until so much of it is there. Returns whether the
        watch is over."""
        began, started = time.monotonic(), now()
        cause: BaseException | None = None
        over = True
        try:
            with netted():
                try:
                    self._lab.begin(
                        History(captures=self._folder.captures), self._add, self._folder.add_packets
                    )
                    over = self._go_on(until, most_bytes)
                except KeyboardInterrupt:
                    stopping.clear()
                self._lab.end()
        except (LabError, KeyboardInterrupt) as exc:
            cause = exc
            tell_early_end(self._lab.history, self._add)
        history, seconds = self._lab.history, time.monotonic() - began
        environment = history.lab.environment if history.lab else {}
        self.ended = Ended(*outcome(cause), environment, started, seconds, history.now)
        return over

    def _go_on(self, until: float | None, most_bytes: int) -> bool:
        while until is None or time.monotonic() < until:
            left = TICK if until is None else until - time.monotonic()
            due = time.monotonic() + min(TICK, max(0.0, left))
            while (left := due - time.monotonic()) > 0:
                self._lab.pump(left)
            self._viewer.tick()
            for name in self._lab.restarted():
                self._viewer.say(f"{name} was started again, and is watched on")
            if self._lab.over():
                return True
            if came := self._lab.joined():
                self.why = f"has no {', '.join(came)}, which came later"
                return False
            if size(self._folder.path) > most_bytes:
                return False
        return True

    def _add(self, event: Event) -> None:
        self._folder.add(event)
        self._viewer.event(event, self._lab.history)
        if isinstance(event, UnseenEvent) or _of_calls(event):
            self._viewer.say(f"{event.host}: {event.text}")


def _of_calls(event: Event) -> TypeGuard[TroubleEvent]:
    """Whether it says which calls of a host are recorded, where they were wanted."""
    return isinstance(event, TroubleEvent) and event.probe == "calls" and event.text != NO_CALLS


class WatchSession(Judged):
    """A watch with steps, all of which only look."""

    lab: Watching

    def __init__(
        self, scenario: Scenario, watched: Watched, folder: RunFolder, calls: bool
    ) -> None:
        super().__init__(scenario, "watch", folder)
        self.folder = folder
        self._watched, self._calls = watched, calls

    @contextmanager
    def _observed(self) -> Iterator[Watching]:
        with Watching(self._watched, self._calls) as lab:
            lab.begin(self.history, self._record, self.folder.add_packets)
            yield lab

    def _environment(self) -> Mapping[str, Any]:
        return self._watched.environment()

    def _perform(self, step: Step) -> Outcome | None:
        assert isinstance(step, LOOKING)
        return step.act(self.lab)


def size(folder: Path) -> int:
    """How many bytes its files have."""
    return sum(path.stat().st_size for path in folder.iterdir())


def scenario_of(names: Sequence[str]) -> Scenario:
    """The scenario of a record: hosts, and nothing that is done or claimed. It may be replaced by
    one with claims (`labctl check RUN --scenario FILE`)."""
    hosts = "".join(f"  {name}: {{}}\n" for name in names)
    text = f"title: What ran on {', '.join(names)}\nhosts:\n{hosts}steps: []\n"
    (case,) = load_document(Document("watch", text), text, "watch", {})
    return case
