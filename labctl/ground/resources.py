"""The places of files: shipped files are beside the package in a checkout, and inside it when
installed; and the folder for a user's runs."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent


@cache
def _root() -> Path:
    data = PACKAGE / "_data"
    return data if data.is_dir() else PACKAGE.parent


def home() -> Path:
    """The user's home folder; if a user has none, one that never exists."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


def default_folder() -> Path:
    """The folder for runs without `--out` (XDG Base Directory, XDG_STATE_HOME)."""
    state = os.environ.get("XDG_STATE_HOME") or home() / ".local" / "state"
    return Path(state) / "labctl" / "runs"


def images() -> Path:
    """The folder of Dockerfiles and of the programs that run inside the lab."""
    return _root() / "images"


@cache
def peer_module(name: str) -> Any:
    """A part of the peer program, as a module."""
    file = images() / "peer" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"labctl_peer_{name}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scenarios() -> Path:
    """The folder of shipped scenarios."""
    return _root() / "scenarios"


APART = "peers/"
"""The folder of shipped scenarios that are no lessons: one has to ask for them."""


def shelf(folder: Path) -> dict[str, Path]:
    """The scenarios of a folder by name; those of a folder in it as `servers/half_close`."""
    files = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def catalogue(folder: Path) -> dict[str, Path]:
    """The same without those that stand APART."""
    return {name: path for name, path in shelf(folder).items() if not name.startswith(APART)}
