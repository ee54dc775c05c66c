"""Whether unit tests notice when what decides is wrong: python -m tests.mutants OPTION... [PATH...]

Changes one thing at a time (tests/mutations.py), and runs the tests of tests/unit that execute it,
as measured by coverage, until one fails. A change that none notices is told, as `file:line: old ->
new`, and counts against the floor. So do those that change nothing that anybody could see.

Each mutant is a fork of a process that has loaded everything; in it the changed function's code is
exchanged. What happens as a module is imported needs an interpreter of its own. A mutant may use as
much processor as the tests need, and some more: what never ends is noticed, too.
"""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import types
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

import coverage
import pytest

from tests.mutations import Edit, Function, Source

ROOT = Path(__file__).parents[1]
UNIT = "tests/unit"
DECIDING = [
    "labctl/language/predicates",
    "labctl/judge/causes",
    *(f"labctl/record/{name}.py" for name in ("timelines", "courses", "looks", "moments", "traced",
                                              "listeners")),
    *(f"labctl/judge/{name}.py" for name in ("check", "explain")),
    *(f"labctl/probes/{name}.py" for name in ("sockets", "packets", "segments", "pairing",
                                              "outputs", "conversations")),
]  # fmt: skip
FLOOR = 90
"""Percent of the mutants that must be noticed."""
MAP = ROOT / ".mutants.json"
"""Which lines each test executes, kept until the test or what it tests changes."""
HELPERS = [
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "tests").rglob("*.py"))
    if not path.name.startswith(("test_", "muta"))
]
BUDGET = 10.0
"""Seconds of tests for one mutant, those first that are short and run little else. What only others
would notice counts as unnoticed."""
SPARE = 10.0
"""Seconds of computing that a mutant may take beyond what its tests take."""
PATIENCE = 300.0
"""Seconds after which a mutant that waits for something is ended."""
MEMORY = 4 << 30
NOTICED, UNNOTICED = 1, 0

