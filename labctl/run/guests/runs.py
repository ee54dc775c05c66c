"""Cases on a guest's kernel: starts guests, hands them cases, and records their events.

One boot serves all cases. There are as many guests as cores, each with a worker of its own. When
the first guest is ready its state is saved, so that the others, and the next time all, need not
boot. A state belongs to one kernel, root, labctl and QEMU, and is thrown away with them.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from labctl.backends import EngineAt, Progress
from labctl.backends.docker import engine
from labctl.backends.wire import Said
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, Unavailable
from labctl.ground.reading import loads
from labctl.judge.result import RunResult, now
from labctl.language.scenario import Scenario
from labctl.record.events import Event
from labctl.record.history import History
from labctl.record.lines import read_event
from labctl.record.store import RunFolder
from labctl.run import workers
from labctl.run.guests import (
    Kernel,
    assembled,
    cache,
    contained,
    find,
    initramfs,
    kconfig,
    qemu,
    root,
)  # fmt: skip
from labctl.run.guests.apt import kept
from labctl.run.guests.contained import Contained
from labctl.run.guests.messages import (
    Booted,
    Captured,
    CaseEnded,
    Greet,
    Greeted,
    Happened,
    RunCase,
    Tick,
)
from labctl.run.guests.qemu import GuestEnded, GuestHangs, Hardware, Here, Machine
from labctl.run.orders import Orders, one_by_one
from labctl.run.places import Place
from labctl.run.runner import Ended, Interrupted, Watcher, conclude, outcome, tell_early_end
from labctl.run.workers import Pace, Task
from labctl.run.workflow import new_run

MOST_GUESTS = 8
"""So many at once, if nobody says how many: each has its own memory."""
BOOT_DEADLINE = 240.0
SILENT_WORK = 20.0
"""Seconds of work without a word, on its console or to us, after which a booting guest is given up.
The longest silence is while Python imports labctl: 4 s of work in a boot of 18."""
IDLE, IDLE_SHARE = 20.0, 0.05
"""The same in seconds for a guest that does not work either, except for this share of them."""
READY_DEADLINE = 60.0
SILENCE = 180.0
"""Seconds without a word after which a guest is given up. It ticks every few seconds."""
BUSY = 60.0
"""Seconds of work in which a virtual clock must get further than a real one. Otherwise it never
jumps, because something in the guest never waits."""
HEARTBEAT = 1.0
KVM = Path("/dev/kvm")
KVM_DEADLINE = 20.0
SEED = 64  # bytes


@dataclass(frozen=True)
class Ground:
    """What cases run on: a kernel, which clock it uses, and the suite of its root; `at` is the
    engine in whose containers QEMU runs, if it does not run here."""

    kernel: Kernel
    virtual: bool
    suite: str
    at: EngineAt | None = None


def run_all(cases: list[Scenario], place: Place, orders: Orders) -> list[RunResult]:
    """Runs cases on the kernel of a place, in one guest or in several.

    Raises UsageError, Interrupted, and what `find`, `demand` and `Guests.run` raise."""
    suite, say = root.suite_for(place.system), orders.display.say
    at = (*place.engines, EngineAt())[0] if place.backend == "docker" else None
    root.demand(suite)
    cores = contained.cores(at, say) if at else os.cpu_count() or 1
    kernel = find(place.kernel, say)
    kconfig.demand(kernel)
    ground = Ground(kernel, place.virtual, suite, at)
    at_once = min(orders.jobs or min(cores, MOST_GUESTS), len(cases))
    if at_once > 1:
        task = Task(InGuests(ground, orders.sets), "netns", lambda case: new_run(case, orders.out))
        with orders.display.cases(cases) as board:  # the first one to boot saves its state
            return workers.run_all(cases, task, Pace(at_once, 1), board)
    with Guests(ground, say) as guests:

        def run(case: Scenario) -> RunResult:
            guests.start()
            with orders.display.case(case) as watcher:
                return guests.run(case, orders.sets, new_run(case, orders.out), watcher.event)

        return one_by_one(cases, run)


def located(place: Place) -> Place:
    """The same place, but on Docker if QEMU is not here and an engine answers. Raises Unavailable
    if neither is there."""
    if place.backend != "docker":
        try:
            qemu.version()  # rather than after a kernel was fetched
        except Unavailable:
            if not engine.answers():
                raise
            return replace(place, backend="docker")
    return place


class Guests:
    """A guest when it is needed, and another one if it died; used in a `with`. `machine` is one
    that is ready, and whose end its owner sees to.

    `run` raises LabError and Unavailable if no guest can run at all."""

    def __init__(
        self,
        ground: Ground,
        progress: Progress,
        machine: Machine | None = None,
        busy: float = BUSY,
    ) -> None:
        self._ground, self._progress, self._busy = ground, progress, busy
        self._machine = machine
        self._stack = ExitStack()
        self._engine = ""

    def __enter__(self) -> Guests:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self) -> Machine:
        """Makes a guest ready; `run` does that too."""
        self._machine = self._machine or self._started()
        return self._machine

    def run(
        self,
        scenario: Scenario,
        sets: Mapping[str, str],
        path: Path,
        event: Callable[[Event, History], None],
    ) -> RunResult:
        """Runs one case, recorded in a new folder. Calls `event` with all events, as they come. If
        something ends the guest, that is the case's result; this raises only Interrupted, after
        saving the evidence."""
        machine = self.start()
        began, started = time.monotonic(), now()
        with RunFolder(path, scenario.text) as folder:
            history = History(captures=folder.captures)
            busy = self._busy if self._ground.virtual else math.inf
            case = _Case(machine, history, folder, event, busy)
            cause: BaseException | None = None
            try:
                ended = case.perform(scenario, sets)
            except (LabError, KeyboardInterrupt) as exc:
                cause = exc
                (folder.path / "console.txt").write_text(machine.console(), encoding="utf-8")
                self._end()
                tell_early_end(history, folder.add)
                environment = history.lab.environment if history.lab else {
                    "kernel": self._ground.kernel.version, "os": None, "engine": self._engine,
                }  # fmt: skip
                ended = Ended(*outcome(exc), environment, "", 0.0, history.now)
            ended = replace(ended, started=started, seconds=time.monotonic() - began)
            result = conclude(scenario, "netns", history, ended, folder)
        if isinstance(cause, KeyboardInterrupt):
            raise Interrupted([result]) from cause
        return result

    def _started(self) -> Machine:
        """A guest that is ready: from its saved state, or booted, if necessary twice."""
        hardware = prepare(self._ground, self._progress)
        self._stack.enter_context(in_use(hardware.initramfs.parent))
        state: Path | None = None
        if self._ground.at:
            return self._booted(
                partial(Contained, hardware, self._ground.at, self._progress), state
            )
        if accelerated(hardware, self._progress):
            hardware = replace(hardware, accelerator="kvm")
        else:
            state = state_of(hardware)
        if state and state.exists():
            try:
                return self._ready(Here(hardware, state), None)
            except LabError as exc:
                self._progress(f"booting anew: {exc}")
                state.unlink(missing_ok=True)
        return self._booted(partial(Here, hardware), state)

    def _booted(self, make: Callable[[], Machine], state: Path | None) -> Machine:
        """One that has booted, if necessary at the second attempt."""
        self._progress(f"booting Linux {self._ground.kernel.version}")
        machine = make()
        try:
            try:
                return self._boot(machine, state)
            except GuestHangs:
                raise
            except GuestEnded as exc:
                self._progress(f"trying once more: {exc}")
            machine = make()
            return self._boot(machine, state)
        except GuestEnded as exc:
            raise LabError(
                f"Linux {self._ground.kernel.version} does not boot in {machine.product}; "
                f"take another kernel (labctl kernels list), or another QEMU\n{exc}"
            ) from exc

    def _boot(self, machine: Machine, state: Path | None) -> Machine:
        def boot() -> None:
            boots(machine)
            if state is not None and isinstance(machine, Here):
                try:
                    save(machine, state)
                except GuestEnded:
                    raise
                except (LabError, OSError) as exc:
                    self._progress(f"this boot can't be kept for the next time: {exc}")

        return self._ready(machine, boot)

    def _ready(self, machine: Machine, boot: Callable[[], None] | None) -> Machine:
        """A machine that has answered a hello; ends it if it does not."""
        with ExitStack() as stack:
            stack.enter_context(machine)
            if boot:
                boot()
            clock = ", virtual time" if self._ground.virtual else ""
            self._engine = f"{machine.product} ({machine.hardware.accelerator}{clock})"
            machine.send(
                Greet(time.time(), os.urandom(SEED).hex(), self._engine, self._ground.virtual)
            )
            expect(machine, Greeted, READY_DEADLINE)
            self._stack.push(stack.pop_all())
        return machine

    def _end(self) -> None:
        self._machine = None
        self._stack.close()


class InGuests:
    """The work of a worker that has a guest of its own, as long as it lives; see `Task`."""

    def __init__(self, ground: Ground, sets: Mapping[str, str]) -> None:
        self._ground, self._sets = ground, sets
        self._stack = ExitStack()
        self._guests: Guests | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(
        self, path: Path, case: Scenario, watcher: Watcher, progress: Progress
    ) -> RunResult:
        if self._guests is None:
            self._guests = self._stack.enter_context(Guests(self._ground, progress))
        return self._guests.run(case, self._sets, path, watcher.event)


class _Case:
    """One case in a guest: receives and records what it says. In `busy` seconds of work its clock
    must get further than a real one."""

    def __init__(
        self,
        machine: Machine,
        history: History,
        folder: RunFolder,
        event: Callable[[Event, History], None],
        busy: float,
    ) -> None:
        self._machine, self._history, self._folder = machine, history, folder
        self._event, self._busy = event, busy
        self._tick = 0.0

    def perform(self, scenario: Scenario, sets: Mapping[str, str]) -> Ended:
        """Makes the guest do it. Raises GuestEnded if it does not come to an end."""
        self._machine.send(
            RunCase(scenario.source, scenario.name, scenario.text, dict(sets), case=scenario.case)
        )
        heard = time.monotonic()
        mark: tuple[float, float] | None = None  # the guest's work and its clock, a while ago
        while True:
            said = self._machine.receive(HEARTBEAT)
            if said is not None:
                heard = time.monotonic()
                if isinstance(said, CaseEnded):
                    return Ended(**said.how)
                self._take(said)
            elif time.monotonic() - heard > SILENCE:
                raise self._machine.ended(f"no word for {SILENCE:g} s")
            if self._tick:
                mark = mark or (self._machine.work, self._tick)
                worked, passed = self._machine.work - mark[0], self._tick - mark[1]
                if worked > self._busy:
                    if passed < self._busy:
                        raise self._machine.ended(
                            f"its virtual clock got only {passed:.0f} s further in {worked:.0f} s "
                            "of work: something in this scenario never waits; give its sends an "
                            "`every`, or run it without --virtual-time"
                        )
                    mark = None

    def _take(self, said: Said) -> None:
        match said:
            case Tick(t=t):
                self._tick = t
            case Captured(host=host):
                self._history.add_packets(self._history.now, host, said.records)
                self._folder.add_packets(host, said.records)
            case Happened(line=line):
                event = read_event(loads(line))
                self._history.add(event)
                self._folder.add(event)
                self._event(event, self._history)


def prepare(ground: Ground, progress: Progress) -> Hardware:
    """What a guest starts with; makes files that do not exist yet. Raises Unavailable and
    LabError."""
    roots = root.ensure(ground.suite, progress)
    kernel = ground.kernel
    sources = initramfs.sources()
    parts: list[Any] = [initramfs.INIT, kconfig.MODULES, roots, sorted(sources.items())]
    for path in (kernel.image, *sorted(kernel.modules.rglob("*.ko*"))):
        stat = path.lstat()
        parts += [str(path), stat.st_size, stat.st_mtime_ns]
    name = f"{kernel.version}-{ground.suite}"
    folder = cache() / "boots" / f"{name}-{_digest(parts)}"
    if not folder.exists():
        with assembled(folder) as new:
            initramfs.build(new / "initramfs.cpio", roots, kernel.modules)
        for older in set(folder.parent.glob(f"{name}-*")) - {folder}:
            with suppress(BlockingIOError), in_use(older, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(older, ignore_errors=True)
    return Hardware(kernel.image, folder / "initramfs.cpio", ground.virtual)


def state_of(hardware: Hardware) -> Path:
    """The file for the state of a guest here. Raises Unavailable."""
    key = _digest([qemu.version(), qemu.command(hardware, 3, 4, None)])
    clock = "virtual" if hardware.virtual else "real"
    return hardware.initramfs.with_name(f"{clock}-{key}.state")


@contextmanager
def in_use(folder: Path, how: int = fcntl.LOCK_SH) -> Iterator[None]:
    """Keeps another labctl, of another version, from removing a kernel's files (flock(2)).

    Raises LabError, and BlockingIOError where `how` has LOCK_NB and somebody is in the way."""
    with kept(folder):
        file = (folder / "lock").open("w")
    with file:
        fcntl.flock(file, how)
        yield


def save(machine: Here, state: Path) -> None:
    """Keeps a guest's state, and drops the older ones of its kind. Raises LabError, OSError."""
    clock = state.name.partition("-")[0]
    for older in (*state.parent.glob(f"{clock}-*.state"), *state.parent.glob(".new-*")):
        older.unlink(missing_ok=True)  # of another QEMU, or of a killed one
    machine.save(state)


