"""Several cases at once: each in a process of its own, with its own lab and its own lease.

A worker is forked from this process, which has imported and loaded everything. It reports through a
pipe which step it has come to, and finally its result. The end of that pipe is the end of the
worker. Threads: none here, so that a fork is safe. Workers would share an open Docker client, so
there is none here.

A worker does one case, unless what it works with is worth keeping, such as a guest: then it does
one after another, and ends when there are no more.

Signals: only this process heeds those of a terminal, and passes each on as SIGTERM. A worker whose
parent is gone sends that to itself. So it always takes its lab down.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from labctl.backends import Progress
from labctl.ground.crash import netted, sentence
from labctl.ground.data import dataclass
from labctl.ground.errors import LabctlError
from labctl.judge import accounts
from labctl.judge.result import RunResult, document, unperformed
from labctl.lab.lab import Lab
from labctl.language.scenario import Scenario
from labctl.record.events import Event, StepEvent
from labctl.record.history import History
from labctl.record.store import RunFolder
from labctl.run.runner import WAS_INTERRUPTED, Interrupted, Watcher
from labctl.run.workflow import SIGNALS, interruptible

METHOD = "fork" if sys.platform == "linux" else "spawn"
"""How a worker begins. A fork takes 10 ms, a new interpreter half a second of computing; but the
system's libraries on macOS do not bear a fork (see Python's multiprocessing)."""

MOST = 32
"""How many at once at most: as many as networks. Namespaces have 32, an engine about as many."""

TICK = 0.125
ORPHAN_LOOK = 0.5

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    Pipe = Connection[Any, Any]

Work = Callable[[Path, Scenario, Watcher, Progress], RunResult]
"""Runs a case, recorded in a folder. It must pickle, as a function of a module does. If it is a
context manager too, a worker enters it once, and does one case after another."""


@dataclass(frozen=True)
class Doing:
    """The step that a case has come to, from 0 on."""

    index: int
    text: str


class Board(Protocol):
    """Somebody who watches all cases. Each has a number."""

    def begun(self, number: int) -> None:
        """A case begins to come up."""

    def doing(self, number: int, step: Doing) -> None:
        """It has come to a step."""

    def say(self, line: str) -> None:
        """Long work makes progress."""

    def ended(self, number: int, result: RunResult) -> None:
        """It is over."""

    def tick(self) -> None:
        """Called several times a second."""


class Places(Protocol):
    """Says where each case runs, if there are several places. Each has a number."""

    def begin(self, number: int, case: Scenario) -> Work:
        """What to do with a case that begins."""

    def ended(self, number: int, found: RunResult) -> RunResult | None:
        """The result of a case that is over; None if it is to run again."""


@dataclass(frozen=True)
class Broken:
    """A worker met an error that nobody foresaw."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass
class _Job:
    """A case that runs."""

    number: int
    case: Scenario
    folder: Path
    process: BaseProcess = field(init=False)
    up: bool = False
    result: RunResult | LabctlError | Broken | None = None
    began: float = field(default_factory=time.monotonic)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Pace:
    """How many cases run at once, and how many of these may be coming up: bringing a lab up is most
    of the work, and would delay what the others measure."""

    at_once: int
    starting: int


A_CORE = Pace(8, 1)
"""What suits each core: most cases wait for TCP's timers most of the time."""

CHEAP = {"netns": Pace(8, 4)}
"""The same for backends whose labs come up with little work."""


def pace(backend: str, cases: int, wanted: int | None) -> Pace:
    """The pace for so many cases: `wanted` at once, or as many as suit this machine."""
    cores, suitable = os.cpu_count() or 1, CHEAP.get(backend, A_CORE)
    most = wanted or min(suitable.at_once * cores, MOST)
    return Pace(min(most, cases), suitable.starting * cores)


@dataclass(frozen=True)
class Task:
    """What to do with each case: `work`, or what one of several `places` has for it, on a backend,
    in the new `folder` for it; by processes that begin by a `method` of multiprocessing."""

    work: Work
    backend: str
    folder: Callable[[Scenario], Path]
    places: Places | None = None
    method: str = METHOD

    @property
    def lasting(self) -> bool:
        """Whether a worker does one case after another."""
        return isinstance(self.work, AbstractContextManager)


