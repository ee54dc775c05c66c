"""The house: which room stands on which, and how large a room may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = (
    "ground", "probes", "backends", "record", "lab", "language", "judge", "imports", "run",
    "reports",
)  # fmt: skip
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
    large = {path: size for path, size in sizes.items() if size > MOST_LINES}
    assert large == {}, f"more than {MOST_LINES} lines: split a module, or make room in it"


def test_running_knows_no_rendering() -> None:
    below = [m for m in ARROWS if floor(m) < FLOORS.index("reports")]
    rendering = ("rich", "jinja2")
    for module in below:
        text = MODULES[module].read_text("utf-8")
        assert not [
            name for name in rendering if f"import {name}" in text or f"from {name}" in text
        ]


def test_there_is_one_way_to_a_dataclass() -> None:
    library = "from dataclasses import dataclass"
    assert [m for m, path in MODULES.items() if library in path.read_text("utf-8")] == [
        "labctl.ground.data"
    ]


# --- Tests stand outside --------------------------------------------------------------------------

TESTS = sorted({*(ROOT / "tests").rglob("*.py")} - {Path(__file__)})
OURS = ("labctl", "tests")


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """The names that are imported, and whether they are our own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            whose = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for name in node.names:
                top = (whose or name.name).partition(".")[0]
                yield name.asname or (name.name if whose else top), top in OURS


def programs(tree: ast.AST) -> Iterator[str]:
    """What may be a program in a text: tests start some."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "x" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def root_of(node: ast.expr) -> str | None:
    """`a` of `a.b.c`."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def patches(text: str) -> Iterator[str]:
    """What a text puts in the place of something that is ours. That of others, such as
    `os.geteuid`, and the environment, are the world that a test makes."""
    tree = ast.parse(text)
    names = dict(imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called == "setattr" and names.get(root_of(node.args[0]) or "", True):
                yield ast.unparse(node)
        elif isinstance(node, ast.Assign):
            for target in (found for wide in node.targets for found in ast.walk(wide)):
                if isinstance(target, ast.Attribute) and names.get(root_of(target) or ""):
                    yield ast.unparse(node)
    for program in programs(tree):
        if "labctl" in program:
            with suppress(SyntaxError, ValueError):  # no program after all
                yield from patches(program)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_test_patches_what_is_ours(path: Path) -> None:
    text = path.read_text("utf-8")
    assert list(patches(text)) == []
    assert "ignore[" + "method-assign" not in text


@pytest.mark.parametrize(
    "patch",
    [
        'monkeypatch.setattr(dispatch, "run", print)',
        'monkeypatch.setattr(labctl.run.dispatch, "run", print)',
        'monkeypatch.setattr("labctl.run.dispatch.run", print)',
        'monkeypatch.setattr(guests, "start", print)',
        "dispatch.run = print",
        "before, dispatch.run = dispatch.run, print",
        "start(f'{x}\\nfrom labctl.run import dispatch\\ndispatch.run = {y}')",
    ],
)
def test_a_patch_is_noticed(patch: str) -> None:
    imports = (
        "import os\nimport labctl\nfrom labctl.run import dispatch\nguests = labctl.Guests()\n"
    )
    assert len(list(patches(imports + patch))) == 1
    assert list(patches(imports + 'monkeypatch.setattr(os, "geteuid", lambda: 0)')) == []