def expect(machine: Machine, word: type[Said], patience: float) -> None:
    """Waits for a message of the guest's program. Raises GuestEnded."""
    deadline = time.monotonic() + patience
    while (left := deadline - time.monotonic()) > 0:
        if isinstance(machine.receive(left), word):
            return
    raise machine.ended(f"it was not {word.kind} within {patience:g} s")


def boots(machine: Machine, silent_work: float = SILENT_WORK) -> None:
    """Waits until a guest has booted, as long as it makes progress. Raises GuestEnded, and
    GuestHangs if it makes none."""
    deadline = time.monotonic() + BOOT_DEADLINE
    said = -1
    while time.monotonic() < deadline:
        message = machine.receive(HEARTBEAT)
        if isinstance(message, Booted):
            return
        if message or machine.said != said:
            said, heard, worked = machine.said, time.monotonic(), machine.work
        silent, work = time.monotonic() - heard, machine.work - worked
        if work > silent_work:
            raise hangs(machine, f"it said nothing in {work:.0f} s of work while it booted")
        if silent > IDLE and work < IDLE_SHARE * silent:
            why = f"it stood still for {silent:.0f} s while it booted, or had no processor"
            raise hangs(machine, why)
    raise hangs(machine, f"it was not booted within {BOOT_DEADLINE:g} s")


def hangs(machine: Machine, why: str) -> GuestHangs:
    """An error that says why, with what the console said last."""
    return GuestHangs(str(machine.ended(why)))


def accelerated(
    hardware: Hardware, progress: Progress, kvm: Path = KVM, patience: float = KVM_DEADLINE
) -> bool:
    """Whether KVM boots a guest here. A /dev/kvm proves nothing, so this tries it, once for each
    kernel here and there, and each QEMU. A virtual clock needs QEMU's own processor."""
    if hardware.virtual or not os.access(kvm, os.R_OK | os.W_OK):
        return False
    stat = hardware.image.stat()
    image = (str(hardware.image), stat.st_size, stat.st_mtime_ns)
    key = _digest([os.uname().release, qemu.version(), image])
    verdict = cache() / f"kvm-{key}"
    if not verdict.exists():
        progress(f"trying whether KVM works here, for {patience:g} s at most")
        try:
            with Here(replace(hardware, accelerator="kvm")) as machine:
                expect(machine, Booted, patience)
            found = "works"
        except LabError:
            found = "does not work"
        with kept(verdict):
            verdict.write_text(found)
    return verdict.read_text() == "works"


def _digest(parts: Iterable[Any]) -> str:
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:12]
