"""The flow of a command that runs labs: sweep, lease, open, run, report back."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from labctl.backends import EngineAt, Progress
from labctl.backends import lease as leases
from labctl.backends.capabilities import REAL_TIME
from labctl.backends.lease import Lease
from labctl.ground.errors import LabError, Mistake, ScenarioError, UsageError
from labctl.ground.output import tell
from labctl.ground.resources import default_folder
from labctl.ground.written import words
from labctl.judge.result import RunResult
from labctl.lab.lab import Lab
from labctl.lab.messaging import stopping
from labctl.language.document import Document
from labctl.language.scenario import Scenario, load_document, params_of
from labctl.language.services import check_services
from labctl.language.values import unknown
from labctl.record.history import History
from labctl.record.store import RunFolder, new_folder
from labctl.run.bare import lease_of, opened_at
from labctl.run.joined import Spread
from labctl.run.places import Place
from labctl.run.runner import Interrupted, Session, Watcher

DEFAULT_LAB = """\
title: The default lab, for hands
hosts: {server: {}, client: {}}
steps: []
"""
END_DEADLINE = 15.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask for the end."""


def load_all(
    files: Sequence[Path], sets: dict[str, str], compose: Path | None = None
) -> list[Scenario]:
    """The cases of several files. Each file takes its own params from `sets`. `compose` takes the
    place of their own Compose files.

    Raises ScenarioError with the mistakes of all files, UsageError if `sets` names a param that
    none of them has.
    """
    cases: list[Scenario] = []
    mistakes: list[Mistake] = []
    params: set[str] = set()
    for file in files:
        try:
            document = Document.read(file)
            own = params_of(document)
            params |= own
            chosen = {name: value for name, value in sets.items() if name in own}
            cases += load_document(document, document.text, file.stem, chosen)
        except ScenarioError as exc:
            mistakes += exc.mistakes
    if mistakes:
        raise ScenarioError(mistakes)
    if compose:
        cases = [replace(case, compose=str(compose)) for case in cases]
    check_services(cases)
    for name in sets:
        if name not in params:
            place = str(files[0]) if len(files) == 1 else f"{len(files)} scenarios"
            message = unknown("param", name, sorted(params))
            raise UsageError(f"{place}: --set {name}: {message}")
    return cases


def keep_short_cases(cases: list[Scenario], virtual_time: bool, say: Progress) -> list[Scenario]:
    """Leaves out, and reports, cases that need virtual time if time is real. If there are no other
    cases they stay, and are skipped with the reason."""
    kept = [case for case in cases if virtual_time or "virtual_time" not in case.needs]
    if not kept or len(kept) == len(cases):
        return cases
    say(f"cases that take hours are left out, {len(cases) - len(kept)}: {REAL_TIME.hint}")
    return kept


def run_case(
    scenario: Scenario, place: Place, out: Path | None, watcher: Watcher, progress: Progress
) -> RunResult:
    """Runs one case here, recorded in a new folder. Raises what `session` and `Session.run` raise,
    and UsageError if nothing can be written."""
    return run_in(new_run(scenario, out), scenario, watcher, progress, place)


