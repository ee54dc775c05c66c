"""What a command line says of scenarios and of runs: PATHs, names, and options NAME=VALUE.

And what a shell offers to complete there: names and files. bash takes either words, or the request
to complete files itself. So if no name fits, this leaves files to bash; else it offers them beside
the names.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from labctl.ground.errors import UsageError
from labctl.ground.resources import APART, catalogue, scenarios, shelf

ENDINGS = (".yaml", ".yml")
SEE = "see `labctl list` for the shipped ones"
SHIPPED = "scenarios"
"""The name for all of them: that of their folder in a checkout."""
HOST_OF_FILE = "name the host that the file is of: server=FILE"


def find(paths: Sequence[str], shipped: Path) -> list[Path]:
    """The files of these paths: files, folders (all below), or names of shipped scenarios and of
    their folders. `scenarios` means all lessons, as does their own folder: scenarios that stand
    apart are named.

    Raises UsageError for anything else.
    """
    names, lessons = shelf(shipped), catalogue(shipped)
    files: list[Path] = []
    for text in paths:
        path = Path(text)
        try:
            if text and path.is_dir() and path.resolve() == shipped.resolve():
                found = [path / f.relative_to(shipped) for f in lessons.values()]
            elif text and path.is_dir():
                found = _below(path)
                if not found:
                    message = "no scenario in this folder; a scenario ends in .yaml"
                    raise UsageError(f"{text}: {message}")
            else:
                found = [path] if text and path.exists() else _named(text, names, lessons)
        except OSError as exc:
            raise UsageError(f"{text}: {exc.strerror}") from exc
        if not found:
            hint = _meant(text, names if text.startswith(APART) else lessons)
            raise UsageError(f"{text}: no such file, and no shipped scenario", hint)
        files += found
    return list(dict.fromkeys(files))


def _meant(text: str, names: Iterable[str]) -> str:
    """What somebody may have meant: a file beside, or one of these names."""
    folder = Path(text).parent
    beside = [folder / path.name for path in folder.glob("*") if path.suffix in ENDINGS]
    close = get_close_matches(text, [*map(str, beside), *names], n=1, cutoff=0.55)
    return f"did you mean {close[0]!r}? {SEE}" if close else SEE


def _below(folder: Path) -> list[Path]:
    """The scenarios below a folder, but in no folder that begins with a dot: `.github`, `.venv`."""
    return sorted(
        path for path in folder.rglob("*")
        if path.suffix in ENDINGS
        and not any(name.startswith(".") for name in path.relative_to(folder).parts[:-1])
    )  # fmt: skip


def _named(text: str, names: Mapping[str, Path], lessons: Mapping[str, Path]) -> list[Path]:
    """The shipped scenarios of this name, in any folder, or in the folder of this name."""
    top, _, rest = text.partition("/")
    if top == SHIPPED:
        if not rest:
            return list(lessons.values())
        text = rest.removesuffix(".yaml")
    folder = text.rstrip("/") + "/"
    return [
        path for name, path in names.items()
        if text in (name, path.stem) or name.startswith(folder)
    ]  # fmt: skip


Option = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What click makes of an option: a decorator."""
Offers = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
"""See `shell_complete` of click."""


def offering(names: Callable[[], Iterable[str]], ending: str | None = None) -> Offers:
    """Offers names, and beside them files with this ending; without an ending, no files."""

    def offers(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [name for name in names() if name.startswith(incomplete)]
        if ending is None:
            return [CompletionItem(name) for name in found]
        if not found:
            return [CompletionItem(incomplete, type="file")]
        folder, slash, start = incomplete.rpartition("/")
        files = []
        for path in sorted(Path(folder or slash or ".").glob(f"{glob.escape(start)}*")):
            if path.is_dir() or path.name.endswith(ending):
                files.append(f"{folder}{slash}{path.name}" + ("/" if path.is_dir() else ""))
        return [CompletionItem(word) for word in dict.fromkeys([*found, *files])]

    return offers


def shipped_names() -> list[str]:
    """The names that PATH takes: of shipped scenarios, of their folders, and the name for all."""
    found = shelf(scenarios())
    folders = [name.rpartition("/")[0] for name in found if "/" in name]
    everything = [] if Path(SHIPPED).exists() else [SHIPPED]
    return list(dict.fromkeys([*found, *folders, *(p.stem for p in found.values()), *everything]))


def recorded_names() -> list[str]:
    """The names that RUN takes."""
    from labctl.cli.chosen import names

    return names()


def parse_files(texts: Iterable[str], option: str) -> dict[str, Path]:
    """The hosts and files of an option `HOST=FILE`, as `parse_sets`."""
    found = parse_sets(texts, option, "HOST=FILE", HOST_OF_FILE)
    if nameless := [name for name, file in found.items() if not file]:
        raise UsageError(f"{option} {nameless[0]}=: no HOST=FILE", HOST_OF_FILE)
    return {name: Path(file) for name, file in found.items()}


def parse_sets(
    texts: Iterable[str], option: str, form: str = "NAME=VALUE", hint: str = ""
) -> dict[str, str]:
    """The names and values of an option of this form, given any number of times. Raises
    UsageError."""
    sets = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {text}: no {form}", hint)
        sets[name] = value
    return sets


Asked = TypeVar("Asked")


def as_one(kind: Callable[..., Asked]) -> Callable[[Callable[[Asked], int]], Callable[..., int]]:
    """Passes all arguments of a command to it as one object of this kind."""

    def decorate(command: Callable[[Asked], int]) -> Callable[..., int]:
        @wraps(command)
        def run(**words: Any) -> int:
            return command(kind(**words))

        return run

    return decorate


class Port(click.IntRange):
    """The number of a port; a mistake says what is allowed."""

    name = "port"

    def __init__(self) -> None:
        super().__init__(1, 65535)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is no port; allowed: 1 to 65535", param, ctx)


backend_option = click.option(
    "--backend",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "docker", "netns"]),
    help="Where the lab runs; auto takes Docker where an engine answers.",
)
engine_option = click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="[NAME=]WHERE",
    help="A Docker engine: a URL, or a context of Docker. Several: one lab over a swarm; but of "
    "many cases each on one.",
)
os_option = click.option(
    "--os",
    metavar="IMAGE",
    help="The operating system of the images (Docker).  [default: debian:12]",
)
scenarios_argument = click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="PATH...",
    shell_complete=offering(shipped_names, ".yaml"),
)
runs_argument = click.argument(
    "runs", nargs=-1, metavar="[RUN...]", shell_complete=offering(recorded_names, "")
)
last_option = click.option("--last", is_flag=True, help="What was recorded last.")
set_option = click.option(
    "--set", "sets", multiple=True, metavar="NAME=VALUE", help="Overrides a param."
)


compose_option = click.option(
    "--compose",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The Compose project whose services are hosts, instead of a scenario's own.",
)


def jobs_option(words: str) -> Option:
    return click.option("-j", "--jobs", type=click.IntRange(1, 32), metavar="N", help=words)


def form_option(forms: Sequence[str], words: str) -> Option:
    """`--format`; the first is the default."""
    kinds = click.Choice(forms)
    return click.option(
        "--format", "form", default=forms[0], show_default=True, type=kinds, help=words
    )


def folder_option(words: str) -> Option:
    return click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help=words)
