"""The house: which room stands on which, and how large a room may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("ground", "probes", "backends", "record", "lab", "language", "judge", "run", "reports")
"""From the ground up: a room may import from its own floor and from those below. What has no floor
here stands above them all: commands, the plugin of pytest, and labs for people's own tests."""
MOST_LINES = 500
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "labctl").rglob("*.py")
}


def imports(module: str) -> Iterator[str]:
    """The modules of labctl that one imports, wherever in it that stands."""
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


FACE = "labctl"
"""The package itself, which hands names on."""
ARROWS = {
    m: sorted({i for i in imports(m) if i in MODULES} - {m, FACE}) for m in MODULES if m != FACE
}


def floor(module: str) -> int:
    room = module.split(".")[1] if "." in module else ""
    return FLOORS.index(room) if room in FLOORS else len(FLOORS)


def test_no_import_runs_up() -> None:
    up = [f"{m} -> {i}" for m in ARROWS for i in ARROWS[m] if floor(i) > floor(m)]
    assert not up


def test_no_circle() -> None:
    left = {m: set(found) for m, found in ARROWS.items()}
    while free := [m for m, found in left.items() if not found & left.keys()]:
        for module in free:
            del left[module]
    assert not left


@pytest.mark.parametrize("folder", ["labctl", "images", "tests"])
def test_no_room_is_too_large(folder: str) -> None:
    sizes = {str(p): len(p.read_text("utf-8").splitlines()) for p in (ROOT / folder).rglob("*.py")}
    assert {path: size for path, size in sizes.items() if size > MOST_LINES} == {}


def test_running_knows_no_rendering() -> None:
    below = [m for m in ARROWS if floor(m) < FLOORS.index("reports")]
    rendering = ("rich", "jinja2")
    for module in below:
        text = MODULES[module].read_text("utf-8")
        assert not [
            name for name in rendering if f"import {name}" in text or f"from {name}" in text
        ]
