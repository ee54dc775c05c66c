"""What labctl bears, for as long as you like: make soak ARGS='--minutes 30 --seed 1'

Until the time is over it does in turn, and counts:

    lessons    many lessons at once, beside busy loops: false verdicts
    kills      runs of which something dies at a random moment: a controller, a worker, a launcher,
               a world, an agent, a supervisor, a tracer, a container, the engine itself; what is
               left of them, and runs whose record or result is lost
    shortages  runs on a disk that fills up, or whose runtime folder goes away: the same
    inputs     damaged records, scenarios, captures and other files for every reader: tracebacks

Prints a line for each, and the figures at the end; ends with 1 unless false, left, lost and faults
are all 0. `--corpus DIR` keeps each input that ended in a traceback, and tries those first that are
there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import docker

from labctl.backends.docker import engine, images
from labctl.ground.errors import LabctlError
from labctl.ground.resources import catalogue, scenarios
from labctl.imports import importing
from labctl.imports.census import Wanted
from labctl.language.scenario import load
from labctl.run.places import DEFAULT_OS
from tests import fuzz, repeat
from tests.engine import own_engine
from tests.engines import copied
from tests.marked import SCENARIO, Bench, eventually

LONG = {"eaddrinuse_time_wait", "time_wait_restarted"}
PATIENCE = 90.0
"""Seconds in which a run ends of which something has died."""
INPUTS = 25
"""Damaged inputs of each kind, in one turn."""


@dataclass
class Soak:
    """What is there, and what was counted. `things` says what went wrong."""

    rng: random.Random
    folder: Path
    corpus: Path | None
    backends: list[str]
    counted: Counter[str] = field(default_factory=Counter)
    things: list[str] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)

    def wrong(self, what: str, text: str) -> None:
        self.counted[what] += 1
        self.things.append(f"{what}: {text}")
        print(f"  {what}: {text}", flush=True)

    def new(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    # --- lessons ---------------------------------------------------------------------------------

    def lessons(self) -> None:
        """A handful of lessons at once, with a busy loop for each core."""
        files = catalogue(scenarios())
        names = [name for name in files if not name.startswith("hours/") and name not in LONG]
        chosen = [str(files[name]) for name in self.rng.sample(names, 8)]
        backend, out = self.rng.choice(self.backends), self.new()
        with repeat.busy(os.cpu_count() or 1):
            found = repeat.run(chosen, backend, out)
        for case in found:
            self.counted["runs"] += 1
            if case["result"] not in ("pass", "skip"):
                self.wrong(
                    "false", f"{case['scenario']} {case['case']} on {backend}: {case['dir']}"
                )
            elif len(self.runs) < 40:
                self.runs.append(Path(str(case["dir"])))

    # --- kills -----------------------------------------------------------------------------------

    def kills(self) -> None:
        """Runs of which something dies at a random moment."""
        bench = Bench(self.rng.choice(self.backends), self.new(), uuid.uuid4().hex)
        scenario = bench.folder / "case.yaml"
        short = SCENARIO.replace("sleep: 30s", "sleep: 1s")
        scenario.write_text(f"{short}params: {{n: 0}}\nvariants: [{{n: 1}}, {{n: 2}}, {{n: 3}}]\n")
        jobs, out = str(self.rng.choice((1, 3))), str(bench.folder / "out")
        run = bench.start(
            "run", str(scenario), "--backend", bench.backend, "-j", jobs, "--out", out
        )
        time.sleep(self.rng.uniform(0.1, 4.0))
        whose = self._kill(bench, run)
        self._ends(bench, run, f"after the end of {whose} on {bench.backend}")

    def _kill(self, bench: Bench, run: subprocess.Popen[str]) -> str:
        """Kills something of a run, whatever it is; says what."""
        self.counted["kills"] += 1
        if bench.backend == "docker" and self.rng.random() < 0.5:
            names = bench.engine()
            if names:
                name = self.rng.choice(names)
                with suppress(Exception):  # a network, or something that is gone by now
                    client = engine.connect()
                    client.kill(name)
                    client.close()
                return name
        pids = bench.pids()
        pid = self.rng.choice([run.pid, *pids])
        with suppress(OSError):
            text = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            os.kill(pid, signal.SIGKILL)
            return f"{pid} ({text[-60:]})"
        return f"{pid}, which had ended"

    def _ends(self, bench: Bench, run: subprocess.Popen[str], when: str) -> None:
        """A run ends, by itself if it lives, leaves nothing, and has results for all that began."""
        self._over(bench, run, when)
        bench.run("down")
        if not eventually(lambda: bench.left() == []):
            self.wrong("left", f"{bench.left()} {when}: {bench.folder}")
        if run.returncode not in (0, -signal.SIGKILL):
            for record in bench.recorded("history.jsonl"):
                if not (record.parent / "result.json").exists():
                    self.wrong("lost", f"no result {when}: {record.parent}")
        if not self.things or str(bench.folder) not in self.things[-1]:
            shutil.rmtree(bench.folder, ignore_errors=True)

    def _over(self, bench: Bench, run: subprocess.Popen[str], when: str) -> None:
        """Waits for the end of a run, which must come, and without a traceback."""
        self.counted["runs"] += 1
        try:
            out, err = run.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.wrong("lost", f"a run hangs {when}: {bench.folder}")
            run.kill()
            out, err = run.communicate()
        if "Traceback" in out + err:
            self.wrong("faults", f"a traceback {when}: {bench.folder}")
            (bench.folder / "stderr").write_text(err)

    def engines(self) -> None:
        """An engine of our own that dies under a run."""
        with ExitStack() as stack:
            host = stack.enter_context(own_engine())
            with closing(docker.from_env()) as ours, closing(docker.DockerClient(host)) as theirs:
                built = images.ensure(ours.api, DEFAULT_OS, print)
                copied([built.host, built.peer], ours, theirs)
            bench = Bench("docker", self.new(), uuid.uuid4().hex, {"DOCKER_HOST": host})
            out = str(bench.folder / "out")
            run = bench.start("run", bench.scenario(), "--backend", "docker", "--out", out)
            time.sleep(self.rng.uniform(1.0, 8.0))
        self.counted["kills"] += 1
        self._over(bench, run, "after its engine's end")
        if not eventually(lambda: bench.processes() == []):
            self.wrong("left", f"{bench.processes()} after its engine's end")

    # --- shortages -------------------------------------------------------------------------------

    def shortages(self) -> None:
        """A run on a disk that fills up, and one whose runtime folder goes away."""
        bench = Bench("netns", self.new(), uuid.uuid4().hex)
        disk, size = bench.folder / "disk", self.rng.randrange(16, 200)
        disk.mkdir()
        mount = f'mount -t tmpfs -o size={size}k tmpfs {disk} && exec "$@"'
        run = subprocess.Popen(
            ["unshare", "-m" if os.geteuid() == 0 else "-Urm", "sh", "-c", mount, "sh",
             sys.executable, "-m", "labctl", "run", bench.scenario(), "--backend", "netns",
             "--out", str(disk / "out")],
            env=bench.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(self.rng.uniform(0.5, 3.0))
        run.send_signal(signal.SIGINT)
        self._ends(bench, run, f"on a disk of {size} KiB")
        bench = Bench(self.rng.choice(self.backends), self.new(), uuid.uuid4().hex)
        out = str(bench.folder / "out")
        run = bench.start("run", bench.scenario(), "--backend", bench.backend, "--out", out)
        time.sleep(self.rng.uniform(0.1, 3.0))
        shutil.rmtree(bench.folder / "runtime", ignore_errors=True)
        run.send_signal(signal.SIGINT)
        self._ends(bench, run, "after its runtime folder went")

    # --- inputs ----------------------------------------------------------------------------------

    def inputs(self) -> None:
        """Damaged files of every kind, for what reads them."""
        if not self.runs:
            self.lessons()
        seed = self.rng.randrange(10**9)
        for number, what, copy in fuzz.mutants(self.runs, seed, range(INPUTS), self.new()):
            for name, trace in fuzz.faults(copy):
                self._fault(f"{seed}-{number}", f"{name} ({what})", trace, copy)
            self.counted["inputs"] += 1
        for number in range(INPUTS):
            folder = self.new()
            self._read(f"{seed}-{number}", self._damaged(folder), folder)
            shutil.rmtree(folder, ignore_errors=True)

    def _damaged(self, folder: Path) -> Callable[[], object]:
        """A damaged capture or scenario, and what reads it."""
        run = self.rng.choice(self.runs)
        captures = sorted(run.glob("*.pcap*"))
        if captures and self.rng.random() < 0.7:
            source = self.rng.choice(captures)
            path = folder / source.name
            path.write_bytes(fuzz.binary(self.rng, source.read_bytes()))
            return partial(importing.load, {"server": path}, Wanted())
        path = folder / "scenario.yaml"
        text = fuzz.scenario(
            self.rng, self.rng.choice(sorted(scenarios().rglob("*.yaml"))).read_text()
        )
        path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="replace"))
        return partial(load, path)

    def _read(self, name: str, read: Callable[[], object], folder: Path) -> None:
        self.counted["inputs"] += 1
        try:
            read()
        except LabctlError as exc:
            str(exc).encode()
        except Exception:
            self._fault(name, "a reader", traceback.format_exc(), folder)

    def _fault(self, name: str, what: str, trace: str, folder: Path) -> None:
        self.wrong("faults", f"{name}, {what}: {trace.strip().splitlines()[-1][:160]}")
        if self.corpus:
            shutil.copytree(folder, self.corpus / name, dirs_exist_ok=True)
            (self.corpus / name / "traceback.txt").write_text(trace)

    def known(self) -> None:
        """What the corpus has from earlier."""
        for folder in sorted(self.corpus.glob("*")) if self.corpus and self.corpus.exists() else ():
            self.counted["inputs"] += 1
            if (folder / "history.jsonl").exists():
                for name, trace in fuzz.faults(folder):
                    self.wrong("faults", f"still, {folder.name}, {name}: {trace.splitlines()[-1]}")
                continue
            for path in folder.glob("*.pcap*"):
                self._read(folder.name, partial(importing.load, {"server": path}, Wanted()), folder)
            for path in folder.glob("scenario.yaml"):
                self._read(folder.name, partial(load, path), folder)


def turns(soak: Soak, only: list[str]) -> Iterator[Callable[[], None]]:
    """What to do, again and again. A lab costs more than an input, so there are more kills."""
    kinds = [soak.lessons, soak.kills, soak.kills, soak.kills, soak.inputs, soak.shortages]
    kinds += [soak.engines] if "docker" in soak.backends and os.geteuid() == 0 else []
    chosen = [kind for kind in kinds if not only or kind.__name__ in only]
    while True:
        yield from chosen


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--corpus", type=Path, metavar="DIR")
    parser.add_argument("--only", action="append", default=[], metavar="KIND")
    given = parser.parse_args()
    backends = ["netns", *(["docker"] if engine.answers() else [])]
    print(f"seed {given.seed}, {', '.join(backends)}, {given.minutes:g} minutes", flush=True)
    until = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        soak = Soak(random.Random(given.seed), Path(folder), given.corpus, backends)
        soak.known()
        for turn in turns(soak, given.only):
            if time.monotonic() > until:
                break
            turn()
            figures = ", ".join(f"{soak.counted[n]} {n}" for n in ("runs", "kills", "inputs"))
            left = max(0.0, until - time.monotonic()) / 60
            print(f"{turn.__name__}: {figures}; {left:.0f} minutes left", flush=True)
        if soak.things:
            kept = Path(tempfile.mkdtemp(prefix="soak-kept-"))
            shutil.copytree(folder, kept, dirs_exist_ok=True, ignore_dangling_symlinks=True)
            print(f"kept: {kept}")
    print(json.dumps({n: soak.counted[n] for n in
                      ("runs", "kills", "inputs", "faults", "lost", "left", "false")}))  # fmt: skip
    return 1 if soak.things else 0


if __name__ == "__main__":
    sys.exit(main())
