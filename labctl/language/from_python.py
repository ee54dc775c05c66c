"""From Python to what a file would say: the data, and the line of somebody's code that has it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from labctl.ground.data import dataclass
from labctl.ground.errors import Mistake, ScenarioError, UsageError
from labctl.ground.written import Float, Int
from labctl.language.document import CORE, MAX_DEPTH, TOO_DEEP, Document

OWN_CODE = ("labctl", "contextlib", "testcontainers")
"""What may stand between somebody's code and ours."""

__tracebackhide__ = True
"""See labctl/testing/recording.py."""


@dataclass(frozen=True)
class Place:
    """A line of somebody's code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def caller() -> Place:
    """The line outside of labctl that called us."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in OWN_CODE and frame.f_back:
        frame = frame.f_back
    file, here = Path(frame.f_code.co_filename), Path.cwd()
    near = file.relative_to(here) if file.is_relative_to(here) else file
    return Place(str(near), frame.f_lineno, frame.f_code.co_name)


def thread() -> tuple[int, int]:
    """The thread that runs this; a forked process has another one."""
    return os.getpid(), threading.get_ident()


def misused(message: str, hint: str = "") -> UsageError:
    """An error in the caller's line."""
    return UsageError(f"{caller()}: {message}", hint)


def here(exc: ScenarioError) -> ScenarioError:
    """The same mistakes, in the line of code that gave the data: it stands in no file."""
    place = caller()
    return ScenarioError(Mistake(place.file, place.line, m.message) for m in exc.mistakes)


def document(scenario: Path | str | Mapping[str, Any]) -> tuple[Document, str]:
    """A scenario, given in whatever way, and its name."""
    if isinstance(scenario, Path):
        return Document.read(scenario), scenario.stem
    place = caller()
    name = Path(place.file).stem if place.function.startswith("<") else place.function
    if isinstance(scenario, str):
        return Document(f"<scenario of {name}>", scenario), name
    data = plain(scenario)
    data = {"title": name, **data, "steps": data.get("steps", [])}
    return Document(place.file, dump(data)), name


def plain(data: Any, depth: int = 0) -> Any:
    """Data of YAML's types. Raises UsageError for everything else."""
    if depth > MAX_DEPTH:
        raise misused(TOO_DEEP)
    if isinstance(data, Mapping):
        for key in data:
            demand("a key", key, (str,), "a text")
        return {plain(key): plain(value, depth + 1) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(item, depth + 1) for item in data]
    if not isinstance(data, str | int | float | None):
        raise misused(f"texts, numbers, lists and mappings are wanted, not {shown(data)}")
    if data is None or isinstance(data, bool):
        return data
    if isinstance(data, int | float):
        return int(data) if isinstance(data, int) else float(data)
    text = str.__str__(data)  # of an enumeration too
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise misused(f"{shown(text)}: {exc.reason}", "a text is of whole characters") from None
    return text


def given(**keywords: Any) -> dict[str, Any]:
    """The keywords that were given, by their names in the language."""
    return {k.removesuffix("_"): value for k, value in keywords.items() if value is not None}


def demand(what: str, value: Any, kinds: Sequence[type | None], wanted: str) -> None:
    """Raises UsageError if a value is of none of these kinds."""
    if not any(value is None if kind is None else isinstance(value, kind) for kind in kinds):
        raise misused(f"{what}: {wanted} is wanted, not {shown(value)}")


def shown(value: Any) -> str:
    """A value of whatever kind, in a few words."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = "one that can't be shown"
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


class _Dumper(yaml.SafeDumper):
    """Writes numbers and params as they were written."""


_Dumper.add_multi_representer(yaml.Node, lambda _, node: node)
_Dumper.add_representer(Int, lambda dumper, n: dumper.represent_scalar(CORE + "int", n.written))
_Dumper.add_representer(Float, lambda dumper, n: dumper.represent_scalar(CORE + "float", n.written))


def dump(data: Mapping[str, Any]) -> str:
    """Data as YAML."""
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None
    )
    return text
