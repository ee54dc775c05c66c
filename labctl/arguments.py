"""What a command line says of scenarios: PATHs, and options NAME=VALUE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from labctl.errors import UsageError
from labctl.resources import catalogue
from labctl.values import unknown


def find(paths: Sequence[str], shipped: Path) -> list[Path]:
    """Files for what was named: files, folders (all below), or names of shipped scenarios and of
    their folders.

    Raises UsageError for what is none of these.
    """
    names = catalogue(shipped)
    files: list[Path] = []
    for text in paths:
        path = Path(text)
        try:
            if text and path.is_dir():
                found = sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml"))
                if not found:
                    message = "no scenario in this folder; a scenario ends in .yaml"
                    raise UsageError(f"{text}: {message}")
            else:
                found = [path] if text and path.exists() else _named(text, names)
        except OSError as exc:
            raise UsageError(f"{text}: {exc.strerror}") from exc
        if not found:
            raise UsageError(f"{text}: no such file; " + unknown("scenario", text, names))
        files += found
    return list(dict.fromkeys(files))


def _named(text: str, names: Mapping[str, Path]) -> list[Path]:
    """The shipped scenarios of this name, in whatever folder, or in the folder of this name."""
    folder = text.rstrip("/") + "/"
    return [
        path for name, path in names.items()
        if text in (name, path.stem) or name.startswith(folder)
    ]  # fmt: skip


def parse_sets(texts: Iterable[str], option: str) -> dict[str, str]:
    """What an option `NAME=VALUE` says, given any number of times. Raises UsageError."""
    sets = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {text}: no NAME=VALUE")
        sets[name] = value
    return sets
