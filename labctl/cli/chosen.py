"""Which recorded runs a command line means: a run's folder, a folder of runs, a case's name, or
the last ones.

A file beside the default folder says what the last `labctl run` recorded, wherever that is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from labctl.ground.errors import UsageError
from labctl.ground.reading import MAX_RESULT, loads, read_file
from labctl.ground.resources import default_folder

HISTORY = "history.jsonl"
"""What makes a folder a run."""
DEPTHS = ("*", "*/*", "*/*/*")
"""How deep in a folder to look for runs: in that of a matrix they are two levels below."""
STAMP = re.compile(r"\d{8}T\d{6}-")
HINT = "name a run's folder, a folder of runs, or a case that was run; --last is the last ones"


def remember(folders: Sequence[Path]) -> None:
    """Writes down what was recorded last, if anything was. Says nothing if that fails: the runs
    themselves are there."""
    runs = [folder for folder in folders if (folder / HISTORY).exists()]
    if not runs:
        return
    path = _last_file()
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(b"".join(os.fsencode(run) + b"\n" for run in runs))
        partial.replace(path)


def find(texts: Sequence[str], last: bool) -> list[Path]:
    """The folders of the runs that are meant. Raises UsageError. Whoever reads a folder says
    whether it is no run."""
    found = _last() if last else []
    if last and not found:
        raise UsageError("--last: nothing was recorded yet, or it is gone", HINT)
    if not texts and not last:
        raise UsageError("no run is named", HINT)
    for text in texts:
        try:
            found += _meant(text)
        except OSError as exc:
            raise UsageError(f"{text}: {exc.strerror}") from exc
    return found


def names() -> list[str]:
    """The names of the cases that were recorded in the default folder, by their folders. They are
    only offered, so there are none if they can't be read."""
    try:
        return sorted({_name(folder) for folder in _within(default_folder())})
    except OSError:  # nobody can look into it
        return []


def _meant(text: str) -> list[Path]:
    path = Path(text)
    if (path / HISTORY).exists():
        return [path]
    if path.is_dir() and (below := sorted({*_within(path), *_without_history(path)})):
        return below
    if _is_path(text):
        return [path]
    if found := _named(text):
        return found
    if path.exists():
        return [path]
    close = get_close_matches(text, names(), n=1, cutoff=0.55)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    raise UsageError(
        f"{text}: no recorded run: there is no such folder, and no run of such a case in "
        f"{default_folder()}",
        f"{HINT}{guess}",
    )


def _is_path(text: str) -> bool:
    """Whether this is a place, whatever is there, and no name. A folder is not the run of a case
    with the folder's name."""
    path = Path(text)
    lost_history = (path / "result.json").exists() and (path / "scenario.yaml").exists()
    return lost_history or text.startswith((".", "/")) or ("/" in text and path.exists())


def _named(text: str) -> list[Path]:
    """The newest run of a case, with all runs of the same scenario from the same command."""
    last = _last()
    known = (path for path in {*_within(default_folder()), *last} if (path / HISTORY).exists())
    found = [path for path in known if _is_of(path, text)]
    if not found:
        return []
    newest = max(found, key=lambda path: (path / HISTORY).stat().st_mtime_ns)
    together = last if newest in last else _beside(newest)
    return sorted(path for path in found if path == newest or path in together)


def _beside(run: Path) -> list[Path]:
    """The runs that the same command recorded, in a folder in the default one."""
    return _within(run.parent) if run.parent.parent == default_folder() else []


def _is_of(folder: Path, text: str) -> bool:
    """Whether this is a run of a case, by its result or, without one, by its name. If the case is
    named with a folder, its file is in a folder of that name."""
    above, _, case = text.rpartition("/")
    if not _name(folder).startswith(re.split(r"[^\w.=-]", case)[0]):
        return False
    try:
        run = loads(read_file(folder / "result.json", MAX_RESULT).decode())["runs"][0]
        source = run.get("source")
        elsewhere = above and source and not f"/{Path(source).parent}".endswith(f"/{above}")
        return not elsewhere and case in (run["scenario"], _name(folder))
    except (OSError, UsageError, ValueError, LookupError, TypeError, AttributeError):
        return case == _name(folder)


def _name(folder: Path) -> str:
    return STAMP.sub("", folder.name, count=1)


def _within(folder: Path) -> list[Path]:
    return sorted(path.parent for depth in DEPTHS for path in folder.glob(f"{depth}/{HISTORY}"))


def _without_history(folder: Path) -> list[Path]:
    """The runs in a folder that have lost their history. Whoever reads them says so."""
    found = (path.parent for depth in DEPTHS for path in folder.glob(f"{depth}/result.json"))
    return [path for path in found if (path / "scenario.yaml").exists()]


def _last_file() -> Path:
    return default_folder().parent / "last"


def _last() -> list[Path]:
    try:
        lines = os.fsdecode(read_file(_last_file(), MAX_RESULT)).splitlines()
    except (OSError, UsageError):
        return []
    return [path for path in map(Path, lines) if path.is_dir()]
