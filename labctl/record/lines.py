"""The lines of history.jsonl, and the events that they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from sys import intern
from typing import Any

from labctl.ground.errors import UsageError
from labctl.ground.reading import loads, of_version, typed
from labctl.probes.sockets import State
from labctl.record.events import (
    KINDS,
    READS,
    Event,
    LabEvent,
    PacketEvent,
    SocketsEvent,
    StateEvent,
)


def shared(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with each short text only once in memory: a connection's eight transitions have the
    same addresses, and there may be thousands of connections."""
    return {
        key: intern(value) if isinstance(value, str) and len(value) < 64 else value
        for key, value in data.items()
    }


def read_events(lines: Iterable[str | bytes]) -> Iterator[Event]:
    """The events of a history.jsonl. Raises UsageError for a line that is no event, and for a
    history of another version."""
    for number, line in enumerate(lines, 1):
        try:
            text = line if isinstance(line, str) else line.decode()
            yield _transition(text) or read_event(loads(text))
        except ValueError as exc:
            raise UsageError(f"history.jsonl:{number}: no event: {exc}") from exc


_WORD = r'"([ !#-\[\]-~]{1,63})"'
_TRANSITION = re.compile(
    r'\{"t": ?(\d{1,9}\.\d{1,9}), ?"kind": ?"state", ?"host": ?'
    rf'{_WORD}, ?"local": ?{_WORD}, ?"remote": ?{_WORD}, ?"old": ?{_WORD}, ?"new": ?{_WORD}\}}\n?'
)
_STATES = {str(state): str(state) for state in State}


def _transition(line: str) -> StateEvent | None:
    """The transition that a line tells of in the form of `to_json`: most lines do, and this takes a
    fifth of the time. None for anything else."""
    if found := _TRANSITION.fullmatch(line):
        t, host, local, remote, old, new = found.groups()
        if old in _STATES and new in _STATES:
            return StateEvent(
                float(t), intern(host), intern(local), intern(remote), _STATES[old], _STATES[new]
            )
    return None


def read_event(data: Any) -> Event:
    """The event that a JSON object is, with every field of its type. Raises ValueError, and
    UsageError if it is the lab's event of a history of another version."""
    if not isinstance(data, dict):
        raise ValueError("it is no object")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"its kind is {str(kind)[:40]!r}; there are {', '.join(KINDS)}")
    if kind == LabEvent.kind:
        of_version("history.jsonl", "history", data.get("version", 1), READS)
    fields = shared(data)
    del fields["kind"]
    event = typed(KINDS[kind], fields)
    match event:
        case SocketsEvent():
            _ = event.came
        case PacketEvent():
            _ = event.observation
    return event