OPTIONS = [
    "-q", "-x", "-p", "no:cacheprovider", "--capture=sys",
    "-o", "tmp_path_retention_policy=none", "-m", "not (slow or docker or netns or guest or ci)",
]  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A module with one of its edits."""

    source: Source
    number: int

    @property
    def edit(self) -> Edit:
        return self.source.edits[self.number]

    @property
    def module(self) -> str:
        return str(self.source.path.relative_to(ROOT))

    def __str__(self) -> str:
        return f"{self.module}:{self.edit.lines[-1]}: {self.edit}"

    def compiled(self) -> types.CodeType:
        """The changed module."""
        self.edit.apply()
        return compile(self.source.tree, str(self.source.path), "exec")


@dataclass(frozen=True)
class Covering:
    """A test: how many seconds of computing it takes, and which lines of which module it runs."""

    seconds: float
    lines: Mapping[str, Sequence[int]]

    def runs(self, mutant: Mutant) -> bool:
        lines = self.lines.get(mutant.module, ())
        if mutant.edit.function is None:
            return bool(lines)
        return not set(mutant.edit.lines).isdisjoint(lines)

    def share(self, module: str) -> float:
        """Which part of the lines that it runs is of one module."""
        return len(self.lines[module]) / sum(map(len, self.lines.values()))


class Unshrunk:
    """Has hypothesis end with the first example that fails: that need not be small."""

    def pytest_collection(self) -> None:
        from hypothesis import Phase, settings

        examples = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", settings(), database=None, phases=examples)
        settings.load_profile("mutants")


class Trial:
    """Takes the place of pytest's loop over all tests."""

    def __init__(self, mutants: Sequence[Mutant], jobs: int) -> None:
        self.mutants, self.jobs = mutants, jobs
        self.ended: dict[int, str] = {}  # how each mutant ended, by its number
        self._failed: set[str] = set()
        self._in_mutant = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)
            if self._in_mutant:
                os._exit(NOTICED)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        gc.unfreeze()  # conftest.py has frozen what functions are looked for in
        items = {item.nodeid: item for item in session.items}
        tests = self._covering(items)
        functions = _functions({str(mutant.source.path) for mutant in self.mutants})
        caches = [o for o in gc.get_objects() if isinstance(o, functools._lru_cache_wrapper)]
        gc.freeze()
        waiting = list(enumerate(self.mutants))[::-1]
        running: dict[int, tuple[int, float]] = {}
        while waiting or running:
            while waiting and len(running) < self.jobs:
                number, mutant = waiting.pop()
                names = _chosen({n: t for n, t in tests.items() if t.runs(mutant)}, mutant)
                if not names:
                    self.ended[number] = "run by no test"
                    continue
                if not (pid := os.fork()):
                    _confine(SPARE + 3 * sum(tests[name].seconds for name in names))
                    if mutant.edit.function is None:
                        _exec(mutant, names)
                    for cache in caches:
                        cache.cache_clear()
                    _exchange(mutant, functions[mutant.source.path, mutant.edit.function])
                    self._in_mutant = True
                    _perform([items[name] for name in names])
                    os._exit(UNNOTICED)
                running[pid] = number, time.monotonic() + PATIENCE
            for pid, number, how in _ended(running):
                self.ended[number] = how
                del running[pid]
                self._tell(number)
        return True

    def _tell(self, number: int) -> None:
        if self.ended[number] == "unnoticed":
            print(self.mutants[number], file=sys.__stdout__, flush=True)
        if not len(self.ended) % 50:
            print(f"{len(self.ended)} of {len(self.mutants)}", file=sys.__stderr__, flush=True)

    def _covering(self, items: Mapping[str, pytest.Item]) -> dict[str, Covering]:
        """The tests that pass, by name: where nothing has changed, as they were the last time."""
        files: dict[str, list[pytest.Item]] = defaultdict(list)
        for name, item in items.items():
            files[name.partition("::")[0]].append(item)
        kept = json.loads(MAP.read_text("utf-8")) if MAP.exists() else {}
        kept = {f: each for f, each in kept.items() if f in files and each["key"] == _key(f, each)}
        missing = sorted(files.keys() - kept.keys())
        if missing:
            print(f"{len(missing)} files of tests are measured", file=sys.__stderr__, flush=True)
        for found in self._shared(missing, files):
            for file in {name.partition("::")[0] for name in found}:
                tests = {n: each for n, each in found.items() if n.partition("::")[0] == file}
                kept[file] = {"tests": {n: each for n, each in tests.items() if each}}
                kept[file]["key"] = _key(file, kept[file])
                failed = [name for name, each in tests.items() if not each]
                print(*(f"fails by itself: {name}\n" for name in failed), sep="", end="",
                      file=sys.__stderr__, flush=True)  # fmt: skip
        MAP.write_text(json.dumps(kept), "utf-8")
        return {n: Covering(*each) for f in kept.values() for n, each in f["tests"].items()}

    def _shared(
        self, missing: Sequence[str], files: Mapping[str, Sequence[pytest.Item]]
    ) -> Iterator[dict[str, Any]]:
        """What is measured of some files, by so many processes as there are jobs."""
        started = []
        for number in range(self.jobs if missing else 0):
            told = MAP.with_suffix(f".{number}")
            if not (pid := os.fork()):
                _silence()
                mine = [item for file in missing[number :: self.jobs] for item in files[file]]
                told.write_text(json.dumps(self._measured(mine)), "utf-8")
                os._exit(0)
            started.append((pid, told))
        for pid, told in started:
            os.waitpid(pid, 0)
            yield json.loads(told.read_text("utf-8"))
            told.unlink()

    def _measured(self, items: Sequence[pytest.Item]) -> dict[str, Any]:
        """See Covering; None of a test that fails."""
        watch = coverage.Coverage(data_file=None, config_file=False, source=[str(ROOT / "labctl")])
        watch.start()
        seconds = {}
        for item, following in zip_longest(items, items[1:]):
            watch.switch_context(item.nodeid)
            begun = time.process_time()
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            seconds[item.nodeid] = time.process_time() - begun
        watch.stop()
        data = watch.get_data()
        lines: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for path in data.measured_files():
            for line, tests in data.contexts_by_lineno(path).items():
                for test in filter(None, tests):
                    lines[test][str(Path(path).relative_to(ROOT))].append(line)
        return {n: None if n in self._failed else (s, lines[n]) for n, s in seconds.items()}


def _key(file: str, found: Mapping[str, Any]) -> str:
    """Another one where the tests of a file have changed, or what they run."""
    paths = {ROOT / file, *map(ROOT.joinpath, HELPERS)}
    paths |= {ROOT / path for _, lines in found["tests"].values() for path in lines}
    read = (p.read_bytes() if p.exists() else b"" for p in sorted(paths))
    return hashlib.sha256(b"\0".join(read)).hexdigest()


def _functions(paths: set[str]) -> dict[tuple[Path, Function], list[types.FunctionType]]:
    """All functions that there are of these files, by their place."""
    found = defaultdict(list)
    for each in gc.get_objects():
        if isinstance(each, types.FunctionType) and each.__code__.co_filename in paths:
            code = each.__code__
            found[Path(code.co_filename), (code.co_qualname, code.co_firstlineno)].append(each)
    return found