def new_run(scenario: Scenario, out: Path | None) -> Path:
    """A new folder for a run of this case, below `out` if that is given. Raises UsageError."""
    name = scenario.name + "".join(f"-{words(value)}" for value in scenario.variant.values())
    if out:
        return new_folder(out, name)
    return new_folder(default_folder(), f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{name}")


def together(cases: Sequence[Scenario]) -> Path | None:
    """A folder for the runs of one command, if there are several; a single one needs none."""
    if len(cases) == 1:
        return None
    return default_folder() / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{len(cases)}-cases"


def run_in(
    path: Path, scenario: Scenario, watcher: Watcher, progress: Progress, place: Place
) -> RunResult:
    """Runs one case, recorded in this folder; see `run_case`. Raises Interrupted."""
    with session(path, scenario, watcher, progress, place) as opened:
        try:
            return opened.run()
        except KeyboardInterrupt as exc:
            raise Interrupted([opened.result] if hasattr(opened, "result") else []) from exc


@contextmanager
def session(
    path: Path, scenario: Scenario, watcher: Watcher, progress: Progress, place: Place
) -> Iterator[Session]:
    """A case that is ready to run: with a lease, a folder to record it in, and a backend. Raises
    UsageError if the folder can't be written, LabError if the backend can't open."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lease = lease_of("run", scenario.label, place, now)
    with lease, RunFolder(path, scenario.text) as folder:
        opened = opened_at(lease, path, place, progress)
        case = scenario, opened, folder, _Announcing(watcher, lease)
        session = Spread(*case, place.engines) if place.engines else Session(*case)
        try:
            yield session
        finally:
            if place.engines and (not hasattr(session, "ended") or session.ended.result == "error"):
                lease.keep()


def hold(place: Place, progress: Progress, ready: Callable[[Lab], None]) -> None:
    """Brings the default lab up, and keeps it until it is interrupted."""
    (scenario,) = load_document(Document("labctl up", DEFAULT_LAB), DEFAULT_LAB, "lab", {})
    now = datetime.now(UTC)
    lease = lease_of("up", "lab", place, now.isoformat(timespec="seconds"))
    hint = "set XDG_STATE_HOME to a folder that can be written"
    path = new_folder(default_folder(), f"{now:%Y%m%dT%H%M%S}-up", hint)
    with lease, RunFolder(path, DEFAULT_LAB) as folder:
        opened = opened_at(lease, folder.path, place, progress)
        history = History(captures=folder.captures)
        with Lab(scenario.spec, opened, history, folder.add, folder.add_packets) as lab:
            lease.hosts = lab.holders
            lease.write()
            ready(lab)
            keep(lab)


def keep(lab: Lab) -> None:
    """Keeps a lab up until a signal asks for its end."""
    try:
        while True:
            lab.pump(3600.0)
    except KeyboardInterrupt:
        pass


class _Announcing:
    """Passes everything on to a watcher, and writes the hosts of a lab into its lease."""

    def __init__(self, watcher: Watcher, lease: Lease) -> None:
        self._watcher, self._lease = watcher, lease
        self.event, self.done = watcher.event, watcher.done

    def up(self, lab: Lab) -> None:
        self._lease.hosts = lab.holders
        self._lease.write()
        self._watcher.up(lab)


def sweep(engines: Iterable[EngineAt] = ()) -> list[str]:
    """Removes from running engines what dead controllers left; a line for each thing removed."""
    from labctl.backends.docker.sweep import sweep as sweep_engines

    return sweep_engines(_dead, engines=engines).lines


def sweep_all(engines: Iterable[EngineAt]) -> tuple[list[str], list[LabError]]:
    """The same, also from the engines where runs that are over may have left something; and which
    of them could not be swept."""
    from labctl.backends.docker.sweep import sweep as sweep_engines

    left = list(leases.abandoned())
    known = {at.where: at for at in engines}
    known |= {at: EngineAt(at, at) for _, lease in left for at in lease.engines if at not in known}
    removed = sweep_engines(_dead, engines=known.values())
    for path, _ in left if not removed.failures else ():
        path.unlink(missing_ok=True)
    return removed.lines, removed.failures


def _dead(run: str, lease: str, any_holder_running: bool) -> bool:
    """Whether a run's controller is dead. If nobody can see its lease from here, a holder shows it:
    holders end with their controller."""
    alive = leases.alive(lease)
    return not (any_holder_running if alive is None else alive)


def end(lease: Lease) -> bool:
    """Ends a lab that is kept in the background; False if it does not end in time. Raises LabError
    if its controller can't be reached from here."""
    lease.interrupt()
    deadline = time.monotonic() + END_DEADLINE
    while leases.alive(lease.text):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def gently(numbers: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Inside `interruptible`: for now a signal breaks off nothing. The next wait for messages
    raises KeyboardInterrupt."""
    before = [signal.signal(number, lambda *_: stopping.set()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def interruptible(numbers: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Turns the first of these signals into KeyboardInterrupt, and ignores further ones while the
    lab goes down."""

    def interrupt(number: int, _: FrameType | None) -> None:
        if not stopping.is_set():
            stopping.set()
            raise KeyboardInterrupt(signal.Signals(number).name)
        tell("labctl: taking the lab down, a moment")

    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        stopping.clear()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
