"""The run directory: scenario.yaml, history.jsonl, HOST.ss, HOST.pcap and result.json.

It writes history.jsonl, the `ss` texts and the captures as things happen, so a run that was cut
short is still evidence. It writes result.json whole or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any, Self, TextIO

from labctl.ground.errors import LabError, UsageError
from labctl.ground.limits import limit_of
from labctl.probes.segments import FILE_HEADER, Captures
from labctl.record.events import Event, LabEvent, SocketsEvent

OUT = "use --out DIR"
"""How to record a run elsewhere."""
RECORD = (".jsonl", ".ss", ".pcap")
"""The files by which a run can be judged."""


def new_folder(parent: Path, name: str, hint: str = OUT) -> Path:
    """A new folder for a run. Raises UsageError with the hint if that can't be made."""
    stem = re.sub(r"[^A-Za-z0-9._=-]+", "-", name).strip("-")[:100]
    with writing(parent, hint):
        return _fresh(parent, stem)


class RunFolder:
    """A run's folder, in use. Opened again, it goes on where it ended. Raises UsageError if it
    can't be written; adding to it raises LabError if there is no room."""

    def __init__(self, path: Path, scenario: str) -> None:
        self.path = path
        with writing(path):
            self.write_scenario(scenario)
            self._history = (path / "history.jsonl").open("a", encoding="utf-8", buffering=1)
        self._texts: dict[str, TextIO] = {}
        self._captures: dict[str, FileIO] = {}
        self.captures = Captures()
        """What it has of captures, for a history: that adds packets first."""

    def write_scenario(self, text: str) -> None:
        """Writes scenario.yaml; again if there are more steps."""
        with self._room():
            (self.path / "scenario.yaml").write_text(text, encoding="utf-8")

    def add(self, event: Event) -> None:
        """Writes one event."""
        with self._room():
            self._history.write(event.to_json() + "\n")
            if isinstance(event, LabEvent) and "capture" in event.environment.get("probes", ()):
                for name in event.addresses:  # a missing file must not look like silence
                    self._capture(name.partition(".")[0])
            if isinstance(event, SocketsEvent):
                if event.host not in self._texts:
                    path = self.path / f"{event.host}.ss"
                    self._texts[event.host] = path.open("w", encoding="utf-8", buffering=1)
                title = event.caption or event.cause
                if event.gone is not None:
                    title += f": {len(event.gone)} gone or changed since then, and now"
                self._texts[event.host].write(f"# {event.t:.3f} {title}\n{event.text}\n")

    def add_packets(self, host: str, records: bytes) -> None:
        """Appends to a host's capture."""
        with self._room():
            self._capture(host).write(records)

    def finish(self, result: dict[str, Any]) -> None:
        """Writes result.json, with the length of each file of the record."""
        partial = self.path / "result.json.partial"
        with self._room():
            record = sorted(p for p in self.path.iterdir() if p.suffix in RECORD)
            files = {path.name: path.stat().st_size for path in record}
            text = json.dumps({**result, "files": files}, indent=1)
            partial.write_text(text + "\n", encoding="utf-8")
            partial.rename(self.path / "result.json")

    def _capture(self, host: str) -> FileIO:
        if host not in self._captures:
            self._captures[host] = (self.path / f"{host}.pcap").open("w+b", buffering=0)
            self._captures[host].write(FILE_HEADER)
            self.captures.traffic.follow(host, self._captures[host])
        return self._captures[host]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.captures.traffic.settle()
        files: list[IO[Any]] = [self._history, *self._texts.values(), *self._captures.values()]
        for file in files:
            with suppress(OSError):  # whoever failed to write has reported it
                file.close()

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            reason, hint = limit_of(exc) or (exc.strerror, OUT)
            raise LabError(f"{self.path}: the run can't be recorded: {reason}", hint) from exc


@contextmanager
def writing(path: Path, hint: str = OUT) -> Iterator[None]:
    """Raises UsageError if something can't be written."""
    try:
        yield
    except OSError as exc:
        reason, told = limit_of(exc) or (exc.strerror, hint)
        raise UsageError(f"{path}: can't write there: {reason}", told) from exc
    except ValueError as exc:  # only Python can have a NUL in a name
        raise UsageError(f"{str(path)!r}: can't write there: {exc}", hint) from exc


def _fresh(parent: Path, stem: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
            return path.resolve()
        except FileExistsError:
            number += 1