def _chosen(tests: Mapping[str, Covering], mutant: Mutant) -> list[str]:
    """The tests within the budget, and those first that are short and run little but the changed
    module: a long one has no time that hundreds of short ones need."""

    def costs(name: str) -> tuple[float, str]:
        return tests[name].seconds / tests[name].share(mutant.module), name

    chosen: list[str] = []
    left = BUDGET
    for name in sorted(tests, key=costs):
        if not chosen or tests[name].seconds <= left:
            chosen.append(name)
            left -= tests[name].seconds
    return chosen


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)


def _confine(seconds: float) -> None:
    """A group of its own, no output, and limits that end what goes astray."""
    os.setpgid(0, 0)
    _silence()
    limit = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def _exchange(mutant: Mutant, functions: Iterable[types.FunctionType]) -> None:
    code = next(_codes(mutant.compiled(), mutant.edit.function))
    for function in functions:
        function.__code__ = code


def _codes(code: types.CodeType, wanted: Function | None) -> Iterator[types.CodeType]:
    if (code.co_qualname, code.co_firstlineno) == wanted:
        yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _codes(each, wanted)


def _perform(items: Sequence[pytest.Item]) -> None:
    for item, following in zip_longest(items, items[1:]):
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)


def _exec(mutant: Mutant, names: Sequence[str]) -> NoReturn:
    program = "import sys; from tests.mutants import fresh; fresh(*sys.argv[1:])"
    path, number = str(mutant.source.path), str(mutant.number)
    os.execv(sys.executable, [sys.executable, "-c", program, path, number, *names])


def fresh(path: str, number: str, *names: str) -> NoReturn:
    """Runs tests in an interpreter that has not loaded the module yet."""
    sys.meta_path.insert(0, _Finder(Mutant(Source.read(Path(path)), int(number))))
    with tempfile.TemporaryDirectory() as folder:
        status = pytest.main([*OPTIONS, f"--basetemp={folder}/base", *names], plugins=[Unshrunk()])
    os._exit(NOTICED if status else UNNOTICED)


@dataclass(frozen=True)
class _Finder(importlib.abc.MetaPathFinder):
    mutant: Mutant

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec and spec.origin == str(self.mutant.source.path):
            spec.loader = _Loader(name, spec.origin)
            spec.loader.mutant = self.mutant
            return spec
        return None


class _Loader(importlib.machinery.SourceFileLoader):
    mutant: Mutant

    def get_code(self, fullname: str) -> types.CodeType:
        return self.mutant.compiled()


def _ended(running: Mapping[int, tuple[int, float]]) -> list[tuple[int, int, str]]:
    """Those mutants that have ended, or that it is time to end: pid, number, and how they ended."""
    time.sleep(0.01)
    found = []
    for pid, (number, deadline) in running.items():
        over = time.monotonic() > deadline
        if over:
            os.killpg(pid, signal.SIGKILL)
        ended, status = os.waitpid(pid, 0 if over else os.WNOHANG)
        if ended:
            how = "never ended" if os.WIFSIGNALED(status) else "noticed" if status else "unnoticed"
            found.append((pid, number, how))
    return found


def modules(paths: Iterable[str]) -> Iterator[Path]:
    """The files of some files and folders."""
    for path in map((ROOT / "").joinpath, paths):
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("paths", nargs="*", metavar="PATH", default=DECIDING)
    parser.add_argument("--sample", type=int, default=300, metavar="N", help="0: all of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    sources = [Source.read(path) for path in modules(options.paths)]
    every = [Mutant(source, n) for source in sources for n in range(len(source.edits))]
    rng = random.Random(options.seed)
    mutants = rng.sample(every, options.sample) if 0 < options.sample < len(every) else every
    trial = Trial(mutants, options.jobs)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        status = pytest.main(
            [*OPTIONS, f"--basetemp={folder}/base", UNIT], plugins=[trial, Unshrunk()]
        )
    if len(trial.ended) < len(mutants):
        print(f"only {len(trial.ended)} of {len(mutants)} were tried: pytest ended with {status}")
        return 2
    for number, how in trial.ended.items():
        if how == "run by no test":
            print(f"{mutants[number]}  # run by no test")
    counts = Counter(trial.ended.values())
    alive = counts["unnoticed"] + counts["run by no test"]
    percent = 100 * (len(mutants) - alive) / len(mutants)
    words = ", ".join(f"{count} {how}" for how, count in counts.most_common())
    print(f"{len(mutants)} of {len(every)} mutants in {time.monotonic() - begun:.0f} s: {words}")
    print(f"{percent:.1f} % are noticed; the floor is {FLOOR} %")
    return percent < FLOOR


if __name__ == "__main__":
    sys.exit(main())
