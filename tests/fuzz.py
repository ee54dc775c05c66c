"""Records that mean harm: runs with one file changed, and what reads them.

    python -m tests.fuzz --seed 7 --count 5000 RUN...

tells each mutant that ends in anything but an error of ours, and keeps it below --keep.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from labctl import reports
from labctl.ground.errors import LabctlError
from labctl.judge import recorded, rejudge
from labctl.judge.check import overall
from labctl.reports import comparison, html, markdown, terminal
from labctl.run import matrix
from labctl.run.places import Seen

SLOW = 20.0
"""Seconds of computing that nothing here may take."""

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.0, 1e18, 1e308,
    float("nan"), float("inf"), -float("inf"), "", "x", "0", "AAAA", "\0", "\x1b[31m", "\ud800",
    "é" * 40, "a" * 5000, "[red]", "198.18.0.2:8000", "[::1]:x", ":", "server", "begin", "end",
    "ESTAB", "pass", "2026-01-01T00:00:00Z", [], [[]], [None], [1], ["x"], {}, {"": ""},
    {"x": 1}, {"x": {"y": []}}, {"server": None},
)  # fmt: skip

Mutation = Callable[[random.Random, str], "str | bytes"]


def deep(levels: int = 3000) -> str:
    return "[" * levels + "]" * levels


def change(rng: random.Random, value: Any) -> Any:
    """The same with one thing in it exchanged, added, taken away or moved."""
    places = list(_places(value))
    if not places:
        return rng.choice(ODD)
    holder, key = rng.choice(places)
    others = [h[k] for h, k in places]
    match rng.randrange(8):
        case 0 | 1 | 2:
            holder[key] = rng.choice(ODD)
        case 3:
            holder[key] = rng.choice(others)
        case 4:
            del holder[key]
        case 5 if isinstance(holder, dict):
            holder[rng.choice([*map(str, ODD[:30]), "kind", "t", "host", "step"])] = rng.choice(ODD)
        case 5:
            holder.insert(key, rng.choice([*ODD, *others]))
        case 6:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"x": holder[key]}
        case _:
            holder[key] = garbled(rng, holder[key])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(value, dict | list):
        return
    for key, below in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        yield from _places(below)


def garbled(rng: random.Random, value: Any) -> Any:
    """Something of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice([-value, value * 1000, value + 1, value - 1, value / 7, value * 1e9])
    if not isinstance(value, str) or not value:
        return rng.choice(ODD)
    at = rng.randrange(len(value))
    other = rng.choice(["", "\n", "\0", "\t", ":", "]", "9" * 30, "é", "%", "\x1b", value])
    return value[:at] + other + value[at + rng.randrange(3) :]


def history(rng: random.Random, text: str) -> str | bytes:
    """A history.jsonl with up to three things wrong."""
    lines: list[str] = text.splitlines()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not lines:
            break
        at = rng.randrange(len(lines))
        match rng.randrange(12):
            case 0:
                del lines[at]
            case 1:
                lines.insert(rng.randrange(len(lines)), lines[at])
            case 2:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
            case 4:
                lines[at] = rng.choice([deep(), json.dumps(rng.choice(ODD)), "NaN", "", "{}"])
            case 5:
                lines[at] = lines[at].replace(": ", f": {deep(rng.choice([50, 500, 3000]))}, ", 1)
            case 6:
                rng.shuffle(lines)
            case _:
                try:
                    lines[at] = json.dumps(change(rng, json.loads(lines[at])))
                except ValueError:
                    del lines[at]
    return binary(rng, "\n".join(lines) + "\n") if rng.random() < 0.05 else "\n".join([*lines, ""])


def result(rng: random.Random, text: str) -> str | bytes:
    """A result.json with up to three things wrong."""
    if rng.random() < 0.1:
        broken: list[str | bytes] = [
            binary(rng, text),
            deep(),
            text[: rng.randrange(len(text))],
            "",
        ]
        return rng.choice(broken)
    found = json.loads(text)
    for _ in range(rng.choice([1, 1, 2, 3])):
        found = change(rng, found)
    return json.dumps(found)


