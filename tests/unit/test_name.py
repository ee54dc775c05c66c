"""What is called labctl: this distribution, and others that a machine may have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import labctl
from labctl.ground import installed
from labctl.run.doctor import CHECKS, Check

PIP = """\
#!/usr/bin/python3
import sys
from labctl.cli.commands import main
if __name__ == '__main__':
    sys.exit(main())
"""


def check() -> Check:
    (name,) = (check for check in CHECKS if check.__name__ == "_name")
    return name()


def program(folder: Path, text: str) -> Path:
    folder.mkdir()
    path = folder / "labctl"
    path.write_text(text)
    path.chmod(0o755)
    return path


def distribution(folder: Path, name: str, *files: str, script: bool = False) -> None:
    """Another distribution, as pip leaves it in a folder on Python's path."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    if script:
        (info / "entry_points.txt").write_text("[console_scripts]\nlabctl = their.cli:main\n")


def test_the_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    assert labctl.__version__.startswith("0.")
    monkeypatch.setattr(sys, "path", [])
    assert labctl.__version__ == "unknown"


def test_a_program_of_ours_is_no_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = program(tmp_path / "ours", PIP), program(tmp_path / "theirs", "#!/bin/sh\n")
    for path, expected in (
        ([ours], None),
        ([ours, theirs], None),
        ([theirs, ours], theirs),
        ([], None),
    ):
        monkeypatch.setenv("PATH", ":".join(str(program.parent) for program in path))
        assert installed.stranger() == expected
        assert check().ok is (expected is None)
    monkeypatch.setenv("PATH", str(theirs.parent))
    assert check().found == f"{theirs} is another program"
    assert "put it first on the PATH" in check().hint


@pytest.mark.parametrize(
    ("name", "files", "script", "told"),
    [
        ("labctl", ("labctl/__init__.py", "labctl/cli.py"), False, True),
        ("their-lab", ("their/__init__.py",), True, True),
        ("labctl-plugin", ("labctl_plugin/__init__.py",), False, False),
    ],
)
def test_another_distribution_of_these_names(
    name: str, files: tuple[str, ...], script: bool, told: bool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert installed.namesakes() == []
    distribution(tmp_path, name, *files, script=script)
    monkeypatch.syspath_prepend(tmp_path)
    assert installed.namesakes() == ([name] if told else [])
    if told:
        assert not check().ok
        assert check().hint.startswith(f"pip uninstall {name}, then pip install")
