"""Run scenarios again and again, while the machine is busy: python tests/repeat.py [PATH...]

Every verdict must be the same each time. Prints a line a round, then what differed, and ends with 1
where anything did: then all that was recorded stays. By default: all lessons, 20 times on
namespaces, with a busy loop for each core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

LABCTL = [sys.executable, "-m", "labctl"]
BUSY = [sys.executable, "-c", "while True: pass"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", default=["scenarios"])
    parser.add_argument("--times", type=int, default=20, metavar="N")
    parser.add_argument("--backend", choices=["docker", "netns"], default="netns")
    parser.add_argument("--load", type=int, default=os.cpu_count() or 1, metavar="LOOPS")
    options = parser.parse_args()
    seen: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    details: dict[tuple[str, ...], str] = {}
    folder = Path(tempfile.mkdtemp(prefix="repeat-"))
    with busy(options.load):
        for number in range(1, options.times + 1):
            began = time.monotonic()
            runs = run(options.paths, options.backend, folder / str(number))
            for key, result, actual in verdicts(runs):
                seen[key][result] += 1
                if result not in ("pass", "skip"):
                    details[key] = actual
            counts = Counter(each["result"] for each in runs)
            load = ", ".join(f"{n} {result}" for result, n in sorted(counts.items()))
            took = time.monotonic() - began
            print(f"{number:3}: {load} in {took:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    odd = {key: found for key, found in seen.items() if set(found) - {"pass", "skip"}}
    odd |= {key: found for key, found in seen.items() if found.total() != options.times}
    for key, found in odd.items():
        results = ", ".join(f"{n} x {result}" for result, n in found.items())
        print(f"{': '.join(key)}: {results} {details.get(key, '')}")
    print(
        f"{len(seen)} verdicts, {options.times} times: {len(odd)} not always the same or not passed"
    )
    if odd:
        print(f"recorded: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many programs that do nothing as fast as they can."""
    running = [subprocess.Popen(BUSY) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def run(paths: list[str], backend: str, out: Path) -> list[dict[str, object]]:
    """What came of each case, as the result document has it."""
    command = [*LABCTL, "run", *paths, "--backend", backend, "--format", "json", "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    found: list[dict[str, object]] = json.loads(done.stdout)["runs"]
    return found


def verdicts(runs: list[dict[str, object]]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The name of each claim, its result, and what was seen; and the same for each case."""
    for case in runs:
        name = " ".join([str(case["source"]), json.dumps(case["variant"])])
        yield (name,), str(case["result"]), str(case.get("reason") or case["dir"])
        found = case["verdicts"]
        assert isinstance(found, list)
        for number, verdict in enumerate(found):
            key = name, str(number), str(verdict["what"])
            yield key, str(verdict["result"]), str(verdict["actual"])


if __name__ == "__main__":
    sys.exit(main())