def scenario(rng: random.Random, text: str) -> str | bytes:
    """A scenario.yaml with lines that are missing, twice, moved or garbled."""
    if rng.random() < 0.1:
        broken: list[str | bytes] = [
            binary(rng, text),
            f"title: {deep()}\n",
            f"steps: {deep(600)}\n",
        ]
        return rng.choice(broken)
    lines = text.splitlines()
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(4):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(other, lines[at])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case _:
                lines[at] = garbled(rng, lines[at] or "x") or ""
    return "\n".join([*lines, ""])


def binary(rng: random.Random, text: str | bytes) -> bytes:
    """The same with a few bytes of something else, or cut short."""
    raw = bytearray(text if isinstance(text, bytes) else text.encode())
    for _ in range(rng.randrange(1, 9)):
        at = rng.randrange(len(raw) + 1)
        raw[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(5))
    return bytes(raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.3 else raw)


def mutate(rng: random.Random, folder: Path) -> str:
    """Changes one or two files of a run directory; says which."""
    names = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        mutant: str | bytes
        match rng.randrange(10):
            case 0 | 1 | 2 | 3 | 4:
                path, mutation = folder / "history.jsonl", history
            case 5 | 6 | 7:
                path, mutation = folder / "result.json", result
            case 8:
                path, mutation = folder / "scenario.yaml", scenario
            case _:
                captures = sorted(folder.glob("*.pcap"))
                if not captures:
                    continue
                path = rng.choice(captures)
                mutant = binary(rng, path.read_bytes())
                path.write_bytes(mutant)
                names.append(path.name)
                continue
        try:
            mutant = mutation(rng, path.read_text())
        except (ValueError, IndexError, RecursionError):  # It has been changed before.
            continue
        path.write_bytes(mutant if isinstance(mutant, bytes) else mutant.encode(errors="replace"))
        names.append(path.name)
    return ", ".join(names)


def faults(folder: Path) -> Iterator[tuple[str, str]]:
    """What reads a run directory, and the traceback with which it ended, if any."""
    for name in ("check", "matrix", *reports.REPORTS):
        begun = time.process_time()
        try:
            if name == "check":
                rejudge.judge(folder)
            elif name == "matrix":
                compared(folder)
            else:
                reports.render(name, [recorded.load(folder)]).encode()
        except LabctlError as exc:
            str(exc).encode()
        except Exception:
            yield name, traceback.format_exc()
        if (taken := time.process_time() - begun) > SLOW:
            yield name, f"it took {taken:.0f} s"


def compared(folder: Path) -> None:
    """The run beside itself, at two places."""
    runs = [run for run in matrix.runs_in(folder.parent) if run["dir"] == str(folder)]
    environment = runs[0]["environment"] if runs else {}
    document = {"version": "1", "result": overall(r["result"] for r in runs), "runs": runs}
    places = [Seen(name, None, environment, document, {}) for name in ("one", "two")]
    found = comparison.compare(places)
    (html.comparison(found) + markdown.comparison(found)).encode()
    terminal.print_comparison(found, Console(file=StringIO()))


def mutants(
    runs: Sequence[Path], seed: int, numbers: Sequence[int], folder: Path
) -> Iterator[tuple[int, str, Path]]:
    """Changed copies of these runs, one after the other: number, what was changed, and where."""
    for number in numbers:
        rng = random.Random(f"{seed}/{number}")
        copy = folder / str(number)
        shutil.copytree(rng.choice(runs), copy)
        yield number, mutate(rng, copy), copy
        shutil.rmtree(copy, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    found: Counter[str] = Counter()
    numbers = range(given.first, given.first + given.count)
    with tempfile.TemporaryDirectory() as folder:
        for number, what, copy in mutants(given.runs, given.seed, numbers, Path(folder)):
            for name, trace in faults(copy):
                where = "; ".join(
                    line.strip() for line in trace.splitlines() if "/labctl/" in line
                ).rpartition("File")[2]
                last = trace.strip().splitlines()[-1][:150]
                if not found[f"{where} {last}"]:
                    print(f"{number} ({what}), {name}:{where}: {last}", flush=True)
                    if given.keep:
                        shutil.copytree(copy, given.keep / f"{given.seed}-{number}-{name}",
                                        dirs_exist_ok=True)  # fmt: skip
                found[f"{where} {last}"] += 1
    print(f"seed {given.seed}: {sum(found.values())} faults of {len(found)} kinds")


if __name__ == "__main__":
    main()
