"""Programs of the lab run on the Pythons of old systems."""

from __future__ import annotations

import ast
import sys

from labctl.ground.resources import PACKAGE, images
from tests.unit.test_calls import PEER

NEWER = {"capture_output", "removeprefix", "removesuffix", "isascii", "fromisoformat", "cache"}
"""Names of the standard library that came after Python 3.6, as far as they tempt."""


def test_programs_of_the_lab_run_on_old_pythons() -> None:
    files = sorted(images().rglob("*.py"))
    assert PEER in files
    for file in files:
        tree = ast.parse(file.read_text("utf-8"), str(file), feature_version=(3, 6))
        for node in ast.walk(tree):
            match node:
                case ast.ImportFrom(module=name):
                    imported = [name or ""]
                case ast.Import(names=aliases):
                    imported = [alias.name for alias in aliases]
                case ast.Attribute(attr=name) | ast.keyword(arg=name):
                    assert name not in NEWER, f"{file.name}:{node.lineno}"
                    continue
                case _:
                    continue
            beside = {path.stem for path in file.parent.glob("*.py")}
            assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names | beside
            assert "__future__" not in imported, "its annotations came with 3.7"


def test_world_runs_on_the_python_of_any_guest() -> None:
    """Ruff holds its annotations to 3.9, too."""
    text = (PACKAGE / "backends" / "netns" / "world.py").read_text("utf-8")
    names = {getattr(n, "attr", getattr(n, "arg", None))
             for n in ast.walk(ast.parse(text, feature_version=(3, 9)))}  # fmt: skip
    assert not names & {"strict", "unshare", "setns", "pairwise", "bit_count", "add_note"}
