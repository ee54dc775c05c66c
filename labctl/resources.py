"""Where files are: the shipped ones beside the package in a checkout, inside it when installed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@cache
def _root() -> Path:
    data = PACKAGE / "_data"
    return data if data.is_dir() else PACKAGE.parent


def home() -> Path:
    """The user's home folder; where a user has none, one that never exists."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


def images() -> Path:
    """The folder of Dockerfiles and of the programs that run inside the lab."""
    return _root() / "images"


def scenarios() -> Path:
    """The folder of shipped scenarios."""
    return _root() / "scenarios"


def catalogue(folder: Path) -> dict[str, Path]:
    """The scenarios of a folder by name, those of a folder in it as `servers/half_close`."""
    files = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