def run_all(cases: Sequence[Scenario], task: Task, pace: Pace, board: Board) -> list[RunResult]:
    """Runs cases at this pace, and returns their results, in their order; those that take longest
    begin first. A case whose worker was killed is an `error`, and so is one whose `folder` or
    `work` raises. If they raise for all cases, this raises the first error; so it does if a lasting
    `work` raises for the first case that ends.

    Raises Interrupted, too, when all running cases have ended."""
    waiting = sorted(range(len(cases)), key=lambda number: -cases[number].least)
    running: dict[Pipe, _Job] = {}
    folders: dict[int, Path] = {}
    results: dict[int, RunResult] = {}
    refused: list[LabctlError] = []
    idle: list[tuple[Pipe, BaseProcess]] = []
    try:
        while waiting or running:
            while waiting and _room(pace, running.values()):
                number, failed = waiting[0], None
                try:
                    with netted():
                        if number not in folders:
                            folders[number] = task.folder(cases[number])
                        with _held_back():
                            job = _Job(number, cases[number], folders[number])
                            running[_given(job, idle, task)] = job
                except LabctlError as exc:
                    if running:  # No more at once: a case that ends makes room.
                        pace = replace(pace, at_once=len(running))
                        break
                    if not results:
                        raise
                    folder = folders.get(number) or next(iter(results.values())).folder.parent
                    failed = unperformed(cases[number], "error", exc, task.backend, folder)
                    results[number] = failed
                    refused.append(exc)
                waiting.remove(number)
                board.begun(number)
                if failed:
                    board.ended(number, failed)
            for pipe in _ready(running, TICK):
                job = running[pipe]
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    found = results[job.number] = _over(job, task.backend)
                    del running[pipe]  # not before: an interruption would lose it
                    if task.places:
                        settled = task.places.ended(job.number, found)
                        if settled is None:
                            waiting.insert(0, job.number)
                            del folders[job.number]
                            continue
                        results[job.number] = settled
                    refused += [job.result] if isinstance(job.result, LabctlError) else []
                    board.ended(job.number, results[job.number])
                else:
                    _take(message, job, board)
                    if task.lasting and job.result is not None:
                        if not results and isinstance(job.result, LabctlError):
                            raise job.result
                        idle.append((pipe, job.process))
                        results[job.number] = _found(running.pop(pipe), task.backend)
                        board.ended(job.number, results[job.number])
            board.tick()
    except KeyboardInterrupt as exc:
        for job in _end(running):
            results[job.number] = _over(job, task.backend)
        raise Interrupted([results[number] for number in sorted(results)]) from exc
    finally:
        for pipe, _ in idle:
            with suppress(OSError):  # it has ended already
                pipe.send(None)
        _end(running)
        for _, process in idle:
            process.join()
    if len(refused) == len(cases):
        raise refused[0]
    return [results[number] for number in range(len(cases))]


def _given(job: _Job, idle: list[tuple[Pipe, BaseProcess]], task: Task) -> Pipe:
    """Gives a job to a worker that waits for one, or to a new one; returns the pipe to it."""
    from multiprocessing import get_context

    while idle:
        ours, job.process = idle.pop()
        with suppress(OSError):  # somebody has killed it
            ours.send((job.folder, job.case))
            job.up = True  # what takes long is there already
            return ours
    work = task.places.begin(job.number, job.case) if task.places else task.work
    context = get_context(task.method)
    ours, theirs = context.Pipe()
    job.process = context.Process(  # type: ignore[attr-defined]
        target=_worker,
        args=(job.folder, job.case, work, theirs, os.getpid()),
        name=job.case.label,
    )
    job.process.start()
    theirs.close()  # or the next worker would hold it open
    return ours


def _take(message: object, job: _Job, board: Board) -> None:
    match message:
        case Doing():
            job.up = True
            board.doing(job.number, message)
        case str():
            board.say(message)
        case RunResult() | LabctlError() | Broken():
            job.result = message


def _over(job: _Job, backend: str) -> RunResult:
    """The result of a case whose worker has ended."""
    job.process.join()
    return _found(job, backend)


def _found(job: _Job, backend: str) -> RunResult:
    """The result of a case that is over."""
    from labctl.judge.recorded import load

    found = job.result if isinstance(job.result, RunResult) else _cut_short(job, backend)
    if found.result in ("pass", "skip"):
        return found
    with suppress(LabctlError), netted():
        found = replace(found, history=load(job.folder).history)
    return found


