"""From what programs in the lab say to messages that are known to fit, and to events; `t` of an
event is in seconds of the run.

Whoever wrote it, nothing is taken for a message that is none: `NoMessage` says what is wrong.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from labctl.backends import Message
from labctl.backends.wire import NoMessage, quoted
from labctl.probes.sockets import SsParseError
from labctl.record.events import (
    KINDS,
    AddressEvent,
    CallEvent,
    CountersEvent,
    Event,
    LossEvent,
    OutputEvent,
    ProcessEvent,
    SocketsEvent,
    StateEvent,
    TroubleEvent,
    shared,
)

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
OPEN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

BY_PROCESS: dict[str, type[Event]] = {
    "process": ProcessEvent,
    "call": CallEvent,
    "output": OutputEvent,
}
BY_HOST: dict[str, type[Event]] = {
    "trouble": TroubleEvent,
    "loss": LossEvent,
    "sockets": SocketsEvent,
    "counters": CountersEvent,
    "address": AddressEvent,
}
NO_EVENTS: dict[str, dict[str, Any]] = {
    "hello": {"wall": float, "counters": dict[str, int], "kernel": str},
    "packets": {"data": str},
    "broken": {"text": str},
    "refused": {"reason": str},
}
REPLIES: dict[str, dict[str, Any]] = {
    "setup": {"capture": str | None},
    "flush": {"dropped": int, "lost": dict[str, int]},
    "sysctl": {"missing": list[str], "failed": dict[str, str]},
    "exec": {"exit": int, "output": str, "left_out": int},
    "drop": {"unlogged": str | None},
    "heal": {"lost": dict[str, int]},
    "probe": {"missing": dict[str, str]},
}
"""What an answer to each command, or each verb of a `fault`, has beside its `id` and `t`."""


def of_host(kind: str, t: float, host: str, message: Message) -> Event:
    """What an agent told of its host. Sockets that can't be understood are trouble."""
    event = _event(BY_HOST, kind, t, {**message, "host": host})
    if isinstance(event, SocketsEvent):
        try:
            _ = event.sockets
        except SsParseError as exc:
            return TroubleEvent(t, host, "ss", f"{exc}\n{event.text}")
    return event


def of_trace(kind: str, t: float, owners: Mapping[str, str], message: Message) -> Event:
    """What the tracer told of a socket, whose address is of one of `owners`; or its trouble."""
    if kind == "state":
        address = str(message.get("local")).rpartition(":")[0].strip("[]")
        if address not in owners:
            raise NoMessage(f"a socket of no host: {quoted(message)}")
        return _event({"state": StateEvent}, kind, t, {**message, "host": owners[address]})
    return _event({"trouble": TroubleEvent}, kind, t, {**message, "host": ""})


def of_process(kind: str, t: float, process: str, host: str, message: Message) -> Event:
    """What a supervisor told of its process."""
    return _event(BY_PROCESS, kind, t, {**message, "process": process, "host": host})


def no_event(kind: str, message: Message) -> Message:
    """A message of a kind in NO_EVENTS. Raises NoMessage."""
    if kind not in NO_EVENTS:
        raise NoMessage(f"unknown kind {kind!r}: {quoted(message)}")
    return _fit(_open(kind, tuple(NO_EVENTS[kind].items())), message)


def fitting(do: str, message: Message) -> Message:
    """An answer, if it fits the command or the verb of `fault`. Raises NoMessage."""
    wanted = {"t": float, **({} if "error" in message else REPLIES.get(do, {}))}
    return _fit(_open(f"an answer to {do}", tuple(wanted.items())), message)


def ident(message: Message) -> int:
    """Which question it answers. Raises NoMessage."""
    found = message.get("id")
    if not isinstance(found, int):
        raise NoMessage(f"an answer to nothing: {quoted(message)}")
    return found


def packets(message: Message) -> bytes:
    """What a host captured, as pcap records. Raises NoMessage."""
    try:
        return base64.b64decode(no_event("packets", message)["data"], validate=True)
    except ValueError as exc:
        raise NoMessage(f"no base64: {quoted(message)}") from exc


def _event(kinds: Mapping[str, type[Event]], kind: str, t: float, data: Message) -> Event:
    if kind not in kinds:
        raise NoMessage(f"unknown kind {kind!r}: {quoted(data)}")
    found = kinds[kind]
    _fit(_model(found.kind), {**data, "t": t})
    return found(t, **shared(data))


def _fit(model: type[BaseModel], data: Message) -> Message:
    try:
        model.__pydantic_validator__.validate_python(data)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise NoMessage(f"{where}: {first['msg']}: {quoted(data)}") from exc
    return data


@cache
def _model(kind: str) -> type[BaseModel]:
    hints = get_type_hints(KINDS[kind])
    wanted: dict[str, Any] = {}
    for field in fields(KINDS[kind]):
        optional = field.default is not MISSING or field.default_factory is not MISSING
        wanted[field.name] = (hints[field.name], None if optional else ...)
    return create_model(kind, __config__=STRICT, **wanted)


@cache
def _open(name: str, wanted: tuple[tuple[str, Any], ...]) -> type[BaseModel]:
    """A model of what must be there; there may be more."""
    known: dict[str, Any] = {field: (hint, ...) for field, hint in wanted}
    return create_model(name, __config__=OPEN, **known)
