"""The shipped scenarios, a line each, for `labctl list`.

To check them all takes a second, and `list` need not say whether they are valid. So this reads each
file once, as plain YAML, and takes what it needs. `labctl.language.scenario` has the same results,
only later; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from labctl.ground.data import dataclass
from labctl.ground.durations import seconds
from labctl.ground.resources import catalogue
from labctl.language.document import REFERENCE, Loader

DEEPEST = 10  # params in params
BESIDES = 0.5
"""Seconds that a case takes on namespaces, apart from its waits."""


@dataclass(frozen=True)
class Entry:
    """One scenario. `seconds` is about how long all of its cases take, one after the other."""

    name: str
    theme: str
    title: str
    variants: int
    seconds: float
    source: str


def entries(folder: Path) -> list[Entry]:
    """The scenarios of a folder by theme. Raises UsageError if one is no scenario."""
    return sorted(
        (_entry(name, path) for name, path in catalogue(folder).items()), key=lambda e: e.theme
    )


def _entry(name: str, path: Path) -> Entry:
    try:
        data = yaml.load(path.read_bytes(), Loader)
        params = data.get("params") or {}
        # If two variants are the same, only one runs.
        written = data.get("variants") or [{}]
        variants = list({repr(sorted(variant.items())): variant for variant in written}.values())
        took = sum(_least(data["steps"], params, variant) + BESIDES for variant in variants)
        title, theme = data["title"].strip(), data.get("theme", "").strip()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        from labctl.language.scenario import load

        load(path)  # it says what is wrong
        raise
    return Entry(name, theme, title, len(variants), took, str(path))


def _least(
    steps: list[dict[str, Any]], params: Mapping[str, Any], variant: Mapping[str, Any]
) -> float:
    """About how many seconds a case takes at least; see `Scenario.least`."""
    return sum(
        _waited(step, {**params, **variant})
        for step in steps
        if all(variant.get(name) == value for name, value in _wanted(step))
    )


def _wanted(step: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((step.get("when") or {}).get("variant") or {}).items()


def _waited(step: Mapping[str, Any], values: Mapping[str, Any]) -> float:
    if "sleep" in step:
        return seconds(_filled(step["sleep"], values)) or 0.0
    low, dots, _ = str(_filled(step.get("within", ""), values)).partition("..")
    return (seconds(low) or 0.0) if dots else 0.0


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """A text with its params filled in, which may contain params. Raises ValueError if that has no
    end."""
    for _ in range(DEEPEST):
        if not isinstance(value, str) or not REFERENCE.search(value):
            return value
        value = REFERENCE.sub(lambda found: str(values[found[1]]), value)
    raise ValueError(value)