def _cut_short(job: _Job, backend: str) -> RunResult:
    """The result of a case that reported none; writes it into the case's folder if possible."""
    from labctl.judge.recorded import load

    code = job.process.exitcode or 0
    reason = (
        str(job.result) if job.result
        else f"its process was killed by {signal.Signals(-code).name}" if code < 0
        else "its process failed; the reason stands above" if code else WAS_INTERRUPTED
    )  # fmt: skip
    found = replace(
        unperformed(job.case, "error", reason, backend, job.folder),
        started=f"{job.started:%Y-%m-%dT%H:%M:%SZ}",
        seconds=time.monotonic() - job.began,
    )
    with suppress(LabctlError), netted(), RunFolder(job.folder, job.case.text) as folder:
        left = load(job.folder)
        found = replace(
            found,
            environment=left.environment,
            started=left.started or found.started,
            lab_seconds=left.lab_seconds,
        )
        if (job.folder / "result.json").exists():  # It was over, and could not report it any more.
            return replace(
                found,
                result=left.result,
                reason=left.reason,
                seconds=left.seconds,
                verdicts=left.verdicts,
                causes=left.causes,
                beside=left.beside,
                counted=left.counted,
                hint=left.hint,
                processes=left.processes,
            )
        last = accounts.accounts(job.case, left.history)
        found = replace(found, beside=tuple(accounts.reasons(last)), processes=last)
        folder.finish(document([found]))
    return found


def _end(running: dict[Pipe, _Job]) -> list[_Job]:
    """Makes all workers take their labs down, waits for that, and returns their jobs. Only the
    results in their last messages matter, but a full pipe would block them."""
    for job in running.values():
        job.process.terminate()
    ended = []
    while running:
        for pipe in _ready(running, None):
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                ended.append(running.pop(pipe))
                ended[-1].process.join()
            else:
                if isinstance(message, RunResult):
                    running[pipe].result = message
    return ended


def _room(pace: Pace, jobs: Collection[_Job]) -> bool:
    starting = sum(not job.up for job in jobs)
    return len(jobs) < pace.at_once and starting < pace.starting


def _ready(running: Iterable[Pipe], patience: float | None) -> list[Pipe]:
    """Pipes with something to read, or at their end."""
    from multiprocessing.connection import wait

    return cast("list[Pipe]", wait(list(running), patience))


@contextmanager
def _held_back() -> Iterator[None]:
    """Holds signals back: we must know a worker that has begun, and it must know what to do."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


# --- In a worker ----------------------------------------------------------------------------------


def _worker(folder: Path, case: Scenario, work: Work, pipe: Pipe, parent: int) -> None:
    """Begins and ends with signals held back."""

    def tell(message: object) -> None:
        with suppress(OSError):  # Nobody listens any more.
            pipe.send(message)

    for number in (signal.SIGINT, signal.SIGHUP):
        # Not SIG_IGN: programs in the lab would inherit that.
        signal.signal(number, lambda *_: None)
    with interruptible((signal.SIGTERM,)):
        try:
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            with ExitStack() as stack:
                kept: object = work
                if lasting := isinstance(kept, AbstractContextManager):
                    stack.enter_context(kept)
                _do(folder, case, work, tell)
                while lasting and (following := pipe.recv()):
                    folder, case = following
                    _do(folder, case, work, tell)
        except (EOFError, OSError):
            pass  # Nobody has a case for it any more.
        except Interrupted as exc:
            for found in exc.results:
                tell(replace(found, history=History()))
        except KeyboardInterrupt:
            pass
        except Exception as exc:
            tell(Broken(sentence(exc)))
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _do(folder: Path, case: Scenario, work: Work, tell: Callable[[object], None]) -> None:
    try:
        found = work(folder, case, _Telling(tell), tell)
        tell(replace(found, history=History()))  # A history is large, and is in the folder.
    except LabctlError as exc:
        tell(exc)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


class _Telling:
    """A watcher that tells the parent which step its case has come to."""

    def __init__(self, tell: Callable[[object], None]) -> None:
        self._tell = tell

    def event(self, event: Event, history: History) -> None:
        """See `Watcher`."""
        if isinstance(event, StepEvent) and event.phase == "begin":
            self._tell(Doing(event.index, event.text))

    def up(self, lab: Lab) -> None:
        """See `Watcher`."""

    def done(self, lab: Lab) -> None:
        """See `Watcher`."""
